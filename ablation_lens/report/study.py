"""A finished study as one page: what was run, what came out, how neurons are distributed, and how to do it again.

`make_report(folder)` gathers; `page.py` writes it as HTML and as Markdown. Nothing is in it that was not measured.
"""

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from ablation_lens import plots
from ablation_lens.escaping import as_unicode, on_one_line
from ablation_lens.neurons.shapes import SHAPE_WORDS
from ablation_lens.records import CorpusRecord, Versions
from ablation_lens.report.again import SETTINGS, command_for, toml_of
from ablation_lens.report.page import Code, Figure, File, Files, Heading, Links, Notes, Page, Paragraph, Table
from ablation_lens.study.methods import BASELINE
from ablation_lens.study.paper import is_of_the_paper
from ablation_lens.study.records import StudyRecord
from ablation_lens.study.results import METRICS, Results, csv_of
from ablation_lens.study.table2 import fractions_shown, make_table2

if TYPE_CHECKING:
    import pandas

_Read = TypeVar("_Read")

SEEDS_OF_INPUTS = 3
"""How many random inputs of each kind are shown; all of them are in the folder."""

CITATION = """\
@inproceedings{pochinkov2024peak,
  title = {Investigating Neuron Ablation in Attention Heads: The Case for Peak Activation Centering},
  author = {Pochinkov, Nicholas and Pasero, Ben and Shibayama, Skylar},
  booktitle = {The 2nd World Conference on eXplainable Artificial Intelligence},
  year = {2024}
}"""


def make_report(folder: str | Path | Results, *, beside: str | Path | None = None) -> Page:
    """Everything a person wants to know of a run folder; `.html()` and `.markdown()` write it.

    `beside` is the folder that the page will lie in, as links are relative; it is the run folder unless given.
    """
    results = folder if isinstance(folder, Results) else Results.load(folder)
    summary = results.summary()
    studies = _readable(results, results.folder.study, lambda: results.folder.names("studies"))
    page = Page("What attention neurons are set to when they are ablated, and what is lost")
    page.add(Paragraph(_summary(results)))
    page.add(Paragraph(_dates(results)))
    page.add(Files(tuple(_files(results, summary, studies))))
    _add_outcome(page, results, summary)
    _add_curves(page, results, summary.assign(group=summary["group"].map(results.groups)))
    readable = [group for group, label in results.groups.items() if _add_neurons(page, results, group, label)]
    _add_explorer(page, results, readable, results.folder.path if beside is None else Path(beside))
    _add_inputs(page, results)
    _add_settings(page, results)
    _add_again(page, results, studies)
    page.add(Heading("To cite"))
    page.add(
        Paragraph("The method is of the paper below; the numbers are of ablation-lens, in the version given above.")
    )
    page.add(Code(CITATION))
    _add_flaws(page, results)
    return page


def _summary(results: Results) -> str:
    frame = results.frame
    ablated = frame[frame["method"] != BASELINE]
    # `nunique` leaves out missing seeds, those of cells that do not depend on one.
    seeds, methods, fractions = (int(ablated[column].nunique()) for column in ("seed", "method", "fraction"))
    return (
        f"{len(results.groups)} model{_s(len(results.groups))}, {methods} method{_s(methods)}, "
        f"{fractions} fraction{_s(fractions)}, {seeds} seed{_s(seeds)}: {len(frame):,} evaluations of "
        f"{int(frame['predictions'].sum()):,} predictions in all, {_duration(frame['seconds'].sum())} of computing."
    )


def _dates(results: Results) -> str:
    changed = []
    for key in results.frame.index:
        # A folder that is shared may lose a file between two looks.
        try:
            changed.append(results.folder.file("cells", str(key)).stat().st_mtime)
        except OSError:
            continue
    days = (
        [datetime.fromtimestamp(end, UTC).date().isoformat() for end in (min(changed), max(changed))] if changed else []
    )
    spread = f" The files of its cells are of {' to '.join(dict.fromkeys(days))} (UTC)." if days else ""
    return (
        f"Written on {_today().isoformat()} by ablation-lens {Versions.current().ablation_lens}, from "
        f"{as_unicode(str(results.folder.path))}.{spread}"
    )


def _today() -> date:
    return datetime.now(UTC).date()


def _files(results: Results, summary: "pandas.DataFrame", studies: Iterable[StudyRecord]) -> Iterable[File]:
    """What the page hands out: a row per cell, a row per method and fraction, and all of it as JSON."""
    labelled = summary.assign(group=summary["group"].map(results.groups))
    yield File("cells.csv", "text/csv", csv_of(results.frame, index=True))
    yield File("summary.csv", "text/csv", csv_of(labelled, index=False))
    everything = {
        "groups": {group: results.facts(group) | {"label": label} for group, label in results.groups.items()},
        "studies": [study.to_dict() for study in studies],
        "cells": _records(results.frame.reset_index()),
        "summary": _records(summary),
    }
    yield File("results.json", "application/json", json.dumps(everything, indent=1, allow_nan=False))
    for number, study in enumerate(studies, 1):
        name = SETTINGS if number == 1 else SETTINGS.replace(".", f"-{number}.")
        yield File(name, "application/toml", toml_of(study))


def _records(frame: "pandas.DataFrame") -> list[Any]:
    """A dict per row; what is missing is None, as JSON knows no NaN."""
    plain = frame.astype(object)
    return list(plain.where(plain.notna(), None).to_dict("records"))


def _add_outcome(page: Page, results: Results, summary: "pandas.DataFrame") -> None:
    fractions = fractions_shown(results)
    page.add(Heading("In short"))
    rows = []
    shown = summary[summary["fraction"].isin(fractions)]
    for _, here in shown.groupby(["group", "fraction"], sort=False):
        ranked = here.sort_values("cross_entropy", kind="stable")  # of equals, the first is the summary's best
        best, alike = ranked.iloc[0], ranked[ranked["cross_entropy_as_best"]]["method"].tolist()[1:]
        worse = ranked[~ranked["cross_entropy_as_best"]]
        # What cannot be told from the best does not do the most harm, whatever its mean is.
        worst = f"{worse.iloc[-1]['method']} ({_change(worse.iloc[-1])})" if len(worse) else "no difference"
        rows.append(
            (
                results.groups[str(best["group"])],
                f"{100 * best['fraction']:g} %",
                f"{best['method']} ({_change(best)})",
                ", ".join(alike) or "–",
                worst if len(ranked) > 1 else "–",
            )
        )
    heads = ("model", "ablated", "least harm (change of CE)", "cannot be told from it", "most harm")
    page.add(Table(heads, tuple(rows)))
    page.add(Heading("Against the best method"))
    labelled = summary.assign(group=summary["group"].map(results.groups))
    page.add(
        Figure(
            "differences",
            plots.differences_to_best(labelled, metrics=METRICS),
            "Every method against the best one of its model, metric and fraction: mean and 95 % interval of the paired "
            "difference"
            + (", given the masks that were drawn" if summary["conditional"].any() else "")
            + ". A filled mark cannot be told from the best. Axes show the constants; a double click shows all.",
        )
    )
    page.add(Heading("Table 2"))
    made = make_table2(results, fractions)
    page.add(
        Table(
            ("", "", *made.groups.values()),
            [(section, name, *texts) for section, name, texts in made.texts()],
            numbers=len(made.groups),
        )
    )
    page.add(Notes(made.notes))
    if not any(is_of_the_paper(str(model)) for model in results.frame["model"].unique()):
        page.add(Paragraph("None of these models is one of the paper's four, so its figures do not stand beside ours."))


def _add_curves(page: Page, results: Results, labelled: "pandas.DataFrame") -> None:
    page.add(Heading("Top-1 and cross-entropy as neurons go (Figures 2 and 3 of the paper)"))
    chance = any(results.record(group).outputs for group in results.groups)
    said = "Lines: mean over seeds; thin lines: each seed." + (
        " Chance is every output alike, which is no limit: a model that is sure and wrong is worse." if chance else ""
    )
    page.add(Figure("figure-2", plots.figure_2(results, metrics=METRICS, seeds=True), said))
    own = [metric for metric in results.metrics if metric not in METRICS]
    if own:
        page.add(Heading("Further metrics"))
    # Two to a figure, as the two above: more in a row could not be read.
    for first in range(0, len(own), 2):
        chosen = own[first : first + 2]
        number, titles = first // 2 + 1, " and ".join(chosen)
        page.add(
            Figure(
                f"metrics-{number}",
                plots.figure_2(results, metrics=chosen, seeds=True),
                f"{titles}. Lines: mean over seeds; thin lines: each seed.",
            )
        )
        ranked = [metric for metric in chosen if labelled[f"{metric}_to_best"].notna().any()]
        if ranked:
            figure = plots.differences_to_best(labelled, metrics=ranked)
            page.add(
                Figure(f"metrics-{number}-differences", figure, f"{' and '.join(ranked)}, against the best method.")
            )


def _change(row: Any) -> str:
    change = row["cross_entropy"] - row["baseline_cross_entropy"]
    # As in Table 2: where the baseline failed, there is nothing that it changed from.
    return f"{change:+.2f} nats" if math.isfinite(change) else "baseline failed"


def _add_neurons(page: Page, results: Results, group: str, label: str) -> bool:
    """What a model's neurons are like; whether its statistics are there and can be read."""
    page.add(Heading(f"Neurons of {label}"))
    record = results.record(group)
    found = [passes for passes in (1, 2) if results.folder.has("statistics", record.statistics[passes - 1])]
    if not found:
        page.add(Paragraph("No statistics were collected."))
        return False
    statistics = None
    with results.leaving_out():
        # Of two passes, where they were made: that file holds all that one pass gives.
        statistics = results.folder.read_statistics(record, found[-1])
    if statistics is None:
        page.add(Paragraph("The statistics cannot be read; what is missing is listed at the end."))
        return False
    shapes = statistics.shapes()
    total = shapes.word.numel()
    counts = Counter(SHAPE_WORDS[code] for code in shapes.word.flatten().tolist())
    unresolved, still = counts["unresolved"], counts["constant"] + counts["sparse"]
    # NaN compares false, so constant neurons are in the total and never among the far ones.
    far = float((shapes.mean_to_peak_over_sigma > 0.5).double().mean())
    off = float((shapes.peak_over_sigma > 0.5).double().mean())
    page.add(
        Paragraph(
            f"{total:,} neurons over {statistics.provenance.tokens:,} positions. The peak is more than σ/2 from zero "
            f"in {100 * off:.1f} % of them, and more than σ/2 from the mean in {100 * far:.1f} %. "
            + (
                f"{unresolved:,} {'is' if unresolved == 1 else 'are'} unresolved: a few far values make the bins wider "
                "than what they would show."
                if unresolved
                else f"All{f' but {still:,} that hardly vary' if still else ''} are resolved: their histograms have at "
                "least eight bins between their quartiles."
            )
        )
    )
    page.add(Figure(f"figure-1-{group}", plots.figure_1(statistics), "Figure 1 of the paper, for this model."))
    shares = [
        (name, f"{counts[name]:,}", f"{100 * counts[name] / total:.1f} %") for name in SHAPE_WORDS if counts[name]
    ]
    page.add(Table(("shape", "neurons", "share"), tuple(shares), numbers=2))
    return True


def _add_explorer(page: Page, results: Results, readable: Iterable[str], beside: Path) -> None:
    """Links to the explorer's pages that lie in the run folder, and how to make one of each model."""
    folder = results.folder.path
    page.add(Heading("Every neuron"))
    found = sorted(path for path in folder.glob("explorer*.html") if path.is_file())
    if found:
        page.add(Links(tuple((as_unicode(path.name), _address(path, beside)) for path in found)))
    commands = []
    for group in readable:
        # Of two passes, where they were made.
        key = next(key for key in reversed(results.record(group).statistics) if results.folder.has("statistics", key))
        name = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in results.groups[group])
        parts = (results.folder.statistics(key), "--results", folder, "--html", folder / f"explorer-{name}.html")
        commands.append(" ".join(["ablation-lens explore", *(shlex.quote(str(part)) for part in parts)]))
    if commands:
        page.add(
            Paragraph(
                f"To make a page {'' if len(commands) == 1 else 'of each model '}with all its neurons, their centers "
                "and the damage, which the next report links to:"
            )
        )
        page.add(Code("\n".join(on_one_line(as_unicode(command)) for command in commands)))
    elif not found:
        page.add(Paragraph("The folder holds no statistics that a page of neurons could be made from."))


def _address(path: Path, beside: Path) -> str:
    """A relative address that no name can turn into another kind of link."""
    # As bytes, because a file's name need not be UTF-8. The dot keeps a colon from ending a scheme.
    parts = Path(os.path.relpath(path.resolve(), beside.resolve())).parts
    return "./" + "/".join(quote(os.fsencode(part), safe="") for part in parts)


def _add_inputs(page: Page, results: Results) -> None:
    """The paper's Table 3."""
    rows, left = [], 0
    seen: Counter[tuple[str, str]] = Counter()
    # Files are named by digests: unsorted, chance would choose the seeds that are shown.
    folder = results.folder
    inputs = [drawn for drawn, _ in _readable(results, folder.read_input, lambda: folder.keys("inputs"))]
    for drawn in sorted(inputs, key=lambda drawn: (drawn.kind, drawn.seed, drawn.digest)):
        # An input is kept before the cell it is for, so its group may have no finished cell.
        if drawn.group not in results.groups:
            continue
        kind = (drawn.group, drawn.kind)
        seen[kind] += 1
        if seen[kind] > SEEDS_OF_INPUTS:
            left += 1
            continue
        by = f" by {drawn.generator}" if drawn.generator else ""
        place = list(results.groups).index(drawn.group)
        rows.append((place, drawn.kind + by, drawn.seed, results.groups[drawn.group], drawn.extract))
    if rows:
        page.add(Heading("Inputs of resampling (Table 3 of the paper)"))
        shown = [(label, kind, str(seed), begins) for _, kind, seed, label, begins in sorted(rows)]
        page.add(Table(("model", "kind", "seed", "begins"), shown))
        if left:
            page.add(Paragraph(f"{left} more are in the folder, each whole, under inputs/."))


def _readable(results: Results, read: "Callable[[str], _Read]", listed: Callable[[], list[str]]) -> "list[_Read]":
    found, keys = [], []
    with results.leaving_out():
        keys = listed()
    for key in keys:
        with results.leaving_out():
            found.append(read(key))
    return found


def _add_settings(page: Page, results: Results) -> None:
    page.add(Heading("What was run"))
    rows = []
    for group, label in results.groups.items():
        record = results.record(group)
        model = record.model
        # `frame` has groups by key; `ablated`, which figures take, has them by label.
        cells = results.frame[results.frame["group"] == group]
        rows.append(
            (
                label,
                f"{model.architecture}, {model.n_layers} layers × {model.n_heads} heads × {model.d_head} dims, "
                + (f"{record.outputs:,} outputs, " if record.outputs else "")
                + f"{model.dtype}, weights {(model.weights or 'unknown')[:12]}",
                _corpus(record.collect),
                _corpus(record.evaluate) + ("" if record.count == "all" else f", {record.count}"),
                f"{record.predictions:,}",
                f"{len(cells):,}",
                _duration(cells["seconds"].sum()),
            )
        )
    heads = ("model", "weights", "statistics of", "scores of", "predictions", "cells", "computing")
    page.add(Table(heads, tuple(rows)))
    # Several of each: folders are merged by copying, so groups may come from different machines.
    versions: dict[str, set[str]] = {
        name: set() for name in ("ablation_lens", "python", "torch", "transformers", "transformer_lens")
    }
    devices = set()
    for group in results.groups:
        record = results.record(group)
        devices.add(record.facts["device"])
        for name, held in versions.items():
            held.add(getattr(record.versions, name))
    named = ", ".join(f"{name.replace('_', '-')} {' and '.join(sorted(held))}" for name, held in versions.items())
    page.add(Paragraph(f"{named}; on {' and '.join(sorted(devices))}."))
    splits = int(results.frame["splits"].sum())
    if splits:
        page.add(Paragraph(f"Memory ran out {splits} times and a batch was split; such scores agree to 1e-6."))


def _add_again(page: Page, results: Results, studies: Iterable[StudyRecord]) -> None:
    """The seeds in full, and every study's settings with the command that takes them."""
    page.add(Heading("To do it again"))
    seeds = sorted(int(seed) for seed in results.frame["seed"].dropna().unique())
    masks = {results.record(group).mask_seed for group in results.groups} - {None}
    page.add(
        Paragraph(
            (f"Seeds of the cells: {', '.join(map(str, seeds))}. " if seeds else "No cell depends on a seed. ")
            + (f"Masked tokens: seed {', '.join(map(str, sorted(masks, key=str)))}. " if masks else "")
            + "With equal versions, device and number of threads the numbers are the same."
        )
    )
    for study in studies:
        command = command_for(study)
        if command is None:
            page.add(Paragraph("From Python, with what was given there and these settings:"))
        else:
            page.add(Code(command))
            page.add(Paragraph(f"with these settings as {SETTINGS}:" if SETTINGS in command else "which is:"))
        page.add(Code(toml_of(study).rstrip()))


def _add_flaws(page: Page, results: Results) -> None:
    """What failed, and what cannot be read; last, as all that could be read has been read by now."""
    failures = _readable(results, results.folder.failure, results.folder.failed)
    if failures:
        page.add(Heading("What failed"))
        # A model that could not be loaded has failed without a cell.
        rows_failed = [(found.model, found.cell or "–", f"{found.error}: {found.message}") for found in failures]
        page.add(Table(("model", "cell", "error"), tuple(rows_failed)))
    if results.unreadable:
        page.add(Heading("What is missing"))
        page.add(Notes(tuple(results.unreadable)))


def _corpus(record: CorpusRecord) -> str:
    source = "" if record.source == record.name else f" ({record.source})"
    return (
        f"{record.name}/{record.split}{source}: {record.size_obtained:,} {record.unit} in {record.documents:,} "
        f"documents, digest {record.digest[:12]}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def write_report(folder: str | Path | Results, out: str | Path | None = None) -> tuple[Path, Path]:
    """Write report.html and report.md, into the run folder unless told otherwise."""
    results = folder if isinstance(folder, Results) else Results.load(folder)
    target = results.folder.path if out is None else Path(out)
    return make_report(results, beside=target).write(target / "report.html", target / "report.md")

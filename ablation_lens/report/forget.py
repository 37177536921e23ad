"""What `unlearn` found, as a figure, files and the blocks of a page."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablation_lens import plots
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.pruning import Unlearning
from ablation_lens.files import write_text, writing
from ablation_lens.report.page import Block, Figure, Heading, Notes, Paragraph, Table

NAME = "forget"

MEASURED = {
    "top1": "top-1",
    "top10": "top-10",
    "top1_uncommon": "top-1 without the 50 commonest tokens",
    "top10_uncommon": "top-10 without the 50 commonest tokens",
    "cross_entropy": "cross-entropy",
}


def write_unlearning(found: Unlearning, out: Path) -> dict[str, Path]:
    """The table, the figure and the file that `Unlearning.load` reads; returns where they are."""
    from ablation_lens.report.experiment import page_of
    from ablation_lens.study.results import csv_of

    files = {kind: out / f"{NAME}.{kind}" for kind in ("csv", "html", "safetensors")}
    with writing(out):
        write_text(files["csv"], csv_of(found.frame, index=False))
        write_text(files["html"], page_of(plots.unlearning_curves(found)))
        found.save(files["safetensors"])
    return files


def blocks(found: Unlearning) -> Iterator[Block]:
    """What a reader sees: how far forgetting gets ahead, by which values, beside chance; and what it is of."""
    about = found.about
    sizes = ", ".join(f"{100 * step:g} % of {site}" for site, step in zip(about.sites, about.steps, strict=True))
    yield Paragraph(
        on_one_line(
            f"Can {about.source.name} forget {about.forget} and keep {about.retain}? In {found.steps} steps of {sizes} "
            f"neurons, the most selective by {about.kind} are set to {', '.join(about.values)}."
        )
    )
    yield Paragraph(" ".join(found.in_words()))
    yield Figure("forgotten", plots.unlearning_curves(found), "What is forgotten against what else is lost.")
    for measure in about.measures:
        yield Heading(_capital(MEASURED[measure]))
        yield _summary(found, measure)
    yield Notes(
        (
            "Δ is the relative drop on what is to be forgotten, less that on what is to be retained; max Δ is the "
            "largest over all steps, nothing pruned among them, also of random neurons.",
            "The area is that under the curve of what is retained against what is left to forget, over half of the "
            "product of both in the model as it is: 2 forgets all and loses nothing, 1 loses both in proportion.",
            "Intervals are 95 %, over documents of both corpora drawn again; all steps, values and seeds are measured "
            "on the same ones.",
        )
    )
    yield Heading("Step by step")
    yield _steps(found)
    drawn = "of each layer" if about.per_layer else "among all layers together"
    yield Heading("What it was measured on")
    yield Table(
        ("", ""),
        [
            ("neurons were chosen on", on_one_line(about.chosen_on)),
            ("judged on", on_one_line(about.judged_on)),
            ("statistics", "collected anew after every step" if about.recollect else "those of the model as it is"),
            ("random neurons", f"{len(about.seeds)} seeds, as many, drawn {drawn}"),
        ],
    )


def _summary(found: Unlearning, measure: str) -> Table:
    rows = []
    for value, row in found.summary(measure).to_dict("index").items():
        furthest = _number(row["furthest"], "+.3f")
        told = f"**{furthest}**" if row["beyond_low"] > 0 else furthest
        rows.append(
            (
                on_one_line(str(value)),
                told,
                _range(row, "furthest", "+.3f"),
                "–" if math.isnan(row["furthest"]) else f"{100 * row['fraction']:.3g} %",
                _number(row["area"], ".2f"),
                _range(row, "area", ".2f"),
                _number(row["random_best"], "+.3f"),
                _number(row["beyond"], "+.3f"),
                _range(row, "beyond", "+.3f"),
            )
        )
    heads = ("set to", "max Δ", "95 %", "at", "area", "95 %", "best random", "beyond it", "95 %")
    return Table(heads, rows, numbers=8)


def _steps(found: Unlearning) -> Table:
    chosen = found.frame[(found.frame["measure"] == "top1") & found.frame["seed"].isna()]
    rows = [
        (
            on_one_line(str(row["value"])),
            f"{100 * row['fraction']:.3g} %",
            f"{100 * row['forget']:.1f} %",
            f"{100 * row['retain']:.1f} %",
            f"{100 * row['forget_drop']:.1f} %",
            f"{100 * row['retain_drop']:.1f} %",
            f"{row['ahead']:+.3f}",
            "–" if math.isnan(row["low"]) else f"[{row['low']:+.3f}, {row['high']:+.3f}]",
        )
        for row in chosen.to_dict("records")
    ]
    heads = ("set to", "pruned", "top-1 to forget", "top-1 to retain", "drop", "drop of the retained", "Δ", "95 %")
    return Table(heads, rows, numbers=7)


def _number(value: float, how: str) -> str:
    return "–" if math.isnan(value) else f"{value:{how}}"


def _range(row: Mapping[Any, Any], name: str, how: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if math.isnan(low) else f"[{low:{how}}, {high:{how}}]"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]

"""The commands around studies: `recommend`, `study`, `status`, `table`, `export`, `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.terminal import (
    INTERRUPTED,
    announce,
    cell,
    complain,
    say,
    say_json,
    say_lines,
    show,
    shows_bold,
    width,
)
from ablation_lens.errors import AblationLensError
from ablation_lens.names import require_known
from ablation_lens.study.paper import PRESETS

if TYPE_CHECKING:
    from ablation_lens.circuits.analysis import CircuitFolder
    from ablation_lens.study.results import Results
    from ablation_lens.study.status import Status
    from ablation_lens.study.table2 import Table2

FORMATS = ("text", "markdown", "latex", "csv")


def study(
    out: Annotated[Path, typer.Option(help="The run folder; an unfinished one is gone on with.")],
    config: Annotated[Path | None, typer.Argument(help="A TOML file with a study's settings.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="paper, tiny or quick.", autocompletion=options.completing(tuple(PRESETS))),
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="A model; may be repeated.", autocompletion=options.models)
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Such as peak, 'peak bins=64' or resample-tokens; repeat.",
            autocompletion=options.completing(options.METHODS),
        ),
    ] = None,
    fractions: Annotated[
        list[str] | None,
        typer.Option("--fractions", "--fraction", help="Shares of the neurons, such as 0.1,0.5,1; may be repeated."),
    ] = None,
    seeds: Annotated[
        list[str] | None, typer.Option("--seeds", "--seed", help="Such as 42,123,456; may be repeated.")
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Which neurons: z (attention), mlp, q, … (docs/guide/sites.md).",
            autocompletion=options.completing(options.SITES),
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="The corpus of text models.")] = None,
    image: Annotated[str | None, typer.Option(help="The corpus of image models.")] = None,
    collect_tokens: Annotated[int | None, typer.Option(help="Tokens that statistics are of.")] = None,
    evaluate_tokens: Annotated[int | None, typer.Option(help="Tokens that scores are of.")] = None,
    collect_images: Annotated[int | None, typer.Option(help="Images that statistics are of.")] = None,
    evaluate_images: Annotated[int | None, typer.Option(help="Images that scores are of.")] = None,
    bins: Annotated[int | None, typer.Option(help="Most bins per neuron.")] = None,
    metrics: options.Metrics = None,
    count: Annotated[
        list[str] | None, typer.Option("--count", help="all, or skip-common; repeat to measure both in one go.")
    ] = None,
    context: options.Context = None,
    batch_size: options.BatchSize = None,
    labels: Annotated[str | None, typer.Option(help="A CSV file,label for a folder of images.")] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.StudyDevices = None,
    as_json: options.AsJson = False,
) -> None:
    """Ablate 10 % to 100 % of the neurons by every method, and measure what is lost.

    Start from a preset or a TOML file, and change single settings by options. Run the same command again to go on
    after Ctrl-C, or at the same time elsewhere, or under torchrun, to share the work (docs/guide/scale.md).
    """
    announce(f"starting in {out}")
    from ablation_lens.ranks import Ranks
    from ablation_lens.study.study import Study

    changes: dict[str, Any] = {
        # An option that was not given must not replace what the preset says: None is dropped below.
        "models": models or None,
        "methods": methods or None,
        "fractions": _numbers(",".join(fractions), "fractions", float) if fractions else None,
        "seeds": _numbers(",".join(seeds), "seeds", int) if seeds else None,
        "site": site,
        "bins": bins,
        "context": context,
        "collect_tokens": collect_tokens,
        "evaluate_tokens": evaluate_tokens,
        "collect_images": collect_images,
        "evaluate_images": evaluate_images,
        "metrics": metrics or None,
        "count": count or None,
        "batch_size": batch_size,
        "labels": labels,
        "dtype": dtype,
        "device": device,
        "n_devices": n_devices,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if config is not None and preset is not None:
        raise AblationLensError('give a TOML file or --preset, not both; a file may say preset = "tiny" itself.')
    if config is not None:
        settings = Study.from_toml(config, **changes)
    elif preset is not None:
        settings = Study.preset(preset, **changes)
    elif models:
        settings = Study(**changes)
    else:
        raise AblationLensError("say what to study: --preset tiny, --model tiny-opt, or a TOML file.")
    corpora = {kind: name for kind, name in (("text", text), ("image", image)) if name is not None}
    if corpora:
        # Not among `changes`, where --text alone would replace the whole table of a TOML file.
        settings = settings.with_corpora(corpora)
    ranks = Ranks.join(gpus=settings.n_devices)
    try:
        results = settings.run(out, ranks=ranks)
    except KeyboardInterrupt as interruption:
        # Ctrl-C before the first model, or after the last cell, is a plain KeyboardInterrupt without a text.
        if ranks.is_first:
            complain(str(interruption) or f"interrupted: what is done is in {out}. Run the same again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    if not ranks.is_first:
        return
    if as_json:
        values = {"folder": out, "cells": len(results.frame), "failed": results.failed, "left_out": results.left_out}
        say_json("study", values | _table_of(results))
    elif (results.frame["fraction"] > 0).any():
        print_table(results)
    else:
        for _, row in results.frame.iterrows():
            say(f"{row['model']} as it is: top-1 {100 * row['top1']:.2f} %, CE {row['cross_entropy']:.2f} nats")
    if results.left_out:
        complain(f"left out, as no model here takes it: {', '.join(results.left_out)}")
    for line in results.failed[:5]:
        complain(f"failed: {line}", alarming=True)
    if results.failed:
        more = f" ({len(results.failed) - 5} more in {out / 'failures'})" if len(results.failed) > 5 else ""
        complain(f"{len(results.failed)} failed{more}; run the same again to retry them.")
        raise typer.Exit(1)
    _exit_1_if_cells_are_missing(results)


def recommend(
    model: options.Model,
    fractions: Annotated[
        list[float] | None,
        typer.Option("--fraction", help="A share of the neurons; repeat. Left out: 0.1, 0.5 and 0.9."),
    ] = None,
    centers: Annotated[
        list[str] | None,
        typer.Option(
            "--center",
            help="What to compare; repeat. Left out: zero, mean, median, peak, peak-kde and optimal.",
            autocompletion=options.completing(options.METHODS),
        ),
    ] = None,
    learned: Annotated[
        bool, typer.Option("--learned/--no-learned", help="Whether centers that are learned are among them.")
    ] = True,
    seeds: Annotated[int, typer.Option(help="How many masks at every fraction.", min=1)] = 10,
    metric: Annotated[
        str,
        typer.Option(
            help="What is lost, such as cross_entropy or kl.", autocompletion=options.completing(options.METRICS)
        ),
    ] = "cross_entropy",
    site: options.Site = "z",
    folder: Annotated[Path | None, typer.Option(help="Where the study is kept, to be gone on with.")] = None,
    corpus: options.Corpus = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of either split. Left out: 20,000 to collect, 10,000 to judge, or all there is."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Likewise, for an image model. Left out: 1,000 and 500, or all there is.")
    ] = None,
    labels: options.Labels = None,
    context: options.Context = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    as_json: options.AsJson = False,
) -> None:
    """Say what to set ablated neurons to in a model: which center loses least, at what cost, and how sure that is.

    A small study; with --folder the same command goes on after Ctrl-C, and shares the work under torchrun.
    """
    announce(f"loading {model}")
    from ablation_lens.models.load import load_model
    from ablation_lens.ranks import Ranks
    from ablation_lens.study.methods import Method
    from ablation_lens.study.recommendation import recommend as recommendation_of
    from ablation_lens.tasks.tasks import task_for

    for each in centers or ():  # before the model is loaded
        Method.parse(each)
    ranks = Ranks.join(gpus=n_devices)
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices)
    given: dict[str, Any] = {} if labels is None else {"labels": labels}
    task = task_for(loaded, corpus, context=context, **given)
    asked: dict[str, Any] = {"fractions": fractions} if fractions else {}
    try:
        found = recommendation_of(
            loaded,
            task,
            centers=centers or None,
            learned=learned,
            seeds=seeds,
            metric=metric,
            site=site,
            tokens=tokens,
            images=images,
            folder=folder,
            ranks=ranks,
            **asked,
        )
    except KeyboardInterrupt as interruption:
        if ranks.is_first:
            complain(str(interruption) or "interrupted: nothing is kept.")
        raise typer.Exit(INTERRUPTED) from None
    if not ranks.is_first:
        return
    if as_json:
        say_json("recommendation", {"folder": folder, **found.to_dict()})
    else:
        say_lines(repr(found))
    if found.left_out:
        raise typer.Exit(1)


def status(folder: options.Run, as_json: options.AsJson = False) -> None:
    """Say what of a study is done, left and failed, by model and method, and who is at work; nothing is run.

    Of a folder of `circuit`: which parts of the latest analysis are done, by center.
    """
    announce(f"reading {folder}")
    from ablation_lens.circuits.analysis import CircuitFolder
    from ablation_lens.errors import FileFormatError
    from ablation_lens.study.status import MethodStatus, Status, status_of

    if CircuitFolder.is_at(folder):
        unit, run = "parts", CircuitFolder(folder)
        latest = run.latest()
        rows = [] if latest is None else [(latest.model.name, *row) for row in run.progress(latest).items()]
        shown = (MethodStatus(model, name, done, left, 0) for model, name, (done, left) in rows)
        found = Status(tuple(shown), (), (), tuple(run.holders()))
    elif not folder.exists():
        raise FileFormatError(
            f"{folder} is not a run folder, or the study has not begun yet: it makes the folder once the models are "
            "loaded; give the folder of a run, or wait."
        )
    else:
        unit, found = "cells", status_of(folder)
    if as_json:
        say_json("status", {"folder": folder, **found.to_dict()})
    else:
        _show_status(found, unit, folder)
    if found.unreadable:
        for text in found.unreadable[:5]:
            complain(text)
        raise typer.Exit(1)


def _show_status(found: "Status", unit: str, folder: Path) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("model", "method", "done", "left", "failed"):
        table.add_column(title, overflow="fold", justify="left" if title in ("model", "method") else "right")
    before = None
    for row in found.rows:
        shown = "" if row.model == before else row.model
        method = "baseline" if row.method == "none" else row.method
        table.add_row(*map(cell, (shown, method, row.done, row.left, row.failed or "")))
        before = row.model
    show(table)
    for failure in found.failures[:5]:
        complain(f"failed: {failure.model}: {failure.cell or 'loading'}: {failure.message}", alarming=True)
    if len(found.failures) > 5:
        complain(f"{len(found.failures) - 5} more failures are in {folder / 'failures'}")
    if found.at_work:
        workers = Table(box=None, pad_edge=False)
        for title in ("at work on", "process", "host", "since"):
            workers.add_column(title, overflow="fold")
        for holder in found.at_work:
            workers.add_row(*map(cell, (holder.what or holder.key, holder.process, holder.host, holder.began)))
        show(workers)
    done, left = (sum(getattr(row, name) for row in found.rows) for name in ("done", "left"))
    working = len({(holder.host, holder.process) for holder in found.at_work})
    say(
        f"{done:,} {unit} done, {left:,} left"
        + (f", {len(found.failures):,} failed" if found.failures else "")
        + (f", {working:,} at work" if working else ", nobody at work" if left else "")
    )


def table(
    folder: options.Run,
    fractions: Annotated[
        str | None,
        typer.Option(help="Shares of the neurons, such as 0.5,0.9. Left out: those two, or all that were measured."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="text, markdown, latex or csv.", autocompletion=options.completing(FORMATS)),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Print Table 2 of the paper for what a run folder holds."""
    announce(f"reading {folder}")
    options.require_one_form(as_json, format=form, out=out)
    from ablation_lens.files import require_target, write_text, writing
    from ablation_lens.study.results import Results

    form = form or "text"
    require_known(form, FORMATS, "format")
    wanted = None if fractions is None else _numbers(fractions, "fractions", float)
    if out is not None:
        require_target(out)
    results = Results.load(folder)
    if as_json:
        say_json("table", {"folder": folder} | _table_of(results, wanted))
    elif form == "text" and out is None:
        print_table(results, wanted)
    else:
        made = _made(results, wanted)
        # A file has no width to fit a table into, so it gets Markdown. The other formats are Table2's methods.
        content = made.markdown() if form == "text" else getattr(made, form)()
        if out is None:
            say_lines(content)
        else:
            with writing(out.parent):
                write_text(out, content + "\n")
            say(f"Table 2 → {out}")
    _exit_1_if_cells_are_missing(results)


def export(
    folder: options.Run,
    out: Annotated[Path, typer.Argument(help="A .csv or .parquet file.")],
    as_json: options.AsJson = False,
) -> None:
    """Write a row per cell: model, method, fraction, seed, top-1, cross-entropy."""
    announce(f"reading {folder}")
    from ablation_lens.files import require_target
    from ablation_lens.study.results import Results

    require_target(out)
    results = Results.load(folder)
    results.export(out)
    if as_json:
        say_json("export", {"folder": folder, "file": out, "cells": len(results.frame), "columns": [*results.frame]})
    else:
        say(f"{len(results.frame)} cells → {out}")
    _exit_1_if_cells_are_missing(results)


def report(
    folder: options.Run,
    out: Annotated[Path | None, typer.Option(help="Another folder for report.html and report.md.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write one page about a study (Table 2, Figures 1 to 3, neuron shapes), a circuit, or an experiment."""
    announce(f"reading {folder}")
    from ablation_lens.circuits.analysis import CircuitFolder
    from ablation_lens.experiments.scores import ExperimentFolder
    from ablation_lens.files import require_target_folder
    from ablation_lens.report.study import write_report
    from ablation_lens.study.cells import StudyFolder
    from ablation_lens.study.results import Results

    if CircuitFolder.is_at(folder):
        _report_of_circuits(CircuitFolder(folder), out, as_json)
        return
    if ExperimentFolder.is_at(folder):
        _report_of_experiment(folder, out, as_json)
        return
    run = StudyFolder(folder)
    require_target_folder(folder if out is None else out)
    results = Results.load(run)
    announce("drawing the figures")
    page, text = write_report(results, out)
    if as_json:
        say_json("report", {"folder": folder, "html": page, "markdown": text})
    else:
        say(f"{page} (and {text.name})")
    _exit_1_if_cells_are_missing(results)


def _report_of_circuits(folder: "CircuitFolder", out: Path | None, as_json: bool) -> None:
    from ablation_lens.files import require_target_folder
    from ablation_lens.report.circuit import write_circuit_report

    require_target_folder(folder.path if out is None else out)
    announce("drawing the figures")
    page, text, flaws = write_circuit_report(folder, out)
    if as_json:
        say_json("report", {"folder": folder.path, "html": page, "markdown": text})
    else:
        say(f"{page} (and {text.name})")
    for flaw in flaws:
        complain(flaw)
    if flaws:
        raise typer.Exit(1)


def _report_of_experiment(folder: Path, out: Path | None, as_json: bool) -> None:
    from ablation_lens.files import require_target_folder
    from ablation_lens.report.experiment_page import write_experiment_report

    require_target_folder(folder if out is None else out)
    announce("drawing the figures")
    page, text = write_experiment_report(folder, out)
    if as_json:
        say_json("report", {"folder": folder, "html": page, "markdown": text})
    else:
        say(f"{page} (and {text.name})")


def print_table(results: "Results", fractions: list[float] | None = None) -> None:
    """Table 2 in the terminal, with its notes; an asterisk does where bold is not seen."""
    from ablation_lens.study.table2 import fractions_shown

    made = _made(results, fractions)
    mark = "" if shows_bold() else "*"
    show(*made.rich(width(), mark), *map(cell, made.notes_with(mark)))
    measured = sorted(set(results.frame["fraction"]) - {0.0})
    hidden = [] if fractions is not None else sorted(set(measured) - set(fractions_shown(results)))
    if hidden:
        others, every = ", ".join(f"{100 * f:.10g} %" for f in hidden), ",".join(f"{f:.10g}" for f in measured)
        say(f"also measured: {others}; table --fractions {every} shows it")


def _made(results: "Results", fractions: list[float] | None) -> "Table2":
    from ablation_lens.study.table2 import fractions_shown, make_table2

    return make_table2(results, fractions_shown(results) if fractions is None else fractions)


def _table_of(results: "Results", fractions: list[float] | None = None) -> dict[str, Any]:
    """Baselines, and a row per group, fraction and method, as plain values."""
    from ablation_lens.study.methods import BASELINE
    from ablation_lens.study.table2 import fractions_shown

    frame = results.frame
    baselines = frame[frame["method"] == BASELINE].set_index("group")
    groups = [
        {
            "group": group,
            "label": label,
            "model": results.record(group).model.name,
            "task": results.record(group).task,
            "predictions": results.record(group).predictions,
            # None where the baseline failed.
            "metrics": {m: baselines.loc[group, m] if group in baselines.index else None for m in results.metrics},
        }
        for group, label in results.groups.items()
    ]
    shown = fractions_shown(results) if fractions is None else fractions
    summary = results.summary(shown).to_dict("records") if shown else []
    rows = [
        {
            **{name: row[name] for name in ("group", "fraction", "method", "seeds", "conditional")},
            "metrics": {
                metric: {
                    "mean": row[metric],
                    "sd": row[f"{metric}_sd"],
                    "as_best": row[f"{metric}_as_best"],
                    "to_best": {
                        "value": row[f"{metric}_to_best"],
                        "low": row[f"{metric}_low"],
                        "high": row[f"{metric}_high"],
                    },
                }
                for metric in results.metrics
            },
        }
        for row in summary
    ]
    return {"better": results.better, "groups": groups, "rows": rows}


def _exit_1_if_cells_are_missing(results: "Results") -> None:
    """What is printed is right, but not whole; a warning has said what is missing."""
    if results.unreadable:
        raise typer.Exit(1)


def _numbers(text: str, what: str, kind: type) -> list[Any]:
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
        if not numbers:
            raise ValueError
    except ValueError as error:
        whole = "whole " if kind is int else ""
        raise AblationLensError(f"{what} {text!r} are not {whole}numbers with commas between them.") from error
    return numbers

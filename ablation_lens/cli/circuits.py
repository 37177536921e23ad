"""The command about circuits: `circuit`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.models import planned
from ablation_lens.cli.terminal import INTERRUPTED, announce, cell, complain, say, say_json, show
from ablation_lens.errors import AblationLensError

if TYPE_CHECKING:
    from ablation_lens.circuits.analysis import AnalysisRecord, CircuitFolder
    from ablation_lens.circuits.curves import Curves
    from ablation_lens.circuits.values import Values

CENTERS = ("zero", "mean", "peak")
"""What units are set to where nobody says otherwise."""

TASKS = (
    "induction", "toy-ioi", "toy-greater-than", "modular-addition", "ioi", "greater-than", "gendered-pronoun",
    "docstring",
)  # fmt: skip
"""Of this package, to be completed; `prompts_for` knows them all."""

_JUDGED = (
    "Each row is a circuit of its own, judged with the values it was found with, on the prompts it was not found on. "
    "For one circuit under several values: circuits.faithfulness, in Python."
)

OF_PROMPTS = "prompts"
"""Given for --statistics: those of the prompts themselves."""


def circuit(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="The folder; an unfinished one is gone on with.")],
    task: Annotated[
        str | None,
        typer.Option(help="What is asked, such as induction or ioi.", autocompletion=options.completing(TASKS)),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A JSON file of prompts (auto-circuit's), instead of --task.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many prompts of --task; 64 when left out.", min=2)] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="What the circuit is for, such as logit_difference or kl.",
            autocompletion=options.completing(options.METRICS),
        ),
    ] = "logit_difference",
    centers: Annotated[
        list[str] | None,
        typer.Option(
            "--center",
            help="What everything outside the circuit is set to; repeat. Left out: zero, mean and peak.",
            autocompletion=options.completing((*options.CENTERS, "position-mean", "counterfactual")),
        ),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--site", help="z (heads), mlp; repeat. Left out: both.", autocompletion=options.completing(("z", "mlp"))
        ),
    ] = None,
    level: Annotated[
        str,
        typer.Option(
            help="What is kept as one: head, neuron or layer.",
            autocompletion=options.completing(("head", "neuron", "layer")),
        ),
    ] = "head",
    method: Annotated[
        str,
        typer.Option(
            help="How the circuit is found: attribution or greedy.",
            autocompletion=options.completing(("attribution", "greedy")),
        ),
    ] = "attribution",
    target: Annotated[float, typer.Option(help="The share of the metric that it is to keep.")] = 0.9,
    steps: Annotated[int, typer.Option(help="Points of the path that attributions look at.", min=1)] = 8,
    statistics: Annotated[
        list[str] | None,
        typer.Option(
            help="What centers are computed from: a file for each site, or 'prompts'. Left out: collected now, over "
            "--corpus."
        ),
    ] = None,
    values: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file that `ablation-lens learn` wrote, for each site: values that are tried beside every --center; "
            "repeat."
        ),
    ] = None,
    corpus: options.Corpus = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many of its tokens. Left out: 100,000, or all there is.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws prompts, their halves, and random circuits.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per batch.", min=1)] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    as_json: options.AsJson = False,
) -> None:
    """Find the heads and MLPs that a task needs, judge them, and write a page about it.

    What is found on one half of the prompts is judged on the other, with every center. Run the same command again to go
    on after Ctrl-C; with other options, what they do not touch is kept. Under torchrun, processes share the parts.
    """
    announce(f"loading {model}")
    names, where = tuple(dict.fromkeys(centers or CENTERS)), tuple(dict.fromkeys(sites or ("z", "mlp")))
    _require_once(task=task, prompts=prompts)
    if count is not None and prompts is not None:
        raise AblationLensError("--count draws the prompts of --task, and --prompts names a file; leave one out.")
    if statistics and (corpus or tokens is not None):
        raise AblationLensError("--statistics are there already, so --corpus and --tokens say nothing; leave them out.")
    from ablation_lens.circuits import analysis
    from ablation_lens.files import require_target_folder
    from ablation_lens.models.load import load_model
    from ablation_lens.ranks import Ranks

    settings = analysis.AnalysisSettings(
        model, task, None if prompts is None else str(prompts), count or 64, seed, metric, names, where, level, method,
        target, steps, tuple(statistics or ()), corpus, tokens, dtype, tuple(map(str, values or ())),
    )  # fmt: skip
    analysis.require_possible(settings)
    given: Any = _read_statistics(statistics or [], where)
    learned = _read_values(values or [], where)
    require_target_folder(out)
    ranks = Ranks.join(gpus=n_devices)
    if ranks.is_first:
        _compare(out, settings)
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices)
    asked = _prompts(loaded, settings, prompts, batch_size)
    if not statistics and analysis.needs_statistics(settings):
        from ablation_lens.tasks.tasks import task_for

        given = planned(task_for(loaded, corpus), "collect", tokens, None)
    try:
        folder, record = analysis.analyse(
            loaded,
            asked,
            settings,
            out,
            statistics=given,
            learned=learned,
            said=announce,
            progress=ranks.is_first,
            ranks=ranks,
        )
    except KeyboardInterrupt:
        if ranks.is_first:
            complain(f"interrupted: what is finished is in {out}. Run the same again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    if not ranks.is_first:
        return
    announce("drawing the figures")
    from ablation_lens.report.circuit import write_circuit_report

    page, text, flaws = write_circuit_report(folder)
    if as_json:
        say_json("circuit", {"folder": folder.path, **_values_of(folder, record), "html": page, "markdown": text})
    else:
        _show(folder, record)
        say(f"{page} (and {text.name})")
    for flaw in flaws:
        complain(flaw)
    if flaws or all(folder.refusal(key) is not None for key in record.circuits.values()):  # nothing was found
        raise typer.Exit(1)


def _require_once(**given: Any) -> None:
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise AblationLensError("say what is asked, and once: --task induction, or --prompts FILE.")


def _read_statistics(given: list[str], sites: tuple[str, ...]) -> Any:
    """By site; None where they are collected yet."""
    from ablation_lens.neurons.statistics import ActivationStatistics

    if not given or given == [OF_PROMPTS]:
        return None
    loaded: dict[Any, Any] = {}
    for place in given:
        statistics = ActivationStatistics.load(options.statistics_file(Path(place), None))
        if statistics.site in loaded:
            raise AblationLensError(f"two of the --statistics are of {statistics.site.value}; give one for each site.")
        loaded[statistics.site] = statistics
    if missing := [site for site in sites if site not in [held.value for held in loaded]]:
        raise AblationLensError(
            f"--statistics are of {' and '.join(held.value for held in loaded)}, and none are of {missing[0]}; give a "
            "file for each site, or say --site."
        )
    return loaded


def _read_values(given: list[Path], sites: tuple[str, ...]) -> "list[Values]":
    """By method; files of one method, for a site each, are together what units are set to."""
    from ablation_lens.circuits.values import Values
    from ablation_lens.measure.learned import Learned

    by_method: dict[str, dict[str, Learned]] = {}
    for path in given:
        learned = Learned.load(path)
        by_site, site = by_method.setdefault(learned.method, {}), learned.site.value
        if site not in sites:
            raise AblationLensError(
                f"{path} holds values of {site}, and circuits are of {' and '.join(sites)}; leave it out, or say "
                f"--site {site}."
            )
        if site in by_site:
            raise AblationLensError(
                f"two of the --values are {learned.method} of {site}; give one file for each method and site."
            )
        by_site[site] = learned
    for method, by_site in by_method.items():
        if missing := [site for site in sites if site not in by_site]:
            raise AblationLensError(
                f"the --values {method} are of {' and '.join(by_site)}, and none are of {missing[0]}; give a file for "
                "each site, or say --site."
            )
    return [Values.of(list(by_site.values())) for by_site in by_method.values()]


def _compare(out: Path, settings: Any) -> None:
    """Say what is asked for otherwise than what is there."""
    from ablation_lens.circuits.analysis import CircuitFolder
    from ablation_lens.runs.folder import MARKER

    if not (out / MARKER).exists():
        return
    before = CircuitFolder(out).latest()
    if before is not None and (differences := settings.differences(before.settings)):
        complain(
            f"{out} holds an analysis with other settings ({'; '.join(differences)}); what they do not touch is kept."
        )


def _prompts(model: Any, settings: Any, file: Path | None, batch_size: int | None) -> Any:
    from ablation_lens.circuits.prompt_tasks import prompts_for
    from ablation_lens.circuits.prompting import BATCH_SIZE, Prompts

    if file is not None:
        made = Prompts.load(file, model)
    else:
        made = prompts_for(settings.task, model, count=settings.count, seed=settings.seed)
    return replace(made, batch_size=batch_size or BATCH_SIZE)


def _values_of(folder: "CircuitFolder", record: "AnalysisRecord") -> dict[str, Any]:
    """What `--json` says."""
    centers = []
    for name in record.names:
        knockouts, attributions, key = (part[name] for part in (record.knockouts, record.attributions, record.circuits))
        made: dict[str, Any] = {"center": name, "knockouts": folder.file("effects", knockouts)}
        refused = folder.refusal(attributions)
        made["attributions"] = folder.file("effects", attributions) if refused is None else None
        made |= {"circuit": None, "units": None, "of": None, "kept": None, "found": None, "judged": None}
        made["refused"] = folder.refusal(key)
        if made["refused"] is None:
            found, circuit = folder.circuit(key)
            made |= {"circuit": folder.file("circuits", key), "units": found.units, "of": found.of}
            made |= {"kept": circuit.units(record.settings.level)}
            made |= {half: getattr(found, half).to_dict() for half in ("found", "judged")}
        centers.append(made)
    pairs = [] if (curves := _curves(folder, record)) is None else curves.pairs.to_dict("records")
    return {
        "model": record.model.name,
        "prompts": record.about_prompts,
        "metric": record.settings.metric,
        "centers": centers,
        "pairs": pairs,
    }


def _curves(folder: "CircuitFolder", record: "AnalysisRecord") -> "Curves | None":
    return folder.curves(record.curves) if folder.refusal(record.curves) is None else None


def _show(folder: "CircuitFolder", record: "AnalysisRecord") -> None:
    """A line per center, what each circuit keeps, and what was refused."""
    from rich.table import Table

    from ablation_lens.circuits.circuit import listed

    table = Table(box=None, pad_edge=False)
    for title in ("set to", "m(M)", "m(∅)", "kept", "f", "95 % interval", "random"):
        table.add_column(title, justify="left" if title == "set to" else "right", overflow="fold")
    refused, kept = [], []
    for name in record.names:
        if (told := folder.refusal(record.circuits[name])) is not None:
            refused.append(f"{name}: {told}")
            continue
        found, circuit = folder.circuit(record.circuits[name])
        judged = found.judged
        kept.append(f"Kept with {name}: {listed(circuit, record.settings.level)}")
        interval = "–" if judged.low is None else f"{judged.low:.3f} to {judged.high:.3f}"
        others = [each for each in judged.random if each is not None]
        table.add_row(
            *map(
                cell,
                (
                    name,
                    f"{judged.m_model:.4g}",
                    f"{judged.m_empty:.4g}",
                    f"{found.units} of {found.of}",
                    "–" if judged.f is None else f"{judged.f:.3f}",
                    interval,
                    f"{sum(others) / len(others):.3f}" if others else "–",
                ),
            )
        )
        if judged.refused is not None:
            refused.append(f"{name}: {judged.refused}")
    show(
        cell(f"{record.model.name}, {record.settings.metric} of {record.about_prompts}"),
        *([table] if table.row_count else []),
        *(cell(line) for line in (*kept, *refused)),
        *([cell(_JUDGED)] if table.row_count else []),
    )

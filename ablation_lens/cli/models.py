"""The commands that run a model as it is asked for: `info` and `evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.terminal import announce, cell, say_json, show
from ablation_lens.errors import AblationLensError

if TYPE_CHECKING:
    from ablation_lens.ablation.ablation import Ablation
    from ablation_lens.measure.intervals import Interval
    from ablation_lens.measure.score import Score


def info(
    model: options.Model,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Load a model and print its record: architecture, shape, dtype, processing."""
    announce(f"loading {model}")
    from rich.table import Table

    from ablation_lens.models.load import load_model

    record = load_model(model, dtype=dtype, device=device).record.to_dict()
    if as_json:
        say_json("model", record)
        return
    table = Table(show_header=False, box=None)
    for field, value in record.items():
        table.add_row(field, cell(value))
    show(table)


def evaluate(
    model: options.Model,
    ablation: Annotated[
        Path | None, typer.Option(help="An ablation that `Ablation.save` wrote; instead of the five options below.")
    ] = None,
    center: Annotated[
        str | None,
        typer.Option(
            help="What the neurons are set to (`ablation-lens centers` lists them).",
            autocompletion=options.completing(options.CENTERS),
        ),
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="The share of every layer's neurons, from 0 to 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws the neurons of --fraction; 42 when left out.")] = None,
    neurons: Annotated[
        list[str] | None,
        typer.Option("--neuron", help="A neuron, a head or a layer: L2.H1.D3, L2.H1, L2; repeat. Instead of --fraction."),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Where the center comes from: a statistics file or a run folder. Left out: collected first."),
    ] = None,
    site: options.Site = "z",
    corpus: options.Corpus = None,
    split: Annotated[str, typer.Option(help="Which split of the corpus is scored.")] = "evaluate",
    tokens: Annotated[
        int | None, typer.Option(help="How many tokens are scored, and collected. Left out: 100,000, or all there is.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="How many images are, for an image model. Left out: 1,000, or all there is.")
    ] = None,
    labels: options.Labels = None,
    context: options.Context = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a model with and without one ablation: top-1 and cross-entropy, and how much they differ.

    The neurons are those of a file (--ablation), drawn (--fraction and --seed) or named (--neuron).
    """
    announce(f"loading {model}")
    _require_one_ablation(ablation, center, fraction, seed, neurons, statistics)
    from ablation_lens.ablation.ablation import Ablation
    from ablation_lens.models.load import load_model
    from ablation_lens.tasks.tasks import task_for

    made = None if ablation is None else Ablation.load(ablation)
    loaded = load_model(model, dtype=dtype, device=device)
    further: dict[str, Any] = {} if labels is None else {"labels": labels}
    task = task_for(loaded, corpus, context=context, **further)
    size = {"tokens": tokens, "images": images}
    announce(f"reading {task.corpus.name}")
    plan = _planned(task, split, size, batch_size)
    if made is None:
        known = _known_statistics(statistics, loaded, task, size, batch_size, site)
        made = known.ablation(_mask(known, fraction, seed, neurons), str(center))
    as_it_is, ablated = _scores(loaded, plan, made)
    change = _changes(as_it_is, ablated)
    if as_json:
        scores = {"model": _plain(as_it_is), "ablated": _plain(ablated)}
        say_json(
            "evaluation",
            {
                "model": loaded.record.name,
                "corpus": plan.corpus.to_dict(),
                "predictions": as_it_is.predictions,
                "documents": len(as_it_is.documents),
                "ablation": {
                    "center": made.center,
                    "site": made.site.value,
                    "neurons": int(made.mask.sum()),
                    "of": made.mask.numel(),
                    "file": ablation,
                    "fraction": fraction,
                    "seed": _seed(seed) if fraction is not None else None,
                    "named": neurons or None,
                },
                "scores": scores,
                "difference": {
                    name: {"value": interval.difference, "low": interval.low, "high": interval.high}
                    for name, interval in change.items()
                },
            },
        )
        return
    _show_scores(f"{loaded.record.name} on {plan.corpus.name}, {as_it_is.predictions:,} predictions", as_it_is, ablated, change)


def _require_one_ablation(
    ablation: Path | None,
    center: str | None,
    fraction: float | None,
    seed: int | None,
    neurons: list[str] | None,
    statistics: Path | None,
) -> None:
    """Raise unless it is said once, and wholly, which neurons are set to what."""
    named = {"--center": center, "--fraction": fraction, "--seed": seed, "--statistics": statistics}
    given = [name for name, value in named.items() if value is not None] + (["--neuron"] if neurons else [])
    if ablation is not None:
        if given:
            raise AblationLensError(f"--ablation is a whole ablation, so {given[0]} has nothing to say; give one of them.")
        return
    if not given:
        raise AblationLensError(
            "say what to ablate: --ablation FILE, or --center peak with --fraction 0.5 or --neuron L2.H1."
        )
    if center is None:
        raise AblationLensError("say what the neurons are set to: --center zero, mean, peak, …")
    if (fraction is None) == (not neurons):
        raise AblationLensError("say which neurons, and once: --fraction 0.5 draws some, --neuron L2.H1 names some.")
    if seed is not None and fraction is None:
        raise AblationLensError("--seed draws the neurons of --fraction; named ones need none.")


def _planned(task: "Task", split: str, size: Mapping[str, int | None], batch_size: int | None) -> "BatchPlan":
    """The plan of so many tokens or images; as many as the paper's where nobody says, or all there is."""
    from ablation_lens.corpora import CorpusSizeWarning
    from ablation_lens.study.paper import SIZES

    if any(size.values()):
        return task.batches(split=split, **size, batch_size=batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CorpusSizeWarning)
        return task.batches(split=split, **{task.unit: SIZES[task.unit]}, batch_size=batch_size)


def _known_statistics(
    given: Path | None,
    model: Any,
    task: "Task",
    size: Mapping[str, int | None],
    batch_size: int | None,
    site: str,
    center: str,
) -> "ActivationStatistics":
    """Those of a file, or of a run folder; else they are collected."""
    from ablation_lens.measure.collection import collect
    from ablation_lens.neurons import centers
    from ablation_lens.neurons.statistics import ActivationStatistics

    passes = centers.about(center).passes
    if given is None:
        return collect(model, _planned(task, "collect", size, batch_size), site=Site.of(site), passes=passes)
    return ActivationStatistics.load(options.statistics_file(given, model.record.name if given.is_dir() else None))

"""The commands that run a model as they are asked to: `info` and `evaluate`."""

import warnings
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
    from ablation_lens.tasks.plans import BatchPlan
    from ablation_lens.tasks.tasks import Task

SEED = 42
"""Draws the neurons where nobody says otherwise."""


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
        Path | None, typer.Option(help="A file that `Ablation.save` wrote, instead of the next five options.")
    ] = None,
    center: Annotated[
        str | None,
        typer.Option(
            help="What the neurons are set to, such as peak or 'peak bins=64'; `ablation-lens centers` lists them.",
            autocompletion=options.completing(options.CENTERS),
        ),
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="Ablate this share of every layer's neurons.")] = None,
    seed: Annotated[int | None, typer.Option(help=f"Draws the neurons of --fraction; {SEED} when left out.")] = None,
    neurons: Annotated[
        list[str] | None,
        typer.Option("--neuron", help="A neuron, head or layer, instead of --fraction: L2.H1.D3, L2.H1, L2; repeat."),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Where the center is from: a statistics file or a run folder. Left out: collected now."),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Which neurons: z (attention), mlp, …; z when left out.")] = None,
    corpus: options.Corpus = None,
    split: Annotated[str, typer.Option(help="Which split of the corpus is scored.")] = "evaluate",
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to score, and to collect. Left out: 100,000, or all there is.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Likewise, for an image model. Left out: 1,000, or all there is.")
    ] = None,
    labels: options.Labels = None,
    context: options.Context = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a model with and without one ablation: top-1, cross-entropy, and how sure the difference is.

    The ablation is that of a file (--ablation), or a center for neurons that are drawn (--fraction) or named
    (--neuron).
    """
    announce(f"loading {model}")
    _require_one_ablation(ablation, center, fraction, seed, neurons, statistics, site)
    from ablation_lens.ablation.ablation import Ablation
    from ablation_lens.ablation.masks import named_neurons, random_neurons
    from ablation_lens.measure.collection import collect
    from ablation_lens.models.load import load_model
    from ablation_lens.neurons import centers
    from ablation_lens.neurons.statistics import ActivationStatistics
    from ablation_lens.sites import Site
    from ablation_lens.study.methods import split_label
    from ablation_lens.tasks.tasks import task_for

    # What is wrong is said as early as can be: before the model is loaded, before a corpus is read, before it is run.
    made = None if ablation is None else Ablation.load(ablation)
    name, parameters = split_label(center or "zero")
    centers.require_parameters(name, parameters)
    known = None
    if statistics is not None:
        known = ActivationStatistics.load(options.statistics_file(statistics, model if statistics.is_dir() else None))
    where = Site.of(site or (Site.Z if known is None else known.site))
    if known is not None and known.site is not where:
        raise AblationLensError(f"{statistics} is of site {known.site.value!r}; leave --site out, or give others.")
    loaded = load_model(model, dtype=dtype, device=device)
    shape = where.shape(loaded.cfg)
    if made is not None:
        made.require_fits(loaded)
        mask = made.mask
    elif neurons:
        mask = named_neurons(neurons, shape, site=where)
    else:
        mask = random_neurons(shape, fraction or 0.0, SEED if seed is None else seed)
    further: dict[str, Any] = {} if labels is None else {"labels": labels}
    task = task_for(loaded, corpus, context=context, **further)
    announce(f"reading {task.corpus.name}")
    plan = _planned(task, split, tokens, images, batch_size)
    if made is None:
        passes = centers.about(name).passes
        if known is None and passes:
            known = collect(loaded, _planned(task, "collect", tokens, images, batch_size), site=where, passes=passes)
        if known is None:  # of which only the shape is read
            import torch

            known = ActivationStatistics.of_values(torch.zeros(1, *shape), site=where, model=loaded.record)
        made = known.ablation(mask, name, **parameters)
    as_it_is, ablated = _scored(loaded, plan, made)
    changes = _changes(as_it_is, ablated)
    if not as_json:
        _show_scores(loaded.record.name, plan, made, as_it_is, ablated, changes)
        return
    say_json(
        "evaluation",
        {
            "model": loaded.record.name,
            "corpus": plan.corpus.to_dict(),
            "documents": len(as_it_is.documents),
            "predictions": as_it_is.predictions,
            "ablation": {
                "file": ablation,
                "center": center or made.center,
                "site": made.site.value,
                "neurons": int(made.mask.sum()),
                "of": made.mask.numel(),
                "fraction": fraction,
                "seed": None if fraction is None else SEED if seed is None else seed,
                "named": neurons or None,
            },
            "before": {"top1": as_it_is.top1, "cross_entropy": as_it_is.cross_entropy},
            "after": {"top1": ablated.top1, "cross_entropy": ablated.cross_entropy},
            "difference": {
                metric: {"value": change.difference, "low": change.low, "high": change.high}
                for metric, change in changes.items()
            },
        },
    )


def _require_one_ablation(
    ablation: Path | None,
    center: str | None,
    fraction: float | None,
    seed: int | None,
    neurons: list[str] | None,
    statistics: Path | None,
    site: str | None,
) -> None:
    """Raise unless it is said once, and wholly, which neurons are set to what."""
    named = {"center": center, "fraction": fraction, "seed": seed, "statistics": statistics, "site": site}
    given = [f"--{name}" for name, value in named.items() if value is not None] + (["--neuron"] if neurons else [])
    if ablation is not None:
        if given:
            raise AblationLensError(f"--ablation and {given[0]} both say what to ablate; give one of them.")
    elif not given:
        raise AblationLensError(
            "say what to ablate: --ablation FILE, or --center peak with --fraction 0.5 or --neuron L2.H1."
        )
    elif center is None:
        raise AblationLensError("say what the neurons are set to, such as --center peak.")
    elif (fraction is None) == (not neurons):
        raise AblationLensError("say which neurons, and once: --fraction 0.5 draws some, --neuron L2.H1 names some.")
    elif seed is not None and neurons:
        raise AblationLensError("--seed draws the neurons of --fraction, and --neuron names them; leave --seed out.")
    elif fraction is not None and not 0 <= fraction <= 1:
        raise AblationLensError(f"fraction={fraction:g} is not possible; give a number from 0 to 1.")


def _planned(task: "Task", split: str, tokens: int | None, images: int | None, batch_size: int | None) -> "BatchPlan":
    """The plan of so many tokens or images; as many as the paper's where nobody says, or all there is."""
    from ablation_lens.corpora import CorpusSizeWarning
    from ablation_lens.study.paper import SIZES

    if tokens is not None or images is not None:
        return task.batches(split=split, tokens=tokens, images=images, batch_size=batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CorpusSizeWarning)
        sizes: dict[str, Any] = {task.unit: SIZES[task.unit]}
        return task.batches(split=split, batch_size=batch_size, **sizes)


def _scored(model: Any, plan: "BatchPlan", ablation: "Ablation") -> "tuple[Score, Score]":
    """Without and with the ablation."""
    from ablation_lens.measure.evaluation import evaluate as score_of
    from ablation_lens.progress import progress_over

    with progress_over("evaluating", 2 * len(plan.items), shown=True, unit="documents") as advance:
        as_it_is = score_of(model, plan, on_batch=advance)
        return as_it_is, score_of(model, plan, ablation, on_batch=advance)


def _changes(as_it_is: "Score", ablated: "Score") -> "dict[str, Interval]":
    """What the ablation changes, paired by document."""
    from ablation_lens.measure.intervals import difference

    predictions = as_it_is.predictions_per_document.numpy()
    sums = {"top1": (ablated.correct, as_it_is.correct), "cross_entropy": (ablated.loss, as_it_is.loss)}
    return {
        metric: difference(after.double().numpy()[None], before.double().numpy()[None], predictions)
        for metric, (after, before) in sums.items()
    }


def _show_scores(
    name: str,
    plan: "BatchPlan",
    ablation: "Ablation",
    as_it_is: "Score",
    ablated: "Score",
    changes: "dict[str, Interval]",
) -> None:
    from rich.table import Table

    size = f"{plan.size:,} {plan.corpus.unit}, {as_it_is.predictions:,} predictions"
    table = Table(box=None, pad_edge=False)
    for title in ("", "top-1 (%)", "cross-entropy (nats)"):
        table.add_column(title, justify="right" if title else "left")
    for row, score in (("as it is", as_it_is), ("ablated", ablated)):
        table.add_row(row, f"{100 * score.top1:.2f}", f"{score.cross_entropy:.3f}")
    right, nats = changes["top1"], changes["cross_entropy"]
    table.add_row("change", f"{100 * right.difference:+.2f}", f"{nats.difference:+.3f}")
    table.add_row(
        "95 % interval",
        f"{100 * right.low:+.2f} to {100 * right.high:+.2f}",
        f"{nats.low:+.3f} to {nats.high:+.3f}",
    )
    documents = len(as_it_is.documents)
    show(
        cell(f"{name} on {plan.corpus.name} ({plan.corpus.split}): {size}"),
        cell(repr(ablation)),
        table,
        cell(f"The interval is over the {documents:,} document{'' if documents == 1 else 's'}."),
    )

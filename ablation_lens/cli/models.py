"""The commands that run a model as they are asked to: `info`, `evaluate` and `ablate`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablation_lens.cli import options
from ablation_lens.cli.terminal import announce, cell, say_json, say_lines, show
from ablation_lens.errors import AblationLensError

if TYPE_CHECKING:
    from ablation_lens.ablation.ablation import Ablation
    from ablation_lens.measure.learned import Learned
    from ablation_lens.measure.score import Score
    from ablation_lens.neurons.statistics import ActivationStatistics
    from ablation_lens.sites import Site
    from ablation_lens.tasks.plans import BatchPlan
    from ablation_lens.tasks.tasks import Task

SEED = 42
"""Draws the neurons where nobody says otherwise."""


def info(
    model: options.Model,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    random_init: options.RandomInit = None,
    as_json: options.AsJson = False,
) -> None:
    """Load a model and print its record: architecture, shape, dtype, processing."""
    announce(f"loading {model}")
    from rich.table import Table

    from ablation_lens.models.load import load_model

    record = load_model(
        model, dtype=dtype, device=device, n_devices=n_devices, random_init=random_init
    ).record.to_dict()
    if as_json:
        say_json("model", record)
        return
    table = Table(show_header=False, box=None)
    for field, value in record.items():
        table.add_row(field, cell(value))
    show(table)


# ---------------------------------------------------------------------- which ablation

AblationFile = Annotated[
    Path | None,
    typer.Option("--ablation", help="A file that `Ablation.save` wrote, instead of the next seven options."),
]
Center = Annotated[
    str | None,
    typer.Option(
        help="What the neurons are set to, such as peak or 'peak bins=64'; `ablation-lens centers` lists them.",
        autocompletion=options.completing(options.CENTERS),
    ),
]
ValuesFile = Annotated[
    Path | None,
    typer.Option(
        "--values", help="A file that `ablation-lens learn` wrote: what neurons are set to, instead of --center."
    ),
]
Fraction = Annotated[float | None, typer.Option(help="Ablate this share of every layer's neurons, drawn at random.")]
Seed = Annotated[int | None, typer.Option(help=f"Draws the neurons of --fraction; {SEED} when left out.")]
Neurons = Annotated[
    list[str] | None,
    typer.Option("--neuron", help="A neuron, head or layer, instead of --fraction: L2.H1.D3, L2.H1, L2; repeat."),
]
Statistics = Annotated[
    Path | None,
    typer.Option(help="Where the center is from: a statistics file or a run folder. Left out: collected now."),
]
Site_ = Annotated[
    str | None,
    typer.Option(
        help="Which neurons: z (attention), mlp, q, … (docs/guide/sites.md). Left out: those of --statistics, or z.",
        autocompletion=options.completing(options.SITES),
    ),
]

_NAMED = ("center", "values", "fraction", "seed", "statistics", "site")


@dataclass(frozen=True)
class _Asked:
    """What was said about which neurons are set to what: once, and wholly."""

    file: Path | None
    center: str | None
    values: Path | None
    fraction: float | None
    seed: int | None
    neurons: list[str] | None
    statistics: Path | None
    site: str | None

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in _NAMED if getattr(self, name) is not None]
        given += ["--neuron"] if self.neurons else []
        if self.file is not None:
            if given:
                raise AblationLensError(f"--ablation and {given[0]} both say what to ablate; give one of them.")
        elif not given:
            raise AblationLensError(
                "say what to ablate: --ablation FILE, or --center peak with --fraction 0.5 or --neuron L2.H1."
            )
        elif self.center is None and self.values is None:
            raise AblationLensError("say what the neurons are set to, such as --center peak.")
        elif self.values is not None and (self.center, self.statistics) != (None, None):
            other = "--center" if self.center is not None else "--statistics"
            raise AblationLensError(f"--values and {other} both say what the neurons are set to; give one of them.")
        elif (self.fraction is None) == (not self.neurons):
            raise AblationLensError(
                "say which neurons, and once: --fraction 0.5 draws some, --neuron L2.H1 names some."
            )
        elif self.seed is not None and self.neurons:
            raise AblationLensError("--seed draws the neurons of --fraction, and --neuron names them; leave one out.")
        elif self.fraction is not None and not 0 <= self.fraction <= 1:
            raise AblationLensError(f"fraction={self.fraction:g} is not possible; give a number from 0 to 1.")

    def found(self, model: str) -> "_Found":
        """With its files read; what is wrong in what was said shows here, before the model is loaded."""
        from ablation_lens.ablation.ablation import Ablation
        from ablation_lens.measure.learned import Learned
        from ablation_lens.neurons import centers
        from ablation_lens.neurons.statistics import ActivationStatistics
        from ablation_lens.sites import Site
        from ablation_lens.study.methods import split_label

        if self.file is not None:
            ablation = Ablation.load(self.file)
            return _Found(self, ablation, None, "", {}, 0, ablation.site)
        if self.values is not None:
            learned = Learned.load(self.values)
            if self.site is not None and Site.of(self.site) is not learned.site:
                raise AblationLensError(
                    f"{self.values} is of site {learned.site.value!r}; leave --site out, or give other values."
                )
            return _Found(self, None, None, learned.method, {}, 0, learned.site, learned)
        name, parameters = split_label(str(self.center))
        centers.require_parameters(name, parameters)
        known = None
        if self.statistics is not None:
            place = options.statistics_file(self.statistics, model if self.statistics.is_dir() else None)
            known = ActivationStatistics.load(place)
        where = Site.of(self.site or (Site.Z if known is None else known.site))
        if known is not None and known.site is not where:
            raise AblationLensError(
                f"{self.statistics} is of site {known.site.value!r}; leave --site out, or give other statistics."
            )
        return _Found(self, None, known, name, parameters, centers.about(name).passes, where)


@dataclass(frozen=True)
class _Found:
    """An ablation as a file holds it, or all that is known of one before there is a model."""

    asked: _Asked
    ablation: "Ablation | None"
    statistics: "ActivationStatistics | None"
    center: str
    parameters: dict[str, Any]
    passes: int
    site: "Site"
    learned: "Learned | None" = None

    def require_fits(self, model: Any) -> None:
        """Raise where the neurons are not this model's, before a corpus is read for them."""
        from ablation_lens.records import record_of

        if self.ablation is not None:
            self.ablation.require_fits(model)
            return
        if self.statistics is not None:
            self.statistics.provenance.model.require_same(record_of(model), "these statistics are another model's")
        if self.learned is not None:
            self.learned.ablation(self._mask(model)).require_fits(model)
        self._mask(model)

    def require_unknown(self, model: Any, plan: "BatchPlan") -> None:
        """Refuse to score learned values on what they were learned from."""
        from ablation_lens.tasks.known_rows import require_unknown

        if self.learned is not None:
            require_unknown(model, plan, self.learned.rows)

    def made(self, model: Any, plan: "Callable[[], BatchPlan]") -> "Ablation":
        """The ablation for a model; `plan` says over what the center is collected, where nobody has done so."""
        import torch

        from ablation_lens.hooked import shape_at
        from ablation_lens.measure.collection import collect
        from ablation_lens.neurons.statistics import ActivationStatistics

        if self.ablation is not None:
            return self.ablation
        if self.learned is not None:
            return self.learned.ablation(self._mask(model))
        known = self.statistics
        if known is None and self.passes:
            known = collect(model, plan(), site=self.site, passes=self.passes)
        if known is None:  # a center of which only the shape is read
            zeros = torch.zeros(1, *shape_at(model, self.site))
            known = ActivationStatistics.of_values(zeros, site=self.site, model=model.record)
        return known.ablation(self._mask(model), self.center, **self.parameters)

    def _mask(self, model: Any) -> Any:
        from ablation_lens.ablation.masks import named_neurons, random_neurons
        from ablation_lens.hooked import shape_at

        shape = shape_at(model, self.site)
        if self.asked.neurons:
            return named_neurons(self.asked.neurons, shape, site=self.site)
        return random_neurons(shape, self.asked.fraction or 0.0, SEED if self.asked.seed is None else self.asked.seed)

    def describe(self, ablation: "Ablation") -> dict[str, Any]:
        """What `--json` says of it."""
        asked = self.asked
        return {
            "file": asked.file,
            "center": asked.center or ablation.center,
            "values": asked.values,
            "site": ablation.site.value,
            "neurons": int(ablation.mask.sum()),
            "of": ablation.mask.numel(),
            "fraction": asked.fraction,
            "seed": None if asked.fraction is None else SEED if asked.seed is None else asked.seed,
            "named": asked.neurons or None,
            "statistics": asked.statistics,
        }


def task_as_typed(
    model: Any,
    corpus: str | None,
    *,
    context: int | None = None,
    column: str | None = None,
    labels: Path | None = None,
    label_column: str | None = None,
    only: list[str] | None = None,
    except_: list[str] | None = None,
) -> "Task":
    """The task of a model over a corpus as typed, of the documents of some labels where these were."""
    from ablation_lens.tasks.tasks import task_for

    typed: dict[str, Any] = {"column": column, "labels": labels, "label_column": label_column}
    given = {name: value for name, value in typed.items() if value is not None}
    task = task_for(model, corpus, context=context, **given)
    task = task.only(only) if only else task
    return task.except_(except_) if except_ else task


def planned(
    task: "Task",
    split: str,
    tokens: int | None,
    images: int | None,
    batch_size: int | str | None = None,
    model: Any = None,
) -> "BatchPlan":
    """The plan of so many tokens or images; as many as the paper's where nobody says, or all there is."""
    from ablation_lens.study.paper import SIZES
    from ablation_lens.tasks import tasks

    announce(f"reading {task.corpus.full_name} ({split})")
    return tasks.planned(task, split, SIZES, tokens=tokens, images=images, batch_size=batch_size, model=model)


# ---------------------------------------------------------------------- what it does


def evaluate(
    model: options.Model,
    ablation: AblationFile = None,
    center: Center = None,
    values: ValuesFile = None,
    fraction: Fraction = None,
    seed: Seed = None,
    neurons: Neurons = None,
    statistics: Statistics = None,
    site: Site_ = None,
    metrics: options.Metrics = None,
    corpus: options.Corpus = None,
    split: Annotated[str, typer.Option(help="Which split of the corpus is scored.")] = "evaluate",
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to score, and to collect. Left out: 100,000, or all there is.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Likewise, for an image model. Left out: 1,000, or all there is.")
    ] = None,
    column: options.Column = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    only: options.Only = None,
    except_: options.Except = None,
    context: options.Context = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    random_init: options.RandomInit = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a model with and without one ablation: top-1, cross-entropy, and how sure the difference is.

    The ablation is that of a file (--ablation), or a center for neurons that are drawn (--fraction) or named
    (--neuron).
    """
    announce(f"loading {model}")
    asked = _Asked(ablation, center, values, fraction, seed, neurons, statistics, site)
    from ablation_lens.measure.evaluation import evaluate as score_of
    from ablation_lens.measure.metrics import metrics_of
    from ablation_lens.models.load import load_model
    from ablation_lens.progress import progress_over

    found, further = asked.found(model), metrics_of(metrics)
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices, random_init=random_init)
    found.require_fits(loaded)
    task = task_as_typed(
        loaded,
        corpus,
        context=context,
        column=column,
        labels=labels,
        label_column=label_column,
        only=only,
        except_=except_,
    )
    plan = planned(task, split, tokens, images, batch_size, loaded)
    found.require_unknown(loaded, plan)
    made = found.made(loaded, lambda: planned(task, "collect", tokens, images, batch_size, loaded))
    with progress_over("evaluating", 2 * len(plan.items), shown=True, unit="documents") as advance:
        before = score_of(loaded, plan, metrics=further, on_batch=advance)
        after = score_of(loaded, plan, made, metrics=further, on_batch=advance)
    if not as_json:
        _show_scores(loaded.record.name, plan, made, before, after)
        return
    changes = {metric: after.interval(metric, without=before) for metric in after.metrics}
    say_json(
        "evaluation",
        {
            "model": loaded.record.name,
            "corpus": plan.corpus.to_dict(),
            "documents": len(before.documents),
            "predictions": before.predictions,
            "ablation": found.describe(made),
            "before": {metric: before[metric] for metric in before.metrics},
            "after": {metric: after[metric] for metric in after.metrics},
            "difference": {
                metric: {"value": change.difference, "low": change.low, "high": change.high}
                for metric, change in changes.items()
            },
        },
    )


_SHOWN = {
    "top1": ("top-1 (%)", 100.0, 2),
    "top10": ("top-10 (%)", 100.0, 2),
    "cross_entropy": ("CE (nats)", 1.0, 3),
}
"""How people write a metric: what stands before it, what it is multiplied by, and its decimals."""


def _show_scores(name: str, plan: "BatchPlan", ablation: "Ablation", before: "Score", after: "Score") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "as it is", "ablated", "change", "95 % interval"):
        table.add_column(title, justify="right" if title else "left", overflow="fold")
    for metric in before.metrics:
        title, factor, decimals = _SHOWN.get(metric, (metric, 1.0, 3))
        change = after.interval(metric, without=before)
        scores = [f"{factor * score[metric]:.{decimals}f}" for score in (before, after)]
        gap, low, high = (f"{factor * each:+.{decimals}f}" for each in (change.difference, change.low, change.high))
        table.add_row(*map(cell, (title, *scores, gap, f"{low} to {high}")))
    documents = len(before.documents)
    show(
        cell(f"{name} on {plan.corpus.name} ({plan.corpus.split}): {plan.size:,} {plan.corpus.unit}"),
        cell(repr(ablation)),
        table,
        cell(
            f"{before.predictions:,} predictions in {documents:,} document{'' if documents == 1 else 's'}, which the "
            "interval is over."
        ),
    )


def ablate(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="A text; a masked model's holds its mask token once.")],
    ablation: AblationFile = None,
    center: Center = None,
    values: ValuesFile = None,
    fraction: Fraction = None,
    seed: Seed = None,
    neurons: Neurons = None,
    statistics: Statistics = None,
    site: Site_ = None,
    answer: Annotated[
        str | None, typer.Option(help="A token whose probability and rank are told, such as ' Paris'.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many predictions of each side.", min=1)] = 5,
    corpus: Annotated[
        str | None, typer.Option(help="What the center is collected over, where there are no --statistics.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many of its tokens. Left out: 100,000, or all there is.")
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    n_devices: options.Devices = 1,
    as_json: options.AsJson = False,
) -> None:
    """Show what a model predicts after a prompt, as it is and with one ablation, side by side.

    The ablation is said as for `evaluate`.
    """
    announce(f"loading {model}")
    asked = _Asked(ablation, center, values, fraction, seed, neurons, statistics, site)
    from ablation_lens.hooked import task_of
    from ablation_lens.measure.prompting import prompt as predictions_after
    from ablation_lens.models.load import load_model
    from ablation_lens.tasks.tasks import task_for

    found = asked.found(model)
    loaded = load_model(model, dtype=dtype, device=device, n_devices=n_devices)
    if task_of(loaded) == "image-classification":
        raise AblationLensError(f"{model} reads images, and a prompt is a text; use ablation-lens evaluate.")
    found.require_fits(loaded)
    predictions_after(loaded, prompt, answer=answer, top=top)  # refused before a center is collected for it
    made = found.made(loaded, lambda: planned(task_for(loaded, corpus), "collect", tokens, None))
    result = predictions_after(loaded, prompt, answer=answer, ablation=made, top=top)
    if not as_json:
        say_lines("\n".join(result.lines()))
        return
    say_json(
        "prompt",
        {
            "model": loaded.record.name,
            "text": result.text,
            "tokens": result.tokens,
            "ablation": found.describe(made),
            "answer": result.answer,
            "kl": result.kl,
            "predictions": result.frame.reset_index().to_dict("records"),
        },
    )

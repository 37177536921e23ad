"""`compare_centers`: which value does the least harm, for a model, inputs and a metric of one's own."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import as_mask, random_neurons
from ablation_lens.errors import MismatchError, ModelError
from ablation_lens.escaping import on_one_line
from ablation_lens.measure.collection import collect
from ablation_lens.measure.evaluation import evaluate
from ablation_lens.measure.intervals import difference
from ablation_lens.measure.learned import Learned
from ablation_lens.measure.metrics import Better, Given, metrics_of
from ablation_lens.measure.score import Score
from ablation_lens.neurons import centers as known_centers
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over
from ablation_lens.sites import Site
from ablation_lens.tasks.freezing import freeze, require_disjoint
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.known_rows import require_unknown
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch, BatchPlan, plan_of
from ablation_lens.tasks.tasks import task_for

if TYPE_CHECKING:
    import pandas

SEEDS = tuple(range(10))
"""Fewer masks give an interval that holds for them alone."""
SAMPLE = {"tokens": 20_000, "images": 1000}
"""How much of the collect split statistics are made of, where none are given."""


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """Centers from the best to the worst, with what tells them apart.

    Attributes:
        metric: what they are judged by.
        better: whether "higher" or "lower" is better.
        unablated: the metric of the model as it is.
        frame: a row per center: `value` and `sd` over masks, `change` from the model as it is, `to_best` with its
            95 % interval `low` to `high`, paired by mask and document, and `as_best`: not to be told from the best.
        what: what was ablated, in words.
        conditional: whether the intervals hold for the masks that were drawn only.
        left_out: centers that these statistics do not give, and why.
    """

    metric: str
    better: Better
    unablated: float
    frame: "pandas.DataFrame"
    what: str
    conditional: bool
    left_out: Mapping[str, str]

    @property
    def best(self) -> str:
        """The center that does the least harm."""
        return str(self.frame.index[0])

    def __repr__(self) -> str:
        names = [on_one_line(str(name)) for name in self.frame.index]
        wide = max(map(len, names))
        lines = [
            f"{on_one_line(self.metric)} ({self.better} is better), {self.what}; "
            f"the model as it is: {self.unablated:.4f}",
            f"  {'center':{wide}}  {'value':>9}  {'± sd':>8}  {'change':>9}  {'to the best':>11}  95 % interval",
        ]
        for name, row in zip(names, self.frame.to_dict("records"), strict=True):
            spread = "" if np.isnan(row["sd"]) else f"{row['sd']:.4f}"
            lines.append(
                f"{'*' if row['as_best'] else ' '} {name:{wide}}  {row['value']:9.4f}  {spread:>8}  "
                f"{row['change']:+9.4f}  {row['to_best']:+11.4f}  {_range(row['low'], row['high'])}"
            )
        over = "documents, given these masks" if self.conditional else "masks and documents"
        lines.append(f"* cannot be told from the best (paired difference, bootstrapped over {over})")
        if self.frame["low"].isna().all():
            lines.append("one document says nothing of others: there is no interval")
        lines += [f"left out: {on_one_line(name)} ({on_one_line(why)})" for name, why in self.left_out.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from ablation_lens.escaping import for_html

        return f"<pre>{for_html(repr(self))}</pre>"


def compare_centers(
    model: Any,
    batches: Any,
    metric: Given = "cross_entropy",
    *,
    statistics: ActivationStatistics | None = None,
    centers: Iterable[str] | Mapping[str, Tensor | Learned] | None = None,
    mask: Any = None,
    fraction: float = 0.5,
    seeds: Sequence[int] | int = SEEDS,
    site: Site | str | None = None,
    better: Better | None = None,
    progress: bool = True,
) -> Ranking:
    """Ablate the same neurons to every center, and rank the centers by what the model then does on your inputs.

    Args:
        model: any hooked model.
        batches: what it is judged on, as `evaluate` takes it; not what the statistics are from.
        metric: a name out of `al.metrics`, or a function `(logits, batch) -> [row]`.
        statistics: what the centers are computed from; None collects from the model's default corpus.
        centers: names, or values of your own by name, learned ones among them; None takes every center there is.
        mask: which neurons, as a mask or by name; None draws a `fraction` of every layer for each of the `seeds`.
        fraction: see `mask`.
        seeds: one mask for each; a number alone is one seed, and `range(10)` are ten.
        site: where the neurons are: that of the statistics, or z.
        better: "higher" or "lower"; needed for a function that does not say (`al.metrics.Metric(function, better=…)`).
        progress: show a bar. After Ctrl-C, what every center was measured with is ranked.

    >>> import torch
    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> stats = al.collect(model, al.task_for(model).batches(split="collect", tokens=2000))
    >>> prompts = al.Batch.prompts(torch.tensor([[2, 7, 9], [2, 8, 4]]), answers=[5, 6], wrong=[7, 8])
    >>> ranking = compare_centers(model, [prompts], "logit_difference", statistics=stats, mask=["L0", "L2.H1"])
    >>> ranking.best in ranking.frame.index, ranking.conditional
    (True, True)
    """
    name, measured = _one_metric(metric)
    direction = better or measured.better
    if direction not in ("higher", "lower"):
        raise MismatchError(f"whether more of {name} is better cannot be told; give better='higher' or better='lower'.")
    listed: Iterable[Batch] = batches_of(model, batches, scored=True)
    if plan_of(listed) is None:
        padding = Padding(model, stacklevel=3)
        listed = [padding.marked(batch) for batch in listed]  # kept, as they are read for every center
    if statistics is None:
        site = Site.of(Site.Z if site is None else site)
        collected = _default_plan(model)
        require_disjoint(collected, plan_of(listed) or freeze(model, listed))
        statistics = collect(model, collected, site=site, progress=progress)
    _require_statistics(statistics, site)
    require_unknown(model, listed, statistics.rows, [reading.plan for reading in statistics.provenance.plans])
    for each in centers.values() if isinstance(centers, Mapping) else ():
        if isinstance(each, Learned):
            _require_learned(each, statistics)
            require_unknown(model, listed, each.rows)
    values, left_out = _values(statistics, centers)
    masks, what = _masks(statistics, mask, fraction, seeds)
    # Once: the checksum of the weights takes time, and none of what follows changes them.
    statistics.ablation(masks[0], "mean").require_fits(model)
    scores: dict[str, list[Score]] = {center: [] for center in values}
    try:
        with progress_over("comparing centers", 1 + len(masks) * len(values), progress, "evaluations") as advance:
            unablated = evaluate(model, listed, metrics={name: measured})
            advance(1)
            # Mask by mask: whenever it ends, all centers have been measured alike.
            for number, chosen in enumerate(masks):
                for center, value in values.items():
                    advance.describe(f"mask {number + 1} of {len(masks)}: {center}")
                    ablation = Ablation(chosen, value, site=statistics.site, center=center)
                    scores[center].append(evaluate(model, listed, ablation, metrics={name: measured}))
                    advance(1)
    except KeyboardInterrupt:
        whole = min(map(len, scores.values()))
        if not whole:
            raise
        scores = {center: found[:whole] for center, found in scores.items()}
        warnings.warn(f"interrupted: ranked by {whole} of {len(masks)} masks.", stacklevel=2)
    frame, conditional = _ranked(name, direction, unablated, scores)
    return Ranking(name, direction, unablated[name], frame, what, conditional, left_out)


def _range(low: float, high: float) -> str:
    return "–" if np.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"


def _one_metric(metric: Given) -> tuple[str, Any]:
    found = metrics_of(metric)
    if len(found) != 1:
        raise MismatchError(f"centers are ranked by one metric, got {len(found)}; compare them once for each.")
    return next(iter(found.items()))


def _default_plan(model: Any) -> BatchPlan:
    try:
        task = task_for(model)
    except ModelError as error:  # of its own inputs it has some already, and the error would ask for them
        why = str(error).split(";")[0].rstrip(".")
        raise ModelError(
            f"centers are computed from statistics, and none can be collected here: {why}; "
            "give statistics=al.collect(model, other_inputs)."
        ) from error
    size: dict[str, Any] = {task.unit: SAMPLE[task.unit]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a corpus that is smaller will do
        return task.batches(split="collect", **size)


def _require_statistics(statistics: Any, site: Site | str | None) -> None:
    if not isinstance(statistics, ActivationStatistics):
        way = "ActivationStatistics.load(path)" if isinstance(statistics, str | Path) else "those of one site"
        raise MismatchError(f"statistics are what collect gives, got {type(statistics).__name__}; give {way}.")
    if site is not None and Site.of(site) is not statistics.site:
        raise MismatchError(
            f"site={Site.of(site).value!r} was asked for, and the statistics are of {statistics.site.value!r}; leave "
            "site= out, or give statistics of that site."
        )


def _require_learned(learned: Learned, statistics: ActivationStatistics) -> None:
    if learned.site is not statistics.site:
        raise MismatchError(
            f"these values were learned for {learned.site.value}, and the statistics are of {statistics.site.value!r}; "
            "give statistics of that site."
        )
    if learned.model is not None:
        learned.model.require_same(statistics.provenance.model, "these values were learned for another model")


def _values(
    statistics: ActivationStatistics, centers: Iterable[str] | Mapping[str, Tensor | Learned] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What the neurons are set to, by name, and which centers cannot be had."""
    if isinstance(centers, Mapping) and centers:
        given = {name: each.values if isinstance(each, Learned) else each for name, each in centers.items()}
        return given, {}
    if centers is not None:
        wanted = [centers] if isinstance(centers, str) else list(centers)
        if not wanted:
            raise MismatchError("there is no center to compare; name some, or leave centers= out.")
        return {center: statistics.center(center) for center in wanted}, {}
    values, left_out = {}, {}
    for center in known_centers.names():
        try:
            values[center] = statistics.center(center)
        except MismatchError as error:  # such as one that needs a second pass
            left_out[center] = str(error)
    return values, left_out


def _masks(
    statistics: ActivationStatistics, mask: Any, fraction: float, seeds: Sequence[int] | int
) -> tuple[list[Tensor], str]:
    site = statistics.site.value
    if mask is not None:
        chosen = as_mask(mask, statistics.shape, site=statistics.site)
        if not bool(chosen.any()):
            raise MismatchError("the mask holds no neuron, so nothing would be ablated; name at least one.")
        return [chosen], f"{int(chosen.sum()):,} {site} neurons ablated"
    listed = [seeds] if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    drawn = [random_neurons(statistics.shape, fraction, seed) for seed in listed]
    if not drawn or not bool(drawn[0].any()):
        raise MismatchError(
            f"seeds={listed} with fraction={fraction} ablate nothing; give at least one seed, and more."
        )
    return drawn, f"{100 * fraction:g} % of the {site} neurons ablated, {len(drawn)} mask{'s' * (len(drawn) > 1)}"


def _ranked(
    name: str, better: Better, unablated: Score, scores: Mapping[str, list[Score]]
) -> tuple["pandas.DataFrame", bool]:
    import pandas

    means = {center: float(np.mean([score[name] for score in found])) for center, found in scores.items()}
    # Sorting is stable: of equals, the one that was named first.
    order = sorted(means, key=lambda center: -means[center] if better == "higher" else means[center])
    weights = unablated.sums(name).weights.double().numpy()
    sums = {center: np.stack([each.sums(name).values.double().numpy() for each in scores[center]]) for center in order}
    rows, conditional = [], True
    for center in order:
        interval = difference(sums[center], sums[order[0]], weights)
        conditional = interval.conditional
        found = [score[name] for score in scores[center]]
        rows.append(
            {
                "value": means[center],
                "sd": float(np.std(found, ddof=1)) if len(found) > 1 else float("nan"),
                "change": means[center] - unablated[name],
                "to_best": interval.difference,
                "low": interval.low,
                "high": interval.high,
                "as_best": not interval.excludes_zero,
            }
        )
    return pandas.DataFrame(rows, index=pandas.Index(order, name="center")), conditional

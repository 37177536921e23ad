"""`compare_collections`: how far centers move from one collection to another, in σ, and what ablating to them costs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import random_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.damage import Damage, damage_of, extra_metrics, require_seeds, unit_of
from ablation_lens.experiments.scores import Scores
from ablation_lens.measure.collection import collect
from ablation_lens.measure.intervals import ENOUGH_SEEDS
from ablation_lens.neurons import centers as registry
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over
from ablation_lens.tasks.freezing import freeze
from ablation_lens.tasks.inputs import whole
from ablation_lens.tasks.known_rows import require_unknown
from ablation_lens.tasks.plans import Batch, BatchPlan, TextItem, cut_batches

if TYPE_CHECKING:
    import pandas

SIZES = (1000, 3000, 10_000, 30_000)
"""Tokens of a collection."""

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Moved:
    """How far one center moves.

    Attributes:
        center: its name.
        against: what is compared: "" for two collections of one corpus, or the name of another corpus.
        size: tokens (or images) of a collection.
        pairs: how many pairs of disjoint collections.
        median: half of the neurons move less, in σ. Neurons of all pairs are taken together.
        q90: 90 % move less.
        q99: 99 % move less.
        least: the median in the pair in which it is smallest.
        most: the median in the pair in which it is largest.
        cost: how much worse the metric is under centers from there than under those of the statistics.
        low: where its 95 % interval begins, paired over masks and documents. It holds for the collections drawn.
        high: where it ends.
    """

    center: str
    against: str
    size: int
    pairs: int
    median: float
    q90: float
    q99: float
    least: float
    most: float
    cost: float
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Stability:
    """How far centers move between collections; `frame` has a row per center, corpus and size.

    Attributes:
        model: its name.
        site: where the neurons are.
        metric: what cost is measured in.
        fraction: of the neurons, ablated for the cost.
        masks: how many were drawn.
        unit: of a size: "tokens" or "images".
        rows: what was found.
        left_out: sizes of which no two collections fit into the sample.
    """

    model: str
    site: str
    metric: str
    fraction: float
    masks: int
    unit: str
    rows: tuple[Moved, ...]
    left_out: tuple[int, ...]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The rows as a table."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])

    def __repr__(self) -> str:
        lines = [
            f"Stability of centers ({on_one_line(self.model)}, {self.site}): |c₁ − c₂|/σ over neurons, and what "
            f"ablating {self.fraction:.0%} costs more ({unit_of(self.metric)})",
            f"{'':>22} {'center':<13} {'median':>7} {'90 %':>7} {'99 %':>7}   cost",
        ]
        for row in self.rows:
            what = f"{on_one_line(row.against)} " if row.against else ""
            lines.append(
                f"{what + f'{row.size:,} {self.unit}':>22} {row.center:<13} {row.median:7.3f} {row.q90:7.3f} "
                f"{row.q99:7.3f}   {row.cost:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
            )
        return "\n".join([*lines, *self._in_words()])

    def _in_words(self) -> Iterator[str]:
        own = [row for row in self.rows if not row.against]
        largest = max((row.size for row in own), default=0)
        # By 90 %: the median of a center that stands on bins is often exactly 0.
        last = sorted((row for row in own if row.size == largest), key=lambda row: row.q90)
        if len(last) > 1:
            still, moving = last[0], last[-1]
            yield (
                f"Between collections of {largest:,} {self.unit}, {still.center} moves least (90 % of neurons less "
                f"than {still.q90:.3f} σ) and {moving.center} most ({moving.q90:.3f} σ)."
            )
        costly = [f"{row.center} of {row.size:,}" for row in own if row.low > 0]
        if own:
            yield (
                f"Worse than centers of all {self.unit}: {', '.join(costly)}."
                if costly
                else f"No size is worse than all {self.unit} beyond its interval."
            )
        for name in dict.fromkeys(row.against for row in self.rows if row.against):
            there = [row.center for row in self.rows if row.against == name and row.low > 0]
            yield (f"Centers of {on_one_line(name)} cost more than its own: {', '.join(there) if there else 'none'}.")
        if self.left_out:
            yield (
                f"Left out, as two such collections are more than the sample: "
                f"{', '.join(f'{size:,}' for size in self.left_out)} {self.unit}."
            )
        if self.masks < ENOUGH_SEEDS:
            yield f"Intervals hold for the {self.masks} masks drawn; {ENOUGH_SEEDS} say something of others."


def compare_collections(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics,
    sample: Any = None,
    *,
    sizes: Iterable[int] = SIZES,
    pairs: int = 3,
    others: Mapping[str, ActivationStatistics] | None = None,
    centers: Iterable[str] | None = None,
    fraction: float = 0.5,
    seeds: Iterable[int] = range(10),
    metric: str = "cross_entropy",
    folder: str | Path | None = None,
    progress: bool = True,
) -> Stability:
    """How far every center moves between disjoint collections of one corpus, and to those of other corpora.

    Args:
        model: any model with TransformerLens hooks.
        batches: what cost is measured on.
        statistics: whose σ is the unit, and whose centers are what others are compared with in cost.
        sample: documents that are cut into disjoint collections; None for none. Usually what the statistics are of.
        sizes: of a collection, in tokens or images; a collection is whole documents, so slightly more.
        pairs: of disjoint collections at most, for every size.
        others: statistics of the same model over other corpora, by name.
        centers: which; None for all that move and that the statistics can give.
        fraction: how many neurons are ablated for the cost.
        seeds: of the masks.
        metric: what cost is measured in.
        folder: where scores are kept, so that an interrupted experiment goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> task = al.task_for(model := al.load_model("tiny-opt"))
    >>> plan = task.batches(split="collect", tokens=3000)
    >>> stats = al.collect(model, plan, progress=False)
    >>> judged = task.batches(split="evaluate", tokens=300)
    >>> found = compare_collections(model, judged, stats, plan, sizes=[500, 1000], centers=["mean", "peak"], seeds=[1])
    >>> moved = found.frame.set_index(["size", "center"])["median"]
    >>> bool(moved[1000, "mean"] < moved[500, "mean"] < moved[500, "peak"])
    True
    """
    seeds, others = require_seeds(seeds), dict(others or {})
    names = movable(statistics) if centers is None else tuple(centers)
    for name, other in others.items():
        statistics.provenance.model.require_same(other.provenance.model, f"cannot compare with statistics of {name!r}")
        if other.site is not statistics.site:
            raise MismatchError(f"statistics of {name!r} are of {other.site.value}, not of {statistics.site.value}.")
    if sample is None and not others:
        raise MismatchError("there is nothing to compare; give a sample to cut into collections, or others.")
    scores = Scores(model, batches, statistics=statistics, metrics=extra_metrics(metric), folder=folder)
    for other in others.values():
        _require_other_rows(scores, other)
    plan = None if sample is None else sample if isinstance(sample, BatchPlan) else freeze(model, sample)
    wanted = 2 * whole(pairs, "pairs")
    cuts = {} if plan is None else {whole(size, "a size"): list(disjoint(plan, size, wanted)) for size in sizes}
    fitting = {size: parts[: len(parts) // 2 * 2] for size, parts in cuts.items() if len(parts) > 1}
    if plan is not None and not fitting and not others:
        raise MismatchError(
            f"the sample of {plan.size:,} is less than two collections of {min(cuts, default=0):,}; give more "
            "documents, or smaller sizes."
        )
    masks = [random_neurons(statistics.shape, fraction, seed) for seed in seeds]
    collections = sum(map(len, fitting.values()))
    total = len(masks) * len(names) * (1 + collections + len(others))
    rows: list[Moved] = []
    with progress_over("stability", total, progress, unit="scores") as advance:

        def cost(ablation: Ablation) -> Damage:
            return damage_of(scores, ablation, masks, metric, advance)

        all_of_it = {name: statistics.ablation(masks[0], name) for name in names}
        own = {name: cost(ablation) for name, ablation in all_of_it.items()}
        for size, parts in fitting.items():
            advance.describe(f"stability: collections of {size:,}")
            found = [_collected(model, part, statistics, names) for part in parts]
            for each in found:
                _require_other_rows(scores, each)
            rows += [_between(name, size, found, statistics, own[name], cost) for name in names]
        for name, other in others.items():
            advance.describe(f"stability: {name}")
            moved = [_between(center, _size(other), [other], statistics, own[center], cost, name) for center in names]
            rows += moved
    return Stability(
        model=statistics.provenance.model.name,
        site=statistics.site.value,
        metric=metric,
        fraction=fraction,
        masks=len(masks),
        unit="images" if scores.batches.task == "image-classification" else "tokens",
        rows=tuple(rows),
        left_out=tuple(size for size in cuts if size not in fitting),
    )


def movable(statistics: ActivationStatistics) -> tuple[str, ...]:
    """The centers that depend on values, and that these statistics can give.

    >>> values = torch.randn(100, 1, 1, 1)
    >>> "zero" in movable(ActivationStatistics.of_values(values))
    False
    """
    passes = 1 if statistics.trimmed is None else 2
    return tuple(name for name in registry.names() if 1 <= registry.about(name).passes <= passes)


def disjoint(plan: BatchPlan, size: int, most: int) -> Iterator[tuple[Batch, ...]]:
    """Collections of at least so many tokens (or images) that share no document, in corpus order.

    >>> import ablation_lens as al
    >>> plan = al.task_for(al.load_model("tiny-opt")).batches(split="collect", tokens=3000)
    >>> parts = list(disjoint(plan, 1000, most=4))
    >>> len(parts), [sum(batch.size for batch in part) >= 1000 for part in parts]
    (2, [True, True])
    """
    numbers: list[int] = []
    filled = 0
    for number, item in enumerate(plan.items):
        if not most:
            return
        numbers.append(number)
        filled += item.length if isinstance(item, TextItem) else 1
        if filled >= size:
            yield _batches(plan, numbers)
            numbers, filled, most = [], 0, most - 1


def _batches(plan: BatchPlan, numbers: Sequence[int]) -> tuple[Batch, ...]:
    lengths = [plan.items[number].length for number in numbers]
    cut = cut_batches(lengths, max(1, 8192 // max(lengths)))
    return tuple(plan.batch(tuple(numbers[place] for place in places)) for places in cut)


def _collected(
    model: Any, batches: Sequence[Batch], like: ActivationStatistics, names: Iterable[str]
) -> ActivationStatistics:
    """Statistics of other documents, as these were collected."""
    return collect(
        model,
        list(batches),
        site=like.site,
        bins=like.histogram.bins,
        passes=max(registry.about(name).passes for name in names),
        include_bos=like.provenance.include_bos,
        progress=False,
    )


def _require_other_rows(scores: Scores, statistics: ActivationStatistics) -> None:
    """Refuse centers of the documents that cost is measured on."""
    plans = [reading.plan for reading in statistics.provenance.plans]
    require_unknown(scores.model, scores.batches, statistics.rows, plans)


def _between(
    center: str,
    size: int,
    found: Sequence[ActivationStatistics],
    statistics: ActivationStatistics,
    own: Damage,
    cost: Callable[[Ablation], Damage],
    against: str = "",
) -> Moved:
    """A center of two collections after two; of a single one, against the statistics themselves."""
    nothing = torch.zeros(statistics.shape, dtype=torch.bool)
    values = [each.center(center) for each in found]
    pairs = (
        list(zip(values[::2], values[1::2], strict=True))
        if len(found) > 1
        else [(values[0], statistics.center(center))]
    )
    shifts = [in_sigma(one, two, statistics) for one, two in pairs]
    median, q90, q99 = torch.cat(shifts).quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    medians = [float(shift.quantile(0.5)) for shift in shifts]
    interval = Damage.average([cost(each.ablation(nothing, center)) for each in found]).minus(own)
    return Moved(
        center=center,
        against=against,
        size=size,
        pairs=len(pairs),
        median=median,
        q90=q90,
        q99=q99,
        least=min(medians),
        most=max(medians),
        cost=interval.difference,
        low=interval.low,
        high=interval.high,
    )


def in_sigma(
    one: Float[Tensor, "layer head dim"], two: Float[Tensor, "layer head dim"], statistics: ActivationStatistics
) -> Float[Tensor, " neuron"]:
    """|one − two|/σ of every neuron that is not constant.

    >>> statistics = ActivationStatistics.of_values(torch.tensor([[-2.0, 5.0], [2.0, 5.0]]).view(2, 1, 1, 2))
    >>> in_sigma(torch.ones(1, 1, 2), torch.zeros(1, 1, 2), statistics).tolist()
    [0.5]
    """
    varies = statistics.std > 0
    if not bool(varies.any()):
        raise MismatchError("every neuron of these statistics is constant, so there is no σ to measure by.")
    return ((one.double() - two.double()).abs() / statistics.std)[varies]


def _size(statistics: ActivationStatistics) -> int:
    """How much was collected, in tokens or images."""
    provenance = statistics.provenance
    records = provenance.corpora
    return sum(record.size_obtained for record in records) if records else provenance.tokens

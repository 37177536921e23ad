"""`ablate_atypical`: what neurons of a shape cost, beside gaussian-like ones of the same layers and variances."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ablation_lens.ablation.masks import random_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.damage import Damage, damage_of, extra_metrics, require_seeds, unit_of
from ablation_lens.experiments.scores import Scores
from ablation_lens.experiments.stability import movable
from ablation_lens.hooked import projection
from ablation_lens.measure.intervals import ENOUGH_SEEDS
from ablation_lens.names import require_known
from ablation_lens.neurons.shapes import SHAPE_WORDS, Shapes
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over

if TYPE_CHECKING:
    import pandas

KINDS = ("off-zero", "multi-modal", "skewed")
"""What is not a symmetric distribution around zero with one peak."""

PLAIN = "gaussian-like"


@dataclass(frozen=True)
class Matching:
    """How neurons of a kind were paired with gaussian-like ones.

    Attributes:
        kind: the word for their shape.
        neurons: how many there are.
        pairs: of how many a partner was found: of the same layer, and with a variance that is near enough.
        ablated: of how many pairs each mask takes one side.
        ratio: the partner's variance over the neuron's, the geometric mean.
        least: the smallest ratio.
        most: the largest.
        written: the same of what they write into the residual stream, σ²‖w‖²; NaN at a site that writes nothing.
    """

    kind: str
    neurons: int
    pairs: int
    ablated: int
    ratio: float
    least: float
    most: float
    written: float


@dataclass(frozen=True)
class KindDamage:
    """What ablating neurons of one kind to one center costs.

    Attributes:
        kind: the word for their shape.
        center: what they are set to.
        damage: how much worse the metric is than in the model as it is, with the interval over masks and documents.
        damage_low: where the interval begins.
        damage_high: where it ends.
        match_damage: the same of their partners.
        match_low: where the interval begins.
        match_high: where it ends.
        difference: the damage of the kind minus that of its partners.
        low: where the interval begins.
        high: where it ends.
        to_best: how much worse this center is than the best one for this kind.
        to_best_low: where the interval begins.
        to_best_high: where it ends.
    """

    kind: str
    center: str
    damage: float
    damage_low: float
    damage_high: float
    match_damage: float
    match_low: float
    match_high: float
    difference: float
    low: float
    high: float
    to_best: float
    to_best_low: float
    to_best_high: float

    @property
    def as_best(self) -> bool:
        """Whether it cannot be told from the best center of the kind; an interval that is not known says nothing."""
        return not self.to_best_low > 0


@dataclass(frozen=True, repr=False)
class Atypical:
    """Damage by kind of neuron and center, beside that of matched gaussian-like ones; `frame` has a row of each.

    Attributes:
        model: its name.
        site: where the neurons are.
        metric: what damage is measured in.
        masks: how many were drawn.
        matchings: how well every kind could be matched.
        rows: what was found.
        partners: words for the shape of partners.
        left_out: kinds of which there are too few, with how many, and how many could be their partners.
    """

    model: str
    site: str
    metric: str
    masks: int
    matchings: tuple[Matching, ...]
    rows: tuple[KindDamage, ...]
    partners: tuple[str, ...]
    left_out: Mapping[str, tuple[int, int]]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The rows as a table, with how the kind was matched."""
        import pandas

        matched = {matching.kind: vars(matching) for matching in self.matchings}
        return pandas.DataFrame([vars(row) | matched[row.kind] | {"as_best": row.as_best} for row in self.rows])

    def __repr__(self) -> str:
        unit = unit_of(self.metric)
        lines = [f"Atypical neurons ({on_one_line(self.model)}, {self.site}): rise in {self.metric} ({unit})"]
        for matching in self.matchings:
            told = "" if math.isnan(matching.written) else f"; of what they write {matching.written:.2f}"
            lines += [
                f"{matching.kind}: {matching.neurons:,} neurons, {matching.pairs:,} matched, {matching.ablated:,} "
                f"ablated at a time; variance of partners ×{matching.ratio:.2f} ({matching.least:.2f} to "
                f"{matching.most:.2f}){told}",
                f"  {'center':<13} {'damage':>9} {'partners':>9}   difference                    to the best",
            ]
            for row in self._of(matching.kind):
                lines.append(
                    f"  {row.center:<13} {row.damage:+9.4f} {row.match_damage:+9.4f}   {row.difference:+.4f} "
                    f"[{row.low:+.4f}, {row.high:+.4f}]   {row.to_best:+.4f} "
                    f"[{row.to_best_low:+.4f}, {row.to_best_high:+.4f}]"
                )
        return "\n".join([*lines, *self._in_words()])

    def _of(self, kind: str) -> list[KindDamage]:
        return [row for row in self.rows if row.kind == kind]

    def _in_words(self) -> Iterator[str]:
        for matching in self.matchings:
            rows = self._of(matching.kind)
            parts = {
                "more": [row.center for row in rows if row.low > 0],
                "less": [row.center for row in rows if row.high < 0],
            }
            told = [f"{how} than partners with {', '.join(names)}" for how, names in parts.items() if names]
            best = min(rows, key=lambda row: row.to_best)
            alike = [row.center for row in rows if row.as_best and row is not best]
            yield (
                f"{matching.kind} neurons cost {' and '.join(told) or 'neither more nor less than their partners'}; "
                f"their best center is {best.center}"
                f"{f', from which {_and(alike)} cannot be told' if alike else ''}."
            )
        for kind, (neurons, plain) in self.left_out.items():
            yield (
                f"Left out: {kind}, as of {neurons:,} such and {plain:,} {' or '.join(self.partners)} neurons too few "
                "can be matched; other partners= may do."
            )
        if self.masks < ENOUGH_SEEDS:
            yield f"Intervals hold for the masks drawn ({self.masks}); {ENOUGH_SEEDS} say something of others."


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def ablate_atypical(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics,
    *,
    kinds: Iterable[str] = KINDS,
    partners: Iterable[str] = (PLAIN,),
    centers: Iterable[str] | None = None,
    share: float = 0.5,
    most_ratio: float = 2.0,
    seeds: Iterable[int] = range(10),
    metric: str = "cross_entropy",
    folder: str | Path | None = None,
    progress: bool = True,
) -> Atypical:
    """Ablate only neurons of a shape, and as many gaussian-like ones of the same layers and variances.

    Every neuron of a kind is paired with the gaussian-like one of its layer whose variance is nearest, each taken once.
    A mask takes a share of the pairs: one side is the kind's mask, the other that of its partners.

    Args:
        model: any model with TransformerLens hooks.
        batches: what damage is measured on.
        statistics: who is of which shape, and the centers.
        kinds: words of `neurons.shapes.SHAPE_WORDS`.
        partners: words for whom they are paired with, where that is not gaussian-like neurons, of which MLPs have few.
        centers: which; None for zero and all that the statistics can give.
        share: of a kind's pairs that a mask takes; with 1 there is one mask.
        most_ratio: between the variances of a pair, either way; neurons without such a partner are left out.
        seeds: of the masks.
        metric: what damage is measured in.
        folder: where scores are kept, so that an interrupted experiment goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> task = al.task_for(model := al.load_model("tiny-opt"))
    >>> stats = al.collect(model, task.batches(split="collect", tokens=4000), progress=False)
    >>> judged = task.batches(split="evaluate", tokens=300)
    >>> found = ablate_atypical(model, judged, stats, kinds=["off-zero"], centers=["zero", "mean"], seeds=[1])
    >>> found.frame["center"].tolist(), found.matchings[0].pairs > 20
    (['zero', 'mean'], True)
    """
    seeds, kinds = require_seeds(seeds), tuple(dict.fromkeys(kinds))
    plain_words = tuple(dict.fromkeys(partners))
    for word in (*kinds, *plain_words):
        require_known(word, SHAPE_WORDS[1:], "kind of neuron")  # constant ones have no variance
    if set(kinds) & set(plain_words) or not plain_words:
        raise MismatchError(
            f"kinds are {list(kinds)} and partners {list(plain_words)}; give partners that are of none of the kinds."
        )
    if not (isinstance(most_ratio, int | float) and most_ratio >= 1):
        raise MismatchError(f"most_ratio={most_ratio!r} is not possible; give 1 or more.")
    names = ("zero", *movable(statistics)) if centers is None else tuple(centers)
    if not names:
        raise MismatchError("no centers are given; give one or more, such as 'zero' and 'mean'.")
    scores = Scores(model, batches, statistics=statistics, metrics=extra_metrics(metric), folder=folder)
    shapes, sizes = statistics.shapes(), written(model, statistics)
    seeds = seeds[:1] if share == 1 else seeds
    plain = torch.stack([shapes.having(word) for word in plain_words]).any(0)
    drawn = {kind: _draw(statistics, shapes.having(kind), plain, most_ratio, share, seeds) for kind in kinds}
    enough = {kind: sides for kind, sides in drawn.items() if sides is not None}
    rows: list[KindDamage] = []
    total = 1 + len(seeds) * len(names) * 2 * len(enough)
    with progress_over("atypical neurons", total, progress, unit="scores") as advance:
        clean = damage_of(scores, None, [], metric, advance)
        ablations = {name: statistics.ablation(torch.zeros(statistics.shape, dtype=torch.bool), name) for name in names}
        for kind, (_, masks, others) in enough.items():
            advance.describe(f"atypical neurons: {kind}")
            own = {name: damage_of(scores, each, masks, metric, advance) for name, each in ablations.items()}
            match = {name: damage_of(scores, each, others, metric, advance) for name, each in ablations.items()}
            rows += _rows(kind, own, match, clean)
    return Atypical(
        model=statistics.provenance.model.name,
        site=statistics.site.value,
        metric=metric,
        masks=len(seeds),
        matchings=tuple(
            _matching(kind, shapes, statistics, sizes, pairs, int(masks[0].sum()))
            for kind, (pairs, masks, _) in enough.items()
        ),
        rows=tuple(rows),
        partners=plain_words,
        left_out={kind: (int(shapes.having(kind).sum()), int(plain.sum())) for kind in kinds if kind not in enough},
    )


def _rows(kind: str, own: Mapping[str, Damage], match: Mapping[str, Damage], clean: Damage) -> Iterator[KindDamage]:
    best = min(own.values(), key=lambda damage: damage.mean)
    for name, damage in own.items():
        intervals = (damage.minus(clean), match[name].minus(clean), damage.minus(match[name]), damage.minus(best))
        yield KindDamage(kind, name, *(end for each in intervals for end in (each.difference, each.low, each.high)))


Pairs = tuple[Int64[Tensor, "pair 3"], Int64[Tensor, "pair 3"]]
"""Layer, head and dim of neurons, and of their partners."""


def match_by_variance(
    variance: Float64[Tensor, "layer head dim"],
    kind: Bool[Tensor, "layer head dim"],
    plain: Bool[Tensor, "layer head dim"],
    most_ratio: float = math.inf,
) -> Pairs:
    """Neurons of a kind and plain ones of the same layer, the nearest variances first, each taken once.

    >>> variance = torch.tensor([1.0, 4.0, 1.1, 100.0]).view(1, 1, 4)
    >>> kind = torch.tensor([True, True, False, False]).view(1, 1, 4)
    >>> ours, theirs = match_by_variance(variance, kind, ~kind, most_ratio=2)
    >>> ours.tolist(), theirs.tolist()
    ([[0, 0, 0]], [[0, 0, 2]])
    """
    found: list[tuple[list[int], list[int]]] = []
    logs = variance.double().log()
    for layer in range(len(variance)):
        ours, theirs = ((mask[layer] & logs[layer].isfinite()).nonzero() for mask in (kind, plain))
        far = (logs[layer][tuple(ours.T)][:, None] - logs[layer][tuple(theirs.T)]).abs()
        taken: tuple[set[int], set[int]] = (set(), set())
        # Stable, so that equal distances are taken in the order of the neurons.
        for place in far.flatten().argsort(stable=True).tolist():
            one, other = divmod(place, len(theirs))
            if float(far[one, other]) > math.log(most_ratio):
                break
            if one not in taken[0] and other not in taken[1]:
                taken[0].add(one)
                taken[1].add(other)
                found.append(([layer, *ours[one].tolist()], [layer, *theirs[other].tolist()]))
    found.sort()
    empty = torch.empty(0, 3, dtype=torch.int64)
    return (
        torch.tensor([one for one, _ in found]) if found else empty,
        torch.tensor([other for _, other in found]) if found else empty,
    )


Masks = list[Bool[Tensor, "layer head dim"]]


def _draw(
    statistics: ActivationStatistics,
    kind: Bool[Tensor, "layer head dim"],
    plain: Bool[Tensor, "layer head dim"],
    most_ratio: float,
    share: float,
    seeds: Iterable[int],
) -> tuple[Pairs, Masks, Masks] | None:
    """The pairs of a kind, and for every seed the two sides of some of them; None where no pair would be drawn."""
    pairs = match_by_variance(statistics.variance, kind, plain, most_ratio)
    masks: Masks = []
    partners: Masks = []
    for seed in seeds:
        chosen = random_neurons((1, 1, max(len(pairs[0]), 1)), share, seed).flatten()[: len(pairs[0])]
        if not bool(chosen.any()):
            return None
        for side, made in zip(pairs, (masks, partners), strict=True):
            mask = torch.zeros(statistics.shape, dtype=torch.bool)
            mask[tuple(side[chosen].T)] = True
            made.append(mask)
    return pairs, masks, partners


def written(model: Any, statistics: ActivationStatistics) -> Float64[Tensor, "layer head dim"] | None:
    """The variance of what every neuron writes into the residual stream, σ²‖w‖²; None at a site that writes nothing."""
    weights = statistics.site.weights
    if weights is None or weights.made:
        return None
    rows = [projection(block, weights).weight().detach().cpu().double().square().sum(1) for block in model.blocks]
    return statistics.variance * torch.stack(rows).view(statistics.shape)


def _matching(
    kind: str,
    shapes: Shapes,
    statistics: ActivationStatistics,
    sizes: Float64[Tensor, "layer head dim"] | None,
    pairs: Pairs,
    ablated: int,
) -> Matching:
    ours, theirs = (tuple(side.T) for side in pairs)
    logs = (statistics.variance[theirs] / statistics.variance[ours]).log()
    told = math.nan if sizes is None else float((sizes[theirs] / sizes[ours]).log().mean().exp())
    least, mean, most = (float(each.exp()) for each in (logs.min(), logs.mean(), logs.max()))
    return Matching(kind, int(shapes.having(kind).sum()), len(logs), ablated, mean, least, most, told)

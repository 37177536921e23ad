"""What masks of neurons have to do with clusters (`concentration`) and with each other (`overlap`), beyond chance.

Chance is: as many neurons of every layer, any of them. What a layer as a whole has to do with a task is therefore no
evidence of clusters, or of two tasks that share neurons.
"""

import itertools
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from torch import Tensor

from ablation_lens.ablation.masks import as_mask
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.clustering import Clusters
from ablation_lens.sites import Site

if TYPE_CHECKING:
    import pandas

NAN = math.nan


# ---------------------------------------------------------------------- masks and clusters


@dataclass(frozen=True)
class Concentrated:
    """How concentrated the selected neurons of one layer, or of all, are in few clusters.

    Attributes:
        layer: which; None for all clusters of all layers together.
        selected: how many neurons the mask takes.
        clusters: how many there are.
        auc: the area under the curve of selected neurons in the fullest clusters.
        chance: its mean where as many neurons of every layer are drawn at random.
        sd: its standard deviation there.
        low: where the middle 95 % of the drawn areas begin.
        high: where they end.
        z: (auc − chance) / sd.
        p: the share of draws that are as concentrated, this mask counted among them.
        note: why a number is missing; empty if none is.
    """

    layer: int | None
    selected: int
    clusters: int
    auc: float
    chance: float
    sd: float
    low: float
    high: float
    z: float
    p: float
    note: str = ""


@dataclass(frozen=True, repr=False)
class Concentration:
    """The concentration of a mask in clusters, by layer and of all layers; `frame` has a row of each.

    Attributes:
        rows: a row per layer, and last that of all layers.
        permutations: how many draws chance is from.
    """

    rows: tuple[Concentrated, ...]
    permutations: int

    @property
    def whole(self) -> Concentrated:
        """The row of all layers."""
        return self.rows[-1]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The rows as a table; `layer` is missing for all layers."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])

    def __repr__(self) -> str:
        lines = [
            f"Concentration of {self.whole.selected:,} neurons in {self.whole.clusters:,} clusters: area, and what "
            f"{self.permutations:,} random draws of as many neurons per layer give",
            f"  {'':<6}{'selected':>9}{'area':>8}{'chance':>8}{'95 % of draws':>17}{'z':>8}{'p':>8}",
        ]
        for row in self.rows:
            name = "all" if row.layer is None else f"L{row.layer}"
            band = f"{row.low:.3f} to {row.high:.3f}"
            lines.append(
                f"  {name:<6}{row.selected:>9,}{row.auc:>8.3f}{row.chance:>8.3f}{band:>17}{row.z:>8.2f}{row.p:>8.3f}"
                f"{f'  {row.note}' if row.note else ''}"
            )
        return "\n".join([*lines, self.told])

    @property
    def told(self) -> str:
        """What was found, in a sentence."""
        whole = self.whole
        if math.isnan(whole.z):
            return f"Nothing can be said: {whole.note}."
        if whole.low <= whole.auc <= whole.high:
            return f"The neurons are as spread over clusters as random ones (z = {whole.z:.1f})."
        more = "more" if whole.auc > whole.chance else "less"
        return f"The neurons are {more} concentrated in few clusters than random ones (z = {whole.z:.1f})."


def concentration(
    labels: Clusters | Int64[Tensor, "layer dim"], mask: Any, *, permutations: int = 1000, seed: int = 0
) -> Concentration:
    """Whether the neurons of a mask lie in few clusters, beside random ones.

    With y_i the neurons that the i fullest clusters hold (y_0 = 0), the area is Σ_{i<m} y_i / (m·y_m), where m is the
    number of neurons or of clusters, whichever is less. The fullest come first, so the area is high for random
    neurons, too, and says nothing by itself: read z, or whether it lies outside the band.

    Args:
        labels: `Clusters`, or which cluster every neuron is in.
        mask: MLP neurons `[layer 1 dim]`, or their names; those of layers that were not clustered are left out.
        permutations: how many random masks chance is from; each takes as many neurons of every layer.
        seed: draws them.

    >>> labels = torch.arange(8).div(2, rounding_mode="floor")[None]
    >>> concentration(labels, ["L0.M0", "L0.M1", "L0.M4", "L0.M5"]).whole.auc
    0.625
    """
    permutations = _count("permutations", permutations, 2)
    groups, layers, rows = _grouped(labels, mask)
    # Named, because NumPy may let `default_rng` take another bit generator one day.
    generator = np.random.Generator(np.random.PCG64(_count("seed", seed, 0)))
    found, drawn, held = [], [], []
    for layer, group, row in zip(layers, groups, rows, strict=True):
        sizes = np.bincount(group)
        # Which neurons of a cluster are taken makes no difference, so numbers per cluster are drawn, and no masks.
        draws = generator.multivariate_hypergeometric(sizes, int(row.sum()), size=permutations)
        counts = np.bincount(group, weights=row, minlength=len(sizes)).astype(np.int64)
        found.append(_concentrated(layer, counts, draws, len(row)))
        held.append(counts)
        drawn.append(draws)
    whole = _concentrated(None, np.concatenate(held), np.concatenate(drawn, axis=1), rows.size)
    return Concentration((*found, whole), permutations)


def _concentrated(
    layer: int | None, counts: Int64[ndarray, " cluster"], draws: Int64[ndarray, "draw cluster"], neurons: int
) -> Concentrated:
    selected, clusters = int(counts.sum()), len(counts)
    if selected in (0, neurons):
        note = f"{'all neurons are' if selected else 'nothing is'} selected"
        return Concentrated(layer, selected, clusters, NAN, NAN, NAN, NAN, NAN, NAN, NAN, note)
    (observed,), chance = area(counts[None]), area(draws)
    mean, sd = float(chance.mean()), float(chance.std())
    low, high = np.quantile(chance, [0.025, 0.975])
    # Equal areas differ in their last bits.
    if np.ptp(chance) < 1e-12:
        z, p, note = NAN, NAN, "every draw has the same area"
    else:
        z = (float(observed) - mean) / sd
        p, note = float((1 + (chance >= observed - 1e-12).sum()) / (1 + len(chance))), ""
    return Concentrated(layer, selected, clusters, float(observed), mean, sd, float(low), float(high), z, p, note)


def area(counts: Int64[ndarray, "mask cluster"]) -> Float64[ndarray, " mask"]:
    """Σ_{i<m} y_i / (m·y_m) of masks that take equally many neurons, at least one.

    >>> area(np.array([[2, 1, 1, 0], [4, 0, 0, 0]])).tolist()
    [0.5625, 0.75]
    """
    most = min(int(counts[0].sum()), counts.shape[1])
    fullest = -np.sort(-counts, axis=1)[:, :most].cumsum(1)
    return fullest[:, :-1].sum(1) / (most * fullest[:, -1])  # type: ignore[no-any-return]


def _grouped(
    labels: Clusters | Int64[Tensor, "layer dim"], mask: Any
) -> tuple[list[Int64[ndarray, " dim"]], tuple[int, ...], Bool[ndarray, "layer dim"]]:
    """Every layer's clusters, numbered from 0; the layers; and which of their neurons are selected."""
    if isinstance(labels, Clusters):
        table, layers, shape = labels.labels, labels.layers, Site.MLP.shape(labels.source)
    else:
        table = _table(labels)
        layers, shape = tuple(range(len(table))), (len(table), 1, table.shape[1])
    given = as_mask(mask, shape, site=Site.MLP)
    if tuple(given.shape) != shape:
        raise MismatchError(f"the mask has shape {tuple(given.shape)}; these clusters are of neurons {shape}.")
    groups = [np.unique(row, return_inverse=True)[1] for row in table.cpu().numpy()]
    return groups, layers, given[list(layers), 0].cpu().numpy()


def _table(labels: Any) -> Int64[Tensor, "layer dim"]:
    try:
        table = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        table = torch.empty(0)
    if table.ndim != 2 or not table.numel() or table.is_floating_point() or table.is_complex():
        got = f"{table.dtype} of shape {tuple(table.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise MismatchError(f"labels are whole numbers [layer dim], or Clusters; got {got}.")
    return table.long()


def _count(name: str, given: Any, least: int) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        number = least - 1
    if isinstance(given, bool) or number < least:
        raise MismatchError(f"{name}={given!r:.60} is not possible; give a whole number from {least}.")
    return number


# ---------------------------------------------------------------------- masks and masks


@dataclass(frozen=True)
class Shared:
    """What two masks have in common.

    Attributes:
        first: a mask's name.
        second: another's.
        shared: how many neurons are in both.
        smaller: how many the smaller mask takes.
        overlap: shared / smaller; 1 where one mask holds the other.
        fraction: what random neurons of the whole model would give: the share that the larger mask takes.
        chance: what as many random neurons of every layer would give.
        low: where the middle 95 % of what these give begin.
        high: where they end.
        corrected: (overlap − chance) / (1 − chance): 0 at chance, 1 where one mask holds the other.
        z: how many of chance's standard deviations the overlap is above it.
        p: how probable it is that random neurons share as many.
        note: why a number is missing; empty if none is.
    """

    first: str
    second: str
    shared: int
    smaller: int
    overlap: float
    fraction: float
    chance: float
    low: float
    high: float
    corrected: float
    z: float
    p: float
    note: str = ""


@dataclass(frozen=True, repr=False)
class Overlap:
    """What every two of several masks have in common; `frame` has a row per pair, `matrix` all of them.

    Attributes:
        names: of the masks.
        rows: a row per pair.
    """

    names: tuple[str, ...]
    rows: tuple[Shared, ...]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The rows as a table."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])

    @property
    def matrix(self) -> "pandas.DataFrame":
        """The overlap of every mask with every other; 1 with itself."""
        return self.of("overlap", itself=1.0)

    def of(self, field: str, *, itself: float = NAN) -> "pandas.DataFrame":
        """Any number of the rows as a matrix, such as "corrected" or "chance"."""
        import pandas

        if field not in Shared.__dataclass_fields__ or field in ("first", "second", "note"):
            numbers = [name for name in Shared.__dataclass_fields__ if name not in ("first", "second", "note")]
            raise MismatchError(f"there is no number {field!r:.60} of an overlap; known: {', '.join(numbers)}.")
        count = len(self.names)
        values = np.full((count, count), NAN)
        np.fill_diagonal(values, itself)
        for row in self.rows:
            one, other = self.names.index(row.first), self.names.index(row.second)
            values[one, other] = values[other, one] = getattr(row, field)
        return pandas.DataFrame(values, index=list(self.names), columns=list(self.names))

    def __repr__(self) -> str:
        width = max((len(on_one_line(name)) for name in self.names), default=0)
        lines = ["Overlap of masks: the share of the smaller one, and what as many random neurons of every layer give"]
        for row in self.rows:
            names = f"{on_one_line(row.first):<{width}} {on_one_line(row.second):<{width}}"
            told = f"by chance {row.chance:.3f} ({row.low:.3f} to {row.high:.3f}), z = {row.z:.1f}"
            lines.append(f"  {names} {row.overlap:>6.3f} {told}{f'; {row.note}' if row.note else ''}")
        return "\n".join([*lines, self.told])

    @property
    def told(self) -> str:
        """What was found, in a sentence."""
        known = [row for row in self.rows if not math.isnan(row.corrected)]
        if not known:
            return "Nothing can be said of these masks."
        above, below = (sum(beyond(row) for row in known) for beyond in (_is_above, _is_below))
        overlap, chance, corrected = (
            np.mean([getattr(row, name) for row in known]) for name in ("overlap", "chance", "corrected")
        )
        return (
            f"Of {len(known)} pairs {above} share more than random neurons and {below} less; the mean overlap is "
            f"{overlap:.3f}, by chance {chance:.3f}, corrected {corrected:+.3f}."
        )


def overlap(masks: Mapping[str, Any]) -> Overlap:
    """How many neurons every two masks share, beside what chance gives.

    The overlap is |A∩B| / min(|A|, |B|), so that it has no direction. Chance is exact: of random neurons, as many in
    every layer as the masks take there, the number that is shared has a hypergeometric distribution in each layer, and
    their sum is that of all.

    Args:
        masks: name → mask `[layer head dim]`, all of one model and site.

    >>> one = torch.tensor([[[True, True, False, False, False, False, False, False]]])
    >>> found = overlap({"code": one, "prose": one.roll(1)}).rows[0]
    >>> found.shared, found.overlap, found.chance, round(found.corrected, 3)
    (1, 0.5, 0.25, 0.333)
    """
    if not isinstance(masks, Mapping) or len(masks) < 2:
        raise MismatchError("overlap compares masks with each other; give two or more, as name → mask.")
    names = tuple(masks)
    if not all(isinstance(name, str) for name in names):
        raise MismatchError(f"masks are named by text; got {[name for name in names if not isinstance(name, str)]}.")
    # Names of neurons would need a shape, and nothing but masks gives one here.
    given = [_given(name, mask) for name, mask in masks.items()]
    if len({tuple(mask.shape) for mask in given}) > 1:
        shapes = ", ".join(f"{name} {tuple(mask.shape)}" for name, mask in zip(names, given, strict=True))
        raise MismatchError(f"masks are of different shapes ({shapes}); compare those of one model and site.")
    rows = np.stack([mask.flatten(1).cpu().numpy() for mask in given])
    pairs = itertools.combinations(range(len(names)), 2)
    return Overlap(names, tuple(_shared(names[a], names[b], rows[a], rows[b]) for a, b in pairs))


def _given(name: str, mask: Any) -> Bool[Tensor, "layer head dim"]:
    if not isinstance(mask, Tensor | ndarray):
        raise MismatchError(
            f"the mask {name!r:.60} is a {type(mask).__name__}; give a boolean tensor [layer head dim]."
        )
    return as_mask(mask, ())


def _is_above(row: Shared) -> bool:
    return row.overlap > row.high


def _is_below(row: Shared) -> bool:
    return row.overlap < row.low


def _shared(
    first: str, second: str, one: Bool[ndarray, "layer neuron"], other: Bool[ndarray, "layer neuron"]
) -> Shared:
    shared, smaller = int((one & other).sum()), int(min(one.sum(), other.sum()))
    larger, neurons = int(max(one.sum(), other.sum())), one.size
    if not smaller:
        note = "a mask takes nothing"
        return Shared(first, second, 0, 0, NAN, larger / neurons, NAN, NAN, NAN, NAN, NAN, NAN, note)
    mine, theirs, wide = one.sum(1), other.sum(1), one.shape[1]
    mean = float((mine * theirs / wide).sum())
    variance = mine * theirs * ((wide - mine) / wide) * ((wide - theirs) / max(wide - 1, 1)) / wide
    # None where in every layer a mask takes nothing, or everything.
    sd = math.sqrt(float(variance.sum()))
    law = _law(mine, theirs, wide)
    cumulated = law.cumsum()
    low, high = (int(np.searchsorted(cumulated, share)) for share in (0.025, 0.975))
    chance = mean / smaller
    return Shared(
        first,
        second,
        shared,
        smaller,
        shared / smaller,
        larger / neurons,
        chance,
        low / smaller,
        high / smaller,
        NAN if 1 - chance < 1e-12 else (shared / smaller - chance) / (1 - chance),
        (shared - mean) / sd if sd else NAN,
        min(float(law[shared:].sum()), 1.0) if sd else NAN,
        "" if sd else "masks of these sizes always share as many",
    )


def _law(one: Int64[ndarray, " layer"], other: Int64[ndarray, " layer"], neurons: int) -> Float64[ndarray, " number"]:
    """How probable every number of shared neurons is."""
    law = np.ones(1)
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        law = np.convolve(law, list(_hypergeometric(a, b, neurons)))
    return law / law.sum()  # type: ignore[no-any-return]


def _hypergeometric(a: int, b: int, neurons: int) -> Iterator[float]:
    """Of b neurons, how many are among a."""
    whole = _log_choose(neurons, b)
    for shared in range(min(a, b) + 1):
        rest = b - shared
        possible = rest <= neurons - a
        yield math.exp(_log_choose(a, shared) + _log_choose(neurons - a, rest) - whole) if possible else 0.0


def _log_choose(total: int, taken: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(taken + 1) - math.lgamma(total - taken + 1)

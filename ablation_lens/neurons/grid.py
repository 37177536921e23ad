"""Dyadic grids: bins of width 2^k on the multiples of 2^k, exact arithmetic on them, and counting into them.

Bin `j` of a neuron is `[(offset + j) * 2**exponent, (offset + j + 1) * 2**exponent)`. Scaling by a power
of two is exact, so no value ever lands in a neighbour's bin, whatever the order or the device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ablation_lens.neurons.rows import Rows, Scratch

RESOLUTIONS = {
    torch.float64: (52, -1074),
    torch.float32: (23, -149),
    torch.bfloat16: (7, -133),
    torch.float16: (10, -24),
}
"""dtype → (bits after the leading one, exponent of its smallest number)."""


def power_of_two(exponent: Int64[Tensor, "*neurons"]) -> Float[Tensor, "*neurons"]:
    """`2.0**exponent` for exponents of normal float64 numbers, exact by construction (`pow` need not be).

    >>> power_of_two(torch.tensor([-3, 10])).tolist()
    [0.125, 1024.0]
    """
    # The bits of a float64: 1023 is the exponent's bias, 52 the width of the mantissa, which stays 0.
    return ((exponent + 1023) << 52).view(torch.float64)


def width_of(exponent: Int64[Tensor, "*neurons"]) -> Float[Tensor, "*neurons"]:
    """`2.0**exponent` for any exponent of float64 numbers, exact.

    >>> width_of(torch.tensor([-1074, 1])).tolist()
    [5e-324, 2.0]
    """
    half = exponent >> 1
    return power_of_two(half) * power_of_two(exponent - half)


def scale_by(values: Float[Tensor, "*any"], exponent: Int64[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """`values * 2.0**exponent` in float64, in two steps because `2.0**1074` does not exist.

    >>> scale_by(torch.tensor([3.0]), torch.tensor([-1074])).tolist()
    [1.5e-323]
    """
    half = exponent >> 1
    return values.double() * power_of_two(half) * power_of_two(exponent - half)


def scaled_floor(values: Float[Tensor, "*any"], exponent: Int64[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """`floor(values * 2**-exponent)` in float64: the grid cell every value lies in.

    >>> scaled_floor(torch.tensor([0.75, -1e-300], dtype=torch.float64), torch.tensor([-2, 1000])).tolist()
    [3.0, -1.0]
    """
    return floor_keeping_sign(scale_by(values, -exponent), values)


def floor_keeping_sign(scaled: Float[Tensor, "*any"], values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Floor in place; a negative value that underflowed to -0.0 when scaled down still lies below 0."""
    scaled.floor_()
    return torch.where(values < 0, scaled.clamp(max=-1), scaled)


@dataclass(frozen=True)
class Grid:
    """Where the bins of some neurons lie: width `2**exponent`, the first one starting at `offset` widths."""

    exponent: Int64[Tensor, "*neurons"]
    offset: Int64[Tensor, "*neurons"]

    @classmethod
    def fitting(
        cls,
        minimum: Float[Tensor, "*neurons"],
        maximum: Float[Tensor, "*neurons"],
        bins: int,
        resolution: torch.dtype,
    ) -> "Grid":
        """The finest grid on which `[minimum, maximum]` fits in `bins` bins: a function of the range alone.

        It is no finer than the spacing of `resolution` at the largest magnitude: finer bins would show the
        comb of representable numbers. Neurons without values (`minimum > maximum`) get `0, 0`.

        >>> grid = Grid.fitting(torch.tensor([-1.0]), torch.tensor([1.0]), 256, torch.float32)
        >>> grid.exponent.item(), grid.offset.item()
        (-6, -64)
        """
        empty = minimum > maximum
        # An empty range is [inf, -inf]; its floor cannot become an integer.
        ends = torch.stack([minimum, maximum]).double().masked_fill_(empty, 0)
        digits, smallest = RESOLUTIONS[resolution]
        largest = ends.abs().amax(0)
        exponent = (torch.frexp(largest).exponent.long() - 1 - digits).clamp_(min=smallest)
        exponent.masked_fill_(largest == 0, smallest)
        # Half the range, because the range itself may overflow. In [2**(e - 1), 2**e), it needs bins wider than
        # 2**e / bins; exactly 2**(e - 1) may have been rounded up to that.
        mantissa, e = torch.frexp(ends[1] * 0.5 - ends[0] * 0.5)
        least = e.long() + 1 - math.ceil(math.log2(bins)) - (mantissa == 0.5).long()
        exponent = torch.where(mantissa > 0, torch.maximum(exponent, least), exponent)
        # A range that is not aligned touches one bin more than its width needs, so a few neurons take another step or
        # two. Whether any does is not asked: that would wait for an accelerator. Two suffice: a range r bins wide has
        # last - first <= ceil(r), and bins > 2**(c - 1), where c = ceil(log2(bins)). At the least exponent r < 2**c;
        # one step later ceil(r) <= 2**(c - 1) < bins. Where half the range was rounded to a power of two, or is
        # subnormal, r <= 1.5 * 2**c; two steps later it is 0.375 * 2**c, and its ceiling 2**(c - 1) at most.
        steps = torch.arange(3, device=exponent.device).view(-1, *[1] * exponent.ndim)
        first, last = torch.floor_divide(ends.unsqueeze(1), width_of(exponent + steps))
        # What fits a grid fits the coarser ones. Never a third step, also of NaN: to gather from a place that does not
        # exist would break the device for the whole process.
        taken = (last - first >= bins)[:2].sum(0)
        exponent, first = exponent + taken, first.gather(0, taken.unsqueeze(0)).squeeze(0)
        # Exact: no end is farther out than 2^53 bins, as no bin is finer than the spacing of the resolution there.
        return cls(exponent.masked_fill(empty, 0), first.long().masked_fill(empty, 0))

    def __getitem__(self, which: Int64[Tensor, " chosen"]) -> "Grid":
        return Grid(self.exponent[which], self.offset[which])

    def equals(self, other: "Grid") -> bool:
        """Whether all bins of both are the same.

        >>> Grid(torch.tensor([0]), torch.tensor([1])).equals(Grid(torch.tensor([0]), torch.tensor([2])))
        False
        """
        return torch.equal(self.exponent, other.exponent) and torch.equal(self.offset, other.offset)

    def below_zero(self, counts: Int64[Tensor, "*neurons bin"]) -> Int64[Tensor, "*neurons"]:
        """How many of the counted values are negative: every grid has an edge at 0, and 0 is in the bin above it.

        >>> Grid(torch.tensor([3]), torch.tensor([-2])).below_zero(torch.tensor([[1, 2, 4]]))
        tensor([3])
        """
        return self.below_zero_of(counts.cumsum(-1))

    def below_zero_of(self, cumulative: Int64[Tensor, "*neurons bin"]) -> Int64[Tensor, "*neurons"]:
        """`below_zero`, where the counts are added up already."""
        # So many bins lie below 0: as many as the first one is away from it.
        bins = -self.offset.clamp(-cumulative.shape[-1], 0)
        held = cumulative.gather(-1, (bins - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return held.masked_fill(bins == 0, 0)

    def without(
        self, counts: Int64[Tensor, "*neurons bin"], zeros: Int64[Tensor, "*neurons"]
    ) -> Int64[Tensor, "*neurons bin"]:
        """The counts less so many values that are exactly 0.

        >>> Grid(torch.tensor([3]), torch.tensor([-2])).without(torch.tensor([[1, 2, 4]]), torch.tensor([3]))
        tensor([[1, 2, 1]])
        """
        # Without zeros, the bin that begins at 0 may be outside the grid.
        place = (-self.offset).clamp(0, counts.shape[-1] - 1)
        return counts.scatter_add(-1, place.unsqueeze(-1), -zeros.unsqueeze(-1))

    def rebin(
        self, counts: Int64[Tensor, "*neurons bin"], coarser: "Grid", bins: int
    ) -> Int64[Tensor, "*neurons wanted"]:
        """The same counts on a grid at least as coarse that covers them: neighbours merge, nothing is split.

        >>> fine = Grid(torch.tensor([0]), torch.tensor([-1]))
        >>> fine.rebin(torch.tensor([[1, 2, 3, 4]]), Grid(torch.tensor([1]), torch.tensor([-1])), 3)
        tensor([[1, 5, 4]])
        """
        # Cells are below 2^54, so 62 leaves 0 or -1 already; a shift by 64 or more is undefined in C++, as is one by
        # less than 0, which the grids of neurons without counts may ask for.
        shift = (coarser.exponent - self.exponent).clamp(0, 62)
        cell = self.offset.unsqueeze(-1) + torch.arange(counts.shape[-1], device=counts.device)
        # Bins outside the new grid are empty, wherever their (clamped) cell seems to lie.
        index = cell.bitwise_right_shift_(shift.unsqueeze(-1)).sub_(coarser.offset.unsqueeze(-1)).clamp_(0, bins - 1)
        return counts.new_zeros(*counts.shape[:-1], bins).scatter_add_(-1, index, counts)


# ---------------------------------------------------------------------- reading counts


def value_at(
    counts: Int64[Tensor, "*neurons bin"],
    grid: Grid,
    zeros: Int64[Tensor, "*neurons"],
    index: Int64[Tensor, "*neurons q"],
) -> Float[Tensor, "*neurons q"]:
    """The `index`-th smallest of the counted values (from 0), supposing that a bin's values lie evenly in it.

    `zeros` of them are known to be exactly 0.

    >>> grid = Grid(torch.tensor([0]), torch.tensor([-1]))
    >>> value_at(torch.tensor([[1, 2]]), grid, torch.tensor([0]), torch.tensor([[0, 1, 2]])).tolist()
    [[-0.5, 0.25, 0.75]]
    >>> value_at(torch.tensor([[1, 2]]), grid, torch.tensor([1]), torch.tensor([[0, 1, 2]])).tolist()
    [[-0.5, 0.0, 0.75]]
    """
    cumulative = counts.cumsum(-1)
    # right=True passes empty bins over: `count` is 0 only where nothing was counted at all.
    place = torch.searchsorted(cumulative, index, right=True).clamp(max=counts.shape[-1] - 1)
    count = counts.gather(-1, place)
    share = (index - (cumulative.gather(-1, place) - count) + 0.5) / count
    values = scale_by((grid.offset.unsqueeze(-1) + place).double() + share, grid.exponent.unsqueeze(-1))
    above = index - grid.below_zero_of(cumulative).unsqueeze(-1)
    return values.masked_fill((above >= 0) & (above < zeros.unsqueeze(-1)), 0.0)


def quantiles(
    wanted: Float[Tensor, " q"],
    total: Int64[Tensor, "*neurons"],
    ordered: Callable[[Int64[Tensor, "*neurons q"]], Float[Tensor, "*neurons q"]],
) -> Float[Tensor, "q *neurons"]:
    """NumPy's linear interpolation between the ordered values; `ordered(index)` gives those. NaN without any.

    >>> quantiles(torch.tensor([0.0, 0.25]), torch.tensor([3]), lambda index: 10.0 * index).tolist()
    [[0.0], [5.0]]
    """
    last = total.unsqueeze(-1) - 1
    rank = wanted * last.clamp(min=0)
    below = rank.floor()
    weight = rank - below
    first = below.long()
    # Both in one call, which adds up the counts once.
    low, high = ordered(torch.cat([first, torch.minimum(first + 1, last.clamp(min=0))], -1)).chunk(2, -1)
    # Where the weight is 0, `high` must not matter: beyond a trimmed range it is NaN, and 0 times NaN is NaN.
    values = torch.where(weight > 0, low + (high - low) * weight, low)
    return values.masked_fill(last < 0, torch.nan).movedim(-1, 0)


# ---------------------------------------------------------------------- counting

HISTC_BINS, HISTC_VALUES = 2**22, 2**24
"""Beyond these, float32 `torch.histc` miscounts (it rounds positions) and saturates (it adds ones)."""


class Binning(Protocol):
    """A grid in the form the counting loop wants.

    With `within`, only values between those ends have bins: they start at 1, bin 0 takes what lies below, and
    bin `bins + 1` what lies above.
    """

    values: torch.dtype
    dtype: torch.dtype

    def index(
        self, values: Float[Tensor, "neuron token"], which: slice, out: Float[Tensor, "neuron token"]
    ) -> Float[Tensor, "neuron token"]:
        """The bin of every value of the neurons `which`, as a whole float, written to `out`, which is of `dtype`."""


class Scaling:
    """What to multiply by, what to subtract: few instructions, after a look at the grid.

    Float32 arithmetic is exact here: the grid is no finer than float32's spacing, so a scaled value is below
    2**24, scaling it up by a power of two does not round, and neither does the difference of two such integers.
    Scaling down can underflow and lose a sign, so bins wider than 1 take float64; as do float64 values or grids.
    """

    def __init__(
        self,
        grid: Grid,
        bins: int,
        values: torch.dtype,
        resolution: torch.dtype,
        *,
        within: tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]] | None = None,
    ) -> None:
        self.values = values
        self._bins = bins
        self._within = None if within is None else [end.unsqueeze(-1) for end in _ends_as(values, *within)]
        exponent = grid.exponent
        narrow = values != torch.float64
        # 2^126 is a float32, and 2^149 is not: bins finer than 2^-126 need float64 scales.
        easy = narrow and resolution != torch.float64 and bool(((exponent >= -126) & (exponent <= 0)).all())
        self.dtype = torch.float32 if easy else torch.float64
        # A narrower value scaled in float64 stays far from underflow; a float64 needs a second look at its sign.
        self._signs = not narrow and bool((exponent > 0).any())
        half = -exponent >> 1
        # Beyond 2^±1022 a factor may not be a normal float64, so those take two.
        one_step = bool((exponent.abs() <= 1022).all())
        steps = [power_of_two(-exponent)] if one_step else [power_of_two(half), power_of_two(-exponent - half)]
        self._scales = [step.to(self.dtype).unsqueeze(-1) for step in steps]
        self._offset = grid.offset.to(self.dtype).unsqueeze(-1)

    def index(
        self, values: Float[Tensor, "neuron token"], which: slice, out: Float[Tensor, "neuron token"]
    ) -> Float[Tensor, "neuron token"]:
        """See `Binning`."""
        if values.dtype == out.dtype:
            torch.mul(values, self._scales[0][which], out=out)
        else:
            out.copy_(values).mul_(self._scales[0][which])
        for scale in self._scales[1:]:
            out.mul_(scale[which])
        if self._signs:
            out.copy_(floor_keeping_sign(out, values))
        else:
            out.floor_()
        out.sub_(self._offset[which])
        if self._within is not None:
            low, high = self._within
            # The values decide, not their bins: an end may lie inside a bin.
            out.masked_fill_(values < low[which], -1).masked_fill_(values > high[which], self._bins).add_(1)
        return out


class Division:
    """What to divide by, what to subtract: one way for every grid, so that an accelerator is asked nothing.

    The quotient is floored in float64, in the kernel that divides, and stored after that. Dividing by a power of two
    rounds nothing there, and a floored quotient keeps the sign of a value, however small it is.
    """

    def __init__(
        self,
        grid: Grid,
        bins: int,
        values: torch.dtype,
        resolution: torch.dtype,
        *,
        within: tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]] | None = None,
    ) -> None:
        self.values = values
        # Below 2^24, unless values or grid have digits of float64.
        self.dtype = torch.float64 if torch.float64 in (values, resolution) else torch.float32
        self._bins = bins
        self._width = width_of(grid.exponent).unsqueeze(-1)
        self._offset = grid.offset.double().unsqueeze(-1)
        self._within = None if within is None else [end.unsqueeze(-1) for end in within]

    def index(
        self, values: Float[Tensor, "neuron token"], which: slice, out: Float[Tensor, "neuron token"]
    ) -> Float[Tensor, "neuron token"]:
        """See `Binning`."""
        torch.floor_divide(values, self._width[which], out=out).sub_(self._offset[which])
        if self._within is not None:
            low, high = self._within
            out.masked_fill_(values < low[which], -1).masked_fill_(values > high[which], self._bins).add_(1)
        return out


def binning_of(
    rows: Rows,
    grid: Grid,
    bins: int,
    resolution: torch.dtype,
    *,
    within: tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]] | None = None,
) -> Binning:
    """How values that lie as these do are put into bins."""
    return (Scaling if rows.turned else Division)(grid, bins, rows.dtype, resolution, within=within)


def _ends_as(
    dtype: torch.dtype, low: Float[Tensor, " neuron"], high: Float[Tensor, " neuron"]
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """The smallest and largest number of a float32 or float64 between two ends, to compare values with."""
    if dtype == torch.float64:
        return low, high
    low32, high32 = low.float(), high.float()
    return (
        torch.where(low32 < low, low32.nextafter(torch.full_like(low32, torch.inf)), low32),
        torch.where(high32 > high, high32.nextafter(torch.full_like(high32, -torch.inf)), high32),
    )


class Counter:
    """Adds values to counts."""

    def __init__(self) -> None:
        self._scratch = Scratch()

    def add(self, counts: Int64[Tensor, "neuron bin"], rows: Rows, binning: Binning) -> Int64[Tensor, " neuron"]:
        """Count every value of `rows` into `counts`, in place; returns how many of each neuron are above 0.

        Rows that are turned round: `scatter_add_` counts straight into the int64 counts, in parallel over neurons, each
        of whose counts stay in cache. Others: batched `histc`.
        """
        bins = counts.shape[1]
        positive = torch.zeros(rows.neurons, dtype=torch.int64, device=rows.device)
        # Float32 is summed faster than booleans. An accelerator widens bfloat16 as it reads it.
        flag = torch.float32 if rows.turned else torch.bfloat16
        for which, values in rows.blocks(at_most=None if rows.turned else max(1, HISTC_BINS // bins)):
            index = binning.index(values, which, self._scratch.like(values, binning.dtype))
            if rows.turned:
                # `which` is a slice, so `counts[which]` is a view. The source is a single 1, expanded without memory:
                # scatter_add_ wants one as large as the index.
                target = self._scratch.like(values, torch.int64).copy_(index)
                counts[which].scatter_add_(1, target, target.new_ones(()).expand_as(target))
            else:
                counts[which] += histc_counts(index.float(), bins)
            # Exact, as a piece has at most 2^24 values.
            above = torch.gt(values, 0, out=self._scratch.like(values, flag))
            positive[which] += above.sum(1, dtype=torch.float32).long()
        return positive


def histc_counts(
    index: Float[Tensor, "neuron token"], bins: int, *, most_bins: int = HISTC_BINS, most_values: int = HISTC_VALUES
) -> Int64[Tensor, "neuron bin"]:
    """Count whole bin indices below `bins` for many neurons with one `torch.histc` per call, on any device.

    >>> histc_counts(torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 0.0]]), 3)
    tensor([[1, 2, 0],
            [1, 0, 2]])
    """
    neurons, tokens = index.shape
    counts = torch.zeros(neurons, bins, dtype=torch.int64, device=index.device)
    width = max(1, most_bins // bins)
    for start in range(0, neurons, width):
        block = index[start : start + width]
        size = len(block) * bins
        # Half a bin off the edges, where rounding cannot move a value across.
        middle = torch.arange(len(block), device=index.device, dtype=torch.float32) * bins + 0.5
        for first in range(0, tokens, most_values - 1):
            shifted = block[:, first : first + most_values - 1] + middle[:, None]
            shifted = (shifted if shifted.is_contiguous() else shifted.T).flatten()  # in the order of memory
            if torch.are_deterministic_algorithms_enabled():  # histc refuses on CUDA then, although counts are exact
                # Unlike histc, it does not leave out what is no bin, as where NaN is only found later.
                counted = torch.bincount(shifted.nan_to_num(0.0).clamp(0, size - 1).long(), minlength=size)
            else:
                counted = torch.histc(shifted, size, 0, size).long()
            counts[start : start + width] += counted.view(-1, bins)
    return counts

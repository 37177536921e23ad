"""The arithmetic below `NeuronHistogram`: dyadic grids, and counting values into their bins, exactly.

Bin `j` of a neuron is `[(offset + j) * 2**exponent, (offset + j + 1) * 2**exponent)`. Scaling by a power
of two is exact, so no value ever lands in a neighbour's bin, whatever the order or the device.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError

RESOLUTIONS = {
    torch.float64: (52, -1074),
    torch.float32: (23, -149),
    torch.bfloat16: (7, -133),
    torch.float16: (10, -24),
}
"""dtype → (bits after the leading one, exponent of its smallest number)."""

HISTC_BINS, HISTC_VALUES = 2**22, 2**24
"""Beyond these, float32 `torch.histc` miscounts (it rounds positions) and saturates (it adds ones)."""

_PIECE, _PIECE_ON_ACCELERATOR = 2**21, 2**24
"""How many values are worked on at a time: memory stays bounded, however long the texts."""

_CACHED_ROWS, _CACHED_TILE = 512, 2**16
"""One thread works on tiles that stay in cache. Several do not: every step waits for the slowest of them, which
costs milliseconds on a busy machine, so they take few and large steps."""


def power_of_two(exponent: Int64[Tensor, "*neurons"]) -> Float[Tensor, "*neurons"]:
    """`2.0**exponent` for exponents of normal float64 numbers, exact by construction (`pow` need not be).

    >>> power_of_two(torch.tensor([-3, 10])).tolist()
    [0.125, 1024.0]
    """
    return ((exponent + 1023) << 52).view(torch.float64)


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
    return _floor_keeping_sign(scale_by(values, -exponent), values)


def _floor_keeping_sign(scaled: Float[Tensor, "*any"], values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
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
        low, high = minimum.double().masked_fill(empty, 0), maximum.double().masked_fill(empty, 0)
        digits, smallest = RESOLUTIONS[resolution]
        largest = torch.maximum(low.abs(), high.abs())
        exponent = (torch.frexp(largest).exponent.long() - 1 - digits).clamp(min=smallest)
        exponent = exponent.masked_fill(largest == 0, smallest)
        # Halves, because high - low may overflow. No exponent below `least` can fit, as width > range / bins;
        # one is taken off because the subtraction may have rounded up to a power of two.
        half_range = high * 0.5 - low * 0.5
        least = torch.frexp(half_range).exponent.long() - math.ceil(math.log2(bins)) - 1
        exponent = torch.where(half_range > 0, torch.maximum(exponent, least), exponent)
        while True:
            first = scaled_floor(low, exponent)
            too_fine = scaled_floor(high, exponent) - first >= bins
            if not too_fine.any():
                break
            exponent = exponent + too_fine.long()
        return cls(exponent.masked_fill(empty, 0), first.long().masked_fill(empty, 0))

    def __getitem__(self, which: Int64[Tensor, " chosen"]) -> "Grid":
        return Grid(self.exponent[which], self.offset[which])

    def equals(self, other: "Grid") -> bool:
        """Whether all bins of both are the same.

        >>> Grid(torch.tensor([0]), torch.tensor([1])).equals(Grid(torch.tensor([0]), torch.tensor([2])))
        False
        """
        return torch.equal(self.exponent, other.exponent) and torch.equal(self.offset, other.offset)

    def rebin(
        self, counts: Int64[Tensor, "*neurons bin"], coarser: "Grid", bins: int
    ) -> Int64[Tensor, "*neurons wanted"]:
        """The same counts on a grid at least as coarse that covers them: neighbours merge, nothing is split.

        >>> fine = Grid(torch.tensor([0]), torch.tensor([-1]))
        >>> fine.rebin(torch.tensor([[1, 2, 3, 4]]), Grid(torch.tensor([1]), torch.tensor([-1])), 3)
        tensor([[1, 5, 4]])
        """
        shift = (coarser.exponent - self.exponent).clamp(max=62)
        cell = self.offset.unsqueeze(-1) + torch.arange(counts.shape[-1], device=counts.device)
        # Bins outside the new grid are empty, wherever their (clamped) cell seems to lie.
        index = ((cell >> shift.unsqueeze(-1)) - coarser.offset.unsqueeze(-1)).clamp(0, bins - 1)
        return counts.new_zeros(*counts.shape[:-1], bins).scatter_add_(-1, index, counts)


class Rows:
    """One layer's activation as `[token neuron]` pieces of bounded size, positions that are not valid left out.

    >>> [tuple(piece.shape) for piece in Rows(torch.zeros(2, 3, 4, 8), torch.tensor([[True, False, True]] * 2))]
    [(4, 32)]
    """

    def __init__(self, values: Float[Tensor, "*batch head dim"], valid: Bool[Tensor, "*batch"] | None) -> None:
        if valid is not None and (valid.dtype != torch.bool or valid.shape != values.shape[:-2]):
            raise MismatchError(
                f"valid is {valid.dtype} {tuple(valid.shape)}; expected torch.bool {tuple(values.shape[:-2])}, "
                "one flag per position of the values."
            )
        self.neurons = values.shape[-2] * values.shape[-1]
        self.device = values.device
        self.dtype = values.dtype
        everywhere = valid is None or bool(valid.all())
        parts = _flat_parts(values, None if everywhere else valid)
        self._parts = [(part, None if mask is None else mask.nonzero().flatten()) for part, mask in parts]

    def __iter__(self) -> Iterator[Float[Tensor, "token neuron"]]:
        """Pieces of at most a few million values, so that memory does not grow with the number of tokens."""
        on_cpu = self.device.type == "cpu"
        step = max(1, (_PIECE if on_cpu else _PIECE_ON_ACCELERATOR) // self.neurons)
        if on_cpu and torch.get_num_threads() == 1:
            step = min(step, _CACHED_ROWS)
        for part, chosen in self._parts:
            for start in range(0, len(part) if chosen is None else len(chosen), step):
                stop = start + step
                piece = part[start:stop] if chosen is None else part.index_select(0, chosen[start:stop])
                yield piece.reshape(len(piece), self.neurons)

    def range(self) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
        """Smallest and largest value per neuron in float64, `inf, -inf` without values; NaN and Inf show up here."""
        low = torch.full((self.neurons,), torch.inf, dtype=torch.float64, device=self.device)
        high = -low
        for piece in self:
            low = torch.minimum(low, piece.amin(0).double())
            high = torch.maximum(high, piece.amax(0).double())
        return low + 0.0, high + 0.0  # -0.0 becomes 0.0, or the state would depend on the order of values


def _flat_parts(
    values: Float[Tensor, "*batch head dim"], valid: Bool[Tensor, "*batch"] | None
) -> list[tuple[Float[Tensor, "token head dim"], Bool[Tensor, " token"] | None]]:
    """Views with one token axis: usually one; one per text where texts do not lie behind each other in memory."""
    rows = values.shape[:-2].numel()
    try:
        return [(values.view(rows, *values.shape[-2:]), None if valid is None else valid.flatten())]
    except RuntimeError:
        if values.ndim != 4:
            return [(values.reshape(rows, *values.shape[-2:]), None if valid is None else valid.flatten())]
        return list(zip(values, [None] * len(values) if valid is None else valid, strict=True))


class Binning:
    """A layer's grid in the form the counting loop wants: what to multiply by, what to subtract.

    Float32 arithmetic is exact here: the grid is no finer than float32's spacing, so a scaled value is below
    2**24, scaling it up by a power of two does not round, and neither does the difference of two such integers.
    Scaling down can underflow and lose a sign, so bins wider than 1 take float64; as do float64 values or grids.

    With `within`, only values between those ends have bins: they start at 1, bin 0 takes what lies below, and
    bin `bins + 1` what lies above.
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
        self._within = None if within is None else _ends_as(values, *within)
        exponent = grid.exponent
        narrow = values != torch.float64
        easy = narrow and resolution != torch.float64 and bool(((exponent >= -126) & (exponent <= 0)).all())
        self.dtype = torch.float32 if easy else torch.float64
        # A narrower value scaled in float64 stays far from underflow; a float64 needs a second look at its sign.
        self._signs = not narrow and bool((exponent > 0).any())
        half = -exponent >> 1
        one_step = bool((exponent.abs() <= 1022).all())
        steps = [power_of_two(-exponent)] if one_step else [power_of_two(half), power_of_two(-exponent - half)]
        self._scales = [step.to(self.dtype) for step in steps]
        self._offset = grid.offset.to(self.dtype)

    def index(
        self, values: Float[Tensor, "token neuron"], columns: slice, out: Float[Tensor, "token neuron"]
    ) -> Float[Tensor, "token neuron"]:
        """The bin of every value as a whole float, written to `out`."""
        if values.dtype == out.dtype:
            torch.mul(values, self._scales[0][columns], out=out)
        else:
            out.copy_(values).mul_(self._scales[0][columns])
        for scale in self._scales[1:]:
            out.mul_(scale[columns])
        if self._signs:
            out.copy_(_floor_keeping_sign(out, values))
        else:
            out.floor_()
        out.sub_(self._offset[columns])
        if self._within is not None:
            low, high = self._within
            out.masked_fill_(values < low[columns], -1).masked_fill_(values > high[columns], self._bins).add_(1)
        return out


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
    """Adds values to counts. Keeps its scratch memory between calls, a few megabytes; that is no state."""

    def __init__(self) -> None:
        self._scratch: dict[torch.dtype, Tensor] = {}

    def add(self, counts: Int64[Tensor, "neuron bin"], rows: Rows, binning: Binning) -> None:
        """Count every value of `rows` into `counts`, in place.

        On a CPU, `scatter_add_` counts straight into the int64 counts, in parallel over neurons, at most 2048 of
        them at a time so that their counts stay in cache; an accelerator uses batched `histc`.
        """
        bins = counts.shape[1]
        on_cpu = counts.device.type == "cpu"
        tile = _CACHED_TILE if torch.get_num_threads() == 1 else _PIECE
        for piece in rows:
            tokens, neurons = piece.shape
            width = min(max(64, tile // tokens), 2048) if on_cpu else min(neurons, HISTC_BINS // bins)
            for start in range(0, neurons, width):
                columns = slice(start, min(start + width, neurons))
                block = piece[:, columns]
                index = binning.index(block, columns, self._take(binning.dtype, block))
                if on_cpu:
                    target = self._take(torch.int64, block).copy_(index)
                    counts[columns].T.scatter_add_(0, target, target.new_ones(()).expand_as(target))
                else:
                    counts[columns] += histc_counts(index.float(), bins)

    def _take(self, dtype: torch.dtype, like: Float[Tensor, "token neuron"]) -> Tensor:
        size = like.numel()
        held = self._scratch.get(dtype)
        if held is None or held.numel() < size or held.device != like.device:
            held = self._scratch[dtype] = torch.empty(size, dtype=dtype, device=like.device)
        return held[:size].view(like.shape)


def histc_counts(index: Float[Tensor, "token neuron"], bins: int) -> Int64[Tensor, "neuron bin"]:
    """Count whole bin indices below `bins` for many neurons with one `torch.histc` per call, on any device.

    >>> histc_counts(torch.tensor([[0.0, 2.0], [1.0, 2.0], [1.0, 0.0]]), 3)
    tensor([[1, 2, 0],
            [1, 0, 2]])
    """
    tokens, neurons = index.shape
    counts = torch.zeros(neurons, bins, dtype=torch.int64, device=index.device)
    width = max(1, HISTC_BINS // bins)
    for start in range(0, neurons, width):
        block = index[:, start : start + width]
        size = block.shape[1] * bins
        # Half a bin off the edges, where rounding cannot move a value across.
        middle = torch.arange(block.shape[1], device=index.device, dtype=torch.float32) * bins + 0.5
        for first in range(0, tokens, HISTC_VALUES - 1):
            shifted = (block[first : first + HISTC_VALUES - 1] + middle).flatten()
            if torch.are_deterministic_algorithms_enabled():  # histc refuses on CUDA then, although counts are exact
                counted = torch.bincount(shifted.long(), minlength=size)
            else:
                counted = torch.histc(shifted, size, 0, size).long()
            counts[start : start + width] += counted.view(-1, bins)
    return counts

"""Dyadic grids: bins of width 2^k on the multiples of 2^k, and exact arithmetic on them.

Bin `j` of a neuron is `[(offset + j) * 2**exponent, (offset + j + 1) * 2**exponent)`. Scaling by a power
of two is exact, so no value ever lands in a neighbour's bin, whatever the order or the device.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

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
        while True:
            first, last = scaled_floor(ends, exponent)
            too_fine = last - first >= bins
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

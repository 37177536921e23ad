"""Counts small enough for a web page: rounded to a few significant digits, deflated, layer by layer.

The page draws a neuron at several widths, each the neuron's own bins merged as `NeuronHistogram.coarsen` merges
them. Rounding never moves a peak: whatever the width, the fullest bin of the rounded counts is that of the exact
ones. A neuron for which seven binary digits do not give that is packed with more. At which widths more values are
exactly 0 than any bin has others is decided here, on the exact counts.
"""

import base64
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ablation_lens.neurons.grid import Grid
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.peaks import PEAK_BINS, zeros_lead

DISPLAY_BINS = PEAK_BINS
"""The finest width on the page: most bins per neuron, as in the `peak` center."""

FEWEST_DIGITS = 7
"""Binary digits a count keeps at least: it is then within 0.8 % of the exact one, and exact below 128."""


def slider_widths(bins: int) -> tuple[int, ...]:
    """The widths the page offers, most bins first: those of the histogram up to 128, then halves down to 8.

    >>> slider_widths(256), slider_widths(100), slider_widths(4)
    ((128, 64, 32, 16, 8), (100, 64, 32, 16, 8), (4,))
    """
    finest = min(bins, DISPLAY_BINS)
    return (finest, *(width for width in (64, 32, 16, 8) if width < finest))


def merge_shifts(
    counts: Int64[Tensor, "neuron bin"], offset: Int64[Tensor, " neuron"], width: int
) -> Int64[Tensor, " neuron"]:
    """How often neighbouring bins must merge until a neuron has at most `width` of them.

    Bins merge on the absolute grid, so it depends on where the first one lies. `width` is at least 2, as -1 and 0
    never share a bin.

    >>> merge_shifts(torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1]]), torch.tensor([0, -1]), 2).tolist()
    [1, 2]
    """
    # The right shifts below round negative cells down, as the bins of the grid merge; decode.js uses `Math.floor`.
    last = offset + (torch.arange(counts.shape[-1]) * (counts > 0)).amax(-1)
    shift = torch.zeros_like(offset)
    while (wide := (last >> shift) - (offset >> shift) >= width).any():
        shift += wide
    return shift


def zero_merges(
    counts: Int64[Tensor, "neuron bin"], offset: Int64[Tensor, " neuron"], zeros: Int64[Tensor, " neuron"]
) -> Int64[Tensor, " neuron"]:
    """How often neighbouring bins may merge until some bin has more values than are exactly 0: so long, 0 is the peak.

    >>> zero_merges(torch.tensor([[9, 2, 2, 1], [9, 2, 2, 1]]), torch.tensor([0, 0]), torch.tensor([3, 0])).tolist()
    [0, 0]
    >>> zero_merges(torch.tensor([[9, 2, 2, 1]]), torch.tensor([0]), torch.tensor([5])).tolist()
    [1]
    """
    merges = torch.zeros_like(offset)
    # Down to two bins, the fewest there are; a neuron that is 0 everywhere would never end. Wider bins are fuller, so
    # that zeros that no longer lead never do again.
    for shift in range(int(merge_shifts(counts, offset, 2).max()) + 1):
        coarser = Grid(torch.full_like(offset, shift), offset >> shift)
        merged = Grid(torch.zeros_like(offset), offset).rebin(counts, coarser, counts.shape[-1])
        merges += zeros_lead(merged, coarser, zeros)
    return merges


def pack_counts(
    counts: Int64[Tensor, "neuron bin"], offset: Int64[Tensor, " neuron"], widths: Sequence[int]
) -> tuple[Int64[Tensor, "neuron bin"], Int64[Tensor, " neuron"]]:
    """A code per count, and the binary digits every neuron's codes keep; `unpack_counts` is the inverse.

    >>> codes, digits = pack_counts(torch.tensor([[3, 1000, 100_000]]), torch.tensor([0]), [3])
    >>> unpack_counts(codes, digits).tolist()
    [[3, 1000, 100352]]
    """
    digits = torch.full_like(offset, FEWEST_DIGITS)
    codes = _encoded(counts, digits)
    shifts = torch.stack([merge_shifts(counts, offset, width) for width in widths])
    exact = _fullest(counts, offset, shifts)
    left = torch.arange(len(counts))
    # It ends: with enough digits no bit is dropped, and the counts are exact.
    while len(left):
        found = _fullest(unpack_counts(codes[left], digits[left]), offset[left], shifts[:, left])
        left = left[(found != exact[:, left]).any(0)]
        digits[left] += 1
        codes[left] = _encoded(counts[left], digits[left])
    return codes, digits


def unpack_counts(codes: Int64[Tensor, "neuron bin"], digits: Int64[Tensor, " neuron"]) -> Int64[Tensor, "neuron bin"]:
    """The rounded counts that the codes stand for; `decode.js` does the same."""
    half = (digits - 1).unsqueeze(-1)
    dropped = ((codes >> half) - 1).clamp(min=0)
    return (codes - (dropped << half)) << dropped


def _encoded(counts: Int64[Tensor, "neuron bin"], digits: Int64[Tensor, " neuron"]) -> Int64[Tensor, "neuron bin"]:
    """Small counts as they are; larger ones as their first digits and, in front of these, how many were dropped."""
    digits = digits.unsqueeze(-1)
    # The exponent of a whole number is its length in bits, and that of 0 is 0.
    dropped = (torch.frexp(counts.double()).exponent.long() - digits).clamp(min=0)
    # Half of the last kept digit is added; where nothing is dropped this is 0, not a half.
    rounded = (counts + ((1 << dropped) >> 1)) >> dropped
    return (dropped << (digits - 1)) + rounded  # rounding up to one digit more gives the next code: they count on


def _fullest(
    counts: Int64[Tensor, "neuron bin"], offset: Int64[Tensor, " neuron"], shifts: Int64[Tensor, "width neuron"]
) -> Int64[Tensor, "width neuron"]:
    """The fullest bin at every width, the lower of equals."""
    # Merging depends on the difference of exponents alone, so the finest may count as 0.
    fine = Grid(torch.zeros_like(offset), offset)
    merged = [fine.rebin(counts, Grid(shift, offset >> shift), counts.shape[-1]) for shift in shifts]
    return torch.stack([each.argmax(-1) for each in merged])


def display_histogram(histogram: NeuronHistogram) -> NeuronHistogram:
    """The histogram at the finest width of the page, on the CPU."""
    bins = min(histogram.bins, DISPLAY_BINS)
    return (histogram if histogram.bins == bins else histogram.coarsen(bins)).to("cpu")


# ---------------------------------------------------------------------- bytes


def byte_planes(values: NDArray[np.generic]) -> bytes:
    """First the lowest byte of every value, then the second …: alike bytes lie together, and deflate better.

    >>> byte_planes(np.array([1, 258], dtype="<u2"))
    b'\\x01\\x02\\x00\\x01'
    """
    return np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize).T).tobytes()


def code_planes(codes: Int64[Tensor, "neuron bin"]) -> tuple[bytes, int]:
    """The codes in as many byte planes as the largest needs, and how many these are."""
    planes = max(1, (int(codes.max()).bit_length() + 7) // 8)
    held = codes.numpy().astype("<u8").reshape(-1).view(np.uint8).reshape(-1, 8)
    return np.ascontiguousarray(held[:, :planes].T).tobytes(), planes


def deflate(data: bytes) -> str:
    """As text for a page: deflated (zlib), then base64.

    >>> deflate(b"")
    'eNoDAAAAAAE='
    """
    # With zlib's header: the browser's DecompressionStream calls that format "deflate", and the bare one "deflate-raw".
    # Level 9 takes six times as long, for a page that is one percent smaller.
    return base64.b64encode(zlib.compress(data, 7)).decode("ascii")

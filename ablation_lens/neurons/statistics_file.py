"""What a statistics file holds: its tensors by name, and the refusal of sums and counts that do not fit each other.

`histogram_file` knows a single histogram; what several parts must agree on is known here. A right checksum says that
nothing was damaged, not that a collection made it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from ablation_lens.errors import FileFormatError
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.histogram_file import (
    Flaws,
    HistogramHeader,
    histogram_from_file,
    require_none,
    require_tensors,
    to_file,
    trimmed_from_file,
    with_positive,
)
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.trimmed import TrimmedHistogram

_ROUNDING = 1e-9
"""How far a sum in float64 may be off, of the sum of its terms' sizes; far more than any order of adding gives."""


@dataclass(frozen=True, eq=False)
class Parts:
    """All that statistics hold but where they come from."""

    histogram: NeuronHistogram
    moments: Moments
    trimmed: TrimmedHistogram | None
    positions: Positions | None
    rows: Int64[Tensor, " digest"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By the names that they have in a file."""
        parts = {"histogram": to_file(self.histogram)[0], "moments": self.moments.state()}
        if self.trimmed is not None:
            parts["trimmed"] = to_file(self.trimmed)[0]
        if self.positions is not None:
            parts["position"] = {"sums": self.positions.sums, "counts": self.positions.counts}
        if self.rows is not None:
            parts["rows"] = {"digests": self.rows}
        return {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}


def read_parts(
    tensors: Mapping[str, Tensor], histogram: HistogramHeader, trimmed: HistogramHeader | None, tokens: int
) -> Parts:
    """The inverse of `Parts.tensors`; `FileFormatError` for what no collection over so many positions can have made."""
    parts: dict[str, dict[str, Tensor]] = {"histogram": {}, "moments": {}}
    parts |= {"trimmed": {}} if trimmed is not None else {}
    for full_name, tensor in tensors.items():
        part, _, name = full_name.partition(".")
        if part not in (*parts, "position", "rows"):
            raise FileFormatError(f"it holds a tensor {full_name!r}, of which its header says nothing.")
        parts.setdefault(part, {})[name] = tensor
    # Until version 2, how many values are above 0 was a sum like the others.
    old = "positive" in parts["moments"]
    if old:
        parts["histogram"]["positive"] = _whole_numbers(parts["moments"].pop("positive"))
    first = histogram_from_file(parts["histogram"], histogram.to_dict())
    second = None
    if trimmed is not None:
        if old:
            parts["trimmed"] = with_positive(parts["trimmed"], trimmed.to_dict(), first)
        second = trimmed_from_file(parts["trimmed"], trimmed.to_dict())
        _require_around(second, first)
    moments = _moments(parts["moments"], first, tokens)
    positions = _positions(parts["position"], first, tokens) if "position" in parts else None
    rows = _rows(parts["rows"], tokens) if "rows" in parts else None
    return Parts(first, moments, second, positions, rows)


def _whole_numbers(sums: Tensor) -> Tensor:
    if sums.dtype != torch.float64 or not torch.equal(sums, sums.round()):
        raise FileFormatError("its numbers of values above 0 are not whole.")
    return sums.long()


def _require_around(second: TrimmedHistogram, first: NeuronHistogram) -> None:
    if second.shape != first.shape:
        raise FileFormatError(f"its two passes are over neurons of shapes {first.shape} and {second.shape}.")
    outside = (second.inside.minimum < first.minimum) | (second.inside.maximum > first.maximum)
    uneven = second.total != first.total
    flaws = [("a range beyond that of the first pass", outside), ("more or fewer values than in the first", uneven)]
    require_none(iter(flaws), "second pass")


def _moments(tensors: Mapping[str, Tensor], histogram: NeuronHistogram, tokens: int) -> Moments:
    nothing = Moments(histogram.shape).state()
    require_tensors(tensors, {name: (part.dtype, tuple(part.shape)) for name, part in nothing.items()}, "its moments")
    counted = [*tensors["count"].tolist(), *histogram.total.flatten().unique().tolist()]
    if set(counted) != {tokens} or tokens < 1:
        raise FileFormatError(
            f"it is over {tokens:,} positions, and its neurons have seen {min(counted):,} to {max(counted):,} values."
        )
    require_none(_moment_flaws(tensors, histogram, tokens), "moments")
    return Moments.from_state(tensors, histogram.shape)


def _moment_flaws(held: Mapping[str, Tensor], histogram: NeuronHistogram, count: int) -> Flaws:
    low, high, pivot = histogram.minimum, histogram.maximum, held["pivot"]
    deviation, squares, absolute, root = (held[name] for name in ("deviation", "squared_deviation", "absolute", "root"))
    finite = torch.stack([pivot, deviation, squares, absolute, root]).isfinite().all(0)
    yield "sums that are not finite", ~finite
    # A value that was really seen: a constant neuron's sums of deviations are exactly 0.
    yield "a pivot outside its range", (pivot < low) | (pivot > high)
    below, above = low - pivot, high - pivot
    reach, largest = torch.maximum(-below, above), torch.maximum(low.abs(), high.abs())
    off = _ROUNDING * count * reach
    yield "a mean outside its range", (deviation < count * below - off) | (deviation > count * above + off)
    # Of all values between two ends that were both seen, those in the middle vary least, and those at the ends most.
    spread, width, off = squares - deviation.square() / count, high - low, off * reach
    least, most = width.square() / 2, count * width.square() / 4
    yield "a variance its range does not allow", (spread < least - off) | (spread > most + off) | (squares < 0)
    # Without this, what is allowed for rounding might pass for a neuron that never varies. Squares of widths that are
    # smaller yet may be too small for float64.
    yield "no variance, but more than one value", (spread <= 0) & (width > 1e-150)
    total, off = deviation + count * pivot, _ROUNDING * count * largest
    wrong = (absolute < total.abs() - off) | (absolute > count * largest + off) | (absolute < 0)
    yield "a mean size its range does not allow", wrong
    # √|x| ≥ |x| / √largest, and the mean of roots is at most the root of the mean.
    roots, off = (count * absolute).sqrt(), _ROUNDING * count * largest.sqrt()
    wrong = (root * largest.sqrt() < absolute - _ROUNDING * count * largest) | (root > roots + off) | (root < 0)
    yield "a mean root its range does not allow", wrong


def _positions(tensors: Mapping[str, Tensor], histogram: NeuronHistogram, tokens: int) -> Positions:
    layers, heads, dims = histogram.shape
    length = len(tensors["counts"]) if "counts" in tensors and tensors["counts"].ndim else 0
    kinds = {"sums": (torch.float64, (layers, length, heads, dims)), "counts": (torch.int64, (length,))}
    require_tensors(tensors, kinds, "its means per position")
    counts, sums = tensors["counts"], tensors["sums"]
    if (counts < 0).any() or counts.double().sum() != tokens:
        raise FileFormatError(f"it is over {tokens:,} positions, and its means per position are over others.")
    low, high = (end.unsqueeze(1) for end in (histogram.minimum, histogram.maximum))
    seen = counts.double().view(1, -1, 1, 1)
    off = _ROUNDING * seen * torch.maximum(low.abs(), high.abs())
    outside = ~((sums >= seen * low - off) & (sums <= seen * high + off))  # also where it is not a number
    require_none(iter([("a mean outside its range", outside.any(1))]), "means per position")
    return Positions(histogram.shape, sums, counts)


def _rows(tensors: Mapping[str, Tensor], tokens: int) -> Int64[Tensor, " digest"]:
    count = tensors["digests"].numel() if "digests" in tensors else 0
    require_tensors(tensors, {"digests": (torch.int64, (count,))}, "its rows")
    digests = tensors["digests"]
    # A row has a position, and is known in two ways at most.
    if not 0 < count <= 2 * tokens or bool((digests[1:] <= digests[:-1]).any()):
        raise FileFormatError(f"its {count:,} digests of rows are not those of different rows in {tokens:,} positions.")
    return digests

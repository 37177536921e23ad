"""What a file holds of a histogram: tensors and a header, and the refusal of contents that no collection produces."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ablation_lens.errors import FileFormatError
from ablation_lens.neurons.grid import Grid, scaled_floor
from ablation_lens.neurons.histogram import RESOLUTION_NAMES, NeuronHistogram, dtype_name
from ablation_lens.neurons.rows import own_memory
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.records import Record
from ablation_lens.sites import neuron_name


@dataclass(frozen=True)
class HistogramHeader(Record):
    """What a file says of a histogram before its numbers."""

    kind: str
    shape: tuple[int, int, int]
    bins: int
    resolution: str

    @classmethod
    def of(cls, histogram: NeuronHistogram | TrimmedHistogram) -> "HistogramHeader":
        """What its file says."""
        return cls(type(histogram).__name__, histogram.shape, histogram.bins, dtype_name(histogram.resolution))

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.shape) < 1:
            raise ValueError(f"its shape is {self.shape}, and (layer, head, dim) are three sizes")
        if not 2 <= self.bins <= 2**16:
            raise ValueError(f"it has {self.bins} bins, and a histogram has 2 to 65536")
        if self.resolution not in RESOLUTION_NAMES:
            raise ValueError(f"its resolution is {self.resolution!r}, and not one of {', '.join(RESOLUTION_NAMES)}")


def to_file(histogram: NeuronHistogram | TrimmedHistogram) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and a header of plain JSON values, for a safetensors file; `histogram_from_file` is the inverse.

    A trimmed histogram's counts have two bins more: what lies below the range is the first, what lies above the last.

    >>> tensors, header = to_file(NeuronHistogram((1, 2, 3), bins=8))
    >>> header
    {'kind': 'NeuronHistogram', 'shape': (1, 2, 3), 'bins': 8, 'resolution': 'float32'}
    """
    # `total` follows from the counts; kept beside them, it shows when they were changed.
    held = {name: tensor.clone() for name, tensor in _state(histogram).items()} | {"total": histogram.total}
    return held, HistogramHeader.of(histogram).to_dict()


def _state(histogram: NeuronHistogram | TrimmedHistogram) -> dict[str, Tensor]:
    if isinstance(histogram, NeuronHistogram):
        return histogram.tensors()
    state = histogram.inside.tensors()
    beyond = (histogram.underflow.unsqueeze(-1), histogram.overflow.unsqueeze(-1))
    return state | {"counts": torch.cat([beyond[0], state["counts"], beyond[1]], -1)}


def histogram_from_file(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], device: torch.device | str = "cpu"
) -> NeuronHistogram:
    """A histogram from what `to_file` gave; contents that no collection can have produced are refused.

    >>> histogram = NeuronHistogram((1, 1, 1))
    >>> histogram.update(torch.ones(5, 1, 1, 1))
    >>> histogram_from_file(*to_file(histogram)).total.item()
    5
    """
    known = _header("NeuronHistogram", header)
    held = _checked(known, tensors, device, _histogram_flaws)
    with own_memory():
        resolution = RESOLUTION_NAMES[known.resolution]
        histogram = NeuronHistogram(known.shape, known.bins, resolution=resolution, device=device)
        # Copied in: the tensors of a file may have been made in inference mode, and could not be updated later.
        for name, state in histogram.tensors().items():
            state.copy_(held[name])
    return histogram


def trimmed_from_file(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], device: torch.device | str = "cpu"
) -> TrimmedHistogram:
    """As `histogram_from_file`, for the histogram of a second pass."""
    known = _header("TrimmedHistogram", header)
    held = _checked(known, tensors, device, _trimmed_flaws)
    with own_memory():
        resolution, ends = RESOLUTION_NAMES[known.resolution], (held["minimum"], held["maximum"])
        trimmed = TrimmedHistogram(*ends, known.bins, resolution=resolution, device=device)
        trimmed.underflow.copy_(held["counts"][..., 0])
        trimmed.overflow.copy_(held["counts"][..., -1])
        trimmed.inside.tensors()["counts"].copy_(held["counts"][..., 1:-1])
        trimmed.inside.tensors()["positive"].copy_(held["positive"])
    return trimmed


def with_positive(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], first: NeuronHistogram
) -> dict[str, Tensor]:
    """A second pass' tensors as they are since version 3: how many values are above 0 follows from the first pass.

    It has seen the same values, unless the batches were others each time they were read; then it is an estimate.
    """
    known = _header("TrimmedHistogram", header)
    require_tensors(
        tensors,
        {name: kind for name, kind in _tensors(known).items() if name != "positive"},
        "the numbers of a second pass",
    )
    grid, inside = Grid(tensors["exponent"], tensors["offset"]), tensors["counts"][..., 1:-1]
    around_zero = (tensors["minimum"] <= 0) & (tensors["maximum"] >= 0)
    at_least = inside.sum(-1) - grid.below_zero(inside)
    in_its_bin = inside.gather(-1, (-grid.offset).clamp(0, known.bins - 1).unsqueeze(-1)).squeeze(-1)
    zeros = torch.minimum(first.zeros.cpu(), in_its_bin) * around_zero
    return {**tensors, "positive": at_least - zeros}


def require_tensors(
    found: Mapping[str, Tensor], wanted: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], what: str
) -> None:
    """Raise `FileFormatError` unless a file holds just these tensors, of these dtypes and sizes."""
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()}
    if kinds != wanted:
        name = min(name for name in kinds | dict(wanted) if wanted.get(name) != kinds.get(name))
        raise FileFormatError(
            f"{what} in a file have {name} as {wanted.get(name, 'nothing')}, not as {kinds.get(name, 'nothing')}."
        )


def require_none(flaws: "Flaws", what: str) -> None:
    """Raise `FileFormatError` at the first flaw of any neuron."""
    for flaw, where in flaws:
        if where.any():
            layer, head, dim = where.nonzero()[0].tolist()
            raise FileFormatError(f"in its {what}, {neuron_name(layer, head, dim)} has {flaw}.")


def _header(kind: str, header: Mapping[str, Any]) -> HistogramHeader:
    known = HistogramHeader.from_dict(header)
    if known.kind != kind:
        raise FileFormatError(f"a {kind} was expected, not a {known.kind!r}.")
    return known


def _tensors(header: HistogramHeader) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    whole = ("counts", "positive", "exponent", "offset", "total")
    kinds = dict.fromkeys(whole, (torch.int64, header.shape)) | dict.fromkeys(
        ("minimum", "maximum"), (torch.float64, header.shape)
    )
    margin = 2 if header.kind == "TrimmedHistogram" else 0
    return {**kinds, "counts": (torch.int64, (*header.shape, header.bins + margin))}


def _checked(
    header: HistogramHeader,
    tensors: Mapping[str, Tensor],
    device: torch.device | str,
    flaws: Callable[[Mapping[str, Tensor], int, torch.dtype], "Flaws"],
) -> dict[str, Tensor]:
    """The tensors on the device; `FileFormatError` unless a collection can have made them."""
    # Sizes are compared before memory is taken: a header can claim anything.
    require_tensors(tensors, _tensors(header), f"the numbers of a {header.kind}")
    held = {name: tensor.to(device) for name, tensor in tensors.items()}
    require_none(flaws(held, header.bins, RESOLUTION_NAMES[header.resolution]), header.kind)
    return held


Flaws = Iterator[tuple[str, Bool[Tensor, "layer head dim"]]]


def _flaws(held: Mapping[str, Tensor], bins: int, resolution: torch.dtype) -> Flaws:
    """What must not be, and where it is; later checks rely on earlier ones having found nothing."""
    counts, low, high = held["counts"], held["minimum"], held["maximum"]
    empty = (low == torch.inf) & (high == -torch.inf)
    yield "a negative count", (counts < 0).any(-1)
    # In float64, because a sum of int64 wraps round; from here on sums are exact.
    yield "counts beyond 2^62", counts.double().sum(-1) >= 2.0**62
    yield "a total that is not the sum of its counts", counts.sum(-1) != held["total"]
    yield "a range that is not finite", ~empty & ~(low.isfinite() & high.isfinite())
    yield "a minimum above its maximum", ~empty & (low > high)
    # `Rows.range` makes it 0.0; a sign bit would make equal histograms unequal in bits.
    yield "a range that ends in -0.0", ((low == 0) & low.signbit()) | ((high == 0) & high.signbit())
    grid = Grid.fitting(low, high, bins, resolution)
    yield "bins that do not fit its range", (held["exponent"] != grid.exponent) | (held["offset"] != grid.offset)


def _zero_flaws(inside: Int64[Tensor, "layer head dim bin"], held: Mapping[str, Tensor]) -> Flaws:
    """As `_flaws`, for what is counted of values above 0, and so of values that are 0."""
    low, high, positive, grid = (
        held["minimum"],
        held["maximum"],
        held["positive"],
        Grid(held["exponent"], held["offset"]),
    )
    zeros = inside.sum(-1) - grid.below_zero(inside) - positive
    beside_zero = grid.without(inside, zeros).amin(-1) < 0
    yield "more values above 0 than its bins have, or fewer", (positive < 0) | (zeros < 0) | beside_zero
    yield "values of 0 outside its range", ((low > 0) | (high < 0)) & (zeros > 0)
    yield "values above 0 outside its range", (high <= 0) & (positive > 0)


def _trimmed_flaws(held: Mapping[str, Tensor], bins: int, resolution: torch.dtype) -> Flaws:
    yield "no range", held["minimum"] == torch.inf
    yield from _flaws(held, bins, resolution)
    yield from _zero_flaws(held["counts"][..., 1:-1], held)


def _histogram_flaws(held: Mapping[str, Tensor], bins: int, resolution: torch.dtype) -> Flaws:
    yield from _flaws(held, bins, resolution)
    counts, low, high = held["counts"], held["minimum"], held["maximum"]
    total: Int64[Tensor, "layer head dim"] = held["total"]
    empty = total == 0
    yield "a range without values, or values without a range", empty != (low > high)
    yield "one value, but a minimum below its maximum", (total == 1) & (low < high)
    # inf is not a bin number, so empty neurons are filled first.
    last = (scaled_floor(high, held["exponent"]).masked_fill(empty, 0)).long() - held["offset"]
    # `last` is a bin: this is a generator, and that the grid fits was yielded and checked before.
    ends = counts.gather(-1, torch.stack([torch.zeros_like(last), last], -1))
    yield "no value in the bin of its minimum or maximum", ~empty & (ends == 0).any(-1)
    beyond = torch.arange(bins, device=counts.device) > last.unsqueeze(-1)
    yield "values beyond its maximum", (counts * beyond > 0).any(-1)
    yield from _zero_flaws(counts, held)
    zeros = total - Grid(held["exponent"], held["offset"]).below_zero(counts) - held["positive"]
    yield "no value of its minimum or maximum", ((low == 0) | (high == 0)) & (zeros == 0)
    yield "no value above 0, but a maximum there", ~empty & (high > 0) & (held["positive"] == 0)

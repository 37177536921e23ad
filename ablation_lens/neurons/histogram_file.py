"""What a file holds of a histogram: tensors and a header, and the refusal of contents that no collection produces."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ablation_lens.errors import FileFormatError
from ablation_lens.neurons.grid import Grid, scaled_floor
from ablation_lens.neurons.histogram import RESOLUTION_NAMES, NeuronHistogram, dtype_name
from ablation_lens.neurons.rows import own_memory
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.sites import neuron_name

_HEADER = {"kind", "shape", "bins", "resolution"}


def to_file(histogram: NeuronHistogram | TrimmedHistogram) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and a header of plain JSON values, for a safetensors file; `histogram_from_file` is the inverse.

    A trimmed histogram's counts have two bins more: what lies below the range is the first, what lies above the last.

    >>> tensors, header = to_file(NeuronHistogram((1, 2, 3), bins=8))
    >>> header
    {'kind': 'NeuronHistogram', 'shape': [1, 2, 3], 'bins': 8, 'resolution': 'float32'}
    """
    header = {
        "kind": type(histogram).__name__,
        "shape": list(histogram.shape),
        "bins": histogram.bins,
        "resolution": dtype_name(histogram.resolution),
    }
    # `total` follows from the counts; kept beside them, it shows when they were changed.
    return {name: tensor.clone() for name, tensor in _state(histogram).items()} | {"total": histogram.total}, header


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
    held, shape, bins, resolution = _checked("NeuronHistogram", tensors, header, device, 0, _histogram_flaws)
    with own_memory():
        histogram = NeuronHistogram(shape, bins, resolution=resolution, device=device)
        # Copied in: the tensors of a file may have been made in inference mode, and could not be updated later.
        for name, state in histogram.tensors().items():
            state.copy_(held[name])
    return histogram


def trimmed_from_file(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], device: torch.device | str = "cpu"
) -> TrimmedHistogram:
    """As `histogram_from_file`, for the histogram of a second pass."""
    held, _, bins, resolution = _checked("TrimmedHistogram", tensors, header, device, 2, _trimmed_flaws)
    with own_memory():
        trimmed = TrimmedHistogram(held["minimum"], held["maximum"], bins, resolution=resolution, device=device)
        trimmed.underflow.copy_(held["counts"][..., 0])
        trimmed.overflow.copy_(held["counts"][..., -1])
        trimmed.inside.tensors()["counts"].copy_(held["counts"][..., 1:-1])
        trimmed.inside.tensors()["positive"].copy_(held["positive"])
    return trimmed


def _checked(
    kind: str,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    device: torch.device | str,
    margin: int,
    flaws: Callable[[Mapping[str, Tensor], int, torch.dtype], "Flaws"],
) -> tuple[dict[str, Tensor], tuple[int, int, int], int, torch.dtype]:
    """Tensors on the device, shape, bins and resolution; `FileFormatError` unless a collection can have made them."""
    shape, bins, resolution = _read_header(kind, header)
    # The tensors' sizes are compared before memory is taken: a header can claim anything.
    dtypes = {
        "counts": torch.int64,
        "positive": torch.int64,
        "exponent": torch.int64,
        "offset": torch.int64,
        "total": torch.int64,
    }
    dtypes |= {"minimum": torch.float64, "maximum": torch.float64}
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(dtypes, shape) | {"counts": (*shape, bins + margin)}
    wanted = {name: (dtype, sizes[name]) for name, dtype in dtypes.items()}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != wanted:
        name = min(name for name in wanted | found if wanted.get(name) != found.get(name))
        raise FileFormatError(
            f"a {kind} file should hold {name} as {wanted.get(name, 'nothing')}, but holds "
            f"{found.get(name, 'nothing')}; it was cut short or changed, so collect again."
        )
    held = {name: tensor.to(device) for name, tensor in tensors.items()}
    for flaw, where in flaws(held, bins, resolution):
        if where.any():
            layer, head, dim = where.nonzero()[0].tolist()
            raise FileFormatError(
                f"{neuron_name(layer, head, dim)} of a {kind} file has {flaw}, which no collection "
                "produces; the file was changed or damaged, so collect again."
            )
    return held, shape, bins, resolution


def _read_header(kind: str, header: Mapping[str, Any]) -> tuple[tuple[int, int, int], int, torch.dtype]:
    def is_size(value: Any) -> bool:
        # JSON's true is an int in Python, and equals 1.
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    if (
        not isinstance(header, Mapping)
        or set(header) != _HEADER
        or header["kind"] != kind
        or not isinstance(header["shape"], list | tuple)
        or len(header["shape"]) != 3
        or not all(map(is_size, header["shape"]))
        or not is_size(header["bins"])
        or not 2 <= header["bins"] <= 2**16
        # A list, because a header may hold anything, and a dict raises TypeError for what cannot be hashed.
        or header["resolution"] not in list(RESOLUTION_NAMES)
    ):
        raise FileFormatError(
            f"{header} is not the header of a {kind}; expected kind, shape (three sizes), bins (2 to "
            f"65536) and resolution ({', '.join(RESOLUTION_NAMES)})."
        )
    layers, heads, dims = header["shape"]
    return (layers, heads, dims), header["bins"], RESOLUTION_NAMES[header["resolution"]]


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

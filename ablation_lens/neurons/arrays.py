"""Statistics as plain NumPy arrays, for whoever works without this library, and the way back.

Bins are told by the left edge of the first one and their width, which everybody understands. On the way back the grid
is made anew from the range, as only one fits it; whatever is told besides must be what the rest says.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.names import require_known
from ablation_lens.neurons.grid import Grid
from ablation_lens.neurons.histogram import RESOLUTION_NAMES, NeuronHistogram, dtype_name
from ablation_lens.neurons.histogram_file import HistogramHeader
from ablation_lens.neurons.statistics_file import Parts, read_parts
from ablation_lens.sites import Site, neuron_name

Arrays = dict[str, np.ndarray[Any, Any]]

_SUMS = {
    "pivot": "pivot",
    "deviation_sum": "deviation",
    "squared_deviation_sum": "squared_deviation",
    "absolute_sum": "absolute",
    "root_sum": "root",
}
"""The state of moments, by the names that arrays have."""

_BINS = ("counts", "left", "width", "positive", "zeros", "minimum", "maximum")
_FIRST = (*_BINS, "count", "mean", "variance", *_SUMS, "resolution")
_TRIMMED = (*(f"trimmed_{name}" for name in _BINS), "trimmed_below", "trimmed_above")
_POSITIONS = ("position_sums", "position_counts")
_ROWS = ("rows",)

PROVENANCE = "provenance"
"""Where all this comes from, as JSON: a name that belongs to the statistics, and not to their parts."""


def to_arrays(parts: Parts) -> Arrays:
    """Copies of everything; `from_arrays` is the inverse."""
    state = parts.moments.state()
    held = {
        **_bins_of(parts.histogram),
        "count": parts.histogram.total,
        "mean": parts.moments.mean,
        "variance": parts.moments.variance,
        **{name: state[own] for name, own in _SUMS.items()},
    }
    if parts.trimmed is not None:
        held |= {f"trimmed_{name}": tensor for name, tensor in _bins_of(parts.trimmed.inside).items()}
        held |= {"trimmed_below": parts.trimmed.underflow, "trimmed_above": parts.trimmed.overflow}
    if parts.positions is not None:
        held |= {"position_sums": parts.positions.sums, "position_counts": parts.positions.counts}
    if parts.rows is not None:
        held |= {"rows": parts.rows}
    arrays = {name: np.array(tensor.cpu().numpy()) for name, tensor in held.items()}
    return {**arrays, "resolution": np.array(dtype_name(parts.histogram.resolution))}


def _bins_of(histogram: NeuronHistogram) -> dict[str, Tensor]:
    return {
        "counts": histogram.counts(),
        "left": histogram.edges()[..., 0],
        "width": histogram.epsilon,
        "positive": histogram.positive,
        "zeros": histogram.zeros,
        "minimum": histogram.minimum,
        "maximum": histogram.maximum,
    }


def from_arrays(arrays: Mapping[str, Any], site: Site, tokens: int | None = None) -> Parts:
    """The inverse of `to_arrays`; `MismatchError` for what no collection (over so many positions) can have made."""
    _require_names(arrays)
    try:
        parts = _read_parts(arrays, tokens)
    except FileFormatError as error:
        raise MismatchError(
            f"these arrays are not of one collection ({str(error).rstrip('.')}); give what arrays() gave, unchanged."
        ) from error
    # Where bins lie, zeros, means: what follows from the state may have been changed alone.
    for name, expected in to_arrays(parts).items():
        if expected.ndim != 3:  # texts, and what is the state itself
            continue
        given = _numbers(arrays, name, expected.dtype, expected.shape)
        for layer, head, dim in np.argwhere(given != expected)[:1].tolist():
            raise MismatchError(
                f"{name} of {neuron_name(layer, head, dim, site)} is {given[layer, head, dim]}, and by the other "
                f"arrays it is {expected[layer, head, dim]}; give what arrays() gave, unchanged."
            )
    return parts


def _require_names(arrays: Mapping[str, Any]) -> None:
    if not isinstance(arrays, Mapping):
        raise MismatchError(
            f"got a {type(arrays).__name__}; expected a mapping of names to arrays, as ActivationStatistics.arrays() "
            "or numpy.load gives."
        )
    known = [*_FIRST, *_TRIMMED, *_POSITIONS, *_ROWS, PROVENANCE]
    for name in arrays:
        require_known(str(name), known, "array of statistics")
    wanted = [*_FIRST]
    for some in (_TRIMMED, _POSITIONS):
        wanted += some if any(name in arrays for name in some) else ()
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise MismatchError(
            f"these arrays lack {', '.join(missing)}; give all that ActivationStatistics.arrays() gave."
        )


def _read_parts(arrays: Mapping[str, Any], tokens: int | None) -> Parts:
    def whole(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(_numbers(arrays, name, np.int64, shape or None))

    def real(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(_numbers(arrays, name, np.float64, shape or None))

    def bins_of(prefix: str) -> dict[str, Tensor]:
        low, high = real(f"{prefix}minimum", *shape), real(f"{prefix}maximum", *shape)
        grid = Grid.fitting(low, high, bins, RESOLUTION_NAMES[resolution])
        return {
            "counts": whole(f"{prefix}counts", *shape, bins),
            "positive": whole(f"{prefix}positive", *shape),
            "exponent": grid.exponent,
            "offset": grid.offset,
            "minimum": low,
            "maximum": high,
        }

    resolution = word(arrays, "resolution")
    require_known(resolution, RESOLUTION_NAMES, "resolution")
    sizes = tuple(whole("counts").shape)
    if len(sizes) != 4 or min(sizes) < 1 or not 2 <= sizes[3] <= 2**16:
        raise MismatchError(f"counts are of shape {sizes}; expected [layer head dim bin], with 2 to 65536 bins.")
    shape, bins = sizes[:3], sizes[3]
    count = whole("count", *shape)
    held = {
        "histogram": bins_of("") | {"total": count},
        "moments": {own: real(name, *shape) for name, own in _SUMS.items()} | {"count": count[:, 0, 0].clone()},
    }
    headers = [HistogramHeader("NeuronHistogram", shape, bins, resolution)]
    if "trimmed_counts" in arrays:
        second = bins_of("trimmed_")
        below, above = (whole(f"trimmed_{side}", *shape).unsqueeze(-1) for side in ("below", "above"))
        counts = torch.cat([below, second["counts"], above], -1)
        held["trimmed"] = second | {"counts": counts, "total": counts.sum(-1)}
        headers.append(HistogramHeader("TrimmedHistogram", shape, bins, resolution))
    if "position_counts" in arrays:
        held["position"] = {"counts": whole("position_counts"), "sums": real("position_sums")}
    if "rows" in arrays:
        held["rows"] = {"digests": whole("rows")}
    tensors = {f"{part}.{name}": tensor for part, kept in held.items() for name, tensor in kept.items()}
    first, *trimmed = headers
    return read_parts(
        tensors, first, trimmed[0] if trimmed else None, int(count[0, 0, 0]) if tokens is None else tokens
    )


def word(arrays: Mapping[str, Any], name: str) -> str:
    """The array that holds one text."""
    array = _array(arrays, name)
    if array.ndim or array.dtype.kind != "U":
        raise MismatchError(f"{name} is {array.dtype} of shape {array.shape}; expected one text.")
    return str(array)


def _array(arrays: Mapping[str, Any], name: str) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(arrays[name])
    except (ValueError, TypeError, RuntimeError) as error:  # a pickled object in a file, a list of unlike lengths
        raise MismatchError(f"{name} is not an array of numbers ({error}).") from error


def _numbers(
    arrays: Mapping[str, Any], name: str, dtype: type | np.dtype[Any], shape: Sequence[int] | None = None
) -> np.ndarray[Any, Any]:
    """A copy; numbers that fit the dtype without rounding will do."""
    array, wanted = _array(arrays, name), np.dtype(dtype)
    fits = array.dtype.kind in ("iu" if wanted.kind == "i" else "f") and np.can_cast(array.dtype, wanted, "safe")
    if not fits or (shape is not None and array.shape != tuple(shape)):
        expected = f"{wanted}{'' if shape is None else f' of shape {tuple(shape)}'}"
        raise MismatchError(f"{name} is {array.dtype} of shape {array.shape}; expected {expected}.")
    return np.array(array, dtype=wanted, order="C")

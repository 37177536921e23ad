"""Sums per neuron from which mean, variance and a few means follow: mergeable, in float64.

Sums are taken about a pivot (a value each neuron has really taken), so that a variance survives a mean a
million times larger. Only sums and counts are kept, never running means.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from ablation_lens.errors import FileFormatError, MismatchError

_BLOCK = 64
"""Rows that are worked on at a time on a CPU: 64 rows of 768 neurons in float64 stay in a core's cache."""

_SUMS = ("deviation", "squared_deviation", "absolute", "root", "positive")


class Moments:
    """Count, mean, variance, mean |x|, mean √|x| and share positive of every neuron `(layer, head, dim)`.

    >>> moments = Moments((1, 1, 1))
    >>> moments.update_layer(0, torch.tensor([1.0, 4.0, -4.0, 9.0]).view(2, 2, 1, 1))
    >>> moments.mean.item(), moments.variance.item(), moments.mean_absolute.item(), moments.share_positive.item()
    (2.5, 22.25, 4.5, 0.75)
    """

    def __init__(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.count: Int64[Tensor, " layer"] = torch.zeros(self.shape[0], dtype=torch.int64, device=device)
        self.pivot: Float[Tensor, "layer head dim"] = torch.zeros(self.shape, dtype=torch.float64, device=device)
        self._sums = {name: torch.zeros_like(self.pivot) for name in _SUMS}

    def update_layer(
        self, layer: int, values: Float[Tensor, "*batch head dim"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> None:
        """Add values of one layer at the positions where `valid` is true (everywhere when None)."""
        if tuple(values.shape[-2:]) != self.shape[1:]:
            raise MismatchError(
                f"values have shape {tuple(values.shape)}; expected (…, {self.shape[1]}, {self.shape[2]})."
            )
        rows = values.reshape(-1, self.shape[1] * self.shape[2]) if valid is None else values[valid].flatten(1)
        if not len(rows):
            return
        if not int(self.count[layer]):
            self.pivot[layer] = rows[0].double().view(self.shape[1:])
        pivot = self.pivot[layer].flatten()
        sums = _sums_on_cpu(rows, pivot) if rows.device.type == "cpu" else _sums_on_accelerator(rows, pivot)
        self.count[layer] += len(rows)
        for name, total in zip(_SUMS, sums, strict=True):
            self._sums[name][layer] += total.view(self.shape[1:])

    def merge(self, other: Self) -> Self:
        """New moments that have seen the values of both; the arguments stay as they are.

        >>> one, two = Moments((1, 1, 1)), Moments((1, 1, 1))
        >>> one.update_layer(0, torch.ones(3, 1, 1)), two.update_layer(0, 5 * torch.ones(1, 1, 1))
        (None, None)
        >>> one.merge(two).mean.item()
        2.0
        """
        if self.shape != other.shape:
            raise MismatchError(f"moments of shapes {self.shape} and {other.shape} do not add up.")
        merged = type(self)(self.shape, device=self.pivot.device)
        merged.count = self.count + other.count.to(self.count.device)
        # A side that has seen nothing has no pivot of its own.
        seen = (self.count > 0)[:, None, None]
        theirs = other.pivot.to(self.pivot.device)
        merged.pivot = torch.where(seen, self.pivot, theirs)
        for name in _SUMS:
            merged._sums[name] = self._sums[name] + other._sums[name].to(self.pivot.device)
        # Their deviations were taken about another pivot.
        count = other.count.to(self.count.device).double()[:, None, None]
        shift = torch.where(count > 0, theirs - merged.pivot, 0.0)
        deviation = other._sums["deviation"].to(self.pivot.device)
        merged._sums["deviation"] += count * shift
        merged._sums["squared_deviation"] += shift * (2 * deviation + count * shift)
        return merged

    def _average(self, name: str) -> Float[Tensor, "layer head dim"]:
        return self._sums[name] / self.count.double()[:, None, None]  # NaN where nothing was seen

    @property
    def mean(self) -> Float[Tensor, "layer head dim"]:
        """Mean value."""
        return self.pivot + self._average("deviation")

    @property
    def variance(self) -> Float[Tensor, "layer head dim"]:
        """Population variance (divided by the count)."""
        return (self._average("squared_deviation") - self._average("deviation").square()).clamp_min(0.0)

    @property
    def mean_absolute(self) -> Float[Tensor, "layer head dim"]:
        """Mean of |x|."""
        return self._average("absolute")

    @property
    def mean_root(self) -> Float[Tensor, "layer head dim"]:
        """Mean of √|x|."""
        return self._average("root")

    @property
    def share_positive(self) -> Float[Tensor, "layer head dim"]:
        """Share of values above zero."""
        return self._average("positive")

    def state(self) -> dict[str, Tensor]:
        """Tensors for a file; `from_state` is the inverse."""
        return {
            "count": self.count.clone(),
            "pivot": self.pivot.clone(),
            **{k: v.clone() for k, v in self._sums.items()},
        }

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], shape: Sequence[int]) -> Self:
        """Moments from what `state` gave."""
        result = cls(shape)
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in result.state().items()}
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if expected != found:
            raise FileFormatError(f"moments of shape {result.shape} need the tensors {expected}, got {found}.")
        result.count, result.pivot = tensors["count"].clone(), tensors["pivot"].clone()
        result._sums = {name: tensors[name].clone() for name in _SUMS}
        return result


def _sums_on_accelerator(
    rows: Float[Tensor, "row neuron"], pivot: Float[Tensor, " neuron"]
) -> Float[Tensor, "sum neuron"]:
    wide = rows.double()
    size, deviation = wide.abs(), wide - pivot
    return torch.stack(
        [deviation.sum(0), deviation.square().sum(0), size.sum(0), size.sqrt().sum(0), (rows > 0).double().sum(0)]
    )


def _sums_on_cpu(rows: Float[Tensor, "row neuron"], pivot: Float[Tensor, " neuron"]) -> Float[Tensor, "sum neuron"]:
    """The same by NumPy, a part of the rows per thread: torch would start its threads anew for every small step."""
    values = (rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows).detach().numpy()
    threads = min(torch.get_num_threads(), max(1, len(values) // 256))
    parts = np.array_split(values, threads)
    with ThreadPoolExecutor(threads) as pool:
        return torch.from_numpy(sum(pool.map(_sums_of_part, parts, [pivot.numpy()] * threads)))


def _sums_of_part(values: NDArray[Any], center: NDArray[np.float64]) -> NDArray[np.float64]:
    """In blocks that stay in a core's cache."""
    sums = np.zeros((len(_SUMS), values.shape[1]))
    wide, size = np.empty((2, _BLOCK, values.shape[1]))
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        w, a = wide[: len(block)], size[: len(block)]
        np.copyto(w, block)
        np.abs(w, out=a)
        sums[2] += a.sum(0)
        sums[3] += np.sqrt(a, out=a).sum(0)
        sums[4] += np.add.reduce((block > 0).view(np.uint8), axis=0, dtype=np.uint16)
        np.subtract(w, center, out=w)
        sums[0] += w.sum(0)
        sums[1] += np.square(w, out=w).sum(0)
    return sums

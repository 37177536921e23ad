"""Sums per neuron from which mean, variance and a few means follow: mergeable, in float64.

Sums are taken about a pivot (a value each neuron has really taken), so that a variance survives a mean a
million times larger. Only sums and counts are kept, never running means.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.neurons.rows import Rows, Scratch, own_memory

_SUMS = ("deviation", "squared_deviation", "absolute", "root")

_FIRST = 63
"""How many of the first values the pivot is chosen from."""


class Moments:
    """Count, mean, variance, mean |x| and mean √|x| of every neuron `(layer, head, dim)`.

    >>> moments = Moments((1, 1, 1))
    >>> moments.update_layer(0, torch.tensor([1.0, 4.0, -4.0, 9.0]).view(2, 2, 1, 1))
    >>> moments.mean.item(), moments.variance.item(), moments.mean_absolute.item(), moments.mean_root.item()
    (2.5, 22.25, 4.5, 2.0)
    """

    def __init__(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        with own_memory():
            # On the CPU, wherever the sums are: the number of positions is known there.
            self.count: Int64[Tensor, " layer"] = torch.zeros(self.shape[0], dtype=torch.int64)
            self.pivot: Float[Tensor, "layer head dim"] = torch.zeros(self.shape, dtype=torch.float64, device=device)
            self._sums = {name: torch.zeros_like(self.pivot) for name in _SUMS}
        self._scratch = Scratch()

    def update_layer(
        self, layer: int, values: Float[Tensor, "*batch head dim"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> None:
        """Add values of one layer at the positions where `valid` is true (everywhere when None)."""
        if tuple(values.shape[-2:]) != self.shape[1:]:
            raise MismatchError(
                f"values have shape {tuple(values.shape)}; expected (…, {self.shape[1]}, {self.shape[2]})."
            )
        self.add(layer, Rows(values, valid))

    def add(self, layers: int | slice, rows: Rows) -> None:
        """Add values of one layer that are laid out already, for whoever needs them for more than sums.

        Or of consecutive layers, `[token (layer head) dim]`. No device is waited for.
        """
        if not rows.tokens:
            return
        with own_memory():
            chosen = slice(layers, layers + 1) if isinstance(layers, int) else layers
            pivot, sums = self.pivot[chosen].view(-1), [self._sums[name][chosen].view(-1) for name in _SUMS]
            places = range(self.shape[0])[chosen]
            unseen = [place for place, count in enumerate(self.count[chosen].tolist()) if not count]
            if unseen:
                # The median of a few: the very first is the BOS position's, where many neurons are far off.
                # Sorted, because torch's own median refuses on CUDA under deterministic algorithms.
                first = next(iter(rows))[:, :_FIRST].sort(1).values
                middle = first[:, first.shape[1] // 2].view(-1, *self.shape[1:])
                for place in unseen:
                    self.pivot[places[place]].copy_(middle[place])
            for which, values in rows.blocks():
                # One sum at a time: the next one overwrites the memory that this one's terms were in.
                terms = self._sums_of(values, pivot[which], turned=rows.turned)
                for total, part in zip(sums, terms, strict=True):
                    total[which] += part
            self.count[chosen] += rows.tokens

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
        with own_memory():
            merged.count = self.count + other.count
            # A side that has seen nothing has no pivot of its own.
            seen = (self.count > 0).to(self.pivot.device)[:, None, None]
            theirs = other.pivot.to(self.pivot.device)
            merged.pivot = torch.where(seen, self.pivot, theirs)
            for name in _SUMS:
                merged._sums[name] = self._sums[name] + other._sums[name].to(self.pivot.device)
            # Their deviations were taken about another pivot.
            count = other.count.to(self.pivot.device).double()[:, None, None]
            shift = torch.where(count > 0, theirs - merged.pivot, 0.0)
            deviation = other._sums["deviation"].to(self.pivot.device)
            merged._sums["deviation"] += count * shift
            merged._sums["squared_deviation"] += shift * (2 * deviation + count * shift)
        return merged

    def _average(self, name: str) -> Float[Tensor, "layer head dim"]:
        return self._sums[name] / self.count.to(self.pivot.device).double()[:, None, None]  # NaN where nothing was seen

    def _sums_of(
        self, values: Float[Tensor, "neuron token"], pivot: Float[Tensor, " neuron"], *, turned: bool
    ) -> Iterator[Float[Tensor, " neuron"]]:
        """The sums of `_SUMS`, in that order."""
        wide = self._scratch.like(values, torch.float64)
        about = pivot.unsqueeze(-1)
        # An accelerator widens what it reads within the kernel, of operations on two tensors; a CPU makes a copy.
        deviation = wide.copy_(values).sub_(about) if turned else torch.sub(values, about, out=wide)
        yield deviation.sum(1)
        yield torch.linalg.vector_norm(deviation, dim=1).square_()  # in one reading, without the squares in memory
        # From the values again, over `deviation`: |x - pivot| does not give |x|.
        size = wide.copy_(values).abs_() if turned else torch.copysign(values, torch.ones_like(about), out=wide)
        yield size.sum(1)
        yield size.sqrt_().sum(1)

    @property
    def mean(self) -> Float[Tensor, "layer head dim"]:
        """Mean value."""
        return self.pivot + self._average("deviation")

    @property
    def variance(self) -> Float[Tensor, "layer head dim"]:
        """Population variance (divided by the count)."""
        # Rounding may leave a tiny negative number, whose root would be NaN.
        return (self._average("squared_deviation") - self._average("deviation").square()).clamp_min(0.0)

    @property
    def mean_absolute(self) -> Float[Tensor, "layer head dim"]:
        """Mean of |x|."""
        return self._average("absolute")

    @property
    def mean_root(self) -> Float[Tensor, "layer head dim"]:
        """Mean of √|x|."""
        return self._average("root")

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
        with own_memory():
            result.count, result.pivot = tensors["count"].cpu().clone(), tensors["pivot"].clone()
            result._sums = {name: tensors[name].clone() for name in _SUMS}
        return result

"""One layer's activation with a row of memory per neuron: what everything that counts or sums is fed with.

A model leaves all neurons of a position after each other. Counting and summing go over positions, neuron by
neuron, and on a CPU take half the time when a neuron's values lie after each other; turning them round costs less
than that saves. An accelerator does not mind, so there they stay where they are.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ablation_lens.errors import MismatchError

PIECE, PIECE_ON_ACCELERATOR = 2**21, 2**24
"""How many values are worked on at a time: memory stays bounded, however long the texts."""

BLOCK = 2**18
"""Values per thread that take several steps at a time: one step's results are still in cache in the next."""

_TURNED = 512
"""How many positions are turned round at a time; more leave the cache before they are read again."""


@contextmanager
def own_memory() -> Iterator[None]:
    """State made under a caller's inference mode could not be updated in place outside it later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Scratch:
    """A few megabytes that are kept between calls: fresh memory of that size costs more than the work done in it.

    Who takes memory of a dtype again gets the same memory again. That is not state: its contents never matter.
    """

    def __init__(self) -> None:
        self._held: dict[torch.dtype, Tensor] = {}

    def like(self, tensor: Shaped[Tensor, "row column"], dtype: torch.dtype) -> Shaped[Tensor, "row column"]:
        """Uninitialised memory of that shape, laid out in the same order.

        >>> Scratch().like(torch.zeros(5, 3).T, torch.int64).stride()
        (1, 3)
        """
        rows, columns = tensor.shape
        flat = self.take(tensor.numel(), dtype, tensor.device)
        return flat.view(rows, columns) if tensor.stride(1) == 1 else flat.view(columns, rows).T

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, " size"]:
        """Uninitialised memory for so many numbers."""
        held = self._held.get(dtype)
        if held is None or held.numel() < size or held.device != device:
            with own_memory():
                held = self._held[dtype] = torch.empty(size, dtype=dtype, device=device)
        return held[:size]


class Rows:
    """One layer's activation as `[neuron token]` pieces of bounded size, positions that are not valid left out.

    A piece may be overwritten when the next one is asked for. With `scratch`, its memory is used, so that rows made
    earlier with the same scratch are gone. `values` and `valid` are the activation as it came. `turned` says whether a
    neuron's values are laid after each other; None does that on a CPU alone.

    >>> [tuple(piece.shape) for piece in Rows(torch.zeros(2, 3, 4, 8), torch.tensor([[True, False, True]] * 2))]
    [(32, 4)]
    """

    def __init__(
        self,
        values: Float[Tensor, "*batch head dim"],
        valid: Bool[Tensor, "*batch"] | None = None,
        scratch: Scratch | None = None,
        *,
        piece: int | None = None,
        block: int = BLOCK,
        turned: bool | None = None,
    ) -> None:
        if valid is not None and (valid.dtype != torch.bool or valid.shape != values.shape[:-2]):
            raise MismatchError(
                f"valid is {valid.dtype} {tuple(valid.shape)}; expected torch.bool {tuple(values.shape[:-2])}, "
                "one flag per position of the values."
            )
        everywhere = valid is None or bool(valid.all())
        self.values, self.valid = values, None if everywhere else valid
        self.shape = (values.shape[-2], values.shape[-1])
        self.neurons = self.shape[0] * self.shape[1]
        self.device = values.device
        self.turned = values.device.type == "cpu" if turned is None else turned
        narrow = values.dtype in (torch.bfloat16, torch.float16)
        # Widened on the way, as values are copied there anyway. Exact: float32 holds every number of both.
        self.dtype = torch.float32 if self.turned and narrow else values.dtype
        parts = _flat_parts(values, self.valid)
        # Places instead of a mask: those can be cut into chunks of a known length.
        self._parts = [(part, None if mask is None else mask.nonzero().flatten()) for part, mask in parts]
        self.tokens = sum(len(part) if chosen is None else len(chosen) for part, chosen in self._parts)
        self._scratch = scratch or Scratch()
        self._whole: Float[Tensor, "neuron token"] | None = None
        self._piece, self._block = piece, block

    def __iter__(self) -> Iterator[Float[Tensor, "neuron token"]]:
        """Pieces of at most a few million values, so that memory does not grow with the number of tokens."""
        if self._whole is not None:
            yield self._whole
        elif self.turned:
            yield from self._turned(self._piece or PIECE)
        elif self.tokens:
            most = max(1, (self._piece or PIECE_ON_ACCELERATOR) // self.neurons)
            # Evenly: a small rest would cost as many kernels as a whole piece.
            for chunk in self._chunks(math.ceil(self.tokens / math.ceil(self.tokens / most))):
                yield chunk.reshape(len(chunk), self.neurons).T

    def _turned(self, most: int) -> Iterator[Float[Tensor, "neuron token"]]:
        size = max(1, min(self.tokens, most // self.neurons))
        piece = self._scratch.take(self.neurons * size, self.dtype, self.device).view(*self.shape, size)
        filled = 0
        for chunk in self._chunks(min(_TURNED, size)):
            if filled + len(chunk) > size:
                yield piece[:, :, :filled].flatten(0, 1)
                filled = 0
            piece[:, :, filled : filled + len(chunk)].copy_(chunk.permute(1, 2, 0))
            filled += len(chunk)
        if not filled:
            return
        last = piece.view(self.neurons, size)[:, :filled]
        if filled == self.tokens:
            self._whole = last  # whoever iterates next need not turn everything round again
        yield last

    def _chunks(self, size: int) -> Iterator[Float[Tensor, "token head dim"]]:
        """The valid positions, at most `size` at a time, as they lie in memory."""
        for part, chosen in self._parts:
            for start in range(0, len(part) if chosen is None else len(chosen), size):
                stop = start + size
                yield part[start:stop] if chosen is None else part.index_select(0, chosen[start:stop])

    def blocks(self, at_most: int | None = None) -> Iterator[tuple[slice, Float[Tensor, "neuron token"]]]:
        """Which neurons, and a piece's values of them: as many as one does well to work on at a time.

        >>> [(which, tuple(values.shape)) for which, values in Rows(torch.zeros(7, 4, 8)).blocks(at_most=20)]
        [(slice(0, 20, None), (20, 7)), (slice(20, 32, None), (12, 7))]
        """
        for piece in self:
            fitting = self._block * torch.get_num_threads() // piece.shape[1] if self.turned else self.neurons
            width = max(1, min(fitting, at_most or self.neurons))
            for start in range(0, self.neurons, width):
                which = slice(start, min(start + width, self.neurons))
                yield which, piece[which]

    def range(self) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
        """Smallest and largest value per neuron in float64, `inf, -inf` without values; NaN and Inf show up here."""
        low = torch.full((self.neurons,), torch.inf, dtype=torch.float64, device=self.device)
        high = -low
        for piece in self:
            # All of amin, amax, aminmax, minimum and maximum pass NaN on; `finite_range` relies on that.
            ends = (piece.amin(1), piece.amax(1)) if self.turned else torch.aminmax(piece, dim=1)
            low, high = torch.minimum(low, ends[0].double()), torch.maximum(high, ends[1].double())
        return low + 0.0, high + 0.0  # -0.0 becomes 0.0, or the state would depend on the order of values


def _flat_parts(
    values: Float[Tensor, "*batch head dim"], valid: Bool[Tensor, "*batch"] | None
) -> list[tuple[Float[Tensor, "token head dim"], Bool[Tensor, " token"] | None]]:
    """Views with one token axis: usually one; one per text where texts do not lie after each other in memory."""
    tokens = values.shape[:-2].numel()
    try:
        # `view` raises where it would have to copy; `reshape` would copy a whole activation without a word.
        return [(values.view(tokens, *values.shape[-2:]), None if valid is None else valid.flatten())]
    except RuntimeError:
        if values.ndim != 4:
            return [(values.reshape(tokens, *values.shape[-2:]), None if valid is None else valid.flatten())]
        return list(zip(values, [None] * len(values) if valid is None else valid, strict=True))

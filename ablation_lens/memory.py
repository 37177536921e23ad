"""Memory of our own: state that outlives a caller's inference mode, and scratch that is used again and again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Shaped
from torch import Tensor


@contextmanager
def own_memory() -> Iterator[None]:
    """State made under a caller's inference mode could not be updated in place outside it later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Scratch:
    """A few megabytes that are kept between calls: fresh memory of that size costs more than the work done in it.

    Who takes memory of a dtype again gets the same memory again. That is no state: its contents never matter.
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

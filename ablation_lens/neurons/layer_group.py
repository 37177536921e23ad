"""Consecutive layers side by side, so that an accelerator counts them in a few large kernels.

A kernel takes longer to start than to count one layer of a small batch. So a layer's valid positions are only copied
aside while the model runs; what counts and sums is shown as many layers at once as fit in bounded memory.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ablation_lens.neurons.rows import Rows, Scratch

GROUP_BYTES = 2**28
"""How much is copied aside before it is counted."""


class LayerGroup:
    """Gathers layers one by one, and shows `count(layers, rows)` some of them: rows are `[token (layer head) dim]`.

    >>> group = LayerGroup(3, lambda layers, rows: print(layers, rows.tokens, rows.shape))
    >>> for layer in range(3):
    ...     group.put(layer, torch.zeros(2, 5, 4, 8))
    >>> group.flush()
    slice(0, 3, None) 10 (12, 8)
    """

    def __init__(self, n_layers: int, count: Callable[[slice, Rows], None], *, most_bytes: int = GROUP_BYTES) -> None:
        self._n_layers, self._count, self._most_bytes = n_layers, count, most_bytes
        self._scratch = Scratch()
        self._first, self._held = 0, 0
        self._buffer: Float[Tensor, "token layer head dim"] | None = None

    def put(
        self, layer: int, values: Float[Tensor, "*batch head dim"], places: Int64[Tensor, " token"] | None = None
    ) -> None:
        """Copy a layer's values aside, at these places of the flattened batch (None: everywhere)."""
        tokens = values.shape[:-2].numel() if places is None else len(places)
        shape = (tokens, *values.shape[-2:])
        buffer = self._buffer
        fits = (
            buffer is not None
            and layer == self._first + self._held
            and self._held < buffer.shape[1]
            and (buffer.shape[0], *buffer.shape[2:], buffer.dtype) == (*shape, values.dtype)
        )
        if not fits:
            self.flush()
            buffer = self._buffer = self._room(layer, shape, values)
            self._first = layer
        assert buffer is not None
        mine = buffer[:, self._held]
        if places is None:
            mine.view(values.shape).copy_(values)
        else:
            torch.index_select(values.flatten(0, -3), 0, places, out=mine)
        self._held += 1

    def _room(self, layer: int, shape: tuple[int, ...], values: Tensor) -> Float[Tensor, "token layer head dim"]:
        tokens, heads, dims = shape
        size = tokens * heads * dims
        fitting = self._most_bytes // max(1, size * values.element_size())
        layers = max(1, min(fitting, self._n_layers - layer))
        return self._scratch.take(size * layers, values.dtype, values.device).view(tokens, layers, heads, dims)

    def flush(self) -> None:
        """Have everything counted that is still held."""
        buffer, held = self._buffer, self._held
        self._buffer, self._held = None, 0
        if buffer is not None and held:
            self._count(slice(self._first, self._first + held), Rows(buffer[:, :held].flatten(1, 2), turned=False))

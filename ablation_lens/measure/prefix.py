"""What runs with different ablations share: the blocks before the first layer in which anything is ablated.

Damage layer by layer and head by head runs a model once for every one of them, and half of all blocks would be computed
again with the same numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ablation_lens.hooked import listening
from ablation_lens.measure.forward import ReachedTheEnd, final_residual, forward_of, giving, logits_everywhere
from ablation_lens.sites import Hook
from ablation_lens.tasks.plans import Batch

MOST = 2**28
"""How many numbers are kept between runs."""


class Prefix:
    """What the blocks before one layer make of every batch; runs with hooks from there on begin after them.

    No bit differs from a whole run. It is kept for one layer at a time: where layers are asked for one after another,
    each block is run once more in all. Where somebody listens, or a model is not a stack of blocks, runs are whole.
    What was kept is forgotten when a weight was exchanged or written to; writing to `weight.data` is not noticed.

    >>> import ablation_lens as al
    >>> model, batch = al.load_model("tiny-roberta"), Batch.causal(torch.tensor([[2, 7, 9]]))
    >>> ablation = al.Ablation.from_names("L2.H0", model=model)
    >>> with torch.inference_mode(), Prefix(model).of(0, batch, ablation.hooks()) as layer:
    ...     begun = final_residual(model, batch, ablation.hooks())
    >>> layer, torch.equal(begun, final_residual(model, batch, ablation.hooks()))
    (2, True)
    """

    def __init__(self, model: Any, *, most: int = MOST) -> None:
        self.model, self.most = model, most
        self._kept: dict[int, tuple[int, Any]] = {}
        self._possible: bool | None = None
        self._weights: list[Any] = []
        blocks = getattr(model, "blocks", None)
        self._blocks: list[nn.Module] = []
        if isinstance(model, nn.Module) and isinstance(blocks, nn.ModuleList):
            self._blocks = list(blocks)

    @contextmanager
    def of(self, number: int, batch: Batch, hooks: Sequence[Hook]) -> Iterator[int]:
        """Around runs of a batch, which is told by its number: with these hooks or fewer. Gives where they begin."""
        layer = self._first(hooks)
        if layer:
            self._forget_other_weights()
        if not layer or not self._is_possible(batch):
            yield 0
            return
        with self._begun(layer, self._output(number, batch, layer)):
            yield layer

    def _first(self, hooks: Sequence[Hook]) -> int:
        """The first layer with a hook; 0 where blocks before it cannot be left out."""
        # A name may be a function of all names.
        names = [name.split(".") if isinstance(name, str) else [""] for name, _ in hooks]
        if not names or any(parts[0] != "blocks" for parts in names):
            return 0
        layer = min(int(parts[1]) for parts in names)
        if layer >= len(self._blocks):
            return 0
        # Of hooks after the blocks nothing would be lost, but who tells them from embeddings?
        later = {module for block in self._blocks[layer:] for module in block.modules()}
        return 0 if listening(*(module for module in self.model.modules() if module not in later)) else layer

    def _forget_other_weights(self) -> None:
        weights = [_state_of(weight) for weight in (*self.model.parameters(), *self.model.buffers())]
        if weights != self._weights:
            self._kept.clear()
            self._weights, self._possible = weights, None

    def _begun(self, layer: int, output: Any) -> Any:
        # A copy, as a block may write into what it is given.
        fresh = (output[0].clone(), *output[1:]) if isinstance(output, tuple) else output.clone()
        return giving((block, fresh) for block in self._blocks[:layer])

    def _output(self, number: int, batch: Batch, layer: int) -> Any:
        """What the block before a layer gives."""
        begin, before = self._kept.get(number, (0, None))
        if begin == layer:
            return before
        if begin < layer and begin:
            with self._begun(begin, before):
                output = self._made(batch, layer)
        else:
            output = self._made(batch, layer)
        self._kept[number] = layer, output
        if sum(_stream_of(kept).numel() for _, kept in self._kept.values()) > self.most:
            del self._kept[number]
        return output

    def _made(self, batch: Batch, layer: int) -> Any:
        block, caught = self._blocks[layer - 1], []
        forward = block.forward

        def catch(*args: Any, **kwargs: Any) -> None:
            caught.append(forward(*args, **kwargs))
            raise ReachedTheEnd

        with forward_of(block, catch), suppress(ReachedTheEnd):
            logits_everywhere(self.model, batch)
        return caught[0]

    def _is_possible(self, batch: Batch) -> bool:
        """Whether the rest of a run depends on the stream alone, tried out on a row and with all blocks but one."""
        if self._possible is None:
            self._possible = False
            row, last = batch.rows(0, 1), len(self._blocks) - 1
            with suppress(IndexError):  # a model that calls its blocks by other names
                with self._begun(last, self._made(row, last)):
                    begun = final_residual(self.model, row)
                self._possible = torch.equal(begun, final_residual(self.model, row))
        return self._possible


def _state_of(weight: Tensor) -> tuple[int, int | None]:
    """What changes when somebody puts another weight in its place, or writes into it."""
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def _stream_of(output: Any) -> Tensor:
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream

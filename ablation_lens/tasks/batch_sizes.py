"""How many documents a batch may hold: `batch_size="auto"`, from the memory that is free and the sizes of the model.

What is computed is at most half of what fits, as other processes, caches and what is made of the values take memory,
too. On an accelerator the longest documents are then tried out. A batch that runs out of memory later is halved.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.escaping import shorten
from ablation_lens.memory import free_memory
from ablation_lens.sites import residual_after
from ablation_lens.tasks.inputs import whole
from ablation_lens.tasks.plans import Batch, BatchPlan

AUTO = "auto"
USUAL_POSITIONS = 8192
"""Positions of a batch that nobody chose. A CPU is not faster with more."""
MOST_POSITIONS = 2**16
"""Positions that keep any accelerator busy."""
_SHARE = 0.5


def checked_batch_size(given: Any) -> "int | str | None":
    """A batch size that somebody gave: documents, "auto", or None.

    >>> checked_batch_size("automatic")
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: batch_size='automatic' is not possible; give a whole number, or 'auto'.
    """
    if given is None or (isinstance(given, str) and given == AUTO):
        return given
    if isinstance(given, str):
        raise MismatchError(f"batch_size={shorten(repr(given), 60)} is not possible; give a whole number, or 'auto'.")
    size = whole(given, "batch_size")
    if size < 1:
        raise CorpusError(f"batch_size={size} is not possible; use 1 or more.")
    return size


def fitting_batch_size(model: Any, *plans: BatchPlan, free: int | None = None, tries: bool | None = None) -> int:
    """The documents of a batch that fit into memory beside `model`, the longest ones of `plans` included.

    A power of two, so that machines much alike agree. `free` is in bytes, None for what is free now; `tries` says
    whether the longest documents are run once, None for yes on an accelerator.

    >>> from ablation_lens import load_model, task_for
    >>> model = load_model("tiny-opt")
    >>> plan = task_for(model).batches(tokens=2000)
    >>> [fitting_batch_size(model, plan, free=megabytes * 2**20) for megabytes in (4, 64, 4096)]
    [1, 4, 32]
    """
    device = torch.device(model.cfg.device)
    free = free_memory(device) if free is None else free
    longest = max(item.length for plan in plans for item in plan.items)
    most = max(1, (USUAL_POSITIONS if device.type == "cpu" else MOST_POSITIONS) // longest)
    fitting = most if free is None else min(most, int(_SHARE * free) // bytes_of_row(model, longest))
    size = 1 << (max(1, fitting).bit_length() - 1)
    if device.type not in ("cpu", "meta") if tries is None else tries:
        for plan in plans:
            size = _tried(model, plan, size)
    return size


def bytes_of_row(model: Any, positions: int) -> int:
    """What a document of so many positions takes while its values are collected, roughly, and rather too much."""
    cfg = model.cfg
    neurons, inner = cfg.n_heads * cfg.d_head, getattr(cfg, "d_mlp", None) or 0
    number = cfg.dtype.itemsize
    # Residual stream and norms (in float32, whatever the dtype), queries to outputs, two or three of the MLP's width.
    live = cfg.d_model * (4 * number + 8) + 5 * neurons * number + 3 * inner * number
    # Values are counted one site at a time: laid out anew, their places, and squares in float64.
    counted = 24 * max(neurons, inner)
    # Scores of all pairs, as where attention is computed in the open, and a mask of them.
    pairs = 4 * positions * (1 + cfg.n_heads)
    return int(positions * (live + counted + pairs))


def _tried(model: Any, plan: BatchPlan, size: int) -> int:
    """So many documents, or as many fewer as it takes to run the longest of the plan."""
    while size > 1:
        try:
            _run_blocks(model, next(iter(plan.cut(size))).to(model.cfg.device))
        except torch.OutOfMemoryError:
            size //= 2  # only now, as the error holds what was computed
        else:
            break
    return size


class _ReachedTheEnd(Exception):  # noqa: N818  (a jump, not an error: never leaves this module)
    pass


@torch.inference_mode()
def _run_blocks(model: Any, batch: Batch) -> None:
    """All blocks and no more: logits are made a few at a time."""

    def stop(residual: Tensor, hook: Any) -> None:
        raise _ReachedTheEnd

    args, options = batch.arguments()
    end = residual_after(model.cfg.n_layers - 1)
    # An autoencoder of sae-lens may stand in its place: then the rest is run, too.
    hooks = [(end, stop)] if end in getattr(model, "hook_dict", (end,)) else []
    with suppress(_ReachedTheEnd):
        model.run_with_hooks(*args, fwd_hooks=hooks, **options)

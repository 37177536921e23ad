"""Running a hooked model: up to its last block, and from there to logits at chosen positions only.

A masked model scores 15 % of its positions, and a vocabulary is wide: unembedding what is not scored costs more
than everything else. Models that end in some other way are run whole.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ablation_lens.adapters import HookedEncoder
from ablation_lens.plans import Batch
from ablation_lens.sites import residual_after

Hook = tuple[str, Callable[..., Any]]


class _ReachedTheEnd(Exception):  # noqa: N818  (a jump, not an error: never leaves this module)
    """Raised by our own hook behind the last block."""


def final_residual(model: Any, batch: Batch, hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream behind the last block, with `hooks` in place; nothing after it is computed."""
    args, options = batch.arguments()
    if isinstance(model, HookedEncoder):
        return _run(model, args, hooks, {**options, "stop_at_layer": model.cfg.n_layers})
    caught: list[Tensor] = []

    def stop(residual: Tensor, hook: Any) -> None:
        caught.append(residual)
        raise _ReachedTheEnd

    last = (residual_after(model.cfg.n_layers - 1), stop)
    try:
        _run(model, args, [*hooks, last], options)
    except _ReachedTheEnd:
        return caught[0]
    raise RuntimeError(f"{last[0]} of {type(model).__name__} never fired")  # unreachable with TransformerLens hooks


def logits_everywhere(model: Any, batch: Batch, hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch *pos out"]:
    """Plain logits, as the model itself gives them."""
    args, options = batch.arguments()
    return _run(model, args, hooks, options)


def _run(model: Any, args: Sequence[Any], hooks: Sequence[Hook], options: dict[str, Any]) -> Any:
    return model.run_with_hooks(*args, fwd_hooks=list(hooks), **options)


def logits_from(model: Any, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row out"]:
    """Final norm and unembedding of single positions."""
    if isinstance(model, HookedEncoder):
        return model.head(residual)
    return model.unembed(model.ln_final(residual[None]))[0]


_ends_plainly: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


@torch.inference_mode()
def ends_plainly(model: Any, batch: Batch) -> bool:
    """Whether norm and unembedding of the final residual are all that lies behind the last block.

    Tried out once per model, on the first row of a batch: soft caps, logit scales and output projections
    would otherwise be lost without a word.
    """
    if isinstance(model, HookedEncoder):
        return model.task == "masked-lm"
    if model not in _ends_plainly:
        _ends_plainly[model] = _agrees(model, batch)
    return _ends_plainly[model]


def _agrees(model: Any, batch: Batch) -> bool:
    if batch.labels.ndim != 2 or not (hasattr(model, "ln_final") and hasattr(model, "unembed")):
        return False
    row = Batch(batch.inputs[:1], batch.valid[:1], batch.labels[:1], batch.scored[:1])
    expected = logits_everywhere(model, row)[0].float()
    ours = logits_from(model, final_residual(model, row)[0]).float()
    # Real disagreement is large; rounding differs with the shape of the product, most of all in 16 bits.
    tolerance = 1e-3 if expected.dtype == ours.dtype == torch.float32 and model.cfg.dtype == torch.float32 else 5e-2
    return ours.shape == expected.shape and torch.allclose(
        ours, expected, rtol=0, atol=tolerance * float(expected.abs().max())
    )

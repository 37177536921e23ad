"""Running a hooked model: up to its last block, and from there to logits at chosen positions only.

A masked model scores 15 % of its positions, and a vocabulary is wide: unembedding what is not scored costs more
than everything else. Models that end in some other way are run whole.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ablation_lens.hooked import listening, require_site
from ablation_lens.sites import Hook, Site, residual_after
from ablation_lens.tasks.plans import Batch


def is_encoder(model: Any) -> bool:
    """Whether this is one of `adapters`: it can stop before its head, which takes single positions."""
    return hasattr(model, "encode") and hasattr(model, "head")


class _ReachedTheEnd(Exception):  # noqa: N818  (a jump, not an error: never leaves this module)
    """Raised by our own hook after the last block."""


def final_residual(model: Any, batch: Batch, hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after the last block, with `hooks` in place; nothing after it is computed."""
    args, options = batch.arguments()
    if is_encoder(model):
        return _run(model, args, hooks, {**options, "stop_at_layer": model.cfg.n_layers})
    caught: list[Tensor] = []

    def stop(residual: Tensor, hook: Any) -> None:
        caught.append(residual)
        raise _ReachedTheEnd

    last = (residual_after(model.cfg.n_layers - 1), stop)
    # Last in the list: hooks of one point run in order, so the caller's may still change the residual stream.
    # Raising is safe, as run_with_hooks takes its hooks off in a `finally`.
    try:
        _run(model, args, [*hooks, last], options)
    except _ReachedTheEnd:
        return caught[0]
    raise RuntimeError(f"{last[0]} of {type(model).__name__} never fired")  # unreachable with TransformerLens hooks


def watch(
    model: Any,
    batch: Batch,
    site: Site | str | Iterable[Site | str],
    see: Callable[..., None],
    layers: Iterable[int] | None = None,
) -> None:
    """Run the model, and show `see(layer, values)` what the site holds, layer by layer as it is computed.

    Of several sites, `see(site, layer, values)`: values are `[batch pos head dim]`.
    """
    several = not isinstance(site, Site | str)
    sites = [Site.of(each) for each in ([site] if isinstance(site, Site | str) else site)]
    for each in sites:
        require_site(model, each)

    def hook_for(here: Site, layer: int) -> Callable[[Tensor, Any], None]:
        place = (here, layer) if several else (layer,)
        # `see` returns None, so the activation stays; anything else would replace it.
        return lambda value, hook: see(*place, here.to_heads(value.detach()))

    wanted = range(model.cfg.n_layers) if layers is None else sorted(set(layers))
    final_residual(model, batch, [(here.hook_name(layer), hook_for(here, layer)) for layer in wanted for here in sites])


def capture(
    model: Any, batch: Batch, site: Site | str = Site.Z, layers: Iterable[int] | None = None
) -> dict[int, Float[Tensor, "batch pos head dim"]]:
    """What the site holds in every layer (or those wanted), for one batch.

    >>> from ablation_lens import load_model
    >>> captured = capture(load_model("tiny-opt"), Batch.causal(torch.tensor([[2, 7, 9]])), layers=[1, 3])
    >>> {layer: tuple(values.shape) for layer, values in captured.items()}
    {1: (1, 3, 4, 32), 3: (1, 3, 4, 32)}
    """
    captured: dict[int, Tensor] = {}
    watch(model, batch, site, captured.__setitem__, layers)
    return captured


def logits_everywhere(model: Any, batch: Batch, hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch *pos out"]:
    """Plain logits, as the model itself gives them."""
    args, options = batch.arguments()
    return _run(model, args, hooks, options)


def _run(model: Any, args: Sequence[Any], hooks: Sequence[Hook], options: dict[str, Any]) -> Any:
    return model.run_with_hooks(*args, fwd_hooks=list(hooks), **options)


def logits_from(model: Any, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row out"]:
    """Final norm and unembedding of single positions."""
    if is_encoder(model):
        return model.head(residual)
    # TransformerLens wants [batch pos d_model]; the rows are taken for one text, as both act on each position alone.
    return model.unembed(model.ln_final(residual[None]))[0]


_ends_plainly: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


@torch.inference_mode()
def ends_plainly(model: Any, batch: Batch) -> bool:
    """Whether norm and unembedding of the final residual are all that lies after the last block.

    Tried out once per model, on the first row of a batch: soft caps, logit scales and output projections
    would otherwise be lost without a word.
    """
    if is_encoder(model):
        return model.task == "masked-lm"
    if _is_heard_after_the_blocks(model):
        return False
    if model not in _ends_plainly:
        _ends_plainly[model] = _agrees(model, batch)
    return _ends_plainly[model]


def _is_heard_after_the_blocks(model: Any) -> bool:
    """Whether a hook there would see single positions, and not rows of them."""
    ends = [getattr(model, name, None) for name in ("ln_final", "unembed")]
    return listening(*(part for end in ends if isinstance(end, nn.Module) for part in end.modules()))


def as_given(logits: Float[Tensor, "batch *pos out"], given: Batch) -> Float[Tensor, "batch *pos out"]:
    """Logits in the layout of a batch whose texts were moved to the start of their rows."""
    if logits.ndim != 3 or given.from_start() is given:
        return logits
    order = (~given.valid).byte().argsort(dim=1, stable=True)  # as `from_start` moves them
    return torch.empty_like(logits).scatter_(1, order[..., None].expand_as(logits), logits)


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

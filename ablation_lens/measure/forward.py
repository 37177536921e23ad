"""Running a hooked model: up to its last block, and from there to logits at chosen positions only.

A masked model scores 15 % of its positions, and a vocabulary is wide: unembedding what is not scored costs more
than everything else. Models that end in some other way are run whole.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import firing, hiding, listening, require_fired, require_site
from ablation_lens.models.fast_attention import after_z
from ablation_lens.sites import Hook, Site, residual_after
from ablation_lens.tasks.plans import Batch


def is_encoder(model: Any) -> bool:
    """Whether this is one of `adapters`: it can stop before its head, which takes single positions."""
    return hasattr(model, "encode") and hasattr(model, "head")


class ReachedTheEnd(Exception):  # noqa: N818  (a jump, not an error: never leaves this package)
    """Raised where no more of a run is wanted."""


def final_residual(
    model: Any, batch: Batch, hooks: Sequence[Hook] = (), *, layer: int | None = None
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after the last block, or after another, with `hooks` in place; no more is computed."""
    args, options = batch.arguments()
    last_layer = model.cfg.n_layers - 1 if layer is None else layer
    if is_encoder(model):
        return _run(model, args, hooks, {**options, "stop_at_layer": last_layer + 1})
    caught: list[Tensor] = []

    def stop(residual: Tensor, hook: Any) -> None:
        caught.append(residual)
        raise ReachedTheEnd

    last = (residual_after(last_layer), stop)
    # Last in the list: hooks of one point run in order, so the caller's may still change the residual stream.
    # Raising is safe, as run_with_hooks takes its hooks off in a `finally`.
    with ExitStack() as leaving:
        if _has_hook(model, last[0]):
            hooks = [*hooks, last]
        else:
            leaving.callback(
                model.blocks[last_layer]
                .register_forward_hook(lambda block, args, residual: stop(residual, None))
                .remove
            )
        try:
            _run(model, args, hooks, options)
        except ReachedTheEnd:
            # Of a model on several devices the last block lies elsewhere; what a batch says of positions is beside it.
            return caught[0].to(batch.inputs.device)
    raise RuntimeError(f"{last[0]} of {type(model).__name__} never fired")  # unreachable with TransformerLens hooks


def _has_hook(model: Any, name: str) -> bool:
    """Whether there is such a hook, or no telling: `add_sae` of sae-lens puts an autoencoder in the place of one."""
    points = getattr(model, "hook_dict", None)
    return points is None or name in points


_FEW = 256
"""Of fewer rows than this, and the more so among threads, a product may be another kernel's, and its last bits, too."""


def residual_at(
    model: Any,
    batch: Batch,
    row: Int[Tensor, " place"],
    column: Int[Tensor, " place"],
    hooks: Sequence[Hook] = (),
    *,
    few: int = _FEW,
) -> Float[Tensor, "place d_model"]:
    """The residual stream after the last block at some places, with `hooks` in place.

    A place's keys and values are needed by others, what the last block makes of z by nobody else: where nobody
    listens, that is done for these places alone, unless they are `few`. Nothing here waits for a device.
    """
    after_z = None if len(row) < few else _after_z(model, hooks)
    if after_z is None:
        whole = final_residual(model, batch, hooks)
        return whole[row.to(whole.device), column.to(whole.device)]
    caught: list[Tensor] = []

    def stop(z: Tensor, hook: Any) -> None:
        caught.append(z)
        raise ReachedTheEnd

    last = model.cfg.n_layers - 1
    see = (Site.RESID_PRE.hook_name(last), lambda residual, hook: caught.append(residual))
    args, options = batch.arguments()
    with suppress(ReachedTheEnd):
        _run(model, args, [*hooks, see, (Site.Z.hook_name(last), stop)], options)
    # The places are taken for one text, as each is acted on alone.
    residual, z = (values[row.to(values.device), column.to(values.device)][None] for values in caught)
    return after_z(residual, z)[0].to(batch.inputs.device)


def _after_z(model: Any, hooks: Sequence[Hook]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """How the last block goes on from z; None where that is not known, or somebody would see single positions."""
    last = model.cfg.n_layers - 1
    if not all(_has_hook(model, site.hook_name(last)) for site in (Site.RESID_PRE, Site.Z)):
        return None
    before = (Site.RESID_PRE, Site.Q, Site.K, Site.V, Site.Z)
    harmless = {site.hook_name(last) for site in before}
    if any(name.startswith(f"blocks.{last}.") and name not in harmless for name, _ in hooks):
        return None
    if not isinstance(blocks := getattr(model, "blocks", None), nn.ModuleList) or listening(*blocks[last].modules()):
        return None
    return getattr(model, "after_z", None) if is_encoder(model) else after_z(model)


def watch(
    model: Any,
    batch: Batch,
    site: Site | str | Iterable[Site | str],
    see: Callable[..., None],
    layers: Iterable[int] | None = None,
    hooks: Sequence[Hook] = (),
) -> None:
    """Run the model, and show `see(layer, values)` what the site holds, layer by layer as it is computed.

    Of several sites, `see(site, layer, values)`: values are `[batch pos head dim]`. Nothing after the last of the
    layers is computed; `hooks` act first.
    """
    several = not isinstance(site, Site | str)
    sites = [Site.of(each) for each in ([site] if isinstance(site, Site | str) else site)]
    for each in sites:
        require_site(model, each)

    once = {each: _Once(each) for each in sites if each.is_one_hook}

    def hook_for(here: Site, layer: int) -> Callable[[Tensor, Any], None]:
        place = (here, layer) if several else (layer,)
        if here in once:
            return lambda value, hook: once[here].show(value, functools.partial(see, *place))
        # `see` returns None, so the activation stays; anything else would replace it.
        return lambda value, hook: see(*place, here.to_heads(value.detach()))

    wanted = range(model.cfg.n_layers) if layers is None else sorted(set(layers))
    seeing = [
        (here.hook_name(layer), hook_for(here, layer))
        for layer in wanted
        for here in sites
        if layer in here.layers(model.cfg)
    ]
    blocks = {here.block for here in once}
    with firing(once):
        if None in blocks:  # before the blocks or after them
            logits_everywhere(model, batch, [*hooks, *seeing])
        else:
            # A single hook is "layer" 0, whatever block it is in.
            others = wanted if len(once) < len(sites) else []
            last = max([*others, *(block for block in blocks if block is not None)], default=None)
            final_residual(model, batch, [*hooks, *seeing], layer=last)
    for here, seen in once.items():
        require_fired(here, seen.first is not None)


class _Once:
    """What a single hook holds in one run: a norm that three branches read may fire three times, with equal values."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.first: Tensor | None = None

    def show(self, value: Any, see: Callable[[Tensor], None]) -> None:
        """The first values are seen; others after them must be the same."""
        heads = self.site.to_heads(value).detach()
        if self.first is None:
            self.first = heads
            see(heads)
        elif not torch.equal(heads, self.first):
            raise MismatchError(
                f"{self.site.value} fires several times in a run, with other values each time, so which of them are "
                "its neurons' cannot be told."
            )


def require_positions(
    site: Site, layer: int, values: Float[Tensor, "batch pos head dim"], counted: Bool[Tensor, "batch pos"]
) -> None:
    """Raise `MismatchError` unless a site holds the positions that a batch speaks of."""
    if tuple(values.shape[:2]) != tuple(counted.shape):
        raise MismatchError(
            f"{site.hook_name(layer)} has {tuple(values.shape[:2])} positions, the batch says {tuple(counted.shape)}; "
            "valid must be [batch pos] of what the model computes."
        )


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
    return {layer: values.to(batch.inputs.device) for layer, values in captured.items()}


def logits_everywhere(model: Any, batch: Batch, hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch *pos out"]:
    """Plain logits, as the model itself gives them."""
    args, options = batch.arguments()
    return _run(model, args, hooks, options)


def _run(model: Any, args: Sequence[Any], hooks: Sequence[Hook], options: dict[str, Any]) -> Any:
    with hiding() if "attention_mask" in options else nullcontext():
        return model.run_with_hooks(*args, fwd_hooks=list(hooks), **options)


@contextmanager
def forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a while. Its own may lie in the module's `__dict__`, as fast attention has it."""
    own = vars(module)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


@contextmanager
def giving(outputs: Iterable[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Modules that give this, whatever they are called with."""
    with ExitStack() as leaving:
        for module, output in outputs:
            leaving.enter_context(forward_of(module, lambda *args, _output=output, **kwargs: _output))
        yield


def scored_logits(model: Any, batch: Batch, hooks: Sequence[Hook] = ()) -> Float[Tensor, "prediction out"]:
    """Logits of the scored predictions, in the order in which indexing by `scored` takes them."""
    if ends_plainly(model, batch):
        return logits_from(model, final_residual(model, batch, hooks)[batch.scored])
    return logits_everywhere(model, batch, hooks)[batch.scored]


def within_memory(batch: Batch, run: Callable[[Batch], None]) -> None:
    """Do something with a batch, or with its halves where memory runs out.

    >>> def run(batch):
    ...     if len(batch.inputs) > 1:
    ...         raise torch.OutOfMemoryError
    ...     print(batch.inputs.tolist())
    >>> within_memory(Batch.causal(torch.tensor([[5, 6], [7, 8]])), run)
    [[5, 6]]
    [[7, 8]]
    """
    try:
        run(batch)
    except torch.OutOfMemoryError:
        if len(batch.inputs) == 1:
            raise
    else:
        return
    # Outside the except: inside it the traceback keeps the failed run's tensors alive, and memory stays full.
    middle = len(batch.inputs) // 2
    for part in (batch.rows(0, middle), batch.rows(middle)):
        within_memory(part, run)


def ordinary(batch: Batch) -> Batch:
    """A batch without tensors of inference mode, which no backward pass may keep."""
    return batch.each_tensor(lambda part: part.clone() if part.is_inference() else part)


def require_ordinary(model: Any) -> None:
    """Raise `MismatchError` for a model that no gradient passes through."""
    if isinstance(model, nn.Module) and any(weight.is_inference() for weight in model.parameters()):
        raise MismatchError(
            "the model was made under torch.inference_mode(), and no gradients pass through such weights; load it "
            "outside."
        )


def logits_from(model: Any, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row out"]:
    """Final norm and unembedding of single positions."""
    if is_encoder(model):
        return model.head(residual[:, None] if model.task == "image-classification" else residual)
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


_reads_first: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


@torch.inference_mode()
def reads_first(model: Any, batch: Batch) -> bool:
    """Whether the head of an image model reads the first position alone, as ViT's does. Tried out once per model."""
    if not is_encoder(model) or model.task != "image-classification" or _is_heard_after_the_blocks(model):
        return False
    if model not in _reads_first:
        residual = final_residual(model, batch.rows(0, 1))
        _reads_first[model] = _close(model, logits_from(model, residual[:, 0]), model.head(residual))
    return _reads_first[model]


def _is_heard_after_the_blocks(model: Any) -> bool:
    """Whether a hook there would see single positions, and not rows of them."""
    ends = [getattr(model, name, None) for name in ("ln_final", "unembed", "classifier")]
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
    return _close(model, logits_from(model, final_residual(model, row)[0]), logits_everywhere(model, row)[0])


def _close(model: Any, ours: Tensor, expected: Tensor) -> bool:
    # Real disagreement is large; rounding differs with the shape of the product, most of all in 16 bits.
    tolerance = 1e-3 if expected.dtype == ours.dtype == torch.float32 and model.cfg.dtype == torch.float32 else 5e-2
    return ours.shape == expected.shape and torch.allclose(
        ours.float(), expected.float(), rtol=0, atol=tolerance * float(expected.float().abs().max())
    )

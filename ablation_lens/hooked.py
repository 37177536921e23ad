"""Questions that any hooked model can be asked, whoever hooked it. By duck typing: TransformerLens is never imported.

A `HookedTransformer`, a `TransformerBridge`, the encoders of `adapters` and a user's own model answer alike.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ablation_lens.errors import MismatchError
from ablation_lens.names import nearest
from ablation_lens.sites import Site, Weights


def task_of(model: Any) -> str:
    """What a model is scored on; one that does not say is a causal language model."""
    return str(getattr(model, "task", "causal-lm"))


def is_unhooked(model: Any) -> bool:
    """Whether this is a Hugging Face model as transformers loads it.

    >>> from ablation_lens import load_model
    >>> is_unhooked(load_model("tiny-opt"))
    False
    """
    return isinstance(model, nn.Module) and hasattr(model, "config") and not hasattr(model, "cfg")


def advice_for(model: Any) -> str:
    """What to give in the place of something that is not a hooked model.

    >>> advice_for(torch.nn.Linear(2, 2))
    "give a hooked model, such as al.load_model('tiny-opt')"
    """
    if is_unhooked(model):
        return "a model in memory is hooked by ablation_lens.models.load.hook_model(model)"
    return "give a hooked model, such as al.load_model('tiny-opt')"


def tokenizer_of(model: Any) -> Any:
    """The tokenizer a model reads text with, before TransformerLens changed its special tokens; None without one."""
    return getattr(model, "hf_tokenizer", None) or getattr(model, "tokenizer", None)


_HIDES: ContextVar[bool] = ContextVar("the attention mask hides something", default=False)


@contextmanager
def hiding() -> Iterator[None]:
    """Around a call of a model whose attention mask hides something: an accelerator need not be asked, and waited for.

    >>> everything = torch.ones(2, 3)
    >>> with hiding():
    ...     inside = hides(everything)
    >>> inside, hides(everything)
    (True, False)
    """
    token = _HIDES.set(True)
    try:
        yield
    finally:
        _HIDES.reset(token)


def hides(attention_mask: Int[Tensor, "batch pos"]) -> bool:
    """Whether a model that is called with this mask shall not look at some positions."""
    return _HIDES.get() or not bool((attention_mask == 1).all())


def is_hooked(model: Any) -> bool:
    """Whether somebody's forward hooks are on a model; permanent ones are a part of it.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-opt")
    >>> with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda value, hook: value)]):
    ...     inside = is_hooked(model)
    >>> inside, is_hooked(model)
    (True, False)
    """
    points = getattr(model, "hook_dict", {}).values()
    return any(not hook.is_permanent for point in points for hook in getattr(point, "fwd_hooks", ()))


def listening(*modules: Any) -> bool:
    """Whether any hook, forward or backward, TransformerLens' or plain torch's, may fire at one of these modules.

    What nobody listens to need not be computed: attention scores above all.

    >>> quiet = nn.Identity()
    >>> handle = quiet.register_forward_hook(lambda *_: None)
    >>> listening(quiet), listening(nn.Identity())
    (True, False)
    >>> handle.remove()
    """
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return True
    # Hooks on every module of the process (torch.nn.modules.module.register_module_forward_hook) fire here, too.
    torch_modules: Any = nn.modules.module
    return any(
        (
            torch_modules._global_forward_hooks,
            torch_modules._global_forward_pre_hooks,
            torch_modules._global_backward_hooks,
            torch_modules._global_backward_pre_hooks,
        )
    )


def remove_hooks(
    model: Any, direction: str = "both", including_permanent: bool = False, level: int | None = None
) -> None:
    """`remove_all_hook_fns` of TransformerLens, which every `run_with_hooks` ends with, at the points that have hooks.

    It writes two new lists to each of a model's hundreds of points, which takes longer than to ablate.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-opt")
    >>> model.add_hook("blocks.0.attn.hook_z", lambda value, hook: value)
    >>> remove_hooks(model)
    >>> is_hooked(model)
    False
    """
    for point in model.hook_points():
        if point.fwd_hooks or point.bwd_hooks:
            point.remove_hooks(direction, including_permanent=including_permanent, level=level)


@dataclass(frozen=True)
class Columns:
    """The columns of one activation: `count` of them, after `start` that a key-value cache holds.

    `real` says of all of them, cached ones first, which hold a token and not padding; None where all do.

    >>> columns = Columns(1, 2, torch.tensor([[False, True, True], [True, True, False]]))
    >>> columns.places(torch.device("cpu")).tolist(), columns.lengths(torch.device("cpu")).tolist()
    ([[0, 1], [1, 2]], [[2], [2]])
    """

    start: int
    count: int
    real: Bool[Tensor, "batch column"] | None = None

    def places(self, device: torch.device) -> Int[Tensor, "#batch column"]:
        """The position of every column: how many real tokens are before it in its row; -1 at padding.

        Padding after a text counts on: in a text that begins its row, a column's number is its position.
        """
        if self.real is None:
            return torch.arange(self.start, self.start + self.count, device=device)[None]
        real = self.real.to(device)
        counted = real | (real.flip(1).cumsum(1).flip(1) == 0)
        return (counted.cumsum(1) - 1).masked_fill(~counted, -1)[:, self.start :]

    def lengths(self, device: torch.device) -> Int[Tensor, "#batch 1"]:
        """How many real tokens each row has so far."""
        if self.real is None:
            return torch.tensor([[self.start + self.count]], device=device)
        return self.real.to(device).sum(1, keepdim=True)


@contextmanager
def watch_columns(model: Any, layers: Iterable[int]) -> Iterator[dict[int, Callable[[int], Columns]]]:
    """Per layer a function that says, while the model runs, what so many columns of an activation are.

    By pre-hooks, which know the cache and the attention mask that a model is called with.
    """
    with ExitStack() as leaving:
        mask = None
        if hasattr(model, "original_model"):
            # A bridge's blocks see a mask of queries against keys, in which sliding windows hide real tokens, too.
            mask = _SeenMask()
            leaving.callback(model.original_model.register_forward_pre_hook(mask, with_kwargs=True).remove)
        # One per block: while the model runs, the caches of earlier blocks hold the new positions already.
        watching = {layer: _BlockInput(layer, mask) for layer in layers}
        for layer, block_input in watching.items():
            leaving.callback(model.blocks[layer].register_forward_pre_hook(block_input, with_kwargs=True).remove)
        yield {layer: block_input.columns for layer, block_input in watching.items()}


class _SeenMask:
    """A pre-hook on a Hugging Face model: the attention mask it was called with."""

    real: Tensor | None = None

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Look at it, as torch calls a pre-hook that is registered `with_kwargs=True`."""
        mask = kwargs.get("attention_mask")
        self.real = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


class _BlockInput:
    """A pre-hook on a block: how many positions its key-value cache holds before the call, and the attention mask."""

    def __init__(self, layer: int, mask: _SeenMask | None) -> None:
        self.layer, self.mask = layer, mask
        self.cached = 0
        self.real: Tensor | None = None

    def __call__(self, block: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Look into the cache."""
        entry = kwargs.get("past_kv_cache_entry")  # transformer-lens 3
        cache = kwargs.get("past_key_values")  # Hugging Face, and with it transformer-lens 4
        if entry is not None:
            self.cached = int(entry.past_keys.shape[1])  # [batch pos head dim]
        else:
            # Not the length of the keys it holds: a sliding window has dropped the first ones.
            self.cached = 0 if cache is None else int(cache.get_seq_length(self.layer))
        if self.mask is not None:
            self.real = self.mask.real
        else:
            # transformer-lens 3 gives [batch key] by name, an adapter [batch 1 1 key] after the residual stream.
            given = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            self.real = given.flatten(1) if isinstance(given, Tensor) else None

    def columns(self, count: int) -> Columns:
        """What so many columns of an activation in this block are."""
        real = None if self.real is None or not hides(self.real) else self.real.bool()
        if real is not None and real.shape[1] != self.cached + count:
            raise MismatchError(
                f"the attention mask has {real.shape[1]} columns, and there are {self.cached} cached positions and "
                f"{count} new ones: which of them are padding cannot be told."
            )
        return Columns(self.cached, count, real)


def require_site(model: Any, site: Site, *, replaced: bool = False) -> None:
    """Raise `MismatchError` unless the model has this site in every block, and, if wanted, obeys what is put there.

    >>> from ablation_lens import load_model
    >>> require_site(load_model("tiny-vit"), Site.RESID_MID)
    """
    if not hasattr(model, "cfg"):
        raise MismatchError(f"the model is a {type(model).__name__}; {advice_for(model)}.")
    if not site.is_one_hook:
        site.shape(model.cfg)  # has a sentence of its own for a model without MLPs
    points = getattr(model, "hook_dict", None)
    if points is None:  # a user's own wrapper: whether a hook exists is seen when it is used
        return
    if site.is_one_hook:
        if site.value not in points:
            raise MismatchError(
                f"this model has no hook {site.value!r}; did you mean {nearest(site.value, points)!r}? Its hooks "
                "are in model.hook_dict, those of a sparse autoencoder after model.add_sae(sae)."
            )
        return
    missing = [name for name in site.hook_names(model.cfg) if name not in points]
    if missing:
        why = " (its attention and MLP run in parallel)" if getattr(model.cfg, "parallel_attn_mlp", False) else ""
        has = [each.value for each in Site if each.hook_name(0) in points]
        raise MismatchError(
            f"this model{why if site is Site.RESID_MID else ''} has no {missing[0]}, so there are no neurons at "
            f"{site.value!r}; it has {', '.join(has)}."
        )
    # In a `TransformerBridge` this is another name of the input of the MLP's norm, and the stream goes past it.
    if replaced and site is Site.RESID_MID and str(getattr(points[site.hook_name(0)], "name", "")).endswith("hook_in"):
        raise MismatchError(
            "what is put at resid_mid of a TransformerBridge reaches the MLP alone, and not the residual stream, so "
            "nothing can be ablated there; ablate attn_out, or use transformer-lens 3."
        )


def shape_at(model: Any, site: Site, *, replaced: bool = False) -> tuple[int, int, int]:
    """`(layer, head, dim)` of a site of this model. How wide a single hook is, is seen in a run over two positions.

    With `replaced`, also raises `MismatchError` where the model computes the same whatever is put at such a hook.

    >>> from ablation_lens import load_model
    >>> shape_at(load_model("tiny-opt"), Site.of("blocks.1.ln1.hook_normalized"))
    (1, 1, 128)
    """
    require_site(model, site, replaced=replaced)
    if not site.is_one_hook:
        return site.shape(model.cfg)
    seen: list[tuple[int, int]] = []

    def see(value: Any, hook: Any) -> None:
        rows, columns, heads, dims = site.to_heads(value).shape
        if (rows, columns) != (1, 2) and task_of(model) != "image-classification":
            raise MismatchError(f"{site.value} is {rows} × {columns} where the model reads 1 text of 2 positions.")
        seen.append((heads, dims))

    def spoil(value: Any, hook: Any) -> Tensor:
        # NaN, because anything else may come to nothing: a norm takes away what is added to all.
        return torch.full_like(value, torch.nan)

    with torch.inference_mode():
        with firing([site]):
            plain = model.run_with_hooks(_any_input(model), fwd_hooks=[(site.value, see)])
        require_fired(site, bool(seen))
        if replaced and torch.equal(model.run_with_hooks(_any_input(model), fwd_hooks=[(site.value, spoil)]), plain):
            raise MismatchError(
                f"this model computes the same whatever is put at {site.value}, so nothing can be ablated there; it "
                "can be collected."
            )
    return 1, *seen[0]


@contextmanager
def firing(sites: Iterable[Site]) -> Iterator[None]:
    """Around a run: transformer-lens 4 refuses a hook that settings have switched off."""
    try:
        yield
    except ValueError as error:
        off = [site for site in sites if site.is_one_hook and f"Cannot add hook {site.value} " in str(error)]
        if not off:
            raise
        raise MismatchError(_never_fires(off[0])) from error


def require_fired(site: Site, fired: bool) -> None:
    """Raise `MismatchError` for a hook that stayed silent in a run; transformer-lens 3 says nothing of it."""
    if not fired:
        raise MismatchError(_never_fires(site))


def _never_fires(site: Site) -> str:
    return (
        f"{site.value} is a hook of this model that never fires, so there is nothing to see; TransformerLens switches "
        "some on by settings, such as cfg.use_attn_result."
    )


def _any_input(model: Any) -> Tensor:
    """Two tokens, or an image."""
    if task_of(model) == "image-classification":
        return torch.zeros(1, model.n_channels, *model.image_size, device=model.cfg.device)
    return torch.arange(2, device=model.cfg.device)[None]


# ---------------------------------------------------------------------- the weights that read neurons, or make them


class Projection(Protocol):
    """A matrix and its bias, wherever a model keeps them. Neurons with heads count head by head."""

    def weight(self) -> Float[Tensor, "input output"]:
        """A row per input, a column per output."""

    def bias(self) -> Float[Tensor, " output"] | None:
        """What is added whatever the input is; None where the family has no bias."""

    def set(self, weight: Float[Tensor, "input output"], bias: Float[Tensor, " output"] | None) -> None:
        """Put new tensors in their place; the old ones stay as they are, and so does the bias where None is given."""


def projection(block: Any, weights: Weights) -> Projection:
    """A block's weights: in the adapters, in a `TransformerBridge`, in a `HookedTransformer`.

    >>> from ablation_lens import load_model
    >>> projection(load_model("tiny-vit").blocks[0], Site.Z.weights).weight().shape
    torch.Size([96, 96])
    """
    module = getattr(block, weights.module)
    if isinstance(linear := getattr(module, weights.linear, None), nn.Linear):
        return _Linear(linear)
    bridge = getattr(getattr(module, weights.bridged, None), "original_component", None)
    if bridge is not None:
        return _Linear(bridge)
    # Under grouped heads, W_V is repeated for every head, and made of a parameter of that name.
    grouped = hasattr(module, f"_{weights.matrix}")
    if not grouped and not isinstance(getattr(module, weights.matrix, None), Tensor):
        raise MismatchError(
            f"the {weights.module} of this model, a {type(module).__name__}, has no single matrix {weights.matrix}: "
            "experts, and families that are hooked in another way, are not supported here."
        )
    return _Parameters(module, *(f"{'_' if grouped else ''}{name}" for name in (weights.matrix, weights.bias)))


class _Linear:
    """A torch `Linear` (weight `[out in]`) or a GPT-2 `Conv1D` (weight `[in out]`)."""

    def __init__(self, module: Any) -> None:
        self.module, self.transposed = module, isinstance(module, nn.Linear)

    def weight(self) -> Float[Tensor, "input output"]:
        weight: Tensor = self.module.weight
        return weight.T if self.transposed else weight

    def bias(self) -> Float[Tensor, " output"] | None:
        found: Tensor | None = self.module.bias
        return found

    def set(self, weight: Float[Tensor, "input output"], bias: Float[Tensor, " output"] | None) -> None:
        self.module.weight = _parameter(weight.T if self.transposed else weight)
        if bias is not None:
            self.module.bias = _parameter(bias)


class _Parameters:
    """TransformerLens' own: `W_O [head dim d_model]`, `W_out [d_mlp d_model]`, `W_V [head d_model dim]`, and biases.

    Where outputs have heads, so has the bias: `b_V [head dim]`.
    """

    def __init__(self, module: Any, weight: str, bias: str) -> None:
        self.module, self.names = module, (weight, bias)

    def weight(self) -> Float[Tensor, "input output"]:
        weight, bias = (getattr(self.module, name) for name in self.names)
        # Outputs with heads: their axis is the first.
        return weight.transpose(0, 1).flatten(1) if bias.ndim == 2 else weight.flatten(0, -2)  # type: ignore[no-any-return]

    def bias(self) -> Float[Tensor, " output"] | None:
        found: Tensor | None = getattr(self.module, self.names[1])
        return None if found is None else found.flatten()

    def set(self, weight: Float[Tensor, "input output"], bias: Float[Tensor, " output"] | None) -> None:
        old, old_bias = (getattr(self.module, name) for name in self.names)
        if old_bias.ndim == 2:
            heads, inputs, dims = old.shape
            weight = weight.view(inputs, heads, dims).transpose(0, 1)
        setattr(self.module, self.names[0], _parameter(weight.reshape(old.shape)))
        if bias is not None:
            setattr(self.module, self.names[1], _parameter(bias.reshape(old_bias.shape)))


def _parameter(tensor: Tensor) -> nn.Parameter:
    # Contiguous, because a transposed view cannot be saved; frozen, as `load_model` leaves every weight.
    return nn.Parameter(tensor.contiguous(), requires_grad=False)

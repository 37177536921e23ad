"""Questions that any hooked model can be asked, whoever hooked it. By duck typing: TransformerLens is never imported.

A `HookedTransformer`, a `TransformerBridge`, the encoders of `adapters` and a user's own model answer alike.
"""

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from ablation_lens.errors import MismatchError
from ablation_lens.sites import Site, Weights


def task_of(model: Any) -> str:
    """What a model is scored on; one that does not say is a causal language model."""
    return str(getattr(model, "task", "causal-lm"))


def tokenizer_of(model: Any) -> Any:
    """The tokenizer a model reads text with, before TransformerLens changed its special tokens; None without one."""
    return getattr(model, "hf_tokenizer", None) or getattr(model, "tokenizer", None)


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
    everywhere: Any = nn.modules.module._has_any_global_hook
    return bool(everywhere())


class CachedPositions:
    """A pre-hook on a block: how many positions its key-value cache holds before the call."""

    def __init__(self, layer: int) -> None:
        self.layer, self.length = layer, 0

    def __call__(self, block: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Look into the cache, as torch calls a pre-hook that is registered `with_kwargs=True`."""
        entry = kwargs.get("past_kv_cache_entry")  # transformer-lens 3
        cache = kwargs.get("past_key_values")  # Hugging Face, and with it transformer-lens 4
        if entry is not None:
            self.length = int(entry.past_keys.shape[1])  # [batch pos head dim]
        else:
            # Not the length of the keys it holds: a sliding window has dropped the first ones.
            self.length = 0 if cache is None else int(cache.get_seq_length(self.layer))

    def count(self) -> int:
        """The positions before the first one of this call."""
        return self.length


def require_site(model: Any, site: Site, *, replaced: bool = False) -> None:
    """Raise `MismatchError` unless the model has this site in every block, and, if wanted, obeys what is put there.

    >>> from ablation_lens import load_model
    >>> require_site(load_model("tiny-vit"), Site.RESID_MID)
    """
    site.shape(model.cfg)  # has a sentence of its own for a model without MLPs
    points = getattr(model, "hook_dict", None)
    if points is None:  # a user's own wrapper: whether a hook exists is seen when it is used
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


# ---------------------------------------------------------------------- the weights that read neurons, or make them


class Projection(Protocol):
    """A matrix and its bias, wherever a model keeps them. Neurons with heads count head by head."""

    def weight(self) -> Float[Tensor, "input output"]:
        """A row per input, a column per output."""

    def bias(self) -> Float[Tensor, " output"] | None:
        """What is added whatever the input is; None where the family has no bias."""

    def set(self, weight: Float[Tensor, "input output"], bias: Float[Tensor, " output"]) -> None:
        """Put new tensors in their place; the old ones stay as they are."""


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

    def set(self, weight: Float[Tensor, "input output"], bias: Float[Tensor, " output"]) -> None:
        self.module.weight = _parameter(weight.T if self.transposed else weight)
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

    def set(self, weight: Float[Tensor, "input output"], bias: Float[Tensor, " output"]) -> None:
        old, old_bias = (getattr(self.module, name) for name in self.names)
        if old_bias.ndim == 2:
            heads, inputs, dims = old.shape
            weight = weight.view(inputs, heads, dims).transpose(0, 1)
        setattr(self.module, self.names[0], _parameter(weight.reshape(old.shape)))
        setattr(self.module, self.names[1], _parameter(bias.reshape(old_bias.shape)))


def _parameter(tensor: Tensor) -> nn.Parameter:
    # Contiguous, because a transposed view cannot be saved; frozen, as `load_model` leaves every weight.
    return nn.Parameter(tensor.contiguous(), requires_grad=False)

"""Questions that any hooked model can be asked, whoever hooked it. By duck typing: TransformerLens is never imported.

A `HookedTransformer`, a `TransformerBridge`, the encoders of `adapters` and a user's own model answer alike.
"""

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from ablation_lens.sites import Site


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


# ---------------------------------------------------------------------- what reads a site's neurons


class Projection(Protocol):
    """The matrix and bias through which the neurons of a site act, wherever a model keeps them."""

    def weight(self) -> Float[Tensor, "neuron d_model"]:
        """A row per neuron."""

    def bias(self) -> Tensor | None:
        """What is added whatever the neurons are; None where the family has no bias."""

    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Put new tensors in their place; the old ones stay as they are."""


def output_projection(block: Any, site: Site | str) -> Projection:
    """What reads the site's neurons: in the adapters, in a `TransformerBridge`, in a `HookedTransformer`.

    >>> from ablation_lens import load_model
    >>> output_projection(load_model("tiny-vit").blocks[0], Site.Z).weight().shape
    torch.Size([96, 96])
    """
    site = Site.of(site)
    module = block.attn if site is Site.Z else block.mlp
    own, bridged = ("out", "o") if site is Site.Z else ("linear_out", "out")
    if isinstance(linear := getattr(module, own, None), nn.Linear):
        return _Linear(linear)
    bridge = getattr(getattr(module, bridged, None), "original_component", None)
    if bridge is not None:
        return _Linear(bridge)
    return _Parameters(module, *(("W_O", "b_O") if site is Site.Z else ("W_out", "b_out")))


class _Linear:
    """A torch `Linear` (weight `[out in]`) or a GPT-2 `Conv1D` (weight `[in out]`)."""

    def __init__(self, module: Any) -> None:
        self.module, self.transposed = module, isinstance(module, nn.Linear)

    def weight(self) -> Float[Tensor, "neuron d_model"]:
        weight: Tensor = self.module.weight
        return weight.T if self.transposed else weight

    def bias(self) -> Tensor | None:
        found: Tensor | None = self.module.bias
        return found

    def set(self, weight: Tensor, bias: Tensor) -> None:
        self.module.weight = _parameter(weight.T if self.transposed else weight)
        self.module.bias = _parameter(bias)


class _Parameters:
    """TransformerLens' own weights: `W_O [head dim d_model]` and `b_O`, or `W_out [d_mlp d_model]` and `b_out`."""

    def __init__(self, module: Any, weight: str, bias: str) -> None:
        self.module, self.names = module, (weight, bias)

    def weight(self) -> Float[Tensor, "neuron d_model"]:
        weight: Tensor = getattr(self.module, self.names[0])
        # [head dim d_model] → [neuron d_model]; `W_out` has that shape already.
        return weight.flatten(0, -2)

    def bias(self) -> Tensor | None:
        found: Tensor | None = getattr(self.module, self.names[1])
        return found

    def set(self, weight: Tensor, bias: Tensor) -> None:
        old = getattr(self.module, self.names[0])
        setattr(self.module, self.names[0], _parameter(weight.view(old.shape)))
        setattr(self.module, self.names[1], _parameter(bias))


def _parameter(tensor: Tensor) -> nn.Parameter:
    # Contiguous, because a transposed view cannot be saved; frozen, as `load_model` leaves every weight.
    return nn.Parameter(tensor.contiguous(), requires_grad=False)

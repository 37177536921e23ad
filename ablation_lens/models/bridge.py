"""Causal models under transformer-lens 4.x: a `TransformerBridge`, with SDPA as far as it lets Hugging Face attend.

For OPT the bridge delegates to Hugging Face's attention and shows the pattern only afterwards, when changing
it no longer changes anything. Here that attention function is exchanged, for one model, by one that uses
`scaled_dot_product_attention` while nobody listens to scores or pattern, and otherwise computes both in
the open, through the bridge's own hook points. Families whose attention the bridge rebuilds step by step
(Mistral, Llama: rotary ones) have working hooks already and are left alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation_lens.hooked import listening
from ablation_lens.models.checkpoints import Checkpoint, load_tokenizer, load_weights, unsupported
from ablation_lens.weights import weights_digest


def load_bridge(
    checkpoint: Checkpoint, architecture: str, device: torch.device, dtype: torch.dtype, attention: str
) -> tuple[Any, str, tuple[str, ...]]:
    """The model, the digest of its weights, and the names of those that it has no use for."""
    _refuse_unsupported(checkpoint)
    # Eager, as Hugging Face's SDPA returns no pattern for the bridge's hooks to show.
    hf_model, unread = load_weights(checkpoint, "AutoModelForCausalLM", device=device, dtype=dtype, attention="eager")
    digest = weights_digest(hf_model)
    return _bridge(checkpoint, architecture, hf_model, attention), digest, unread


def bridge_in_memory(checkpoint: Checkpoint, architecture: str, hf_model: Any, attention: str) -> Any:
    """A model that is there already, with the bridge built into it."""
    _refuse_unsupported(checkpoint)
    hf_model.set_attn_implementation("eager")  # as above
    return _bridge(checkpoint, architecture, hf_model, attention)


def _refuse_unsupported(checkpoint: Checkpoint) -> None:
    """Variants that the bridge would get wrong without a word."""
    config = checkpoint.config
    if checkpoint.model_type == "ministral" and len(set(config.layer_types or ())) > 1:
        raise unsupported(checkpoint, "transformer-lens 4 gives all of its blocks one kind of attention (3.9 does not)")
    if not getattr(config, "scale_attn_weights", True):
        raise unsupported(checkpoint, "transformer-lens 4 always scales attention (3.9 does not)")


def _bridge(checkpoint: Checkpoint, architecture: str, hf_model: Any, attention: str) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    tokenizer = load_tokenizer(checkpoint)
    device, dtype = hf_model.device, hf_model.dtype
    try:
        # `boot_transformers` insists on tokenizer files; this is what it calls once it has them.
        with _embedding_parked(hf_model):
            model = build_bridge_from_module(
                hf_model,
                architecture,
                hf_config=hf_model.config,
                tokenizer=tokenizer,
                model_name=checkpoint.name,
                device=device,
                dtype=dtype,
            )
    except (NotImplementedError, ValueError, KeyError, AttributeError) as error:
        raise unsupported(checkpoint, f"transformer-lens does not know {architecture} ({error})") from error
    model.eval()
    # The bridge assumes d_mlp = 4·d_model for families that name the width in their own way.
    widths = (getattr(hf_model.config, field, None) for field in ("ffn_dim", "intermediate_size", "n_inner"))
    model.cfg.d_mlp = next((width for width in widths if width), model.cfg.d_mlp)
    if attention == "fast":
        enable_bridge_attention(model, hf_model)
    return model


@contextmanager
def _embedding_parked(hf_model: Any) -> Iterator[None]:
    """Stand a weightless tensor in for OPT's token embedding while its bridge is built.

    Looking for hook points, the bridge evaluates every property of itself, `W_E_pos` among them, which
    copies the whole embedding; on a weightless tensor that property fails, and is skipped.
    """
    if hf_model.config.model_type != "opt":
        yield
        return
    embedding = hf_model.get_input_embeddings()
    weight = embedding.weight
    embedding.weight = torch.nn.Parameter(weight.to("meta"), requires_grad=False)
    try:
        yield
    finally:
        # The same Parameter object, which a tied lm_head has held all the time.
        embedding.weight = weight


# ---------------------------------------------------------------------- attention

FAMILIES = frozenset({"opt"})
"""Families whose bridge runs Hugging Face's attention with plain keyword arguments (tested)."""

_NAME = "ablation_lens_hooked"


def enable_bridge_attention(model: Any, hf_model: Any) -> None:
    """Let `model`, a `TransformerBridge` around `hf_model`, attend by SDPA where it can."""
    if hf_model.config.model_type not in FAMILIES:
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    # Additive registrations under a name of our own: other models in the process are not touched.
    AttentionInterface.register(_NAME, _attend)
    # Without a mask function of this name transformers makes no mask at all, and padding would be attended to.
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    for block in model.blocks:
        # In a tuple: bare hook points would be registered as submodules a second time.
        block.attn.original_component.bridge_hooks = (block.attn.hook_attn_scores, block.attn.hook_pattern)
    hf_model.set_attn_implementation(_NAME)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Hugging Face's attention interface: [batch head pos dim] in, [batch pos head dim] out."""
    hook_scores, hook_pattern = module.bridge_hooks
    # sdpa_mask leaves the mask out where is_causal says the same, and for a single query, which sees all keys.
    causal = attention_mask is None and query.shape[2] > 1
    if not listening(hook_scores, hook_pattern):
        visible = attention_mask
        if visible is not None and visible.dtype == torch.bool:
            visible = visible | ~visible.any(-1, keepdim=True)  # softmax over no keys would be NaN
        z = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=causal, scale=scaling)
    else:
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        visible = attention_mask
        if causal:
            visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf) if visible.dtype == torch.bool else scores + visible
        scores = hook_scores(scores)
        # In float32, as in OPT's eager attention: half precision must give what Hugging Face gives.
        pattern = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        # A row that sees no key is 0/0; hooks see zeros there.
        z = hook_pattern(torch.where(torch.isnan(pattern), 0.0, pattern)) @ value
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        z = z.masked_fill(~attention_mask.any(-1, keepdim=True), 0.0)
    return z.transpose(1, 2).contiguous(), None

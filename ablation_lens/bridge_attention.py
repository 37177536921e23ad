"""SDPA for transformer-lens 4.x's `TransformerBridge`, as far as the bridge lets Hugging Face attend.

For OPT the bridge delegates to Hugging Face's attention and shows the pattern only afterwards, when changing
it no longer changes anything. Here that attention function is exchanged, for one model, by one that uses
`scaled_dot_product_attention` while nobody listens to scores or pattern, and otherwise computes both in
the open, through the bridge's own hook points. Families whose attention the bridge rebuilds step by step
(Mistral, Llama: rotary ones) have working hooks already and are left alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation_lens.sites import listening

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
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    for block in model.blocks:
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
        pattern = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        z = hook_pattern(torch.where(torch.isnan(pattern), 0.0, pattern)) @ value
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        z = z.masked_fill(~attention_mask.any(-1, keepdim=True), 0.0)
    return z.transpose(1, 2).contiguous(), None

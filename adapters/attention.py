"""Hooked self-attention for the encoders, on a Hugging Face layer's own Linears."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ablation_lens.hooked import listening


@dataclass
class LayerParts:
    """The modules of one Hugging Face layer, by what they do.

    `ln1` is the norm that belongs to attention and `ln2` the MLP's, wherever the family puts them.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    ln1: nn.LayerNorm
    ln2: nn.LayerNorm
    mlp_in: nn.Linear
    mlp_out: nn.Linear
    activation: Callable[[Tensor], Tensor]


class HookedEncoderAttention(nn.Module):
    """Bidirectional self-attention on a layer's own Linears, hooked at q, k, v, scores, pattern and z."""

    def __init__(self, parts: LayerParts, n_heads: int):
        super().__init__()
        self.query, self.key, self.value, self.out = parts.query, parts.key, parts.value, parts.out
        self.n_heads = n_heads
        self.hook_q = HookPoint()  # [batch pos head d_head]
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_attn_scores = HookPoint()  # [batch head query key]
        self.hook_pattern = HookPoint()
        self.hook_z = HookPoint()  # [batch pos head d_head]

    def forward(
        self, hidden: Float[Tensor, "batch pos d_model"], visible: Bool[Tensor, "batch 1 1 pos"] | None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Attend; `visible` marks the keys that are real tokens (None: all of them)."""
        query, key, value = (
            hook(rearrange(linear(hidden), "batch pos (head dim) -> batch pos head dim", head=self.n_heads))
            for hook, linear in ((self.hook_q, self.query), (self.hook_k, self.key), (self.hook_v, self.value))
        )
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attend = self._attend_openly if listening(self.hook_attn_scores, self.hook_pattern) else _attend_fused
        z = attend(query, key, value, visible)
        if visible is not None:  # a row without any visible key attends to nothing
            blind = ~visible.any(-1, keepdim=True)
            # Mostly there is none. An accelerator is not waited for to say so.
            if blind.device.type != "cpu" or bool(blind.any()):
                z = z.masked_fill(blind, 0.0)
        return self.project(self.hook_z(z.transpose(1, 2)))

    def project(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """What the heads add to the residual stream."""
        return self.out(rearrange(z, "batch pos head dim -> batch pos (head dim)"))

    def _attend_openly(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """With the score matrix in the open, so that hooks can read and change it."""
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        scores = self.hook_attn_scores(scores)
        # In float32, as in the eager attention of Hugging Face's ViT.
        pattern = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        # A row without visible keys is 0/0; hooks see zeros there.
        pattern = self.hook_pattern(torch.where(torch.isnan(pattern), 0.0, pattern))
        return pattern @ value

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights."""
        # A Linear's weight is [out in]: heads are in its rows, here and below, and in the columns for W_O.
        return rearrange(self.query.weight, "(head dim) model -> head model dim", head=self.n_heads)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights."""
        return rearrange(self.key.weight, "(head dim) model -> head model dim", head=self.n_heads)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights."""
        return rearrange(self.value.weight, "(head dim) model -> head model dim", head=self.n_heads)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights."""
        return rearrange(self.out.weight, "model (head dim) -> head dim model", head=self.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query biases; zeros when the family has none."""
        return _head_bias(self.query, self.n_heads)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Key biases; zeros when the family has none."""
        return _head_bias(self.key, self.n_heads)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """Value biases; zeros when the family has none."""
        return _head_bias(self.value, self.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias; zeros when the family has none."""
        return bias_of(self.out)


def _attend_fused(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    if visible is not None:  # softmax over no keys is NaN, and its gradient too; forward() zeroes such rows
        visible = visible | ~visible.any(-1, keepdim=True)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


def bias_of(linear: nn.Linear) -> Float[Tensor, " out"]:
    """The Linear's bias; zeros where it has none."""
    # Without a bias this is a new tensor: to write into it changes nothing in the model.
    return linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)


def _head_bias(linear: nn.Linear, n_heads: int) -> Tensor:
    return rearrange(bias_of(linear), "(head dim) -> head dim", head=n_heads)

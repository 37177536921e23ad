"""The hooked encoder that RoBERTa and ViT share.

A family's Hugging Face layers keep their own Linears and norms; this module runs them with
TransformerLens' hook points in between. Inference only: dropout is left out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from ablation_lens.adapters.attention import HookedEncoderAttention, LayerParts, bias_of
from ablation_lens.errors import MismatchError
from ablation_lens.hooked import hides, listening, remove_hooks
from ablation_lens.records import ModelRecord


@dataclass
class EncoderConfig:
    """The shape of a hooked encoder, under TransformerLens' names."""

    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    n_ctx: int
    d_vocab: int
    d_vocab_out: int
    eps: float
    act_fn: str
    original_architecture: str
    post_norm: bool
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    model_name: str = "encoder"
    normalization_type: str = "LN"
    attention_dir: str = "bidirectional"
    positional_embedding_type: str = "standard"
    attn_only: bool = False
    parallel_attn_mlp: bool = False
    gated_mlp: bool = False
    use_attn_result: bool = False


class HookedLayerNorm(nn.Module):
    """A LayerNorm with TransformerLens' `hook_scale` and `hook_normalized`."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.norm = norm
        self.hook_scale = HookPoint()  # [batch pos 1]
        self.hook_normalized = HookPoint()  # [batch pos d_model]

    def forward(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Normalise; the scale is computed apart only when somebody listens to it."""
        if not listening(self.hook_scale):
            return self.hook_normalized(self.norm(residual))
        centred = residual - residual.mean(-1, keepdim=True)
        scale = self.hook_scale((centred.pow(2).mean(-1, keepdim=True) + self.norm.eps).sqrt())
        return self.hook_normalized(centred / scale * self.norm.weight + self.norm.bias)


class HookedEncoderMLP(nn.Module):
    """A two-layer MLP hooked before and after its activation."""

    def __init__(self, parts: LayerParts):
        super().__init__()
        self.linear_in, self.linear_out = parts.mlp_in, parts.mlp_out
        self.activation = parts.activation
        self.hook_pre = HookPoint()  # [batch pos d_mlp]
        self.hook_post = HookPoint()

    def forward(self, hidden: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Run the MLP."""
        return self.linear_out(self.hook_post(self.activation(self.hook_pre(self.linear_in(hidden)))))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Weights into the hidden layer."""
        return self.linear_in.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Weights out of the hidden layer."""
        return self.linear_out.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Hidden bias."""
        return bias_of(self.linear_in)

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return bias_of(self.linear_out)


class HookedEncoderBlock(nn.Module):
    """One layer. Pre-LN as in ViT, or post-LN as in BERT, where the norms follow the residual sums.

    Either way `hook_attn_out` and `hook_mlp_out` are what is *added* to the residual stream.
    """

    def __init__(self, parts: LayerParts, cfg: EncoderConfig):
        super().__init__()
        self.post_norm = cfg.post_norm
        self.ln1, self.ln2 = HookedLayerNorm(parts.ln1), HookedLayerNorm(parts.ln2)
        self.attn = HookedEncoderAttention(parts, cfg.n_heads)
        self.mlp = HookedEncoderMLP(parts)
        self.hook_resid_pre = HookPoint()  # [batch pos d_model], as are all below
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()
        if cfg.post_norm:
            self.hook_normalized_resid_post = HookPoint()  # as in TransformerLens' BertBlock: after the last norm

    def forward(
        self, residual: Float[Tensor, "batch pos d_model"], visible: Bool[Tensor, "batch 1 1 pos"] | None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Attention, then MLP."""
        residual = self.hook_resid_pre(residual)
        attention_input = residual if self.post_norm else self.ln1(residual)
        return self._after_attention(residual, self.attn(attention_input, visible))

    def after_z(
        self, residual: Float[Tensor, "batch pos d_model"], z: Float[Tensor, "batch pos head d_head"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the block makes of its residual stream and of z, at each position alone."""
        return self._after_attention(residual, self.attn.project(z))

    def _after_attention(self, residual: Tensor, attention: Tensor) -> Tensor:
        residual = self.hook_resid_mid(residual + self.hook_attn_out(attention))
        normalized = self.ln1(residual) if self.post_norm else self.ln2(residual)
        mlp_out = self.hook_mlp_out(self.mlp(normalized))
        if not self.post_norm:
            return self.hook_resid_post(residual + mlp_out)
        # Post-LN: the normalised stream goes on, so the sum starts from it and not from hook_resid_mid.
        residual = self.hook_resid_post(normalized + mlp_out)
        return self.hook_normalized_resid_post(self.ln2(residual))


class HookedEncoder(HookedRootModule):
    """Base of the adapters: hooked blocks, TransformerLens' weights and caches, and a family's two ends.

    A family implements `embed` and `head`, and passes `cfg` and one `LayerParts` per layer.
    """

    task: ClassVar[str]
    """What the family is scored on: `masked-lm` or `image-classification`."""

    embed: Callable[..., Tensor]
    """Inputs → the residual stream [batch pos d_model] that enters the first block."""

    head: Callable[..., Tensor]
    """The residual stream after the last block → logits."""

    record: ModelRecord
    """Where the weights came from; attached by `load_model`."""

    def __init__(self, cfg: EncoderConfig, layers: Iterable[LayerParts]):
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(HookedEncoderBlock(parts, cfg) for parts in layers)
        self.tokenizer: Any = None
        self.hf_tokenizer: Any = None
        self.image_processor: Any = None
        self.hf_config: Any = None
        self.eval()

    @classmethod
    def from_pretrained(cls, name_or_folder: str, **options: Any) -> Self:
        """Load a hub id or local folder; options as for `load_model` (`device`, `dtype`, `revision`, `random_init`)."""
        # Finding and reading checkpoints stands above this package, so it is asked for by this call alone.
        from ablation_lens.models.load import load_encoder

        return load_encoder(cls, name_or_folder, **options)

    def encode(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run the blocks, all of them or those before `stop_at_layer` (counted as TransformerLens does)."""
        visible = None
        if attention_mask is not None:
            if attention_mask.shape != residual.shape[:2]:
                raise MismatchError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, "
                    f"the input {tuple(residual.shape[:2])}; they must agree."
                )
            # A mask that hides nothing is left out: not every fused kernel takes one.
            if hides(attention_mask):
                visible = attention_mask.to(residual.device, torch.bool)[:, None, None, :]
        for block in list(self.blocks)[:stop_at_layer]:
            residual = block(residual, visible)
        return residual

    @property
    def after_z(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What the last block makes of its residual stream and of z; None where a family does it in another way."""
        block: Any = self.blocks[-1]
        usual = (
            type(block) is HookedEncoderBlock
            and type(block.attn) is HookedEncoderAttention
            and type(self).encode is HookedEncoder.encode
        )
        replaced = any("forward" in vars(module) for module in block.modules())
        return block.after_z if usual and not replaced else None

    def run_with_cache(
        self, *args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """`(output, ActivationCache)`, as on a HookedTransformer."""
        output, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        if return_cache_object:
            cache = ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        return output, cache

    def remove_all_hook_fns(self, *args: Any, **kwargs: Any) -> None:
        """As on a HookedTransformer, where hooks are."""
        remove_hooks(self, *args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `nn.Module.to`; `cfg.device` and `cfg.dtype` follow."""
        kwargs.pop("print_details", None)  # HookedTransformer.to takes it, nn.Module.to does not
        super().to(*args, **kwargs)
        weight = next(self.parameters())
        self.cfg.device, self.cfg.dtype = weight.device, weight.dtype
        return self

    def _stacked(self, part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    W_Q = property(lambda self: self._stacked("attn", "W_Q"), doc="[layer head d_model d_head]")
    W_K = property(lambda self: self._stacked("attn", "W_K"), doc="[layer head d_model d_head]")
    W_V = property(lambda self: self._stacked("attn", "W_V"), doc="[layer head d_model d_head]")
    W_O = property(lambda self: self._stacked("attn", "W_O"), doc="[layer head d_head d_model]")
    b_Q = property(lambda self: self._stacked("attn", "b_Q"), doc="[layer head d_head]")
    b_K = property(lambda self: self._stacked("attn", "b_K"), doc="[layer head d_head]")
    b_V = property(lambda self: self._stacked("attn", "b_V"), doc="[layer head d_head]")
    b_O = property(lambda self: self._stacked("attn", "b_O"), doc="[layer d_model]")
    W_in = property(lambda self: self._stacked("mlp", "W_in"), doc="[layer d_model d_mlp]")
    W_out = property(lambda self: self._stacked("mlp", "W_out"), doc="[layer d_mlp d_model]")
    b_in = property(lambda self: self._stacked("mlp", "b_in"), doc="[layer d_mlp]")
    b_out = property(lambda self: self._stacked("mlp", "b_out"), doc="[layer d_model]")

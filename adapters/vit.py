"""The vision transformer's image classifier, hooked."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ablation_lens.adapters.attention import LayerParts
from ablation_lens.adapters.encoder import EncoderConfig, HookedEncoder, HookedLayerNorm
from ablation_lens.adapters.registry import register
from ablation_lens.errors import ModelError


@register("vit", auto_class="AutoModelForImageClassification")
class HookedViT(HookedEncoder):
    """`ViTForImageClassification` with TransformerLens hooks. Position 0 is the CLS token.

    >>> import torch, transformers
    >>> config = transformers.ViTConfig(image_size=8, patch_size=4, hidden_size=12, num_hidden_layers=2,
    ...     num_attention_heads=3, intermediate_size=16, num_labels=5)
    >>> model = HookedViT(transformers.ViTForImageClassification(config))
    >>> logits, cache = model.run_with_cache(torch.zeros(2, 3, 8, 8))
    >>> tuple(logits.shape), tuple(cache["blocks.0.attn.hook_z"].shape)
    ((2, 5), (2, 5, 3, 4))
    """

    task: ClassVar[str] = "image-classification"

    def __init__(self, hf_model: Any):
        config = hf_model.config
        body = hf_model.vit
        self.image_size: tuple[int, int] = tuple(body.embeddings.image_size)
        self.n_channels = int(config.num_channels)
        super().__init__(
            EncoderConfig(
                n_layers=config.num_hidden_layers,
                n_heads=config.num_attention_heads,
                # Module names of recent transformers; 4.x has `encoder.layer`, and other names in it.
                d_head=body.layers[0].attention.head_dim,
                d_model=config.hidden_size,
                d_mlp=config.intermediate_size,
                n_ctx=body.embeddings.position_embeddings.shape[1],
                d_vocab=config.num_labels,
                d_vocab_out=config.num_labels,
                eps=config.layer_norm_eps,
                act_fn=config.hidden_act,
                original_architecture=type(hf_model).__name__,
                post_norm=False,
                device=hf_model.device,
                dtype=hf_model.dtype,
            ),
            (
                LayerParts(
                    query=layer.attention.q_proj,
                    key=layer.attention.k_proj,
                    value=layer.attention.v_proj,
                    out=layer.attention.o_proj,
                    ln1=layer.layernorm_before,
                    ln2=layer.layernorm_after,
                    mlp_in=layer.mlp.fc1,
                    activation=layer.mlp.activation_fn,
                    mlp_out=layer.mlp.fc2,
                )
                for layer in body.layers
            ),
        )
        self.id2label: dict[int, str] = dict(config.id2label)
        self.patch_embedding: nn.Module = body.embeddings.patch_embeddings
        self.cls_token: nn.Parameter = body.embeddings.cls_token
        self.position_embedding: nn.Parameter = body.embeddings.position_embeddings
        self.ln_final = HookedLayerNorm(body.layernorm)
        self.classifier: nn.Module = hf_model.classifier
        self.hook_embed = HookPoint()  # [batch pos d_model], CLS first
        self.hook_pos_embed = HookPoint()  # [1 pos d_model]
        self.hook_full_embed = HookPoint()  # [batch pos d_model]
        # After the last HookPoint: TransformerLens collects their names now, and finds none that come later.
        self.setup()  # type: ignore[no-untyped-call]

    def forward(
        self, inputs: Float[Tensor, "batch channel height width"], *, stop_at_layer: int | None = None
    ) -> Float[Tensor, "batch label"]:
        """One row of class logits per image; with `stop_at_layer`, the residual stream before that layer."""
        residual = self.encode(self.embed(inputs), None, stop_at_layer)
        return residual if stop_at_layer is not None else self.head(residual)

    def embed(self, inputs: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch pos d_model"]:
        """Patches after a CLS token, plus positions."""
        expected = (self.n_channels, *self.image_size)
        if inputs.ndim != 4 or tuple(inputs.shape[1:]) != expected:
            raise ModelError(
                f"the input has shape {tuple(inputs.shape)}; this model takes [batch {' '.join(map(str, expected))}]. "
                "Its image processor resizes to that: model.image_processor(images, return_tensors='pt')."
            )
        patches = self.patch_embedding(inputs.to(self.cfg.device, self.cfg.dtype))
        embedded = self.hook_embed(torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1))
        return self.hook_full_embed(embedded + self.hook_pos_embed(self.position_embedding))

    def head(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch label"]:
        """The classifier on the normalised CLS position."""
        return self.classifier(self.ln_final(residual)[:, 0])

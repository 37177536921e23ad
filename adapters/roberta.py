"""RoBERTa's masked-language model, hooked."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from ablation_lens.adapters.attention import LayerParts
from ablation_lens.adapters.encoder import EncoderConfig, HookedEncoder, HookedLayerNorm
from ablation_lens.adapters.registry import register
from ablation_lens.errors import ModelError


@register("roberta", "xlm-roberta", auto_class="AutoModelForMaskedLM")
class HookedRoberta(HookedEncoder):
    """`RobertaForMaskedLM` with TransformerLens hooks: post-LN blocks, position offset, masked-LM head.

    >>> import torch, transformers
    >>> config = transformers.RobertaConfig(vocab_size=50, hidden_size=12, num_hidden_layers=2,
    ...     num_attention_heads=3, intermediate_size=16, max_position_embeddings=20)
    >>> model = HookedRoberta(transformers.RobertaForMaskedLM(config))
    >>> logits, cache = model.run_with_cache(torch.tensor([[0, 7, 9, 2]]))
    >>> tuple(logits.shape), tuple(cache["blocks.1.attn.hook_z"].shape)
    ((1, 4, 50), (1, 4, 3, 4))
    """

    task: ClassVar[str] = "masked-lm"

    def __init__(self, hf_model: Any):
        config = hf_model.config
        if config.is_decoder:
            raise ModelError("this RoBERTa is a decoder (is_decoder=true); only the masked-LM encoder is hooked.")
        body = getattr(hf_model, hf_model.base_model_prefix)
        self.pad_token_id = int(config.pad_token_id)
        super().__init__(
            EncoderConfig(
                n_layers=config.num_hidden_layers,
                n_heads=config.num_attention_heads,
                d_head=config.hidden_size // config.num_attention_heads,
                d_model=config.hidden_size,
                d_mlp=config.intermediate_size,
                # positions start after the padding id, so the table is that much longer than the context
                n_ctx=config.max_position_embeddings - self.pad_token_id - 1,
                d_vocab=config.vocab_size,
                d_vocab_out=config.vocab_size,
                eps=config.layer_norm_eps,
                act_fn=config.hidden_act,
                original_architecture=type(hf_model).__name__,
                post_norm=True,
                device=hf_model.device,
                dtype=hf_model.dtype,
            ),
            (
                LayerParts(
                    query=layer.attention.self.query,
                    key=layer.attention.self.key,
                    value=layer.attention.self.value,
                    out=layer.attention.output.dense,
                    ln1=layer.attention.output.LayerNorm,
                    mlp_in=layer.intermediate.dense,
                    activation=layer.intermediate.intermediate_act_fn,
                    mlp_out=layer.output.dense,
                    ln2=layer.output.LayerNorm,
                )
                for layer in body.encoder.layer
            ),
        )
        self.token_embedding = body.embeddings.word_embeddings
        self.position_embedding = body.embeddings.position_embeddings
        self.token_type_embedding = body.embeddings.token_type_embeddings
        self.embed_ln = HookedLayerNorm(body.embeddings.LayerNorm)
        self.lm_head = hf_model.lm_head
        self.hook_embed = HookPoint()  # [batch pos d_model], as are all below
        self.hook_pos_embed = HookPoint()
        self.hook_token_type_embed = HookPoint()
        self.hook_full_embed = HookPoint()
        # After the last HookPoint: TransformerLens collects their names now, and finds none that come later.
        self.setup()  # type: ignore[no-untyped-call]

    def forward(
        self,
        inputs: Int[Tensor, "batch pos"] | str | Sequence[str],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        token_type_ids: Int[Tensor, "batch pos"] | None = None,
        *,
        stop_at_layer: int | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at every position; with `stop_at_layer`, the residual stream before that layer.

        Text is tokenised (and padded) with the model's tokenizer. Without `attention_mask` nothing is
        masked, as in transformers: pass one whenever tokens are padded.
        """
        if isinstance(inputs, Tensor):
            tokens = inputs.to(self.cfg.device)
        elif attention_mask is None:
            tokens, attention_mask = self.to_tokens(inputs)
        else:
            raise ModelError("text brings its own attention_mask; give it alone, or token ids and their mask.")
        if tokens.ndim != 2 or tokens.shape[1] > self.cfg.n_ctx:
            raise ModelError(
                f"the input has shape {tuple(tokens.shape)}; "
                f"expected token ids [batch pos] with at most {self.cfg.n_ctx} positions."
            )
        residual = self.embed(tokens, token_type_ids=token_type_ids)
        residual = self.encode(residual, attention_mask, stop_at_layer)
        return residual if stop_at_layer is not None else self.head(residual)

    def to_tokens(self, text: str | Sequence[str]) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Token ids and attention mask of one text or several, special tokens included, padded right."""
        if self.tokenizer is None:
            raise ModelError("this model was loaded without a tokenizer; pass token ids [batch pos] instead of text.")
        texts = [text] if isinstance(text, str) else list(text)
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        return encoded["input_ids"].to(self.cfg.device), encoded["attention_mask"].to(self.cfg.device)

    def embed(
        self, tokens: Int[Tensor, "batch pos"], *, token_type_ids: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Word, position and token-type embeddings, normalised."""
        real = tokens != self.pad_token_id
        # Padding stays at the padding id; real tokens count from the next one, wherever the padding is.
        positions = torch.cumsum(real, dim=1) * real + self.pad_token_id
        types = torch.zeros_like(tokens) if token_type_ids is None else token_type_ids.to(tokens.device)
        # Types before positions, as in Hugging Face: float sums depend on the order.
        embedded = self.hook_embed(self.token_embedding(tokens)) + self.hook_token_type_embed(
            self.token_type_embedding(types)
        )
        embedded = embedded + self.hook_pos_embed(self.position_embedding(positions))
        return self.hook_full_embed(self.embed_ln(embedded))

    def head(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The masked-LM head: dense, activation, norm, and the tied unembedding."""
        return self.lm_head(residual)

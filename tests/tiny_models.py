"""Random-weight models of every family, small and with odd shapes, and what Hugging Face computes with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

SHAPE = {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 6}
TEXT = {**SHAPE, "vocab_size": 61}
LENGTH = 12
REAL = (12, 7, 1)
"""Real tokens per row of a padded batch: full, partly padded, a single token."""


@dataclass
class Tiny:
    """One tiny configuration: how to build it, and where its output projections are."""

    name: str
    build: Callable[[], Any]
    projections: Callable[[Any], list[torch.nn.Module]]
    image: tuple[int, int, int] | None = None
    majors: tuple[int, ...] = (3, 4)

    def model(self) -> Any:
        """The Hugging Face model with weights large enough that every path matters."""
        torch.manual_seed(1)
        model = self.build().eval()
        assert sum(parameter.numel() for parameter in model.parameters()) < 60_000  # tiny means tiny
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            else:
                torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
        return model

    def inputs(self) -> tuple[Tensor, Tensor | None]:
        """Inputs and attention mask: three rows padded to one length, or three images."""
        if self.image is not None:
            return torch.randn(3, *self.image), None
        tokens = torch.randint(3, TEXT["vocab_size"], (len(REAL), LENGTH))
        mask = torch.arange(LENGTH)[None, :] < torch.tensor(REAL)[:, None]
        return torch.where(mask, tokens, 1), mask.long()


def opt(**changes: Any) -> Any:
    config = {**TEXT, "ffn_dim": 40, "max_position_embeddings": 33, "word_embed_proj_dim": 36, "pad_token_id": 1}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**{**config, **changes}))


def mistral(**changes: Any) -> Any:
    config = {**TEXT, "intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64}
    return transformers.MistralForCausalLM(transformers.MistralConfig(**{**config, "sliding_window": 5, **changes}))


def llama(**changes: Any) -> Any:
    config = {**TEXT, "intermediate_size": 40, "num_key_value_heads": 3, "max_position_embeddings": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **changes}))


def gpt2(**changes: Any) -> Any:
    config = {"vocab_size": 61, "n_embd": 36, "n_layer": 3, "n_head": 6, "n_positions": 33}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**config, **changes}))


def roberta(**changes: Any) -> Any:
    config = {**TEXT, "intermediate_size": 40, "max_position_embeddings": 20, "pad_token_id": 1, "type_vocab_size": 2}
    return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**{**config, **changes}))


def xlm_roberta() -> Any:
    config = {**TEXT, "intermediate_size": 40, "max_position_embeddings": 20, "pad_token_id": 1}
    return transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**config))


def vit(**changes: Any) -> Any:
    config = {**SHAPE, "intermediate_size": 40, "image_size": 12, "patch_size": 4, "num_labels": 7}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**{**config, **changes}))


def _decoder(model: Any) -> list[torch.nn.Module]:
    layers = model.model.decoder.layers if hasattr(model.model, "decoder") else model.model.layers
    return [getattr(layer.self_attn, "out_proj", None) or layer.self_attn.o_proj for layer in layers]


def _bert(model: Any) -> list[torch.nn.Module]:
    return [layer.attention.output.dense for layer in model.roberta.encoder.layer]


def _vit(model: Any) -> list[torch.nn.Module]:
    return [layer.attention.o_proj for layer in model.vit.layers]


def _gpt2(model: Any) -> list[torch.nn.Module]:
    return [layer.attn.c_proj for layer in model.transformer.h]


FAMILIES = [
    Tiny("opt", opt, _decoder),
    Tiny("mistral", mistral, _decoder),
    Tiny("roberta", roberta, _bert),
    Tiny("vit", vit, _vit, image=(3, 12, 12)),
]
"""The four families of the paper."""

VARIANTS = [
    *FAMILIES,
    Tiny(
        "opt-post-ln",
        lambda: opt(do_layer_norm_before=False, word_embed_proj_dim=20, hidden_size=36),
        _decoder,
        majors=(4,),  # transformer-lens 3 has no such model; load_model says so
    ),
    Tiny("mistral-full-attention", lambda: mistral(sliding_window=None), _decoder),
    Tiny("mistral-multi-head", lambda: mistral(num_key_value_heads=6, head_dim=6), _decoder),
    Tiny("llama", llama, _decoder),
    Tiny("gpt2", gpt2, _gpt2),
    Tiny("xlm-roberta", xlm_roberta, _bert),
    Tiny("vit-no-qkv-bias", lambda: vit(qkv_bias=False), _vit, image=(3, 12, 12)),
    Tiny("vit-oblong", lambda: vit(image_size=(8, 12), num_channels=1), _vit, image=(1, 8, 12)),
]

BY_NAME = {tiny.name: tiny for tiny in VARIANTS}


def reference(model: Any, tiny: Tiny, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Hugging Face's logits, and the input of every layer's output projection."""
    seen: list[Tensor] = []
    handles = [
        projection.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
        for projection in tiny.projections(model)
    ]
    try:
        with torch.no_grad():
            logits = model(inputs).logits if mask is None else model(inputs, attention_mask=mask).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, seen


def run(model: Any, inputs: Tensor, mask: Tensor | None, hooks: list[Any] | None = None) -> Tensor:
    """Our logits, through `run_with_hooks`."""
    options = {} if mask is None else {"attention_mask": mask}
    return model.run_with_hooks(inputs, fwd_hooks=hooks or [], **options)

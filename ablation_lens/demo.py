"""What `ablation-lens demo` shows."""

import tempfile
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from ablation_lens.checkpoints import quiet
from ablation_lens.models import load_model
from ablation_lens.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_demo(console: Console) -> None:
    """Load each family from random weights, set every `hook_z` neuron to zero, and print a table."""
    table = Table(title="Zero ablation of every attention neuron (random weights)")
    for column in ("family", "hooked as", "layer×head×dim", "logits move by", "attn out = b_O"):
        table.add_column(column, no_wrap=True)
    for family, (hf_model, inputs) in random_models().items():
        with tempfile.TemporaryDirectory() as folder, console.status(f"loading {family}"):
            with quiet():
                hf_model.save_pretrained(folder)
            model = load_model(folder)
            table.add_row(family, type(model).__name__, *_zero_everything(model, inputs))
    console.print(table)


def _zero_everything(model: Any, inputs: torch.Tensor) -> tuple[str, str, str]:
    inputs = inputs.to(model.cfg.device)
    attention_out: list[torch.Tensor] = []
    hooks: list[tuple[str, Any]] = [
        (name, lambda z, hook: torch.zeros_like(z)) for name in Site.Z.hook_names(model.cfg)
    ]
    hooks.append(("blocks.0.hook_attn_out", lambda out, hook: attention_out.append(out)))
    with torch.inference_mode():
        before = model(inputs)
        after = model.run_with_hooks(inputs, fwd_hooks=hooks)
    b_O = getattr(model.blocks[0].attn, "b_O", None)
    expected = torch.zeros_like(attention_out[0]) if b_O is None else b_O.expand_as(attention_out[0])
    same = torch.allclose(attention_out[0], expected, atol=1e-6)
    shape = "×".join(str(size) for size in Site.Z.shape(model.cfg))
    return shape, f"{(after - before).abs().max().item():.3f}", "yes" if same else "NO"


def random_models() -> "dict[str, tuple[PreTrainedModel, torch.Tensor]]":
    """One small random-weight model per family, with inputs for it."""
    import transformers

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text: dict[str, Any] = {**shape, "vocab_size": 100, "max_position_embeddings": 64}
    tokens = torch.randint(3, 100, (2, 16))
    return {
        "OPT": (
            transformers.OPTForCausalLM(transformers.OPTConfig(**text, ffn_dim=96, word_embed_proj_dim=48)),
            tokens,
        ),
        "Mistral": (
            transformers.MistralForCausalLM(
                transformers.MistralConfig(**text, intermediate_size=96, num_key_value_heads=2)
            ),
            tokens,
        ),
        "RoBERTa": (
            transformers.RobertaForMaskedLM(transformers.RobertaConfig(**text, intermediate_size=96)),
            tokens,
        ),
        "ViT": (
            transformers.ViTForImageClassification(
                transformers.ViTConfig(**shape, intermediate_size=96, image_size=16, patch_size=4)
            ),
            torch.rand(2, 3, 16, 16),
        ),
    }

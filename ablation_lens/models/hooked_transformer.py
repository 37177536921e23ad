"""Causal models under transformer-lens 3.9: a `HookedTransformer` around the tensors that Hugging Face loaded."""

import bisect
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ablation_lens.errors import ModelError
from ablation_lens.models.checkpoints import Checkpoint, load_tokenizer, load_weights, unsupported
from ablation_lens.models.fast_attention import enable_fast_attention
from ablation_lens.weights import weights_digest


def load_hooked_transformer(
    checkpoint: Checkpoint, architecture: str, device: torch.device, dtype: torch.dtype, attention: str
) -> tuple[Any, str, tuple[str, ...]]:
    """The model, the digest of its weights, and the names of those that it has no use for."""
    _refuse_unsupported(checkpoint)
    cfg = _transformer_lens_config(checkpoint, architecture, device, dtype)
    # Only now, as an unsupported model should be refused before gigabytes are read.
    # Eager, which every family has: this model is taken apart, and runs a few tokens at most.
    hf_model, unread = load_weights(checkpoint, "AutoModelForCausalLM", device=device, dtype=dtype, attention="eager")
    # Of Hugging Face's tensors, as in bridge.py: one model has one digest under both majors.
    digest = weights_digest(hf_model)
    model = _hooked_transformer(checkpoint, cfg, hf_model, attention)
    _require_all_read(checkpoint, hf_model, model)
    return model, digest, unread


def hook_in_memory(checkpoint: Checkpoint, architecture: str, hf_model: Any, attention: str) -> Any:
    """A model that is there already, around its own tensors."""
    _refuse_unsupported(checkpoint)
    cfg = _transformer_lens_config(checkpoint, architecture, hf_model.device, hf_model.dtype)
    model = _hooked_transformer(checkpoint, cfg, hf_model, attention)
    _require_all_read(checkpoint, hf_model, model)
    return model


def _refuse_unsupported(checkpoint: Checkpoint) -> None:
    """Variants that TransformerLens would get wrong without a word."""
    config = checkpoint.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ("default", "llama3", "dynamic"):  # dynamic ones are the default within the context
        raise unsupported(checkpoint, f"transformer-lens 3 has no {rope} rotary positions (4.x has)")
    if checkpoint.model_type == "qwen2" and "sliding_attention" in (config.layer_types or ()):
        raise unsupported(checkpoint, "transformer-lens 3 has no sliding windows for it (4.x has)")
    # Those for 2, 4, 8, … heads are right.
    if checkpoint.model_type == "bloom" and (config.n_head & (config.n_head - 1)):
        raise unsupported(
            checkpoint, f"transformer-lens 3 has other ALiBi slopes for {config.n_head} heads (4.x is right)"
        )
    if checkpoint.model_type != "opt":
        return
    if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
        raise unsupported(checkpoint, "transformer-lens 3 has no post-LN OPT with projected embeddings (4.x has)")
    if not config.enable_bias or not config.layer_norm_elementwise_affine:
        raise unsupported(checkpoint, "transformer-lens has no OPT without biases or norm weights (Galactica)")


def _transformer_lens_config(
    checkpoint: Checkpoint, architecture: str, device: torch.device, dtype: torch.dtype
) -> Any:
    from transformer_lens import loading_from_pretrained as loading

    # With defaults (use_diff=False): TransformerLens reads values that a config.json may leave to its family.
    values = json.loads(checkpoint.config.to_json_string(use_diff=False)) | {"architectures": [architecture]}
    if checkpoint.model_type == "gpt2":
        # TransformerLens asks for what OpenAI's config.json has, and a model that transformers makes has not.
        values.setdefault("n_ctx", checkpoint.config.n_positions)
    try:
        with _neutral_folder(values) as folder:
            cfg = loading.get_pretrained_model_config(
                str(folder), hf_cfg=values, device=device, dtype=dtype, trust_remote_code=False
            )
    except (NotImplementedError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise unsupported(checkpoint, f"transformer-lens does not know {architecture} ({error})") from error
    cfg.model_name = checkpoint.name
    cfg.tokenizer_name = None  # the tokenizer is handed over, never looked up by name
    cfg.n_ctx = getattr(checkpoint.config, "max_position_embeddings", None) or cfg.n_ctx  # Mistral's is capped at 2048
    return cfg


@contextmanager
def _neutral_folder(config: dict[str, Any]) -> Iterator[Path]:
    """config.json in a folder whose path holds no model's name.

    TransformerLens 3.9 guesses the architecture from the path: a `mistral` under `…/llama-study/` becomes a Llama.
    """
    candidates = [tempfile.gettempdir(), "/tmp", "/var/tmp", str(Path.home()), str(Path.cwd())]
    neutral = [path for path in candidates if not any(word in path.lower() for word in ("llama", "gemma"))]
    parent = next((path for path in neutral if os.access(path, os.W_OK)), None)
    if parent is None:
        raise ModelError(
            "a writable temporary folder without llama or gemma in its path is needed; "
            f"set TMPDIR (tried {', '.join(candidates)})."
        )
    with tempfile.TemporaryDirectory(prefix="config-", dir=parent) as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(folder)


def _hooked_transformer(checkpoint: Checkpoint, cfg: Any, hf_model: Any, attention: str) -> Any:
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    try:
        # An official name is wanted, but with `hf_model` given it is never read: any will do.
        state = loading.get_pretrained_state_dict("gpt2", cfg, hf_model, dtype=cfg.dtype)
    except (NotImplementedError, ValueError, AttributeError, AssertionError) as error:
        raise unsupported(checkpoint, f"transformer-lens cannot convert these weights ({error})") from error
    with warnings.catch_warnings():
        # transformer-lens 3 announces on every construction that 4 has no such class.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        model = HookedTransformer(cfg, move_to_device=False)  # these weights are replaced below
    # assign=True makes the model's parameters the Hugging Face tensors (or views of them): no second copy.
    model.load_state_dict(loading.fill_missing_keys(model, state), strict=False, assign=True)
    _move_rest(model, cfg.device)
    # Again: assign=True gives the tensors the requires_grad of the parameters that they replace.
    model.requires_grad_(False)
    model.eval()
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer is not None:
        model.set_tokenizer(tokenizer)
    if attention == "fast":
        enable_fast_attention(model)
    return model


def _require_all_read(checkpoint: Checkpoint, hf_model: Any, model: Any) -> None:
    """Raise where the conversion passed over weights, as it does over the biases of a Llama that has some."""
    starts = sorted(parameter.data_ptr() for parameter in model.parameters())

    def shared(weight: torch.Tensor) -> bool:
        # What is assigned is the tensor itself, or a view of a part.
        place = bisect.bisect_left(starts, weight.data_ptr())
        return place < len(starts) and starts[place] < weight.data_ptr() + weight.nbytes

    others = [name for name, weight in hf_model.named_parameters() if not shared(weight)]
    # A family may be converted by arithmetic, so that nothing is shared: then both must say the same.
    if others and not _agree(hf_model, model):
        raise unsupported(checkpoint, f"transformer-lens 3 does not read {', '.join(others[:3])} (4.x does)")


@torch.inference_mode()
def _agree(hf_model: Any, model: Any) -> bool:
    tokens = torch.arange(min(16, model.cfg.n_ctx, model.cfg.d_vocab), device=model.cfg.device)[None]
    expected, ours = hf_model(tokens).logits.float(), model(tokens).float()
    return torch.allclose(ours, expected, rtol=0, atol=5e-2 * float(expected.std()))


def _move_rest(model: torch.nn.Module, device: Any) -> None:
    """Buffers and filled-in parameters that were not created on the weights' device."""
    target = torch.device(device)
    for module in model.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.device != target:
                module._buffers[name] = buffer.to(target)
        for parameter in module._parameters.values():
            if parameter is not None and parameter.device != target:
                parameter.data = parameter.data.to(target)

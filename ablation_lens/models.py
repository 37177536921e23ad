"""`load_model`: one call for every family, on both TransformerLens majors.

With `fast_attention` (3.9) and `bridge_attention` (4.x) the only module that knows TransformerLens versions.
Weights are never processed: `hook_z` is then the input of the Hugging Face model's output projection, and
zero ablation means what it says. (TransformerLens' default folds value biases into `b_O`, which shifts z.)
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablation_lens.checkpoints import (
    Checkpoint,
    find_checkpoint,
    load_tokenizer,
    load_weights,
    resolve_device,
    resolve_dtype,
    weights_digest,
)
from ablation_lens.errors import ModelError
from ablation_lens.records import ModelRecord

ATTENTION = ("fast", "stock")


def load_model(
    name_or_folder: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str = "fast",
    revision: str | None = None,
) -> Any:
    """Load a model with TransformerLens hooks and unprocessed weights, frozen and in eval mode.

    Args:
        name_or_folder: A zoo name (`tiny-opt`, …), a hub id (`facebook/opt-1.3b`, …) or a local folder with
            config.json and model.safetensors; write `./tiny-opt` for a folder of that name.
        device: `None` takes the GPU when there is one.
        dtype: Such as "bfloat16"; `None` means fp32 on a CPU and the checkpoint's own on an accelerator.
        attention: "fast" computes z by scaled_dot_product_attention whenever no hook listens to the attention
            scores or pattern; "stock" leaves TransformerLens' own attention in place.
        revision: A branch, tag or commit of a hub repository.

    Returns:
        For causal models a `HookedTransformer` (transformer-lens 3.9) or a `TransformerBridge` (4.x); for
        RoBERTa and ViT the hooked encoders of `ablation_lens.adapters`. All carry `cfg`, `tokenizer`,
        `image_processor` and `record`, a `ModelRecord`; `hf_tokenizer` is the tokenizer before TransformerLens
        changed its special tokens.

    >>> import tempfile, torch, transformers
    >>> config = transformers.OPTConfig(vocab_size=40, hidden_size=12, num_hidden_layers=2, ffn_dim=16,
    ...     num_attention_heads=3, max_position_embeddings=16, word_embed_proj_dim=12)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     transformers.OPTForCausalLM(config).save_pretrained(folder)
    ...     model = load_model(folder)
    >>> logits, cache = model.run_with_cache(torch.tensor([[2, 5, 7]]))
    >>> tuple(cache["blocks.1.attn.hook_z"].shape), model.record.processing
    ((1, 3, 3, 4), 'none')
    """
    if attention not in ATTENTION:
        raise ModelError(f"attention={attention!r} is not known; use 'fast' or 'stock'.")
    from ablation_lens import adapters
    from ablation_lens.adapters.loading import wrap_checkpoint

    checkpoint = find_checkpoint(name_or_folder, revision)
    family = adapters.families().get(checkpoint.model_type)
    if family is not None:
        return wrap_checkpoint(family, checkpoint, device=device, dtype=dtype)
    target = resolve_device(device)
    return _load_causal(checkpoint, target, resolve_dtype(dtype, checkpoint, target), attention)


def task_of_checkpoint(checkpoint: Checkpoint) -> str:
    """What a model loaded from there will be scored on, known from its config alone.

    >>> task_of_checkpoint(find_checkpoint("tiny-vit"))
    'image-classification'
    """
    from ablation_lens import adapters

    family = adapters.families().get(checkpoint.model_type)
    return str(getattr(family and family.wrap, "task", "causal-lm"))


def transformer_lens_major() -> int:
    """3 where `HookedTransformer` exists, 4 where `TransformerBridge` has replaced it."""
    return int(version("transformer-lens").split(".")[0])


def incremental_logits(model: Any) -> Callable[[Int[Tensor, "1 new"]], Float[Tensor, " d_vocab"]]:
    """A function that is fed a text piece by piece and gives the logits behind it, computing only what is new.

    Keys and values of what came before are kept, in TransformerLens' own cache or Hugging Face's.
    """
    kept: Any = None
    length = 0
    if not hasattr(model, "original_model"):  # a HookedTransformer, not a bridge
        from transformer_lens import TransformerLensKeyValueCache

        kept = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)

    def feed(tokens: Tensor) -> Tensor:
        nonlocal kept, length
        length += tokens.shape[1]
        # Spelled out, or TransformerLens looks for padding among the tokens; it wants the new ones', the bridge all.
        mask = torch.ones(1, length, dtype=torch.int64, device=tokens.device)
        if hasattr(model, "original_model"):
            options = {"attention_mask": mask, "past_key_values": kept, "use_cache": True}
            logits, kept = model(tokens, return_type="logits_and_cache", **options)
        else:
            logits = model(tokens, past_kv_cache=kept, attention_mask=mask[:, : tokens.shape[1]])
        return logits[0, -1]  # type: ignore[no-any-return]

    return feed


def _load_causal(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, attention: str) -> Any:
    architecture = _causal_architecture(checkpoint)
    if transformer_lens_major() >= 4:
        hf_model = load_weights(checkpoint, "AutoModelForCausalLM", device=device, dtype=dtype, attention="eager")
        digest = weights_digest(hf_model)
        model = _bridge(checkpoint, architecture, hf_model, attention)
    else:
        _refuse_unsupported(checkpoint)
        cfg = _transformer_lens_config(checkpoint, architecture, device, dtype)
        hf_model = load_weights(checkpoint, "AutoModelForCausalLM", device=device, dtype=dtype)
        digest = weights_digest(hf_model)
        model = _hooked_transformer(checkpoint, cfg, hf_model, attention)
    model.image_processor = None
    model.hf_tokenizer = load_tokenizer(checkpoint)
    model.record = ModelRecord.of_cfg(
        model.cfg, name=checkpoint.name, revision=checkpoint.revision, architecture=architecture, weights=digest
    )
    return model


def _causal_architecture(checkpoint: Checkpoint) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    mapped = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(checkpoint.model_type)
    architecture = checkpoint.architecture or mapped
    if mapped is None or architecture is None or not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise _unsupported(checkpoint, f"{architecture or 'its architecture'} is not a causal language model")
    return architecture


def _unsupported(checkpoint: Checkpoint, why: str) -> ModelError:
    from ablation_lens import adapters

    return ModelError(
        f"{checkpoint.name} is a {checkpoint.model_type} model and cannot be hooked: {why}. Supported are "
        f"{', '.join(sorted(adapters.families()))} and the causal models of transformer-lens "
        f"{version('transformer-lens')} (opt, mistral, gpt2, llama, …); ablation_lens.adapters.register adds a family."
    )


# --- transformer-lens 3.9: HookedTransformer ---------------------------------------------------------------


def _refuse_unsupported(checkpoint: Checkpoint) -> None:
    """Variants that TransformerLens' OPT conversion would get wrong without a word."""
    config = checkpoint.config
    if checkpoint.model_type != "opt":
        return
    if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
        raise _unsupported(checkpoint, "transformer-lens 3 has no post-LN OPT with projected embeddings (4.x has)")
    if not config.enable_bias or not config.layer_norm_elementwise_affine:
        raise _unsupported(checkpoint, "transformer-lens has no OPT without biases or norm weights (Galactica)")


def _transformer_lens_config(
    checkpoint: Checkpoint, architecture: str, device: torch.device, dtype: torch.dtype
) -> Any:
    from transformer_lens import loading_from_pretrained as loading

    values = json.loads(checkpoint.config.to_json_string(use_diff=False)) | {"architectures": [architecture]}
    try:
        with _neutral_folder(values) as folder:
            cfg = loading.get_pretrained_model_config(str(folder), hf_cfg=values, device=device, dtype=dtype)
    except (NotImplementedError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _unsupported(checkpoint, f"transformer-lens does not know {architecture} ({error})") from error
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

    from ablation_lens.fast_attention import enable_fast_attention

    try:
        # An official name is wanted, but with `hf_model` given it is never read: any will do.
        state = loading.get_pretrained_state_dict("gpt2", cfg, hf_model, dtype=cfg.dtype)
    except (NotImplementedError, ValueError, AttributeError, AssertionError) as error:
        raise _unsupported(checkpoint, f"transformer-lens cannot convert these weights ({error})") from error
    with warnings.catch_warnings():
        # transformer-lens 3 announces on every construction that 4 has no such class.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        model = HookedTransformer(cfg, move_to_device=False)
    # assign=True makes the model's parameters the Hugging Face tensors (or views of them): no second copy.
    model.load_state_dict(loading.fill_missing_keys(model, state), strict=False, assign=True)
    _move_rest(model, cfg.device)
    model.requires_grad_(False)
    model.eval()
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer is not None:
        model.set_tokenizer(tokenizer)
    if attention == "fast":
        enable_fast_attention(model)
    return model


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


# --- transformer-lens 4.x: TransformerBridge ---------------------------------------------------------------


def _bridge(checkpoint: Checkpoint, architecture: str, hf_model: Any, attention: str) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    from ablation_lens.bridge_attention import enable_bridge_attention

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
        raise _unsupported(checkpoint, f"transformer-lens does not know {architecture} ({error})") from error
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
        embedding.weight = weight

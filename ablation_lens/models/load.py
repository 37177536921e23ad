"""`load_model`: one call for every family, on both TransformerLens majors.

`hooked_transformer` (3.9) and `bridge` (4.x) do what differs between them; no package above this one knows.
Weights are never processed: `hook_z` is then the input of the Hugging Face model's output projection, and
zero ablation means what it says. (TransformerLens' default folds value biases into `b_O`, which shifts z.)
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablation_lens.errors import ModelError
from ablation_lens.hooked import task_of
from ablation_lens.models.bridge import bridge_in_memory, load_bridge
from ablation_lens.models.checkpoints import (
    NOWHERE,
    Checkpoint,
    checked_seed,
    find_checkpoint,
    load_image_processor,
    load_tokenizer,
    load_weights,
    refusing,
    resolve_device,
    resolve_dtype,
    unsupported,
)
from ablation_lens.models.devices import devices_from, spread
from ablation_lens.models.hooked_transformer import hook_in_memory, load_hooked_transformer
from ablation_lens.records import ModelRecord
from ablation_lens.weights import checksum, weights_digest

if TYPE_CHECKING:
    from ablation_lens.adapters import Family, HookedEncoder

    Encoder = TypeVar("Encoder", bound=HookedEncoder)

ATTENTION = ("fast", "stock")


def load_model(
    name_or_folder: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str = "fast",
    revision: str | None = None,
    n_devices: int = 1,
    random_init: int | None = None,
) -> Any:
    """Load a model with TransformerLens hooks and unprocessed weights, frozen and in eval mode.

    Args:
        name_or_folder: A zoo name (`tiny-opt`, …), a hub id (`facebook/opt-1.3b`, …) or a local folder with
            config.json and model.safetensors; write `./tiny-opt` for a folder of that name.
        device: `None` takes the GPU when there is one.
        dtype: Such as "bfloat16"; `None` means fp32 on a CPU and the checkpoint's own on an accelerator.
        attention: "fast" computes z by scaled_dot_product_attention whenever no hook listens to the attention
            scores or pattern; "stock" leaves TransformerLens' own attention in place. Causal models only: the
            adapters have no other attention than their own, which is fast in the same way.
        revision: A branch, tag or commit of a hub repository.
        n_devices: How many GPUs the blocks of a causal model are spread over, from `device` on; for models that one
            GPU does not hold.
        random_init: A seed. Weights are then those of a model before training, drawn by transformers' own
            initialisation, and none are read; config, tokenizer and image processor are the checkpoint's. The same
            seed gives the same weights, in any dtype and on any device, and records call it `tiny-opt (random 0)`.

    Returns:
        For causal models a `HookedTransformer` (transformer-lens 3.9) or a `TransformerBridge` (4.x); for
        RoBERTa and ViT the hooked encoders of `ablation_lens.adapters`. All carry `cfg`, `tokenizer`,
        `image_processor` and `record`, a `ModelRecord`; `hf_tokenizer` is the tokenizer before TransformerLens
        changed its special tokens, `hf_config` the checkpoint's own config.

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
    checkpoint = _find(name_or_folder, revision, random_init)
    from ablation_lens import adapters  # imports TransformerLens, which a wrong name need not wait for

    family = adapters.families().get(checkpoint.model_type)
    with _one_sentence(checkpoint):
        devices = devices_from(resolve_device(device), n_devices)
        if family is not None:
            if len(devices) > 1:
                raise ModelError(
                    f"{checkpoint.name} is a {checkpoint.model_type} model, which lies on one device; leave n_devices "
                    "out."
                )
            return _load_family(family, checkpoint, device=device, dtype=dtype)
        return _load_causal(checkpoint, devices, resolve_dtype(dtype, checkpoint, devices[0]), attention)


def _find(name: str | os.PathLike[str], revision: str | None, random_init: int | None) -> Checkpoint:
    if random_init is None:
        return find_checkpoint(name, revision)
    seed = checked_seed(random_init)  # before a hub is asked
    return find_checkpoint(name, revision).untrained(seed)


def hook_model(hf_model: Any, *, name: str | None = None, attention: str = "fast") -> Any:
    """Hook a Hugging Face model that is in memory, as `load_model` hooks one that it has read.

    The weights are shared, not copied, and stay on their device and in their dtype; `hf_model` is frozen and put in
    eval mode. With transformer-lens 4 the result is built into a causal `hf_model`, which is then of no use by itself.
    The result has no tokenizer: give it token ids, or set `model.hf_tokenizer`.

    Args:
        hf_model: a causal model, or one of a family of `ablation_lens.adapters`.
        name: what records call it; None for the name of its class.
        attention: as for `load_model`.

    >>> import torch, transformers
    >>> config = transformers.OPTConfig(vocab_size=40, hidden_size=12, num_hidden_layers=2, ffn_dim=16,
    ...     num_attention_heads=3, max_position_embeddings=16, word_embed_proj_dim=12)
    >>> model = hook_model(transformers.OPTForCausalLM(config), name="mine")
    >>> _, cache = model.run_with_cache(torch.tensor([[2, 5, 7]]))
    >>> tuple(cache["blocks.1.attn.hook_z"].shape), model.record.name
    ((1, 3, 3, 4), 'mine')
    """
    if attention not in ATTENTION:
        raise ModelError(f"attention={attention!r} is not known; use 'fast' or 'stock'.")
    config: Any = getattr(hf_model, "config", None)
    if not isinstance(hf_model, torch.nn.Module) or config is None:
        raise ModelError(
            f"got a {type(hf_model).__name__}, expected a model of transformers such as OPTForCausalLM(config); "
            "load_model takes names and folders."
        )
    from ablation_lens import adapters

    architecture = type(hf_model).__name__
    checkpoint = Checkpoint(name or architecture, NOWHERE, None, config, local=True)
    family = adapters.families().get(checkpoint.model_type)
    with refusing(lambda reason: ModelError(f"{checkpoint.name} cannot be hooked ({reason}).")):
        if family is None and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
            raise unsupported(checkpoint, f"{architecture} is not a causal language model")
        hf_model.requires_grad_(False)
        hf_model.eval()
        digest = weights_digest(hf_model)
        if family is not None:
            model = family.wrap(hf_model)
            model.cfg.model_name = checkpoint.name
        else:
            hook = bridge_in_memory if transformer_lens_major() >= 4 else hook_in_memory
            model = hook(checkpoint, architecture, hf_model, attention)
        model.hf_tokenizer = model.image_processor = None
        model.hf_config = config
        model.record = ModelRecord.of_cfg(
            model.cfg,
            name=checkpoint.name,
            revision=None,
            architecture=architecture,
            weights=digest,
            checksum=checksum(model),
        )
    return model


def task_of_checkpoint(checkpoint: Checkpoint) -> str:
    """What a model loaded from there will be scored on, known from its config alone.

    >>> task_of_checkpoint(find_checkpoint("tiny-vit"))
    'image-classification'
    """
    from ablation_lens import adapters

    family = adapters.families().get(checkpoint.model_type)
    return task_of(family and family.wrap)


def load_encoder(adapter: "type[Encoder]", name_or_folder: str | os.PathLike[str], **options: Any) -> "Encoder":
    """What every adapter's `from_pretrained` does: find the checkpoint, check its family, hook it."""
    from ablation_lens import adapters

    checkpoint = _find(name_or_folder, options.pop("revision", None), options.pop("random_init", None))
    family = adapters.families().get(checkpoint.model_type)
    if family is None or family.wrap is not adapter:
        own = sorted(name for name, other in adapters.families().items() if other.wrap is adapter)
        raise ModelError(
            f"{checkpoint.name} is a {checkpoint.model_type} model; {adapter.__name__} loads "
            f"{' and '.join(own) or 'nothing yet'}. ablation_lens.load_model picks the right class by itself."
        )
    with _one_sentence(checkpoint):
        return _load_family(family, checkpoint, **options)  # type: ignore[return-value]


def _one_sentence(checkpoint: Checkpoint) -> AbstractContextManager[None]:
    """Around all that is built from a checkpoint: what its config asks for may end in any error."""
    return refusing(lambda reason: ModelError(f"{checkpoint.name} cannot be loaded ({reason})."))


def _load_family(family: "Family", checkpoint: Checkpoint, *, device: Any = None, dtype: Any = None) -> "HookedEncoder":
    """Load the weights of a registered family's checkpoint and hook them."""
    target = resolve_device(device)
    hf_model, unread = load_weights(
        checkpoint, family.auto_class, device=target, dtype=resolve_dtype(dtype, checkpoint, target)
    )
    model = family.wrap(hf_model)
    model.cfg.model_name = checkpoint.name
    model.tokenizer = model.hf_tokenizer = load_tokenizer(checkpoint)
    model.image_processor = load_image_processor(checkpoint)
    model.hf_config = checkpoint.config
    model.record = ModelRecord.of_cfg(
        model.cfg,
        name=checkpoint.name,
        revision=checkpoint.revision,
        architecture=type(hf_model).__name__,
        weights=weights_digest(hf_model),
        checksum=checksum(model),
        unread=unread,
    )
    return model


def transformer_lens_major() -> int:
    """3 where `HookedTransformer` exists, 4 where `TransformerBridge` has replaced it."""
    return int(version("transformer-lens").split(".")[0])


def incremental_logits(model: Any) -> Callable[[Int[Tensor, "1 new"]], Float[Tensor, " d_vocab"]]:
    """A function that is fed a text piece by piece and gives the logits after it, computing only what is new.

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


def _load_causal(checkpoint: Checkpoint, devices: Sequence[torch.device], dtype: torch.dtype, attention: str) -> Any:
    architecture = _causal_architecture(checkpoint)
    load = load_bridge if transformer_lens_major() >= 4 else load_hooked_transformer
    # One device alone may not hold what is to be spread: it is put together on the CPU, where its files are mapped.
    device = devices[0] if len(devices) == 1 else torch.device("cpu")
    model, digest, unread = load(checkpoint, architecture, device, dtype, attention)
    if len(devices) > 1:
        spread(model, devices)
    model.image_processor = None
    # A second one, as TransformerLens gives the first one special tokens that it lacks.
    model.hf_tokenizer = load_tokenizer(checkpoint)
    model.hf_config = checkpoint.config
    model.record = ModelRecord.of_cfg(
        model.cfg,
        name=checkpoint.name,
        revision=checkpoint.revision,
        architecture=architecture,
        weights=digest,
        checksum=checksum(model),
        unread=unread,
    )
    return model


def _causal_architecture(checkpoint: Checkpoint) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    mapped = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(checkpoint.model_type)
    architecture = checkpoint.architecture or mapped
    if mapped is None or architecture is None or not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise unsupported(checkpoint, f"{architecture or 'its architecture'} is not a causal language model")
    return architecture

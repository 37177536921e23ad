"""From a checkpoint to a hooked encoder, with tokenizer, image processor and record attached."""

from typing import TYPE_CHECKING, Any, TypeVar

from ablation_lens.adapters.registry import Family, families
from ablation_lens.checkpoints import (
    Checkpoint,
    find_checkpoint,
    load_image_processor,
    load_tokenizer,
    load_weights,
    resolve_device,
    resolve_dtype,
    weights_digest,
)
from ablation_lens.errors import ModelError
from ablation_lens.records import ModelRecord

if TYPE_CHECKING:
    from ablation_lens.adapters.encoder import HookedEncoder

Encoder = TypeVar("Encoder", bound="HookedEncoder")


def load_encoder(
    adapter: "type[Encoder]", name_or_folder: str, *, device: Any = None, dtype: Any = None, revision: str | None = None
) -> "Encoder":
    """What every adapter's `from_pretrained` does: find the checkpoint, check its family, wrap it."""
    checkpoint = find_checkpoint(name_or_folder, revision)
    family = families().get(checkpoint.model_type)
    if family is None or family.wrap is not adapter:
        own = sorted(name for name, other in families().items() if other.wrap is adapter)
        raise ModelError(
            f"{checkpoint.name} is a {checkpoint.model_type} model; {adapter.__name__} loads "
            f"{' and '.join(own) or 'nothing yet'}. ablation_lens.load_model picks the right class by itself."
        )
    return wrap_checkpoint(family, checkpoint, device=device, dtype=dtype)  # type: ignore[return-value]


def wrap_checkpoint(family: Family, checkpoint: Checkpoint, *, device: Any, dtype: Any) -> "HookedEncoder":
    """Load the weights of a registered family's checkpoint and hook them."""
    target = resolve_device(device)
    hf_model = load_weights(
        checkpoint, family.auto_class, device=target, dtype=resolve_dtype(dtype, checkpoint, target)
    )
    model = family.wrap(hf_model)
    model.cfg.model_name = checkpoint.name
    model.tokenizer = model.hf_tokenizer = load_tokenizer(checkpoint)
    model.image_processor = load_image_processor(checkpoint)
    model.record = ModelRecord.of_cfg(
        model.cfg,
        name=checkpoint.name,
        revision=checkpoint.revision,
        architecture=type(hf_model).__name__,
        weights=weights_digest(hf_model),
    )
    return model

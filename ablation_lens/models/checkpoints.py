"""Reading a Hugging Face checkpoint: folder or hub id → config, weights, tokenizer, image processor.

Every way this can fail becomes one `ModelError` that says what to do. Weights are read from safetensors
alone (no pickle), no code from a repository is ever run, and a checkpoint that lacks a weight is refused
instead of being filled up with random numbers.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ablation_lens import zoo
from ablation_lens.errors import ModelError
from ablation_lens.names import close_to

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
}

_OFFLINE_HINT = (
    "Without network, give a local folder instead: one that holds config.json and model.safetensors, "
    "as `model.save_pretrained(folder)` or `hf download` write it"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and whose config could be read; its weights are still on disk.

    `name` is what the user asked for and records show, `source` the folder or hub id it is read from.
    """

    name: str
    source: str
    revision: str | None
    config: "PretrainedConfig"
    local: bool

    @property
    def model_type(self) -> str:
        """The family's name in config.json, such as `opt` or `roberta`."""
        return str(self.config.model_type)

    @property
    def architecture(self) -> str | None:
        """The class the weights were saved from, such as `OPTForCausalLM`; None when not recorded."""
        recorded: list[str] = getattr(self.config, "architectures", None) or []
        return recorded[0] if recorded else None


def find_checkpoint(name: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Find `name` in the zoo, as a local folder, or on the hub, and read its config.json.

    >>> find_checkpoint("tiny-vit").architecture
    'ViTForImageClassification'
    """
    text = os.fspath(name)
    if text in zoo.NAMES:
        return Checkpoint(text, str(zoo.folder(text)), None, _read_config(zoo.folder(text)), local=True)
    folder = Path(text).expanduser()
    # An empty name must not come here: Path("") is the current folder.
    if text and folder.is_dir():
        return Checkpoint(str(folder), str(folder), None, _read_config(folder), local=True)
    if text and folder.exists():
        raise ModelError(f"{text} is a file; give the folder that holds config.json and model.safetensors.")
    if not text or text.startswith((".", "~", os.sep)) or text.count("/") > 1:
        raise ModelError(
            f"there is no folder {text!r}; give a folder with config.json in it, or a hub id like facebook/opt-1.3b."
        )
    return _hub_checkpoint(text, revision)


def _hub_checkpoint(name: str, revision: str | None) -> Checkpoint:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from transformers import AutoConfig

    commit, reason, reachable = revision, "", True
    try:
        # One question first: from_pretrained alone retries for half a minute when there is no network.
        # The commit holds for config, weights and tokenizer, also if the repository moves on while they are read.
        commit = HfApi().model_info(name, revision=revision, timeout=15).sha
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder here nor a hub id like facebook/opt-1.3b.") from error
    except Exception as error:  # the kinds belong to whichever HTTP library the hub client uses
        reason, reachable = _first_line(error), False
    try:
        with quiet():
            # Out of reach, the cache alone is asked: the hub would be tried again, with all retries.
            config = AutoConfig.from_pretrained(name, revision=commit, local_files_only=not reachable)
    except Exception as error:  # hub, OS and config validation errors alike
        raise ModelError(
            f"{name!r} is not a folder here{_nearest_zoo_name(name)}, and the hub did not serve it "
            f"({reason or _first_line(error)}). {_OFFLINE_HINT}."
        ) from error
    # From the cache, only the config says which commit it is of.
    return Checkpoint(name, name, commit or getattr(config, "_commit_hash", None), config, local=False)


def _nearest_zoo_name(name: str) -> str:
    close = close_to(name, zoo.NAMES)
    return f" and no zoo model (did you mean {close[0]}?)" if close else ""


def _read_config(folder: Path) -> "PretrainedConfig":
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; a model folder holds config.json and model.safetensors.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is not readable JSON ({_first_line(error)}); copy the model folder again.") from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelError(f"{path} names no model_type; it is not a Hugging Face model config.")
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(folder)
            return config
    except Exception as error:  # config classes validate with errors of their own (dataclass, hub, type errors)
        raise ModelError(f"this transformers version cannot read {path} ({_first_line(error)}).") from error


def load_weights(
    checkpoint: Checkpoint, auto_class: str, *, device: torch.device, dtype: torch.dtype, attention: str = "sdpa"
) -> "PreTrainedModel":
    """The Hugging Face model, frozen, in eval mode, with every weight read from the checkpoint."""
    import transformers

    loader = getattr(transformers, auto_class)
    try:
        with quiet():
            model, info = loader.from_pretrained(
                checkpoint.source,
                revision=checkpoint.revision,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation=attention,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, OS, hub and shape errors all mean: these weights cannot be used
        raise _weights_error(checkpoint, error) from error
    missing = sorted(info["missing_keys"]) + [str(key) for key in info.get("mismatched_keys", [])]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelError(
            f"{checkpoint.name} lacks weights that {type(model).__name__} needs ({shown}); "
            "it would run on random numbers. Use a complete checkpoint of that class."
        )
    model.requires_grad_(False)
    return model.eval().to(device)  # type: ignore[no-any-return]


def unsupported(checkpoint: Checkpoint, why: str) -> ModelError:
    """The error for a model that neither an adapter nor TransformerLens hooks."""
    from ablation_lens import adapters

    return ModelError(
        f"{checkpoint.name} is a {checkpoint.model_type} model and cannot be hooked: {why}. Supported are "
        f"{', '.join(sorted(adapters.families()))} and the causal models of transformer-lens "
        f"{version('transformer-lens')} (opt, mistral, gpt2, llama, …); ablation_lens.adapters.register adds a family."
    )


def _weights_error(checkpoint: Checkpoint, error: Exception) -> ModelError:
    reason = _first_line(error)
    if checkpoint.local:
        folder = Path(checkpoint.source)
        if not any(folder.glob("*.safetensors")):
            others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
            found = f"only {others[0]}, a pickle, which is not read" if others else "no weights"
            return ModelError(
                f"{folder} has {found}; expected model.safetensors. "
                "Convert with AutoModel.from_pretrained(folder).save_pretrained(new_folder)."
            )
        return ModelError(
            f"the weights in {folder} cannot be read ({type(error).__name__}: {reason}); "
            "a file is probably truncated or missing. Copy the folder again."
        )
    return ModelError(
        f"the weights of {checkpoint.name} could not be loaded ({type(error).__name__}: {reason}). {_OFFLINE_HINT}."
    )


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer beside the weights, or None when the checkpoint has none."""
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
    # By the files, as transformers' errors do not tell a missing tokenizer from a broken one.
    if checkpoint.local and not any((Path(checkpoint.source) / name).is_file() for name in names):
        return None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(checkpoint.source, revision=checkpoint.revision)
    except Exception as error:
        if checkpoint.local:
            raise ModelError(
                f"the tokenizer in {checkpoint.name} cannot be read ({_first_line(error)}); "
                "mend its files, or remove them to load the model without a tokenizer."
            ) from error
        return None


def load_image_processor(checkpoint: Checkpoint) -> Any:
    """The image processor beside the weights, or None when the checkpoint has none."""
    from transformers import AutoImageProcessor

    if checkpoint.local and not (Path(checkpoint.source) / "preprocessor_config.json").is_file():
        return None
    try:
        with quiet():
            # The torchvision variant is the default, and torchvision is not a dependency of ours.
            return AutoImageProcessor.from_pretrained(checkpoint.source, revision=checkpoint.revision, backend="pil")
    except Exception as error:
        if checkpoint.local:
            raise ModelError(
                f"preprocessor_config.json in {checkpoint.name} cannot be read ({_first_line(error)}); "
                "mend it, or remove it to load the model without an image processor."
            ) from error
        return None


def weights_digest(model: torch.nn.Module) -> str:
    """A digest over evenly spaced samples of every tensor: cheap for 7B weights, new after any training step."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
        step = max(1, flat.numel() // 64)
        # Sampled before it is moved and widened. float64 holds every float type exactly, and NumPy has no bfloat16.
        digest.update(flat[::step].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def resolve_dtype(dtype: "str | torch.dtype | None", checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """`None` means fp32 on a CPU and the checkpoint's own dtype on an accelerator."""
    if dtype is None:
        own = getattr(checkpoint.config, "dtype", None)
        dtype = torch.float32 if device.type == "cpu" or own is None else own
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in DTYPES:
        return DTYPES[dtype.removeprefix("torch.")]
    raise ModelError(f"{dtype!r} is not a dtype for model weights; use one of {', '.join(DTYPES)}.")


def resolve_device(device: "str | torch.device | None") -> torch.device:
    """`None` means the GPU when there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is not a device; use 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for, but torch sees no CUDA GPU here; use device='cpu'.")
    return resolved


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice while a model is read or written, then restore both."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

"""Reading a Hugging Face checkpoint: folder or hub id → config, weights, tokenizer, image processor.

Every way this can fail becomes one `ModelError` that says what to do. Weights are read from safetensors
alone (no pickle), no code from a repository is ever run, and a checkpoint that lacks a weight, or has blocks
that its config does not mention, is refused instead of being filled up with random numbers or cut.
"""

import copy
import logging
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ablation_lens import zoo
from ablation_lens.errors import AblationLensError, ModelError
from ablation_lens.escaping import shorten
from ablation_lens.hooked import advice_for, is_unhooked
from ablation_lens.memory import free_on_machine
from ablation_lens.models.stored import StoredWeights, read_config, require_ordinary_files, stored_weights
from ablation_lens.names import close_to, nearest

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


NOWHERE = ""
"""The source of a model that is in memory already: it has no files."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and whose config could be read; its weights are still on disk.

    `name` is what the user asked for and records show, `source` the folder or hub id it is read from, or `NOWHERE`.
    With a seed as `random_init`, weights are drawn instead of being read.
    """

    name: str
    source: str
    revision: str | None
    config: "PretrainedConfig"
    local: bool
    random_init: int | None = None

    def untrained(self, seed: int) -> "Checkpoint":
        """What it was before training: the same but for the weights, and under a name of its own.

        >>> find_checkpoint("tiny-vit").untrained(3).name
        'tiny-vit (random 3)'
        """
        return replace(self, name=f"{self.name} (random {seed})", random_init=seed)

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
    if not isinstance(name, str | os.PathLike):
        what = advice_for(name) if is_unhooked(name) else "give one, such as 'tiny-opt'"
        raise ModelError(f"got a {type(name).__name__}, expected the name or the folder of a model; {what}.")
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
    from transformers.utils.hub import cached_file, extract_commit_hash

    commit, why, reachable = revision, "", True
    try:
        # One question first: from_pretrained alone retries for half a minute when there is no network.
        # The commit holds for config, weights and tokenizer, also if the repository moves on while they are read.
        commit = HfApi().model_info(name, revision=revision, timeout=15).sha
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder here nor a hub id like facebook/opt-1.3b.") from error
    except Exception as error:  # the kinds belong to whichever HTTP library the hub client uses
        why, reachable = _first_line(error), False

    def not_served(reason: str) -> ModelError:
        return ModelError(
            f"{name!r} is not a folder here{_nearest_zoo_name(name)}, and the hub did not serve it "
            f"({why or reason}). {_OFFLINE_HINT}."
        )

    # Out of reach, the cache alone is asked: the hub would be tried again, with all retries.
    options = {"revision": commit, "local_files_only": not reachable}
    with refusing(not_served), quiet():
        path = str(cached_file(name, "config.json", **options))
        # From the cache, only the file's place says which commit it is of.
        commit = commit if reachable else extract_commit_hash(path, commit)
        config = _config_of(name, Path(path), **{**options, "revision": commit})
    return Checkpoint(name, name, commit, config, local=False)


def _nearest_zoo_name(name: str) -> str:
    close = close_to(name, zoo.NAMES)
    return f" and no zoo model (did you mean {close[0]}?)" if close else ""


def _read_config(folder: Path) -> "PretrainedConfig":
    path = folder / "config.json"
    require_ordinary_files(folder)
    if not path.exists():
        raise ModelError(f"{folder} has no config.json; a model folder holds config.json and model.safetensors.")
    return _config_of(str(folder), path)


def _config_of(source: str, path: Path, **options: Any) -> "PretrainedConfig":
    """The config of a folder or hub id, whose config.json was found at `path`."""
    from transformers import AutoConfig
    from transformers.activations import ACT2FN

    values = read_config(path)
    for field in ("hidden_act", "activation_function"):
        if isinstance(name := values.get(field), str) and name not in ACT2FN:
            name = shorten(name, 60)  # or to look for the nearest may take for ever
            raise ModelError(
                f"{path} says that {field} is {name!r}, which transformers does not know; the nearest is "
                f"{nearest(name, list(ACT2FN))!r}."
            )

    # Config classes validate with errors of their own (dataclass, hub, type errors).
    def unreadable(reason: str) -> ModelError:
        if "auto_map" in values:
            reason = f"{values['model_type']} needs code of its own, and no code from a repository is run"
        return ModelError(f"this transformers version cannot read {path} ({reason}).")

    with refusing(unreadable), quiet():
        config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
        # A config of a known family may name code besides, which somebody else who gets this config might run.
        vars(config).pop("auto_map", None)
        return config


def load_weights(
    checkpoint: Checkpoint, auto_class: str, *, device: torch.device, dtype: torch.dtype, attention: str = "sdpa"
) -> "tuple[PreTrainedModel, tuple[str, ...]]":
    """The Hugging Face model, frozen, in eval mode, with every weight read; and the names that it has no use for."""
    import transformers

    loader = getattr(transformers, auto_class)
    # Safetensors, OS, hub and shape errors all mean: these weights cannot be used.
    with refusing(lambda reason: _weights_error(checkpoint, reason)), quiet():
        with _weights_of(checkpoint, loader, dtype, device) as (model_class, weights):
            model, info = model_class.from_pretrained(
                None,  # where the files are was found already; transformers would map them, whatever their dtype
                state_dict=weights,
                config=checkpoint.config,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                trust_remote_code=False,
            )
        model.config.name_or_path = checkpoint.source
        _read_generation_config(checkpoint, model)
    missing = sorted(info["missing_keys"]) + [str(key) for key in info.get("mismatched_keys", [])]
    if missing:
        raise ModelError(
            f"{checkpoint.name} lacks weights that {type(model).__name__} needs ({_some(missing)}); "
            "it would run on random numbers. Use a complete checkpoint of that class."
        )
    unread = _unread(checkpoint, model, info["unexpected_keys"])
    _require_finite(checkpoint, model)
    model.requires_grad_(False)
    return model.eval().to(device), unread


@contextmanager
def _weights_of(
    checkpoint: Checkpoint, loader: Any, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The class of the model, and its weights by name: from the files, or drawn."""
    if checkpoint.random_init is not None:
        drawn = _drawn(checkpoint, loader, checkpoint.random_init)
        yield type(drawn), drawn.state_dict()
        return
    stored = stored_weights(checkpoint.source, checkpoint.revision)
    if stored is None:
        raise FileNotFoundError("it has no model.safetensors")
    model_class = _class_of_size(checkpoint, loader, stored)
    with stored.opened(dtype, device) as weights:
        yield model_class, weights


def checked_seed(seed: Any) -> int:
    """A seed that torch takes, or one sentence.

    >>> checked_seed(-1)
    Traceback (most recent call last):
    ablation_lens.errors.ModelError: random_init=-1 is not possible; give a whole number from 0.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= operator.index(seed) < 2**64:
        raise ModelError(f"random_init={seed!r:.60} is not possible; give a whole number from 0.")
    return operator.index(seed)


def _drawn(checkpoint: Checkpoint, loader: Any, seed: int) -> "PreTrainedModel":
    """The model as transformers initialises it, in float32 and on the CPU: the same for every device and dtype."""
    needed, free = 4 * _numbers(_without_memory(checkpoint, loader)), free_on_machine()
    if free is not None and needed > free:
        raise ModelError(
            f"{checkpoint.name} takes {needed:,} bytes to initialise, and {free:,} are free here; use a smaller config."
        )
    config = copy.deepcopy(checkpoint.config)  # into which transformers would write the dtype
    # The generator itself, as torch.manual_seed would seed those of accelerators, too, which are not forked here.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        drawn: PreTrainedModel = loader.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return drawn


def _class_of_size(checkpoint: Checkpoint, loader: Any, stored: StoredWeights) -> Any:
    """The class of the model; raises before anything is built where the config asks for far more than is there."""
    config = checkpoint.config.get_text_config()
    blocks = getattr(config, "num_hidden_layers", 0)
    if blocks > len(stored.names):
        raise ModelError(
            f"the config of {checkpoint.name} asks for {blocks:,} blocks, and its files hold {len(stored.names):,} "
            "weights in all; use the config that the weights were saved with."
        )
    # Reading the files refuses any other size in detail, but what lacks there is made first.
    empty = _without_memory(checkpoint, loader)
    asked = _numbers(empty)
    # Quantised, several numbers share a byte; buffers are made from nothing.
    if asked > 4 * stored.bytes + 2**24:
        raise ModelError(
            f"the config of {checkpoint.name} asks for {asked:,} numbers, and its files hold {stored.bytes:,} bytes; "
            "use the config that the weights were saved with."
        )
    return type(empty)


def _without_memory(checkpoint: Checkpoint, loader: Any) -> "PreTrainedModel":
    """The model that the config describes, without numbers in it."""

    def impossible(reason: str) -> ModelError:
        return ModelError(f"the config of {checkpoint.name} does not describe a model ({reason}).")

    with refusing(impossible), torch.device("meta"):
        empty: PreTrainedModel = loader.from_config(checkpoint.config, trust_remote_code=False)
    return empty


def _numbers(model: "PreTrainedModel") -> int:
    return sum(tensor.numel() for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


def _read_generation_config(checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
    from transformers import GenerationConfig

    if model.can_generate():
        # Without such a file, what the config says about it stays.
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(
                checkpoint.source, revision=checkpoint.revision or "main", local_files_only=checkpoint.local
            )


# Causal masks and rotary frequencies, which older checkpoints keep in every block, are computed, not learned.
_COMPUTED = re.compile(r"(masked_bias|causal_mask|inv_freq|position_ids|(attn|attention)\.bias)$")


def _unread(checkpoint: Checkpoint, model: "PreTrainedModel", unexpected: Iterable[str]) -> tuple[str, ...]:
    """What the checkpoint holds beside the model, such as poolers and heads of other tasks; blocks are refused."""
    # `model.layers` of model.layers.0.mlp.weight. A vision tower beside a language model has blocks, too.
    own = {numbered[1] for name in model.state_dict() if (numbered := re.match(r"(.+?\.)\d+\.", name))}
    names = sorted(name for name in unexpected if not _COMPUTED.search(name))
    lost = [name for name in names if (numbered := re.match(r"(.+?\.)\d+\.", name)) and numbered[1] in own]
    if lost:
        raise ModelError(
            f"{checkpoint.name} holds weights of blocks that its config does not mention ({_some(lost)}); the model "
            "would be cut. Use the config that the weights were saved with."
        )
    return (*names[:20], *([f"and {len(names) - 20} more"] if len(names) > 20 else []))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _require_finite(checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
    for name, weight in model.named_parameters():
        # A sum is many times faster than to look at every number. Of large numbers it may overflow.
        if not weight.is_floating_point() or weight.element_size() < 2 or weight.sum(dtype=_wide(weight)).isfinite():
            continue
        bad = (~weight.isfinite()).nonzero()
        if len(bad):
            place = bad[0].tolist()
            raise ModelError(
                f"{name} of {checkpoint.name} is {weight[tuple(place)].item()} at {place}; weights must be finite "
                "numbers. Copy the model again, or load it in another dtype."
            )


def _wide(weight: torch.Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def unsupported(checkpoint: Checkpoint, why: str) -> ModelError:
    """The error for a model that neither an adapter nor TransformerLens hooks."""
    from ablation_lens import adapters

    return ModelError(
        f"{checkpoint.name} is a {checkpoint.model_type} model and cannot be hooked: {why}. Supported are "
        f"{', '.join(sorted(adapters.families()))} and the causal models of transformer-lens "
        f"{version('transformer-lens')} (opt, mistral, gpt2, llama, …); ablation_lens.adapters.register adds a family."
    )


def _weights_error(checkpoint: Checkpoint, reason: str) -> ModelError:
    if checkpoint.random_init is not None:
        return ModelError(f"{checkpoint.name} cannot be initialised ({reason}).")
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
            f"the weights in {folder} cannot be read ({reason}); "
            "a file is probably truncated or missing. Copy the folder again."
        )
    return ModelError(f"the weights of {checkpoint.name} could not be loaded ({reason}). {_OFFLINE_HINT}.")


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer beside the weights, or None when the checkpoint has none."""
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
    if checkpoint.source == NOWHERE:  # as a path it would be the current folder
        return None
    # By the files, as transformers' errors do not tell a missing tokenizer from a broken one.
    if checkpoint.local and not any((Path(checkpoint.source) / name).is_file() for name in names):
        return None
    with _left_out_on_the_hub(checkpoint, "the tokenizer", "its files"), quiet():
        options = {"revision": checkpoint.revision, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.source, **options)
        # TransformerLens loads it again with what it was made with: what the folder's own files say there, too.
        for option in _OPTIONS:
            tokenizer.init_kwargs.pop(option, None)
        tokenizer.init_kwargs |= options
        tokenizer.encode("a")  # what is wrong with it may show only when it is used
        return tokenizer
    return None


_OPTIONS = (
    *("auto_map", "code_revision", "config", "subfolder", "cache_dir", "force_download", "proxies", "token"),
    *("gguf_file", "tokenizer_type", "mistral_format", "use_fast", "repo_id", "repo_type"),
)
"""Options of `from_pretrained` that a tokenizer_config.json has no business to set."""


@contextmanager
def _left_out_on_the_hub(checkpoint: Checkpoint, what: str, files: str) -> Iterator[None]:
    """What cannot be read in a folder is an error; of a hub's model it is left out, as it may not be there."""

    def unreadable(reason: str) -> ModelError:
        return ModelError(
            f"{what} in {checkpoint.name} cannot be read ({reason}); mend {files}, or remove {files} to load the "
            f"model without."
        )

    try:
        with refusing(unreadable):
            yield
    except ModelError:
        if checkpoint.local:
            raise


def load_image_processor(checkpoint: Checkpoint) -> Any:
    """The image processor beside the weights, or None when the checkpoint has none."""
    # From where it is: until transformers 5.9 at least, the root shows it only where torchvision is installed.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    if checkpoint.local and not (Path(checkpoint.source) / "preprocessor_config.json").is_file():
        return None
    with _left_out_on_the_hub(checkpoint, "preprocessor_config.json", "it"), quiet():
        # The torchvision variant is the default, and torchvision is not a dependency of ours.
        return AutoImageProcessor.from_pretrained(
            checkpoint.source, revision=checkpoint.revision, backend="pil", trust_remote_code=False
        )
    return None


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


@contextmanager
def refusing(describe: Callable[[str], ModelError]) -> Iterator[None]:
    """Turn whatever a library raises over files from elsewhere into one sentence; errors of ours are sentences already.

    >>> with refusing(lambda reason: ModelError(f"no model ({reason})")):
    ...     {}["layers"]
    Traceback (most recent call last):
    ablation_lens.errors.ModelError: no model (KeyError: 'layers')
    """
    try:
        yield
    except AblationLensError:
        raise
    except BaseException as error:
        # A panic of tokenizers or safetensors, which are written in Rust, is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise describe(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return shorten(lines[0].rstrip("."), 300) if lines else type(error).__name__

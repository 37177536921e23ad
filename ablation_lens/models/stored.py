"""What lies in a checkpoint's files, looked at before anything is built from them.

A config.json can ask for any model; the headers of the weights say how much of it is there.
"""

import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ablation_lens.errors import ModelError
from ablation_lens.files import HEADER_BYTES, parse_json, read_text, require_readable

TEXT_BYTES = 2**27
"""What a tokenizer's file may take; the largest vocabularies need a quarter of it."""

_TEXTS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tekken.json", "chat_template.json", "chat_template.jinja"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "model.safetensors.index.json"),
)

_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_key_value_heads", "head_dim")
_SIZES = ("hidden_size", "n_embd", "d_model", "vocab_size", "num_channels", "patch_size", "image_size")
POSSIBLE = dict.fromkeys(_LAYERS, 10**4) | dict.fromkeys(_HEADS, 10**5) | dict.fromkeys(_SIZES, 10**9)
POSSIBLE |= {"num_labels": 5 * 10**4}
"""How much of something a config may ask for, far above any model; one of each is the least."""


def require_ordinary_files(folder: Path) -> None:
    """Raise `ModelError` where a file that may be read is a pipe, a device, a folder or too large for what it is."""
    for name in _TEXTS:
        if (folder / name).exists():
            require_readable(folder / name, TEXT_BYTES, ModelError)
    for path in _present(folder):
        require_readable(path, None, ModelError)


def _present(folder: Path) -> Iterator[Path]:
    """Weights, and whatever is neither file nor folder: tokenizers of some families have files of other names."""
    for inside in (folder, folder / "additional_chat_templates"):
        for path in sorted(inside.iterdir()) if inside.is_dir() else ():
            if path.exists():  # or else a link to nowhere, which is as good as no file
                mode = path.stat().st_mode
                if path.suffix == ".safetensors" or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    yield path


def read_config(path: Path) -> dict[str, Any]:
    """The values of a config.json, none of which asks for an impossible model."""
    require_readable(path, HEADER_BYTES, ModelError)
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); copy the model folder again.") from error
    if not isinstance(values, dict) or not _is_name(values.get("model_type")):
        raise ModelError(f"{path} names no model_type; it is not a Hugging Face model config.")
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list) or not all(map(_is_name, architectures)):
        raise ModelError(f"{path} has architectures that are not names of classes; copy the model folder again.")
    for name, size in _sizes(values):
        if not 1 <= size <= POSSIBLE[name]:
            raise ModelError(f"{path} says that {name} is {size}; expected a whole number from 1 to {POSSIBLE[name]}.")
    return values


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200


def _sizes(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, dict):  # such as text_config
            yield from _sizes(value)
        elif name in POSSIBLE:
            yield from ((name, size) for size in (value if isinstance(value, list) else [value]) if type(size) is int)


@dataclass(frozen=True)
class StoredWeights:
    """A checkpoint's files of weights, and the names in them."""

    files: tuple[Path, ...]
    names: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """The size of the files."""
        return sum(path.stat().st_size for path in self.files)

    @contextmanager
    def opened(self, dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
        """Every weight by its name, as what reads it from the disk when it is sliced: `weights[name][...]`.

        One that is in `dtype` already is a view of the file. Any other is read into memory of its own, which goes when
        it was converted: pages of a file that is mapped would stay, beside what they were converted to.
        """
        own = _STORED.get(dtype) if _maps_files(device) else None
        with ExitStack() as stack:
            weights = {}
            for path in self.files:
                mapped = stack.enter_context(safe_open(path, framework="pt"))
                read = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
                for name in mapped.keys():  # noqa: SIM118 - a file of weights is no dictionary
                    view = mapped.get_slice(name)
                    weights[name] = view if view.get_dtype() == own else read.get_slice(name)
            yield weights


_STORED = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
"""What a header of safetensors calls each dtype of weights."""


def _maps_files(device: torch.device) -> bool:
    """Metal does not take mapped memory, and Windows reserves as much again for a mapped file."""
    return device.type != "mps" and sys.platform != "win32"


def stored_weights(source: str, revision: str | None) -> StoredWeights | None:
    """What the headers of a checkpoint's safetensors say; None where it has none."""
    names: list[str] = []
    files = _weight_files(source, revision)
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > 2 * HEADER_BYTES:
            raise ModelError(f"the header of {path} claims {length:,} bytes; copy the model folder again.")
        with safe_open(path, framework="pt") as file:
            names += file.keys()
    return StoredWeights(tuple(files), tuple(names)) if files else None


def _weight_files(source: str, revision: str | None) -> list[Path]:
    from transformers.utils.hub import cached_file

    def find(name: str, *, required: bool = False) -> str | None:
        # In a folder, in the hub's cache, or downloaded into it: the files that `from_pretrained` reads.
        found: str | None = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=required)
        return found

    if whole := find("model.safetensors"):
        return [Path(whole)]
    index = find("model.safetensors.index.json")
    if index is None:
        return []
    try:
        shards = parse_json(read_text(Path(index), TEXT_BYTES, ModelError))["weight_map"].values()
        # A path from a file is not followed: shards lie beside their index.
        if not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards):
            raise ValueError("it names a file elsewhere")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} does not say where the weights are ({error}); copy the model folder again."
        ) from error
    return [Path(str(find(shard, required=True))) for shard in sorted(set(shards))]

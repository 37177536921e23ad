"""How files are written: whole or not at all, and tensors in one format, safetensors with a JSON header, no pickle.

The header carries what kind of file it is, the format's version and a checksum over every tensor, so that a
truncated, foreign, damaged or newer file is one clear error.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ablation_lens.errors import AblationLensError, FileFormatError


def require_target(path: Path, *sources: Path | None) -> None:
    """Raise before the work, not after it, where `path` cannot be written or would replace what is read.

    A source may be a folder: then nothing in it is replaced.
    """
    if not path.parent.is_dir():
        raise AblationLensError(f"there is no folder {path.parent} to write {path.name} to; make it first.")
    if path.is_dir():
        raise AblationLensError(f"{path} is a folder; give a file to write.")
    if not os.access(path.parent, os.W_OK):
        raise AblationLensError(f"{path.parent} cannot be written to; give a file in another folder.")
    for source in sources if path.exists() else ():
        if source is None or not source.exists():
            continue
        if path.samefile(source):  # also through a link
            raise AblationLensError(f"{path} is what is read; give another file to write.")
        if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
            raise AblationLensError(f"{path} is a file of {source}, which is read; give a file elsewhere to write.")


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Run `write(temporary)` and move the result to `path` only when it is whole and on disk.

    The temporary file lies beside the target (a rename across file systems is not atomic), is
    fsynced before the rename and removed when anything fails, so a reader sees the old file, the new
    one, or none — never half of one.
    """
    path = Path(path)
    # The name ends in .tmp, so nobody who lists *.safetensors or *.json takes it for a result.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        # fsync is about the file, not the handle: what `write` wrote and closed is flushed, too.
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)  # the rename itself lives in the folder
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, atomically, with line feeds as they are on every system."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


class CannotWrite(AblationLensError):  # noqa: N818  (what happened, as the disk sees it)
    """The disk is full, or not ours to write to."""


@contextmanager
def writing(path: Path, advice: str = "make room, or give another place.") -> Iterator[None]:
    """Turn what a disk can answer into one sentence."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"cannot write to {path} ({error.strerror or error}); {advice}") from error


def _umask() -> int:
    # mkstemp makes private files, a shared run folder wants ordinary ones; the umask is only read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a folder; the file itself is safe
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- tensors

_KEY = "ablation_lens"


def save_tensors(
    path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 1
) -> None:
    """Write tensors and a header of plain JSON values, atomically; `version` is that of the kind's format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tensors(f"{folder}/x.safetensors", "example", {"a": 1}, {"t": torch.ones(2)})
    ...     load_tensors(f"{folder}/x.safetensors", "example")
    ({'a': 1}, {'t': tensor([1., 1.])})
    """
    # safetensors refuses tensors that are not contiguous.
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(header), sort_keys=True, allow_nan=False)
    # The header as it reads back, lists for tuples, because that is what the checksum is compared with.
    outer = {"kind": kind, "version": version, "checksum": _checksum(text, held), "header": json.loads(text)}
    write_atomically(path, lambda temporary: _write(held, temporary, {_KEY: json.dumps(outer)}))


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        # A full disk is an error of the disk, also when safetensors wraps it into one of its own.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load_tensors(path: str | Path, kind: str, *, newest: int = 1) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_tensors` wrote: `(header, tensors)`; anything else is a `FileFormatError`.

    Versions of the format from 1 to `newest` are read; which fields an older one lacks is the caller's business.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not a whole safetensors file ({error}); copy or collect it again.") from error
    header = _read_header(path, kind, metadata, newest)
    text = json.dumps(header["header"], sort_keys=True)
    if header.get("checksum") != _checksum(text, tensors):
        raise FileFormatError(
            f"{path} was changed or damaged after it was written (its checksum differs); make it again."
        )
    return header["header"], tensors


def _read_header(path: Path, kind: str, metadata: Mapping[str, str], newest: int) -> dict[str, Any]:
    if _KEY not in metadata:
        raise FileFormatError(f"{path} was not written by ablation-lens; {kind} was expected.")
    try:
        header = json.loads(metadata[_KEY])
        found, version = header["kind"], header["version"]
        if not isinstance(header["header"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"the header of {path} is damaged; make it again.") from error
    # The kind first: versions are counted for each kind alone.
    if found != kind:
        raise FileFormatError(f"{path} holds {found}, but {kind} was expected.")
    if version not in range(1, newest + 1):
        reads = "1" if newest == 1 else f"1 to {newest}"
        raise FileFormatError(
            f"{path} has format version {version}, this ablation-lens reads {reads}; "
            "use the version that wrote it, or make the file again."
        )
    return header  # type: ignore[no-any-return]


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        # The bytes alone do not tell a [2, 3] from a [3, 2], or one dtype from another.
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # As bytes, because NumPy has no bfloat16; flat first, because a 0-d tensor cannot be viewed as bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

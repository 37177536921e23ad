"""How files are written, whole or not at all, and read: tensors as safetensors with a JSON header, the rest as JSON.

Both carry what kind of file it is, the format's version and a checksum over the content, so that a truncated,
foreign, damaged or newer file is one clear error. No pickle anywhere.
"""

import hashlib
import itertools
import json
import math
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.interrupts import put_off

if TYPE_CHECKING:  # a corpus of texts asks here whether its files can be read, and needs no torch
    from torch import Tensor

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_target(path: Path, *sources: Path | None) -> None:
    """Raise before the work, not after it, where `path` cannot be written or would replace what is read.

    A source may be a folder: then nothing in it is replaced.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as problem:
        raise AblationLensError(f"{path} cannot be written ({_reason(problem)}); give another file.") from problem
    else:
        if kind := _special_kind(status):
            raise AblationLensError(f"{path} is {kind}; give a file to write.")
        _require_other(path, sources)
    try:
        _try_writing(path.parent)
    except FileNotFoundError:
        raise AblationLensError(f"there is no folder {path.parent} to write {path.name} to; make it first.") from None
    except OSError as problem:
        raise AblationLensError(
            f"{path.parent} cannot be written to ({_reason(problem)}); give a file in another folder."
        ) from problem


def _require_other(path: Path, sources: Iterable[Path | None]) -> None:
    for source in sources:
        try:
            same = source is not None and path.samefile(source)  # also through a link
            inside = source is not None and source.is_dir() and path.resolve().is_relative_to(source.resolve())
        except OSError:  # a name of the hub, or nothing that can be read
            continue
        if same:
            raise AblationLensError(f"{path} is what is read; give another file to write.")
        if inside:
            raise AblationLensError(f"{path} is a file of {source}, which is read; give a file elsewhere to write.")


def require_target_folder(path: Path) -> None:
    """Raise before the work where files cannot be written to a folder, which need not be there yet."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        _try_writing(there)
    except NotADirectoryError:
        raise AblationLensError(f"{there} is a file; give a folder to write to.") from None
    except OSError as problem:
        raise AblationLensError(f"{path} cannot be written to ({_reason(problem)}); give another folder.") from problem


def _try_writing(folder: Path) -> None:
    """Raise what the disk answers to whoever writes a few bytes to a folder."""
    # Tried, not asked: permissions, read-only disks, full ones and quotas all show in this way, and in no other.
    trial = _new_temporary(folder)
    try:
        trial.write_bytes(bytes(4096))
    finally:
        trial.unlink()


def _special_kind(status: os.stat_result) -> str | None:
    """What this is, if not a file."""
    return next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), None)


def require_readable(path: Path, most: int | None = None, error: type[AblationLensError] = FileFormatError) -> None:
    """Raise one sentence unless `path` is a file that can be read, of at most so many bytes. Nothing is read.

    A pipe or a device may never end, and opening it may already wait for ever.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"there is no file {path}.") from None
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the name
        raise error(f"{path} cannot be read ({_reason(problem)}).") from problem
    if kind := _special_kind(status):
        raise error(f"{path} is {kind}; a file was expected.")
    if most is not None and status.st_size > most:
        raise error(f"{path} has {status.st_size:,} bytes; at most {most:,} were expected.")
    if not os.access(path, os.R_OK):
        raise error(f"{path} cannot be read (Permission denied).")


def read_text(path: Path, most: int, error: type[AblationLensError] = FileFormatError) -> str:
    """The text of a small UTF-8 file; anything else is one sentence."""
    require_readable(path, most, error)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read ({_reason(problem)}).") from problem


def _reason(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem)


def write_atomically(path: str | Path, write: Callable[[Path], Any], *, first: bool = False) -> None:
    """Run `write(temporary)` and move the result to `path` only when it is whole and on disk.

    The temporary file lies beside the target (a rename across file systems is not atomic), is
    fsynced before the rename and removed when anything fails, so a reader sees the old file, the new
    one, or none — never half of one. With `first`, a file that is there already stays, and ours is dropped.
    """
    path = Path(path)
    temporary = _new_temporary(path.parent)
    try:
        write(temporary)
        # fsync is about the file, not the handle: what `write` wrote and closed is flushed, too.
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        (_link if first else Path.replace)(temporary, path)
        _sync_folder(path.parent)  # the rename itself lives in the folder
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    """Give a whole file its name, unless another has it: of several writers, the first one's stays."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # disks without links; there two that come at the same moment may still replace each other's
        if not path.exists():
            temporary.replace(path)


def write_text(path: str | Path, text: str, *, first: bool = False) -> None:
    """Write text as UTF-8, atomically, with line feeds as they are on every system."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"), first=first)


class CannotWrite(AblationLensError):  # noqa: N818  (what happened, as the disk sees it)
    """The disk is full, or not ours to write to."""


@contextmanager
def writing(path: Path, advice: str = "make room, or give another place.") -> Iterator[None]:
    """Turn what a disk can answer into one sentence."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"cannot write to {path} ({error.strerror or error}); {advice}") from error


def write_result(path: Path, write: Callable[[Path], Any]) -> None:
    """Run `write(path)` for what took long to make; where the disk refuses, the error says where it is kept instead.

    Ctrl-C waits meanwhile: nothing is left that it could spare.
    """
    with put_off(1):
        try:
            write(path)
        except OSError as refusal:
            place = write_beside(path, "rescued", write)
            raise CannotWrite(
                f"cannot write to {path} ({_reason(refusal)}); what was made is in {place} instead."
            ) from refusal


def write_beside(path: Path, word: str, write: Callable[[Path], Any]) -> Path:
    """Run `write` on a new name beside `path`, with `word` in it, or on one in a temporary folder; returns which.

    Nothing that is there is replaced.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "x.txt")
    ...     [write_beside(path, "partial", lambda place: place.write_text("…")).name for _ in range(2)]
    ['x.partial.txt', 'x.partial-2.txt']
    """
    refusal: OSError | None = None
    with put_off(1):
        for claim in (
            partial(_claim_beside, path, word),
            partial(_claim_apart, path, None),
            partial(_claim_apart, path, "/dev/shm"),  # memory: where all else lies on one disk, and that is full
        ):
            try:
                place = claim()
                try:
                    write(place)
                except BaseException:
                    place.unlink(missing_ok=True)
                    if place.parent != path.parent:  # made for it
                        place.parent.rmdir()
                    raise
                return place
            except OSError as problem:
                refusal = refusal or problem
    assert refusal is not None
    raise CannotWrite(
        f"cannot write beside {path} ({_reason(refusal)}), nor to a temporary folder, so what was made is lost; make "
        "room before it is made again."
    ) from refusal


def _claim_apart(path: Path, folder: str | None) -> Path:
    """A name in a new temporary folder; None has it made where the system makes them."""
    return Path(tempfile.mkdtemp(prefix="ablation-lens-", dir=folder), path.name)


def _claim_beside(path: Path, word: str) -> Path:
    """A new, empty file: a name that is only free may be another's a moment later."""
    for number in itertools.count(1):
        place = path.with_name(f"{path.stem}.{word}{'' if number == 1 else f'-{number}'}{path.suffix}")
        with suppress(FileExistsError):
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return place
    raise AssertionError("numbers do not end")


_TEMPORARY = re.compile(r"\.ablation-lens-[0-9a-f]{12}\.tmp")


def _new_temporary(folder: Path) -> Path:
    """An empty file under a name of our own."""
    # It ends in .tmp, so nobody who lists *.safetensors or *.json takes it for a result.
    path = folder / f".ablation-lens-{secrets.token_hex(6)}.tmp"
    # Not by tempfile, which makes private files: a shared run folder wants ordinary ones, as the umask says.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return path


def sweep(folder: Path, older_than: float) -> None:
    """Delete what writers that were killed left in a folder, once it is so many seconds old."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            # Another process may be at a younger one, or sweep too; what has another name or kind is not ours.
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                ours = _TEMPORARY.fullmatch(entry.name) and stat.S_ISREG(status.st_mode)
                if ours and time.time() - status.st_mtime > older_than:
                    Path(entry.path).unlink()


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
HEADER_BYTES = 2**24
"""What the header of a tensor file, or a file of JSON, may take; ours take a few thousand bytes."""


def save_tensors(
    path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, "Tensor"], *, version: int = 1
) -> None:
    """Write tensors and a header of plain JSON values, atomically; `version` is that of the kind's format.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tensors(f"{folder}/x.safetensors", "example", {"a": 1}, {"t": torch.ones(2)})
    ...     load_tensors(f"{folder}/x.safetensors", "example")
    ({'a': 1}, {'t': tensor([1., 1.])})
    """
    # safetensors refuses tensors that are not contiguous.
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(header), sort_keys=True, allow_nan=False)  # as `_canonical`, but NaN is refused
    # The header as it reads back, lists for tuples, because that is what the checksum is compared with.
    outer = {"kind": kind, "version": version, "checksum": _checksum(text, held), "header": json.loads(text)}
    write_atomically(path, lambda temporary: _write(held, temporary, {_KEY: json.dumps(outer)}))


def _write(tensors: Mapping[str, "Tensor"], path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        # A full disk is an error of the disk, also when safetensors wraps it into one of its own.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load_tensors(
    path: str | Path, kind: str, *, newest: int = 1, most: int | None = None
) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Read what `save_tensors` wrote: `(header, tensors)`; anything else is a `FileFormatError`.

    Versions of the format from 1 to `newest` are read; which fields an older one lacks is the caller's business.
    `most` bounds the file's bytes. A right checksum says that nothing was damaged, not that the values are possible:
    anybody can compute one.
    """
    path = Path(path)
    require_readable(path, most)
    try:
        _require_small_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not a whole safetensors file ({error}); copy or collect it again.") from error
    header = _read_header(path, kind, metadata, newest)
    text = _canonical(header["header"])
    if header.get("checksum") != _checksum(text, tensors):
        raise FileFormatError(
            f"{path} was changed or damaged after it was written (its checksum differs); make it again."
        )
    return header["header"], tensors


def _require_small_header(path: Path) -> None:
    # Before safetensors maps the file, or reads a header of a hundred megabytes.
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(HEADER_BYTES, path.stat().st_size - 8):
        raise ValueError(f"its header claims {length:,} bytes")


def _read_header(path: Path, kind: str, metadata: Mapping[str, str], newest: int) -> dict[str, Any]:
    if _KEY not in metadata:
        raise FileFormatError(f"{path} was not written by ablation-lens; {kind} was expected.")
    try:
        header = parse_json(metadata[_KEY])
        if not isinstance(header["header"], dict):
            raise TypeError
        _require_kind(path, header, kind, newest)
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"the header of {path} is damaged; make it again.") from error
    return header  # type: ignore[no-any-return]


_READERS = {"ablation": "al.Ablation.load", "ablations": "al.Ablations.load"}
"""Kinds that are easily taken for each other, and what reads them."""


def _require_kind(path: Path, outer: Mapping[str, Any], kind: str, newest: int) -> None:
    # The kind first: versions are counted for each kind alone.
    if outer["kind"] != kind:
        reader = _READERS.get(outer["kind"]) if isinstance(outer["kind"], str) else None
        way_out = "" if reader is None else f"; {reader} reads it"
        raise FileFormatError(f"{path} holds {outer['kind']}, but {kind} was expected{way_out}.")
    version = outer["version"]
    if type(version) is not int or version not in range(1, newest + 1):
        reads = "1" if newest == 1 else f"1 to {newest}"
        raise FileFormatError(
            f"{path} has format version {version}, this ablation-lens reads {reads}; "
            "use the version that wrote it, or make the file again."
        )


def _checksum(text: str, tensors: Mapping[str, "Tensor"]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        import torch  # here, as JSON has no tensors

        # The bytes alone do not tell a [2, 3] from a [3, 2], or one dtype from another.
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # As bytes, because NumPy has no bfloat16; flat first, because a 0-d tensor cannot be viewed as bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------- JSON


def parse_json(text: str) -> Any:
    """What `json.loads` reads, if it is something that `json.dumps` writes; a `ValueError` for all the rest.

    >>> parse_json('[1, NaN]')
    Traceback (most recent call last):
    ValueError: NaN is not a number that JSON knows
    """
    try:
        values = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        # Half of a surrogate pair is read without a word, and would end the first attempt to print or write it.
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):  # such as 1e999
        raise ValueError(f"{digits} is too large")
    return number


def save_json(path: str | Path, kind: str, values: Mapping[str, Any], *, version: int = 2, first: bool = False) -> None:
    """Write plain values, atomically, with what kind of file it is and a checksum; versions begin with 2.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/x.json", "example", {"a": 1})
    ...     load_json(f"{folder}/x.json", "example")
    {'a': 1}
    """
    content = json.loads(json.dumps(dict(values), allow_nan=False))
    outer = {"kind": kind, "version": version, "checksum": _checksum(_canonical(content), {})}
    write_text(path, json.dumps({_KEY: outer, "content": content}, indent=1, sort_keys=True) + "\n", first=first)


def load_json(path: str | Path, kind: str, *, newest: int = 2, oldest: int = 1) -> dict[str, Any]:
    """Read what `save_json` wrote; anything else is a `FileFormatError`.

    The first version was the bare values, without a checksum: they are given as they are, for the caller to check,
    unless the `oldest` that may be read is 2.
    """
    path = Path(path)
    try:
        values = parse_json(read_text(path, HEADER_BYTES))
        if not isinstance(values, dict):
            raise TypeError
        if _KEY not in values and oldest == 1:
            return values
        outer, content = values[_KEY], values["content"]
        if not isinstance(content, dict) or len(values) != 2:
            raise TypeError
        _require_kind(path, outer, kind, newest)
        if outer["checksum"] != _checksum(_canonical(content), {}):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} is damaged, or was changed after it was written.") from error
    return content


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True)

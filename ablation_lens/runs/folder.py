"""A run folder: named files under content keys, each whole or absent, safe to share between processes and machines.

    cells/<key>.safetensors        a finished piece of work
    failures/<key>.json            a piece that failed, and why; gone once it has succeeded
    statistics/, inputs/, learned/ what pieces are made from, under keys of their own
    groups/<group>.json            what a group of comparable pieces shares
    batch_sizes/<key>.json         what was chosen once, for everybody who works here
    studies/<digest>.json          the settings of everything that ran here
    locks, holders/                who works on what at this moment

Keys are digests of everything that determines a file's content, so nothing is ever overwritten by something
different, and folders are merged by copying one into the other. What a file means is its writer's business.
"""

import hashlib
import json
import math
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.escaping import as_unicode, shorten
from ablation_lens.files import (
    load_json,
    load_tensors,
    parse_json,
    read_text,
    save_json,
    save_tensors,
    sweep,
    write_text,
    writing,
)
from ablation_lens.runs.claims import Holder
from ablation_lens.runs.locks import HOLDERS, KeyLocks

FORMAT_VERSION = 1
MARKER = "ablation-lens.json"
PARTS = ("cells", "failures", "groups", "inputs", "statistics", "studies")
STUDY = "study"
"""What a folder is of that does not say; these are the parts that it has."""
LOCKS = "locks"
ABANDONED = 24 * 3600.0
"""Seconds after which a half-written file is nobody's."""
LARGEST = 2**28
"""Bytes that a piece of work may take; a cell of a hundred thousand documents takes three million."""
FAILURE = "failure"
"""What the files under failures/ call themselves."""

_LONGEST_MESSAGE = 10_000
_AGAIN = "To have it made again, delete it and run the same command again; the rest is kept."


def key_of(facts: Mapping[str, Any]) -> str:
    """The digest of plain JSON values.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    # Order and spacing are fixed: another text of the same facts would be another key, and all would be measured again.
    text = json.dumps(facts, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class RunFolder:
    """Where finished work is kept; made by `create`, or opened to be read.

    What is not a study says what it is, and which parts it has.
    """

    kind: ClassVar[str] = STUDY
    parts: ClassVar[tuple[str, ...]] = PARTS
    gained: ClassVar[tuple[str, ...]] = ()
    """Parts that a folder has once something is written there: one of before, on a disk that is read-only, has none."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        marker = self.path / MARKER
        if not _is_there(marker):
            raise FileFormatError(f"{self.path} is not a run folder (it has no {MARKER}); give the folder of a run.")
        text = read_text(marker, 1000)
        try:
            held = parse_json(text)
            version, kind = held["format"], held.get("kind", STUDY)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{marker} is damaged. {_AGAIN}") from error
        if type(version) is not int or version != FORMAT_VERSION:
            raise FileFormatError(
                f"{self.path} has format version {version}, this ablation-lens reads {FORMAT_VERSION}; use the version "
                "that wrote it, or another folder."
            )
        if kind != self.kind:
            raise FileFormatError(f"{self.path} is a folder of {kind!r:.40}, and one of {self.kind!r} is needed here.")
        self._locks = KeyLocks(self.path / LOCKS)

    @classmethod
    def is_at(cls, path: str | Path) -> bool:
        """Whether there is a folder of this kind; what cannot be read is for whoever opens it to say."""
        try:
            return bool(parse_json(read_text(Path(path) / MARKER, 1000)).get("kind", STUDY) == cls.kind)
        except (FileFormatError, OSError, ValueError, AttributeError):
            return False

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """Open a run folder for writing; made where it does not exist."""
        path = Path(path)
        with keeping(path):
            if path.exists() and not path.is_dir():
                raise AblationLensError(f"{path} is a file; give a folder for the run.")
            marked = _is_there(path / MARKER)
            if not marked and path.is_dir():
                # A run that was killed before it wrote the marker left our parts and hidden files: not foreign ones.
                shown = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
                marked = MARKER in shown  # another process has written it since
                if not marked and (others := shown - {*cls.parts, LOCKS, HOLDERS}):
                    raise AblationLensError(
                        f"{path} holds other files ({min(others)}) and is not a run folder; give an empty or a new one."
                    )
        run = cls(path) if marked else None  # another format's folder is left as it is
        with keeping(path):
            for name in cls.parts:
                (path / name).mkdir(parents=True, exist_ok=True)
            # The marker comes last, so a folder that has one has every part.
            if not marked:
                # A study's marker is the one of before there were others.
                about = {"format": FORMAT_VERSION} | ({} if cls.kind == STUDY else {"kind": cls.kind})
                write_text(path / MARKER, json.dumps(about, indent=1) + "\n")
        for folder in (path, *(path / name for name in (*cls.parts, *cls.gained))):
            if folder is path or not folder.is_symlink():  # what a part leads to elsewhere is not swept
                sweep(folder, ABANDONED)
        run = run or cls(path)
        run._locks.sweep(ABANDONED)
        return run

    # ------------------------------------------------------------------ tensors under keys

    def file(self, part: str, key: Any) -> Path:
        """The file of a key; a key that no writer of ours gives is refused, as it may come out of a file."""
        return self.path / part / f"{plain_name(key)}.safetensors"

    def has(self, part: str, key: str) -> bool:
        """Whether a file is there; files appear only when they are whole."""
        return os.path.exists(self.file(part, key))  # noqa: PTH110  (Path.exists raises where a folder cannot be read)

    def keys(self, part: str) -> list[str]:
        """The keys of all finished files of a part, in order."""
        return sorted(self._names(part, ".safetensors"))

    def _names(self, part: str, suffix: str) -> list[str]:
        folder = self.path / part
        try:
            found = os.listdir(folder)
        except FileNotFoundError:  # git and some archives keep no empty folders
            return []
        except OSError as error:
            raise FileFormatError(f"{folder} cannot be read ({error.strerror}).") from error
        # Hidden ones are half-written, or those that macOS leaves on shared disks.
        return [name.removesuffix(suffix) for name in found if name.endswith(suffix) and not name.startswith(".")]

    def write(self, part: str, key: str, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep a piece of work; `kind` says what it is, and must be said again to read it."""
        with keeping(self.path):
            save_tensors(self.file(part, key), kind, header, tensors)

    def read(self, part: str, key: str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `write` kept; a file that was copied in part, or changed, is an error that says the way out."""
        with mending():
            return load_tensors(self.file(part, key), kind, most=LARGEST)

    @contextmanager
    def locked(
        self,
        key: str,
        *,
        what: str = "",
        patience: float = math.inf,
        waiting: Callable[[str], None] = lambda holder: None,
    ) -> Iterator[bool]:
        """`with folder.locked(key) as mine`: whether nobody else, here or elsewhere, works on this key.

        Waits for who does, at most so many seconds; `waiting` is told who it is. `what` tells others what is done.
        """
        with ExitStack() as stack:
            with keeping(self.path):
                # Only taking the lock is under `keeping`: an OSError of the work inside is not an error of this disk.
                mine = stack.enter_context(self._locks.holding(key, what=what, patience=patience, waiting=waiting))
            yield mine

    def holders(self) -> list[Holder]:
        """Who works on which key at this moment; nothing is written, also on a read-only disk."""
        return self._locks.holders()

    # ------------------------------------------------------------------ JSON beside them

    def names(self, part: str) -> list[str]:
        """The names of what `write_once` kept in a part, the oldest first."""
        paths = [self.json(part, name) for name in self._names(part, ".json")]
        # Times can be equal, on a coarse clock or after a copy; the name then decides.
        return [path.stem for path in sorted(paths, key=lambda path: (_written_at(path), path.name))]

    def json(self, part: str, name: str) -> Path:
        """The file of a name."""
        return self.path / part / f"{name}.json"

    def write_once(self, part: str, name: str, kind: str, values: Mapping[str, Any]) -> None:
        """Keep values under a name of which they are the content: what is there already is the same."""
        path = self.json(part, name)
        # Asked first, as a finished run may lie on a read-only disk. Two processes may both write here: the same bytes.
        if not path.exists():
            with keeping(self.path):
                save_json(path, kind, values)

    def settle(self, part: str, name: str, kind: str, choose: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What the first who came chose under a name, for everybody who works here; chosen now, if nobody has."""
        path = self.json(part, name)
        if not path.exists():
            values = choose()
            with keeping(self.path):
                path.parent.mkdir(exist_ok=True)
                save_json(path, kind, values, first=True)
        # Read back also by who has just written it: another may have been first.
        return self.read_once(part, name, kind)

    def read_once(self, part: str, name: Any, kind: str) -> dict[str, Any]:
        """What `write_once` kept."""
        path = self.json(part, plain_name(name))
        if not _is_there(path):
            raise FileFormatError(f"{path} is missing. To have it made again, run the same command again.")
        with mending():
            return load_json(path, kind)

    def record_failure(self, key: str, values: Mapping[str, Any], error: BaseException) -> None:
        """Keep why something failed."""
        told = {
            "error": type(error).__name__,
            "message": _kept(str(error)),
            "traceback": list(map(_kept, traceback.format_exception(error))),
        }
        with keeping(self.path):
            save_json(self.json("failures", key), FAILURE, {**values, **told})

    def forget_failure(self, key: str) -> None:
        """What failed before has worked now."""
        path = self.json("failures", key)
        if path.exists():  # asked first, as a finished run may lie on a disk that is read-only
            with keeping(self.path):
                path.unlink(missing_ok=True)

    def failed(self) -> list[str]:
        """The keys of what failed and has not succeeded since."""
        # A process that is killed once the work is there, and before it forgets the failure, leaves both.
        return [key for key in sorted(self._names("failures", ".json")) if not self._is_finished(key)]

    def _is_finished(self, key: str) -> bool:
        return bool(_PLAIN.fullmatch(key)) and self.has("cells", key)


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """As `files.writing`, for what can be gone on with after the disk has been made room on."""
    with writing(path, "make room or give another folder, and run the same command again: what is finished is kept."):
        yield


@contextmanager
def mending() -> Iterator[None]:
    """Say what to do about a file that was copied in part, or changed."""
    try:
        yield
    except FileFormatError as error:
        raise FileFormatError(f"{error} {_AGAIN}") from error


@contextmanager
def checking(path: Path) -> Iterator[None]:
    """Name the file whose content is refused, and the way out."""
    try:
        yield
    except FileFormatError as error:
        raise FileFormatError(f"{path} does not hold what it should: {error} {_AGAIN}") from error


_PLAIN = re.compile(r"[\w-]+", re.ASCII)  # ASCII, as \w would take letters of any script


def plain_name(name: Any) -> str:
    """A name that a file gives to another, if it is one that we give: it goes into paths and pages."""
    # fullmatch, as $ would let a final line feed through.
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise FileFormatError(
            f"{name!r}, which a file of the run folder refers to, is not a name that a run gives; take a copy of the "
            "folder that nobody has changed."
        )
    return name


def _is_there(path: Path) -> bool:
    """Whether there is anything of this name, whatever it is; what cannot be looked at is for the reader to say."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return True
    return True


def _written_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # gone since it was listed
        return 0.0


def _kept(text: str) -> str:
    """A message of anybody's as something that can be written, and is not endless."""
    return shorten(as_unicode(text), _LONGEST_MESSAGE)

"""A run folder: one atomic file per finished cell, safe to share between processes and machines.

    cells/<key>.safetensors        a score with its per-document sums, and what it is the score of
    failures/<key>.json            a cell that failed, and why; gone once it has succeeded
    statistics/, inputs/           what ablated values come from, under keys of their own
    groups/<group>.json            model, corpora and versions that a group of comparable cells shares
    studies/<digest>.json          the settings of every study that ran here

Keys are digests of everything that determines a file's content, so nothing is ever overwritten by something
different, and folders are merged by copying one into the other.
"""

import hashlib
import json
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.evaluation import Score
from ablation_lens.locks import KeyLocks
from ablation_lens.records import write_atomically
from ablation_lens.storage import load_tensors, save_tensors

KIND = "study cell"
INPUT_KIND = "resampling input"
FORMAT_VERSION = 1
MARKER = "ablation-lens.json"
PARTS = ("cells", "failures", "groups", "inputs", "statistics", "studies")
LOCKS = "locks"
ABANDONED = 24 * 3600.0
"""Seconds after which a half-written file is nobody's."""


def key_of(facts: Mapping[str, Any]) -> str:
    """The digest of plain JSON values.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class RunFolder:
    """Where a study's cells are kept; made by `RunFolder.create`, or opened to be read."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        marker = self.path / MARKER
        if not marker.is_file():
            raise FileFormatError(
                f"{self.path} is no run folder (it has no {MARKER}); `ablation-lens study` makes one."
            )
        try:
            version = json.loads(marker.read_text(encoding="utf-8"))["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(marker) from error
        if version != FORMAT_VERSION:
            raise FileFormatError(
                f"{self.path} has format version {version}, this ablation-lens reads {FORMAT_VERSION}; use the version "
                "that wrote it, or another folder."
            )
        self._locks = KeyLocks(self.path / LOCKS)

    @classmethod
    def create(cls, path: str | Path) -> "RunFolder":
        """Open a run folder for writing; made where it does not exist."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise AblationLensError(f"{path} is a file; give a folder for the run.")
        marked = (path / MARKER).exists()
        if not marked and path.is_dir():
            others = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")} - {*PARTS, LOCKS}
            if others:
                raise AblationLensError(
                    f"{path} holds other files ({min(others)}) and is no run folder; give an empty or a new one."
                )
        run = cls(path) if marked else None  # another format's folder is left as it is
        with writing(path):
            for name in PARTS:
                (path / name).mkdir(parents=True, exist_ok=True)
            if not marked:
                _write_json(path / MARKER, {"format": FORMAT_VERSION})
        for left in path.glob("*/.*tmp*"):  # by a process that was killed; another may still be at a younger one
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()
        return run or cls(path)

    def cell(self, key: str) -> Path:
        """The file of a cell."""
        return self.path / "cells" / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether a cell is done; files appear only when they are whole."""
        return self.cell(key).exists()

    @contextmanager
    def locked(self, key: str, *, wait: bool) -> Iterator[bool]:
        """`with folder.locked(key, wait=…) as mine`: whether nobody else, here or elsewhere, works on this key."""
        with ExitStack() as stack:
            with writing(self.path):
                mine = stack.enter_context(self._locks.holding(key, wait=wait))
            yield mine

    def write_cell(self, key: str, header: Mapping[str, Any], score: Score) -> None:
        """Keep a finished cell, and forget that it failed before."""
        tensors = {
            "documents": torch.tensor(score.documents),
            "correct": score.correct,
            "loss": score.loss,
            "predictions": score.predictions_per_document,
        }
        with writing(self.path):
            save_tensors(self.cell(key), KIND, {**header, "splits": score.splits}, tensors)
        self.forget_failure(key)

    def read_cell(self, key: str) -> tuple[dict[str, Any], Score]:
        """What `write_cell` kept."""
        path = self.cell(key)
        with reading(path):
            header, tensors = load_tensors(path, KIND)
        try:
            score = Score(
                documents=tuple(tensors["documents"].tolist()),
                correct=tensors["correct"],
                loss=tensors["loss"],
                predictions_per_document=tensors["predictions"],
                splits=header["splits"],
            )
        except KeyError as error:
            raise _damaged(path) from error
        return header, score

    def cells(self) -> list[str]:
        """The keys of all finished cells, in order."""
        return sorted(path.stem for path in (self.path / "cells").glob("[!.]*.safetensors"))

    def record_failure(self, key: str, facts: Mapping[str, Any], error: BaseException) -> None:
        """Keep why something failed."""
        told = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exception(error)}
        with writing(self.path):
            _write_json(self._failure(key), {**facts, **told})

    def forget_failure(self, key: str) -> None:
        """What failed before has worked now."""
        path = self._failure(key)
        if path.exists():  # asked first, as a finished study may lie on a disk that is read-only
            with writing(self.path):
                path.unlink(missing_ok=True)

    def failures(self) -> list[dict[str, Any]]:
        """What failed and has not succeeded since."""
        paths = sorted((self.path / "failures").glob("[!.]*.json"))
        return [_read_json(path, "model", "error", "message") for path in paths]

    def write_group(self, group: str, values: Mapping[str, Any]) -> None:
        """Keep what the cells of a group share."""
        self._write_once(self.path / "groups" / f"{group}.json", values)

    def group(self, group: str) -> dict[str, Any]:
        """What `write_group` kept."""
        path = self.path / "groups" / f"{_plain(group)}.json"
        values = _read_json(path, "model", "evaluate", "task")
        if not all(isinstance(values[part], dict) and "name" in values[part] for part in ("model", "evaluate")):
            raise _damaged(path)
        return values

    def write_study(self, settings: Mapping[str, Any]) -> None:
        """Keep a study's settings; the same study writes the same file."""
        self._write_once(self.path / "studies" / f"{key_of(settings)}.json", settings)

    def _write_once(self, path: Path, values: Mapping[str, Any]) -> None:
        if not path.exists():
            with writing(self.path):
                _write_json(path, values)

    def studies(self) -> list[dict[str, Any]]:
        """The settings of every study that ran here, the oldest first."""
        found = (self.path / "studies").glob("[!.]*.json")
        paths = sorted(found, key=lambda path: (path.stat().st_mtime, path.name))
        return [_read_json(path, "models", "methods") for path in paths]

    def inputs(self) -> list[dict[str, Any]]:
        """What the random inputs of resampling were: kind, seed, text and group of each."""
        paths = sorted((self.path / "inputs").glob("[!.]*.safetensors"))
        return [load_tensors(path, INPUT_KIND)[0] for path in paths]

    def write_input(self, key: str, header: Mapping[str, Any], inputs: Tensor) -> None:
        """Keep a random input."""
        with writing(self.path):
            save_tensors(self.input(key), INPUT_KIND, header, {"inputs": inputs})

    def read_input(self, key: str) -> tuple[dict[str, Any], Tensor]:
        """What `write_input` kept."""
        with reading(self.input(key)):
            header, tensors = load_tensors(self.input(key), INPUT_KIND)
        return header, tensors["inputs"]

    def input(self, key: str) -> Path:
        """The file of a random input."""
        return self.path / "inputs" / f"{key}.safetensors"

    def statistics(self, key: str) -> Path:
        """The file of a model's statistics."""
        return self.path / "statistics" / f"{_plain(key)}.safetensors"

    def _failure(self, key: str) -> Path:
        return self.path / "failures" / f"{key}.json"


class CannotWrite(AblationLensError):  # noqa: N818  (what happened, as the disk sees it)
    """The disk is full, or not ours to write to: nothing more can be kept."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk can answer into one sentence."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"cannot write to {path} ({error.strerror or error}); make room or give another folder, and run the same "
            "command again: finished cells are kept."
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what to do about a file that was copied in part, or changed."""
    try:
        yield
    except FileFormatError as error:
        raise FileFormatError(f"{error} {_AGAIN}") from error


_AGAIN = "To have it made again, delete it and run the study again; the rest is kept."


def _damaged(path: Path) -> FileFormatError:
    return FileFormatError(f"{path} is missing or damaged. {_AGAIN}")


def _plain(name: Any) -> str:
    """A name that a file gives to another, if it is one that we give: it goes into paths and pages."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise FileFormatError(
            f"{name!r}, which a file of the run folder refers to, is no name that a study gives; take a copy of the "
            "folder that nobody has changed."
        )
    return name


def _read_json(path: Path, *needed: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(values, dict) or not set(needed) <= set(values):
        raise _damaged(path)
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    write_atomically(path, write)

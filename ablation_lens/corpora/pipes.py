"""Pipes that a shell hands over, `--corpus <(zcat texts.gz)`: read once, and from then on like a file.

A corpus is read more than once — to see what it is, for each split, for each model — and a pipe gives every byte
once. So what comes out of it is kept in a temporary file, no further than it was asked for.
"""

import io
import os
import re
import stat
import tempfile
import threading
import weakref
from pathlib import Path
from typing import BinaryIO

from ablation_lens.errors import CorpusError
from ablation_lens.files import writing

PIPE_LIMIT = 1 << 30
"""Bytes that are kept of a pipe."""

_TEMPORARY = Path("the folder of temporary files")

# Only these: opening a named pipe waits until somebody writes to it, and nobody may.
_HANDED_OVER = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/(?P<number>\d{1,9})")


class Pipe:
    """What comes out of a pipe, from its first byte and as often as asked."""

    def __init__(self, descriptor: int, name: str, *, most: int = PIPE_LIMIT) -> None:
        self.name = name
        self._most = most
        self._descriptor = os.dup(descriptor)
        with writing(_TEMPORARY):
            self._kept = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the pipe may be asked)
        weakref.finalize(self, self._kept.close)
        self._length = 0
        self._ended = False
        self._lock = threading.Lock()

    def open(self) -> BinaryIO:
        """A new reading, from the start."""
        return io.BufferedReader(_FromStart(self), 1 << 17)

    def read_at(self, start: int, count: int) -> bytes:
        """So many bytes from there; fewer only at the end."""
        with self._lock:
            while self._length < start + count and not self._ended:
                self._keep(os.read(self._descriptor, 1 << 16))
            self._kept.seek(start)
            return self._kept.read(count)

    def _keep(self, content: bytes) -> None:
        if not content:
            self._ended = True
            os.close(self._descriptor)
        if self._length + len(content) > self._most:
            raise CorpusError(
                f"{self.name} is a pipe that gave more than {self._most:,} bytes, which is all that is kept of one; "
                f"write it to a file, and give that."
            )
        with writing(_TEMPORARY):
            self._kept.seek(self._length)
            self._kept.write(content)
            self._kept.flush()
        self._length += len(content)


class _FromStart(io.RawIOBase):
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._pipe.read_at(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


_met: dict[tuple[int, int], Pipe] = {}


def pipe_at(path: Path) -> Pipe | None:
    """The pipe that this process was handed over under a path like `/dev/fd/63`; None where there is none.

    The same one on every call: what another call read out of it is not lost.
    """
    found = _HANDED_OVER.fullmatch(str(path))
    if found is None:
        return None
    descriptor = int(found["number"] or 0)
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    if not stat.S_ISFIFO(status.st_mode):
        return None
    key = (status.st_dev, status.st_ino)
    if key not in _met:
        _met[key] = Pipe(descriptor, str(path))
    return _met[key]

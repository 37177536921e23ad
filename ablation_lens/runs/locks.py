"""Locks by key, between processes and between machines on one disk; freed by the system when a process dies.

One file serves all keys: a key is a byte of it, far beyond its end, that is locked. So nothing has to be cleaned up,
and no lock can be stale. (On network disks these are the locks of NFS; a file system that has none is used without.)
Who holds a key says so in a small file in a folder beside the locks; that is for people, and locks nothing.
"""

import hashlib
import os
import socket
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.escaping import on_one_line, shorten
from ablation_lens.files import read_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HOLDERS = "holders"
"""The folder in which those who hold a key say who they are."""

_WAIT = 0.2
"""Seconds between two tries."""

# A link would lead out of the folder, and a pipe make us wait for somebody at its other end.
_PLAIN_FILES = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_Place = tuple[int, int, int]
"""A lock file: process, device and inode."""


@dataclass(eq=False)
class _Hold:
    """One `with`: what it has taken is given back, however far an interrupt let it come."""

    byte: int
    place: _Place | None = None


@dataclass
class _LockFile:
    """A lock file while this process holds locks in it.

    Every file is opened once, as closing *any* descriptor of a file frees all of a process' locks on it; and closed
    with the last of them, so that its disk can be unmounted.
    """

    descriptor: int
    held: dict[int, _Hold] = field(
        default_factory=dict
    )  # to the system all are the process' own: it would get one twice


_files: dict[_Place, _LockFile] = {}
_mutex = threading.Lock()


class KeyLocks:
    """`with locks.holding("key") as mine:` — `mine` says whether the lock was free.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     locks = KeyLocks(Path(folder) / "locks")
    ...     with locks.holding("a") as first, locks.holding("a") as again:
    ...         first, again
    (True, False)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lockless = fcntl is None

    @contextmanager
    def holding(
        self, key: str, *, patience: float = 0.0, waiting: Callable[[str], None] = lambda holder: None
    ) -> Iterator[bool]:
        """Hold the lock of `key` for the block; False if somebody else still has it after `patience` seconds.

        `waiting` is told, again and again, whom it waits for: a process that was stopped frees nothing.
        """
        # Seven bytes: file offsets are signed 64-bit numbers, and eight bytes could exceed them.
        hold = _Hold(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
        end = time.monotonic() + patience
        try:
            while not self._take(hold):
                if time.monotonic() >= end:
                    yield False
                    return
                waiting(self._holder(hold.byte))
                # Polled: a lockf that waits would hold _mutex, and would not wait for a thread of this process.
                time.sleep(_WAIT)
            self._sign(hold.byte)
            yield True
        finally:
            self._give_back(hold)

    def _take(self, hold: _Hold) -> bool:
        """Whether the byte was free, and is ours now."""
        status = self._status()
        # The process is part of it: a fork copies `_files`, but the system gives a child none of the locks.
        place = (os.getpid(), status.st_dev, status.st_ino)
        with _mutex:
            # A bare setdefault would open the file every time, and closing that second descriptor frees all locks.
            # O_RDWR, as an exclusive lockf needs a descriptor that is open for writing.
            flags = os.O_RDWR | _PLAIN_FILES
            file = _files.get(place) or _files.setdefault(place, _LockFile(os.open(self.path, flags)))
            if hold.byte not in file.held:
                file.held[hold.byte], hold.place = hold, place
                if self._lock(file.descriptor, hold.byte):
                    return True
                del file.held[hold.byte]
            self._close_unused(place)
            return False

    def _status(self) -> os.stat_result:
        if not os.path.lexists(self.path):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | _PLAIN_FILES, 0o666))
        status = os.lstat(self.path)
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(
                f"{self.path} is not a plain file, and the locks of this folder are in it; delete it and run the same "
                "command again."
            )
        return status

    def _give_back(self, hold: _Hold) -> None:
        with _mutex:
            file = _files.get(hold.place) if hold.place else None
            if file is None or file.held.get(hold.byte) is not hold:
                return
            # Before the lock is free, or it would remove what the next one wrote.
            with suppress(OSError):
                self._note(hold.byte).unlink()
            del file.held[hold.byte]
            if not self._lockless:
                fcntl.lockf(file.descriptor, fcntl.LOCK_UN, 1, hold.byte)
            assert hold.place is not None
            self._close_unused(hold.place)

    def _close_unused(self, place: _Place) -> None:
        if not _files[place].held:
            os.close(_files.pop(place).descriptor)

    def _lock(self, descriptor: int, byte: int) -> bool:
        if self._lockless:
            return True
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # a lock that is taken is EAGAIN on some systems, EACCES on others
            return False
        except OSError as error:
            self._lockless = True
            warnings.warn(
                f"the file system of {self.path.parent} has no locks ({error.strerror}): processes that share "
                "this folder may do the same work twice. Results are the same.",
                stacklevel=5,  # after _lock, _take, holding and contextlib's __enter__
            )
        return True

    # ------------------------------------------------------------------ who holds a key

    def _note(self, byte: int) -> Path:
        folder = self.path.with_name(HOLDERS)
        if folder.is_symlink():
            raise NotADirectoryError  # nothing is written, read or deleted where a link leads
        return folder / f"{byte:014x}.txt"

    def _sign(self, byte: int) -> None:
        me = f"process {os.getpid()} on {socket.gethostname()}, which began {time.strftime('%Y-%m-%d %H:%M:%S')}"
        # Whatever goes wrong, as on a full disk, the lock is ours all the same.
        with suppress(OSError):
            path = self._note(byte)
            path.parent.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _PLAIN_FILES, 0o666)
            try:
                os.write(descriptor, me.encode())
            finally:
                os.close(descriptor)

    def _holder(self, byte: int) -> str:
        try:
            return shorten(on_one_line(read_text(self._note(byte), 1000)), 200) or "another process"
        except (AblationLensError, OSError):
            return "another process"

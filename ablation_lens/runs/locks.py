"""Locks by key, between processes and between machines on one disk; freed by the system when a process dies.

One file serves all keys: a key is a byte of it, far beyond its end, that is locked. So nothing has to be cleaned up,
and no lock can be stale. (On network disks these are the locks of NFS; a file system that has none is used without.)
"""

import hashlib
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WAIT = 0.2
"""Seconds between two tries."""


@dataclass
class _LockFile:
    """A lock file while this process holds locks in it.

    Every file is opened once, as closing *any* descriptor of a file frees all of a process' locks on it; and closed
    with the last of them, so that its disk can be unmounted.
    """

    descriptor: int
    held: set[int] = field(default_factory=set)  # to the system these are the process' own: it would get one twice


_files: dict[tuple[int, int, int], _LockFile] = {}
"""By process, device and inode."""
_mutex = threading.Lock()


class KeyLocks:
    """`with locks.holding("key", wait=False) as mine:` — `mine` says whether the lock was free.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     locks = KeyLocks(Path(folder) / "locks")
    ...     with locks.holding("a", wait=False) as first, locks.holding("a", wait=False) as again:
    ...         first, again
    (True, False)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lockless = fcntl is None

    @contextmanager
    def holding(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock of `key` for the block, after waiting for it if asked to."""
        # Seven bytes: file offsets are signed 64-bit numbers, and eight bytes could exceed them.
        byte = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        while (place := self._take(byte)) is None:
            if not wait:
                yield False
                return
            # Polled: a lockf that waits would hold _mutex meanwhile, and would not wait for a thread of this process.
            time.sleep(_WAIT)
        try:
            yield True
        finally:
            self._give_back(place, byte)

    def _take(self, byte: int) -> tuple[int, int, int] | None:
        """Where the byte was locked; None while somebody else has it."""
        if not self.path.exists():
            self.path.touch()
        status = self.path.stat()
        # The process is part of it: a fork copies `_files`, but the system gives a child none of the locks.
        place = (os.getpid(), status.st_dev, status.st_ino)
        with _mutex:
            # A bare setdefault would open the file every time, and closing that second descriptor frees all locks.
            # O_RDWR, as an exclusive lockf needs a descriptor that is open for writing.
            file = _files.get(place) or _files.setdefault(place, _LockFile(os.open(self.path, os.O_RDWR)))
            if byte not in file.held and self._lock(file.descriptor, byte):
                file.held.add(byte)
                return place
            self._close_unused(place)
            return None

    def _give_back(self, place: tuple[int, int, int], byte: int) -> None:
        with _mutex:
            file = _files[place]
            file.held.discard(byte)
            if not self._lockless:
                fcntl.lockf(file.descriptor, fcntl.LOCK_UN, 1, byte)
            self._close_unused(place)

    def _close_unused(self, place: tuple[int, int, int]) -> None:
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

"""Locks by key, between processes and between machines on one disk; freed by the system when a process dies.

One file serves all keys: a key is a byte of it, far beyond its end, that is locked. So nothing has to be cleaned up,
and no lock can be stale. (On network disks these are the locks of NFS; a file system that has none is used without.)
"""

import hashlib
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WAIT = 0.2
"""Seconds between two tries."""

_descriptors: dict[tuple[int, int], int] = {}
"""Of every lock file (device, inode), opened once and never closed: closing *any* descriptor of a file frees all of
a process' locks on it."""

_held: set[tuple[int, tuple[int, int], int]] = set()
"""(process, lock file, byte). To the system these locks are the process' own: it would give it the same one twice."""


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
        file = self._file()
        byte = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        mine = (os.getpid(), file, byte)
        while mine in _held or not self._acquire(_descriptors[file], byte):
            if not wait:
                yield False
                return
            time.sleep(_WAIT)
        _held.add(mine)
        try:
            yield True
        finally:
            _held.discard(mine)
            if not self._lockless:
                fcntl.lockf(_descriptors[file], fcntl.LOCK_UN, 1, byte)

    def _file(self) -> tuple[int, int]:
        if not self.path.exists():
            self.path.touch()
        status = self.path.stat()
        file = (status.st_dev, status.st_ino)
        if file not in _descriptors:
            _descriptors[file] = os.open(self.path, os.O_RDWR)
        return file

    def _acquire(self, descriptor: int, byte: int) -> bool:
        if self._lockless:
            return True
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            self._lockless = True
            warnings.warn(
                f"the file system of {self.path.parent} has no locks ({error.strerror}): processes that share "
                "this folder may compute the same cells twice. Results are the same.",
                stacklevel=4,
            )
        return True

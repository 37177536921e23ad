"""Locks by key, between processes and between machines on one disk; freed by the system when a process dies.

One file serves all keys: a key is a byte of it, far beyond its end, that is locked. So nothing has to be cleaned up,
and no lock can be stale. (On network disks these are the locks of NFS; a file system that has none is used without.)
"""

import hashlib
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WAIT = 0.2
"""Seconds between two tries."""


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
        self._held: set[str] = set()  # to the system the locks are the process' own: it would get one twice
        # Opened once and kept: closing *any* descriptor of a file frees all of a process' locks on it.
        self._file: IO[bytes] | None = None
        self._lockless = fcntl is None

    @contextmanager
    def holding(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock of `key` for the block, after waiting for it if asked to."""
        if key in self._held:
            yield False
            return
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        if not self._acquire(place, wait):
            yield False
            return
        self._held.add(key)
        try:
            yield True
        finally:
            self._held.discard(key)
            if not self._lockless:
                fcntl.lockf(self._descriptor(), fcntl.LOCK_UN, 1, place)

    def _descriptor(self) -> int:
        if self._file is None:
            self._file = self.path.open("ab")
        return self._file.fileno()

    def _acquire(self, place: int, wait: bool) -> bool:
        while not self._lockless:
            try:
                fcntl.lockf(self._descriptor(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                return True
            except (BlockingIOError, PermissionError):
                if not wait:
                    return False
                time.sleep(_WAIT)
            except OSError as error:
                self._lockless = True
                warnings.warn(
                    f"the file system of {self.path.parent} has no locks ({error.strerror}): processes that share "
                    "this folder may compute the same cells twice. Results are the same.",
                    stacklevel=3,
                )
        return True

"""Locks by key, between processes and between machines that share a disk.

Two things exclude together. A *lock* of the system: one file serves all keys, and a key is a byte of it, far beyond its
end. It is freed when a process dies; but on some network disks every machine has locks of its own, which cannot be
told from outside, and some disks (and Windows) have none. So whoever holds a key has a *claim* to it, too
(`claims.py`), which is seen wherever the folder is, and which others take over when its heartbeat has been silent for a
while. Where the lock says that the holder is dead, because it ran on this machine and its lock is free, nobody waits.

`ABLATION_LENS_LOCKS=claims` leaves the system's locks alone: for disks on which they hang.
"""

import hashlib
import os
import socket
import stat
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.runs.claims import EVERY, PLAIN_FILES, SILENCE, Claim, Claims, Holder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HOLDERS = "holders"
"""The folder of claims, beside the locks."""
SETTING = "ABLATION_LENS_LOCKS"
"""The variable of the environment that says what excludes."""
WAYS = ("both", "claims")
"""What it may be; both unless something is said."""

_WAIT, _LONGEST_WAIT = 0.2, 2.0
"""Seconds between two tries; many may wait for one, and all ask the same disk."""

_Place = tuple[int, int, int]
"""A lock file: process, device and inode."""


@dataclass(eq=False)
class _Hold:
    """One `with`: what it has taken is given back, however far an interrupt let it come."""

    key: str
    what: str
    byte: int
    claim: Claim
    process: int
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

    def __init__(self, path: Path, *, way: str | None = None, every: float = EVERY, silence: float = SILENCE) -> None:
        """`way` is one of `WAYS`, None for what the environment says; the rest is that of `Claims`."""
        self.path = path
        way = os.environ.get(SETTING) or WAYS[0] if way is None else way
        if way not in WAYS:
            raise AblationLensError(
                f"{SETTING} is {way!r:.40}, and may be {' or '.join(WAYS)}; set it so, or not at all."
            )
        self._has_locks = fcntl is not None and way == "both"
        self._claims = Claims(path.with_name(HOLDERS), every=every, silence=silence)

    @contextmanager
    def holding(
        self,
        key: str,
        *,
        what: str = "",
        patience: float = 0.0,
        waiting: Callable[[str], None] = lambda holder: None,
    ) -> Iterator[bool]:
        """Hold `key` for the block; False if somebody else still has it after `patience` seconds.

        `what` says to others what is done meanwhile. `waiting` is told, again and again, whom it waits for: of a
        process that was stopped, the system frees nothing.
        """
        byte = _byte_of(key)
        hold = _Hold(key, what, byte, Claim(_name_of(byte)), os.getpid())
        began = time.monotonic()
        try:
            while not self._take(hold):
                waited = time.monotonic() - began
                if waited >= patience:
                    yield False
                    return
                waiting(self._holder(hold))
                # Polled: a lockf that waits would hold _mutex, and would not wait for a thread of this process.
                time.sleep(min(max(_WAIT, waited / 20), _LONGEST_WAIT))
            yield True
        finally:
            self._give_back(hold)

    def holders(self) -> list[Holder]:
        """Who is at work, as far as can be told without writing anything.

        A process of this machine is asked for its lock. Of others the last heartbeat is compared with this machine's
        clock, which may be wrong; nobody is taken over for that.
        """
        found = []
        for name in self._claims.names():
            lock, locked = self._asked(int(name, 16))
            with suppress(OSError, FileFormatError):
                for sight in self._claims.sights(name):
                    holder = sight.holder
                    if holder is None or _name_of(_byte_of(holder.key)) != name:
                        continue
                    if locked if holder.lock == lock else sight.age < self._claims.silence:
                        found.append(holder)
        return sorted(found, key=lambda holder: (holder.since, holder.host, holder.process, holder.key))

    def sweep(self, older_than: float) -> None:
        """Delete claims that have not changed for so many seconds."""
        self._claims.sweep(older_than)

    # ------------------------------------------------------------------ taking and giving back

    def _take(self, hold: _Hold) -> bool:
        """Whether the key was free, and is ours now."""
        if not self._lock(hold):
            return False
        lock = None if hold.place is None else _identity(*hold.place[1:])
        try:
            # Who ran on this machine had the lock that is ours now.
            taken = self._claims.take(
                hold.claim,
                Holder.of_this_process(hold.key, hold.what, lock),
                lambda other: lock is not None and other.lock == lock,
            )
        except (OSError, FileFormatError):
            if hold.place is None:
                raise
            taken = True  # a full disk takes no claim, and what is done may need no room; on this machine the lock does
        if not taken:
            self._unlock(hold)
        return taken

    def _give_back(self, hold: _Hold) -> None:
        if hold.process != os.getpid():  # a fork within the block: the claim is its parent's
            return
        # Before the lock is free, or the next one would find a claim.
        self._claims.give_back(hold.claim)
        self._unlock(hold)

    def _holder(self, hold: _Hold) -> str:
        with suppress(OSError, FileFormatError):
            for sight in self._claims.sights(hold.claim.name):
                if holder := sight.holder:
                    return str(holder)
        return "another process"

    # ------------------------------------------------------------------ the system's locks

    def _lock(self, hold: _Hold) -> bool:
        """Whether no process has the lock of this byte, and we have it; True, too, where there are no locks."""
        if not self._has_locks:
            return True
        status = self._status()
        # The process is part of it: a fork copies `_files`, but the system gives a child none of the locks.
        place = (os.getpid(), status.st_dev, status.st_ino)
        with _mutex:
            # A bare setdefault would open the file every time, and closing that second descriptor frees all locks.
            # O_RDWR, as an exclusive lockf needs a descriptor that is open for writing.
            flags = os.O_RDWR | PLAIN_FILES
            file = _files.get(place) or _files.setdefault(place, _LockFile(os.open(self.path, flags)))
            if hold.byte not in file.held:
                file.held[hold.byte], hold.place = hold, place
                try:
                    fcntl.lockf(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, hold.byte)
                    return True
                # A lock that is taken is EAGAIN on some systems, EACCES on others.
                except (BlockingIOError, PermissionError):
                    pass
                except OSError:  # there are none here, such as ENOLCK: claims will do
                    self._has_locks = False
                del file.held[hold.byte]
                hold.place = None
            self._close_unused(place)
            return not self._has_locks

    def _unlock(self, hold: _Hold) -> None:
        with _mutex:
            file = _files.get(hold.place) if hold.place else None
            if file is None or file.held.get(hold.byte) is not hold:
                return
            assert hold.place is not None
            del file.held[hold.byte]
            with suppress(OSError):  # one that was not had yet, where there are none
                fcntl.lockf(file.descriptor, fcntl.LOCK_UN, 1, hold.byte)
            self._close_unused(hold.place)
            hold.place = None

    def _status(self) -> os.stat_result:
        if not os.path.lexists(self.path):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | PLAIN_FILES, 0o666))
        status = os.lstat(self.path)
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(
                f"{self.path} is not a plain file, and the locks of this folder are in it; delete it and run the same "
                "command again."
            )
        return status

    @staticmethod
    def _close_unused(place: _Place) -> None:
        if not _files[place].held:
            os.close(_files.pop(place).descriptor)

    def _asked(self, byte: int) -> tuple[str, bool]:
        """Which lock file this is, and whether somebody has the lock of a byte, which is not touched."""
        if not self._has_locks or _ASKING is None:
            return "", False
        layout, fields = _ASKING
        values = {"type": fcntl.F_WRLCK, "whence": os.SEEK_SET, "start": byte, "length": 1, "process": 0}
        question = struct.pack(layout, *(values[name] for name in fields))
        with _mutex, suppress(OSError):
            status = self.path.lstat()
            if stat.S_ISREG(status.st_mode):
                place = (os.getpid(), status.st_dev, status.st_ino)
                # Closing another descriptor would free what this process holds.
                file = _files.get(place) or _LockFile(os.open(self.path, os.O_RDONLY | PLAIN_FILES))
                try:
                    answer = struct.unpack(layout, fcntl.fcntl(file.descriptor, fcntl.F_GETLK, question))
                finally:
                    if place not in _files:
                        os.close(file.descriptor)
                # A process' own locks the system does not tell it of.
                locked = byte in file.held or answer[fields.index("type")] != fcntl.F_UNLCK
                return _identity(*place[1:]), locked
        return "", False


def _identity(device: int, inode: int) -> str:
    """Which lock file of which running system: between those who say the same, its locks exclude."""
    return f"{_system()} {device:x} {inode:x}"


_FLOCK = {  # how C lays out `struct flock`
    "linux": ("@hhqqi0q", ("type", "whence", "start", "length", "process")),
    "darwin": ("@qqihh0q", ("start", "length", "process", "type", "whence")),
}
_ASKING = _FLOCK.get(sys.platform) if sys.maxsize > 2**32 else None


def _byte_of(key: str) -> int:
    # Seven bytes: file offsets are signed 64-bit numbers, and eight bytes could exceed them.
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")


def _name_of(byte: int) -> str:
    return f"{byte:014x}"


@cache
def _system() -> str:
    """The system that runs here and now: containers share it, and after a restart it is another."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {uuid.getnode():x}"

"""Claims: whoever holds a key has put a file there, and writes it anew again and again; so machines exclude each other.

    holders/<key>/<token>      what a holder says of itself, changed with every heartbeat
    holders/.<token>/          a claim that is being made

They ask one thing of a file system: that a folder is renamed to a place where none is, or an empty one, and is refused
where another is not empty. So a claim appears whole, and one of several wins. (A file that is created exclusively
would be there before it says whose it is, and could be taken over only by a name that its next owner has, too.)

A token is drawn anew for every claim. Deleting its file ends that claim and can end no other, however late it is done:
so who finds a claim silent deletes it, and all begin again from a key that is free. A holder that was only stopped
finds its file gone; what it does is done twice then, with the same result.

A claim is silent when it has not changed for a while by the clock of who looks: clocks of machines are not compared.
"""

import _thread
import errno
import itertools
import json
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ablation_lens.errors import FileFormatError
from ablation_lens.escaping import as_unicode, on_one_line, shorten
from ablation_lens.files import parse_json

EVERY = 5.0
"""Seconds between two heartbeats."""
SILENCE = 40.0
"""Seconds without one after which a holder is taken for dead: long enough for work that lets no other thread run."""

_LARGEST = 10_000
"""Bytes that are read of a claim; ours take a few hundred."""
_MOST = 100
"""Claims of one key that are looked at: there are several only where folders were copied into each other."""

# A link would lead out of the folder, and a pipe make us wait for somebody at its other end.
PLAIN_FILES = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Holder:
    """Who holds a key, as it says.

    Attributes:
        key: the key.
        what: what is done, in words; empty where nobody said.
        process: its number.
        host: its machine.
        since: when it began, in UTC, by its own clock.
        lock: which lock of which running system it has, too; None for none.
    """

    key: str
    what: str
    process: int
    host: str
    since: datetime
    lock: str | None = None

    @classmethod
    def of_this_process(cls, key: str, what: str, lock: str | None) -> "Holder":
        """Of a key that is taken now."""
        now = datetime.now(UTC).replace(microsecond=0)
        said = [shorten(on_one_line(as_unicode(text)), 200) for text in (key, what, socket.gethostname())]
        return cls(said[0], said[1], os.getpid(), said[2], now, lock)

    def to_json(self) -> str:
        """One line."""
        # As ASCII, so that half a letter is never read.
        return json.dumps({**self.__dict__, "since": self.since.isoformat()})

    @classmethod
    def from_json(cls, text: str) -> "Holder | None":
        """What somebody wrote; None for what no holder of ours says."""
        try:
            said = parse_json(text)
            key, what, host, lock = (said[name] for name in ("key", "what", "host", "lock"))
            process, since = said["process"], datetime.fromisoformat(said["since"]).astimezone(UTC)
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError):
            return None
        if not 2000 <= since.year < 2100:  # some others cannot be shown in every time zone
            return None
        texts = (key, what, host, "" if lock is None else lock)
        if not all(isinstance(each, str) and on_one_line(each) == each and len(each) <= 200 for each in texts):
            return None
        return cls(key, what, process, host, since, lock) if type(process) is int and 0 < process < 2**32 else None

    def to_dict(self) -> dict[str, Any]:
        """What people and programs are told."""
        told = {"key": self.key, "what": self.what or None, "process": self.process, "host": self.host}
        return {**told, "since": self.since.isoformat()}

    @property
    def began(self) -> str:
        """Since when, as a clock here shows it."""
        return f"{self.since.astimezone():%Y-%m-%d %H:%M:%S}"

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, which began {self.began}"


@dataclass(frozen=True)
class Sight:
    """A claim as it was seen once: it has shown life where it looks different later."""

    path: Path
    status: tuple[int, int, int]
    """Mode, bytes, and nanoseconds at which it was changed."""
    content: bytes

    @property
    def holder(self) -> Holder | None:
        """Whose it is; None where that cannot be read."""
        return Holder.from_json(self.content.partition(b"\n")[0].decode("ascii", "replace"))

    @property
    def age(self) -> float:
        """Seconds since it was changed, if this machine's clock is right, and the disk's."""
        return time.time() - self.status[2] / 1e9


@dataclass(eq=False)
class _Watch:
    """How long a claim has looked the same."""

    sight: Sight
    since: float
    looked: float
    watched: float = 0.0


@dataclass(eq=False)
class Claim:
    """One attempt to hold a key, or the hold itself; what it has made is taken away by `Claims.give_back`."""

    name: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    ended: threading.Event = field(default_factory=threading.Event)


class Claims:
    """The claims in a folder; `every` and `silence` are seconds: between heartbeats, and until nobody's.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     claims = Claims(Path(folder))
    ...     first, second = Claim("a"), Claim("a")
    ...     claims.take(first, Holder.of_this_process("a", "a cell", None)), claims.take(second, None)
    ...     claims.give_back(first)
    (True, False)
    """

    def __init__(self, folder: Path, *, every: float = EVERY, silence: float = SILENCE) -> None:
        self.folder, self.every, self.silence = folder, every, silence
        self._watches: dict[str, dict[Path, _Watch]] = {}

    def take(
        self, claim: Claim, holder: Holder | None, is_gone: Callable[[Holder], bool] = lambda other: False
    ) -> bool:
        """Whether the key was free, and is claimed now; what is known to be gone, or is silent, is deleted first."""
        sights = self.sights(claim.name)
        self._watch(claim.name, sights)
        for sight in sights:
            other = sight.holder
            if (other is not None and is_gone(other)) or self._is_silent(claim.name, sight):
                _delete(sight.path, sight.status[0])
            else:
                return False
        if not self._put(claim, "" if holder is None else holder.to_json()):
            return False
        self._watches.pop(claim.name, None)
        return True

    def give_back(self, claim: Claim) -> None:
        """End a claim, however far it has come; one that somebody has taken over is left alone."""
        claim.ended.set()
        draft = self.folder / f".{claim.token}"
        _clear(self.folder / claim.name, claim.token)
        if os.path.lexists(draft):  # an interrupt came in between
            _clear(draft, claim.token)

    def names(self) -> list[str]:
        """What claims, or what was left of them, lies here."""
        return sorted(name for name in self._listed() if _NAME.fullmatch(name))

    def sights(self, name: str) -> list[Sight]:
        """The claims of a key: one, unless folders were copied into each other."""
        place = self.folder / name
        self._require_folders(place)
        try:
            with os.scandir(place) as entries:
                paths = [Path(entry.path) for entry in itertools.islice(entries, _MOST)]
        except FileNotFoundError:
            return []
        return [sight for path in paths if (sight := _see(path))]

    def sweep(self, older_than: float) -> None:
        """Delete what the killed have left, once it has not changed for so many seconds."""
        for name in self._listed():
            path = self.folder / name
            with suppress(OSError):
                if _OLD_NOTE.fullmatch(name) and _is_old(path, older_than):
                    path.unlink()
                elif _NAME.fullmatch(name) or _DRAFT.fullmatch(name):
                    _sweep_claim(path, older_than)

    # ------------------------------------------------------------------ within

    def _listed(self) -> list[str]:
        try:
            return [] if self.folder.is_symlink() else os.listdir(self.folder)
        except OSError:
            return []

    def _require_folders(self, place: Path) -> None:
        # Through a link, something would be written or deleted elsewhere.
        for path in (self.folder, place):
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(path.lstat().st_mode):
                    raise FileFormatError(
                        f"{path} is not a folder, and who works in this run says so there; delete it and run the same "
                        "command again."
                    )

    def _put(self, claim: Claim, text: str) -> bool:
        """Whether the claim could be put in its place: the system lets one of several do so."""
        place, draft = self.folder / claim.name, self.folder / f".{claim.token}"
        claimed = place / claim.token
        try:
            self._make(draft)
            _write(draft / claim.token, text, 0, os.O_CREAT | os.O_EXCL)
            if not _rename(draft, place):
                return False
        except OSError:
            # An answer can be lost on the way from a server that did it.
            if not os.path.lexists(claimed):
                raise
        finally:
            if not os.path.lexists(claimed):
                _clear(draft, claim.token)
        with suppress(RuntimeError):  # no room for a thread: it is taken over if it lasts, and done twice
            # A `Thread` would wait here until it runs, as long as all else takes.
            _thread.start_new_thread(self._beat, (claimed, text, claim.ended))
        return True

    def _make(self, draft: Path) -> None:
        try:
            draft.mkdir()
        except FileNotFoundError:
            self.folder.mkdir(exist_ok=True)
            draft.mkdir()
        # Whoever may claim here may also delete what is silent, whatever this process' umask is.
        with suppress(OSError):
            draft.chmod(stat.S_IMODE(self.folder.stat().st_mode))

    def _beat(self, path: Path, text: str, ended: threading.Event) -> None:
        for number in itertools.count(1):
            if ended.wait(self.every):
                return
            try:
                _write(path, text, number)
            except (FileNotFoundError, NotADirectoryError):
                return  # somebody has taken it over
            except OSError:
                # A full disk can refuse even the bytes that are there already.
                with suppress(OSError, NotImplementedError):
                    os.utime(path, follow_symlinks=False)

    def _watch(self, name: str, sights: list[Sight]) -> None:
        now, before = time.monotonic(), self._watches.get(name, {})
        held = self._watches[name] = {}
        for sight in sights:
            watch = before.get(sight.path)
            if watch is None or watch.sight != sight:
                watch = _Watch(sight, now, now)
            watch.watched += min(now - watch.looked, self.every)
            watch.looked = now
            held[sight.path] = watch

    def _is_silent(self, name: str, sight: Sight) -> bool:
        watch = self._watches[name][sight.path]
        # Looked at for two heartbeats, as well: after a standstill of the server, all claims look as long before.
        return watch.looked - watch.since >= self.silence and watch.watched >= 2 * self.every


_NAME = re.compile(r"[0-9a-f]{14}")
_TOKEN = re.compile(r"[0-9a-f]{16}")
_DRAFT = re.compile(r"\.[0-9a-f]{16}")
_OLD_NOTE = re.compile(r"[0-9a-f]{14}\.txt")
"""What holders wrote of themselves before there were claims."""

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, *((errno.EACCES,) if os.name == "nt" else ()))
"""How systems say that a folder is in the place that is not empty."""


def _see(path: Path) -> Sight | None:
    """A claim as it is; None if it is gone. Only plain files are opened."""
    try:
        status, content = path.lstat(), b""
        if stat.S_ISREG(status.st_mode):
            with suppress(PermissionError):
                # Opening asks a network disk anew, where other calls would give what was known a minute ago.
                descriptor = os.open(path, os.O_RDONLY | PLAIN_FILES)
                try:
                    status = os.fstat(descriptor)
                    if stat.S_ISREG(status.st_mode):
                        content = os.read(descriptor, _LARGEST)
                finally:
                    os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR):
            return None
        raise
    return Sight(path, (status.st_mode, status.st_size, status.st_mtime_ns), content)


def _write(path: Path, text: str, number: int, flags: int = 0) -> None:
    """What a holder says, and how often it has said it; always as many bytes, so that nothing is cut meanwhile."""
    descriptor = os.open(path, os.O_WRONLY | PLAIN_FILES | flags, 0o666)
    try:
        content = f"{text}\n{number:012d}\n".encode("ascii")
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _rename(draft: Path, place: Path) -> bool:
    """Whether nobody's claim was in the place, and this one is now."""
    for _ in range(2):
        try:
            draft.rename(place)
            return True
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            # Windows, and some servers, refuse a folder also where an empty one is.
            try:
                place.rmdir()
            except OSError:
                return False
    return False


def _clear(folder: Path, token: str) -> None:
    """Delete a claim and its folder, unless somebody is in it by now."""
    with suppress(OSError):
        (folder / token).unlink()
    with suppress(OSError):
        folder.rmdir()


def _delete(path: Path, mode: int) -> None:
    with suppress(FileNotFoundError):  # somebody was faster
        if stat.S_ISDIR(mode):
            path.rmdir()
        else:
            path.unlink()


def _is_old(path: Path, seconds: float) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > seconds


def _sweep_claim(folder: Path, older_than: float) -> None:
    if folder.is_symlink():
        return
    # Asked before anything is deleted from it. In a younger one somebody may be about to put his file.
    is_old = time.time() - folder.lstat().st_mtime > older_than
    for name in os.listdir(folder):
        path = folder / name
        if _TOKEN.fullmatch(name) and _is_old(path, older_than):
            path.unlink()
    if is_old:
        folder.rmdir()

"""Documents that take seconds to make, kept in the user's cache folder for the next process.

They are no more than a memory: what is missing, damaged, too large, of another state or not ours is made again, and
where nothing can be written nothing is. Several processes may read and write at once.
"""

import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ablation_lens.errors import AblationLensError
from ablation_lens.files import HEADER_BYTES, load_json, save_json, sweep

PLACE = "ABLATION_LENS_CACHE"
"""The environment variable that names another folder, or is "off"."""

_KIND = "kept documents"
_STATES = 4
"""How many states of one name stay: those of several Python versions, which take turns, and no more."""


def cache_folder() -> Path | None:
    """Where things are kept: what `ABLATION_LENS_CACHE` names, else the platform's folder for caches; None for nowhere.

    >>> before = os.environ.get(PLACE)
    >>> os.environ[PLACE] = "/scratch/mine"
    >>> cache_folder().as_posix()
    '/scratch/mine'
    >>> os.environ[PLACE] = "off"
    >>> cache_folder() is None
    True
    >>> _ = os.environ.pop(PLACE) if before is None else os.environ.update({PLACE: before})
    """
    named = os.environ.get(PLACE, "")
    if named == "off":
        return None
    with suppress(RuntimeError, OSError):  # nobody knows where home is, or we may not look there
        if named:
            return Path(named).expanduser()
        base = os.environ.get({"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME"), "")
        if Path(base).is_absolute():  # another one is to be ignored, says XDG's standard
            return Path(base, "ablation-lens")
        # A home that is not there is that of an account without one: it is not for us to make.
        if (home := Path.home()).is_dir():
            return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "ablation-lens"
    return None


def kept(name: str, state: Callable[[], str], make: Callable[[], Sequence[str]]) -> tuple[str, ...]:
    """What `make` gives, or gave to an earlier process whose `state` was the same.

    Args:
        name: of letters and hyphens; a file is called so.
        state: a hexadecimal digest of everything that the documents depend on.
        make: gives the documents.
    """
    folder = cache_folder()
    if folder is None:
        return tuple(make())
    try:
        before = state()
    except OSError:  # such as a program in a zip, whose source cannot be read
        return tuple(make())
    path = folder / f"{name}-{before[:32]}.json"
    found = _load(path, before)
    if found is not None:
        return found
    documents = tuple(make())
    # A full or read-only disk, a file in the place of the folder. What changed meanwhile has no state.
    with suppress(OSError):
        if state() == before:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            save_json(path, _KIND, {"state": before, "documents": documents})
            _forget(folder, name)
    return documents


def _load(path: Path, state: str) -> tuple[str, ...] | None:
    """The documents in a file, if it is one of ours, whole and of this state."""
    with suppress(OSError, AblationLensError):
        status = path.lstat()
        # A link, or what somebody else put there, is not ours, whatever it holds: a checksum anybody can compute.
        if not stat.S_ISREG(status.st_mode) or status.st_uid != getattr(os, "geteuid", lambda: 0)():
            return None
        if status.st_size > HEADER_BYTES:
            return None
        held = load_json(path, _KIND, oldest=2)
        documents = held.get("documents")
        if (
            held.get("state") == state
            and isinstance(documents, list)
            and all(isinstance(each, str) for each in documents)
        ):
            return tuple(documents)
    return None


def _forget(folder: Path, name: str) -> None:
    """Delete what other states left, but for the newest few, and what writers left that were killed."""
    dated = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process forgets, too
            if re.fullmatch(rf"{name}-[0-9a-f]{{32}}\.json", path.name):
                dated.append((path.lstat().st_mtime_ns, path))
    for _, path in sorted(dated, reverse=True)[_STATES:]:
        with suppress(OSError):
            path.unlink()
    sweep(folder, older_than=3600)

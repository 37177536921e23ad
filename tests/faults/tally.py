"""Counts attempts of one class of fault, and what went wrong in them."""

import resource
import signal
import threading
import time
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

from ablation_lens.errors import AblationLensError

LONGEST = 30
"""Seconds after which an attempt hangs; most take some hundredths of one."""

ROOM = 2 << 30
"""Bytes of address space that an attempt may take, besides what the process has: a bomb then ends here."""


class Tally:
    """Attempts and failures of a class of fault, such as "damaged files"."""

    def __init__(self, name, room=ROOM):
        self.name, self.room = name, room
        self.attempts = 0
        self.failures = []

    @contextmanager
    def attempt(self, what, seconds=LONGEST):
        """Whatever leaves the block, and staying too long in it, is a failure."""
        self.attempts += 1
        try:
            with within(seconds), bounded(self.room), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is left out is said in warnings; other tests read them
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a Rust library is not an Exception
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__} at {where.filename.split('/')[-1]}:{where.lineno}: {str(error)[:300]}"
            self.failures.append(f"{what}: {told}")

    def require_none_failed(self):
        """Fail with the first few failures."""
        assert self.attempts, f"no attempt of {self.name}"
        shown = "\n".join(self.failures[:20])
        assert not self.failures, f"{len(self.failures)} of {self.attempts} {self.name} failed:\n{shown}"


@contextmanager
def within(seconds):
    """Raise `TimeoutError` in the block if it takes longer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number, frame):
        raise TimeoutError(f"still busy after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded(room):
    """Raise `MemoryError` in the block, or what libraries make of it, where it takes more than `room` bytes."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def require_clear(error, *names):
    """The error is one short sentence, and names one of the files."""
    text = str(error)
    assert text.isprintable() or all(letter.isprintable() or letter.isspace() for letter in text), repr(text)
    assert len(text.splitlines()) == 1, repr(text)
    assert len(text) < 1500, f"{len(text)} letters: {text[:200]}…"
    assert any(name in text for name in names), f"names none of {names}: {text}"


def reads_or_says(read, *names):
    """What `read()` gives, or None where it says in one sentence why it cannot."""
    started = time.monotonic()
    try:
        return read()
    except AblationLensError as error:
        require_clear(error, *names)
        assert time.monotonic() - started < LONGEST
        return None

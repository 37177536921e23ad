"""Ctrl-C, put off to a moment at which nothing is half done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def put_off(times: int) -> Iterator[Callable[[], bool]]:
    """Only note Ctrl-C, up to so many times; the next raises `KeyboardInterrupt` as ever.

    The value is a function that says whether it came. Who asks too late, or not at all, has not been interrupted.

    >>> with put_off(1) as came:
    ...     signal.raise_signal(signal.SIGINT)
    >>> came()
    True
    """
    # `signal.signal` raises in every thread but the main one.
    ours = threading.current_thread() is threading.main_thread()
    # Ignored (a background job of a script), or not Python's to put back (None): then it stays as it is.
    if not ours or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield lambda: False
        return
    came = 0

    def note(number: int, frame: Any) -> None:
        nonlocal came
        came += 1
        if came > times:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came > 0
    finally:
        signal.signal(signal.SIGINT, before)

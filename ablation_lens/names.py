"""Choosing by name: a wrong name is answered with the nearest one. The only place that looks for it."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from ablation_lens.errors import MismatchError

Choice = TypeVar("Choice")


def nearest(given: object, known: Iterable[str]) -> str:
    """The known name that is most like what was given.

    >>> nearest("pique", ["zero", "mean", "peak"])
    'peak'
    """
    # cutoff 0: some name is always the nearest, so [0] exists. The default of 0.6 would often give none.
    lower = {name.lower(): name for name in known}
    return lower[difflib.get_close_matches(str(given).lower(), list(lower), n=1, cutoff=0.0)[0]]


def close_to(given: str, known: Iterable[str], most: int = 1) -> list[str]:
    """As many known names as are really like what was given, the nearest first; none where nothing is.

    >>> close_to("tiny-op", ["tiny-opt", "tiny-vit"]), close_to("gpt2", ["tiny-opt"])
    (['tiny-opt'], [])
    """
    return difflib.get_close_matches(given, list(known), n=most)


def choose(given: str, choices: Mapping[str, Choice], what: str) -> Choice:
    """The choice of that name.

    >>> choose("skew ", {"skew": 1, "peaks": 2}, "measure")
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: there is no measure 'skew '; did you mean 'skew'? Known: skew, peaks.
    """
    require_known(given, choices, what)
    return choices[given]


def require_known(given: str, known: Collection[str], what: str, *, nearest_to: str | None = None) -> None:
    """Raise `MismatchError`, with the nearest name, unless `given` is one of `known`.

    `nearest_to` is what was meant, where that can be told from what was given.
    """
    if not isinstance(given, str) or given not in known:
        meant = nearest(nearest_to or given, known)
        raise MismatchError(f"there is no {what} {given!r}; did you mean {meant!r}? Known: {', '.join(known)}.")

"""Choosing by name: a wrong name is answered with the nearest one, in the same words everywhere."""

import difflib
from collections.abc import Collection, Mapping
from typing import TypeVar

from ablation_lens.errors import MismatchError

Choice = TypeVar("Choice")


def chosen(given: str, choices: Mapping[str, Choice], what: str) -> Choice:
    """The choice of that name.

    >>> chosen("skew ", {"skew": 1, "peaks": 2}, "measure")
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: there is no measure 'skew '; did you mean 'skew'? Known: skew, peaks.
    """
    require_known(given, choices, what)
    return choices[given]


def require_known(given: str, known: Collection[str], what: str) -> None:
    """Raise `MismatchError`, with the nearest name, unless `given` is one of `known`."""
    if not isinstance(given, str) or given not in known:
        nearest = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.0)[0]
        raise MismatchError(f"there is no {what} {given!r}; did you mean {nearest!r}? Known: {', '.join(known)}.")

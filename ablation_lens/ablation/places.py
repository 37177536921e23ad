"""At which positions: what people write, and the columns of a batch where that is.

A position counts the real tokens of its row, wherever the padding is: 0 is the first, -1 the last.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import Columns

Positions = tuple[int, ...] | slice | Tensor | Callable[[Any], Any]
"""Numbers, a slice, a boolean `[batch pos]`, or a function of the batch that gives one of these."""

_FORMS = "give numbers such as -1 or [0, 1], a slice, a range, a boolean [batch pos], or a function of the batch"
_FARTHEST = 2**31


def read_positions(given: Any) -> Positions | None:
    """Positions in one of few forms, whatever was given; None for all.

    >>> read_positions(range(3)), read_positions(-1), read_positions([4, 1, 4]), read_positions(slice(2, None))
    ((0, 1, 2), (-1,), (1, 4), slice(2, None, None))
    """
    if given is None or callable(given):
        return given  # type: ignore[no-any-return]
    if isinstance(given, slice):
        return _read_slice(given)
    if str(getattr(given, "dtype", "")) in ("torch.bool", "bool"):
        marks = torch.as_tensor(given)
        if marks.ndim != 2:
            raise MismatchError(f"boolean positions are [batch pos], got shape {tuple(marks.shape)}.")
        return marks
    numbers = _numbers(given)
    if numbers is None or not all(-_FARTHEST < number < _FARTHEST for number in numbers):
        raise MismatchError(f"positions={given!r} is not possible; {_FORMS}.")
    return tuple(sorted(set(numbers)))


def _numbers(given: Any) -> list[int] | None:
    """At least one whole number."""
    if isinstance(given, bytes):  # which iterates as numbers
        return None
    each = given if isinstance(given, Iterable) and getattr(given, "ndim", None) != 0 else [given]
    try:
        numbers = [operator.index(number) for number in each if not isinstance(number, bool)]
    except TypeError:
        return None
    return numbers if numbers and len(numbers) == len(list(each)) else None


def _read_slice(given: slice) -> slice | None:
    try:
        ends = [None if end is None else operator.index(end) for end in (given.start, given.stop, given.step)]
    except TypeError:
        raise MismatchError(f"positions={given!r} is not possible; {_FORMS}.") from None
    if ends[2] is not None and ends[2] < 1:
        raise MismatchError(f"positions={given!r} goes backwards; give a step of 1 or more.")
    if ends[0] in (None, 0) and ends[1] is None and ends[2] in (None, 1):
        return None  # all of them
    return slice(*ends)


def count_from_end(positions: Positions | None) -> bool:
    """Whether a row's length decides which these are."""
    if isinstance(positions, slice):
        return any(end is not None and end < 0 for end in (positions.start, positions.stop))
    return isinstance(positions, tuple) and min(positions) < 0


def describe_positions(positions: Positions | None) -> str:
    """For people, as an ablation's `repr` says it.

    >>> describe_positions((-1,)), describe_positions((0, 1, 5)), describe_positions(slice(2, None))
    (' at position -1', ' at 3 positions', ' at positions 2:')
    """
    if positions is None:
        return ""
    if isinstance(positions, slice):
        ends = [positions.start, positions.stop, *([] if positions.step in (None, 1) else [positions.step])]
        return f" at positions {':'.join('' if end is None else str(end) for end in ends)}"
    if isinstance(positions, Tensor):
        return f" at {int(positions.sum())} positions of {len(positions)} rows"
    if callable(positions):
        return " at positions by batch"
    return f" at position {positions[0]}" if len(positions) == 1 else f" at {len(positions)} positions"


def find(positions: Positions, columns: Columns, device: torch.device) -> Bool[Tensor, "#batch pos"]:
    """Which columns hold these positions.

    >>> find((0, -1), Columns(0, 3, torch.tensor([[False, True, True]])), torch.device("cpu")).tolist()
    [[False, True, True]]
    """
    if count_from_end(positions) and columns.start:
        raise MismatchError(
            "this ablation counts positions from the end, and the end moves with every token that is generated with a "
            "key-value cache; count from 0, or generate without a cache (use_past_kv_cache=False)."
        )
    places, length = columns.places(device), columns.lengths(device)
    if isinstance(positions, slice):
        step = positions.step or 1
        start = _from_start(positions.start or 0, length)
        found = (places >= start) & ((places - start) % step == 0)
        if positions.stop is not None:
            found &= places < _from_start(positions.stop, length)
    elif isinstance(positions, Tensor):
        marks = positions.to(device)
        places = places.expand(len(positions), -1)
        # Beyond what is marked, as in generation, nothing is ablated.
        inside = places.clamp(0, marks.shape[1] - 1)
        found = marks.gather(1, inside) & (places == inside)
    else:
        assert isinstance(positions, tuple)
        wanted = torch.tensor(positions, device=device)
        found = torch.isin(places, wanted[wanted >= 0])
        if count_from_end(positions):
            found = found | torch.isin(places - length, wanted[wanted < 0])
    if count_from_end(positions):
        found &= places < length
    return found & (places >= 0)


def _from_start(end: int, length: Tensor) -> Tensor:
    return (length + end).clamp(min=0) if end < 0 else torch.full_like(length, end)


def values_at(
    values: Float[Tensor, "pos head dim"] | Float[Tensor, "batch pos head dim"], columns: Columns
) -> Float[Tensor, "pos head dim"] | Float[Tensor, "batch pos head dim"]:
    """Values by position as the columns have them; at padding, any."""
    known, real = values.shape[-3], columns.real
    end = columns.start + columns.count if real is None else int(columns.lengths(real.device).max())
    if end > known:
        raise MismatchError(
            f"there are values for {known} positions, and the input reaches {end}; shorten it, or make the values from "
            "a longer one."
        )
    if real is None:
        return values[..., columns.start : end, :, :]
    places = columns.places(values.device).clamp(0, known - 1)
    if values.ndim == 3:
        return values[places]
    return values[torch.arange(len(places), device=values.device)[:, None], places]

"""At which positions: what people write, and the columns of a batch where that is.

A position counts the real tokens of its row, wherever the padding is: 0 is the first, -1 the last. What is given row by
row, as marks `[batch pos]`, is in the columns of its batch.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import Columns

Positions = tuple[int, ...] | slice | Tensor | Callable[[Any], Any]
"""Numbers, a slice, a boolean `[batch pos]`, or a function of the batch that gives one of these."""

_FORMS = "give numbers such as -1 or [0, 1], a slice, a range, a boolean [batch pos], or a function of the batch"
_FARTHEST = 2**31
_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


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
        found = _marked(positions.to(device), columns)
    else:
        assert isinstance(positions, tuple)
        wanted = torch.tensor(positions, device=device)
        found = torch.isin(places, wanted[wanted >= 0])
        if count_from_end(positions):
            found = found | torch.isin(places - length, wanted[wanted < 0])
    if count_from_end(positions):
        found &= places < length
    return found & (places >= 0)


def _marked(marks: Bool[Tensor, "batch pos"], columns: Columns) -> Bool[Tensor, "batch column"]:
    if not columns.start and marks.shape[1] != columns.count:
        raise MismatchError(
            f"boolean positions of shape {tuple(marks.shape)} are for a batch with {marks.shape[1]} columns, padding "
            f"included, and {columns.count} came in."
        )
    marks = marks[:, columns.start : columns.start + columns.count]
    # Beyond what is marked, as in generation with a cache, nothing is ablated.
    return torch.nn.functional.pad(marks, (0, columns.count - marks.shape[1]))


def _from_start(end: int, length: Tensor) -> Tensor:
    return (length + end).clamp(min=0) if end < 0 else torch.full_like(length, end)


def values_at(
    values: Float[Tensor, "pos head dim"] | Float[Tensor, "batch pos head dim"], columns: Columns
) -> Float[Tensor, "pos head dim"] | Float[Tensor, "batch pos head dim"]:
    """Values by position as the columns have them; at padding, any. Those of rows are in columns already.

    A row's values in a single column are the same at every position.
    """
    known, real = values.shape[-3], columns.real
    if values.ndim == 4 and known == 1:
        return values
    by_column = real is None or values.ndim == 4
    end = columns.start + columns.count if by_column else int(columns.lengths(values.device).max())
    if end > known:
        raise MismatchError(
            f"there are values for {known} positions, and the input reaches {end}; shorten it, or make the values from "
            "a longer one."
        )
    if by_column:
        return values[..., columns.start : end, :, :]
    return values[columns.places(values.device).clamp(0, known - 1)]


def by_row(given: Any, valid: Bool[Tensor, "batch pos"]) -> Any:
    """What a function of a batch gave: a tensor of one column per row as marks, anything else as it is.

    >>> by_row(torch.tensor([2, 1]), torch.tensor([[True, True, True], [True, True, False]])).int().tolist()
    [[0, 0, 1], [0, 1, 0]]
    """
    if getattr(given, "ndim", 0) != 1 or str(getattr(given, "dtype", "")).rpartition(".")[2] not in _WHOLE:
        return given
    columns, (rows, width) = torch.as_tensor(given).long().to(valid.device), valid.shape
    if len(columns) != rows:
        raise MismatchError(
            f"the function of the batch gave {len(columns)} positions for {rows} rows; a tensor has one column per "
            "row, and positions for all rows are a list or a tuple."
        )
    row = torch.arange(rows, device=valid.device)
    inside = (columns >= 0) & (columns < width)
    real = inside & valid[row, columns.clamp(0, width - 1)]
    if not bool(real.all()):
        first = int((~real).nonzero()[0])
        what = "is padding" if bool(inside[first]) else f"is not one of its {width} columns"
        raise MismatchError(
            f"the function of the batch gave column {int(columns[first])} for row {first}, which {what}; give the "
            "column of a real token, counted from 0, as in batch.valid."
        )
    marks = torch.zeros_like(valid)
    marks[row, columns] = True
    return marks


def move_columns(
    rows: Shaped[Tensor, "batch pos *rest"], given: Bool[Tensor, "batch pos"], moved: Bool[Tensor, "batch pos"]
) -> Shaped[Tensor, "batch pos *rest"]:
    """What is given per column, in the columns of a batch whose texts stand elsewhere in their rows.

    >>> left, right = torch.tensor([[False, True, True]]), torch.tensor([[True, True, False]])
    >>> move_columns(torch.tensor([[7, 8, 9]]), left, right).tolist()
    [[8, 9, 7]]
    """
    # The columns of real tokens first, in their order.
    before, after = ((~valid).byte().argsort(dim=1, stable=True).to(rows.device) for valid in (given, moved))
    row = torch.arange(len(rows), device=rows.device)[:, None]
    found = torch.empty_like(rows)
    found[row, after] = rows[row, before]
    return found

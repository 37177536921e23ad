"""Positions count the real tokens of every row, whatever form they are given in and wherever padding is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablation_lens.ablation.places import find, read_positions, values_at
from ablation_lens.errors import MismatchError
from ablation_lens.hooked import Columns

CPU = torch.device("cpu")
rows_of_columns = st.integers(1, 7).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4)
)
ends = st.none() | st.integers(-8, 8)
slices = st.builds(slice, ends, ends, st.none() | st.integers(1, 3))
numbers = st.lists(st.integers(-8, 8), min_size=1, max_size=4)


@given(rows_of_columns, slices | numbers)
def test_positions_are_those_of_a_list_of_the_rows_real_tokens(real, positions):
    columns = Columns(0, len(real[0]), torch.tensor(real))
    wanted = read_positions(positions)
    everywhere = torch.ones(len(real), len(real[0]), dtype=torch.bool)
    found = everywhere if wanted is None else find(wanted, columns, CPU)
    for row, here in zip(real, found.tolist(), strict=True):
        text = [column for column, is_real in enumerate(row) if is_real]
        if isinstance(positions, slice):
            expected = text[positions]
        else:
            expected = {text[place] for place in positions if -len(text) <= place < len(text)}
        assert [column for column in text if here[column]] == sorted(expected)


@given(st.integers(1, 7), slices | numbers)
def test_without_a_mask_they_count_columns(width, positions):
    wanted = read_positions(positions)
    expected = torch.zeros(width, dtype=torch.bool)
    for place in [positions] if isinstance(positions, slice) else [p for p in positions if -width <= p < width]:
        expected[place] = True
    if wanted is not None:
        assert torch.equal(find(wanted, Columns(0, width), CPU)[0], expected)


@pytest.mark.parametrize(
    "given", [[0, 1], (1, 0), range(2), torch.tensor([0, 1]), np.array([1, 0, 1]), {0, 1}, [np.int64(0), 1]]
)
def test_numbers_in_any_collection(given):
    assert read_positions(given) == (0, 1)


def test_one_number_in_any_form_and_marks_of_numpy():
    for one in (-1, np.int64(-1), torch.tensor(-1), [-1]):
        assert read_positions(one) == (-1,)
    marks = np.eye(2, dtype=bool)
    assert read_positions(marks).tolist() == marks.tolist()


@pytest.mark.parametrize(
    "wrong", [(), "last", b"a", 1.5, True, [0, False], [0.5], (2**40,), slice(3, 0, -1), slice("a"), torch.ones(3) > 0]
)
def test_what_is_no_position_is_one_sentence(wrong):
    with pytest.raises(MismatchError, match="positions"):
        read_positions(wrong)


def test_marks_of_rows_are_columns_and_end_where_they_end():
    real = torch.tensor([[False, True, True], [True, True, True]])
    marks = torch.tensor([[True, False, True], [False, True, False]])
    assert find(marks, Columns(0, 3, real), CPU).tolist() == [[False, False, True], [False, True, False]]
    assert find(marks, Columns(2, 2), CPU).tolist() == [[True, False], [False, False]]
    assert not find(marks, Columns(5, 1), CPU).any()
    for width in (2, 40):
        with pytest.raises(MismatchError, match=f"{width} columns, padding included, and 3 came in"):
            find(torch.ones(2, width) > 0, Columns(0, 3, real), CPU)


def test_a_cache_counts_on_and_ends_are_refused_under_it():
    real = torch.tensor([[False, True, True, True], [True, True, True, True]])
    assert find((2,), Columns(3, 1, real), CPU).tolist() == [[True], [False]]
    for positions in ((-1,), slice(-2, None), slice(0, -1)):
        with pytest.raises(MismatchError, match="key-value cache"):
            find(positions, Columns(3, 1, real), CPU)


def test_values_follow_the_real_tokens():
    real = torch.tensor([[False, True, True], [True, True, False]])
    by_position = torch.arange(3.0).view(3, 1, 1)
    assert values_at(by_position, Columns(0, 3, real)).flatten(1).tolist() == [[0, 0, 1], [0, 1, 2]]
    by_row = torch.arange(6.0).view(2, 3, 1, 1)  # in columns already
    assert values_at(by_row, Columns(0, 3, real)).flatten(1).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert values_at(by_row, Columns(1, 2)).flatten(1).tolist() == [[1, 2], [4, 5]]
    with pytest.raises(MismatchError, match="values for 1 positions, and the input reaches 2"):
        values_at(by_position[:1], Columns(0, 3, real))

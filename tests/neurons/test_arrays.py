"""Statistics as plain arrays: what people read in them without this library, and the exact way back."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.rows import Rows
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.neurons.statistics_file import Parts
from tests.histograms import NASTY
from tests.synthetic_statistics import draw, record

SHAPE = (2, 1, 3)


def states(statistics):
    """Every bit that a file of them holds, by name."""
    s = statistics
    held = Parts(s.histogram, s.moments, s.trimmed, s.positions, s.rows).tensors()
    return {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in held.items()}


def through_a_file(arrays):
    held = io.BytesIO()
    np.savez(held, **arrays)
    held.seek(0)
    return np.load(held, allow_pickle=False)


@pytest.fixture(scope="module")
def whole():
    """All there can be: two passes, means per position, rows, zeros, a constant neuron."""
    values = draw(60, SHAPE).view(4, 15, *SHAPE)
    values[..., 0] = values[..., 0].relu()
    values[:, :, 1, :, 2] = 0.25
    one = ActivationStatistics.of_values(values, model=record(SHAPE), passes=2, bins=16)
    positions = Positions(SHAPE)
    for layer in range(SHAPE[0]):
        positions.add(layer, Rows(values[:, :, layer]))
    return replace(one, positions=positions, rows=torch.tensor([-5, 0, 7]))


def test_arrays_come_back_bit_for_bit_through_a_file_that_needs_no_pickle(whole):
    again = ActivationStatistics.of_arrays(through_a_file(whole.arrays()))
    assert states(again) == states(whole)
    assert again.provenance == whole.provenance


@given(
    values=st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=12),
    bins=st.integers(2, 40),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_was_counted_comes_back_bit_for_bit(values, bins, dtype):
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    tensor = torch.where(tensor.isfinite() & (tensor.abs() < 1e150), tensor, 0)
    statistics = ActivationStatistics.of_values(tensor.view(-1, 1, 1, 2), bins=bins)
    assert states(ActivationStatistics.of_arrays(statistics.arrays())) == states(statistics)


def test_numpy_alone_reads_what_the_values_were():
    values = draw(300, SHAPE)
    arrays = ActivationStatistics.of_values(values).arrays()
    for place in np.ndindex(SHAPE):
        column = values[:, *place].double().numpy()
        edges = arrays["left"][place] + arrays["width"][place] * np.arange(257)
        assert np.array_equal(np.histogram(column, edges)[0], arrays["counts"][place])
        assert arrays["minimum"][place] == column.min()
        assert arrays["maximum"][place] == column.max()
        assert arrays["count"][place] == len(column)
        assert arrays["zeros"][place] == (column == 0).sum()
        assert arrays["positive"][place] == (column > 0).sum()
        assert np.isclose(arrays["mean"][place], column.mean())
        assert np.isclose(arrays["variance"][place], column.var())


def test_arrays_are_copies_and_changing_one_changes_no_statistics():
    statistics = ActivationStatistics.of_values(draw(20, SHAPE))
    before = states(statistics)
    for array in statistics.arrays().values():
        if array.dtype.kind in "if":
            array += 1
    assert states(statistics) == before


def test_without_provenance_they_are_of_whichever_model_and_site_is_named():
    arrays = ActivationStatistics.of_values(draw(20, SHAPE), site="mlp").arrays()
    del arrays["provenance"]
    known = ActivationStatistics.of_arrays(arrays, model=record(SHAPE), site="mlp")
    assert (known.provenance.model, known.site) == (record(SHAPE), al.Site.MLP)
    assert known.provenance.tokens == 20
    unknown = ActivationStatistics.of_arrays(arrays)
    assert (unknown.site, unknown.ablation(["L0"], "mean").source) == (al.Site.Z, None)


def changed(statistics, name, change):
    arrays = statistics.arrays()
    arrays[name] = change(arrays[name].copy())
    return arrays


def first(number):
    def put(array):
        array[(0,) * array.ndim] = number
        return array

    return put


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("counts", lambda a: a[0], r"counts are of shape .*expected \[layer head dim bin\]"),
        ("counts", lambda a: a.astype(float), "counts is float64.*expected int64"),
        ("counts", first(-1), "L0.H0.D0 has a negative count"),
        ("counts", first(10**6), "not the sum of its counts"),
        ("count", lambda a: a + 1, "not the sum of its counts"),
        ("mean", lambda a: a[:, 0], r"mean is float64 of shape \(2, 3\)"),
        ("mean", first(0.125), "mean of L0.H0.D0 is 0.125, and by the other arrays it is"),
        ("variance", first(np.nan), "variance of L0.H0.D0 is nan"),
        ("left", lambda a: a + 1e-3, "left of L0.H0.D0"),
        ("width", lambda a: a * 1.5, "width of L0.H0.D0"),
        ("zeros", lambda a: a + 1, "zeros of L0.H0.D0"),
        ("positive", first(10**6), "more values above 0 than its bins have"),
        ("minimum", first(np.nan), "a range that is not finite"),
        ("maximum", first(-1e9), "a minimum above its maximum"),
        ("pivot", first(np.inf), "sums that are not finite"),
        ("trimmed_below", lambda a: -a - 1, "a negative count"),
        ("trimmed_left", lambda a: a - 1, "trimmed_left of L0.H0.D0"),
        ("position_counts", lambda a: a + 1, "means per position"),
        ("position_sums", lambda a: a[:, 1:], "means per position"),
        ("rows", lambda a: a[::-1], "digests of rows"),
        ("resolution", lambda a: np.array("float31"), "did you mean 'float32'"),
        ("resolution", lambda a: np.array(5), "expected one text"),
        ("provenance", lambda a: np.array("{"), "provenance of these arrays cannot be read"),
        ("counts", lambda a: np.array([{}]), "counts is object"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(whole, name, change, words):
    with pytest.raises(MismatchError, match=words):
        ActivationStatistics.of_arrays(changed(whole, name, change))


def test_missing_foreign_and_misspelt_arrays_are_named(whole):
    arrays = whole.arrays()
    del arrays["left"], arrays["trimmed_above"]
    with pytest.raises(MismatchError, match="lack left, trimmed_above"):
        ActivationStatistics.of_arrays(arrays)
    with pytest.raises(MismatchError, match="did you mean 'rows'"):
        ActivationStatistics.of_arrays({**whole.arrays(), "row": np.zeros(3)})
    with pytest.raises(MismatchError, match="got a list; expected a mapping"):
        ActivationStatistics.of_arrays([whole.arrays()])


def test_provenance_that_says_something_else_is_refused(whole):
    with pytest.raises(MismatchError, match="of 'z', and not of 'mlp'"):
        ActivationStatistics.of_arrays(whole.arrays(), site="mlp")
    with pytest.raises(MismatchError, match="another model's"):
        ActivationStatistics.of_arrays(whole.arrays(), model=record((2, 1, 4)))
    told = json.loads(str(whole.arrays()["provenance"]))
    with pytest.raises(MismatchError, match="it is over 61 positions"):
        ActivationStatistics.of_arrays({**whole.arrays(), "provenance": np.array(json.dumps({**told, "tokens": 61}))})


def test_bins_are_all_that_was_counted_and_no_empty_ones():
    values = draw(100, SHAPE)
    statistics = ActivationStatistics.of_values(values, bins=16)
    bins = statistics.bins()
    assert bins["count"].min() > 0
    assert bins["count"].sum() == values.numel()
    for place in np.ndindex(SHAPE):
        own = bins[bins["neuron"] == f"L{place[0]}.H{place[1]}.D{place[2]}"]
        assert (own[["layer", "head", "dim"]].to_numpy() == place).all()
        column = values[:, *place].double().numpy()
        held = [((column >= left) & (column < right)).sum() for left, right in own[["left", "right"]].to_numpy()]
        assert held == own["count"].tolist()


def test_bins_of_chosen_neurons_at_any_site():
    statistics = ActivationStatistics.of_values(draw(50, SHAPE), site="mlp")
    assert statistics.bins(["L0.M1", "L1"])["neuron"].unique().tolist() == ["L0.M1", "L1.M0", "L1.M1", "L1.M2"]
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    assert len(statistics.bins(mask)) == 0
    with pytest.raises(MismatchError, match="L7 does not exist"):
        statistics.bins("L7")

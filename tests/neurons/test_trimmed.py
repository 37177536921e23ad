"""Counts within a fixed range, and of what lies outside it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.neurons.histogram_file import to_file
from ablation_lens.neurons.trimmed import TrimmedHistogram
from tests.histograms import (
    BINS,
    NASTY,
    RESOLUTIONS,
    SAMPLES,
    assert_same_state,
    column,
    floor_of,
    oracle,
    outliers,
)


@given(
    samples=SAMPLES,
    ends=st.tuples(NASTY | st.floats(-4, 4), NASTY | st.floats(-4, 4)),
    bins=BINS,
    resolution=RESOLUTIONS,
    fewer=st.integers(2, 256),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=150)
def test_trimmed_counts_are_the_definitions_whatever_the_order(samples, ends, bins, resolution, fewer, dtype):
    low, high = sorted(ends)  # float64: a float32 value may lie between an end and that end's float32
    values, cut = column(samples, dtype).view(-1, 1, 1, 1), len(samples) // 3
    parts = [
        TrimmedHistogram(*torch.tensor([low, high], dtype=torch.float64).view(2, 1, 1, 1), bins, resolution=resolution)
        for _ in range(2)
    ]
    parts[0].update(values[:cut])
    parts[1].update(values[cut:])
    merged = parts[1].merge(parts[0])
    for histogram, size in ((merged, bins), (merged.coarsen(min(fewer, bins)), min(fewer, bins))):
        exponent, offset, _ = oracle([low, high], size, resolution)
        expected = [0] * size
        for value in samples:
            if low <= value <= high:
                expected[floor_of(value, exponent) - offset] += 1
        assert (histogram.inside.exponent.item(), histogram.inside.offset.item()) == (exponent, offset)
        assert histogram.inside.counts((0, 0, 0)).tolist() == expected
        assert histogram.underflow.item() == sum(value < low for value in samples)
        assert histogram.overflow.item() == sum(value > high for value in samples)
    assert merged.total.item() == len(samples)


def test_the_ends_of_a_trimmed_range_belong_to_it_to_the_last_bit():
    near, below = (float(x) for x in (np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(0))))
    assert below < 0.1 < near  # float32's neighbours of 0.1
    values = torch.tensor([below, near]).view(2, 1, 1, 1)
    tenth, one = torch.tensor([0.1, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    for low, high, seen in ((tenth, one, (1, 1, 0)), (-one, tenth, (0, 1, 1)), (tenth, tenth, (1, 0, 1))):
        histogram = TrimmedHistogram(low, high)
        histogram.update(values)
        assert (histogram.underflow.item(), histogram.inside.counts().sum().item(), histogram.overflow.item()) == seen
    exactly = TrimmedHistogram(*values.sort(0).values)
    exactly.update(values)
    assert exactly.inside.counts().sum().item() == 2


def test_a_trimmed_histogram_resolves_what_an_outlier_hid():
    first, values = outliers()
    second = TrimmedHistogram.around(first)
    second.update(values)
    assert bool((first.epsilon > 3).all())
    assert bool((second.epsilon < 0.1).all())
    assert torch.equal(second.total, first.total)
    assert torch.equal(second.overflow, (values > second.inside.maximum).sum(0))
    assert bool((second.inside.maximum < 500).all())
    q = [0.25, 0.5, 0.75]
    expected = np.quantile(values.double().numpy(), q, axis=0)
    assert np.all(np.abs(second.quantile(q).numpy() - expected) <= second.epsilon.numpy())
    assert bool(second.quantile([1.0]).isnan().all())


def test_trimmed_quantiles_below_the_range_are_not_a_number():
    histogram = TrimmedHistogram(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    assert histogram.quantile(0.5).isnan().all()
    histogram.update(torch.tensor([-2.0, -1.0, 0.5, 0.75, 5.0]).view(5, 1, 1, 1))
    known = ~histogram.quantile([0.0, 0.25, 0.4, 0.5, 0.75, 0.8, 1.0]).flatten().isnan()
    assert known.tolist() == [False, False, False, True, True, False, False]


def test_trimmed_histograms_of_unlike_ranges_do_not_merge():
    low, high = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    one, two = TrimmedHistogram(low, high), TrimmedHistogram(low, high + torch.eye(2, 3) * 0.5)
    with pytest.raises(MismatchError, match=r"L0\.H0\.D0 has \[0\.0, 1\.0\] and \[0\.0, 1\.5\]"):
        one.merge(two)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf)])
def test_a_range_must_be_finite_and_in_order(low, high):
    with pytest.raises(NonFiniteError, match=r"range of L0\.H0\.D0"):
        TrimmedHistogram(torch.full((1, 1, 1), low), torch.full((1, 1, 1), high))


def test_ends_of_unlike_shape_are_refused():
    with pytest.raises(MismatchError, match="expected the same shape"):
        TrimmedHistogram(torch.zeros(1, 2, 3), torch.ones(1, 2, 4))


def test_trimmed_histograms_refuse_what_is_not_finite():
    histogram = TrimmedHistogram(torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
    with pytest.raises(NonFiniteError, match=r"L0\.H0\.D1 is -inf"):
        histogram.update(torch.tensor([0.5, -math.inf]).view(1, 1, 1, 2))
    assert histogram.total.sum() == 0


def test_merging_and_copying_leave_the_arguments_alone():
    first, values = outliers()
    halves = [TrimmedHistogram.around(first) for _ in range(2)]
    for half, part in zip(halves, values.split(10_000), strict=True):
        half.update(part)
    before = [to_file(half)[0] for half in halves]
    merged = halves[0].merge(halves[1])
    merged.update(values)
    halves[0].copy().update(values)
    for half, tensors in zip(halves, before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in to_file(half)[0].items())
    whole = TrimmedHistogram.around(first)
    whole.update(values)
    assert_same_state(halves[0].merge(halves[1]), whole)


def test_a_value_that_is_not_finite_leaves_every_layer_as_it_was():
    histogram = TrimmedHistogram(torch.zeros(2, 1, 1), torch.ones(2, 1, 1))
    values = torch.full((3, 2, 1, 1), 0.5)
    values[1, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"L1\.H0\.D0"):
        histogram.update(values)
    assert histogram.total.sum() == 0

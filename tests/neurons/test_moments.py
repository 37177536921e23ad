"""Sums against a float64 oracle, also where the mean is a million sigmas away."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation_lens.errors import MismatchError
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.rows import Rows

SHAPE = (2, 3, 5)


def collected(values, cuts=()):
    """Moments of values [token layer head dim], fed in pieces."""
    moments = Moments(SHAPE)
    for part in np.split(values, cuts):
        for layer in range(SHAPE[0]):
            moments.update_layer(layer, torch.from_numpy(part[:, layer]))
    return moments


def oracle(values):
    wide = values.astype(np.longdouble)
    return {
        "mean": wide.mean(0),
        "variance": wide.var(0),
        "mean_absolute": np.abs(wide).mean(0),
        "mean_root": np.sqrt(np.abs(wide)).mean(0),
    }


def assert_equal_to(moments, expected, relative=1e-12):
    for name, value in expected.items():
        found = getattr(moments, name).numpy()
        error = np.abs(found - value) / np.maximum(np.abs(value), 1e-300)
        assert error.max() <= relative, (name, error.max())


@pytest.mark.parametrize("offset", [0.0, 1.0, -30.0, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_are_exact_to_1e_12_for_offsets_up_to_a_million_sigmas(offset, dtype):
    values = (offset + np.random.default_rng(0).standard_normal((3000, *SHAPE))).astype(dtype)
    assert_equal_to(collected(values, cuts=(1, 700, 701, 2500)), oracle(values))


def test_the_comparison_notices_a_planted_error():
    values = np.random.default_rng(0).standard_normal((100, *SHAPE))
    expected = oracle(values)
    expected["variance"] = expected["variance"] * (1 + 1e-11)
    with pytest.raises(AssertionError, match="variance"):
        assert_equal_to(collected(values), expected)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=5), offset=st.sampled_from([0.0, 5.0, -1e6]), empty=st.booleans())
def test_any_merge_equals_having_seen_it_all(cuts, offset, empty):
    values = offset + np.random.default_rng(1).standard_normal((400, *SHAPE))
    parts = [collected(part) for part in np.split(values, sorted(cuts))]
    if empty:
        parts.insert(0, Moments(SHAPE))
    merged = parts[0]
    for part in parts[1:]:
        before = {name: tensor.clone() for name, tensor in merged.state().items()}
        total = merged.merge(part)
        assert all(torch.equal(tensor, before[name]) for name, tensor in merged.state().items())
        merged = total
    assert merged.count.tolist() == [400, 400]
    assert_equal_to(merged, oracle(values), relative=1e-11 if offset else 1e-12)


def test_positions_that_are_not_valid_do_not_count():
    values = torch.randn(4, 6, 3, 5)
    valid = torch.rand(4, 6) < 0.5
    masked, plain = Moments(SHAPE), Moments(SHAPE)
    masked.update_layer(1, torch.where(valid[:, :, None, None], values, 1e30), valid)
    plain.update_layer(1, values[valid])
    assert torch.equal(masked.mean[1], plain.mean[1])
    assert torch.equal(masked.variance[1], plain.variance[1])
    assert masked.mean[0].isnan().all()
    masked.update_layer(1, values, torch.zeros(4, 6, dtype=torch.bool))
    assert masked.count.tolist() == [0, int(valid.sum())]


@pytest.mark.parametrize("as_on_an_accelerator", [False, True])
def test_pieces_and_blocks_add_up(as_on_an_accelerator):
    values = 40 + np.random.default_rng(4).standard_normal((900, *SHAPE)).astype(np.float32)
    moments = Moments(SHAPE)
    for layer in range(SHAPE[0]):
        # On an accelerator values stay where they are, the neurons of a position together.
        taken = Rows(torch.from_numpy(values[:, layer]), piece=700, block=150, turned=not as_on_an_accelerator)
        assert len(list(taken)) > 5
        moments.add(layer, taken)
    assert_equal_to(moments, oracle(values))


@pytest.mark.parametrize("far", [30.0, 1e3, 1e6])
def test_a_first_value_far_from_the_others_costs_no_digits(far):
    values = np.random.default_rng(4).standard_normal((100_000, 1, 1, 1)).astype(np.float64)
    values[0] = far  # as at BOS
    moments = Moments((1, 1, 1))
    for part in np.split(values[:, 0], (40_000, 40_001)):
        moments.update_layer(0, torch.from_numpy(part))
    assert_equal_to(moments, {"variance": oracle(values)["variance"][0]})


def test_a_constant_neuron_has_exactly_no_variance():
    moments = Moments((1, 1, 1))
    for _ in range(50):
        moments.update_layer(0, torch.full((77, 1, 1), 0.1))
    assert moments.variance.item() == 0.0
    assert moments.mean.item() == torch.tensor(0.1).double().item()


def test_moments_made_under_inference_mode_take_values_outside_it():
    values = np.random.default_rng(3).standard_normal((60, *SHAPE))
    half = collected(values[:20])
    with torch.inference_mode():
        merged = half.merge(collected(values[20:40]))
        loaded = Moments.from_state(merged.state(), SHAPE)
    for moments in (merged, loaded):
        for layer in range(SHAPE[0]):
            moments.update_layer(layer, torch.from_numpy(values[40:, layer]))
        assert_equal_to(moments, oracle(values))


def test_state_round_trips_and_other_shapes_are_refused():
    moments = collected(np.random.default_rng(2).standard_normal((50, *SHAPE)))
    again = Moments.from_state(moments.state(), SHAPE)
    assert torch.equal(again.variance, moments.variance)
    with pytest.raises(MismatchError, match="do not add up"):
        moments.merge(Moments((2, 3, 6)))
    with pytest.raises(MismatchError, match="expected"):
        moments.update_layer(0, torch.zeros(4, 5, 3))

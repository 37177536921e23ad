"""Histograms beside their definition: an oracle in exact arithmetic, awkward numbers, a comparison of states."""

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import strategies as st

from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.histogram_file import to_file

SPACING = {torch.float64: (52, -1074), torch.float32: (23, -149), torch.bfloat16: (7, -133), torch.float16: (10, -24)}


def floor_of(value: float, exponent: int) -> int:
    return math.floor(Fraction(value) / Fraction(2) ** exponent)


def oracle(values: list[float], bins: int, resolution: torch.dtype) -> tuple[int, int, list[int]]:
    """k, o and counts by their definition, in exact rational arithmetic."""
    low, high = min(values), max(values)
    largest, (digits, smallest) = max(abs(low), abs(high)), SPACING[resolution]
    exponent = smallest if largest == 0 else max(math.frexp(largest)[1] - 1 - digits, smallest)
    while floor_of(high, exponent) - floor_of(low, exponent) + 1 > bins:
        exponent += 1
    offset = floor_of(low, exponent)
    counts = [0] * bins
    for value in values:
        counts[floor_of(value, exponent) - offset] += 1
    return exponent, offset, counts


def state_differences(one: NeuronHistogram, two: NeuronHistogram) -> list[str]:
    """Which parts of two states are not the same bits."""
    (tensors, header), (others, other_header) = to_file(one), to_file(two)
    assert tensors.keys() == others.keys()
    names = [
        name
        for name in tensors
        if tensors[name].dtype != others[name].dtype
        or not np.array_equal(
            tensors[name].numpy().reshape(-1).view(np.uint8), others[name].numpy().reshape(-1).view(np.uint8)
        )
    ]
    return names + (["header"] if header != other_header else [])


def assert_same_state(one: NeuronHistogram, two: NeuronHistogram) -> None:
    assert state_differences(one, two) == []


def collected(values: torch.Tensor, bins: int = 256, resolution: torch.dtype = torch.float32) -> NeuronHistogram:
    """A histogram of `[token neuron]` values: one layer, one head."""
    histogram = NeuronHistogram((1, 1, values.shape[-1]), bins, resolution=resolution)
    histogram.update(values.view(*values.shape[:-1], 1, 1, values.shape[-1]))
    return histogram


def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).view(-1, 1)


NUMBERS = [float(np.float32(x)) for x in (0.0, 1e-30, 1e30, 3e-45, 1e-40, 1.0, 0.75, 255.0, 256.0, 2.0**100, 2.0**-126)]
POWERS = st.integers(-149, 110).map(lambda exponent: math.ldexp(1.0, exponent))
NASTY = st.one_of(
    st.sampled_from(NUMBERS + [-number for number in NUMBERS]),
    POWERS,
    POWERS.map(lambda x: -x),
    POWERS.map(lambda x: float(np.nextafter(np.float32(x), np.float32(0)))),
    st.floats(-4.0, 4.0, width=32),
    st.floats(-(2.0**120), 2.0**120, width=32),
)
SAMPLES = st.one_of(
    st.lists(NASTY, min_size=1, max_size=24),
    st.lists(st.floats(-4.0, 4.0, width=32), min_size=1, max_size=24),
    st.tuples(st.lists(NASTY, min_size=1, max_size=3), st.integers(1, 8)).map(lambda pair: pair[0] * pair[1]),
)
BINS = st.sampled_from([2, 3, 7, 100, 256])
RESOLUTIONS = st.sampled_from(list(SPACING))


def outliers() -> tuple[NeuronHistogram, torch.Tensor]:
    values = torch.randn(20_000, 1, 2, 3)
    values[0] = 1000.0
    first = NeuronHistogram((1, 2, 3))
    first.update(values)
    return first, values

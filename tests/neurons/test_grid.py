import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation_lens.neurons.grid import (
    Counter,
    Grid,
    Scaling,
    binning_of,
    histc_counts,
    power_of_two,
    scale_by,
    scaled_floor,
)
from ablation_lens.neurons.rows import Rows

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def floor_of(value: float, exponent: int) -> int:
    """floor(value / 2**exponent) in exact rational arithmetic."""
    return math.floor(Fraction(value) / Fraction(2) ** exponent)


def finest_exponent(low: float, high: float, bins: int, resolution: torch.dtype) -> int:
    """The definition, tried exponent by exponent."""
    spacing = {torch.float64: 52, torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}[resolution]
    smallest = {torch.float64: -1074, torch.float32: -149, torch.bfloat16: -133, torch.float16: -24}[resolution]
    largest = max(abs(low), abs(high))
    exponent = smallest if largest == 0 else max(math.frexp(largest)[1] - 1 - spacing, smallest)
    while floor_of(high, exponent) - floor_of(low, exponent) + 1 > bins:
        exponent += 1
    return exponent


def nasty(width: int) -> st.SearchStrategy[float]:
    """Floats on bin edges, beside them, subnormal, huge, and ordinary."""
    smallest, top = (-149, 120) if width == 32 else (-1074, 1000)
    powers = st.integers(smallest, top).map(lambda exponent: math.ldexp(1.0, exponent))
    rounded = np.float32 if width == 32 else np.float64
    beside = powers.map(lambda x: float(np.nextafter(rounded(x), rounded(0))))
    some = st.one_of(
        powers, beside, st.sampled_from([0.0, 1e-30, 1e30, 1.0, 0.75, 255.0, 256.0, 3e-45 if width == 32 else 5e-324])
    )
    signed = st.tuples(some, st.sampled_from([-1.0, 1.0])).map(lambda pair: pair[0] * pair[1])
    bounds = 2.0**120 if width == 32 else 1e300
    free = st.floats(-bounds, bounds, width=width, allow_nan=False)
    return st.one_of(signed, free, st.floats(-4.0, 4.0, width=width))


@pytest.mark.parametrize("exponent", [-1022, -1000, -1, 0, 1, 52, 1000, 1023])
def test_powers_of_two_are_exact(exponent):
    assert power_of_two(torch.tensor([exponent])).item() == math.ldexp(1.0, exponent)


@given(value=nasty(64), exponent=st.integers(-1074, 1023))
@settings(deadline=None)
def test_scaling_rounds_only_what_float64_cannot_hold(value, exponent):
    try:
        expected = math.ldexp(value, exponent)
    except OverflowError:
        expected = math.copysign(math.inf, value)
    got = scale_by(torch.tensor([value], dtype=torch.float64), torch.tensor([exponent])).item()
    if abs(expected) >= 2.0**-1022:
        assert got == expected
    else:  # two roundings among the subnormals may differ by one step from a single rounding
        assert abs(got - expected) <= 2.0**-1074


@given(value=nasty(64), shift=st.integers(-52, 2000))
@settings(deadline=None)
def test_the_cell_of_a_value_is_exact_also_when_scaling_underflows(value, shift):
    exponent = min(max((math.frexp(value)[1] if value else 0) + shift - 1, -1074), 1023)
    got = scaled_floor(torch.tensor([value], dtype=torch.float64), torch.tensor([exponent])).item()
    assert got == floor_of(value, exponent)


@pytest.mark.parametrize("resolution", DTYPES, ids=str)
@given(ends=st.tuples(nasty(64), nasty(64)), bins=st.sampled_from([2, 3, 5, 100, 255, 256, 257, 6000]))
@settings(deadline=None)
def test_a_grid_is_the_finest_that_fits(resolution, ends, bins):
    low, high = sorted(ends)
    grid = Grid.fitting(
        torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64), bins, resolution
    )
    exponent = finest_exponent(low, high, bins, resolution)
    assert (grid.exponent.item(), grid.offset.item()) == (exponent, floor_of(low, exponent))


def test_two_steps_suffice_for_every_number_of_bins():
    """Beside powers of two, where half a range is rounded, and among subnormals, where most of it is lost."""
    tiny = torch.cartesian_prod(*[torch.arange(-12, 13).double() * 2.0**-1074] * 2)
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(500, generator=generator).double()
    width = 2.0 ** torch.randint(-20, 20, (500,), generator=generator).double()
    beside = width * (1 + torch.randint(-2, 3, (500,), generator=generator) * 2.0**-52)
    ends = torch.cat([tiny[tiny[:, 0] <= tiny[:, 1]], torch.stack([low, low + beside], 1)]).T
    for bins in [*range(2, 301), 2**16 - 1, 2**16]:
        grid = Grid.fitting(*ends, bins, torch.float64)
        first, last = scaled_floor(ends, grid.exponent)
        assert (last - first < bins).all(), bins
        assert torch.equal(first.long(), grid.offset)


def test_a_range_that_overflows_float64_still_has_a_grid():
    low, high = torch.tensor([-1.7e308], dtype=torch.float64), torch.tensor([1.7e308], dtype=torch.float64)
    grid = Grid.fitting(low, high, 256, torch.float64)
    assert grid.exponent.item() == finest_exponent(-1.7e308, 1.7e308, 256, torch.float64)


@given(
    counts=st.lists(st.integers(0, 2**40), min_size=4, max_size=4),
    offset=st.integers(-(2**53), 2**53),
    shift=st.integers(0, 1100),
)
@settings(deadline=None)
def test_coarser_grids_merge_neighbours_and_lose_nothing(counts, offset, shift):
    first = offset >> shift
    fine, coarse = (Grid(torch.tensor([k]), torch.tensor([o])) for k, o in ((-3, offset), (shift - 3, first)))
    expected = [0] * 4
    for bin_, count in enumerate(counts):
        expected[((offset + bin_) >> shift) - first] += count
    assert fine.rebin(torch.tensor([counts]), coarse, 4).tolist() == [expected]


# ---------------------------------------------------------------------- counting


# Sizes that are not powers of two: float32 positions i / n * n round there.
@pytest.mark.parametrize(("neurons", "bins"), [(1, 3), (37, 100), (768, 257), (333, 1001), (5, 60_001)])
def test_histc_counts_every_bin(neurons, bins):
    repeats = np.random.default_rng(0).integers(1, 4, (neurons, bins))
    tokens = repeats.sum(1).max()
    repeats[:, bins // 2] += tokens - repeats.sum(1)  # as many values for every neuron
    index = np.stack([np.repeat(np.arange(bins, dtype=np.float32), times) for times in repeats])
    np.testing.assert_array_equal(histc_counts(torch.from_numpy(index), bins).numpy(), repeats)
    as_on_an_accelerator = torch.from_numpy(index.T.copy()).T
    np.testing.assert_array_equal(histc_counts(as_on_an_accelerator, bins).numpy(), repeats)


def test_histc_counts_in_calls_of_bounded_size(monkeypatch):
    calls = []
    histc = torch.histc

    def spy(values, bins, low, high):
        calls.append((values.numel(), bins))
        return histc(values, bins, low, high)

    monkeypatch.setattr(torch, "histc", spy)
    index = torch.randint(0, 101, (23, 333)).float()
    got = histc_counts(index, 101, most_bins=1000, most_values=50)
    expected = np.stack([np.bincount(column.astype(int), minlength=101) for column in index.numpy()])
    np.testing.assert_array_equal(got.numpy(), expected)
    assert all(bins <= 1000 and values // (bins // 101) < 50 for values, bins in calls)


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
def test_counting_works_in_torchs_deterministic_mode():
    test_histc_counts_every_bin(37, 100)
    test_both_ways_of_counting_hit_every_bin(37, 100, 0, torch.float32)


def every_bin(neurons: int, bins: int, coarsest: int = 0) -> tuple[torch.Tensor, Grid, np.ndarray]:
    """Values on every lower edge and just below every upper edge, and how often each bin is hit."""
    generator = np.random.default_rng(1)
    exponents = generator.integers(-12, coarsest + 1, neurons)
    offsets = generator.integers(-bins, 9, neurons)
    edges = (offsets[:, None] + np.arange(bins + 1)) * np.exp2(exponents)[:, None]
    lower, upper = edges[:, :-1].astype(np.float32), edges[:, 1:].astype(np.float32)
    values = np.concatenate([lower, np.nextafter(upper, np.float32(-np.inf)), lower, lower[:, : bins // 3]], axis=1)
    counts = np.full((neurons, bins), 3)
    counts[:, : bins // 3] += 1
    order = generator.permuted(values, axis=1).T.copy()
    return torch.from_numpy(order), Grid(torch.from_numpy(exponents), torch.from_numpy(offsets)), counts


@pytest.mark.parametrize(("coarsest", "arithmetic"), [(0, torch.float32), (9, torch.float64)])
@pytest.mark.parametrize(("neurons", "bins"), [(11, 3), (37, 100), (769, 256), (2049, 99), (13, 30_001)])
def test_both_ways_of_counting_hit_every_bin(neurons, bins, coarsest, arithmetic):
    values, grid, expected = every_bin(neurons, bins, coarsest)
    assert Scaling(grid, bins, torch.float32, torch.float32).dtype == arithmetic
    for turned in (True, False):
        rows = Rows(values.view(-1, 1, neurons), turned=turned)  # the accelerator's way works on a CPU too
        counts = torch.zeros(neurons, bins, dtype=torch.int64)
        Counter().add(counts, rows, binning_of(rows, grid, bins, torch.float32))
        np.testing.assert_array_equal(counts.numpy(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("neurons", "bins"), [(37, 100), (4099, 256), (16_400, 256), (3, 30_001)])
def test_counts_on_cuda_equal_the_cpus(neurons, bins, deterministic, request):
    if deterministic:
        request.getfixturevalue("_deterministic")
    values, grid, expected = every_bin(neurons, bins)
    there = Grid(grid.exponent.cuda(), grid.offset.cuda())
    counts = torch.zeros(neurons, bins, dtype=torch.int64, device="cuda")
    for dtype in (torch.float32, torch.float64):
        rows = Rows(values.to("cuda", dtype).view(-1, 1, neurons))
        Counter().add(counts, rows, binning_of(rows, there, bins, torch.float32))
    np.testing.assert_array_equal(counts.cpu().numpy(), 2 * expected)


def test_counts_below_zero_wherever_the_first_bin_is():
    counts = torch.tensor([[1, 2, 4]])
    below = {-(2**60): 7, -4: 7, -3: 7, -2: 3, -1: 1, 0: 0, 1: 0, 2**60: 0, -(2**63): 7}
    for offset, expected in below.items():
        assert Grid(torch.tensor([0]), torch.tensor([offset])).below_zero(counts).tolist() == [expected]

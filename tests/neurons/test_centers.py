import inspect
import math
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from ablation_lens import centers
from ablation_lens.errors import AblationLensError, MismatchError, NonFiniteError
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.trimmed import TrimmedHistogram
from tests.reference_peak import FAMILIES, PeakComparison, compare_peaks, drawn, reference_peak, statistics_of

BUILT_IN = ("zero", "mean", "median", "peak", "peak-smooth", "peak-kde", "half-sample", "peak-trimmed")


def neurons(*columns, dtype=torch.float32, **options):
    """Statistics of neurons given as lists of values."""
    return statistics_of(torch.tensor(columns, dtype=dtype).T, **options)


def twice(values, **options):
    """Statistics with the trimmed histogram of a second pass."""
    first = statistics_of(values, **options)
    trimmed = TrimmedHistogram.around(first.histogram)
    trimmed.update(values.view(len(values), 1, 1, -1))
    first.trimmed = trimmed
    return first


def joined(*parts):
    """`[token neuron]` values of several families next to each other."""
    return torch.cat([drawn(family, tokens, count) for family, tokens, count in parts], 1)


# ------------------------------------------------------------------ the registry


@pytest.fixture
def registry():
    """What a test registers is forgotten after it."""
    before = centers.names()
    yield
    for name in set(centers.names()) - set(before):
        centers.unregister(name)


def test_names_and_descriptions():
    assert centers.names() == BUILT_IN
    for name in BUILT_IN:
        assert any(word in centers.describe(name) for word in ("Resolution ±", "Exact", "within one ε", "Finer than ε"))


def test_a_third_party_center_is_one_function(registry):
    @centers.register("midrange")
    def midrange(statistics, *, share=0.5):
        """Between the extremes. Exact."""
        return (statistics.histogram.minimum * (1 - share) + statistics.histogram.maximum * share).float()

    statistics = neurons([1.0, 1.0, 5.0], [0.0, 0.0, -4.0])
    assert centers.names() == (*BUILT_IN, "midrange")
    assert centers.describe("midrange") == "Between the extremes. Exact."
    values = centers.center("midrange", statistics)
    assert values.dtype == torch.float64
    assert values.tolist() == [[[3.0, -2.0]]]
    assert centers.center("midrange", statistics, share=0.0).tolist() == [[[1.0, -4.0]]]


def test_a_name_is_given_once_but_a_notebook_cell_may_run_twice(registry):
    def cell():
        @centers.register("mine")
        def mine(statistics):
            return statistics.mean

        return mine

    cell()
    again = cell()
    assert centers.require_parameters("mine", {}) is again
    with pytest.raises(MismatchError, match=r"'peak' exists already, as ablation_lens\.neurons\.centers\.peak"):
        centers.register("peak")(lambda statistics: statistics.mean)
    for name in ("my center", "a=1", ""):  # no method of a study could be written so
        with pytest.raises(MismatchError, match="choose one without spaces and '='"):
            centers.register(name)


def test_a_center_can_be_forgotten_again(registry):
    centers.register("mine")(lambda statistics: statistics.mean)
    assert not centers.is_ours("mine")
    centers.unregister("mine")
    centers.unregister("never there")
    assert centers.names() == BUILT_IN
    assert all(map(centers.is_ours, BUILT_IN))


@pytest.mark.parametrize(
    ("name", "nearest"), [("peek", "peak"), ("medain", "median"), ("kde", "peak-kde"), ("Mean", "mean"), ("", "zero")]
)
def test_an_unknown_name_is_told_the_nearest_and_all(name, nearest):
    with pytest.raises(MismatchError, match=f"nearest is '{nearest}'.*{', '.join(BUILT_IN)}"):
        centers.center(name, neurons([1.0, 2.0]))
    with pytest.raises(MismatchError, match=f"nearest is '{nearest}'"):
        centers.describe(name)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("zero", {"bins": 3}, "'zero' was given bins.*It takes no parameters"),
        ("peak", {"bin": 3}, "unexpected keyword argument 'bin'.*It takes bins, epsilon"),
        ("peak", {"bins": 1}, "bins=1; expected a whole number from 2 to 256"),
        ("peak", {"bins": 257}, "bins=257; expected a whole number from 2 to 256"),
        ("peak", {"bins": 64.0}, r"bins=64\.0; expected a whole number"),
        ("peak", {"epsilon": 0.0}, r"epsilon=0\.0; expected a finite number above zero"),
        ("peak", {"epsilon": math.inf}, "epsilon=inf; expected a finite number above zero"),
        ("peak", {"epsilon": "wide"}, "epsilon='wide'; expected a finite number"),
        ("peak", {"epsilon": 1e300}, r"epsilon=1e\+300 is wider than any activation"),
        ("peak", {"epsilon": 0.1, "bins": 64}, "give one of them"),
        ("peak-smooth", {"sigma": -1.0}, r"sigma=-1\.0; expected a finite number above zero"),
        ("peak-smooth", {"sigma": 100.0}, "at most an eighth"),
        ("peak-kde", {"bandwidth": math.nan}, "bandwidth=nan; expected a finite number above zero"),
        ("peak-trimmed", {}, r"collect\(\.\.\., passes=2\)"),
    ],
)
def test_wrong_parameters_get_one_clear_error(name, parameters, message):
    with pytest.raises(MismatchError, match=message):
        centers.center(name, neurons([1.0, 2.0, 3.0]), **parameters)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_neuron_without_values_is_named(name):
    histogram = NeuronHistogram((2, 1, 3))
    histogram.update_layer(0, torch.ones(5, 1, 3))
    nothing = torch.zeros(2, 1, 3)
    statistics = SimpleNamespace(histogram=histogram, trimmed=None, mean=nothing, variance=nothing)
    with pytest.raises(AblationLensError, match=r"L1\.H0\.D0 has seen no values"):
        centers.center(name, statistics)


def test_a_center_that_returns_something_else_is_refused(registry):
    centers.register("short")(lambda statistics: torch.zeros(3))
    centers.register("nowhere")(lambda statistics: torch.tensor([[[0.0, math.nan]]]))
    statistics = neurons([1.0, 2.0], [3.0, 4.0])
    with pytest.raises(MismatchError, match=r"'short' gave values of shape \(3,\).*\(1, 1, 2\)"):
        centers.center("short", statistics)
    with pytest.raises(NonFiniteError, match=r"'nowhere' of L0\.H0\.D1 is nan"):
        centers.center("nowhere", statistics)


def test_values_are_float64_of_the_sites_shape_and_their_own():
    statistics = twice(drawn("normal", 500, 6))
    for name in BUILT_IN:
        values = centers.center(name, statistics)
        assert (values.dtype, values.device.type, tuple(values.shape)) == (torch.float64, "cpu", (1, 1, 6))
    before = statistics.mean.clone()
    centers.center("mean", statistics).add_(1)
    assert torch.equal(statistics.mean, before)


# ------------------------------------------------------------------ zero, mean, median


def test_zero_mean_and_median():
    values = joined(("normal", 2001, 20), ("exponential", 2001, 20), ("student 3", 2001, 20))
    statistics = statistics_of(values)
    assert not centers.center("zero", statistics).any()
    np.testing.assert_allclose(centers.center("mean", statistics)[0, 0], values.double().numpy().mean(0), rtol=1e-12)
    away = np.abs(centers.center("median", statistics)[0, 0].numpy() - np.median(values.double().numpy(), 0))
    assert (away <= statistics.histogram.epsilon[0, 0].numpy()).all()


# ------------------------------------------------------------------ the paper's peak

values_lists = st.lists(
    st.floats(-1e3, 1e3, width=32, allow_subnormal=False) | st.integers(-40, 40).map(float), min_size=1, max_size=40
)


def fullest(values, exponent):
    """The middle of the fullest bin of width 2^exponent, or 0 if more values are that, in exact arithmetic."""
    width = Fraction(2) ** exponent
    counts = Counter(math.floor(Fraction(value) / width) for value in values)
    others = Counter(math.floor(Fraction(value) / width) for value in values if value)
    if values.count(0) > max(others.values(), default=0):
        return 0.0
    cell = min(counts, key=lambda cell: (-counts[cell], cell))
    return float((cell + Fraction(1, 2)) * width)


def fitting_exponent(values, bins):
    """The smallest exponent for which the values fit in so many bins no finer than float32."""
    largest = max(map(abs, values))
    exponent = math.frexp(largest)[1] - 24 if largest else -149
    while (
        math.floor(Fraction(max(values)) / Fraction(2) ** exponent)
        - math.floor(Fraction(min(values)) / Fraction(2) ** exponent)
        >= bins
    ):
        exponent += 1
    return exponent


@given(values=values_lists, collected=st.integers(2, 40), bins=st.integers(2, 40))
def test_peak_is_the_papers_definition_on_as_many_bins_as_asked(values, collected, bins):
    bins = min(bins, collected)
    wanted = values[0] if len(set(values)) == 1 else fullest(values, fitting_exponent(values, bins))
    assert centers.center("peak", neurons(values, bins=collected), bins=bins).item() == wanted


@given(values=values_lists, epsilon=st.floats(1e-3, 1e4))
def test_peak_of_a_requested_width_is_rounded_down_to_a_power_of_two_no_finer_than_collected(values, epsilon):
    exponent = max(math.floor(math.log2(epsilon)), fitting_exponent(values, 16))
    wanted = values[0] if len(set(values)) == 1 else fullest(values, exponent)
    assert centers.center("peak", neurons(values, bins=16), epsilon=epsilon).item() == wanted


def test_peak_uses_128_bins_unless_fewer_were_collected():
    values = drawn("normal", 3000, 50)
    default = centers.center("peak", statistics_of(values))
    assert torch.equal(default, centers.center("peak", statistics_of(values), bins=128))
    assert not torch.equal(default, centers.center("peak", statistics_of(values), bins=256))
    assert torch.equal(
        centers.center("peak", statistics_of(values, bins=50)), centers.center("peak", statistics_of(values), bins=50)
    )


def test_ties_go_to_the_lower_bin():
    statistics = neurons([3.0, 1.0, 3.0, 1.0, 100.0, -100.0], [5.0, -5.0, 4.75, -4.75, 0.0, 0.0])
    assert centers.center("peak", statistics, epsilon=1.0).tolist() == [[[1.5, -4.5]]]


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-1000, 1000), min_size=2, max_size=60),
    steps=st.integers(-500, 500),
    name=st.sampled_from(["zero", "peak", "peak-smooth", "peak-kde", "half-sample", "median"]),
)
def test_adding_a_multiple_of_epsilon_shifts_a_peak_exactly(values, steps, name):
    before = neurons(values, dtype=torch.float64)
    coarse = before.histogram.coarsen(128)
    shift = 0.0 if len(set(values)) == 1 else steps * coarse.epsilon.item()
    assume(not {0, -shift} & set(values))  # 0 is a value of its own, wherever the bins begin
    after = neurons([value + shift for value in values], dtype=torch.float64)
    assert after.histogram.coarsen(128).exponent.equal(coarse.exponent)  # the same k, as the claim supposes
    moved = centers.center(name, after).item() - centers.center(name, before).item()
    if name in ("zero", "peak", "peak-smooth", "half-sample"):
        assert moved == (0.0 if name == "zero" else shift)
    else:  # between bins, arithmetic rounds
        assert moved == pytest.approx(shift, abs=1e-9)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_power_of_two_scales_every_center_exactly(name):
    values = joined(("gamma 2", 1000, 10), ("two modes, 4 apart", 1000, 10), ("student 2", 1000, 10))
    small, large = (twice(values.double() * 2.0**power, resolution=torch.float64) for power in (-70, 50))
    assert torch.equal(centers.center(name, small) * 2.0**120, centers.center(name, large))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_center_of_a_constant_neuron_is_the_constant(dtype):
    constants = torch.tensor([0.0, 0.3, -7.0, 1e-30, -1e30, 2.0**100, -(2.0**-100)], dtype=dtype)
    statistics = twice(constants.repeat(50, 1))
    for name in BUILT_IN[1:]:
        assert torch.equal(centers.center(name, statistics).flatten(), constants.double()), name
    assert torch.equal(centers.center("peak", statistics, epsilon=3.0).flatten(), constants.double())
    assert not centers.center("zero", statistics).any()


# ------------------------------------------------------------------ smoother peaks


def smoothed_by_hand(counts, width):
    """Gaussian averages over the bins in use, with the discrete Gaussian's weights from Bessel functions."""
    used = counts.nonzero()[0].max() + 1
    weights = special.ive(np.arange(used), width**2)[np.abs(np.subtract.outer(np.arange(used), np.arange(used)))]
    return weights @ counts[:used] / weights.sum(1)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 5.0])
def test_peak_smooth_is_the_highest_of_gaussian_averages(sigma):
    # Rounding to bfloat16 leaves gaps when it is done twice; those with many values of exactly 0 have their peak there.
    unlike = ("bfloat16", "relu", "silent relu", "whole numbers")
    statistics = statistics_of(joined(*((family, 400, 8) for family in FAMILIES if family not in unlike)))
    found = centers.center("peak-smooth", statistics, sigma=sigma)[0, 0]
    edges = statistics.histogram.edges((0, 0)).numpy()
    for neuron, counts in enumerate(statistics.histogram.counts((0, 0)).numpy()):
        place = np.searchsorted(edges[neuron], found[neuron].item()) - 1
        heights = smoothed_by_hand(counts, sigma)
        assert found[neuron] == (edges[neuron, place] + edges[neuron, place + 1]) / 2
        assert heights[place] == pytest.approx(heights.max(), rel=1e-8)


def test_smoothing_is_normalised_at_the_ends_of_the_range():
    statistics = statistics_of(drawn("exponential", 20_000, 50))
    first_bin = statistics.histogram.bin_center(torch.zeros(1, 1, 50, dtype=torch.int64))
    assert (centers.center("peak-smooth", statistics) == first_bin).double().mean() > 0.9
    # Without it, half of the weight at the edge would be lost, and the peak pushed inwards by a kernel's width.
    away = (centers.center("peak-kde", statistics) - first_bin) / statistics.variance.sqrt()
    assert away.abs().max() < 0.1
    assert (away == 0).double().mean() > 0.9


def test_peak_kde_with_a_bandwidth_is_the_mode_of_scipys():
    values = joined(("normal", 1500, 6), ("gamma 4", 1500, 6), ("two modes, 4 : 1", 1500, 6))
    statistics = statistics_of(values)
    found = centers.center("peak-kde", statistics, bandwidth=0.3)[0, 0].numpy()
    for neuron, column in enumerate(values.double().numpy().T):
        grid = np.linspace(np.quantile(column, 0.01), np.quantile(column, 0.99), 1000)
        mode = grid[stats.gaussian_kde(column, bw_method=0.3)(grid).argmax()]
        assert abs(found[neuron] - mode) < 0.02 * column.std()


def test_the_noise_of_peaks_is_what_their_docstrings_say():
    statistics = statistics_of(torch.randn(20_000, 400))
    noise = {
        name: centers.center(name, statistics).square().mean().sqrt().item()
        for name in ("peak", "peak-smooth", "peak-kde", "half-sample")
    }
    print(
        "\nnoise of the mode of 20 000 normal values, in σ:", {name: round(value, 3) for name, value in noise.items()}
    )
    assert noise["peak"] == pytest.approx(0.15, abs=0.02)
    assert noise["peak-kde"] == pytest.approx(0.04, abs=0.005)
    assert noise["peak-kde"] < noise["peak-smooth"] < noise["half-sample"] < 1.1 * noise["peak"]


def test_far_values_do_not_move_the_peak():
    values = torch.randn(20_000, 40) + 5
    values[:200] *= 1000  # one in a hundred
    for name in ("median", "half-sample"):
        away = centers.center(name, statistics_of(values)) - 5
        assert away.abs().max() <= 0.5 * statistics_of(values).histogram.epsilon.max()


@settings(deadline=None)
@given(values=st.lists(st.integers(1, 31), min_size=1, max_size=60))
def test_half_sample_is_the_shortest_half_again_and_again(values):
    statistics = neurons(values, bins=32)
    counts = statistics.histogram.counts((0, 0, 0)).tolist()
    start, length = 0, len(counts)
    while length > 1:
        need = (sum(counts[start : start + length]) + 1) // 2
        stretches = [
            (size, -sum(counts[at : at + size]), at)
            for size in range(1, length + 1)
            for at in range(start, start + length - size + 1)
            if sum(counts[at : at + size]) >= need
        ]
        length, _, start = min(stretches)
    edges = statistics.histogram.edges((0, 0, 0))
    wanted = values[0] if len(set(values)) == 1 else (edges[start] + edges[start + 1]).item() / 2
    assert centers.center("half-sample", statistics).item() == wanted


# ------------------------------------------------------------------ the trimmed peak


def test_the_trimmed_peak_sees_past_an_outlier():
    values = torch.randn(20_000, 100) + 1
    values[0] = 300.0
    statistics = twice(values)
    assert (centers.center("peak", statistics) - 1).square().mean().sqrt() > 0.5  # its bins are 4 σ wide
    trimmed = centers.center("peak-trimmed", statistics) - 1
    assert trimmed.square().mean().sqrt() < 0.2
    assert (statistics.trimmed.coarsen(128).epsilon < 0.11).all()
    assert not torch.equal(centers.center("peak-trimmed", statistics, bins=16), trimmed + 1)


def test_the_trimmed_peak_of_a_mostly_constant_neuron_is_much_finer_than_its_peak():
    values = torch.full((10_000, 1), 0.3)
    values[0], values[1] = -5.0, 8.0
    statistics = twice(values)
    assert abs(centers.center("peak-trimmed", statistics).item() - 0.3) < 1e-3
    assert abs(centers.center("peak", statistics).item() - 0.3) > 1e-2


def test_an_interrupted_second_pass_is_an_error():
    statistics = neurons([1.0, 2.0, 3.0])
    statistics.trimmed = TrimmedHistogram.around(statistics.histogram)
    with pytest.raises(MismatchError, match=r"second pass saw no value of L0\.H0\.D0"):
        centers.center("peak-trimmed", statistics)


# ------------------------------------------------------------------ against the reference


def test_the_references_peak_is_matched_on_clearly_peaked_neurons():
    comparisons = {256: [], 128: []}
    print()
    for family in FAMILIES:
        values = drawn(family, 10_000, 80)
        statistics, reference = statistics_of(values), reference_peak(values)
        for bins, found in comparisons.items():
            found.append(compare_peaks(values, statistics, bins, reference))
        print(f"{family}: {comparisons[256][-1].qualifying_share:.0%}", end=", ")
    fine, default = (PeakComparison.of_all(found) for found in comparisons.values())
    print(f"\n256 bins: {fine}\n128 bins: {default}\n… where ε ≤ 1: {default.where(default.epsilon <= 1)}")
    assert len(fine.qualifying) >= 2000
    assert fine.qualifying.sum() >= 500
    # Bins as collected are finer than the reference's. The default's 64 to 128 are up to 1.57 times as wide: two bins
    # that both hold the mode then have their middles up to 1.28 of its widths apart, and one width is not to be had.
    assert fine.matched_share >= 0.99


def test_the_comparison_notices_a_peak_elsewhere():
    values = drawn("laplace", 10_000, 50)
    statistics = statistics_of(values)
    wrong = compare_peaks(values, statistics_of(values + 0.5 * values.std(0)))
    assert compare_peaks(values, statistics).matched_share == 1
    assert wrong.matched_share < 0.5


def test_every_center_takes_statistics_and_keyword_parameters_only():
    for name in centers.names():
        first, *rest = inspect.signature(centers.require_parameters(name, {})).parameters.values()
        assert first.name == "statistics"
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest)

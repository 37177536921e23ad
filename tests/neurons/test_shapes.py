import math
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from ablation_lens import centers
from ablation_lens.errors import MismatchError
from ablation_lens.neurons import shapes
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.shapes import SHAPE_WORDS, Thresholds
from tests.reference_peak import FAMILIES, drawn, mixture, statistics_of


def described(values, thresholds=None, **options):
    return shapes.describe(statistics_of(values, **options), thresholds)


def word_shares(result):
    """Label → share of the neurons."""
    return {word: result.having(word).double().mean().item() for word in SHAPE_WORDS}


# ------------------------------------------------------------------ words for what is known

EXPECTED = {
    "normal": "gaussian-like",
    "normal + 1": "off-zero",
    "normal - 4": "off-zero",
    "laplace": "laplace-like",
    "laplace + 2": "off-zero",
    "logistic": "gaussian-like",
    "student 5": "laplace-like",
    "student 3": "laplace-like",
    "student 2": "unresolved",
    "exponential": "skewed",
    "exponential, mean 0": "skewed",
    "gamma 2": "off-zero",
    "gamma 4": "off-zero",
    "log-normal": "skewed",
    "uniform": "flat",
    "relu": "skewed",
    "silent relu": "sparse",
    "gelu": "skewed",
    "two modes, 4 apart": "multi-modal",
    "two modes, 8 apart": "multi-modal",
    "two modes, 4 : 1": "multi-modal",
    "narrow on broad": "laplace-like",
    "outlier at 20": "gaussian-like",
    "outlier at 300": "unresolved",
    "whole numbers": "multi-modal",
    "bfloat16": "gaussian-like",
}


AT_100_000 = ("normal", "laplace", "exponential", "uniform", "two modes, 4 apart", "outlier at 300", "bfloat16")


@pytest.mark.parametrize(
    ("tokens", "neurons", "families"), [(20_000, 50, tuple(FAMILIES)), (100_000, 20, AT_100_000)], ids=["20k", "100k"]
)
def test_families_of_known_shape_get_their_word(tokens, neurons, families):
    """Nearly all that are resolved; a wide range leaves some heavy-tailed neurons unresolved, and says so."""
    wrong = {}
    print(f"\n{tokens} values each:")
    for family in families:
        shares = word_shares(described(drawn(family, tokens, neurons)))
        print(f"  {family:20}", ", ".join(f"{word} {share:.1%}" for word, share in shares.items() if share))
        expected = EXPECTED.get(family)
        if expected and shares[expected] < 0.98 * (1 - shares["unresolved"] * (expected != "unresolved")):
            wrong[family] = shares
    assert wrong == {}


@pytest.mark.parametrize(("tokens", "neurons"), [(300, 2000), (20_000, 2000), (200_000, 20)])
def test_one_mode_is_not_taken_for_two(tokens, neurons):
    for family in ("normal", "uniform", "two modes, 2 apart"):
        result = described(drawn(family, tokens, neurons if family == "normal" else neurons // 10))
        print(f"\n{tokens} values, {family}: {(result.peaks > 1).double().mean():.2%} multi-modal", end="")
        assert (result.peaks > 1).double().mean() < 0.01


@pytest.mark.parametrize("offset", [0.0, 4.0, 8.0, 16.0])
def test_rounding_to_bfloat16_makes_no_peaks(offset):
    """Spacing doubles at powers of two, which the bins' width must not mistake for a valley."""
    values = (torch.randn(100_000, 25) + offset) * torch.exp(torch.rand(25) * 2)
    result = described(values.bfloat16())
    resolved = ~result.having("unresolved")
    assert resolved.double().mean() > 0.9
    assert (result.peaks[resolved] > 1).double().mean() < 0.01


def test_two_modes_are_found_where_they_are():
    values = mixture(4)(20_000, 1000)
    result = described(values)
    assert result.having("multi-modal").double().mean() > 0.99
    two = result.peaks == 2
    assert two.double().mean() > 0.99
    ends = torch.stack([result.main_peak, result.second_peak])[:, two].sort(0).values
    # The sum of two normal densities 4σ apart peaks at ±1.998 of them.
    assert (ends + torch.tensor([[2.0], [-2.0]])).square().mean().sqrt() < 0.15


def test_the_main_peak_is_the_higher_one():
    values = mixture(6, share=0.25)(20_000, 200)  # three quarters at -3
    result = described(values)
    assert (result.main_peak + 3).abs().max() < 0.5
    assert (result.second_peak - 3).abs().max() < 0.8
    assert described(torch.randn(20_000, 20)).second_peak.isnan().all()


def test_few_values_are_no_evidence_of_two_modes():
    assert (described(mixture(4)(100, 2000)).peaks > 1).double().mean() < 0.01
    assert (described(mixture(8)(1000, 200)).peaks == 2).all()


# ------------------------------------------------------------------ the numbers


def l_moment_ratios(values):
    """L-skewness and L-kurtosis by probability-weighted moments of the sorted values."""
    values = np.sort(values)
    count = len(values)
    rank = np.arange(count)
    b0, b1, b2, b3 = (
        np.mean(values * special.comb(rank, order) / special.comb(count - 1, order)) for order in range(4)
    )
    l2 = 2 * b1 - b0
    return (6 * b2 - 6 * b1 + b0) / l2, (20 * b3 - 30 * b2 + 12 * b1 - b0) / l2


@pytest.mark.parametrize("family", ["normal", "laplace", "exponential", "gamma 4", "uniform", "two modes, 4 apart"])
def test_moments_are_those_of_the_values(family):
    values = drawn(family, 20_000, 20)
    result = described(values)
    columns = values.double().numpy()
    epsilon = result.epsilon_over_sigma[0, 0].numpy()
    # Moving every value to its bin's middle adds noise: the power's slope times a uniform error, averaged.
    even = np.abs(stats.zscore(columns))
    noise = [power * np.sqrt((even ** (2 * power - 2)).mean(0) / 12 / len(columns)) for power in (3, 4, 2, 2)]
    ratios = np.array([l_moment_ratios(column) for column in columns.T])
    wanted = [stats.skew(columns), stats.kurtosis(columns), ratios[:, 0], ratios[:, 1]]
    found = [result.skew, result.excess_kurtosis, result.l_skewness, result.l_kurtosis]
    for mine, theirs, spread in zip(found, wanted, noise, strict=True):
        assert (np.abs(mine[0, 0].numpy() - theirs) <= epsilon**2 + 4 * epsilon * spread).all()


def test_wide_bins_do_not_bias_the_kurtosis_of_a_smooth_density():
    """A bin's width adds ε²/2σ² to the fourth moment, unless that is taken off."""
    values = drawn("normal", 20_000, 50)
    result = described(values, bins=32)
    away = result.excess_kurtosis[0, 0].numpy() - stats.kurtosis(values.double().numpy())
    assert abs(away.mean()) < 0.1 * result.epsilon_over_sigma.square().mean()


def test_one_far_value_decides_the_kurtosis_but_not_the_word():
    result = described(drawn("outlier at 20", 20_000, 50))
    assert result.excess_kurtosis.min() > 5
    assert (result.l_kurtosis - 0.1226).abs().max() < 0.01


def test_ratios_are_of_the_statistics_and_the_peak_center():
    values = torch.cat([drawn(family, 5000, 5) for family in ("gamma 2", "student 3", "normal - 4")], 1)
    statistics = statistics_of(values)
    result = shapes.describe(statistics)
    sigma, peak = statistics.variance.sqrt(), centers.center("peak", statistics)
    quartiles = np.quantile(values.double().numpy(), [0.25, 0.75], axis=0)
    bins = (quartiles[1] - quartiles[0]) / statistics.histogram.epsilon[0, 0].numpy()
    torch.testing.assert_close(result.peak_over_sigma, peak.abs() / sigma)
    torch.testing.assert_close(result.mean_to_peak_over_sigma, (statistics.mean - peak).abs() / sigma)
    torch.testing.assert_close(result.epsilon_over_sigma, statistics.histogram.epsilon / sigma)
    assert np.abs(result.bins_in_iqr[0, 0].numpy() - bins).max() < 2
    assert torch.equal(result.having("unresolved"), result.bins_in_iqr < 8)


def prominent(heights, share):
    """How many peaks stand out by more than a share of the highest: merge islands while the water falls."""
    needed, birth, islands = share * max(heights), {}, 0
    parent: dict[int, int] = {}

    def root(place):
        while parent[place] != place:
            place = parent[place]
        return place

    for place in sorted(range(len(heights)), key=lambda place: (-heights[place], place)):
        parent[place], birth[place] = place, heights[place]
        for neighbour in (place - 1, place + 1):
            if neighbour in parent:
                higher, lower = sorted((root(neighbour), root(place)), key=lambda top: -birth[top])
                if higher != lower:
                    islands += birth[lower] - heights[place] > needed
                    parent[lower] = higher
    return islands + 1  # the highest stands out above everything


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 6), share=st.sampled_from([0.02, 0.1, 0.3]))
def test_peaks_are_counted_like_islands_when_the_water_falls(seed, groups, share):
    generator = np.random.default_rng(seed)
    values = np.concatenate(
        [
            generator.normal(generator.uniform(0, 30), generator.uniform(0.2, 2), generator.integers(5, 80))
            for _ in range(groups)
        ]
    )
    statistics = statistics_of(torch.tensor(values)[:, None], bins=64)
    counts = statistics.histogram.counts((0, 0, 0)).numpy()
    counts = counts[: counts.nonzero()[0].max() + 1]
    quartiles = statistics.histogram.quantile([0.25, 0.75]).flatten().tolist()
    spread = min(values.std(), (quartiles[1] - quartiles[0]) / 1.34) / statistics.histogram.epsilon.item()
    width = min(max(0.9 * spread * len(values) ** -0.2, 1), 8)
    weights = special.ive(np.abs(np.subtract.outer(np.arange(len(counts)), np.arange(len(counts)))), width**2)
    heights = list(weights @ counts / weights.sum(1))
    found = shapes.describe(statistics, Thresholds(noise=0, prominence=share)).peaks.item()
    assert found == prominent(heights, share)


def test_more_noise_asked_for_means_fewer_peaks():
    values = torch.randn(300, 500)
    loose, strict = (described(values, Thresholds(noise=noise, prominence=0)).peaks for noise in (0, 3))
    assert loose.double().mean() > 2
    assert (strict <= loose).all()
    assert (strict == 1).double().mean() > 0.95


# ------------------------------------------------------------------ words, thresholds, corner cases


def test_thresholds_move_words():
    outlier, normal, exponential = (
        drawn(family, 20_000, 5) for family in ("outlier at 300", "normal + 1", "exponential")
    )
    assert described(outlier, Thresholds(resolved_bins=0.5)).having("gaussian-like").any()
    assert described(normal, Thresholds(off_zero=1.5)).having("gaussian-like").all()
    assert described(exponential, Thresholds(skewed=0.5)).having("gaussian-like").all()
    assert described(exponential, Thresholds(skewed=0.5, heavy_tails=0.1)).having("laplace-like").all()
    assert described(exponential, Thresholds(skewed=0.5, light_tails=0.3)).having("flat").all()
    assert described(normal, Thresholds(prominence=0, noise=0)).having("multi-modal").all()


def test_the_first_word_that_applies_is_given():
    constant = torch.full((1000, 1), 3.0)  # also off-zero, and without a bin in its IQR
    two_modes = mixture(8)(5000, 1) + 100  # also off-zero
    skewed = torch.rand(5000, 1).log() * 0.01 + 3  # but off-zero first
    codes = [described(values).word.item() for values in (constant, two_modes, skewed)]
    assert [SHAPE_WORDS[code] for code in codes] == ["constant", "multi-modal", "off-zero"]
    with pytest.raises(MismatchError, match="'bimodal' is not a shape; expected one of constant, sparse"):
        described(constant).having("bimodal")


def test_a_constant_neuron_has_no_shape_in_units_of_sigma():
    result = described(torch.tensor([[0.0, 0.3, -1e30]]).repeat(7, 1))
    assert result.having("constant").all()
    for name in ("skew", "excess_kurtosis", "l_skewness", "l_kurtosis", "peak_over_sigma", "epsilon_over_sigma"):
        assert getattr(result, name).isnan().all(), name
    assert (result.peaks == 1).all()
    assert torch.equal(result.main_peak.flatten(), torch.tensor([0.0, 0.3, -1e30]).double())


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [-3.0, 5.0, 5.0], [1e-30, 1e30], [-0.0, 0.0]])
def test_a_handful_of_values_is_described_without_complaint(values):
    result = described(torch.tensor(values)[:, None])
    assert result.peaks.item() == 1
    assert min(values) <= result.main_peak.item() + result.epsilon_over_sigma.nan_to_num().item() * np.std(values)
    assert result.word.dtype == torch.uint8


def test_every_field_is_per_neuron_and_does_not_depend_on_the_layout():
    values = torch.cat(
        [drawn(family, 2000, 3) for family in ("normal", "gamma 2", "two modes, 8 apart", "student 3")], 1
    )
    row = statistics_of(values)
    histogram = NeuronHistogram((3, 2, 2))
    histogram.update(values.view(-1, 3, 2, 2))
    block = SimpleNamespace(
        histogram=histogram, trimmed=None, mean=row.mean.view(3, 2, 2), variance=row.variance.view(3, 2, 2)
    )
    one, other = shapes.describe(row), shapes.describe(block)
    for field in fields(one):
        found = getattr(other, field.name)
        assert tuple(found.shape) == (3, 2, 2)
        torch.testing.assert_close(found.flatten(), getattr(one, field.name).flatten(), equal_nan=True)


def test_a_power_of_two_leaves_the_shape_alone():
    values = torch.cat([drawn(family, 2000, 3) for family in ("normal", "gamma 2", "two modes, 8 apart")], 1).double()
    one, other = described(values * 2.0**-40), described(values * 2.0**60)
    for field in fields(one):
        scale = 2.0**100 if field.name in ("main_peak", "second_peak") else 1
        assert torch.equal((getattr(one, field.name) * scale).nan_to_num(), getattr(other, field.name).nan_to_num())


def test_a_neuron_without_values_is_named():
    histogram = NeuronHistogram((1, 2, 2))
    nothing = torch.zeros(1, 2, 2)
    with pytest.raises(MismatchError, match=r"L0\.H0\.D0 has seen no values"):
        shapes.describe(SimpleNamespace(histogram=histogram, trimmed=None, mean=nothing, variance=nothing))


def test_smoothing_keeps_the_noise_it_is_believed_to_have():
    """The Poisson noise that the peak count allows for, measured on a plateau."""
    width, level = 3.0, 50
    counts = torch.poisson(torch.full((4000, 64), float(level))).long()
    middle = shapes.smooth(counts, torch.full((4000,), width))[:, 32]
    together = 1 / special.ive(0, 2 * width**2)
    assert middle.mean().item() == pytest.approx(level, rel=0.01)
    assert middle.std().item() == pytest.approx(math.sqrt(level / together), rel=0.05)


def peaks_bin_by_bin(heights, width, thresholds):
    """What `describe` looks for, one neuron and one bin after another: (number, main, second)."""
    together = 1 / torch.special.i0e(2 * width.square()).item()
    least_root = thresholds.noise / math.sqrt(2 * together)
    least_fall = thresholds.prominence * max(heights)
    rising, extreme, place, found = True, 0.0, 0, []
    for bin_, here in enumerate([*heights, 0.0]):
        top, bottom = (extreme, here) if rising else (here, extreme)
        if bottom < min(max(math.sqrt(top) - least_root, 0) ** 2, top - least_fall):
            if rising:
                found.append(place)
            rising, extreme, place = not rising, here, bin_
        elif (here > extreme) if rising else (here < extreme):
            extreme, place = here, bin_
    found = found or range(len(heights))
    most = max(heights[bin_] for bin_ in found)
    main = next(bin_ for bin_ in found if heights[bin_] >= most * (1 - 1e-9))
    if isinstance(found, range) or len(found) == 1:
        return 1, main, main
    others = [bin_ for bin_ in found if bin_ != main]
    most = max(heights[bin_] for bin_ in others)
    return len(found), main, next(bin_ for bin_ in others if heights[bin_] >= most * (1 - 1e-9))


@given(
    st.lists(
        st.lists(st.sampled_from([0, 0, 1, 2, 3, 30, 90, 100, 400, 401]), min_size=9, max_size=9).filter(any),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=60)
def test_looking_where_heights_turn_finds_what_going_bin_by_bin_finds(rows):
    heights = torch.tensor(rows, dtype=torch.float64)
    width = torch.linspace(1, 2, len(rows), dtype=torch.float64)
    turns = shapes._Turns.joined([shapes._Turns.of(part) for part in heights.split(2)])
    found = torch.stack(shapes._peaks(turns, width, shapes.Thresholds())).T.tolist()
    expected = [peaks_bin_by_bin(row, each, shapes.Thresholds()) for row, each in zip(rows, width, strict=True)]
    assert found == [list(each) for each in expected]


@pytest.mark.parametrize("width", [1.0, 3.0, 12.0, 32.0])
def test_smoothing_is_as_long_as_its_kernel_needs(width):
    """The discrete Gaussian from its definition, over a range as long as twice the bins."""
    bins = 256
    counts = torch.poisson(torch.full((2, bins), 50.0), generator=torch.Generator().manual_seed(1)).long()
    counts[0, 200:] = 0
    angle = 2 * math.pi * torch.fft.rfftfreq(4 * bins, dtype=torch.float64)
    kernel = torch.fft.irfft((width**2 * (angle.cos() - 1)).exp().to(torch.complex128), 4 * bins)
    apart = (torch.arange(bins)[:, None] - torch.arange(bins)[None]).abs()
    inside = torch.arange(bins) <= torch.tensor([[199], [255]])
    expected = (counts.double() @ kernel[apart]) / (inside.double() @ kernel[apart])
    found = shapes.smooth(counts, torch.full((2,), width))
    assert torch.allclose(found, expected.masked_fill(~inside, 0), rtol=1e-12, atol=1e-12)

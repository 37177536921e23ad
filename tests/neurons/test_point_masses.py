"""Values that are exactly 0, as a ReLU leaves them: counted exactly, and where they are many, a mode and a median."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import ablation_lens as al
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.rows import Rows
from ablation_lens.neurons.shapes import SHAPE_WORDS, Thresholds, describe
from ablation_lens.neurons.statistics import KIND, VERSION, ActivationStatistics
from ablation_lens.neurons.trimmed import TrimmedHistogram
from tests.histograms import BINS, NASTY, RESOLUTIONS, assert_same_state, collected, column, floor_of, oracle

PEAKS = ("peak", "peak-smooth", "peak-kde", "half-sample")

ZERO = st.sampled_from([0.0, -0.0])
WITH_ZEROS = st.lists(
    ZERO | NASTY | st.floats(-4, 4, width=32) | st.integers(-3, 3).map(float), min_size=1, max_size=40
)


def silent(tokens, on, scale=1.0):
    """A ReLU neuron that is above 0 at `on` of its positions only."""
    values = torch.zeros(tokens, 1, 1, 1)
    values[:on] = torch.rand(on, 1, 1, 1) * scale + 0.01
    return values[torch.randperm(tokens)]


def leads(values, exponent):
    """Whether more values are 0 than any bin of width 2^exponent has others, in exact arithmetic."""
    others = Counter(floor_of(value, exponent) for value in values if value)
    return values.count(0) > max(others.values(), default=0)


# ---------------------------------------------------------------------- counted


@given(samples=WITH_ZEROS, bins=BINS, resolution=RESOLUTIONS, dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=200)
def test_zeros_and_values_above_are_counted_exactly(samples, bins, resolution, dtype):
    histogram = collected(column(samples, dtype), bins, resolution)
    for each in (histogram, histogram.coarsen(2), histogram.copy(), histogram.merge(histogram.copy())):
        times = each.total.item() // len(samples)
        assert each.zeros.item() == times * samples.count(0.0)
        assert each.positive.item() == times * sum(value > 0 for value in samples)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_number_just_above_or_below_zero_is_not_zero(dtype):
    values = torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=dtype)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest number there is
    histogram = collected(torch.cat([values, values * tiny, values * 1e-3]).view(-1, 1), resolution=dtype)
    assert (histogram.zeros.item(), histogram.positive.item()) == (6, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_an_accelerators_way_counts_the_same(dtype):
    values = torch.randn(900, 2, 3).relu().to(dtype)
    here, there = (NeuronHistogram((1, 2, 3), resolution=dtype) for _ in range(2))
    rows = Rows(values, piece=700)
    rows.on_cpu, rows.dtype = False, dtype
    here.update_layer(0, values)
    there.add(0, rows)
    assert_same_state(there, here)


@given(
    data=st.data(), samples=WITH_ZEROS, ends=st.tuples(ZERO | NASTY, ZERO | NASTY), bins=BINS, resolution=RESOLUTIONS
)
@settings(deadline=None, max_examples=150)
def test_a_trimmed_histogram_counts_those_in_its_range_whatever_the_order(data, samples, ends, bins, resolution):
    low, high = torch.tensor(sorted(ends), dtype=torch.float64).view(2, 1, 1, 1)
    order = column(data.draw(st.permutations(samples))).view(-1, 1, 1, 1)
    whole, *parts = (TrimmedHistogram(low, high, bins, resolution=resolution) for _ in range(3))
    whole.update(column(samples).view(-1, 1, 1, 1))
    cut = data.draw(st.integers(0, len(samples)))
    parts[0].update(order[:cut])
    parts[1].update(order[cut:])
    assert_same_state(parts[1].merge(parts[0]), whole)
    within = [value for value in samples if low <= value <= high]
    for each in (whole.inside, whole.coarsen(2).inside, whole.copy().inside):
        assert each.zeros.item() == within.count(0.0)
        assert each.positive.item() == sum(value > 0 for value in within)


def test_collect_counts_them_in_a_models_mlp():
    model = al.load_model("tiny-opt", device="cpu")
    tokens = torch.randint(5, 60, (3, 40))
    statistics = al.collect(model, [tokens[:1], tokens[1:]], site=al.Site.MLP, passes=2, progress=False)
    _, cache = model.run_with_cache(tokens)
    seen = torch.stack([cache[name] for name in al.Site.MLP.hook_names(model.cfg)], 2).unsqueeze(-2)
    assert torch.equal(statistics.histogram.zeros, (seen == 0).flatten(0, 1).sum(0))
    assert statistics.histogram.zeros.float().mean() > 60  # OPT's is a ReLU
    table = statistics.table()
    assert np.array_equal(table["share_zero"], (seen == 0).double().mean((0, 1)).flatten())
    assert np.array_equal(table["share_positive"], (seen > 0).double().mean((0, 1)).flatten())


# ---------------------------------------------------------------------- median and quantiles


@given(samples=WITH_ZEROS, bins=BINS, q=st.floats(0, 1) | st.sampled_from([0.25, 0.5, 0.75]))
@settings(deadline=None, max_examples=300)
def test_a_quantile_is_zero_where_numpys_lies_among_zeros(samples, bins, q):
    histogram = collected(column(samples), bins)
    values = np.array(samples)
    if np.quantile(values, q, method="lower") == np.quantile(values, q, method="higher") == 0:
        assert histogram.quantile(q).item() == 0
    assert abs(histogram.quantile(q).item() - np.quantile(values, q)) <= histogram.epsilon.item() + 2**-50 * max(
        map(abs, samples)
    )


@given(samples=WITH_ZEROS, ends=st.tuples(ZERO | NASTY, ZERO | NASTY), q=st.floats(0, 1))
@settings(deadline=None, max_examples=150)
def test_quantiles_of_a_trimmed_histogram_too(samples, ends, q):
    low, high = sorted(ends)
    histogram = TrimmedHistogram(*torch.tensor([low, high], dtype=torch.float64).view(2, 1, 1, 1))
    histogram.update(column(samples).view(-1, 1, 1, 1))
    found, values = histogram.quantile(q).item(), np.array(samples)
    if low <= 0 <= high and np.quantile(values, q, method="lower") == np.quantile(values, q, method="higher") == 0:
        assert found == 0


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([0.0, 0.0, 5.0], 0.0),
        ([-5.0, 0.0, 5.0], 0.0),
        ([-5.0, -0.0, 0.0, 5.0], 0.0),
        ([-5.0, -3.0, 0.0, 0.0], -1.5),  # half are below 0: halfway between two, as NumPy's
        ([-5.0, 0.0, 3.0, 5.0], 1.5),
    ],
)
def test_ties_are_broken_as_quantiles_are(values, median):
    statistics = ActivationStatistics.of_values(torch.tensor(values).view(-1, 1, 1, 1))
    assert abs(statistics.center("median").item() - median) <= (statistics.histogram.epsilon.item() if median else 0)
    assert torch.equal(statistics.center("median"), statistics.histogram.quantile(0.5))


# ---------------------------------------------------------------------- peaks


@given(samples=WITH_ZEROS, bins=st.sampled_from([8, 100, 256]))
@settings(deadline=None, max_examples=200)
def test_a_peak_is_zero_exactly_where_zeros_outnumber_every_bin_without_them(samples, bins):
    values = column(samples)
    statistics = ActivationStatistics.of_values(values.view(-1, 1, 1, 1), bins=bins)
    exponent = {size: oracle(samples, size, torch.float32)[0] for size in (bins, min(bins, 128))}
    for name in PEAKS:
        # `peak` merges bins to 128, and its kin take them as collected.
        found = statistics.center(name, **({"sigma": 1.0} if name == "peak-smooth" else {})).item()
        if leads(samples, exponent[min(bins, 128) if name == "peak" else bins]):
            assert found == 0, name
        elif name == "peak" and len(set(samples)) > 1:
            cells = Counter(floor_of(value, exponent[min(bins, 128)]) for value in samples)
            cell = min(cells, key=lambda cell: (-cells[cell], cell))
            assert found == math.ldexp(cell + 0.5, exponent[min(bins, 128)])


def test_a_neuron_that_is_nearly_always_silent_has_its_median_and_peak_at_zero():
    values = silent(20_000, 10)
    statistics = ActivationStatistics.of_values(values, passes=2)
    assert statistics.histogram.zeros.item() == 19_990
    for name in ("median", *PEAKS, "peak-trimmed"):
        assert statistics.center(name).item() == 0.0, name
    assert statistics.center("peak", bins=64).item() == statistics.center("peak", epsilon=0.5).item() == 0.0
    table = statistics.table()
    assert table["shape"].item() == "sparse"
    assert (table["share_zero"].item(), table["share_positive"].item()) == (0.9995, 0.0005)
    assert (table["peak_over_sigma"].item(), table["main_peak"].item()) == (0.0, 0.0)


def test_zeros_that_are_few_move_no_peak():
    values = torch.randn(20_000, 1, 1, 50) + 3
    some = values.clone()
    some[:100] = 0.0
    with_zeros, without = map(ActivationStatistics.of_values, (some, values[100:]))
    for name in PEAKS:
        away = (with_zeros.center(name) - without.center(name)).abs() / with_zeros.histogram.epsilon
        assert away.max() < 8, name


# ---------------------------------------------------------------------- shapes


def word(values, **thresholds):
    found = describe(ActivationStatistics.of_values(values), Thresholds(**thresholds))
    return SHAPE_WORDS[found.word.item()]


def test_sparse_is_more_than_half_of_exact_zeros():
    assert word(silent(1000, 499)) == "sparse"
    assert word(silent(1000, 500)) != "sparse"
    assert word(silent(1000, 999), sparse=0.0005) == "sparse"
    assert word(torch.zeros(1000, 1, 1, 1)) == "constant"
    assert word(-silent(1000, 5)) == "sparse"
    assert word(silent(1000, 5) + 1) == "unresolved"  # as often the same value, and only 0 is counted


def l_moment_ratios(values):
    """By their definition: probability-weighted moments of the ordered values."""
    ordered, place = np.sort(values), np.arange(len(values))
    weights = np.cumprod([np.ones(len(values)), *((place - i) / (len(values) - 1 - i) for i in range(3))], axis=0)
    b0, b1, b2, b3 = (ordered * weights).mean(1)
    l2 = 2 * b1 - b0
    return (6 * b2 - 6 * b1 + b0) / l2, (20 * b3 - 30 * b2 + 12 * b1 - b0) / l2


@pytest.mark.parametrize("on", [10_000, 3000, 1000])
def test_moments_of_a_silent_neuron_are_those_of_its_values(on):
    values = silent(20_000, on, scale=2.0)
    # Wide bins: zeros taken for the middle of theirs would be 6 % off, and far more where most values are 0.
    found, exact = ActivationStatistics.of_values(values, bins=32).shapes(), values.double().flatten().numpy()
    assert found.skew.item() == pytest.approx(stats.skew(exact), rel=0.01)
    assert found.excess_kurtosis.item() == pytest.approx(stats.kurtosis(exact), rel=0.05)
    assert (found.l_skewness.item(), found.l_kurtosis.item()) == pytest.approx(l_moment_ratios(exact), abs=2e-3)


# ---------------------------------------------------------------------- files


def as_version_2(path, target):
    """The file as it was written before zeros were counted: the values above 0 are one of the moments."""
    header, tensors = load_tensors(path, KIND, newest=VERSION)
    positive = tensors.pop("histogram.positive")
    tensors.pop("trimmed.positive", None)
    tensors["moments.positive"] = positive.double()
    save_tensors(target, KIND, header, tensors, version=2)


@pytest.mark.parametrize("passes", [1, 2])
def test_files_without_the_count_hold_all_that_it_follows_from(tmp_path, passes):
    values = torch.cat([silent(3000, on) for on in (1, 10, 1400, 2900)], -1)
    values = torch.cat([values, -values, values - values.flip(0), torch.randn(3000, 1, 1, 2)], -1)
    statistics = ActivationStatistics.of_values(values, passes=passes)
    statistics.save(tmp_path / "new.safetensors")
    as_version_2(tmp_path / "new.safetensors", tmp_path / "old.safetensors")
    old = ActivationStatistics.load(tmp_path / "old.safetensors")
    assert_same_state(old.histogram, statistics.histogram)
    assert old.table().equals(statistics.table())
    if statistics.trimmed is not None:
        assert_same_state(old.trimmed, statistics.trimmed)
    merged = old.merge(statistics)
    assert torch.equal(merged.histogram.zeros, 2 * statistics.histogram.zeros)


def test_an_old_second_pass_over_other_values_is_read_all_the_same(tmp_path):
    values = silent(3000, 1000) - silent(3000, 1000)
    statistics = ActivationStatistics.of_values(values)
    trimmed = TrimmedHistogram.around(statistics.histogram)
    trimmed.update(torch.where(values == 0, 1e-9, values))  # as if the batches were drawn anew
    replace(statistics, trimmed=trimmed).save(tmp_path / "new.safetensors")
    as_version_2(tmp_path / "new.safetensors", tmp_path / "old.safetensors")
    old = ActivationStatistics.load(tmp_path / "old.safetensors")
    assert torch.equal(old.trimmed.inside.counts(), trimmed.inside.counts())


def test_files_of_the_first_format_tell_their_zeros_too():
    folder = Path(__file__).parents[1] / "files" / "format-1"
    mlp, z = (ActivationStatistics.load(folder / f"{site}-two-passes.safetensors") for site in ("mlp", "z"))
    # A GELU far below 0 rounds to 0.
    assert (mlp.histogram.zeros.max().item(), z.histogram.zeros.max().item()) == (57, 0)
    inside = (mlp.trimmed.inside.minimum <= 0) & (mlp.trimmed.inside.maximum >= 0)
    assert torch.equal(mlp.trimmed.inside.zeros, mlp.histogram.zeros * inside)


# ---------------------------------------------------------------------- nothing else changes


@pytest.mark.parametrize("name", ["median", *PEAKS])
def test_where_no_value_is_zero_counting_them_changes_nothing(name, monkeypatch):
    values = torch.randn(5000, 1, 2, 20) * torch.logspace(-3, 3, 20)
    statistics = ActivationStatistics.of_values(values)
    found = statistics.center(name)
    assert not statistics.histogram.zeros.any()
    # As if the values above 0 had never been told from 0, and nothing were known of either.
    monkeypatch.setattr(NeuronHistogram, "zeros_of", lambda self, layer: torch.zeros(2, 20, dtype=torch.int64))
    assert torch.equal(statistics.center(name), found)

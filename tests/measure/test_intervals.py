import numpy as np
import pytest

from ablation_lens.measure.intervals import ENOUGH_SEEDS, bootstrap_means, difference


def plain_bootstrap(first, second, predictions, resamples, seed):
    """The same interval by loops: seeds and documents drawn with replacement, ratios formed anew."""
    generator = np.random.default_rng(seed)
    seeds, documents = first.shape
    replicates = []
    for _ in range(resamples):
        chosen_documents = generator.integers(documents, size=documents)
        chosen_seeds = generator.integers(seeds, size=seeds) if seeds >= 10 else range(seeds)
        total = sum(predictions[document] for document in chosen_documents)
        if total == 0:
            continue
        ratios = []
        for number in chosen_seeds:
            one = sum(first[number, document] for document in chosen_documents) / total
            two = sum(second[number, document] for document in chosen_documents) / total
            ratios.append(one - two)
        replicates.append(sum(ratios) / len(ratios))
    return np.quantile(replicates, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [3, 12])
def test_the_interval_is_that_of_a_bootstrap_written_as_loops(seeds):
    generator = np.random.default_rng(1)
    predictions = generator.integers(0, 40, size=25)  # documents of unlike length, also empty ones
    first, second = (
        predictions * (2 + generator.normal(size=(seeds, 1)) + generator.normal(size=(1, 25)))
        + generator.normal(size=(seeds, 25))
        for _ in range(2)
    )
    interval = difference(first, second, predictions, resamples=4000)
    low, high = plain_bootstrap(first, second, predictions, 2500, seed=2)
    width = high - low
    assert interval.difference == pytest.approx(
        np.mean(first.sum(1) / predictions.sum()) - np.mean(second.sum(1) / predictions.sum())
    )
    assert interval.low == pytest.approx(low, abs=0.08 * width)
    assert interval.high == pytest.approx(high, abs=0.08 * width)
    # The test can tell a bootstrap that leaves the seeds alone: the masks' spread is most of the width here.
    if seeds >= 10:
        documents_only = difference(np.tile(first.mean(0), (12, 1)), np.tile(second.mean(0), (12, 1)), predictions)
        assert documents_only.high - documents_only.low < 0.8 * width


def covered(generator, seeds, documents, between_masks):
    """Whether the interval covers a true difference of 1."""
    mask = between_masks * generator.normal(size=(seeds, 1))
    document = generator.normal(size=(1, documents))
    gap = 1 + mask + document + 0.5 * generator.normal(size=(seeds, documents))
    shared = 10 * generator.normal(size=(seeds, documents))
    interval = difference(gap + shared, shared, np.ones(documents, dtype=int), resamples=400, seed=0)
    return interval.low <= 1 <= interval.high


def test_95_percent_intervals_cover_about_95_percent_where_masks_and_documents_vary():
    generator = np.random.default_rng(3)
    hits = np.mean([covered(generator, seeds=20, documents=60, between_masks=0.3) for _ in range(400)])
    assert 0.90 <= hits <= 0.985  # 0.95 ± 4 standard errors, and the percentile bootstrap's known shortfall


def test_the_label_is_needed_documents_alone_do_not_cover_new_masks():
    generator = np.random.default_rng(4)
    hits = np.mean([covered(generator, seeds=3, documents=60, between_masks=0.5) for _ in range(200)])
    assert hits < 0.8


def test_noise_that_two_methods_share_cancels():
    generator = np.random.default_rng(5)
    predictions = np.full(40, 10)
    noise = 100 * generator.normal(size=(12, 40))
    paired = difference(noise + 0.5, noise, predictions)
    apart = difference(noise + 0.5, noise[:, ::-1], predictions)
    assert paired.low == pytest.approx(0.05)
    assert paired.high == pytest.approx(0.05)
    assert paired.excludes_zero
    assert apart.high - apart.low > 1
    assert not apart.excludes_zero


@pytest.mark.parametrize(("seeds", "conditional"), [(1, True), (9, True), (10, False), (30, False)])
def test_below_ten_seeds_the_interval_is_conditional_on_the_masks(seeds, conditional):
    assert ENOUGH_SEEDS == 10
    gap = np.ones((seeds, 5)) * np.arange(seeds)[:, None]  # documents agree: only masks differ
    interval = difference(gap, np.zeros_like(gap), np.ones(5, dtype=int))
    assert interval.conditional is conditional
    assert (interval.high > interval.low) is not conditional


def test_a_planted_difference_is_found_and_none_where_there_is_none():
    generator = np.random.default_rng(6)
    found = []
    for planted in (0.0, 1.0):
        results = []
        for _ in range(60):
            noise = generator.normal(size=(2, 12, 50)) * 2
            results.append(difference(noise[0] + planted, noise[1], np.ones(50, dtype=int), resamples=300))
        found.append(np.mean([result.excludes_zero for result in results]))
    assert found[0] < 0.15
    assert found[1] == 1.0


def test_the_other_way_round_is_the_mirror_image_and_every_run_the_same():
    generator = np.random.default_rng(7)
    first, second = generator.normal(size=(2, 12, 30))
    predictions = generator.integers(1, 9, size=30)
    one, other = difference(first, second, predictions), difference(second, first, predictions)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert difference(first, second, predictions) == one


def test_whole_numbers_are_fine():
    interval = difference(np.array([[5, 5]]), np.array([[3, 3]]), np.array([4, 4]))
    assert (interval.difference, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_one_document_says_nothing_of_others():
    interval = difference(np.array([[5]]), np.array([[3]]), np.array([4]))
    assert interval.difference == 0.5
    assert np.isnan([interval.low, interval.high]).all()
    assert not interval.excludes_zero


def test_means_of_many_rows_are_drawn_as_those_of_few_at_once():
    generator = np.random.default_rng(0)
    weights = np.stack([generator.integers(0, 3, 5000), np.ones(5000)]).astype(float)
    sums = generator.normal(size=(2, 5000)) * weights
    drawn = np.random.Generator(np.random.PCG64(7)).multinomial(5000, np.full(5000, 1 / 5000), size=1000)
    expected = (drawn @ sums.T / (drawn @ weights.T)).T
    np.testing.assert_allclose(bootstrap_means(sums, weights, resamples=1000, seed=7), expected)

"""Concentration and overlap against what is counted by hand, by SciPy, and by drawing masks."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ablation_lens.ablation.masks import random_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.experiments import concentration, overlap
from ablation_lens.experiments.agreement import area

EIGHT = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3]])


def mask_of(*layers):
    return torch.tensor(layers, dtype=torch.bool)[:, None]


def clusters_of(layers, dims, size):
    order = torch.stack([torch.randperm(dims, generator=torch.Generator().manual_seed(n)) for n in range(layers)])
    return order // size


# ---------------------------------------------------------------------- concentration


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        # Two fill one cluster: m = 2, y = 0, 2 | 2.
        ([1, 1, 0, 0, 0, 0, 0, 0], (0 + 2) / (2 * 2)),
        # Two in two clusters: y = 0, 1 | 2.
        ([1, 0, 1, 0, 0, 0, 0, 0], (0 + 1) / (2 * 2)),
        # Five in four clusters: m = 4, y = 0, 2, 3, 4 | 5.
        ([1, 0, 0, 1, 1, 1, 0, 1], (0 + 2 + 3 + 4) / (4 * 5)),
        # Six in three clusters: m = 4, y = 0, 2, 4, 6 | 6.
        ([0, 0, 1, 1, 1, 1, 1, 1], (0 + 2 + 4 + 6) / (4 * 6)),
    ],
)
def test_the_area_is_that_of_the_fullest_clusters_first(selected, expected):
    found = concentration(EIGHT, mask_of(selected), permutations=50)
    assert found.whole.auc == found.rows[0].auc == pytest.approx(expected)


def test_clusters_of_all_layers_are_sorted_together():
    found = concentration(EIGHT.repeat(2, 1), mask_of([1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0]))
    assert [row.layer for row in found.rows] == [0, 1, None]
    # Four neurons in eight clusters: m = 4, y = 0, 2, 3, 4 | 4.
    assert found.whole.auc == pytest.approx((0 + 2 + 3 + 4) / (4 * 4))


def test_chance_is_that_of_masks_drawn_with_as_many_neurons_per_layer():
    labels, generator = clusters_of(2, 24, 4), np.random.default_rng(0)
    mask = mask_of([1] * 9 + [0] * 15, [1] * 4 + [0] * 20)
    found = concentration(labels, mask, permutations=4000)
    drawn = []
    for _ in range(4000):
        counts = [np.bincount(row[generator.permutation(24)[:taken]], minlength=6) for row, taken in
                  zip(labels.numpy(), (9, 4), strict=True)]  # fmt: skip
        drawn.append([area(each[None])[0] for each in (*counts, np.concatenate(counts))])
    for row, areas in zip(found.rows, np.array(drawn).T, strict=True):
        assert row.chance == pytest.approx(areas.mean(), abs=5 * row.sd / math.sqrt(2000))
        assert row.sd == pytest.approx(areas.std(), rel=0.1)
        low, high = np.quantile(areas, [0.025, 0.975])
        assert (row.low, row.high) == pytest.approx((low, high), abs=0.03)


@pytest.mark.parametrize("fraction", [0.02, 0.2])
def test_random_masks_are_within_two_sigma_of_chance_in_90_to_99_percent_of_200_draws(fraction):
    labels = clusters_of(4, 512, 32)
    z = [
        concentration(labels, random_neurons((4, 1, 512), fraction, seed), permutations=300, seed=seed).whole.z
        for seed in range(200)
    ]
    within = np.mean(np.abs(z) < 2)
    assert 0.9 <= within <= 0.99, within


def test_neurons_of_few_clusters_are_far_from_chance_and_of_every_cluster_alike_below_it():
    labels = clusters_of(4, 512, 32)
    planted = (labels < 2)[:, None]
    found = concentration(labels, planted)
    assert all(row.z > 10 and row.p < 0.01 and row.auc > row.high for row in found.rows)
    assert "more concentrated" in repr(found)
    even = torch.zeros_like(labels, dtype=torch.bool)
    for layer in range(4):
        for cluster in range(16):
            even[layer, (labels[layer] == cluster).nonzero()[:4, 0]] = True
    assert concentration(labels, even[:, None]).whole.z < -2


def test_what_clusters_and_neurons_are_called_does_not_matter():
    labels = clusters_of(2, 64, 8)
    mask = random_neurons((2, 1, 64), 0.25, 7)
    order = torch.randperm(64)
    one = concentration(labels, mask)
    assert concentration(labels[:, order], mask[:, :, order]) == one
    assert concentration(100 - 3 * labels, mask).whole.auc == one.whole.auc


@pytest.mark.parametrize(
    ("selected", "note"),
    [
        ([0] * 8, "nothing is selected"),
        ([1] * 8, "all neurons are selected"),
        ([1] + [0] * 7, "every draw has the same area"),
    ],
)
def test_where_chance_leaves_nothing_open_there_is_a_word_and_no_number(selected, note):
    found = concentration(EIGHT, mask_of(selected))
    assert math.isnan(found.whole.z)
    assert math.isnan(found.whole.p)
    assert found.whole.note == note
    assert note in found.told
    assert note in repr(found)


def test_an_empty_layer_does_not_spoil_the_whole():
    found = concentration(EIGHT.repeat(2, 1), mask_of([1, 1, 1, 0, 0, 0, 0, 0], [0] * 8))
    assert found.rows[1].note
    assert found.whole.z == pytest.approx(found.whole.z)


@pytest.mark.parametrize(
    ("labels", "mask", "options", "said"),
    [
        (EIGHT, torch.ones(1, 1, 7).bool(), {}, "the mask has shape"),
        (EIGHT.double(), torch.ones(1, 1, 8).bool(), {}, "whole numbers"),
        ("labels", torch.ones(1, 1, 8).bool(), {}, "got str"),
        (EIGHT, torch.ones(1, 1, 8), {}, "boolean tensor"),
        (EIGHT, torch.ones(1, 1, 8).bool(), {"permutations": 1}, "permutations=1"),
        (EIGHT, torch.ones(1, 1, 8).bool(), {"seed": -1}, "seed=-1"),
    ],
)
def test_a_mask_of_other_neurons_is_refused(labels, mask, options, said):
    with pytest.raises(MismatchError, match=said):
        concentration(labels, mask, **options)


# ---------------------------------------------------------------------- overlap


def test_the_overlap_is_the_share_of_the_smaller_mask():
    found = overlap(
        {
            "a": mask_of([1, 1, 1, 1, 0, 0, 0, 0], [0] * 8),
            "b": mask_of([0, 0, 1, 1, 1, 1, 0, 0], [0] * 8),
            "c": mask_of([1, 1, 0, 0, 0, 0, 0, 0], [0] * 8),
        }
    )
    assert found.matrix.loc["a"].tolist() == [1, 0.5, 1]
    assert (found.matrix == found.matrix.T).all().all()
    held = found.rows[1]
    # Of two neurons half would be in a mask of four of eight; anywhere in the model a quarter.
    assert (held.shared, held.smaller, held.chance, held.fraction, held.corrected) == (2, 2, 0.5, 0.25, 1)
    assert found.of("chance").loc["c", "a"] == 0.5


def test_chance_is_hypergeometric_in_every_layer():
    one = mask_of([1] * 5 + [0] * 15, [1] * 2 + [0] * 18)
    other = mask_of([0] * 3 + [1] * 8 + [0] * 9, [1] * 9 + [0] * 11)
    row = overlap({"a": one, "b": other}).rows[0]
    laws = [stats.hypergeom(20, 5, 8), stats.hypergeom(20, 2, 9)]
    mean, sd = sum(law.mean() for law in laws), math.sqrt(sum(law.var() for law in laws))
    assert row.shared == 4
    assert row.chance == pytest.approx(mean / 7)
    assert row.z == pytest.approx((4 - mean) / sd)
    both = np.convolve(laws[0].pmf(np.arange(6)), laws[1].pmf(np.arange(3)))
    assert row.p == pytest.approx(both[4:].sum())
    assert both[: round(row.low * 7)].sum() < 0.025
    assert both[: round(row.high * 7) + 1].sum() >= 0.975
    assert row.corrected == pytest.approx((4 / 7 - row.chance) / (1 - row.chance))


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_random_masks_overlap_in_the_fraction_they_take(fraction):
    masks = {str(seed): random_neurons((4, 1, 512), fraction, seed) for seed in range(15)}
    found = overlap(masks).frame
    assert found["overlap"].mean() == pytest.approx(found["fraction"].mean(), abs=0.01)
    assert found["corrected"].mean() == pytest.approx(0, abs=0.01)
    assert 0.9 <= (found["z"].abs() < 2).mean() <= 0.99
    assert ((found["overlap"] < found["low"]) | (found["overlap"] > found["high"])).mean() < 0.08


def test_masks_of_the_same_layer_alone_are_no_evidence_of_shared_neurons():
    one, other = torch.zeros(4, 1, 100).bool(), torch.zeros(4, 1, 100).bool()
    one[0, 0, :50] = True
    other[0, 0, torch.randperm(100)[:50]] = True
    row = overlap({"a": one, "b": other}).rows[0]
    assert row.fraction == pytest.approx(0.125)
    assert row.overlap > 3 * row.fraction
    assert row.chance == 0.5
    assert abs(row.z) < 3


def test_the_same_mask_twice_is_wholly_shared_and_far_from_chance():
    mask = random_neurons((2, 4, 16), 0.25, 0)
    row = overlap({"a": mask, "b": mask}).rows[0]
    assert (row.overlap, row.corrected) == (1, 1)
    assert row.z > 5
    assert 0 < row.p < 1e-6


@pytest.mark.parametrize(
    ("one", "note"), [([0] * 8, "a mask takes nothing"), ([1] * 8, "masks of these sizes always share as many")]
)
def test_masks_that_leave_nothing_open_get_a_word_and_no_number(one, note):
    found = overlap({"a": mask_of(one), "b": mask_of([1, 1] + [0] * 6)})
    assert math.isnan(found.rows[0].z)
    assert math.isnan(found.rows[0].corrected)
    assert found.rows[0].note == note
    assert "Nothing can be said" in found.told


def test_names_from_outside_are_shown_on_one_line():
    mask = mask_of([1, 1] + [0] * 6)
    assert "\x1b" not in repr(overlap({"a\x1b[31m\nb": mask, "c": mask}))


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"a": torch.ones(1, 1, 2).bool()}, "two or more"),
        ([torch.ones(1, 1, 2).bool()] * 2, "name → mask"),
        ({"a": torch.ones(1, 1, 2).bool(), "b": torch.ones(1, 1, 3).bool()}, "different shapes"),
        ({"a": torch.ones(1, 1, 2).bool(), 3: torch.ones(1, 1, 2).bool()}, "named by text"),
        ({"a": torch.ones(1, 1, 2).bool(), "b": ["L0.M1"]}, "the mask 'b' is a list"),
        ({"a": torch.ones(1, 1, 2).bool(), "b": torch.ones(1, 1, 2)}, "boolean tensor"),
    ],
)
def test_masks_that_cannot_be_compared_are_refused(masks, said):
    with pytest.raises(MismatchError, match=said):
        overlap(masks)


def test_a_number_that_an_overlap_has_not_is_refused():
    mask = mask_of([1, 1] + [0] * 6)
    with pytest.raises(MismatchError, match="known: shared"):
        overlap({"a": mask, "b": mask}).of("jaccard")

"""Which neurons matter more on one corpus than on another: NumPy oracles on raw values, and edges that are decided."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.selection import IMPORTANCES, importance, selective_neurons, selectivity

of = al.ActivationStatistics.of_values


def drawn(seed, shape=(400, 2, 3, 4), scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale * torch.rand(shape[1:], generator=generator).add(0.1)


def scored(scores):
    """Statistics to forget and to retain whose abs scores with epsilon=0 are these."""
    values = torch.as_tensor(scores, dtype=torch.float32)[None]
    return of(values), of(torch.ones_like(values))


@pytest.mark.parametrize("kind", IMPORTANCES)
def test_importance_is_what_numpy_says_of_the_raw_values(kind):
    values = drawn(1) - 0.3
    raw = values.double().numpy()
    expected = {
        "abs": np.abs(raw).mean(0),
        "sqrt": np.sqrt(np.abs(raw)).mean(0),
        "freq": (raw > 0).mean(0),
        "std": raw.std(0),
        "rms": np.sqrt(np.square(raw).mean(0)),
        "mean": raw.mean(0),
    }[kind]
    found = importance(of(values), kind)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_std_is_sigma_and_not_the_variance():
    assert importance(of(torch.tensor([0.0, 4.0]).view(2, 1, 1, 1)), "std").item() == 2


def test_a_score_is_importance_over_importance_plus_epsilon():
    forget, retain = drawn(1), drawn(2)
    expected = np.abs(forget.double().numpy()).mean(0) / (np.abs(retain.double().numpy()).mean(0) + 0.01)
    np.testing.assert_allclose(selectivity(of(forget), of(retain), epsilon=0.01).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(("site", "expected"), [("mlp", 1e-3), ("z", 1e-4), ("resid_post", 1e-4)])
def test_epsilon_is_that_of_the_site(site, expected):
    forget = of(torch.full((2, 1, 1, 1), 3.0), site=site)
    retain = of(torch.zeros(2, 1, 1, 1), site=site)
    assert selectivity(forget, retain).item() == pytest.approx(3 / expected)


def test_mean_is_how_far_the_means_are_apart_in_either_direction():
    forget, retain = of(torch.tensor([[1.0, 5.0]]).view(1, 1, 1, 2)), of(torch.tensor([[4.0, 3.0]]).view(1, 1, 1, 2))
    assert selectivity(forget, retain, kind="mean").flatten().tolist() == [3, 2]


def test_histogram_distance_is_wasserstein_of_the_raw_values_within_a_bin():
    forget, retain = drawn(3, scale=2.0) + 0.4, drawn(4)
    # As many values in both: then it is the mean distance of the sorted ones.
    raw = np.abs(np.sort(forget.double().numpy(), 0) - np.sort(retain.double().numpy(), 0)).mean(0)
    sigma = retain.double().numpy().std(0)
    one, other = of(forget), of(retain)
    width = one.histogram.merge(other.histogram).epsilon.numpy()
    found = selectivity(one, other, kind="histogram-distance", epsilon=0).numpy() * sigma
    assert (np.abs(found - raw) <= width).all()
    assert np.abs(found - raw).max() < 0.05 * raw.max()


def test_histogram_distance_knows_neither_the_scale_nor_how_many_values_there_are():
    forget, retain = drawn(5), drawn(6)
    once = selectivity(of(forget), of(retain), kind="histogram-distance", epsilon=0)
    scaled = selectivity(of(forget.repeat(3, 1, 1, 1) * 8), of(retain * 8), kind="histogram-distance", epsilon=0)
    torch.testing.assert_close(once, scaled)


def test_histogram_distance_sees_what_importance_does_not():
    """Both corpora have the same E|z|: only the sign differs."""
    values = torch.rand(50, 1, 1, 1).add(1)
    assert selectivity(of(values), of(-values), epsilon=0).item() == 1
    assert selectivity(of(values), of(-values), kind="histogram-distance", epsilon=0).item() > 3
    assert selectivity(of(values), of(values), kind="histogram-distance").item() == 0


def test_a_neuron_that_is_silent_on_both_corpora_is_the_last_to_be_chosen():
    values = torch.tensor([[0.0, 1e-9, 1.0, 2.0]]).view(1, 1, 1, 4)
    retain = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).view(1, 1, 1, 4)
    for kind in ("abs", "sqrt", "freq", "rms", "histogram-distance"):
        scores = selectivity(of(values), of(retain), kind=kind, epsilon=0).flatten()
        assert scores[:2].tolist() == [0, math.inf], kind
        assert not selective_neurons(of(values), of(retain), 0.5, kind=kind, epsilon=0)[0, 0, 0]


def test_two_constants_are_as_far_apart_as_they_are():
    forget, retain = of(torch.full((5, 1, 1, 1), 3.0)), of(torch.full((7, 1, 1, 1), 1.0))
    found = selectivity(forget, retain, kind="histogram-distance", epsilon=0.5).item()
    assert found == pytest.approx(2 / 0.5, rel=0.01)


def test_the_fraction_is_of_all_layers_together():
    forget, retain = scored([[[1, 2, 3, 4]], [[9, 8, 7, 6]]])
    together = selective_neurons(forget, retain, 0.5)
    assert together.sum((1, 2)).tolist() == [0, 4]
    assert selective_neurons(forget, retain, 0.5, per_layer=True).sum((1, 2)).tolist() == [2, 2]


def test_of_equal_scores_the_earlier_neuron_goes_first_and_masks_are_nested():
    forget, retain = scored([[[1, 1, 1, 1]], [[1, 1, 1, 1]]])
    masks = [selective_neurons(forget, retain, share) for share in (0.25, 0.5, 0.75)]
    assert masks[0].flatten().nonzero().flatten().tolist() == [0, 1]
    assert not any(bool((small & ~large).any()) for small, large in pairwise(masks))


def test_the_share_is_rounded_down_as_it_is_written():
    forget, retain = scored(torch.arange(100.0).view(1, 1, 100))
    assert int(selective_neurons(forget, retain, 0.29).sum()) == 29
    assert int(selective_neurons(forget, retain, 0.299).sum()) == 29


def test_whole_heads_go_by_their_mean_or_their_median():
    forget, retain = scored([[[0, 0, 9], [2, 2, 2]], [[1, 1, 1], [1, 1, 1]]])
    by_mean = selective_neurons(forget, retain, 0.25, heads="mean", epsilon=0)
    by_median = selective_neurons(forget, retain, 0.25, heads="median", epsilon=0)
    assert by_mean.all(-1).tolist() == [[True, False], [False, False]]
    assert by_median.all(-1).tolist() == [[False, True], [False, False]]
    assert int(by_mean.sum()) == int(by_median.sum()) == 3
    assert int(selective_neurons(forget, retain, 0.49, heads="mean").sum()) == 3  # ⌊0.49 · 4⌋ heads


def test_heads_of_even_size_take_the_middle_of_two_also_where_scores_are_infinite():
    values = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]]])[None]
    retain = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]])[None]
    mask = selective_neurons(of(values), of(retain), 0.5, heads="median", epsilon=0)
    assert mask.all(-1).tolist() == [[True, False]]


def test_neurons_without_heads_are_not_chosen_by_heads():
    values = torch.ones(2, 1, 1, 3)
    with pytest.raises(MismatchError, match="have no heads"):
        selective_neurons(of(values, site="mlp"), of(values, site="mlp"), 0.5, heads="mean")


def test_what_was_chosen_already_stays_and_counts():
    forget, retain = scored([[[1, 2, 3, 4]], [[5, 6, 7, 8]]])
    mask = selective_neurons(forget, retain, 0.5, already=["L0.H0.D0"])
    assert mask.flatten().nonzero().flatten().tolist() == [0, 5, 6, 7]
    silent = of(torch.tensor([[0.0, 1.0, 2.0, 3.0]]).view(1, 1, 1, 4)), of(torch.zeros(1, 1, 1, 4))
    assert selective_neurons(*silent, 0.25, epsilon=0, already=["L0.H0.D0"])[0, 0, 0]  # before infinite scores
    assert selective_neurons(*silent, 1.0, heads="median", epsilon=0, already=["L0.H0.D0"]).all()


def test_a_fraction_below_what_was_chosen_already_is_refused():
    forget, retain = scored([[[1, 2, 3, 4]]])
    with pytest.raises(MismatchError, match=r"2 neurons are chosen already, and fraction=0.25 allows 1"):
        selective_neurons(forget, retain, 0.25, already=["L0.H0.D0", "L0.H0.D1"])


@pytest.mark.parametrize("epsilon", [-1, math.nan, math.inf, "1", True])
def test_an_impossible_epsilon_is_refused(epsilon):
    with pytest.raises(MismatchError, match="epsilon="):
        selectivity(*scored([[[1.0]]]), epsilon=epsilon)


def test_unlike_statistics_are_refused_naming_both():
    values = torch.ones(3, 1, 1, 2)
    with pytest.raises(MismatchError, match=r"'mlp'.*'z'"):
        selectivity(of(values, site="mlp"), of(values))
    with pytest.raises(MismatchError, match="not the same model"):
        selectivity(of(values), of(torch.ones(3, 2, 1, 2)))
    with pytest.raises(MismatchError, match="256 and 64"):
        selectivity(of(values), of(values, bins=64), kind="histogram-distance")


def test_unlike_settings_are_refused_naming_both():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=200)
    one, other = (al.collect(model, plan, include_bos=include, progress=False) for include in (True, False))
    with pytest.raises(MismatchError, match=r"include_bos=True.*False"):
        selectivity(one, other)


def test_what_is_not_known_is_refused_with_what_there_is():
    one, other = scored([[[1.0]]])
    with pytest.raises(MismatchError, match="did you mean 'abs'"):
        importance(one, "abss")
    with pytest.raises(MismatchError, match="did you mean 'histogram-distance'"):
        selectivity(one, other, kind="histogram-distanc")
    with pytest.raises(MismatchError, match="compares two corpora"):
        importance(one, "histogram-distance")
    with pytest.raises(MismatchError, match=r"what al\.collect gives"):
        selectivity({"z": one}, other)
    with pytest.raises(MismatchError, match="mean, median"):
        selective_neurons(one, other, 1.0, heads="max")

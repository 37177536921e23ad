"""Atypical neurons beside gaussian-like ones: planted shapes, equal counts, equal variances."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.atypical import ablate_atypical, match_by_variance
from ablation_lens.hooked import projection
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.plots import atypical_damage
from ablation_lens.records import record_of

OPTIONS = {"kinds": ["off-zero"], "centers": ["zero", "mean"], "seeds": [1, 2], "progress": False}


def planted(model, off_zero):
    """Statistics in which these neurons are off zero, and all others gaussian-like."""
    values = torch.randn(2000, *off_zero.shape) * torch.linspace(0.9, 1.1, off_zero.shape[-1])
    return ActivationStatistics.of_values(values + 4.0 * off_zero, model=record_of(model))


@pytest.fixture(scope="module")
def judged():
    return al.task_for(al.load_model("tiny-opt")).batches(split="evaluate", tokens=300)


@pytest.fixture(scope="module")
def off_zero():
    return al.random_neurons((4, 4, 32), 0.1, seed=3)


@pytest.fixture(scope="module")
def found(judged, off_zero):
    """In this model, what is not off zero writes nothing."""
    model = al.load_model("tiny-opt")
    for layer, block in enumerate(model.blocks):
        held = projection(block, al.Site.Z.weights)
        held.set(held.weight() * off_zero[layer].flatten()[:, None], held.bias())
    return ablate_atypical(model, judged, planted(model, off_zero), share=0.5, **OPTIONS)


def test_partners_that_write_nothing_cost_nothing(found):
    for row in found.rows:
        assert row.match_damage == row.match_low == row.match_high == 0
        assert row.difference == row.damage != 0
    assert found.matchings[0].written == 0


def test_every_neuron_of_the_kind_is_counted_and_matched(found, off_zero):
    (matching,) = found.matchings
    assert (matching.neurons, matching.pairs) == (int(off_zero.sum()), int(off_zero.sum()))
    assert matching.ablated == matching.pairs // 2
    assert 0.9 < matching.least <= matching.ratio <= matching.most < 1.1


def test_partners_are_of_the_same_layer_and_each_taken_once(off_zero):
    ours, theirs = match_by_variance(torch.rand(off_zero.shape) + 0.5, off_zero, ~off_zero)
    assert torch.equal(ours[:, 0], theirs[:, 0])
    assert len(ours) == int(off_zero.sum()) == len(theirs.unique(dim=0))


def test_pairs_of_unlike_variances_are_left_out():
    variance = torch.tensor([1.0, 8.0, 1.5, 1.2]).view(1, 1, 4)
    kind = torch.tensor([True, True, False, False]).view(1, 1, 4)
    ours, theirs = match_by_variance(variance, kind, ~kind, most_ratio=4)
    assert (ours.tolist(), theirs.tolist()) == ([[0, 0, 0]], [[0, 0, 3]])
    assert len(match_by_variance(variance, kind, ~kind)[0]) == 2


def test_a_kind_that_is_not_there_is_left_out_with_a_word(judged, off_zero):
    model = al.load_model("tiny-opt")
    found = ablate_atypical(
        model, judged, planted(model, off_zero), **(OPTIONS | {"kinds": ["multi-modal", "off-zero"], "share": 1})
    )
    assert found.left_out == {"multi-modal": (0, int((~off_zero).sum()))}
    assert "Left out: multi-modal" in repr(found)
    assert found.masks == 1  # a share of 1 is one mask
    assert found.matchings[0].ablated == found.matchings[0].pairs


def test_mlp_neurons_are_matched_with_others_than_gaussian_like_ones(judged):
    model = al.load_model("tiny-opt")
    shape = al.Site.MLP.shape(model.cfg)
    values = torch.rand(2000, *shape) - 0.5  # flat
    values[..., :5] += 4.0
    stats = ActivationStatistics.of_values(values, model=record_of(model), site="mlp")
    found = ablate_atypical(model, judged, stats, partners=["flat"], **OPTIONS)
    assert (found.site, found.matchings[0].pairs) == ("mlp", 5 * 4)
    assert ablate_atypical(model, judged, stats, **OPTIONS).left_out == {"off-zero": (20, 0)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kinds": ["off-zer"]}, "did you mean 'off-zero'"),
        ({"kinds": ["gaussian-like"]}, "of none of the kinds"),
        ({"partners": []}, "of none of the kinds"),
        ({"kinds": ["constant"]}, "no kind of neuron"),
        ({"most_ratio": 0.5}, "1 or more"),
        ({"share": 2}, "fraction=2"),
        ({"centers": []}, "no centers"),
    ],
)
def test_what_cannot_be_matched_is_said(judged, off_zero, change, words):
    model = al.load_model("tiny-opt")
    with pytest.raises(MismatchError, match=words):
        ablate_atypical(model, judged, planted(model, off_zero), **(OPTIONS | change))


def test_the_figure_has_a_column_per_kind_with_both_sides_and_the_difference(found):
    figure = atypical_damage(found)
    assert [trace.name for trace in figure.data] == ["the kind", "gaussian-like partners", "kind − partners"]
    assert figure.data[2].y == tuple(row.difference for row in found.rows)
    assert figure.layout.xaxis2.ticktext == ("zero", "mean")

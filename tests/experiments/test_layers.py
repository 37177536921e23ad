"""Damage by layer and head: planted units that write nothing, and values that are known to be best."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.layers import ablate_layers
from ablation_lens.hooked import projection
from ablation_lens.plots import layer_damage

OPTIONS = {"centers": ["zero", "mean"], "progress": False}


@pytest.fixture(scope="module")
def plans():
    task = al.task_for(al.load_model("tiny-opt"))
    return task.batches(split="collect", tokens=1000), task.batches(split="evaluate", tokens=300)


@pytest.fixture(scope="module")
def deaf():
    """A model in which L1.H2 writes nothing, and neither does the MLP of layer 2."""
    model = al.load_model("tiny-opt")
    for layer, site, rows in ((1, al.Site.Z, slice(64, 96)), (2, al.Site.MLP, slice(None))):
        held = projection(model.blocks[layer], site.weights)
        weight = held.weight().clone()
        weight[rows] = 0
        held.set(weight, held.bias())
    return model


@pytest.fixture(scope="module")
def found(deaf, plans):
    collected, judged = plans
    return ablate_layers(deaf, judged, al.collect(deaf, collected, progress=False), **OPTIONS)


def test_a_head_that_writes_nothing_costs_nothing_to_any_center(found):
    rows = found.frame.set_index("unit")
    assert rows.loc["L1.H2", ["damage", "low", "high", "to_best"]].to_numpy().any() == 0
    assert (rows["damage"] == 0).sum() == 2  # one row per center


def test_every_unit_is_measured_with_every_center(found):
    assert len(found.at("layer")) == 4 * 2
    assert len(found.at("head")) == 16 * 2


def test_a_unit_is_its_layer_or_head_and_nothing_else(found, deaf, plans):
    collected, judged = plans
    stats = al.collect(deaf, collected, progress=False)
    rows = found.frame.set_index(["unit", "center"])["damage"]
    clean = al.evaluate(deaf, judged).cross_entropy
    for unit in ("L2", "L3.H1"):
        expected = al.evaluate(deaf, judged, stats.ablation([unit], "mean")).cross_entropy - clean
        assert rows[unit, "mean"] == pytest.approx(expected)


def test_the_best_center_of_a_unit_is_the_one_with_the_least_damage(found):
    for _, rows in found.frame.groupby("unit"):
        assert rows["to_best"].min() == 0
        assert (rows["to_best"] - (rows["damage"] - rows["damage"].min())).abs().max() < 1e-9


def test_mlps_have_layers_and_no_heads(deaf, plans):
    collected, judged = plans
    stats = al.collect(deaf, collected, site="mlp", progress=False)
    found = ablate_layers(deaf, judged, stats, **OPTIONS)
    assert found.frame["unit"].tolist() == [f"L{layer}" for layer in range(4) for _ in range(2)]
    assert found.frame.set_index("unit")["damage"]["L2"].abs().max() == 0
    with pytest.raises(MismatchError, match="ask for layers"):
        ablate_layers(deaf, judged, stats, levels=["head"], **OPTIONS)


def test_a_level_that_is_not_there(deaf, plans):
    collected, judged = plans
    stats = al.collect(deaf, collected, progress=False)
    with pytest.raises(MismatchError, match="did you mean 'head'"):
        ablate_layers(deaf, judged, stats, levels=["heads"], **OPTIONS)


def test_a_map_per_center_and_its_difference_to_the_best(found):
    figure = layer_damage(found)
    rows = found.frame.set_index(["unit", "center"])
    damage, more = figure.data[2], figure.data[3]  # of the second center
    assert torch.tensor(damage.z)[3, 1] == pytest.approx(rows.loc[("L3.H1", "mean"), "damage"])
    assert torch.tensor(more.z)[3, 1] == pytest.approx(rows.loc[("L3.H1", "mean"), "to_best"])
    assert layer_damage(found, level="layer").data[0].x == ("zero", "mean")

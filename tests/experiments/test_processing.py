"""Processed weights: what TransformerLens does to them by default makes zero ablation another experiment."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.processing import SWITCHES, compare_processing, process
from ablation_lens.hooked import projection
from ablation_lens.measure.forward import capture
from ablation_lens.plots import processing_differences
from ablation_lens.sites import Site
from ablation_lens.weights import checksum


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def plans(model):
    task = al.task_for(model)
    return task.batches(tokens=300), task.batches(split="collect", tokens=1000)


@pytest.fixture(scope="module")
def found(model, plans):
    options = {"switches": ["fold_ln", "fold_value_biases"], "centers": ["zero", "mean"]}
    return compare_processing(model, *plans, seeds=[1, 2], progress=False, **options)


def values_of(model, batch):
    return torch.stack(list(capture(model, batch, Site.Z).values()))


def test_folded_value_biases_are_what_z_moves_by(model, plans):
    batch = plans[0][0]
    moved = values_of(model, batch) - values_of(process(model, ["fold_value_biases"]), batch)
    for layer, block in enumerate(model.blocks):
        bias = projection(block, Site.V.weights).bias().view(4, 32)
        assert torch.allclose(moved[layer][batch.valid], bias, atol=1e-5)


def test_zero_becomes_another_experiment_and_the_mean_does_not(found):
    rows = {(row.switch, row.center): row for row in found.rows}
    folded = rows["fold_value_biases", "zero"]
    assert folded.is_other
    assert folded.astray == pytest.approx(folded.shift)
    assert folded.shift > 1
    mean = rows["fold_value_biases", "mean"]
    assert not mean.is_other
    assert mean.astray < 1e-3
    assert not any(rows["fold_ln", name].is_other for name in ("zero", "mean"))
    assert "zero under fold_value_biases" in repr(found)


def test_processing_changes_no_prediction(found):
    assert max(abs(row.baseline) for row in found.rows) < 1e-5


def test_a_model_without_biases_is_the_same_under_every_switch():
    model = al.load_model("tiny-mistral")
    task = al.task_for(model)
    plans = task.batches(tokens=200), task.batches(split="collect", tokens=600)
    found = compare_processing(model, *plans, switches=["all"], centers=["zero", "mean"], seeds=[1], progress=False)
    assert not any(row.is_other for row in found.rows)
    assert max(row.shift for row in found.rows) < 1e-3


def test_the_model_itself_is_left_as_it_is(model):
    before = checksum(model)
    process(model, SWITCHES)
    assert checksum(model) == before
    assert model.cfg.normalization_type == "LN"


def test_families_that_are_not_processed_are_refused(plans):
    with pytest.raises(MismatchError, match="does not process the weights of a"):
        compare_processing(al.load_model("tiny-vit"), *plans)


def test_a_switch_that_is_not_there(model, plans):
    with pytest.raises(MismatchError, match="did you mean 'fold_ln'"):
        compare_processing(model, *plans, switches=["fold_layernorm"])


def test_the_figure_has_a_mark_per_switch_and_center(found):
    figure = processing_differences(found)
    assert [trace.name for trace in figure.data] == ["zero", "mean"]
    assert figure.layout.xaxis.ticktext == ("fold_ln", "fold_value_biases")
    assert figure.data[0].y == tuple(row.difference for row in found.rows if row.center == "zero")

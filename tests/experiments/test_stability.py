"""How far centers move: planted distances, disjoint collections, and other corpora."""

from dataclasses import replace

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.damage import Damage
from ablation_lens.experiments.stability import compare_collections, disjoint, in_sigma
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.plots import stability_curves


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def task(model):
    return al.task_for(model)


@pytest.fixture(scope="module")
def plan(task):
    return task.batches(split="collect", tokens=2500)


@pytest.fixture(scope="module")
def stats(model, plan):
    return al.collect(model, plan, progress=False)


@pytest.fixture(scope="module")
def judged(task):
    return task.batches(split="evaluate", tokens=300)


@pytest.fixture(scope="module")
def found(model, judged, stats, plan):
    options = {"centers": ["zero", "mean"], "seeds": [1, 2], "progress": False}
    return compare_collections(model, judged, stats, plan, sizes=[300, 1000, 9000], others={"same": stats}, **options)


def test_a_center_does_not_move_between_a_collection_and_itself(found):
    same = found.frame.set_index("against").loc["same"]
    assert same[["median", "q90", "q99", "cost", "low", "high"]].abs().to_numpy().max() == 0


def test_zero_never_moves_and_the_mean_of_more_tokens_moves_less(found):
    rows = found.frame.set_index(["center", "against", "size"])
    assert rows.loc["zero"][["q99", "cost"]].abs().to_numpy().max() == 0
    assert rows.loc[("mean", "", 1000), "median"] < rows.loc[("mean", "", 300), "median"]


def test_a_planted_distance_is_given_in_sigma():
    values = torch.randn(1000, 1, 1, 3)
    statistics = ActivationStatistics.of_values(values)
    moved = statistics.mean + 0.25 * statistics.std
    assert in_sigma(moved, statistics.mean, statistics).tolist() == pytest.approx([0.25] * 3)


def test_collections_share_no_document(plan):
    parts = list(disjoint(plan, 300, most=20))
    numbers = [number for part in parts for batch in part for number in batch.documents]
    assert len(parts) > 3
    assert len(set(numbers)) == len(numbers)


def test_a_size_that_does_not_fit_twice_is_left_out_with_a_word(found):
    assert found.left_out == (9000,)
    assert "9,000 tokens" in repr(found)
    assert "2 masks" in repr(found)


def test_cost_is_what_ablating_to_the_other_center_adds(model, judged, stats, plan):
    other = al.collect(model, plan.part(0, 1), progress=False)
    options = {"centers": ["mean"], "fraction": 1.0, "seeds": [1], "progress": False}
    (row,) = compare_collections(model, judged, stats, others={"part": other}, **options).rows
    mask = torch.ones(stats.shape, dtype=torch.bool)
    losses = [al.evaluate(model, judged, each.ablation(mask, "mean")).cross_entropy for each in (other, stats)]
    assert row.cost == pytest.approx(losses[0] - losses[1])


def test_a_higher_top1_is_not_a_cost(model, judged):
    score = al.evaluate(model, judged)
    better = replace(score, correct=score.correct + 1)
    assert Damage.of([better], "top1").minus(Damage.of([score], "top1")).difference < 0


def test_a_folder_is_gone_on_with(model, judged, stats, plan, found, tmp_path, monkeypatch):
    options = {"sizes": [300], "centers": ["mean"], "seeds": [1], "pairs": 1, "progress": False}
    first = compare_collections(model, judged, stats, plan, folder=tmp_path / "run", **options)
    monkeypatch.setattr("ablation_lens.experiments.scores.evaluate_each", None)  # measuring would fail
    assert compare_collections(model, judged, stats, plan, folder=tmp_path / "run", **options).rows == first.rows


def test_mlp_neurons_and_images(judged):
    model = al.load_model("tiny-vit")
    task = al.task_for(model)
    plan = task.batches(split="collect", images=16)
    stats = al.collect(model, plan, site="mlp", progress=False)
    options = {"sizes": [4], "pairs": 2, "centers": ["mean"], "seeds": [1], "progress": False}
    found = compare_collections(model, task.batches(split="evaluate", images=4), stats, plan, **options)
    assert (found.site, found.unit, found.rows[0].pairs) == ("mlp", "images", 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": [2000]}, "two collections of 2,000"),
        ({"metric": "crossentropy"}, "did you mean 'cross_entropy'"),
        ({"centers": ["pique"]}, "nearest is 'peak'"),
        ({"seeds": [1, 1]}, "each once"),
    ],
)
def test_what_cannot_be_compared_is_said(model, judged, stats, plan, change, words):
    with pytest.raises(MismatchError, match=words):
        compare_collections(model, judged, stats, plan, **{"sizes": [300], "progress": False, **change})


def test_collections_of_judged_documents_are_refused(model, judged, stats):
    with pytest.raises(MismatchError, match="very documents"):
        compare_collections(model, judged, stats, judged, sizes=[100], centers=["mean"], seeds=[1], progress=False)
    with pytest.raises(MismatchError, match="very documents"):
        compare_collections(model, judged, stats, others={"it": al.collect(model, judged, progress=False)})


def test_nothing_to_compare_is_said(model, judged, stats):
    with pytest.raises(MismatchError, match="nothing to compare"):
        compare_collections(model, judged, stats)


def test_statistics_of_another_site_are_refused(model, judged, stats, plan):
    other = al.collect(model, plan.part(0, 1), site="mlp", progress=False)
    with pytest.raises(MismatchError, match="are of mlp, not of z"):
        compare_collections(model, judged, stats, others={"mlp": other}, progress=False)


def test_the_figure_has_a_panel_for_sizes_and_one_for_corpora(found):
    figure = stability_curves(found)
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["zero", "mean"]
    assert [axis.title.text for axis in (figure.layout.yaxis, figure.layout.yaxis2)] == [
        "|c₁ − c₂| / σ",
        "worse by (nats)",
    ]
    assert figure.layout.xaxis3.ticktext == ("same",)

"""Cross-pruning: two tasks in neurons of their own are taken away one by one, and what no number can say is said."""

import math

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.experiments.crossing import cross_pruning, find_count, random_like
from tests.experiments.two_tasks import TwoTasks, rows, two_tasks

QUIET = {"progress": False, "seeds": range(3)}


@pytest.fixture(scope="module")
def model():
    return TwoTasks()


@pytest.fixture(scope="module")
def tasks(model):
    return two_tasks(model)


def test_a_task_with_neurons_of_its_own_is_taken_away_alone(model, tasks):
    found = cross_pruning(model, tasks, target=0.25, **QUIET)
    assert found.relative[..., 0].tolist() == [[0.25, 1.0], [1.0, 0.25]]
    assert not bool(found.masks[0, 0, 0, 8:].any())
    assert not bool(found.masks[1, 0, 0, :8].any())
    assert found.gaps[:, 0].tolist() == [[-0.75] * 3] * 2
    assert found.outcomes == ("reached", "reached")


def test_random_neurons_take_away_no_task_alone(model, tasks):
    found = cross_pruning(model, tasks, target=0.25, **QUIET)
    assert bool((found.gaps[:, 1, 0].abs() < 0.2).all())
    assert found.means[4].tolist() == pytest.approx((found.means[2] - found.means[3]).tolist(), abs=0.1)


def test_any_center_of_what_a_task_is_set_against(model, tasks):
    # The other task's neurons are silent there, so all its centers are zero.
    zero, mean = (cross_pruning(model, tasks, target=0.5, value=value, **QUIET) for value in ("zero", "mean"))
    assert torch.equal(zero.relative, mean.relative)
    # A general corpus of both tasks has other means: half of a task's own.
    both = al.tasks.freezing.freeze(model, torch.cat([rows(0, 7), rows(1, 7)]))
    general = cross_pruning(model, tasks, target=0.5, value="mean", baseline=both, **QUIET)
    assert general.retained == "own batches"
    assert general.relative[0, 1, 0] == 1


def test_a_target_that_falls_between_two_numbers_of_neurons_is_said(model, tasks):
    found = cross_pruning(model, tasks, target=0.6, **QUIET)
    assert found.outcomes == ("stepped over", "stepped over")
    assert found.relative[0, 0, 0] == 0.5
    assert "No number of neurons came within 0.02 of 0.6" in repr(found)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([1.0] * 8, (8, 1.0, "not reached")),
        ([0.2] * 8, (1, 0.2, "stepped over")),
        ([math.nan] * 8, (0, math.nan, "unknown")),
        ([1.0, 0.9, 0.8, 0.95, 0.9, 0.5, 0.4, 0.3], (5, 0.9, "stepped over")),
    ],
)
def test_every_search_ends_and_says_how(kept, expected):
    asked = []

    def keeps(count):
        asked.append(count)
        return kept[count - 1]

    found = find_count(keeps, 8, 0.8, 0.01, lambda done: None)
    assert found[0] == expected[0] or expected[2] == "stepped over"
    assert found[2] == expected[2]
    assert found[0] == 0 or found[1] == kept[found[0] - 1]
    assert len(asked) <= 6


def test_random_masks_have_as_many_neurons_of_every_layer():
    mask = torch.zeros(3, 1, 10, dtype=torch.bool)
    mask[0], mask[2, 0, :3] = True, True
    assert random_like(mask, 7).sum((1, 2)).tolist() == [10, 0, 3]


def test_no_ratio_of_noise_where_a_model_cannot_do_the_tasks(tasks):
    untrained = TwoTasks()
    untrained.blocks[0].mlp.W_out.data = untrained.blocks[0].mlp.W_out.data.roll(1, 1)
    found = cross_pruning(untrained, tasks, fractions={"first": 0.25, "second": 0.25}, **QUIET)
    assert found.is_done == (False, False)
    assert bool(torch.isnan(found.relative).all())
    assert bool(torch.isfinite(found.rise).all())
    assert "a ratio of noise" in repr(found)
    looked = cross_pruning(untrained, tasks, **QUIET)
    assert looked.outcomes == ("unknown", "unknown")


def test_documents_that_neurons_were_chosen_on_are_not_judged(model, tasks):
    first, second = tasks.values()
    with pytest.raises(MismatchError, match="very documents"):
        cross_pruning(model, {"first": (first[0], first[0]), "second": second}, **QUIET)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"one": 1}, "give at least two"),
        ({"one": 1, "two": 2}, "give a task"),
        ([1, 2], "give at least two"),
    ],
)
def test_what_are_not_tasks(model, given, said):
    with pytest.raises(MismatchError, match=said):
        cross_pruning(model, given, **QUIET)


def test_one_task_under_two_names_is_refused(model, tasks):
    with pytest.raises(MismatchError, match="read the same documents"):
        cross_pruning(model, {"one": tasks["first"], "two": tasks["first"]}, **QUIET)


def test_a_task_is_not_set_against_itself(model, tasks):
    with pytest.raises(MismatchError, match="the baseline and first read the same documents"):
        cross_pruning(model, tasks, baseline=tasks["first"][0], **QUIET)


def test_a_truncated_file_of_statistics_says_what_to_do(model, tasks, tmp_path):
    cross_pruning(model, tasks, folder=tmp_path, **QUIET)
    place = sorted(tmp_path.glob("statistics-*"))[0]
    place.write_bytes(place.read_bytes()[:300])
    with pytest.raises(FileFormatError, match=r"(?s)statistics-.*delete it and run the same command again"):
        cross_pruning(model, tasks, folder=tmp_path, **QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {"target": 1.5},
        {"target": 0},
        {"tolerance": -1},
        {"kind": "loud"},
        {"fractions": {"first": 0.1}},
        {"seeds": ()},
        {"seeds": 3},
    ],
)
def test_settings_that_are_not_possible(model, tasks, options):
    with pytest.raises(MismatchError):
        cross_pruning(model, tasks, **{**QUIET, **options})


def test_what_was_measured_is_not_measured_again(model, tasks, tmp_path, monkeypatch):
    first = cross_pruning(model, tasks, target=0.5, folder=tmp_path / "run", **QUIET)
    monkeypatch.setattr("ablation_lens.experiments.scores.evaluate_each", None)
    monkeypatch.setattr("ablation_lens.experiments.crossing.collect_statistics", None)
    again = cross_pruning(model, tasks, target=0.5, folder=tmp_path / "run", **QUIET)
    assert repr(again) == repr(first)


def test_intervals_are_those_of_pairs_over_documents(model):
    """Against a bootstrap written out: draws of documents, and the ratio of sums in each."""
    import numpy as np

    opt = al.load_model("tiny-opt")
    tasks = {"prose": al.task_for(opt, "stdlib"), "code": al.task_for(opt, "stdlib-code")}
    sizes = {"collect": 2000, "evaluate": 1500}
    found = cross_pruning(opt, tasks, fractions={"prose": 0.2, "code": 0.1}, **sizes, **QUIET)
    plan = tasks["code"].batches(split="evaluate", tokens=1500)
    stats = {
        name: al.collect(opt, t.batches(split="collect", tokens=2000), site="mlp", progress=False)
        for name, t in tasks.items()
    }
    mask = al.experiments.selective_neurons(stats["prose"], stats["code"], 0.2)
    assert torch.equal(mask, found.masks[0])
    whole, pruned = al.evaluate(opt, plan), al.evaluate(opt, plan, stats["code"].ablation(mask, "zero"))
    assert found.relative[0, 1, 0] == pytest.approx(pruned.top1 / whole.top1)
    generator = np.random.default_rng(5)
    draws = generator.integers(0, len(whole.documents), (4000, len(whole.documents)))
    ratios = pruned.correct.numpy()[draws].sum(1) / whole.correct.numpy()[draws].sum(1)
    assert found.relative[0, 1, 1:].tolist() == pytest.approx(np.quantile(ratios, [0.025, 0.975]).tolist(), abs=0.02)

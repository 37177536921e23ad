"""Which center does the least harm: ranked as the numbers say, in pairs, and never on its own documents."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.tasks.known_rows import row_digests
from ablation_lens.tasks.plans import Batch


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def task(model):
    return al.task_for(model)


@pytest.fixture(scope="module")
def statistics(model, task):
    return al.collect(model, task.batches(split="collect", tokens=3000))


def test_the_values_are_those_of_evaluate_and_the_order_is_theirs(model, task, statistics):
    plan = task.batches(tokens=500)
    ranking = al.compare_centers(
        model, plan, statistics=statistics, centers=["zero", "mean", "peak"], seeds=[1, 2], progress=False
    )
    for center, row in ranking.frame.iterrows():
        found = [
            al.evaluate(model, plan, statistics.ablation(al.random_neurons(statistics.shape, 0.5, seed), center))
            for seed in (1, 2)
        ]
        assert row["value"] == pytest.approx(np.mean([score.cross_entropy for score in found]))
        assert row["change"] == pytest.approx(row["value"] - al.evaluate(model, plan).cross_entropy)
    assert ranking.frame["value"].is_monotonic_increasing
    assert ranking.frame.loc[ranking.best, "to_best"] == 0
    assert ranking.frame["as_best"].iloc[0]
    assert ranking.conditional


def test_higher_is_better_turns_the_order(model, task, statistics):
    def first(logits, batch):
        return logits[:, 0, 5]

    plan = task.batches(tokens=300)
    order = {
        better: list(
            al.compare_centers(
                model, plan, first, statistics=statistics, mask=["L1"], better=better, progress=False
            ).frame.index
        )
        for better in ("higher", "lower")
    }
    assert set(order["higher"]) == set(order["lower"])
    assert order["higher"][0] == order["lower"][-1]


def test_a_function_that_does_not_say_what_is_better(model, task, statistics):
    with pytest.raises(MismatchError, match="better='higher'"):
        al.compare_centers(
            model, task.batches(tokens=300), lambda logits, batch: logits[:, 0, 5], statistics=statistics
        )


def test_centers_are_not_judged_on_their_own_documents(model, task, statistics):
    with pytest.raises(MismatchError, match="very documents"):
        al.compare_centers(model, task.batches(split="collect", tokens=3000), statistics=statistics)


def test_nor_on_some_of_their_rows_whoever_batched_them(model, task, statistics):
    plan = task.batches(split="collect", tokens=3000)
    others = list(task.batches(tokens=300))
    with pytest.raises(MismatchError, match=f"1 of {1 + sum(len(batch.inputs) for batch in others)} rows"):
        al.compare_centers(model, [next(iter(plan)).rows(0, 1), *others], statistics=statistics)
    own = al.collect(model, [[5, 6, 7], [8, 9, 4]], progress=False)
    with pytest.raises(MismatchError, match="1 of 2 rows"):
        al.compare_centers(model, [[8, 9, 4], [8, 9, 5]], statistics=own)


def test_nor_on_the_plan_of_statistics_that_do_not_know_their_rows(model, task, statistics):
    with pytest.raises(MismatchError, match="very documents"):
        al.compare_centers(model, task.batches(split="collect", tokens=3000), statistics=replace(statistics, rows=None))


def test_nor_on_documents_that_it_would_collect_from_by_itself(model, task):
    with pytest.raises(MismatchError, match="are among those that are collected"):
        al.compare_centers(model, task.batches(split="collect", tokens=300), progress=False)


def test_prompts_and_values_of_one_s_own(model, statistics):
    prompts = Batch.prompts(torch.tensor([[2, 7, 9], [2, 8, 4]]), answers=[5, 6], wrong=[7, 8])
    ranking = al.compare_centers(
        model,
        [prompts],
        "logit_difference",
        statistics=statistics,
        centers={"mine": torch.full(statistics.shape, 0.1), "zero": torch.zeros(statistics.shape)},
        mask="L2",
        progress=False,
    )
    assert sorted(ranking.frame.index) == ["mine", "zero"]
    assert ranking.frame["sd"].isna().all()
    assert "128 z neurons" in repr(ranking)


def test_a_center_that_cannot_be_had_is_told_not_dropped(model, task, statistics):
    ranking = al.compare_centers(model, task.batches(tokens=300), statistics=statistics, seeds=[1], progress=False)
    assert list(ranking.left_out) == ["peak-trimmed"]
    assert "left out: peak-trimmed" in repr(ranking)


def test_two_metrics_are_no_ranking(model, task, statistics):
    with pytest.raises(MismatchError, match="one metric"):
        al.compare_centers(model, task.batches(tokens=300), ["kl", "rank"], statistics=statistics)


def test_ctrl_c_ranks_what_every_center_was_measured_with(model, task, statistics):
    plan, runs = task.batches(tokens=300), 0

    def interrupting(logits, batch):
        nonlocal runs
        runs += 1
        # The model as it is, then three centers with the first mask and one with the second.
        if runs > (1 + 3 + 1) * len(plan):
            raise KeyboardInterrupt
        return logits[:, 0, 5]

    with pytest.warns(UserWarning, match="1 of 5 masks"):
        ranking = al.compare_centers(
            model,
            plan,
            interrupting,
            statistics=statistics,
            centers=["zero", "mean", "peak"],
            seeds=range(5),
            better="higher",
            progress=False,
        )
    assert len(ranking.frame) == 3


def test_centers_of_another_model_are_refused(task, statistics):
    other = al.load_model("tiny-opt")
    with torch.no_grad():
        other.blocks[0].attn.W_O.mul_(2)
    with pytest.raises(MismatchError, match="another model"):
        al.compare_centers(other, task.batches(tokens=300), statistics=statistics, progress=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"site": "mlp"}, "site='mlp'"),
        ({"statistics": {"z": None}}, "what collect gives"),
        ({"statistics": "file.safetensors"}, "load"),
        ({"centers": {}}, "no center"),
        ({"mask": []}, "nothing would be ablated"),
        ({"fraction": 0.0}, "ablate nothing"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(options, said, model, task, statistics):
    with pytest.raises(MismatchError, match=said):
        al.compare_centers(model, task.batches(tokens=300), **{"statistics": statistics, **options}, progress=False)


def test_learned_values_are_ranked_beside_centers_and_not_on_what_they_are_from(model, task, statistics):
    plan = task.batches(tokens=300)
    learned = al.learn(
        model, task.batches(split="collect", tokens=1000), statistics=statistics, steps=1, progress=False
    )
    options = {"statistics": statistics, "seeds": [1], "progress": False}
    ranking = al.compare_centers(model, plan, centers={"learned": learned, "same": learned.values}, **options)
    assert ranking.frame["value"].nunique() == 1
    with pytest.raises(MismatchError, match="very documents they would be judged on"):
        al.compare_centers(model, task.batches(split="collect", tokens=300), centers={"learned": learned}, **options)
    judged = replace(learned, rows=row_digests(next(iter(plan)), "causal-lm").flatten())
    with pytest.raises(MismatchError, match="very documents they would be judged on"):
        al.compare_centers(model, plan, centers={"learned": judged}, **options)
    with pytest.raises(MismatchError, match="learned for another model"):
        al.compare_centers(
            model, plan, centers={"learned": replace(learned, model=replace(learned.model, d_head=3))}, **options
        )
    with pytest.raises(MismatchError, match="learned for mlp"):
        al.compare_centers(model, plan, centers={"learned": replace(learned, site=al.Site.MLP)}, **options)

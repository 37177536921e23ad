"""Faithfulness, both completenesses, minimality: against NumPy, against `evaluate`, on circuits that are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ablation_lens as al
from ablation_lens import circuits, metrics
from ablation_lens.circuits.judging import Judge, share_kept
from ablation_lens.circuits.setting import Setting
from ablation_lens.errors import CorpusError, MismatchError, ModelError
from ablation_lens.measure.score import Sums
from tests.circuits.models import (
    BACKUP,
    FIRST,
    INDUCTION,
    PREVIOUS,
    backup_batch,
    backup_model,
    induction_batch,
    induction_model,
    linear_batch,
    linear_model,
)
from tests.tiny_models import BY_NAME

CENTERS = ("zero", "mean", "median", "peak")
METRIC = "logit_difference"


def judge_calmly(judge, *arguments, **options):
    return judge(*arguments, progress=False, **options)


def faithful(*arguments, **options):
    return judge_calmly(circuits.faithfulness, *arguments, **options)


def sums(*values, weights=None):
    made = torch.tensor(values).double()
    weights = torch.ones(len(values)) if weights is None else torch.tensor(weights)
    return Sums(made * weights.double(), weights.double())


@pytest.fixture(scope="module")
def induction():
    model = induction_model()
    batch = induction_batch()
    return model, batch, al.collect(model, [induction_batch(seed=1).inputs], progress=False)


@pytest.fixture(scope="module")
def linear():
    """A model, and what it is surest of."""
    model, tokens = linear_model(), linear_batch(rows=10).inputs
    logits = model(tokens)[:, -1]
    return model, al.Batch.prompts(tokens, logits.argmax(-1), logits.argmin(-1))


# ---------------------------------------------------------------------- f


def test_f_and_its_interval_are_those_of_numpy():
    generator = np.random.default_rng(3)
    weights = np.array([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])
    clean, circuit, empty = 5 + generator.normal(size=(3, 6)) - np.array([[0], [1], [4]])
    found = share_kept(*(sums(*values, weights=weights.tolist()) for values in (circuit, clean, empty)))
    c, m, e = (np.average(values, weights=weights) for values in (circuit, clean, empty))
    assert found.value == pytest.approx((c - e) / (m - e))
    # The same draws, one replicate at a time, with rows written out.
    draw, replicates = np.random.Generator(np.random.PCG64(0)), []
    for counts in draw.multinomial(6, np.full(6, 1 / 6), size=2000):
        rows = np.repeat(np.arange(6), counts)
        c, m, e = (np.average(values[rows], weights=weights[rows]) for values in (circuit, clean, empty))
        replicates.append((c - e) / (m - e))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])))


def test_rows_are_drawn_for_all_three_together():
    # Rows differ wildly, and in every row the circuit keeps half: paired, nothing is left to chance.
    clean = sums(1.0, 100.0, 7.0)
    empty = sums(0.0, 60.0, 6.0)
    found = share_kept(Sums((clean.values + empty.values) / 2, clean.weights), clean, empty)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


@given(st.integers(0, 50))
@settings(max_examples=15)
def test_the_sign_of_the_metric_does_not_matter(seed):
    draw = torch.Generator().manual_seed(seed)
    weights = torch.ones(8).double()
    clean, circuit, empty = (
        Sums(shift + torch.randn(8, generator=draw).double(), weights) for shift in (9.0, 7.0, 0.0)
    )
    minus = [Sums(-each.values, weights) for each in (circuit, clean, empty)]
    one, other = share_kept(circuit, clean, empty), share_kept(*minus)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


@pytest.mark.parametrize(
    ("clean", "empty", "why"),
    [
        (sums(1.0, -1.0, 2.0, -2.0), sums(0.0, 0.0, 0.0, 0.0), "rounding"),
        (sums(1.0, -1.0, 2.0, -1.0), sums(0.0, 0.0, 0.0, 0.0), "cannot be told from 0"),
        (sums(100.0, 100.0), sums(100.00001, 100.00001), "rounding"),
        (sums(5.0), sums(1.0), "single row"),
    ],
)
def test_f_is_refused_where_its_divisor_may_be_nothing(clean, empty, why):
    found = share_kept(clean, clean, empty, "the metric")
    assert why in found.refused
    assert np.isnan([found.value, found.low, found.high]).all()


def test_a_refused_f_raises_and_the_rest_is_there(induction):
    model, _, _ = induction
    # Random tokens and answers: nothing for the induction circuit to say.
    batch = al.Batch.prompts(torch.tensor([[1, 2, 3, 4, 1], [5, 6, 7, 8, 5]]), [2, 3], [3, 6])
    circuit = circuits.Circuit.of_heads([PREVIOUS], model)
    found = faithful(model, batch, METRIC, circuit, 0.0, random=2)
    assert "cannot be told from 0" in found.refused
    for what in ("f", "interval"):
        with pytest.raises(MismatchError, match="cannot be told from 0"):
            getattr(found, what)
    assert found.m_circuit == pytest.approx(0, abs=1e-6)
    assert np.isfinite([found.m_model, found.m_empty, found.gap]).all()
    assert "f is refused" in repr(found)


# ---------------------------------------------------------------------- faithfulness


@pytest.mark.parametrize("center", CENTERS)
def test_the_induction_circuit_is_faithful_under_every_center(induction, center):
    model, batch, statistics = induction
    circuit = circuits.Circuit.of_heads([PREVIOUS, INDUCTION], model)
    found = faithful(model, batch, METRIC, circuit, center, statistics=statistics, random=5)
    assert found.f == pytest.approx(1, abs=1e-6)
    assert found.gap == pytest.approx(0, abs=1e-5)
    assert max(found.random_f) < 0.1
    half = faithful(model, batch, METRIC, circuit.without(PREVIOUS), center, statistics=statistics, random=0)
    assert half.f == pytest.approx(0, abs=0.05)


def test_everything_keeps_all_of_the_metric_and_nothing_none_to_the_last_bit(linear):
    model, batch = linear
    for keep, f in ((True, 1.0), (False, 0.0)):
        circuit = circuits.Circuit.of(model, keep, ["z", "mlp"])
        found = faithful(model, batch, METRIC, circuit, 0.3, random=1)
        assert (found.f, found.interval) == (f, (f, f))
        assert found.random_f == [f]


def test_every_m_is_what_evaluate_gives():
    model = al.load_model("tiny-opt")
    batches = al.task_for(model).batches(split="evaluate", tokens=300)
    circuit = circuits.Circuit.of_heads(["L0.H1", "L1", "L2.MLP", "L0.MLP"], model, sites=["z", "mlp"])
    found = faithful(model, batches, "cross_entropy", circuit, 0.1, random=0)
    nothing = circuits.Circuit.of(model, False, ["z", "mlp"])
    for m, kept, rows in ((found.m_circuit, circuit, found.kept), (found.m_empty, nothing, found.empty)):
        score = al.evaluate(model, batches, kept.outside(0.1))
        assert m == pytest.approx(score.cross_entropy, rel=1e-5)
        assert rows.weights.sum() == score.predictions
    assert found.m_model == pytest.approx(al.evaluate(model, batches).cross_entropy, rel=1e-6)


@pytest.mark.parametrize("name", ["opt", "mistral"])
def test_all_and_no_units_are_what_plain_hugging_face_hooks_give(saved, name):
    tiny, model = BY_NAME[name], al.load_model(saved(name))
    tokens, mask = tiny.inputs()
    batch = al.Batch.causal(tokens, mask.bool())
    circuit = circuits.Circuit.of(model, True)
    found = faithful(model, batch, "cross_entropy", circuit, 0.1, random=0)
    reference = tiny.model()

    def loss():
        with torch.no_grad():
            logits = reference(tokens, attention_mask=mask).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
        return float(losses[batch.scored].mean())

    assert found.m_model == pytest.approx(loss(), rel=1e-4)
    handles = [
        module.register_forward_pre_hook(lambda module, args: (torch.full_like(args[0], 0.1), *args[1:]))
        for module in tiny.projections(reference)
    ]
    try:
        assert found.m_empty == pytest.approx(loss(), rel=1e-4)
    finally:
        for handle in handles:
            handle.remove()
    assert found.m_empty != pytest.approx(found.m_model, rel=1e-3)


def test_kl_is_kept_from_its_worst_to_0(linear):
    model, batch = linear
    whole, none, some = (circuits.Circuit.of(model, True), circuits.Circuit.of(model, False), "L0.H1")
    found = faithful(model, batch, "kl", circuits.Circuit.of_heads(some, model), 0.0, random=0)
    assert found.m_model == 0 < found.m_empty
    assert found.f == pytest.approx(1 - found.m_circuit / found.m_empty)
    assert [faithful(model, batch, "kl", each, 0.0, random=0).f for each in (whole, none)] == [1, 0]


def test_a_metric_that_weighs_nothing_is_refused(linear):
    model, batch = linear

    def nothing(logits, batch):
        return logits[:, -1, 0], torch.zeros(len(logits))

    with pytest.raises(CorpusError, match="a weight of 0"):
        faithful(model, batch, nothing, circuits.Circuit.of(model, True), 0.0)


def test_batch_size_and_order_of_rows_do_not_matter(linear):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0.H1", "L2.H0", "L1.MLP"], model)
    one = faithful(model, batch, METRIC, circuit, 0.2, random=0)
    single = faithful(model, [batch.rows(n, n + 1) for n in reversed(range(10))], METRIC, circuit, 0.2, random=0)
    assert single.f == pytest.approx(one.f)
    assert single.kept.values.tolist() == pytest.approx(one.kept.values.flip(0).tolist())


@pytest.mark.parametrize("sides", [(0, 2), (2, 0)])
def test_padding_does_not_matter(induction, sides):
    model, batch, _ = induction
    valid = torch.nn.functional.pad(torch.ones_like(batch.inputs, dtype=torch.bool), sides)
    padded = al.Batch.prompts(torch.nn.functional.pad(batch.inputs, sides), batch.answers, batch.wrong, valid)
    for positions in (None, -1, [1, 2]):
        circuit = circuits.Circuit.of_heads([PREVIOUS, "L1.H0"], model, positions=positions)
        one, other = (faithful(model, each, METRIC, circuit, 0.1, random=0) for each in (batch, padded))
        assert (one.m_circuit, one.m_empty) == pytest.approx((other.m_circuit, other.m_empty))


def test_heads_that_change_places_with_their_weights_change_nothing_else(linear):
    model, batch = linear
    moved, order = linear_model(), [2, 0, 3, 1]
    for block in moved.blocks:
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            getattr(block.attn, name).data = getattr(block.attn, name).data[order]
    kept = torch.rand(3, 4, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    kept = kept.expand(3, 4, 4)
    one = faithful(model, batch, METRIC, circuits.Circuit({"z": kept}), 0.1, random=0)
    other = faithful(moved, batch, METRIC, circuits.Circuit({"z": kept[:, order]}), 0.1, random=0)
    assert other.f == pytest.approx(one.f)


def test_a_lower_metric_gives_the_same_f(linear):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0.H1", "L2.H0"], model)
    negative = al.metrics.Metric(lambda logits, given: -metrics.logit_difference(logits, given), name="negative")
    one, other = (faithful(model, batch, metric, circuit, 0.0, random=1) for metric in (METRIC, negative))
    assert other.f == pytest.approx(one.f)
    assert other.m_circuit == pytest.approx(-one.m_circuit)


def test_positions_of_a_circuit_are_where_nothing_is_ablated_too(induction):
    model, batch, _ = induction
    last = circuits.Circuit.of_heads([INDUCTION], model, positions=-1)
    found = faithful(model, batch, METRIC, last, 0.0, random=1)
    # At the last position alone the head that looks back is not needed: it has done its work before.
    assert found.f == pytest.approx(1, abs=1e-3)
    assert found.m_empty == pytest.approx(al.evaluate(model, batch, (last - last).outside(0.0), metrics=METRIC)[METRIC])


def test_random_circuits_are_drawn_by_the_seed(linear):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0.H1", "L2.H0"], model)
    one, same, other = (
        faithful(model, batch, METRIC, circuit, 0.0, random=4, seed=seed).random_f for seed in (0, 0, 9)
    )
    assert one == same
    assert one != other


def test_the_result_reads_well(linear):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0.H1"], model)
    text = repr(faithful(model, batch, METRIC, circuit, 0.0, random=3))
    for part in ("f = ", "m(M) = ", "m(C) = ", "m(∅) = ", "3 random circuits", "L0.H1"):
        assert part in text


# ---------------------------------------------------------------------- what is refused


def test_a_circuit_of_another_model_is_refused(linear, induction):
    model, batch = linear
    other = circuits.Circuit.of_heads(["L0.H1"], induction[0])
    with pytest.raises(MismatchError, match=r"\(2, 3, 12\).*\(3, 4, 4\)"):
        faithful(model, batch, METRIC, other, 0.0)


def test_a_circuit_that_was_found_in_another_model_of_this_shape_is_refused(linear):
    model, batch = linear
    mask = circuits.Circuit.of_heads(["L0.H1"], model).kept
    other = circuits.Circuit(mask, source=al.record_of(linear_model(seed=5)))
    with pytest.raises(MismatchError, match="found in another model"):
        faithful(model, batch, METRIC, other, 0.0)


def test_values_must_be_for_every_site_of_the_circuit(linear):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0.H1", "L1.MLP"], model)
    with pytest.raises(MismatchError, match="mlp was asked for"):
        faithful(model, batch, METRIC, circuit, {"z": 0.0})


def test_nothing_is_judged_on_what_its_values_were_computed_from():
    model = al.load_model("tiny-opt")
    batches = al.task_for(model).batches(split="collect", tokens=300)
    statistics = al.collect(model, batches, progress=False)
    circuit = circuits.Circuit.of_heads(["L0.H1"], model)
    for judge in (circuits.faithfulness, circuits.completeness_of_rest, circuits.completeness_gap, circuits.minimality):
        with pytest.raises(MismatchError, match="were computed from the inputs"):
            judge(model, batches, "cross_entropy", circuit, "mean", statistics=statistics, progress=False)


def test_nor_on_some_of_its_rows_whoever_batched_them():
    model, batch = induction_model(), induction_batch(rows=8)
    circuit = circuits.Circuit.of_heads(["L0.H1"], model)
    prompts = circuits.Prompts.of(batch.inputs, batch.answers, batch.wrong, batch_size=3)
    first, second = prompts.split()
    padded, real = (torch.nn.functional.pad(each, (2, 0))[:3] for each in (batch.inputs, torch.ones_like(batch.inputs)))
    judged_on = {
        "8 of 8": prompts,
        "4 of 4": first,
        "2 of 2": second.rows([3, 1]),
        "3 of 3": al.Batch.prompts(padded, batch.answers[:3], batch.wrong[:3], valid=real),
    }
    for collected_on in (prompts, batch.inputs, [al.Batch.causal(row[None]) for row in batch.inputs]):
        statistics = al.collect(model, collected_on, positions=True, progress=False)
        for values in ("mean", "position-mean", circuits.position_mean(statistics)):
            for share, batches in judged_on.items():
                with pytest.raises(MismatchError, match=f"{share} rows"):
                    faithful(model, batches, METRIC, circuit, values, statistics=statistics)
    half = al.collect(model, first, progress=False)
    with pytest.raises(MismatchError, match="4 of 8 rows"):
        faithful(model, prompts, METRIC, circuit, "mean", statistics=half)
    assert faithful(model, second, METRIC, circuit, "mean", statistics=half, random=0).m_model
    # Nothing is computed from data.
    assert faithful(model, first, METRIC, circuit, "zero", statistics=half, random=0).m_model


def test_statistics_that_do_not_know_their_rows_know_their_plan():
    model = al.load_model("tiny-opt")
    batches = al.task_for(model).batches(split="collect", tokens=300)
    old = replace(al.collect(model, batches, progress=False), rows=None)
    circuit = circuits.Circuit.of_heads(["L0.H1"], model)
    with pytest.raises(MismatchError, match="were computed from the inputs"):
        faithful(model, batches, "cross_entropy", circuit, "mean", statistics=old)
    texts = al.task_for(model).batches(split="evaluate", tokens=300)
    assert faithful(model, texts, "cross_entropy", circuit, "mean", statistics=old, random=0).m_model


def test_the_rest_of_a_plan_is_judged_with_statistics_of_a_part_of_it():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=900, batch_size=1)
    statistics = al.collect(model, plan[:2], site=["z", "mlp"], progress=False)
    circuit = circuits.Circuit.of_heads(["L0.H1", "L1.MLP"], model)
    with pytest.raises(MismatchError, match=f"2 of {len(plan)} rows"):
        faithful(model, plan, "cross_entropy", circuit, "mean", statistics=statistics)
    assert faithful(model, plan[2:], "cross_entropy", circuit, "mean", statistics=statistics, random=0).m_model


@pytest.mark.parametrize(
    ("options", "message"),
    [({"random": -1}, "random=-1"), ({"random": 1.5}, "random"), ({"largest": -2}, "largest=-2")],
)
def test_numbers_that_are_not_possible_are_refused(linear, options, message):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0.H1"], model)
    with pytest.raises(MismatchError, match=message):
        judge_calmly(circuits.completeness_gap, model, batch, METRIC, circuit, 0.0, **options)


def test_what_is_no_circuit_is_refused(linear):
    model, batch = linear
    with pytest.raises(MismatchError, match=r"Circuit\.of_heads"):
        faithful(model, batch, METRIC, ["L0.H1"], 0.0)


def test_what_is_no_model_is_refused(linear):
    with pytest.raises(ModelError, match="is not a model"):
        faithful(None, linear[1], METRIC, circuits.Circuit.of(linear[0], True), 0.0)


def test_a_judge_measures_a_circuit_once(linear):
    model, batch = linear
    setting = Setting.of(model, batch, METRIC, 0.0)
    judge, runs = Judge(setting), []
    circuit = circuits.Circuit.of_heads(["L0.H1"], model)
    for _ in range(2):
        judge.measure([circuit, circuit, ~circuit, circuit | ~circuit, circuit - circuit], runs.append)
    assert len(runs) == 2


# ---------------------------------------------------------------------- completeness


def test_a_circuit_without_its_backup_is_not_complete_in_either_meaning():
    model, batch = backup_model(), backup_batch()
    alone = circuits.Circuit.of_heads([FIRST], model)
    assert faithful(model, batch, METRIC, alone, 0.0, random=0).f > 0.95  # and yet:
    gap = judge_calmly(circuits.completeness_gap, model, batch, METRIC, alone, 0.0, random=0)
    assert gap.removed == (FIRST,)
    assert gap.gap == pytest.approx(2.946, abs=1e-3)
    rest = judge_calmly(circuits.completeness_of_rest, model, batch, METRIC, alone, 0.0, random=0)
    assert rest.f > 0.95
    both = alone.including(BACKUP)
    assert judge_calmly(circuits.completeness_gap, model, batch, METRIC, both, 0.0).gap == pytest.approx(0, abs=1e-9)
    rest = judge_calmly(circuits.completeness_of_rest, model, batch, METRIC, both, 0.0, random=0)
    assert rest.f == pytest.approx(0, abs=1e-9)


def test_the_steps_of_the_search_are_what_evaluate_gives(linear):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0.H0", "L0.H1", "L1.H2", "L2.H3"], model)
    found = judge_calmly(circuits.completeness_gap, model, batch, METRIC, circuit, 0.0, random=0, largest=3)
    table = found.table()
    assert table["removed"].tolist() == [0, 1, 2, 3]
    for step, row in zip(found.steps, table.to_dict("records"), strict=True):
        without = circuit.without(step.units)
        for name, ablation in (("m_circuit", without.outside(0.0)), ("m_model", (circuit - without).inside(0.0))):
            assert row[name] == pytest.approx(al.evaluate(model, batch, ablation, metrics=METRIC)[METRIC])
        assert row["gap"] == pytest.approx(abs(row["m_circuit"] - row["m_model"]))
        assert row["low"] <= row["m_circuit"] - row["m_model"] <= row["high"]
    assert found.gap == max(table["gap"])


def test_restarts_never_find_less(linear):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0", "L1.H2", "L2.H3"], model)
    plain, again = (
        judge_calmly(
            circuits.completeness_gap, model, batch, METRIC, circuit, 0.3, random=1, largest=2, restarts=number
        )
        for number in (0, 3)
    )
    assert again.gap >= plain.gap
    assert "3 more that begin" in again.searched
    assert len(plain.random) == 1
    assert again.searched in repr(again)


def test_nothing_can_be_removed_from_nothing(linear):
    model, batch = linear
    for search in (circuits.completeness_gap, circuits.minimality):
        with pytest.raises(MismatchError, match="keeps nothing"):
            judge_calmly(search, model, batch, METRIC, circuits.Circuit.of(model, False), 0.0)


# ---------------------------------------------------------------------- minimality


@pytest.mark.parametrize("center", CENTERS)
def test_minimality_tells_the_induction_heads_from_one_that_is_not_needed(induction, center):
    model, batch, statistics = induction
    circuit = circuits.Circuit.of_heads([PREVIOUS, INDUCTION, "L0.H0"], model)
    found = judge_calmly(circuits.minimality, model, batch, METRIC, circuit, center, statistics=statistics, random=1)
    assert found.worst == "L0.H0"
    assert found.smallest == pytest.approx(0, abs=1e-5)
    assert {unit for unit, step in found.units.items() if step.size > 1} == {PREVIOUS, INDUCTION}


def test_a_unit_that_another_stands_in_for_matters_once_that_is_removed():
    model, batch = backup_model(), backup_batch()
    circuit = circuits.Circuit.of_heads([FIRST, BACKUP], model)
    alone = judge_calmly(circuits.minimality, model, batch, METRIC, circuit, 0.0, largest=0, random=0)
    found = judge_calmly(circuits.minimality, model, batch, METRIC, circuit, 0.0, random=2)
    assert alone.units[FIRST].size < 0.2
    assert found.units[FIRST].units == (BACKUP,)
    assert found.units[FIRST].size == pytest.approx(3)
    assert found.units[BACKUP].units == (FIRST,)
    assert len(found.random) == 4
    table = found.table()
    assert table.index[0] == found.worst
    assert table.loc[FIRST, "m_without"] == pytest.approx(0, abs=1e-9)
    assert table.loc[FIRST, "share"] == pytest.approx(found.units[FIRST].size / 3.054, abs=1e-3)
    assert FIRST in repr(found)


def test_units_of_other_levels_are_searched_as_far_as_they_are_kept(linear):
    model, batch = linear
    circuit = circuits.Circuit.of_heads(["L0.H0.D1", "L0.H0.D2", "L1.H2"], model)
    by_level = {
        level: judge_calmly(circuits.minimality, model, batch, METRIC, circuit, 0.0, level=level, random=0, largest=0)
        for level in ("neuron", "head", "layer")
    }
    assert [len(found.units) for found in by_level.values()] == [6, 2, 2]
    # All is linear: what neurons do adds up.
    parts = [by_level["neuron"].units[name].difference.difference for name in ("L0.H0.D1", "L0.H0.D2")]
    assert sum(parts) == pytest.approx(by_level["head"].units["L0.H0"].difference.difference)

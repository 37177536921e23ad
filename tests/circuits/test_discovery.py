"""Circuits that are found on one half of the prompts and judged on the other, and curves of every pair of values."""

import math
import random
import signal

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens import circuits, metrics
from ablation_lens.circuits import curves as curves_module
from ablation_lens.circuits.curves import Curves, area_under
from ablation_lens.circuits.discovery import _Search
from ablation_lens.circuits.halving import Halves
from ablation_lens.circuits.judging import Judge
from ablation_lens.circuits.setting import Setting
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.files import load_json, save_json
from ablation_lens.hooked import is_hooked
from ablation_lens.measure.forward import capture
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

CENTERS = ("zero", "mean", "median", "peak")
METRIC = "logit_difference"


def found_in(*arguments, **options):
    return circuits.discover(*arguments, progress=False, **{"random": 3, **options})


def curves_of(*arguments, **options):
    return circuits.faithfulness_curve(*arguments, progress=False, **{"level": "head", "steps": 4, **options})


def sure_linear(rows=20):
    """A linear model, and what it is surest of."""
    model, tokens = linear_model(), linear_batch(rows=rows).inputs
    logits = model(tokens)[:, -1]
    return model, al.Batch.prompts(tokens, logits.argmax(-1), logits.argmin(-1))


@pytest.fixture(scope="module")
def linear():
    return sure_linear()


@pytest.fixture(scope="module")
def linear_curves(linear):
    return curves_of(*linear, METRIC, ["zero", "mean", "peak"], sites=["z", "mlp"], shares=[0.1, 0.2, 0.5])


def prompts_of(batch, corrupted=None):
    return circuits.Prompts.of(batch.inputs, batch.answers, batch.wrong, corrupted, batch_size=5)


def rows_in(half):
    return [tuple(row) for batch in half for row in batch.inputs.tolist()]


# ---------------------------------------------------------------------- halves


def test_halves_share_no_row_whatever_the_batches_are():
    model = linear_model()
    tokens = linear_batch(rows=15).inputs
    tokens = torch.cat([tokens, tokens[:4], tokens[:2]])
    for given in (al.Batch.causal(tokens), [al.Batch.causal(part) for part in tokens.split(4)], tokens):
        halves = Halves.of(model, given, seed=3)
        first, second = rows_in(halves.first), rows_in(halves.second)
        assert not set(first) & set(second)
        assert sorted(first + second) == sorted(map(tuple, tokens.tolist()))
        assert abs(len(first) - len(second)) <= 3


def test_halves_depend_on_rows_and_seed_and_not_on_their_order():
    model = linear_model()
    tokens = linear_batch(rows=16).inputs
    one = set(rows_in(Halves.of(model, tokens, 0).first))
    assert set(rows_in(Halves.of(model, tokens.flip(0), 0).first)) == one
    assert set(rows_in(Halves.of(model, tokens, 1).first)) != one


def test_rows_of_one_document_and_differently_padded_ones_stay_together():
    model = linear_model()
    tokens = linear_batch(rows=8).inputs
    valid = torch.ones_like(tokens, dtype=torch.bool)
    plain = al.Batch.causal(tokens, valid)
    wider = al.Batch.causal(torch.nn.functional.pad(tokens[:3, :8], (2, 0)), torch.arange(10).expand(3, 10) > 1)
    shorter = al.Batch.causal(tokens[:3, :8], valid[:3, :8])
    halves = Halves.of(model, [plain, wider, shorter])
    for half in (halves.first, halves.second):
        texts = [
            tuple(row[mask].tolist()) for batch in half for row, mask in zip(batch.inputs, batch.valid, strict=True)
        ]
        short = [text for text in texts if len(text) == 8]
        assert len(short) == 2 * len(set(short))
    documents = al.Batch.causal(tokens, valid)
    object.__setattr__(documents, "documents", (0, 1, 2, 3, 0, 1, 2, 3))
    halves = Halves.of(model, documents)
    numbers = [{number for batch in half for number in batch.documents} for half in (halves.first, halves.second)]
    assert not numbers[0] & numbers[1]
    assert len(numbers[0]) == len(numbers[1]) == 2


def test_images_are_halved_by_their_pixels(saved):
    model = al.load_model(saved("vit"))
    pixels = torch.randn(4, 3, 12, 12)
    halves = Halves.of(model, {"pixel_values": pixels[[0, 1, 2, 3, 0, 1]], "labels": torch.arange(6)})
    labels = [
        {label % 4 for batch in half for label in batch.labels.tolist()} for half in (halves.first, halves.second)
    ]
    assert not labels[0] & labels[1]
    assert labels[0] | labels[1] == {0, 1, 2, 3}


@pytest.mark.parametrize("analysis", [al.circuits.discover, al.circuits.knockout_effects])
def test_the_name_of_a_task_is_not_read_as_a_text(analysis):
    with pytest.raises(MismatchError, match=r"name of a task.*prompts_for\('induction', model\)"):
        analysis(linear_model(), "induction", METRIC, 0.0)


def test_one_row_again_and_again_has_no_halves():
    with pytest.raises(MismatchError, match="all the same"):
        Halves.of(linear_model(), torch.ones(5, 4, dtype=torch.int64))


def test_centers_without_statistics_get_those_of_the_first_half(linear):
    model, batch = linear
    halves = Halves.of(model, batch)
    both = halves.values(["mean", "zero"], progress=False)
    mean = al.collect(model, halves.first, progress=False).center("mean")
    torch.testing.assert_close(both["mean"].first.by_site["z"], mean)
    assert "half of the prompts" in both["mean"].second.collected_on
    assert both["zero"].first.collected_on is None


def test_counterfactual_values_ask_each_half_for_its_twins():
    model, batch = sure_linear()
    prompts = prompts_of(batch, corrupted=batch.inputs.flip(1))
    halves = Halves.of(model, prompts)
    given = ["counterfactual", circuits.Values.of(circuits.counterfactual(prompts), name="mine")]
    for half, which in ((halves.first, "first"), (halves.second, "second")):
        for both in halves.values(given, progress=False).values():
            values = getattr(both, which).by_site["z"]
            for part in half:
                assert values(model, part, al.Site.Z).shape[1:3] == part.inputs.shape


@pytest.mark.parametrize("statistics", ["prompt", "mean"])
def test_a_word_for_statistics_that_is_not_known_is_refused(linear, statistics):
    with pytest.raises(MismatchError, match="give 'prompts'"):
        Halves.of(*linear).values(["mean"], statistics)


# ---------------------------------------------------------------------- discovery


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("method", ["attribution", "greedy"])
def test_exactly_the_induction_heads_are_found_under_every_center(center, method):
    found = found_in(induction_model(), induction_batch(rows=20), METRIC, center, method=method)
    assert found.circuit.units() == [PREVIOUS, INDUCTION]
    assert found.judged.f == pytest.approx(1, abs=1e-6)
    assert found.reached
    assert (found.effects is None) == (method == "greedy")


def test_what_was_found_is_judged_on_the_other_half(linear):
    model, batch = linear
    found = found_in(model, prompts_of(batch), METRIC, 0.0)
    first, second = found.halves
    assert not set(rows_in(first)) & set(rows_in(second))
    for half, result in ((first, found.found), (second, found.judged)):
        again = circuits.faithfulness(model, half, METRIC, found.circuit, 0.0, random=0, progress=False)
        assert again.f == pytest.approx(result.f)
    assert len(found.judged.random) == 3


@pytest.mark.parametrize("level", ["head", "layer", "neuron"])
def test_no_smaller_circuit_of_those_ranked_first_reaches_the_target(linear, level):
    model, batch = linear
    found = found_in(model, batch, METRIC, 0.0, sites=["z", "mlp"], level=level, target=0.7)
    sizes = sum(found.effects[site].numel() for site in found.effects.sites)
    count = min(size for size, f in found.tried.items() if f >= 0.7)
    assert count == len(found.circuit.units(level)) < sizes
    assert found.found.f == pytest.approx(found.tried[count])
    # Here f is known for all sizes: the model is linear.
    judge = Judge(Setting.of(model, found.halves[0], METRIC, 0.0, sites=["z", "mlp"]))
    all_sizes = _Search(judge, 0.7)._f(
        [circuits.Circuit.top(found.effects, count=n, model=model) for n in range(sizes + 1)], lambda runs: None
    )
    assert min(n for n, f in enumerate(all_sizes) if f >= 0.7) == count


def test_a_backup_is_found_by_a_greedy_search_only_if_it_is_asked_for():
    few, all_of_it = (
        found_in(backup_model(), backup_batch(20), METRIC, 0.0, method="greedy", target=target) for target in (0.9, 1)
    )
    assert len(few.circuit.units()) == 1
    assert all_of_it.circuit.units() == [FIRST, BACKUP]


@pytest.mark.parametrize("method", ["attribution", "greedy"])
def test_a_target_that_no_fewer_units_reach_gives_everything_and_says_so(method):
    # Heads of two layers, both needed: without either there is nothing left.
    found = found_in(induction_model(), induction_batch(20), METRIC, 0.0, level="layer", method=method)
    assert not found.reached
    assert found.circuit.share == found.judged.f == 1
    assert "no circuit of fewer layers" in repr(found)


def test_nothing_is_found_where_ablation_does_nothing():
    model, batch = induction_model(), induction_batch(rows=12)
    nowhere = batch.inputs.clone()
    nowhere[:, 1:] = nowhere[:, 1:2]  # one token again and again: nothing to look back for
    with pytest.raises(MismatchError, match="nothing to find: m\\(M\\)"):
        found_in(model, al.Batch.prompts(nowhere, [3] * 12, [5] * 12), METRIC, 0.0, method="greedy")


def test_a_discovery_is_the_same_again(linear):
    model, batch = linear
    one, same = (repr(found_in(model, batch, METRIC, 0.3, seed=4)) for _ in range(2))
    assert one == same


def test_a_discovery_reads_well(linear):
    text = repr(found_in(*linear, METRIC, 0.0))
    for part in ("found on 10 rows", "judged on 10 others", "random circuits", "of the ranking", "m(∅)"):
        assert part in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0}, "target=0"),
        ({"target": 1.5}, "target=1.5"),
        ({"target": "all"}, "target="),
        ({"method": "greddy"}, "greedy"),
        ({"level": "haed"}, "head"),
        ({"method": "greedy", "level": "neuron"}, "once for every neuron"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(linear, options, message):
    with pytest.raises(MismatchError, match=message):
        found_in(*linear, METRIC, 0.0, **options)


def test_statistics_of_the_inputs_themselves_are_refused():
    model = al.load_model("tiny-opt")
    batches = al.task_for(model).batches(split="collect", tokens=500)
    statistics = al.collect(model, batches, progress=False)
    with pytest.raises(MismatchError, match="were computed from the inputs"):
        found_in(model, batches, "cross_entropy", "mean", statistics=statistics)


@pytest.mark.parametrize("search", [found_in, curves_of])
def test_statistics_are_of_the_half_that_is_searched_and_not_of_all_prompts(search):
    model, batch = induction_model(), induction_batch(rows=12)
    prompts = prompts_of(batch)
    options = {"level": "layer", "steps": 2, "statistics": al.collect(model, prompts, progress=False)}
    for given in (prompts, batch):
        with pytest.raises(MismatchError, match=r"6 of 6 rows.*statistics='prompts'.*split\(seed\)\[0\]"):
            search(model, given, METRIC, "mean", **options)
    options["statistics"] = al.collect(model, prompts.split()[0], progress=False)
    assert search(model, prompts, METRIC, "mean", **options)


def test_one_text_hidden_in_two_ways_is_in_one_half():
    model = al.load_model("tiny-roberta")
    plans = [al.task_for(model).batches(split="evaluate", tokens=600, seed=seed) for seed in (0, 1)]
    halves = Halves.of(model, [batch for plan in plans for batch in plan])
    options = {"level": "layer", "steps": 2, "random": 0, "target": 0.5}
    assert found_in(model, [b for plan in plans for b in plan], "cross_entropy", "mean", **options).judged.m_model
    texts = [
        {(batch.documents[row]) for batch in half for row in range(len(batch.inputs))}
        for half in (halves.first, halves.second)
    ]
    assert not texts[0] & texts[1]


def test_ctrl_c_leaves_the_greedy_search_with_what_is_good_enough_so_far(linear):
    model, batch = linear
    search = _Search(Judge(Setting.of(model, batch, METRIC, 0.0)), 0.5)
    steps = []

    def stop(runs):
        steps.append(runs)
        if len(steps) == 30:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted: 10 of 12 units are left"):
        circuit, searched = search.fewest(circuits.Circuit.of(model, True), "head", stop)
    assert len(circuit.units()) == 10
    assert "interrupted" in searched


def interrupting(count):
    """A metric at whose so-manieth batch somebody presses Ctrl-C."""
    calls = []

    def measure(logits, batch):
        calls.append(1)
        if len(calls) == count:
            signal.raise_signal(signal.SIGINT)
        return metrics.logit_difference(logits, batch)

    return measure


def test_ctrl_c_gives_a_judged_circuit_and_a_model_without_hooks(linear, heeding):
    model, batch = linear
    with pytest.warns(UserWarning, match="of 12 units are left"):
        found = found_in(model, batch, interrupting(40), 0.0, method="greedy", target=0.3)
    assert len(found.circuit.units()) == 9  # 2 runs of m(M) and m(∅), then 12, 11 and 10
    assert found.judged.f
    assert not is_hooked(model)


# ---------------------------------------------------------------------- curves


def test_every_pair_of_values_is_judged(linear_curves):
    pairs = linear_curves.pairs
    assert len(pairs) == 9
    assert set(zip(pairs["found_with"], pairs["judged_with"], strict=True)) == {
        (a, b) for a in ("zero", "mean", "peak") for b in ("zero", "mean", "peak")
    }
    assert linear_curves.frame["share"].unique().tolist() == [0.1, 0.2, 0.5, 1.0]
    assert linear_curves.frame["units"].unique().tolist() == [1, 3, 7, 15]


def test_points_of_a_curve_are_what_evaluate_gives_on_the_other_half(linear, linear_curves):
    model, batch = linear
    halves = Halves.of(model, batch, 0)
    values = halves.values(["zero", "mean", "peak"], sites=["z", "mlp"], progress=False)
    effects = circuits.attribution_effects(
        model, halves.first, METRIC, values["mean"].first, level="head", steps=4, progress=False
    )
    circuit = circuits.Circuit.top(effects, count=3, model=model)
    row = linear_curves.frame.query("found_with == 'mean' and judged_with == 'peak' and units == 3").iloc[0]
    result = circuits.faithfulness(
        model, halves.second, METRIC, circuit, values["peak"].second, random=0, progress=False
    )
    expected = (result.m_circuit, result.m_empty, result.m_model, result.f, *result.interval)
    assert tuple(row[["m_circuit", "m_empty", "m_model", "f", "low", "high"]]) == pytest.approx(expected)
    score = al.evaluate(model, halves.second, circuit.outside(values["peak"].second), metrics=METRIC)
    assert row["m_circuit"] == pytest.approx(score[METRIC])


def test_areas_are_trapezoids_over_the_share_that_is_kept(linear_curves):
    for pair in linear_curves.pairs.to_dict("records"):
        for measure, frame in (("cpr", linear_curves.frame), ("cmd", linear_curves.absolute_frame)):
            own = frame[(frame["found_with"] == pair["found_with"]) & (frame["judged_with"] == pair["judged_with"])]
            f, at = own["f"].to_numpy(), own["units"].to_numpy() / 15
            height = f if measure == "cpr" else np.abs(1 - f)
            assert pair[measure] == pytest.approx(sum((height[1:] + height[:-1]) / 2 * (at[1:] - at[:-1])))
            assert pair[f"{measure}_low"] <= pair[measure] <= pair[f"{measure}_high"]


def test_sizes_that_coincide_or_are_nothing_count_once():
    assert area_under(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.5, 1.0])) == 0.75
    found = curves_of(induction_model(), induction_batch(rows=12), METRIC, 0.0, shares=[0.001, 0.01, 0.4])
    # 0, 0, 2 and 6 of 6 heads, and f is 0, 0, 1, 1.
    assert found.frame["units"].tolist() == [0, 0, 2, 6]
    assert found.pairs["cpr"][0] == pytest.approx(1 / 3 / 2 + 2 / 3)
    assert found.pairs["cmd"][0] == pytest.approx(1 / 3 / 2)


def test_pairs_are_ranked_within_one_judge(linear_curves):
    for _, column in linear_curves.pairs.groupby("judged_with"):
        assert column["cpr_rank"].tolist() == column["cpr"].rank(ascending=False, method="min").tolist()
        assert column["cmd_rank"].tolist() == column["cmd"].rank(method="min").tolist()
        assert (column["loss"] == column["m_empty"] - column["m_model"]).all()
        assert column["m_empty"].nunique() == 1


def test_where_values_were_collected_stands_beside_every_pair(linear_curves):
    pairs = linear_curves.pairs.set_index(["found_with", "judged_with"])
    assert "half of the prompts" in pairs.loc[("mean", "zero"), "found_collected_on"]
    assert pairs["judge_collected_on"].isna().sum() == 3


def test_a_judge_without_an_f_still_gives_its_m(linear):
    found = curves_of(*linear, METRIC, ["zero", "mean"], seed=1, shares=[0.5])
    refused = found.frame.query("judged_with == 'mean'")
    assert refused["f"].isna().all()
    assert refused["refused"].str.contains("cannot be told from 0").all()
    assert refused[["m_circuit", "m_empty", "m_model"]].notna().to_numpy().all()
    assert found.pairs.query("judged_with == 'mean'")[["cpr", "cmd", "cpr_rank"]].isna().to_numpy().all()
    assert found.pairs.query("judged_with == 'zero'")["cpr"].notna().all()
    assert "mean: m(M) − m(∅) = " in repr(found)


def test_a_ranking_whose_direction_may_be_chance_says_so(linear):
    found = curves_of(*linear, METRIC, ["zero", "mean"], seed=1, shares=[0.5])
    doubts = found.pairs.set_index(["found_with", "judged_with"])["doubt"]
    assert doubts["zero"].isna().all()
    assert doubts["mean"].str.contains("cannot be told from 0").all()
    assert "mean: the units may be ranked the wrong way round" in repr(found)


def test_values_that_change_nothing_find_nothing(linear):
    def as_it_is(model, batch, site):
        return torch.stack(list(capture(model, batch, site).values()))

    with pytest.raises(MismatchError, match="no circuit can be found with as-it-is"):
        curves_of(*linear, METRIC, [0.0, as_it_is])


def test_circuits_of_clear_heads_are_found_again_on_resamples():
    found = curves_of(induction_model(), induction_batch(rows=12), METRIC, ["zero", "mean"], shares=[0.01, 0.35])
    assert found.stability["jaccard"].tolist() == [1.0] * 4  # two values, two orders, one size
    assert found.stability["units"].tolist() == [2] * 4


def test_stability_is_the_overlap_with_resampled_rows(linear):
    model, batch = linear
    found = curves_of(model, batch, METRIC, [0.0], shares=[0.3], resamples=7)
    halves = Halves.of(model, batch, 0)
    effects = circuits.attribution_effects(model, halves.first, METRIC, 0.0, level="head", steps=4, progress=False)
    rows = effects.rows["z"].flatten(1)
    totals = effects.empty.values - effects.clean.values
    own, overlaps = set(circuits.Circuit.top(effects, count=3, model=model).units()), []
    for counts in np.random.Generator(np.random.PCG64(0)).multinomial(10, np.full(10, 0.1), size=7):
        drawn = np.repeat(np.arange(10), counts)
        share = rows[drawn].sum(0) / totals[drawn].sum()
        names = {f"L{n // 4}.H{n % 4}" for n in share.argsort(descending=True, stable=True)[:3].tolist()}
        overlaps.append(len(own & names) / len(own | names))
    assert found.stability.query("order == 'signed'")["jaccard"].item() == pytest.approx(np.mean(overlaps))


def test_neurons_have_curves_but_no_stability(linear):
    found = curves_of(*linear, METRIC, [0.0], shares=[0.1], level="neuron", method="gradient")
    assert found.frame["units"].tolist() == [4, 48]
    assert found.stability.empty
    assert (found.steps, found.method) == (None, "gradient")


def test_values_of_different_sites_are_not_compared(linear):
    with pytest.raises(MismatchError, match="same units"):
        curves_of(*linear, METRIC, {"a": {"z": 0.0}, "b": {"z": 0.0, "mlp": 0.0}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": [1.5]}, "share of 1.5"),
        ({"shares": "half"}, "share of"),
        ({"shares": []}, "no curve"),
        ({"shares": [1.0]}, "no curve"),
        ({"method": "graddrop"}, "ranked by"),
        ({"level": "edge"}, "level"),
    ],
)
def test_curves_that_are_not_possible_are_refused(linear, options, message):
    with pytest.raises(MismatchError, match=message):
        curves_of(*linear, METRIC, [0.0], **options)


@pytest.mark.parametrize("resamples", [-1, 1.5])
def test_a_number_of_resamples_that_is_not_possible_is_refused_before_anything_is_measured(resamples):
    with pytest.raises(MismatchError, match=f"resamples={resamples} is not possible"):
        curves_of(None, None, METRIC, [0.0], resamples=resamples)  # no model is there to measure


def test_ctrl_c_keeps_the_pairs_that_are_finished(linear, monkeypatch):
    add, calls = curves_module._Measured.add, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        add(*arguments)

    monkeypatch.setattr(curves_module._Measured, "add", stopping)
    with pytest.warns(UserWarning, match="interrupted: 3 of 4 pairs"):
        found = curves_of(*linear, METRIC, {"a": 0.0, "b": 0.5})
    assert len(found.pairs) == 3
    assert "a" in repr(found)
    calls[:] = [1, 1, 1]  # this time before there is any
    with pytest.raises(KeyboardInterrupt):
        curves_of(*linear, METRIC, {"a": 0.0, "b": 0.5})


def test_curves_read_well(linear_curves):
    text = repr(linear_curves)
    for part in ("15 heads", "found on 10 rows, judged on 10 others", "compare within a column", "m(∅)", "peak"):
        assert part in text


# ---------------------------------------------------------------------- files


def test_curves_are_read_as_they_were_written(linear_curves, tmp_path):
    linear_curves.save(tmp_path / "curves.json")
    assert Curves.load(tmp_path / "curves.json") == linear_curves


WRONG = (None, True, -1, 10**40, 1.5, "", "\x1b[31m", [], {}, [[]], {"a": 1})


def test_forged_files_are_one_clear_error_or_curves(linear_curves, tmp_path):
    path = tmp_path / "curves.json"
    linear_curves.save(path)
    content = load_json(path, "curves")
    draw = random.Random(0)
    for _ in range(120):
        forged = {**content}
        name = draw.choice(list(forged))
        if (
            draw.random() < 0.5
            and forged[name]
            and isinstance(forged[name], list)
            and isinstance(forged[name][0], dict)
        ):
            part = dict(forged[name][0])
            part[draw.choice(list(part))] = draw.choice(WRONG)
            forged[name] = [part, *forged[name][1:]]
        elif draw.random() < 0.2:
            del forged[name]
        else:
            forged[name] = draw.choice(WRONG)
        save_json(path, "curves", forged)
        try:
            read = Curves.load(path)
        except FileFormatError as error:
            told = str(error)
        else:
            told = f"{path} {read!r}"
            read.frame, read.pairs, read.stability  # noqa: B018
        assert str(path) in told
        assert "\x1b" not in told


def test_what_is_no_file_of_curves_is_one_clear_error(tmp_path):
    (tmp_path / "cut.json").write_text('{"ablation_lens"')
    save_json(tmp_path / "other.json", "circuit", {"a": 1})
    for name in ("cut.json", "other.json"):
        with pytest.raises(FileFormatError, match=name):
            Curves.load(tmp_path / name)


def test_no_number_is_nan_in_a_file(linear_curves):
    assert all(not math.isnan(value) for point in linear_curves.points for value in (point.f, point.low, point.high))

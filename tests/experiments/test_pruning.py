"""Unlearning: planted tasks in disjoint neurons, trajectories computed by hand, and what is kept and gone on with."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

import ablation_lens as al
from ablation_lens.errors import AblationLensError, FileFormatError, MismatchError
from ablation_lens.experiments.forgetting import forget_labels
from ablation_lens.experiments.pruning import Unlearning, draw, unlearn
from ablation_lens.experiments.scores import ExperimentFolder
from ablation_lens.experiments.trajectories import area_under, furthest, relative_drop
from tests.circuits.models import Handmade

TOKENS = 12
"""Of which the first six are one task, the others another."""


class Lookup(nn.Module):
    """An MLP with one neuron per token, which fires for it and writes the next one."""

    def __init__(self, follows):
        super().__init__()
        self.W_in = nn.Parameter(torch.eye(2 * TOKENS, dtype=torch.float64)[:, :TOKENS], requires_grad=False)
        self.W_out = nn.Parameter(
            torch.cat([torch.zeros(TOKENS, TOKENS), 20 * follows], 1).double(), requires_grad=False
        )
        self.b_out = nn.Parameter(torch.zeros(2 * TOKENS, dtype=torch.float64), requires_grad=False)
        self.hook_post = HookPoint()

    def forward(self, x):
        return self.hook_post((x @ self.W_in).relu()) @ self.W_out + self.b_out


def planted(site):
    """Each token is followed by the next one of its own task: known by one neuron of the site and nothing else."""
    follows = torch.zeros(TOKENS, TOKENS)
    for token in range(TOKENS):
        half = token // 6 * 6
        follows[token, half + (token - half + 1) % 6] = 1
    embed, unembed = torch.eye(TOKENS, 2 * TOKENS), torch.eye(2 * TOKENS)[:, TOKENS:]
    nothing = torch.zeros(2 * TOKENS, 6, dtype=torch.float64)
    heads = []
    for half in (0, 6):
        value = torch.eye(2 * TOKENS, dtype=torch.float64)[:, half : half + 6]
        write = torch.cat([torch.zeros(6, TOKENS), 20 * follows[half : half + 6]], 1).double()
        heads.append({"Q": nothing, "K": nothing, "V": value, "O": write if site == "z" else 0 * write})
    return Handmade([heads], embed, torch.zeros(2, 2 * TOKENS), unembed, mlps=[Lookup(follows * (site == "mlp"))])


def pairs(first):
    """Two-token texts of a task: some to choose on, others to judge on."""
    rows = [torch.tensor([[token, first + (token - first + 1) % 6]]) for token in range(first, first + 6)]
    judged = torch.cat(rows)
    # Other rows of the same tokens, as what was chosen on is not judged.
    return [judged.roll(1, 1)], [judged]


OPTIONS = {"step": 0.25, "steps": 2, "seeds": 3, "progress": False}


@pytest.mark.parametrize("site", ["z", "mlp"])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_tasks_in_disjoint_neurons_are_unlearned_apart_exactly(site, swapped):
    model = planted(site)
    forget, retain = (pairs(6), pairs(0)) if swapped else (pairs(0), pairs(6))
    found = unlearn(model, forget, retain, site=site, **OPTIONS)
    last = found.frame[(found.frame["step"] == 2) & found.frame["seed"].isna()].set_index("measure")
    assert last.loc["cross_entropy", "forget"] == pytest.approx(math.log(TOKENS))  # chance, to the last bit of it
    before = found.frame[found.frame["step"] == 0].set_index("measure").loc["cross_entropy", "retain"].iloc[0]
    assert last.loc["cross_entropy", "retain"] == before
    assert last.loc["top1", "retain"] == 1
    assert last.loc["top1", "retain_drop"] == 0
    pruned = found.ablation_at(2).mask.flatten().nonzero().flatten().tolist()
    assert pruned == (list(range(6, 12)) if swapped else list(range(6)))
    # All logits are equal then, and of equals the first class is taken: right in one case of six, or in none.
    summary = found.summary().loc["zero"]
    assert summary["furthest"] == pytest.approx(1.0 if swapped else 5 / 6)
    assert summary["above_random"]
    assert summary["area"] == pytest.approx(2.0 if swapped else 2 - 1 / 6)


@pytest.mark.parametrize("site", ["z", "mlp"])
def test_what_is_pruned_bakes_and_scores_as_its_hooks(site):
    model = planted(site)
    model.cfg.d_vocab_out = TOKENS
    found = unlearn(model, pairs(0), pairs(6), site=site, value=["zero", "mean"], **OPTIONS)
    for value in ("zero", "mean"):
        baked = found.ablation_at(1, value).bake(model)
        score = al.evaluate(baked, pairs(0)[1])
        rows = found.frame[(found.frame["value"] == value) & found.frame["seed"].isna()]
        row = rows[(rows["step"] == 1) & (rows["measure"] == "cross_entropy")]
        assert score.cross_entropy == pytest.approx(row["forget"].item(), abs=1e-9)


def test_both_sites_are_pruned_side_by_side_and_joined():
    model = planted("mlp")
    found = unlearn(model, pairs(0), pairs(6), site=["z", "mlp"], **{**OPTIONS, "step": {"z": 0.25, "mlp": 0.5}})
    both = found.ablation_at(1)
    assert [int(part.mask.sum()) for part in both] == [3, 6]
    assert found.fraction(1, "mlp") == 0.5
    assert al.evaluate(both.bake(model), pairs(0)[1]).cross_entropy == pytest.approx(math.log(TOKENS))


def test_whole_heads_are_pruned_by_their_scores_and_so_are_the_random_ones():
    model = planted("z")
    found = unlearn(model, pairs(6), pairs(0), heads="median", **{**OPTIONS, "step": 0.5, "steps": 1})
    assert found.ablation_at(1).mask.all(-1).tolist() == [[False, True]]
    assert found.summary()["furthest"].item() == 1
    # Of two heads three quarters are one, and what is told is what was pruned.
    most = unlearn(model, pairs(6), pairs(0), heads="median", **{**OPTIONS, "step": 0.75, "steps": 1})
    assert most.fraction(1) == float(most.ablation_at(1).mask.double().mean()) == 0.5
    # One of two heads at random is one of the tasks: either all of this one is lost, or all of the other.
    random = found.frame[found.frame["seed"].notna() & (found.frame["step"] == 1) & (found.frame["measure"] == "top1")]
    assert set(random["ahead"].round(6)) <= {1.0, round(-5 / 6, 6)}


# ---------------------------------------------------------------------- by hand


def test_area_and_furthest_are_those_computed_by_hand():
    forget, retain = np.array([[0.8, 0.4, 0.2]]), np.array([[0.5, 0.4, 0.3]])
    # Trapezoids under the curve from 0.2 to 0.8, and the triangle from the last point to the origin.
    area = 0.4 * 0.45 + 0.2 * 0.35 + 0.2 * 0.3 / 2
    assert area_under(forget, retain).item() == pytest.approx(area / (0.8 * 0.5 / 2))
    drops = relative_drop(forget, better="higher"), relative_drop(retain, better="higher")
    assert furthest(*drops).item() == pytest.approx(max(0.5 - 0.2, 0.75 - 0.4))


def test_a_rising_loss_is_a_drop_and_a_metric_that_begins_at_zero_has_none():
    assert relative_drop(np.array([[2.0, 2.5]]), better="lower").tolist() == [[0, 0.25]]
    assert np.isnan(relative_drop(np.array([[0.0, 0.5]]), better="higher")).all()


def test_nothing_pruned_is_a_step_so_that_max_delta_is_never_below_zero():
    assert furthest(np.array([[0.0, 0.1]]), np.array([[0.0, 0.3]])).item() == 0


def test_random_neurons_are_as_many_as_the_selective_ones_and_nested():
    masks = [draw((3, 1, 7), share, 5) for share in (0.1, 0.5, 1.0)]
    assert [int(mask.sum()) for mask in masks] == [2, 10, 21]
    assert not bool((masks[0] & ~masks[1]).any())
    assert draw((2, 4, 3), 0.5, 1, heads=True).all(-1).sum().item() == 4
    assert draw((2, 4, 3), 0.5, 1, per_layer=True).sum((1, 2)).tolist() == [6, 6]


# ---------------------------------------------------------------------- a trained model


@pytest.fixture(scope="module")
def opt():
    model = al.load_model("tiny-opt")
    # Some words that are not among the commonest, too.
    words = [word.strip(".,:`()") for word in f"{al.collect.__doc__} {al.evaluate.__doc__}".split() if word.isascii()]
    some = [words[place : place + 4] for place in range(0, 240, 4)]
    prose = [f"Return the {one} of the object, or {' '.join(rest)}. The default is None." for one, *rest in some]
    code = [f"    def {one}(self):\n        return self.{'.'.join(rest)}\n" for one, *rest in some]
    return model, al.task_for(model, code), al.task_for(model, prose)


SMALL = {"site": "mlp", "step": 0.1, "steps": 2, "seeds": 2, "collect_tokens": 200, "tokens": 100, "progress": False}


@pytest.fixture(scope="module")
def found(opt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlearning")
    return unlearn(*opt, value=["zero", "mean"], folder=folder, **SMALL), folder


def test_the_first_step_is_that_of_the_first_statistics(opt, found):
    model, code, prose = opt
    stats = [al.collect(model, task.batches(split="collect", tokens=200), site="mlp") for task in (code, prose)]
    mask = al.experiments.selective_neurons(*stats, 0.1)
    ablation = found[0].ablation_at(1, "mean")
    assert torch.equal(ablation.mask, mask)
    assert torch.equal(ablation.values[mask], stats[1].mean[mask])


def test_the_second_step_is_chosen_in_the_model_as_it_then_is_and_earlier_values_stay(opt, found):
    model, code, prose = opt
    first, second = (found[0].ablation_at(step, "mean") for step in (1, 2))
    with first.applied_to(model):
        stats = [al.collect(model, task.batches(split="collect", tokens=200), site="mlp") for task in (code, prose)]
    assert bool((stats[0].std[first.mask] == 0).all())  # what is pruned is constant, and not chosen again
    mask = al.experiments.selective_neurons(*stats, 0.2, already=first.mask)
    assert torch.equal(second.mask, mask)
    assert torch.equal(second.values[first.mask], first.values[first.mask])
    new = mask & ~first.mask
    assert torch.equal(second.values[new], stats[1].mean[new])


def test_scores_are_those_of_evaluate_with_and_without_common_tokens(opt, found):
    model, code, _ = opt
    rows = found[0].frame[(found[0].frame["value"] == "zero") & found[0].frame["seed"].isna()]
    rows = rows[rows["step"] == 2].set_index("measure")["forget"]
    for count, name in (("all", "top1"), ("skip-common", "top1_uncommon")):
        score = al.evaluate(model, code.batches(tokens=100, count=count), found[0].ablation_at(2, "zero"))
        assert rows[name] == score.top1
    assert {"top10", "top10_uncommon", "cross_entropy"} <= set(rows.index)


def test_an_interrupted_run_is_gone_on_with_and_more_steps_are_added(opt, found, monkeypatch):
    result, folder = found
    before = {part: set(ExperimentFolder(folder).keys(part)) for part in ("scores", "pieces")}

    def never(*args, **options):
        raise AssertionError("collected again")

    monkeypatch.setattr("ablation_lens.experiments.pruning.collect", never)
    again = unlearn(*opt, value=["zero", "mean"], folder=folder, **SMALL)
    assert torch.equal(again.scores, result.scores)
    assert {part: set(ExperimentFolder(folder).keys(part)) for part in before} == before
    monkeypatch.undo()
    longer = unlearn(*opt, value="zero", folder=folder, **{**SMALL, "steps": 3})
    assert torch.equal(longer.scores[0, :3], result.scores[0])


def test_ctrl_c_loses_nothing_that_was_scored(opt, found, tmp_path, monkeypatch):
    from ablation_lens.experiments import scores

    whole, left = scores.evaluate_each, iter(range(6))

    def some(*args, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(scores, "evaluate_each", some)
    with pytest.raises(KeyboardInterrupt):
        unlearn(*opt, value=["zero", "mean"], folder=tmp_path, **SMALL)
    assert len(ExperimentFolder(tmp_path).keys("scores")) == 6 * 2  # two plans of the same documents
    monkeypatch.setattr(scores, "evaluate_each", whole)
    again = unlearn(*opt, value=["zero", "mean"], folder=tmp_path, **SMALL)
    assert torch.equal(again.scores, found[0].scores)


@pytest.mark.parametrize("seeds", [0, 2])
def test_one_document_of_each_corpus_has_no_interval_and_does_not_crash(seeds):
    model, words = al.load_model("tiny-opt"), "The default is None, and the name of the object is returned as a string."
    one, other = ([f"{name} {words}"] for name in ("First:", "Second:"))
    judged = [al.task_for(model, text).every_text() for text in (one, other)]
    chosen = [al.task_for(model, [f"{number} {words}"]).every_text() for number in (1, 2)]
    sides = list(zip(chosen, judged, strict=True))
    found = unlearn(model, *sides, site="mlp", step=0.1, steps=2, seeds=seeds, progress=False)
    row = found.summary().iloc[0]
    assert row["furthest"] >= 0
    assert all(math.isnan(row[f"{name}_low"]) for name in ("furthest", "area", "beyond"))
    assert "beyond" in repr(found) or not seeds


def test_a_measure_that_begins_at_zero_is_told_as_missing(found):
    from ablation_lens.report.forget import blocks

    result, place = found[0], found[0].about.measures.index("top1_uncommon")
    scores, furthest, beyond = (each.clone() for each in (result.scores, result.furthest, result.beyond_random))
    scores[:, :, place], furthest[:, place], beyond[:, place] = 0.0, math.nan, math.nan
    changed = Unlearning(**vars_of(result) | {"scores": scores, "furthest": furthest, "beyond_random": beyond})
    tables = [block for block in blocks(changed) if hasattr(block, "rows")]
    assert tables[place].rows[0][1] == "–"
    assert not any("nan" in cell for table in tables for row in table.rows for cell in row)


def test_a_folder_keeps_nothing_of_a_center_of_ones_own(opt, tmp_path):
    @al.centers.register("my-center")
    def mine(statistics):
        return statistics.mean

    try:
        assert unlearn(*opt, value="my-center", **{**SMALL, "seeds": 0, "steps": 1}).about.values == ("my-center",)
        with pytest.raises(MismatchError, match="leave folder= out"):
            unlearn(*opt, value="my-center", folder=tmp_path, **SMALL)
    finally:
        al.centers.unregister("my-center")


def test_without_recollecting_every_step_goes_by_the_first_statistics(opt):
    model, code, prose = opt
    result = unlearn(model, code, prose, recollect=False, **{**SMALL, "seeds": 0})
    stats = [al.collect(model, task.batches(split="collect", tokens=200), site="mlp") for task in (code, prose)]
    assert torch.equal(result.ablation_at(2).mask, al.experiments.selective_neurons(*stats, 0.2))
    assert math.isnan(result.summary()["beyond"].item())


def test_a_result_is_saved_and_read_and_a_forged_one_is_refused(found, tmp_path):
    result, _ = found
    path = tmp_path / "forget.safetensors"
    result.save(path)
    again = Unlearning.load(path)
    assert repr(again) == repr(result)
    assert again.frame.equals(result.frame)
    assert torch.equal(again.ablation.mask, result.ablation.mask)
    forged = Unlearning(**{**vars_of(result), "pruned": {"mlp": result.pruned["mlp"] + 2}})
    forged.save(path)
    with pytest.raises(FileFormatError, match="at a step that there is not"):
        Unlearning.load(path)


def vars_of(result):
    return {name: value for name, value in vars(result).items() if name in Unlearning.__dataclass_fields__}


def test_what_is_judged_may_not_be_what_neurons_were_chosen_on(opt):
    model, code, prose = opt
    plan = prose.batches(split="collect", tokens=100)
    with pytest.raises(MismatchError, match="evaluated are among those"):
        unlearn(model, code, (plan, plan), **{**SMALL, "tokens": None, "collect_tokens": None})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": 0.5, "steps": 3}, "more than all neurons"),
        ({"step": 0}, "step=0"),
        ({"step": {"z": 0.1}}, "site of this pruning"),
        ({"value": "meen"}, "nearest is 'mean'"),
        ({"value": []}, "one or more centers"),
        ({"kind": "abz"}, "did you mean 'abs'"),
        ({"heads": "mean"}, "have no heads"),
        ({"site": []}, "no site"),
        ({"seeds": [1, 1]}, "each once"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"site": "z", "heads": "mean", "step": 0.01}, "less than one head"),
        ({"per_layer": True, "step": 0.001, "steps": 1}, "less than one neuron of a layer"),
    ],
)
def test_what_is_not_possible_is_said_in_a_sentence(opt, changes, said):
    with pytest.raises(AblationLensError, match=said):
        unlearn(*opt, **(SMALL | changes))


def test_one_corpus_is_not_both_forgotten_and_retained(opt):
    model, code, _ = opt
    with pytest.raises(MismatchError, match="the same documents"):
        unlearn(model, code, code, **SMALL)


def test_what_is_no_task_and_no_pair_is_refused(opt):
    model, code, prose = opt
    with pytest.raises(MismatchError, match=r"retain is .*give a task"):
        unlearn(model, code, "prose", **SMALL)
    with pytest.raises(MismatchError, match="have their sizes"):
        unlearn(model, code, (prose.batches(tokens=50), prose.batches(tokens=50)), **SMALL)


def test_interval_and_gap_are_paired_so_that_a_run_beside_itself_has_none():
    """The random baseline of all neurons is the selective one of all neurons."""
    model = planted("mlp")
    found = unlearn(model, pairs(0), pairs(6), site="mlp", step=1.0, steps=1, seeds=1, progress=False)
    assert found.beyond_random[0, 0].tolist() == [0, 0, 0]


# ---------------------------------------------------------------------- labels


def test_a_digit_is_forgotten_and_its_drop_is_that_of_its_own_images(tmp_path):
    model = al.load_model("tiny-vit")
    task = al.task_for(model)
    options = {"site": "mlp", "step": 0.1, "steps": 1, "seeds": 2, "collect_images": 20, "images": 100}
    found = forget_labels(model, task, labels=[3, 5], folder=tmp_path, progress=False, **options)
    row = found.frame.set_index("label").loc["3"]
    plans = [task.only(label=3), task.except_(label=3)]
    stats = [al.collect(model, each.batches(split="collect", images=20), site="mlp", progress=False) for each in plans]
    ablation = stats[1].ablation(al.experiments.selective_neurons(*stats, 0.1), "zero")
    judged = task.batches(images=100)
    of = np.array([item.label for item in judged.items])
    clean, now = (al.evaluate(model, judged, each).correct.double().numpy() for each in (None, ablation))
    drops = [(clean[of == label].mean() - now[of == label].mean()) / clean[of == label].mean() for label in range(10)]
    assert row["own"] == pytest.approx(drops[3])
    assert row["others"] == pytest.approx(np.mean([drop for label, drop in enumerate(drops) if label != 3]))
    assert row["low"] <= row["difference"] <= row["high"]
    assert len(found.frame) == 2


def test_labels_are_those_of_images(opt):
    model, code, _ = opt
    with pytest.raises(MismatchError, match="labels are those of an image model"):
        forget_labels(model, code)

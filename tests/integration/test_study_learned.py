"""Learned centers in studies: learned once for every share, kept in the run folder, and gone on with."""

import dataclasses

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.measure import descent, learners
from ablation_lens.measure.learned import Learned
from ablation_lens.study.run import StudyInterrupted
from ablation_lens.study.study import Study
from tests.studies import files, rows


def own_batches():
    drawn = torch.Generator().manual_seed(0)
    collect, evaluate = (torch.randint(3, 61, (number, 10), generator=drawn) for number in (24, 6))
    return {"collect": collect, "evaluate": {"input_ids": evaluate, "labels": evaluate}}


@pytest.fixture(scope="module")
def model(saved):
    return al.load_model(saved("opt"), device="cpu")


def study(model, *methods, **changes):
    settings = {"fractions": [0.5, 1.0], "seeds": [1, 2], "batches": own_batches()}
    return Study(models=[model], methods=methods, **{**settings, **changes})


@pytest.fixture
def asked(monkeypatch):
    """The shares that are learned for from now on."""
    shares, before = [], learners.learn

    def note(*given, **options):
        shares.append(options.get("share"))
        return before(*given, **options)

    monkeypatch.setattr("ablation_lens.study.model_run.learners.learn", note)
    return shares


def test_constants_are_learned_once_for_every_share_and_not_for_every_seed(model, tmp_path, asked):
    results = study(model, "mean", "optimal steps=2", "optimal share=0.5 steps=2").run(tmp_path / "run", progress=False)
    assert not results.failed
    assert asked == [0.5, 0.5, 1.0]  # at 100 % the label that says its share needs nothing new
    found = results.frame.groupby("method")["fraction"].apply(list)
    assert found["optimal steps=2"] == found["optimal share=0.5 steps=2"] == [0.5, 0.5, 1.0]


def test_a_cell_is_what_evaluate_gives_with_the_learned_values(model, tmp_path):
    results = study(model, "optimal steps=3").run(tmp_path / "run", progress=False)
    both = own_batches()
    stats = al.collect(model, both["collect"], progress=False)
    learned = al.learn(model, both["collect"], "optimal", stats, share=0.5, steps=3, progress=False)
    mask = al.random_neurons(learned.values.shape, 0.5, seed=2)
    score = al.evaluate(model, both["evaluate"], learned.ablation(mask))
    row = results.frame[(results.frame["fraction"] == 0.5) & (results.frame["seed"] == 2)].iloc[0]
    assert row["cross_entropy"] == pytest.approx(score.cross_entropy, rel=1e-6)
    record, _ = results.folder.read_cell(str(row.name))
    kept = [Learned.load(path) for path in (tmp_path / "run" / "learned").iterdir()]
    assert record.learned in {al.resampling.digest_of(each.values) for each in kept}
    assert {each.method for each in kept} == {"optimal steps=3"}


def test_nothing_is_learned_or_written_again(model, tmp_path, asked):
    first = study(model, "optimal steps=2").run(tmp_path / "run", progress=False)
    before = files(tmp_path / "run")
    asked.clear()
    again = study(model, "optimal steps=2").run(tmp_path / "run", progress=False)
    assert asked == []
    assert rows(again) == rows(first)
    assert {name: told for name, told in files(tmp_path / "run").items() if "studies" not in name} == {
        name: told for name, told in before.items() if "studies" not in name
    }


def test_a_folder_of_before_gains_what_is_learned(model, tmp_path):
    old = study(model, "mean").run(tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "learned").exists()
    kept = files(tmp_path / "run" / "cells")
    new = study(model, "mean", "optimal steps=1").run(tmp_path / "run", progress=False)
    assert set(old.frame.index) < set(new.frame.index)
    assert kept.items() <= files(tmp_path / "run" / "cells").items()


def test_after_ctrl_c_learning_goes_on_where_it_was(model, tmp_path, monkeypatch):
    settings = study(model, "optimal steps=24", fractions=[0.5], seeds=[1])
    whole = settings.run(tmp_path / "whole", progress=False)
    before, taken, most = descent._Descent.take_step, [], [13]

    def note(self, state):
        if len(taken) == most[0]:
            raise KeyboardInterrupt
        taken.append(state.step)
        before(self, state)

    monkeypatch.setattr(descent._Descent, "take_step", note)
    with pytest.raises(StudyInterrupted):
        settings.run(tmp_path / "run", progress=False)
    assert [path.suffix for path in (tmp_path / "run" / "learned").iterdir()] == [".unfinished"]
    taken.clear()
    results = settings.run(tmp_path / "run", progress=False)
    assert taken == list(range(12, 24))
    assert [path.suffix for path in (tmp_path / "run" / "learned").iterdir()] == [".safetensors"]
    assert rows(results) == rows(whole)


def test_values_of_other_settings_are_refused(model, tmp_path):
    study(model, "optimal steps=1", fractions=[0.5]).run(tmp_path / "run", progress=False)
    (path,) = (tmp_path / "run" / "learned").iterdir()
    learned = Learned.load(path)
    dataclasses.replace(learned, method="optimal steps=2").save(path)
    for cell in (tmp_path / "run" / "cells").iterdir():
        cell.unlink()
    results = study(model, "mean", "optimal steps=1", fractions=[0.5]).run(tmp_path / "run", progress=False)
    assert any("learned of something else" in each for each in results.failed)


def test_another_version_of_a_learner_is_other_cells(model, tmp_path, monkeypatch, asked):
    first = study(model, "optimal steps=1", fractions=[0.5], seeds=[1]).run(tmp_path / "run", progress=False)
    monkeypatch.setitem(learners._LEARNERS, "optimal", dataclasses.replace(learners.about("optimal"), version=2))
    second = study(model, "optimal steps=1", fractions=[0.5], seeds=[1]).run(tmp_path / "run", progress=False)
    assert len(asked) == 2
    assert set(second.frame["method"]) == {"none", "optimal steps=1", "optimal steps=1 (version 1)"}
    assert len(second.frame) == len(first.frame) + 1


def test_what_was_learned_from_is_not_scored(model, tmp_path, monkeypatch):
    both = own_batches()
    before = learners.learn

    def from_elsewhere(asked, batches, *given, **options):
        return before(asked, both["evaluate"]["input_ids"], *given, **options)

    monkeypatch.setattr("ablation_lens.study.model_run.learners.learn", from_elsewhere)
    results = study(model, "mean", "optimal steps=1", fractions=[0.5]).run(tmp_path / "run", progress=False)
    assert any("very documents they would be judged on" in each for each in results.failed)
    assert set(results.frame["method"]) == {"none", "mean"}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("optimal share=2", "share="),
        ("optimal steps=2.5", "steps=2.5 is not possible"),
        ("optimal step=3", "did you mean 'steps'"),
        ("optimla", "did you mean 'optimal'"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_a_model_is_loaded(label, message):
    with pytest.raises(MismatchError, match=message):
        Study(models=["tiny-opt"], methods=[label])

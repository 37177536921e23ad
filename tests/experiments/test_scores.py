"""Scores of experiments: each measured once, and found again by what it is of."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.experiments.scores import Pieces, Scores


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def batches(model):
    return al.task_for(model).batches(split="evaluate", tokens=300)


def of_head(model, value, others=0.0):
    values = torch.full(al.Site.Z.shape(model.cfg), others)
    values[0, 0] = value
    return al.Ablation(["L0.H0"], values)


def test_a_score_is_what_evaluate_says(model, batches):
    ablation = of_head(model, 0.5)
    scores = Scores(model, batches, metrics=["kl"])
    found, expected = scores.of(ablation), al.evaluate(model, batches, ablation, metrics=["kl"])
    assert torch.equal(found.loss, expected.loss)
    assert found["kl"] == expected["kl"]


def test_a_folder_is_read_instead_of_measuring_again(model, batches, tmp_path, monkeypatch):
    first = Scores(model, batches, folder=tmp_path / "run").of(of_head(model, 0.5))
    monkeypatch.setattr("ablation_lens.experiments.scores.evaluate_each", None)  # measuring would fail
    again = Scores(model, batches, folder=tmp_path / "run")
    assert torch.equal(again.of(of_head(model, 0.5, others=9.0)).loss, first.loss)
    with pytest.raises(TypeError):
        again.of(of_head(model, 0.25))


def test_a_changed_file_is_refused(model, batches, tmp_path):
    Scores(model, batches, folder=tmp_path / "run").of()
    (path,) = (tmp_path / "run" / "scores").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileFormatError, match="delete it"):
        Scores(model, batches, folder=tmp_path / "run").of()


def test_documents_that_values_are_from_are_refused(model, batches):
    stats = al.collect(model, batches, progress=False)
    with pytest.raises(MismatchError, match="very documents"):
        Scores(model, batches, statistics=stats)


def test_values_by_position_have_no_key(model, batches):
    with pytest.raises(MismatchError, match="every position"):
        Scores(model, batches).of(of_head(model, 0.5).at(0))


def test_several_plans_of_the_same_documents_are_scored_in_one_run(model, tmp_path, monkeypatch):
    task = al.task_for(model)
    every, rare = (task.batches(split="evaluate", tokens=300, count=count) for count in ("all", "skip-common"))
    ablation = of_head(model, 0.5)
    # Kept before under one of the two: only the other is measured, and both keys are as of each alone.
    alone = Scores(model, every, folder=tmp_path / "run").of(ablation)
    both = Scores(model, [every, rare], folder=tmp_path / "run").each(ablation)
    expected = [al.evaluate(model, plan, ablation) for plan in (every, rare)]
    assert [torch.equal(a.loss, b.loss) for a, b in zip(both, expected, strict=True)] == [True, True]
    monkeypatch.setattr("ablation_lens.experiments.scores.evaluate_each", None)
    assert torch.equal(Scores(model, rare, folder=tmp_path / "run").of(ablation).loss, expected[1].loss)
    assert torch.equal(alone.loss, both[0].loss)


def test_plans_of_other_documents_are_not_scored_together(model, batches):
    other = al.task_for(model).batches(split="evaluate", tokens=400)
    with pytest.raises(MismatchError, match="other documents"):
        Scores(model, [batches, other])


def test_a_piece_is_made_once_and_again_of_other_facts(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"mask": torch.ones(2, dtype=torch.bool)}

    for step in (1, 1, 2):
        piece = Pieces(tmp_path / "run").of("selected", {"step": step}, make)
    assert len(made) == 2
    assert piece["mask"].tolist() == [True, True]


def test_a_folder_of_before_gains_its_pieces(tmp_path):
    Pieces(tmp_path / "run")
    assert not (tmp_path / "run" / "pieces").exists()
    Pieces(tmp_path / "run").of("selected", {}, lambda: {"mask": torch.ones(1)})
    assert len(list((tmp_path / "run" / "pieces").iterdir())) == 1

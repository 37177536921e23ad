"""Scores of experiments: each measured once, and found again by what it is of."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.experiments.scores import Scores


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

"""`ablation-lens modularity`, as typed: tasks of a corpus or of a label, a folder that is gone on with, its files."""

import csv
from pathlib import Path

import pytest

from ablation_lens.cli.modularity import named_task
from ablation_lens.experiments import Modularity
from ablation_lens.report.experiment_page import make_experiment_report
from tests.answers import answered

SMALL = (
    *("tiny-vit", "--task", "three=digits:3", "--task", "digits:8", "--site", "z", "--fraction", "0.1", "--seeds", "1"),
    *("--images", "8", "--collect-images", "12"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("modularity") / "run"


def test_a_folder_holds_table_figures_and_file_and_is_gone_on_with(command, folder, monkeypatch):
    values = answered(command("modularity", *SMALL, "--out", folder, "--json"), "modularity")
    assert values["tasks"] == ["three", "digits:8"]
    names = ["csv", "html", "html clusters", "html concentration", "html overlap", "safetensors"]
    assert sorted(values["files"]) == names
    found = Modularity.load(values["files"]["safetensors"])
    assert repr(found) == values["text"]
    assert found.twin.pruned.source.name == "tiny-vit (random 0)"
    rows = list(csv.DictReader(Path(values["files"]["csv"]).read_text(encoding="utf-8").splitlines()))
    assert len(rows) == len(values["rows"]) == len(found.frame)
    assert "Cross-pruning" in make_experiment_report(folder).html()

    def refuse(*args, **options):
        raise AssertionError("this is there already")

    for place in ("scores.evaluate_each", "crossing.collect_statistics"):
        monkeypatch.setattr(f"ablation_lens.experiments.{place}", refuse)
    code, out, _ = command("modularity", *SMALL, "--out", folder)
    assert code == 0
    assert out.startswith(values["text"])


def test_ctrl_c_says_what_to_do(command, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ablation_lens.experiments.modularity.study_modularity", interrupt)
    code, _, errors = command("modularity", *SMALL, "--no-twin", "--out", tmp_path / "run")
    assert code == 130
    assert errors.endswith(f"what is finished is in {tmp_path / 'run'}. Run the same again to go on.\n")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--task", "digits", "--task", "digits"), "two tasks are called 'digits'"),
        (("--task", "digits"), "give at least two"),
        (("--task", "digits:3", "--task", "digits:12"), "12"),
        (("--kind", "loud"), "loud"),
        (("--value", "peek"), "peak"),
        (("--method", "weight"), "weights"),
        (("--site", "resid_post"), "resid_post"),
    ],
)
def test_what_cannot_be_is_one_sentence(command, tmp_path, typed, said):
    code, out, errors = command("modularity", "tiny-vit", *typed, "--no-twin", "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert said in errors
    assert errors.count("\n") == 1


def test_a_path_may_hold_what_separates_a_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b:c.txt").write_text("text")
    assert named_task("a=b:c.txt") == ("a=b:c.txt", "a=b:c.txt", None)
    assert named_task("hub/name:3,5") == ("hub/name:3,5", "hub/name", "3,5")
    assert named_task("code=C:\\texts") == ("code", "C:\\texts", None)
    assert named_task("a/b=c") == ("a/b=c", "a/b=c", None)

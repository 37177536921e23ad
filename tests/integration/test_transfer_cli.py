"""`ablation-lens transfer`, as typed: a folder that is gone on with, its table, figures, file and page."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from ablation_lens import plots
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.transfer import PositionsWarning, Transfer
from ablation_lens.report.experiment_page import make_experiment_report
from tests.answers import answered

SMALL = ("--pairs", "4", "--length", "6", "--samples", "1", "--sample-tokens", "3", "--cheat", "2")


@pytest.fixture
def done(tmp_path, command):
    arguments = ("transfer", "tiny-mistral", *SMALL, "--out", tmp_path / "run", "--json")
    return arguments, answered(command(*arguments), "transfer")


def test_a_folder_holds_table_figures_and_file_and_is_gone_on_with(done, command, monkeypatch):
    arguments, values = done
    files = {name: Path(path) for name, path in values["files"].items()}
    assert sorted(files) == ["csv", "html", "html shares", "safetensors"]
    found = Transfer.load(files["safetensors"])
    assert values["text"] == repr(found)
    rows = list(csv.DictReader(files["csv"].read_text(encoding="utf-8").splitlines()))
    assert [row["condition"] for row in rows] == found.frame["condition"].tolist()
    assert values["documents"] == 4
    assert 'src="http' not in files["html"].read_text(encoding="utf-8")

    def refuse(*args, **options):
        raise AssertionError("this is there already")

    monkeypatch.setattr("ablation_lens.experiments.transfer.scored_logits", refuse)
    assert answered(command(*arguments), "transfer")["text"] == values["text"]


def test_a_page_shows_foreign_texts_as_text(done):
    _, values = done
    path = Path(values["files"]["safetensors"])
    found = Transfer.load(path)
    evil = "<script>alert(1)</script> **bold** \x1b[31m"
    sample = replace(found.samples[0], id=evil, before=evil, true=evil, written=(evil,) * len(found.writers))
    replace(found, samples=(sample,), judged_on=evil).save(path)
    html = make_experiment_report(path.parent).html()
    assert "<script>alert" not in html
    assert "\x1b" not in html
    assert "<strong>bold" not in html
    assert "What was written" in html


def test_learned_positions_are_warned_of(command, tmp_path):
    few = ("--pairs", "2", "--length", "2", "--samples", "0", "--no-scrub")
    with pytest.warns(PositionsWarning, match="learned positions"):
        code, _, _ = command("transfer", "tiny-opt", *few, "--out", tmp_path / "run")
    assert code == 0


def test_after_ctrl_c_the_same_command_goes_on(done, command, monkeypatch):
    arguments, values = done

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ablation_lens.experiments.transfer.scored_logits", interrupted)
        code, _, errors = command(*arguments[:-1], "--seed", "3")
    assert code == 130
    assert "Run the same again to go on" in errors
    assert answered(command(*arguments), "transfer")["text"] == values["text"]


def test_what_is_not_causal_is_refused_before_anything_is_written(command, tmp_path):
    code, _, errors = command("transfer", "tiny-vit", "--out", tmp_path / "run")
    assert (code, errors.count("\n")) == (2, 1)
    assert "causal language model" in errors
    assert not (tmp_path / "run").exists()


def test_without_scrubbing_there_is_no_figure_of_layers(done):
    found = Transfer.load(done[1]["files"]["safetensors"])
    plain = replace(found, conditions=found.conditions[:4], losses=found.losses[:4])
    with pytest.raises(MismatchError, match="scrub"):
        plots.transfer_shares(plain)
    assert len(plots.transfer_curves(plain).data) == 16

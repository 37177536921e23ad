"""`ablation-lens forget`, as typed: its table, figure, file and page, and a folder that is gone on with."""

import csv
import json
from dataclasses import replace

import pytest

import ablation_lens as al
from ablation_lens.experiments.pruning import Unlearning, unlearn
from ablation_lens.plots import unlearning_curves
from ablation_lens.report.experiment_page import make_experiment_report
from ablation_lens.report.forget import write_unlearning
from tests.answers import answered

TYPED = (
    "forget", "tiny-vit", "--label", "3", "--site", "mlp", "--step", "0.2", "--steps", "2", "--value", "zero",
    "--value", "mean", "--seeds", "2", "--images", "20", "--collect-images", "15",
)  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder as the command leaves it, made in Python."""
    model, folder = al.load_model("tiny-vit"), tmp_path_factory.mktemp("forget") / "run"
    task = al.task_for(model)
    sizes = {"images": 20, "collect_images": 15}
    digit, others = task.only(label=3), task.except_(label=3)
    options = {"site": "mlp", "step": 0.2, "steps": 2, "value": ["zero", "mean"], "seeds": 2}
    found = unlearn(model, digit, others, folder=folder, progress=False, **options, **sizes)
    return found, write_unlearning(found, folder), folder


def test_the_same_command_measures_nothing_twice(done, command, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("this is there already")

    for place in ("scores.evaluate_each", "pruning.collect"):
        monkeypatch.setattr(f"ablation_lens.experiments.{place}", refuse)
    found, _, folder = done
    values = answered(command(*TYPED, "--out", folder, "--json"), "unlearning")
    assert values["text"] == repr(found)
    assert len(values["rows"]) == len(found.frame)
    assert [row["value"] for row in values["summary"]] == ["zero", "mean"]
    assert values["forget"] == "digits, only 3"


def test_the_table_the_figure_and_the_file_are_in_the_folder(done):
    found, files, _ = done
    rows = list(csv.DictReader(files["csv"].read_text(encoding="utf-8").splitlines()))
    assert [row["value"] for row in rows] == found.frame["value"].tolist()
    assert "Plotly.newPlot" in files["html"].read_text(encoding="utf-8")
    assert repr(Unlearning.load(files["safetensors"])) == repr(found)
    # Among ten classes the right one is always among the ten likeliest, and images have no common tokens.
    assert found.about.measures == ("top1", "cross_entropy")


def test_the_corpus_of_a_label_may_be_named_again_and_retains_the_other_labels(done, command, tmp_path):
    values = answered(command(*TYPED, "--retain", "digits", "--out", done[2], "--json"), "unlearning")
    assert values["retain"] == "digits, except 3"


def test_a_label_column_is_of_the_corpus_to_forget(command, tmp_path):
    text = "The cat sat on a mat, and the dog ran over it to see what was there"
    rows = [{"text": f"{text} {place}.", "kind": "ab"[place % 2]} for place in range(40)]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    typed = ("forget", "tiny-opt", "--forget", mixed, "--label", "a", "--label-column", "kind", "--steps", "1")
    sizes = ("--seeds", "0", "--tokens", "100", "--collect-tokens", "100", "--out", tmp_path / "run", "--json")
    values = answered(command(*typed, *sizes, "--retain", "stdlib"), "unlearning")
    assert values["retain"] == "stdlib"
    again = tmp_path / "run" / ".." / "mixed.jsonl"
    values = answered(command(*typed, *sizes, "--retain", again), "unlearning")
    assert values["retain"].endswith("except a")


def test_what_to_forget_and_what_to_retain_have_to_be_named(command, tmp_path):
    code, _, errors = command("forget", "tiny-opt", "--forget", "stdlib", "--out", tmp_path / "run")
    assert code == 2
    assert "--retain" in errors


def test_the_page_tells_what_was_found_and_trusts_no_name(done, tmp_path):
    found, _, _ = done
    hostile = "<script>alert(1)</script>\x1b[2J"
    replace(found, about=replace(found.about, forget=hostile)).save(tmp_path / "forget.safetensors")
    page = make_experiment_report(tmp_path)
    assert page.title == "Unlearning by selective pruning"
    text = page.html()
    assert "<script>alert(1)" not in text
    assert "\x1b" not in text
    assert "max Δ" in text
    assert "\x1b" not in repr(Unlearning.load(tmp_path / "forget.safetensors"))


def test_a_line_per_value_and_a_band_of_random_neurons_each(done):
    figure = unlearning_curves(done[0])
    names = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert names == ["both lost alike", "random, zero", "random, mean", "zero", "mean"]
    line = next(trace for trace in figure.data if trace.name == "zero")
    chosen = done[0].frame[(done[0].frame["value"] == "zero") & done[0].frame["seed"].isna()]
    chosen = chosen[chosen["measure"] == "top1"]
    assert list(line.x) == pytest.approx((100 * chosen["retain_drop"]).tolist())
    assert list(line.y) == pytest.approx((100 * chosen["forget_drop"]).tolist())

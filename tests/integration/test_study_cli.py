"""`ablation-lens study`, `table` and `export`, as typed: what is printed, and with which exit code."""

import os
import re
import socket
import subprocess
import sys
from datetime import datetime, timedelta

import pandas as pd
import pytest

import ablation_lens as al
from ablation_lens.errors import CorpusError
from ablation_lens.runs.folder import MARKER, key_of
from ablation_lens.study.model_run import ModelRun
from ablation_lens.study.results import Results, UnreadableFile
from ablation_lens.study.study import Study
from tests.answers import answered
from tests.made_runs import add_baseline, add_cell, add_group, made_run
from tests.studies import files

VIT = ("study", "--model", "tiny-vit", "--method", "zero", "--method", "mean", "--fractions", "0.5,1", "--seeds", "1,2")
SIZES = ("--collect-images", "16", "--evaluate-images", "16")


@pytest.fixture
def run(tmp_path):
    run = made_run(tmp_path / "run")
    group = add_group(run)
    add_baseline(run, group, [60, 40], [2.0, 1.0])
    for method, loss in (("mean", 3.0), ("peak", 2.5)):
        for seed in (1, 2):
            add_cell(run, group, method, 0.5, seed, [30, 20], [loss, loss])
    return run


def test_a_study_from_the_shell_to_its_table(tmp_path):
    """The command itself, in a process of its own."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ablation_lens", *VIT, *SIZES, "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Table 2" in result.stdout
    assert "Top-1 (%)" in result.stdout
    assert " 50 % " in result.stdout
    assert len(list((out / "cells").iterdir())) == 7


def test_a_fraction_or_seed_that_is_repeated_is_not_dropped(command, tmp_path):
    """`recommend` takes --fraction once for each; here, the last so typed would replace the others without a word."""
    typed = ["--model", "tiny-vit", "--method", "zero", "--fraction", "0.5", "--fraction", "0.7,0.9", "--seed", "1"]
    code, _, errors = command("study", *typed, "--seed", "2", *SIZES, "--out", tmp_path / "run")
    assert code == 0, errors
    frame = Results.load(tmp_path / "run").frame.query("fraction > 0")
    assert sorted(zip(frame.fraction, frame.seed, strict=True)) == [(f, s) for f in (0.5, 0.7, 0.9) for s in (1, 2)]


def test_a_toml_file_and_options_over_it(command, tmp_path):
    config = tmp_path / "study.toml"
    config.write_text(
        'models = ["tiny-vit"]\nmethods = ["zero"]\nfractions = [0.5]\nseeds = [1, 2, 3]\nevaluate_images = 16\n'
    )
    code, _, errors = command("study", config, "--out", tmp_path / "run", "--seeds", "7", "--image", "digits")
    assert code == 0, errors
    code, out, _ = command("export", tmp_path / "run", tmp_path / "cells.csv")
    assert (code, out) == (0, f"2 cells → {tmp_path / 'cells.csv'}\n")
    assert pd.read_csv(tmp_path / "cells.csv")["seed"].tolist()[1:] == [7]


def test_a_method_that_no_model_takes_is_left_out_and_said_so(command, tmp_path):
    code, _, errors = command(*VIT, *SIZES, "--method", "resample-tokens", "--out", tmp_path / "run")
    assert code == 0
    assert errors.splitlines()[-1] == "left out, as no model here takes it: resample-tokens"
    assert set(Results.load(tmp_path / "run").frame["method"]) == {"none", "zero", "mean"}


def test_a_failing_cell_is_exit_code_1_and_a_later_success_is_0(command, tmp_path, registry):
    fails = [True]

    @registry.register("capricious")
    def capricious(statistics):
        if fails and statistics.shape != (1, 1, 1):  # not where it is tried before anything runs
            raise ValueError("not today [bold]")
        return statistics.mean

    arguments = (*VIT, *SIZES, "--method", "capricious", "--out", tmp_path / "run")
    code, out, errors = command(*arguments)
    assert code == 1
    assert "Table 2" in out  # of the rest
    lines = errors.splitlines()
    assert "failed: tiny-vit: capricious, 50 %, seed 1: not today [bold]" in lines
    assert lines[-1] == "3 failed; run the same again to retry them."
    assert len(list((tmp_path / "run" / "failures").iterdir())) == 3
    fails.clear()
    code, _, errors = command(*arguments)
    assert code == 0, errors
    assert list((tmp_path / "run" / "failures").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study",), "say what to study: --preset tiny, --model tiny-opt, or a TOML file."),
        (("study", "--preset", "tinny"), "there is no preset 'tinny'; did you mean 'tiny'"),
        (("study", "--model", "tiny-vitt"), "did you mean tiny-vit"),
        (("study", "--model", "./nowhere"), "there is no folder './nowhere'"),
        (("study", "--model", "tiny-vit", "--method", "paek"), "there is no method 'paek'; did you mean 'peak'"),
        (("study", "--model", "tiny-vit", "--method", "mine"), "a center of your own must be registered first"),
        (("study", "--model", "tiny-vit", "--method", ""), "there is no method ''"),
        (("study", "--model", "tiny-vit", "--method", "peak bins=1"), "bins=1; expected a whole number from 2 to 256"),
        (
            ("study", "--model", "tiny-vit", "--method", "resample-tokens"),
            "resample-tokens cannot be applied to tiny-vit",
        ),
        (("study", "--model", "tiny-vit", "--image", "digitz"), "digits"),
        (("study", "--model", "tiny-opt", "--text", "stdlb"), "stdlib"),
        (
            ("study", "--model", "tiny-vit", "--fractions", "1.5"),
            "fraction 1.5 is not possible; give numbers from 0 to",
        ),
        (("study", "--model", "tiny-vit", "--fractions", "-0.5"), "fraction -0.5"),
        (("study", "--model", "tiny-vit", "--fractions", "half"), "fractions 'half' are not numbers"),
        (("study", "--model", "tiny-vit", "--fractions", ""), "fractions '' are not numbers"),
        (("study", "--model", "tiny-vit", "--seeds", "1.5"), "seeds '1.5' are not whole numbers"),
        (("study", "--model", "tiny-vit", "--evaluate-tokens", "-5"), "--evaluate-tokens -5 is not possible"),
        (("study", "--model", "tiny-vit", "--collect-images", "0"), "--collect-images 0 is not possible"),
        (("study", "--model", "tiny-vit", "--count", "al"), "there is no count 'al'; did you mean 'all'"),
        (("study", "nowhere.toml"), "there is no file nowhere.toml."),
        (("study", "nowhere.toml", "--preset", "tiny"), "give a TOML file or --preset, not both"),
    ],
)
def test_bad_requests_are_one_line_exit_code_2_and_no_folder(command, tmp_path, arguments, message):
    code, out, errors = command(*arguments, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_in_a_toml_file_names_the_nearest(command, tmp_path):
    config = tmp_path / "study.toml"
    config.write_text('models = ["tiny-vit"]\nfracions = [0.5]\n')
    code, _, errors = command("study", config, "--out", tmp_path / "run")
    assert code == 2
    assert errors.count("\n") == 1
    assert f"there is no setting in {config} 'fracions'; did you mean 'fractions'" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--evaluate-images", "100000"), "ask for fewer (--evaluate-images 233), or leave --evaluate-images out"),
        (("--dtype", "floot16"), "'floot16' is not a dtype"),
        (("--device", "abacus"), "'abacus' is not a device"),
    ],
)
def test_what_shows_only_with_the_model_is_exit_code_2_too(command, tmp_path, arguments, message):
    code, out, errors = command(*VIT, *arguments, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "Traceback" not in errors
    *_, said = errors.splitlines()  # after a line about progress
    assert said.startswith("error: ")
    assert message in said


def test_folders_that_are_not_ours_are_refused_and_left_alone(command, tmp_path):
    theirs, newer = tmp_path / "theirs", tmp_path / "newer"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    newer.mkdir()
    (newer / MARKER).write_text('{"format": 2}')
    before = files(tmp_path)
    for folder, message in ((theirs, "holds other files (thesis.tex)"), (newer, "has format version 2")):
        for arguments in ((*VIT, "--out", folder), ("table", folder), ("export", folder, tmp_path / "x.csv")):
            code, out, errors = command(*arguments)
            assert (code, out) == (2, "")
            assert errors.startswith("error: ")
            assert errors.count("\n") == 1
            assert message in errors or (folder == theirs and "is not a run folder" in errors)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("form", "begins"),
    [("markdown", "|  |  | some-model |"), ("latex", r"\begin{tabular}{llr}"), ("csv", "model,metric,fraction,method")],
)
def test_the_table_in_every_format_on_the_screen_and_in_a_file(command, run, tmp_path, form, begins):
    code, out, _ = command("table", run.path, "--format", form)
    assert code == 0
    assert out.startswith(begins)
    code, said, _ = command("table", run.path, "--format", form, "--out", tmp_path / "table")
    assert (code, said) == (0, f"Table 2 → {tmp_path / 'table'}\n")
    assert (tmp_path / "table").read_text().strip() == out.strip()


def test_the_table_for_people(command, run):
    code, out, _ = command("table", run.path)
    assert code == 0
    assert "Table 2" in out
    assert "2.50±0.00" in out
    assert "too few seeds to speak of others" in " ".join(out.split())
    assert "also measured" not in out


def test_the_table_for_people_says_which_fractions_it_leaves_out(command, run):
    add_cell(run, run.names("groups")[0], "mean", 0.1, 1, [30, 20], [2.0, 2.0])
    assert command("table", run.path)[1].endswith("also measured: 10 %; table --fractions 0.1,0.5 shows it\n")
    assert "also measured" not in command("table", run.path, "--fractions", "0.5")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table", "RUN", "--format", "latx"), "there is no format 'latx'; did you mean 'latex'"),
        (("table", "RUN", "--fractions", "0.3"), "holds no cell that was measured at 30 %"),
        (("table", "RUN", "--fractions", ","), "fractions ',' are not numbers"),
        (("table", "RUN", "--format", "csv", "--out", "RUN/no/where.csv"), "there is no folder"),
        (("table", "nowhere"), "nowhere is not a run folder"),
        (("status", "nowhere"), "nowhere is not a run folder, or the study has not begun yet"),
        (("report", "RUN/ablation-lens.json"), "is not a run folder"),
        (("export", "RUN", "cells.xlsx"), "must end in .csv or .parquet"),
        (("export", "RUN", "RUN/no/where.csv"), "there is no folder"),
    ],
)
def test_bad_requests_for_tables_are_one_line_and_exit_code_2(command, run, arguments, message):
    code, out, errors = command(*(argument.replace("RUN", str(run.path)) for argument in arguments))
    assert (code, out) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_damaged_cell_is_left_out_with_a_word_and_exit_code_1(command, run, tmp_path):
    cells = Results.load(run.path).frame
    path = run.file("cells", cells.index[(cells["method"] == "mean") & (cells["seed"] == 1)][0])
    path.write_bytes(path.read_bytes()[:50])
    for arguments in (("table",), ("export", tmp_path / "cells.csv")):
        with pytest.warns(UnreadableFile, match=rf"{path.name} .*delete it and run the same command again"):
            code, out, _ = command(arguments[0], run.path, *arguments[1:])
        assert code == 1
        assert out
    assert len(pd.read_csv(tmp_path / "cells.csv")) == len(cells) - 1
    for other in (run.path / "cells").iterdir():
        other.write_bytes(b"")
    code, out, errors = command("table", run.path)  # nothing is left to be right
    assert (code, out) == (2, "")
    assert errors.count("\n") == 1
    assert "delete it and run the same command again" in errors


def test_a_disk_error_while_exporting_promises_nothing_about_cells(command, run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ablation_lens.files.os.fsync", full)
    for arguments in (("export", run.path, tmp_path / "c.csv"), ("table", run.path, "--out", tmp_path / "t.md")):
        code, _, errors = command(*arguments)
        assert code == 2
        assert "No space left on device" in errors
        assert "make room" in errors
        assert "cells are kept" not in errors
        assert list(tmp_path.glob("*.*")) == []


def test_fraction_0_alone_prints_the_baseline(command, tmp_path):
    out = tmp_path / "run"
    code, said, _ = command("study", "--model", "tiny-vit", "--fractions", "0", "--evaluate-images", "16", "--out", out)
    (row,) = Results.load(out).frame.itertuples()
    assert code == 0
    assert said == f"tiny-vit as it is: top-1 {100 * row.top1:.2f} %, CE {row.cross_entropy:.2f} nats\n"


@pytest.mark.parametrize("name", ["table", "report"])
def test_a_target_of_the_wrong_kind_is_refused_in_one_line(command, run, tmp_path, name):
    (tmp_path / "file").write_text("kept")
    target = tmp_path if name == "table" else tmp_path / "file"
    code, out, errors = command(name, run.path, "--out", target)
    assert (code, out) == (2, "")
    assert len(errors.strip().splitlines()) == 1
    assert ("is a folder" if name == "table" else "is a file") in errors
    assert (tmp_path / "file").read_text() == "kept"


# ---------------------------------------------------------------------- settings


def test_site_bins_and_context_are_settings_of_a_study(command, tmp_path):
    """As in a TOML file."""
    out = tmp_path / "run"
    sizes = ("--collect-tokens", "200", "--evaluate-tokens", "200")
    code, _, errors = command(
        "study", "--model", "tiny-opt", "--method", "mean", "--fractions", "0.5", "--seeds", "1", *sizes,
        "--site", "mlp", "--bins", "64", "--context", "40", "--out", out,
    )  # fmt: skip
    assert code == 0, errors
    results = Results.load(out)
    (group,) = results.groups
    facts, record = results.facts(group)["facts"], results.record(group)
    assert (facts["site"], facts["bins"], record.context) == ("mlp", 64, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--site", "mpl"), "there is no site 'mpl'; did you mean 'mlp'"),
        (("--bins", "1"), "--bins 1 is not possible"),
        (("--context", "0"), "'--context'"),
        (("--method", "peak bins=300"), "peak bins=300: bins=300; expected a whole number from 2 to 256"),
    ],
)
def test_bad_settings_are_said_by_the_option(command, tmp_path, arguments, message):
    code, out, errors = command("study", "--model", "tiny-opt", *arguments, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert message in errors
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- tables of what there is


@pytest.fixture
def at_30(tmp_path):
    """A run in which the two fractions of the paper were not measured."""
    run = made_run(tmp_path / "at-30")
    group = add_group(run)
    add_baseline(run, group, [60, 40], [2.0, 1.0])
    add_cell(run, group, "mean", 0.3, 1, [30, 20], [3.0, 3.0])
    add_cell(run, group, "peak", 0.3, 1, [50, 40], [2.5, 2.0])
    return run


def test_the_table_shows_what_was_measured_where_50_and_90_percent_were_not(command, at_30):
    for further in ((), ("--format", "markdown"), ("--format", "csv"), ("--json",)):
        code, out, errors = command("table", at_30.path, *further)
        assert (code, errors) == (0, "")
        assert "30 %" in out or "0.3" in out


def test_a_fraction_that_was_not_measured_names_those_that_were(command, at_30):
    assert (
        "holds no cell that was measured at 50 %; there is 30 %."
        in command("table", at_30.path, "--fractions", "0.5")[2]
    )


def test_in_a_pipe_the_best_has_an_asterisk_as_bold_is_lost(command, at_30):
    _, out, _ = command("table", at_30.path)
    best = next(line for line in out.splitlines() if "peak" in line)
    other = next(line for line in out.splitlines() if "mean" in line)
    assert best.rstrip().endswith("2.25*") or best.rstrip().endswith("45.00*")
    assert "*" not in other
    assert "*: cannot be told from the best" in " ".join(out.split())
    assert "Bold" not in out


# ---------------------------------------------------------------------- JSON


def test_every_command_about_runs_prints_json(command, run, tmp_path):
    table = answered(command("table", run.path, "--json"), "table")
    (group,) = table["groups"]
    assert (group["model"], group["label"]) == ("some-model", "some-model")
    assert (table["better"], group["metrics"]) == (
        {"top1": "higher", "cross_entropy": "lower"},
        {"top1": 0.5, "cross_entropy": 1.5},
    )
    assert [(row["method"], row["metrics"]["cross_entropy"]["as_best"]) for row in table["rows"]] == [
        ("mean", False),
        ("peak", True),
    ]
    csv = tmp_path / "c.csv"
    assert answered(command("export", run.path, csv, "--json"), "export")["cells"] == 5
    page = answered(command("report", run.path, "--out", tmp_path, "--json"), "report")
    assert page["html"] == str(tmp_path / "report.html")
    study = answered(command(*VIT, *SIZES, "--out", tmp_path / "run2", "--json"), "study")
    assert (study["cells"], study["failed"], study["left_out"]) == (7, [], [])
    assert {row["method"] for row in study["rows"]} == {"zero", "mean"}


def test_json_and_another_form_are_not_both_given(command, run, tmp_path):
    for further in (("--format", "csv"), ("--format", "text"), ("--out", tmp_path / "t")):
        code, out, errors = command("table", run.path, "--json", *further)
        assert (code, out) == (2, "")
        assert f"--json and {further[0]} each say what is printed; give one of them." in errors


# ---------------------------------------------------------------------- status


def test_status_tells_what_is_done_and_left_and_failed(command, run):
    group = Results.load(run.path).frame["group"].iloc[0]
    settings = {"models": ["some-model", "another"], "methods": ["mean", "peak", "gone"], "fractions": [0.5, 1.0]}
    sizes = {"bins": 16, "collect_tokens": 100, "evaluate_tokens": 100}  # those of the cells that are there
    run.write_study({**settings, "seeds": [1, 2], **sizes})
    facts = {"group": group, "method": "gone", "fraction": 0.5, "seed": 1}
    told = {"model": "some-model", "cell": "gone, 50 %, seed 1", "facts": facts}
    run.record_failure(key_of(facts), told, ValueError("no such center"))
    values = answered(command("status", run.path, "--json"), "status")
    rows = {(row["model"], row["method"]): (row["done"], row["left"], row["failed"]) for row in values["rows"]}
    assert rows["some-model", "none"] == (1, 0, 0)
    assert rows["some-model", "mean"] == (2, 1, 0)  # 100 % is left
    assert rows["some-model", "gone"] == (0, 3, 1)
    assert rows["another", "peak"] == (0, 3, 0)
    assert [failure["message"] for failure in values["failures"]] == ["no such center"]
    code, out, errors = command("status", run.path)
    assert code == 0
    assert "5 cells done" in out
    assert "failed: some-model: gone, 50 %, seed 1: no such center" in errors


def untouched(folder):
    """Files as they are; of claims, whose heart may beat meanwhile, their names."""
    return {name: None if name.startswith("holders/") else stamp for name, stamp in files(folder).items()}


def test_status_tells_who_is_at_work_on_what_and_changes_nothing(command, run):
    run.write_study({"models": ["another"], "methods": ["mean"], "fractions": [1.0]})
    code, out, _ = command("status", run.path)
    assert (code, out.endswith(" left, nobody at work\n")) == (0, True)
    with run.locked("k", what="some-model: mean, 50 %, seed 1 \x1b[31m"), run.locked("statistics x"):
        before = untouched(run.path)
        (first, second) = answered(command("status", run.path, "--json"), "status")["at_work"]
        code, out, _ = command("status", run.path)
        assert untouched(run.path) == before
    asked = {"key": "k", "what": "some-model: mean, 50 %, seed 1 \\x1b[31m"}
    here = {"process": os.getpid(), "host": socket.gethostname()}
    assert {name: value for name, value in first.items() if name != "since"} == {**asked, **here}
    assert datetime.fromisoformat(first["since"]).utcoffset() == timedelta(0)
    assert (second["key"], second["what"]) == ("statistics x", None)
    assert (code, out.endswith(" left, 1 at work\n")) == (0, True)
    assert re.search(rf"seed 1 \\x1b\[31m +{os.getpid()} +{re.escape(socket.gethostname())} +20", out)


def test_status_finds_the_cells_of_batches_of_ones_own(command, tmp_path):
    """They have no name by which a study would know its corpus again."""
    run = made_run(tmp_path / "run", models=())
    add_baseline(run, add_group(run, corpus="your batches"), [60, 40], [2.0, 1.0])
    given = {"batches to collect": "Tensor of 4", "batches to evaluate": "Tensor of 4"}
    run.write_study({"models": ["some-model"], "methods": ["mean"], "fractions": [1.0], "bins": 16, "given": given})
    rows = answered(command("status", run.path, "--json"), "status")["rows"]
    assert [(row["method"], row["done"], row["left"]) for row in rows] == [("none", 1, 0), ("mean", 0, 1)]


def test_status_asks_for_the_cells_that_a_study_asks_for(command, tmp_path):
    """It says so without the centers at hand, and so in words of its own."""
    from ablation_lens.study.records import StudyRecord
    from ablation_lens.study.status import _asked

    methods = ["zero", "peak bins=64", "resample-tokens", "resample-pixels"]
    for shared in (False, True):
        study = Study(models=["tiny-opt"], methods=methods, fractions=[0, 0.5, 1], seeds=[1, 2], shared_input=shared)
        record = StudyRecord.from_dict(study.to_dict())
        for task in ("causal-lm", "masked-lm", "image-classification"):
            cells = [cell.facts for cell in study.cells(task)]
            wanted = {(cell["method"], cell["fraction"], cell["seed"]) for cell in cells}
            places = _asked(record, task).items()
            assert {(method, *place) for method, found in places for place in found} == wanted
            assert len(cells) == len(wanted)


def test_a_study_begun_and_interrupted_is_followed_by_its_status(command, tmp_path):
    out = tmp_path / "run"
    assert command(*VIT, *SIZES, "--out", out)[0] == 0
    for place in sorted((out / "cells").iterdir())[:3]:
        place.unlink()
    rows = answered(command("status", out, "--json"), "status")["rows"]
    assert sum(row["done"] for row in rows) == 4
    assert sum(row["left"] for row in rows) == 3


def test_a_damaged_file_is_said_and_not_counted(command, run):
    place = next((run.path / "cells").iterdir())
    place.write_bytes(b"")
    code, out, errors = command("status", run.path)
    assert code == 1
    assert "4 cells done" in out
    assert place.name in errors


def test_recommend_says_as_python_does_what_to_take(command):
    asked = ("--center", "zero", "--center", "mean", "--fraction", "0.5", "--seeds", "2", "--images", "24")
    told = answered(command("recommend", "tiny-vit", *asked, "--json"), "recommendation")
    options = {"centers": ["zero", "mean"], "fractions": 0.5, "seeds": 2, "images": 24, "progress": False}
    found = al.recommend("tiny-vit", **options)
    assert (told["recommended"], told["told"]) == (found.best(), found.told())
    assert told["fractions"][0]["told"] == found.told(0.5)
    code, out, _ = command("recommend", "tiny-vit", *asked)
    assert (code, found.told() in out) == (0, True)
    code, out, errors = command("recommend", "tiny-vit", "--center", "paek")
    assert (code, out) == (2, "")
    assert "did you mean 'peak'" in errors


def test_recommend_fails_where_a_center_was_not_measured_everywhere(command, monkeypatch):
    before = ModelRun._measure

    def measure(self, cell, *given):
        if str(cell) == "mean, 50 %, seed 1":
            raise CorpusError("the memory is full")
        before(self, cell, *given)

    monkeypatch.setattr(ModelRun, "_measure", measure)
    asked = ("--center", "zero", "--center", "mean", "--fraction", "0.5", "--seeds", "2", "--images", "24")
    code, out, _ = command("recommend", "tiny-vit", *asked)
    assert code == 1
    assert "left out: mean (at 50 % with seed 1: the memory is full)" in out

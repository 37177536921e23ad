"""What commands about badly named models, files and runs print, also in a real terminal; and Ctrl-C in one."""

import re
import shutil

import pytest

from ablation_lens.neurons.statistics import ActivationStatistics
from tests.made_runs import add_baseline, add_cell, add_group, made_run
from tests.synthetic_statistics import draw, statistics_of
from tests.terminals import HOSTILE, SHOWN, in_a_terminal, require_harmless


@pytest.fixture
def hostile(tmp_path, saved, monkeypatch):
    """A folder with a model, statistics and a run, all of them badly named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(saved("vit"), HOSTILE)
    statistics_of(draw(50, (1, 1, 4)), name=HOSTILE).save(f"{HOSTILE}.safetensors")
    run = made_run(tmp_path / f"run{HOSTILE}")
    group = add_group(run, HOSTILE)
    add_baseline(run, group, [60, 40], [2.0, 1.0])
    add_cell(run, group, "mean", 0.5, 1, [30, 20], [3.0, 3.0])
    return tmp_path


def test_every_command_shows_names_harmlessly(command, hostile):
    statistics, run = f"{HOSTILE}.safetensors", f"run{HOSTILE}"
    for arguments in (
        ("info", f"./{HOSTILE}"),
        ("neurons", statistics),
        ("neurons", statistics, "--csv", f"{HOSTILE}.csv"),
        ("explore", statistics, "--html", f"{HOSTILE}.html"),
        ("table", run),
        ("table", run, "--format", "markdown"),
        ("table", run, "--format", "latex"),
        ("table", run, "--format", "csv"),
        ("export", run, f"{HOSTILE}.csv"),
        ("report", run),
        ("status", run),
        ("table", run, "--json"),
        ("status", run, "--json"),
        ("neurons", statistics, "--json"),
        ("explore", statistics, "--html", f"{HOSTILE}.html", "--json"),
        ("info", f"./{HOSTILE}", "--json"),
        ("ablate", "tiny-opt", HOSTILE, "--center", "zero", "--neuron", "L0"),
    ):
        code, out, errors = command(*arguments)
        assert (code, errors) == (0, "")
        require_harmless(out, lines=out.count("\n"))
        assert "title" in out or arguments[0] in ("neurons", "ablate")
    assert command("table", run, "--format", "csv")[1].count("\n") == 5  # the head, and a line per row


def without_rich(said):
    """What is left when rich's own doing is taken away: colors, clearing a line, hiding the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[mKAlh]", "", said).replace("\r", "")


def test_a_study_of_a_badly_named_model_moves_no_terminal(hostile):
    """Its progress bar and its error, in a terminal."""
    code, said = in_a_terminal(
        "study", "--model", f"./{HOSTILE}", "--image", "digits", "--evaluate-images", "9", "--out", "r", cwd=hostile
    )
    assert code == 2  # the tiny model knows seven classes, not ten digits
    assert "\x1b[31mred" not in said
    require_harmless(without_rich(said), lines=without_rich(said).count("\n"))
    assert f"{SHOWN}: loading" in said


def test_ctrl_c_twice_within_a_batch_saves_what_was_collected(tmp_path):
    code, said = in_a_terminal(
        "collect", "tiny-opt", "--tokens", "100000", "--batch-size", "8", "--out", "s.safetensors", cwd=tmp_path,
        presses=lambda said: 2 if b" tokens/s" in said else 0,
    )  # fmt: skip
    assert code == 130, said
    assert "Traceback" not in said
    assert without_rich(said).splitlines()[-1].endswith(" is in s.partial.safetensors")
    (path,) = tmp_path.iterdir()
    partial = ActivationStatistics.load(path)
    assert (partial.count == partial.provenance.tokens).all()

"""What reaches a terminal: one line per sentence, no orders in it, whatever a name holds; and who no longer reads."""

import ast
import io
import json
import math
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from ablation_lens.cli import terminal
from ablation_lens.neurons.statistics import ActivationStatistics
from tests.terminals import HOSTILE, SHOWN, in_a_terminal, require_harmless

CLI = Path(terminal.__file__).parent


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.stem)
def test_only_terminal_prints(path):
    """Or a line is printed that nobody has made harmless."""
    if path.stem == "terminal":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not {call for call in calls if re.search(r"(^|\.)(print|echo|secho|write|Console)$", call)}


def test_lines_stay_lines(capsys):
    terminal.say(f"a {HOSTILE}")
    terminal.say_lines(f"one\ntwo {HOSTILE[:6]}\n")
    terminal.complain(f"b {HOSTILE}", alarming=True)
    terminal.complain("x" * 10**6)
    out, errors = capsys.readouterr()
    assert out == f"a {SHOWN}\none\ntwo {SHOWN[:9]}\n"
    told, long = errors.splitlines()
    assert told == f"b {SHOWN}"
    assert len(long) < 10_000


def test_cells_and_titles_of_tables_hold_no_markup(capsys):
    from rich.table import Table

    table = Table(title=terminal.cell(HOSTILE))
    table.add_column()
    table.add_row(terminal.cell(HOSTILE))
    terminal.show(table)
    out, _ = capsys.readouterr()
    require_harmless(out, lines=out.count("\n"))
    assert out.count(":boom:[bold]") == 2


def test_warnings_are_a_line_each(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    terminal.prepare()
    assert warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "file", 1) == f"warning: {SHOWN}\n"


# ---------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "arguments",
    [
        (HOSTILE,),
        ("collect", "tiny-opt", "--out", "s", "--tokens", HOSTILE),
        ("collect", "tiny-opt", "--out", "s", f"--{HOSTILE}"),
        ("collect", "tiny-opt", "--out", "s", "--site", HOSTILE),
        ("collect", f"./{HOSTILE}", "--out", "s"),
        ("collect", "tiny-opt", "--out", f"{HOSTILE}/s"),
        ("collect", "tiny-opt", "--out", "s", "--corpus", f"./{HOSTILE}"),
        ("neurons", HOSTILE),
        ("explore", HOSTILE, "--html", "page"),
        ("info", f"./{HOSTILE}"),
        ("table", HOSTILE),
        ("export", HOSTILE, "x.csv"),
        ("report", HOSTILE),
        ("status", HOSTILE),
        ("merge", HOSTILE, "b", "--out", "c"),
        ("evaluate", "tiny-opt", "--ablation", HOSTILE),
        ("evaluate", "tiny-opt", "--center", HOSTILE, "--fraction", "0.5"),
        ("evaluate", "tiny-opt", "--center", "zero", "--neuron", HOSTILE),
        ("ablate", "tiny-opt", "x", "--center", "zero", "--neuron", "L0", "--answer", HOSTILE),
        ("neurons", HOSTILE, "--json"),
        (HOSTILE, "--json"),
        ("study", HOSTILE, "--out", "r"),
        ("study", "--preset", HOSTILE, "--out", "r"),
        ("study", "--model", "tiny-opt", "--method", HOSTILE, "--out", "r"),
        ("collect",),
    ],
    ids=lambda arguments: " ".join(arguments)[:20].encode("unicode_escape").decode(),
)
def test_what_was_typed_wrongly_is_one_harmless_line(command, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, errors = command(*arguments)
    assert (code, out) == (2, "")
    assert errors.startswith("error: ")
    require_harmless(errors, lines=1)


def test_a_systems_error_that_names_a_file_is_one_harmless_line(command, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", f"/somewhere/{HOSTILE}")

    monkeypatch.setattr(ActivationStatistics, "load", refuse)
    code, _, errors = command("neurons", tmp_path / "x")
    assert code == 2
    assert errors == f"error: /somewhere/{SHOWN} cannot be used: Permission denied.\n"


# ---------------------------------------------------------------------- who reads


def started(*arguments, **options):
    command = [sys.executable, "-m", "ablation_lens", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=300, **options)


def test_a_stream_that_knows_few_characters_gets_others(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    terminal.prepare()
    terminal.say("σ → ε")
    assert stream.buffer.getvalue() == b"? ? ?\n"


def test_help_in_an_old_locale():
    result = started("neurons", "--help", env={**os.environ, "PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, "")
    assert "peak/?" in result.stdout


@pytest.mark.parametrize("asked", ["--version", "--help"])
def test_a_closed_pipe_ends_quietly(asked):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        result = started(asked, stdout=nobody)
    assert result.stderr == ""
    assert result.returncode in (1, terminal.UNREAD)  # help is rich's to print


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_standard_output_on_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        result = started("--version", stdout=full)
    assert result.returncode == 2
    assert result.stderr == "error: cannot write to standard output (No space left on device).\n"


# ---------------------------------------------------------------------- JSON


def test_json_is_json_whatever_it_holds(capsys):
    """NaN is not JSON, and a name may hold an order to a terminal or half a character."""
    import numpy as np
    import pandas

    values = {"name": HOSTILE, "bytes": "\udcff", "number": np.float64(0.5), "path": Path("a/b"), "seed": pandas.NA}
    terminal.say_json("thing", values | {"none": math.nan, "rows": ({"much": math.inf},), "count": np.int64(3)})
    out, _ = capsys.readouterr()
    require_harmless(out, lines=out.count("\n"))
    assert out.isascii()
    assert json.loads(out, parse_constant=lambda name: 1 / 0) == {
        "schema": "ablation-lens.thing/1",
        "name": HOSTILE,
        "bytes": "?",
        "number": 0.5,
        "path": "a/b",
        "seed": None,
        "none": None,
        "rows": [{"much": None}],
        "count": 3,
    }


# ---------------------------------------------------------------------- who waits


def test_what_is_being_loaded_is_said_before_torch_is_imported(tmp_path, record_property):
    """A terminal that shows nothing for seconds looks broken. How long it took is noted, and not judged."""
    seconds = {}

    def look(said):
        if b"\n" in said and "first line" not in seconds:
            seconds["first line"] = time.monotonic() - started
        return 0

    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import importlib.abc, sys\n"
        "class Tell(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': sys.stderr.write('torch is imported\\n')\n"
        "sys.meta_path.insert(0, Tell())\n"
    )
    started = time.monotonic()
    code, said = in_a_terminal("info", "tiny-opt", cwd=tmp_path, presses=look, PYTHONPATH=str(tmp_path))
    assert code == 0, said
    lines = said.replace("\r", "").splitlines()
    assert lines[:2] == ["loading tiny-opt …", "torch is imported"]
    record_property("seconds to the first line", round(seconds["first line"], 2))


def test_a_pipe_gets_the_result_alone(command):
    code, _, errors = command("centers")
    assert (code, errors) == (0, "")

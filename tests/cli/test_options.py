"""What an error of Python's says to somebody who typed a command, and what a shell completes."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import typer.main

from ablation_lens import zoo
from ablation_lens.cli import options
from ablation_lens.cli.app import app
from ablation_lens.measure import learners
from ablation_lens.measure.metrics import BUILT_IN
from ablation_lens.neurons import centers
from ablation_lens.sites import Site
from ablation_lens.study import methods

COMMANDS = typer.main.get_command(app).commands


def told(message, command, *typed):
    context = COMMANDS[command].make_context(command, list(typed), resilient_parsing=True)
    return options.name_options(message, COMMANDS, context)


@pytest.mark.parametrize(
    ("message", "command", "typed", "expected"),
    [
        ("give images=…", "collect", (), "give --images …"),
        ("images=5 is too few.", "collect", ("--images", "5"), "--images 5 is too few."),
        ("needs a corpus=: a folder, or labels='x'.", "collect", (), "needs a --corpus: a folder, or --labels 'x'."),
        ("use include_bos=False.", "collect", (), "use --no-bos."),
        ("leave evaluate_images out.", "study", (), "leave --evaluate-images out."),
        ("say which by model=….", "neurons", (), "say which by --model …."),
        ("collect with collect(..., passes=2).", "neurons", (), "collect with ablation-lens collect --passes 2."),
        # What is not an option of the command, is quoted, or is no argument at all, stays.
        ("give epsilon=1.", "collect", (), "give epsilon=1."),
        ("write 'peak bins=64' in the model's file.", "study", (), "write 'peak bins=64' in the model's file."),
        ("call gather(..., examples=3).", "explore", (), "call gather(..., examples=3)."),
        ("share=(2.0, 2.0) is not possible.", "learn", (), "share=(2.0, 2.0) is not possible."),
        ('use it.batches(split="evaluate").', "collect", (), 'use it.batches(split="evaluate").'),
        ("use it (images=5).", "collect", (), "use it (--images 5)."),
        ("collect(..., positions=True) does.", "evaluate", (), "collect(..., positions=True) does."),
    ],
)
def test_an_argument_is_said_as_the_option_that_it_is_here(message, command, typed, expected):
    assert told(message, command, *typed) == expected


def test_what_was_typed_within_a_method_is_not_an_option():
    message = "peak bins=1: bins=1; expected more."
    assert told(message, "study", "--method", "peak bins=1") == message
    assert told(message, "study") == "peak --bins 1: --bins 1; expected more."


def test_settings_of_a_file_keep_the_names_that_they_have_there():
    message = "bins=1 and evaluate_tokens=-5 are not possible."
    assert told(message, "study", "a.toml") == message
    assert told(message, "study", "a.toml", "--bins", "1") == "--bins 1 and evaluate_tokens=-5 are not possible."


# ---------------------------------------------------------------------- completion


def test_the_names_that_a_shell_completes_are_those_that_there_are():
    """They are listed without torch, and so in a second place."""
    assert set(options.CENTERS) == {name for name in centers.names() if centers.is_ours(name)}
    assert tuple(site.value for site in Site) == options.SITES
    assert set(learners.names()) <= set(options.LEARNED)
    assert set(options.METRICS) == set(BUILT_IN)
    ours = set(methods.names()) - set(centers.names()) | set(options.CENTERS)
    assert set(options.METHODS) - set(options.LEARNED) == ours - set(learners.names())


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ablation-lens info tiny-m", {"tiny-mistral"}),
        ("ablation-lens info ", set(zoo.NAMES)),
        ("ablation-lens explore r --model tiny-v", {"tiny-vit"}),
        ("ablation-lens study --preset q", {"quick"}),
        ("ablation-lens study --method peak-", {"peak-smooth", "peak-kde", "peak-trimmed"}),
        ("ablation-lens evaluate tiny-opt --center me", {"mean", "median"}),
        ("ablation-lens table --format l", {"latex"}),
        ("ablation-lens sta", {"status"}),
        ("ablation-lens info ./some-folder", set()),  # the shell goes on with files
    ],
)
def test_a_shell_completes_names(command, monkeypatch, typed, expected):
    monkeypatch.setenv("_ABLATION_LENS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    code, out, errors = command()
    assert (code, errors) == (0, "")
    assert set(out.split()) == expected


def test_completing_imports_no_torch():
    """Somebody waits with a finger on the key."""
    program = """
import os, sys
os.environ["_ABLATION_LENS_COMPLETE"] = "complete_bash"
os.environ.update(COMP_WORDS="ablation-lens evaluate x --center p", COMP_CWORD="4")
from ablation_lens.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert result.stdout.split() == ["peak", "peak-smooth", "peak-kde", "peak-trimmed"]
    assert result.stderr == "False\n"


def test_a_completion_script_is_shown(command, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code, out, _ = command("--show-completion", "bash")
    assert code == 0
    assert "_ABLATION_LENS_COMPLETE=complete_bash" in out


# ---------------------------------------------------------------------- the page about it


def test_the_page_about_commands_has_every_command_and_every_schema():
    from tests.answers import PAGE, SCHEMAS

    page = PAGE.read_text(encoding="utf-8")
    assert {name for name in COMMANDS if f"\n| `{name}" not in page} == set()
    code = "".join(path.read_text(encoding="utf-8") for path in Path(options.__file__).parent.glob("*.py"))
    assert set(re.findall(r'say_json\(\s*"(\w+)"', code)) == set(SCHEMAS)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo"}))
def test_every_command_that_prints_a_result_takes_json(name):
    assert "as_json" in options.options_of(COMMANDS[name])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_says_what_it_begins_before_it_imports_what_takes_long(name):
    body = ast.parse(textwrap.dedent(inspect.getsource(COMMANDS[name].callback.__wrapped__))).body[0].body
    first = next(statement for statement in body if not isinstance(statement.value, ast.Constant))
    assert ast.unparse(first).startswith("announce(")

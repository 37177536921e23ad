import subprocess
import sys

import pytest

import ablation_lens


def run(*arguments):
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ablation_lens", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_version():
    assert run("--version").stdout.strip() == f"ablation-lens {ablation_lens.__version__}"


def test_bad_input_is_one_line_and_exit_code_two():
    result = run("neurons", "./no-such-file.safetensors")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: there is no file ")
    assert result.stderr.count("\n") == 1


def test_an_unknown_command_is_exit_code_two(command):
    code, _, errors = command("frobnicate")
    assert code == 2
    assert "There are demo, info, " in errors  # names what is known


@pytest.mark.parametrize("name", ["collect", "frobnicate"])
def test_a_file_that_is_called_like_a_command_changes_nothing(command, name):
    """Which command is at hand is the first word, and no later one."""
    code, _, errors = command("info", f"./{name}", "--dtype", "table")
    assert code == 2
    assert f"there is no folder './{name}'" in errors


@pytest.mark.parametrize("name", ablation_lens.__all__)
def test_every_public_name_exists(name):
    assert getattr(ablation_lens, name) is not None
    assert name in dir(ablation_lens)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'peek'"):
        ablation_lens.peek  # noqa: B018


def at_the_import_of(module, what):
    """`ablation-lens info tiny-opt`, where something happens when a module is looked for."""
    code = f"""
import importlib.abc, os, signal, sys
class Happens(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == {module!r}:
            {what}
sys.meta_path.insert(0, Happens())
sys.argv = ["ablation-lens", "info", "tiny-opt"]
from ablation_lens.cli import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("module", ["typer", "ablation_lens.cli.app", "ablation_lens.models.load"])
def test_ctrl_c_while_modules_are_imported_ends_with_a_sentence(module):
    """Importing torch and transformers takes seconds, in which people change their minds."""
    said = "interrupted; run the same command again.\n"
    assert at_the_import_of(module, "raise KeyboardInterrupt") == (130, "", said)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("exec('raise KeyboardInterrupt')", 130),  # as within the making of a dataclass: Python notes that
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN); os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_other_ends_have_their_exit_codes_and_a_sentence(what, code):
    assert at_the_import_of("typer", what) == (code, "", "interrupted; run the same command again.\n")


def test_ctrl_c_at_the_very_end_is_too_late():
    """Python takes a while to end, and a traceback of that is about nothing."""
    program = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["ablation-lens", "--version"]
from ablation_lens.cli import main
main()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")

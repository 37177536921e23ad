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
    assert command("frobnicate")[0] == 2


@pytest.mark.parametrize("name", ablation_lens.__all__)
def test_every_public_name_exists(name):
    assert getattr(ablation_lens, name) is not None
    assert name in dir(ablation_lens)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'peek'"):
        ablation_lens.peek  # noqa: B018


@pytest.mark.parametrize("module", ["typer", "ablation_lens.cli.app", "ablation_lens.models.load"])
def test_ctrl_c_while_modules_are_imported_ends_with_a_sentence(module):
    """Importing torch and transformers takes seconds, in which people change their minds."""
    code = f"""
import importlib.abc, sys
class CtrlC(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC())
sys.argv = ["ablation-lens", "info", "tiny-opt"]
from ablation_lens.cli import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 130
    assert result.stderr == "interrupted; run the same command again.\n"
    assert result.stdout == ""

import subprocess
import sys

import pytest

import ablation_lens


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ablation_lens", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_help_and_version_do_not_import_torch():
    program = (
        "import sys; from ablation_lens.cli import app; from typer.testing import CliRunner; "
        "result = CliRunner().invoke(app, ['--help']); print(result.output); "
        "print(sorted(m for m in sys.modules if m in {'torch', 'transformers', 'transformer_lens', 'datasets'}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "demo" in result.stdout
    assert result.stdout.strip().endswith("[]")
    assert run("--version").stdout.strip() == f"ablation-lens {ablation_lens.__version__}"


def test_bad_input_is_one_line_and_exit_code_two():
    result = run("info", "./no-such-folder")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: there is no folder './no-such-folder'")
    assert result.stderr.count("\n") == 1


def test_an_unknown_command_is_exit_code_two():
    assert run("frobnicate").returncode == 2


def test_info_prints_the_record(tmp_path):
    from tests.tiny_models import BY_NAME

    BY_NAME["vit"].model().save_pretrained(tmp_path)
    result = run("info", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "ViTForImageClassification" in result.stdout


@pytest.mark.parametrize("name", ablation_lens.__all__)
def test_every_public_name_exists(name):
    assert getattr(ablation_lens, name) is not None
    assert name in dir(ablation_lens)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'peek'"):
        ablation_lens.peek  # noqa: B018

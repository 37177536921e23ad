import subprocess
import sys

import pytest

import ablation_lens


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ablation_lens", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_version():
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


def test_collect_then_list_neurons(tmp_path):
    out = tmp_path / "stats.safetensors"
    collected = run("collect", "tiny-opt", "--tokens", "1000", "--out", str(out))
    assert collected.returncode == 0, collected.stderr
    assert "1,000 positions" in collected.stdout
    listed = run("neurons", str(out), "--sort", "peak/σ", "--top", "3")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("│ L") == 3
    table = run("neurons", str(out), "--sort", "skew", "--ascending", "--csv", str(tmp_path / "n.csv"))
    assert table.returncode == 0, table.stderr
    import pandas

    frame = pandas.read_csv(tmp_path / "n.csv", index_col="neuron")
    assert len(frame) == 512
    assert frame["skew"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("collect", "tiny-opt", "--site", "zz"), "no site 'zz'; did you mean 'z'"),
        (("collect", "tiny-opt", "--tokens", "1"), "tokens=1 is too few"),
        (("collect", "tiny-opt", "--images", "5"), "measured in tokens"),
        (
            (
                "collect",
                "tiny-op",
            ),
            "did you mean tiny-opt",
        ),
        (("collect", "tiny-opt", "--corpus", "stdlb"), "stdlib"),
        (("collect", "tiny-vit", "--corpus", "stdlib", "--images", "4"), "image"),
    ],
)
def test_bad_requests_are_one_line_exit_code_two_and_no_file(arguments, message, tmp_path):
    result = run(*arguments, "--out", str(tmp_path / "s.safetensors"))
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_corpus_is_never_overwritten(tmp_path):
    corpus = tmp_path / "a.txt"
    corpus.write_text("The quick brown fox.\n\nJumps over the lazy dog.\n")
    result = run("collect", "tiny-opt", "--corpus", str(corpus), "--split", "all", "--out", str(corpus))
    assert result.returncode == 2
    assert "is what is read; give another file" in result.stderr
    assert corpus.read_text().startswith("The quick")


def test_a_small_corpus_is_said_in_one_plain_line(tmp_path):
    (tmp_path / "a.txt").write_text("The quick brown fox.\n\nJumps over the lazy dog.\n")
    out = tmp_path / "s.safetensors"
    result = run(
        "collect",
        "tiny-opt",
        "--corpus",
        str(tmp_path / "a.txt"),
        "--tokens",
        "500",
        "--split",
        "all",
        "--out",
        str(out),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("warning: all of ")
    assert "500 were asked for" in result.stderr
    assert result.stderr.count("\n") == 1

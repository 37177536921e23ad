"""Every script runs, at toy size: what it prints is not looked at closely, as toys say nothing about speed."""

import json
import runpy
import shutil
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
BENCHMARKS = {
    "ablation.py": ("--toy", "--rounds", "1"),
    "attribution.py": ("--toy", "--rounds", "1"),
    "attention_speed.py": ("--toy", "--rounds", "0", "--threads", "1", "--run-with-hooks"),
    "circuits.py": ("--toy", "--rounds", "1"),
    "clustering.py": ("--toy",),
    "collection.py": ("--toy", "--rounds", "1"),
    "first_number.py": ("--toy", "--rounds", "1"),
    "gpu.py": ("--toy", "--models", "mistral", "roberta-fp16"),
    "loading_memory.py": ("--toy", "--rounds", "1"),
    "processes.py": ("--toy", "--rounds", "1"),
    "ratios.py": ("--toy", "--rounds", "0"),
    "tables.py": ("--toy", "--rounds", "1"),
}


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs one in this process, which has imported what takes long: what it prints."""
    modules, threads = set(sys.modules), torch.get_num_threads()

    def run(path, *arguments):
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if (ROOT / "benchmarks" / f"{name}.py").exists():
            del sys.modules[name]


def test_every_script_is_run_here():
    assert {path.name for path in (ROOT / "benchmarks").glob("*.py")} == {*BENCHMARKS, "peak_memory.py"}
    assert {path.name for path in (ROOT / "scripts").glob("*.py")} == {
        "beside.py",
        "concepts.py",
        "findings.py",
        "gallery.py",
        "lock.py",
        "lowest.py",
        "notebooks.py",
        "pictures.py",
        "release.py",
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark(script, name):
    assert "torch" in script(ROOT / "benchmarks" / name, *BENCHMARKS[name])


def test_the_gpu_benchmark_says_what_it_measured_and_what_it_left_out(script, tmp_path, monkeypatch):
    path = ROOT / "benchmarks" / "gpu.py"
    asked = ("--toy", "--models", "opt", "vit", "--budget", "11", "--out", str(tmp_path / "gpu.json"))
    assert "left out: OPT-1.3B (float16), for want of time" in script(path, *asked)
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert list(report["models"]) == ["vit"]
    assert report["models"]["vit"]["counts_equal_the_cpus"]
    assert report["models"]["vit"]["ways"]["ours, collecting"]["per_second"] > 0
    assert set(report["models"]["vit"]["waits_per_batch"]) > {"ours, collecting", "ours, ablated"}
    assert report["check"]["seconds"] > 0
    assert report["check"]["predicted_seconds"] > 0
    assert not report["failed"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="need one"):
        script(path)


def test_what_a_benchmark_does_in_a_process_of_its_own(script, tmp_path):
    assert float(script(ROOT / "benchmarks" / "collection.py", "--child", "2000")) > 0
    assert float(script(ROOT / "benchmarks" / "loading_memory.py", "--child", "imports", str(tmp_path))) > 0


def test_findings(script, tmp_path):
    if shutil.which("chromium") is None:
        pytest.skip("CHROMIUM IS MISSING: the figures of the findings are not drawn (apt-get install chromium)")
    places = ("--out", str(tmp_path), "--cache", str(tmp_path / "c"))
    asked = ("layers", "--models", "tiny-opt", "--tokens", "300", *places)
    assert script(ROOT / "scripts" / "findings.py", *asked).startswith("Damage by layer and head (tiny-opt, z)")
    page = (tmp_path / "layers.md").read_text(encoding="utf-8")
    for name in ("layers", "layers-whole"):
        assert f"({name}.png)" in page
        assert 2_000 < (tmp_path / f"{name}.png").stat().st_size <= 60_000


def test_pictures(script, tmp_path):
    if shutil.which("chromium") is None:
        pytest.skip("CHROMIUM IS MISSING: the pictures of the README are not made (apt-get install chromium)")
    pytest.importorskip("playwright.sync_api", reason="PLAYWRIGHT IS MISSING (pip install playwright)")
    arguments = ("figure-1", "explorer", "--tokens", "500", "--out", str(tmp_path))
    with ThreadPoolExecutor(1) as thread:  # Playwright allows one session per thread, and the browser's tests have one
        thread.submit(script, ROOT / "scripts" / "pictures.py", *arguments).result()
    for name in ("figure-1", "explorer"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 400


# jupyter_client closes its sockets when they are collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_notebooks(script, tmp_path):
    if shutil.which("chromium") is None:
        pytest.skip("CHROMIUM IS MISSING: the figures of notebooks are not made (apt-get install chromium)")
    for module in ("nbclient", "nbconvert", "kaleido"):
        pytest.importorskip(module, reason=f"{module} is missing (extras notebook and images)")
    import nbformat

    sources = [
        "print('one')\nprint('two')",
        "import plotly.graph_objects as go\ngo.Figure(go.Bar(y=[1, 2]), {'title': 'Bars [1]'})",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Title"), *map(nbformat.v4.new_code_cell, sources)]
    )
    nbformat.write(notebook, tmp_path / "small.ipynb")
    assert "small.md" in script(
        ROOT / "scripts" / "notebooks.py", str(tmp_path / "small.ipynb"), "--out", str(tmp_path)
    )
    text = (tmp_path / "small.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n*What [small.ipynb]")
    assert "    one\n    two\n" in text
    (picture,) = (tmp_path / "small_files").iterdir()
    assert f"![Bars \\[1\\]](small_files/{picture.name})" in text
    with Image.open(picture) as opened:
        assert opened.size == (1350, 675)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lock.py", "Resolve the project's dependencies"),
        ("lowest.py", "the lowest versions"),
        ("release.py", "Build"),
        ("beside.py", "beside another"),
    ],
)
def test_what_installs_packages_says_what_it_does(script, capsys, name, what):
    with pytest.raises(SystemExit, match="0"):
        script(ROOT / "scripts" / name, "--help")
    assert what in capsys.readouterr().out


def test_a_bound_that_nothing_meets_is_told_from_one_that_is_installed():
    lowest = runpy.run_path(str(ROOT / "scripts" / "lowest.py"))
    assert lowest["lower_bounds"](["torch>=2.6", "transformer-lens>=3.9,<5"]) == {
        "torch": "2.6",
        "transformer-lens": "3.9",
    }
    assert lowest["is_of"]("2.6.0", "2.6")
    assert not lowest["is_of"]("5.9.0", "5.0")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    assert all(lowest["lower_bounds"]([each]) for each in (*project["dependencies"], *extras))


def test_every_library_that_is_tried_beside_this_one_has_a_test():
    """The script itself installs environments for minutes."""
    script = runpy.run_path(str(ROOT / "scripts" / "beside.py"), run_name="beside")
    tests = {path.name for path in (ROOT / "tests" / "beside").glob("test_*.py")}
    assert tests == {script["test_of"](name) for name in script["NEIGHBOURS"]}

"""Every script runs, at toy size: what it prints is not looked at closely, as toys say nothing about speed."""

import runpy
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
BENCHMARKS = {
    "ablation.py": ("--toy", "--rounds", "1"),
    "attention_speed.py": ("--toy", "--rounds", "0", "--threads", "1", "--run-with-hooks"),
    "collection.py": ("--toy", "--rounds", "1"),
    "loading_memory.py": ("--toy", "--rounds", "1"),
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
    assert {path.name for path in (ROOT / "scripts").glob("*.py")} == {"lock.py", "pictures.py"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark(script, name):
    assert "torch" in script(ROOT / "benchmarks" / name, *BENCHMARKS[name])


def test_what_a_benchmark_does_in_a_process_of_its_own(script, tmp_path):
    assert float(script(ROOT / "benchmarks" / "collection.py", "--child", "2000")) > 0
    assert float(script(ROOT / "benchmarks" / "loading_memory.py", "--child", "imports", str(tmp_path))) > 0


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


def test_lock_says_what_it_does(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script(ROOT / "scripts" / "lock.py", "--help")
    assert "Resolve the project's dependencies" in capsys.readouterr().out

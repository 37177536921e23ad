"""The notebooks run from top to bottom, on the zoo, and are kept without their outputs."""

import ast
import os
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra ablation-lens[notebook]")
nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra ablation-lens[notebook]")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_and_defines_nothing_that_belongs_in_the_library(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert not cell.outputs
        assert cell.execution_count is None
        defined = [
            node.name
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        ]
        assert not defined


# jupyter_client closes its sockets when they are collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    started = time.perf_counter()
    ran = nbclient.NotebookClient(
        read(path), timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute(env={**os.environ, "PYTHONPATH": str(FOLDER.parent)})
    print(f"{path.name}: {time.perf_counter() - started:.0f} s")
    shown = [kind for cell in ran.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert "application/vnd.plotly.v1+json" in shown
    if path.name.startswith("01"):
        assert any("<iframe" in output.data.get("text/html", "") for output in ran.cells[-1].outputs)
    assert not any(tmp_path.iterdir())  # nothing is left behind

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


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all notebooks, in an empty folder, as imports take longest; each begins with nothing defined."""
    folder = tmp_path_factory.mktemp("notebooks")
    first = nbclient.NotebookClient(
        nbformat.v4.new_notebook(), kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    with first.setup_kernel(env={**os.environ, "PYTHONPATH": str(FOLDER.parent)}):

        def run(notebook):
            client = nbclient.NotebookClient(notebook, timeout=300, km=first.km)
            client.kc = first.kc
            notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
            client.execute()
            assert not any(folder.iterdir())  # nothing is left behind
            return notebook.cells[1:]

        yield run


# jupyter_client closes its sockets when they are collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, kernel):
    started = time.perf_counter()
    cells = kernel(read(path))
    print(f"{path.name}: {time.perf_counter() - started:.0f} s")
    shown = [kind for cell in cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert "application/vnd.plotly.v1+json" in shown
    if path.name.startswith("01"):
        assert any("<iframe" in output.data.get("text/html", "") for output in cells[-1].outputs)

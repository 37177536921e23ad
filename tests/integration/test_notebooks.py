"""The notebooks run from top to bottom, on the zoo, and are kept without their outputs."""

import ast
import os
import re
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
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


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
    # What is written there is red in a notebook.
    assert not [output.text for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    shown = [kind for cell in cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert "application/vnd.plotly.v1+json" in shown
    if path.name.startswith("01"):
        assert any("<iframe" in output.data.get("text/html", "") for output in cells[-1].outputs)


def test_every_notebook_has_a_page_that_shows_its_cells():
    """`make notebooks` was run after the last change."""
    pages = FOLDER.parent / "docs" / "notebooks"
    assert sorted(page.stem for page in pages.glob("*.md")) == [*(path.stem for path in NOTEBOOKS), "index"]
    for path in NOTEBOOKS:
        page = pages / f"{path.stem}.md"
        text = page.read_text(encoding="utf-8")
        # By paragraphs, as there is a note after the title.
        for part in (part for cell in read(path).cells for part in cell.source.split("\n\n")):
            assert part in text, f"{page.name} is not of the notebook as it is now; run `make notebooks`."
        for picture in re.findall(r"\]\((\w+_files/[^)]+)\)", text):
            assert (pages / picture).is_file()
        assert sum(file.stat().st_size for file in [page, *pages.glob(f"{path.stem}_files/*")]) < 1e6


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_figures_survive_conversion_to_html_and_draw_without_a_network(kernel, chromium, tmp_path):
    nbconvert = pytest.importorskip("nbconvert", reason="notebooks need the extra ablation-lens[notebook]")
    (setting,) = {line for path in NOTEBOOKS for line in read(path).cells[1].source.splitlines() if "renderers" in line}
    figure = "plotly.graph_objects.Figure(plotly.graph_objects.Bar(y=[1, 2]))"
    sources = ["import plotly", f"import plotly.graph_objects\n{setting}", figure, figure]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells = kernel(notebook)
    page_file = tmp_path / "page.html"
    page_file.write_text(nbconvert.HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto(page_file.as_uri(), wait_until="commit")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .bars .point').length === 4", timeout=60_000)
    context.close()

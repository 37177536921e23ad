"""Run the notebooks and write down what they show: a page of Markdown each, with its figures as pictures.

    python scripts/notebooks.py                    # or: make notebooks

Needs the `notebook` and `images` extras, and a Chrome or Chromium for the figures.
"""

import argparse
import base64
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from html import unescape
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import plotly.io
from nbconvert import MarkdownExporter
from PIL import Image

from ablation_lens.escaping import for_markdown

FOLDER = Path(__file__).parents[1] / "notebooks"
FIGURE = "application/vnd.plotly.v1+json"
WIDTH = 900
COLORS = 256
"""Of a picture: figures have few, and a palette makes a picture a third as large."""


def run(path: Path) -> Any:
    """The notebook with what its cells gave, run in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    return notebook


def picture(figure: Any) -> str:
    """A figure as a PNG, in base64."""
    drawn = plotly.io.from_json(plotly.io.to_json(figure, validate=False))
    drawn.layout.updatemenus = ()  # buttons do nothing in a picture
    raw = plotly.io.to_image(drawn, "png", width=WIDTH, height=drawn.layout.height or 450, scale=1.5)
    small = io.BytesIO()
    Image.open(io.BytesIO(raw)).convert("RGB").quantize(COLORS).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode("ascii")


def shown(output: Any, explorer: str) -> Any:
    """An output as a page can show it that runs nothing."""
    data = output.get("data", {})
    if FIGURE in data:
        output.data = {"image/png": picture(data[FIGURE])}
    elif "<iframe" in data.get("text/html", ""):
        output.data = {"text/markdown": f"![The explorer: heads, neurons and a histogram]({explorer})"}
    elif "text/html" in data:
        # Where styles are not allowed, they would be read as text.
        output.data["text/html"] = re.sub(r"<style.*?</style>\s*", "", data["text/html"], flags=re.DOTALL)
    return output


def joined(outputs: Iterable[Any]) -> list[Any]:
    """Printed lines that follow each other as one block; a kernel may send them one by one."""
    kept: list[Any] = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def is_shown(output: Any) -> bool:
    """Whether an output is for people: not Plotly's own script, nor progress, which is gone when a cell is done."""
    data = output.get("data", {})
    written = data.get("text/html", "")
    script = "PlotlyConfig" in written and FIGURE not in data
    return not script and not written.startswith("<pre") and output.get("name") != "stderr"


def write(path: Path, out: Path, explorer: str) -> Path:
    """Run a notebook, and write its page and pictures."""
    notebook = run(path)
    titles = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = [output for output in cell.outputs if is_shown(output)]
            titles += [
                output.data[FIGURE]["layout"]["title"]["text"] for output in outputs if FIGURE in output.get("data", {})
            ]
            cell.outputs = joined(shown(output, explorer) for output in outputs)
    pictures = f"{path.stem}_files"
    body, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"output_files_dir": pictures, "unique_key": "figure"}
    )
    if (out / pictures).exists():
        shutil.rmtree(out / pictures)  # a picture that is no longer shown
    (out / pictures).mkdir(parents=True)
    for name, content in resources["outputs"].items():
        (out / name).write_bytes(content)
    page = out / f"{path.stem}.md"
    note = f"*What [{path.name}](../../notebooks/{path.name}) shows when it is run; made by `make notebooks`.*"
    for text in titles:  # in the order of the pictures
        body = body.replace("![png](", f"![{for_markdown(unescape(text))}](", 1)
    # nbconvert leaves several empty lines, and spaces in them.
    body = re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", body)
    title, _, rest = body.strip().partition("\n")
    page.write_text(f"{title}\n\n{note}\n{rest}\n", encoding="utf-8")
    return page


def main() -> None:
    """Write the pages of the notebooks named on the command line, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "docs" / "notebooks", help="the folder to write to")
    parser.add_argument("--explorer", default="../explorer.png", help="the picture that stands for the explorer")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        page = write(path, arguments.out, arguments.explorer)
        size = sum(file.stat().st_size for file in arguments.out.glob(f"{path.stem}*/*"))
        sys.stdout.write(f"{page}: {page.stat().st_size / 1000:.0f} kB, its pictures {size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()

"""Make the pictures of the README from what ships with the package, offline.

    python scripts/pictures.py figure-1 --model tiny-roberta --out docs/figure-1.png

Needs Playwright for Python (`pip install playwright`) and a Chromium it or the system has; neither is a dependency of
the package.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go

import ablation_lens as al


def figure_1(model_name: str) -> go.Figure:
    """The paper's Figure 1 of a zoo model."""
    model = al.load_model(model_name)
    task = al.task_for(model)
    images = task.batches(split="collect", images=200) if model_name == "tiny-vit" else None
    return al.plots.figure_1(al.collect(model, images or task.batches(split="collect", tokens=20_000)))


PICTURES: dict[str, Callable[[str], go.Figure]] = {"figure-1": figure_1}


def photograph(figure: go.Figure, path: Path, width: int) -> None:
    """Draw a figure in a headless browser and write it as a PNG of few colours, which keeps it small."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    figure = go.Figure(figure)
    figure.layout.updatemenus = ()  # buttons do nothing in a picture, and leave their room
    figure.update_layout(margin_t=95)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file, raw = Path(folder) / "figure.html", Path(folder) / "figure.png"
        figure.write_html(page_file, include_plotlyjs=True, config={"displayModeBar": False})
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": int(figure.layout.height)}, device_scale_factor=1.5)
        page.goto(page_file.as_uri())
        page.wait_for_selector(".plotly-graph-div .main-svg")
        page.locator(".plotly-graph-div").screenshot(path=raw)
        browser.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(raw).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Write the picture named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("--model", default="tiny-roberta", help="a zoo model")
    parser.add_argument("--out", type=Path, help="docs/<picture>.png when left out")
    parser.add_argument("--width", type=int, default=1000, help="in CSS pixels")
    arguments = parser.parse_args()
    path = arguments.out or Path("docs") / f"{arguments.picture}.png"
    photograph(PICTURES[arguments.picture](arguments.model), path, arguments.width)
    sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()

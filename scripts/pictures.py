"""Make the pictures of the README from what ships with the package, offline.

    python scripts/pictures.py figure-1 explorer

Needs Playwright for Python (in the `dev` extra) and a Chromium that it or the system has.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import ablation_lens as al

MODEL = "tiny-roberta"


@dataclass(frozen=True)
class Picture:
    """How a page is made, and which part of it is photographed when."""

    write: Callable[[al.ActivationStatistics, Path], None]
    width: int
    height: int
    part: str
    ready: str
    address: str = ""


def figure_1(statistics: al.ActivationStatistics, page: Path) -> None:
    """The paper's Figure 1."""
    figure = al.plots.figure_1(statistics)
    figure.layout.updatemenus = ()  # buttons do nothing in a picture, and leave their room
    figure.update_layout(margin_t=95)
    figure.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})


def explorer(statistics: al.ActivationStatistics, page: Path) -> None:
    """All neurons on one page."""
    al.explore(statistics, html=page, progress=False)


PICTURES = {
    "figure-1": Picture(figure_1, 1000, 430, ".plotly-graph-div", ".plotly-graph-div .main-svg"),
    "explorer": Picture(explorer, 1280, 800, "body", "#histogram .main-svg"),
}


def photograph(name: str, statistics: al.ActivationStatistics, path: Path) -> None:
    """Open the page in a headless browser and write what it shows as a PNG."""
    picture = PICTURES[name]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file, raw = Path(folder) / "page.html", Path(folder) / "picture.png"
        picture.write(statistics, page_file)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": picture.width, "height": picture.height}, device_scale_factor=1.5, color_scheme="light"
        )
        page.goto(page_file.as_uri() + picture.address)
        page.wait_for_selector(picture.ready)
        page.wait_for_timeout(1000)
        if picture.part == "body":
            page.screenshot(path=raw)
        else:
            page.locator(picture.part).first.screenshot(path=raw)
        browser.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(raw).convert("RGB").save(path, optimize=True)


def main() -> None:
    """Write the pictures named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", choices=PICTURES)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the folder to write to")
    parser.add_argument("--tokens", type=int, default=20_000, help="how many are collected")
    arguments = parser.parse_args()
    model = al.load_model(MODEL)
    statistics = al.collect(model, al.task_for(model).batches(split="collect", tokens=arguments.tokens))
    for name in arguments.pictures:
        path = arguments.out / f"{name}.png"
        photograph(name, statistics, path)
        sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()

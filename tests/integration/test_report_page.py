"""The report in a real Chromium: offline, in light and dark, by keyboard, and its files."""

import json
from pathlib import Path

import plotly.graph_objects as go
import pytest

from ablation_lens.plots import LENS_TEMPLATE
from ablation_lens.report.page import Code, Figure, File, Files, Heading, Page, Table
from tests.browser.conftest import XSS, opened, until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    figure = go.Figure(go.Scatter(x=[1, 2], y=[1, 3], name=XSS, line={"color": "#000000"}))
    figure.update_layout(template=LENS_TEMPLATE, height=400)
    made = Page(XSS)
    made.add(Heading("One"))
    made.add(Files((File("results.json", "application/json", json.dumps({"name": XSS, "letter": "σ"})),)))
    made.add(Figure("curve", figure, XSS))
    made.add(Table(("a", XSS), [(XSS, "1")], numbers=1))
    made.add(Heading("Two"))
    made.add(Code("one line " * 80))
    return made.write(*(tmp_path_factory.mktemp("report") / name for name in ("report.html", "report.md")))[0]


def line_of_curve(page):
    return page.evaluate("getComputedStyle(document.querySelector('.js-line')).stroke")


def paper(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("width", [1920, 1280, 390])
def test_it_draws_offline_and_nothing_foreign_runs(chromium, path, width):
    # `opened` fails on any message of the browser's, such as a script that the page's policy refuses.
    with opened(chromium, path.as_uri(), viewport={"width": width, "height": 800}) as page:
        page.wait_for_selector("html[data-ready=yes]")
        page.wait_for_selector("#curve .main-svg")
        assert page.title() == XSS
        assert page.evaluate("document.documentElement.scrollWidth") == width  # what is wide scrolls by itself


def test_light_and_dark_follow_the_system_until_somebody_chooses(chromium, path):
    with opened(chromium, path.as_uri(), color_scheme="dark") as page:
        page.wait_for_selector("#curve .main-svg")
        assert (paper(page), line_of_curve(page)) == ("rgb(20, 24, 29)", "rgb(187, 187, 187)")
        page.click("#theme")
        assert (paper(page), line_of_curve(page)) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
        page.emulate_media(color_scheme="light")
        page.click("#theme")
        assert paper(page) == "rgb(20, 24, 29)"
    with opened(chromium, path.as_uri(), color_scheme="light") as page:
        page.wait_for_selector("#curve .main-svg")
        assert line_of_curve(page) == "rgb(0, 0, 0)"
        page.emulate_media(color_scheme="dark")
        until(page, "getComputedStyle(document.querySelector('.js-line')).stroke === 'rgb(187, 187, 187)'")


def test_files_are_handed_out_by_keyboard_alone(chromium, path):
    with opened(chromium, path.as_uri()) as page:
        page.wait_for_selector("html[data-ready=yes]")
        reached = []
        for _ in range(25):  # Plotly's own buttons are among them
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.className || "
                    "document.activeElement.dataset.name || document.activeElement.textContent"
                )
            )
            if reached[-1] == "results.json":
                with page.expect_download() as download:
                    page.keyboard.press("Enter")
        assert reached[:5] == ["theme", "One", "Two", "results.json", "plot"]
        assert {"wide"} <= set(reached)
        assert json.loads(Path(download.value.path()).read_text(encoding="utf-8")) == {"name": XSS, "letter": "σ"}

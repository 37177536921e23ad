"""The site as a browser shows it, from a folder and without a network. Skipped where `make docs` has not built it."""

import re
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

SITE = Path(__file__).parents[2] / "build" / "docs"
PAGES = sorted(SITE.rglob("*.html"))
NOTEBOOKS = [page for page in PAGES if page.parent.name == "notebooks" and page.stem != "index"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="there is no site; `make docs` builds it"),
]


@contextmanager
def visitor(chromium, **options):
    """A page on which any error, and any request but for the site's own files, fails the test."""
    context = chromium.new_context(offline=True, **options)
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    own = (SITE.as_uri(), "blob:", "data:")
    page.on("request", lambda request: None if request.url.startswith(own) else problems.append(request.url))
    try:
        yield page
    finally:
        context.close()
    assert not problems, problems


def test_no_page_asks_for_anything_outside_or_is_wider_than_a_phone(chromium):
    wide = []
    with visitor(chromium, viewport={"width": 390, "height": 844}) as page:
        for path in PAGES:
            page.goto(path.as_uri())
            if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                wide.append(str(path.relative_to(SITE)))
    assert wide == []


def test_nothing_in_a_page_names_a_file_elsewhere():
    """Also what only loads when it is looked at."""
    for path in PAGES:
        text = re.sub(r"srcdoc=\"[^\"]*\"", "", path.read_text(encoding="utf-8"))
        loaded = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"((?:https?:)?//[^\"]+)", text)
        assert loaded == [], path


def test_no_page_shows_what_sphinx_should_have_made_a_link():
    assert [path for path in PAGES if ":doc:" in path.read_text(encoding="utf-8")] == []


def test_every_link_within_the_site_leads_somewhere():
    texts = {path: path.read_text(encoding="utf-8") for path in PAGES}
    broken = []
    for path, text in texts.items():
        for link in re.findall(r"<a\b[^>]*?href=\"([^\"]+)\"", re.sub(r"srcdoc=\"[^\"]*\"", "", text)):
            target, _, fragment = unquote(unescape(link)).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            goal = (path.parent / target).resolve() if target else path
            if not goal.exists() or (fragment and f'id="{fragment}"' not in unescape(texts.get(goal, ""))):
                broken.append(f"{path.relative_to(SITE)}: {link}")
    assert broken == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_of_a_notebook_draws(path, chromium):
    with visitor(chromium, viewport={"width": 1280, "height": 900}) as page:
        page.goto(path.as_uri())
        figures = page.locator(".drawn")
        assert figures.count() > 0
        for number in range(figures.count()):
            figures.nth(number).scroll_into_view_if_needed()
            figures.nth(number).locator(".main-svg").first.wait_for(timeout=60_000)


def test_search_finds_a_page_and_a_name(chromium):
    with visitor(chromium) as page:
        page.goto((SITE / "index.html").as_uri())
        for word, target in {"torchrun": "guide/scale.html", "knockout_effects": "reference/api/circuits.html"}.items():
            page.locator("input[name=q]").first.fill(word)
            page.keyboard.press("Enter")
            page.locator(f'#search-results a[href*="{target}"]').first.wait_for(timeout=60_000)

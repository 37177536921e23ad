"""Pages are plain Markdown: one title each, no level left out, and links that are words."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
WRITTEN = [page for page in PAGES if not re.match(r"notebooks/\d", page)]  # the others are made of notebooks


def prose(page):
    return re.sub(r"^ *```.*?^ *```$", "", (DOCS / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", WRITTEN)
def test_a_page_has_one_title_and_leaves_no_level_out(page):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(page), flags=re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(lower <= upper + 1 for upper, lower in pairwise(levels))


@pytest.mark.parametrize("page", WRITTEN)
def test_a_link_is_words_and_not_a_path(page):
    assert re.findall(r"(?<!!)\[`?[^\]\s]*\.(?:md|ipynb)`?\]\(", prose(page)) == []


@pytest.mark.parametrize("page", [page for page in WRITTEN if not re.search(r"(^|/)index\.md$|^reference/api/", page)])
def test_only_indexes_and_the_reference_need_sphinx(page):
    text = (DOCS / page).read_text("utf-8")
    assert re.findall(r"^ *(?:`{3,}|:{3,})\{\w|\{[\w:]+\}`", text, flags=re.MULTILINE) == []

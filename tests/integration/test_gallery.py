"""The gallery: what stands under a picture is what makes it."""

import re
import runpy
from pathlib import Path

import plotly.graph_objects as go
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
NAMES = re.findall(r"\]\(gallery/([\w-]+)\.png\)", PAGE)
# Everything that a page's lines say of size, at a size for tests.
SMALL = {
    r"\btokens=[\d_]+": "tokens=300",
    r"collect_tokens=[\d_]+": "collect_tokens=300, collect_images=20",
    r"evaluate_tokens=[\d_]+": "evaluate_tokens=100, evaluate_images=10",
    r"fractions=\[[^]]+\]": "fractions=[0.5]",
    r"seeds=range\(\d+\)": "seeds=range(2)",
    r"count=\d+": "count=8",
    r"shares = \[.+\]": "shares = [0.5, 1]",
    r"neurons=\d+": "neurons=['L2.H0.D2']",
}


@pytest.fixture(scope="module")
def gallery():
    """The script's own names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return runpy.run_path(str(ROOT / "scripts" / "gallery.py"), run_name="gallery")


def test_five_pictures_of_about_ten_lines_each(gallery):
    sections = gallery["sections"](PAGE)
    assert len(sections) == 5
    assert list(sections) == NAMES
    for code in sections.values():
        assert len([line for line in code.splitlines() if line.strip()]) <= 12
    assert [size for size in SMALL if not re.search(size, PAGE)] == []
    assert {path.stem for path in (ROOT / "docs" / "gallery").iterdir()} == set(sections)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_small_and_large_enough_to_read(name):
    path = ROOT / "docs" / "gallery" / f"{name}.png"
    assert path.stat().st_size <= 120_000
    with Image.open(path) as picture:
        assert picture.width >= 1200


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_under_a_picture_make_it(gallery, name):
    code = gallery["sections"](PAGE)[name]
    for size, small in SMALL.items():
        code = re.sub(size, small, code)
    figure = gallery["made"](code, name)
    assert isinstance(figure, go.Figure)
    assert len(figure.data) > 3
    assert figure.layout.title.text

"""What comes from outside is text on the page, and a page needs nothing but itself."""

import html.parser

import plotly.graph_objects as go
import pytest

from ablation_lens.errors import AblationLensError
from ablation_lens.report.page import Code, Figure, File, Files, Heading, Links, Notes, Page, Paragraph, Table

NASTY = '<img src=x onerror="alert(1)"></script><!-- **bold** | `code` & more'


class Reader(html.parser.HTMLParser):
    """Tags, and the text of table cells and paragraphs."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.open = [], "", None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def page():
    made = Page(f"About {NASTY}")
    made.add(Heading(NASTY))
    made.add(Paragraph(NASTY))
    made.add(Notes((NASTY,)))
    made.add(Table(("name", NASTY, "n"), [(NASTY, "x", "**1.5** (a)")], numbers=1))
    made.add(Code(f"```` {NASTY}"))
    made.add(Links(((NASTY, "./a%20b.html"),)))
    made.add(Files((File("a.csv", "text/csv", NASTY),)))
    return made


def test_hostile_text_stays_text_in_html():
    reader = Reader()
    reader.feed(page().html())
    names = [tag for tag, _ in reader.tags]
    assert "img" not in names
    assert [attrs.get("type", "runs") for tag, attrs in reader.tags if tag == "script"] == [
        "text/plain", "application/json", "runs"
    ]  # fmt: skip
    # Bold marks are ours: what stands between two of them is bold, wherever it comes from, and the rest is untouched.
    assert reader.text.count('<img src=x onerror="alert(1)"></script><!--') == 10
    assert "strong" in names


def test_hostile_text_stays_text_in_markdown():
    text = page().markdown()
    assert "\\<img src=x" in text
    assert "<img" not in text.split("`````")[0].replace("\\<img", "")
    assert "<img" not in text.split("`````")[-1].replace("\\<img", "")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(row.replace("\\|", "").split("|")) for row in rows} == {5}
    assert rows[1] == "| --- | --- | ---: |"
    assert rows[2].endswith("| **1.5** (a) |")


def test_a_figure_is_in_the_page_once_with_plotly_and_may_load_nothing(tmp_path):
    made = page()
    for name in ("one", NASTY):
        made.add(Figure(name, go.Figure(go.Scatter(x=[1], y=[2], name=NASTY)), "A caption."))
    written = made.html()
    assert written.count("plotly.js v") == 1
    assert NASTY not in written
    assert "<img" not in written.split("<figcaption>", 1)[1].split("<script>", 1)[0]
    reader = Reader()
    reader.feed(written)
    policy = next(attrs for tag, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    assert "unsafe-inline" not in policy["content"].split("script-src")[1].split(";")[0]
    assert not [attrs for tag, attrs in reader.tags if "src" in attrs or tag == "link"]
    assert "report.html" in made.markdown()


def test_a_page_without_figures_carries_no_plotly():
    assert len(page().html()) < 10_000


def test_code_stays_in_its_fence_in_markdown():
    text = page().markdown()
    assert f"`````\n```` {NASTY}\n`````" in text
    assert "](<./a%20b.html>)" in text


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AblationLensError, match="cannot write"):
        page().write(tmp_path / "file" / "report.html", tmp_path / "report.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    page().write(tmp_path / "a" / "report.html", tmp_path / "a" / "report.md")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["report.html", "report.md"]

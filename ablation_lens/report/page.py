"""A page of headings, paragraphs, tables and figures, as self-contained HTML and as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ablation_lens.escaping import for_html, for_markdown
from ablation_lens.files import write_text, writing

# Inline scripts are allowed, as Plotly's `to_html` writes one for every figure.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What the page may load: nothing, from nowhere."""


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Notes:
    """Small print under a table."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text under heads; `**text**` is bold. The last `numbers` columns are aligned to the right."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int = 0

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return column >= len(self.heads) - self.numbers


@dataclass(frozen=True)
class Figure:
    """A Plotly figure with a caption; `name` is its anchor."""

    name: str
    figure: Any
    caption: str


Block = Heading | Paragraph | Notes | Table | Figure


@dataclass
class Page:
    """Blocks under a title.

    >>> page = Page("Two < three")
    >>> page.add(Table(("a", "b"), [("1", "**2**")]))
    >>> print(page.markdown())
    # Two \\< three
    <BLANKLINE>
    | a | b |
    | --- | --- |
    | 1 | **2** |
    <BLANKLINE>
    """

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """Put a block at the end."""
        self.blocks.append(block)

    def html(self) -> str:
        """One file that needs nothing else: Plotly is in it, once, if there is a figure."""
        from plotly.offline import get_plotlyjs

        style = (files("ablation_lens.report") / "page.css").read_text(encoding="utf-8")
        script = f"<script>{get_plotlyjs()}</script>" if any(isinstance(b, Figure) for b in self.blocks) else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f"<title>{for_html(self.title)}</title>\n<style>{style}</style>\n{script}\n</head>\n<body>\n<main>\n"
            f"<h1>{for_html(self.title)}</h1>\n" + "\n".join(map(_html, self.blocks)) + "\n</main>\n</body>\n</html>\n"
        )

    def markdown(self) -> str:
        """For reading in a repository; figures are only named, they are in the HTML."""
        return f"# {for_markdown(self.title)}\n\n" + "\n".join(map(_markdown, self.blocks))

    def write(self, html_path: Path, markdown_path: Path) -> tuple[Path, Path]:
        """Write both, each whole or not at all."""
        # The tuple makes both texts before either is written: an error in one leaves no half of a report.
        for path, content in ((html_path, self.html()), (markdown_path, self.markdown())):
            with writing(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, content)
        return html_path, markdown_path


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{for_html(block.text)}</h2>"
    if isinstance(block, Paragraph):
        return f"<p>{for_html(block.text)}</p>"
    if isinstance(block, Notes):
        return "\n".join(f'<p class="note">{for_html(line)}</p>' for line in block.lines)
    if isinstance(block, Figure):
        drawn = block.figure.to_html(
            full_html=False,
            # It stands in the head once; in every figure it would be several megabytes each.
            include_plotlyjs=False,
            div_id=re.sub(r"[^\w-]", "-", block.name, flags=re.ASCII),  # it stands in a tag and in a script
            default_width="100%",
            config={"responsive": True, "displaylogo": False},
        )
        return f"<figure>{drawn}<figcaption>{for_html(block.caption)}</figcaption></figure>"
    kinds = [' class="n"' if block.is_number(column) else "" for column in range(len(block.heads))]
    heads = "".join(
        f'<th scope="col"{kind}>{for_html(head)}</th>' for kind, head in zip(kinds, block.heads, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in block.rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def _bold(text: str) -> tuple[str, str, str]:
    """Before, inside and after `**…**`; only our own tables use it, and only around numbers."""
    before, mark, rest = text.partition("**")
    inside, end, after = rest.partition("**")
    return (before, inside, after) if mark and end else (text, "", "")


def _cell(text: str) -> str:
    before, inside, after = map(for_html, _bold(text))
    return f"{before}<strong>{inside}</strong>{after}" if inside else before


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {for_markdown(block.text)}\n"
    if isinstance(block, Paragraph):
        return f"{for_markdown(block.text)}\n"
    if isinstance(block, Notes):
        # Two spaces at the end break a line in Markdown.
        return "\n".join(f"{for_markdown(line)}  " for line in block.lines) + "\n"
    if isinstance(block, Figure):
        return f"*{for_markdown(block.caption)} The figure is in report.html.*\n"
    rules = ("---:" if block.is_number(column) else "---" for column in range(len(block.heads)))
    lines = [" | ".join(map(for_markdown, block.heads)), " | ".join(rules)]
    for row in block.rows:
        cells = []
        for text in row:
            # The marks are found first, as `for_markdown` escapes asterisks.
            before, inside, after = map(for_markdown, _bold(text))
            cells.append(f"{before}**{inside}**{after}" if inside else before)
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"

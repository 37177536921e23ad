"""A page of headings, paragraphs, tables, figures and files, as self-contained HTML and as Markdown.

Outside text enters as escaped text, JSON or base64. A content security policy lets nothing run but the two scripts
written here, each known by its hash, and nothing load.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from json import dumps
from pathlib import Path
from typing import Any

from ablation_lens.escaping import for_html, for_markdown
from ablation_lens.files import write_text, writing
from ablation_lens.palette import DARK_METHOD_COLORS, METHOD_COLORS

_DARK = {
    "white": "#14181D",
    "#ffffff": "#14181D",
    "rgb(255,255,255)": "rgb(20,24,29)",
    "#1f2933": "#E6EAEE",
    "#52606d": "#A3AFBC",
    "#e4e7eb": "#343C45",
    **{
        light.lower(): DARK_METHOD_COLORS[method]
        for method, light in METHOD_COLORS.items()
        if light != DARK_METHOD_COLORS[method]
    },
    "rgb(0,0,0)": "rgb(187,187,187)",  # what fills the band of zero
    # The darkest of the palette, which would be lost.
    "#0072b2": "#3B9BDC",
    "#666633": "#9A9A5C",
    "#8c564b": "#B98276",
    "#332288": "#9A8CE8",
    "#882255": "#CF6A9B",
    "#117733": "#43A565",
    "ink_of_menus": "#1F2933",
}
"""Colour of a figure → what it is on a dark page, where that differs; what else there is can be read on both."""


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


@dataclass(frozen=True)
class Code:
    """What one copies as it is."""

    text: str


@dataclass(frozen=True)
class Links:
    """Pages beside this one: (text, address), the address relative and quoted."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class File:
    """A text that the page hands out under a name of ours."""

    name: str
    kind: str
    text: str


@dataclass(frozen=True)
class Files:
    """Files that are in the page."""

    files: tuple[File, ...]


Block = Heading | Paragraph | Notes | Table | Figure | Code | Links | Files


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
        style, own = (
            (files("ablation_lens.report") / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
        )
        scripts = [own]
        if any(isinstance(block, Figure) for block in self.blocks):
            from plotly.offline import get_plotlyjs

            scripts.insert(0, get_plotlyjs())
        # The parser turns CR LF into LF before the browser takes the hash.
        scripts = [script.replace("\r\n", "\n") for script in scripts]
        policy = (
            # Styles may be inline, as Plotly sets them while it draws.
            f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'"
        )
        contents = "".join(
            f'<li><a href="#part-{number}">{for_html(block.text)}</a></li>'
            for number, block in enumerate(self.blocks)
            if isinstance(block, Heading)
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f"<title>{for_html(self.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
            f'<header><h1>{for_html(self.title)}</h1><button type="button" id="theme" hidden></button></header>\n'
            + (f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n' if contents else "")
            + "\n".join(_html(block, number) for number, block in enumerate(self.blocks))
            + f"\n</main>\n{_data('dark-colors', 'application/json', dumps(_DARK))}\n"
            + "\n".join(f"<script>{script}</script>" for script in scripts)
            + "\n</body>\n</html>\n"
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


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _data(name: str, kind: str, text: str) -> str:
    """Text for our script to read: of this type it does not run, and needs no hash."""
    return f'<script type="{kind}" id="{name}">{text}</script>'


def _json(figure: Any) -> str:
    # In JSON these letters stand inside strings alone, where they may be written so.
    text: str = figure.to_json()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _html(block: Block, number: int) -> str:
    if isinstance(block, Heading):
        return f'<h2 id="part-{number}">{for_html(block.text)}</h2>'
    if isinstance(block, Paragraph):
        return f"<p>{for_html(block.text)}</p>"
    if isinstance(block, Notes):
        return "\n".join(f'<p class="note">{for_html(line)}</p>' for line in block.lines)
    if isinstance(block, Code):
        # What scrolls must be reached by the keyboard, here and below.
        return f'<pre tabindex="0"><code>{for_html(block.text)}</code></pre>'
    if isinstance(block, Links):
        items = "".join(f'<li><a href="{for_html(href)}">{for_html(text)}</a></li>' for text, href in block.items)
        return f'<ul class="links">{items}</ul>'
    if isinstance(block, Files):
        return f'<div class="files">{"".join(map(_file, block.files))}</div>'
    if isinstance(block, Figure):
        anchor = re.sub(r"[^\w-]", "-", block.name, flags=re.ASCII)
        height = int(block.figure.layout.height or 450)
        return (
            f'<figure id="{anchor}"><div class="plot" tabindex="0" role="region" '
            f'aria-label="{for_html(block.caption)}">'
            f'<div data-figure="data-{number}" style="height:{height}px"></div></div>'
            f"<figcaption>{for_html(block.caption)}</figcaption>"
            f"{_data(f'data-{number}', 'application/json', _json(block.figure))}</figure>"
        )
    kinds = [' class="n"' if block.is_number(column) else "" for column in range(len(block.heads))]
    heads = "".join(
        f'<th scope="col"{kind}>{for_html(head)}</th>' for kind, head in zip(kinds, block.heads, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in block.rows
    )
    return (
        '<div class="wide" tabindex="0"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _file(file: File) -> str:
    content = file.text.encode()
    anchor = "file-" + re.sub(r"[^\w-]", "-", file.name, flags=re.ASCII)
    return (
        f'<button type="button" data-file="{anchor}" data-name="{for_html(file.name)}" data-type="{file.kind}">'
        f"{for_html(file.name)} ({max(1, len(content) // 1000):,} kB)</button>"
        # As base64 it can end no element, whatever names are in it.
        + _data(anchor, "text/plain", base64.b64encode(content).decode("ascii"))
    )


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
    if isinstance(block, Code):
        # A fence must be longer than any row of backticks inside it.
        fence = "`" * max(3, *(len(row) + 1 for row in re.findall("`+", block.text) or [""]))
        return f"{fence}\n{block.text}\n{fence}\n"
    if isinstance(block, Links):
        return "\n".join(f"- [{for_markdown(text)}](<{href}>)" for text, href in block.items) + "\n"
    if isinstance(block, Files):
        return f"*report.html hands out {', '.join(for_markdown(file.name) for file in block.files)}.*\n"
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

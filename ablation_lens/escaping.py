"""Names and texts from outside (models, folders, tokens) as plain characters, wherever they are shown.

The only place that knows what a Markdown table, LaTeX, a page, a figure or a terminal would take for more than that.
"""

import html
import unicodedata

_MARKDOWN = frozenset("\\`*_[]<>|&#~$")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}"}
_LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}

_FORMULA = tuple("=+-@＝＋－＠")
"""What a formula begins with, also as wide as Chinese and Japanese write it."""


def on_one_line(text: str) -> str:
    r"""Printable characters alone: line breaks and what a terminal would obey are shown, as Python writes them.

    >>> print(on_one_line("two\nlines \x1b[31m red"))
    two\nlines \x1b[31m red
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(letter: str) -> str:
    # A space that is not the plain one (of French, of Chinese) is not "printable" to Python, and harms nobody.
    if letter.isprintable() or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def as_unicode(text: str) -> str:
    r"""Text that can be encoded: bytes of a file name that are not UTF-8 become question marks.

    >>> as_unicode("name \udcff")
    'name ?'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def shorten(line: str, length: int) -> str:
    """At most so many characters of a line.

    >>> shorten("a long line", 7)
    'a long…'
    """
    return line if len(line) <= length else line[: max(length - 1, 0)] + "…"


def for_markdown(text: str) -> str:
    r"""Text in a Markdown paragraph or table cell.

    >>> for_markdown("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return "".join(f"\\{letter}" if letter in _MARKDOWN else letter for letter in on_one_line(text))


def for_latex(text: str) -> str:
    r"""Text in a LaTeX table cell.

    >>> for_latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    # Letter by letter: replacing one after the other would escape the backslashes that were just put in.
    return "".join(_LATEX.get(letter, letter) for letter in on_one_line(text))


def for_csv(text: str) -> str:
    r"""Text in a cell of CSV: one line, and nothing that a spreadsheet would run as a formula.

    >>> print(for_csv("two\nlines"), for_csv("=cmd()"))
    two\nlines '=cmd()
    """
    line = on_one_line(text)
    return f"'{line}" if line.startswith(_FORMULA) else line


def for_html(text: str) -> str:
    """Text in an HTML element or attribute; bytes of a name that are not UTF-8 become question marks.

    >>> for_html("<b>")
    '&lt;b&gt;'
    """
    return html.escape(as_unicode(text))


def for_plotly(name: object, longest: int = 48) -> str:
    """Text in a figure: no tags, no template fields, no formulas; long paths lose their middle.

    >>> for_plotly("<b>50 %</b>")
    '&lt;b&gt;50 &#37;&lt;/b&gt;'
    """
    plain = " ".join(str(name).split())
    if len(plain) > longest:
        plain = f"{plain[: longest // 3]}…{plain[-(longest - longest // 3 - 1) :]}"
    # Plotly fills in %{…} in hover texts and sets $…$ as a formula; as entities both are only characters.
    # Entities come last: escaping after them would turn their & into &amp;.
    return html.escape(plain, quote=False).replace("%", "&#37;").replace("$", "&#36;")


def for_terminal(text: str) -> str:
    """Text where rich reads markup.

    >>> for_terminal("a [bold] name")
    'a \\\\[bold] name'
    """
    from rich.markup import escape

    return escape(on_one_line(text))

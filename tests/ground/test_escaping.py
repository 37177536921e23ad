"""What comes from outside is plain characters, wherever it is shown."""

import html.parser
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from ablation_lens.errors import AblationLensError
from ablation_lens.escaping import for_html, for_latex, for_markdown, for_plotly, for_terminal, on_one_line, shorten

NASTY = "./a|b_c & <img src=x>[bold]$50%#{~^}\\ `x` *y*\n\x1b[31mnext"


def test_on_one_line_breaks_and_terminal_escapes_are_shown():
    assert on_one_line(NASTY) == "./a|b_c & <img src=x>[bold]$50%#{~^}\\ `x` *y*\\n\\x1b[31mnext"
    assert shorten("abcdef", 3) == "ab…"
    assert shorten("abc", 3) == "abc"


@given(st.text())
def test_markdown_reads_back_and_leaves_no_letter_that_means_something(text):
    escaped = for_markdown(text)
    assert not re.search(r"(?<!\\)(\\\\)*[|*_`<\[$#~&]", escaped)
    assert re.sub(r"\\(.)", r"\1", escaped) == on_one_line(text)


@given(st.text(st.characters(codec=None)))  # lone surrogates, too
def test_one_line_has_nothing_that_a_terminal_obeys_or_an_encoding_refuses(text):
    line = on_one_line(text)
    assert len(line.splitlines()) <= 1
    assert not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for letter in line)
    assert str(AblationLensError(text)) == line
    line.encode("utf-8")


@given(st.text())
def test_html_reads_back_as_one_piece_of_text(text):
    pieces, tags = [], []
    reader = html.parser.HTMLParser()
    reader.handle_data, reader.handle_starttag = pieces.append, lambda tag, attrs: tags.append(tag)
    reader.feed(f"<p>{for_html(text)}</p>")
    reader.close()
    assert tags == ["p"]
    assert "".join(pieces) == text.encode("utf-8", "replace").decode("utf-8")


@given(st.text().filter(lambda text: not on_one_line(text).endswith("\\")))  # rich shows one at the end twice
def test_a_terminal_shows_the_characters_themselves(text):
    assert Text.from_markup(for_terminal(text)).plain == on_one_line(text)


@pytest.mark.parametrize("letter", list("%$<>&"))
def test_a_figure_shows_them_as_entities(letter):
    assert letter not in for_plotly(letter).replace("&", "", 1)


def test_latex_has_no_bare_special_left():
    assert not re.search(r"(?<!\\)[&%$#_]", for_latex(NASTY))
    assert "\\textbackslash{}" in for_latex(NASTY)

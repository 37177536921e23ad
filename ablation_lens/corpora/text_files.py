"""Text files cut into documents, and the rows of JSON lines.

Both are read here and not by `datasets`, whose JSON reader turns texts that look like dates into dates, stops where
a later row has another field, and takes `[` in a file name for a pattern.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ablation_lens.corpora.documents import Entry, TextInPieces, text_entry
from ablation_lens.corpora.files import pieces_of, printable
from ablation_lens.corpora.options import Block, Errors
from ablation_lens.errors import CorpusError

LINE_LIMIT = 1 << 25
"""Characters of a line of JSON. It is held as a whole, and small values take thirty times their characters."""


def text_file_entries(root: Path, files: Sequence[PurePosixPath], block: Block, errors: Errors) -> Iterator[Entry]:
    """The documents of text files: one per file, per paragraph (between blank lines), or per line that is not blank.

    A file without any document counts as one empty document.
    """
    for file in files:
        identity = printable(file)
        cuts = {"file": _whole, "paragraph": _paragraphs, "line": _lines}[block]
        number = 0
        for number, text in enumerate(cuts(pieces_of(root / file, errors, by_line=block != "file")), 1):
            yield text.entry(identity if block == "file" else f"{identity}#{number}")
        if not number:
            yield text_entry("", identity)


def _whole(pieces: Iterator[str]) -> Iterator[TextInPieces]:
    text, newline = TextInPieces(), ""
    for piece in pieces:
        text.add(newline + piece.removesuffix("\n"))
        newline = "\n" if piece.endswith("\n") else ""
    yield text


def _paragraphs(pieces: Iterator[str]) -> Iterator[TextInPieces]:
    text, newline = TextInPieces(), ""
    line_begins = True
    for piece in pieces:
        # A million blanks end a paragraph like a blank line, whatever comes after them.
        if line_begins and not piece.strip():
            if text.length:
                yield text
            text, newline = TextInPieces(), ""
        else:
            text.add(newline + piece.removesuffix("\n"))
            line_begins = piece.endswith("\n")
            newline = "\n" if line_begins else ""
    if text.length:
        yield text


def _lines(pieces: Iterator[str]) -> Iterator[TextInPieces]:
    text = TextInPieces()
    for piece in pieces:
        text.add(piece.removesuffix("\n"))
        if piece.endswith("\n"):
            if not text.blank:
                yield text
            text = TextInPieces()
    if not text.blank:
        yield text


def _numbered_lines(pieces: Iterator[str], path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, as wholes."""
    line: list[str] = []
    number, length = 1, 0
    for piece in pieces:
        line.append(piece)
        length += len(piece)
        if length > LINE_LIMIT:
            raise CorpusError(
                f"line {number} of {path} has more than {LINE_LIMIT:,} characters; expected one object per line."
            )
        if piece.endswith("\n"):
            whole = "".join(line)
            line.clear()
            if whole.strip():
                yield number, whole
            number, length = number + whole.count("\n"), 0
    whole = "".join(line)
    if whole.strip():
        yield number, whole


def json_rows(root: Path, files: Sequence[PurePosixPath], errors: Errors) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON-lines files, each with `file:line`; blank lines are passed over.

    A file without any row counts as one empty row.
    """
    for file in files:
        identity, path = "", root / file
        for number, line in _numbered_lines(pieces_of(path, errors), path):
            identity = f"{printable(file)}:{number}"
            yield identity, _object(line, f"line {number} of {path}")
        if not identity:
            yield printable(file), {}


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    # JSON that is nested too deeply ends in a RecursionError.
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where} is not JSON ({error}); expected one object per line.") from error
    if not isinstance(row, dict):
        raise CorpusError(
            f'{where} is a JSON {type(row).__name__}; expected one object per line, like {{"text": "…"}}.'
        )
    return row

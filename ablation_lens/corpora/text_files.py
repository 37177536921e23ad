"""Text files cut into documents, and the rows of JSON lines.

Both are read here and not by `datasets`, whose JSON reader turns texts that look like dates into dates, stops where
a later row has another field, and takes `[` in a file name for a pattern.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ablation_lens.corpora.documents import Entry, text_entry
from ablation_lens.corpora.files import lines, printable
from ablation_lens.corpora.options import Block, Errors
from ablation_lens.errors import CorpusError


def text_file_entries(root: Path, files: Sequence[PurePosixPath], block: Block, errors: Errors) -> Iterator[Entry]:
    """The documents of text files: one per file, per paragraph (between blank lines), or per line that is not blank.

    A file without any document counts as one empty document.
    """
    for file in files:
        identity = printable(file)
        cuts = {"file": _whole, "paragraph": _paragraphs, "line": _lines}[block]
        number = 0
        for number, text in enumerate(cuts(lines(root / file, errors)), 1):
            yield text_entry(text, identity if block == "file" else f"{identity}#{number}")
        if not number:
            yield text_entry("", identity)


def _whole(texts: Iterator[str]) -> Iterator[str]:
    yield "\n".join(texts)


def _paragraphs(texts: Iterator[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in texts:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _lines(texts: Iterator[str]) -> Iterator[str]:
    return (line for line in texts if line.strip())


def json_rows(root: Path, files: Sequence[PurePosixPath], errors: Errors) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON-lines files, each with `file:line`; blank lines are passed over.

    A file without any row counts as one empty row.
    """
    for file in files:
        identity = ""
        for number, line in enumerate(lines(root / file, errors), 1):
            if not line.strip():
                continue
            identity = f"{printable(file)}:{number}"
            try:
                row = json.loads(line)
            # JSON that is nested too deeply ends in a RecursionError.
            except (ValueError, RecursionError) as error:
                raise CorpusError(
                    f"line {number} of {root / file} is not JSON ({error}); expected one object per line."
                ) from error
            if not isinstance(row, dict):
                raise CorpusError(
                    f"line {number} of {root / file} is a JSON {type(row).__name__}; expected one object per line, "
                    f'like {{"text": "…"}}.'
                )
            yield identity, row
        if not identity:
            yield printable(file), {}

"""The corpora that need no network: the standard library's prose, its code, and scikit-learn's digits.

`stdlib` is the language reference in `pydoc_data.topics` and the docstrings of the standard library's
modules. Every Python carries them, so nothing is downloaded or copied; they differ a little from one
Python version to the next, which is why `digest` exists. Reading a whole library takes seconds, so what came of it
is `kept` for the next process.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ablation_lens.corpora.keeping import kept

DOCUMENT_CHARACTERS = 780
"""A document is closed before it grows past this: about 256 of the zoo's tokens, its models' context.

Only a piece that is still smaller than `SMALLEST_DOCUMENT` takes one more paragraph."""

SMALLEST_DOCUMENT = 200
"""A module or topic with less new prose than this is left out; a shorter remainder joins the piece before it."""

# Reference manuals repeat whole sections (the topic "compound" holds "if", "while", …). A paragraph of this
# many characters or more is taken once only, or the evaluate split would quote the train split.
_REPEATABLE = 40

# Tests and vendored or installed packages are not the library's prose; `pydoc_data` is read on its own;
# `__phello__`, `turtledemo` and the like are part of the library and stay.
_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
)

Image = UInt8[np.ndarray, "8 8"]


@functools.lru_cache(maxsize=1)
def _prose() -> tuple[str, ...]:
    return kept("stdlib", _state, lambda: _documents(_sources()))


@functools.lru_cache(maxsize=1)
def _code() -> tuple[str, ...]:
    return kept("stdlib-code", _state, lambda: _documents(code for path in _files() if (code := code_of(path))))


def _state() -> str:
    """A digest of all that the documents depend on: what is read, which Python reads it, and the rules in this file."""
    library = Path(sysconfig.get_path("stdlib"))
    told = hashlib.sha256(f"{sys.version} {sys.implementation.cache_tag}".encode())
    parts = [Path(__file__).read_bytes(), repr(sorted(_topics().items())).encode()]
    for path in _files():
        parts.append(os.fsencode(path.relative_to(library).as_posix()))
        # Their bytes, which take 20 ms: the time of a file says little where libraries are copied or unpacked.
        with contextlib.suppress(OSError):
            parts.append(path.read_bytes())
    for part in parts:
        told.update(len(part).to_bytes(8, "big") + hashlib.sha256(part).digest())
    return told.hexdigest()


def _documents(sources: Iterable[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    pieces = [piece for source in sources for piece in cut_into_documents(source, seen)]
    # A tuple: the cache gives the same object to every caller.
    return tuple(sorted(pieces, key=lambda text: hashlib.sha256(text.encode()).digest()))


def stdlib_documents() -> list[str]:
    """The documents of the `stdlib` corpus, ordered by the SHA-256 of their content.

    A document is a run of consecutive paragraphs of one topic or of one module's docstrings in source
    order, up to `DOCUMENT_CHARACTERS`. Ordering by hash keeps neighbouring docstrings apart, so that the
    first documents of a split are already a fair sample of it.

    >>> documents = stdlib_documents()
    >>> len(documents) > 1000 and documents == sorted(set(documents), key=lambda d: hashlib.sha256(d.encode()).digest())
    True
    """
    return list(_prose())


def stdlib_code() -> list[str]:
    """The documents of the `stdlib-code` corpus: the same modules without docstrings and comments, cut the same way.

    >>> documents = stdlib_code()
    >>> len(documents) > 1000, set(documents).isdisjoint(stdlib_documents())
    (True, True)
    """
    return list(_code())


def cut_into_documents(source: str, seen: set[str]) -> Iterator[str]:
    """The documents of one source: paragraphs not in `seen` (which they join), in runs of limited length.

    >>> list(cut_into_documents("word " * 50 + "\\n\\n" + "word " * 50, set())) == [("word " * 50).strip()]
    True
    """
    run: list[str] = []
    length = 0
    finished: str | None = None  # held back by one, as a short remainder joins it
    for paragraph in source.split("\n\n"):
        key = " ".join(paragraph.split())
        if not key or key in seen:
            continue
        if len(key) >= _REPEATABLE:
            seen.add(key)
        for part in _parts(paragraph.rstrip().strip("\n")):
            if length >= SMALLEST_DOCUMENT and length + len(part) > DOCUMENT_CHARACTERS:
                if finished is not None:
                    yield finished
                finished, run, length = "\n\n".join(run), [], 0
            length += len(part) + (2 if run else 0)
            run.append(part)
    remainder = "\n\n".join(run)
    if finished is None:
        if len(remainder) >= SMALLEST_DOCUMENT:
            yield remainder
    elif len(remainder) >= SMALLEST_DOCUMENT:
        yield finished
        yield remainder
    else:
        yield f"{finished}\n\n{remainder}" if remainder else finished


def _parts(paragraph: str) -> Iterator[str]:
    """A paragraph longer than a document, cut between lines."""
    part = ""
    for line in paragraph.split("\n"):
        if part and len(part) + len(line) > DOCUMENT_CHARACTERS:
            yield part
            part = line
        else:
            part = f"{part}\n{line}" if part else line
    if part:
        yield part


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics  # the one module that is imported: it holds nothing but the texts

    return topics


def _sources() -> Iterator[str]:
    topics = _topics()
    for name in sorted(topics):
        yield clean(topics[name])
    for path in _files():
        yield "\n\n".join(docstrings(path))


def _files() -> Iterator[Path]:
    library = sysconfig.get_path("stdlib")
    found: list[tuple[str, ...]] = []
    for folder, inside, names in os.walk(library):
        inside[:] = set(inside) - _LEFT_OUT  # not entered: the packages that are installed are ten times the library
        above = () if folder == library else Path(folder).relative_to(library).parts
        found += ((*above, name) for name in names if name.endswith(".py"))
    yield from (Path(library, *parts) for parts in sorted(found))


_KINDS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
"""What may have a docstring."""


def docstrings(path: Path) -> list[str]:
    """The docstrings of a Python file in source order: read with `ast`, never imported.

    A file that cannot be read, decoded or parsed has none.

    >>> docstrings(Path(inspect.getsourcefile(inspect.cleandoc)))[0].splitlines()[0]
    'Get useful information from live Python objects.'
    """
    tree = _parsed(path)
    nodes = [node for node in ast.walk(tree) if isinstance(node, _KINDS)]
    nodes.sort(key=lambda node: 0 if isinstance(node, ast.Module) else node.lineno)
    texts = (ast.get_docstring(node, clean=False) for node in nodes)
    return [clean(text) for text in texts if text]


def code_of(path: Path) -> str:
    """A Python file without docstrings and comments, as `ast` writes it; empty where it cannot be parsed.

    >>> code_of(Path(inspect.getsourcefile(inspect.cleandoc))).splitlines()[0]
    "__author__ = ('Ka-Ping Yee <ping@lfw.org>', 'Yury Selivanov <yselivanov@sprymix.com>')"
    """
    tree = _parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, _KINDS) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
            if not (node.body or isinstance(node, ast.Module)):
                node.body = [ast.Pass()]
    # Literals keep lone surrogates as escapes; names have none. So this has UTF-8 bytes.
    return ast.unparse(tree)


def _parsed(path: Path) -> ast.Module:
    """A Python file; an empty module where it cannot be read, decoded or parsed."""
    try:
        with warnings.catch_warnings():
            # Where warnings are errors, an invalid escape would drop a file here and nowhere else.
            warnings.simplefilter("ignore")
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def clean(text: str) -> str:
    """`inspect.cleandoc`, with trailing blanks, form feeds and runs of blank lines removed.

    >>> clean("One.\\n\\n\\n\\n    Two.  ")
    'One.\\n\\nTwo.'
    """
    lines = [line.rstrip() for line in inspect.cleandoc(text).replace("\f", "\n").splitlines()]
    kept = [line for index, line in enumerate(lines) if line or (index and lines[index - 1])]
    # A lone surrogate (a docstring may escape one) has no UTF-8 bytes, hence no digest and no split.
    return "\n".join(kept).strip("\n").encode("utf-8", "replace").decode("utf-8")


def digits_images() -> list[tuple[Image, int]]:
    """Scikit-learn's 1797 handwritten digits in their own order: 8×8 grey pixels (0–255) and the digit.

    >>> pixels, digit = digits_images()[0]
    >>> pixels.shape, pixels.dtype.name, int(pixels.max()), digit
    ((8, 8), 'uint8', 239, 0)
    """
    # Half a second to import, so not with this module.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0–16
    return [(image, int(label)) for image, label in zip(pixels, digits.target, strict=True)]


def digest(contents: Iterable[str | bytes]) -> str:
    """A SHA-256 over a sequence of documents (or pixel bytes), its order and its boundaries.

    >>> digest(["ab", "c"]) == digest([b"ab", b"c"]) != digest(["a", "bc"])
    True
    """
    state = hashlib.sha256()
    for content in contents:
        data = content.encode() if isinstance(content, str) else content
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()

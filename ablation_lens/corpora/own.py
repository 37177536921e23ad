"""A corpus out of what somebody holds: a list of texts, or a data set of the `datasets` package."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablation_lens.corpora.documents import Corpus, Entry, Source, text_entry
from ablation_lens.corpora.options import Options
from ablation_lens.corpora.streams import guard
from ablation_lens.corpora.tables import Row, Table, columns_of, sound_text, table_source
from ablation_lens.errors import CorpusError

TEXTS = "own texts"
DATA_SET = "own data set"
"""What such corpora are called in records; their digests tell one from another."""


def is_dataset(given: Any) -> bool:
    """Whether this is a `Dataset` or `IterableDataset`; asked by name, as texts must not load `datasets`.

    >>> is_dataset(["a text"])
    False
    """
    return any(
        kind.__module__.startswith("datasets.") and kind.__name__ in ("Dataset", "IterableDataset")
        for kind in type(given).__mro__
    )


def own_corpus(given: Any, **asked: Any) -> Corpus:
    """The corpus of a list of texts or of a data set; `asked` are the options of `open_corpus`.

    >>> corpus = own_corpus(["One text.", "Another.", ""])
    >>> [(document.id, document.text) for document in corpus]
    [('text 0', 'One text.'), ('text 1', 'Another.')]
    """
    options = Options(**asked)
    if is_dataset(given):
        return Corpus(DATA_SET, table_source(_table(given), options))
    if isinstance(given, list | tuple) and given and all(isinstance(text, str) for text in given):
        return Corpus(TEXTS, _texts(list(given), options))
    raise CorpusError(f"{_told(given)} is not a corpus; {_WANTED}.")


_WANTED = (
    "give a name such as 'stdlib', a path, a hub data set owner/name, a list of texts, or a Dataset of the datasets "
    "package"
)


def _told(given: Any) -> str:
    kind = type(given).__name__
    if isinstance(given, list | tuple):
        if not given:
            return f"an empty {kind}"
        other = next(each for each in given if not isinstance(each, str))
        return f"a {kind} that holds a {type(other).__name__}"
    if kind == "DatasetDict" or kind == "IterableDatasetDict":
        return f"a {kind} of {', '.join(map(repr, given))} (give one of these splits)"
    if kind in ("DataFrame", "Series"):
        return f"a {kind} (give its texts, as in list(frame['text']))"
    return f"a {kind}"


def _texts(texts: Sequence[str], options: Options) -> Source:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    location = f"{len(texts):,} texts given in Python ({digest.hexdigest()[:16]})"
    options.require(location, "text", "errors")

    def entries() -> Iterator[Entry]:
        for number, text in enumerate(texts):
            yield text_entry(sound_text(text, options.errors, f"text {number}", location), f"text {number}")

    return Source(location, "text", entries, settings=options.settings("errors"))


def _table(given: Any) -> Table:
    import datasets  # type: ignore[import-untyped]

    location = f"a {type(given).__name__} given in Python"
    features = given.features
    if features is None:  # of a stream that declares no schema a row shows one
        first = next(guard(iter(given), location), None)
        if first is None:
            raise CorpusError(f"{location} has no rows; give one that has some.")
        features = datasets.Dataset.from_list([dict(first)]).features
    kinds, class_names = columns_of(features)
    images = [name for name, kind in kinds.items() if kind == "image"]

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for number, row in enumerate(guard(_plain_rows(given, columns, images), location)):
            for name in set(images) & set(row):
                _require_bytes(row[name], f"{name!r} of row {number} in {location}")
            yield f"row {number}", row

    return Table(location, kinds, rows, class_names)


def _require_bytes(cell: Any, where: str) -> None:
    """Refuse an image that is the path of a file: no row of a table opens one."""
    path = cell.get("path") if isinstance(cell, Mapping) and cell.get("bytes") is None else None
    if path is not None and not str(path).rsplit("::", 1)[-1].startswith("hf://"):
        raise CorpusError(
            f"{where} is the path of a file, and no row opens one here; give the folder instead of the data set."
        )


def _plain_rows(given: Any, columns: Sequence[str], images: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows as Python values, whatever format the data set was given, and with images undecoded."""
    import datasets

    if not isinstance(given, datasets.Dataset):
        # Decoded by `datasets`, the first corrupt image would end the stream.
        yield from given.decode(False) if images else given
        return
    wanted = given.select_columns([name for name in columns if name in given.column_names]).with_format(None)
    for name in set(images) & set(columns):
        wanted = wanted.cast_column(name, datasets.Image(decode=False))
    yield from wanted

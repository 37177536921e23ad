"""Rows to documents: which column holds the text, the image or the class. Shared by JSON lines, Parquet and the hub."""

import itertools
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ablation_lens.corpora.choice import label_of_cell
from ablation_lens.corpora.documents import Entry, Source, text_entry
from ablation_lens.corpora.images import BYTE_LIMIT, image_entry
from ablation_lens.corpora.labels import LabelMap, LabelTable, classes_in_order, labels_by_id
from ablation_lens.corpora.options import Errors, Options
from ablation_lens.errors import CorpusError
from ablation_lens.escaping import shorten

Row = tuple[str, Mapping[str, Any]]
"""An id and the values by column."""

ColumnKind = Literal["text", "image", "classes", "number", "other"]

_MOST_SHOWN = 20

# The first name wins. CIFAR-100 on the hub calls its labels "fine_label".
_USUAL = {"text": ("text", "content"), "image": ("image", "img"), "label": ("label", "labels", "fine_label")}


@dataclass(frozen=True)
class Table:
    """Rows, read anew by every call of `rows` (with at least the columns named there), and what their columns hold."""

    location: str
    columns: Mapping[str, ColumnKind]
    rows: Callable[[Sequence[str]], Iterator[Row]]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def table_source(table: Table, options: Options) -> Source:
    """The documents of a table: images when it has an image column (and text is not asked for), else texts."""
    if options.kind == "image" or (options.kind is None and "image" in table.columns.values()):
        options.require(table.location, "image", "column", "labels", "label_column")
        return _images(table, options)
    options.require(table.location, "text", "column", "errors", "label_column")
    column = _column(table, "text", options.column)
    labels = None if options.label_column is None else _column(table, "text", options.label_column)
    # Parquet then reads nothing of the other columns.
    wanted = [column] if labels is None else list(dict.fromkeys([column, labels]))

    def entries() -> Iterator[Entry]:
        # JSON rows may lack the text, and count as empty. What is empty has no need of a label.
        for identity, row in table.rows(wanted):
            text = sound_text(row.get(column), options.errors, f"{column!r} of row {identity}", table.location)
            label = None if labels is None or not text.strip() else _text_label(row, labels, table, options, identity)
            yield text_entry(text, identity, label)

    settings = (("column", column), *options.settings("errors", "label_column"))
    return Source(table.location, "text", entries, settings=settings, labelled=labels is not None)


def _text_label(row: Mapping[str, Any], column: str, table: Table, options: Options, identity: str) -> str:
    value, names = row.get(column), table.class_names.get(column)
    if names is not None and type(value) is int:
        # Hub data sets often mark rows without a label by -1.
        value = names[value] if 0 <= value < len(names) else None
    cell = f"the label {shorten(repr(column), 80)} of row {identity}"
    if isinstance(value, str):
        value = sound_text(value, options.errors, cell, table.location)
    return label_of_cell(value, f"{cell} in {table.location}")


def _column(table: Table, kind: ColumnKind, asked: str | None) -> str:
    """The column asked for, else the one with a usual name, else the only one of its kind."""
    fitting = [name for name, held in table.columns.items() if held == kind]
    if asked is not None:
        if asked in table.columns:
            return asked
        raise CorpusError(f"{table.location} has no column {asked!r}; its columns are {_listed(table.columns)}.")
    for name in _USUAL[kind]:
        if name in fitting:
            return name
    if len(fitting) == 1:
        return fitting[0]
    number = "no" if not fitting else "more than one"
    raise CorpusError(
        f"{table.location} has {number} {kind} column; say which to take with column=NAME: its columns are "
        f"{_listed(table.columns)}."
    )


def _listed(columns: Mapping[str, ColumnKind]) -> str:
    shown = [f"{shorten(repr(name), 80)} ({held})" for name, held in itertools.islice(columns.items(), _MOST_SHOWN)]
    return ", ".join(shown) + (", …" if len(columns) > _MOST_SHOWN else "")


def sound_text(value: object, errors: Errors, cell: str, location: str) -> str:
    """A cell as text that has UTF-8 bytes; a missing one is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"{cell} in {location} is of type {type(value).__name__}, expected text; choose another column=NAME."
        )
    # JSON may escape half of a surrogate pair. Python takes it for a character, but it has no UTF-8 bytes.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise CorpusError(
                f"{cell} in {location} holds half of a surrogate pair, which no UTF-8 text can; mend it, or pass "
                f"errors='replace' to put U+FFFD there."
            ) from error
        # By way of UTF-16, where two halves that belong together become one; "replace" to UTF-8 would give "?".
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _images(table: Table, options: Options) -> Source:
    column = _column(table, "image", options.column)
    label_of, settings = _labelling(table, options)
    # The label only when it is used: a table may have none, and a Parquet file without a wanted column is refused.
    labelled = options.id2label is not None
    wanted = [column] + ([label] if labelled and (label := _label_column(table, options)) else [])

    def entries() -> Iterator[Entry]:
        for identity, row in table.rows(wanted):
            yield image_entry(_image_bytes(row.get(column)), label_of(row, identity), identity)

    settings = (("column", column), *settings)
    return Source(table.location, "image", entries, settings=settings, labelled=labelled)


def _image_bytes(cell: object) -> bytes:
    """An undecoded image cell's bytes; a row that only names a file has none unless it lies on the hub."""
    if isinstance(cell, Mapping):
        content, path = cell.get("bytes"), cell.get("path")
        # Of a chained address (zip://a.png::hf://…) the last part says where it lies. Only the hub: a row of somebody's
        # table must not make us open a file of this machine.
        if content is None and isinstance(path, str) and path.rsplit("::", 1)[-1].startswith("hf://"):
            import fsspec  # type: ignore[import-untyped]

            with fsspec.open(path, "rb") as handle:
                content = handle.read(BYTE_LIMIT + 1)  # `decode` refuses more
        cell = content
    # No bytes make a blank document, which the reading counts as empty.
    return bytes(cell) if isinstance(cell, bytes | bytearray | memoryview) else b""


def _labelling(
    table: Table, options: Options
) -> tuple[Callable[[Mapping[str, Any], str], int | None], tuple[tuple[str, str], ...]]:
    """How a row's label becomes the model's id, and what the record says about it."""
    if options.id2label is None:
        for name in ("labels", "label_column"):
            if (given := getattr(options, name)) is not None:
                raise CorpusError(f"{name}={str(given)!r} needs the model's id2label for {table.location}; pass both.")
        return (lambda row, identity: None), ()
    id2label = labels_by_id(options.id2label)
    column = _label_column(table, options)
    if column is None:
        raise CorpusError(
            f"{table.location} has no column 'label', without which no classifier can be scored on it (its columns are "
            f"{_listed(table.columns)}); say which it is with label_column=NAME, or give an image folder with "
            "labels=FILE (--labels)."
        )
    translated = dict(LabelTable.read(options.labels).labels) if options.labels is not None else {}
    where = f"the column {column!r} of {table.location}"
    in_words = table.columns[column] == "text"
    known: dict[object, int] = {number: number for number in id2label}
    rule = "id"
    if column in table.class_names:
        ids, rule = classes_in_order(
            [translated.get(name, name) for name in table.class_names[column]], id2label, where
        )
        known = dict(enumerate(ids))
    elif in_words:
        known = {}
        # Its first row shows the rule: which names it holds is known only at the end of the stream.
        first = next((row.get(column) for _, row in table.rows([column])), None)
        if isinstance(first, str):
            rule = LabelMap.match([translated.get(first, first)], id2label, where).rule

    def label_of(row: Mapping[str, Any], identity: str) -> int:
        value = row.get(column)
        if in_words and isinstance(value, str) and value not in known:
            name = translated.get(value, value)
            known[value] = LabelMap.match([name], id2label, where, by=rule).ids[name]
        # By type before it is looked up: a list cannot be, and True would be found as 1.
        if type(value) is not (str if in_words else int) or value not in known:
            # Hub data sets often mark rows without a label by -1.
            raise CorpusError(
                f"row {identity} of {table.location} has the label {reprlib.repr(value)}, expected one of the model's "
                f"{len(id2label)} class ids; give images that are labelled for this model."
            )
        return known[value]

    return label_of, (*options.settings("labels", "label_column"), ("labels matched by", rule))


def _label_column(table: Table, options: Options) -> str | None:
    if options.label_column is not None:
        return _column(table, "text", options.label_column)
    return next((name for name in _USUAL["label"] if name in table.columns), None)


def columns_of(features: Mapping[str, Any]) -> tuple[dict[str, ColumnKind], dict[str, tuple[str, ...]]]:
    """What a `datasets` schema's columns hold, and the names of its numbered classes."""
    columns = {name: _kind_of(feature) for name, feature in features.items()}
    names = {name: tuple(feature.names) for name, feature in features.items() if columns[name] == "classes"}
    return columns, names


def _kind_of(feature: Any) -> ColumnKind:
    # By the name of the type: this module is imported for plain texts too, which must not load `datasets`.
    kind = type(feature).__name__
    # A struct of bytes and path is how `datasets` stores an image, where the file does not say that it is one.
    if kind == "Image" or (isinstance(feature, Mapping) and "bytes" in feature):
        return "image"
    if kind == "ClassLabel":
        return "classes"
    dtype = str(getattr(feature, "dtype", "")) if kind in ("Value", "LargeString") else ""
    if "string" in dtype:
        return "text"
    return "number" if dtype.removeprefix("u").startswith("int") else "image" if "binary" in dtype else "other"

"""Local paths: what kind of files lie there, and who reads them."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ablation_lens.corpora import images
from ablation_lens.corpora.documents import Entry, Source
from ablation_lens.corpora.files import COMPRESSIONS, find_files, opened, printable, require_file, zero_byte
from ablation_lens.corpora.options import Block, Options
from ablation_lens.corpora.streams import ParquetFile, parquet_table
from ablation_lens.corpora.tables import ColumnKind, Table, table_source
from ablation_lens.corpora.text_files import json_rows, text_file_entries
from ablation_lens.errors import CorpusError
from ablation_lens.escaping import as_unicode
from ablation_lens.names import close_to

_SUFFIXES: Mapping[str, frozenset[str]] = {
    "text": frozenset({".txt", ".text", ".md", ".rst"}),
    "JSON lines": frozenset({".jsonl", ".ndjson", ".json"}),
    "Parquet": frozenset({".parquet"}),
    "image": images.SUFFIXES,
}
_READABLE = "text (.txt, .md, .rst), JSON lines (.jsonl), both also .gz or .zst, Parquet (.parquet), or images"

# The columns of JSON lines are those of the first rows: one row alone may have its text missing.
_ROWS_LOOKED_AT = 100
_MOST_COLUMNS = 10_000


def open_local(path: Path, options: Options) -> Source:
    """The source of a file or folder, by what its names end in.

    Args:
        path: a text, JSON-lines or Parquet file, or a folder of such files or of images.
        options: see `open_corpus`. In a folder that holds several kinds of files, `kind` decides.
    """
    if path.is_dir():
        format_, files = _format_of_folder(path, options)
        root = path
    else:
        require_file(path)
        format_, files, root = _format_of_file(path), [PurePosixPath(path.name)], path.parent
    location = str(path.absolute())
    if format_ == "image":
        if not path.is_dir():
            raise CorpusError(f"{path} is a single image; give the folder that holds the images.")
        options.require(location, "image", "labels")
        return images.image_folder(root, files, labels=options.labels, id2label=options.id2label)
    if format_ == "text":
        options.require(location, "text", "block", "errors")
        return _text_source(root, files, location, options, options.block or ("file" if path.is_dir() else "paragraph"))
    if format_ == "Parquet":
        parquet = [ParquetFile(printable(file), functools.partial(opened, root / file)) for file in files]
        return table_source(parquet_table(location, parquet), options)
    return table_source(_json_table(root, files, location, options), options)


def _format_of_folder(path: Path, options: Options) -> tuple[str, list[PurePosixPath]]:
    by_format: dict[str, list[PurePosixPath]] = {}
    for file in find_files(path):
        format_ = _format_of_name(file)
        if format_ is not None and file.suffix.lower() != ".json":  # beside data, a .json file is somebody's settings
            by_format.setdefault(format_, []).append(file)
    about = [file for file in by_format.get("text", []) if file.stem.casefold() in ("readme", "license")]
    if about and len(by_format) > 1 and len(about) == len(by_format["text"]):
        del by_format["text"]  # a README beside data is not data
    # Parquet is in neither list: only its columns tell what it holds.
    unwanted = {"text": ("image",), "image": ("text", "JSON lines")}.get(options.kind or "", ())
    fitting = {format_: files for format_, files in by_format.items() if format_ not in unwanted}
    if not fitting:
        held = _counts(by_format) or "no file of a known sort"
        wanted = {"text": "text", "image": "images", None: "text or images"}[options.kind]
        raise CorpusError(f"the folder {path} holds {held}, expected {wanted}: {_READABLE}.")
    if len(fitting) > 1:
        advice = (
            "pass kind='text' or kind='image'" if len(fitting) == 2 and "image" in fitting else "give a narrower path"
        )
        raise CorpusError(f"the folder {path} holds {_counts(fitting)}; {advice}.")
    return next(iter(fitting.items()))


def _counts(by_format: Mapping[str, Sequence[PurePosixPath]]) -> str:
    return " and ".join(f"{len(files)} {format_} files" for format_, files in by_format.items())


def _format_of_name(file: PurePosixPath) -> str | None:
    name = PurePosixPath(file.name)
    if name.suffix.lower() in COMPRESSIONS:
        name = name.with_suffix("")
        compressed = True
    else:
        compressed = False
    for format_, suffixes in _SUFFIXES.items():
        # Parquet is read from its end, and a Zstandard stream cannot go there: no compressed Parquet.
        if name.suffix.lower() in suffixes and not (compressed and format_ in ("image", "Parquet")):
            return format_
    return None


def _format_of_file(path: Path) -> str:
    format_ = _format_of_name(PurePosixPath(path.name))
    if format_ is not None:
        return format_
    with opened(path) as handle:
        binary = zero_byte(handle) is not None
    # A file named on its own may be called anything, as long as it is text and not a table in text's clothing.
    if binary or path.suffix.lower() in (".csv", ".tsv"):
        raise CorpusError(f"{path} is of no sort that can be read; expected {_READABLE}.")
    return "text"


def _text_source(root: Path, files: Sequence[PurePosixPath], location: str, options: Options, block: Block) -> Source:
    def entries() -> Iterator[Entry]:
        return text_file_entries(root, files, block, options.errors)

    return Source(location, "text", entries, settings=(("block", block), *options.settings("errors")))


def _json_table(root: Path, files: Sequence[PurePosixPath], location: str, options: Options) -> Table:
    columns: dict[str, ColumnKind] = {}
    for identity, row in itertools.islice(json_rows(root, files, options.errors), _ROWS_LOOKED_AT):
        if len(columns.keys() | row.keys()) > _MOST_COLUMNS:
            raise CorpusError(
                f"row {identity} of {location} brings more than {_MOST_COLUMNS:,} names of fields; "
                f'expected the same few in every row, like {{"text": "…"}}.'
            )
        for name, value in row.items():
            if as_unicode(name) != name:  # half of a surrogate pair: no record could say which column was read
                continue
            # What is null in one row may be text in a later one. `type`, as a bool is an int for `isinstance`.
            if columns.get(name, "other") == "other":
                columns[name] = "text" if isinstance(value, str) else "number" if type(value) is int else "other"
    if not columns:
        raise CorpusError(f'{location} holds no rows; expected one JSON object per line, like {{"text": "…"}}.')
    return Table(location, columns, lambda wanted: json_rows(root, files, options.errors))


def is_there(path: Path) -> bool:
    """Whether the path exists; an error where that cannot be known."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        return False
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}); mend it, or give another path.") from error
    return True


def missing_path(path: Path, names: Sequence[str]) -> CorpusError:
    """The error for a name that is neither a corpus nor a path, with the nearest names there are."""
    folder = path.parent
    try:
        nearby = sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):
        nearby = []
    close = [str(folder / name) for name in close_to(path.name, nearby, 2)]
    if len(path.parts) == 1:
        close = close_to(path.name, names, 2) + close
    advice = f"did you mean {' or '.join(map(repr, close))}?" if close else f"named corpora are {', '.join(names)}."
    return CorpusError(
        f"{str(path)!r} is neither a named corpus nor a path that exists; expected one of those, "
        f"or a hub data set written owner/name[:config][:split]: {advice}"
    )

"""Parquet files and `datasets` streams as tables: read as far as the consumer goes, images left undecoded.

Parquet goes through `pyarrow.parquet` even where it comes from the hub. The reader inside `datasets` (5.2, with
pyarrow 26) leaves threads behind when a stream is not read to its end, and a task never does: one process in three
then aborted while exiting (apache/arrow#45214).
"""

import io
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from ablation_lens.corpora.tables import ColumnKind, Row, Table, columns_of
from ablation_lens.errors import CorpusError

# A group of rows that would become so many bytes, and so many times those of the file, is a bomb: text shrinks to a
# fifth, logs to a thirtieth.
_MOST_EXPANDED = 1 << 28
_MOST_TIMES = 100


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file by the name that its rows' ids begin with, wherever it is opened from."""

    name: str
    open: Callable[[], AbstractContextManager[BinaryIO]]


def parquet_table(location: str, files: Sequence[ParquetFile], features: Mapping[str, Any] | None = None) -> Table:
    """The rows of Parquet files, one file after the other.

    Args:
        location: for messages and the record.
        files: at least one.
        features: a `datasets` schema; None takes the one that the first file carries.
    """

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for file in files:
            for number, row in enumerate(guard(_rows(file, columns), f"{file.name} in {location}"), 1):
                yield f"{file.name}:{number}", row

    # A generator of one value, so that `guard` can say what was wrong with the file.
    columns, class_names = next(guard(_columns(files[0], features), f"{files[0].name} in {location}"))
    return Table(location, columns, rows, class_names)


def _rows(file: ParquetFile, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with file.open() as handle:
        parquet = _opened_parquet(handle)
        # pyarrow silently leaves out a column that is not there.
        missing = set(columns) - set(parquet.schema_arrow.names)
        if missing:
            raise CorpusError(f"{file.name} has no column {min(missing)!r}, which other files of the corpus have.")
        _require_no_bomb(parquet.metadata, handle.seek(0, io.SEEK_END), file.name)
        # One row at a time: sixty texts may be one entry of a dictionary, and sixty times as large as the file.
        for batch in parquet.iter_batches(1, columns=list(columns), use_threads=False):
            yield from batch.to_pylist()


def _require_no_bomb(metadata: Any, stored: int, name: str) -> None:
    # Not asked of each column: where the record of one is damaged, pyarrow aborts the process.
    size = max((metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)), default=0)
    if size > max(_MOST_EXPANDED, _MOST_TIMES * stored):
        raise CorpusError(
            f"a group of rows in {name}, a file of {stored:,} bytes, would grow to {size:,}, more than {_MOST_TIMES} "
            f"times; leave the file out, or write it with fewer rows in a group."
        )


def _columns(
    file: ParquetFile, features: Mapping[str, Any] | None
) -> Iterator[tuple[dict[str, ColumnKind], dict[str, tuple[str, ...]]]]:
    if features is None:
        import datasets  # type: ignore[import-untyped]

        with file.open() as handle:
            features = datasets.Features.from_arrow_schema(_opened_parquet(handle).schema_arrow)
    yield columns_of(features)


def _opened_parquet(handle: BinaryIO) -> Any:
    import pyarrow.parquet  # type: ignore[import-untyped]

    # Without pre_buffer=False a thread of pyarrow reads from the Python file, and may do so while Python exits.
    # Without a buffer_size a column is read as a whole: of a file with one row group, all of it.
    return pyarrow.parquet.ParquetFile(handle, pre_buffer=False, buffer_size=1 << 20)


def stream_table(location: str, stream: Any, name: str) -> Table:
    """The rows of a streaming `datasets` data set of another format than Parquet; their ids are `name#number`."""
    import datasets

    features = stream.features
    if features is None:  # JSON lines on the hub declare no schema; a row shows one
        first = next(guard(iter(stream), location), None)
        if first is None:
            raise CorpusError(f"{location} has no rows; give another split.")
        features = datasets.Dataset.from_list([dict(first)]).features
    else:
        # Decoded by `datasets`, the first corrupt image would end the stream. (Casting the column to
        # Image(decode=False) has no effect on an image folder on the hub.)
        stream = stream.decode(False)

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for number, row in enumerate(guard(iter(stream), location)):
            yield f"{name}#{number}", row

    kinds, class_names = columns_of(features)
    return Table(location, kinds, rows, class_names)


def guard(rows: Iterator[Any], where: str) -> Iterator[Any]:
    """The same rows; a failure on the way says how far it came."""
    for number in itertools.count():
        try:
            row = next(rows)
        except StopIteration:
            return
        except CorpusError:
            raise
        except Exception as error:  # from the network, Arrow or a decompressor: no common class
            how_far = f"broke off after {number} rows" if number else "cannot be read"
            raise CorpusError(f"{where} {how_far} ({error}); try again, mend it, or give another source.") from error
        yield row


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines from `datasets` meanwhile: what goes wrong is raised."""
    import datasets

    bars_were_off, logger = datasets.are_progress_bars_disabled(), logging.getLogger("datasets")
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars_were_off:
            datasets.enable_progress_bars()

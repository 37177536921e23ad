"""Parquet files and `datasets` streams as tables: read as far as the consumer goes, images left undecoded.

Parquet goes through `pyarrow.parquet` even where it comes from the hub. The reader inside `datasets` (5.2, with
pyarrow 26) leaves threads behind when a stream is not read to its end, and a task never does: one process in three
then aborted while exiting (apache/arrow#45214).
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from ablation_lens.corpora.tables import Row, Table, columns_of
from ablation_lens.errors import CorpusError

# Few enough that a batch of undecoded photographs stays below a hundred megabytes.
_ROWS_AT_ONCE = 64


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

    if features is None:
        # A generator of one value, so that `guard` can say what was wrong with the file.
        features = next(guard(_features(files[0]), f"{files[0].name} in {location}"))
    columns, class_names = columns_of(features)
    return Table(location, columns, rows, class_names)


def _rows(file: ParquetFile, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with file.open() as handle:
        parquet = _opened_parquet(handle)
        # pyarrow silently leaves out a column that is not there.
        missing = set(columns) - set(parquet.schema_arrow.names)
        if missing:
            raise CorpusError(f"{file.name} has no column {min(missing)!r}, which other files of the corpus have.")
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=list(columns), use_threads=False):
            yield from batch.to_pylist()


def _features(file: ParquetFile) -> Iterator[Mapping[str, Any]]:
    import datasets  # type: ignore[import-untyped]

    with file.open() as handle:
        yield datasets.Features.from_arrow_schema(_opened_parquet(handle).schema_arrow)


def _opened_parquet(handle: BinaryIO) -> Any:
    import pyarrow.parquet  # type: ignore[import-untyped]

    # Without pre_buffer=False a thread of pyarrow reads from the Python file, and may do so while Python exits.
    return pyarrow.parquet.ParquetFile(handle, pre_buffer=False)


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

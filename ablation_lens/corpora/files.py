"""Files as bytes and lines: found in one order everywhere, decompressed, decoded as UTF-8."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ablation_lens.corpora.options import Errors
from ablation_lens.errors import CorpusError

COMPRESSIONS = (".gz", ".zst")


def find_files(root: Path) -> list[PurePosixPath]:
    """Every file below a folder, relative to it, sorted by the bytes of its path.

    Names that begin with a dot are left out. Links are followed, except into a folder that they lie in.
    """
    found: list[PurePosixPath] = []

    def walk(folder: Path, above: frozenset[tuple[int, int]]) -> None:
        status = folder.stat()
        # Not by path: a linked folder has a longer path on every round, so a circle would not be noticed.
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        for name in os.listdir(folder):
            path = folder / name
            if name.startswith("."):
                continue
            if path.is_dir():
                # Only the folders above count: two links to one folder are both read.
                walk(path, above | {here})
            else:
                # A dangling link, too: it stops the reading later, as a corpus that lacks a file is another corpus.
                found.append(PurePosixPath(path.relative_to(root).as_posix()))

    try:
        walk(root, frozenset())
    except OSError as error:
        raise _unreadable(Path(error.filename or root), error) from error
    return sorted(found, key=path_key)


def path_key(file: PurePosixPath) -> bytes:
    """What files are sorted by: the bytes of the POSIX path, whatever the locale says."""
    # A name that is not UTF-8 holds lone surrogates (as `os.listdir` gives it), which a strict encoder refuses.
    return str(file).encode("utf-8", "surrogateescape")


def printable(file: PurePosixPath) -> str:
    """A path as text that can be stored and shown, even when its name is not valid UTF-8."""
    return path_key(file).decode("utf-8", "backslashreplace")


def _unreadable(path: Path, error: Exception) -> CorpusError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return CorpusError(f"{printable(PurePosixPath(path))} cannot be read ({why}); mend it, or leave it out.")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed when its name ends in `.gz` or `.zst`.

    What goes wrong while it is open — a missing right, a truncated archive — becomes a `CorpusError`.
    """
    import zstandard

    # The `yield`s are inside: most damage shows only while the file is read.
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as archive:
                yield cast(BinaryIO, archive)
        elif path.suffix == ".zst":
            with path.open("rb") as compressed, io.BufferedReader(_Zstandard(compressed), 1 << 17) as stream:
                yield stream
        else:
            with path.open("rb") as handle:
                yield handle
    # A truncated gzip file is an EOFError and damaged data a zlib.error; neither is an OSError.
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise _unreadable(path, error) from error


class _Zstandard(io.RawIOBase):
    """Decompressed Zstandard frames. The library's own reader takes a truncated frame for the end of the file."""

    # One chunk of hostile input expands to tens of megabytes at most.
    _CHUNK = 1 << 13

    def __init__(self, compressed: BinaryIO) -> None:
        import zstandard

        self._compressed = compressed
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._rest = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # Until there are bytes: a chunk may decompress to none yet, and 0 would mean the end of the file.
        while not self._ready:
            chunk = self._rest or self._compressed.read(self._CHUNK)
            self._rest = b""
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the Zstandard stream is truncated")
                return 0
            # A file may be several frames, and one `decompressobj` stops at the end of its frame.
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(chunk))
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        # `_ready` is a view: slicing bytes would copy the whole rest on every read.
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def lines(path: Path, errors: Errors) -> Iterator[str]:
    r"""The lines of a UTF-8 text file, without their ends, whether written as ``\n``, ``\r\n`` or ``\r``.

    A byte order mark is dropped. Only these end a line: ``str.splitlines`` would also cut at form feeds and
    U+2028, which stand inside texts and inside JSON strings.

    Raises:
        CorpusError: at the first byte that is not UTF-8, unless `errors` is "replace" (by U+FFFD).
    """
    offset = 0
    with opened(path) as handle:
        for raw in handle:
            try:
                # Line by line is safe: in UTF-8 the byte 0x0A is never a part of another character.
                # Not "utf-8-sig", which would drop a mark from the start of every line.
                text = raw.decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise CorpusError(_not_utf8(path, raw, error, offset)) from error
            if not offset:
                text = text.removeprefix("\ufeff")
            offset += len(raw)
            # A file with only ``\r`` at its line ends comes as one raw line, and is cut here.
            yield from text.removesuffix("\n").removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _not_utf8(path: Path, raw: bytes, error: UnicodeDecodeError, offset: int) -> str:
    encoding = "it looks like UTF-16; " if not offset and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    where = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
    return (
        f"{printable(PurePosixPath(path))} is not UTF-8 text: {where}; "
        f"{encoding}convert it, or pass errors='replace' to put U+FFFD there."
    )

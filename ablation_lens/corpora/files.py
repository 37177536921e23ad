"""Files as bytes and lines: found in one order everywhere, decompressed, decoded as UTF-8.

What is held of a file at any time has a bound, however large it is or becomes once it is decompressed.
"""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ablation_lens.corpora.options import Errors
from ablation_lens.corpora.pipes import pipe_at
from ablation_lens.errors import CorpusError
from ablation_lens.files import require_readable

COMPRESSIONS = (".gz", ".zst")

PIECE = 1 << 20
"""Bytes of a line that are read at once."""

# Thirty folders with two links each to the next are a thousand million paths.
_MOST_LINKS = 10_000


def find_files(root: Path) -> list[PurePosixPath]:
    """Every file below a folder, relative to it, sorted by the bytes of its path.

    Names that begin with a dot are left out. Links are followed, except into a folder that they lie in.
    """
    found: list[PurePosixPath] = []
    links = 0
    # Not by recursion, which ends at a thousand folders inside each other.
    left: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    try:
        while left:
            folder, above = left.pop()
            status = folder.stat()
            # Not by path: a linked folder has a longer path on every round, so a circle would not be noticed.
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            for name in os.listdir(folder):
                path = folder / name
                if name.startswith("."):
                    continue
                if path.is_dir():
                    links += path.is_symlink()
                    # Only the folders above count: two links to one folder are both read.
                    left.append((path, above | {here}))
                else:
                    # A dangling link, too: it stops the reading later, as a corpus that lacks a file is another corpus.
                    found.append(PurePosixPath(path.relative_to(root).as_posix()))
            if links > _MOST_LINKS:
                raise CorpusError(
                    f"{root} leads through more than {_MOST_LINKS:,} links to folders; give a folder without them."
                )
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


def require_file(path: Path) -> None:
    """Refuse what cannot be read as a file, before it is opened: a device, a pipe that nobody may write to."""
    if pipe_at(path) is None:
        require_readable(path, error=CorpusError)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file's bytes, decompressed when its name ends in `.gz` or `.zst`. A pipe from the shell is a file, too.

    What goes wrong while it is open — a missing right, a truncated archive — becomes a `CorpusError`.
    """
    import zstandard

    require_file(path)
    # The `yield` is inside: most damage shows only while the file is read.
    try:
        with _open(path) as handle:
            yield handle
    # A truncated gzip file is an EOFError and damaged data a zlib.error; neither is an OSError.
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> io.BufferedReader:
    handle: Any
    if (pipe := pipe_at(path)) is not None:
        handle = pipe.open()
    elif path.suffix == ".gz":
        handle = gzip.open(path)  # noqa: SIM115  (the caller closes it)
    elif path.suffix == ".zst":
        handle = io.BufferedReader(_Zstandard(path.open("rb")), 1 << 17)
    else:
        handle = path.open("rb")
    return cast(io.BufferedReader, handle)


class _Zstandard(io.RawIOBase):
    """Decompressed Zstandard frames. The library's own reader takes a truncated frame for the end of the file."""

    # Four bytes may expand to 128 kB: what one chunk of a hostile file becomes stays below ten megabytes.
    _CHUNK = 1 << 8

    def __init__(self, compressed: io.BufferedReader) -> None:
        import zstandard

        self._compressed = compressed
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._rest = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._compressed.close()
        super().close()

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


_START = 1 << 12


def zero_byte(handle: io.BufferedReader) -> int | None:
    """Where a zero byte stands in the start of a file: text in UTF-8 has none, and text in UTF-16 is full of them."""
    found = handle.peek(_START)[:_START].find(b"\0")
    return None if found < 0 else found


def pieces_of(path: Path, errors: Errors, *, by_line: bool = True) -> Iterator[str]:
    r"""The text of a UTF-8 file, piece by piece, its line ends as ``\n``, whether written so or as ``\r\n`` or ``\r``.

    By line, a piece is a line with its end, or a part of one that has more than `PIECE` bytes, or a run of blank lines.
    Only these ends end a line: ``str.splitlines`` would also cut at form feeds and U+2028, which stand inside texts
    and inside JSON strings. A byte order mark is dropped.

    Raises:
        CorpusError: at the first byte that is not UTF-8 or at a zero byte in the start, unless `errors` is "replace"
            (by U+FFFD).
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    data, offset, first, line_begins = b"", 0, True, True
    with opened(path) as handle:
        if errors == "strict" and (zero := zero_byte(handle)) is not None:
            raise CorpusError(
                f"{printable(PurePosixPath(path))} is not UTF-8 text: byte 0x00 at offset {zero}; "
                f"{_utf16(handle.peek(2))}convert it, or leave it out."
            )
        ended = False
        while not ended:
            # Not as much as there is: a bad byte in a line that nobody asked for is nobody's business.
            raw = handle.readline(PIECE) if by_line else handle.read(PIECE)
            blank_line = line_begins and raw in (b"\n", b"\r\n")
            if by_line and blank_line:
                raw += handle.read(_blank_lines(handle.peek(1)))
            ended, line_begins = not raw, raw.endswith(b"\n")
            data += raw
            try:
                # Not "utf-8-sig", which would move the offset in its error.
                text, used = codecs.utf_8_decode(data, errors, ended)
            except UnicodeDecodeError as error:
                raise CorpusError(_not_utf8(path, error, offset)) from error
            data, offset = data[used:], offset + used  # the rest: half of a character
            text = newlines.decode(text, ended)
            if first:
                text, first = text.removeprefix("\ufeff"), False
            # A file with only ``\r`` at its line ends comes as one raw line, and is cut here.
            if by_line and not blank_line and text.find("\n", 0, -1) >= 0:
                yield from io.StringIO(text)
            elif text:
                yield text


def _blank_lines(ahead: bytes) -> int:
    """The bytes of the blank lines that come next: one by one, a file of nothing else would take an hour."""
    blank = len(ahead) - len(ahead.lstrip())
    return ahead.rfind(b"\n", 0, blank) + 1


def _utf16(start: bytes) -> str:
    return "it looks like UTF-16; " if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ""


def _not_utf8(path: Path, error: UnicodeDecodeError, offset: int) -> str:
    encoding = "" if offset else _utf16(error.object)
    where = f"byte 0x{error.object[error.start]:02x} at offset {offset + error.start}"
    return (
        f"{printable(PurePosixPath(path))} is not UTF-8 text: {where}; "
        f"{encoding}convert it, or pass errors='replace' to put U+FFFD there."
    )

"""Pipes lose nothing; what is not a file is refused before it is opened."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from ablation_lens.corpora import TextDocument, open_corpus
from ablation_lens.corpora.pipes import Pipe
from ablation_lens.errors import CorpusError

TEXT = "".join(f"Paragraph {number}, and how it goes on.\n\n" for number in range(5_000)).encode()


@contextlib.contextmanager
def pipe_of(content: bytes) -> Iterator[str]:
    """The path of a pipe that somebody writes to, as a shell makes one for `<(…)`."""
    reads, writes = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writes, "wb") as file:
            file.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    yield f"/dev/fd/{reads}"
    os.close(reads)
    writer.join()


def documents(path: str | Path, **options: object) -> list[tuple[str, str]]:
    # The ids without the name of the file.
    found = []
    for document in open_corpus(path, **options):
        assert isinstance(document, TextDocument)
        found.append((document.id.split("#")[-1], document.text))
    return found


@pytest.mark.parametrize("content", [TEXT, b"a short text", b"\xef\xbb\xbfone\r\n\r\ntwo\rand three\r", TEXT * 10])
def test_a_pipe_is_read_from_its_first_byte(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pipe_of(content) as path:
        assert documents(path) == documents(tmp_path / "a.txt")


def test_a_pipe_is_read_as_often_as_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    expected = {split: documents(tmp_path / "a.txt", split=split) for split in ("all", "collect", "evaluate")}
    with pipe_of(TEXT) as path:
        corpus = open_corpus(path)
        halfway = iter(corpus)
        first = next(halfway)
        assert len(list(corpus)) == 5_000
        for split, found in expected.items():
            assert documents(path, split=split) == found  # opened anew, as each model of a study does
        assert [first, *halfway] == list(corpus)
        digests = []
        for same in (corpus, open_corpus(tmp_path / "a.txt")):
            reading = iter(same)
            assert len(list(reading)) == 5_000
            digests.append(reading.digest)
        assert digests[0] == digests[1]


def test_an_endless_pipe_is_read_as_far_as_asked() -> None:
    reads, writes = os.pipe()
    with subprocess.Popen(["yes", "A paragraph.\n"], stdout=writes) as endless:
        os.close(writes)
        reading = iter(open_corpus(f"/dev/fd/{reads}"))
        assert [next(reading).id for _ in range(3)] == [f"{reads}#1", f"{reads}#2", f"{reads}#3"]
        os.close(reads)
        endless.kill()


def test_a_pipe_is_kept_up_to_a_limit() -> None:
    reads, writes = os.pipe()
    pipe = Pipe(reads, "/dev/fd/3", most=1_000)
    os.write(writes, b"x" * 1_001)
    os.close(writes)
    with pytest.raises(CorpusError, match=r"/dev/fd/3 is a pipe that gave more than 1,000 bytes.*write it to a file"):
        pipe.open().read()
    os.close(reads)


SCRIPT = """
import sys
from ablation_lens.corpora import open_corpus
for _ in range(2):
    reading = iter(open_corpus(sys.argv[1]))
    print(len(list(reading)), reading.digest)
"""


@pytest.mark.parametrize("name", ["/dev/stdin", "/proc/self/fd/0", "/dev/fd/0"])
def test_standard_input(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    command = [sys.executable, "-c", SCRIPT]
    expected = subprocess.run([*command, str(tmp_path / "a.txt")], capture_output=True, check=True).stdout
    assert subprocess.run([*command, name], input=TEXT, capture_output=True, check=True).stdout == expected
    with (tmp_path / "a.txt").open("rb") as file:  # `< a.txt`
        assert subprocess.run([*command, name], stdin=file, capture_output=True, check=True).stdout == expected


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listener(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # the name of a socket must be short
        made.bind(path.name)


def loop(path: Path) -> None:
    path.symlink_to(path)


OTHERS = [(fifo, "is a pipe"), (device, "is a device"), (listener, "is a socket"), (loop, "cannot be read")]
NAMES = ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst", "a.parquet", "a.png", "a"]


@pytest.mark.parametrize(("make", "said"), OTHERS, ids=["pipe", "device", "socket", "loop"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_file_is_refused_by_its_kind(
    tmp_path: Path, name: str, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(CorpusError, match=rf"{name}.* {said}"):
        open_corpus(tmp_path / name)
    if name != "a":  # in a folder, a file of no known sort is not looked at
        with pytest.raises(CorpusError, match=rf"{name}.* {said}"):
            list(open_corpus(tmp_path))


@pytest.mark.parametrize(("make", "said"), [*OTHERS, (Path.mkdir, "is a folder")])
def test_a_labels_file_that_is_not_one(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    make(tmp_path / "labels.csv")
    with pytest.raises(CorpusError, match=rf"labels\.csv.* {said}"):
        open_corpus(tmp_path, labels=tmp_path / "labels.csv")


def test_labels_through_a_pipe(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pipe_of(b"file,label\na.png,1\n") as path:
        for _ in range(2):
            (document,) = open_corpus(tmp_path, labels=path)
            assert document.label == 1


def test_a_terminal_is_not_a_corpus() -> None:
    keyboard, terminal = os.openpty()
    command = [sys.executable, "-c", SCRIPT, "/dev/stdin"]
    run = subprocess.run(command, stdin=terminal, capture_output=True, text=True, timeout=60)
    assert "CorpusError: /dev/stdin is a device; a file was expected." in run.stderr
    os.close(keyboard)
    os.close(terminal)


@pytest.mark.parametrize("name", ["a" * 5_000, "~nobody-of-that-name/a.txt", "a\0b", "a\0b/c.txt", "\ud800.txt"])
def test_what_cannot_be_a_path(name: str) -> None:
    with pytest.raises(CorpusError):
        open_corpus(name)


def test_text_that_begins_with_zero_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Without a byte order mark, UTF-16 is UTF-8 with zero bytes.".encode("utf-16-le"))
    with pytest.raises(CorpusError, match=r"a\.txt is not UTF-8 text: byte 0x00 at offset 1"):
        list(open_corpus(path))
    assert documents(path, errors="replace")[0][1].startswith("W\0i\0")
    path.write_bytes(b"text " * 1_000 + b"\0")  # one that came in later is a character
    assert documents(path) == [("1", "text " * 1_000 + "\0")]

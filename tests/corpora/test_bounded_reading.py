"""Memory stays within a bound, whatever a file holds or becomes; and what is cut changes no plan."""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from PIL import Image

import ablation_lens as al
from ablation_lens.corpora import TextDocument, images, open_corpus
from ablation_lens.corpora.documents import TEXT_LIMIT, UnreadableImage
from ablation_lens.errors import CorpusError
from ablation_lens.tasks.tasks import CausalLM

MILLION = 1_000_000

READER = """
import json, os, resource, sys, warnings
warnings.simplefilter("ignore")
import datasets, numpy, pyarrow.parquet, zstandard, PIL.PngImagePlugin
from ablation_lens.corpora import open_corpus
from ablation_lens.errors import CorpusError

def facts(document):
    return [len(document.text), document.cut] if hasattr(document, "text") else list(document.image.size)

for line in sys.stdin:
    path, megabytes, options = json.loads(line)
    if os.fork() == 0:
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        limit = taken + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            said = json.dumps([facts(document) for document in open_corpus(path, **options)])
        except CorpusError as error:
            said = str(error)
        except MemoryError:
            said = "out of memory"
        print(said, flush=True)
        os._exit(0)
    os.wait()
    print(flush=True)
"""


@pytest.fixture(scope="module")
def reader() -> Iterator[subprocess.Popen[str]]:
    """A process that reads each corpus in a copy of itself: all that is needed is imported once."""
    # One arena: glibc reserves the address space of another for every thread.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", READER], **pipes) as process:
        yield process
        process.stdin.close()


Read = Callable[..., str]


@pytest.fixture
def read_within(reader: subprocess.Popen[str]) -> Read:
    """What a process with so many megabytes to spare makes of a corpus."""

    def read(megabytes: int, path: Path, **options: object) -> str:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(json.dumps([str(path), megabytes, options]) + "\n")
        reader.stdin.flush()
        said = reader.stdout.readline()
        if said.strip():
            reader.stdout.readline()
        return said.strip()

    return read


@pytest.mark.parametrize("block", ["file", "paragraph", "line"])
def test_a_line_without_an_end(read_within: Read, tmp_path: Path, block: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * 10_000_000)
    assert read_within(48, path, block=block) == f"[[{MILLION}, true]]"


def test_a_line_of_json_without_an_end(read_within: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "short"}\n{"text": "' + b"word " * 10_000_000)
    assert "line 2 of" in (said := read_within(96, path))
    assert "more than 33,554,432 characters" in said


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize(
    ("letter", "name", "said"),
    [
        (b"a", "a.txt", f"[[{MILLION}, true]]"),
        (b"\n", "a.txt", "no documents (1 were empty"),
        (b"\0", "a.txt", "byte 0x00 at offset 0"),
        (b"[", "a.jsonl", "more than 33,554,432 characters"),
    ],
)
def test_a_small_file_that_becomes_a_large_one(
    read_within: Read, tmp_path: Path, suffix: str, letter: bytes, name: str, said: str
) -> None:
    path = tmp_path / f"{name}.{suffix}"
    content = letter * 100 * MILLION
    path.write_bytes(gzip.compress(content) if suffix == "gz" else zstandard.compress(content, 19))
    assert path.stat().st_size < 200_000
    assert said in read_within(96, path)


def sparse(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(8 << 30)
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.txt", "byte 0x00 at offset 0"),
        ("a.jsonl", "byte 0x00 at offset 0"),
        ("a.txt.gz", "cannot be read"),
        ("a.txt.zst", "cannot be read"),
        ("a.parquet", "cannot be read"),
        ("a", "is of no sort that can be read"),
        ("images/a.png", "0 were empty and 1 could not be decoded"),
    ],
)
def test_a_file_of_nothing_but_a_size(read_within: Read, tmp_path: Path, name: str, said: str) -> None:
    path = sparse(tmp_path / name)
    assert said in read_within(96, path.parent if path.suffix == ".png" else path)


def test_a_labels_file_of_nothing_but_a_size(read_within: Read, tmp_path: Path) -> None:
    path = sparse(tmp_path / "labels.csv")
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    assert "more than 67,108,864 bytes" in read_within(192, tmp_path, labels=str(path))


def test_an_image_of_too_many_pixels_is_not_decoded(read_within: Read, tmp_path: Path) -> None:
    Image.new("1", (9_999, 10_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 20_000
    assert "1 could not be decoded" in read_within(48, tmp_path)


@pytest.mark.slow
def test_the_largest_image_that_is_read_takes_less_than_a_gigabyte(read_within: Read, tmp_path: Path) -> None:
    assert images.PIXEL_LIMIT == 8_000**2
    Image.new("LA", (8_000, 8_000), (1, 2)).save(tmp_path / "a.png")
    assert read_within(1_000, tmp_path) == "[[8000, 8000]]"


def test_an_image_in_strips_is_the_same_image() -> None:
    # Higher than one strip, in the modes that are not simply converted; the parts alone are one strip each.
    values = np.random.default_rng(0).integers(0, 256, (11, 100_000, 4), dtype=np.uint8)
    palette = Image.fromarray(values[..., :3]).quantize(16)
    made: list[tuple[Image.Image, dict[str, object]]] = [
        (Image.fromarray(values), {}),
        (Image.fromarray(values[..., 0].astype(np.uint16) * 250), {}),
        (palette, {"transparency": 3}),
    ]
    for image, options in made:
        whole, *parts = [
            np.asarray(images.decode(encoded(image.crop((0, top, 100_000, bottom)), **options)))
            for top, bottom in ((0, 11), (0, 10), (10, 11))
        ]
        assert np.array_equal(whole, np.concatenate(parts))


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, **options)
    return buffer.getvalue()


def test_an_image_of_too_many_bytes_is_unreadable() -> None:
    with pytest.raises(UnreadableImage, match="it has 257,048,577 bytes"):
        images.decode(bytes(images.BYTE_LIMIT + 1))


def test_a_parquet_file_that_is_a_bomb(read_within: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"n": [1, 2], "text": ["short", "a" * 270 * MILLION]})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    assert "a group of rows in a.parquet, a file of" in read_within(300, path)


def test_a_parquet_file_of_one_group_of_rows_is_read_page_by_page(read_within: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    letters = np.random.default_rng(0).integers(97, 123, 120 * MILLION, dtype=np.uint8).tobytes().decode()
    texts = [letters[start : start + 10_000] for start in range(0, len(letters), 10_000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="none", use_dictionary=False)
    assert read_within(100, path).count("[10000, false]") == 12_000


def test_a_dictionary_of_one_long_text_is_not_multiplied(read_within: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["z" * 3 * MILLION] * 40}), path, compression="zstd")
    assert read_within(60, path).count(f"[{MILLION}, true]") == 40


def test_rows_of_ever_other_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ({f"{row}.{field}": 1 for field in range(1_000)} for row in range(20))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CorpusError, match=r"row a\.jsonl:11 .* more than 10,000 names of fields"):
        open_corpus(path)


def test_many_columns_are_not_all_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({f"{field}{'x' * 1_000}": 1 for field in range(1_000)}))
    with pytest.raises(CorpusError, match=r"has no text column") as caught:
        open_corpus(path)
    assert len(str(caught.value)) < 4_000


@pytest.fixture
def deep_folder(tmp_path: Path) -> Iterator[Path]:
    """1500 folders inside each other and a text in the last one, removed by what can: pytest cannot."""
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1_500):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    with os.fdopen(os.open("a.txt", os.O_CREAT | os.O_WRONLY, dir_fd=folder), "w") as file:
        file.write("Deep.")
    os.close(folder)
    yield tmp_path
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


def test_folders_deep_inside_each_other(deep_folder: Path) -> None:
    assert [document.id for document in open_corpus(deep_folder)] == ["d/" * 1_500 + "a.txt"]


def test_links_that_multiply_are_refused(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        for link in "ab":
            (tmp_path / f"{number}" / link).symlink_to(tmp_path / f"{number + 1}")
    (tmp_path / "20").mkdir()
    with pytest.raises(CorpusError, match="more than 10,000 links to folders"):
        open_corpus(tmp_path)


# What is cut changes no plan


def long_texts() -> list[str]:
    return ["\n".join(f"Line {line} of text {n}." for line in range(50_000 if n == 2 else 20)) for n in range(8)]


@pytest.fixture(scope="module")
def long_corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("long")
    text, rows, files = folder / "a.txt", folder / "a.jsonl", folder / "files"
    text.write_text("\n\n".join(long_texts()))
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in long_texts()))
    files.mkdir()
    for number, content in enumerate(long_texts()):
        (files / f"{number}.txt").write_text(content)
    return [text, rows, files]


def test_a_plan_is_that_of_whole_texts(long_corpora: list[Path]) -> None:
    # The digest of the time when texts were held as wholes; the long one falls into this split.
    plan = al.task_for(al.load_model("tiny-opt"), str(long_corpora[0])).batches(split="evaluate")
    assert plan.digest == "11cd5048885f457b"


def test_cut_texts_are_the_same_in_every_kind_of_file(long_corpora: list[Path]) -> None:
    for split in ("collect", "evaluate"):
        readings = [iter(open_corpus(path, split=split)) for path in long_corpora]
        assert len({(len(list(reading)), reading.digest) for reading in readings}) == 1


def test_a_long_text_is_cut_and_says_so(long_corpora: list[Path]) -> None:
    for path in long_corpora:
        documents = [document for document in open_corpus(path) if isinstance(document, TextDocument)]
        assert [document.text for document in documents] == [text[:TEXT_LIMIT] for text in long_texts()]
        assert [document.cut for document in documents] == [len(text) > TEXT_LIMIT for text in long_texts()]


def test_texts_that_differ_after_the_cut_are_other_texts(tmp_path: Path) -> None:
    digests, splits = set(), set()
    for ending in map(str, range(10)):
        (tmp_path / "a.txt").write_text("a" * TEXT_LIMIT + ending)
        reading = iter(open_corpus(tmp_path / "a.txt"))
        assert len(list(reading)) == 1
        digests.add(reading.digest)
        for split in ("collect", "evaluate"):
            try:
                list(open_corpus(tmp_path / "a.txt", split=split))
            except CorpusError:
                continue
            splits.add(split)
    assert len(digests) == 10
    assert splits == {"collect", "evaluate"}


def test_a_text_of_exactly_the_limit_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * TEXT_LIMIT + "\n")
    (document,) = open_corpus(tmp_path / "a.txt")
    assert isinstance(document, TextDocument)
    assert (len(document.text), document.cut) == (TEXT_LIMIT, False)


def test_a_cut_text_that_does_not_fill_the_context_is_refused(tmp_path: Path) -> None:
    class Word:
        """A tokenizer to which any text is one token."""

        pad_token_id = None

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [1, 2], "special_tokens_mask": [0, 0]}

    (tmp_path / "a.txt").write_text(" " * TEXT_LIMIT + "word")
    corpus = open_corpus(tmp_path / "a.txt", block="line")
    task = CausalLM(corpus=corpus, tokenizer=Word(), max_context=2)
    assert task.batches(split="all").size == 2
    with pytest.raises(CorpusError, match=r"a\.txt#1 .* 2 tokens .* 3"):
        CausalLM(corpus=corpus, tokenizer=Word(), max_context=3).batches(split="all")

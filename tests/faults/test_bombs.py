"""Small files that become large, and large ones: read in bounded memory, or refused in one sentence."""

import gzip
import json
import shutil
import struct
import zlib

import pytest
import zstandard

import ablation_lens as al
from ablation_lens.corpora import open_corpus
from ablation_lens.study.study import Study
from tests.faults.tally import bounded, reads_or_says

ROOM = 400 << 20
"""Bytes an attempt may take: what reading anything may need, and far less than what these files would."""


@pytest.fixture
def attempt(tally):
    return tally("bombs", room=ROOM).attempt


def squeezed(kind, path, megabytes):
    """A stream of one letter."""
    million = b"a" * 1_000_000
    with {"gz": gzip, "zst": zstandard}[kind].open(path, "wb") as file:
        for _ in range(megabytes):
            file.write(million)


def texts(path):
    """How many documents, and the letters of the longest: read one after another, as plans do."""
    lengths = [len(document.text) for document in open_corpus(path)]
    return len(lengths), max(lengths)


def image_bomb(path, side):
    """A PNG of a few kilobytes that claims side × side pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compressobj(9)
    content = b"".join(rows.compress(bytes(side * 3 + 1)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def test_texts(tmp_path, size, attempt):
    for kind in ("gz", "zst"):
        squeezed(kind, tmp_path / f"a.txt.{kind}", 300 if size == 1 else 1500)
    (tmp_path / "line.txt").write_bytes(b"word " * 4_000_000)
    (tmp_path / "letters.txt").write_bytes(b"a" * 20_000_000)
    with (tmp_path / "zeros.txt").open("wb") as file:
        file.truncate(2**33 if size > 1 else 2**30)
    row = json.dumps({"text": "word " * 4_000_000})
    (tmp_path / "row.jsonl").write_text(f'{{"text": "one"}}\n{row}\n{{"text": "two"}}\n')
    for path in sorted(tmp_path.iterdir()):
        with attempt(path.name, seconds=120):
            found = reads_or_says(lambda path=path: texts(path), path.name)
            assert found is None or found[1] < 5_000_000


def test_images(tmp_path, attempt):
    (tmp_path / "images").mkdir()
    image_bomb(tmp_path / "images" / "bomb.png", 9999)
    with attempt("9999 x 9999 pixels", seconds=60):
        reads_or_says(
            lambda: [image.label for image in open_corpus(tmp_path / "images", kind="image")], "bomb.png", "images"
        )


def test_headers_and_settings(tmp_path, saved, attempt):
    """What is small is small: a header, a config, settings, JSON of a run folder."""
    path = tmp_path / "s.safetensors"
    for name, length, content in (("claimed", 2**62, b""), ("spaces", 200_000_000, b" " * 200_000_000)):
        path.write_bytes(struct.pack("<Q", length) + content)
        for read in (al.ActivationStatistics.load, al.Ablation.load):
            with attempt(f"a header of {name} bytes"):
                assert reads_or_says(lambda read=read: read(path), path.name) is None
    settings = tmp_path / "study.toml"
    for content in ('models = ["tiny-opt"]\n' + "# more\n" * 20_000_000, "a = " + "[" * 1_000_000):
        settings.write_text(content)
        with attempt("settings"):
            assert reads_or_says(lambda: Study.from_toml(settings), settings.name) is None
    folder = shutil.copytree(saved("opt"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for change in ({"num_hidden_layers": 100_000}, {"vocab_size": 2**31}, {"ffn_dim": 2**40}, {"hidden_size": 2**30}):
        (folder / "config.json").write_text(json.dumps(config | change))
        with attempt(f"{change}", seconds=20):
            assert reads_or_says(lambda: al.load_model(folder, device="cpu"), "model", "config.json") is None
    (folder / "config.json").write_text(json.dumps(config) + " " * 300_000_000)
    with attempt("a long config", seconds=20):
        assert reads_or_says(lambda: al.load_model(folder, device="cpu"), "model", "config.json") is None


def test_the_limit_is_a_limit():
    with pytest.raises(MemoryError), bounded(1 << 28):
        bytearray(1 << 30)

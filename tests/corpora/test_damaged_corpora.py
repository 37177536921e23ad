"""A damaged or forged corpus is read or is one clear error, never another exception, and its reading ends."""

import gzip
import io
import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from PIL import Image

from ablation_lens.corpora import ImageDocument, open_corpus
from ablation_lens.errors import AblationLensError, CorpusError

ANIMALS = {0: "tench, Tinca tinca", 1: "goldfish", 2: "great white shark"}

LINES = "".join(json.dumps({"text": f"Text {n}: é \U0001f600", "n": n, "more": [{"a": None}]}) + "\n" for n in range(9))
TEXT = "One.\r\n\r\nTwo, and é.\n\n\U0001f600\n".encode()


def parquet(**columns: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, row_group_size=4, compression="zstd")
    return buffer.getvalue()


def picture(format_: str, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, format_)
    return buffer.getvalue()


def pictures() -> bytes:
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    cells = [{"bytes": picture("PNG", seed), "path": None} for seed in range(3)]
    buffer = io.BytesIO()
    datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 1]}, features=features).to_parquet(buffer)
    return buffer.getvalue()


VICTIMS: dict[str, Callable[[], bytes]] = {
    "a.txt": lambda: TEXT,
    "a.txt.gz": lambda: gzip.compress(TEXT),
    "a.txt.zst": lambda: zstandard.compress(TEXT),
    "a.jsonl": LINES.encode,
    "a.jsonl.gz": lambda: gzip.compress(LINES.encode()),
    "a.jsonl.zst": lambda: zstandard.compress(LINES.encode()),
    "a.parquet": lambda: parquet(text=["one", None, "three"] * 3, n=list(range(9))),
    "images.parquet": pictures,
    "a.png": lambda: picture("PNG"),
    "a.jpg": lambda: picture("JPEG"),
    "a.gif": lambda: picture("GIF"),
    "a.tif": lambda: picture("TIFF"),
    "a.webp": lambda: picture("WEBP"),
    "a.bmp": lambda: picture("BMP"),
    "a.ppm": lambda: picture("PPM"),
    "labels.csv": lambda: b'file,label\nsound,"tench, Tinca tinca"\nb,goldfish\nc,2\n',
    "list.txt": lambda: b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
}


IMAGES = (".png", ".jpg", ".gif", ".tif", ".webp", ".bmp", ".ppm")


def mutated(content: bytes, dice: random.Random) -> bytes:
    """One to four small injuries."""
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(content) + 1)
        upto = min(len(content), at + dice.choice([1, 1, 2, 8, 100]))
        change = dice.randrange(6)
        if change == 0:
            content = content[:at]
        elif change == 1:
            content = content[:at] + content[upto:]
        elif change == 2:
            content = content[:at] + content[at:upto] * dice.choice([2, 2, 50]) + content[upto:]
        elif change == 3:
            content = content[:at] + dice.randbytes(upto - at) + content[upto:]
        elif change == 4:
            words = [b"\0", b"\xff" * 4, b'"', b"[" * 2_000, b"\\ud800", b"\n", b"-1", b"NaN", b"true", b"9" * 5_000]
            content = content[:at] + dice.choice(words) + content[at:]
        elif at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
    return content


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("a corpus was not read to its end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def attack(name: str, folder: Path, attempts: int, seed: int) -> int:
    """How many mutants of a file are refused; the others are read. What is neither is not caught here."""
    dice = random.Random(f"{name} {seed}")
    path, whole = folder / name, VICTIMS[name]()
    (folder / "n01440764").mkdir()
    Image.new("L", (2, 2)).save(folder / "n01440764" / "sound.png")
    said: list[str] = []
    for attempt in range(attempts + 1):
        path.write_bytes(mutated(whole, dice) if attempt else whole)
        image = name.endswith(IMAGES)
        labels = path if name in ("labels.csv", "list.txt") else None
        options: dict[str, Any] = {"errors": dice.choice(["strict", "replace"])} if ".txt" in name else {}
        if name == "images.parquet":
            options = {"id2label": {0: "a", 1: "b"}} if dice.random() < 0.5 else {}
        if labels is not None:
            options = {"labels": labels, "id2label": ANIMALS, "kind": "image"}
        try:
            for document in open_corpus(folder if image or labels else path, **options):
                assert document.id
        except AblationLensError as error:
            assert attempt > 0
            said.append(str(error))
    assert all(sentence.isprintable() and len(sentence) < 3_000 for sentence in said)
    return len(said)


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.filterwarnings("ignore::ablation_lens.corpora.CorruptImageWarning")
@pytest.mark.parametrize("attempts", [200, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", VICTIMS)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path: Path, name: str, attempts: int) -> None:
    refused = attack(name, tmp_path, attempts, seed=attempts)
    # A text stays a text unless its bytes are no longer UTF-8, and an image is skipped, not refused.
    assert refused > 0 or name.endswith(IMAGES)


NESTED = b'{"text": ' + b"[" * 1_000 + b"]" * 1_000 + b"}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NESTED, r"'text' of row a\.jsonl:3 .* is of type list|line 3 of .* is not JSON"),
        (b'{"text": ' + b"[" * 100_000 + b"}", r"line 3 of .*a\.jsonl is not JSON \(maximum recursion depth"),
        (b'{"text": {"text": "x"}}', r"'text' of row a\.jsonl:3 .* is of type dict, expected text"),
        (b'{"text": true}', r"'text' of row a\.jsonl:3 .* is of type bool, expected text"),
        (b'{"text": NaN}', r"'text' of row a\.jsonl:3 .* is of type float, expected text"),
        (b'{"text": ' + b"9" * 10_000 + b"}", r"line 3 of .*a\.jsonl is not JSON"),
        (b'{"text": "\\udc80"}', r"row a\.jsonl:3 .* half of a surrogate pair"),
        (b'{"text": "a\0b"}', r"a\.jsonl is not UTF-8 text: byte 0x00 at offset 29"),
        (b'{"text": "a\x01b"}', r"line 3 of .*a\.jsonl is not JSON \(Invalid control character"),
        (b"null", r"line 3 of .*a\.jsonl is a JSON NoneType"),
        (b"\xff", r"a\.jsonl is not UTF-8 text: byte 0xff at offset 18"),
    ],
)
def test_a_forged_row_is_named_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    # The line counts with the blank ones before it.
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + content + b"\n")
    with pytest.raises(CorpusError, match=message):
        list(open_corpus(tmp_path / "a.jsonl"))


def test_fields_with_half_a_surrogate_pair_are_not_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"\\ud800": "x", "n": 3}\n')
    with pytest.raises(CorpusError, match=r"has no text column.*'n' \(number\)"):
        open_corpus(tmp_path / "a.jsonl")


def with_labels(path: Path, labels: object) -> Path:
    count = len(labels)  # type: ignore[arg-type]
    table = {"image": [{"bytes": picture("PNG"), "path": None}] * count, "label": labels}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return path


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([[1, 2]], r"\[1, 2\]"),
        ([{"id": 1}], r"\{'id': 1\}"),
        ([True], "True"),
        ([1.0], r"1\.0"),
        ([None], "None"),
        ([b"goldfish"], "b'goldfish'"),
        ([7], "7"),
        ([["x" * 5_000] * 1_000], r"\['xxx.*\.\.\.\]"),
    ],
)
def test_a_label_of_another_type_is_one_sentence(tmp_path: Path, labels: list[Any], shown: str) -> None:
    path = with_labels(tmp_path / "a.parquet", labels)
    with pytest.raises(CorpusError, match=rf"row a\.parquet:1 .* has the label {shown}, expected one of") as caught:
        list(open_corpus(path, id2label=ANIMALS, kind="image"))
    assert len(str(caught.value)) < 500


def labels_of(path: Path, names: list[str], id2label: dict[int, str]) -> tuple[list[int | None], str]:
    corpus = open_corpus(with_labels(path, names), id2label=id2label)
    found = [document.label for document in corpus if isinstance(document, ImageDocument)]
    return found, dict(corpus.source.settings)["labels matched by"]


def test_a_column_of_names_is_matched_by_one_rule(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert labels_of(path, ["goldfish", "Tinca_tinca"], ANIMALS) == ([1, 0], "name")
    assert labels_of(path, ["1", "0"], ANIMALS) == ([1, 0], "id")  # and the record says so
    for names in (["goldfish", "0"], ["0", "goldfish"]):
        with pytest.raises(CorpusError, match=r"the column 'label' of .*a\.parquet .* rules are not mixed"):
            labels_of(path, names, ANIMALS)
    # "1" is a class of that name, so "0" cannot be an id.
    with pytest.raises(CorpusError, match="rules are not mixed"):
        labels_of(path, ["1", "0"], {0: "1", 1: "2"})


@pytest.mark.parametrize(
    "features",
    [
        b"{",
        b"[]",
        b"null",
        b'{"info": []}',
        b'{"info": {"features": 3}}',
        b'{"info": {"features": {"text": {"_type": "no such type"}}}}',
        b'{"info": {"features": {"text": {"_type": ["Value"]}}}}',
        b'{"info": {"features": {"text": {"_type": "ClassLabel", "num_classes": 1000000000000}}}}',
        b'{"info": {"features": {"text": {"_type": "ClassLabel", "names": 3}}}}',
        b'{"info": {"features": {"text": {"_type": "ClassLabel", "names_file": "/etc/passwd"}}}}',
        b'{"info": {"features": {"text": {"_type": "ClassLabel", "names": [null, {}]}}}}',
        b'{"info": {"features": {"text": {"_type": "Image"}}}}',
        b'{"info": {"features": ' + b'{"text": ' * 5_000 + b"0" + b"}" * 5_002,
    ],
)
@pytest.mark.parametrize("options", [{}, {"id2label": ANIMALS}, {"kind": "image"}])
def test_a_forged_schema_is_read_or_refused(tmp_path: Path, features: bytes, options: dict[str, Any]) -> None:
    table = pyarrow.table({"text": ["one", "two"]}).replace_schema_metadata({b"huggingface": features})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    try:
        texts = [document.text for document in open_corpus(tmp_path / "a.parquet", **options)]  # type: ignore[union-attr]
    except CorpusError as error:
        texts = str(error)
    assert texts == ["one", "two"] or ("a.parquet" in texts and "passwd" not in texts)


def test_text_in_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    bad = pyarrow.array([b"good", b"caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"a\.parquet in .* broke off after 1 rows \('utf-8' codec"):
        list(open_corpus(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'file,label\na.png,0\nb.png,"x\n', r"labels\.csv is not a CSV file at line 3"),
        (b"a.png," + b"x" * 200_000, r"labels\.csv is not a CSV file at line 1: field larger"),
        (b"file,label\n\na.png,0,1\n", r"row 1 of the labels file .*labels\.csv \(line 3\) has 3 columns"),
        (b"a.png,0\0\n", r"'0\\x00' are not class names or ids"),
        (b"\xff\xfea\0", r"labels\.csv cannot be read as UTF-8"),
        (b"a.png," + b"9" * 100_000 + b"\n", r"1 of the 1 classes in .*labels\.csv cannot be matched"),
    ],
)
def test_a_forged_labels_file_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        open_corpus(tmp_path, labels=tmp_path / "labels.csv", id2label=ANIMALS)
    assert len(str(caught.value)) < 1_000


def test_a_class_named_label_is_not_a_header(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,label\n")
    (document,) = open_corpus(tmp_path, labels=tmp_path / "labels.csv", id2label={0: "other", 1: "label"})
    assert isinstance(document, ImageDocument)
    assert document.label == 1


@pytest.mark.parametrize("id2label", [{"one": "tench"}, {None: "tench"}, {"": "tench"}])
def test_class_ids_that_are_not_numbers(tmp_path: Path, id2label: dict[Any, str]) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("a.png,0\n")
    with pytest.raises(CorpusError, match="id2label has a key that is not a number"):
        open_corpus(tmp_path, labels=tmp_path / "labels.csv", id2label=id2label)

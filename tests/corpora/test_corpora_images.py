"""Images: decoding to RGB, folders with labels or without, images inside Parquet."""

import contextlib
import io
import os
import warnings
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ablation_lens.corpora import Corpus, CorruptImageWarning, ImageDocument, images, open_corpus
from ablation_lens.corpora.documents import UnreadableImage
from ablation_lens.errors import CorpusError

ANIMALS = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 2: "great white shark"}


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def photograph(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pixels(content: bytes) -> np.ndarray:
    image = images.decode(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def labels_and_ids(corpus: Corpus) -> list[tuple[int | None, str]]:
    documents = list(corpus)
    assert all(isinstance(document, ImageDocument) for document in documents)
    return [(document.label, document.id) for document in documents if isinstance(document, ImageDocument)]


def folder(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(photograph(number)))
    return root


# Decoding


def test_grey_images_become_rgb() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    assert np.array_equal(pixels(encoded(Image.fromarray(grey))), np.stack([grey] * 3, -1))
    black_and_white = pixels(encoded(Image.fromarray(grey > 100)))
    assert np.array_equal(black_and_white[..., 0], np.where(grey > 100, 255, 0))


@given(st.integers(0, 255), st.integers(0, 255))
def test_transparent_pixels_lie_over_white(value: int, alpha: int) -> None:
    expected = (value * alpha + 255 * (255 - alpha)) / 255
    for mode, colour in (("RGBA", (value, value, value, alpha)), ("LA", (value, alpha))):
        assert np.abs(pixels(encoded(Image.new(mode, (2, 2), colour))) - expected).max() <= 1
    assert np.array_equal(pixels(encoded(Image.new("RGBA", (2, 2), (9, 99, 199, 255))))[0, 0], [9, 99, 199])


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert pixels(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert pixels(encoded(image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format_: str) -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    expected = np.rint(values / 65535 * 255)
    assert np.array_equal(pixels(encoded(Image.fromarray(values), format_))[..., 1], expected)


def test_cmyk_jpegs_become_rgb() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(encoded(red, "JPEG", quality=100)).astype(int) - [255, 0, 0]).max() <= 4


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image = photograph(0, (40, 30))
    upright = pixels(encoded(image, exif=exif))
    assert np.array_equal(upright, np.rot90(np.asarray(image), k=-1))


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("black", "white")]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).max() == 0


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content",
    [
        b"not an image",
        encoded(photograph(1), "JPEG")[:-200],
        encoded(photograph(1), "JPEG")[:20],
        encoded(photograph(1))[:-60],
        encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"),
        POSTSCRIPT,  # which Pillow would hand to Ghostscript
    ],
    ids=["text", "truncated jpeg", "jpeg header", "truncated png", "float tiff", "postscript"],
)
def test_what_is_no_whole_image_is_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableImage):
        images.decode(content)


@given(st.binary(max_size=8), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
def test_damaged_bytes_are_unreadable_or_an_image_but_never_another_error(junk: bytes, at: int, format_: str) -> None:
    content = bytearray(encoded(photograph(2, (8, 8)), format_))
    content[at : at + len(junk)] = junk
    with contextlib.suppress(UnreadableImage):
        assert images.decode(bytes(content)).mode == "RGB"


def test_a_header_that_claims_too_many_pixels_is_refused_undecoded() -> None:
    content = bytearray(encoded(Image.new("1", (8, 8))))
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    with pytest.raises(UnreadableImage, match=r"30000×30000|bomb"):
        images.decode(bytes(content))
    with pytest.raises(UnreadableImage, match="40×30 pixels"):
        images.decode(encoded(photograph(0)), most_pixels=1199)
    assert images.decode(encoded(photograph(0)), most_pixels=1200).size == (40, 30)


# Folders


def test_corrupt_and_empty_files_are_skipped_and_counted(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "c.jpg", "e.png")
    (tmp_path / "b.jpg").write_bytes(encoded(photograph(9), "JPEG")[:-300])
    (tmp_path / "c2.jpg").write_bytes(b"")
    (tmp_path / "d.png").write_bytes(b"no image")
    (tmp_path / "notes.csv").write_text("not looked at")
    corpus = open_corpus(tmp_path)
    reading = iter(corpus)
    with pytest.warns(CorruptImageWarning) as caught:
        found = [document.id for document in reading]
    assert found == ["a.png", "c.jpg", "e.png"]
    assert (reading.documents, reading.corrupt, reading.empty) == (3, 2, 1)
    assert len(caught) == 1
    assert "b.jpg" in str(caught[0].message)
    assert "truncated" in str(caught[0].message)
    assert Path(caught[0].filename) == Path(__file__)
    record = reading.record(size_requested=10, size_obtained=3, unit="images")
    assert (record.documents, record.skipped_corrupt, record.skipped_empty) == (3, 2, 1)


def test_a_folder_of_nothing_but_corrupt_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.warns(CorruptImageWarning), pytest.raises(CorpusError, match=r"no images \(0 were empty and 1 could"):
        list(open_corpus(tmp_path))


def test_splits_go_by_the_files_bytes_and_other_splits_stay_undecoded(tmp_path: Path) -> None:
    folder(tmp_path, *(f"{number}.png" for number in range(30)))
    (tmp_path / "copy.png").write_bytes((tmp_path / "7.png").read_bytes())
    corpus = open_corpus(tmp_path)
    parts = {split: [document.id for document in corpus.restricted_to(split)] for split in corpus.splits}
    assert sorted(parts["collect"] + parts["evaluate"]) == sorted(document.id for document in corpus)
    assert ("copy.png" in parts["collect"]) == ("7.png" in parts["collect"])
    for number in range(20):
        (tmp_path / f"bad{number}.png").write_bytes(b"no image %d" % number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corrupt = 0
        for split in corpus.splits:
            reading = iter(open_corpus(tmp_path, split=split))
            assert [document.id for document in reading] == parts[split]
            corrupt += reading.corrupt
    assert corrupt == 20


def test_classes_are_taken_in_turn_whatever_order_the_files_were_made_in(tmp_path: Path) -> None:
    names = ["b/2.png", "b/1.png", "a/1.png", "c/x/1.png", "b/10.png"]
    expected = ["a/1.png", "b/1.png", "c/x/1.png", "b/10.png", "b/2.png"]
    for order in (names, names[::-1]):
        root = folder(tmp_path / order[0][0], *order)
        assert labels_and_ids(open_corpus(root)) == [(None, name) for name in expected]


def test_a_name_that_is_not_utf8_does_not_stop_the_folder(tmp_path: Path) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    ((_, identity),) = labels_and_ids(open_corpus(tmp_path))
    assert identity == "\\xff.png"


@pytest.mark.parametrize(
    ("classes", "rule"),
    [
        (("tench", "Carassius_auratus", "Great White Shark"), "name"),
        (("0", "1", "2"), "id"),
        (("n01440764-tench", "n01443537_goldfish", "n01484850 great white shark"), "name"),
    ],
)
def test_class_folders_are_matched_to_the_model(tmp_path: Path, classes: tuple[str, ...], rule: str) -> None:
    folder(tmp_path, *(f"{name}/{name}.png" for name in classes))
    corpus = open_corpus(tmp_path, id2label=ANIMALS)
    assert sorted(labels_and_ids(corpus)) == [(number, f"{name}/{name}.png") for number, name in enumerate(classes)]
    assert ("labels matched by", rule) in corpus.source.settings


def test_class_folders_by_wnid(tmp_path: Path) -> None:
    folder(tmp_path, "n01443537/a.png", "n01440764/b.png")
    carried = {0: "n01484850", 1: "n01440764", 2: "n01443537"}
    assert sorted(labels_and_ids(open_corpus(tmp_path, id2label=carried))) == [
        (1, "n01440764/b.png"),
        (2, "n01443537/a.png"),
    ]
    with pytest.raises(
        CorpusError, match=r"ImageNet wnids, which the model's id2label does not carry; give labels=FILE"
    ):
        open_corpus(tmp_path, id2label=ANIMALS)
    listed = tmp_path / "synset_words.txt"
    listed.write_text(
        "n01484850 great white shark\nn01443537 goldfish, Carassius auratus\nn01440764 tench, Tinca tinca\n"
    )
    found = open_corpus(tmp_path, id2label=ANIMALS, labels=listed, kind="image")
    assert sorted(labels_and_ids(found)) == [(0, "n01440764/b.png"), (1, "n01443537/a.png")]


def test_folders_are_never_numbered_alphabetically(tmp_path: Path) -> None:
    folder(tmp_path, "cat/a.png", "dog/b.png")
    with pytest.raises(
        CorpusError, match=r"2 of the 2 classes in .* cannot be matched: 'cat', 'dog' are not class names"
    ):
        open_corpus(tmp_path, id2label=ANIMALS)
    assert labels_and_ids(open_corpus(tmp_path)) == [(None, "cat/a.png"), (None, "dog/b.png")]
    (tmp_path / "loose.png").write_bytes(encoded(photograph(5)))
    with pytest.raises(
        CorpusError, match=r"1 of the 3 images in .* lie in no class folder \(first: loose\.png\).*labels=FILE"
    ):
        open_corpus(tmp_path, id2label=ANIMALS)


def test_a_labels_file_wins_over_folders(tmp_path: Path) -> None:
    folder(tmp_path, "goldfish/a.png", "goldfish/b.png", "c.png")
    table = tmp_path / "labels.csv"
    table.write_text('file,label\ngoldfish/a.png,2\ngoldfish\\b.png,"0"\nc.png,1\n')
    found = open_corpus(tmp_path, labels=table, id2label=ANIMALS)
    assert labels_and_ids(found) == [(1, "c.png"), (2, "goldfish/a.png"), (0, "goldfish/b.png")]
    assert labels_and_ids(open_corpus(tmp_path, labels=table)) == labels_and_ids(found)  # ids need no model
    assert ("labels", str(table)) in found.source.settings
    reading = iter(found)
    relabelled = tmp_path / "other.csv"
    relabelled.write_text("c.png,0\ngoldfish,2\n")
    other = iter(open_corpus(tmp_path, labels=relabelled, id2label=ANIMALS))
    assert [len(list(reading)), len(list(other))] == [3, 3]
    assert reading.digest != other.digest  # other labels are other data


# Images in Parquet


def image_table(path: Path, names: list[str], cells: list[tuple[bytes | None, int]], column: str = "image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({column: datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
    columns = {
        column: [None if content is None else {"bytes": content, "path": None} for content, _ in cells],
        "label": [label for _, label in cells],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    datasets.disable_progress_bars()


def test_images_in_parquet(tmp_path: Path) -> None:
    good = encoded(photograph(1))
    cells = [(good, 1), (b"no image", 0), (None, 0), (encoded(Image.new("L", (3, 3), 7)), 0)]
    path = image_table(tmp_path / "a.parquet", ["goldfish", "tench"], cells)
    corpus = open_corpus(path, id2label=ANIMALS)
    assert corpus.kind == "image"
    reading = iter(corpus)
    with pytest.warns(CorruptImageWarning, match=r"a\.parquet:2"):
        documents = list(reading)
    assert [document.label for document in documents if isinstance(document, ImageDocument)] == [0, 1]
    assert np.array_equal(np.asarray(documents[0].image), pixels(good))
    assert (reading.corrupt, reading.empty) == (1, 1)
    with pytest.raises(CorpusError, match=r"'plaice' are not class names"):
        open_corpus(image_table(tmp_path / "b.parquet", ["goldfish", "plaice"], cells), id2label=ANIMALS)
    with pytest.raises(CorpusError, match=r"no text column"):
        open_corpus(path, kind="text")


def test_numbers_and_names_as_label_columns(tmp_path: Path) -> None:
    image = {"bytes": encoded(photograph(1)), "path": "/etc/hostname"}
    for column, expected in (([2, 0], [2, 0]), (["goldfish", "tench"], [1, 0])):
        path = tmp_path / f"{expected}.parquet"
        datasets.Dataset.from_dict({"img": [image] * 2, "label": column}).to_parquet(path)
        assert [label for label, _ in labels_and_ids(open_corpus(path, id2label=ANIMALS))] == expected
    datasets.Dataset.from_dict({"img": [image], "label": [-1]}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(
        CorpusError, match=r"none\.parquet:1 .* has the label -1, expected one of the model's 3 class ids"
    ):
        list(open_corpus(tmp_path / "none.parquet", id2label=ANIMALS))
    datasets.Dataset.from_dict({"img": [image]}).to_parquet(tmp_path / "bare.parquet")
    assert labels_and_ids(open_corpus(tmp_path / "bare.parquet"))[0][0] is None
    with pytest.raises(CorpusError, match=r"no column 'label'"):
        open_corpus(tmp_path / "bare.parquet", id2label=ANIMALS)


def test_a_row_cannot_make_us_open_a_local_file(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(photograph(1)))
    cell = {"bytes": None, "path": str(tmp_path / "secret.png")}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    datasets.Dataset.from_dict({"image": [cell]}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"no images \(1 were empty"):
        list(open_corpus(tmp_path / "a.parquet"))

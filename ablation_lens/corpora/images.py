"""Images: decoded by Pillow alone, turned to RGB, and read from folders with their labels."""

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ablation_lens.corpora.documents import Entry, ImageDocument, Source, UnreadableImage
from ablation_lens.corpora.files import opened, path_key, printable
from ablation_lens.corpora.labels import GIVE_A_TABLE, LabelMap, LabelTable
from ablation_lens.errors import CorpusError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# Named, because Pillow's other formats include one (EPS) that runs a program on the file's content.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

PIXEL_LIMIT = 64_000_000
"""A header that announces more is refused before anything is decoded: a small file can claim terabytes.

Pillow takes four bytes for a pixel, and an image stands there twice while it becomes RGB: half a gigabyte."""

BYTE_LIMIT = 4 * PIXEL_LIMIT + (1 << 20)
"""A file of more bytes is not read: uncompressed, that many pixels have four bytes each, and a header."""

# Pixels that are turned to RGB at once: several copies of them are needed, and one of the whole image is enough.
_STRIP = 1 << 20


def decode(content: bytes, *, most_pixels: int = PIXEL_LIMIT) -> Image.Image:
    """The RGB image in a file's bytes, which may have so many pixels at most, and `BYTE_LIMIT` bytes.

    - Transparent pixels are laid over white: the colour below full transparency is arbitrary.
    - 16-bit grey is scaled to 8 bits (Pillow's own conversion would clip it). Floating-point pixels have
      no defined range and count as unreadable.
    - The EXIF orientation is applied, as `datasets` and every viewer do. Colour profiles are ignored.
    - Of an animation, the first frame.

    Raises:
        UnreadableImage: for anything that is not a whole image.

    >>> buffer = io.BytesIO()
    >>> Image.new("L", (2, 1), 7).save(buffer, "PNG")
    >>> decode(buffer.getvalue()).getpixel((1, 0))
    (7, 7, 7)
    """
    if len(content) > BYTE_LIMIT:
        raise _too_long(len(content))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of single files; the limit below is the guard
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                if picture.width * picture.height > most_pixels:
                    raise UnreadableImage(f"it claims {picture.width}×{picture.height} pixels")
                picture.load()
                return _to_rgb(_upright(picture))
    # Running out of memory says nothing about the file, which must not be counted as a corrupt image.
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # damaged bytes make Pillow's decoders raise almost anything
        raise UnreadableImage(f"it could not be decoded ({str(error) or type(error).__name__})") from error


def _too_long(size: int) -> UnreadableImage:
    return UnreadableImage(f"it has {size:,} bytes, and {BYTE_LIMIT:,} are read at most")


def _upright(picture: Image.Image) -> Image.Image:
    try:
        # Asked first, because Pillow copies an image that already stands upright.
        if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return picture
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF beside sound pixels
        return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise UnreadableImage("its pixels are floating-point numbers of unknown range")
    width, height = picture.size
    rows = max(1, _STRIP // width)
    if height <= rows:
        return _strip_to_rgb(picture)
    whole = Image.new("RGB", picture.size)
    for top in range(0, height, rows):
        whole.paste(_strip_to_rgb(picture.crop((0, top, width, min(top + rows, height)))), (0, top))
    return whole


def _strip_to_rgb(picture: Image.Image) -> Image.Image:
    # A 16-bit PNG is opened as I or as I;16, by the version of Pillow.
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")  # 257 is 65535 / 255
    # Palette, grey and RGB images may have a transparent colour, too: it stands in `info`, not in the mode.
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def image_entry(content: bytes, label: int | None, identity: str) -> Entry:
    """The entry of an encoded image."""
    return Entry(
        identity, content, lambda: ImageDocument(decode(content), label, identity), blank=not content, label=label
    )


def _unread_entry(size: int, label: int | None, identity: str) -> Entry:
    def refuse() -> ImageDocument:
        raise _too_long(size)

    return Entry(identity, f"{size} bytes".encode(), refuse, label=label)


def image_folder(
    root: Path, files: Sequence[PurePosixPath], *, labels: str | Path | None, id2label: Mapping[int, str] | None
) -> Source:
    """The images of a folder, labelled by a labels file, else by class folders and `id2label`, else not at all.

    The order takes one image of every class folder in turn (folders and files sorted by their bytes), so
    that the first thousand images are not all of the first few classes.

    Args:
        root: the folder.
        files: its images, relative to it.
        labels: a labels file; see `LabelTable.read`.
        id2label: the model's labels; without them and without a labels file the images carry no labels.
    """
    ordered = in_turn(files)
    ids: Sequence[int | None] = [None] * len(ordered)
    settings: tuple[tuple[str, str], ...] = ()
    if labels is not None:
        ids, rule = LabelTable.read(labels).ids_of(ordered, id2label, str(root))
        settings = (("labels", str(labels)), ("labels matched by", rule))
    elif id2label is not None:
        loose = [str(file) for file in ordered if not file.parent.name]
        if loose:
            raise CorpusError(
                f"{len(loose)} of the {len(ordered)} images in {root} lie in no class folder (first: {loose[0]}); "
                f"move them into folders named by the model's class names or ids, or {GIVE_A_TABLE}."
            )
        matched = LabelMap.match((file.parent.name for file in ordered), id2label, str(root))
        ids = [matched.ids[file.parent.name] for file in ordered]
        settings = (("labels matched by", matched.rule),)

    def entries() -> Iterator[Entry]:
        for file, label in zip(ordered, ids, strict=True):
            with opened(root / file) as handle:
                size = os.fstat(handle.fileno()).st_size
                content = handle.read() if size <= BYTE_LIMIT else None
            # The file is closed by now: a reading that stops early leaves this generator standing here.
            yield (
                _unread_entry(size, label, printable(file))
                if content is None
                else image_entry(content, label, printable(file))
            )

    labelled = labels is not None or id2label is not None
    return Source(str(root.absolute()), "image", entries, settings=settings, labelled=labelled)


def in_turn(files: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Files sorted by their bytes inside each folder, one of every folder in turn.

    >>> [str(file) for file in in_turn([PurePosixPath(name) for name in ("b/1", "a/2", "a/1", "b/2", "a/3")])]
    ['a/1', 'b/1', 'a/2', 'b/2', 'a/3']
    """
    folders: dict[PurePosixPath, list[PurePosixPath]] = {}
    for file in sorted(files, key=path_key):
        folders.setdefault(file.parent, []).append(file)
    turns = [(turn, path_key(folder), file) for folder, inside in folders.items() for turn, file in enumerate(inside)]
    return [file for _, _, file in sorted(turns, key=lambda turn: turn[:2])]

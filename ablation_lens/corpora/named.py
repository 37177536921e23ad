"""The corpora that have a name. A new one is one function here."""

import functools
import hashlib
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ablation_lens.corpora import embedded
from ablation_lens.corpora.documents import Entry, ImageDocument, Kind, Source, text_entry
from ablation_lens.corpora.hub import HubAddress, open_hub
from ablation_lens.corpora.journeys import journey_documents
from ablation_lens.corpora.labels import LabelMap
from ablation_lens.corpora.options import Options
from ablation_lens.corpora.splits import EMBEDDED_SHARES
from ablation_lens.errors import CorpusError

Opener = Callable[[Options], Source]

NAMED: dict[str, tuple[str, Kind, Opener]] = {}
"""Name to a line about it, what it holds, and the function that opens it."""

EMBEDDED = ("stdlib", "digits", "stdlib-code", "digits-inverted", "journeys")
"""Those that every installation holds, so that opening one reads no path and asks no network."""


def _named(name: str, kind: Kind, about: str) -> Callable[[Opener], Opener]:
    def register(opener: Opener) -> Opener:
        NAMED[name] = (about, kind, opener)
        return opener

    return register


@_named("stdlib", "text", "English prose that every Python carries: its language reference and docstrings (embedded)")
def _stdlib(options: Options) -> Source:
    options.require("stdlib", "text")

    def entries() -> Iterator[Entry]:
        for number, text in enumerate(embedded.stdlib_documents()):
            yield text_entry(text, f"stdlib/{number}")

    return Source("embedded: stdlib", "text", entries, EMBEDDED_SHARES, platform.python_version())


@_named("digits", "image", "scikit-learn's 1797 handwritten digits, 8×8 pixels, classes 0 to 9 (embedded)")
def _digits(options: Options) -> Source:
    return _of_digits("digits", options, lambda pixels: pixels)


def _of_digits(
    name: str, options: Options, seen: Callable[[UInt8[np.ndarray, "8 8"]], UInt8[np.ndarray, "8 8"]]
) -> Source:
    options.require(name, "image")
    ids = {str(digit): digit for digit in range(10)}
    if options.id2label is not None:
        if len(options.id2label) != 10:
            raise CorpusError(
                f"{name} has the ten classes 0 to 9, and the model has {len(options.id2label)} labels; "
                f"give a model of digits, or images that are labelled for this model."
            )
        # A model may number its digits in another order.
        ids = dict(LabelMap.match(ids, options.id2label, name).ids)

    def entries() -> Iterator[Entry]:
        for number, (original, digit) in enumerate(embedded.digits_images()):
            pixels = seen(original)
            # `partial`, as a lambda would see the pixels of a later turn of the loop.
            image = functools.partial(Image.fromarray, pixels)
            label, identity = ids[str(digit)], f"{name}/{number}"
            # The split goes by the pixels themselves: the bytes of a PNG may change with the encoder. It is that of
            # the original: what a model was trained on must not come back changed among what it is judged on.
            whole = None if pixels is original else hashlib.sha256(original.tobytes()).digest()
            opened = functools.partial(_digit, image, label, identity)
            yield Entry(identity, pixels.tobytes(), opened, whole=whole, label=label)

    # The images are a part of scikit-learn, so its version tells which they were.
    settings = (("scikit-learn", version("scikit-learn")),)
    python = platform.python_version()
    return Source(f"embedded: {name}", "image", entries, EMBEDDED_SHARES, python, settings, labelled=True)


def _digit(image: Callable[[], Image.Image], label: int, identity: str) -> ImageDocument:
    return ImageDocument(image().convert("RGB"), label, identity)


@_named("pile", "text", "The Pile without its copyrighted parts, test split (hub, streamed)")
def _pile(options: Options) -> Source:
    smaller = " Its first ten thousand documents are the corpus 'pile-10k'; 'stdlib' needs no network."
    return open_hub(HubAddress("monology/pile-uncopyrighted", split="test"), options, hint=smaller)


@_named("pile-10k", "text", "the first ten thousand documents of The Pile (hub, streamed)")
def _pile_10k(options: Options) -> Source:
    return open_hub(HubAddress("NeelNanda/pile-10k", split="train"), options, hint=" 'stdlib' needs no network.")


@_named("wikitext", "text", "WikiText-103, test split, one paragraph per document (hub, streamed)")
def _wikitext(options: Options) -> Source:
    address = HubAddress("Salesforce/wikitext", "wikitext-103-raw-v1", "test")
    return open_hub(address, options, hint=" 'stdlib' needs no network.")


@_named("imagenet-1k", "image", "ImageNet-1k, validation split, in its own order (hub, streamed, gated)")
def _imagenet(options: Options) -> Source:
    return open_hub(HubAddress("ILSVRC/imagenet-1k", split="validation"), options, hint=" 'digits' needs no network.")


@_named("stdlib-code", "text", "Python code without docstrings and comments: the standard library's (embedded)")
def _stdlib_code(options: Options) -> Source:
    options.require("stdlib-code", "text")

    def entries() -> Iterator[Entry]:
        for number, text in enumerate(embedded.stdlib_code()):
            yield text_entry(text, f"stdlib-code/{number}")

    return Source("embedded: stdlib-code", "text", entries, EMBEDDED_SHARES, platform.python_version())


@_named("digits-inverted", "image", "the digits with black and white exchanged, in the same splits (embedded)")
def _digits_inverted(options: Options) -> Source:
    return _of_digits("digits-inverted", options, lambda pixels: 255 - pixels)


@_named("journeys", "text", "texts of two paragraphs; the first one's header fixes what the second is about (embedded)")
def _journeys(options: Options) -> Source:
    options.require("journeys", "text")

    def entries() -> Iterator[Entry]:
        for number, text in enumerate(journey_documents()):
            yield text_entry(text, f"journeys/{number}")

    return Source("embedded: journeys", "text", entries, EMBEDDED_SHARES)

"""The embedded corpora as the zoo trains and is scored on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ablation_lens.corpora.embedded import digest, digits_images, stdlib_documents
from ablation_lens.corpora.journeys import journey_documents
from ablation_lens.corpora.splits import EMBEDDED_SHARES, split_of


@dataclass(frozen=True)
class Texts:
    """Documents to learn from and documents to be scored on; none is both."""

    train: Sequence[str]
    evaluate: Sequence[str]
    digest: str


@dataclass(frozen=True)
class Images:
    """8×8 grey images with their digits, to learn from and to be scored on."""

    train: Sequence[tuple[np.ndarray, int]]
    evaluate: Sequence[tuple[np.ndarray, int]]
    digest: str


def texts(corpus: str = "stdlib") -> Texts:
    """The `stdlib` corpus of this Python, or `journeys`.

    >>> len(texts("journeys").evaluate) > 1000
    True
    """
    documents = stdlib_documents() if corpus == "stdlib" else list(journey_documents())
    parts: dict[str, list[str]] = {split: [] for split in EMBEDDED_SHARES}
    for document in documents:
        parts[split_of(document.encode(), EMBEDDED_SHARES)].append(document)
    return Texts(parts["train"], parts["evaluate"], digest(documents))


def images() -> Images:
    """The `digits` corpus.

    >>> len(images().evaluate) > 200
    True
    """
    every = digits_images()
    parts: dict[str, list[tuple[np.ndarray, int]]] = {split: [] for split in EMBEDDED_SHARES}
    for pixels, label in every:
        parts[split_of(pixels.tobytes(), EMBEDDED_SHARES)].append((pixels, label))
    return Images(parts["train"], parts["evaluate"], digest(pixels.tobytes() for pixels, _ in every))


def as_pillow(pixels: np.ndarray) -> Image.Image:
    """The image as a loader would hand it on: RGB."""
    return Image.fromarray(pixels).convert("RGB")


def labels_of(pairs: Sequence[tuple[np.ndarray, int]]) -> Int[Tensor, "image"]:
    """The digits of image and digit pairs."""
    return torch.tensor([label for _, label in pairs])


def pixels_of(pairs: Sequence[tuple[np.ndarray, int]], processor: Any) -> Float[Tensor, "image channel height width"]:
    """The images as the model's own processor prepares them."""
    prepared = processor([as_pillow(pixels) for pixels, _ in pairs], return_tensors="pt")
    return torch.as_tensor(prepared["pixel_values"])

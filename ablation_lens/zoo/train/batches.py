"""What the zoo's models see while they train: seeded, endless, made in memory."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ablation_lens.zoo.train.vocabulary import END, MASK, PAD, SPECIAL_TOKENS, START, VOCABULARY_SIZE

IGNORED = -100  # what torch's cross_entropy leaves out by default
MASKED_SHARE = 0.15


def _below(limit: int, generator: Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))


def packed_rows(
    documents: Sequence[Tensor], start: int | None, end: int | None, rows: int, length: int, generator: Generator
) -> Int[Tensor, "row pos"]:
    """Rows filled with random documents, each framed by `start` and `end` and cut at the row's end.

    Half the documents begin at a random place of their first half: a learned position would otherwise
    always see the same tokens of a small corpus.
    """
    filled = []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < length:
            # One draw more, or another order of draws, gives a seed other weights.
            document = documents[_below(len(documents), generator)]
            begin = _below(len(document) // 2 + 1, generator) if _below(2, generator) else 0
            row += [] if start is None else [start]
            row += document[begin:].tolist()
            row += [] if end is None else [end]
        filled.append(row[:length])
    return torch.tensor(filled)


def repeated_rows(rows: int, length: int, start: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Rows of one random segment over and over, and labels that ask only for what can be predicted.

    These teach the attention pattern known as induction: find the previous occurrence, copy what followed.

    Returns:
        Ids and labels, both `[row pos]`; the first copy's labels are `IGNORED`.
    """
    ids = torch.empty(rows, length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row in range(rows):
        period = 8 + _below(length // 2 - 8, generator)
        segment = torch.randint(len(SPECIAL_TOKENS), VOCABULARY_SIZE, (period,), generator=generator)
        ids[row] = torch.cat([torch.tensor([start]), segment.repeat(math.ceil(length / period))])[:length]
        # The second copy's first token follows from nothing; the token after it does.
        labels[row, period + 2 :] = ids[row, period + 2 :]
    return ids, labels


def causal_batch(
    documents: Sequence[Tensor], start: int, rows: int, length: int, repeats: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Ids and labels `[row pos]`, of which a share `repeats` of the rows are repeated random segments.

    `labels[:, p]` is the token at `p` itself, to be predicted from the positions before it.
    """
    repeated = round(rows * repeats)
    ids = packed_rows(documents, start, None, rows - repeated, length, generator)
    # A document's start token follows from nothing.
    labels = ids.masked_fill(ids == start, IGNORED)
    more_ids, more_labels = repeated_rows(repeated, length, start, generator)
    return torch.cat([ids, more_ids]), torch.cat([labels, more_labels])


def paragraph_batch(
    documents: Sequence[Tensor], blank_line: int, rows: int, hidden: float, alone: float, generator: Generator
) -> tuple[Int[Tensor, "row pos"], Float[Tensor, "row 1 query key"], Int[Tensor, "row pos"]]:
    """Ids, attention masks and labels of rows that hold a document of two paragraphs each.

    In a share `hidden` of the rows the second paragraph sees the start token and the blank line before it, and nothing
    of the first: what it needs to know must be carried by the blank line. Rows of a share `alone` hold nothing but
    a blank line and a second paragraph. In both, only the second paragraph is asked for.
    """
    covered, cut = round(rows * hidden), round(rows * alone)
    ids = []
    for row in range(rows):
        document = documents[_below(len(documents), generator)]
        if row < cut:
            document = document[int((document == blank_line).nonzero()[0]) :]
        ids.append(torch.cat([torch.tensor([START]), document]))
    padded = pad_sequence(ids, batch_first=True, padding_value=PAD)
    seen = torch.ones(rows, padded.shape[1], padded.shape[1], dtype=torch.bool).tril()
    labels = padded.masked_fill((padded == START) | (padded == PAD), IGNORED)
    for row in range(cut + covered):
        # In rows that are cut nothing is left to be hidden.
        seen[row] = visible(padded[row], blank_line)
        labels[row, : int((padded[row] == blank_line).nonzero()[0]) + 1] = IGNORED
    return padded, additive(seen), labels


def visible(ids: Int[Tensor, "pos"], blank_line: int) -> Bool[Tensor, "query key"]:
    """Which keys each position may see when the second paragraph is kept from seeing the first.

    >>> visible(torch.tensor([0, 7, 9, 8]), blank_line=9).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    border = int((ids == blank_line).nonzero()[0])
    seen[border + 1 :, 1:border] = False
    return seen


def additive(seen: Bool[Tensor, "row query key"]) -> Float[Tensor, "row 1 query key"]:
    """The same as what Hugging Face's models add to their attention scores, in every head."""
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]


def masked_batch(
    documents: Sequence[Tensor], rows: int, length: int, generator: Generator, share: float = MASKED_SHARE
) -> tuple[Tensor, Tensor]:
    """Corrupted ids and labels `[row pos]`: see `corrupt`."""
    return corrupt(packed_rows(documents, START, END, rows, length, generator), generator, share)


def corrupt(
    ids: Int[Tensor, "row pos"], generator: Generator, share: float = MASKED_SHARE
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """Choose `share` of the positions that are not special; 80 % become `<mask>`, 10 % random, 10 % stay.

    >>> ids = torch.full((4, 250), 300)
    >>> corrupted, labels = corrupt(ids, Generator().manual_seed(0))
    >>> bool((labels[corrupted != ids] == 300).all()), 0.1 < float((labels != IGNORED).float().mean()) < 0.2
    (True, True)
    """
    chosen = torch.rand(ids.shape, generator=generator) < share
    chosen &= ~torch.isin(ids, torch.tensor([START, PAD, END]))
    fate = torch.rand(ids.shape, generator=generator)
    # Drawn for all positions: what is drawn later must not depend on how many were chosen.
    random_ids = torch.randint(len(SPECIAL_TOKENS), VOCABULARY_SIZE, ids.shape, generator=generator)
    corrupted = torch.where(chosen & (fate < 0.8), MASK, ids)
    corrupted = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), random_ids, corrupted)
    return corrupted, ids.masked_fill(~chosen, IGNORED)


def augment(
    images: Float[Tensor, "image channel height width"], generator: Generator
) -> Float[Tensor, "image channel height width"]:
    """Each image rotated (±12°), scaled (±12 %), sheared (±0.15), shifted (±10 %) and given a new contrast."""
    count = len(images)

    def uniform(spread: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * spread

    angle, scale, shear = uniform(math.radians(12)), 1 + uniform(0.12), uniform(0.15)
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    # `grid_sample` coordinates run from -1 to 1, so a shift of 10 % is 0.2.
    matrix = torch.stack(
        [
            torch.stack([cosine, shear - sine, uniform(0.2)], dim=1),
            torch.stack([sine, cosine, uniform(0.2)], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    # Border padding continues the black margin; zeros would be mid-grey after normalisation.
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast = (1 + uniform(0.2))[:, None, None, None]
    # Black is -1 after normalisation, and stays black.
    return (moved + 1) * contrast - 1

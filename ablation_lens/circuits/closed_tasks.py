"""Tasks on token ids, for any causal model, with a tokenizer or without.

The toys have a vocabulary of their own, counted from id 0: a small model is trained on it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from ablation_lens.circuits.examples import Draw, Example, vocabulary_of
from ablation_lens.errors import MismatchError
from ablation_lens.hooked import tokenizer_of
from ablation_lens.tasks.inputs import told, whole


def induction(
    model: Any,
    draw: Draw,
    *,
    length: int | None = None,
    ids: Iterable[int] | None = None,
    bos: int | str | None = "model",
) -> Iterator[Example]:
    """Random tokens, and the same again up to the last, which is the answer.

    In the corrupted twin the first half has other tokens, none of which comes again, so that the answer cannot be
    known. The wrong answer is another token of the half.

    Args:
        model: any causal model.
        draw: what chooses.
        length: tokens of the half, all different; 20, or fewer where the model has no room.
        ids: what is drawn from; all but the tokenizer's special tokens.
        bos: the id that a prompt begins with; "model" is its tokenizer's, if it has one, and None is none.
    """
    first = _beginning(model, bos)
    drawn = _drawn_from(model, ids, first)
    context = getattr(model.cfg, "n_ctx", None)
    room = len(drawn) if context is None else (int(context) - len(first) + 1) // 2
    most = min(len(drawn) // 2, room)
    half_length = min(20, most) if length is None else whole(length, "length")
    if not 2 <= half_length <= most:
        raise MismatchError(
            f"length={half_length} is not possible for induction: this model has room for halves of 2 to {most:,} "
            f"tokens (its context is {context}, and the tokens of both halves are drawn from {len(drawn):,})."
        )
    while True:
        tokens = draw.several(drawn, 2 * half_length)
        half, other = tokens[:half_length], tokens[half_length:]
        wrong = draw.one(half[:-1])
        yield Example([*first, *half, *half[:-1]], [*first, *other, *half[:-1]], [half[-1]], [wrong])


def _beginning(model: Any, bos: Any) -> list[int]:
    if bos == "model":
        bos = getattr(tokenizer_of(model), "bos_token_id", None)
    return [] if bos is None else [whole(bos, "bos")]


def _drawn_from(model: Any, ids: Any, first: list[int]) -> list[int]:
    known = vocabulary_of(model)
    if ids is None:
        special = {*first, *getattr(tokenizer_of(model), "all_special_ids", ())}
        return [each for each in range(known) if each not in special]
    if not isinstance(ids, Iterable) or isinstance(ids, str):
        raise MismatchError(f"ids are {told(ids)}; give the token ids that are drawn from, such as range(100).")
    chosen = list(dict.fromkeys(whole(each, "ids") for each in ids))
    if outside := [each for each in chosen if not 0 <= each < known]:
        raise MismatchError(f"ids hold {outside[0]}, and the model's vocabulary is 0 to {known - 1:,}.")
    return [each for each in chosen if each not in first]


def toy_ioi(model: Any, draw: Draw, *, names: int | None = None) -> Iterator[Example]:
    """Two names, one of them again, and "to": the answer is the other, the wrong one the one that came again.

    Ids 0 to `names` - 1 are names (20, or fewer where the model has fewer ids), then come "and" and "to":
    `x and y, x to` → `y`, and `x and y, y to` → `x`. In the corrupted twin all three names are others, and all differ
    (the ABC prompts of Wang et al. 2022).
    """
    count = _size(model, "toy-ioi", "names", names, most=20, beside=2, least=5)
    joined, to = count, count + 1
    for place in draw.each(range(count * (count - 1) * 2)):
        x, rest = divmod(place, (count - 1) * 2)
        # Any name but the first, then which of the two comes again.
        y = (x + 1 + rest // 2) % count
        again, answer = ((x, y), (y, x))[rest % 2]
        others = [name for name in draw.several(range(count), 5) if name not in (x, y)]
        yield Example([x, joined, y, again, to], [others[0], joined, others[1], others[2], to], [answer], [again])


def toy_greater_than(model: Any, draw: Draw, *, numbers: int | None = None, nouns: int = 5) -> Iterator[Example]:
    """A noun, "from", a number and "to": every greater number is right, the others are wrong.

    Ids 0 to `numbers` - 1 are numbers (100, or fewer where the model has fewer ids), then come "from", "to" and the
    nouns. In the corrupted twin the number is 0, so that all that follow are right (Hanna et al. 2023 write 01).
    """
    kinds = whole(nouns, "nouns")
    if kinds < 1:
        raise MismatchError(f"nouns={kinds} is not possible; give 1 or more.")
    count = _size(model, "toy-greater-than", "numbers", numbers, most=100, beside=2 + kinds, least=3)
    since, to = count, count + 1
    for place in draw.each(range(kinds * (count - 2))):
        noun, number = count + 2 + place % kinds, 1 + place // kinds
        answers, wrong = list(range(number + 1, count)), list(range(number + 1))
        yield Example([noun, since, number, to], [noun, since, 0, to], answers, wrong)


def modular_addition(model: Any, draw: Draw, *, modulus: int | None = None) -> Iterator[Example]:
    """Two numbers and "=": the answer is their sum, modulo `modulus`.

    Ids 0 to `modulus` - 1 are numbers (113, or fewer where the model has fewer ids), then comes "=". The corrupted twin
    has another first number, and the wrong answer is its sum.
    """
    count = _size(model, "modular-addition", "modulus", modulus, most=113, beside=1, least=2)
    for place in draw.each(range(count**2)):
        one, other = divmod(place, count)
        instead = (one + 1 + draw.one(range(count - 1))) % count  # any but this one
        answer, wrong = (one + other) % count, (instead + other) % count
        yield Example([one, other, count], [instead, other, count], [answer], [wrong])


def _size(model: Any, task: str, name: str, given: Any, *, most: int, beside: int, least: int) -> int:
    """How many ids count for something, where so many others stand beside them."""
    known = vocabulary_of(model)
    # A model may read "=" without being able to say it.
    read = getattr(model.cfg, "d_vocab", None) or known
    possible = min(known, int(read) - beside)
    count = min(most, possible) if given is None else whole(given, name)
    if not least <= count <= possible:
        raise MismatchError(
            f"{name}={count} is not possible for {task}: it takes {least} or more of them and {beside} further token "
            f"ids, and this model has {int(read):,} in all."
        )
    return count

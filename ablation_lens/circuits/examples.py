"""What a task is made of: examples in token ids, drawn the same way everywhere."""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import tokenizer_of

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Example:
    """A prompt, its corrupted twin, and what is right and wrong after the prompt: token ids."""

    clean: list[int]
    corrupted: list[int]
    answers: list[int]
    wrong: list[int]


class Draw:
    """Choices by chance that are the same on every machine and with every version.

    >>> draw = Draw("example", 0)
    >>> draw.one("abc"), draw.several(range(10), 3)
    ('b', [9, 2, 6])
    """

    def __init__(self, *of: object) -> None:
        text = f"prompts {' '.join(map(str, of))}"
        # `random()` is the one draw that Python promises to keep.
        self._random = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")).random

    def one(self, choices: Sequence[Choice]) -> Choice:
        """One of them."""
        return choices[int(self._random() * len(choices))]

    def several(self, choices: Sequence[Choice], count: int) -> list[Choice]:
        """So many different ones of them."""
        return list(itertools.islice(self.each(choices), count))

    def each(self, choices: Sequence[Choice]) -> Iterator[Choice]:
        """All of them, one after another in random order; as much work and memory as are asked for."""
        moved: dict[int, int] = {}  # the swaps of a shuffle: a vocabulary is too long to be copied for each prompt
        for start in range(len(choices)):
            place = start + int(self._random() * (len(choices) - start))
            yield choices[moved.get(place, place)]
            moved[place] = moved.get(start, start)


def vocabulary_of(model: Any) -> int:
    """How many token ids a model reads, and can answer with."""
    sizes = [getattr(model.cfg, name, None) for name in ("d_vocab", "d_vocab_out")]
    known = [int(size) for size in sizes if size is not None and size > 0]
    if (tokenizer := tokenizer_of(model)) is not None:  # an embedding may have rows that no token uses
        known.append(len(tokenizer))
    if not known:
        raise MismatchError("this model's cfg has no d_vocab, so its token ids are not known; set it.")
    return min(known)

"""Documents chosen by their label: only those of some labels, or all others."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ablation_lens.errors import CorpusError
from ablation_lens.escaping import on_one_line, shorten
from ablation_lens.names import close_to

Label = int | str
"""A model's class id of an image, or what a column says of a text."""

LONGEST_LABEL = 1000
"""Characters. What is longer is a text in the wrong column, and every label that was met is held."""

_MOST_MET = 1000
_MOST_SHOWN = 8


@dataclass(frozen=True)
class LabelChoice:
    """Only the documents of some labels (`keeps`), or all but those.

    Attributes:
        words: how each of the labels is written.
        keeps: whether documents of these labels are read, or the others.
        names: how labels that were not chosen are written, where another way than as they are.
        asked: all that was ever named; each must be some document's, or it is misspelt.

    >>> choice = LabelChoice({3: "3", 5: "5"}, keeps=True).narrowed(LabelChoice({5: "5"}, keeps=False))
    >>> choice.told, choice.admits(3), choice.admits(5)
    ('only 3', True, False)
    """

    words: Mapping[Label, str]
    keeps: bool
    names: Mapping[Any, str] = field(default_factory=dict, compare=False, repr=False)
    asked: Mapping[Label, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Sorted, so that the same choice is the same record, in whatever order it was made.
        object.__setattr__(self, "words", dict(sorted(self.words.items())))
        object.__setattr__(self, "asked", {**self.words, **self.asked})

    def admits(self, label: Label | None) -> bool:
        """Whether documents of this label are read."""
        return (label in self.words) is self.keeps

    def narrowed(self, other: Self) -> Self:
        """What both admit: again some labels, or all but some."""
        if self.keeps or other.keeps:
            one, two = (self, other) if self.keeps else (other, self)
            words = {label: word for label, word in one.words.items() if two.admits(label)}
            if not words:
                raise CorpusError(f"nothing is both {self.told!r} and {other.told!r}; choose labels that leave some.")
        else:
            words = {**self.words, **other.words}
        keeps = self.keeps or other.keeps
        return type(self)(words, keeps, {**self.names, **other.names}, {**self.asked, **other.asked})

    @property
    def told(self) -> str:
        """The choice in words; of many labels the first few, and how many."""
        shown = [_shown(word) for word in list(self.words.values())[:_MOST_SHOWN]]
        more = f", … ({len(self.words)} labels)" if len(self.words) > _MOST_SHOWN else ""
        return f"{'only' if self.keeps else 'except'} {', '.join(shown)}{more}"

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """What a record says of it: every label."""
        return tuple(("only" if self.keeps else "except", word) for word in self.words.values())


class Met:
    """The labels that were met in a corpus, as far as a choice asks for them."""

    def __init__(self, choice: LabelChoice) -> None:
        self._choice = choice
        self._met: dict[Label | None, None] = {}
        self._missing = set(choice.asked)

    def add(self, label: Label | None) -> None:
        """Another document's label."""
        self._missing.discard(label)
        if len(self._met) < _MOST_MET:
            self._met[label] = None

    @property
    def all_asked(self) -> bool:
        """Whether every label that was named is one of a document."""
        return not self._missing

    def require_all(self, corpus: str) -> None:
        """Refuse a label that no document has: `except_` would leave nothing out, and nobody would notice."""
        if self.all_asked:
            return
        missing = self._choice.asked[min(self._missing)]
        known = [self._choice.names.get(label, str(label)) for label in self._met]
        nearest = close_to(missing, known)
        advice = f"did you mean {_quoted(nearest[0])}? Its" if nearest else "its"
        held = f"{advice} labels are {_listed(known)}" if known else "it holds no documents"
        raise CorpusError(f"no document of {corpus} has the label {_quoted(missing)}; {held}.")


def label_of_cell(value: Any, where: str) -> str:
    """A value of a column as a label: text as it is, a number or a truth value as JSON writes it.

    A whole number is written as such, as a column of them becomes one of fractions where a row lacks its value.

    >>> label_of_cell("code", "row 1"), label_of_cell(3, "row 2"), label_of_cell(3.0, "row 3")
    ('code', '3', '3')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        if value.bit_length() > LONGEST_LABEL:  # of more than 4300 digits Python makes no text
            raise CorpusError(f"{where} is a number of {value.bit_length():,} bits; give labels that are shorter.")
        return str(value)
    if not isinstance(value, str):
        what = (
            "is missing"
            if value is None
            else f"is {value}"
            if isinstance(value, float)
            else f"is a {type(value).__name__}"
        )
        raise CorpusError(f"{where} {what}, expected a text, a number or a truth value; mend it, or leave the row out.")
    if not value.strip():
        raise CorpusError(f"{where} is blank, expected a label; mend it, or leave the row out.")
    if len(value) > LONGEST_LABEL:
        raise CorpusError(
            f"{where} has {len(value):,} characters, and a label has {LONGEST_LABEL:,} at most; choose another column."
        )
    return value


def several(given: Any) -> list[Any]:
    """One label, or several, that somebody gave, as a list.

    >>> several(3), several(("a", "b"))
    ([3], ['a', 'b'])
    """
    plain = _plain(given)
    if isinstance(plain, str | bytes) or not isinstance(plain, Iterable):
        return [plain]
    if not (listed := list(map(_plain, plain))):
        raise CorpusError(f"an empty {type(given).__name__} names no label; name one, such as 'code' or 3.")
    return listed


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # of NumPy and torch


def _shown(word: str) -> str:
    return on_one_line(shorten(word, 40))


def _quoted(word: str) -> str:
    return f"'{_shown(word)}'"  # not `repr`, which would escape once more


def _listed(words: Sequence[str]) -> str:
    shown = ", ".join(map(_quoted, sorted(words)[:_MOST_SHOWN]))
    more = f", … ({len(words):,}{' or more' if len(words) == _MOST_MET else ''})"
    return f"{shown}{more if len(words) > _MOST_SHOWN else ''}"

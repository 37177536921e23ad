"""What a caller may ask of a corpus, and the refusal of what does not apply to it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ablation_lens.corpora.documents import Kind
from ablation_lens.errors import CorpusError

Block = Literal["file", "paragraph", "line"]
Errors = Literal["strict", "replace"]


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `open_corpus`; None and "strict" are "not asked for"."""

    kind: Kind | None = None
    block: Block | None = None
    column: str | None = None
    errors: Errors = "strict"
    labels: str | Path | None = None
    id2label: Mapping[int, str] | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("kind", get_args(Kind)), ("block", get_args(Block)), ("errors", get_args(Errors))):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise CorpusError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")

    def require_kind(self, where: str, kind: Kind) -> None:
        """Refuse a corpus of the kind that was not asked for."""
        if self.kind not in (None, kind):
            raise CorpusError(f"{where} holds {_PLURAL[kind]}, expected {_PLURAL[self.kind]}; give a corpus of those.")

    def require(self, where: str, kind: Kind, *applicable: str) -> None:
        """Refuse the wrong kind of corpus, and options that would silently do nothing.

        `id2label` may accompany any image corpus: it is a property of the model, not a wish.
        """
        self.require_kind(where, kind)
        allowed = {"kind", "id2label", *applicable}
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if option.name not in allowed and value != option.default:
                raise CorpusError(f"{option.name}={str(value)!r} does not apply to {where}; leave it out.")

    def settings(self, *names: str) -> tuple[tuple[str, str], ...]:
        """The named options that were asked for, as a record keeps them."""
        defaults = {option.name: option.default for option in dataclasses.fields(self)}
        return tuple((name, str(getattr(self, name))) for name in names if getattr(self, name) != defaults[name])


_PLURAL: dict[Kind, str] = {"text": "text", "image": "images"}

"""What a corpus is: documents in a fixed order, restricted to a split, read one at a time."""

import hashlib
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from PIL.Image import Image

from ablation_lens.corpora.choice import Label, LabelChoice, Met
from ablation_lens.corpora.splits import OUTSIDE_SHARES, split_at
from ablation_lens.errors import CorpusError
from ablation_lens.records import CorpusRecord

Kind = Literal["text", "image"]


class CorpusWarning(UserWarning):
    """Something about a corpus that does not stop the work but should be known."""


class CorpusSizeWarning(CorpusWarning):
    """A corpus holds less than was asked of it."""


class CorruptImageWarning(CorpusWarning):
    """An image that could not be decoded was left out."""


class UnreadableImage(Exception):  # noqa: N818  (never reaches a user: the reader counts it)
    """These bytes are not an image that can be decoded."""


TEXT_LIMIT = 1_000_000
"""Characters of a text that are kept. More would be held for nothing: a model's context ends long before."""


@dataclass(frozen=True)
class TextDocument:
    """A text, where it stood in its corpus, and whether it is only the first `TEXT_LIMIT` characters of it.

    `label` is what the label column says of it, as text; None without such a column.
    """

    text: str
    id: str
    cut: bool = False
    label: str | None = None


@dataclass(frozen=True)
class ImageDocument:
    """An RGB image, the model's id of its class (None when unlabelled), and where it stood in its corpus."""

    image: Image
    label: int | None
    id: str


Document = TextDocument | ImageDocument
"""What a corpus holds."""


@dataclass(frozen=True)
class Entry:
    """A document before it is decoded: its bytes decide the split, so the other splits' images stay undecoded.

    `blank` marks a document with nothing in it. `open` may raise `UnreadableImage`. Of a text that was cut, `whole`
    is the SHA-256 of all its bytes: which split it belongs to must not depend on how much is kept. Of a
    changed image it is that of the pixels before. By its `label` it is chosen before it is opened.
    """

    id: str
    content: bytes
    open: Callable[[], Document]
    blank: bool = False
    whole: bytes | None = None
    label: Label | None = None

    @property
    def sha256(self) -> bytes:
        """What the split goes by."""
        return self.whole or hashlib.sha256(self.content).digest()


class TextInPieces:
    """A text that is read piece by piece: all of it is hashed, and its first `TEXT_LIMIT` characters are kept."""

    def __init__(self) -> None:
        self.length = 0
        self.blank = True
        self._kept: list[str] = []
        self._whole: Any = None

    def add(self, piece: str) -> None:
        """The next characters, newlines normalised; no lone surrogates, which have no UTF-8 bytes."""
        room = TEXT_LIMIT - self.length
        self.length += len(piece)
        self.blank = self.blank and not piece.strip()
        if self.length > TEXT_LIMIT:
            if self._whole is None:
                self._whole = hashlib.sha256("".join(self._kept).encode())
            self._whole.update(piece.encode())
        if room > 0:
            self._kept.append(piece[:room])

    def entry(self, identity: str, label: str | None = None) -> Entry:
        """The entry of what was added."""
        text = "".join(self._kept)
        whole = None if self._whole is None else self._whole.digest()

        def opened() -> TextDocument:
            return TextDocument(text, identity, whole is not None, label)

        return Entry(identity, text.encode(), opened, self.blank, whole, label)


def text_entry(text: str, identity: str, label: str | None = None) -> Entry:
    r"""The entry of a text, its newlines normalised to ``\n``.

    >>> text_entry("two\r\nlines", "x").content
    b'two\nlines'
    """
    pieces = TextInPieces()
    # Before the bytes are taken: a text with other line ends would fall into another split. The pair must go first,
    # or it would become two line ends.
    pieces.add(text.replace("\r\n", "\n").replace("\r", "\n"))
    return pieces.entry(identity, label)


@dataclass(frozen=True)
class Source:
    """Where documents come from: `entries()` starts a new pass over all of them, in the fixed order.

    `labelled` says whether all of them have a label.
    """

    location: str
    kind: Kind
    entries: Callable[[], Iterator[Entry]]
    # A factory, as Python 3.11 takes a mappingproxy for a mutable default and refuses it.
    shares: Mapping[str, float] = field(default_factory=lambda: OUTSIDE_SHARES)
    python: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    labelled: bool = False


@dataclass(frozen=True)
class Corpus:
    """A source restricted to one split (`"all"`: not restricted), and to the labels of a choice.

    Iterating starts a new `Reading` each time.
    """

    name: str
    source: Source
    split: str = "all"
    choice: LabelChoice | None = None

    def __post_init__(self) -> None:
        if self.split not in ("all", *self.splits):
            raise CorpusError(
                f"{self.name} has no split {self.split!r}; choose {', '.join(self.splits)}, or 'all' for everything."
            )

    @property
    def kind(self) -> Kind:
        """`"text"` or `"image"`."""
        return self.source.kind

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits: disjoint by content, and together the whole corpus."""
        return tuple(self.source.shares)

    def restricted_to(self, split: str) -> Self:
        """The same corpus, another split."""
        return replace(self, split=split)

    def chosen(self, choice: LabelChoice) -> Self:
        """The same corpus without the documents that a choice does not admit; the splits of the others stay."""
        if not self.source.labelled:
            raise CorpusError(
                f"{self.name} has no labels that documents could be chosen by; "
                + (
                    "give JSON lines, Parquet or a data set, and label_column=NAME, the column that holds them."
                    if self.kind == "text"
                    else "open it with id2label=, the model's labels, as task_for does."
                )
            )
        return replace(self, choice=choice if self.choice is None else self.choice.narrowed(choice))

    @property
    def full_name(self) -> str:
        """Its name, and the choice in words."""
        return self.name if self.choice is None else f"{self.name}, {self.choice.told}"

    def __iter__(self) -> "Reading":
        return Reading(self)


class Reading(Iterator[Document]):
    """One pass over a corpus: an iterator that knows what it handed out and what it left out.

    Nothing is read ahead: a task stops consuming when it has enough, and `record` then describes exactly
    the documents that it was given.

    Attributes:
        documents: how many documents were handed out.
        empty: documents without content met on the way (0-byte images, blank texts), in any split.
        corrupt: images of this split that could not be decoded.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.documents = 0
        self.empty = 0
        self.corrupt = 0
        self._elsewhere = 0
        self._not_chosen = 0
        self._met = None if corpus.choice is None else Met(corpus.choice)
        self._digest = hashlib.sha256()
        self._entries = corpus.source.entries()
        if isinstance(self._entries, Generator):
            # A half-read file is closed with its reading, at the latest before the interpreter takes itself apart.
            weakref.finalize(self, self._entries.close)

    def __next__(self) -> Document:
        choice = self.corpus.choice
        for entry in self._entries:
            # Before the split is asked: a blank document is counted in every split and belongs to none.
            if entry.blank:
                self.empty += 1
                continue
            self._meet(entry)
            if choice is not None and not choice.admits(entry.label):
                self._not_chosen += 1
            elif self.corpus.split not in ("all", split_at(entry.sha256, self.corpus.source.shares)):
                self._elsewhere += 1
            else:
                try:
                    document = entry.open()
                except UnreadableImage as error:
                    self._skip(entry, error)
                    continue
                self._count(entry, document)
                return document
        self.require_labels()
        self._require_documents()
        raise StopIteration

    def _meet(self, entry: Entry) -> None:
        if self._met is not None:
            self._met.add(entry.label)

    def require_labels(self) -> None:
        """Refuse a choice by a label that no document has; what is left is read until all were met, and not counted."""
        if self._met is None:
            return
        while not self._met.all_asked and (entry := next(self._entries, None)) is not None:
            if not entry.blank:
                self._meet(entry)
        self._met.require_all(self.corpus.name)

    def _skip(self, entry: Entry, error: UnreadableImage) -> None:
        self.corrupt += 1
        if self.corrupt == 1:
            message = f"{entry.id} in {self.corpus.full_name} was skipped: {error}. Further ones are only counted."
            # Level 3 passes `_skip` and `__next__`: the warning names the line that reads the corpus.
            warnings.warn(message, CorruptImageWarning, stacklevel=3)

    def _count(self, entry: Entry, document: Document) -> None:
        self.documents += 1
        parts = [entry.content] if entry.whole is None else [entry.content, entry.whole]
        if isinstance(document, ImageDocument):
            parts.append(f"label {document.label}".encode())
        for part in parts:  # with their lengths, so that moving a boundary changes the digest
            self._digest.update(len(part).to_bytes(8, "big") + part)

    def _require_documents(self) -> None:
        if self.documents:
            return
        name, split = self.corpus.full_name, self.corpus.split
        what = "images" if self.corpus.kind == "image" else "documents"
        left_out = f"{self.empty} were empty and {self.corrupt} could not be decoded"
        if self._elsewhere:
            raise CorpusError(
                f"the {split} split of {name} has no {what}: {self._elsewhere} fell into other splits, {left_out}; "
                f"give a larger corpus, cut into more documents, or take split='all'."
            )
        if self._not_chosen:
            left_out = f"{self._not_chosen} have other labels, {left_out}"
        raise CorpusError(f"{name} has no {what} ({left_out}); give a source that holds some.")

    @property
    def digest(self) -> str:
        """SHA-256 over the contents handed out so far (and, for images, their labels), in order."""
        return self._digest.hexdigest()

    def record(self, *, size_requested: int | None, size_obtained: int, unit: str) -> CorpusRecord:
        """What was used: the documents handed out so far, beside what was asked for.

        Args:
            size_requested: in `unit`s; None when everything was asked for.
            size_obtained: what the handed-out documents amounted to, as their consumer counts it.
            unit: "tokens", "images" or "documents".
        """
        source = self.corpus.source
        return CorpusRecord(
            name=self.corpus.full_name,
            source=source.location,
            split=self.corpus.split,
            kind=source.kind,
            digest=self.digest,
            python=source.python,
            size_requested=size_requested,
            size_obtained=size_obtained,
            unit=unit,
            documents=self.documents,
            skipped_empty=self.empty,
            skipped_corrupt=self.corrupt,
            settings=(*source.settings, *(() if self.corpus.choice is None else self.corpus.choice.settings)),
        )


def warn_when_short(record: CorpusRecord) -> None:
    """Issue a `CorpusSizeWarning` when a record obtained less than it requested.

    >>> digits = Reading(Corpus("mine", Source("mine", "text", lambda: iter([text_entry("One.", "0")]))))
    >>> record = digits.record(size_requested=10, size_obtained=len(list(digits)), unit="documents")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_when_short(record)
    >>> print(caught[0].message)
    all of mine amounts to 1 documents; 10 were asked for, so 1 were used.
    """
    if record.size_requested is not None and record.size_obtained < record.size_requested:
        which = f"all of {record.name}" if record.split == "all" else f"the {record.split} split of {record.name}"
        message = (
            f"{which} amounts to {record.size_obtained} {record.unit}; "
            f"{record.size_requested} were asked for, so {record.size_obtained} were used."
        )
        warnings.warn(message, CorpusSizeWarning, stacklevel=2)

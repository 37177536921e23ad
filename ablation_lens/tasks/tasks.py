"""What a model is asked to do: which documents it reads and which of its predictions are scored.

`task_for(model)` picks the task; `task.batches(...)` makes a `BatchPlan`, which is iterated for its batches.
"""

import hashlib
import random
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from ablation_lens import zoo
from ablation_lens.corpora import (
    Corpus,
    CorpusSizeWarning,
    ImageDocument,
    TextDocument,
    open_corpus,
    own_corpus,
    warn_when_short,
)
from ablation_lens.corpora.choice import Label, LabelChoice, label_of_cell, several
from ablation_lens.corpora.labels import class_id, class_words, labels_by_id
from ablation_lens.errors import CorpusError, ModelError
from ablation_lens.hooked import advice_for, task_of, tokenizer_of
from ablation_lens.names import require_known
from ablation_lens.tasks.batch_sizes import AUTO, USUAL_POSITIONS, checked_batch_size, fitting_batch_size
from ablation_lens.tasks.inputs import told, whole
from ablation_lens.tasks.plans import Batch, BatchPlan, ImageItem, Item, TextItem, cut_batches

__all__ = ["Batch", "BatchPlan", "CausalLM", "ImageClassification", "MaskedLM", "Task", "task_for"]

COUNTS = ("all", "skip-common")
COMMON_TOKENS = 50
_COMMON_SAMPLE = 100_000
"""How many tokens of the collect split the commonest tokens are counted on."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What the three tasks share: turning a corpus into a plan."""

    name: ClassVar[str]
    unit: ClassVar[str]
    corpus: Corpus

    @abstractmethod
    def _items(self, corpus_split: Corpus, size: int | None, seed: int, count: str) -> tuple[list[Item], Any]:
        """The planned documents and the reading they came from."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Positions of the longest document."""

    @property
    def pad_token(self) -> int:
        """What padding is filled with; its value is never scored."""
        return 0

    @property
    def _draws(self) -> bool:
        return False

    def batches(
        self,
        *,
        split: str = "evaluate",
        tokens: int | None = None,
        images: int | None = None,
        batch_size: int | str | None = None,
        seed: int = 42,
        count: str = "all",
        model: Any = None,
    ) -> BatchPlan:
        """Plan the batches of a split: fixed before anything runs, the same on every run and machine.

        Args:
            split: "collect" or "evaluate" (embedded corpora also "train").
            tokens: how many tokens, special ones included; None for the whole split. Images: `images`.
            images: how many images.
            batch_size: documents per batch; None chooses about 8192 positions, "auto" by the memory that is free now
                beside `model`, so that another day the plan may be another.
            seed: draws the masks of a masked model.
            count: "all" predictions, or "skip-common": those of special and of the 50 commonest other tokens are not
                scored.
            model: who will read them; needed for "auto".

        >>> from ablation_lens import load_model
        >>> plan = task_for(load_model("tiny-opt")).batches(split="evaluate", tokens=1000)
        >>> plan.size, plan.predictions + len(plan.items), next(iter(plan)).inputs.ndim
        (1000, 1000, 2)
        """
        size = self._size(tokens, images)
        if count not in COUNTS:
            raise CorpusError(f"count={count!r} is not known; use 'all' or 'skip-common'.")
        chosen = checked_batch_size(batch_size)
        if chosen == AUTO and model is None:
            raise CorpusError(
                "batch_size='auto' depends on the model; give it, too: batches(batch_size='auto', model=model)."
            )
        items, reading = self._items(self.corpus.restricted_to(split), size, seed, count)
        plan = self._batched(items, reading, size, count=count, seed=seed)
        if chosen == AUTO:
            chosen = fitting_batch_size(model, plan)
        return plan if chosen is None else plan.cut(int(chosen))

    def only(self, label: Any) -> Self:
        """The same task, reading the documents of a label, or of several, alone: in the same order and splits.

        Args:
            label: of images a class by its id or name; of texts what their `label_column` says, numbers as text or
                as they are. A label that no document has is refused when batches are planned.

        >>> from ablation_lens import load_model
        >>> task = task_for(load_model("tiny-vit"))
        >>> task.only(label=3).batches(images=20)
        BatchPlan(image-classification on digits, only 3/evaluate: 20 images in 20 documents, 1 batches, 20 predictions)
        """
        return self._chosen(label, keeps=True)

    def except_(self, label: Any) -> Self:
        """The same task without the documents of a label, or of several; see `only`.

        >>> from ablation_lens import load_model
        >>> task = task_for(load_model("tiny-vit"))
        >>> plans = [each.batches() for each in (task, task.only(label=3), task.except_(label=3))]
        >>> plans[0].size == plans[1].size + plans[2].size
        True
        """
        return self._chosen(label, keeps=False)

    def _chosen(self, given: Any, *, keeps: bool) -> Self:
        names = self._label_names()
        words = {label: names.get(label, str(label)) for label in map(self._label, several(given))}
        return replace(self, corpus=self.corpus.chosen(LabelChoice(words, keeps, names)))

    @abstractmethod
    def _label(self, given: Any) -> Label:
        """A label as documents have it."""

    def _label_names(self) -> Mapping[Any, str]:
        """How labels are written that are not texts."""
        return {}

    def _batched(self, items: list[Item], reading: Any, size: int | None, *, count: str, seed: int) -> BatchPlan:
        obtained = len(items) if self.unit == "images" else sum(item.length for item in items)
        record = reading.record(size_requested=size, size_obtained=obtained, unit=self.unit)
        reading.require_labels()  # after the record, which is of what was handed out
        if not items:
            raise CorpusError(f"no document of {record.name}/{record.split} is long enough to be scored.")
        if size is not None and size - obtained >= 2:  # a single token left over cannot be scored
            warn_when_short(record)
        lengths = [item.length for item in items]
        return BatchPlan(
            task=self.name,
            corpus=record,
            context=self.context,
            count=count,
            seed=seed if self._draws else None,
            items=tuple(items),
            batches=cut_batches(lengths, max(1, USUAL_POSITIONS // max(lengths))),
            pad_token=self.pad_token,
        )

    def _size(self, tokens: int | None, images: int | None) -> int | None:
        size, other = (images, tokens) if self.unit == "images" else (tokens, images)
        if other is not None:
            raise CorpusError(f"{self.name} is measured in {self.unit}; give {self.unit}=…")
        size = None if size is None else whole(size, self.unit)
        if size is not None and size < 2:
            raise CorpusError(f"{self.unit}={size} is too few; give at least 2, or None for the whole split.")
        return size


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A task of a model that reads text."""

    unit: ClassVar[str] = "tokens"
    tokenizer: Any
    max_context: int

    @property
    def context(self) -> int:
        """Tokens of the longest document; longer ones are truncated."""
        return self.max_context

    @property
    def pad_token(self) -> int:
        # A tokenizer without padding has None; the attention mask hides whatever stands there.
        return int(self.tokenizer.pad_token_id or 0)

    def _label(self, given: Any) -> Label:
        if not isinstance(given, str | int | float):
            raise CorpusError(f"{told(given)} is not a label of texts; give a text, a number or a truth value.")
        return label_of_cell(given, "the label that was given")

    def _items(self, corpus_split: Corpus, size: int | None, seed: int, count: str) -> tuple[list[Item], Any]:
        common: Set[int] = self._common() if count == "skip-common" else set()
        reading = iter(corpus_split)
        items: list[Item] = []
        left = size
        for text_id, tokens, special in self._tokenized(reading):
            # The last document is cut, so that the size is not exceeded. `[:None]` keeps everything.
            tokens, special = tokens[:left], special[:left]
            item = self._plan(text_id, tokens, special, seed, common)
            if item is None:
                continue
            items.append(item)
            if left is not None:
                left -= len(tokens)
                if left < 2:
                    break
        return items, reading

    def every_text(self, *, seed: int = 42) -> BatchPlan:
        """All texts of the corpus that are not blank, also those in which there is nothing to score.

        >>> from ablation_lens import load_model
        >>> task = task_for(load_model("tiny-opt"), ["One text.", "", "Another."])
        >>> [item.id for item in task.every_text().items]
        ['text 0', 'text 2']
        """
        reading = iter(self.corpus.restricted_to("all"))
        items: list[Item] = []
        for text_id, tokens, special in self._tokenized(reading):
            if not tokens:
                raise CorpusError(
                    f"{text_id} has no tokens for this model's tokenizer; leave it out, or give it a word."
                )
            item = self._plan(text_id, tokens, special, seed, frozenset())
            items.append(item or TextItem(text_id, tokens, tokens, (), _places(special)))
        return self._batched(items, reading, None, count="all", seed=seed)

    def _tokenized(self, reading: Any) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        for document in reading:
            if not isinstance(document, TextDocument):
                raise CorpusError(f"{self.corpus.name} holds images; {self.name} reads text.")
            encoded = self.tokenizer(
                document.text, truncation=True, max_length=self.context, return_special_tokens_mask=True
            )
            if document.cut and len(encoded["input_ids"]) < self.context:
                raise CorpusError(
                    f"{document.id} of {self.corpus.name} is too long to be read as a whole, and its first "
                    f"{len(document.text):,} characters are only {len(encoded['input_ids']):,} tokens of a context of "
                    f"{self.context:,}; cut it into shorter documents, or give a shorter context=."
                )
            yield document.id, tuple(encoded["input_ids"]), tuple(encoded["special_tokens_mask"])

    def _common(self) -> Set[int]:
        """The corpus' special and commonest other tokens, counted on its collect split; of equals, the lower id."""
        counts: Counter[int] = Counter()
        specials: set[int] = set()
        for _, tokens, special in self._tokenized(iter(self.corpus.restricted_to("collect"))):
            # A special token is in every text, and would take the place of a word.
            counts.update(token for token, flag in zip(tokens, special, strict=True) if not flag)
            specials.update(token for token, flag in zip(tokens, special, strict=True) if flag)
            if counts.total() >= _COMMON_SAMPLE:
                break
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        return specials.union(ranked[:COMMON_TOKENS])

    @abstractmethod
    def _plan(
        self, text_id: str, tokens: tuple[int, ...], special: tuple[int, ...], seed: int, common: Set[int]
    ) -> TextItem | None:
        """The planned document; None when nothing of it can be scored."""


@dataclass(frozen=True, kw_only=True)
class CausalLM(TextTask):
    """Predict every next token."""

    name: ClassVar[str] = "causal-lm"

    def _plan(
        self, text_id: str, tokens: tuple[int, ...], special: tuple[int, ...], seed: int, common: Set[int]
    ) -> TextItem | None:
        if len(tokens) < 2:
            return None
        scored = tuple(place for place in range(len(tokens) - 1) if tokens[place + 1] not in common)
        return TextItem(text_id, tokens, tokens, scored, _places(special))


@dataclass(frozen=True, kw_only=True)
class MaskedLM(TextTask):
    """Restore masked tokens: 15 % of the ordinary positions, of which 80 % masked, 10 % random, 10 % left alone."""

    name: ClassVar[str] = "masked-lm"
    ordinary_ids: tuple[int, ...]

    @property
    def _draws(self) -> bool:
        return True

    def _plan(
        self, text_id: str, tokens: tuple[int, ...], special: tuple[int, ...], seed: int, common: Set[int]
    ) -> TextItem | None:
        ordinary = [place for place, flag in enumerate(special) if not flag]
        if not ordinary:
            return None
        # Python's own generator: its `random()` is promised to be the same everywhere and for ever.
        # Seeded by the document, not one stream for all: a shorter plan masks the same places.
        drawn = hashlib.sha256(f"{seed} {' '.join(map(str, tokens))}".encode()).digest()
        generator = random.Random(int.from_bytes(drawn, "big"))
        # All places draw before any fate is drawn; another order would be another mask, and another digest.
        keys = {place: generator.random() for place in ordinary}
        chosen = sorted(sorted(ordinary, key=keys.__getitem__)[: max(1, round(0.15 * len(ordinary)))])
        inputs = list(tokens)
        for place in chosen:
            fate = generator.random()
            if fate < 0.8:
                inputs[place] = int(self.tokenizer.mask_token_id)
            elif fate < 0.9:
                inputs[place] = self.ordinary_ids[int(generator.random() * len(self.ordinary_ids))]
        # Common ones are masked all the same: the inputs must not depend on `count`.
        scored = tuple(place for place in chosen if tokens[place] not in common)
        return TextItem(text_id, tokens, tuple(inputs), scored, _places(special))


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Task):
    """Name the class of every image."""

    name: ClassVar[str] = "image-classification"
    unit: ClassVar[str] = "images"
    image_processor: Any
    positions: int
    n_labels: int
    id2label: Mapping[int, str] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Positions of an image: its patches, and CLS."""
        return self.positions

    def _label(self, given: Any) -> Label:
        if isinstance(given, str):
            # Without names of their own, classes go by their numbers.
            return class_id(given, self.id2label or {number: str(number) for number in range(self.n_labels)})
        if type(given) is int and 0 <= given < self.n_labels:
            return given
        raise CorpusError(
            f"{told(given)} is not a class of this model; give a name, or an id from 0 to {self.n_labels - 1}."
        )

    def _label_names(self) -> Mapping[Any, str]:
        return class_words(self.id2label)

    def _items(self, corpus_split: Corpus, size: int | None, seed: int, count: str) -> tuple[list[Item], Any]:
        if count != "all":
            raise CorpusError("count='skip-common' is about tokens; images are all counted.")
        reading = iter(corpus_split)
        items: list[Item] = []
        for document in reading:
            if not isinstance(document, ImageDocument):
                raise CorpusError(f"{self.corpus.name} holds text; {self.name} reads images.")
            if document.label is None or not 0 <= document.label < self.n_labels:
                raise CorpusError(
                    f"{document.id} has the label {document.label}; the model knows 0 to {self.n_labels - 1}. "
                    "Give a CSV with file,label (labels=…)."
                )
            prepared = self.image_processor(document.image, return_tensors="pt")["pixel_values"]
            # The size, too: the bytes alone do not tell 2 × 8 pixels from 4 × 4.
            content = f"{document.image.size} ".encode() + document.image.tobytes()
            items.append(
                ImageItem(
                    document.id,
                    hashlib.sha256(content).hexdigest()[:16],
                    document.label,
                    self.positions,
                    torch.as_tensor(prepared)[0],  # without the batch axis
                )
            )
            if size is not None and len(items) == size:
                break
        return items, reading


def planned(
    task: Task,
    split: str,
    usual: Mapping[str, int],
    *,
    tokens: int | None = None,
    images: int | None = None,
    **options: Any,
) -> BatchPlan:
    """Batches of so many tokens or images; where nobody says how many, the usual number of the task's unit, or all.

    >>> from ablation_lens import load_model
    >>> planned(task_for(load_model("tiny-vit")), "evaluate", {"tokens": 500, "images": 9}).size
    9
    """
    if tokens is not None or images is not None:
        return task.batches(split=split, tokens=tokens, images=images, **options)
    size: dict[str, Any] = {task.unit: usual.get(task.unit)}
    with warnings.catch_warnings():
        # Nobody asked for so many: all there is will do.
        warnings.simplefilter("ignore", CorpusSizeWarning)
        return task.batches(split=split, **size, **options)


CONTEXTS = {"causal-lm": 1000, "masked-lm": 512}
"""Positions a document is truncated to, by task; the paper's, as are the other defaults here."""


def task_for(model: Any, corpus: Any = None, *, context: int | None = None, **options: Any) -> Task:
    """The task a model is scored on, reading `corpus`.

    Args:
        model: from `load_model`, or any hooked model with a tokenizer.
        corpus: a name, a path, a hub data set, an opened corpus; or a list of texts, or a `Dataset` of the `datasets`
            package, whose splits are then disjoint by content, too. None takes what a model of the zoo was trained on;
            otherwise the embedded `stdlib` for text, and `digits` for a model of ten digits.
        context: positions a document is truncated to; None takes the paper's (causal 1000, masked 512)
            or the model's own limit where that is less.
        options: for `open_corpus`: `labels`, `column`, `label_column`, `block`, `errors`.

    >>> from ablation_lens import load_model
    >>> texts = [f"Text number {number} is about the number {number}." for number in range(20)]
    >>> task_for(load_model("tiny-opt"), texts).batches(split="evaluate").corpus.name
    'own texts'
    """
    require_model(model)
    for name in options:
        require_known(name, _OPTIONS, "option")
    context = None if context is None else whole(context, "context")
    if context is not None and context < 1:
        raise CorpusError(f"context={context} is not possible; use 1 or more.")
    kind = task_of(model)
    if kind == "image-classification":
        if context is not None:
            raise CorpusError(f"context={context} is about texts; an image always has {model.cfg.n_ctx} positions.")
        return _image_task(model, corpus, options)
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ModelError(
            "this model has no tokenizer, so it cannot read texts; feed it your own token ids, "
            "Batch.causal(tokens), or set model.tokenizer."
        )
    if kind == "masked-lm" and tokenizer.mask_token_id is None:
        raise ModelError("this model's tokenizer has no mask token, which masked-language scoring needs.")
    limit = min(int(model.cfg.n_ctx), context or CONTEXTS[kind])
    opened = _opened(_own_corpus(model) if corpus is None else corpus, "text", options)
    if kind == "causal-lm":
        return CausalLM(corpus=opened, tokenizer=tokenizer, max_context=limit)
    special = set(tokenizer.all_special_ids)
    # len(), because `vocab_size` of Hugging Face leaves added tokens out; some have no row in the embedding.
    known = min(len(tokenizer), int(model.cfg.d_vocab))
    ordinary = tuple(token for token in range(known) if token not in special)
    return MaskedLM(corpus=opened, tokenizer=tokenizer, max_context=limit, ordinary_ids=ordinary)


def _own_corpus(model: Any) -> str:
    # Before training, or rotated, a model of the zoo reads what it did: "tiny-llama (random 0)".
    name = str(getattr(getattr(model, "record", None), "name", "")).partition(" (")[0]
    return str(zoo.training_record(name)["corpus"]) if name in zoo.NAMES else "stdlib"


_OPTIONS = ("labels", "column", "label_column", "block", "errors", "split")


def require_model(model: Any) -> None:
    if not hasattr(model, "cfg"):
        raise ModelError(f"{told(model)} is not a model with TransformerLens hooks; {advice_for(model)}.")


def _image_task(model: Any, corpus: Any, options: dict[str, Any]) -> ImageClassification:
    # Hooked by somebody else, a model need not have either.
    processor, id2label = getattr(model, "image_processor", None), getattr(model, "id2label", None)
    if processor is None:
        raise ModelError(
            "this model has no image processor to read a corpus with; put preprocessor_config.json beside its weights, "
            "or feed it your own Batch.images(pixels, positions)."
        )
    if id2label is None:
        raise ModelError("this image model has no id2label, so its classes have no names; set model.id2label = {0: …}.")
    if corpus is None and {str(label) for label in id2label.values()} != {str(digit) for digit in range(10)}:
        raise CorpusError("this image model needs a corpus=: a folder of images, or imagenet-1k.")
    opened = _opened("digits" if corpus is None else corpus, "image", {"id2label": id2label, **options})
    return ImageClassification(
        corpus=opened,
        image_processor=processor,
        positions=model.cfg.n_ctx,
        n_labels=len(id2label),
        id2label=labels_by_id(id2label),
    )


def _opened(corpus: Any, kind: Any, options: dict[str, Any]) -> Corpus:
    if isinstance(corpus, Corpus):
        return corpus
    return (open_corpus if isinstance(corpus, str | Path) else own_corpus)(corpus, kind=kind, **options)


def _places(flags: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(place for place, flag in enumerate(flags) if flag)

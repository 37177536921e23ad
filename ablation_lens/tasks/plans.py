"""The batch plan: which documents, in which order, truncated and padded how, cut into which batches.

A plan is fixed before anything runs, and every cell of a study shares it. It is a value: made of integers and
strings, equal on every run and machine, with a digest that says so.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import task_of
from ablation_lens.records import CorpusRecord
from ablation_lens.sending import send
from ablation_lens.tasks.inputs import ids_of, mask_of, one_or_more_rows, pixels_of, told, whole
from ablation_lens.tasks.prompts import id_of_answer, mask_places, tokens_of_texts


@dataclass(frozen=True)
class Batch:
    """Inputs, and what is known about every position of them.

    Attributes:
        inputs: token ids [batch pos], or images [batch channel height width].
        valid: [batch pos], the positions that are real: not padding.
        labels: what is predicted *at* each position [batch pos], or for each image [batch].
        scored: which predictions count; shaped like `labels`.
        special: [batch pos], real positions that hold BOS, CLS, EOS and the like; None when there are none.
        documents: the plan's number of each row's document. A number that comes again is the same document, gone on
            with, if `plan` is the same.
        answers: right answers of each row, filled with -1 where another row has more; None where labels say it all.
        wrong: wrong answers, likewise. Metrics such as `logit_difference` compare the two.
        valid_given: False where nobody said what is padding. `collect`, `evaluate` and `gather_contexts` then take
            the tokenizer's pad token before and after a text for padding; a model without a tokenizer cannot tell.
        plan: the digest of the plan whose numbers `documents` are; "" for numbers of your own.

    >>> batch = Batch.causal(torch.tensor([[5, 6, 7], [8, 9, 0]]), valid=torch.tensor([[1, 1, 1], [1, 1, 0]]).bool())
    >>> batch.labels.tolist(), batch.scored.tolist()
    ([[6, 7, 0], [9, 0, 0]], [[True, True, False], [True, False, False]])
    """

    inputs: Tensor
    valid: Bool[Tensor, "batch pos"]
    labels: Int[Tensor, "batch *pos"]
    scored: Bool[Tensor, "batch *pos"]
    special: Bool[Tensor, "batch pos"] | None = None
    documents: tuple[int, ...] = ()
    valid_given: bool = True
    answers: Int[Tensor, "batch answer"] | None = None
    wrong: Int[Tensor, "batch answer"] | None = None
    plan: str = ""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("inputs", "valid", "labels", "scored")}
        other = [f"{name} as {told(value)}" for name, value in given.items() if not isinstance(value, Tensor)]
        if other:
            raise MismatchError(
                f"a Batch is made of tensors, got {', '.join(other)}; Batch.causal(tokens) takes lists and arrays, too."
            )
        batch = self.inputs.shape[0]
        shapes = {"valid": self.valid.shape[:1], "labels": self.labels.shape[:1], "scored": self.scored.shape[:1]}
        wrong = [name for name, shape in shapes.items() if tuple(shape) != (batch,)]
        if wrong or self.labels.shape != self.scored.shape or self.valid.ndim != 2:
            raise MismatchError(
                f"a batch of {batch} inputs needs valid [batch pos], and labels and scored of one shape; got "
                f"{tuple(self.valid.shape)}, {tuple(self.labels.shape)} and {tuple(self.scored.shape)}."
            )
        if self.scored.dtype != torch.bool or self.valid.dtype != torch.bool:
            raise MismatchError(f"valid and scored must be boolean, got {self.valid.dtype} and {self.scored.dtype}.")
        for name in ("answers", "wrong"):
            if (ids := getattr(self, name)) is not None:
                object.__setattr__(self, name, _each_once(ids, batch, name))

    @classmethod
    def causal(
        cls, tokens: Int[Tensor, "batch pos"] | Mapping[str, Any], valid: Bool[Tensor, "batch pos"] | None = None
    ) -> "Batch":
        """A batch of your own tokens, every next token scored; `valid` marks what is not padding.

        Arrays and lists will do, too, a single row, and what a tokenizer returns; a mask may be of 0 and 1.
        """
        tokens, valid = _encoded(tokens, valid)
        given = valid is not None
        tokens, valid = _rows(tokens, valid)
        labels = torch.zeros_like(tokens)
        scored = torch.zeros_like(valid)
        # Both ends of a step must be real, wherever the padding lies.
        scored[:, :-1] = valid[:, 1:] & valid[:, :-1]
        labels[:, :-1] = torch.where(scored[:, :-1], tokens[:, 1:], 0)
        return cls(tokens, valid, labels, scored, valid_given=given)

    @classmethod
    def prompts(
        cls,
        prompts: Int[Tensor, "batch pos"] | Iterable[str] | Mapping[str, Any],
        answers: Sequence[Any] | Int[Tensor, "batch *answer"] | int,
        wrong: Sequence[Any] | Int[Tensor, "batch *answer"] | int | None = None,
        valid: Bool[Tensor, "batch pos"] | None = None,
        *,
        model: Any = None,
    ) -> "Batch":
        """A batch of prompts, of each of which the token after the last one counts.

        Args:
            prompts: token ids, with padding on either side where `valid` says so, or what a tokenizer returns; or
                texts, with `model=`.
            answers: one per prompt, or several: token ids, or texts of one token, with `model=`. The first is the label
                of top-1 and cross-entropy.
            wrong: what `logit_difference` and `probability_difference` compare the answers with.
            valid: what is not padding.
            model: who reads texts; a masked model is asked about its mask token, not about what comes next.

        >>> tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])
        >>> batch = Batch.prompts(tokens, answers=[1, [2, 3]], valid=tokens > 0)
        >>> batch.scored.tolist(), batch.labels.tolist(), batch.answers.tolist()
        ([[False, False, True], [False, True, False]], [[0, 0, 1], [0, 2, 0]], [[1, -1], [2, 3]])
        """
        texts = _texts(prompts)
        if texts is not None:
            if valid is not None:
                raise MismatchError("valid says what is padding among token ids, and texts have none; leave it out.")
            if model is None:
                raise MismatchError(
                    "prompts that are texts need the model that reads them: Batch.prompts(…, model=model)."
                )
            prompts, valid = tokens_of_texts(model, texts)
        prompts, valid = _encoded(prompts, valid)
        tokens, real = _rows(prompts, valid)
        right, not_right = (
            None if given is None else _answers(given, len(tokens), model) for given in (answers, wrong)
        )
        plain = cls(
            tokens,
            real,
            torch.zeros_like(tokens),
            torch.zeros_like(real),
            valid_given=valid is not None,
            answers=right,
            wrong=not_right,
        )
        if task_of(model) != "masked-lm":
            return plain.asked_at_the_end()
        scored = mask_places(model, tokens)
        assert right is not None
        return replace(plain, scored=scored, labels=torch.where(scored, right[:, :1].to(tokens), 0))

    @classmethod
    def images(cls, pixels: Float[Tensor, "batch channel height width"], positions: int) -> "Batch":
        """A batch of your own images, none of them scored; a model makes so many `positions` of each (`cfg.n_ctx`)."""
        pixels = pixels_of(pixels, "pixels")
        rows = len(pixels)
        valid = torch.ones(rows, whole(positions, "positions"), dtype=torch.bool)
        return cls(pixels, valid, torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.bool))

    @property
    def size(self) -> int:
        """Real positions in the batch."""
        return int(self.valid.sum())

    @property
    def padded(self) -> bool:
        """Whether some position is not real."""
        known: bool | None = vars(self).get("_padded")
        return not bool(self.valid.all()) if known is None else known

    def counted(self, include_bos: bool) -> Bool[Tensor, "batch pos"]:
        """Real positions, with those of BOS and the like or without."""
        return self.valid if include_bos or self.special is None else self.valid & ~self.special

    def arguments(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the model is called: positional and keyword arguments.

        The mask is left out when nothing is padded, so that any hooked model can be fed.
        """
        if self.inputs.ndim > 2 or not self.padded:
            return (self.inputs,), {}
        return (self.inputs,), {"attention_mask": self.valid.long()}

    def asked_at_the_end(self) -> "Batch":
        """The same prompts, scored at the last real position of each row."""
        assert self.answers is not None
        if not bool(self.valid.any(1).all()):
            raise MismatchError("a prompt is empty; every row needs a real position.")
        last = self.valid.shape[1] - 1 - self.valid.flip(1).long().argmax(1)
        scored, labels = torch.zeros_like(self.valid), torch.zeros_like(self.labels)
        rows = torch.arange(len(last))
        scored[rows, last], labels[rows, last] = True, self.answers[:, 0].to(labels)
        return replace(self, scored=scored, labels=labels)

    def from_start(self) -> "Batch":
        """The same batch with every text at the start of its row, where positions are counted from.

        >>> tokens, valid = torch.tensor([[0, 5, 6]]), torch.tensor([[False, True, True]])
        >>> Batch.causal(tokens, valid).from_start().inputs.tolist()
        [[5, 6, 0]]
        """
        valid = self.valid
        # An image has no padding, and its positions are not those of the input.
        if self.inputs.shape != valid.shape or not bool((valid[:, 1:] & ~valid[:, :-1]).any()):
            return self
        order = (~valid).byte().argsort(dim=1, stable=True)

        def moved(part: Tensor) -> Tensor:
            return part.gather(1, order) if part.shape == valid.shape else part

        return replace(
            self,
            inputs=moved(self.inputs),
            valid=moved(valid),
            labels=moved(self.labels),
            scored=moved(self.scored),
            special=None if self.special is None else moved(self.special),
        )

    def each_tensor(self, change: Callable[[Tensor], Tensor], **others: Any) -> "Batch":
        """The same batch with one change made to all of its tensors, and others to what else it holds."""
        changed: dict[str, Any] = {name: change(part) for name, part in vars(self).items() if isinstance(part, Tensor)}
        made = object.__new__(type(self))
        # Not by the constructor, which asks whether answers are possible: these were, and may be on a device by now.
        vars(made).update({field.name: vars(self)[field.name] for field in fields(self)} | changed | others)
        return made

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch on another device, which is not waited for."""
        moved = self.each_tensor(lambda part: send(part, device))
        # On an accelerator, asking would wait until all work before is done. What is on the CPU may be written to.
        if moved.valid.device.type != "cpu":
            vars(moved)["_padded"] = self.padded
        return moved

    def rows(self, start: int, stop: int | None = None) -> "Batch":
        """Some of the rows, padded as before.

        >>> Batch.causal(torch.tensor([[5, 6], [7, 8], [9, 1]])).rows(1).inputs.tolist()
        [[7, 8], [9, 1]]
        """
        part = slice(start, stop)
        return self.each_tensor(lambda each: each[part], documents=self.documents[part])

    def take(self, numbers: Sequence[int]) -> "Batch":
        """The rows of these numbers, in this order, padded as before.

        >>> Batch.causal(torch.tensor([[5, 6], [7, 8], [9, 1]])).take([2, 0]).inputs.tolist()
        [[9, 1], [5, 6]]
        """
        chosen = torch.tensor(numbers)
        documents = tuple(self.documents[number] for number in numbers) if self.documents else ()
        return self.each_tensor(lambda each: each[chosen.to(each.device)], documents=documents)


def _answers(given: Any, rows: int, model: Any) -> Int[Tensor, "batch answer"]:
    """Answers per row as token ids, filled with -1."""
    plain = _plain(given)
    if rows == 1 and isinstance(plain, str | int):
        plain = [plain]
    listed = [each if _is_list(each) else [each] for each in map(_plain, plain)] if _is_list(plain) else []
    if len(listed) != rows or not all(listed):
        raise MismatchError(
            f"{rows} prompts need answers for each, one or several, such as [5, 7] or [[5, 6], [7, 8]]; got "
            f"{given!r:.100}."
        )
    listed = [list(map(_plain, row)) for row in listed]
    if model is None and any(not isinstance(each, int) or isinstance(each, bool) for row in listed for each in row):
        raise MismatchError(
            "answers are token ids; texts need the model that reads them: Batch.prompts(…, model=model). Got "
            f"{given!r:.100}."
        )
    ids = [[id_of_answer(model, each) for each in row] for row in listed]
    widest = max(map(len, ids))
    return torch.tensor([[*row, *[-1] * (widest - len(row))] for row in ids])


def _each_once(ids: Any, rows: int, name: str) -> Int[Tensor, "batch answer"]:
    """Answers of which none counts twice in a row, the fillings last."""
    if not isinstance(ids, Tensor):
        raise MismatchError(f"{name} is {told(ids)}; give a tensor [batch answer], or Batch.prompts(tokens, answers).")
    if ids.ndim != 2 or len(ids) != rows or ids.dtype == torch.bool or ids.is_floating_point() or not ids.shape[1]:
        raise MismatchError(f"{name} must be whole numbers [batch answer], got {ids.dtype} {tuple(ids.shape)}.")
    filling = ids == -1
    if bool(((ids < 0) & ~filling).any() | filling[:, 0].any() | (filling[:, :-1] & ~filling[:, 1:]).any()):
        raise MismatchError(
            f"{name} hold {int(ids[ids < 0][0])}, and ids are counted from 0; -1 only fills a row up where another has "
            "more of them."
        )
    # Sorted, not all compared with all: "any number above this one" is many answers.
    order = ids.argsort(dim=1, stable=True)
    ordered = ids.gather(1, order)
    follows = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    again = torch.zeros_like(follows).scatter(1, order, follows) & ~filling
    if not bool(again.any()):
        return ids
    filled = ids.masked_fill(again, -1)
    filled = filled.gather(1, (filled < 0).byte().argsort(dim=1, stable=True))
    return filled[:, : int((filled >= 0).sum(1).max())]


def _texts(prompts: Any) -> list[Any] | None:
    """Prompts that are texts, in whatever they are held; None where they are not."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Iterator) or (isinstance(prompts, np.ndarray) and prompts.dtype.kind in "OU"):
        return list(prompts)
    return list(prompts) if _is_list(prompts) and any(isinstance(each, str) for each in prompts) else None


def _encoded(tokens: Any, valid: Any) -> tuple[Any, Any]:
    """Ids and mask of what a tokenizer returns; other tokens as they are."""
    if not isinstance(tokens, Mapping):
        return tokens, valid
    if tokens.get("input_ids") is None:
        keys = ", ".join(map(repr, list(tokens)[:10])) or "nothing"
        raise MismatchError(f"tokens are a dict of {keys}, without 'input_ids'; give what a tokenizer returns.")
    mask = tokens.get("attention_mask")
    if mask is not None and valid is not None:
        raise MismatchError("these tokens have an attention_mask, which says what is padding; leave valid out.")
    return tokens["input_ids"], valid if mask is None else mask


def _plain(value: Any) -> Any:
    """Python's own numbers and lists in place of NumPy's and torch's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _rows(tokens: Any, valid: Any) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Token ids and which of them are real, out of tensors, arrays or lists."""
    tokens = one_or_more_rows(ids_of(tokens, "tokens"), "tokens")
    if valid is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    return tokens, mask_of(valid, tokens.shape, "valid").to(tokens.device)


@dataclass(frozen=True)
class TextItem:
    """A document as the model will read it.

    `tokens` is the text, `inputs` what is fed (with masks, for a masked model), `scored` the positions whose
    prediction counts, and `special` those of BOS, EOS and the like.
    """

    id: str
    tokens: tuple[int, ...]
    inputs: tuple[int, ...]
    scored: tuple[int, ...]
    special: tuple[int, ...]

    @property
    def length(self) -> int:
        """Positions."""
        return len(self.inputs)

    @property
    def read(self) -> Any:
        """What a model is given of it, and what would be right everywhere; not what is scored."""
        return self.inputs, self.tokens

    def facts(self) -> list[Any]:
        """What the plan's digest covers."""
        # Not `special`: no score depends on it.
        return [list(self.inputs), list(self.tokens), list(self.scored)]


@dataclass(frozen=True)
class ImageItem:
    """An image as the model will see it; the digest covers its content and label, not its place."""

    id: str
    content: str
    label: int
    length: int
    # Not compared: `==` of two tensors has no single truth value. `content` is a digest of the image.
    pixels: Float[Tensor, "channel height width"] = field(compare=False, repr=False)

    @property
    def read(self) -> Any:
        """What a model is given of it, by its content, and what would be right."""
        return self.content, self.length, self.label

    def facts(self) -> list[Any]:
        """What the plan's digest covers."""
        return [self.content, self.label, self.length]


Item = TextItem | ImageItem


@dataclass(frozen=True)
class BatchPlan:
    """The fixed list of documents of a task, and how they are batched.

    Attributes:
        task: `causal-lm`, `masked-lm` or `image-classification`.
        corpus: where the documents are from.
        context: the longest document, in positions; longer ones were truncated.
        count: "all" or "skip-common".
        seed: drew the masks; None where nothing is drawn.
        items: the documents in corpus order.
        batches: item numbers of each batch; rows are padded to their batch's longest item.
        pad_token: what padding is filled with.
    """

    task: str
    corpus: CorpusRecord
    context: int
    count: str
    seed: int | None
    items: tuple[Item, ...]
    batches: tuple[tuple[int, ...], ...]
    pad_token: int = 0

    @property
    def size(self) -> int:
        """Tokens (special ones included), or images."""
        texts = [item.length for item in self.items if isinstance(item, TextItem)]
        return sum(texts) if texts else len(self.items)

    @property
    def predictions(self) -> int:
        """How many predictions are scored."""
        return sum(len(item.scored) if isinstance(item, TextItem) else 1 for item in self.items)

    @property
    def padding(self) -> float:
        """Share of the batches' positions that is padding."""
        padded = sum(len(batch) * max(self.items[number].length for number in batch) for batch in self.batches)
        return 1 - sum(item.length for item in self.items) / padded if padded else 0.0

    @functools.cached_property  # every batch asks for it
    def digest(self) -> str:
        """A digest of everything a model's score over this plan depends on, besides the model."""
        facts = {
            "task": self.task,
            "count": self.count,
            "items": [item.facts() for item in self.items],
            "batches": [list(batch) for batch in self.batches],
            "pad": self.pad_token,
        }
        # Every cell's key holds this digest: spelled otherwise, nothing measured before would be found again.
        return hashlib.sha256(json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()).hexdigest()[:16]

    def cut(self, batch_size: int) -> "BatchPlan":
        """The same documents in batches of so many.

        >>> from ablation_lens import load_model, task_for
        >>> task = task_for(load_model("tiny-opt"))
        >>> task.batches(tokens=1000).cut(3).digest == task.batches(tokens=1000, batch_size=3).digest
        True
        """
        return replace(self, batches=cut_batches([item.length for item in self.items], batch_size))

    def reads_as(self, other: "BatchPlan") -> bool:
        """Whether another plan has the same inputs and labels, batch by batch; other predictions may be scored.

        >>> from ablation_lens import load_model, task_for
        >>> task = task_for(load_model("tiny-opt"))
        >>> both = [task.batches(tokens=500, count=count) for count in ("all", "skip-common")]
        >>> both[0].reads_as(both[1]), both[0].reads_as(task.batches(tokens=600))
        (True, False)
        """
        alike = (self.task, self.batches, self.pad_token) == (other.task, other.batches, other.pad_token)
        return alike and [item.read for item in self.items] == [item.read for item in other.items]

    def part(self, start: int, stop: int | None = None) -> "PlanPart":
        """Some of the batches, `[start, stop)`: a shard, or what an interrupted collection left.

        >>> from ablation_lens import load_model, task_for
        >>> plan = task_for(load_model("tiny-opt")).batches(tokens=1000, batch_size=1)
        >>> [len(plan.part(0, 2)), len(plan.part(2))] == [2, len(plan) - 2]
        True
        """
        return PlanPart(self, whole(start, "start"), len(self) if stop is None else whole(stop, "stop"))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.nth, range(len(self)))

    def nth(self, place: int) -> Batch:
        """The batch at a place, counted from 0."""
        return self.batch(self.batches[place])

    @overload
    def __getitem__(self, place: int) -> Batch: ...

    @overload
    def __getitem__(self, place: slice) -> "PlanPart": ...

    def __getitem__(self, place: int | slice) -> "Batch | PlanPart":
        """A batch, or the `part` between two of them.

        >>> from ablation_lens import load_model, task_for
        >>> plan = task_for(load_model("tiny-opt")).batches(tokens=1000, batch_size=1)
        >>> len(plan[0].inputs), len(plan[:2]), len(plan[-2:])
        (1, 2, 2)
        """
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                raise MismatchError(
                    f"a step of {step} leaves batches out; a part of a plan goes from one batch to another."
                )
            return self.part(start, stop)
        number = whole(place, "the place of a batch")
        if not -len(self) <= number < len(self):
            raise MismatchError(f"there is no batch {number} among {len(self)}; count from 0.")
        return self.nth(number % len(self))

    def batch(self, numbers: tuple[int, ...]) -> Batch:
        """The documents of these numbers, padded to the longest of them."""
        items = [self.items[number] for number in numbers]
        if self.task == "image-classification":
            return _image_batch([item for item in items if isinstance(item, ImageItem)], numbers, self)
        return _text_batch([item for item in items if isinstance(item, TextItem)], numbers, self)

    def __repr__(self) -> str:
        unit = "images" if self.task == "image-classification" else "tokens"
        return (
            f"{type(self).__name__}({self.task} on {self.corpus.name}/{self.corpus.split}: {self.size:,} {unit} in "
            f"{len(self.items)} documents, {len(self.batches)} batches, {self.predictions:,} predictions)"
        )


@dataclass(frozen=True)
class PlanPart:
    """The batches `[start, stop)` of a plan. What is collected from parts merges to what the plan gives."""

    plan: BatchPlan
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= len(self.plan):
            raise MismatchError(
                f"no batches {self.start} to {self.stop} are among {len(self.plan)}; count from 0, name at least one."
            )

    @property
    def size(self) -> int:
        """Tokens (special ones included), or images."""
        items = [self.plan.items[number] for batch in self.plan.batches[self.start : self.stop] for number in batch]
        return sum(item.length if isinstance(item, TextItem) else 1 for item in items)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Batch]:
        return map(self.plan.nth, range(self.start, self.stop))


def plan_of(batches: Any) -> BatchPlan | None:
    """The plan that batches are of, in part or whole; None for a user's own."""
    if isinstance(batches, PlanPart):
        return batches.plan
    return batches if isinstance(batches, BatchPlan) else None


def cut_batches(lengths: Sequence[int], batch_size: int) -> tuple[tuple[int, ...], ...]:
    """Batches of documents of similar length, the longest first: little padding, and memory peaks at once.

    >>> cut_batches([3, 9, 4, 8], batch_size=2)
    ((1, 3), (2, 0))
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    return tuple(tuple(order[start : start + batch_size]) for start in range(0, len(order), batch_size))


def _text_batch(items: list[TextItem], numbers: tuple[int, ...], plan: BatchPlan) -> Batch:
    length = max(item.length for item in items)

    def rows(fill: int, values: Callable[[TextItem], Sequence[int]]) -> Tensor:
        return torch.tensor([[*values(item), *[fill] * (length - item.length)] for item in items])

    def marks(positions: Callable[[TextItem], Sequence[int]]) -> Tensor:
        marked = torch.zeros(len(items), length, dtype=torch.bool)
        for row, item in enumerate(items):
            marked[row, list(positions(item))] = True
        return marked

    valid = marks(lambda item: range(item.length))
    scored = marks(lambda item: item.scored)
    labels = rows(0, lambda item: item.tokens)
    if plan.task == "causal-lm":  # the prediction at a position is of the token after it
        labels = torch.cat([labels[:, 1:], torch.zeros_like(labels[:, :1])], dim=1)
    return Batch(
        # On the right: positions are counted from 0 in every row.
        inputs=rows(plan.pad_token, lambda item: item.inputs),
        valid=valid,
        labels=torch.where(scored, labels, 0),
        scored=scored,
        special=marks(lambda item: item.special),
        documents=numbers,
        plan=plan.digest,
    )


def _image_batch(items: list[ImageItem], numbers: tuple[int, ...], plan: BatchPlan) -> Batch:
    valid = torch.ones(len(items), items[0].length, dtype=torch.bool)
    special = torch.zeros_like(valid)
    special[:, 0] = True  # CLS
    return Batch(
        inputs=torch.stack([item.pixels for item in items]),
        valid=valid,
        labels=torch.tensor([item.label for item in items]),
        scored=torch.ones(len(items), dtype=torch.bool),
        special=special,
        documents=numbers,
        plan=plan.digest,
    )

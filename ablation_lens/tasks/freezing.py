"""Batches of somebody's own as a plan: kept as they are, with a digest, so that studies and records can name them."""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.hooked import task_of
from ablation_lens.records import CorpusRecord
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch, BatchPlan, ImageItem, Item, PlanPart, TextItem

OWN = "own batches"
"""What such a plan calls the corpus that its rows are from."""

_SCORED = ("inputs", "valid", "labels", "scored", "answers", "wrong")
"""What a model's score over a batch depends on."""


@dataclass(frozen=True, repr=False)
class FrozenPlan(BatchPlan):
    """A plan of batches that somebody gave: what `BatchPlan` is to documents.

    Its `items` are the rows, or where the batches number their documents, those; its digest is over the tensors, with
    every text at the start of its row. `layout` is a digest of where padding stands otherwise.
    """

    held: tuple[Batch, ...] = field(default=(), repr=False, compare=False)
    content: str = ""
    layout: str = field(default="", compare=False)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of inputs, masks, labels and what is scored, batch by batch."""
        return self.content[:16]

    @property
    def predictions(self) -> int:
        """How many predictions are scored."""
        return sum(int(batch.scored.sum()) for batch in self.held)

    @property
    def padding(self) -> float:
        """Share of the batches' positions that is padding."""
        return 1 - sum(batch.size for batch in self.held) / sum(batch.valid.numel() for batch in self.held)

    def nth(self, place: int) -> Batch:
        """The batch at a place, as it was given."""
        return self.held[place]


def freeze(model: Any, given: Any, *, split: str = "all", scored: bool = False) -> BatchPlan:
    """What was given, as a plan: read once, and kept; a plan, and texts, which become one, stay what they are.

    Args:
        model: what will read it.
        given: whatever `collect` takes.
        split: what the record of the plan's rows says they are for.
        scored: refuse what says nothing of what is to be predicted.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-opt")
    >>> plan = freeze(model, torch.tensor([[5, 6, 7], [8, 9, 4]]))
    >>> plan, plan.digest == freeze(model, [[5, 6, 7], [8, 9, 4]]).digest
    (FrozenPlan(causal-lm on own batches/all: 6 tokens in 2 documents, 1 batches, 4 predictions), True)
    """
    found = batches_of(model, given, scored=scored)
    if isinstance(found, BatchPlan):
        return found
    padding = Padding(model, stacklevel=3)
    # Padding stays where it was given: a metric of one's own sees the same as in `evaluate`.
    held, items, rows = _numbered([padding.marked(batch).to("cpu") for batch in found])
    if not any(batch.size for batch in held):
        raise CorpusError("these batches hold no real position; give some that do.")
    from_start = [batch.from_start() for batch in held]
    content = _digest(from_start, _SCORED)
    moved = any(one is not other for one, other in zip(held, from_start, strict=True))
    images = held[0].inputs.ndim == 4
    return FrozenPlan(
        task=task_of(model),
        corpus=CorpusRecord(
            name=OWN,
            source="batches given in Python",
            split=split,
            kind="image" if images else "text",
            digest=content,
            python=None,
            size_requested=None,
            size_obtained=len(items) if images else sum(item.length for item in items),
            unit="images" if images else "tokens",
            documents=len(items),
        ),
        context=max(batch.valid.shape[1] for batch in held),
        count="all",
        seed=None,
        items=tuple(items),
        batches=tuple(rows),
        held=tuple(replace(batch, plan=content[:16]) for batch in held),
        content=content,
        layout=_digest(held, ("valid",))[:16] if moved else "",
    )


def _numbered(batches: Sequence[Batch]) -> tuple[list[Batch], list[Item], list[tuple[int, ...]]]:
    """The batches with their documents numbered from 0, these documents, and which of them each batch holds."""
    own = all(batch.documents for batch in batches)
    numbers: dict[tuple[str, int], int] = {}
    items: list[Item] = []
    held, rows = [], []
    row = 0
    for batch in batches:
        here, texts = [], batch.from_start()
        for place in range(len(batch.inputs)):
            said = batch.documents[place] if own else row
            row += 1
            item = _item(texts, place, f"{'document' if own else 'row'} {said}")
            known = batch.plan, said  # two plans have documents of one number
            if known not in numbers:
                numbers[known] = len(items)
                items.append(item)
            elif isinstance(item, TextItem):
                items[numbers[known]] = _continued(items[numbers[known]], item)
            here.append(numbers[known])
        rows.append(tuple(here))
        held.append(replace(batch, documents=tuple(here)))
    return held, items, rows


def _item(batch: Batch, row: int, identity: str) -> Item:
    """A row as a document: what of it is real."""
    valid = batch.valid[row]
    if batch.inputs.ndim == 4:
        content = hashlib.sha256(_bytes(batch.inputs[row])).hexdigest()[:16]
        return ImageItem(identity, content, int(batch.labels[row]), len(valid), batch.inputs[row])
    tokens = tuple(batch.inputs[row][valid].tolist())
    special = () if batch.special is None else _places(batch.special[row])
    return TextItem(identity, tokens, tokens, _places(batch.scored[row]), special)


def _places(flags: Tensor) -> tuple[int, ...]:
    return tuple(flags.nonzero().flatten().tolist())


def _continued(first: Item, rest: TextItem) -> TextItem:
    """A document that goes on in another row."""
    assert isinstance(first, TextItem)
    moved = (tuple(place + first.length for place in places) for places in (rest.scored, rest.special))
    scored, special = moved
    return TextItem(
        first.id, first.tokens + rest.tokens, first.inputs + rest.inputs, first.scored + scored, first.special + special
    )


def _digest(batches: Iterable[Batch], parts: Sequence[str]) -> str:
    whole = hashlib.sha256()
    for batch in batches:
        for name in parts:
            part = getattr(batch, name)
            if part is not None:
                whole.update(f"{name} {tuple(part.shape)} {part.dtype}".encode() + _bytes(part))
    return whole.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    # By way of uint8: NumPy has no bfloat16.
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def require_disjoint(collect: "BatchPlan | PlanPart", evaluate: "BatchPlan | PlanPart") -> None:
    """Refuse two plans that share a row: what centers are computed from must not be what they are judged on.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-opt")
    >>> require_disjoint(freeze(model, [[5, 6, 7], [8, 9, 4]]), freeze(model, [[8, 9, 4]]))
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: 1 of 1 rows that are evaluated are among those that are collected, too (the \
first is row 0); centers are judged on rows that they were not computed from, so give others.
    """
    known = {_content(item) for item in _items(collect)}
    judged = _items(evaluate)
    both = [item.id for item in judged if _content(item) in known]
    if both:
        raise MismatchError(
            f"{len(both):,} of {len(judged):,} rows that are evaluated are among those that are collected, too (the "
            f"first is {both[0]}); centers are judged on rows that they were not computed from, so give others."
        )


def _items(plan: "BatchPlan | PlanPart") -> list[Item]:
    if isinstance(plan, PlanPart):
        return [plan.plan.items[number] for numbers in plan.plan.batches[plan.start : plan.stop] for number in numbers]
    return list(plan.items)


def _content(item: Item) -> Any:
    # The text, not its masked form: what was hidden differs from plan to plan.
    return item.content if isinstance(item, ImageItem) else item.tokens

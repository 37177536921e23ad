"""What people hold in their hands, as batches: texts, data sets, tensors, arrays, dicts, loaders, iterators.

`batches_of` is called once by everything that runs a model over batches, so that all take the same.
"""

import inspect
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ablation_lens.corpora import Corpus, is_dataset, names
from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.hooked import task_of, tokenizer_of
from ablation_lens.tasks.inputs import ids_of, mask_of, one_or_more_rows, pixels_of, tensor_of, told
from ablation_lens.tasks.plans import Batch, BatchPlan, PlanPart
from ablation_lens.tasks.tasks import Task, TextTask, require_model, task_for

IGNORED = -100
"""What stands in Hugging Face labels where nothing is predicted."""

_TOGETHER = 256
"""How many texts of a stream, or rows, are looked at at once, to batch those of similar length."""

_INPUTS = {"input_ids", "pixel_values"}

_IN_ORDER = "texts in the order given"
"""What stands for a plan where texts are numbered over several of them."""

_POSITIONS = 8192
"""Of a batch that is made of single rows."""

_WANTED = (
    "give texts, a Dataset, token ids [batch pos] or a dict with input_ids, a list or DataLoader of such, or "
    "al.task_for(model).batches(...)"
)


class TruncationWarning(UserWarning):
    """Texts were longer than a model reads at once, and only their beginnings were read."""


class Given:
    """Batches made of what somebody gave, one after another as they are asked for.

    `once` says that they can be read a single time, as they come from an iterator.
    """

    def __init__(self, model: Any, items: Iterable[Any], *, once: bool = False, scored: bool = False) -> None:
        self.model, self.items, self.once, self._scored = model, items, once, scored

    def __iter__(self) -> Iterator[Batch]:
        items = iter(self.items)
        first = next(items, self)  # what nobody can have given
        if first is self:
            used_up = "an iterator that is empty or was read before" if self.once else "nothing"
            raise CorpusError(f"batches is {used_up}; {_WANTED}.")
        items = map(_texts_of, itertools.chain([first], items))
        yield from self._of_texts(items) if isinstance(_texts_of(first), str) else self._of_inputs(items)

    def _of_texts(self, texts: Iterator[Any]) -> Iterator[Batch]:
        """Texts as `task_for` reads them, numbered by their order; the blank ones are left out."""
        before = 0
        for some in iter(lambda: list(itertools.islice(texts, _TOGETHER)), []):
            _require_texts(some)
            if all(not text.strip() for text in some):
                continue
            plan = text_plan(self.model, some)
            yield from _numbered_on(plan, before)
            before += len(plan.items)

    def _of_inputs(self, items: Iterator[Any]) -> Iterator[Batch]:
        """Every item is a batch; single rows that stand side by side become one."""
        rows: list[Batch] = []
        before = 0
        for item in items:
            if _holds_texts(item):
                yield from _drained(rows)
                _require_texts(item)
                plan = text_plan(self.model, item)
                yield from _numbered_on(plan, before)
                before += len(plan.items)
                continue
            batch, single = self._batch(item)
            if not single or not (rows and _go_together(rows, batch)):
                yield from _drained(rows)
            if single:
                rows.append(batch)
            else:
                yield batch
        yield from _drained(rows)

    def _batch(self, item: Any) -> tuple[Batch, bool]:
        """The batch of an item, and whether it was given as a single row or image, without the batch axis."""
        images = task_of(self.model) == "image-classification"
        if isinstance(item, Batch):
            return item, False
        if isinstance(item, Mapping):
            return self._of_mapping(item)
        if isinstance(item, str):
            raise MismatchError("a text stands between batches of tensors; give texts alone, or none.")
        if isinstance(item, list | tuple) and any(_is_tensor(each) and each.ndim for each in item):
            # What `DataLoader(TensorDataset(tokens))` gives; of more than one tensor nothing says which is what.
            if len(item) == 1:
                return self._batch(item[0])
            raise MismatchError(
                f"a batch is a {type(item).__name__} of {len(item)} tensors, which does not say what is what; give "
                "dicts such as {'input_ids': …, 'labels': …} (for images {'pixel_values': …, 'labels': …}): a "
                "DataLoader makes them by its collate_fn."
            )
        if not (_is_tensor(item) or isinstance(item, list | tuple)):
            raise MismatchError(f"a batch is {told(item)}; {_WANTED}.")
        # Whole numbers are ids, unless the model reads images, which says what is wrong with them.
        if _is_tensor(item) and item.ndim >= 3 and (images or tensor_of(item[:0], "a batch").is_floating_point()):
            return self._of_mapping({"pixel_values": item})
        return self._of_mapping({"input_ids": item})

    def _of_mapping(self, item: Mapping[Any, Any]) -> tuple[Batch, bool]:
        task = task_of(self.model)
        wanted = "pixel_values" if task == "image-classification" else "input_ids"
        if item.get(wanted) is None:
            keys = ", ".join(map(repr, list(item)[:10])) or "nothing"
            if item.get("pixel_values") is not None or item.get("input_ids") is not None:
                raise MismatchError(f"a batch of {keys} was given to a model for {task}; it needs {wanted!r}.")
            raise MismatchError(
                f"a batch is a dict of {keys}, without {wanted!r}; give what a tokenizer or an image processor "
                "returns, or texts: {'text': [...]}."
            )
        for name in ("position_ids", "inputs_embeds"):
            if item.get(name) is not None:
                raise MismatchError(f"{name!r} cannot be given to a hooked model here; leave it out.")
        if wanted == "pixel_values":
            return self._of_images(item)
        return self._of_tokens(item, masked=task == "masked-lm")

    def _of_images(self, item: Mapping[Any, Any]) -> tuple[Batch, bool]:
        pixels = pixels_of(item["pixel_values"])
        single = pixels.ndim == 3
        if single:
            pixels = pixels[None]
        if pixels.ndim != 4 or not pixels.numel():
            raise MismatchError(
                f"pixel_values have the shape {tuple(pixels.shape)}; images are [batch channel height width]."
            )
        batch = Batch.images(pixels, int(self.model.cfg.n_ctx))
        named = [name for name in ("labels", "label") if item.get(name) is not None]
        if not named and self._scored:
            raise MismatchError(
                "these images have no labels, so nothing can be scored; give {'pixel_values': …, 'labels': …}."
            )
        if not named:
            return batch, single
        labels = _class_ids(item[named[0]])
        if labels.shape != (len(pixels),):
            raise MismatchError(f"{len(pixels)} images have labels of shape {tuple(labels.shape)}; give one for each.")
        scored = labels != IGNORED
        return replace(batch, labels=labels.masked_fill(~scored, 0), scored=scored), single

    def _of_tokens(self, item: Mapping[Any, Any], *, masked: bool) -> tuple[Batch, bool]:
        _require_rows(item)
        item = _padded(item)
        ids = ids_of(item["input_ids"])
        single, ids = ids.ndim == 1, one_or_more_rows(ids)
        mask = item.get("attention_mask")
        valid = None if mask is None else mask_of(mask, ids.shape).to(ids.device)
        batch = Batch.causal(ids, valid)
        if (flags := item.get("special_tokens_mask")) is not None:
            batch = replace(batch, special=mask_of(flags, ids.shape, "special_tokens_mask").to(ids.device))
        if item.get("labels") is not None:
            return _labelled(batch, item["labels"], masked=masked), single
        if masked and self._scored:
            raise MismatchError(
                "these token ids do not say what a masked model is to predict; give labels (-100 where nothing is "
                "predicted), or texts, in which tokens are then masked."
            )
        if masked:
            batch = replace(batch, labels=torch.zeros_like(ids), scored=torch.zeros_like(batch.scored))
        return batch, single


def batches_of(
    model: Any, given: Any, *, passes: int = 1, keep: bool = False, scored: bool = False
) -> "BatchPlan | PlanPart | Given":
    """Batches of whatever was given; a plan stays what it is.

    A text or a list of texts becomes a plan, truncated and padded as by `task_for`, all of it, in its own order. Token
    ids, pixels and dicts of them are batches, and a list, a `Dataset`, a `DataLoader` or any other iterable is taken
    item by item. Labels mean what they mean to Hugging Face: -100 is ignored, and a causal model's are copies of
    `input_ids`, which are shifted here.

    Args:
        model: what will read them.
        given: see above.
        passes: how often they will be read; what can be read a single time is refused for more.
        keep: read an iterator now, so that it can be read as often as needed.
        scored: refuse what says nothing of what is to be predicted.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-opt")
    >>> batches_of(model, ["One text.", "Another."])
    BatchPlan(causal-lm on own texts/all: 10 tokens in 2 documents, 1 batches, 8 predictions)
    >>> [batch.labels.tolist() for batch in batches_of(model, {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]})]
    [[[6, 7, 0]]]
    """
    require_model(model)
    if isinstance(given, BatchPlan | PlanPart):
        return given
    found = given if isinstance(given, Given) else _understood(model, given, scored)
    if isinstance(found, BatchPlan) or not found.once:
        return found
    if passes > 1:
        raise MismatchError(
            f"passes={passes} reads the batches twice, and an iterator is used up after one; give a list or a plan."
        )
    return Given(model, list(found)) if keep else found


def text_plan(model: Any, texts: Sequence[str]) -> BatchPlan:
    """The plan of all these texts that are not blank."""
    if task_of(model) == "image-classification":
        raise MismatchError(
            "texts were given to a model of images; give pixel_values, as its image processor makes them."
        )
    task = task_for(model, texts)
    assert isinstance(task, TextTask)
    return task.every_text()


def _tell_what_was_cut(model: Any, texts: Sequence[str], plan: BatchPlan) -> None:
    if all(item.length < plan.context for item in plan.items):
        return
    # Read again, whole: a tokenizer that cuts does not say so. Without its own warning, which is about its model.
    tokenizer = tokenizer_of(model)
    cut = sum(len(tokenizer(text, verbose=False)["input_ids"]) > plan.context for text in texts)
    if cut:
        warnings.warn(
            f"{cut:,} of {len(texts):,} texts are longer than the {plan.context:,} tokens that are read at once, and "
            "only their beginnings are; cut them into shorter texts to read all of them.",
            TruncationWarning,
            stacklevel=5,  # `_understood`, `batches_of`, what called it, and the user's own line
        )


def _numbered_on(plan: BatchPlan, before: int) -> Iterator[Batch]:
    """A plan's batches, whose documents go on with the numbers of those before them."""
    for batch in plan:
        yield replace(batch, documents=tuple(before + number for number in batch.documents), plan=_IN_ORDER)


def _understood(model: Any, given: Any, scored: bool) -> "BatchPlan | Given":
    if isinstance(given, str):
        _require_no_name(given)
        given = [given]
    given = _texts_of(given)
    if isinstance(given, str):
        given = [given]
    if _holds_texts(given):
        _require_texts(given)
        plan = text_plan(model, given)
        _tell_what_was_cut(model, given, plan)
        return plan
    if _is_tensor(given) or (isinstance(given, Batch | Mapping) and not _is_dataset_dict(given)):
        return Given(model, [given], scored=scored)
    _require_possible(given)
    if _is_row(given):
        return Given(model, [list(given)], scored=scored)
    if is_dataset(given):
        return _of_dataset(model, given, scored)
    once = isinstance(given, Iterator)  # not by calling `iter`: a DataLoader would start its workers
    if once and inspect.isgenerator(given) and inspect.getgeneratorstate(given) == inspect.GEN_CLOSED:
        raise CorpusError(f"batches is a generator that was read to its end before; {_WANTED}.")
    return Given(model, given, once=once, scored=scored)


def _require_possible(given: Any) -> None:
    """Refuse what is no batches, and what only looks like them."""
    kind = type(given).__name__
    if isinstance(given, Task | Corpus):
        call = "it.batches(split='evaluate')" if isinstance(given, Task) else "al.task_for(model, it).batches(...)"
        raise MismatchError(f"batches is {told(given)}, of which batches are still to be made; give {call}.")
    if hasattr(given, "run_with_hooks"):
        raise MismatchError("batches is a model; the model comes first, as in collect(model, batches).")
    if isinstance(given, Path):
        raise MismatchError(
            f"batches is a path; give al.task_for(model, {str(given)!r}).batches(split='evaluate'), which reads it."
        )
    if _is_dataset_dict(given):
        raise MismatchError(f"batches is a {kind}; give one of its splits: {', '.join(map(repr, given))}.")
    if kind in ("DataFrame", "Series"):
        raise MismatchError(f"batches is a pandas {kind}; give its texts, as in list(frame['text']).")
    if isinstance(given, set | frozenset):
        raise MismatchError(f"batches is a {kind}, which has no order; give a list.")
    # A class with __getitem__ alone can be iterated, too: torch's map-style data sets.
    iterable = hasattr(given, "__iter__") or (hasattr(given, "__getitem__") and hasattr(given, "__len__"))
    if isinstance(given, bytes | type) or not iterable:
        raise MismatchError(f"batches is {told(given)}; {_WANTED}.")
    if isinstance(given, list | tuple) and not given:
        raise CorpusError(f"batches is an empty {kind}; {_WANTED}.")


def _require_no_name(text: str) -> None:
    """A name in the place of a text would be read as a text of one word, without a word."""
    path_like = re.fullmatch(r"\S+", text) and ("/" in text or "." in text or "\\" in text)
    if text in names() or (path_like and _is_there(text)) or re.fullmatch(r"[\w.-]+/[\w.-]+(:\S*)?", text):
        raise MismatchError(
            f"{text!r} names a corpus or a file, and a string is read as a text here; give "
            f"al.task_for(model, {text!r}).batches(split='evaluate'), or [{text!r}] if that is the text."
        )


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or a null byte
        return False


def _require_texts(texts: Sequence[Any]) -> None:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise MismatchError(
                f"a list of texts holds {told(text)} at place {number}; give texts alone, or token ids alone."
            )
    if all(not text.strip() for text in texts):
        raise CorpusError("every text that was given is blank; give some with words in them.")


def _texts_of(item: Any) -> Any:
    """The texts of an array, or of rows of a data set: those under "text", or the only ones; all else stays itself."""
    if isinstance(item, np.ndarray) and item.dtype.kind in "OUS":
        return list(item.flat)
    if not isinstance(item, Mapping) or _is_dataset_dict(item) or _INPUTS & set(item):
        return item
    columns = {name: _texts_of(column) for name, column in item.items()}
    texts = {name: column for name, column in columns.items() if isinstance(column, str) or _holds_texts(column)}
    return texts["text"] if "text" in texts else next(iter(texts.values())) if len(texts) == 1 else item


def _holds_texts(item: Any) -> bool:
    return isinstance(item, list | tuple) and any(isinstance(each, str) for each in item)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_dataset_dict(given: Any) -> bool:
    return type(given).__name__ in ("DatasetDict", "IterableDatasetDict")


def _is_row(given: Any) -> bool:
    """A list of numbers: the token ids of one row."""
    return isinstance(given, list | tuple | range) and all(
        isinstance(each, bool | int | float | np.number) for each in given
    )


def _of_dataset(model: Any, given: Any, scored: bool) -> "BatchPlan | Given":
    columns = given.column_names or list(next(iter(given), {}))  # of a stream that declares none a row shows them
    if "input_ids" in columns or "pixel_values" in columns:
        return Given(model, given, scored=scored)
    if task_of(model) == "image-classification":
        return task_for(model, given).batches(split="all")
    task = task_for(model, given)
    return Given(model, _Texts(task.corpus.restricted_to("all")), scored=scored)


class _Texts:
    """The texts of a corpus, read anew each time, and never all at once: a data set may be larger than memory."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __iter__(self) -> Iterator[str]:
        return (document.text for document in self.corpus if hasattr(document, "text"))


# ---------------------------------------------------------------------- labels


def _labelled(batch: Batch, labels: Any, *, masked: bool) -> Batch:
    """A batch with Hugging Face's labels: at their own places for a masked model, else those of the next tokens."""
    marks = one_or_more_rows(ids_of(labels, "labels"), "labels").to(batch.inputs.device)
    if marks.shape != batch.inputs.shape:
        raise MismatchError(
            f"labels have the shape {tuple(marks.shape)}, input_ids {tuple(batch.inputs.shape)}; every token has a "
            "label, -100 where nothing is predicted."
        )
    if masked:
        scored = (marks != IGNORED) & batch.valid
        return replace(batch, labels=marks.masked_fill(~scored, 0), scored=scored)
    _require_unshifted(batch.inputs, marks)
    # What is predicted at a place is the label of the next one.
    scored = torch.zeros_like(batch.scored)
    scored[:, :-1] = batch.scored[:, :-1] & (marks[:, 1:] != IGNORED)
    after = torch.zeros_like(marks)
    after[:, :-1] = marks[:, 1:]
    return replace(batch, labels=after.masked_fill(~scored, 0), scored=scored)


def _require_unshifted(ids: Int[Tensor, "batch pos"], marks: Int[Tensor, "batch pos"]) -> None:
    told_here = marks != IGNORED
    moved = told_here[:, :-1]
    # More than one, as a single token may be its own successor.
    if int(moved.sum()) < 2 or bool((marks == ids)[told_here].all()):
        return
    if bool((marks[:, :-1] == ids[:, 1:])[moved].all()):
        raise MismatchError(
            "labels are the input_ids moved by one; a causal model's labels are copies of input_ids, as Hugging Face "
            "has them, and are moved here."
        )


def _class_ids(labels: Any) -> Int[Tensor, " batch"]:
    marks = tensor_of(labels if _is_tensor(labels) or isinstance(labels, list | tuple) else [labels], "labels")
    if marks.ndim == 0:
        marks = marks[None]
    if marks.is_floating_point() or marks.dtype == torch.bool:
        raise MismatchError(f"labels are {marks.dtype}; give the number of each image's class.")
    return marks.long()


# ---------------------------------------------------------------------- rows of different lengths


def _require_rows(item: Mapping[Any, Any]) -> None:
    """Refuse what PyTorch's default collation makes of rows that are lists: a tensor per position, not per row."""
    for name in ("input_ids", "attention_mask", "labels", "special_tokens_mask"):
        parts: Any = item.get(name)
        listed = isinstance(parts, list | tuple) and parts and all(isinstance(part, Tensor) for part in parts)
        if listed and len({tuple(part.shape) for part in parts}) == 1 and parts[0].ndim:
            raise MismatchError(
                f"{name} is a list of tensors, as a DataLoader makes of rows that are lists: one for each position, "
                f"not for each row; give it dataset.with_format('torch'), or torch.stack({name}) if these are rows."
            )


def _padded(item: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Rows of different lengths, padded on the right, where a mask of the same lengths says that they are whole."""
    ids, mask = item["input_ids"], item.get("attention_mask")
    lengths = _lengths(ids)
    if lengths is None or len(set(lengths)) == 1 or mask is None or _lengths(mask) != lengths:
        return item
    fills = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED, "special_tokens_mask": 0}
    return {
        name: _filled(item[name], max(lengths), fill, name) if _lengths(item.get(name)) == lengths else item[name]
        for name, fill in fills.items()
        if item.get(name) is not None
    }


def _lengths(rows: Any) -> list[int] | None:
    """Of each row; None where these are not rows."""
    if not isinstance(rows, list | tuple) or not all(isinstance(r, list | tuple) or _is_tensor(r) for r in rows):
        return None
    return None if any(_is_tensor(row) and not row.ndim for row in rows) else [len(row) for row in rows]


def _filled(rows: Sequence[Any], length: int, fill: int, what: str) -> Tensor:
    whole = torch.full((len(rows), length), fill)
    for number, row in enumerate(rows):
        if len(row):
            whole[number, : len(row)] = ids_of(row, what)
    return whole


def _go_together(rows: Sequence[Batch], batch: Batch) -> bool:
    """Whether a row may be batched with those before it: then nothing becomes padding that nobody called so."""
    last = rows[-1]
    if batch.inputs.ndim == 4:
        alike = last.inputs.shape == batch.inputs.shape
    else:
        alike = last.inputs.ndim == 2 and (
            last.inputs.shape == batch.inputs.shape or (last.valid_given and batch.valid_given)
        )
    alike = alike and last.valid_given == batch.valid_given and (last.special is None) == (batch.special is None)
    return alike and len(rows) < _TOGETHER and last.inputs.device == batch.inputs.device


def _drained(rows: list[Batch]) -> Iterator[Batch]:
    """The rows as batches of about `_POSITIONS`, and the list is empty afterwards."""
    while rows:
        longest = max(row.valid.shape[1] for row in rows)
        some = rows[: max(1, _POSITIONS // longest)]
        del rows[: len(some)]
        yield some[0] if len(some) == 1 else _joined(some)


def _joined(rows: Sequence[Batch]) -> Batch:
    """Batches of a row each as one, padded on the right."""
    longest = max(row.valid.shape[1] for row in rows)

    def joined(name: str) -> Tensor:
        parts = [getattr(row, name) for row in rows]
        return torch.cat(
            [part if part.ndim != 2 else torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts]
        )

    special = None if rows[0].special is None else joined("special")
    return replace(
        rows[0],
        inputs=joined("inputs"),
        valid=joined("valid"),
        labels=joined("labels"),
        scored=joined("scored"),
        special=special,
    )

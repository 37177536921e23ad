"""Prompts: what is asked of a model, what is right and wrong, and the corrupted twin of each."""

import functools
import hashlib
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ablation_lens.circuits.prompt_file import MOST_BYTES, PromptFile, Row
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import as_unicode, shorten
from ablation_lens.files import write_result, write_text
from ablation_lens.hooked import task_of
from ablation_lens.tasks.inputs import ids_of, tensor_of, told, whole
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch
from ablation_lens.tasks.tasks import require_model

BATCH_SIZE = 16
"""Rows of a batch, where nobody says."""

MOST_POSITIONS = 2**27
"""Of all prompts together, padding included: a gigabyte of ids."""


@dataclass(frozen=True, eq=False, repr=False)
class Prompts:
    """Prompts, each asked for one token; iterating gives `Batch`es, and `len` is the number of prompts.

    Made by `Prompts.of`, which takes lists, texts and answers in any form; `prompts_for` makes those of a known task.
    Wherever batches are taken, so are these.

    Attributes:
        tokens: token ids [row pos], every prompt at the start of its row: columns are positions.
        valid: [row pos], the positions that are real: not padding.
        scored: [row pos], the one position of each row where the prediction counts.
        answers: right answers of each row, filled with -1 where another row has more.
        wrong: wrong answers, likewise; None where there are none.
        corrupted: the twin of each prompt [row pos], real at the same positions; None where there are none.
        name: what they are called.
        batch_size: rows of a batch.
        valid_given: False where nobody said what is padding (see `Batch`).
        seq_labels: what positions are called, and `word_idxs`: the position of a word, as auto-circuit's files say it;
            kept, and never read.

    >>> prompts = Prompts.of([[5, 6, 7], [8, 9]], answers=[1, [2, 3]], wrong=[4, 4], corrupted=[[6, 6, 7], [7, 9]])
    >>> prompts, len(prompts), [len(batch.inputs) for batch in prompts]
    (Prompts(prompts: 2 of 2 to 3 tokens, with wrong answers and corrupted twins), 2, [2])
    >>> batch = next(iter(prompts))
    >>> batch.inputs.tolist(), prompts.twins(batch).inputs.tolist()
    ([[5, 6, 7], [8, 9, 0]], [[6, 6, 7], [7, 9, 0]])
    """

    tokens: Int[Tensor, "row pos"]
    valid: Bool[Tensor, "row pos"]
    scored: Bool[Tensor, "row pos"]
    answers: Int[Tensor, "row answer"]
    wrong: Int[Tensor, "row answer"] | None = None
    corrupted: Int[Tensor, "row pos"] | None = None
    _: KW_ONLY
    name: str = "prompts"
    batch_size: int = BATCH_SIZE
    valid_given: bool = True
    seq_labels: tuple[str, ...] = ()
    word_idxs: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise MismatchError(f"the name of prompts is {told(self.name)}; give a text.")
        object.__setattr__(self, "name", as_unicode(self.name))
        object.__setattr__(self, "batch_size", at_least_1(self.batch_size, "batch_size"))
        self._require_shapes()
        for part in ("answers", "wrong"):  # each answer once
            object.__setattr__(self, part, getattr(self._batch, part))
        if self._batch.from_start() is not self._batch:
            raise MismatchError("a prompt begins after padding; Prompts.of(tokens, answers, valid=valid) moves it.")
        if bool((self.scored.sum(1) != 1).any() | (self.scored & ~self.valid).any()):
            raise MismatchError("every prompt is asked for one token, at one of its real positions.")
        self._require_wrong()

    def _require_shapes(self) -> None:
        shape = getattr(self.tokens, "shape", None)
        parts = {"tokens": self.tokens, "valid": self.valid, "scored": self.scored}
        if self.corrupted is not None:
            parts["corrupted"] = self.corrupted
        for name, part in parts.items():
            kind = torch.bool if name in ("valid", "scored") else torch.int64
            if not isinstance(part, Tensor) or part.ndim != 2 or part.shape != shape or part.dtype != kind:
                got = f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else told(part)
                raise MismatchError(
                    f"{name} must be {kind} [row pos], shaped like tokens, got {got}; Prompts.of(tokens, answers) "
                    "takes lists, texts and padding on either side."
                )
        if not isinstance(self.answers, Tensor) or self.answers.ndim != 2:
            raise MismatchError(f"answers are {told(self.answers)}; give a tensor [row answer], or use Prompts.of.")

    def _require_wrong(self) -> None:
        if self.wrong is None:
            return
        for row, (right, others) in enumerate(zip(self.answers.tolist(), self.wrong.tolist(), strict=True)):
            if both := {each for each in others if each >= 0}.intersection(right):
                raise MismatchError(
                    f"prompt {row} has {min(both)} among its answers and among its wrong answers; it can be only one."
                )

    @classmethod
    def of(
        cls,
        prompts: Any,
        answers: Any,
        wrong: Any = None,
        corrupted: Any = None,
        *,
        valid: Any = None,
        model: Any = None,
        name: str = "prompts",
        batch_size: int = BATCH_SIZE,
    ) -> "Prompts":
        """Prompts of texts or token ids.

        Args:
            prompts: texts (with `model=`); token ids [row pos], with padding on either side where `valid` says so;
                lists of ids of different lengths; or what a tokenizer returns.
            answers: one per prompt, or several: token ids, or texts of one token, with `model=`.
            wrong: wrong answers, likewise. Metrics such as `logit_difference` compare the two.
            corrupted: a twin of each prompt, with as many tokens.
            valid: what is not padding, in both.
            model: who reads texts; ids are then checked against its vocabulary, and a masked model is asked about its
                mask token, not about what comes next.
            name: what they are called.
            batch_size: rows of a batch.
        """
        clean = _read(prompts, answers, wrong, valid, model)
        twins = None if corrupted is None else _twins_of(clean, corrupted, valid, model)
        return _made(clean.from_start(), twins, name=name, batch_size=batch_size)

    @functools.cached_property
    def _batch(self) -> Batch:
        return Batch(
            self.tokens,
            self.valid,
            torch.where(self.scored, self.answers[:, :1], 0),
            self.scored,
            documents=tuple(range(len(self.tokens))),
            valid_given=self.valid_given,
            answers=self.answers,
            wrong=self.wrong,
        )

    @functools.cached_property
    def digest(self) -> str:
        """A digest of prompts, answers and twins; a batch's `plan` is this, and its `documents` are row numbers."""
        content = hashlib.sha256()
        for row in self._rows():
            content.update(json.dumps(row, sort_keys=True, separators=(",", ":")).encode())
        return content.hexdigest()[:16]

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Each prompt as a file has it."""
        corrupted = [None] * len(self) if self.corrupted is None else self.corrupted.tolist()
        wrong = [[]] * len(self) if self.wrong is None else self.wrong.tolist()
        columns = zip(
            self.tokens.tolist(),
            self.valid.sum(1).tolist(),
            self.scored.long().argmax(1).tolist(),
            self.answers.tolist(),
            wrong,
            corrupted,
            strict=True,
        )
        for tokens, length, asked, right, others, twin in columns:
            row: dict[str, Any] = {"clean": tokens[:length]}
            if twin is not None:
                row["corrupt"] = twin[:length]
            row["answers"] = [each for each in right if each >= 0]
            row["wrong_answers"] = [each for each in others if each >= 0]
            if asked != length - 1:
                row["asked"] = asked
            yield row

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[Batch]:
        numbered = replace(self._batch, plan=self.digest)
        return (numbered.rows(start, start + self.batch_size) for start in range(0, len(self), self.batch_size))

    def twins(self, batch: Batch) -> Batch:
        """The corrupted twins of a batch of these prompts, or of a part of one: the same rows, columns and answers.

        >>> prompts = Prompts.of([[5, 6], [7, 8]], answers=[1, 2], corrupted=[[5, 4], [7, 4]])
        >>> [prompts.twins(batch.rows(1)).inputs.tolist() for batch in prompts]
        [[[7, 4]]]
        """
        corrupted = self._corrupted()
        if batch.plan != self.digest or len(batch.documents) != len(batch.inputs):
            raise MismatchError(
                f"this batch is not one of the prompts {self.name!r}, so its corrupted twin is not known; give the "
                "prompts themselves as batches."
            )
        columns, device = batch.inputs.shape[1], batch.inputs.device
        numbers = torch.tensor(batch.documents)
        as_made = self.tokens[numbers, :columns].to(device)
        # Moved or cut otherwise, columns are not the positions of the twin.
        if bool(((batch.inputs != as_made) & batch.valid).any()):
            raise MismatchError(
                f"a batch of the prompts {self.name!r} was changed, so its columns are not those of its corrupted "
                "twin; give the prompts themselves as batches, made with valid= if they are padded."
            )
        return replace(batch, inputs=corrupted[numbers, :columns].to(device))

    def corrupted_batches(self) -> Iterator[Batch]:
        """The corrupted twins, batch by batch, in the layout of the clean ones."""
        self._corrupted()
        return map(self.twins, self)

    def _corrupted(self) -> Int[Tensor, "row pos"]:
        if self.corrupted is None:
            raise MismatchError(
                f"the prompts {self.name!r} have no corrupted twins; give them: Prompts.of(…, corrupted=…)."
            )
        return self.corrupted

    def rows(self, numbers: Any) -> "Prompts":
        """Some of the prompts: a number, several in any order, a slice, or a mask.

        >>> prompts = Prompts.of([[5, 6], [7, 8], [9, 8]], answers=[1, 2, 3])
        >>> prompts.rows([2, 0]).tokens.tolist(), prompts[1:].answers.tolist(), len(prompts[-1])
        ([[9, 8], [5, 6]], [[2], [3]], 1)
        """
        chosen = self._chosen(numbers)
        if not chosen:
            raise MismatchError(f"none of the {len(self):,} prompts would be left; choose at least one.")
        return _made(
            replace(self._batch.take(chosen), documents=()),
            None if self.corrupted is None else self.corrupted[chosen],
            name=self.name,
            batch_size=self.batch_size,
            seq_labels=self.seq_labels,
            word_idxs=self.word_idxs,
        )

    def __getitem__(self, numbers: Any) -> "Prompts":
        return self.rows(numbers)

    def _chosen(self, numbers: Any) -> list[int]:
        if isinstance(numbers, slice):
            try:
                return list(range(len(self)))[numbers]
            except (TypeError, ValueError) as error:
                raise MismatchError(f"prompts {numbers!r:.60} are not possible; give whole numbers.") from error
        plain = numbers.tolist() if hasattr(numbers, "tolist") else numbers
        if not isinstance(plain, Iterable):
            plain = [plain]
        listed = list(plain)
        if listed and all(isinstance(each, bool) for each in listed):
            if len(listed) != len(self):
                raise MismatchError(f"a mask of {len(listed):,} prompts was given for {len(self):,}.")
            return [row for row, chosen in enumerate(listed) if chosen]
        rows = []
        for each in listed:
            try:
                row = operator.index(each)
            except TypeError as error:
                raise MismatchError(f"the number of a prompt is {told(each)}; give whole numbers.") from error
            if isinstance(each, bool) or not -len(self) <= row < len(self):
                raise MismatchError(f"there is no prompt {each!r} among {len(self):,}; count from 0.")
            rows.append(row % len(self))
        return rows

    def split(self, seed: int = 0) -> tuple["Prompts", "Prompts"]:
        """Two halves that share no prompt: find a circuit on one, and judge it on the other.

        Prompts of the same tokens are in the same half, whatever their answers. The draw depends on the prompts and the
        seed alone: not on their order, the machine or a library's version.

        >>> first, second = Prompts.of([[5, 6], [7, 8], [5, 6], [9, 8]], answers=[1, 2, 3, 4]).split()
        >>> len(first), len(second), first.tokens[0].tolist() in second.tokens.tolist()
        (2, 2, False)
        """
        number = whole(seed, "seed")
        alike: dict[str, list[int]] = {}
        for row, (tokens, length) in enumerate(zip(self.tokens.tolist(), self.valid.sum(1).tolist(), strict=True)):
            # The place in the draw is a digest of the prompt itself, so that it keeps it wherever it stands.
            drawn = hashlib.sha256(f"prompts {number} {tokens[:length]}".encode()).hexdigest()
            alike.setdefault(drawn, []).append(row)
        if len(alike) < 2:
            raise MismatchError(
                f"the prompts {self.name!r} are all the same, and two halves must not share one; give at least two "
                "different ones."
            )
        halves: tuple[list[int], list[int]] = ([], [])
        for drawn in sorted(alike, key=lambda each: (-len(alike[each]), each)):
            min(halves, key=len).extend(alike[drawn])
        one, other = (
            replace(self.rows(sorted(half)), name=f"{self.name}, half {n}") for n, half in enumerate(halves, 1)
        )
        return one, other

    def save(self, path: str | Path) -> None:
        """Write auto-circuit's JSON, with token ids, atomically.

        What that schema has no word for is added to it: `name`, and `asked`, the position that is asked about, where it
        is not the last.
        """
        about: dict[str, Any] = {"name": self.name}
        if self.seq_labels:
            about["seq_labels"] = list(self.seq_labels)
        if self.word_idxs:
            about["word_idxs"] = dict(self.word_idxs)
        head = json.dumps(about)[1:-1]
        rows = ",\n".join(json.dumps(row) for row in self._rows())  # a line each
        text = f'{{{head}, "prompts": [\n{rows}\n]}}\n'
        if len(text) > MOST_BYTES:  # which `load` would refuse
            raise MismatchError(
                f"{len(self):,} prompts are {len(text):,} bytes, too many for a file; save parts of them."
            )
        write_result(Path(path), lambda place: write_text(place, text))

    @classmethod
    def load(cls, path: str | Path, model: Any = None, *, batch_size: int = BATCH_SIZE) -> "Prompts":
        """Read auto-circuit's JSON: token ids, or texts with `model`, read as its own tokenizer reads them.

        (auto-circuit puts a BOS before every text; here it is there where the tokenizer puts one.) With `model`, ids
        that it does not have are refused.
        """
        file = PromptFile.read(Path(path), model)
        try:
            return of_rows(
                file.rows,
                model,
                name=file.name,
                batch_size=batch_size,
                seq_labels=file.seq_labels,
                word_idxs=file.word_idxs,
            )
        except MismatchError as error:
            raise FileFormatError(f"the prompts of {path} cannot be used: {error}") from error

    def __repr__(self) -> str:
        lengths = self.valid.sum(1)
        low, high = int(lengths.min()), int(lengths.max())
        tokens = f"{low}" if low == high else f"{low} to {high}"
        parts = [
            name
            for name, part in (("wrong answers", self.wrong), ("corrupted twins", self.corrupted))
            if part is not None
        ]
        having = f", with {' and '.join(parts)}" if parts else ""
        # Quoted where it is more than a plain name: it may be a file's.
        name = self.name if self.name.isprintable() else repr(self.name)
        return f"{type(self).__name__}({shorten(name, 60)}: {len(self):,} of {tokens} tokens{having})"


def at_least_1(value: Any, name: str) -> int:
    """A whole number of at least 1."""
    number = whole(value, name)
    if number < 1:
        raise MismatchError(f"{name}={number} is not possible; give 1 or more.")
    return number


# ---------------------------------------------------------------------- out of what people give


def _read(prompts: Any, answers: Any, wrong: Any, valid: Any, model: Any) -> Batch:
    """Prompts of one kind, as they were given, on either side of their padding."""
    prompts, valid = _equally_long(prompts, valid)
    batch = Batch.prompts(prompts, answers, wrong, valid, model=model)
    if model is None:
        return batch
    require_model(model)
    # What is padding is known now, or cannot be told.
    return replace(Padding(model, stacklevel=4).marked(batch), valid_given=True)


def _twins_of(clean: Batch, corrupted: Any, valid: Any, model: Any) -> Int[Tensor, "row pos"]:
    """The corrupted prompts, at the starts of their rows."""
    corrupted, valid = _equally_long(corrupted, valid)
    rows = len(clean.inputs)
    if (count := _count(corrupted)) != rows:
        raise MismatchError(f"there are {rows:,} prompts and {count:,} corrupted ones; each needs its own.")
    if valid is None and getattr(corrupted, "shape", None) == clean.inputs.shape:
        valid = clean.valid  # one mask for both
    twin = _read(corrupted, [0] * rows, None, valid, model).from_start()
    lengths, others = clean.valid.sum(1).tolist(), twin.valid.sum(1).tolist()
    for row, (length, other) in enumerate(zip(lengths, others, strict=True)):
        if length != other:
            raise MismatchError(
                f"prompt {row} has {length:,} tokens and its corrupted twin {other:,}, so that their positions do not "
                "correspond; give twins of as many tokens."
            )
    return twin.inputs


def _equally_long(prompts: Any, valid: Any) -> tuple[Any, Any]:
    """Rows of ids as a tensor, and which of it is real, where they differ in length; else what was given."""
    if isinstance(prompts, Iterator):
        prompts = list(prompts)
    if isinstance(prompts, list | tuple) and prompts and not isinstance(prompts[0], str):
        rows = [part.tolist() if hasattr(part, "tolist") else part for part in prompts]
        if all(isinstance(row, list | tuple) for row in rows):
            if valid is None and len({len(row) for row in rows}) > 1:
                return _padded(rows)
            return tensor_of(rows, "prompts"), valid
    return prompts, valid


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Rows of ids, padded on the right."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    if 0 in lengths:
        raise MismatchError(f"prompt {lengths.index(0)} is empty; give at least one token.")
    if longest * len(rows) > MOST_POSITIONS:
        raise MismatchError(
            f"{len(rows):,} prompts of up to {longest:,} tokens are {longest * len(rows):,} positions with padding, "
            f"and {MOST_POSITIONS:,} are possible; give those of like lengths together."
        )
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = ids_of(row, f"prompt {number}")
    return tokens, torch.arange(longest) < torch.tensor(lengths)[:, None]


def _count(prompts: Any) -> int:
    """How many prompts these are."""
    held: Any = prompts.get("input_ids") if isinstance(prompts, Mapping) else prompts
    single = isinstance(held, str) or getattr(held, "ndim", 2) == 1 or (isinstance(held, list) and _is_row(held))
    return 1 if single or not hasattr(held, "__len__") else len(held)


def _is_row(held: list[Any]) -> bool:
    return bool(held) and isinstance(held[0], int)


def _made(batch: Batch, twins: Int[Tensor, "row pos"] | None, **rest: Any) -> Prompts:
    """Prompts of a batch in which each stands at the start of its row, no wider than the longest."""
    batch = batch.to("cpu")
    assert batch.answers is not None
    valid = batch.valid[:, : int(batch.valid.sum(1).max())]

    def kept(part: Tensor) -> Tensor:
        # One value for all padding, so that equal prompts are equal.
        return part[:, : valid.shape[1]].masked_fill(~valid, 0)

    def filled(ids: Tensor) -> Tensor:
        return ids[:, : int((ids >= 0).sum(1).max())]

    return Prompts(
        kept(batch.inputs),
        valid,
        kept(batch.scored),
        filled(batch.answers),
        None if batch.wrong is None else filled(batch.wrong),
        None if twins is None else kept(twins.cpu()),
        valid_given=batch.valid_given,
        **rest,
    )


def of_rows(rows: Sequence[Row], model: Any, **about: Any) -> Prompts:
    """Prompts of rows of token ids, which `model`, if it is given, can read."""
    tokens, valid = _padded([row.clean for row in rows])
    if max(len(row.answers) + len(row.wrong) for row in rows) * len(rows) > MOST_POSITIONS:
        raise MismatchError("a prompt has more answers than is possible for so many prompts")
    batch = _read(
        tokens, [row.answers for row in rows], [row.wrong for row in rows] if rows[0].wrong else None, valid, model
    )
    if task_of(model) != "masked-lm":
        asked = torch.tensor([len(row.clean) - 1 if row.asked is None else row.asked for row in rows])
        scored = torch.arange(valid.shape[1]) == asked[:, None]
        batch = replace(batch, scored=scored)
    return _made(batch, _padded([row.corrupt for row in rows])[0] if rows[0].corrupt else None, **about)

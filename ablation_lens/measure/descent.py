"""Learning numbers through a model's hooks: Adam under masks that are drawn anew, the best state kept.

What is learned is its user's business: `optimal_constants` learns what ablated neurons are set to, an experiment
learns biases to compare with. Documents are held back from learning, and say which state is the best one.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ablation_lens.errors import CorpusError, FileFormatError, MismatchError
from ablation_lens.files import load_tensors, require_target, save_tensors
from ablation_lens.hooked import task_of
from ablation_lens.measure.forward import ordinary, require_ordinary
from ablation_lens.measure.intervals import Interval, difference
from ablation_lens.measure.metrics import Metric
from ablation_lens.measure.readout import Readout
from ablation_lens.measure.resampling import digest_of
from ablation_lens.measure.score import Sums
from ablation_lens.progress import progress_over
from ablation_lens.records import Record, record_of
from ablation_lens.sites import Hook
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.known_rows import row_digests
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch

UNFINISHED = "unfinished learning"
"""What a file calls itself that learning is gone on from."""

UNITS = ("neuron", "head")
"""What masks ablate as one."""

_FAST, _SLOW, _TINY = 0.9, 0.99, 1e-8
"""Adam's averages of gradients and of their squares, and what keeps it from dividing by zero."""
_AVERAGED = 0.98
"""How much of the average of states stays at a step: the last fifty count."""
_CHECKS = 12
"""How often the held-back documents are asked."""
_LOOK, _MOST_DRAWS = 2**14, 8
"""Positions that are then run; of few documents, each is run under several masks."""


@dataclass(frozen=True)
class Masking(Record):
    """The masks under which something is learned: a share of every layer, for every row of a batch and step anew.

    They are drawn otherwise than `random_neurons` draws, so no seed of a study or a judge gives one of them.

    Attributes:
        share: how much of every layer, from and to; a row's share is drawn between.
        unit: "neuron", or "head" for whole heads.

    >>> masks = Masking((0.5, 0.5)).draw((2, 1, 4), 3, torch.Generator().manual_seed(0))
    >>> tuple(masks.shape), masks.sum((2, 3)).unique().tolist()
    ((3, 2, 1, 4), [2])
    """

    share: tuple[float, float]
    unit: str = "neuron"

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.share
        if not 0 < low <= high <= 1:
            told = f"{low:g}" if low == high else f"({low:g}, {high:g})"
            raise MismatchError(f"share={told} is not possible; give a number above 0 and up to 1, or two.")
        if self.unit not in UNITS:
            raise MismatchError(f"unit={self.unit!r} is not possible; give {' or '.join(UNITS)}.")

    def __str__(self) -> str:
        low, high = (f"{100 * share:g}" for share in self.share)
        return f"{low if low == high else f'{low} to {high}'} %" + (" of heads" if self.unit == "head" else "")

    def draw(
        self, shape: tuple[int, int, int], rows: int, generator: torch.Generator
    ) -> Bool[Tensor, "row layer head dim"]:
        """One mask per row."""
        layers, heads, dims = shape
        units = heads * dims if self.unit == "neuron" else heads
        low, high = self.share
        shares = low + (high - low) * torch.rand(rows, 1, 1, generator=generator)
        # Rounded, as in `random_neurons`; of few units none would otherwise ever be drawn.
        wanted = (shares * units).round().clamp(min=1)
        order = torch.rand(rows, layers, units, generator=generator).argsort(-1).argsort(-1)
        chosen = order < wanted
        if self.unit == "head":
            return chosen[..., None].expand(rows, layers, heads, dims)
        return chosen.view(rows, layers, heads, dims)


@dataclass(frozen=True)
class Schedule(Record):
    """How learning goes.

    Attributes:
        steps: of Adam; 0 measures the start and learns nothing.
        rows: documents (or images) per step, each under a mask of its own.
        rate: how far a step goes at first, in what is learned; it falls to nothing on a half cosine.
        seed: draws documents and masks.
        held_back: the share of documents that is not learned from.
    """

    steps: int
    rows: int
    rate: float
    seed: int = 0
    held_back: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(type(number) is int for number in (self.steps, self.rows, self.seed))
        if not whole or self.steps < 0 or self.rows < 1 or not 0 < self.rate < math.inf or not 0 < self.held_back < 1:
            raise MismatchError(
                f"steps={self.steps}, rows={self.rows}, rate={self.rate} and held_back={self.held_back} are not "
                "possible; give whole numbers of at least 0 steps and one row, a rate above 0, and a share held back."
            )


class Repair(Protocol):
    """What is learned, as offsets from where it starts, all of about the same size."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the offsets."""
        ...

    def hooks(self, offsets: Float[Tensor, "*offset"], masks: Bool[Tensor, "row layer head dim"] | None) -> list[Hook]:
        """The hooks that act on a batch; no masks where nothing is ablated."""
        ...


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learned from: documents to learn from in groups of a step's size, and documents held back.

    Attributes:
        rows: digests of all of them.
        positions: how many real positions they have.
    """

    model: Any
    groups: tuple[tuple[Batch, ...], ...]
    held: tuple[Batch, ...]
    rows: Tensor
    positions: int

    @classmethod
    def of(cls, model: Any, batches: Any, rows: int, held_back: float) -> "Lesson":
        """Divide what `collect` takes by content: equal rows are on one side."""
        padding = Padding(model, stacklevel=4)
        task = task_of(model)
        listed = [ordinary(padding.marked(each)) for each in batches_of(model, batches, keep=True, scored=True)]
        digests = [row_digests(batch, task) for batch in listed]
        # Spread by another digest: of masked models' rows, the first way depends on what is hidden.
        keys = [[_spread(way) for way in digest[:, -1].tolist()] for digest in digests]
        order = sorted({key for each in keys for key in each})
        if len(order) < 2:
            raise CorpusError(
                f"there {'is one document' if order else 'are no documents'} to learn from, and at least two are "
                "needed: one is held back to tell when to stop."
            )
        # One document says nothing of others, so two are held back where there are as many.
        held = set(order[: max(min(2, len(order) - 1), round(held_back * len(order)))])
        learned, kept = [], []
        for batch, each in zip(listed, keys, strict=True):
            sides = [[row for row, key in enumerate(each) if (key in held) is side] for side in (False, True)]
            learned += [_trimmed(batch.take(some)) for some in _cut(sides[0], rows)]
            kept += [_trimmed(batch.take(sides[1]))] if sides[1] else []
        groups, looked = tuple(_grouped(learned, rows)), tuple(_first_rows(kept))
        if not groups or not looked:
            raise CorpusError(
                "there is nothing to learn from: of the documents learned from, or of those held back, none has a "
                "scored position. Give more documents."
            )
        return cls(
            model,
            groups,
            looked,
            torch.cat([each.flatten() for each in digests]).unique(),
            sum(batch.size for batch in listed),
        )


def _spread(digest: int) -> str:
    return hashlib.sha256(str(digest).encode()).hexdigest()


def _cut(rows: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _trimmed(batch: Batch) -> Batch:
    """Without columns that are padding in all of these rows."""
    if batch.inputs.shape != batch.valid.shape or batch.labels.ndim != 2:
        return batch
    columns = batch.valid.any(0).nonzero().flatten()
    if not len(columns):
        return batch
    part = slice(int(columns[0]), int(columns[-1]) + 1)
    shape = batch.valid.shape
    return batch.each_tensor(lambda each: each[:, part] if each.shape == shape else each)


def _grouped(batches: Sequence[Batch], rows: int) -> Iterator[tuple[Batch, ...]]:
    """Batches for one step: as many as make so many rows."""
    group: list[Batch] = []
    for batch in batches:
        if not bool(batch.scored.any()):
            continue
        group.append(batch)
        if sum(len(each.inputs) for each in group) >= rows:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def _first_rows(batches: Sequence[Batch]) -> Iterator[Batch]:
    """As many rows as one look takes, from all batches alike: those of a plan are sorted by length."""
    scored = [batch for batch in batches if bool(batch.scored.any())]
    share = min(1.0, _LOOK / max(1, sum(batch.size for batch in scored)))
    for batch in scored:
        yield batch.rows(0, max(1, round(share * len(batch.inputs))))


@dataclass(frozen=True, eq=False)
class Descended:
    """What came out.

    Attributes:
        offsets: the best state; all zero where no state was better than the start.
        gain: how much lower it is than the start, on the documents held back; the interval is over these.
        best: after how many steps; 0 for the start.
        history: step, and the loss on the documents held back.
        forward: positions that the model ran over.
        backward: positions that gradients were taken through.
        checked: positions that one look at the documents held back takes.
        finished: False where learning was interrupted.
    """

    offsets: Float64[Tensor, "*offset"]
    gain: Interval
    best: int
    history: Float64[Tensor, "check 2"]
    forward: int
    backward: int
    checked: int
    finished: bool = True

    @property
    def start(self) -> float:
        """The loss at the start, on the documents held back."""
        return float(self.history[0, 1])


class LearningInterrupted(KeyboardInterrupt):
    """Ctrl-C while learning: `found` is the best so far, and where a file keeps the state, it is gone on from there."""

    def __init__(self, found: Any, told: str) -> None:
        super().__init__(told)
        self.found = found


@dataclass
class _State:
    """Where learning is; all of it is kept in a file, so that going on gives the very same numbers."""

    step: int
    offsets: Tensor
    mean: Tensor
    square: Tensor
    average: Tensor
    best_offsets: Tensor
    best_loss: float
    best: int = 0
    forward: int = 0
    backward: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)

    _TENSORS: ClassVar[tuple[str, ...]] = ("offsets", "mean", "square", "average", "best_offsets")
    _NUMBERS: ClassVar[tuple[str, ...]] = ("step", "best", "forward", "backward")

    @classmethod
    def at_the_start(cls, shape: tuple[int, ...], device: torch.device, loss: float) -> "_State":
        zeros = [torch.zeros(shape, device=device) for _ in cls._TENSORS]
        return cls(0, *zeros, best_loss=loss, history=[(0, loss)])  # type: ignore[arg-type, misc]

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        tensors = {name: getattr(self, name) for name in self._TENSORS}
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64)
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        save_tensors(path, UNFINISHED, {"of": facts, "loss": self.best_loss, **numbers}, tensors)

    @classmethod
    def load(
        cls, path: Path, facts: dict[str, Any], shape: tuple[int, ...], device: torch.device, most: int
    ) -> "_State | None":
        """What `save` kept of this very learning; None where the file is of another one."""
        header, tensors = load_tensors(path, UNFINISHED)
        # As a file holds them: a tuple comes back as a list.
        if header.get("of") != json.loads(json.dumps(facts)):
            return None
        shapes = {
            **dict.fromkeys(cls._TENSORS, shape),
            "history": (*tensors.get("history", torch.empty(0)).shape[:1], 2),
        }
        numbers = {name: header.get(name) for name in cls._NUMBERS}
        possible = (
            {name: tuple(each.shape) for name, each in tensors.items()} == shapes
            and all(bool(each.isfinite().all()) for each in tensors.values())
            and all(
                each.dtype == (torch.float64 if name == "history" else torch.float32) for name, each in tensors.items()
            )
            and all(type(number) is int and 0 <= number < 2**62 for number in numbers.values())
            and header["best"] <= header["step"] <= most
            and bool((tensors["square"] >= 0).all())
            and isinstance(header.get("loss"), float)
        )
        if not possible:
            raise FileFormatError(f"{path} is not a whole state of learning; delete it to begin anew.")
        history = [(int(step), loss) for step, loss in tensors.pop("history").tolist()]
        moved = {name: each.to(device) for name, each in tensors.items()}
        return cls(**moved, **numbers, best_loss=header["loss"], history=history)  # type: ignore[arg-type]


def sign(metric: Metric) -> float:
    """What a metric is multiplied by to be made as small as can be."""
    return -1.0 if metric.better == "higher" else 1.0


class _Descent:
    """One learning, step by step."""

    def __init__(
        self, lesson: Lesson, repair: Repair, metric: Metric, masking: Masking | None, shape: Any, schedule: Schedule
    ) -> None:
        self.lesson, self.repair, self.metric = lesson, repair, metric
        self.masking, self.shape, self.schedule = masking, shape, schedule
        self.sign = sign(metric)
        self.device = torch.device(lesson.model.cfg.device)
        # The same masks at every check: then states differ, and not masks.
        drawn = generator_for(schedule.seed, "held back")
        draws = 1 if masking is None else _LOOK // max(1, sum(batch.size for batch in lesson.held))
        draws = min(max(1, draws), _MOST_DRAWS)
        self.held = [(batch, [self._masks(len(batch.inputs), drawn) for _ in range(draws)]) for batch in lesson.held]

    def _masks(self, rows: int, generator: torch.Generator) -> Tensor | None:
        return None if self.masking is None else self.masking.draw(self.shape, rows, generator)

    @property
    def _runs(self) -> int:
        """Of the model, for the metric once."""
        return 2 if self.metric.clean else 1

    @property
    def checked(self) -> int:
        """Positions that the model runs over for one check."""
        return self._runs * sum(batch.size * len(drawn) for batch, drawn in self.held)

    def take_step(self, state: _State) -> None:
        """One step of Adam."""
        groups, number = self.lesson.groups, state.step
        epoch, place = divmod(number, len(groups))
        order = torch.randperm(len(groups), generator=generator_for(self.schedule.seed, f"order {epoch}"))
        drawn = generator_for(self.schedule.seed, f"step {number}")
        offsets = state.offsets.clone().requires_grad_()
        gradient, weight = torch.zeros_like(state.offsets), 0.0
        for batch in groups[int(order[place])]:
            for found, weighed in self._gradients(batch, self._masks(len(batch.inputs), drawn), offsets):
                gradient += found
                weight += weighed
            state.forward += self._runs * batch.size
            state.backward += batch.size
        gradient *= self.sign / max(weight, 1e-12)
        state.step += 1
        state.mean.lerp_(gradient, 1 - _FAST)
        state.square.lerp_(gradient.square(), 1 - _SLOW)
        mean, square = (each / (1 - kept**state.step) for each, kept in ((state.mean, _FAST), (state.square, _SLOW)))
        rate = self.schedule.rate * 0.5 * (1 + math.cos(math.pi * number / max(1, self.schedule.steps)))
        state.offsets -= rate * mean / (square.sqrt() + _TINY)
        # While there are few states, their plain average.
        state.average.lerp_(state.offsets, max(1 - _AVERAGED, 1 / state.step))

    def _gradients(self, batch: Batch, masks: Tensor | None, offsets: Tensor) -> Iterator[tuple[Tensor, float]]:
        """The gradient of the sum over rows, and their weight; of halves where memory runs out."""
        try:
            readout = Readout(self.lesson.model, batch.to(self.device), self.metric)
            with torch.enable_grad():
                sums = self._under(readout, offsets, masks)
                if not sums.values.requires_grad:
                    raise MismatchError(
                        f"{self.metric.name} has no slope, so nothing can be learned by it; give one such as "
                        "cross_entropy or kl."
                    )
                (gradient,) = torch.autograd.grad(sums.values.sum(), offsets)
        except torch.OutOfMemoryError:
            if len(batch.inputs) == 1:
                raise
        else:
            yield gradient, float(sums.weights.sum())
            return
        # Outside the except: inside it the traceback keeps the failed run's tensors alive, and memory stays full.
        middle = len(batch.inputs) // 2
        for part in (slice(0, middle), slice(middle, None)):
            some = None if masks is None else masks[part]
            yield from self._gradients(batch.rows(part.start, part.stop), some, offsets)

    def check(self, offsets: Tensor) -> tuple[Float64[Tensor, " row"], Float64[Tensor, " row"]]:
        """The loss of every row held back, times its weight, and the weights."""
        values, weights = [], []
        with torch.no_grad():
            for batch, drawn in self.held:
                for part in self._parts(batch):
                    readout = Readout(self.lesson.model, batch.rows(part.start, part.stop).to(self.device), self.metric)
                    found = [self._under(readout, offsets, None if each is None else each[part]) for each in drawn]
                    values.append(self.sign * torch.stack([each.values for each in found]).double().mean(0).cpu())
                    weights.append(found[0].weights.double().cpu())
        return torch.cat(values), torch.cat(weights)

    def _under(self, readout: Readout, offsets: Tensor, masks: Tensor | None) -> Sums:
        return readout.under(self.repair.hooks(offsets, None if masks is None else masks.to(self.device)))

    def _parts(self, batch: Batch) -> Iterator[slice]:
        """Rows of a step's size at a time: what memory a step has, a check has, too."""
        for start in range(0, len(batch.inputs), self.schedule.rows):
            yield slice(start, start + self.schedule.rows)


def generator_for(seed: int, what: str) -> torch.Generator:
    """Of torch, on the CPU; of this learning alone, and of a step of it, so that going on needs no state of it."""
    drawn = hashlib.sha256(f"learning {seed} {what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))


@torch.inference_mode(False)
def descend(
    lesson: Lesson,
    repair: Repair,
    metric: Metric,
    *,
    shape: tuple[int, int, int],
    masking: Masking | None,
    schedule: Schedule,
    keep: Path | None = None,
    facts: dict[str, Any] | None = None,
    title: str = "learning",
    progress: bool = True,
) -> Descended:
    """Learn, and give the state that was best on the documents held back.

    That is the start, where no state is better than it by more than its standard error.

    Args:
        lesson: documents.
        repair: what is learned.
        metric: what is made as small as can be, or as large where higher is better.
        shape: of the masks.
        masking: which neurons are ablated; None for none.
        schedule: how long and how fast.
        keep: a file that the state is kept in, and gone on from.
        facts: what a state in such a file must be of.
        title: for the bar.
        progress: show one.
    """
    require_ordinary(lesson.model)
    if keep is not None:
        require_target(keep)
    about = {
        **(facts or {}),
        "schedule": schedule.to_dict(),
        "masking": masking and masking.to_dict(),
        # Of which model and documents: on what was learned from is not judged.
        "model": record_of(lesson.model).identity,
        "rows": digest_of(lesson.rows),
    }
    run = _Descent(lesson, repair, metric, masking, shape, schedule)
    first, weights = run.check(torch.zeros(repair.shape, device=run.device))
    total = float(weights.sum())
    state = None
    if keep is not None and keep.exists():
        state = _State.load(keep, about, repair.shape, run.device, schedule.steps)
    state = state or _State.at_the_start(repair.shape, run.device, float(first.sum()) / total)
    every = max(1, schedule.steps // _CHECKS)
    saved = state.step

    def told(finished: bool) -> Descended:
        values, _ = run.check(state.best_offsets) if state.best else (first, weights)
        gain = difference(values[None].numpy(), first[None].numpy(), weights.numpy())
        # Of many states the luckiest was chosen: what is within a standard error of the start is not better. (One
        # document has no error to look at, and so nothing is known to be better.)
        better = gain.difference + (gain.high - gain.low) / (2 * 1.959964) < 0
        if not better:
            gain = Interval(0.0, 0.0, 0.0, gain.conditional)
        offsets = state.best_offsets if better else torch.zeros_like(state.best_offsets)
        return Descended(
            offsets.double().cpu(),
            gain,
            state.best if better else 0,
            torch.tensor(state.history, dtype=torch.float64),
            state.forward + run.checked * (len(state.history) + (1 if state.best else 0)),
            state.backward,
            run.checked,
            finished,
        )

    try:
        with progress_over(title, schedule.steps, progress, "steps") as advance:
            advance(state.step)
            while state.step < schedule.steps:
                run.take_step(state)
                advance(1)
                last = state.step == schedule.steps
                if state.step % every and not last:
                    continue
                # The average lags behind, and at the end there is nothing more to wait for.
                for offsets in (state.average, state.offsets) if last else (state.average,):
                    loss = float(run.check(offsets)[0].sum()) / total
                    state.history.append((state.step, loss))
                    if loss < state.best_loss:
                        state.best, state.best_loss, state.best_offsets = state.step, loss, offsets.clone()
                advance.describe(f"{title}: {loss * run.sign:.4f} after {state.step} steps")
                if keep is not None:
                    state.save(keep, about)
                    saved = state.step
    except KeyboardInterrupt:
        kept = f" The state after {saved} steps is kept; run the same to go on." if keep is not None and saved else ""
        raise LearningInterrupted(
            told(False), f"interrupted after {state.step} of {schedule.steps} steps.{kept}"
        ) from None
    return told(True)

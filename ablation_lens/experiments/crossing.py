"""`cross_pruning`: whether what one task needs can be taken away from it alone.

Every task's neurons are pruned until it keeps a share of its top-1, and then all tasks are judged. As in "Modularity in
Transformers" (Pochinkov, Jones and Rahman, 2024), but with any center, intervals, and random neurons beside.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import random_neurons, top_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.damage import require_seeds
from ablation_lens.experiments.scores import ExperimentFolder, Scores
from ablation_lens.experiments.selection import KINDS, selectivity
from ablation_lens.files import write_result
from ablation_lens.measure.collection import collect as collect_statistics
from ablation_lens.measure.intervals import bootstrap_means
from ablation_lens.measure.score import Score
from ablation_lens.names import require_known
from ablation_lens.neurons import centers
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import Advance, progress_over
from ablation_lens.records import ModelRecord, Versions, record_of
from ablation_lens.runs.folder import checking, key_of
from ablation_lens.sites import Site
from ablation_lens.tasks.plans import BatchPlan
from ablation_lens.tasks.tasks import Task

if TYPE_CHECKING:
    import pandas

OTHERS = "the other tasks"
"""What a task's neurons are set against where nobody names a corpus."""

OUTCOMES = ("reached", "stepped over", "not reached", "given", "unknown")
"""How a search for the number of neurons ended: within the tolerance; between two neighbours, of which the nearer one
was taken; nowhere, so that all were pruned; not looked for, as it was given; impossible, as the model cannot do the
task."""

COMPARED = ("reached", "stepped over", "given")
"""Which of them tell something of a task beside the others."""

Estimates = Float64[Tensor, "*what 3"]
"""A value, and where its 95 % interval begins and ends."""


# ---------------------------------------------------------------------- what is pruned and judged


@dataclass(frozen=True, eq=False)
class TaskSet:
    """Several tasks of one model: documents that neurons are chosen on, statistics of them, and others to judge on.

    Attributes:
        model: the model.
        site: where the neurons are.
        chosen_on: per task, the plan that neurons are chosen on.
        judged_on: per task, the plan that is judged.
        statistics: per task, of `chosen_on`.
        general: statistics that every task is set against; None sets each against all the others.
        folder: where scores are kept.
    """

    model: Any
    site: Site
    chosen_on: Mapping[str, BatchPlan]
    judged_on: Mapping[str, BatchPlan]
    statistics: Mapping[str, ActivationStatistics]
    general: ActivationStatistics | None
    folder: Path | None

    @classmethod
    def of(
        cls,
        model: Any,
        tasks: Mapping[str, Any],
        *,
        site: Site | str,
        centers_used: Iterable[str],
        baseline: Any = None,
        collect: int | None = None,
        evaluate: int | None = None,
        folder: str | Path | None = None,
    ) -> "TaskSet":
        """What was given, read: every statistics file is kept in the folder, and read from there again."""
        where = Site.of(site)
        if not isinstance(tasks, Mapping) or len(tasks) < 2 or not all(isinstance(name, str) for name in tasks):
            told = sorted(map(str, tasks)) if isinstance(tasks, Mapping) else type(tasks).__name__
            raise MismatchError(f"tasks are {told}; give at least two, by name: {{'prose': task, 'code': other_task}}.")
        passes = max([1, *(centers.about(name).passes for name in centers_used)])
        chosen_on = {name: _plan(name, task, "collect", collect) for name, task in tasks.items()}
        judged_on = {name: _plan(name, task, "evaluate", evaluate) for name, task in tasks.items()}
        general_plan = None
        if baseline is not None:
            general_plan = (
                baseline if isinstance(baseline, BatchPlan) else _plan("baseline", baseline, "collect", collect)
            )
        _require_different(chosen_on, general_plan)
        if folder is not None:
            folder = ExperimentFolder.create(folder).path
        read = {name: _statistics(model, plan, where, passes, folder) for name, plan in chosen_on.items()}
        general = None
        if general_plan is not None:
            general = _statistics(model, general_plan, where, passes, folder)
        return cls(model, where, chosen_on, judged_on, read, general, folder)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were given."""
        return tuple(self.statistics)

    @property
    def retained(self) -> str:
        """What every task is set against, in words."""
        if self.general is None:
            return OTHERS
        return " + ".join(corpus.name for corpus in self.general.provenance.corpora) or "batches of one's own"

    @cached_property
    def whole(self) -> ActivationStatistics:
        """Statistics of all tasks together."""
        return _merged(self.statistics.values())

    def against(self, name: str) -> ActivationStatistics:
        """Statistics of what a task is set against: every position counts once, of whichever task."""
        if self.general is not None:
            return self.general
        return _merged(each for other, each in self.statistics.items() if other != name)

    @cached_property
    def judges(self) -> dict[str, Scores]:
        """What judges every task; documents that something was chosen on are refused."""
        known = self.whole if self.general is None else self.whole.merge(self.general)
        return {
            name: Scores(self.model, plan, statistics=known, folder=self.folder)
            for name, plan in self.judged_on.items()
        }

    def judge(self, ablation: Ablation, advance: Callable[[int], None]) -> dict[str, Score]:
        """The score of every task under an ablation."""
        made = {}
        for name, scores in self.judges.items():
            made[name] = scores.of(ablation)
            advance(1)
        return made

    @cached_property
    def chance(self) -> float:
        """Top-1 over all tasks of whoever always gives the one commonest answer."""
        labels = torch.cat([batch.labels[batch.scored] for plan in self.judged_on.values() for batch in plan])
        return float(labels.unique(return_counts=True)[1].max()) / len(labels)


@dataclass(frozen=True, eq=False)
class Selected:
    """Neurons in an order: the first so many of them are a mask."""

    scores: Float64[Tensor, "layer head dim"]

    def first(self, count: int) -> Bool[Tensor, "layer head dim"]:
        """So many of the highest scores, over all layers together; nested."""
        total = self.scores.numel()
        # A half more than the number, as a quotient may fall below it by rounding.
        return top_neurons(self.scores, min(1.0, (count + 0.5) / total), per_layer=False)


def random_like(mask: Bool[Tensor, "layer head dim"], seed: int) -> Bool[Tensor, "layer head dim"]:
    """As many random neurons in every layer as a mask has there.

    >>> random_like(torch.tensor([[[True, False, True]], [[False, False, False]]]), seed=0).sum((1, 2)).tolist()
    [2, 0]
    """
    per_layer = mask[0].numel()
    counts = mask.flatten(1).sum(1).tolist()
    drawn = [random_neurons(mask.shape, min(1.0, (count + 0.5) / per_layer), seed) for count in counts]
    return torch.stack([each[layer] for layer, each in enumerate(drawn)])


def _plan(name: str, task: Any, split: str, size: int | None) -> BatchPlan:
    if isinstance(task, Task):
        many: dict[str, Any] = {task.unit: size}
        return task.batches(split=split, **many)
    if isinstance(task, tuple | list) and len(task) == 2 and all(isinstance(plan, BatchPlan) for plan in task):
        plan: BatchPlan = task[0 if split == "collect" else 1]
        return plan
    raise MismatchError(
        f"{name} is a {type(task).__name__}; give a task such as al.task_for(model, corpus), or a pair of plans: the "
        "one that neurons are chosen on, and the one that is judged."
    )


def _require_different(plans: Mapping[str, BatchPlan], general: BatchPlan | None) -> None:
    # Set against itself, every neuron of a task is as selective as any other.
    seen: dict[str, str] = {} if general is None else {general.digest: "the baseline"}
    for name, plan in plans.items():
        if plan.digest in seen:
            raise MismatchError(f"{seen[plan.digest]} and {name} read the same documents; give tasks that differ.")
        seen[plan.digest] = name


def _statistics(model: Any, plan: BatchPlan, site: Site, passes: int, folder: Path | None) -> ActivationStatistics:
    """Those in the folder, where they are of this model and plan; collected and kept otherwise."""
    if folder is None:
        return collect_statistics(model, plan, site=site, passes=passes, progress=False)
    facts = {"model": record_of(model).identity, "plan": plan.digest, "site": site.value, "passes": passes}
    versions = {**Versions.current().to_dict(), "python": None}
    place = folder / f"statistics-{key_of({**facts, 'versions': versions})}.safetensors"
    if place.exists():
        with checking(place):
            return ActivationStatistics.load(place)
    found = collect_statistics(model, plan, site=site, passes=passes, progress=False)
    write_result(place, found.save)
    return found


def _merged(parts: Iterable[ActivationStatistics]) -> ActivationStatistics:
    return reduce(lambda one, other: one.merge(other), parts)


# ---------------------------------------------------------------------- what is found


@dataclass(frozen=True, eq=False, repr=False)
class CrossPruning:
    """What every task keeps of its top-1 without the neurons of each; made by `cross_pruning`.

    Where a number of a task would be a ratio of noise, as the model cannot do the task, it is NaN: see `is_done`.

    Attributes:
        source: the model.
        site: where the neurons are.
        tasks: their names; the axes `pruned` and `task` follow them.
        retained: what every task was set against, in words.
        kind: of importance.
        value: what pruned neurons are set to: a center of what the task is set against.
        target: which share of its top-1 a task was to keep.
        tolerance: how near that had to be.
        chance: top-1 over all tasks of whoever always gives the one commonest answer.
        seeds: of random masks.
        masks: the neurons that were pruned for each task.
        outcomes: how each search ended, one of `OUTCOMES`.
        found: the share that each task kept where its neurons were chosen; NaN where none was looked for.
        together: top-1 of the whole model over all tasks.
        baseline: top-1 of every task in the whole model.
        relative: top-1 beside the baseline.
        rise: of the cross-entropy, in nats.
        random: top-1 beside the baseline without as many random neurons of every layer, the mean over seeds.
        random_rise: of the cross-entropy then.
        gaps: per pruned task, three: the share that it keeps itself minus the mean of the others; the same for random
            neurons; and the difference of the two.
        means: over tasks whose search ended (`COMPARED`): own share, that of the others, and the three gaps.
    """

    source: ModelRecord
    site: str
    tasks: tuple[str, ...]
    retained: str
    kind: str
    value: str
    target: float
    tolerance: float
    chance: float
    seeds: tuple[int, ...]
    outcomes: tuple[str, ...]
    masks: Bool[Tensor, "pruned layer head dim"]
    found: Float64[Tensor, " pruned"]
    together: Float64[Tensor, "3"]
    baseline: Float64[Tensor, "task 3"]
    relative: Float64[Tensor, "pruned task 3"]
    rise: Float64[Tensor, "pruned task 3"]
    random: Float64[Tensor, "pruned task 3"]
    random_rise: Float64[Tensor, "pruned task 3"]
    gaps: Float64[Tensor, "pruned 3 3"]
    means: Float64[Tensor, "5 3"]

    @property
    def fractions(self) -> tuple[float, ...]:
        """Which share of all neurons was pruned for each task."""
        return tuple(self.masks.flatten(1).double().mean(1).tolist())

    @property
    def is_done(self) -> tuple[bool, ...]:
        """Which tasks the model does better than one answer for everything would, beyond chance."""
        return tuple(_is_done(self.together, each, self.chance) for each in self.baseline)

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row per pruned task and judged task: what is kept, and how much the cross-entropy rises, with intervals."""
        import pandas

        rows = []
        for i, pruned in enumerate(self.tasks):
            about = {"pruned": pruned, "fraction": self.fractions[i], "outcome": self.outcomes[i]}
            for j, task in enumerate(self.tasks):
                row = about | {"task": task, "top1": float(self.baseline[j, 0])}
                measured = {"relative": self.relative, "rise": self.rise}
                for name, values in (measured | {"random": self.random, "random_rise": self.random_rise}).items():
                    row |= dict(zip((name, f"{name}_low", f"{name}_high"), values[i, j].tolist(), strict=True))
                rows.append(row)
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        names = [on_one_line(name)[:12] for name in self.tasks]
        head = (
            f"CrossPruning({on_one_line(self.source.name)}, {self.site}: {on_one_line(self.kind)} against "
            f"{on_one_line(self.retained)}, → {on_one_line(self.value)}); share of top-1 that is kept"
        )
        lines = [head, f"  {'pruned':<14}{'neurons':>9}" + "".join(f"{name:>13}" for name in names)]
        for i, name in enumerate(names):
            cells = "".join(f"{told_share(float(value)):>13}" for value in self.relative[i, :, 0])
            lines.append(f"  {name:<14}{self.fractions[i]:>9.2%}{cells}")
        return "\n".join([*lines, *map(on_one_line, self.sentences())])

    def sentences(self) -> Iterator[str]:
        """What was found, in words."""
        if not any(self.is_done):
            own = float(torch.diagonal(self.rise[..., 0]).mean())
            others = float(self.rise[..., 0][~torch.eye(len(self.tasks), dtype=torch.bool)].mean())
            right = told_with_interval(self.together, ".1%")
            yield (
                f"The model is right in {right} of all predictions, and one answer for everything "
                f"in {self.chance:.1%}: a share of its top-1 would be a ratio of noise, and none is given. "
                f"Without its neurons, the cross-entropy of a task changes by {own:+.4f} nats, that of the others by "
                f"{others:+.4f}."
            )
            return
        own, others, gap, chance, beyond = self.means
        if bool(torch.isfinite(gap[0])):
            yield (
                f"Without its neurons a task keeps {told_share(float(own[0]))} of its top-1, the others "
                f"{told_share(float(others[0]))}: a gap of {told_with_interval(gap)}; without random neurons, as many "
                f"of every layer, {told_with_interval(chance)}. Beyond those it is "
                f"{told_with_interval(beyond)}{_verdict(beyond)}."
            )
        yield from self._caveats()

    def _caveats(self) -> Iterator[str]:
        by_outcome: dict[str, list[str]] = {}
        for name, outcome in zip(self.tasks, self.outcomes, strict=True):
            by_outcome.setdefault(outcome, []).append(name)
        if names := by_outcome.get("not reached"):
            yield f"Not counted there, as no number of neurons was found that is enough: {', '.join(names)}."
        if names := by_outcome.get("stepped over"):
            near = f"within {self.tolerance:g} of {self.target:g}"
            yield f"No number of neurons came {near}; the nearest was taken: {', '.join(names)}."
        if names := [name for name, done in zip(self.tasks, self.is_done, strict=True) if not done]:
            yield f"Not done better than by one answer for everything, and so without a share: {', '.join(names)}."
        far = torch.diagonal(self.relative[..., 0]) - self.target
        looked = torch.tensor([outcome in OUTCOMES[:2] for outcome in self.outcomes])
        far = far[looked & torch.isfinite(far)]
        if len(far):
            yield (
                f"The number of neurons was chosen on other documents than were judged: there a task keeps "
                f"{float(far.abs().mean()):.3f} more or less than {self.target:g} on average, at most "
                f"{float(far.abs().max()):.3f}."
            )
        if bool(torch.isnan(self.gaps[:, 0, 1]).all()) and bool(torch.isfinite(self.gaps[:, 0, 0]).any()):
            yield "One document says nothing of others, so there are no intervals."


def cross_pruning(
    model: Any,
    tasks: Mapping[str, Any],
    *,
    target: float = 0.8,
    tolerance: float = 0.02,
    site: Site | str = "mlp",
    kind: str = "abs",
    epsilon: float | None = None,
    value: str = "zero",
    baseline: Any = None,
    fractions: Mapping[str, float] | None = None,
    seeds: Iterable[int] = range(5),
    collect: int | None = None,
    evaluate: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> CrossPruning:
    """Prune the neurons of each task until it keeps a share of its top-1, and judge all tasks.

    How many neurons that takes is found on the documents that the neurons are chosen on: 1, 2, 4, … until enough is
    lost, then by bisection. The result says how far from the target the task is on those that are judged. Masks are
    nested, but top-1 need not fall from one to the next: where it crosses the target several times, one of the first
    places is found.

    Args:
        model: any model with TransformerLens hooks.
        tasks: name → task, of which the split "collect" is chosen on and "evaluate" is judged; or → a pair of plans.
        target: the share of its top-1 that a task shall keep.
        tolerance: how near is near enough.
        site: where the neurons are.
        kind: by what neurons are selected (`selection.KINDS`).
        epsilon: of the selection; None for that of the site.
        value: "zero", or another center of what a task is set against.
        baseline: what every task is set against, a general corpus: a task or a plan. None takes the other tasks.
        fractions: how much is pruned for every task, instead of looking for it.
        seeds: of random masks, which have as many neurons of every layer.
        collect: tokens (or images) of every task that neurons are chosen on; None for the whole split.
        evaluate: tokens (or images) that are judged, likewise.
        folder: where statistics and scores are kept, so that what was interrupted goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> tasks = {"prose": al.task_for(model, "stdlib"), "code": al.task_for(model, "stdlib-code")}
    >>> found = cross_pruning(model, tasks, fractions={"prose": 0.05, "code": 0.05}, seeds=[0], collect=1000,
    ...                       evaluate=300, progress=False)
    >>> found.relative.shape, [round(fraction, 3) for fraction in found.fractions]
    (torch.Size([2, 2, 3]), [0.05, 0.05])
    """
    task_set = TaskSet.of(
        model,
        tasks,
        site=site,
        centers_used=[value],
        baseline=baseline,
        collect=collect,
        evaluate=evaluate,
        folder=folder,
    )
    with progress_over("cross-pruning", None, progress, unit="scores") as advance:
        return cross_prune(
            task_set,
            target=target,
            tolerance=tolerance,
            kind=kind,
            epsilon=epsilon,
            value=value,
            fractions=fractions,
            seeds=seeds,
            advance=advance,
        )


def cross_prune(
    tasks: TaskSet,
    *,
    target: float,
    tolerance: float,
    kind: str,
    epsilon: float | None = None,
    value: str,
    fractions: Mapping[str, float] | None = None,
    seeds: Iterable[int],
    advance: Advance,
) -> CrossPruning:
    """`cross_pruning` of tasks that have been read."""
    require_known(kind, KINDS, "kind of importance")
    require_share("target", target, strictly=True)
    require_share("tolerance", tolerance)
    seeds, names = require_seeds(seeds), tasks.names
    if fractions is not None:
        for name in names:
            if name not in fractions:
                raise MismatchError(f"fractions= names no {name}; give one for every task.")
            require_share(f"fractions[{name!r}]", fractions[name])
    whole = {name: tasks.judges[name].of() for name in names}
    known = Replicates.of(whole, {})
    together = known.together()
    pruned, found, outcomes = [], [], []
    for name in names:
        # Once for all masks: a center may take long to compute.
        against = tasks.against(name)
        order = Selected(selectivity(tasks.statistics[name], against, kind=kind, epsilon=epsilon))
        nothing = against.ablation(torch.zeros(against.shape, dtype=torch.bool), value)
        if fractions is not None:
            mask, kept, outcome = top_neurons(order.scores, fractions[name], per_layer=False), math.nan, "given"
        elif not _is_done(together, known.baseline(name), tasks.chance):
            mask, kept, outcome = nothing.mask, math.nan, "unknown"
        else:
            advance.describe(f"how much of {name}")
            scores = Scores(tasks.model, tasks.chosen_on[name], folder=tasks.folder)
            keeps = _kept(scores, nothing, order)
            count, kept, outcome = find_count(keeps, order.scores.numel(), target, tolerance, advance)
            mask = order.first(count)
        pruned.append(replace(nothing, mask=mask))
        found.append(kept)
        outcomes.append(outcome)
    conditions: dict[tuple[int, int | None], dict[str, Score]] = {}
    for i, (name, ablation) in enumerate(zip(names, pruned, strict=True)):
        advance.describe(f"without the neurons of {name}")
        conditions[i, None] = tasks.judge(ablation, advance)
        for seed in seeds:
            advance.describe(f"without random neurons, as many as of {name}")
            conditions[i, seed] = tasks.judge(replace(ablation, mask=random_like(ablation.mask, seed)), advance)
    judged = Replicates.of(whole, conditions)
    return _summary(
        tasks,
        judged,
        together,
        [each.mask for each in pruned],
        found,
        outcomes,
        seeds,
        (kind, value, target, tolerance),
    )


def require_share(name: str, given: Any, *, strictly: bool = False) -> None:
    """Raise unless a number from 0 to 1 was given, or between them."""
    is_number = isinstance(given, Real) and not isinstance(given, bool)
    if not is_number or not (0 < given < 1 if strictly else 0 <= given <= 1):
        where = "between 0 and 1" if strictly else "from 0 to 1"
        raise MismatchError(f"{name}={given!r:.60} is not possible; give a number {where}.")


# ---------------------------------------------------------------------- how many neurons


def _kept(scores: Scores, nothing: Ablation, order: Selected) -> Callable[[int], float]:
    whole = scores.of().top1
    # A model that is never right there, though it is on other documents, has nothing to keep.
    return lambda count: scores.of(replace(nothing, mask=order.first(count))).top1 / whole if whole else math.nan


def find_count(
    keeps: Callable[[int], float], total: int, target: float, tolerance: float, advance: Callable[[int], None]
) -> tuple[int, float, str]:
    """How many neurons are to be pruned, what is kept then, and how the search ended (`OUTCOMES`).

    1, 2, 4, … neurons until so little is kept, then bisection: at most about 2·log₂(total) questions, whatever the
    answers are. It begins with few, as what is kept may rise again: a model without any neuron says one thing always,
    which is right for the task that wants to hear it.

    >>> find_count(lambda count: 1 - count / 100, 100, 0.8, 0.02, lambda done: None)
    (20, 0.8, 'reached')
    >>> find_count(lambda count: 1.0 if count < 7 else 0.2, 100, 0.8, 0.02, lambda done: None)
    (6, 1.0, 'stepped over')
    >>> find_count(lambda count: 0.9, 100, 0.8, 0.02, lambda done: None)
    (100, 0.9, 'not reached')
    """
    near = tolerance + 1e-9
    low, high, above, below = 0, 0, 1.0, math.inf
    while not below <= target + near:
        if high == total:
            return total, below, "not reached"
        if high:
            low, above = high, below
        high = min(total, max(1, 2 * high))
        below = keeps(high)
        advance(1)
        if math.isnan(below):
            return 0, math.nan, "unknown"
    while high - low > 1 and below < target - near:
        count = (low + high) // 2
        value = keeps(count)
        advance(1)
        if value > target + near:
            low, above = count, value
        else:
            high, below = count, value
    if below >= target - near:
        return high, below, "reached"
    # Pruning nothing would be no answer.
    return (low, above, "stepped over") if low and above - target <= target - below else (high, below, "stepped over")


# ---------------------------------------------------------------------- intervals


@dataclass(frozen=True, eq=False)
class Replicates:
    """Top-1 and cross-entropy of several tasks under several conditions, and again over documents drawn anew.

    The documents of a task are drawn once for all conditions, those of different tasks independently. In both, the
    first condition is the whole model; `means` has the observed values, `drawn` an axis of replicates more.
    """

    names: tuple[str, ...]
    conditions: tuple[Any, ...]
    means: dict[str, Float[ndarray, "metric condition"]]
    drawn: dict[str, Float[ndarray, "metric condition resample"]]
    predictions: dict[str, int]

    @classmethod
    def of(cls, whole: Mapping[str, Score], conditions: Mapping[Any, Mapping[str, Score]]) -> "Replicates":
        """From scores: of every task in the whole model, and under every condition."""
        means, drawn = {}, {}
        for place, name in enumerate(whole):
            scores = [whole[name], *(each[name] for each in conditions.values())]
            weights = scores[0].predictions_per_document.double().numpy()
            sums = np.stack(
                [score.correct.double().numpy() for score in scores] + [score.loss.numpy() for score in scores]
            )
            means[name] = (sums.sum(1) / weights.sum()).reshape(2, len(scores))
            # Each task draws by a seed of its own, or tasks of equally many documents would rise and fall together.
            again = bootstrap_means(sums, np.broadcast_to(weights, sums.shape), seed=place)
            drawn[name] = again.reshape(2, len(scores), -1)
        fewest = min(each.shape[-1] for each in drawn.values())
        drawn = {name: each[..., :fewest] for name, each in drawn.items()}
        return cls(
            tuple(whole), tuple(conditions), means, drawn, {name: each.predictions for name, each in whole.items()}
        )

    def baseline(self, name: str) -> Estimates:
        """Top-1 of the whole model on a task."""
        return estimates(self.means[name][0, 0], self.drawn[name][0, 0])

    def together(self) -> Estimates:
        """Top-1 of the whole model over all predictions of all tasks."""
        total = sum(self.predictions.values())
        value, again = 0.0, np.zeros(next(iter(self.drawn.values())).shape[-1])
        for name, predictions in self.predictions.items():
            value += predictions / total * float(self.means[name][0, 0])
            again = again + predictions / total * self.drawn[name][0, 0]
        return estimates(np.array(value), again)

    def kept(self, name: str) -> tuple[Float[ndarray, " condition"], Float[ndarray, "condition resample"]]:
        """Top-1 of a task under every condition beside that of the whole model."""
        with np.errstate(invalid="ignore", divide="ignore"):
            again = self.drawn[name][0, 1:] / self.drawn[name][0, :1]
            found = self.means[name][0, 1:] / self.means[name][0, 0]
        return np.where(np.isfinite(found), found, np.nan), np.where(np.isfinite(again), again, np.nan)

    def rise(self, name: str) -> tuple[Float[ndarray, " condition"], Float[ndarray, "condition resample"]]:
        """How much more cross-entropy a task has under every condition."""
        return self.means[name][1, 1:] - self.means[name][1, 0], self.drawn[name][1, 1:] - self.drawn[name][1, :1]

    def lost(self, name: str) -> tuple[Float[ndarray, " condition"], Float[ndarray, "condition resample"]]:
        """How much less top-1."""
        return self.means[name][0, 0] - self.means[name][0, 1:], self.drawn[name][0, :1] - self.drawn[name][0, 1:]


def estimates(values: Float[ndarray, "*what"], replicates: Float[ndarray, "*what resample"]) -> Estimates:
    """Values with their 95 % intervals; NaN where nothing was drawn, or a value is NaN."""
    low, high = (np.full(np.shape(values), math.nan) for _ in range(2))
    is_known = np.isfinite(values) & (np.isfinite(replicates).any(-1) if replicates.shape[-1] else False)
    if is_known.any():
        low[is_known], high[is_known] = np.nanquantile(replicates[is_known], [0.025, 0.975], axis=-1)
    return torch.from_numpy(np.stack([np.asarray(values, dtype=np.float64), low, high], axis=-1))


def _summary(
    tasks: TaskSet,
    judged: Replicates,
    together: Estimates,
    masks: list[Tensor],
    found: list[float],
    outcomes: list[str],
    seeds: tuple[int, ...],
    settings: tuple[str, str, float, float],
) -> CrossPruning:
    names = tasks.names
    baseline = torch.stack([judged.baseline(name) for name in names])
    done = np.array([_is_done(together, each, tasks.chance) for each in baseline])
    # [pruned, 1 + seed, task] and a last axis of replicates.
    shape = (len(names), 1 + len(seeds))
    stacks: list[list[ndarray]] = [[], [], [], []]
    for name, is_done in zip(names, done, strict=True):
        share, shares = judged.kept(name)
        more, mores = judged.rise(name)
        numbers = (share if is_done else np.full_like(share, np.nan), shares, more, mores)
        for stack, each in zip(stacks, numbers, strict=True):
            stack.append(each.reshape(*shape, *each.shape[1:]))
    kept, kept_again, rise, rise_again = (np.stack(stack, axis=2) for stack in stacks)
    # A task that could not be pruned to the target was not pruned at all: that is no share of anything.
    unknown = np.array([outcome == "unknown" for outcome in outcomes])
    kept[unknown] = np.nan
    parts = {
        "relative": estimates(kept[:, 0], kept_again[:, 0]),
        "rise": estimates(rise[:, 0], rise_again[:, 0]),
        "random": estimates(kept[:, 1:].mean(1), kept_again[:, 1:].mean(1)),
        "random_rise": estimates(rise[:, 1:].mean(1), rise_again[:, 1:].mean(1)),
    }
    own, others = _own_and_others(kept, done)
    own_again, others_again = _own_and_others(kept_again, done)
    both = []
    for one, other in ((own, others), (own_again, others_again)):
        selected, chance = (one - other)[:, 0], (one - other)[:, 1:].mean(1)
        both.append(
            (
                np.stack([selected, chance, selected - chance], axis=1),
                np.stack([one[:, 0], other[:, 0], selected, chance, selected - chance], axis=1),
            )
        )
    (gaps, rows), (gaps_again, rows_again) = both
    pruned = np.isfinite(rows).all(1) & np.array([outcome in COMPARED for outcome in outcomes])
    means = rows[pruned].mean(0) if pruned.any() else np.full(5, np.nan)
    means_again = rows_again[pruned].mean(0) if pruned.any() else np.empty((5, 0))
    kind, value_name, target, tolerance = settings
    return CrossPruning(
        source=record_of(tasks.model),
        site=tasks.site.value,
        tasks=names,
        retained=tasks.retained,
        kind=kind,
        value=value_name,
        target=float(target),
        tolerance=float(tolerance),
        chance=tasks.chance,
        seeds=seeds,
        outcomes=tuple(outcomes),
        masks=torch.stack(masks),
        found=torch.tensor(found, dtype=torch.float64),
        together=together,
        baseline=baseline,
        **parts,
        gaps=estimates(gaps, gaps_again),
        means=estimates(means, means_again),
    )


def _own_and_others(
    kept: Float[ndarray, "pruned condition task *resample"], done: "ndarray[Any, np.dtype[np.bool_]]"
) -> tuple[Float[ndarray, "pruned condition *resample"], Float[ndarray, "pruned condition *resample"]]:
    """The share that the pruned task keeps itself, and the mean over the others that the model does."""
    own = np.stack([kept[place, :, place] for place in range(len(kept))])
    others = np.full_like(own, np.nan)
    for place in range(len(kept)):
        which = done.copy()
        which[place] = False
        if which.any():
            others[place] = kept[place][:, which].mean(1)
    return own, others


def _is_done(together: Estimates, baseline: Estimates, chance: float) -> bool:
    """Whether the model is right more often than one answer for everything, in all tasks and in this one."""
    # An interval that is not known, of a single document, cannot contradict the value.
    low = [float(each[0] if torch.isnan(each[1]) else each[1]) for each in (together, baseline)]
    return min(low) > chance


def told_share(value: float) -> str:
    """A share, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def told_with_interval(each: Estimates, form: str = "+.3f") -> str:
    """A value, and its interval where that is known."""
    value, low, high = each.tolist()
    return f"{value:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")


def _verdict(beyond: Estimates) -> str:
    _, low, high = beyond.tolist()
    if math.isnan(low):
        return ""
    if high < 0:
        return ": the task is hit more than the others"
    return ": the others are hit more than the task" if low > 0 else ": not distinguishable from none"

"""`study_modularity`: whether a model does several tasks with different neurons, beside its untrained twin.

Four questions, as in "Modularity in Transformers" (Pochinkov, Jones and Rahman, 2024): do the neurons selected for two
tasks overlap; do those of one lie in few clusters; what do the other tasks lose when one is pruned; and what does every
whole cluster cost every task. Beside each stands chance, and the same of the randomly initialised model.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numpy import ndarray
from torch import Tensor

from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.agreement import Concentration, Overlap, concentration, overlap
from ablation_lens.experiments.clustering import Clusters, clusters
from ablation_lens.experiments.crossing import (
    OTHERS,
    OUTCOMES,
    CrossPruning,
    Replicates,
    TaskSet,
    cross_prune,
    estimates,
    require_share,
    told_share,
    told_with_interval,
)
from ablation_lens.experiments.damage import require_seeds
from ablation_lens.experiments.selection import selective_neurons
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.hooked import require_site
from ablation_lens.measure.intervals import bootstrap_means
from ablation_lens.measure.score import Score
from ablation_lens.progress import Advance, progress_over
from ablation_lens.records import ModelRecord, Record, record_of
from ablation_lens.sites import Site

if TYPE_CHECKING:
    import pandas

KIND = "modularity"
HEADS = "heads"
"""How attention neurons are clustered: by the head they are in."""

AGAINST_EACH_OTHER = (
    "As tasks are set against each other, what is selected for one is pushed away from the others, in a model before "
    "training, too: of two tasks hardly a neuron can be shared."
)

HALVES = 100
"""How often documents are halved at random, to tell what repeats from noise."""

FEWEST = 4
"""Documents of a task, and clusters, without which nothing can be said to repeat."""


# ---------------------------------------------------------------------- whole clusters


@dataclass(frozen=True, eq=False, repr=False)
class ClusterDamage:
    """What ablating a whole cluster costs every task; made by `cluster_damage`.

    Attributes:
        source: the model.
        site: where the neurons are.
        tasks: their names.
        value: what the neurons were set to: a center of all tasks together.
        places: every cluster's layer, and its number there.
        rise: of the cross-entropy, in nats.
        lost: of top-1.
        specific: the share of what clusters differ by that is a matter of the task, and not common to all tasks.
    """

    source: ModelRecord
    site: str
    tasks: tuple[str, ...]
    value: str
    places: tuple[tuple[int, int], ...]
    rise: Float64[Tensor, "cluster task 3"]
    lost: Float64[Tensor, "cluster task 3"]
    specific: Float64[Tensor, "3"]

    @property
    def names(self) -> tuple[str, ...]:
        """What clusters are called: `L2.C5`, and heads `L2.H1`."""
        letter = "H" if Site(self.site).has_heads else "C"
        return tuple(f"L{layer}.{letter}{number}" for layer, number in self.places)

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row per cluster and task."""
        import pandas

        rows = []
        for c, (name, (layer, number)) in enumerate(zip(self.names, self.places, strict=True)):
            for j, task in enumerate(self.tasks):
                row: dict[str, Any] = {"cluster": name, "layer": layer, "number": number, "task": task}
                for measure, values in (("rise", self.rise), ("lost", self.lost)):
                    row |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), values[c, j].tolist(), strict=True))
                rows.append(row)
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        tasks = [on_one_line(task)[:12] for task in self.tasks]
        head = (
            f"ClusterDamage({on_one_line(self.source.name)}, {self.site} → {on_one_line(self.value)}): rise of the "
            "cross-entropy without the whole cluster"
        )
        lines = [head, f"  {'':<10}" + "".join(f"{task:>13}" for task in tasks)]
        for name, row in zip(self.names, self.rise[..., 0].tolist(), strict=True):
            lines.append(f"  {name:<10}" + "".join(f"{value:>+13.4f}" for value in row))
        return "\n".join([*lines, self.told])

    @property
    def told(self) -> str:
        """What was found, in a sentence."""
        if math.isnan(float(self.specific[0])):
            if len(self.places) < FEWEST:
                return f"{len(self.places)} clusters are too few to say how they differ."
            return "What clusters cost differs by no more than noise, so nothing is said of tasks of their own."
        share = told_with_interval(self.specific, ".0%")
        return f"Of what clusters differ by in damage, {share} is a matter of the task; the rest is common to all."


def cluster_damage(
    model: Any,
    tasks: Mapping[str, Any],
    clusters: Clusters,
    *,
    value: str = "mean",
    collect: int | None = None,
    evaluate: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> ClusterDamage:
    """Ablate one whole cluster at a time, and judge every task.

    How much is a matter of the task is told from two random halves of the documents: what clusters cost is taken apart
    into what is common to all tasks and the rest, and only what repeats in the other half counts, so that noise adds
    nothing. A task that loses more without any cluster counts, too. The interval is over clusters.

    Args:
        model: any model with TransformerLens hooks.
        tasks: as for `cross_pruning`.
        clusters: of this model.
        value: "zero", or another center of all tasks together.
        collect: tokens (or images) of every task that centers are from; None for the whole split.
        evaluate: tokens (or images) that are judged, likewise.
        folder: where statistics and scores are kept, so that what was interrupted goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> tasks = {"prose": al.task_for(model, "stdlib"), "code": al.task_for(model, "stdlib-code")}
    >>> in_two = al.experiments.clusters(model, 256, restarts=1, layers=[0], progress=False)
    >>> found = cluster_damage(model, tasks, in_two, collect=1000, evaluate=300, progress=False)
    >>> found.frame["cluster"].unique().tolist()
    ['L0.C0', 'L0.C1']
    """
    if not isinstance(clusters, Clusters):
        raise MismatchError(f"clusters are a {type(clusters).__name__}; give what al.experiments.clusters makes.")
    clusters.source.require_same(record_of(model), "these clusters are not of this model")
    task_set = TaskSet.of(
        model,
        tasks,
        site=Site.MLP,
        centers_used=[value],
        collect=collect,
        evaluate=evaluate,
        folder=folder,
    )
    with progress_over("clusters", None, progress, unit="scores") as advance:
        return _damage(task_set, clusters.labels, clusters.layers, value, advance)


def _damage(
    tasks: TaskSet, labels: Int64[Tensor, "layer dim"], layers: tuple[int, ...], value: str, advance: Advance
) -> ClusterDamage:
    places = _places(labels, layers)
    whole = {name: scores.of() for name, scores in tasks.judges.items()}
    nothing = tasks.whole.ablation(torch.zeros(tasks.whole.shape, dtype=torch.bool), value)
    conditions = {}
    # From the first layer on: what runs before a cluster is kept for the next.
    for layer, number in places:
        mask = nothing.mask.clone()
        mask[layer] = (labels[layers.index(layer)] == number).view(mask.shape[1:])
        advance.describe(f"without cluster {number} of L{layer}")
        conditions[layer, number] = tasks.judge(replace(nothing, mask=mask), advance)
    found = Replicates.of(whole, conditions)
    rise, lost = (torch.stack([estimates(*of(name)) for name in tasks.names], dim=1) for of in (found.rise, found.lost))
    return ClusterDamage(
        record_of(tasks.model),
        tasks.site.value,
        tasks.names,
        value,
        places,
        rise,
        lost,
        specific_share(whole, conditions),
    )


def _places(labels: Int64[Tensor, "layer dim"], layers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    rows = zip(layers, labels, strict=True)
    return tuple((layer, number) for layer, row in rows for number in row.unique().tolist())


def specific_share(whole: Mapping[str, Score], conditions: Mapping[Any, Mapping[str, Score]]) -> Float64[Tensor, "3"]:
    """The share of the differences in damage between conditions that tasks do not have in common, with its interval.

    0 where every task loses the same, 1 where what a task loses says nothing of the others, however many there are.
    NaN where conditions differ by no more than noise.
    """
    halves = []
    generator = np.random.Generator(np.random.PCG64(0))
    for name, score in whole.items():
        weights = score.predictions_per_document.double().numpy()
        if np.count_nonzero(weights) < FEWEST:
            return torch.full((3,), math.nan, dtype=torch.float64)
        losses = np.stack([each[name].loss.numpy() for each in conditions.values()]) - score.loss.numpy()
        halves.append(_in_halves(losses, weights, generator))
    # [half, repeat, condition, task]; what a task loses without any of them says nothing of a difference.
    damage = np.stack(halves, axis=-1)
    damage = damage - damage.mean(2, keepdims=True)
    own = damage - damage.mean(3, keepdims=True)
    # The noise of one half has nothing to do with that of the other, so their product is without it on average.
    total, apart = ((each[0] * each[1]).sum(-1).mean(0) for each in (damage, own))
    again = bootstrap_means(np.stack([apart, total]), np.ones((2, len(total))))
    known = again.shape[-1] and np.quantile(again[1], 0.025) > 0
    if len(total) < FEWEST or not known:
        return torch.full((3,), math.nan, dtype=torch.float64)
    # The mean of tasks that have nothing in common varies, too: it holds one of so many parts of what is their own.
    tasks = damage.shape[3]
    own_share = tasks / (tasks - 1) * apart.sum() / total.sum()
    ratios = tasks / (tasks - 1) * again[0] / np.where(again[1] > 0, again[1], np.nan)
    # Products of halves may leave what a share can be, by noise alone, and so do tasks that need opposite clusters.
    return estimates(np.array(own_share).clip(0, 1), ratios.clip(0, 1))


def _in_halves(
    losses: Float[ndarray, "condition document"], weights: Float[ndarray, " document"], generator: np.random.Generator
) -> Float[ndarray, "half repeat condition"]:
    """Mean losses over either half of the documents, halved again and again."""
    scored = np.flatnonzero(weights)
    first = np.zeros((HALVES, len(weights)))
    for row in first:
        row[generator.permutation(scored)[: len(scored) // 2]] = 1
    second = (weights > 0) - first
    return np.stack([(half @ losses.T) / (half @ weights)[:, None] for half in (first, second)])


# ---------------------------------------------------------------------- the whole study


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found of one model.

    Attributes:
        labels: which cluster every neuron is in, heads and dims in one row.
        layers: of `labels`.
        tasks: their names.
        masks: the same share of the neurons, selected for every task.
        pruned: what every task keeps without the neurons of each.
        damage: what every whole cluster costs.
    """

    labels: Int64[Tensor, "layer dim"]
    layers: tuple[int, ...]
    tasks: tuple[str, ...]
    masks: Bool[Tensor, "task layer head dim"]
    pruned: CrossPruning
    damage: ClusterDamage

    @cached_property
    def overlap(self) -> Overlap:
        """What the selected neurons of every two tasks have in common."""
        return overlap(dict(zip(self.tasks, self.masks, strict=True)))

    @cached_property
    def concentration(self) -> dict[str, Concentration]:
        """Whether the selected neurons of a task lie in few clusters."""
        rows = self.masks.flatten(2)[:, list(self.layers), None]
        return {task: concentration(self.labels, row) for task, row in zip(self.tasks, rows, strict=True)}


@dataclass(frozen=True, eq=False, repr=False)
class Modularity:
    """What `study_modularity` found, of a model and of its untrained twin.

    Attributes:
        site: where the neurons are.
        tasks: their names.
        retained: what every task was set against, in words.
        kind: of importance.
        value: what neurons were set to.
        method: how neurons were clustered: "weights", "co-activation", or by "heads".
        size: neurons in a cluster.
        fraction: of the neurons that were selected for overlap and concentration.
        chosen_on: what neurons were chosen on, task by task, in words.
        judged_on: what was judged.
        trained: what was found of the model.
        twin: what was found of the same model before training; None where none was given.
    """

    site: str
    tasks: tuple[str, ...]
    retained: str
    kind: str
    value: str
    method: str
    size: int
    fraction: float
    chosen_on: tuple[str, ...]
    judged_on: tuple[str, ...]
    trained: Findings
    twin: Findings | None

    @property
    def source(self) -> ModelRecord:
        """The model."""
        return self.trained.pruned.source

    @property
    def models(self) -> dict[str, Findings]:
        """What was found, by "trained" and "untrained"."""
        return {"trained": self.trained} | ({} if self.twin is None else {"untrained": self.twin})

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """A row per measured thing, of both models.

        `measure` is "overlap" (of `task` and `other`), "concentration" (of `task` in a `layer`, or in all),
        "share kept" and "rise" (of `other` without the neurons of `task`; chance is of random neurons), or "cluster
        rise" and "cluster loss of top-1" (of `task` without `cluster`). `low` to `high` is the 95 % interval over
        documents, `chance_low` to `chance_high` what 95 % of chance gives, of random neurons that interval over
        documents.
        """
        import pandas

        rows = []
        for model, found in self.models.items():
            rows += [{"model": model, **row} for row in _rows(found)]
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        lines = [
            f"Modularity({on_one_line(self.source.name)}, {self.site}: {len(self.tasks)} tasks, set against "
            f"{on_one_line(self.retained)} by {on_one_line(self.kind)}, → {on_one_line(self.value)})",
            f"  {'':<22}{'pruned':>8}{'keeps':>8}{'others':>8}{'random':>8}{'overlap':>9}{'z':>8}",
        ]
        for model, found in self.models.items():
            for task, *cells, shared, z in told_by_task(found):
                name = f"{on_one_line(task)[:11]}, {model}"
                lines.append(f"  {name:<22}{''.join(f'{cell:>8}' for cell in cells)}{shared:>9}{z:>8}")
        return "\n".join([*lines, *map(on_one_line, self.sentences())])

    def sentences(self) -> Iterator[str]:
        """What was found, in words: overlap, concentration, cross-pruning, whole clusters."""
        for told in (told_of_overlap, told_of_concentration):
            yield " ".join(self._of_both(told))
        if self.retained == OTHERS:
            yield AGAINST_EACH_OTHER
        yield from self.trained.pruned.sentences()
        if self.twin is not None:
            yield "Before training: " + " ".join(self.twin.pruned.sentences())
        yield " ".join(self._of_both(lambda found: found.damage.told))

    def _of_both(self, told: Callable[[Findings], str]) -> Iterator[str]:
        yield told(self.trained)
        if self.twin is not None:
            yield f"Before training: {told(self.twin)}"

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        pruned = self.trained.pruned
        header = ModularityHeader(
            site=self.site,
            tasks=self.tasks,
            retained=self.retained,
            kind=self.kind,
            value=self.value,
            method=self.method,
            size=self.size,
            fraction=self.fraction,
            target=pruned.target,
            tolerance=pruned.tolerance,
            seeds=pruned.seeds,
            chosen_on=self.chosen_on,
            judged_on=self.judged_on,
            trained=_header(self.trained),
            twin=None if self.twin is None else _header(self.twin),
        )
        tensors = {
            f"{model}.{name}": tensor
            for model, found in self.models.items()
            for name, tensor in _tensors(found).items()
        }
        save_tensors(path, KIND, header.to_dict(), tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Modularity":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = ModularityHeader.from_dict(plain)
            trained = _findings(header, header.trained, "trained", tensors)
            twin = None if header.twin is None else _findings(header, header.twin, "untrained", tensors)
        except (FileFormatError, KeyError, ValueError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise FileFormatError(f"{path} is not a complete file of modularity ({told}); make it again.") from error
        return cls(
            site=header.site,
            tasks=header.tasks,
            retained=header.retained,
            kind=header.kind,
            value=header.value,
            method=header.method,
            size=header.size,
            fraction=header.fraction,
            chosen_on=header.chosen_on,
            judged_on=header.judged_on,
            trained=trained,
            twin=twin,
        )


def study_modularity(
    model: Any,
    tasks: Mapping[str, Any],
    *,
    twin: Any = None,
    size: int = 32,
    method: str | None = None,
    fraction: float = 0.01,
    target: float = 0.8,
    tolerance: float = 0.02,
    site: Site | str = "mlp",
    kind: str = "abs",
    epsilon: float | None = None,
    value: str = "zero",
    baseline: Any = None,
    seeds: Iterable[int] = range(5),
    collect: int | None = None,
    evaluate: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Modularity:
    """Overlap, concentration in clusters, cross-pruning and damage by cluster, of a model and its untrained twin.

    The twin is pruned by as many neurons as the model, since it can keep no share of what it does not do.

    Args:
        model: any model with TransformerLens hooks.
        tasks: as for `cross_pruning`.
        twin: the same model before training, `load_model(name, random_init=0)`; None leaves it out.
        size: neurons in a cluster, of MLPs; attention neurons are clustered by heads.
        method: "weights" (None) or "co-activation", which reads what neurons are chosen on.
        fraction: of the neurons that are selected for overlap and concentration.
        target: the share of its top-1 that a task shall keep when it is pruned.
        tolerance: how near is near enough.
        site: "mlp" or "z".
        kind: by what neurons are selected (`selection.KINDS`).
        epsilon: of the selection; None for that of the site.
        value: "zero", or another center: of what a task is set against, and for clusters of all tasks together.
        baseline: what every task is set against, a general corpus: a task or a plan. None takes the other tasks.
        seeds: of random masks beside the pruned ones.
        collect: tokens (or images) of every task that neurons are chosen on; None for the whole split.
        evaluate: tokens (or images) that are judged, likewise.
        folder: where statistics, clusters and scores are kept, so that what was interrupted goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> tasks = {"prose": al.task_for(model, "stdlib"), "code": al.task_for(model, "stdlib-code")}
    >>> found = study_modularity(model, tasks, site="z", fraction=0.1, target=0.9, seeds=[0], collect=1000,
    ...                          evaluate=300, progress=False)
    >>> found.method, sorted(set(found.frame["measure"]))[:2]
    ('heads', ['cluster loss of top-1', 'cluster rise'])
    """
    where = Site.of(site)
    if where not in (Site.MLP, Site.Z):
        raise MismatchError(f"site={where.value!r} has no clusters; take 'mlp', or 'z', whose clusters are heads.")
    if where is Site.Z and method is not None:
        raise MismatchError(f"method={method!r} is of MLP neurons; those at 'z' are clustered by heads: leave it out.")
    require_site(model, where)
    require_share("fraction", fraction)
    require_share("target", target, strictly=True)
    options: dict[str, Any] = {"site": where, "centers_used": [value], "baseline": baseline, "folder": folder}
    settings: dict[str, Any] = {
        "target": target, "tolerance": tolerance, "kind": kind, "epsilon": epsilon, "value": value,
        "seeds": require_seeds(seeds),
    }  # fmt: skip
    with progress_over("modularity", None, progress, unit="scores") as advance:
        # Before documents are read, which takes long.
        if twin is not None:
            require_site(twin, where)
            _require_twin(model, twin)
        one = TaskSet.of(model, tasks, collect=collect, evaluate=evaluate, **options)
        total = math.prod(one.whole.shape)
        if fraction * total < 1:
            raise MismatchError(f"fraction={fraction!r} of {total:,} neurons is none; give at least {1 / total:.2g}.")
        choose: dict[str, Any] = {"size": size, "method": method or "weights", "fraction": fraction}
        trained = _find(one, choose, settings, None, advance)
        untrained = None
        if twin is not None:
            advance.describe("the same before training")
            # The same documents, whatever the tasks are made of.
            plans = {name: (one.chosen_on[name], one.judged_on[name]) for name in one.names}
            other = TaskSet.of(twin, plans, collect=collect, **options)
            # A half more than the number, as a quotient may fall below it by rounding.
            counts = dict(zip(one.names, trained.pruned.masks.flatten(1).sum(1).tolist(), strict=True))
            shares = {name: min(1.0, (count + 0.5) / total) for name, count in counts.items()}
            untrained = _find(other, choose, settings, shares, advance)
    return Modularity(
        site=where.value,
        tasks=one.names,
        retained=one.retained,
        kind=kind,
        value=value,
        method=HEADS if where is Site.Z else choose["method"],
        size=one.whole.shape[-1] if where is Site.Z else size,
        fraction=float(fraction),
        chosen_on=tuple(
            f"{plan.corpus.name}/{plan.corpus.split}: {plan.size:,} {plan.corpus.unit}"
            for plan in one.chosen_on.values()
        ),
        judged_on=tuple(
            f"{plan.corpus.name}/{plan.corpus.split}: {plan.predictions:,} predictions of {len(plan.items):,} documents"
            for plan in one.judged_on.values()
        ),
        trained=trained,
        twin=untrained,
    )


def _find(
    tasks: TaskSet,
    choose: Mapping[str, Any],
    settings: Mapping[str, Any],
    shares: Mapping[str, float] | None,
    advance: Advance,
) -> Findings:
    masks = torch.stack(
        [
            selective_neurons(
                tasks.statistics[name],
                tasks.against(name),
                choose["fraction"],
                kind=settings["kind"],
                epsilon=settings["epsilon"],
            )
            for name in tasks.names
        ]
    )
    advance.describe("clusters")
    layers = tuple(range(len(masks[0])))
    if tasks.site is Site.Z:
        _, heads, dims = tasks.whole.shape
        labels = torch.arange(heads).repeat_interleave(dims).expand(len(layers), -1).contiguous()
    else:
        batches = None
        if choose["method"] == "co-activation":
            batches = [batch for plan in tasks.chosen_on.values() for batch in plan]
        labels = clusters(
            tasks.model, choose["size"], choose["method"], batches=batches, folder=tasks.folder, progress=False
        ).labels
    pruned = cross_prune(tasks, fractions=shares, advance=advance, **settings)
    damage = _damage(tasks, labels, layers, settings["value"], advance)
    return Findings(labels, layers, tasks.names, masks, pruned, damage)


def _require_twin(model: Any, twin: Any) -> None:
    one, other = record_of(model), record_of(twin)
    sizes = ("architecture", "n_layers", "n_heads", "d_head", "d_model", "d_mlp")
    if unlike := [size for size in sizes if getattr(one, size) != getattr(other, size)]:
        told = ", ".join(f"{size} {getattr(one, size)} and {getattr(other, size)}" for size in unlike)
        raise MismatchError(f"{other.name} is not the twin of {one.name} ({told}); load it with random_init=.")
    if not one.differences(other):
        raise MismatchError(f"twin= is {one.name} itself; load it again with random_init=, or leave it out.")


# ---------------------------------------------------------------------- what is told


def told_of_overlap(found: Findings) -> str:
    """Whether selected neurons are shared, in a sentence."""
    return found.overlap.told


def told_of_concentration(found: Findings) -> str:
    """Whether selected neurons lie in few clusters, in a sentence."""
    wholes = [each.whole for each in found.concentration.values()]
    known = [whole for whole in wholes if not math.isnan(whole.z)]
    if not known:
        return "Nothing can be said of how the selected neurons lie in clusters."
    beyond = sum(whole.auc > whole.high for whole in known)
    spread = sum(whole.auc < whole.low for whole in known)
    mean = sum(whole.z for whole in known) / len(known)
    return (
        f"The selected neurons of {beyond} of {len(known)} tasks lie in fewer clusters than random ones, and of "
        f"{spread} in more; z = {mean:.1f} on average."
    )


def told_by_task(found: Findings) -> Iterator[tuple[str, ...]]:
    """A row per task: what was pruned, what it keeps, the others, random neurons' gap, its overlap, and z."""
    corrected = found.overlap.of("corrected").mean(axis=1)
    for i, task in enumerate(found.tasks):
        own = found.pruned.relative[i, i, 0].item()
        gap, by_chance = found.pruned.gaps[i, :2, 0].tolist()
        yield (
            task,
            f"{found.pruned.fractions[i]:.2%}",
            told_share(own),
            told_share(own - gap),
            "–" if math.isnan(by_chance) else f"{by_chance:+.3f}",
            "–" if math.isnan(corrected.iloc[i]) else f"{corrected.iloc[i]:+.3f}",
            "–" if math.isnan(found.concentration[task].whole.z) else f"{found.concentration[task].whole.z:.1f}",
        )


def _rows(found: Findings) -> Iterator[dict[str, Any]]:
    for shared in found.overlap.rows:
        yield {
            "measure": "overlap", "task": shared.first, "other": shared.second, "value": shared.overlap,
            "chance": shared.chance, "chance_low": shared.low, "chance_high": shared.high,
            "corrected": shared.corrected, "z": shared.z, "p": shared.p, "note": shared.note,
        }  # fmt: skip
    for task, concentrated in found.concentration.items():
        for each in concentrated.rows:
            yield {
                "measure": "concentration", "task": task, "layer": each.layer, "value": each.auc,
                "chance": each.chance, "chance_low": each.low, "chance_high": each.high, "z": each.z, "p": each.p,
                "note": each.note,
            }  # fmt: skip
    pruned = found.pruned
    for measure, values, random in (
        ("share kept", pruned.relative, pruned.random),
        ("rise", pruned.rise, pruned.random_rise),
    ):
        for i, task in enumerate(found.tasks):
            for j, other in enumerate(found.tasks):
                row: dict[str, Any] = {
                    "measure": measure,
                    "task": task,
                    "other": other,
                    "fraction": pruned.fractions[i],
                }
                row |= dict(zip(("value", "low", "high"), values[i, j].tolist(), strict=True))
                row |= dict(zip(("chance", "chance_low", "chance_high"), random[i, j].tolist(), strict=True))
                yield row | {"note": pruned.outcomes[i]}
    damage = found.damage
    for measure, values in (("cluster rise", damage.rise), ("cluster loss of top-1", damage.lost)):
        for c, (name, (layer, _)) in enumerate(zip(damage.names, damage.places, strict=True)):
            for j, task in enumerate(found.tasks):
                row = {"measure": measure, "task": task, "layer": layer, "cluster": name}
                yield row | dict(zip(("value", "low", "high"), values[c, j].tolist(), strict=True))


# ---------------------------------------------------------------------- its file


@dataclass(frozen=True)
class FindingsHeader(Record):
    """What a file says of one model beside its tensors."""

    source: ModelRecord
    outcomes: tuple[str, ...]
    chance: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [outcome for outcome in self.outcomes if outcome not in OUTCOMES]:
            raise ValueError(f"a search ended with {unknown[0]!r:.60}")
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance is {self.chance}")


@dataclass(frozen=True)
class ModularityHeader(Record):
    """What a file says beside its tensors."""

    site: str
    tasks: tuple[str, ...]
    retained: str
    kind: str
    value: str
    method: str
    size: int
    fraction: float
    target: float
    tolerance: float
    seeds: tuple[int, ...]
    chosen_on: tuple[str, ...]
    judged_on: tuple[str, ...]
    trained: FindingsHeader
    twin: FindingsHeader | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site not in (Site.MLP.value, Site.Z.value):
            raise ValueError(f"its site is {self.site!r:.60}")
        if len(self.tasks) < 2 or len(set(self.tasks)) < len(self.tasks):
            raise ValueError("it has fewer than two tasks, or one twice")
        if not self.seeds or not 0 < self.fraction <= 1 or not 0 < self.target < 1 or not 0 <= self.tolerance < 1:
            raise ValueError("its settings are not possible")
        both = [self.trained] if self.twin is None else [self.trained, self.twin]
        told = [self.chosen_on, self.judged_on, *(each.outcomes for each in both)]
        if any(len(each) != len(self.tasks) for each in told):
            raise ValueError("what it says of tasks is of another number of them")
        shapes = [Site(self.site).shape(each.source) for each in both]
        width = math.prod(shapes[0][1:])
        if shapes[0] != shapes[-1] or self.size < 1 or not width or width % self.size:
            raise ValueError(f"its models do not fit each other, or clusters of {self.size}")


_OF_PRUNED = ("found", "together", "baseline", "relative", "rise", "random", "random_rise", "gaps", "means")


def _header(found: Findings) -> FindingsHeader:
    return FindingsHeader(found.pruned.source, found.pruned.outcomes, found.pruned.chance)


def _tensors(found: Findings) -> dict[str, Tensor]:
    return {
        "labels": found.labels,
        "masks": found.masks,
        "pruned": found.pruned.masks,
        **{name: getattr(found.pruned, name) for name in _OF_PRUNED},
        "cluster_rise": found.damage.rise,
        "cluster_lost": found.damage.lost,
        "specific": found.damage.specific,
    }


def _findings(header: ModularityHeader, told: FindingsHeader, model: str, tensors: Mapping[str, Tensor]) -> Findings:
    """What a file says of one model, checked."""
    shape, count = Site(header.site).shape(told.source), len(header.tasks)
    width = math.prod(shape[1:])
    per_layer = width // header.size
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "labels": (torch.int64, (shape[0], width)),
        "masks": (torch.bool, (count, *shape)),
        "pruned": (torch.bool, (count, *shape)),
        "found": (torch.float64, (count,)),
        "together": (torch.float64, (3,)),
        "baseline": (torch.float64, (count, 3)),
        **dict.fromkeys(("relative", "rise", "random", "random_rise"), (torch.float64, (count, count, 3))),
        "gaps": (torch.float64, (count, 3, 3)),
        "means": (torch.float64, (5, 3)),
        **dict.fromkeys(("cluster_rise", "cluster_lost"), (torch.float64, (shape[0] * per_layer, count, 3))),
        "specific": (torch.float64, (3,)),
    }
    read = {}
    for name, (dtype, size) in expected.items():
        read[name] = each = tensors[f"{model}.{name}"]
        if each.dtype != dtype or tuple(each.shape) != size or bool(torch.isinf(each).any()):
            raise FileFormatError(f"its {name} are not {' × '.join(map(str, size))} values")
    members = torch.arange(per_layer).repeat_interleave(header.size)
    if not bool((read["labels"].sort(1).values == members).all()):
        raise FileFormatError("its clusters are not of equal size")
    layers = tuple(range(shape[0]))
    pruned = CrossPruning(
        source=told.source,
        site=header.site,
        tasks=header.tasks,
        retained=header.retained,
        kind=header.kind,
        value=header.value,
        target=header.target,
        tolerance=header.tolerance,
        chance=told.chance,
        seeds=header.seeds,
        outcomes=told.outcomes,
        masks=read["pruned"],
        **{name: read[name] for name in _OF_PRUNED},
    )
    damage = ClusterDamage(
        told.source,
        header.site,
        header.tasks,
        header.value,
        _places(read["labels"], layers),
        read["cluster_rise"],
        read["cluster_lost"],
        read["specific"],
    )
    return Findings(read["labels"], layers, header.tasks, read["masks"], pruned, damage)

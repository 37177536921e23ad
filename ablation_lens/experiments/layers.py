"""`ablate_layers`: what every layer and every head costs, to every center."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ablation_lens.ablation.masks import named_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.damage import Damage, damage_of, extra_metrics, unit_of
from ablation_lens.experiments.scores import Scores
from ablation_lens.experiments.stability import movable
from ablation_lens.names import require_known
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over

if TYPE_CHECKING:
    import pandas

LEVELS = ("layer", "head")


@dataclass(frozen=True)
class UnitDamage:
    """What ablating one layer or head to one center costs.

    Attributes:
        level: "layer" or "head".
        unit: its name, such as "L3" or "L3.H1".
        layer: its layer.
        head: its head; None for a whole layer.
        center: what its neurons are set to.
        damage: how much worse the metric is than in the model as it is, with the interval over documents.
        low: where the interval begins.
        high: where it ends.
        to_best: how much worse this center is than the best one for this unit.
        to_best_low: where the interval begins.
        to_best_high: where it ends.
    """

    level: str
    unit: str
    layer: int
    head: int | None
    center: str
    damage: float
    low: float
    high: float
    to_best: float
    to_best_low: float
    to_best_high: float

    @property
    def as_best(self) -> bool:
        """Whether it cannot be told from the best center of the unit; an interval that is not known says nothing."""
        return not self.to_best_low > 0


@dataclass(frozen=True, repr=False)
class LayerDamage:
    """Damage by layer, head and center; `frame` has a row of each.

    Attributes:
        model: its name.
        site: where the neurons are.
        metric: what damage is measured in.
        shape: layers, heads, and neurons in a head.
        rows: what was found.
    """

    model: str
    site: str
    metric: str
    shape: tuple[int, int, int]
    rows: tuple[UnitDamage, ...]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The rows as a table; `head` is missing for whole layers."""
        import pandas

        return pandas.DataFrame([vars(row) | {"as_best": row.as_best} for row in self.rows])

    @property
    def centers(self) -> tuple[str, ...]:
        """The centers that were compared."""
        return tuple(dict.fromkeys(row.center for row in self.rows))

    def at(self, level: str) -> list[UnitDamage]:
        """The rows of layers, or of heads."""
        return [row for row in self.rows if row.level == level]

    def __repr__(self) -> str:
        lines = [
            f"Damage by layer and head ({on_one_line(self.model)}, {self.site}): rise in {self.metric} "
            f"({unit_of(self.metric)}); * cannot be told from the unit's best center",
            f"  {'':<8}" + "".join(f"{name:>14}" for name in self.centers),
        ]
        for unit, rows in _by_unit(self.rows).items():
            cells = "".join(f"{row.damage:+13.4f}{'*' if row.as_best else ' '}" for row in rows)
            lines.append(f"  {unit:<8}{cells}")
        return "\n".join([*lines, *self._in_words()])

    def _in_words(self) -> Iterator[str]:
        for level in LEVELS:
            units = _by_unit(self.at(level))
            if not units:
                continue
            best = {name: sum(_best(rows).center == name for rows in units.values()) for name in self.centers}
            alone = sum(sum(row.as_best for row in rows) == 1 for rows in units.values())
            hardest = max(units.values(), key=lambda rows: _best(rows).damage)
            told = ", ".join(f"{name} in {count}" for name, count in best.items() if count)
            alike = f"Of {len(units)} {level}s the best center is {told}; in {alone} of them no other comes near it."
            lost = f"Most is lost without {hardest[0].unit}: {_best(hardest).damage:+.4f} at best."
            yield f"{alike} {lost}" if len(self.centers) > 1 else lost
        yield "Intervals are over documents, one unit at a time: of so many, some exclude zero by chance."


def _by_unit(rows: Sequence[UnitDamage]) -> dict[str, list[UnitDamage]]:
    found: dict[str, list[UnitDamage]] = {}
    for row in rows:
        found.setdefault(row.unit, []).append(row)
    return found


def _best(rows: Sequence[UnitDamage]) -> UnitDamage:
    return min(rows, key=lambda row: row.damage)


def ablate_layers(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics,
    *,
    levels: Iterable[str] = LEVELS,
    centers: Iterable[str] | None = None,
    metric: str = "cross_entropy",
    folder: str | Path | None = None,
    progress: bool = True,
) -> LayerDamage:
    """Ablate one whole layer, or one whole head, at a time, to every center.

    At a site without heads there are layers alone. No mask is drawn, so there are no seeds: intervals are over
    documents.

    Args:
        model: any model with TransformerLens hooks.
        batches: what damage is measured on.
        statistics: where the centers are from; the site is theirs.
        levels: "layer", "head" or both.
        centers: which; None for zero and all that the statistics can give.
        metric: what damage is measured in.
        folder: where scores are kept, so that an interrupted experiment goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> task = al.task_for(model := al.load_model("tiny-opt"))
    >>> stats = al.collect(model, task.batches(split="collect", tokens=2000), progress=False)
    >>> found = ablate_layers(model, task.batches(tokens=300), stats, levels=["layer"], centers=["zero", "mean"])
    >>> found.frame["unit"].tolist()
    ['L0', 'L0', 'L1', 'L1', 'L2', 'L2', 'L3', 'L3']
    """
    levels = tuple(dict.fromkeys(levels))
    for level in levels:
        require_known(level, LEVELS, "level")
    names = ("zero", *movable(statistics)) if centers is None else tuple(centers)
    units = list(_units(statistics, levels))
    if not units or not names:
        raise MismatchError(
            f"there is nothing to ablate: levels are {list(levels)} and centers {list(names)}. At "
            f"{statistics.site.value!r} neurons are counted "
            f"{'by head' if statistics.site.has_heads else 'without heads, so ask for layers'}."
        )
    scores = Scores(model, batches, statistics=statistics, metrics=extra_metrics(metric), folder=folder)
    rows: list[UnitDamage] = []
    with progress_over("layers and heads", 1 + len(units) * len(names), progress, unit="scores") as advance:
        clean = damage_of(scores, None, [], metric, advance)
        nothing = torch.zeros(statistics.shape, dtype=torch.bool)
        ablations = {name: statistics.ablation(nothing, name) for name in names}
        for level, unit, layer, head in units:
            advance.describe(f"layers and heads: {unit}")
            mask = named_neurons([unit], statistics.shape, site=statistics.site)
            found = {name: damage_of(scores, each, [mask], metric, advance) for name, each in ablations.items()}
            best = min(found.values(), key=lambda damage: damage.mean)
            for name, damage in found.items():
                rows.append(_row((level, unit, layer, head, name), damage, clean, best))
    return LayerDamage(
        model=statistics.provenance.model.name,
        site=statistics.site.value,
        metric=metric,
        shape=statistics.shape,
        rows=tuple(rows),
    )


Unit = tuple[str, str, int, int | None]


def _units(statistics: ActivationStatistics, levels: Iterable[str]) -> Iterator[Unit]:
    layers, heads, _ = statistics.shape
    for level in levels:
        for layer in range(layers):
            if level == "layer":
                yield level, f"L{layer}", layer, None
            elif statistics.site.has_heads:
                yield from ((level, f"L{layer}.H{head}", layer, head) for head in range(heads))


def _row(what: tuple[str, str, int, int | None, str], damage: Damage, clean: Damage, best: Damage) -> UnitDamage:
    whole, gap = damage.minus(clean), damage.minus(best)
    return UnitDamage(*what, whole.difference, whole.low, whole.high, gap.difference, gap.low, gap.high)

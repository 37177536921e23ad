"""What a circuit lacks, and what it does not need: greedy searches for the units whose removal shows it worst."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from ablation_lens.circuits.circuit import Circuit
from ablation_lens.circuits.judging import ROUNDING, Judge, at_least, difference_of, judge_of, mean
from ablation_lens.circuits.values import Statistics
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.measure.intervals import Interval
from ablation_lens.measure.metrics import Given
from ablation_lens.measure.score import Sums
from ablation_lens.progress import progress_over

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Removed:
    """Two m's, after some units were removed.

    Attributes:
        units: what was removed: K, by names.
        one: the metric of the first, row by row: of C∖K; for minimality of C∖(K ∪ {v}).
        other: of the second: of M∖K; for minimality of C∖K.
    """

    units: tuple[str, ...]
    one: Sums
    other: Sums

    @property
    def size(self) -> float:
        """How far the two are apart."""
        return abs(mean(self.one) - mean(self.other))

    @property
    def difference(self) -> Interval:
        """The first less the second, with its 95 % interval over rows, for this K.

        K was searched for on the same rows, so that on others the two would be a little less apart.
        """
        return difference_of(self.one, self.other)


@dataclass(frozen=True, eq=False, repr=False)
class CompletenessGap:
    """Where a circuit and the model differ most when the same units are removed from both.

    Attributes:
        circuit: C.
        metric: what was measured.
        values: what was ablated was set to, in a word.
        level: of the units that were removed.
        clean: the metric of the model as it is: value times weight of every row, and the weights.
        empty: the same with every unit ablated.
        steps: the search that found the worst, from nothing removed on; `one` is C∖K and `other` M∖K.
        searched: how.
        random: the gaps that the same search finds for circuits of as many units, drawn at random.
    """

    circuit: Circuit
    metric: str
    values: str
    level: str
    clean: Sums
    empty: Sums
    steps: tuple[Removed, ...]
    searched: str
    random: tuple[float, ...] = ()

    @property
    def worst(self) -> Removed:
        """The step with the largest gap."""
        return _largest(self.steps)

    @property
    def gap(self) -> float:
        """|m(C∖K) − m(M∖K)| for the worst K that was found: 0 is complete."""
        return self.worst.size

    @property
    def removed(self) -> tuple[str, ...]:
        """The worst K that was found."""
        return self.worst.units

    def table(self) -> "pandas.DataFrame":
        """A row per step: what was removed last, both m's, the gap, and the interval of m(C∖K) − m(M∖K)."""
        import pandas

        rows = []
        for step in self.steps:
            found = step.difference
            row: dict[str, Any] = {"removed": len(step.units), "last": step.units[-1] if step.units else ""}
            row |= {"m_circuit": mean(step.one), "m_model": mean(step.other), "gap": step.size}
            rows.append({**row, "low": found.low, "high": found.high})
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        worst, found = self.worst, self.worst.difference
        lines = [
            f"CompletenessGap({on_one_line(self.metric)}, ablated → {on_one_line(self.values)})",
            f"  {self.circuit!r}",
            f"  |m(C∖K) − m(M∖K)| = {worst.size:.4g} for K = {_listed(worst.units)}",
            f"  m(C∖K) = {mean(worst.one):.4g}, m(M∖K) = {mean(worst.other):.4g}, difference {found.difference:+.4g} "
            f"[{found.low:+.4g}, {found.high:+.4g}]",
            f"  m(M) = {mean(self.clean):.4g}, m(∅) = {mean(self.empty):.4g}",
            f"  {self.searched}",
        ]
        if self.random:
            lines.append(
                f"  {len(self.random)} random circuits of this size: {min(self.random):.4g} to {max(self.random):.4g}"
            )
        return "\n".join(lines)


def completeness_gap(
    model: Any,
    batches: Any,
    metric: Given,
    circuit: Circuit,
    values: Any,
    *,
    statistics: Statistics = None,
    level: str = "head",
    largest: int = 5,
    restarts: int = 0,
    random: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> CompletenessGap:
    """What a circuit lacks (Wang et al.): |m(C∖K) − m(M∖K)| for the worst K ⊆ C that a greedy search finds.

    A circuit that is complete behaves as the model does, whichever of its units are removed from both; one that lacks
    a backup of some unit is found out when that unit is removed. 0 is good. The other meaning of the word is
    `completeness_of_rest`.

    The search removes, step by step, the unit that makes the gap largest, and looks at each step at all that are left:
    about 2 · |C| · `largest` runs, and as many for every restart and random circuit. A larger gap may exist.

    Args:
        model: any model with TransformerLens hooks.
        batches: what it is judged on (docs/guide/inputs.md).
        metric: one of `al.metrics` or a function of one's own; one number per row.
        circuit: C.
        values: what is ablated is set to: whatever `circuits.Values.of` takes.
        statistics: what centers are computed from.
        level: what is removed as one: "head", "layer" or "neuron", as far as the circuit keeps it.
        largest: how many units K has at most.
        restarts: how many further searches begin with a unit drawn at random.
        random: for how many random circuits of as many units the same is done.
        seed: draws both.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> texts = al.task_for(model).batches(split="evaluate", tokens=200)
    >>> heads = al.circuits.Circuit.of_heads(["L0.H0", "L1.H0"], model)
    >>> found = al.circuits.completeness_gap(model, texts, "cross_entropy", heads, "zero", random=0, progress=False)
    >>> len(found.table()), set(found.removed) <= set(heads.units()), found.gap == max(found.table()["gap"])
    (3, True, True)
    """
    largest, restarts = at_least(largest, "largest"), at_least(restarts, "restarts")
    draws = at_least(random, "random")
    judge = judge_of(model, batches, metric, circuit, values, statistics)
    names = _units(circuit, level)
    with progress_over("looking for what is lacking", None, progress, "runs") as advance:
        paths = [_gaps(judge, circuit, names, start, largest, advance) for start in _starts(names, restarts, seed)]
        others = []
        for number in range(draws):
            drawn = circuit.random_like(seed + number)
            others.append(_largest(_gaps(judge, drawn, drawn.units(level), (), largest, advance)).size)
    again = f", and {restarts} more that begin with a unit drawn at random" if restarts else ""
    best = max(range(len(paths)), key=lambda place: _largest(paths[place]).size)
    return CompletenessGap(
        circuit,
        judge.setting.name,
        judge.setting.values.name,
        level,
        judge.clean,
        judge.empty,
        tuple(paths[best]),
        f"greedy search among {len(names)} {level}s, K of at most {min(largest, len(names))}{again}",
        tuple(others),
    )


def _gaps(
    judge: Judge,
    circuit: Circuit,
    names: Sequence[str],
    start: tuple[str, ...],
    largest: int,
    advance: Callable[[int], None],
) -> list[Removed]:
    def removed(sets: list[tuple[str, ...]]) -> list[Removed]:
        left = [circuit.without(units) for units in sets]
        found = judge.measure([*left, *(~(circuit - each) for each in left)], advance)
        return [Removed(*each) for each in zip(sets, found[: len(sets)], found[len(sets) :], strict=True)]

    return _greedily(names, start, largest, removed)


@dataclass(frozen=True, eq=False, repr=False)
class Minimality:
    """What every unit of a circuit is good for.

    Attributes:
        circuit: C.
        metric: what was measured.
        values: what was ablated was set to, in a word.
        level: of the units.
        clean: the metric of the model as it is: value times weight of every row, and the weights.
        empty: the same with every unit ablated.
        units: unit → the K for which it matters most; `one` is C∖(K ∪ {v}) and `other` C∖K.
        searched: how.
        random: the sizes of all units of circuits of as many units, drawn at random.
    """

    circuit: Circuit
    metric: str
    values: str
    level: str
    clean: Sums
    empty: Sums
    units: dict[str, Removed]
    searched: str
    random: tuple[float, ...] = ()

    @property
    def worst(self) -> str:
        """The unit that matters least: if that is next to nothing, the circuit does not need it."""
        return min(self.units, key=lambda unit: self.units[unit].size)

    @property
    def smallest(self) -> float:
        """|m(C∖(K ∪ {v})) − m(C∖K)| of the unit that matters least."""
        return self.units[self.worst].size

    def table(self) -> "pandas.DataFrame":
        """A row per unit, what matters least first.

        `size` is |m(C∖(K ∪ {v})) − m(C∖K)|, `share` the same over |m(M) − m(∅)|, `low` to `high` the interval of the
        difference with its sign.
        """
        import pandas

        total = abs(mean(self.clean) - mean(self.empty))
        rows = []
        for unit, step in self.units.items():
            found = step.difference
            ms = {"m_with": mean(step.other), "m_without": mean(step.one), "size": step.size}
            share = step.size / total if total else np.nan
            rest = {"share": share, "low": found.low, "high": found.high, "removed": ", ".join(step.units)}
            rows.append({"unit": unit, **ms, **rest})
        return pandas.DataFrame(rows).set_index("unit").sort_values("size", kind="stable")

    def __repr__(self) -> str:
        lines = [
            f"Minimality({on_one_line(self.metric)}, ablated → {on_one_line(self.values)}; {self.searched})",
            f"  {self.circuit!r}",
        ]
        for unit, row in zip(self.table().index[:5], self.table().to_dict("records"), strict=False):
            lines.append(
                f"  {unit}  {row['size']:.4g}, {row['m_with']:.4g} → {row['m_without']:.4g} without it, K = "
                f"{row['removed'] or 'nothing'}"
            )
        if len(self.units) > 5:
            lines.append(f"  and {len(self.units) - 5} units that matter more")
        if self.random:
            lines.append(f"  units of random circuits: {min(self.random):.4g} to {max(self.random):.4g}")
        return "\n".join(lines)


def minimality(
    model: Any,
    batches: Any,
    metric: Given,
    circuit: Circuit,
    values: Any,
    *,
    statistics: Statistics = None,
    level: str = "head",
    largest: int = 3,
    random: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> Minimality:
    """Whether a circuit needs all of its units (Wang et al.): |m(C∖(K ∪ {v})) − m(C∖K)| for every unit v of it.

    A unit that another one stands in for changes nothing by itself, and much once that other one is removed, too: K is
    what makes it matter most, among the other units of C, found by a greedy search. Where even that is next to nothing,
    the unit is not needed.

    The search adds to K, step by step, the unit that makes v matter most: about 2 · |C|² · `largest` runs, less what
    comes again, and as many for every random circuit.

    Args:
        model: any model with TransformerLens hooks.
        batches: what it is judged on (docs/guide/inputs.md).
        metric: one of `al.metrics` or a function of one's own; one number per row.
        circuit: C.
        values: what is ablated is set to: whatever `circuits.Values.of` takes.
        statistics: what centers are computed from.
        level: of the units: "head", "layer" or "neuron", as far as the circuit keeps them.
        largest: how many units K has at most; 0 removes v alone.
        random: for how many random circuits of as many units the same is done.
        seed: draws them.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> texts = al.task_for(model).batches(split="evaluate", tokens=200)
    >>> heads = al.circuits.Circuit.of_heads(["L0.H0", "L1.H0"], model)
    >>> found = al.circuits.minimality(model, texts, "cross_entropy", heads, "zero", random=0, progress=False)
    >>> sorted(found.units), found.worst == found.table().index[0]
    (['L0.H0', 'L1.H0'], True)
    """
    largest, draws = at_least(largest, "largest"), at_least(random, "random")
    judge = judge_of(model, batches, metric, circuit, values, statistics)
    names = _units(circuit, level)
    with progress_over("looking at every unit", None, progress, "runs") as advance:
        units = _needs(judge, circuit, names, largest, advance)
        others: list[float] = []
        for number in range(draws):
            drawn = circuit.random_like(seed + number)
            others += [each.size for each in _needs(judge, drawn, drawn.units(level), largest, advance).values()]
    return Minimality(
        circuit,
        judge.setting.name,
        judge.setting.values.name,
        level,
        judge.clean,
        judge.empty,
        units,
        f"greedy search for each of {len(names)} {level}s, K of at most {min(largest, len(names) - 1)}",
        tuple(others),
    )


def _needs(
    judge: Judge, circuit: Circuit, names: Sequence[str], largest: int, advance: Callable[[int], None]
) -> dict[str, Removed]:
    def need(unit: str) -> Removed:
        def removed(sets: list[tuple[str, ...]]) -> list[Removed]:
            left = [circuit.without(units) for units in sets]
            found = judge.measure([*(each.without(unit) for each in left), *left], advance)
            return [Removed(*each) for each in zip(sets, found[: len(sets)], found[len(sets) :], strict=True)]

        return _largest(_greedily([name for name in names if name != unit], (), largest, removed))

    return {unit: need(unit) for unit in names}


def _greedily(
    names: Sequence[str],
    start: tuple[str, ...],
    largest: int,
    removed: Callable[[list[tuple[str, ...]]], list[Removed]],
) -> list[Removed]:
    """One unit more at every step: of all, the one with which the two m's are farthest apart."""
    path = removed([start])
    while len(path[-1].units) < min(largest, len(names)):
        before = path[-1].units
        path.append(_largest(removed([(*before, name) for name in names if name not in before])))
    return path


def _largest(found: Sequence[Removed]) -> Removed:
    """Where the two are farthest apart; of those that only rounding tells apart, the first."""
    most = max(each.size for each in found)
    return next(
        each for each in found if each.size >= most - ROUNDING * max(abs(mean(each.one)), abs(mean(each.other)))
    )


def _starts(names: Sequence[str], restarts: int, seed: int) -> list[tuple[str, ...]]:
    draw = Random(f"restarts {seed}")
    # By `random()` alone, which Python promises to keep.
    return [(), *((names[int(draw.random() * len(names))],) for _ in range(restarts))]


def _units(circuit: Circuit, level: str) -> list[str]:
    names = circuit.units(level)
    if not names:
        raise MismatchError("this circuit keeps nothing, so that nothing can be removed from it; give one with units.")
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"

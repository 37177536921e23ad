"""Finding a circuit on one half of the prompts, and judging it on the other."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ablation_lens.circuits.attribution import attribution_effects
from ablation_lens.circuits.circuit import Circuit
from ablation_lens.circuits.effects import Effects
from ablation_lens.circuits.halving import COLLECT_ON_FIRST, Halves
from ablation_lens.circuits.judging import (
    Faithfulness,
    Judge,
    at_least,
    judged,
    mean,
    require_other_inputs,
    why_refused,
)
from ablation_lens.circuits.setting import Setting
from ablation_lens.circuits.units import Level, axes_of, level_and_sites
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.interrupts import put_off
from ablation_lens.measure.metrics import Given
from ablation_lens.names import require_known
from ablation_lens.progress import progress_over
from ablation_lens.records import record_of
from ablation_lens.tasks.inputs import told, whole

Method = Literal["attribution", "greedy"]
_AROUND = 8
"""How many sizes below the one found are looked at: f need not grow with the size."""


@dataclass(frozen=True, eq=False, repr=False)
class Discovery:
    """A circuit that was found on some prompts and judged on others.

    Attributes:
        circuit: what was found.
        found: its faithfulness on the prompts that it was found on.
        judged: its faithfulness on the others, beside random circuits: what to report.
        target: the f that it was to have at least.
        method: "attribution" or "greedy".
        level: of the units.
        effects: what units were ranked by; None for a greedy search.
        tried: units kept → f on the prompts that it was found on, of every size that was looked at.
        searched: how.
        halves: the prompts it was found on, and the others.
    """

    circuit: Circuit
    found: Faithfulness
    judged: Faithfulness
    target: float
    method: str
    level: str
    effects: Effects | None
    tried: dict[int, float]
    searched: str
    halves: tuple[Any, Any]

    @property
    def reached(self) -> bool:
        """Whether fewer than all units have the f that was asked for, on the prompts that they were found on."""
        return self.circuit.share < 1

    def __repr__(self) -> str:
        metric, values = on_one_line(self.found.metric), on_one_line(self.found.values)
        rows = [len(each.clean.values) for each in (self.found, self.judged)]
        lines = [f"Discovery({self.method}: {metric}, outside → {values}, f ≥ {self.target:g})"]
        if not self.reached:
            lines.append(f"  no circuit of fewer {self.level}s that was looked at has f ≥ {self.target:g}")
        lines += [
            f"  {self.circuit!r}",
            f"  found on {rows[0]} rows: f = {self.found.f:.3f}; {self.searched}",
            f"  judged on {rows[1]} others:",
            *(f"  {line}" for line in repr(self.judged).splitlines()[2:]),
        ]
        return "\n".join(lines)


def discover(
    model: Any,
    prompts: Any,
    metric: Given,
    values: Any,
    *,
    target: float = 0.9,
    method: str = "attribution",
    level: Level | Literal["mlp"] = "head",
    statistics: Any = None,
    sites: Any = None,
    positions: Any = None,
    steps: int = 8,
    absolute: bool = False,
    random: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Discovery:
    """The smallest circuit that keeps `target` of a metric, found on one half of the prompts and judged on the other.

    "attribution" ranks units by their integrated attribution, and looks for the smallest number of them whose f reaches
    the target, by bisection. f need not grow with every unit, so that the sizes just below are looked at, too; a
    smaller circuit may still exist. "greedy" takes units away from the whole model, one at a time, each time the one
    whose loss is least by an exact run, as long as f stays at the target: some |units|² / 2 runs.

    What was found is judged on the half that was not looked at: `judged` is the number to report.

    Args:
        model: any model with TransformerLens hooks.
        prompts: `circuits.Prompts`, or what else is taken for batches (docs/guide/inputs.md): equal rows, and rows of
            one document, are in the same half.
        metric: one of `al.metrics` or a function of one's own; "attribution" needs a gradient.
        values: what is outside is set to: whatever `circuits.Values.of` takes, and "counterfactual" for prompts with
            corrupted twins.
        target: the f that is asked for, above 0 and at most 1.
        method: "attribution" or "greedy".
        level: of the units: "head", "layer" or (for attribution) "neuron"; "mlp" for MLPs as wholes, alone.
        statistics: what centers are computed from; None or "prompts" collects them on the half that is searched.
        sites: where units are: "z" for heads, "mlp", or both.
        positions: units are ablated at these positions only; what `Ablation.at` takes.
        steps: of the attribution.
        absolute: rank by size, whatever the direction.
        random: how many circuits of as many units are drawn and judged, too.
        seed: draws the halves and the random circuits.
        progress: show progress bars.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> texts = al.task_for(model).batches(split="evaluate", tokens=1000)
    >>> found = al.circuits.discover(
    ...     model, texts, "cross_entropy", "mean", target=0.8, level="layer", random=2, progress=False
    ... )
    >>> found.found.f >= 0.8, found.circuit.share <= 1
    (True, True)
    """
    at, sites = level_and_sites(level, sites)
    target, number = require_search(method, at, target), whole(seed, "seed")
    draws = at_least(random, "random")
    halves = Halves.of(model, prompts, number)
    (both,) = halves.values([values], statistics, sites=sites, progress=progress).values()
    settings = [
        Setting.of(model, half, metric, each, positions=positions)
        for half, each in ((halves.first, both.first), (halves.second, both.second))
    ]
    require_other_inputs(settings[1], COLLECT_ON_FIRST)
    effects = None
    if method == "attribution":
        effects = attributed(model, halves.first, metric, settings[0], at, steps, progress)
    with put_off(1) as interrupted:
        finder = Judge(settings[0], interrupted)
        refused = why_refused(finder.clean, finder.empty, settings[0].name)
        if refused is not None:
            raise MismatchError(f"there is nothing to find: {refused}")
        search = _Search(finder, target)
        with progress_over("discovering", None, progress, "runs") as advance:
            if effects is None:
                everything = Circuit.of(model, True, settings[0].values.sites, positions)
                circuit, searched = search.fewest(everything, at, advance)
            else:
                options = {"absolute": absolute, "model": model, "positions": positions}
                circuit, searched = search.smallest(effects, options, advance)
    circuit = Circuit(circuit.kept, positions, record_of(model))
    drawn = [circuit.random_like(number + draw) for draw in range(draws)]
    return Discovery(
        circuit,
        judged(finder, circuit, progress=False),
        judged(Judge(settings[1]), circuit, drawn, progress=progress),
        target,
        method,
        at,
        effects,
        dict(sorted(search.tried.items())),
        searched,
        (halves.first, halves.second),
    )


def attributed(
    model: Any, half: Any, metric: Given, setting: Setting, level: Level, steps: int, progress: bool, **options: Any
) -> Effects:
    """The attribution that units are ranked by, of all rows or none."""
    effects = attribution_effects(
        model,
        half,
        metric,
        setting.values,
        level=level,
        steps=steps,
        positions=setting.positions,
        progress=progress,
        **options,
    )
    # Ctrl-C leaves some of the rows, with a warning; but who stops here wants no circuit of them.
    if len(effects.clean.values) < setting.rows:
        raise KeyboardInterrupt
    return effects


@dataclass
class _Search:
    """For the smallest circuit whose f is high enough."""

    judge: Judge
    target: float
    tried: dict[int, float] = field(default_factory=dict)

    def _f(self, circuits: Sequence[Circuit], advance: Callable[[int], None]) -> list[float]:
        nothing = mean(self.judge.empty)
        everything = mean(self.judge.clean) - nothing
        return [(mean(each) - nothing) / everything for each in self.judge.measure(circuits, advance)]

    def smallest(
        self, effects: Effects, options: Mapping[str, Any], advance: Callable[[int], None]
    ) -> tuple[Circuit, str]:
        """Of circuits of the units ranked first, which hold those of fewer units."""
        tried, units = self.tried, sum(effects[site].numel() for site in effects.sites)

        def top(count: int) -> Circuit:
            return Circuit.top(effects, count=count, **options)

        def reached(*counts: int) -> list[bool]:
            tried.update(zip(counts, self._f([top(count) for count in counts], advance), strict=True))
            return [tried[count] >= self.target for count in counts]

        too_few, enough = 0, units
        reached(too_few, enough)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            enough, too_few = (middle, too_few) if reached(middle)[0] else (enough, middle)
        below = range(max(1, enough - _AROUND), enough)
        while smaller := [count for count, good in zip(below, reached(*below), strict=True) if good]:
            enough = smaller[0]
            below = range(max(1, enough - _AROUND), enough)
        sizes = " to ".join(dict.fromkeys(str(size) for size in (below.start, enough - 1)))
        looked = f"; with {sizes} of them, f stays below the target" if below else ""
        return top(enough), f"the first {enough} of {units} units of the ranking{looked}"

    def fewest(self, circuit: Circuit, level: str, advance: Callable[[int], None]) -> tuple[Circuit, str]:
        """By taking away the unit whose loss is least, for as long as the rest is good enough."""
        names = circuit.units(level)
        units = len(names)
        self.tried[units] = 1.0
        try:
            while names:
                without = [circuit.without(name) for name in names]
                found = self._f(without, advance)
                best = max(range(len(names)), key=found.__getitem__)
                self.tried[len(names) - 1] = found[best]
                if found[best] < self.target:
                    break
                circuit = without[best]
                del names[best]
        except KeyboardInterrupt:
            warnings.warn(f"interrupted: {len(names)} of {units} units are left, and fewer might do.", stacklevel=3)
            return circuit, f"units taken away one by one, until it was interrupted at {len(names)} of {units}"
        return circuit, f"units taken away one by one, from {units} to {len(names)}"


def require_search(method: str, level: str, target: Any) -> float:
    """The target as a number; raises where no circuit can be searched for like this."""
    require_known(method, get_args(Method), "method of discovery")
    axes_of(level)
    if method == "greedy" and level == "neuron":
        raise MismatchError(
            'a greedy search would run the model once for every neuron and step; give method="attribution", or '
            'level="head".'
        )
    return _possible_target(target)


def _possible_target(target: Any) -> float:
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target <= 1:
        shown = target if isinstance(target, int | float) else told(target)
        raise MismatchError(f"target={shown} is not possible; give the f to be kept, above 0 and at most 1.")
    return float(target)

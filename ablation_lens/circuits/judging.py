"""How good a circuit is: what it keeps of the metric, what it lacks, and whether it needs all of its units."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray
from torch import Tensor

from ablation_lens.circuits.circuit import Circuit
from ablation_lens.circuits.setting import Prepared, Setting, join_rows
from ablation_lens.circuits.values import Statistics
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.hooked import task_of
from ablation_lens.measure.intervals import Interval, bootstrap_means
from ablation_lens.measure.metrics import Given
from ablation_lens.measure.score import Sums
from ablation_lens.progress import progress_over
from ablation_lens.records import record_of
from ablation_lens.sites import Hook
from ablation_lens.tasks.inputs import whole
from ablation_lens.tasks.known_rows import among, row_digests
from ablation_lens.tasks.tasks import require_model

if TYPE_CHECKING:
    import pandas

_ROUNDING = 1e-6
"""Relative differences up to this come from the order in which numbers are added."""


def mean(sums: Sums) -> float:
    """The metric: the weighted mean over rows."""
    return float(sums.values.sum() / sums.weights.sum())


# ---------------------------------------------------------------------- measuring circuits


class Judge:
    """What a model without the units outside a circuit does, on given inputs; every circuit is measured once.

    Attributes:
        setting: model, inputs, metric, and the values of what is outside.
        clean: the metric of the model as it is: value times weight of every row, and the weights.
        empty: the same with every unit ablated.
    """

    def __init__(self, setting: Setting, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.setting, self._interrupted = setting, interrupted
        self.clean, self.empty = setting.everything()
        self._known: dict[bytes, Sums] = {}

    def measure(self, circuits: Iterable[Circuit], on_run: Callable[[int], None] = lambda runs: None) -> list[Sums]:
        """The metric of every circuit, row by row. Each batch is prepared once for all of them."""
        keys, new = [], {}
        for circuit in circuits:
            self._require_same_places(circuit)
            key = identity(circuit)
            keys.append(key)
            if key in self._known:
                continue
            kept = torch.cat([mask.flatten() for mask in circuit.kept.values()])
            # What keeps everything or nothing is known, to the last bit.
            if bool(kept.all()):
                self._known[key] = self.clean
            elif not bool(kept.any()):
                self._known[key] = self.empty
            else:
                new[key] = circuit
        if new:
            parts = list(self.setting.each(lambda prepared: self._all_on(prepared, list(new.values()), on_run)))
            for place, key in enumerate(new):
                self._known[key] = join_rows(part[place] for part in parts)
        return [self._known[key] for key in keys]

    @property
    def _sites(self) -> tuple[Any, ...]:
        return self.setting.values.sites

    def _all_on(self, prepared: Prepared, circuits: Sequence[Circuit], on_run: Callable[[int], None]) -> list[Sums]:
        made = []
        with torch.inference_mode():
            for circuit in circuits:
                # Between runs no hook is on the model, so that nothing is left half done.
                if self._interrupted():
                    raise KeyboardInterrupt
                made.append(prepared.readout.under(_hooks_outside(prepared, circuit)))
                on_run(1)
        return made

    def _require_same_places(self, circuit: Circuit) -> None:
        if set(circuit.sites) != set(self._sites):
            told, spoken = (", ".join(site.value for site in sites) for sites in (circuit.sites, self._sites))
            raise MismatchError(f"this circuit speaks of {told}, and {spoken} is what is ablated here.")


def identity(circuit: Circuit) -> bytes:
    """What tells circuits of the same sites and positions apart."""
    by_name = sorted(circuit.kept.items(), key=lambda each: each[0].value)
    return np.packbits(torch.cat([mask.flatten() for _, mask in by_name]).numpy()).tobytes()


def _hooks_outside(prepared: Prepared, circuit: Circuit) -> list[Hook]:
    hooks: list[Hook] = []
    for (site, layer), replacement in prepared.replacements.items():
        kept = circuit.kept[site][layer]
        if bool(kept.all()):
            continue
        if bool(kept.any()):
            replacement = _Outside(site.from_heads(kept), replacement)
        hooks.append((site.hook_name(layer), replacement))
    return hooks


@dataclass(frozen=True, eq=False)
class _Outside:
    kept: Bool[Tensor, "*site"]
    replacement: Callable[[Tensor, Any], Tensor]

    def __call__(self, value: Tensor, hook: Any) -> Tensor:
        return torch.where(self.kept.to(value.device), value, self.replacement(value, hook))


def judge_of(
    model: Any, batches: Any, metric: Given, circuit: Circuit, values: Any, statistics: Statistics = None
) -> Judge:
    """A judge of a circuit and of its parts, on inputs that the values were not computed from."""
    require_model(model)
    if not isinstance(circuit, Circuit):
        raise MismatchError(f"what is judged is a Circuit, got a {type(circuit).__name__}; Circuit.of_heads makes one.")
    for site, mask in circuit.kept.items():
        if tuple(mask.shape) != site.shape(model.cfg):
            raise MismatchError(
                f"this circuit is of a model with {site.value} neurons {tuple(mask.shape)} (layer, head, dim), and "
                f"this one has {site.shape(model.cfg)}."
            )
    if circuit.source is not None:
        circuit.source.require_same(record_of(model), "this circuit was found in another model")
    setting = Setting.of(
        model, batches, metric, values, statistics=statistics, sites=circuit.sites, positions=circuit.positions
    )
    require_other_inputs(setting)
    return Judge(setting)


_OTHERS = "give others, such as those of split='evaluate', or the half of prompts.split() that nothing is collected on"


def require_other_inputs(setting: Setting, way: str = _OTHERS) -> None:
    """Refuse to judge on what the values were computed from, and say what to do."""
    values, task = setting.values, task_of(setting.model)
    same = 0
    for batch in setting.batches:
        if batch.plan and batch.plan in values.plans:
            same += len(batch.inputs)
        elif values.rows is not None:
            same += int(among(row_digests(batch, task), values.rows).sum())
    if same:
        raise MismatchError(
            f"the values {values.name!r} were computed from the inputs that are to be judged on ({same:,} of "
            f"{setting.rows:,} rows); {way}."
        )


# ---------------------------------------------------------------------- shares of the metric


@dataclass(frozen=True)
class Kept:
    """Which share of m(M) − m(∅) is kept, and its 95 % interval.

    Attributes:
        value: the share; NaN where it is refused.
        low: where its interval begins; NaN where a single row says nothing of others.
        high: where it ends.
        refused: why there is no share; None where there is one.
    """

    value: float
    low: float
    high: float
    refused: str | None = None


def share_kept(circuit: Sums, clean: Sums, empty: Sums, metric: str = "the metric") -> Kept:
    """(m(C) − m(∅)) / (m(M) − m(∅)), with a paired bootstrap over rows; refused where the divisor may be 0.

    >>> rows = [Sums(torch.tensor(values).double(), torch.ones(2)) for values in ([2.0, 3.0], [4.0, 5.0], [0.0, 1.0])]
    >>> share_kept(*rows)
    Kept(value=0.5, low=0.5, high=0.5, refused=None)
    """
    return _shares_kept([circuit], clean, empty, metric)[0]


def _shares_kept(circuits: Sequence[Sums], clean: Sums, empty: Sums, metric: str) -> list[Kept]:
    if not circuits:
        return []
    refused = why_refused(clean, empty, metric)
    if refused is not None:
        return [Kept(np.nan, np.nan, np.nan, refused)] * len(circuits)
    drawn = shares_in_replicates(circuits, clean, empty)
    kept = []
    for circuit, values in zip(circuits, drawn, strict=True):
        value = (mean(circuit) - mean(empty)) / (mean(clean) - mean(empty))
        kept.append(Kept(value, *interval_of(values)))
    return kept


def shares_in_replicates(circuits: Sequence[Sums], clean: Sums, empty: Sums) -> ndarray:
    """The share that each circuit keeps `[circuit resample]`: every replicate draws its rows once for all three m's."""
    whole_model, nothing, *others = _replicates([clean, empty, *circuits])
    with np.errstate(divide="ignore", invalid="ignore"):
        shares: ndarray = (np.stack(others) - nothing) / (whole_model - nothing)
    return shares


def why_refused(clean: Sums, empty: Sums, metric: str) -> str | None:
    """Why no share of m(M) − m(∅) can be given, in a sentence; None where one can."""
    found = _difference(clean, empty)
    said = f"m(M) − m(∅) = {found.difference:+.4g} of {on_one_line(metric)}"
    if abs(found.difference) <= _ROUNDING * max(abs(mean(clean)), abs(mean(empty))):
        return f"{said} is no more than rounding, so there is nothing to keep a share of; give other values or inputs."
    if np.isnan(found.low):
        return f"{said} is of a single row, which says nothing of others, so f would mean little; give more rows."
    if not found.excludes_zero:
        return (
            f"{said} cannot be told from 0 (its interval is {found.low:+.4g} to {found.high:+.4g}), so f would be a "
            "division by chance; give more rows or other values."
        )
    return None


def _difference(one: Sums, other: Sums) -> Interval:
    """One mean less another, with its interval over rows."""
    drawn = _replicates([one, other])
    return Interval(mean(one) - mean(other), *interval_of(drawn[0] - drawn[1]), True)


def _replicates(quantities: Sequence[Sums]) -> ndarray:
    values, weights = (np.stack([getattr(each, name).numpy() for each in quantities]) for name in ("values", "weights"))
    return bootstrap_means(values, weights.astype(np.float64))


def interval_of(replicates: ndarray) -> tuple[float, float]:
    """The 95 % interval of replicates; NaN of none."""
    possible = replicates[np.isfinite(replicates)]
    if not len(possible):
        return np.nan, np.nan
    low, high = np.quantile(possible, [0.025, 0.975])
    return float(low), float(high)


# ---------------------------------------------------------------------- faithfulness


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness:
    """What is kept of a metric when a circuit alone is left, with what it is measured by.

    Attributes:
        circuit: what was kept.
        metric: what was measured.
        values: what everything else was set to, in a word.
        clean: the metric of the model as it is: value times weight of every row, and the weights.
        kept: the same of the circuit.
        empty: the same with every unit ablated.
        random: the same of circuits of as many units, drawn at random.
        collected_on: what the values were made from, in words.
        what: whether this is of a "circuit", or of the "rest" that `completeness_of_rest` looks at.
    """

    circuit: Circuit
    metric: str
    values: str
    clean: Sums
    kept: Sums
    empty: Sums
    random: tuple[Sums, ...] = ()
    collected_on: str | None = None
    what: str = "circuit"

    @property
    def m_model(self) -> float:
        """m(M): the metric of the model as it is."""
        return mean(self.clean)

    @property
    def m_circuit(self) -> float:
        """m(C): the metric of the circuit."""
        return mean(self.kept)

    @property
    def m_empty(self) -> float:
        """m(∅): the metric with every unit ablated."""
        return mean(self.empty)

    @property
    def share(self) -> Kept:
        """f with its interval, or why there is none."""
        return share_kept(self.kept, self.clean, self.empty, self.metric)

    @property
    def refused(self) -> str | None:
        """Why there is no f; None where there is one."""
        return why_refused(self.clean, self.empty, self.metric)

    @property
    def f(self) -> float:
        """(m(C) − m(∅)) / (m(M) − m(∅)): 1 for the whole model, 0 for none of it, whatever the metric's sign.

        It may be above 1, or below 0. Raises `MismatchError` where m(M) − m(∅) cannot be told from 0.
        """
        kept = self.share
        if kept.refused is not None:
            raise MismatchError(kept.refused)
        return kept.value

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of f over rows, which are drawn for all three m's together."""
        kept = self.share
        if kept.refused is not None:
            raise MismatchError(kept.refused)
        return kept.low, kept.high

    @property
    def gap(self) -> float:
        """|m(M) − m(C)|, which Wang et al. call faithfulness: 0 is as good as the model."""
        return abs(self.m_model - self.m_circuit)

    @property
    def difference(self) -> Interval:
        """m(C) − m(M), with its interval."""
        return _difference(self.kept, self.clean)

    @property
    def random_f(self) -> list[float]:
        """f of every random circuit; NaN where f is refused."""
        return [each.value for each in _shares_kept(self.random, self.clean, self.empty, self.metric)]

    def __repr__(self) -> str:
        kept = self.share
        name, m, drawn = ("f", "m(C)", "random circuits of this size")
        if self.what == "rest":
            name, m, drawn = ("f of the rest", "m(M∖C)", "rests without random circuits of this size")
        lines = [
            f"Faithfulness({on_one_line(self.metric)}, outside → {on_one_line(self.values)})",
            f"  {self.circuit!r}",
            f"  {name} {_told(kept)}" if kept.refused is None else f"  {name} is refused: {kept.refused}",
            f"  m(M) = {self.m_model:.4g}, {m} = {self.m_circuit:.4g}, m(∅) = {self.m_empty:.4g}",
        ]
        if self.random and kept.refused is None:
            found = self.random_f
            lines.append(
                f"  {len(found)} {drawn}: f = {np.mean(found):.3f} on average, {min(found):.3f} to {max(found):.3f}"
            )
        elif self.random:
            found = [mean(each) for each in self.random]
            lines.append(f"  {len(found)} {drawn}: m = {min(found):.4g} to {max(found):.4g}")
        return "\n".join(lines)


def _told(kept: Kept) -> str:
    return f"= {kept.value:.3f}" + ("" if np.isnan(kept.low) else f" [{kept.low:.3f}, {kept.high:.3f}]")


def faithfulness(
    model: Any,
    batches: Any,
    metric: Given,
    circuit: Circuit,
    values: Any,
    *,
    statistics: Statistics = None,
    random: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Faithfulness:
    """How much of a metric a circuit keeps: f = (m(C) − m(∅)) / (m(M) − m(∅)), beside random circuits.

    M is the model, C the circuit with everything else ablated, ∅ everything ablated: of the sites that the circuit
    speaks of, and at its positions. Give inputs on which the circuit was not found, and give each once: intervals draw
    rows as if each were another input, so that a row that comes again makes them too narrow.

    Args:
        model: any model with TransformerLens hooks.
        batches: what it is judged on (docs/INPUTS.md).
        metric: one of `al.metrics` or a function of one's own; one number per row.
        circuit: what is kept.
        values: what everything else is set to: whatever `circuits.Values.of` takes.
        statistics: what centers are computed from.
        random: how many circuits of as many units are drawn and judged, too.
        seed: draws them.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> texts = al.task_for(model).batches(split="evaluate", tokens=200)
    >>> heads = al.circuits.Circuit.of_heads(["L0", "L1"], model)
    >>> result = al.circuits.faithfulness(model, texts, "cross_entropy", heads, "zero", random=2, progress=False)
    >>> result.f == (result.m_circuit - result.m_empty) / (result.m_model - result.m_empty)
    True
    """
    judge = judge_of(model, batches, metric, circuit, values, statistics)
    drawn = [circuit.random_like(seed + number) for number in range(at_least(random, "random"))]
    return judged(judge, circuit, drawn, progress=progress)


def completeness_of_rest(
    model: Any,
    batches: Any,
    metric: Given,
    circuit: Circuit,
    values: Any,
    *,
    statistics: Statistics = None,
    random: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Faithfulness:
    """How much of a metric the rest of the model keeps without a circuit (Marks et al.): low is good.

    (m(M∖C) − m(∅)) / (m(M) − m(∅)): the circuit is ablated, and everything else kept. Near 0, nothing that works is
    outside the circuit; near 1, the rest does as well without it. The other meaning of the word is `completeness_gap`.

    The result is the `faithfulness` of the rest, beside that of the rest of random circuits of this size; its `f` is
    refused for the same reason. Arguments as of `faithfulness`.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> texts = al.task_for(model).batches(split="evaluate", tokens=200)
    >>> heads = al.circuits.Circuit.of_heads("L0", model)
    >>> rest = al.circuits.completeness_of_rest(model, texts, "cross_entropy", heads, "zero", progress=False)
    >>> rest.circuit
    Circuit(z: 12 of 16 heads: L1.H0, L1.H1, L1.H2, L1.H3, L2.H0, L2.H1, L2.H2, L2.H3 and 4 more)
    """
    judge = judge_of(model, batches, metric, circuit, values, statistics)
    drawn = [~circuit.random_like(seed + number) for number in range(at_least(random, "random"))]
    return judged(judge, ~circuit, drawn, what="rest", progress=progress)


def judged(
    judge: Judge, circuit: Circuit, random: Sequence[Circuit] = (), *, what: str = "circuit", progress: bool = True
) -> Faithfulness:
    """What a judge says of a circuit, and of random ones beside it."""
    setting = judge.setting
    total = (1 + len(random)) * len(setting.batches)
    with progress_over("judging", total, progress, "runs") as advance:
        kept, *drawn = judge.measure([circuit, *random], advance)
    return Faithfulness(
        circuit,
        setting.name,
        setting.values.name,
        judge.clean,
        kept,
        judge.empty,
        tuple(drawn),
        setting.values.collected_on,
        what,
    )


def at_least(given: Any, name: str, least: int = 0) -> int:
    """A whole number that is large enough."""
    number = whole(given, name)
    if number < least:
        raise MismatchError(f"{name}={number} is not possible; give {least} or more.")
    return number


# ---------------------------------------------------------------------- searches for what is worst


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
        return _difference(self.one, self.other)


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
        batches: what it is judged on (docs/INPUTS.md).
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
        batches: what it is judged on (docs/INPUTS.md).
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
        each for each in found if each.size >= most - _ROUNDING * max(abs(mean(each.one)), abs(mean(each.other)))
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

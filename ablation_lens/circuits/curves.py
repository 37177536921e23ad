"""How much of a metric circuits of every size keep, for every pair of values: found with one, judged with another."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ablation_lens.circuits.circuit import Circuit, part_of
from ablation_lens.circuits.discovery import attributed
from ablation_lens.circuits.effects import ADD_UP, Effects
from ablation_lens.circuits.halving import COLLECT_ON_FIRST, Halves
from ablation_lens.circuits.judging import (
    Judge,
    at_least,
    identity,
    interval_of,
    mean,
    require_other_inputs,
    shares_in_replicates,
    why_refused,
)
from ablation_lens.circuits.setting import Setting
from ablation_lens.circuits.units import LEVELS, Level, level_and_sites, units_of
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.files import load_json, save_json
from ablation_lens.interrupts import put_off
from ablation_lens.measure.metrics import Given
from ablation_lens.progress import progress_over
from ablation_lens.records import ModelRecord, Record, record_of
from ablation_lens.tasks.inputs import told, whole

if TYPE_CHECKING:
    import pandas

KIND = "curves"
"""What these files call themselves."""

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Those of MIB."""

ORDERS = ("signed", "absolute")
"""Largest shares of m(∅) − m(M) first, as CPR ranks units; or largest effects, whatever the direction, as CMD does."""


@dataclass(frozen=True)
class Point(Record):
    """One circuit under one judge.

    Attributes:
        found_with: what the ablated units were set to when it was found.
        judged_with: what they were set to when it was judged.
        order: "signed" or "absolute".
        share: of the units that were to be kept.
        units: how many that is.
        m_circuit: m(C).
        f: the share of the metric that it keeps; None where that is refused.
        low: where its 95 % interval over rows begins; None where there is none.
        high: where it ends.
    """

    found_with: str
    judged_with: str
    order: str
    share: float
    units: int
    m_circuit: float
    f: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class JudgeRecord(Record):
    """What circuits are judged by when units are set to some values.

    Attributes:
        name: of the values.
        m_model: m(M), the metric of the model as it is.
        m_empty: m(∅), the metric with every unit ablated.
        refused: why nothing is said of f; None where it is.
    """

    name: str
    m_model: float
    m_empty: float
    refused: str | None


@dataclass(frozen=True)
class Area(Record):
    """One pair: the area under its curve.

    Attributes:
        found_with: what the ablated units were set to when its circuits were found.
        judged_with: what they were set to when they were judged.
        cpr: ∫ f dk, of units in signed order; None where f is refused.
        cpr_low: where its 95 % interval over rows begins.
        cpr_high: where it ends.
        cmd: ∫ |1 − f| dk, of units in absolute order.
        cmd_low: where its 95 % interval over rows begins.
        cmd_high: where it ends.
    """

    found_with: str
    judged_with: str
    cpr: float | None
    cpr_low: float | None
    cpr_high: float | None
    cmd: float | None
    cmd_low: float | None
    cmd_high: float | None


@dataclass(frozen=True)
class Membership(Record):
    """How much of a circuit is found again when the rows are resampled.

    Attributes:
        found_with: what units were set to.
        order: "signed" or "absolute".
        share: of the units that are kept.
        units: how many that is.
        jaccard: units in both, over units in either: the mean over resamples.
    """

    found_with: str
    order: str
    share: float
    units: int
    jaccard: float


@dataclass(frozen=True, repr=False)
class Curves(Record):
    """The metric that circuits keep, by their size, for every pair of values: found with one, judged with another.

    f divides by the judge's own m(M) − m(∅), and values that wreck the model flatter every circuit: so that pairs are
    compared within one judge only, and m(C), m(∅) and the loss of full ablation stand beside f.

    Attributes:
        metric: what was measured.
        method: how units were ranked.
        level: of the units: "head", "layer" or "neuron".
        sites: where they are.
        units: how many there are.
        steps: of the attribution.
        seed: drew the halves and the resamples.
        rows_found: of how many rows the circuits were found on.
        rows_judged: on how many others they were judged.
        collected_on: what each of the values was made from, in words; None where from nothing.
        doubts: of values whose m(M) − m(∅) cannot be told from 0 on the half that was searched, why: the direction in
            which their units are ranked may be chance.
        judges: m(M) and m(∅) under each of the values.
        points: every circuit under every judge; `frame` and `absolute_frame` list them.
        areas: CPR and CMD of every pair; `pairs` lists them.
        membership: how stable the circuits are; empty for neurons, of which no rows are kept.
        source: the model.
    """

    metric: str
    method: str
    level: str
    sites: tuple[str, ...]
    units: int
    steps: int | None
    seed: int
    rows_found: int
    rows_judged: int
    collected_on: dict[str, str | None]
    doubts: dict[str, str]
    judges: tuple[JudgeRecord, ...]
    points: tuple[Point, ...]
    areas: tuple[Area, ...]
    membership: tuple[Membership, ...]
    source: ModelRecord | None

    def __post_init__(self) -> None:
        super().__post_init__()
        judges, values = {judge.name for judge in self.judges}, set(self.collected_on)
        pairs: list[Point | Area] = [*self.points, *self.areas]
        if self.level not in LEVELS or self.units < 1 or not pairs:
            raise ValueError("it holds no units, or no pairs")
        if not judges | set(self.doubts) <= values or any(
            p.judged_with not in judges or p.found_with not in values for p in pairs
        ):
            raise ValueError("its pairs are not of its values")
        sized: list[Point | Membership] = [*self.points, *self.membership]
        if any(not (0 <= each.share <= 1 and 0 <= each.units <= self.units) for each in sized):
            raise ValueError("it holds a size that is not possible")
        if any(each.order not in ORDERS for each in sized):
            raise ValueError("it holds an order that is not known")

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row per circuit and judge: share, units kept, m(C), m(∅), m(M), and f with its interval.

        Of circuits that keep the units whose shares of m(∅) − m(M) are largest. Where f is refused, it is NaN, and
        `refused` says why.
        """
        return self._frame("signed")

    @property
    def absolute_frame(self) -> "pandas.DataFrame":
        """The same of circuits that keep the units with the largest effects, whatever the direction."""
        return self._frame("absolute")

    def _frame(self, order: str) -> "pandas.DataFrame":
        import pandas

        judges = {judge.name: judge for judge in self.judges}
        rows = []
        for point in self.points:
            if point.order != order:
                continue
            judge = judges[point.judged_with]
            row = {name: getattr(point, name) for name in ("found_with", "judged_with", "share", "units", "m_circuit")}
            row |= {"m_empty": judge.m_empty, "m_model": judge.m_model}
            row |= {name: _or_nan(getattr(point, name)) for name in ("f", "low", "high")}
            rows.append({**row, "refused": judge.refused})
        return pandas.DataFrame(rows)

    @property
    def pairs(self) -> "pandas.DataFrame":
        """A row per pair: CPR and CMD with intervals over rows, and their ranks among the pairs of the same judge.

        CPR = ∫ f dk over the share of units that are kept, of units ranked by signed share: the more, the better. CMD =
        ∫ |1 − f| dk, of units ranked by size: the less, the better. Trapezoids between the sizes that circuits have,
        from the first to all units; shares that round to the same number of units count once. `loss` is what full
        ablation does, m(∅) − m(M), under the judge's values. `found_collected_on` and `judge_collected_on` say what
        either values were made from, and `doubt` why the ranking itself may be chance.
        """
        import pandas

        judges = {judge.name: judge for judge in self.judges}
        rows = []
        for area in self.areas:
            judge = judges[area.judged_with]
            row: dict[str, Any] = {"found_with": area.found_with, "judged_with": area.judged_with}
            for name in ("cpr", "cpr_low", "cpr_high", "cmd", "cmd_low", "cmd_high"):
                row[name] = _or_nan(getattr(area, name))
            row |= {"m_model": judge.m_model, "m_empty": judge.m_empty, "loss": judge.m_empty - judge.m_model}
            row |= {"found_collected_on": self.collected_on[area.found_with]}
            row |= {"judge_collected_on": self.collected_on[area.judged_with], "refused": judge.refused}
            row["doubt"] = self.doubts.get(area.found_with)
            rows.append(row)
        frame = pandas.DataFrame(rows)
        # Without the last digits: areas that only rounding tells apart have one rank.
        within = frame.round({"cpr": 9, "cmd": 9}).groupby("judged_with", sort=False)
        frame.insert(5, "cpr_rank", within["cpr"].rank(ascending=False, method="min"))
        frame.insert(9, "cmd_rank", within["cmd"].rank(method="min"))
        return frame

    @property
    def stability(self) -> "pandas.DataFrame":
        """The overlap (Jaccard) of circuits with those found on bootstrap resamples of the same rows: 1 is the same.

        Empty for neurons: attributions keep rows of heads and layers only.
        """
        import pandas

        columns = ["found_with", "order", "share", "units", "jaccard"]
        return pandas.DataFrame([each.to_dict() for each in self.membership], columns=columns)

    def save(self, path: str | Path) -> None:
        """Write one JSON file, atomically."""
        save_json(path, KIND, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Curves":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        try:
            return cls.from_dict(load_json(path, KIND))
        except FileFormatError as error:
            if str(path) in str(error):
                raise
            raise FileFormatError(f"{path} is not a complete file of curves ({error}); measure them again.") from error

    def __repr__(self) -> str:
        frame = self.pairs
        lines = [
            f"Curves({on_one_line(self.metric)}: {self.units:,} {self.level}s by {self.method}, found on "
            f"{self.rows_found:,} rows, judged on {self.rows_judged:,} others)",
            "  CPR, the more the better; compare within a column, which one judge has given:",
        ]
        found = list(dict.fromkeys(frame["found_with"]))
        judges = [judge for judge in self.judges if judge.name in set(frame["judged_with"])]
        cells = {(a, b): c for a, b, c in zip(frame["found_with"], frame["judged_with"], frame["cpr"], strict=True)}
        table = [["found with", *(on_one_line(judge.name) for judge in judges)]]
        for name in found:
            areas = [cells.get((name, judge.name), math.nan) for judge in judges]
            table.append([on_one_line(name), *("—" if math.isnan(each) else f"{each:.3f}" for each in areas)])
        table.append(["m(∅)", *(f"{judge.m_empty:.4g}" for judge in judges)])
        table.append(["m(M)", *(f"{judge.m_model:.4g}" for judge in judges)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("    " + "  ".join([row[0].ljust(widths[0]), *numbers]))
        lines += [f"  {on_one_line(judge.name)}: {judge.refused}" for judge in judges if judge.refused]
        lines += [
            f"  {on_one_line(name)}: the units may be ranked the wrong way round on the half that was searched, as "
            f"{on_one_line(why)}"
            for name, why in self.doubts.items()
        ]
        for where in dict.fromkeys(each for each in self.collected_on.values() if each is not None):
            names = ", ".join(on_one_line(name) for name, each in self.collected_on.items() if each == where)
            lines.append(f"  {names}: of {on_one_line(where)}")
        return "\n".join(lines)


def faithfulness_curve(
    model: Any,
    prompts: Any,
    metric: Given,
    values: Any,
    *,
    shares: Iterable[float] = SHARES,
    level: Level | Literal["mlp"] = "neuron",
    method: str = "integrated",
    statistics: Any = None,
    sites: Any = None,
    positions: Any = None,
    steps: int = 8,
    resamples: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Curves:
    """The metric that circuits keep, by their size, for every pair of values: found with one, judged with another.

    It answers which center gives the smallest faithful circuit, and whether that holds under another one. Circuits are
    found on one half of the prompts, by attribution, and judged on the other. Each is judged once by every judge. On
    Ctrl-C, pairs that are finished are kept, with a warning.

    Args:
        model: any model with TransformerLens hooks.
        prompts: `circuits.Prompts`, or what else is taken for batches (docs/guide/inputs.md).
        metric: one of `al.metrics` or a function of one's own, with a gradient.
        values: several of what `circuits.Values.of` takes: a list such as ["zero", "mean", "peak"], or a dict by name;
            "counterfactual" for prompts with corrupted twins.
        shares: of the units that are kept; rounded down to whole units.
        level: of the units: "neuron", "head" or "layer"; "mlp" for MLPs as wholes, alone.
        method: of the attribution: "integrated" or "gradient".
        statistics: what centers are computed from; None or "prompts" collects them on the half that is searched.
        sites: where units are: "z" for heads, "mlp", or both.
        positions: units are ablated at these positions only; what `Ablation.at` takes.
        steps: of the attribution.
        resamples: how many resamples of the rows say how stable the circuits are (heads and layers).
        seed: draws the halves and the resamples.
        progress: show progress bars.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> texts = al.task_for(model).batches(split="evaluate", tokens=1000)
    >>> curves = al.circuits.faithfulness_curve(
    ...     model, texts, "cross_entropy", ["zero", "mean"], shares=[0.25, 1], level="head", steps=2, progress=False
    ... )
    >>> len(curves.frame), len(curves.pairs), bool(curves.frame["f"][1] == 1)
    (8, 4, True)
    """
    wanted, number, again = _possible_shares(shares), whole(seed, "seed"), at_least(resamples, "resamples")
    at, sites = level_and_sites(level, sites)
    if method not in ADD_UP:
        raise MismatchError(f"units cannot be ranked by {method!r:.60}; give one of {', '.join(map(repr, ADD_UP))}.")
    halves = Halves.of(model, prompts, number)
    by_name = halves.values(_several(values), statistics, sites=sites, progress=progress)
    finding, judging = (
        {
            name: Setting.of(model, half, metric, getattr(both, which), positions=positions)
            for name, both in by_name.items()
        }
        for half, which in ((halves.first, "first"), (halves.second, "second"))
    )
    for setting in judging.values():
        require_other_inputs(setting, COLLECT_ON_FIRST)
    _require_one_place(finding)
    found = {
        name: attributed(model, halves.first, metric, setting, at, steps, progress, method=method)
        for name, setting in finding.items()
    }
    for name, effects in found.items():
        if effects.total == 0:
            raise MismatchError(
                f"no circuit can be found with {on_one_line(name)}: ablating every unit does not change "
                f"{effects.metric}; give other values or inputs."
            )
    ranked = {
        (name, order): _nested(effects, wanted, order, model, positions)
        for name, effects in found.items()
        for order in ORDERS
    }
    first = next(iter(finding.values()))
    units = sum(math.prod(units_of(first.shape(site), at)) for site in first.values.sites)
    measured = _Measured(units)
    batches = sum(len(setting.batches) for setting in judging.values())
    runs = batches * len({identity(each.circuit) for sizes in ranked.values() for each in sizes if each.is_run})
    with put_off(1) as interrupted, progress_over("judging", runs, progress, "runs") as advance:
        try:
            for name, setting in judging.items():
                judge = Judge(setting, interrupted)
                for finder in found:
                    measured.add(name, judge, finder, {order: ranked[finder, order] for order in ORDERS}, advance)
        except KeyboardInterrupt:
            if not measured.areas:
                raise
            warnings.warn(
                f"interrupted: {len(measured.areas)} of {len(judging) * len(found)} pairs are finished.", stacklevel=2
            )
    return Curves(
        metric=first.name,
        method=method,
        level=at,
        sites=tuple(site.value for site in first.values.sites),
        units=units,
        steps=steps if method == "integrated" else None,
        seed=number,
        rows_found=first.rows,
        rows_judged=next(iter(judging.values())).rows,
        collected_on={name: setting.values.collected_on for name, setting in judging.items()},
        doubts={
            name: why
            for name, effects in found.items()
            if (why := why_refused(effects.clean, effects.empty, effects.metric)) is not None
        },
        judges=tuple(measured.judges.values()),
        points=tuple(measured.points),
        areas=tuple(measured.areas),
        membership=tuple(
            each for name, effects in found.items() for each in _membership(name, effects, wanted, again, number)
        ),
        source=record_of(model),
    )


@dataclass(frozen=True, eq=False)
class _Sized:
    """A circuit, and how much it was to keep."""

    share: float
    units: int
    circuit: Circuit

    @property
    def is_run(self) -> bool:
        """Whether anything is to be measured: what all and no units give is known."""
        return 0 < self.circuit.share < 1


class _Measured:
    """Pairs that are finished."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.judges: dict[str, JudgeRecord] = {}
        self.points: list[Point] = []
        self.areas: list[Area] = []

    def add(
        self,
        name: str,
        judge: Judge,
        finder: str,
        by_order: Mapping[str, Sequence[_Sized]],
        advance: Callable[[int], None],
    ) -> None:
        """Measure a pair: circuits found with some values, under a judge of some name."""
        listed = [each for sizes in by_order.values() for each in sizes]
        sums = judge.measure([each.circuit for each in listed], advance)
        # From here on nothing runs, so that a pair is there as a whole or not at all.
        known = JudgeRecord(
            name, mean(judge.clean), mean(judge.empty), why_refused(judge.clean, judge.empty, judge.setting.name)
        )
        self.judges[name] = known
        drawn = shares_in_replicates(sums, judge.clean, judge.empty)
        area: dict[str, float | None] = {}
        start = 0
        for order, sizes in by_order.items():
            part = slice(start, start + len(sizes))
            start += len(sizes)
            f = np.array([mean(each) - known.m_empty for each in sums[part]]) / ((known.m_model - known.m_empty) or 1)
            ends = [(None, None) if known.refused else map(_or_none, interval_of(each)) for each in drawn[part]]
            for sized, each, value, (low, high) in zip(sizes, sums[part], f, ends, strict=True):
                kept = None if known.refused else float(value)
                self.points.append(Point(finder, name, order, sized.share, sized.units, mean(each), kept, low, high))
            measure, between = ("cpr", f) if order == "signed" else ("cmd", np.abs(1 - f))
            again = drawn[part] if order == "signed" else np.abs(1 - drawn[part])
            at = np.array([sized.units for sized in sizes]) / self.units
            low, high = map(_or_none, interval_of(area_under(again.T, at)))
            area |= {measure: float(area_under(between, at)), f"{measure}_low": low, f"{measure}_high": high}
        if known.refused:
            area = dict.fromkeys(area)
        self.areas.append(Area(finder, name, **area))


def area_under(values: Float[ndarray, "*rest size"], at: Float[ndarray, " size"]) -> Float[ndarray, "*rest"]:
    """The integral by trapezoids; sizes that coincide add nothing.

    >>> area_under(np.array([0.0, 0.5, 0.5, 1.0]), np.array([0.0, 0.5, 0.5, 1.0])).item()
    0.5
    """
    integral: ndarray = ((values[..., 1:] + values[..., :-1]) / 2 * np.diff(at)).sum(-1)
    return integral


def _nested(effects: Effects, shares: Sequence[float], order: str, model: Any, positions: Any) -> list[_Sized]:
    units = sum(effects[site].numel() for site in effects.sites)
    sizes = []
    for share in shares:
        count = part_of(share, units)
        circuit = Circuit.top(effects, count=count, absolute=order == "absolute", model=model, positions=positions)
        sizes.append(_Sized(share, count, circuit))
    return sizes


def _membership(
    name: str, effects: Effects, shares: Sequence[float], resamples: int, seed: int
) -> Iterator[Membership]:
    if effects.level == "neuron" or not resamples:
        return
    rows = np.concatenate([effects.rows[site].flatten(1).numpy() for site in effects.sites], axis=1)
    totals = (effects.empty.values - effects.clean.values).numpy()
    weights = effects.clean.weights.numpy()
    drawn = np.random.Generator(np.random.PCG64(seed)).multinomial(
        len(rows), np.full(len(rows), 1 / len(rows)), size=resamples
    )
    drawn = np.concatenate([np.ones((1, len(rows)), dtype=drawn.dtype), drawn])
    # The weight of a draw is a positive factor of all units, and does not change their order.
    found, total = drawn @ rows, drawn @ totals
    usable = (drawn @ weights > 0) & (total != 0)
    for order in ORDERS:
        ranked = found[usable] / total[usable, None]
        places = np.argsort(-(np.abs(ranked) if order == "absolute" else ranked), axis=1, kind="stable")
        for share in shares:
            units = part_of(share, rows.shape[1])
            if not 0 < units < rows.shape[1] or len(places) < 2:
                continue
            own, *others = (set(each[:units].tolist()) for each in places)
            overlap = [len(own & other) / len(own | other) for other in others]
            yield Membership(name, order, share, units, float(np.mean(overlap)))


def _several(values: Any) -> Any:
    return values if isinstance(values, Mapping | list | tuple) else [values]


def _require_one_place(settings: Mapping[str, Setting]) -> None:
    places = {name: setting.values.sites for name, setting in settings.items()}
    first, *others = places
    for other in others:
        if set(places[other]) != set(places[first]):
            told_of = (
                f"{on_one_line(name)} at {', '.join(site.value for site in places[name])}" for name in (first, other)
            )
            raise MismatchError(
                f"circuits are compared among the same units, and these values are for {' and '.join(told_of)}; say "
                "which by sites=."
            )


def _possible_shares(shares: Any) -> tuple[float, ...]:
    listed = list(shares) if isinstance(shares, Iterable) and not isinstance(shares, str) else [shares]
    for share in listed:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            shown = share if isinstance(share, int | float) else told(share)
            raise MismatchError(f"a share of {shown} is not possible; give numbers from 0 to 1.")
    if not any(share < 1 for share in listed):
        raise MismatchError(f"shares={listed} are no curve, as all units keep everything; give at least one below 1.")
    # Everything is the end of every curve.
    return tuple(sorted({*map(float, listed), 1.0}))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value

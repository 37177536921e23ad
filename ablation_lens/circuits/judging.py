"""How good a circuit is: what it keeps of the metric, and what the rest of the model keeps without it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
    pass

ROUNDING = 1e-6
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
    found = difference_of(clean, empty)
    said = f"m(M) − m(∅) = {found.difference:+.4g} of {on_one_line(metric)}"
    if abs(found.difference) <= ROUNDING * max(abs(mean(clean)), abs(mean(empty))):
        return f"{said} is no more than rounding, so there is nothing to keep a share of; give other values or inputs."
    if np.isnan(found.low):
        return f"{said} is of a single row, which says nothing of others, so f would mean little; give more rows."
    if not found.excludes_zero:
        return (
            f"{said} cannot be told from 0 (its interval is {found.low:+.4g} to {found.high:+.4g}), so f would be a "
            "division by chance; give more rows or other values."
        )
    return None


def difference_of(one: Sums, other: Sums) -> Interval:
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
        return difference_of(self.kept, self.clean)

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
        batches: what it is judged on (docs/guide/inputs.md).
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

"""`compare_processing`: what TransformerLens' processing of weights makes of zero, mean and peak ablation."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ablation_lens.ablation.masks import random_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.damage import Damage, damage_of, extra_metrics, require_seeds, unit_of
from ablation_lens.experiments.scores import Scores
from ablation_lens.experiments.stability import in_sigma
from ablation_lens.measure.collection import collect
from ablation_lens.measure.intervals import ENOUGH_SEEDS
from ablation_lens.names import require_known
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import Advance, progress_over
from ablation_lens.sites import Site
from ablation_lens.tasks.freezing import freeze

if TYPE_CHECKING:
    import pandas

SWITCHES = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
"""What TransformerLens does to weights by default, one by one. None of them changes what a model predicts."""

ALL = "all"
"""All of them together: what `HookedTransformer.from_pretrained` does unless told otherwise."""

ROUNDING = 1e-3
"""A difference in the metric below this is that of rounding, in the weights and to bins."""


@dataclass(frozen=True)
class Processed:
    """What ablating to one center is in a processed model.

    Attributes:
        switch: what was done to the weights.
        center: what neurons are set to.
        metric: in the processed model.
        plainly: in the model without processing, under the same masks.
        difference: the first minus the second, turned so that more is worse.
        low: where its 95 % interval over masks and documents begins.
        high: where it ends.
        baseline: the same difference without any ablation: 0 but for rounding.
        shift: by how many σ processing moves the mean of a neuron, of the neuron that it moves most.
        astray: by how many σ the center misses that move, of the neuron where it misses most. 0 is the same experiment.
    """

    switch: str
    center: str
    metric: float
    plainly: float
    difference: float
    low: float
    high: float
    baseline: float
    shift: float
    astray: float

    @property
    def is_other(self) -> bool:
        """Whether it is another experiment than without processing, beyond rounding and the interval."""
        return abs(self.difference) > ROUNDING and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, repr=False)
class Processing:
    """Ablation with and without processed weights; `frame` has a row per switch and center.

    Attributes:
        model: its name.
        site: where the neurons are.
        metric: what is measured.
        fraction: of the neurons, ablated.
        masks: how many were drawn.
        rows: what was found.
    """

    model: str
    site: str
    metric: str
    fraction: float
    masks: int
    rows: tuple[Processed, ...]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The rows as a table."""
        import pandas

        return pandas.DataFrame([vars(row) | {"is_other": row.is_other} for row in self.rows])

    def __repr__(self) -> str:
        lines = [
            f"Processing of weights ({on_one_line(self.model)}, {self.site}): {self.metric} "
            f"({unit_of(self.metric)}) with {self.fraction:.0%} ablated",
            f"  {'processing':<23} {'center':<13} {'without':>9} {'with':>9}   {'difference':<29} moves σ  astray σ",
        ]
        lines += [
            f"  {row.switch:<23} {row.center:<13} {row.plainly:9.4f} {row.metric:9.4f}   {_told(row.difference)} "
            f"[{_told(row.low)}, {_told(row.high)}]    {row.shift:7.3f}  {row.astray:8.3f}"
            for row in self.rows
        ]
        return "\n".join([*lines, *self._in_words()])

    def _in_words(self) -> Iterator[str]:
        other = [row for row in self.rows if row.is_other]
        if other:
            found = ", ".join(f"{row.center} under {row.switch} ({row.difference:+.3f})" for row in other)
            yield f"Another experiment than without processing: {found}."
        else:
            yield "Processing changes none of these ablations beyond rounding and the interval."
        yield f"Without ablation, processing changes {max(abs(row.baseline) for row in self.rows):.1e} at most."
        if self.masks < ENOUGH_SEEDS:
            yield f"Intervals hold for the masks drawn ({self.masks}); {ENOUGH_SEEDS} say something of others."


def _told(value: float) -> str:
    # Plus 0.0, as what is rounding on the negative side would be written −0.0000.
    return f"{round(value, 4) + 0.0:+.4f}"


def compare_processing(
    model: Any,
    batches: Any,
    collected: Any,
    *,
    switches: Iterable[str] = (*SWITCHES, ALL),
    centers: Iterable[str] = ("zero", "mean", "peak"),
    site: Site | str = Site.Z,
    fraction: float = 0.5,
    seeds: Iterable[int] = range(10),
    metric: str = "cross_entropy",
    folder: str | Path | None = None,
    progress: bool = True,
) -> Processing:
    """Process the weights of a copy of a model, and ablate both alike: the same masks, the same documents.

    Folding the value biases into the output bias takes a constant from every z. The mean follows, so that ablating to
    it stays what it was; zero does not. A peak follows as far as bins let it: they lie on a fixed grid, and count
    values that have moved otherwise. The model itself is left as it is.

    Args:
        model: from `load_model`: a `HookedTransformer`, or a `TransformerBridge`.
        batches: what is measured on.
        collected: the documents that centers are from; they are collected with every model.
        switches: of `SWITCHES`, one at a time, and "all".
        centers: which.
        site: where neurons are ablated.
        fraction: how many of them.
        seeds: of the masks.
        metric: what is measured.
        folder: where scores are kept, so that an interrupted experiment goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> task = al.task_for(model := al.load_model("tiny-opt"))
    >>> plans = task.batches(tokens=300), task.batches(split="collect", tokens=2000)
    >>> found = compare_processing(model, *plans, switches=["fold_value_biases"], seeds=[1], progress=False)
    >>> {row.center: abs(row.difference) > 0.01 for row in found.rows if row.center != "peak"}
    {'zero': True, 'mean': False}
    """
    seeds, switches, names = require_seeds(seeds), tuple(dict.fromkeys(switches)), tuple(dict.fromkeys(centers))
    for switch in switches:
        require_known(switch, (*SWITCHES, ALL), "switch")
    if not switches or not names:
        raise MismatchError(f"switches are {list(switches)} and centers {list(names)}; give one or more of each.")
    require_processing(model)
    where, documents = Site.of(site), freeze(model, collected)
    shape = where.shape(model.cfg)
    masks = [random_neurons(shape, fraction, seed) for seed in seeds]
    rows: list[Processed] = []
    total = (1 + len(switches)) * (1 + len(masks) * len(names))
    with progress_over("processing of weights", total, progress, unit="scores") as advance:

        def measured(which: Any) -> _Measured:
            statistics = collect(which, documents, site=where, progress=False)
            scores = Scores(which, batches, statistics=statistics, metrics=extra_metrics(metric), folder=folder)
            return _Measured.of(scores, statistics, names, masks, metric, advance)

        before = measured(model)
        for switch in switches:
            advance.describe(f"processing of weights: {switch}")
            after = measured(process(model, SWITCHES if switch == ALL else (switch,)))
            rows += [_row(switch, name, before, after) for name in names]
    return Processing(
        model=before.statistics.provenance.model.name,
        site=where.value,
        metric=metric,
        fraction=fraction,
        masks=len(masks),
        rows=tuple(rows),
    )


def process(model: Any, switches: Collection[str]) -> Any:
    """A copy of a model with its weights processed so; the model itself stays as it is.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-opt")
    >>> process(model, ["fold_value_biases"]) is model
    False
    """
    require_processing(model)
    copied = copy.deepcopy(model)
    # Named one by one: what a version does by default is not what was asked for.
    chosen = {switch: switch in switches for switch in SWITCHES} | {"refactor_factored_attn_matrices": False}
    if hasattr(copied, "load_and_process_state_dict"):
        # `process_weights_` has no switch for value biases.
        copied.load_and_process_state_dict(copied.state_dict(), **chosen)
    else:
        copied.enable_compatibility_mode(disable_warnings=True, **chosen)
    copied.requires_grad_(False)
    return copied


def require_processing(model: Any) -> None:
    """Refuse models that TransformerLens does not process."""
    if not any(hasattr(model, name) for name in ("load_and_process_state_dict", "enable_compatibility_mode")):
        raise MismatchError(
            f"TransformerLens does not process the weights of a {type(model).__name__}; give a HookedTransformer or a "
            "TransformerBridge, as load_model gives for causal models."
        )


# eq=False: `==` of two arrays is an array, and has no single truth value.
@dataclass(frozen=True, eq=False)
class _Measured:
    """One model: its statistics, and its scores without ablation and to every center."""

    statistics: ActivationStatistics
    clean: Damage
    ablated: Mapping[str, Damage]

    @classmethod
    def of(
        cls,
        scores: Scores,
        statistics: ActivationStatistics,
        names: Iterable[str],
        masks: Iterable[Bool[Tensor, "layer head dim"]],
        metric: str,
        advance: Advance,
    ) -> "_Measured":
        nothing = torch.zeros(statistics.shape, dtype=torch.bool)
        clean = damage_of(scores, None, [], metric, advance)
        made = {name: statistics.ablation(nothing, name) for name in names}
        return cls(
            statistics, clean, {name: damage_of(scores, each, masks, metric, advance) for name, each in made.items()}
        )


def _row(switch: str, name: str, before: _Measured, after: _Measured) -> Processed:
    interval = after.ablated[name].minus(before.ablated[name])
    own, other = before.statistics, after.statistics
    moved = other.mean - own.mean
    astray = (other.center(name) - own.center(name)) - moved
    nothing = torch.zeros_like(moved)
    return Processed(
        switch=switch,
        center=name,
        metric=after.ablated[name].metric,
        plainly=before.ablated[name].metric,
        difference=interval.difference,
        low=interval.low,
        high=interval.high,
        baseline=after.clean.minus(before.clean).difference,
        shift=float(in_sigma(moved, nothing, own).max()),
        astray=float(in_sigma(astray, nothing, own).max()),
    )

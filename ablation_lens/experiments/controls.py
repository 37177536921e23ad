"""`better_centers`: every center, those that are learned, and what else the same learning would have bought.

Constants that are learned reach the residual stream as a bias, Σ c·W_O. So they may repair a model in general rather
than stand for what was taken away. Three controls tell: a bias that is learned in the model as it is; a bias that is
learned, by as many steps, beside mean ablation; and that bias in the model as it is.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablation_lens.ablation.masks import random_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.damage import Damage, require_seeds, unit_of
from ablation_lens.experiments.scores import Biased, Scores, added
from ablation_lens.measure.collection import collect
from ablation_lens.measure.descent import Lesson, Masking, Schedule, descend
from ablation_lens.measure.intervals import ENOUGH_SEEDS, Interval
from ablation_lens.measure.learned import Cost, Learned
from ablation_lens.measure.learners import about as about_learned
from ablation_lens.measure.learners import learn
from ablation_lens.measure.metrics import BUILT_IN
from ablation_lens.measure.optimal_constants import RATE, Constants, rows_per_step, steps_of
from ablation_lens.measure.resampling import digest_of
from ablation_lens.neurons import centers as known_centers
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over
from ablation_lens.runs.folder import key_of
from ablation_lens.sites import Hook, Site
from ablation_lens.tasks.freezing import freeze
from ablation_lens.tasks.known_rows import require_unknown

if TYPE_CHECKING:
    import pandas

MEAN_AND_BIAS = "mean + bias"
CONTROLS = (MEAN_AND_BIAS, "that bias alone", "bias alone")
"""Beside mean ablation; the same in the model as it is; one that was learned in the model as it is."""

METRICS = ("cross_entropy", "kl")

OUTPUTS = {Site.Z: Site.ATTN_OUT, Site.MLP: Site.MLP_OUT}
"""Where what neurons of a site write is added to the residual stream."""


@dataclass(frozen=True)
class Biases:
    """What a control learns: a vector per layer, as offsets in units of what the site varies by."""

    site: Site
    scale: Float[Tensor, "layer head dim"]
    constants: Constants | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """One offset per layer and dim."""
        return tuple(self.scale.shape)

    def hooks(
        self, offsets: Float[Tensor, "layer head dim"], masks: Bool[Tensor, "row layer head dim"] | None
    ) -> list[Hook]:
        """The ablation to constants, and the biases."""
        ablated: list[Hook] = []
        if self.constants is not None:
            ablated = self.constants.hooks(torch.zeros_like(self.constants.start), masks)
        return [*ablated, *added(self.site, self.scale * offsets)]


@dataclass(frozen=True)
class Benefit:
    """What one way to ablate costs at one share.

    Attributes:
        share: of every layer's neurons.
        method: a center, or a control.
        metric: what is measured.
        value: the mean over masks.
        damage: how much worse than the model as it is, with the interval over masks and documents.
        low: where that begins.
        high: where it ends.
        to_best: how much worse than the best center that is not learned.
        to_best_low: where that begins.
        to_best_high: where it ends.
        passes: over the documents that it was learned or computed from.
    """

    share: float
    method: str
    metric: str
    value: float
    damage: float
    low: float
    high: float
    to_best: float
    to_best_low: float
    to_best_high: float
    passes: float


@dataclass(frozen=True, repr=False)
class BetterCenters:
    """What every center costs, beside the controls; `frame` has a row per share, method and metric.

    Attributes:
        model: its name.
        site: where the neurons are.
        masks: how many were drawn.
        unablated: the metrics of the model as it is.
        rows: what was found.
        pairs: share, metric, a learned center and a control → by how much the center is worse.
        plain: the centers that are not learned.
    """

    model: str
    site: str
    masks: int
    unablated: Mapping[str, float]
    rows: tuple[Benefit, ...]
    pairs: Mapping[tuple[float, str, str, str], Interval]
    plain: tuple[str, ...]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The rows as a table."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])

    def __repr__(self) -> str:
        lines = [f"Better centers ({on_one_line(self.model)}, {self.site}, {self.masks} masks)"]
        for metric in self.unablated:
            lines.append(f"{metric}; the model as it is: {self.unablated[metric]:.4f}")
            for share in sorted({row.share for row in self.rows}):
                lines.append(
                    f"  {100 * share:g} %   {'':14} {'value':>8}  {'to the best that is not learned':34} passes"
                )
                lines += [
                    f"    {on_one_line(row.method):<20} {row.value:8.4f}  {row.to_best:+.4f} "
                    f"[{row.to_best_low:+.4f}, {row.to_best_high:+.4f}]{'':8} {row.passes:7.1f}"
                    for row in self.rows
                    if (row.share, row.metric) == (share, metric)
                ]
        return "\n".join([*lines, *self.in_words()])

    def in_words(self) -> Iterator[str]:
        """What can be said, and what cannot."""
        for (share, metric, method, control), interval in self.pairs.items():
            row = next(r for r in self.rows if (r.share, r.method, r.metric) == (share, method, metric))
            told = [_against(interval.difference, interval.low, interval.high, control, unit_of(metric))]
            if self.plain:
                best = "the best center that is not learned"
                told.insert(0, _against(row.to_best, row.to_best_low, row.to_best_high, best, unit_of(metric)))
            by = "" if metric == "cross_entropy" else f" by {metric}"
            yield f"At {100 * share:g} % {on_one_line(method)} {', and '.join(told)}{by}."
        if self.masks < ENOUGH_SEEDS:
            yield f"Intervals hold for the masks drawn ({self.masks}); {ENOUGH_SEEDS} say something of others."


def _against(gap: float, low: float, high: float, other: str, unit: str = "nats") -> str:
    if low <= 0 <= high or math.isnan(low):
        return f"cannot be told from {other} ({gap:+.3f} {unit})"
    return f"costs {abs(gap):.3f} {unit} {'less' if gap < 0 else 'more'} than {other}"


def better_centers(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics,
    sample: Any,
    *,
    shares: Iterable[float] = (0.1, 0.5, 0.9),
    centers: Iterable[str] = ("zero", "mean", "median", "peak", "peak-kde"),
    learned: Iterable[str] = ("optimal", "optimal-kl"),
    others: Mapping[str, Any] | None = None,
    controls: bool = True,
    steps: int | None = None,
    metrics: Iterable[str] = METRICS,
    seeds: Iterable[int] = range(10),
    folder: str | Path | None = None,
    progress: bool = True,
) -> BetterCenters:
    """Ablate the same neurons to every center, learned ones among them, and to what controls make of the same budget.

    Args:
        model: any model with TransformerLens hooks.
        batches: what is judged on.
        statistics: what centers are computed from.
        sample: what is learned from: documents of the collect split, as `collect` takes them.
        shares: of every layer's neurons.
        centers: that are computed from the statistics.
        learned: those that are learned, such as "optimal" or "sensitivity-mean ablated=0.5".
        others: further documents to learn "optimal" from, by name, such as another corpus.
        controls: whether biases are learned to compare with.
        steps: of every learning; None chooses.
        metrics: cross-entropy, and what else is to be measured.
        seeds: of the masks.
        folder: where scores and what was learned are kept, so that an interrupted experiment goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> task = al.task_for(model := al.load_model("tiny-opt"))
    >>> sample, judged = task.batches(split="collect", tokens=2000), task.batches(split="evaluate", tokens=300)
    >>> stats = al.collect(model, sample, progress=False)
    >>> found = better_centers(
    ...     model, judged, stats, sample, shares=[0.9], centers=["zero", "mean"], learned=["optimal"], seeds=[1],
    ...     steps=2, progress=False,
    ... )
    >>> found.frame["method"].unique().tolist()
    ['zero', 'mean', 'optimal', 'mean + bias', 'that bias alone', 'bias alone']
    """
    seeds, shares = require_seeds(seeds), tuple(dict.fromkeys(map(float, shares)))
    wanted = tuple(dict.fromkeys(metrics))
    unknown = [metric for metric in wanted if metric not in BUILT_IN]
    if unknown or not shares or not all(0 < share <= 1 for share in shares):
        raise MismatchError(
            f"shares={list(shares)} and metrics={list(wanted)} are not possible; give shares above 0 and up to 1, and "
            f"metrics such as cross_entropy and kl."
        )
    plain = {name: statistics.center(name) for name in dict.fromkeys(centers)}
    names = tuple(dict.fromkeys(learned))
    for name in names:
        about_learned(name.split()[0])
    scores = Scores(model, batches, statistics=statistics, metrics=[m for m in wanted if m != "top1"], folder=folder)
    school = _School(model, statistics, sample, scores, steps, progress)
    rows: list[Benefit] = []
    pairs: dict[tuple[float, str, str, str], Interval] = {}
    methods = len(plain) + len(names) + len(others or {}) + controls
    total = 1 + 2 * controls + len(shares) * len(seeds) * methods
    with progress_over("better centers", total, progress, unit="scores") as advance:
        clean = scores.of()
        advance(1)
        for share in shares:
            ways: dict[str, tuple[Tensor, float]] = {
                name: (values, known_centers.about(name).passes) for name, values in plain.items()
            }
            for name in names:
                ways[name] = school.constants(name, share)
            for told, documents in (others or {}).items():
                ways[f"optimal of {told}"] = school.constants("optimal", share, documents)
            masks = [random_neurons(statistics.shape, share, seed) for seed in (seeds[:1] if share == 1 else seeds)]
            found: dict[str, tuple[list[Any], float]] = {}
            for name, (values, passes) in ways.items():
                made = statistics.ablation(masks[0], "zero")
                ablations = [replace(made, mask=mask, values=values, center=name) for mask in masks]
                found[name] = ([_next(scores, each, advance) for each in ablations], passes)
            if controls:
                bias, alone = school.bias(share), school.bias(None)
                made = statistics.ablation(masks[0], "mean")
                beside = [Biased(bias.values, bias.site, replace(made, mask=mask)) for mask in masks]
                found[CONTROLS[0]] = ([_next(scores, each, advance) for each in beside], bias.cost.passes)
                for name, each in ((CONTROLS[1], bias), (CONTROLS[2], alone)):
                    found[name] = ([scores.of(Biased(each.values, each.site))], each.cost.passes)
            for metric in wanted:
                damages = {name: Damage.of(each, metric) for name, (each, _) in found.items()}
                rows += _rows(share, metric, damages, Damage.of([clean], metric), found, tuple(plain))
                for name in (*names, *(f"optimal of {told}" for told in others or {})):
                    if controls:
                        pairs[share, metric, name, MEAN_AND_BIAS] = damages[name].minus(damages[MEAN_AND_BIAS])
    return BetterCenters(
        statistics.provenance.model.name,
        statistics.site.value,
        len(seeds),
        {metric: clean[metric] for metric in wanted},
        tuple(rows),
        pairs,
        tuple(plain),
    )


def _next(scores: Scores, ablation: Any, advance: Any) -> Any:
    found = scores.of(ablation)
    advance(1)
    return found


def _rows(
    share: float,
    metric: str,
    damages: Mapping[str, Damage],
    clean: Damage,
    found: Mapping[str, tuple[list[Any], float]],
    plain: tuple[str, ...],
) -> Iterator[Benefit]:
    best = damages[min(plain, key=lambda name: damages[name].mean)] if plain else None
    for name, damage in damages.items():
        cost = damage.minus(clean)
        gap = Interval(math.nan, math.nan, math.nan, True) if best is None else damage.minus(best)
        yield Benefit(
            share, name, metric, damage.metric, cost.difference, cost.low, cost.high, gap.difference, gap.low, gap.high,
            found[name][1],
        )  # fmt: skip


@dataclass(eq=False)
class _School:
    """What is learned, each once: in the experiment's folder, or in memory."""

    model: Any
    statistics: ActivationStatistics
    sample: Any
    scores: Scores
    steps: int | None
    progress: bool

    def __post_init__(self) -> None:
        self._held: dict[str, Learned] = {}

    def constants(self, label: str, share: float, sample: Any = None) -> tuple[Tensor, float]:
        """A learned center, and what it cost."""
        name, *rest = label.split()
        learner = about_learned(name)
        options: dict[str, Any] = {"share": share, "steps": self.steps} if learner.by_share else {}
        options |= {key: _number(value) for key, _, value in (part.partition("=") for part in rest)}
        documents = self.sample if sample is None else sample
        # Of another corpus, also σ and the start are of it.
        of = self.statistics if sample is None else None
        if sample is not None:
            options["site"] = self.statistics.site
        found = self._once(
            {
                "label": label,
                "version": learner.version,
                "options": {key: str(value) for key, value in options.items()},
                "of": self._digest(documents),
            },
            lambda keep: learn(
                self.model,
                documents,
                name,
                of,
                **({**options, "keep": keep} if learner.keeps else options),
                progress=self.progress,
            ),
        )
        return found.values, found.cost.passes

    def bias(self, share: float | None) -> Learned:
        """A vector per layer that is learned beside mean ablation of a share, or in the model as it is."""
        steps = steps_of(self.model) if self.steps is None else self.steps
        facts = {"label": "bias", "share": share, "steps": steps, "of": self._digest(self.sample)}
        return self._once(facts, lambda keep: self._learned_bias(share, steps, keep))

    def _learned_bias(self, share: float | None, steps: int, keep: Path | None) -> Learned:
        statistics, device = self.statistics, self.model.cfg.device
        site = OUTPUTS.get(statistics.site, Site.RESID_POST)
        varies = collect(self.model, self.sample, site=site, progress=self.progress)
        scale = varies.std
        schedule = Schedule(steps, rows_per_step(self.model), RATE)
        lesson = Lesson.of(self.model, self.sample, schedule.rows, schedule.held_back)
        constants = None
        if share is not None:
            start, std = (each.float().to(device) for each in (statistics.mean, statistics.std))
            constants = Constants(statistics.site, start, std)
        found = descend(
            lesson,
            Biases(site, scale.float().to(device), constants),
            BUILT_IN["cross_entropy"],
            shape=statistics.shape,
            masking=None if share is None else Masking((share, share)),
            schedule=schedule,
            keep=keep,
            facts={"bias": site.value, "scale": digest_of(scale)},
            title="learning a bias",
            progress=self.progress,
        )
        return Learned(
            "bias",
            scale * found.offsets,
            site,
            statistics.provenance.model,
            schedule.to_dict(),
            lesson.rows,
            Cost(lesson.positions, found.forward + 2 * varies.provenance.tokens, found.backward),
            f"best after {found.best} of {steps} steps",
        )

    def _digest(self, documents: Any) -> str:
        return str(freeze(self.model, documents, scored=True).digest)

    def _once(self, facts: dict[str, Any], make: Any) -> Learned:
        shared = {name: self.scores.about[name] for name in ("model", "device", "versions")}
        # What is learned begins at these, and is measured in them.
        of = [digest_of(each) for each in (self.statistics.mean, self.statistics.std)]
        key = key_of({**facts, **shared, "site": self.statistics.site.value, "statistics": of})
        folder = self.scores.folder
        if key not in self._held:
            if folder is None:
                found = make(None)
            elif folder.has("learned", key):
                found = Learned.load(folder.file("learned", key))
            else:
                state = folder.file("learned", f"{key}-unfinished")
                found = make(state)
                found.save(folder.file("learned", key))
                state.unlink(missing_ok=True)
            require_unknown(self.model, self.scores.batches, found.rows)
            self._held[key] = found
        return self._held[key]


def _number(text: str) -> float:
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise MismatchError(f"{text!r} is not a number; write for example 'optimal steps=100'.") from None

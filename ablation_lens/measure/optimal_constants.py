"""`optimal`: constants that make the expected loss under random ablations smallest, learned through hooks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import task_of
from ablation_lens.measure.descent import Descended, LearningInterrupted, Lesson, Masking, Schedule, descend, sign
from ablation_lens.measure.learned import Cost, Learned, all_rows, statistics_of
from ablation_lens.measure.metrics import Given, metrics_of
from ablation_lens.measure.resampling import digest_of
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.sites import Hook, Site
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.inputs import told

METHOD = "optimal"
STARTS = ("zero", "mean", "median", "peak")
"""Of these, what does best on the documents held back is begun from."""

ROWS, STEPS = {"tokens": 8, "images": 64}, {"tokens": 150, "images": 400}
"""Per step, and how many: an image says one thing, a text hundreds."""
RATE = 0.1


@dataclass(frozen=True, eq=False)
class Constants:
    """What is learned: constants, as offsets in units of σ from where they start."""

    site: Site
    start: Float[Tensor, "layer head dim"]
    scale: Float[Tensor, "layer head dim"]

    @property
    def shape(self) -> tuple[int, ...]:
        """One offset per neuron."""
        return tuple(self.start.shape)

    def hooks(
        self, offsets: Float[Tensor, "layer head dim"], masks: Bool[Tensor, "row layer head dim"] | None
    ) -> list[Hook]:
        """Every row's neurons under its own mask, set to start + scale · offsets."""
        if masks is None:
            return []
        values = self.start + self.scale * offsets
        return [
            (self.site.hook_name(layer), self._hook(values[layer], masks[:, layer])) for layer in range(len(values))
        ]

    def _hook(self, values: Tensor, mask: Tensor) -> Callable[..., Tensor]:
        def replace(activation: Tensor, hook: Any) -> Tensor:
            heads = self.site.to_heads(activation)
            return self.site.from_heads(torch.where(mask[:, None].to(heads.device), values.to(heads), heads))

        return replace


@torch.inference_mode(False)
def optimal(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics | None = None,
    *,
    share: float | tuple[float, float] = 0.5,
    objective: Given = "cross_entropy",
    start: str | Float64[Tensor, "layer head dim"] | None = None,
    unit: str = "neuron",
    steps: int | None = None,
    rows: int | None = None,
    rate: float = RATE,
    seed: int = 0,
    site: Site | str | None = None,
    keep: str | Path | None = None,
    progress: bool = True,
) -> Learned:
    """The constants that cost least when a share of the neurons is ablated at random, found by gradient descent.

    Begun from the best constant at hand, in units of each neuron's σ; what is kept is the state that does best on a
    fifth of the documents, which are not learned from, and the start where none does better by more than a
    standard error. After Ctrl-C, `LearningInterrupted` carries the best so far.

    Args:
        model: any hooked model.
        batches: what is learned from, as `collect` takes it.
        statistics: what σ and the start are from; None collects them from the batches.
        share: how much of every layer is ablated while learning, or from and to.
        objective: a metric that is made small, or large where higher is better: "cross_entropy", "kl", your own.
        start: a center's name or a value per neuron; None takes the best of zero, mean, median and peak.
        unit: "neuron", or "head" for whole heads, as circuits ablate them.
        steps: of Adam, in which the rate falls to nothing on a half cosine; None chooses (150 of texts, 400 of images).
        rows: documents per step, each under a mask of its own; None chooses (8 texts, 64 images).
        rate: of the first step, in σ.
        seed: draws documents and masks; no study draws such masks.
        site: where neurons are, if there are no statistics.
        keep: a file for the state, from which the same call goes on.
        progress: show a bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> batches = al.task_for(model).batches(split="collect", tokens=1000)
    >>> optimal(model, batches, share=0.5, steps=0, progress=False).settings["finished"]
    True
    """
    named = metrics_of(objective)
    if len(named) != 1:
        raise MismatchError(f"constants are learned for one objective, got {len(named)}; give one.")
    name, metric = next(iter(named.items()))
    if metric.better is None:
        raise MismatchError(
            f"whether more of {name} is better cannot be told; give al.metrics.Metric(function, better='lower')."
        )
    batches = batches_of(model, batches, keep=True, scored=True)
    statistics = statistics_of(model, batches, statistics, site, progress)
    masking = _masking(share, unit, statistics)
    wanted = steps_of(model) if steps is None else steps
    schedule = Schedule(wanted, rows_per_step(model) if rows is None else rows, rate, seed)
    lesson = Lesson.of(model, batches, schedule.rows, schedule.held_back)
    device, scale = model.cfg.device, statistics.std
    begun, scores = _starts(statistics, start), {}

    def learn(values: Tensor, schedule: Schedule, keep: Path | None = None) -> Descended:
        repair = Constants(statistics.site, values.float().to(device), scale.float().to(device))
        facts = {"objective": name, "start": digest_of(values), "scale": digest_of(scale)}
        told = f"learning {METHOD} at {masking}"
        return descend(
            lesson, repair, metric, shape=statistics.shape, masking=masking, schedule=schedule, keep=keep, facts=facts,
            title=told, progress=progress,
        )  # fmt: skip

    if len(begun) > 1:
        scores = {each: learn(values, replace(schedule, steps=0)).start for each, values in begun.items()}
    chosen = min(scores, key=scores.__getitem__) if scores else next(iter(begun))

    def made(found: Descended) -> Learned:
        tried = found.checked * len(scores)
        best = f"best after {found.best} of {schedule.steps} steps" if found.best else "kept, as no state was better"
        gain = sign(metric) * found.gain.difference
        # Statistics may be of more documents than were learned from.
        once = min(statistics.provenance.tokens, lesson.positions)
        told = f"begun from {chosen}, {best}: {name} {gain:+.4f} on the documents held back"
        return Learned(
            METHOD if name == "cross_entropy" else f"{METHOD}-{name}",
            begun[chosen] + scale * found.offsets,
            statistics.site,
            statistics.provenance.model,
            {
                **schedule.to_dict(),
                "share": list(masking.share),
                "unit": unit,
                "objective": name,
                "start": chosen,
                "best": found.best,
                "finished": found.finished,
            },
            all_rows(statistics, lesson.rows),
            Cost(lesson.positions, found.forward + tried + once, found.backward),
            told,
            {"history": found.history},
        )

    try:
        return made(learn(begun[chosen], schedule, None if keep is None else Path(keep)))
    except LearningInterrupted as interrupted:
        interrupted.found = made(interrupted.found)
        raise


def _masking(share: Any, unit: str, statistics: ActivationStatistics) -> Masking:
    ends = tuple(share) if isinstance(share, tuple | list) else (share, share)
    if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
        raise MismatchError(f"share={share!r:.60} is not possible; give a number above 0 and up to 1, or two.")
    if unit == "head" and not statistics.site.has_heads:
        raise MismatchError(f"{statistics.site.value} neurons have no heads, so unit='head' would ablate whole layers.")
    return Masking((float(ends[0]), float(ends[1])), unit)


def steps_of(model: Any) -> int:
    """How many steps are enough, where nobody says."""
    return STEPS[_unit_of(model)]


def rows_per_step(model: Any) -> int:
    """How many rows a step sees, where nobody says."""
    return ROWS[_unit_of(model)]


def require_possible(*, share: float = 0.5, steps: int = 0, rows: int = 1, rate: float = RATE, seed: int = 0) -> None:
    """Refuse settings that no model could be learned with.

    >>> require_possible(share=2)
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: share=2 is not possible; give a number above 0 and up to 1, or two.
    """
    for name, value in (("steps", steps), ("rows", rows), ("seed", seed)):
        if not isinstance(value, int):
            raise MismatchError(f"{name}={value!r} is not possible; give a whole number.")
    Masking((float(share), float(share)))
    Schedule(steps, rows, rate, seed)


def _unit_of(model: Any) -> str:
    return "images" if task_of(model) == "image-classification" else "tokens"


def _starts(statistics: ActivationStatistics, given: Any) -> dict[str, Float64[Tensor, "layer head dim"]]:
    """Where learning may begin, by name."""
    if isinstance(given, Tensor):
        if tuple(given.shape) != statistics.shape or not bool(given.isfinite().all()):
            raise MismatchError(f"start is {told(given)}; give a finite number per neuron, {statistics.shape}.")
        return {"given values": given.double().cpu()}
    return {each: statistics.center(each) for each in (STARTS if given is None else [given])}

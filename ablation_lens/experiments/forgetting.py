"""`forget_labels`: each class of an image model forgotten by itself, and what the other classes lose."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ablation_lens.ablation.ablation import Ablation, Ablations
from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.pruning import (
    JUDGED,
    SAMPLE,
    Choosing,
    seeds_of,
    shares_of,
    sites_of,
    values_of,
)
from ablation_lens.experiments.scores import Pieces, Scores
from ablation_lens.experiments.trajectories import ends
from ablation_lens.measure.intervals import bootstrap_means
from ablation_lens.progress import progress_over
from ablation_lens.sites import Site
from ablation_lens.tasks.freezing import require_disjoint
from ablation_lens.tasks.inputs import told, whole
from ablation_lens.tasks.plans import BatchPlan, ImageItem
from ablation_lens.tasks.tasks import ImageClassification, planned

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LabelForgotten:
    """What forgetting one label cost.

    Attributes:
        label: its name.
        own: relative drop of top-1 on its images.
        others: the mean of the other labels' relative drops.
        difference: own less others.
        low: where its 95 % interval begins, over the images of every label.
        high: where it ends.
        random: the same difference under random neurons, on average over seeds.
        random_best: that of the seed in which it is largest.
        beyond: the difference less that of the best seed, chosen anew in every replicate.
        beyond_low: where its interval begins.
        beyond_high: where it ends.
    """

    label: str
    own: float
    others: float
    difference: float
    low: float
    high: float
    random: float
    random_best: float
    beyond: float
    beyond_low: float
    beyond_high: float


@dataclass(frozen=True, repr=False)
class ForgottenLabels:
    """Labels that were forgotten, each by itself; `frame` has a row of each.

    Attributes:
        model: its name.
        sites: where neurons were pruned.
        value: what they were set to.
        fraction: the share of the (first) site's neurons that was pruned.
        seeds: how many random baselines there are.
        rows: what was found.
        mean: the mean of the differences over labels, and its 95 % interval. Where all labels are forgotten to zero,
            that of random neurons is 0, whichever they are.
    """

    model: str
    sites: tuple[str, ...]
    value: str
    fraction: float
    seeds: int
    rows: tuple[LabelForgotten, ...]
    mean: tuple[float, float, float]

    @property
    def frame(self) -> "pandas.DataFrame":
        """The rows as a table."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])

    def __repr__(self) -> str:
        wide = max(5, *(len(on_one_line(row.label)) for row in self.rows))
        lines = [
            f"Labels forgotten ({on_one_line(self.model)}, {' and '.join(self.sites)}): {100 * self.fraction:.3g} % of "
            f"neurons set to {on_one_line(self.value)}; relative drops of top-1",
            f"  {'label':{wide}} {'own':>8} {'others':>8}   own − others"
            + (f"{f'best of {self.seeds} random':>28}" if self.seeds else ""),
        ]
        for row in self.rows:
            best = f"{row.random_best:>+14.3f}" if self.seeds else ""
            lines.append(
                f"  {on_one_line(row.label):{wide}} {row.own:>8.1%} {row.others:>8.1%}   {row.difference:+.3f} "
                f"[{row.low:+.3f}, {row.high:+.3f}]{best}"
            )
        clear = sum(row.low > 0 for row in self.rows)
        beyond = sum(row.beyond_low > 0 for row in self.rows)
        mean, low, high = self.mean
        told_of_random = f", {beyond} of them beyond the best random seed by interval" if self.seeds else ""
        lines.append(
            f"On average a label loses {mean:+.3f} [{low:+.3f}, {high:+.3f}] more than the others; {clear} of "
            f"{len(self.rows)} lose more by their own interval{told_of_random}."
        )
        return "\n".join(lines)


def forget_labels(
    model: Any,
    task: Any,
    *,
    labels: Iterable[int] | None = None,
    site: Site | str | Iterable[Site | str] = Site.Z,
    step: float | None = None,
    steps: int = 10,
    kind: str = "abs",
    recollect: bool = True,
    value: str = "zero",
    seeds: int | Iterable[int] = 10,
    images: int | None = None,
    collect_images: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> ForgottenLabels:
    """Forget every label by itself, and compare what it loses with what the others lose.

    Neurons are chosen on images of the collect split, of the label against all others; what is judged are all images of
    the evaluate split, when all steps are done.

    Args:
        model: an image model.
        task: what it reads, with all labels.
        labels: which are forgotten, by their ids; None for all there are.
        site: where neurons are pruned; see `unlearn` for this and what follows.
        step: the share of neurons that each step adds.
        steps: how many.
        kind: of importance.
        recollect: collect statistics anew after every step.
        value: "zero", or a center of the images to retain.
        seeds: how many random baselines, or their seeds; 0 for none.
        images: how many are judged, of all labels.
        collect_images: how many neurons are chosen on, of the label and of the others.
        folder: keeps what was chosen and scored.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-vit")
    >>> task = al.task_for(model)
    >>> found = forget_labels(model, task, labels=[3], step=0.1, steps=1, seeds=1, collect_images=20, images=100)
    >>> [row.label for row in found.rows]
    ['3']
    """
    if not isinstance(task, ImageClassification):
        raise MismatchError(
            f"labels are those of an image model's task, got {told(task)}; give al.task_for(model, corpus), or for "
            "texts unlearn(model, task.only(label=…), task.except_(label=…))."
        )
    sites = sites_of(site)
    shares = shares_of(sites, step, whole(steps, "steps"))
    (value,) = values_of(value, folder)
    drawn = seeds_of(seeds)
    judged = planned(task, "evaluate", JUDGED, images=images)
    known = sorted({item.label for item in judged.items if isinstance(item, ImageItem)})
    wanted = known if labels is None else [whole(label, "a label") for label in labels]
    if len(known) < 2 or not wanted or not set(wanted) <= set(known):
        raise MismatchError(
            f"labels={wanted} are to be forgotten, and the judged images have {known}; give some of it."
        )
    scores, pieces = Scores(model, judged, folder=folder), Pieces(folder)
    selection = {"kind": kind, "epsilon": None, "heads": None, "per_layer": False}

    def choosing_for(label: int) -> Choosing:
        chosen = [
            planned(each, "collect", SAMPLE, images=collect_images)
            for each in (task.only(label=label), task.except_(label=label))
        ]
        for each in chosen:
            require_disjoint(each, judged)
        return Choosing(model, chosen[0], chosen[1], shares, selection, recollect, pieces)

    found = []
    total = 1 + len(wanted) * (1 + len(drawn))
    with progress_over("forgetting labels", total, progress, unit="scores") as advance:

        def scored(ablation: Ablation | Ablations | None) -> ndarray:
            made: ndarray = scores.of(ablation).sums("top1").values.double().numpy()
            advance(1)
            return made

        found.append(scored(None))
        chance = []
        for label in wanted:
            advance.describe(f"forgetting label {label}")
            choosing, before = choosing_for(label), None
            for number in range(1, steps + 1):
                before = choosing.step(value, number, before)
            found.append(scored(before))
            # Zero is the same for all labels, and scored once; a center is that of the others' images.
            chance += [scored(choosing.random(value, steps, seed)) for seed in drawn]
    names = getattr(model, "id2label", None) or {}
    return ForgottenLabels(
        model.record.name,
        tuple(each.value for each in sites),
        value,
        steps * shares[sites[0]],
        len(drawn),
        *_rows(
            np.array(found + chance), judged, wanted, [str(names.get(label, label)) for label in wanted], len(drawn)
        ),
    )


def _rows(
    correct: Float[ndarray, "ablation image"],
    judged: BatchPlan,
    wanted: list[int],
    names: list[str],
    seeds: int,
) -> tuple[tuple[LabelForgotten, ...], tuple[float, float, float]]:
    """Of the model as it is, then without each label, then under the random neurons of each label."""
    of = np.array([item.label for item in judged.items if isinstance(item, ImageItem)])
    known = sorted(set(of.tolist()))
    means, again = [], []
    for place, label in enumerate(known):
        own = correct[:, of == label]
        means.append(own.mean(1))
        # Every label keeps its number of images: they are drawn again label by label.
        again.append(bootstrap_means(own, np.ones_like(own), seed=place))
        if not means[-1][0]:
            raise AblationLensError(
                f"no image of label {label} is recognized by the model as it is, so there is nothing to forget; judge "
                "more images."
            )
    count = min(each.shape[-1] for each in again)
    replicates = np.stack([each[:, :count] for each in again], axis=1)
    replicates = replicates[..., (replicates[0] > 0).all(0)]
    observed, drawn_again = _differences(np.stack(means, axis=1)), _differences(replicates)
    rows, gaps, gaps_again = [], [], []
    for number, (label, name) in enumerate(zip(wanted, names, strict=True), 1):
        column = known.index(label)
        own, others, gap = (each[number - 1, column] for each in observed)
        gap_again = drawn_again[2][number - 1, column]
        first = len(wanted) + (number - 1) * seeds
        chance, chance_again = (each[2][first : first + seeds, column] for each in (observed, drawn_again))
        low, high = ends(gap_again).tolist()
        beyond = (math.nan, math.nan, math.nan)
        if seeds:
            beyond = (float(gap - chance.max()), *ends(gap_again - chance_again.max(0)).tolist())
        rows.append(
            LabelForgotten(
                name,
                float(own),
                float(others),
                float(gap),
                low,
                high,
                float(chance.mean()) if seeds else math.nan,
                float(chance.max()) if seeds else math.nan,
                *beyond,
            )
        )
        gaps.append(gap)
        gaps_again.append(gap_again)
    low, high = ends(np.mean(gaps_again, axis=0)).tolist()
    return tuple(rows), (float(np.mean(gaps)), low, high)


def _differences(
    accuracy: Float[ndarray, "ablation label *resample"],
) -> tuple[ndarray, ndarray, ndarray]:
    """Of every ablation and label: its drop, the mean drop of the other labels, and the difference."""
    drops = (accuracy[:1] - accuracy[1:]) / accuracy[:1]
    others = (drops.sum(1, keepdims=True) - drops) / (drops.shape[1] - 1)
    return drops, others, drops - others

"""`unlearn`: prune the neurons that matter for one corpus and not for another, step by step, and see what is lost.

The protocol of "Dissecting Language Models: Machine Unlearning via Selective Pruning" (Pochinkov and Schoots, 2023):
neurons are scored on both corpora, the most selective ones are set to a value, the model as it then is is scored anew.
Beside the authors' zero stands any center of the corpus to retain, and beside it all a baseline of random neurons.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int16
from numpy import ndarray
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation, Ablations
from ablation_lens.ablation.masks import random_neurons
from ablation_lens.errors import AblationLensError, FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.scores import Pieces, Scores, facts_of
from ablation_lens.experiments.selection import HEADS, KINDS, epsilon_of, require_scored_heads, selective_neurons
from ablation_lens.experiments.trajectories import (
    area_under,
    ends,
    furthest,
    relative_drop,
    resampled,
    where_both_are,
)
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.measure.collection import collect
from ablation_lens.measure.metrics import BUILT_IN
from ablation_lens.measure.score import Score
from ablation_lens.names import require_known
from ablation_lens.neurons import centers as registry
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over
from ablation_lens.records import ModelRecord, Record, Versions, record_of
from ablation_lens.sites import Site
from ablation_lens.tasks.freezing import freeze, require_disjoint
from ablation_lens.tasks.inputs import told, whole
from ablation_lens.tasks.plans import BatchPlan
from ablation_lens.tasks.tasks import Task, planned

if TYPE_CHECKING:
    import pandas

KIND = "unlearning"
"""What these files call themselves."""

STEPS = {Site.MLP: 0.02}
"""The authors' step, as a share of a site's neurons; that of attention's, 0.005, holds for all others."""

SAMPLE = {"tokens": 20_000, "images": 1000}
"""What neurons are chosen on, of each corpus, where nobody says."""

JUDGED = {"tokens": 10_000, "images": 1000}

MEASURES: Mapping[str, tuple[int, str]] = {
    "top1": (0, "top1"),
    "top10": (0, "top10"),
    "top1_uncommon": (1, "top1"),
    "top10_uncommon": (1, "top10"),
    "cross_entropy": (0, "cross_entropy"),
}
"""What is measured: in which of the plans of the same documents, and which metric."""


@dataclass(frozen=True)
class UnlearningHeader(Record):
    """What a file says of unlearning beside its tensors.

    Attributes:
        source: the model.
        sites: where neurons were pruned.
        steps: the share of each site's neurons that a step adds.
        kind: of importance.
        heads: how whole heads were scored; None where neurons were chosen.
        per_layer: whether the same share of every layer was chosen.
        recollect: whether statistics were collected anew after every step.
        values: what neurons were set to, a trajectory each.
        seeds: of the random masks.
        measures: what was measured.
        forget: the corpus to forget.
        retain: the corpus to retain.
        chosen_on: how much of both neurons were chosen on, in words.
        judged_on: how much was judged, in words.
    """

    source: ModelRecord
    sites: tuple[str, ...]
    steps: tuple[float, ...]
    kind: str
    heads: str | None
    per_layer: bool
    recollect: bool
    values: tuple[str, ...]
    seeds: tuple[int, ...]
    measures: tuple[str, ...]
    forget: str
    retain: str
    chosen_on: str
    judged_on: str

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [site.value for site in Site]
        if not self.sites or len(set(self.sites)) < len(self.sites) or not set(self.sites) <= set(known):
            raise ValueError(f"its sites are {self.sites!r:.80}")
        if len(self.steps) != len(self.sites) or not all(0 < step <= 1 for step in self.steps):
            raise ValueError(f"its steps are {self.steps!r:.80}")
        if self.kind not in KINDS or self.heads not in (None, *HEADS):
            raise ValueError(f"neurons were chosen by {self.kind!r:.40}, heads by {self.heads!r:.40}")
        for name, given in (("values", self.values), ("measures", self.measures), ("seeds", self.seeds)):
            if len(set(given)) < len(given) or (not given and name != "seeds"):
                raise ValueError(f"its {name} are {given!r:.80}")
        if not set(self.measures) <= set(MEASURES) or self.measures[0] != "top1":
            raise ValueError(f"its measures are {self.measures!r:.80}")


@dataclass(frozen=True, eq=False, repr=False)
class Unlearning:
    """What was forgotten and what was lost besides; made by `unlearn`.

    A run is a trajectory: for every value the selective one, and after it one for each seed of the baseline.

    Attributes:
        about: what was done, in which model, on which corpora.
        scores: each measure on the corpus to forget, then on that to retain, at every step; the first is the model as
            it is.
        ahead: Δ = relative drop on the one less that on the other: where its 95 % interval begins and ends.
        furthest: max Δ over the steps, and its interval.
        area: the area under the retain-against-forget curve over half the product of the baselines, and its interval;
            NaN of cross-entropy.
        beyond_random: per value: max Δ less that of the best seed, and its interval.
        pruned: per site and value, the step at which each neuron was pruned; 0 for those that stay.
        set_to: per site and value, what they were set to.
    """

    about: UnlearningHeader
    scores: Float64[Tensor, "run step measure 2"]
    ahead: Float64[Tensor, "run step measure 2"]
    furthest: Float64[Tensor, "run measure 3"]
    area: Float64[Tensor, "run measure 3"]
    beyond_random: Float64[Tensor, "value measure 3"]
    pruned: Mapping[str, Int16[Tensor, "value layer head dim"]]
    set_to: Mapping[str, Float64[Tensor, "value layer head dim"]]

    @property
    def steps(self) -> int:
        """How many steps of pruning there were."""
        return self.scores.shape[1] - 1

    @property
    def runs(self) -> list[tuple[str, int | None]]:
        """The value and the seed of every run; no seed is the selective one."""
        return [(value, seed) for value in self.about.values for seed in (None, *self.about.seeds)]

    def fraction(self, step: int, site: Site | str | None = None) -> float:
        """The share of a site's neurons that is pruned at a step; of the first site, if none is named."""
        name = self.about.sites[0] if site is None else Site.of(site).value
        require_known(name, self.about.sites, "site of this unlearning")
        asked = _share(self.about.steps[self.about.sites.index(name)], step)
        if self.about.heads is None and not self.about.per_layer:
            return asked
        # Of whole heads, and of every layer, far fewer may make up a step than were asked for.
        when = self.pruned[name][0]
        return float(((when > 0) & (when <= step)).double().mean())

    @cached_property
    def _drops(self) -> Float[ndarray, "run step measure 2"]:
        found = []
        for place, measure in enumerate(self.about.measures):
            scores = self.scores[:, :, place].numpy()
            found.append(
                np.stack([relative_drop(scores[..., side], better=_better(measure)) for side in (0, 1)], axis=-1)
            )
        return np.stack(found, axis=2)

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """A row per run, step and measure: the measure on both corpora, its relative drops, and how far they part.

        `seed` is missing for the selective trajectory. A drop is what was lost, as a share of the model as it is (of
        cross-entropy, what it rose by); `ahead` is Δ, the drop on the corpus to forget less that on the other, with
        the 95 % interval over documents of both.
        """
        import pandas

        rows = []
        for run, (value, seed) in enumerate(self.runs):
            for step in range(self.steps + 1):
                for place, measure in enumerate(self.about.measures):
                    forget_drop, retain_drop = self._drops[run, step, place].tolist()
                    forget, retain = self.scores[run, step, place].tolist()
                    low, high = self.ahead[run, step, place].tolist()
                    rows.append(
                        {
                            "value": value,
                            "seed": seed,
                            "step": step,
                            "fraction": self.fraction(step),
                            "measure": measure,
                            "forget": forget,
                            "retain": retain,
                            "forget_drop": forget_drop,
                            "retain_drop": retain_drop,
                            "ahead": forget_drop - retain_drop,
                            "low": low,
                            "high": high,
                        }
                    )
        return pandas.DataFrame(rows).astype({"seed": "Int64"})

    def summary(self, measure: str = "top1") -> "pandas.DataFrame":
        """A row per value: max Δ and at which step, the area, and the random baseline, with 95 % intervals.

        `random` is the mean of max Δ over seeds, `random_best` the largest; `beyond` is max Δ less that of the best
        seed, which every replicate chooses anew, on the same documents. `above_random` says whether it is larger than
        that of every seed.
        """
        import pandas

        require_known(measure, self.about.measures, "measure")
        place, rows = self.about.measures.index(measure), {}
        for number, value in enumerate(self.about.values):
            run = number * (1 + len(self.about.seeds))
            drops = self._drops[run, :, place]
            step = int(np.argmax(drops[:, 0] - drops[:, 1]))
            seeds = self.furthest[run + 1 : run + 1 + len(self.about.seeds), place, 0]
            rows[value] = {
                **_with_ends("furthest", self.furthest[run, place]),
                "step": step,
                "fraction": self.fraction(step),
                **_with_ends("area", self.area[run, place]),
                "random": float(seeds.mean()) if len(seeds) else math.nan,
                "random_best": float(seeds.max()) if len(seeds) else math.nan,
                **_with_ends("beyond", self.beyond_random[number, place]),
                "above_random": bool(len(seeds)) and bool(self.furthest[run, place, 0] > seeds.max()),
            }
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("value")

    def ablation_at(self, step: int | None = None, value: str | None = None) -> Ablation | Ablations:
        """What was pruned by a step, to bake or to apply; of several sites, several ablations.

        Left out, `step` is the one where max Δ of top-1 is reached, and `value` the first. That step is the best one on
        the documents that were judged: how good it is, others have to say.
        """
        name = self.about.values[0] if value is None else value
        require_known(name, self.about.values, "value of this unlearning")
        number = self.about.values.index(name)
        last = int(self.summary()["step"].iloc[number]) if step is None else whole(step, "step")
        if not 0 <= last <= self.steps:
            raise MismatchError(f"there is no step {last}; there are {self.steps}, and 0 is the model as it is.")
        parts = []
        for site in self.about.sites:
            when = self.pruned[site][number]
            mask = (when > 0) & (when <= last)
            values = self.set_to[site][number]
            parts.append(Ablation(mask, values, self.about.source, site=Site(site), center=name))
        return parts[0] if len(parts) == 1 else Ablations(tuple(parts))

    @property
    def ablation(self) -> Ablation | Ablations:
        """Where forgetting is furthest ahead of all else, by top-1, with the first value; see `ablation_at`."""
        return self.ablation_at()

    def __repr__(self) -> str:
        about = self.about
        sizes = ", ".join(f"{100 * step:g} % of {site}" for site, step in zip(about.sites, about.steps, strict=True))
        anew = ", statistics anew after each" if about.recollect else ", by the first statistics"
        names = {"model": about.source.name, "forget": about.forget, "retain": about.retain}
        shown = {name: on_one_line(text) for name, text in names.items()}
        lines = [
            f"Unlearning({shown['model']}: forget {shown['forget']}, retain {shown['retain']}; {self.steps} steps of "
            f"{sizes}, by {about.kind}{anew})"
        ]
        found = self.summary()
        wide = max(len(on_one_line(value)) for value in about.values)
        seeds = f"{'best of ' + str(len(about.seeds)) + ' random':>18}   beyond it" if about.seeds else ""
        lines.append(f"  {'value':{wide}}  {'max Δ top-1':>11} {'95 %':^16} {'at':>6}  {'area':>5} {'95 %':^12}{seeds}")
        for value, row in found.to_dict("index").items():
            line = (
                f"  {on_one_line(str(value)):{wide}}  {row['furthest']:>+11.3f} "
                f"{_range(row, 'furthest', '+.3f'):^16} {100 * row['fraction']:>4.3g} %  {row['area']:>5.2f} "
                f"{_range(row, 'area', '.2f'):^12}"
            )
            if about.seeds:
                line += f"{row['random_best']:>+18.3f}   {row['beyond']:+.3f} {_range(row, 'beyond', '+.3f')}"
            lines.append(line)
        return "\n".join([*lines, *self.in_words()])

    def in_words(self) -> Iterator[str]:
        """What was found, in a few sentences."""
        found = self.summary()
        if self.about.seeds:
            told = f"every one of {len(self.about.seeds)} random seeds"
            rows = {on_one_line(str(value)): row for value, row in found.to_dict("index").items()}
            clear = [value for value, row in rows.items() if row["beyond_low"] > 0]
            above = [value for value, row in rows.items() if row["above_random"] and value not in clear]
            below = [value for value, row in rows.items() if not row["above_random"]]
            if clear:
                yield f"Set to {_listed(clear)}, max Δ is above that of {told}, also by its interval."
            if above:
                yield f"Set to {_listed(above)}, max Δ is above that of {told}, but not by its interval."
            if below:
                yield f"Set to {_listed(below)}, max Δ is not above that of {told}."
        number = int(found["furthest"].to_numpy().argmax())
        best, row = self.about.values[number], found.iloc[number]
        place = int(row["step"])
        drops = self._drops[number * (1 + len(self.about.seeds)), place, 0]
        yield (
            f"Furthest apart is {on_one_line(best)} at {100 * row['fraction']:.3g} % pruned: {100 * drops[0]:.1f} % of "
            f"top-1 on {on_one_line(self.about.forget)} is lost, and {100 * drops[1]:.1f} % on "
            f"{on_one_line(self.about.retain)}."
        )
        if place == 0:
            yield "That is with nothing pruned: at every step, more is lost of what was to be retained."
        yield "Intervals are over documents of both corpora; max Δ is the best of all steps, for random neurons, too."

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for site in self.about.sites:
            tensors |= {f"pruned {site}": self.pruned[site], f"set to {site}": self.set_to[site]}
        save_tensors(path, KIND, self.about.to_dict(), tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Unlearning":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            about = UnlearningHeader.from_dict(plain)
            _require_tensors(about, tensors)
        except (FileFormatError, KeyError, ValueError, MismatchError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise FileFormatError(f"{path} is not a complete file of unlearning ({reason}); measure again.") from error
        return cls(
            about,
            **{name: tensors[name] for name in _TENSORS},
            pruned={site: tensors[f"pruned {site}"] for site in about.sites},
            set_to={site: tensors[f"set to {site}"] for site in about.sites},
        )


_TENSORS = ("scores", "ahead", "furthest", "area", "beyond_random")


def unlearn(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    site: Site | str | Iterable[Site | str] = Site.Z,
    step: float | Mapping[str, float] | None = None,
    steps: int = 25,
    kind: str = "abs",
    epsilon: float | None = None,
    heads: str | None = None,
    per_layer: bool = False,
    recollect: bool = True,
    value: str | Iterable[str] = "zero",
    seeds: int | Iterable[int] = 10,
    tokens: int | None = None,
    images: int | None = None,
    collect_tokens: int | None = None,
    collect_images: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Unlearning:
    """Prune the neurons most selective for one corpus, step by step, and measure both corpora after each.

    A neuron keeps the value that it got when it was pruned: the center of the corpus to retain in the model as it then
    was. Random neurons are as many, drawn among all layers together (of each layer, with `per_layer`), nested from step
    to step; their centers are those of the model as it is.

    Args:
        model: any model with TransformerLens hooks.
        forget: a task, of which neurons are chosen on the collect split and judged on the evaluate split; or a pair of
            batches `(chosen_on, judged_on)`, which may have a third part: a plan of what is judged with
            count="skip-common".
        retain: likewise.
        site: where neurons are pruned; several are pruned side by side.
        step: the share of a site's neurons that each step adds, or one for each site, such as {"z": 0.005}; None takes
            the authors' 0.02 of MLP neurons, and 0.005 of others.
        steps: how many.
        kind: of importance; see `selectivity`.
        epsilon: see `selectivity`.
        heads: "mean" or "median" prunes whole heads.
        per_layer: prune the same share of every layer.
        recollect: collect statistics anew after every step; otherwise the first ones serve for all steps.
        value: "zero", or a center of the corpus to retain; of several, a trajectory each.
        seeds: how many random baselines, or their seeds; 0 for none.
        tokens: of each corpus, that are judged; left out, 10,000.
        images: likewise, of an image model; left out, 1,000.
        collect_tokens: of each corpus, that neurons are chosen on; left out, 20,000.
        collect_images: likewise; left out, 1,000.
        folder: keeps what was chosen and scored, so that an interruption loses none, and more steps, values or seeds
            are added to it.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> code, prose = al.task_for(model, "stdlib-code"), al.task_for(model, "stdlib")
    >>> found = unlearn(model, code, prose, site="mlp", step=0.2, steps=1, seeds=1, collect_tokens=1000, tokens=300)
    >>> found.ablation_at(1)
    Ablation(409 of 2 048 neurons in 4 layers → zero)
    """
    sites = sites_of(site)
    shares = shares_of(sites, step, whole(steps, "steps"))
    values = values_of(value, folder)
    drawn = seeds_of(seeds)
    for each in sites:
        require_scored_heads(heads, each)
        epsilon_of(epsilon, each)
        # Whole heads are few, and so may be a layer's neurons.
        largest = _share(shares[each], steps)
        if not draw(each.shape(model.cfg), largest, 0, per_layer=per_layer, heads=heads is not None).any():
            what = f"{'head' if heads is not None else 'neuron'}{' of a layer' if per_layer else ''}"
            raise MismatchError(
                f"step={shares[each]:g} prunes nothing at {each.value!r}: after {steps} steps it is less than one "
                f"{what}; give a larger one, or more steps."
            )
    require_known(kind, KINDS, "kind of importance")
    sides = [
        Side.of(model, given, name, {"tokens": tokens, "images": images}, (collect_tokens, collect_images))
        for name, given in (("forget", forget), ("retain", retain))
    ]
    if sides[0].chosen.digest == sides[1].chosen.digest:
        raise MismatchError(
            f"what to forget and what to retain are the same documents, of {sides[0].chosen.corpus.name}; give two "
            "corpora."
        )
    for one in sides:
        for other in sides:
            # Chosen on both corpora, so judged on nothing of either.
            require_disjoint(one.chosen, other.judged[0])
    selection = {"kind": kind, "epsilon": epsilon, "heads": heads, "per_layer": per_layer}
    choosing = Choosing(model, sides[0].chosen, sides[1].chosen, shares, selection, recollect, Pieces(folder))
    measures = _measures(model, sides)
    metrics = sorted({metric for _, metric in (MEASURES[name] for name in measures)} - {"top1", "cross_entropy"})
    scores = [Scores(model, list(each.judged), metrics=metrics, folder=folder) for each in sides]
    found: list[list[list[list[Score]]]] = []  # run, step, corpus, plan
    trajectories = []
    total = 2 * (1 + len(values) * (1 + len(drawn)) * steps)
    with progress_over("unlearning", total, progress, unit="scores") as advance:

        def scored(ablation: Ablation | Ablations | None) -> list[list[Score]]:
            made = []
            for each in scores:
                made.append(each.each(ablation))
                advance(1)
            return made

        clean = scored(None)
        for name in values:
            advance.describe(f"unlearning: {name}")
            run: list[list[list[Score]]] = [clean]
            parts: list[Ablation | Ablations] = []
            for number in range(1, steps + 1):
                advance.describe(f"unlearning: {name}, step {number}")
                parts.append(choosing.step(name, number, parts[-1] if parts else None))
                run.append(scored(parts[-1]))
            found.append(run)
            trajectories.append(parts)
            for seed in drawn:
                advance.describe(f"unlearning: {name}, random seed {seed}")
                found.append([clean] + [scored(choosing.random(name, number, seed)) for number in range(1, steps + 1)])
    origin = [each.chosen.corpus for each in sides]
    about = UnlearningHeader(
        source=record_of(model),
        sites=tuple(each.value for each in sites),
        steps=tuple(shares.values()),
        kind=kind,
        heads=heads,
        per_layer=bool(per_layer),
        recollect=bool(recollect),
        values=values,
        seeds=drawn,
        measures=measures,
        forget=origin[0].name,
        retain=origin[1].name,
        chosen_on=" and ".join(_size_of(each.chosen) for each in sides),
        judged_on=" and ".join(_size_of(each.judged[0]) for each in sides),
    )
    return _result(about, found, trajectories)


# ---------------------------------------------------------------------- what is asked for


@dataclass(frozen=True)
class Side:
    """One corpus: what neurons are chosen on, and what is judged, the second time without the commonest tokens."""

    chosen: BatchPlan
    judged: tuple[BatchPlan, ...]

    @classmethod
    def of(
        cls,
        model: Any,
        given: Any,
        name: str,
        judged: Mapping[str, int | None],
        chosen: tuple[int | None, int | None],
    ) -> "Side":
        """Of a task, or of a pair of batches."""
        asked = [*judged.values(), *chosen]
        if isinstance(given, Task):
            plans = [
                planned(given, "collect", SAMPLE, tokens=chosen[0], images=chosen[1]),
                planned(given, "evaluate", JUDGED, **judged),
            ]
            if given.unit == "tokens":
                plans.append(planned(given, "evaluate", JUDGED, **judged, count="skip-common"))
        elif isinstance(given, tuple | list) and len(given) in (2, 3):
            if any(size is not None for size in asked):
                raise MismatchError(f"{name} is batches, which have their sizes; leave tokens= and images= out.")
            plans = [freeze(model, each) for each in given]
        else:
            raise MismatchError(
                f"{name} is {told(given)}; give a task, such as al.task_for(model, corpus), or a pair of batches: what "
                "neurons are chosen on, and what is judged."
            )
        # A corpus may hold nothing but common tokens.
        return cls(plans[0], tuple(plan for plan in plans[1:] if plan is plans[1] or plan.predictions))


def sites_of(given: Site | str | Iterable[Site | str]) -> tuple[Site, ...]:
    """The sites that were named, each once."""
    sites = tuple(dict.fromkeys(map(Site.of, [given] if isinstance(given, Site | str) else given)))
    if not sites:
        raise MismatchError("there is no site to prune at; name at least one, such as 'z'.")
    return sites


def shares_of(sites: Sequence[Site], step: float | Mapping[str, float] | None, steps: int) -> dict[Site, float]:
    """The share of every site's neurons that a step adds; of all steps no more than there are."""
    if steps < 1:
        raise MismatchError(f"steps={steps} is not possible; give at least 1.")
    shares: dict[Site, float] = {}
    if isinstance(step, Mapping):
        for name in step:
            require_known(Site.of(name).value, [each.value for each in sites], "site of this pruning")
        step = {Site.of(name).value: share for name, share in step.items()}
    for site in sites:
        share = step.get(site.value) if isinstance(step, Mapping) else step
        share = STEPS.get(site, 0.005) if share is None else share
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) <= 1:
            raise MismatchError(f"step={share!r} is not possible; give a share of the neurons, above 0 and at most 1.")
        if Fraction(repr(float(share))) * steps > 1:
            raise MismatchError(
                f"steps={steps} of {float(share):g} are more than all neurons at {site.value!r}; give fewer, or a "
                "smaller one."
            )
        shares[site] = float(share)
    return shares


def _share(step: float, number: int) -> float:
    """So many steps, of the number as written: three of 0.1 are 0.3."""
    return float(Fraction(repr(step)) * number)


def values_of(given: str | Iterable[str], folder: str | Path | None) -> tuple[str, ...]:
    """The centers that were named, if they can be kept."""
    values = (given,) if isinstance(given, str) else tuple(given)
    if not values or len(set(values)) < len(values):
        raise MismatchError(f"values are {list(values)}; give one or more centers, each once.")
    for name in values:
        registry.about(name)
        if folder is not None and not registry.is_ours(name):
            raise MismatchError(
                f"a folder keeps what centers of this package gave, and {name!r} is of your own; leave folder= out."
            )
    return values


def seeds_of(given: int | Iterable[int]) -> tuple[int, ...]:
    """So many seeds, or these; none will do."""
    seeds = tuple(range(whole(given, "seeds"))) if not isinstance(given, Iterable) else tuple(given)
    if len(set(seeds)) < len(seeds):
        raise MismatchError(f"seeds are {list(seeds)}; give each once.")
    return seeds


def _measures(model: Any, sides: Sequence[Side]) -> tuple[str, ...]:
    plans = min(len(each.judged) for each in sides)
    # Among ten classes the right one is always among the ten likeliest.
    few = int(model.cfg.d_vocab_out) <= 10
    known = {"top1", "cross_entropy", *BUILT_IN}
    return tuple(
        name
        for name, (plan, metric) in MEASURES.items()
        if plan < plans and metric in known and not (few and metric == "top10")
    )


def _size_of(plan: BatchPlan) -> str:
    unit = "images" if plan.task == "image-classification" else "tokens"
    return f"{plan.size:,} {unit} of {plan.corpus.name}/{plan.corpus.split}"


# ---------------------------------------------------------------------- what is pruned


@dataclass(frozen=True)
class Choosing:
    """Which neurons go at which step, and what they are set to; each choice is made once and kept."""

    model: Any
    forget: BatchPlan
    retain: BatchPlan
    steps: Mapping[Site, float]
    selection: Mapping[str, Any]
    recollect: bool
    pieces: Pieces

    @property
    def sites(self) -> list[Site]:
        """Where neurons are pruned."""
        return list(self.steps)

    @cached_property
    def _record(self) -> ModelRecord:
        return record_of(self.model)

    @cached_property
    def _about(self) -> dict[str, Any]:
        return {
            "model": self._record.identity,
            "forget": self.forget.digest,
            "retain": self.retain.digest,
            "sites": [site.value for site in self.sites],
            "device": torch.device(self.model.cfg.device).type,
            "versions": {**Versions.current().to_dict(), "python": None},
        }

    @cached_property
    def _statistics(self) -> dict[int, list[dict[Site, ActivationStatistics]]]:
        return {}

    def _first(self, passes: int) -> list[dict[Site, ActivationStatistics]]:
        """Of the model as it is, which all values share."""
        for known, found in self._statistics.items():
            if known >= passes:
                return found
        self._statistics[passes] = found = self._collected(passes, None)
        return found

    def _collected(self, passes: int, before: Ablation | Ablations | None) -> list[dict[Site, ActivationStatistics]]:
        def read() -> list[dict[Site, ActivationStatistics]]:
            return [
                collect(self.model, plan, site=self.sites, passes=passes, progress=False)
                for plan in (self.forget, self.retain)
            ]

        if before is None:
            return read()
        # By hooks, and not baked: no bit differs from what is then scored.
        with before.applied_to(self.model):
            return read()

    def step(self, value: str, number: int, before: Ablation | Ablations | None) -> Ablation | Ablations:
        """Everything that is pruned at a step, what was pruned before it among it."""
        passes = max(1, registry.about(value).passes)
        shares = {site: _share(step, number) for site, step in self.steps.items()}
        facts = self._about | {
            "selection": dict(self.selection),
            "value": [value, registry.version_of(value)],
            "shares": [shares[site] for site in self.sites],
            # Masks of one set of statistics are nested, whatever was pruned before.
            "before": facts_of(before) if self.recollect else None,
        }

        def make() -> dict[str, Tensor]:
            found = self._collected(passes, before) if self.recollect and before is not None else self._first(passes)
            held = {} if before is None else {part.site: part for part in parts_of(before)}
            made: dict[str, Tensor] = {}
            for site in self.sites:
                forget, retain = (each[site] for each in found)
                pruned = held[site].mask if site in held else None
                mask = selective_neurons(forget, retain, shares[site], already=pruned, **self.selection)
                values = retain.center(value)
                if pruned is not None:
                    old = held[site].values
                    assert isinstance(old, Tensor)
                    values = torch.where(pruned, old.double(), values)
                made |= {f"mask {site.value}": mask, f"values {site.value}": values.double()}
            return made

        return self._ablation(self.pieces.of("selective neurons", facts, make), value)

    def random(self, value: str, number: int, seed: int) -> Ablation | Ablations:
        """As many random neurons; those of fewer steps are among them."""
        passes = max(1, registry.about(value).passes)

        def make() -> dict[str, Tensor]:
            retain = self._first(passes)[1]
            return {f"values {site.value}": retain[site].center(value).double() for site in self.sites}

        made = dict(
            self.pieces.of("centers to retain", self._about | {"value": [value, registry.version_of(value)]}, make)
        )
        for site, step in self.steps.items():
            shape = site.shape(self.model.cfg)
            made[f"mask {site.value}"] = draw(
                shape,
                _share(step, number),
                seed,
                per_layer=self.selection["per_layer"],
                heads=self.selection["heads"] is not None,
            )
        return self._ablation(made, value)

    def _ablation(self, made: Mapping[str, Tensor], value: str) -> Ablation | Ablations:
        parts = []
        for site in self.sites:
            mask, values = made[f"mask {site.value}"].bool(), made[f"values {site.value}"]
            parts.append(Ablation(mask, values, self._record, site=site, center=value))
        return parts[0] if len(parts) == 1 else Ablations(tuple(parts))


def parts_of(ablation: Ablation | Ablations) -> list[Ablation]:
    """One ablation, or each of several."""
    return list(ablation) if isinstance(ablation, Ablations) else [ablation]


def draw(
    shape: tuple[int, int, int], fraction: float, seed: int, *, per_layer: bool = False, heads: bool = False
) -> Bool[Tensor, "layer head dim"]:
    """⌊fraction · N⌋ neurons (or whole heads) of all layers together, at random; nested in the fraction.

    >>> int(draw((2, 3, 5), 0.3, 0).sum()), int(draw((2, 3, 5), 0.34, 0, heads=True).sum())
    (9, 10)
    """
    layers, count, dims = shape
    units = (layers, count, 1 if heads else dims)
    if per_layer:
        return random_neurons(units, fraction, seed).expand(shape).contiguous()
    together = random_neurons((1, 1, math.prod(units)), fraction, seed).view(units)
    return together.expand(shape).contiguous()


# ---------------------------------------------------------------------- what came out


def _result(
    about: UnlearningHeader,
    found: Sequence[Sequence[Sequence[Sequence[Score]]]],
    trajectories: Sequence[Sequence[Ablation | Ablations]],
) -> Unlearning:
    runs = 1 + len(about.seeds)
    parts: dict[str, list[ndarray]] = {name: [] for name in _TENSORS}
    for measure in about.measures:
        plan, metric = MEASURES[measure]
        means, drawn = [], []
        for corpus in (0, 1):
            sums = [[step[corpus][plan].sums(metric) for step in run] for run in found]
            values = np.array([[each.values.double().numpy() for each in run] for run in sums])
            weights = sums[0][0].weights.double().numpy()
            means.append(values.sum(-1) / weights.sum())
            # The corpora's documents are drawn apart.
            drawn.append(resampled(values, weights, seed=corpus))
            if measure == "top1" and not means[-1][0, 0] > 0:
                name = (about.forget, about.retain)[corpus]
                raise AblationLensError(
                    f"the model as it is predicts nothing of {name} right, so no drop is relative to that; judge more "
                    "documents, or another corpus."
                )
        again = where_both_are(*drawn)
        drops, drops_again = (
            [relative_drop(each, better=_better(measure)) for each in pair] for pair in (means, again)
        )
        most, most_again = furthest(*drops), furthest(*drops_again)
        parts["scores"].append(np.stack(means, -1))
        parts["ahead"].append(ends(drops_again[0] - drops_again[1]))
        parts["furthest"].append(_three(most, most_again))
        if _better(measure) == "higher":
            parts["area"].append(_three(area_under(*means), area_under(*again)))
        else:
            parts["area"].append(np.full((len(found), 3), math.nan))
        # [value seed *resample]: the selective run first.
        by_value, by_value_again = (
            each.reshape(len(about.values), runs, *each.shape[1:]) for each in (most, most_again)
        )
        if about.seeds:
            beyond = [each[:, 0] - each[:, 1:].max(1) for each in (by_value, by_value_again)]
            parts["beyond_random"].append(_three(*beyond))
        else:
            parts["beyond_random"].append(np.full((len(about.values), 3), math.nan))
    # The measures are the axis before the last: the ends of an interval, or the corpora.
    tensors = {name: torch.from_numpy(np.stack(each, -2)).double().contiguous() for name, each in parts.items()}
    pruned, set_to = {}, {}
    for site in about.sites:
        steps = [[part for each in run for part in parts_of(each) if part.site == site] for run in trajectories]
        masks = torch.stack([torch.stack([part.mask for part in run]) for run in steps])
        # A neuron that is pruned at a step is so at all later ones.
        count = masks.sum(1)
        pruned[site] = torch.where(count > 0, masks.shape[1] + 1 - count, 0).to(torch.int16)
        set_to[site] = torch.stack([_kept(run[-1]) for run in steps])
    return Unlearning(about, **tensors, pruned=pruned, set_to=set_to)


def _kept(last: Ablation) -> Float64[Tensor, "layer head dim"]:
    assert isinstance(last.values, Tensor)
    return torch.where(last.mask, last.values.double(), 0.0)


def _three(
    observed: Float[ndarray, " quantity"], replicates: Float[ndarray, "quantity resample"]
) -> Float[ndarray, "quantity 3"]:
    return np.concatenate([observed[:, None], ends(replicates)], axis=-1)


def _better(measure: str) -> str:
    return "lower" if measure == "cross_entropy" else "higher"


def _with_ends(name: str, three: Float64[Tensor, "3"]) -> dict[str, float]:
    found, low, high = three.tolist()
    return {name: found, f"{name}_low": low, f"{name}_high": high}


def _range(row: Mapping[Any, Any], name: str, how: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if math.isnan(low) else f"[{low:{how}}, {high:{how}}]"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _require_tensors(about: UnlearningHeader, tensors: Mapping[str, Tensor]) -> None:
    runs, measures = len(about.values) * (1 + len(about.seeds)), len(about.measures)
    steps = tensors["scores"].shape[1] if tensors["scores"].ndim == 4 else 0
    expected: dict[str, tuple[int, ...]] = {
        "scores": (runs, steps, measures, 2),
        "ahead": (runs, steps, measures, 2),
        "furthest": (runs, measures, 3),
        "area": (runs, measures, 3),
        "beyond_random": (len(about.values), measures, 3),
    }
    for site in about.sites:
        shape = tuple(tensors[f"pruned {site}"].shape)[1:]
        if len(shape) != 3 or not Site(site).could_have(shape, about.source):
            raise FileFormatError(f"its {site} neurons are of shape {shape}")
        expected |= {f"pruned {site}": (len(about.values), *shape), f"set to {site}": (len(about.values), *shape)}
    for name, wanted in expected.items():
        each = tensors[name]
        dtype = torch.int16 if name.startswith("pruned") else torch.float64
        if each.dtype != dtype or tuple(each.shape) != wanted:
            raise FileFormatError(f"its {name} are not {' × '.join(map(str, wanted))} numbers")
    if steps < 2:
        raise FileFormatError("it has no step")
    if any(_share(step, steps - 1) > 1 for step in about.steps):
        raise FileFormatError("its steps are more than all neurons")
    finite = [tensors["scores"], tensors["furthest"][:, 0, 0], *(tensors[f"set to {site}"] for site in about.sites)]
    if not all(bool(torch.isfinite(each).all()) for each in finite):
        raise FileFormatError("a score or a value is not finite")
    if any(bool(((when := tensors[f"pruned {site}"]) < 0).any() | (when >= steps).any()) for site in about.sites):
        raise FileFormatError("a neuron is pruned at a step that there is not")

"""The experiments by name, and what one leaves in a folder: a table, figures, and what they were measured with.

statistics.safetensors     what centers were computed from; of further documents, statistics-….safetensors
NAME.csv                   the experiment's table
NAME.html                  its figure; a further one is NAME-….html
curves.safetensors         of curves: what `explore --curves` shows
scores/, learned/          as `experiments/scores.py` says
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.files import require_target_folder, write_result, write_text, writing

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ablation_lens.neurons.statistics import ActivationStatistics
    from ablation_lens.sites import Site
    from ablation_lens.tasks.plans import BatchPlan
    from ablation_lens.tasks.tasks import Task

CENTERS = ("zero", "mean", "median", "peak", "peak-kde")
"""What is compared where nobody says otherwise."""

IMAGES = 1000
"""That are judged, and collected, where nobody says how many; or all there are."""

FULL_TOKENS = 10_000
"""That are judged in a full grid."""

IMAGE_SIZES = (15, 30, 60, 120)
"""Of collections of images."""

OTHERS: Mapping[str, str] = MappingProxyType({"stdlib": "stdlib-code", "digits": "digits-inverted"})
"""Which corpus is the other one, where nobody names one."""


@dataclass(frozen=True)
class Materials:
    """What an experiment is done with.

    Attributes:
        model: the model.
        site: where the neurons are.
        judged: the documents that damage is measured on.
        sample: documents of the collect split; None where statistics were given and are enough.
        statistics: what centers are computed from; None for an experiment that collects by itself.
        others: documents of other corpora, by name.
        folder: where everything is kept.
    """

    model: Any
    site: "Site"
    judged: "BatchPlan"
    sample: "BatchPlan | None"
    statistics: "ActivationStatistics | None"
    others: "Mapping[str, BatchPlan]"
    folder: Path


Options = dict[str, Any]
"""Keywords of an experiment's function."""

Run = Callable[[Materials, Options], Any]
Draw = Callable[[Any], "Iterator[tuple[str, go.Figure]]"]


@dataclass(frozen=True)
class Experiment:
    """One experiment: how it is run and drawn, and what may be said of it.

    Attributes:
        about: what it asks, in a few words.
        run: gives its result, which has a `frame` and prints itself.
        draw: its figures, by what is put after its name ("" for the first).
        further: what may be put there, so that no figure of before stays beside a new table.
        takes: an option → the argument that it is, such as `fractions` → `fraction`.
        tokens: how many are judged in the reduced grid.
        collected: how many centers are computed from.
        reduced: arguments of the reduced grid, at a site.
        full: those of the full grid.
        elsewhere: how many of another corpus.
        needs_sample: whether documents of the collect split are needed beside statistics.
        collects: whether it collects by itself, so that statistics say nothing.
    """

    about: str
    run: Run
    draw: Draw
    takes: Mapping[str, str]
    tokens: int
    collected: int
    reduced: Callable[["Site"], Options]
    full: Callable[["Site"], Options]
    elsewhere: int = 0
    needs_sample: bool = False
    collects: bool = False
    further: Callable[[], Iterable[str]] = tuple


@dataclass(frozen=True)
class Done:
    """An experiment that was done.

    Attributes:
        name: the experiment's.
        model: the model's.
        site: where the neurons are.
        found: what came out.
        files: everything that was written, by what it is: csv, html, statistics, ….
        figures: what the pages show, by what stands after the experiment's name.
    """

    name: str
    model: str
    site: str
    found: Any
    files: Mapping[str, Path]
    figures: "Mapping[str, go.Figure]" = field(default_factory=dict, repr=False)


# ---------------------------------------------------------------------- the experiments


def _curves(given: Materials, options: Options) -> Any:
    from ablation_lens.experiments.constants import loss_curves

    return loss_curves(given.model, given.judged, _known(given), folder=given.folder, **options)


def _draw_curves(found: Any) -> "Iterator[tuple[str, go.Figure]]":
    from ablation_lens.plots import loss_curve, loss_minima

    yield "", loss_curve(found)
    if bool(found.neurons["resolved"].any()):
        yield "minima", loss_minima(found)


def _stability(given: Materials, options: Options) -> Any:
    from ablation_lens.experiments.stability import compare_collections
    from ablation_lens.measure.collection import collect

    passes = 1 if _known(given).trimmed is None else _passes(options)
    others = {name: collect(given.model, plan, site=given.site, passes=passes) for name, plan in given.others.items()}
    if given.judged.task == "image-classification":
        options = {"sizes": IMAGE_SIZES} | options
    return compare_collections(
        given.model, given.judged, _known(given), given.sample, others=others, folder=given.folder, **options
    )


def _draw_stability(found: Any) -> "Iterator[tuple[str, go.Figure]]":
    from ablation_lens.plots import stability_curves

    yield "", stability_curves(found)


def _atypical(given: Materials, options: Options) -> Any:
    from ablation_lens.experiments.atypical import ablate_atypical

    return ablate_atypical(given.model, given.judged, _known(given), folder=given.folder, **options)


def _draw_atypical(found: Any) -> "Iterator[tuple[str, go.Figure]]":
    from ablation_lens.plots import atypical_damage

    if found.matchings:
        yield "", atypical_damage(found)


def _layers(given: Materials, options: Options) -> Any:
    from ablation_lens.experiments.layers import ablate_layers

    return ablate_layers(given.model, given.judged, _known(given), folder=given.folder, **options)


def _draw_layers(found: Any) -> "Iterator[tuple[str, go.Figure]]":
    from ablation_lens.plots import layer_damage

    yield "", layer_damage(found)
    if found.at("head"):
        yield "whole", layer_damage(found, level="layer")


def _processing(given: Materials, options: Options) -> Any:
    from ablation_lens.experiments.processing import compare_processing

    return compare_processing(given.model, given.judged, given.sample, site=given.site, folder=given.folder, **options)


def _draw_processing(found: Any) -> "Iterator[tuple[str, go.Figure]]":
    from ablation_lens.plots import processing_differences

    yield "", processing_differences(found)


def _centers(given: Materials, options: Options) -> Any:
    from ablation_lens.experiments.controls import better_centers
    from ablation_lens.measure.learners import names

    if "metric" in options:
        options["metrics"] = (options.pop("metric"),)
    if "asked" in options:
        asked = options.pop("asked")
        options["learned"] = [name for name in asked if name.split()[0] in names()]
        options["centers"] = [name for name in asked if name not in options["learned"]]
    return better_centers(
        given.model, given.judged, _known(given), given.sample, others=given.others, folder=given.folder, **options
    )


def _draw_centers(found: Any) -> "Iterator[tuple[str, go.Figure]]":
    from ablation_lens import plots

    for place, metric in enumerate(found.unablated):
        yield metric if place else "", plots.better_centers(found, metric)


def _metrics() -> Iterable[str]:
    from ablation_lens.measure.metrics import BUILT_IN

    return BUILT_IN


def _known(given: Materials) -> "ActivationStatistics":
    assert given.statistics is not None
    return given.statistics


def _all_centers(site: "Site") -> Options:
    return {"centers": None}


_MASKED = {"centers": "centers", "fractions": "fraction", "seeds": "seeds", "metric": "metric"}

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        "curves": Experiment(
            about="loss as a function of the constant",
            run=_curves,
            draw=_draw_curves,
            takes={"centers": "centers", "fractions": "shares", "seeds": "seeds", "metric": "metric"},
            tokens=5000,
            collected=10_000,
            reduced=lambda site: (
                {} if site.has_heads else {"neurons": 2, "heads": 0, "shares": (0.5,), "seeds": range(2)}
            ),
            full=lambda site: {"neurons": 16, "heads": 4, "seeds": range(10)},
            further=lambda: ("minima",),
        ),
        "stability": Experiment(
            about="how far centers move between collections",
            run=_stability,
            draw=_draw_stability,
            takes=_MASKED | {"others": "others"},
            tokens=3000,
            collected=65_000,
            reduced=lambda site: {"pairs": 2, "centers": CENTERS[1:]},
            full=_all_centers,
            elsewhere=30_000,
            needs_sample=True,
        ),
        "atypical": Experiment(
            about="what neurons of a shape cost beside gaussian-like ones",
            run=_atypical,
            draw=_draw_atypical,
            takes={**_MASKED, "fractions": "share"},
            tokens=3000,
            collected=30_000,
            reduced=lambda site: {"centers": CENTERS},
            full=_all_centers,
        ),
        "layers": Experiment(
            about="what every layer and head costs",
            run=_layers,
            draw=_draw_layers,
            takes={"centers": "centers", "metric": "metric"},
            tokens=5000,
            collected=30_000,
            reduced=lambda site: {"centers": CENTERS},
            full=_all_centers,
            further=lambda: ("whole",),
        ),
        "processing": Experiment(
            about="what TransformerLens' processing of weights changes",
            run=_processing,
            draw=_draw_processing,
            takes=_MASKED,
            tokens=2000,
            collected=20_000,
            reduced=lambda site: {"centers": CENTERS},
            full=lambda site: {"centers": (*CENTERS, "half-sample", "peak-smooth")},
            needs_sample=True,
            collects=True,
        ),
        "centers": Experiment(
            about="every center, learned ones among them, beside controls",
            run=_centers,
            draw=_draw_centers,
            takes={
                "centers": "asked",
                "fractions": "shares",
                "seeds": "seeds",
                "metric": "metric",
                "steps": "steps",
                "others": "others",
            },
            tokens=5000,
            collected=100_000,
            reduced=lambda site: {},
            full=lambda site: {"shares": [tenth / 10 for tenth in range(1, 11)]},
            elsewhere=100_000,
            needs_sample=True,
            further=_metrics,
        ),
    }
)
"""A new experiment is one entry here: commands, completion and `scripts/findings.py` read it."""

ONE_FRACTION = ("fraction", "share")
"""Arguments that are one share, not several."""


# ---------------------------------------------------------------------- from a corpus to a folder


def conduct(
    name: str,
    model: Any,
    task: "Task",
    out: Path,
    *,
    others: "Mapping[str, Task] | None" = None,
    tokens: int | None = None,
    images: int | None = None,
    collect_tokens: int | None = None,
    collect_images: int | None = None,
    statistics: "ActivationStatistics | None" = None,
    site: "Site | str" = "z",
    options: Mapping[str, Any] | None = None,
    full: bool = False,
) -> Done:
    """Do an experiment, or go on with it, and write what came out into its folder.

    Args:
        name: of `EXPERIMENTS`.
        model: the model.
        task: says which documents: it is judged on the evaluate split, centers are from the collect split.
        out: the folder; what is there already is not measured again.
        others: tasks over other corpora, for an experiment that compares corpora; None for its own choice.
        tokens: that are judged.
        images: that are judged, of an image model.
        collect_tokens: that centers are computed from.
        collect_images: likewise, of an image model.
        statistics: what centers are computed from, instead.
        site: where the neurons are; statistics that are given say it themselves.
        options: `centers`, `fractions`, `seeds` (how many), `metric` and `steps`, as far as the experiment takes them.
        full: the full grid instead of the reduced one.
    """
    from ablation_lens.experiments.scores import ExperimentFolder
    from ablation_lens.sites import Site

    experiment = EXPERIMENTS[name]
    where = Site.of(site) if statistics is None else statistics.site
    chosen = (experiment.full if full else experiment.reduced)(where) | arguments(name, options or {})
    require_target_folder(out)
    ExperimentFolder.create(out)
    judged = _planned(task, "evaluate", tokens, images, FULL_TOKENS if full else experiment.tokens)
    sample = None
    if statistics is None or experiment.needs_sample:
        sample = _planned(task, "collect", collect_tokens, collect_images, experiment.collected)
    plans = {
        told: _planned(each, "collect", collect_tokens, collect_images, experiment.elsewhere)
        for told, each in (others or {}).items()
    }
    place = None
    if statistics is None and not experiment.collects:
        assert sample is not None
        statistics, place = _statistics(model, sample, where, _passes(chosen), out)
    found = experiment.run(Materials(model, where, judged, sample, statistics, plans, out), chosen)
    return _write(name, found, model.record.name, where, out, place)


def arguments(name: str, options: Mapping[str, Any]) -> Options:
    """What was asked for, as keywords of the experiment's function; what it does not take is refused."""
    takes, made = EXPERIMENTS[name].takes, {}
    for option, value in options.items():
        if option not in takes:
            raise AblationLensError(f"{name} takes no {option}=; leave it out.")
        argument = takes[option]
        if option == "seeds":
            value = range(value)
        if argument in ONE_FRACTION:
            if len(value) != 1:
                raise AblationLensError(f"{name} is of one share, and {len(value)} were given; give fractions= once.")
            value = value[0]
        made[argument] = value
    return made


def other_tasks(name: str, task: "Task", model: Any, named: "list[str] | None") -> "dict[str, Task]":
    """Tasks over the other corpora that were named, or over the one that goes with a corpus of this package."""
    from ablation_lens.tasks.tasks import task_for

    if "others" not in EXPERIMENTS[name].takes:
        if named:
            raise AblationLensError(f"{name} compares no corpora; leave others= out.")
        return {}
    if named is None:
        named = [OTHERS[task.corpus.name]] if task.corpus.name in OTHERS else []
    return {each: task_for(model, each) for each in dict.fromkeys(named)}


def _planned(task: "Task", split: str, tokens: int | None, images: int | None, usual: int) -> "BatchPlan":
    from ablation_lens.tasks.tasks import planned

    return planned(task, split, {"tokens": usual, "images": IMAGES}, tokens=tokens, images=images)


def _passes(options: Options) -> int:
    """How often documents are read for the centers that were asked for; None asks for all."""
    from ablation_lens.neurons import centers

    chosen = options.get("centers", ())
    asked = [*(centers.names() if chosen is None else chosen), *options.get("asked", ())]
    return max([1, *(centers.about(name).passes for name in asked if name in centers.names())])


def _statistics(
    model: Any, sample: "BatchPlan", site: "Site", passes: int, out: Path
) -> "tuple[ActivationStatistics, Path]":
    """Those of the folder, where they are of these documents; collected and kept otherwise. And their file."""
    from ablation_lens.measure.collection import collect
    from ablation_lens.neurons.statistics import ActivationStatistics
    from ablation_lens.runs.folder import key_of

    key = key_of({"plan": sample.digest, "site": site.value})[:8]
    # Those of other documents stay: the table of an experiment before was made with them.
    for place in (out / "statistics.safetensors", out / f"statistics-{key}.safetensors"):
        if not place.exists():
            break
        there = ActivationStatistics.load(place)
        there.provenance.model.require_same(model.record, f"{out} is of another model; give another folder")
        plans = [reading.plan for reading in there.provenance.plans if reading.is_whole]
        if plans == [sample.digest] and there.site is site:
            if passes == 1 or there.trimmed is not None:
                return there, place
            break
    statistics = collect(model, sample, site=site, passes=passes)
    write_result(place, statistics.save)
    return statistics, place


def _write(name: str, found: Any, model: str, site: "Site", out: Path, statistics: Path | None) -> Done:
    from ablation_lens.study.results import csv_of

    files = {"csv": out / f"{name}.csv"}
    with writing(out):
        for part in ("", *EXPERIMENTS[name].further()):
            _page(out, name, part).unlink(missing_ok=True)
        write_text(files["csv"], csv_of(found.frame.reset_index(drop=True), index=False))
        try:
            figures = dict(EXPERIMENTS[name].draw(found))
        except MismatchError:  # there is too little to show, and the result says so in words
            figures = {}
        for part, figure in figures.items():
            files[f"html {part}".strip()] = place = _page(out, name, part)
            write_text(place, page_of(figure))
        if hasattr(found, "save"):
            files["curves"] = out / "curves.safetensors"
            found.save(files["curves"])
    if statistics is not None:
        files["statistics"] = statistics
    return Done(name, model, site.value, found, files, figures)


def _page(out: Path, name: str, part: str) -> Path:
    return out / (f"{name}-{part}.html" if part else f"{name}.html")


def page_of(figure: "go.Figure") -> str:
    """A figure as a page of its own, which asks nothing of the network."""
    text: str = figure.to_html(include_plotlyjs=True, div_id="figure", config={"displaylogo": False})
    return text

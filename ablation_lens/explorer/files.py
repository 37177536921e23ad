"""The explorer from files to a file: what `ablation-lens explore` does."""

from pathlib import Path
from typing import Any

from ablation_lens import zoo
from ablation_lens.circuits.effects import Effects
from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.experiments.constants import LossCurves
from ablation_lens.explorer.view import make_page
from ablation_lens.files import require_target, write_result, write_text
from ablation_lens.measure.contexts import collected_plan
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.records import record_of
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.results import Results


def explore_files(
    statistics: Path,
    html: Path,
    *,
    compare: Path | None = None,
    results: Path | None = None,
    effects: Path | None = None,
    curves: Path | None = None,
    examples: int | None = None,
    model: str | None = None,
    corpus: str | None = None,
    labels: Path | None = None,
    device: str | None = None,
) -> int:
    """Write the page of a statistics file; returns how many neurons it shows.

    `statistics` may be a run folder: those of `model` there, beside its results.
    `examples` loads the model and looks through the documents it was collected over. Those that ship with the package
    are found by the names in the file; of others `model`, `corpus` and `labels` say where they are. Left out, there are
    examples where all that is at hand; where it is not, the page says what is missing.
    """
    given = [None if place is None else Path(place).expanduser() for place in (model, corpus, labels)]
    require_target(html, statistics, compare, results, effects, curves, *given)
    run = StudyFolder(statistics) if statistics.is_dir() else None
    # Of a run folder the model says which statistics are meant, with examples or without.
    sources = given if run is None else given[1:]
    if examples == 0 and any(sources):
        raise MismatchError(
            "examples=0 asks for no examples, but a model, a corpus or labels, which only examples are from, were "
            "given; leave out one or the other."
        )
    if run is not None:
        statistics = run.find_statistics(model)
    loaded = ActivationStatistics.load(statistics)
    second = None if compare is None else ActivationStatistics.load(compare)
    options: dict[str, Any] = {}
    if second is not None and compare is not None:
        options |= {"compare": second, "labels": _names(statistics, compare)}
    if effects is not None:
        options["effects"] = Effects.load(effects)
    if curves is not None:
        options["curves"] = LossCurves.load(curves)
    if results is not None:
        options["results"] = Results.load(results)
    elif run is not None and run.keys("cells"):
        found = Results.load(run)
        if loaded.provenance.model.name in set(found.ablated["model"]):
            options["results"] = found
    plan = None
    if examples != 0:
        try:
            hooked = _model_of(loaded, model, device)
            plan = collected_plan(hooked, loaded, corpus, labels=labels)
        except AblationLensError as refusal:
            if examples is not None or any(sources):
                raise
            options["without"] = f"No examples: {refusal}"
        else:
            options |= {"model": hooked, "examples": examples}
    made = make_page(loaded, plan, **options)
    write_result(html, lambda place: write_text(place, made.html))
    return made.neurons


def _model_of(statistics: ActivationStatistics, name: str | None, device: str | None) -> Any:
    """The model that statistics are of; by the name in a file only where it ships with the package."""
    from ablation_lens.models.load import load_model

    record = statistics.provenance.model
    if name is None and record.name not in zoo.NAMES:
        raise MismatchError(
            f"these statistics say that they are of {record.name!r}, and what a file names is not loaded; say yourself "
            "where the model is (model=…)."
        )
    hooked = load_model(name or record.name, dtype=record.dtype, device=device)
    # Here, before the documents are read; gathering would say it after that.
    record.require_same(record_of(hooked), "cannot gather examples")
    return hooked


def _names(one: Path, two: Path) -> tuple[str, str]:
    """The shortest endings of the two paths that differ."""
    for depth in range(1, max(len(one.parts), len(two.parts)) + 1):
        names = ("/".join(one.parts[-depth:]), "/".join(two.parts[-depth:]))
        if names[0] != names[1]:
            return names
    return one.name, two.name

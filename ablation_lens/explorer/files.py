"""The explorer from files to a file: what `ablation-lens explore` does."""

from pathlib import Path
from typing import Any

from ablation_lens.errors import MismatchError
from ablation_lens.explorer.view import explore
from ablation_lens.files import require_target
from ablation_lens.hooked import tokenizer_of
from ablation_lens.measure.contexts import collected_plan, gather_striking
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.study.results import Results


def explore_files(
    statistics: Path,
    html: Path,
    *,
    compare: Path | None = None,
    results: Path | None = None,
    examples: int = 0,
    device: str | None = None,
) -> int:
    """Write the page of a statistics file; returns how many neurons it shows.

    `examples` loads the model the file names, and looks through the documents it was collected over.
    """
    require_target(html, statistics, compare, results)
    loaded = ActivationStatistics.load(statistics)
    second = None if compare is None else ActivationStatistics.load(compare)
    options: dict[str, Any] = {}
    if second is not None and compare is not None:
        options |= {"compare": second, "labels": _names(statistics, compare)}
    if results is not None:
        options["results"] = Results.load(results)
    plan = None
    if examples:
        from ablation_lens.models.load import load_model

        record = loaded.provenance.model
        if record.processing == "unknown":
            raise MismatchError(
                f"{record.name} was not loaded by ablation-lens, so it cannot be loaded again for examples; gather "
                "them with ablation_lens.measure.contexts.gather_contexts and give them to "
                "al.explore(statistics, examples=...)."
            )
        model = load_model(record.name, dtype=record.dtype, device=device, revision=record.revision)
        plan = collected_plan(model, loaded)
        options |= {
            "examples": gather_striking(model, plan, loaded, examples),
            "tokenizer": tokenizer_of(model),
        }
    return explore(loaded, plan, html=html, **options).neurons


def _names(one: Path, two: Path) -> tuple[str, str]:
    """The shortest endings of the two paths that differ."""
    for depth in range(1, max(len(one.parts), len(two.parts)) + 1):
        names = ("/".join(one.parts[-depth:]), "/".join(two.parts[-depth:]))
        if names[0] != names[1]:
            return names
    return one.name, two.name

"""`explore`: statistics, or a model and batches, become a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation_lens.errors import MismatchError
from ablation_lens.explorer import beside, page
from ablation_lens.explorer.dataset import pack_dataset
from ablation_lens.files import require_target, write_text
from ablation_lens.hooked import tokenizer_of
from ablation_lens.measure.collection import collect
from ablation_lens.measure.contexts import Example, gather_striking
from ablation_lens.neurons import centers
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.palette import color_of
from ablation_lens.study.results import Results
from ablation_lens.tasks.given import batches_of

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Explorer:
    """A finished page: `html` is the file, and a notebook shows it in a frame `height` pixels high."""

    html: str = field(repr=False)
    neurons: int
    height: int = 860

    def save(self, path: str | Path) -> None:
        """Write the page, atomically."""
        require_target(Path(path))
        write_text(path, self.html)

    def _repr_html_(self) -> str:
        return page.frame(self.html, self.height)


def explore(
    subject: Any,
    batches: Any = None,
    *,
    html: str | Path | None = None,
    compare: ActivationStatistics | None = None,
    results: "Results | pandas.DataFrame | None" = None,
    examples: "Mapping[str, Sequence[Example]] | int | None" = None,
    tokenizer: Any = None,
    labels: tuple[str, str] | None = None,
    height: int = 860,
    progress: bool = True,
) -> Explorer:
    """An interactive page of all neurons, shown by a notebook, or written to a file.

    Counts on the page are rounded to two or three decimal digits, which never moves a peak; everything exact is in
    `statistics.table()`.

    Args:
        subject: statistics, or a model, which is then collected first.
        batches: what a model is collected over, as `collect` takes it. With statistics: the plan the examples are
            from, whose images are shown.
        html: the file to write.
        compare: a second collection over the same neurons, drawn over the first.
        results: what a study gave, or a frame of its ablated cells; what each method costs this model is shown.
        examples: what `measure.contexts.gather_contexts` found; or for a model the number of neurons, the most
            striking ones, to gather some for.
        tokenizer: turns the examples' tokens to text; a model brings its own. Without one, ids are shown.
        labels: what to call the two collections; file names, for example.
        height: of the notebook's frame, in pixels.
        progress: show a progress bar while a large model is packed.

    >>> import torch
    >>> import ablation_lens as al
    >>> statistics = al.collect(al.load_model("tiny-opt"), [torch.arange(5, 60)[None]], progress=False)
    >>> explore(statistics, progress=False)
    Explorer(neurons=512, height=860)
    """
    if batches is not None and hasattr(subject, "cfg"):
        batches = batches_of(subject, batches, keep=isinstance(examples, int))  # examples are found by reading again
    statistics, found, tokenizer = _measured(subject, batches, examples, tokenizer, progress)
    if compare is not None and compare.shape != statistics.shape:
        raise MismatchError(
            f"statistics of {statistics.shape} and {compare.shape} (layer, head, dim) cannot lie over each other; "
            "compare collections over the same neurons."
        )
    names = labels or _labels(statistics, compare)
    datasets = [pack_dataset(statistics, names[0], compared=compare, progress=progress)]
    if compare is not None:
        datasets.append(pack_dataset(compare, names[1], progress=progress))
    blobs = {}
    for number, dataset in enumerate(datasets):
        # Out of the JSON, which the browser parses as a whole before it shows anything.
        blobs[f"summary-{number}"] = dataset.pop("summary")
        for layer, packed in enumerate(dataset["layers"]):
            blobs[f"layer-{number}-{layer}"] = packed.pop("data")
    if isinstance(results, Results):
        results = results.ablated
    model = statistics.provenance.model.name
    # Here and not in JavaScript: how a name of the user's own gets its colour is known to `palette` alone.
    methods = (*centers.names(), *([] if results is None else map(str, results["method"].unique())))
    payload = {
        "datasets": datasets,
        "colors": {
            "light": {name: color_of(name) for name in methods},
            "dark": {name: color_of(name, dark=True) for name in methods},
            "other": color_of(""),
        },
        "examples": None if found is None else beside.describe_examples(found, statistics, tokenizer, batches),
        "damage": None if results is None else beside.describe_damage(results, model),
    }
    layers, heads, dims = statistics.shape
    made = Explorer(page.assemble(f"{model} – ablation-lens explorer", payload, blobs), layers * heads * dims, height)
    if html is not None:
        made.save(html)
    return made


def _measured(
    subject: Any, batches: Any, examples: "Mapping[str, Sequence[Example]] | int | None", tokenizer: Any, progress: bool
) -> "tuple[ActivationStatistics, Mapping[str, Sequence[Example]] | None, Any]":
    """Statistics, examples and tokenizer: as they were given, or measured on a model and its batches."""
    if isinstance(subject, ActivationStatistics):
        if isinstance(examples, int):
            raise MismatchError(
                f"examples={examples} asks to look through documents, which takes the model; pass the model instead of "
                "statistics, or what ablation_lens.measure.contexts.gather_contexts found."
            )
        return subject, examples, tokenizer
    if not hasattr(subject, "cfg"):
        raise MismatchError(f"{type(subject).__name__} cannot be explored; expected statistics or a hooked model.")
    if batches is None:
        raise MismatchError("a model is explored over batches; give al.task_for(model).batches(...), or texts.")
    statistics = collect(subject, batches, progress=progress)
    found = gather_striking(subject, batches, statistics, examples) if isinstance(examples, int) else examples
    return statistics, found, tokenizer or tokenizer_of(subject)


def _labels(statistics: ActivationStatistics, compare: ActivationStatistics | None) -> tuple[str, str]:
    """By model where these differ, else by corpus."""
    if compare is None:
        return statistics.provenance.model.name, ""
    one, two = statistics.provenance, compare.provenance
    if one.model.name != two.model.name:
        return one.model.name, two.model.name
    first, second = (" + ".join(c.name for c in origin.corpora) or "your own batches" for origin in (one, two))
    return (first, second) if first != second else ("first", "second")

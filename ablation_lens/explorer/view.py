"""`explore`: statistics, or a model and batches, become a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation_lens.circuits.effects import Effects
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.constants import LossCurves
from ablation_lens.explorer import beside, page
from ablation_lens.explorer.curves import describe_curves, require_same_neurons, tell_curves
from ablation_lens.explorer.dataset import pack_dataset
from ablation_lens.explorer.effects import require_fits
from ablation_lens.explorer.packing import deflate
from ablation_lens.files import require_target, write_text
from ablation_lens.hooked import tokenizer_of
from ablation_lens.measure.collection import collect
from ablation_lens.measure.contexts import Example, gather_striking
from ablation_lens.measure.output_tokens import find_output_tokens
from ablation_lens.measure.whole_texts import read_texts
from ablation_lens.neurons import centers
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.palette import color_of
from ablation_lens.plots.metrics import shown_metric
from ablation_lens.records import record_of
from ablation_lens.sites import parse_neuron
from ablation_lens.study.results import Results
from ablation_lens.tasks.given import batches_of

if TYPE_CHECKING:
    import pandas


STRIKING = 20
"""Of how many neurons examples are gathered where nobody says how many."""

MOST_OUTPUTS = 4096
"""Neurons whose output tokens are all on the page, some hundred kilobytes; of more, those with examples alone."""


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
    model: Any = None,
    compare: ActivationStatistics | None = None,
    results: "Results | pandas.DataFrame | None" = None,
    effects: Effects | None = None,
    curves: LossCurves | None = None,
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
        model: with statistics, the model that they are of: examples, whole texts and output tokens come from it.
        compare: a second collection over the same neurons, drawn over the first.
        results: what a study gave, or a frame of its ablated cells; what each method costs this model is shown.
        effects: what knock-outs or attributions of these neurons gave, which neurons are then sorted by; those of heads
            and layers are every neuron's of them.
        curves: what `experiments.constants.loss_curves` gave; drawn under the histograms of its neurons.
        examples: of how many neurons, the most striking ones, to gather some; left out, of twenty, where there are a
            model and batches that can be read again. Or what `measure.contexts.gather_contexts` found.
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
    made = make_page(
        subject,
        batches,
        model=model,
        compare=compare,
        results=results,
        effects=effects,
        curves=curves,
        examples=examples,
        tokenizer=tokenizer,
        labels=labels,
        height=height,
        progress=progress,
    )
    if html is not None:
        made.save(html)
    return made


def make_page(
    subject: Any,
    batches: Any = None,
    *,
    model: Any = None,
    compare: ActivationStatistics | None = None,
    results: "Results | pandas.DataFrame | None" = None,
    effects: Effects | None = None,
    curves: LossCurves | None = None,
    examples: "Mapping[str, Sequence[Example]] | int | None" = None,
    without: str | None = None,
    tokenizer: Any = None,
    labels: tuple[str, str] | None = None,
    height: int = 860,
    progress: bool = True,
) -> Explorer:
    """What `explore` makes; `without` is said in the place of examples."""
    if hasattr(subject, "cfg"):
        if model is not None:
            raise MismatchError("two models were given; give statistics and their model, or a model and batches.")
        model, subject = subject, None
    if model is not None and batches is not None:
        # Examples are found by reading again.
        batches = batches_of(model, batches, keep=isinstance(examples, int) and examples > 0)
    statistics = _measured(subject, model, batches, progress)
    if effects is not None:  # before examples are looked for, which takes long
        require_fits(effects, statistics)
    if curves is not None:
        require_same_neurons(curves, statistics)
    found = _examples(statistics, model, batches, examples)
    tokenizer = tokenizer or (None if model is None else tokenizer_of(model))
    if compare is not None and compare.shape != statistics.shape:
        raise MismatchError(
            f"statistics of {statistics.shape} and {compare.shape} (layer, head, dim) cannot lie over each other; "
            "compare collections over the same neurons."
        )
    names = labels or _labels(statistics, compare)
    datasets = [pack_dataset(statistics, names[0], compared=compare, effects=effects, progress=progress)]
    if compare is not None:
        datasets.append(pack_dataset(compare, names[1], progress=progress))
    blobs = {}
    for number, dataset in enumerate(datasets):
        # Out of the JSON, which the browser parses as a whole before it shows anything.
        blobs[f"summary-{number}"] = dataset.pop("summary")
        for layer, packed in enumerate(dataset["layers"]):
            blobs[f"layer-{number}-{layer}"] = packed.pop("data")
    if curves is not None:
        datasets[0]["provenance"].append(["curves", tell_curves(curves)])
        blobs["curves"] = _deflated(describe_curves(curves, statistics))
    if model is not None:
        blobs |= _from_model(model, statistics, batches, found, tokenizer)
    if isinstance(results, Results):
        results = results.ablated
    name = statistics.provenance.model.name
    # Here and not in JavaScript: how a name of the user's own gets its colour is known to `palette` alone.
    methods = (*centers.names(), *([] if results is None else map(str, results["method"].unique())))
    payload = {
        "datasets": datasets,
        "colors": {
            "light": {method: color_of(method) for method in methods},
            "dark": {method: color_of(method, dark=True) for method in methods},
            "other": color_of(""),
        },
        "examples": None if found is None else beside.describe_examples(found, statistics, tokenizer, batches),
        "without": without,
        "curves": None if curves is None else {"title": f"Δ {shown_metric(curves.metric).name}"},
        "damage": None if results is None else beside.describe_damage(results, name),
    }
    layers, heads, dims = statistics.shape
    return Explorer(page.assemble(f"{name} – ablation-lens explorer", payload, blobs), layers * heads * dims, height)


def _measured(subject: Any, model: Any, batches: Any, progress: bool) -> ActivationStatistics:
    """Statistics: as they were given, or measured on a model and its batches."""
    if isinstance(subject, ActivationStatistics):
        if model is not None:
            subject.provenance.model.require_same(record_of(model), "cannot explore statistics beside a model")
        return subject
    if subject is not None:
        raise MismatchError(f"{type(subject).__name__} cannot be explored; expected statistics or a hooked model.")
    if batches is None:
        raise MismatchError("a model is explored over batches; give al.task_for(model).batches(...), or texts.")
    return collect(model, batches, progress=progress)


def _examples(
    statistics: ActivationStatistics,
    model: Any,
    batches: Any,
    examples: "Mapping[str, Sequence[Example]] | int | None",
) -> "Mapping[str, Sequence[Example]] | None":
    """Those that were given, or so many as were asked for."""
    if examples is None and model is not None and _can_be_read_again(batches):
        examples = STRIKING
    if not isinstance(examples, int):
        return examples
    if examples and model is None:
        raise MismatchError(
            f"examples={examples} asks to look through documents, which takes the model; give it, too (model=…), "
            "or what ablation_lens.measure.contexts.gather_contexts found."
        )
    if examples and batches is None:
        raise MismatchError(f"examples={examples} asks to look through documents; give the batches they are in.")
    return gather_striking(model, batches, statistics, examples) if examples else None


def _can_be_read_again(batches: Any) -> bool:
    return batches is not None and not getattr(batches, "once", False)


def _from_model(
    model: Any,
    statistics: ActivationStatistics,
    batches: Any,
    found: "Mapping[str, Sequence[Example]] | None",
    tokenizer: Any,
) -> dict[str, str]:
    """What the page decodes when it is asked for: whole texts of the examples, and the neurons' output tokens."""
    blobs = {}
    layers, heads, dims = statistics.shape
    names = [] if found is None else list(found)
    if layers * heads * dims <= MOST_OUTPUTS:
        neurons = [(layer, head, dim) for layer in range(layers) for head in range(heads) for dim in range(dims)]
    else:
        neurons = [parse_neuron(name, statistics.shape, statistics.site) for name in names]
    if outputs := find_output_tokens(model, neurons, statistics.site):
        blobs["output-tokens"] = _deflated(beside.describe_outputs(outputs, statistics, tokenizer))
    if found and _can_be_read_again(batches):
        texts = read_texts(model, batches, found, statistics.site)
        if texts:
            blobs["whole-texts"] = _deflated(beside.describe_texts(texts, statistics, tokenizer))
    return blobs


def _deflated(values: dict[str, Any]) -> str:
    return deflate(json.dumps(values, allow_nan=False, separators=(",", ":")).encode())


def _labels(statistics: ActivationStatistics, compare: ActivationStatistics | None) -> tuple[str, str]:
    """By model where these differ, else by corpus."""
    if compare is None:
        return statistics.provenance.model.name, ""
    one, two = statistics.provenance, compare.provenance
    if one.model.name != two.model.name:
        return one.model.name, two.model.name
    first, second = (" + ".join(c.name for c in origin.corpora) or "your own batches" for origin in (one, two))
    return (first, second) if first != second else ("first", "second")

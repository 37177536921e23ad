"""Which documents a neuron's peak and tails are made of: a second pass that gathers examples, each in its context."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablation_lens.corpora import Corpus, CorpusWarning
from ablation_lens.corpora.named import EMBEDDED
from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.measure.forward import capture
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.records import CorpusRecord, record_of
from ablation_lens.sites import neuron_name, parse_neuron
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch, BatchPlan, PlanPart, plan_of
from ablation_lens.tasks.tasks import task_for

Where = Literal["low", "peak", "high"]
WINDOW = 12
"""Tokens kept on either side of the one an example is about."""
_COMPARED = 10_000
"""Documents: reading them all again may take as long as collecting."""


@dataclass(frozen=True)
class Example:
    """One place where a neuron took a value.

    Attributes:
        neuron: such as `L3.H5.D17`.
        where: "peak" for the values nearest to the peak, "low" and "high" for the ends of the distribution.
        value: what the neuron was there.
        document: the number of the document in the plan (for your own batches, of the row), and `id` its name.
        position: the token's place in the document, or the patch's (0 is CLS).
        tokens: the token ids around it; empty for images.
        offset: which of `tokens` it is.
    """

    neuron: str
    where: Where
    value: float
    document: int
    id: str
    position: int
    tokens: tuple[int, ...]
    offset: int

    def text(self, tokenizer: Any) -> tuple[str, str, str]:
        """The context as text: before, the token itself, after."""
        parts = (self.tokens[: self.offset], self.tokens[self.offset : self.offset + 1], self.tokens[self.offset + 1 :])
        before, here, after = (tokenizer.decode(list(part)) for part in parts)
        return before, here, after


def gather_contexts(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics,
    neurons: Sequence[str | tuple[int, int, int]],
    k: int = 5,
) -> dict[str, list[Example]]:
    """The `k` documents where each neuron is lowest, nearest to its peak, and highest; one place per document.

    Args:
        model: the model the statistics are of.
        batches: documents to look through; the plan that was collected, another, or what `collect` takes.
        statistics: say where the peak is.
        neurons: names such as `L3.H5.D17`, or `(layer, head, dim)`.
        k: how many of each.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> plan = al.task_for(model).batches(split="collect", tokens=2000)
    >>> found = gather_contexts(model, plan, al.collect(model, plan, progress=False), ["L1.H2.D3"], k=2)
    >>> [example.where for example in found["L1.H2.D3"]]
    ['low', 'low', 'peak', 'peak', 'high', 'high']
    """
    if k < 1:
        raise MismatchError(f"k={k} examples cannot be gathered; ask for 1 or more.")
    known = statistics.provenance.model
    known.require_same(record_of(model), "cannot gather examples")
    site = statistics.site
    chosen = [parse_neuron(n if isinstance(n, str) else neuron_name(*n, site), statistics.shape, site) for n in neurons]
    peaks = statistics.center("peak")
    batches = batches_of(model, batches)
    plan = plan_of(batches)
    best: dict[tuple[tuple[int, int, int], Where], list[tuple[float, Example]]] = {}
    rows_before, padding = 0, Padding(model, stacklevel=3)
    with torch.inference_mode():
        for item in batches:
            # A user's batch may be on a GPU; examples are chosen from values on the CPU.
            batch = padding.mark(item).to("cpu")
            # Only the layers asked for: the activations of all would be kept until the batch is done.
            values = capture(model, batch.to(model.cfg.device), site, (layer for layer, _, _ in chosen))
            counted = batch.valid
            if not statistics.provenance.include_bos and batch.special is not None:
                counted = counted & ~batch.special
            for neuron in chosen:
                layer, head, dim = neuron
                here = values[layer][:, :, head, dim].double().cpu()
                for where, badness in _badness(here, counted, peaks[neuron].item()).items():
                    ranked = best.setdefault((neuron, where), [])
                    for row in counted.any(1).nonzero().flatten().tolist():
                        place = int(badness[row].argmin())
                        number = batch.documents[row] if batch.documents else rows_before + row
                        example = _example(
                            neuron_name(*neuron, site), where, here[row, place].item(), number, place, batch, row, plan
                        )
                        ranked.append((badness[row, place].item(), example))
                    # By document among equals (a ReLU is exactly 0 in many), whatever the order of the batches.
                    ranked.sort(key=lambda pair: (pair[0], pair[1].document))
                    # After every batch, so that no more than k and one batch are ever held.
                    del ranked[k:]
            rows_before += len(batch.inputs)
    return {
        neuron_name(*neuron, site): [
            example for where in ("low", "peak", "high") for _, example in best.get((neuron, where), [])
        ]
        for neuron in chosen
    }


def _badness(
    values: Float[Tensor, "row pos"], counted: Bool[Tensor, "row pos"], peak: float
) -> dict[Where, Float[Tensor, "row pos"]]:
    """How far a value is from what is looked for; infinite where nothing counts."""
    measures: dict[Where, Tensor] = {"low": values, "peak": (values - peak).abs(), "high": -values}
    return {where: measure.masked_fill(~counted, torch.inf) for where, measure in measures.items()}


def _example(
    neuron: str,
    where: Where,
    value: float,
    document: int,
    position: int,
    batch: Batch,
    row: int,
    plan: BatchPlan | None,
) -> Example:
    tokens: tuple[int, ...] = ()
    start = 0
    if batch.inputs.ndim == 2:
        start = max(0, position - WINDOW)
        # The text is at the start of its row, so the number of valid positions is where it ends.
        end = min(int(batch.valid[row].sum()), position + WINDOW + 1)
        tokens = tuple(batch.inputs[row, start:end].tolist())
    return Example(
        neuron=neuron,
        where=where,
        value=value,
        document=document,
        id=plan.items[document].id if plan is not None else f"row {document}",
        position=position,
        tokens=tokens,
        offset=position - start if tokens else 0,
    )


# ---------------------------------------------------------------------- without being told which neurons, or which text


def striking_neurons(statistics: ActivationStatistics, number: int) -> list[str]:
    """The neurons whose peak is farthest, in σ, from zero or from the mean; not those without a clear peak.

    >>> import ablation_lens as al
    >>> statistics = al.collect(al.load_model("tiny-opt"), [torch.arange(5, 60)[None]], progress=False)
    >>> len(striking_neurons(statistics, 3))
    3
    """
    table = statistics.table()
    clear = table[~table["shape"].isin(["constant", "unresolved"])]
    farthest = clear[["peak_over_sigma", "mean_to_peak_over_sigma"]].max(axis=1)
    return [str(name) for name in farthest.sort_values(ascending=False, kind="stable").index[:number]]


def gather_striking(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics,
    number: int,
    k: int = 5,
) -> dict[str, list[Example]]:
    """Examples of the most striking neurons; one more pass over the batches."""
    if isinstance(batches, Iterator):
        raise MismatchError(
            "examples are gathered by reading the batches again; give a list or a plan, not an iterator."
        )
    return gather_contexts(model, batches, statistics, striking_neurons(statistics, number), k)


def collected_plan(
    model: Any,
    statistics: ActivationStatistics,
    corpus: str | Path | Corpus | None = None,
    *,
    labels: str | Path | None = None,
    most: int = 50_000,
) -> BatchPlan | PlanPart:
    """The plan the statistics say they were collected over; of a large one the first `most` tokens, or 500 images.

    Where only a part was read, and it is a part of this plan, that part: the rest was never counted.

    Args:
        model: the model the statistics are of.
        statistics: say which documents; the first corpus of merged ones.
        corpus: where they are, as for `task_for`. None opens an embedded corpus alone (as `stdlib`): a path or
            an address that a file names is not opened. Other documents than were collected give a `CorpusWarning`
            (compared up to ten thousand of them).
        labels: a CSV file,label for a folder of images.
        most: tokens.
    """
    if not statistics.provenance.corpora:
        raise CorpusError(
            "these statistics were collected over batches of your own, which cannot be read again from here; gather "
            "examples with ablation_lens.measure.contexts.gather_contexts and give them to "
            "al.explore(statistics, examples=...)."
        )
    # Of merged statistics the first corpus only.
    record = statistics.provenance.corpora[0]
    chosen = [(how, label) for how, label in record.settings if how in ("only", "except")]
    # The name of a part of a corpus goes on with the choice, in words.
    name = record.name.partition(", ")[0] if chosen else record.name
    if corpus is None and name not in EMBEDDED:
        raise CorpusError(
            f"these statistics say that they were collected over {record.name!r}, and what a file names is not opened; "
            "say yourself where the documents are (corpus=…)."
        )
    options: dict[str, Any] = {} if labels is None else {"labels": labels}
    if chosen and isinstance(corpus, str | Path):
        options |= {how: column for how, column in record.settings if how == "label_column"}
    task = task_for(model, name if corpus is None else corpus, **options)
    if chosen and task.corpus.choice is None:
        choose = task.only if chosen[0][0] == "only" else task.except_
        task = choose([label for _, label in chosen])
    if record.unit == "images":
        plan = task.batches(split=record.split, images=min(record.size_obtained, 500))
    else:
        plan = task.batches(split=record.split, tokens=min(record.size_obtained, most))
    _warn_of_others(task.corpus.restricted_to(record.split), plan.corpus, record)
    reading = statistics.provenance.plans[0]
    # Numbers of batches mean something in the same plan only, not in one that was cut or has other batches.
    return plan if reading.is_whole or reading.plan != plan.digest else plan.part(*reading.read[0])


def _warn_of_others(corpus: Corpus, found: CorpusRecord, record: CorpusRecord) -> None:
    """Say it where a corpus does not begin with the documents of a record."""
    digest = found.digest
    if found.documents != record.documents:  # the plan was cut, so the rest is read for its digest alone
        reading = iter(corpus)
        for _ in islice(reading, min(record.documents, _COMPARED)):
            pass
        digest = reading.digest
    if digest == record.digest or record.documents > _COMPARED:
        return
    others = replace(record, digest=digest, source=found.source, python=found.python, settings=found.settings)
    warnings.warn(
        f"{corpus.full_name} does not hold the documents these statistics were collected over, so examples may be of "
        f"documents that were never counted ({'; '.join(record.differences(others))}).",
        CorpusWarning,
        stacklevel=3,
    )

"""How well a model predicts: top-1, cross-entropy and other metrics over a batch plan, with or without an ablation."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation, Ablations
from ablation_lens.errors import CorpusError, MismatchError, NonFiniteError
from ablation_lens.hooked import is_hooked
from ablation_lens.measure.forward import as_given, ends_plainly, final_residual, logits_everywhere, logits_from
from ablation_lens.measure.metrics import BUILT_IN, Asked, Given, Metric, metrics_of, rows_of
from ablation_lens.measure.score import Score, Sums
from ablation_lens.sites import Hook
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch

CHUNK_LOGITS = 2**25
"""How many logits exist at once: 128 MB in float32, whatever the vocabulary, batch and context."""


class Hooks(Protocol):
    """Anything that gives TransformerLens `(name, function)` pairs, as an ablation does."""

    def hooks(self) -> Sequence[Hook]:
        """The pairs for `run_with_hooks`."""
        ...


_ALWAYS = {name: BUILT_IN[name] for name in ("top1", "cross_entropy")}


def evaluate(
    model: Any,
    batches: Any,
    ablation: Hooks | None = None,
    *,
    metrics: Given = None,
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Score a model on batches, with an ablation's hooks in place.

    Args:
        model: any model with TransformerLens hooks.
        batches: a `BatchPlan`, or what else `collect` takes (docs/INPUTS.md); padding that is not marked is found as
            there.
        ablation: an `Ablation`, several (`a | b`), or anything with a `hooks()` method; None evaluates the model as it
            is.
        metrics: what to measure besides top-1 and cross-entropy: names out of `al.metrics`, functions
            `(logits, batch) -> [row]`, or a dict of either. `score["kl"]` is then the average.
        on_batch: called after each batch with its number of rows, for progress.

    >>> from ablation_lens import load_model
    >>> from ablation_lens.tasks.tasks import task_for
    >>> model = load_model("tiny-vit")
    >>> score = evaluate(model, task_for(model).batches(split="evaluate", images=64), metrics=["rank"])
    >>> score.predictions, score.top1 > 0.9, score["rank"] < 1.5
    (64, True, True)
    """
    measured = {**_ALWAYS, **metrics_of(metrics)}
    _warn_of_hooks(model, measured)
    hooks_on = hooks_for(model, ablation)
    totals = _Totals()
    splits, padding = 0, Padding(model, stacklevel=3)
    with torch.inference_mode():
        for number, item in enumerate(batches_of(model, batches, scored=True)):
            batch = padding.marked(item)
            if not isinstance(ablation, Ablation | Ablations | None):
                _require_columns(batch)
            _require_its_rows(ablation, batch, number, own=isinstance(batches, Batch))
            rows, splits_here = _score_within_memory(model, batch.to(model.cfg.device), hooks_on, measured)
            splits += splits_here
            totals.add(batch, rows)
            if on_batch is not None:
                on_batch(len(batch.inputs))
    return totals.score(splits)


def _warn_of_hooks(model: Any, metrics: Mapping[str, Metric]) -> None:
    names = ", ".join(name for name, metric in metrics.items() if metric.clean)
    if names and is_hooked(model):
        warnings.warn(
            f"hooks are on this model already, so {names} is from the model with them, not from the model as it is.",
            stacklevel=3,
        )


def hooks_for(model: Any, ablation: Any) -> Callable[[Batch, Batch], Sequence[Hook]]:
    """What an ablation does to a batch as it was given, in the layout that the model will see."""
    if isinstance(ablation, Ablation | Ablations):
        ablation.require_fits(model)
        for_all: list[Hook] = []

        def resolved(given: Batch, batch: Batch) -> list[Hook]:
            plain = ablation.resolve(model, given, run_as=batch)
            # No cache here: a document of a single token begins at 0, too.
            if plain is not ablation:
                return plain.hooks(offset=0)
            # Made once where they are the same for every batch: they keep their tensors.
            for_all[:] = for_all or ablation.hooks(offset=0)
            return for_all

        return resolved
    if ablation is None or (hasattr(ablation, "hooks") and not isinstance(ablation, type)):
        hooks = [] if ablation is None else list(ablation.hooks())
        return lambda given, batch: hooks
    raise MismatchError(
        f"{f'the class {ablation.__name__}' if isinstance(ablation, type) else type(ablation).__name__} is not an "
        'ablation; give for example al.Ablation(mask, values) or stats.ablation(mask, "peak").'
    )


def _require_columns(batch: Batch) -> None:
    # Texts are moved to the start of their rows, and hooks may have been written for other columns.
    if batch.from_start() is not batch:
        raise MismatchError(
            "hooks of your own are for columns, and with padding on the left these are not what evaluate runs; pad on "
            "the right, or give an Ablation, which counts real tokens."
        )


def _require_its_rows(ablation: Any, batch: Batch, number: int, *, own: bool) -> None:
    """Refuse what was made for the rows of one batch where others may have come in, or these in another order.

    A batch of one's `own`, given as such, is the one that was meant.
    """
    if not isinstance(ablation, Ablation | Ablations) or ablation.for_rows is None:
        return
    sorted_otherwise = not own and batch.documents not in ((), tuple(range(len(batch.inputs))))
    if number or sorted_otherwise:
        why = "there are several batches" if number else "the batches of a plan are sorted by length"
        raise MismatchError(
            f"this ablation has positions or values for each of the {ablation.for_rows} rows of one batch, and {why}; "
            "give them as a function of the batch, or evaluate one tensor, dict or Batch at a time."
        )


class _Totals:
    """The sums of every document, in the order of the plan's numbers; those of a second plan come after them."""

    def __init__(self) -> None:
        self._plans: dict[str, dict[int, list[tuple[float, float]]]] = {}
        self._unnumbered: list[list[tuple[float, float]]] = []
        self._names: tuple[str, ...] = ()

    def add(self, batch: Batch, rows: Mapping[str, Sums]) -> None:
        """Add a batch: a document that stands in several of one plan is added up."""
        self._names = tuple(rows)
        columns = [zip(sums.values.tolist(), sums.weights.tolist(), strict=True) for sums in rows.values()]
        for place, parts in enumerate(zip(*columns, strict=True)):
            if not batch.documents:
                self._unnumbered.append(list(parts))
                continue
            number, sums = batch.documents[place], self._plans.setdefault(batch.plan, {})
            before = sums.get(number)
            sums[number] = (
                list(parts)
                if before is None
                else [(v + w, a + b) for (v, a), (w, b) in zip(before, parts, strict=True)]
            )

    def score(self, splits: int) -> Score:
        """What was added."""
        sums: dict[int, list[tuple[float, float]]] = {}
        # Rows without numbers come after those with some, wherever they stood among them.
        for more in (*self._plans.values(), dict(enumerate(self._unnumbered))):
            first = max(sums, default=-1) + 1
            sums |= {first + number: parts for number, parts in more.items()}
        if not any(parts[0][1] for parts in sums.values()):
            raise CorpusError("there was nothing to score: the batches hold no scored position.")
        order = sorted(sums)
        made = {
            name: Sums(
                torch.tensor([sums[number][place][0] for number in order], dtype=torch.float64),
                torch.tensor([sums[number][place][1] for number in order], dtype=torch.float64),
            )
            for place, name in enumerate(self._names)
        }
        correct, loss = made.pop("top1"), made.pop("cross_entropy")
        return Score(
            documents=tuple(order),
            correct=correct.values.long(),
            loss=loss.values,
            predictions_per_document=correct.weights.long(),
            splits=splits,
            further=made,
        )


def _score_within_memory(
    model: Any, batch: Batch, hooks_on: Callable[[Batch, Batch], Sequence[Hook]], metrics: Mapping[str, Metric]
) -> tuple[dict[str, Sums], int]:
    """Score a batch; when memory runs out, its halves, padded as before."""
    try:
        return _score(model, batch, hooks_on, metrics), 0
    except torch.OutOfMemoryError:
        if len(batch.inputs) == 1:
            raise
    # Outside the except: inside it the traceback keeps the failed run's tensors alive, and memory stays full.
    middle = len(batch.inputs) // 2
    first, second = (
        _score_within_memory(model, rows, hooks_on, metrics) for rows in (batch.rows(0, middle), batch.rows(middle))
    )
    together = {
        name: Sums(torch.cat([sums.values, second[0][name].values]), torch.cat([sums.weights, second[0][name].weights]))
        for name, sums in first[0].items()
    }
    return together, 1 + first[1] + second[1]


def _score(
    model: Any,
    given: Batch,
    hooks_on: Callable[[Batch, Batch], Sequence[Hook]],
    metrics: Mapping[str, Metric],
    *,
    at_once: int = CHUNK_LOGITS,
) -> dict[str, Sums]:
    """The sums of every row; `at_once` is how many logits exist at a time, if no metric wants all of them."""
    batch, rows = given.from_start(), len(given.inputs)
    hooks, asked = hooks_on(given, batch), Asked.of(batch)
    single = {name: metric for name, metric in metrics.items() if not metric.whole}
    whole = {name: metric for name, metric in metrics.items() if metric.whole}
    found: dict[str, list[Tensor]] = {name: [] for name in single}
    compares, compares_whole = (any(metric.clean for metric in each.values()) for each in (single, whole))

    def take(logits: Tensor, clean: Tensor | None, part: slice) -> None:
        predictions = asked.answered(logits, clean, part)
        for name, metric in single.items():
            found[name].append(metric.per_prediction(predictions))

    everywhere = clean_everywhere = None
    if ends_plainly(model, batch) and all(map(_acts_in_blocks, hooks)):
        residual = final_residual(model, batch, hooks)
        hidden = residual[batch.scored]
        clean = final_residual(model, batch)[batch.scored] if compares else None
        chunk = max(1, at_once // int(model.cfg.d_vocab_out))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            take(logits_from(model, hidden[part]), None if clean is None else logits_from(model, clean[part]), part)
        if whole:
            everywhere = logits_from(model, residual.flatten(0, 1)).unflatten(0, residual.shape[:2])
        if compares_whole:
            clean_everywhere = logits_everywhere(model, batch)
    else:
        everywhere = logits_everywhere(model, batch, hooks)
        clean_everywhere = logits_everywhere(model, batch) if compares or compares_whole else None
        clean = None if clean_everywhere is None else clean_everywhere[batch.scored]
        take(everywhere[batch.scored], clean, slice(None))
    made, weights = {}, asked.weights(rows).cpu()
    for name, parts in found.items():
        values = torch.cat(parts).double() if parts else asked.labels.new_zeros(0, dtype=torch.float64)
        _require_finite(name, values)
        made[name] = Sums(asked.per_row(values, rows).cpu(), weights)
    if whole:
        assert everywhere is not None
        logits = as_given(everywhere, given)
        clean = None if clean_everywhere is None else as_given(clean_everywhere, given)
        for name, metric in whole.items():
            values, weight = rows_of(metric, logits, given, clean)
            _require_finite(name, values)
            made[name] = Sums((values.double() * weight.double()).cpu(), weight.double().cpu())
    return {name: made[name] for name in metrics}


def _acts_in_blocks(hook: Hook) -> bool:
    """Whether a hook has done its work when the last block has: what comes after is otherwise computed without it."""
    name = hook[0]
    return isinstance(name, str) and name.startswith(("blocks.", "hook_", "embed.", "pos_embed."))


def _require_finite(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        what = name.replace("_", "-") if name in BUILT_IN else name
        raise NonFiniteError(
            f"the {what} of some prediction is not finite; the ablation's values or the model's dtype overflow. "
            "Try bfloat16 or float32."
        )

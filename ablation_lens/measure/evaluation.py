"""How well a model predicts: top-1, cross-entropy and other metrics over a batch plan, with or without an ablation."""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation, Ablations
from ablation_lens.errors import CorpusError, MismatchError, NonFiniteError
from ablation_lens.hooked import is_hooked
from ablation_lens.measure.forward import (
    as_given,
    ends_plainly,
    final_residual,
    logits_everywhere,
    logits_from,
    reads_first,
    residual_at,
)
from ablation_lens.measure.metrics import BUILT_IN, Asked, Given, Metric, metrics_of, rows_of
from ablation_lens.measure.prefix import Prefix
from ablation_lens.measure.score import Score, Sums
from ablation_lens.sending import Fetch, send
from ablation_lens.sites import Hook
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.inputs import told
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch, BatchPlan

CHUNK_LOGITS = 2**25
"""How many logits exist at once: 128 MB in float32, whatever the vocabulary, batch and context."""


class Hooks(Protocol):
    """Anything that gives TransformerLens `(name, function)` pairs, as an ablation does."""

    def hooks(self) -> Sequence[Hook]:
        """The pairs for `run_with_hooks`."""
        ...


_Begun = Callable[[Batch, Sequence[Hook]], AbstractContextManager[Any]]
"""Around the runs of a batch under hooks: they need not begin at its beginning."""

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
        batches: a `BatchPlan`, or what else `collect` takes (docs/guide/inputs.md); padding that is not marked is
            found as there.
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
    # Read here, as what is said of texts is said on the line of whoever called.
    read = batches_of(model, batches, scored=True)
    (score,) = _evaluate(model, [batches], [read], ablation, metrics, on_batch)
    return score


def evaluate_each(
    model: Any,
    plans: Sequence[BatchPlan],
    ablation: Hooks | None = None,
    *,
    metrics: Given = None,
    prefix: Prefix | None = None,
) -> list[Score]:
    """What `evaluate` gives for several plans that read the same documents and score others of their predictions.

    The model runs once over each batch, for all of them. Who asks again, with other ablations, may give a `prefix` of
    the same model and plans, in which the blocks before the first ablated layer are kept.

    >>> from ablation_lens import load_model
    >>> from ablation_lens.tasks.tasks import task_for
    >>> model = load_model("tiny-opt")
    >>> plans = [task_for(model).batches(tokens=500, count=count) for count in ("all", "skip-common")]
    >>> [score.predictions for score in evaluate_each(model, plans)] == [plan.predictions for plan in plans]
    True
    """
    if not plans:
        raise MismatchError("there is no plan to evaluate; give at least one.")
    if other := [told(plan) for plan in plans if not isinstance(plan, BatchPlan)]:
        raise MismatchError(f"plans of the same documents are evaluated together, got {other[0]}; use evaluate.")
    for plan in plans[1:]:
        if not plan.reads_as(plans[0]):
            raise MismatchError(
                "these plans read other documents, in other batches or with other labels; evaluate them one by one."
            )
    return _evaluate(model, plans, plans, ablation, metrics, None, prefix)


def _evaluate(
    model: Any,
    given: Sequence[Any],
    read: Sequence[Iterable[Batch]],
    ablation: Hooks | None,
    metrics: Given,
    on_batch: Callable[[int], None] | None,
    prefix: Prefix | None = None,
) -> list[Score]:
    measured = {**_ALWAYS, **metrics_of(metrics)}
    _warn_of_hooks(model, measured)
    hooks_on = hooks_for(model, ablation)
    totals = [_Totals() for _ in read]
    padding = Padding(model, stacklevel=4)
    splits, earlier = 0, _Earlier(totals)
    with torch.inference_mode():
        for number, items in enumerate(zip(*read, strict=True)):
            batches = tuple(map(padding.marked, items))
            if not isinstance(ablation, Ablation | Ablations | None):
                _require_columns(batches[0])
            _require_its_rows(ablation, batches[0], number, own=isinstance(given[0], Batch))
            begun = None if prefix is None else functools.partial(prefix.of, number)
            parts = _score_within_memory(model, batches, hooks_on, measured, begun)
            splits += len(parts) - 1
            earlier.follow(batches, parts)
            if on_batch is not None:
                on_batch(len(batches[0].inputs))
        earlier.add()
    return [each.score(splits) for each in totals]


def _warn_of_hooks(model: Any, metrics: Mapping[str, Metric]) -> None:
    names = ", ".join(name for name, metric in metrics.items() if metric.clean)
    if names and is_hooked(model):
        warnings.warn(
            f"hooks are on this model already, so {names} is from the model with them, not from the model as it is.",
            stacklevel=4,
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


@dataclass(frozen=True)
class _Scored:
    """The sums of a batch's rows for every plan, on their way from the device that made them."""

    metrics: Mapping[str, Metric]
    weights: Sequence[Int[Tensor, " row"]]
    table: Fetch

    def sums(self) -> list[dict[str, Sums]]:
        """Plan by plan. The one place of an evaluation where a device is waited for."""
        columns = iter(self.table.result())
        made: list[dict[str, Sums]] = []
        for weights in self.weights:
            made.append({})
            for name, metric in self.metrics.items():
                values = next(columns)
                _require_finite(name, values)
                made[-1][name] = Sums(values, next(columns) if metric.whole else weights)
        return made


class _Earlier:
    """The batch before, whose sums are waited for only when the device has been given the next one."""

    def __init__(self, totals: Sequence[_Totals]) -> None:
        self._totals = totals
        self._kept: tuple[Sequence[Batch], Sequence[_Scored]] | None = None

    def follow(self, batches: Sequence[Batch], parts: Sequence[_Scored]) -> None:
        """Add the batch before, and keep this one."""
        self.add()
        self._kept = batches, parts

    def add(self) -> None:
        """Add what is kept."""
        if self._kept is None:
            return
        (batches, parts), self._kept = self._kept, None
        for batch, total, *made in zip(batches, self._totals, *(part.sums() for part in parts), strict=True):
            total.add(batch, {name: _joined([rows[name] for rows in made]) for name in made[0]})


def _joined(parts: Sequence[Sums]) -> Sums:
    if len(parts) == 1:
        return parts[0]
    return Sums(torch.cat([part.values for part in parts]), torch.cat([part.weights for part in parts]))


def _score_within_memory(
    model: Any,
    batches: Sequence[Batch],
    hooks_on: Callable[[Batch, Batch], Sequence[Hook]],
    metrics: Mapping[str, Metric],
    begun: _Begun | None = None,
) -> list[_Scored]:
    """Score a batch; when memory runs out, its halves, padded as before, and from the beginning."""
    rows = len(batches[0].inputs)
    try:
        asked = [Asked.of(batch.from_start()) for batch in batches]
        table = Fetch(row_sums(model, batches, hooks_on, metrics, begun=begun))
        return [_Scored(metrics, [each.weights(rows) for each in asked], table)]
    except torch.OutOfMemoryError:
        if rows == 1:
            raise
    # Outside the except: inside it the traceback keeps the failed run's tensors alive, and memory stays full.
    halves = ([batch.rows(*ends) for batch in batches] for ends in ((0, rows // 2), (rows // 2, None)))
    return [part for half in halves for part in _score_within_memory(model, half, hooks_on, metrics)]


def row_sums(
    model: Any,
    given: Sequence[Batch],
    hooks_on: Callable[[Batch, Batch], Sequence[Hook]],
    metrics: Mapping[str, Metric],
    *,
    begun: _Begun | None = None,
    at_once: int = CHUNK_LOGITS,
) -> Float[Tensor, "column row"]:
    """On the model's device: for every batch of `given`, for every metric, the sums over each row's predictions.

    Of a metric that sees whole logits, two columns: values times weights, and the weights. What depends on the batches
    alone is found before they are moved, so that the device is asked nothing. `at_once` is how many logits exist at a
    time, if no metric wants all of them.
    """
    device, rows = model.cfg.device, len(given[0].inputs)
    # On the host, where the batches are.
    from_start = [batch.from_start() for batch in given]
    on_host = Asked.of(_scored_by_any(from_start))
    inside = [on_host.of_all(each.scored[..., None])[:, 0] for each in from_start]
    asked = on_host.to(device)
    moved = given[0].to(device)
    batch = moved if from_start[0] is given[0] else from_start[0].to(device)
    hooks = hooks_on(moved, batch)

    single = {name: metric for name, metric in metrics.items() if not metric.whole}
    whole = {name: metric for name, metric in metrics.items() if metric.whole}
    found: dict[str, list[Tensor]] = {name: [] for name in single}
    compares, compares_whole = (any(metric.clean for metric in each.values()) for each in (single, whole))

    def take(logits: Tensor, clean: Tensor | None, part: slice) -> None:
        # A model that lies on several devices ends on another than it begins on.
        predictions = asked.to(logits.device).answered(logits, clean, part)
        for name, metric in single.items():
            found[name].append(metric.per_prediction(predictions))

    hidden: Tensor | None = None
    clean: Tensor | None = None
    at_places = ends_plainly(model, batch) or (not whole and reads_first(model, batch))
    with nullcontext() if begun is None else begun(batch, hooks):
        if at_places and all(map(_acts_in_blocks, hooks)):
            residual = final_residual(model, batch, hooks) if whole else None
            row, column = asked.row, asked.column
            hidden = residual_at(model, batch, row, column, hooks) if residual is None else asked.of_all(residual)
            clean = residual_at(model, batch, row, column) if compares else None
            everywhere = None if residual is None else _unembedded(model, residual)
            clean_everywhere = logits_everywhere(model, batch) if compares_whole else None
        else:
            everywhere = logits_everywhere(model, batch, hooks)
            clean_everywhere = logits_everywhere(model, batch) if compares or compares_whole else None
    if hidden is None:
        assert everywhere is not None
        clean = asked.of_all(clean_everywhere) if compares and clean_everywhere is not None else None
        take(asked.of_all(everywhere), clean, slice(None))
    else:
        chunk = max(1, at_once // int(model.cfg.d_vocab_out))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            take(logits_from(model, hidden[part]), None if clean is None else logits_from(model, clean[part]), part)

    values = {
        name: torch.cat(parts).double() if parts else torch.zeros(0, dtype=torch.float64, device=device)
        for name, parts in found.items()
    }
    columns: list[Tensor] = []
    for each, scored in zip(given, inside, strict=True):
        here: dict[str, tuple[Tensor, ...]] = {}
        for name, summands in values.items():
            counted = summands if len(given) == 1 else torch.where(send(scored, summands.device), summands, 0)
            here[name] = (asked.to(summands.device).per_row(counted, rows),)
        if whole:
            assert everywhere is not None
            seen = moved if each is given[0] else each.to(device)
            logits = as_given(everywhere, seen)
            clean = None if clean_everywhere is None else as_given(clean_everywhere, seen)
            for name, metric in whole.items():
                of_rows, weight = rows_of(metric, logits, seen, clean)
                here[name] = (of_rows.double() * weight.double(), weight.double())
        columns += [column for name in metrics for column in here[name]]
    return torch.stack([column.to(columns[0].device) for column in columns])


def _unembedded(model: Any, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos out"]:
    logits: Tensor = logits_from(model, residual.flatten(0, 1))
    return logits.view(*residual.shape[:2], -1)


def _scored_by_any(batches: Sequence[Batch]) -> Batch:
    """The first of batches of equal inputs, with what any of them scores."""
    first, *others = batches
    scored, labels = first.scored, first.labels
    for other in others:
        labels = torch.where(other.scored, other.labels, labels)
        scored = scored | other.scored
    return replace(first, scored=scored, labels=labels) if others else first


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

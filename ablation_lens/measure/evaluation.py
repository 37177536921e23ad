"""How well a model predicts: top-1 and cross-entropy over a batch plan, with or without an ablation."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.errors import CorpusError, MismatchError, NonFiniteError
from ablation_lens.measure.forward import ends_plainly, final_residual, logits_everywhere, logits_from
from ablation_lens.measure.score import Score
from ablation_lens.sites import Hook
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch

CHUNK_LOGITS = 2**25
"""How many logits exist at once: 128 MB in float32, whatever the vocabulary, batch and context."""


class Hooks(Protocol):
    """Anything that gives TransformerLens `(name, function)` pairs, as an ablation does."""

    def hooks(self) -> Sequence[Hook]:
        """The pairs for `run_with_hooks`."""
        ...


def evaluate(
    model: Any,
    batches: Iterable[Batch],
    ablation: Hooks | None = None,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Score a model on batches, with an ablation's hooks in place.

    Args:
        model: any model with TransformerLens hooks.
        batches: a `BatchPlan`, or your own `Batch`es; padding that they do not mark is found as by `collect`.
        ablation: an `Ablation`, or anything with a `hooks()` method; None evaluates the model as it is.
        on_batch: called after each batch with its number of rows, for progress.

    >>> from ablation_lens import load_model
    >>> from ablation_lens.tasks.tasks import task_for
    >>> model = load_model("tiny-vit")
    >>> score = evaluate(model, task_for(model).batches(split="evaluate", images=64))
    >>> score.predictions, score.top1 > 0.9
    (64, True)
    """
    if isinstance(ablation, Ablation):
        ablation.require_fits(model)
        hooks = ablation.hooks(offset=0)  # no cache here: a document of a single token begins at 0, too
    elif ablation is None or hasattr(ablation, "hooks"):
        hooks = [] if ablation is None else list(ablation.hooks())
    else:
        raise MismatchError(
            f"{type(ablation).__name__} is not an ablation; give for example al.Ablation(mask, values) or "
            'stats.ablation(mask, "peak").'
        )
    sums: dict[int, _Sums] = {}
    unnumbered: list[_Sums] = []
    splits, padding = 0, Padding(model, stacklevel=3)
    with torch.inference_mode():
        for item in batches:
            if not isinstance(item, Batch):
                raise MismatchError(
                    f"{type(item).__name__} does not say what is to be predicted; give batches such as "
                    "al.Batch.causal(tokens)."
                )
            batch = padding.mark(item)
            on_device = batch.to(model.cfg.device)
            correct, loss, splits_here = _score_within_memory(model, on_device, hooks)
            splits += splits_here
            _add_rows(sums, unnumbered, batch, correct, loss)
            if on_batch is not None:
                on_batch(len(batch.inputs))
    # After the numbers of documents, wherever such rows stood among them.
    sums |= dict(enumerate(unnumbered, start=max(sums, default=-1) + 1))
    if not any(count for _, _, count in sums.values()):
        raise CorpusError("there was nothing to score: the batches hold no scored position.")
    order = sorted(sums)
    return Score(
        documents=tuple(order),
        correct=torch.tensor([sums[number][0] for number in order]),
        loss=torch.tensor([sums[number][1] for number in order], dtype=torch.float64),
        predictions_per_document=torch.tensor([sums[number][2] for number in order]),
        splits=splits,
    )


_Sums = tuple[int, float, int]
"""Right predictions, cross-entropy and predictions of a document."""


def _add_rows(
    sums: dict[int, _Sums],
    unnumbered: list[_Sums],
    batch: Batch,
    correct: Int[Tensor, " row"],
    loss: Float[Tensor, " row"],
) -> None:
    counts = batch.scored.reshape(len(batch.scored), -1).sum(1).tolist()
    rows = list(zip(correct.tolist(), loss.tolist(), counts, strict=True))
    if not batch.documents:
        unnumbered += rows
        return
    for number, (right, nats, count) in zip(batch.documents, rows, strict=True):
        # A document in several batches is added up.
        before = sums.get(number, (0, 0.0, 0))
        sums[number] = (before[0] + right, before[1] + nats, before[2] + count)


def _score_within_memory(
    model: Any, batch: Batch, hooks: Sequence[Hook]
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"], int]:
    """Score a batch; when memory runs out, its halves, padded as before."""
    try:
        return (*_score(model, batch, hooks), 0)
    except torch.OutOfMemoryError:
        if len(batch.inputs) == 1:
            raise
    # Outside the except: inside it the traceback keeps the failed run's tensors alive, and memory stays full.
    middle = len(batch.inputs) // 2
    halves = [_score_within_memory(model, _rows(batch, part), hooks) for part in (slice(middle), slice(middle, None))]
    first, second = halves
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]), 1 + first[2] + second[2]


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(
        batch.inputs[rows], batch.valid[rows], batch.labels[rows], batch.scored[rows], documents=batch.documents[rows]
    )


def _score(
    model: Any, batch: Batch, hooks: Sequence[Hook], *, at_once: int = CHUNK_LOGITS
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Right predictions and summed cross-entropy of every row; `at_once` is how many logits exist at a time."""
    labels = batch.labels[batch.scored]
    if ends_plainly(model, batch):
        hidden = final_residual(model, batch, hooks)[batch.scored]
        chunk = max(1, at_once // int(model.cfg.d_vocab_out))
        scored = [
            _predictions(logits_from(model, rows), right)
            for rows, right in zip(hidden.split(chunk), labels.split(chunk), strict=True)
        ]
    else:
        scored = [_predictions(logits_everywhere(model, batch, hooks)[batch.scored], labels)]
    hits = torch.cat([hit for hit, _ in scored]) if scored else labels.new_zeros(0)
    nats = torch.cat([nat for _, nat in scored]) if scored else labels.new_zeros(0, dtype=torch.float64)
    if not bool(torch.isfinite(nats).all()):
        raise NonFiniteError(
            "the cross-entropy of some prediction is not finite; the ablation's values or the model's dtype overflow. "
            "Try bfloat16 or float32."
        )
    # `nonzero` lists places in the order in which indexing by `scored` took them.
    row = batch.scored.reshape(len(batch.scored), -1).nonzero()[:, 0]
    right = torch.zeros(len(batch.scored), dtype=torch.int64, device=row.device).index_add_(0, row, hits.long())
    loss = torch.zeros(len(batch.scored), dtype=torch.float64, device=row.device).index_add_(0, row, nats)
    return right.cpu(), loss.cpu()


def _predictions(logits: Float[Tensor, "row out"], labels: Int[Tensor, " row"]) -> tuple[Tensor, Float[Tensor, " row"]]:
    """Whether each prediction is right, and its negative log-likelihood in float64."""
    # In 16 bits every loss would be rounded to about three digits.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.argmax(-1) == labels, F.cross_entropy(logits, labels, reduction="none").double()

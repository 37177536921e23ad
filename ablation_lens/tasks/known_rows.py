"""Digests of rows: what was collected over is known again where something is judged, however it was batched."""

import hashlib
from collections.abc import Collection, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import task_of
from ablation_lens.tasks.plans import Batch, plan_of


def row_digests(batch: Batch, task: str) -> Int64[Tensor, "row way"]:
    """Of every row of a batch, 64 bits of a digest of what the model reads there, without padding.

    A masked model reads a document with other positions hidden in every plan. The document itself, as far as the labels
    restore it, is therefore a second way to know a row again. Answers do not tell rows apart.

    >>> one = Batch.causal(torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    >>> other = Batch.causal(torch.tensor([[0, 0, 8, 9]]), torch.tensor([[0, 0, 1, 1]]))
    >>> among(row_digests(other, "causal-lm"), row_digests(one, "causal-lm").flatten()).tolist()
    [True]
    """
    ways = [batch.inputs]
    if task == "masked-lm" and batch.answers is None and batch.labels.shape == batch.inputs.shape:
        ways.append(torch.where(batch.scored, batch.labels, batch.inputs))
    return torch.stack([_digests(inputs, batch.valid) for inputs in ways], dim=1)


def among(rows: Int64[Tensor, "row way"], known: Int64[Tensor, " digest"]) -> Bool[Tensor, " row"]:
    """Which rows are known, in whatever way."""
    return torch.isin(rows, known).any(1)


def require_unknown(
    model: Any, batches: Iterable[Batch], known: Int64[Tensor, " digest"] | None, plans: Collection[str] = ()
) -> None:
    """Refuse to judge values on rows that they are from.

    Args:
        model: what reads the rows.
        batches: what values are judged on.
        known: digests of the rows they are from.
        plans: digests of the plans they are from, which is all that is looked at where `known` is None, as in files of
            before rows were kept.

    >>> from ablation_lens import load_model
    >>> model, batch = load_model("tiny-opt"), Batch.causal(torch.tensor([[5, 6, 7], [8, 9, 4]]))
    >>> require_unknown(model, [batch], row_digests(batch.rows(1), "causal-lm").flatten())
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: the centers are from the very documents they would be judged on (1 of 2 rows); \
give batches of another split, such as task.batches(split="evaluate").
    """
    told = ""
    if known is None:
        plan = plan_of(batches)
        same = plan is not None and plan.digest in plans
    else:
        found = torch.cat([among(row_digests(batch, task_of(model)), known) for batch in batches])
        same, told = bool(found.any()), f" ({int(found.sum()):,} of {len(found):,} rows)"
    if same:
        raise MismatchError(
            f"the centers are from the very documents they would be judged on{told}; give batches of another split, "
            'such as task.batches(split="evaluate").'
        )


def _digests(inputs: Tensor, valid: Bool[Tensor, "row pos"]) -> Int64[Tensor, " row"]:
    plain = inputs.detach().cpu()
    if plain.shape == valid.shape:
        # Of one type, as ids are the same in all of them.
        ids, real = plain.long().numpy(), valid.cpu().numpy()
        rows = [row[which].tobytes() for row, which in zip(ids, real, strict=True)]
        return torch.tensor([_digest(b"ids", row) for row in rows], dtype=torch.int64)
    told = f"{plain.dtype} {tuple(plain.shape[1:])}".encode()
    # By way of uint8: NumPy has no bfloat16.
    pixels = plain.contiguous().flatten(1).view(torch.uint8).numpy()
    return torch.tensor([_digest(told, row) for row in pixels], dtype=torch.int64)


def _digest(told: bytes, content: bytes) -> int:
    whole = hashlib.sha256(told)
    whole.update(content)
    return int.from_bytes(whole.digest()[:8], "little", signed=True)

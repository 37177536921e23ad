"""How a `Score` lies in a file: the sums of its documents as tensors, checked when they are read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ablation_lens.errors import FileFormatError
from ablation_lens.measure.score import Score, Sums

MOST = 2**40
"""More documents, predictions or positions than anybody has."""

_VALUES, _WEIGHTS = "values of ", "weights of "
"""What the tensors of further metrics are called, before the metric's name."""


def tensors_of(score: Score) -> dict[str, Tensor]:
    """The sums of every document, by name."""
    tensors = {
        "documents": torch.tensor(score.documents),
        "correct": score.correct,
        "loss": score.loss,
        "predictions": score.predictions_per_document,
    }
    for name, sums in score.further.items():
        tensors |= {f"{_VALUES}{name}": sums.values, f"{_WEIGHTS}{name}": sums.weights.double()}
    return tensors


def score_of(tensors: Mapping[str, Tensor], splits: int = 0) -> Score:
    """The inverse of `tensors_of`, if these can be the sums of documents.

    >>> score = Score((0, 1), torch.tensor([1, 0]), torch.tensor([0.5, 2.0]).double(), torch.tensor([1, 1]))
    >>> score_of(tensors_of(score))
    Score(top1=0.5000, cross_entropy=1.2500, predictions=2)
    """
    expected = {"documents": torch.int64, "correct": torch.int64, "loss": torch.float64, "predictions": torch.int64}
    further = {name.removeprefix(_VALUES) for name in tensors if name.startswith(_VALUES)}
    expected |= {f"{start}{name}": torch.float64 for name in sorted(further) for start in (_VALUES, _WEIGHTS)}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    length = tensors["documents"].numel() if "documents" in tensors else 0
    if length == 0 or found != {name: (dtype, (length,)) for name, dtype in expected.items()}:
        raise FileFormatError(f"it needs {', '.join(expected)} of equal length, got {found}.")
    documents, correct, loss, predictions = (tensors[name] for name in list(expected)[:4])
    if bool((documents < 0).any()) or len(documents.unique()) < length:
        raise FileFormatError("a document is there twice, or has a number below zero.")
    if bool((predictions < 0).any()) or bool((predictions > MOST).any()) or not bool(predictions.any()):
        raise FileFormatError("a document needs predictions, and cannot have so many or fewer than none.")
    if bool((correct < 0).any()) or bool((correct > predictions).any()):
        raise FileFormatError("more predictions of a document are right than there are, or fewer than none.")
    # One prediction costs at most what a difference of two float32 logits can be.
    if not bool(((loss >= 0) & (loss <= predictions.double() * (2 * torch.finfo(torch.float32).max))).all()):
        raise FileFormatError("the loss of a document is not finite, or below zero, or larger than any can be.")
    sums = {name: Sums(tensors[f"{_VALUES}{name}"], tensors[f"{_WEIGHTS}{name}"]) for name in sorted(further)}
    for name, each in sums.items():
        both = torch.cat([each.values, each.weights])
        if not bool(torch.isfinite(both).all()) or bool((each.weights < 0).any()) or not bool(each.weights.any()):
            raise FileFormatError(f"the {name} of a document is not finite, or its weight is below zero.")
    return Score(
        documents=tuple(documents.tolist()),
        correct=correct,
        loss=loss,
        predictions_per_document=predictions,
        splits=splits,
        further=sums,
    )

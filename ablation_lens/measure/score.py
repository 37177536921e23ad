"""`Score`: what a model was measured at. Plain data, so that results are read without anything that runs a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.measure.intervals import Interval, difference
from ablation_lens.names import require_known


@dataclass(frozen=True)
class Sums:
    """A metric's values times their weights, added up per document, and the weights."""

    values: Float[Tensor, " document"]
    weights: Float[Tensor, " document"]


@dataclass(frozen=True)
class Score:
    """Micro-averages over scored predictions, and the per-document sums they come from.

    `score["kl"]` is the average of a metric that was asked for; top-1 and cross-entropy are always there.

    Attributes:
        documents: the plan's numbers of the documents, in order; the arrays below follow it.
        correct: right top-1 predictions per document.
        loss: summed cross-entropy per document, in nats.
        predictions_per_document: scored predictions per document.
        splits: how many times a batch was split because memory ran out.
        further: the sums of other metrics, by name.
    """

    documents: tuple[int, ...]
    correct: Int[Tensor, " document"]
    loss: Float[Tensor, " document"]
    predictions_per_document: Int[Tensor, " document"]
    splits: int = 0
    further: Mapping[str, Sums] = field(default_factory=dict)

    @property
    def predictions(self) -> int:
        """How many predictions were scored."""
        return int(self.predictions_per_document.sum())

    @property
    def top1(self) -> float:
        """Share of predictions whose most likely class is the right one."""
        return int(self.correct.sum()) / self.predictions

    @property
    def cross_entropy(self) -> float:
        """Mean negative log-likelihood in nats, added up in document order."""
        return in_order(self.loss) / self.predictions

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of everything that was measured."""
        return ("top1", "cross_entropy", *self.further)

    def __getitem__(self, name: str) -> float:
        if name == "top1":
            return self.top1
        sums = self.sums(name)
        return in_order(sums.values) / in_order(sums.weights)

    def sums(self, name: str) -> Sums:
        """A metric's sums and weights per document."""
        if name in self.further:
            return self.further[name]
        require_known(name, self.metrics, "metric")
        return Sums(self.correct if name == "top1" else self.loss, self.predictions_per_document)

    def rows(self, name: str) -> Float[ndarray, " document"]:
        """A metric's value for every document, or row of your own batches; NaN where nothing of one is scored."""
        sums = self.sums(name)
        with np.errstate(invalid="ignore"):
            found: ndarray = sums.values.double().numpy() / sums.weights.double().numpy()
        return found

    def interval(self, name: str, without: "Score | None" = None) -> Interval:
        """The 95 % interval of a metric, or of its difference to another score of the same documents.

        >>> import torch
        >>> def score(*loss):
        ...     return Score((0, 1), torch.tensor([1, 0]), torch.tensor(loss).double(), torch.tensor([1, 1]))
        >>> interval = score(3.0, 2.0).interval("cross_entropy", without=score(2.0, 1.0))
        >>> interval.difference, interval.low, interval.high
        (1.0, 1.0, 1.0)
        """
        own = self.sums(name)
        if without is None:
            other = np.zeros(len(self.documents))
        else:
            theirs = without.sums(name)
            if self.documents != without.documents or not bool((own.weights == theirs.weights).all()):
                raise MismatchError("the two scores are of different documents, so they cannot be compared in pairs.")
            other = theirs.values.double().numpy()
        return difference(own.values.double().numpy()[None], other[None], own.weights.numpy())

    def __repr__(self) -> str:
        further = "".join(f", {name}={self[name]:.4f}" for name in self.further)
        return (
            f"Score(top1={self.top1:.4f}, cross_entropy={self.cross_entropy:.4f}{further}, "
            f"predictions={self.predictions:,})"
        )


def in_order(values: Tensor) -> float:
    """The sum from left to right."""
    # torch adds in an order that depends on threads and hardware, and `sum` of Python 3.12 makes up for rounding,
    # which gives other last bits than 3.11.
    return float(reduce(add, values.tolist(), 0.0))

"""`Score`: what a model was measured at. Plain data, so that results are read without anything that runs a model."""

from dataclasses import dataclass
from functools import reduce
from operator import add

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """Micro-averages over scored predictions, and the per-document sums they come from.

    Attributes:
        documents: the plan's numbers of the documents, in order; the three arrays below follow it.
        correct: right top-1 predictions per document.
        loss: summed cross-entropy per document, in nats.
        predictions_per_document: scored predictions per document.
        splits: how many times a batch was split because memory ran out.
    """

    documents: tuple[int, ...]
    correct: Int[Tensor, " document"]
    loss: Float[Tensor, " document"]
    predictions_per_document: Int[Tensor, " document"]
    splits: int = 0

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
        # From left to right: torch adds in an order that depends on threads and hardware, and `sum` of Python 3.12
        # makes up for rounding, which gives other last bits than 3.11.
        return float(reduce(add, self.loss.tolist(), 0.0)) / self.predictions

    def __repr__(self) -> str:
        return f"Score(top1={self.top1:.4f}, cross_entropy={self.cross_entropy:.4f}, predictions={self.predictions:,})"

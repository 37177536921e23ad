"""What an ablation is judged by: a number and a weight for every row of a batch.

A metric of your own is any function `(logits, batch) -> [row]`; those of this module look at scored positions only,
and are called the same way.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.names import require_known
from ablation_lens.tasks.plans import Batch

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Predictions:
    """What a model says at scored positions: the view of a batch that the metrics of this module have."""

    logits: Float[Tensor, "prediction out"]
    labels: Int[Tensor, " prediction"]
    answers: Int[Tensor, "prediction answer"] | None = None
    wrong: Int[Tensor, "prediction answer"] | None = None
    clean: Float[Tensor, "prediction out"] | None = None
    """The logits without the ablation, where the metric asks for them."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a batch: the row of every scored prediction, and what is right and wrong there."""

    row: Int[Tensor, " prediction"]
    labels: Int[Tensor, " prediction"]
    answers: Int[Tensor, "prediction answer"] | None
    wrong: Int[Tensor, "prediction answer"] | None

    @classmethod
    def of(cls, batch: Batch) -> "Asked":
        """The scored predictions, in the order in which indexing by `scored` takes them."""
        row = batch.scored.reshape(len(batch.scored), -1).nonzero()[:, 0]
        answers, wrong = (None if ids is None else ids[row] for ids in (batch.answers, batch.wrong))
        return cls(row, batch.labels[batch.scored], answers, wrong)

    def answered(
        self,
        logits: Float[Tensor, "prediction out"],
        clean: Float[Tensor, "prediction out"] | None = None,
        part: slice = slice(None),
    ) -> Predictions:
        """What a model answers to a part of them."""
        answers, wrong = (None if ids is None else ids[part] for ids in (self.answers, self.wrong))
        return Predictions(_wide(logits), self.labels[part], answers, wrong, None if clean is None else _wide(clean))

    def per_row(self, values: Float[Tensor, " prediction"], rows: int) -> Float[Tensor, " row"]:
        """The sum over each row's predictions."""
        return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, self.row, values)

    def weights(self, rows: int) -> Int[Tensor, " row"]:
        """How many predictions each row has."""
        return torch.bincount(self.row, minlength=rows)


@dataclass(frozen=True)
class Metric:
    """A function, and what is to be known about it.

    Attributes:
        function: of `(logits, batch)`, with `whole`; else of `Predictions`, giving a value per prediction.
        better: whether "higher" or "lower" values are better; None where that cannot be said.
        whole: whether it sees logits at all positions `[batch pos out]`, in the layout that the batch was given in.
            That costs memory; what is in this module does without.
        clean: whether it compares with the model as it is, which costs another run.
        name: what it is called where no other name is given.
        version: of its numbers: with the next one, a study measures it again.

    >>> logits = torch.tensor([[[0.0, 1.0, 0.0], [3.0, 0.0, 1.0]]])
    >>> batch = Batch.prompts(torch.tensor([[5, 6]]), answers=[0], wrong=[2])
    >>> logit_difference(logits, batch), rank(logits, batch)
    (tensor([2.]), tensor([1.], dtype=torch.float64))
    """

    function: Callable[..., Any]
    _: KW_ONLY
    better: Better | None = None
    whole: bool = True
    clean: bool = False
    name: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise MismatchError(f"a metric is a function of (logits, batch), got {self.function!r:.60}.")
        if self.better not in ("higher", "lower", None):
            raise MismatchError(f"better={self.better!r} is not possible; give 'higher', 'lower' or None.")
        if not self.name:
            object.__setattr__(self, "name", str(getattr(self.function, "__name__", type(self.function).__name__)))

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this module."""
        return BUILT_IN.get(self.name) is self

    def __call__(
        self,
        logits: Float[Tensor, "batch *pos out"],
        batch: Batch,
        clean: Float[Tensor, "batch *pos out"] | None = None,
    ) -> Float[Tensor, " row"]:
        """A value per row, of a batch's logits; differentiable where the function is.

        A row of several scored predictions gets their mean, one of none NaN.
        """
        if self.whole:
            return rows_of(self, logits, batch)[0]
        if self.clean and clean is None:
            raise MismatchError(f"{self.name} compares with the model as it is: give clean=, the logits without it.")
        base = None if clean is None else clean[batch.scored]
        asked, rows = Asked.of(batch), len(batch.inputs)
        values = self.per_prediction(asked.answered(logits[batch.scored], base))
        return asked.per_row(values, rows) / asked.weights(rows)

    def per_prediction(self, predictions: Predictions) -> Float[Tensor, " prediction"]:
        """A value per scored prediction."""
        values: Tensor = self.function(predictions)
        return values


def rows_of(
    metric: Metric, logits: Float[Tensor, "batch *pos out"], batch: Batch
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """What a function of one's own gives for a batch, and its weights: 1, if it does not give any."""
    given = metric.function(logits, batch)
    values, weights = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    expected = (len(batch.inputs),)
    for part in (values, weights):
        shape = tuple(getattr(part, "shape", ()))
        if part is not None and (not isinstance(part, Tensor) or shape != expected):
            what = f"a tensor of shape {shape}" if isinstance(part, Tensor) else type(part).__name__
            raise MismatchError(
                f"the metric {metric.name} gave {what} for {expected[0]} rows; it must give one number per row: a "
                f"tensor of shape {expected}, without a mean over the batch."
            )
    assert isinstance(values, Tensor)
    return values, torch.ones_like(values, dtype=torch.float64) if weights is None else weights


# ---------------------------------------------------------------------- those that everybody needs

BUILT_IN: dict[str, Metric] = {}
"""The metrics of this module, by name."""


def _metric(better: Better, *, clean: bool = False) -> Callable[[Callable[[Predictions], Tensor]], Metric]:
    def made(function: Callable[[Predictions], Tensor]) -> Metric:
        metric = Metric(function, better=better, whole=False, clean=clean, name=function.__name__)
        object.__setattr__(metric, "__doc__", function.__doc__)
        BUILT_IN[metric.name] = metric
        return metric

    return made


@_metric("higher")
def top1(predictions: Predictions) -> Float[Tensor, " prediction"]:
    """1 where the most likely class is the right one, 0 elsewhere. Without a gradient."""
    return (predictions.logits.argmax(-1) == predictions.labels).double()


@_metric("lower")
def cross_entropy(predictions: Predictions) -> Float[Tensor, " prediction"]:
    """The negative log-likelihood of the label, in nats."""
    return F.cross_entropy(predictions.logits, predictions.labels, reduction="none").double()


@_metric("higher")
def probability(predictions: Predictions) -> Float[Tensor, " prediction"]:
    """The probability of the answers together; of the label where a batch has no answers."""
    return _sum_over(predictions.logits.softmax(-1), _right(predictions))


@_metric("higher")
def probability_difference(predictions: Predictions) -> Float[Tensor, " prediction"]:
    """The probability of the answers together, less that of the wrong ones together."""
    chances = predictions.logits.softmax(-1)
    return _sum_over(chances, _right(predictions)) - _sum_over(chances, _wrong(predictions, "probability_difference"))


@_metric("higher")
def logit_difference(predictions: Predictions) -> Float[Tensor, " prediction"]:
    """The mean logit of the answers, less the mean logit of the wrong ones."""
    right, wrong = _right(predictions), _wrong(predictions, "logit_difference")
    logits = predictions.logits
    return _sum_over(logits, right) / (right >= 0).sum(-1) - _sum_over(logits, wrong) / (wrong >= 0).sum(-1)


@_metric("lower")
def rank(predictions: Predictions) -> Float[Tensor, " prediction"]:
    """The place of the best answer (or the label) among all classes: 1 for the most likely. Without a gradient."""
    right = _right(predictions)
    own = predictions.logits.gather(-1, right.clamp(min=0)).masked_fill(right < 0, -torch.inf).amax(-1)
    return 1 + (predictions.logits > own[:, None]).sum(-1).double()


@_metric("lower", clean=True)
def kl(predictions: Predictions) -> Float[Tensor, " prediction"]:
    """KL divergence, in nats, from the model as it is to the ablated one: Σ p·(log p − log q) over all classes."""
    assert predictions.clean is not None
    log_p, log_q = predictions.clean.log_softmax(-1), predictions.logits.log_softmax(-1)
    # Where both logits are −∞ (tokens that cannot be), the difference would be NaN.
    gap = torch.where(log_p == log_q, 0, log_p - log_q)
    return (log_p.exp() * gap).double().sum(-1)


def _wide(logits: Tensor) -> Tensor:
    # In 16 bits every loss would be rounded to about three digits.
    return logits if logits.dtype == torch.float64 else logits.float()


def _right(predictions: Predictions) -> Int[Tensor, "prediction answer"]:
    return predictions.labels[:, None] if predictions.answers is None else predictions.answers


def _wrong(predictions: Predictions, name: str) -> Int[Tensor, "prediction answer"]:
    if predictions.wrong is None:
        raise MismatchError(
            f"{name} compares answers with wrong ones, and these batches have none; give al.Batch.prompts(tokens, "
            "answers, wrong)."
        )
    return predictions.wrong


def _sum_over(values: Float[Tensor, "prediction out"], ids: Int[Tensor, "prediction answer"]) -> Tensor:
    """The sum over the classes named; -1 names none."""
    return values.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, 0).sum(-1)


# ---------------------------------------------------------------------- what people give

Given = Mapping[str, Any] | Iterable[str] | str | Callable[..., Any] | None
"""A name, names, a function, or functions and names by the name that their results get."""


def metrics_of(given: Given) -> dict[str, Metric]:
    """Metrics by the names of their results.

    >>> list(metrics_of(["kl", "rank"])), metrics_of({"mine": lambda logits, batch: logits[:, -1, 5]})["mine"].name
    (['kl', 'rank'], 'mine')
    """
    if given is None:
        return {}
    if not isinstance(given, Iterable) and not callable(given):
        raise MismatchError(f"metrics are names out of al.metrics, or functions by name; got {given!r:.60}.")
    if isinstance(given, Mapping):
        made = {
            str(name): replace(_one(each), name=name) if not _is_plain(each) else _one(each)
            for name, each in given.items()
        }
    else:
        listed = [given] if isinstance(given, str) or callable(given) else list(given)
        made = {metric.name: metric for metric in map(_one, listed)}
        if len(made) < len(listed):
            raise MismatchError("two metrics have one name; name them: metrics={'a': first, 'b': second}.")
    for name, metric in made.items():
        if name in ("top1", "cross_entropy") and not metric.is_ours:
            raise MismatchError(f"{name} is measured always; give the metric of your own another name.")
    return made


def identity_of(metric: Metric, batch: Batch, classes: int) -> str:
    """What tells metrics of one name apart: for a function of one's own, what it gives for made-up logits.

    >>> batch = Batch.causal(torch.tensor([[5, 6, 7]]))
    >>> one, other = (Metric(lambda logits, batch, t=token: logits[:, -1, t]) for token in (1, 2))
    >>> identity_of(one, batch, 9) == identity_of(other, batch, 9), identity_of(kl, batch, 9)
    (False, 'kl')
    """
    said = f" {metric.version}" if metric.version > 1 else ""
    if metric.is_ours:
        return f"{metric.name}{said}"
    row = batch.rows(0, 1)
    logits = torch.randn((*row.scored.shape, classes), generator=torch.Generator().manual_seed(0))
    parts = rows_of(metric, logits, row)
    # Three digits: another processor may give other last ones, and a metric that was edited gives other first ones.
    text = " ".join(f"{value:.3g}" for part in parts for value in part.tolist())
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}{said}"


def _is_plain(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, Metric) and given.is_ours)


def _one(given: Any) -> Metric:
    if isinstance(given, str):
        require_known(given, BUILT_IN, "metric")
        return BUILT_IN[given]
    return given if isinstance(given, Metric) else Metric(given)

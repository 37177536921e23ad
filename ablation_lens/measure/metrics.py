"""What an ablation is judged by: a number and a weight for every row of a batch.

A metric of your own is any function `(logits, batch) -> [row]`; those of this module look at scored positions only,
and are called the same way.
"""

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.names import require_known
from ablation_lens.sending import send
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
    """What is asked of a batch: where every scored prediction is made, and what is right and wrong there."""

    row: Int[Tensor, " prediction"]
    column: Int[Tensor, " prediction"]
    labels: Int[Tensor, " prediction"]
    answers: Int[Tensor, "prediction answer"] | None
    wrong: Int[Tensor, "prediction answer"] | None

    @classmethod
    def of(cls, batch: Batch) -> "Asked":
        """The scored predictions, in the order in which indexing by `scored` takes them; an image's is in column 0."""
        row, column = batch.scored.reshape(len(batch.scored), -1).nonzero().unbind(1)
        answers, wrong = (None if ids is None else ids[row] for ids in (batch.answers, batch.wrong))
        return cls(row, column, batch.labels[batch.scored], answers, wrong)

    def to(self, device: torch.device | str) -> "Asked":
        """The same on another device, which is not waited for."""
        return Asked(*(None if part is None else send(part, device) for part in vars(self).values()))  # type: ignore[arg-type]

    def of_all(self, values: Shaped[Tensor, "batch *pos any"]) -> Shaped[Tensor, "prediction any"]:
        """What is there for every prediction, out of what is there for every position, or every image."""
        row, column = self.row.to(values.device), self.column.to(values.device)
        return values[row, column] if values.ndim > 2 else values[row]

    def repeated(self, copies: int) -> "Asked":
        """The same of a batch whose rows come several times, one copy after another."""
        if copies == 1:
            return self
        answers, wrong = (None if ids is None else ids.repeat(copies, 1) for ids in (self.answers, self.wrong))
        places = (self.row.repeat(copies), self.column.repeat(copies))
        return Asked(*places, self.labels.repeat(copies), answers, wrong)

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
        self._require_arguments()
        if not self.name:
            object.__setattr__(self, "name", str(getattr(self.function, "__name__", type(self.function).__name__)))

    def _require_arguments(self) -> None:
        wanted = ("logits", "batch", *(["clean"] if self.clean else [])) if self.whole else ("predictions",)
        try:
            inspect.signature(self.function).bind(*wanted)
        except TypeError:
            raise MismatchError(
                f"a metric is called as function({', '.join(wanted)}), which {self.function!r:.60} does not take."
            ) from None
        except ValueError:  # of functions written in C nobody knows
            return

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
        if self.clean and clean is None:
            raise MismatchError(f"{self.name} compares with the model as it is: give clean=, the logits without it.")
        if self.whole:
            return rows_of(self, logits, batch, clean)[0]
        base = None if clean is None else clean[batch.scored]
        asked, rows = Asked.of(batch), len(batch.inputs)
        values = self.per_prediction(asked.answered(logits[batch.scored], base))
        return asked.per_row(values, rows) / asked.weights(rows)

    def per_prediction(self, predictions: Predictions) -> Float[Tensor, " prediction"]:
        """A value per scored prediction."""
        values = self.function(predictions)
        if not isinstance(values, Tensor) or values.shape != predictions.labels.shape:
            raise MismatchError(
                f"the metric {self.name} gave {_told(values)} for {len(predictions.labels)} predictions; it must give "
                "a number for each."
            )
        return values


def rows_of(
    metric: Metric, logits: Float[Tensor, "batch *pos out"], batch: Batch, clean: Tensor | None = None
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """What a function of one's own gives for a batch, and its weights: 1, if it does not give any."""
    try:
        given = metric.function(logits, batch, *([clean] if metric.clean else []))
    except Exception as error:
        error.add_note(f"(raised by the metric {metric.name}, for a batch of {len(batch.inputs)} rows)")
        raise
    values, weights = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    expected = (len(batch.inputs),)
    for part in (values, weights):
        if part is not None and (not isinstance(part, Tensor) or tuple(part.shape) != expected):
            raise MismatchError(
                f"the metric {metric.name} gave {_told(part)} for {expected[0]} rows; it must give one number per row: "
                f"a tensor of shape {expected}, without a mean over the batch."
            )
    assert isinstance(values, Tensor)
    if weights is not None and not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise MismatchError(f"the metric {metric.name} gave a weight that is negative or not a number.")
    return values, torch.ones_like(values, dtype=torch.float64) if weights is None else weights


def _told(given: Any) -> str:
    return f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__


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


@_metric("higher")
def top10(predictions: Predictions) -> Float[Tensor, " prediction"]:
    """1 where fewer than ten classes are likelier than the label, 0 elsewhere. Without a gradient.

    Where the label is as likely as others it comes first of them, as in `rank`. Of ten classes or fewer it is always 1.
    """
    own = predictions.logits.gather(-1, predictions.labels[:, None])
    return ((predictions.logits > own).sum(-1) < 10).double()


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
    """What tells metrics of one name apart: of a function of one's own, its code and what it gives for made-up logits.

    Neither is enough: other code may give the same, and equal code other values, by something that it reads.

    >>> batch = Batch.causal(torch.tensor([[5, 6, 7]]))
    >>> one, other = (Metric(lambda logits, batch, t=token: logits[:, -1, t]) for token in (1, 2))
    >>> identity_of(one, batch, 9) == identity_of(other, batch, 9), identity_of(kl, batch, 9)
    (False, 'kl')
    """
    said = f" {metric.version}" if metric.version > 1 else ""
    if metric.is_ours:
        return f"{metric.name}{said}"
    row, generator = batch.rows(0, 1), torch.Generator().manual_seed(0)
    text = _code(metric.function)
    for sharpness in (1, 10):
        logits, clean = (sharpness * torch.randn((*row.scored.shape, classes), generator=generator) for _ in range(2))
        parts = rows_of(metric, logits, row, clean)
        # Three digits: another processor may give other last ones.
        text += " ".join(f"{value:.3g}" for part in parts for value in part.tolist())
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}{said}"


def _code(value: Any, depth: int = 0) -> str:
    """What a function does, and the plain values that it reads, as far as that can be said."""
    if isinstance(value, int | float | str | bytes | bool | None):
        return repr(value)
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if depth > 4:
        return type(value).__name__
    if isinstance(value, tuple | list | set | frozenset):
        listed = [_code(each, depth + 1) for each in value]
        return str(listed if isinstance(value, tuple | list) else sorted(listed))
    if isinstance(value, Mapping):
        return str([(str(name), _code(each, depth + 1)) for name, each in value.items()])
    if isinstance(value, types.CodeType):
        return f"{value.co_code.hex()} {value.co_names} {_code(value.co_consts, depth + 1)}"
    if isinstance(value, functools.partial):
        return _code((value.func, value.args, value.keywords), depth + 1)
    if isinstance(value, types.FunctionType):
        read = [value.__globals__.get(name) for name in value.__code__.co_names]
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return _code((value.__code__, value.__defaults__, closed, read), depth + 1)
    if isinstance(value, types.MethodType):
        return _code((value.__func__, value.__self__), depth + 1)
    if isinstance(value, types.ModuleType | type):
        return value.__name__
    call = vars(type(value)).get("__call__")
    return _code((getattr(value, "__dict__", None), call), depth + 1)


def _is_plain(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, Metric) and given.is_ours)


def _one(given: Any) -> Metric:
    if isinstance(given, str):
        require_known(given, BUILT_IN, "metric")
        return BUILT_IN[given]
    return given if isinstance(given, Metric) else Metric(given)

"""`Damage`: what ablations cost, mask by mask and document by document, so that two are compared in pairs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.scores import Scores
from ablation_lens.measure.intervals import Interval, difference
from ablation_lens.measure.metrics import BUILT_IN
from ablation_lens.measure.score import Score
from ablation_lens.names import require_known


# eq=False: `==` of two arrays is an array, and has no single truth value.
@dataclass(frozen=True, eq=False)
class Damage:
    """A metric summed per document under several masks, turned so that more is worse.

    >>> damage = Damage(np.array([[3.0, 1.0], [2.0, 2.0]]), np.array([1, 1]))
    >>> damage.mean, damage.minus(Damage(damage.sums - 0.5, damage.weights)).low
    (2.0, 0.5)
    """

    sums: Float[ndarray, "mask document"]
    weights: Float[ndarray, " document"]
    turned: bool = False
    """Whether the sums are those of the metric times −1, as higher values of it are better."""

    @classmethod
    def of(cls, scores: Sequence[Score], metric: str) -> "Damage":
        """Of scores of the same documents."""
        sums = [score.sums(metric) for score in scores]
        turned = BUILT_IN[metric].better == "higher"
        values = np.stack([each.values.double().numpy() for each in sums])
        return cls(-values if turned else values, sums[0].weights.numpy(), turned)

    @classmethod
    def average(cls, parts: Sequence["Damage"]) -> "Damage":
        """The mean of several, mask by mask and document by document."""
        return replace(parts[0], sums=np.mean([part.sums for part in parts], axis=0))

    @property
    def mean(self) -> float:
        """The mean over masks; more is worse."""
        return float((self.sums.sum(1) / self.weights.sum()).mean())

    @property
    def metric(self) -> float:
        """The same, of the metric as it is written."""
        return -self.mean if self.turned else self.mean

    def minus(self, other: "Damage") -> Interval:
        """How much worse than another under the same masks, with the interval over masks and documents."""
        # A single one has no masks, as that of the model as it is: it stands beside every mask.
        one, two = np.broadcast_arrays(self.sums, other.sums)
        return difference(one, two, self.weights)


def damage_of(
    scores: Scores,
    ablation: Ablation | None,
    masks: Iterable[Bool[Tensor, "layer head dim"]],
    metric: str,
    advance: Callable[[int], None],
) -> Damage:
    """An ablation's values under several masks; None is the model as it is, once."""
    found = []
    for made in [None] if ablation is None else (replace(ablation, mask=mask) for mask in masks):
        found.append(scores.of(made))
        advance(1)
    return Damage.of(found, metric)


def extra_metrics(metric: str) -> list[str]:
    """What is to be measured beside top-1 and cross-entropy, so that this metric is there."""
    require_known(metric, BUILT_IN, "metric")
    return [] if metric in ("top1", "cross_entropy") else [metric]


def unit_of(metric: str) -> str:
    """What differences of a metric are written in."""
    return "nats" if metric in ("cross_entropy", "kl") else metric


def require_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """The seeds of masks: at least one, each once."""
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise MismatchError(f"seeds={seeds!r:.60} are not possible; give whole numbers, such as range(5).")
    found = tuple(seeds)
    if not found or len(set(found)) < len(found):
        raise MismatchError(f"seeds are {list(found)}; give one or more whole numbers, each once.")
    return found

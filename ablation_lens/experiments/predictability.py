"""`predict_constants`: whether the best constant of a neuron can be read off the shape of its distribution."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.neurons.statistics import ActivationStatistics

if TYPE_CHECKING:
    import pandas

FEATURES = ("zero", "median", "peak", "peak-kde")
"""Where these centers are, beside the mean and in σ; skew and L-kurtosis come besides."""

FOLDS = 10


@dataclass(frozen=True, repr=False)
class Predictability:
    """How much of where the best constants are, beside the mean, follows from a neuron's shape.

    Attributes:
        neurons: how many were looked at: those that vary.
        spread: of (constant − mean)/σ over neurons: its standard deviation.
        explained: feature → share of that variance which it predicts in neurons that it was not fitted to; below 0
            where the plain average predicts better. "all" are all features together.
        repeated: the share that a second learning, by other seeds, predicts as it stands: what is not chance.
    """

    neurons: int
    spread: float
    explained: Mapping[str, float]
    repeated: float | None

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row per feature."""
        import pandas

        return pandas.DataFrame(list(self._rows()), columns=["feature", "explained"])

    def __repr__(self) -> str:
        told = [f"  {on_one_line(str(name)):<20} {share:+.3f}" for name, share in self._rows()]
        head = (
            f"Best constants of {self.neurons:,} neurons lie {self.spread:.2f} σ (sd) beside their means; of this "
            "variance is predicted by"
        )
        return "\n".join([head, *told])

    def _rows(self) -> Iterator[tuple[str, float]]:
        yield from self.explained.items()
        if self.repeated is not None:
            yield "a second learning", self.repeated


def predict_constants(
    statistics: ActivationStatistics,
    constants: Float[Tensor, "layer head dim"],
    again: Float[Tensor, "layer head dim"] | None = None,
) -> Predictability:
    """Fit where the best constants are by the shape of neurons, and judge the fit on other neurons.

    Args:
        statistics: of the distributions.
        constants: the best ones, as `al.learn` finds them.
        again: the same, learned with another seed, which tells how much of them is chance.

    >>> values = torch.randn(500, 1, 1, 40, generator=torch.Generator().manual_seed(0))
    >>> stats = ActivationStatistics.of_values(values + torch.arange(40.0))
    >>> predict_constants(stats, stats.mean - 0.5 * stats.mean).explained["zero"] > 0.99
    True
    """
    for given in (constants, *([] if again is None else [again])):
        if tuple(given.shape) != statistics.shape:
            raise MismatchError(
                f"constants of shape {tuple(given.shape)} were given; expected one per neuron, {statistics.shape}."
            )
    moves = (statistics.std > 0).flatten()
    count = int(moves.sum())
    if count < 2 * FOLDS:
        raise MismatchError(
            f"there are {count} neurons that vary, and at least {2 * FOLDS} are needed to fit and judge."
        )

    def beside(values: Tensor) -> Float64[ndarray, " neuron"]:
        moved = (values.double().cpu() - statistics.mean) / statistics.std.clamp(min=torch.finfo(torch.float64).tiny)
        return moved.flatten()[moves].numpy()

    target, shapes = beside(constants), statistics.shapes()
    features = {name: beside(statistics.center(name)) for name in FEATURES}
    features |= {name: getattr(shapes, name).double().flatten()[moves].numpy() for name in ("skew", "l_kurtosis")}
    features = {name: np.nan_to_num(values) for name, values in features.items()}
    explained = {name: _explained(values[:, None], target) for name, values in features.items()}
    explained["all"] = _explained(np.stack(list(features.values()), 1), target)
    repeated = None
    if again is not None:
        variance = float(np.square(target - target.mean()).sum())
        repeated = 1 - float(np.square(target - beside(again)).sum()) / variance if variance else math.nan
    return Predictability(count, float(target.std()), explained, repeated)


def _explained(features: Float64[ndarray, "neuron feature"], target: Float64[ndarray, " neuron"]) -> float:
    """1 − squared error / variance, in neurons that a linear fit has not seen."""
    # Ranks and not values: a few neurons are far out, and would bend the fit.
    ranked = np.argsort(np.argsort(features, axis=0, kind="stable"), axis=0, kind="stable") / len(target)
    columns = np.concatenate([np.ones((len(target), 1)), features.clip(-5, 5), ranked], axis=1)
    folds = np.random.Generator(np.random.PCG64(0)).permutation(len(target)) % FOLDS
    predicted = np.empty_like(target)
    for fold in range(FOLDS):
        inside = folds == fold
        fitted, *_ = np.linalg.lstsq(columns[~inside], target[~inside], rcond=None)
        predicted[inside] = columns[inside] @ fitted
    variance = float(np.square(target - target.mean()).sum())
    return 1 - float(np.square(target - predicted).sum()) / variance if variance else math.nan

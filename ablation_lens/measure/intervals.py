"""How sure a difference between two methods is: a bootstrap over masks and documents."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

ENOUGH_SEEDS = 10
"""With fewer masks than this, an interval speaks of the masks drawn and no others."""
RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A difference and its 95 % interval.

    The ends are NaN where one document and few masks say nothing of others. `conditional` says that only documents were
    resampled: the interval holds for the masks that were drawn.
    """

    difference: float
    low: float
    high: float
    conditional: bool

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is distinguishable from none."""
        return self.low > 0 or self.high < 0


def difference(
    first: Float[ndarray, "seed document"],
    second: Float[ndarray, "seed document"],
    predictions: Int[ndarray, " document"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of mean(first) − mean(second), where a seed's value is its sum over documents per prediction.

    Both methods were measured with the same masks on the same documents, so both are drawn together for the two.
    Every seed saw every document: seeds and documents are crossed, and a replicate draws seeds, then one set of
    documents for all of them. Ratios are recomputed in every replicate.

    >>> loss = np.array([[3.0, 1.0, 2.0], [2.0, 2.0, 2.0]])
    >>> interval = difference(loss + 0.5, loss, np.array([1, 1, 1]))
    >>> interval.low, interval.high, interval.conditional
    (0.5, 0.5, True)
    """
    # Named, because NumPy may let `default_rng` take another bit generator one day.
    generator = np.random.Generator(np.random.PCG64(seed))
    seeds, documents = first.shape
    gap = np.asarray(first - second, dtype=np.float64)
    observed = float((gap.sum(1) / predictions.sum()).mean())
    # How often each document is drawn, instead of which: one matrix product then makes all replicates.
    drawn = generator.multinomial(documents, np.full(documents, 1 / documents), size=resamples).astype(np.float64)
    conditional = seeds < ENOUGH_SEEDS
    if conditional and np.count_nonzero(predictions) < 2:
        # Drawn again and again, one document is always itself: that says nothing of others.
        return Interval(observed, math.nan, math.nan, conditional)
    weights = np.full((resamples, seeds), 1 / seeds)
    if not conditional:
        weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    total = drawn @ predictions
    # A replicate of documents none of which holds a prediction has no ratio.
    ratios = (drawn @ gap.T)[total > 0] / total[total > 0, None]
    replicates = (ratios * weights[total > 0]).sum(1)
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Interval(observed, float(low), float(high), conditional)


def mean_intervals(
    sums: Float[ndarray, "unit row"], weights: Float[ndarray, " row"], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Float[ndarray, " unit"], Float[ndarray, " unit"]]:
    """The 95 % interval of many weighted means over the same rows; every replicate draws rows once for all of them.

    NaN where one row says nothing of others.

    >>> low, high = mean_intervals(np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([1.0, 1.0]))
    >>> low.tolist(), high.tolist()
    ([1.0, 2.0], [3.0, 2.0])
    """
    if np.count_nonzero(weights) < 2:
        return np.full(len(sums), math.nan), np.full(len(sums), math.nan)
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = len(weights)
    drawn = generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)
    total = drawn @ weights
    replicates = (drawn @ sums.T)[total > 0] / total[total > 0, None]
    low, high = np.quantile(replicates, [0.025, 0.975], axis=0)
    return low, high


def bootstrap_means(
    sums: Float[ndarray, "quantity row"],
    weights: Float[ndarray, "quantity row"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[ndarray, "quantity resample"]:
    """Weighted means of several quantities over the same rows, in replicates of which each draws rows once for all.

    What is computed of them replicate by replicate, such as a ratio, is thereby paired. Nothing is left where fewer
    than two rows count: drawn again and again, one row says nothing of others. Rows are taken to be of different
    inputs; equal ones say less of others than their number, which is not seen here.

    >>> means = bootstrap_means(np.array([[1.0, 3.0], [2.0, 6.0]]), np.ones((2, 2)))
    >>> bool((means[1] == 2 * means[0]).all()), bootstrap_means(np.ones((1, 1)), np.ones((1, 1))).shape
    (True, (1, 0))
    """
    if np.count_nonzero(weights.any(0)) < 2:
        return np.empty((len(sums), 0))
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = weights.shape[1]
    parts = []
    # Some at a time, which draws the same ones: all of them would be a gigabyte for a corpus of documents.
    at_once = max(1, _DRAWN_AT_ONCE // rows)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = generator.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
        total = drawn @ weights.T
        # A replicate of rows none of which counts has no mean.
        whole = (total > 0).all(1)
        parts.append(((drawn @ sums.T)[whole] / total[whole]).T)
    return np.concatenate(parts, axis=1)

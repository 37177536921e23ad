"""What is forgotten and what is retained along steps of pruning: drops, how far they part, and the area between.

Arrays are `[run step *resample]`: step 0 is the model as it is, and replicates of a bootstrap are a last axis that
everything is computed along, so that whatever is compared is paired.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ablation_lens.measure.intervals import bootstrap_means


def relative_drop(metric: Float[ndarray, "run step *resample"], *, better: str) -> Float[ndarray, "run step *resample"]:
    """How much worse a metric is than at step 0, as a share of what it was there; NaN where that was 0.

    >>> relative_drop(np.array([[0.5, 0.4, 0.6]]), better="higher").round(3).tolist()
    [[0.0, 0.2, -0.2]]
    >>> relative_drop(np.array([[2.0, 3.0]]), better="lower").tolist()
    [[0.0, 0.5]]
    """
    first = metric[:, :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        drop: ndarray = (first - metric if better == "higher" else metric - first) / first
    return np.where(first == 0, np.nan, drop)


def furthest(
    forget_drop: Float[ndarray, "run step *resample"], retain_drop: Float[ndarray, "run step *resample"]
) -> Float[ndarray, "run *resample"]:
    """max Δ: over all steps, the first one with nothing pruned among them, the most by which forgetting is ahead.

    >>> furthest(np.array([[0.0, 0.5, 0.9]]), np.array([[0.0, 0.1, 0.8]])).tolist()
    [0.4]
    """
    found: ndarray = (forget_drop - retain_drop).max(1)
    return found


def area_under(
    forget: Float[ndarray, "run step *resample"], retain: Float[ndarray, "run step *resample"]
) -> Float[ndarray, "run *resample"]:
    """The area under the retain-against-forget curve, over half of the product of the two at step 0.

    The curve goes from (F₀, R₀) through every step's (F, R), and from the last of them straight to (0, 0), as if what
    is left were lost in proportion: the area is that of the polygon (0, 0), (F₀, 0), (F₀, R₀), …, (0, 0), with its
    sign. So 2 is forgetting all before anything else is lost, 1 losing both in proportion (or neither), and 0 losing
    everything else first.

    >>> both = np.array([[1.0, 0.5]]), np.array([[0.8, 0.4]])
    >>> area_under(*both).item(), area_under(np.array([[0.5, 0.0]]), np.array([[0.8, 0.8]])).item()
    (1.0, 2.0)
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = forget / forget[:, :1], retain / retain[:, :1]
    area: ndarray = 1 + (x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]).sum(1)
    return area


def resampled(
    sums: Float[ndarray, "run step document"], weights: Float[ndarray, " document"], *, seed: int
) -> Float[ndarray, "run step resample"]:
    """The metric in replicates that draw documents again, the same ones for all runs and steps.

    >>> resampled(np.ones((2, 3, 4)), np.ones(4), seed=0).shape
    (2, 3, 2000)
    """
    flat = sums.reshape(-1, sums.shape[-1])
    return bootstrap_means(flat, np.broadcast_to(weights, flat.shape), seed=seed).reshape(*sums.shape[:2], -1)


def where_both_are(
    forget: Float[ndarray, "run step resample"], retain: Float[ndarray, "run step other"]
) -> tuple[Float[ndarray, "run step both"], Float[ndarray, "run step both"]]:
    """As many replicates of both, without those in which a metric begins at 0: nothing is relative to that.

    >>> forget, retain = np.ones((1, 2, 5)), np.ones((1, 2, 4))
    >>> forget[..., 0] = 0
    >>> [each.shape for each in where_both_are(forget, retain)]
    [(1, 2, 3), (1, 2, 3)]
    """
    # The documents of the two corpora are drawn apart, so any replicate of one may stand beside any of the other.
    count = min(forget.shape[-1], retain.shape[-1])
    forget, retain = forget[..., :count], retain[..., :count]
    possible = (forget[:1, 0] > 0).all(0) & (retain[:1, 0] > 0).all(0)
    return forget[..., possible], retain[..., possible]


def ends(replicates: Float[ndarray, "*quantity resample"]) -> Float[ndarray, "*quantity 2"]:
    """Where 95 % intervals begin and end; NaN where there are no replicates.

    >>> ends(np.arange(101.0)).tolist(), ends(np.empty((3, 0))).shape
    ([2.5, 97.5], (3, 2))
    """
    if not replicates.shape[-1]:
        return np.full((*replicates.shape[:-1], 2), math.nan)
    return np.moveaxis(np.quantile(replicates, [0.025, 0.975], axis=-1), 0, -1)

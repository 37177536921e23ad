"""Where a measured curve is lowest, how high it is there, and how it grows away from there: plain numbers, no model."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

LEAST_POINTS = 5
"""Fewer points along a curve say little of where it is lowest."""


@dataclass(frozen=True, eq=False)
class Lowest:
    """The lowest place of each of many curves over the same points.

    Attributes:
        place: where it is; an end of the points where the curve still falls there.
        height: the curve there.
        at_edge: whether the lowest point is the first or the last, so that the minimum may lie beyond.
    """

    place: Float[ndarray, "*curve"]
    height: Float[ndarray, "*curve"]
    at_edge: Bool[ndarray, "*curve"]


def find_lowest(points: Float[ndarray, " point"], heights: Float[ndarray, "*curve point"]) -> Lowest:
    """The vertex of the parabola through the lowest point and its two neighbours.

    >>> points = np.array([-2.0, -1.0, 0.0, 1.0, 3.0])
    >>> found = find_lowest(points, 2 * (points - 0.25) ** 2 + 1)
    >>> float(found.place), float(found.height), bool(found.at_edge)
    (0.25, 1.0, False)
    >>> bool(find_lowest(points, -points).at_edge)
    True
    """
    last = len(points) - 1
    least = heights.argmin(-1)
    at_edge = (least == 0) | (least == last)
    middle = least.clip(1, last - 1)
    x = points[np.stack([middle - 1, middle, middle + 1], -1)]
    y = np.take_along_axis(heights, np.stack([middle - 1, middle, middle + 1], -1), -1)
    left, right = (y[..., 1] - y[..., 0]) / (x[..., 1] - x[..., 0]), (y[..., 2] - y[..., 1]) / (x[..., 2] - x[..., 1])
    bend = (right - left) / (x[..., 2] - x[..., 0])
    # Three equal heights have no vertex: any place will do, so the point itself.
    flat = bend <= 0
    slope = left + bend * (x[..., 1] - x[..., 0])  # at the lowest point
    step = np.where(flat | at_edge, 0, -slope / np.where(flat, 1, 2 * bend))
    height = np.take_along_axis(heights, least[..., None], -1)[..., 0]
    return Lowest(points[least] + step, height + np.where(at_edge | flat, 0, slope * step / 2), at_edge)


@dataclass(frozen=True)
class Growth:
    """How a curve grows, beside the working model: height + bend · (c − place)².

    Attributes:
        bend: of the parabola that fits all points best, per σ².
        explained: the share of the curve's variance that this parabola explains (R²).
        power: how the curve grows with the distance from its minimum, as an exponent, over points at least 1 σ away;
            2 is the working model. NaN where the minimum is at an edge.
    """

    bend: float
    explained: float
    power: float


def describe_growth(points: Float[ndarray, " point"], heights: Float[ndarray, " point"]) -> Growth:
    """A curve beside a parabola.

    >>> points = np.linspace(-4.0, 4.0, 9)
    >>> found = describe_growth(points, 3 * points**2 + 1)
    >>> round(found.bend, 6), round(found.explained, 6), round(found.power, 6)
    (3.0, 1.0, 2.0)
    """
    fitted = np.polynomial.Polynomial.fit(points, heights, 2)
    residual, total = ((heights - fitted(points)) ** 2).sum(), ((heights - heights.mean()) ** 2).sum()
    lowest = find_lowest(points, heights)
    away = np.abs(points - lowest.place)
    far = (away >= 1) & (heights > lowest.height)
    power = math.nan
    if not lowest.at_edge and far.sum() >= 2:
        power = float(np.polyfit(np.log(away[far]), np.log(heights[far] - lowest.height), 1)[0])
    return Growth(
        # (a constant curve comes back without its coefficients of zero)
        bend=float([*fitted.convert().coef, 0, 0, 0][2]),
        explained=float(1 - residual / total) if total > 0 else math.nan,
        power=power,
    )

"""Groups of exactly equal size: the cheapest assignment of things to groups, and the groups that hold most affinity.

With equal sizes, k-means and the partition of a graph are one problem: Σ‖x − center‖² is least where the groups hold
most of the matrix of inner products x·x'. So one search does for both.
"""

import hashlib
import itertools
import random

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ablation_lens.errors import MismatchError

_LEAST = 1e-9
"""Of all affinity: what a step must win, so that rounding makes nobody go in circles."""


_TRIES = 16
"""So many things are drawn for every seed, and the best is taken."""


# ---------------------------------------------------------------------- the assignment


def assign(
    cost: Float64[ndarray, "thing group"], prices: Float64[ndarray, " group"] | None = None
) -> tuple[Int64[ndarray, " thing"], Float64[ndarray, " group"]]:
    """Every thing's group, equally many in each, at the least total cost; and prices of the groups.

    The optimum is exact, as that of `scipy.optimize.linear_sum_assignment` over things × places, and much cheaper:
    everything goes where cost plus price is least, and groups that got too many send some on, along the cheapest
    chain of moves to a group that got too few. Prices of a similar problem save most of these moves.

    >>> assign(np.array([[0.0, 3], [0, 2], [0, 1], [0, 5]]))[0].tolist()
    [0, 1, 1, 0]
    """
    things, groups = cost.shape
    size = things // groups
    prices = np.zeros(groups) if prices is None else prices.copy()
    label: Int64[ndarray, " thing"] = (cost + prices).argmin(1)
    counts = np.bincount(label, minlength=groups)
    if things != size * groups or not np.isfinite(cost).all():
        raise MismatchError(f"{things} things cannot be put into {groups} groups of equal size by these costs.")
    # What it takes to move one thing from a group to another: the thing for which that costs least, and how much.
    step, mover = np.full((groups, groups), np.inf), np.zeros((groups, groups), dtype=np.int64)

    def look_again(group: int) -> None:
        members = np.flatnonzero(label == group)
        step[group] = np.inf
        if len(members):
            extra = cost[members] - cost[members, group][:, None]
            best = extra.argmin(0)
            step[group], mover[group] = extra[best, np.arange(groups)], members[best]

    for group in range(groups):
        look_again(group)
    while (counts > size).any():
        chain, fallen = _cheapest_chain(step, prices, counts, size)
        prices -= fallen
        for giver, taker in itertools.pairwise(chain):
            label[mover[giver, taker]] = taker
        counts[chain[0]] -= 1
        counts[chain[-1]] += 1
        for group in chain:
            look_again(group)
    return label, prices


def _cheapest_chain(
    step: Float64[ndarray, "group group"],
    prices: Float64[ndarray, " group"],
    counts: Int64[ndarray, " group"],
    size: int,
) -> tuple[list[int], Float64[ndarray, " group"]]:
    """Groups from one that has too many to one that has too few, and by how much prices fall (Dijkstra)."""
    distance = np.where(counts > size, 0.0, np.inf)
    before = np.full(len(counts), -1)
    open_ones = distance.copy()
    while True:
        here = int(open_ones.argmin())
        if counts[here] < size:
            break
        open_ones[here] = np.inf
        # Never negative but by rounding: everything is where cost plus price is least.
        through = distance[here] + np.maximum(step[here] + prices - prices[here], 0.0)
        nearer = through < distance
        distance[nearer] = open_ones[nearer] = through[nearer]
        before[nearer] = here
    fallen = np.minimum(distance, distance[here])
    chain = [here]
    while before[chain[0]] >= 0:
        chain.insert(0, int(before[chain[0]]))
    return chain, fallen


# ---------------------------------------------------------------------- the groups


def partition(
    affinity: Float64[ndarray, "thing thing"], size: int, *, restarts: int = 4, seed: int | str = 0
) -> tuple[Int64[ndarray, " thing"], float]:
    """Groups of `size` things that hold as much affinity as can be found, and how much that is per pair.

    Balanced k-means from seeds that are far apart, then exchanges of two things (Kernighan and Lin) while they win
    anything; the best of several restarts. Groups are numbered by their first thing. It is a search: the very best
    groups are found where they stand out, and nobody can promise them elsewhere.

    >>> blocks = np.kron(np.eye(2), np.ones((3, 3)))[[0, 3, 1, 4, 2, 5]][:, [0, 3, 1, 4, 2, 5]]
    >>> partition(blocks, 3)[0].tolist()
    [0, 1, 0, 1, 0, 1]
    """
    weights = np.array(affinity, dtype=np.float64)
    weights += weights.T.copy()
    weights /= 2
    # A thing is in its group wherever that is.
    np.fill_diagonal(weights, 0.0)
    similarity = _similarity(weights)
    groups = len(weights) // size
    best, most = np.zeros(len(weights), dtype=np.int64), -np.inf
    for restart in range(restarts if 1 < groups < len(weights) else 1):
        start = _start(similarity, groups, f"{seed} {restart}")
        label = _exchanged(weights, _centered(weights, start, groups), groups)
        held = _held(_to_groups(weights, label, groups), label)
        if held > most + _LEAST * np.abs(weights).sum():
            best, most = label, held
    _, first, place = np.unique(best, return_index=True, return_inverse=True)
    pairs = len(weights) * (size - 1)
    return first.argsort().argsort()[place], most / pairs if pairs else float("nan")


def _similarity(weights: Float64[ndarray, "thing thing"]) -> Float64[ndarray, "thing thing"]:
    """Cosines of what things have to do with all others; a thing that has nothing to do with any is like none.

    Two things of a group need not be tied to each other, but are tied to the same ones.
    """
    similarity = weights @ weights
    length = np.sqrt(similarity.diagonal())
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    similarity *= scale[:, None]
    similarity *= scale
    return similarity  # type: ignore[no-any-return]


def _start(similarity: Float64[ndarray, "thing thing"], groups: int, seed: str) -> Int64[ndarray, " thing"]:
    """Groups around seeds, each drawn the likelier the farther it is from those before (k-means++)."""
    # `random()` is the one draw that Python promises to keep.
    draw = random.Random(int.from_bytes(hashlib.sha256(f"groups {seed}".encode()).digest(), "big"))
    length = similarity.diagonal()
    chosen: list[int] = []
    away = np.ones(len(similarity))
    for _ in range(groups):
        # Of several that are drawn, the one that leaves the others nearest to a seed.
        tries = {_drawn(away, draw.random()) for _ in range(_TRIES)}
        left = {one: np.minimum(away, np.maximum(length + length[one] - 2 * similarity[one], 0.0)) for one in tries}
        nearest = min(sorted(left), key=lambda one: float(left[one].sum()))
        away = left[nearest]
        chosen.append(nearest)
    return assign(-similarity[:, chosen])[0]


def _drawn(weight: Float64[ndarray, " thing"], place: float) -> int:
    total = weight.cumsum()
    if total[-1] <= 0:  # all that is left equals a seed
        return min(int(place * len(weight)), len(weight) - 1)
    return min(int(np.searchsorted(total, place * total[-1], side="right")), len(weight) - 1)


def _centered(
    weights: Float64[ndarray, "thing thing"], label: Int64[ndarray, " thing"], groups: int
) -> Int64[ndarray, " thing"]:
    """Lloyd's steps: everything to the group it is nearest to, while that wins anything."""
    prices = None
    to_groups = _to_groups(weights, label, groups)
    while True:
        moved, prices = assign(-to_groups, prices)
        after = _to_groups(weights, moved, groups)
        held = _held(to_groups, label)
        if not _held(after, moved) > held + _LEAST * abs(held):
            return label
        label, to_groups = moved, after


def _exchanged(
    weights: Float64[ndarray, "thing thing"], label: Int64[ndarray, " thing"], groups: int
) -> Int64[ndarray, " thing"]:
    """Two things change places, the pair that wins most first, until no pair of any two groups wins anything."""
    # A row per group: whole rows are read and written, which in memory lie side by side.
    label, near = label.copy(), np.ascontiguousarray(_to_groups(weights, label, groups).T)
    own = near[label, np.arange(len(label))]
    least = _LEAST * max(float(np.abs(weights).sum()) / len(weights), np.finfo(float).tiny)
    # Made once: new memory of this size is slow to get.
    wins, tie = np.empty((2, len(label) // groups, len(label)))
    settled = group = 0
    while settled < groups:
        members = np.flatnonzero(label == group)
        np.take(near[:, members].T, label, axis=1, out=wins, mode="clip")
        np.take(weights, members, axis=0, out=tie, mode="clip")
        wins -= tie
        wins -= tie
        wins -= near[group, members][:, None]
        wins += near[group] - own
        wins[:, members] = -np.inf
        place, other = np.unravel_index(wins.argmax(), wins.shape)
        if wins[place, other] > least:
            one, there = members[place], label[other]
            moved = weights[other] - weights[one]
            near[group] += moved
            near[there] -= moved
            label[one], label[other] = there, group
            changed = np.flatnonzero((label == group) | (label == there))
            own[changed] = near[label[changed], changed]
            settled = 0
        else:
            settled += 1
            group = (group + 1) % groups
    return label


def _to_groups(
    weights: Float64[ndarray, "thing thing"], label: Int64[ndarray, " thing"], groups: int
) -> Float64[ndarray, "thing group"]:
    """What every thing has to do with every group, itself left out."""
    return np.stack([weights[label == group].sum(0) for group in range(groups)], axis=1)


def _held(to_groups: Float64[ndarray, "thing group"], label: Int64[ndarray, " thing"]) -> float:
    """The affinity within groups, each pair twice."""
    return float(to_groups[np.arange(len(label)), label].sum())

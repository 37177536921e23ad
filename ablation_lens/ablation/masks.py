"""Which neurons to ablate: boolean masks `[layer head dim]`, `True` = ablated.

Masks are plain tensors, so they combine with `&`, `|` and `~`. Wherever one is taken, names of neurons, heads and
layers are taken too.
"""

import hashlib
import operator
import random
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.sites import Site, neuron_name, parse_head, parse_place

Shape = Sequence[int]


def random_neurons(shape: Shape, fraction: float, seed: int) -> Bool[Tensor, "layer head dim"]:
    """The same share of every layer's neurons, drawn at random.

    Masks of one seed are nested: 20 % holds all of 10 %. The draw is the same on every machine, device and library
    version, and 1.0 is every neuron.

    >>> mask = random_neurons((2, 4, 16), fraction=0.25, seed=42)
    >>> mask.sum((1, 2)).tolist(), bool((mask & ~random_neurons((2, 4, 16), 0.5, 42)).any())
    ([16, 16], False)
    """
    layers, heads, dims = _checked_shape(shape)
    wanted = _share(fraction, heads * dims)
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise MismatchError(f"seed={_told(seed)} is not possible; give a whole number.")
    mask = torch.zeros(layers, heads * dims, dtype=torch.bool)
    for layer in range(layers):
        # Seed and layer as one text: their sum would draw the same neurons for seed 0 in layer 1 and seed 1 in layer 0.
        mask[layer, _permutation(heads * dims, f"{seed} {layer}")[:wanted]] = True
    return mask.view(layers, heads, dims)


def whole_heads(
    shape: Shape, heads: str | tuple[int, int] | Iterable[str | tuple[int, int]]
) -> Bool[Tensor, "layer head dim"]:
    """Every neuron of the named heads, given as `"L3.H5"` or `(3, 5)`.

    >>> whole_heads((2, 4, 16), ["L0.H1", (1, 3)]).sum((1, 2)).tolist()
    [16, 16]
    """
    shape = _checked_shape(shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    for head in _each(heads, "heads", "'L3.H5' or (3, 5)"):
        layer, number = parse_head(head, shape)
        mask[layer, number] = True
    return mask


def named_neurons(
    names: str | tuple[int, ...] | Iterable[str | tuple[int, ...]], shape: Shape, *, site: Site | str = Site.Z
) -> Bool[Tensor, "layer head dim"]:
    """Neurons, whole heads and whole layers by their names; `(3, 5)` will do for `"L3.H5"`.

    MLP neurons are written `L1.M509`, those of other sites without heads `L3.D17`. Under grouped heads, `k` and `v`
    count their own heads.

    >>> named_neurons(["L0.H1.D3", "L1.H2", "L2"], (3, 4, 16)).sum((1, 2)).tolist()
    [1, 16, 64]
    >>> named_neurons("L1.M509", (2, 1, 512), site="mlp").nonzero().tolist()
    [[1, 0, 509]]
    """
    shape = _checked_shape(shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    for name in _each(names, "names", "'L3.H5' or (3, 5)"):
        mask[parse_place(name, shape, site)] = True
    return mask


def as_mask(
    given: Bool[Tensor, "layer head dim"] | str | Iterable[str | tuple[int, ...]],
    shape: Shape,
    *,
    site: Site | str = Site.Z,
) -> Bool[Tensor, "layer head dim"]:
    """A mask as it is, and names as a mask.

    >>> as_mask(["L0.H1"], (1, 2, 3)).int().tolist()
    [[[0, 0, 0], [1, 1, 1]]]
    """
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given.copy()) if given.dtype.kind in "biuf" else given.ravel().tolist()
    if isinstance(given, str) or (isinstance(given, Iterable) and not hasattr(given, "dtype")):
        given = named_neurons(given, shape, site=site)
    if not isinstance(given, Tensor) or given.ndim != 3 or given.dtype != torch.bool:
        got = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise MismatchError(f"a mask is a boolean tensor [layer head dim], or names such as ['L3.H5']; got {got}.")
    return given


def top_neurons(
    scores: Float[Tensor, "layer head dim"], fraction: float, *, largest: bool = True, per_layer: bool = True
) -> Bool[Tensor, "layer head dim"]:
    """The neurons of the highest (or lowest) scores: a share of every layer, or of the whole model.

    Of equal scores the earlier neuron goes first, so these masks are nested too.

    >>> top_neurons(torch.arange(8.0).view(1, 2, 4), fraction=0.25).nonzero().tolist()
    [[0, 1, 2], [0, 1, 3]]
    """
    try:
        scores = torch.as_tensor(scores)
    except (TypeError, ValueError, RuntimeError):
        raise MismatchError(f"scores are {_told(scores)}; expected numbers [layer head dim].") from None
    layers, heads, dims = _checked_shape(scores.shape)
    # torch sorts NaN as the greatest number: such a neuron would be ablated first.
    if bool(torch.isnan(scores).any()):
        place = torch.isnan(scores).nonzero()[0].tolist()
        raise NonFiniteError(f"the score of {neuron_name(*place)} is NaN; rank only what has a number.")
    rows = scores.detach().cpu().reshape(layers if per_layer else 1, -1)
    wanted = _share(fraction, rows.shape[1])
    # Without stable=True torch may put equal scores in any order, and masks of several fractions would not nest.
    order = rows.argsort(dim=1, descending=largest, stable=True)[:, :wanted]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True).view(layers, heads, dims)


def _each(given: Any, what: str, example: str) -> list[Any]:
    """What was given, one by one; a single name, and a tuple of numbers, are one."""
    if isinstance(given, str) or (isinstance(given, tuple) and given and all(hasattr(n, "__index__") for n in given)):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise MismatchError(f"{what} are {_told(given)}; expected one or a list of such as {example}.")
    return list(given)


def _told(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str | bytes | slice | None) else f"a {type(value).__name__}"


def _checked_shape(shape: Shape) -> tuple[int, int, int]:
    try:
        numbers = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise MismatchError(
            f"the shape is {_told(shape)}; expected (layer, head, dim), such as stats.shape or "
            "al.Site.Z.shape(model.cfg)."
        ) from None
    if len(numbers) != 3 or min(numbers) < 1:
        raise MismatchError(f"a mask needs a shape (layer, head, dim) of positive sizes, got {numbers}.")
    return numbers


def _share(fraction: float, total: int) -> int:
    """⌊fraction · total⌋ of the number as written: 0.29 of 100 is 29, though 0.29 · 100 is not."""
    try:
        possible = not isinstance(fraction, str | bytes) and 0 <= float(fraction) <= 1
    except (TypeError, ValueError, RuntimeError):
        possible = False
    if not possible:
        raise MismatchError(f"fraction={_told(fraction)} is not possible; give a number from 0 to 1.")
    return int(Fraction(repr(float(fraction))) * total)


def _permutation(count: int, seed: str) -> list[int]:
    # `random()` is the one draw that Python promises to keep; torch and NumPy promise less.
    generator = random.Random(int.from_bytes(hashlib.sha256(f"neurons {seed}".encode()).digest(), "big"))
    keys = [generator.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)

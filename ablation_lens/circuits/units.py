"""Units: what is taken away as one. A neuron, a head, or a layer of a site; and what people write for it.

An MLP as a whole is the one head of its layer at `Site.MLP`, written `L3.MLP`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.names import require_known
from ablation_lens.sites import Site, neuron_name, parse_place

Level = Literal["neuron", "head", "layer"]
LEVELS: tuple[Level, ...] = get_args(Level)
_WHOLE = re.compile(r"(L\d{1,9})\.(MLP|ATTN)", re.ASCII)


def axes_of(level: str) -> int:
    """How many of `(layer, head, dim)` name a unit.

    >>> axes_of("head")
    2
    """
    require_known(level, LEVELS, "level")
    return 3 - LEVELS.index(level)


def units_of(shape: tuple[int, ...], level: str) -> tuple[int, ...]:
    """How many units a site of this shape has, along the axes that name them.

    >>> units_of((4, 6, 32), "head"), units_of((4, 6, 32), "layer")
    ((4, 6), (4,))
    """
    return tuple(shape)[: axes_of(level)]


def unit_name(site: Site, place: tuple[int, ...]) -> str:
    """How people write a unit.

    >>> unit_name(Site.Z, (3, 5)), unit_name(Site.MLP, (3, 0)), unit_name(Site.Z, (3,)), unit_name(Site.MLP, (3, 0, 7))
    ('L3.H5', 'L3.MLP', 'L3.ATTN', 'L3.M7')
    """
    if len(place) == 3:
        return neuron_name(*place, site)
    if site.has_heads and len(place) == 2:
        return f"L{place[0]}.H{place[1]}"
    return f"L{place[0]}.{'ATTN' if site is Site.Z else site.value.upper()}"


def parse_unit(name: str) -> tuple[Site, tuple[int, ...]]:
    """The inverse: a unit's site and place; `L3` alone is all heads of the layer.

    >>> parse_unit("L3.H5"), parse_unit("L3.MLP"), parse_unit("L3.M7"), parse_unit("L3")
    ((<Site.Z: 'z'>, (3, 5)), (<Site.MLP: 'mlp'>, (3,)), (<Site.MLP: 'mlp'>, (3, 0, 7)), (<Site.Z: 'z'>, (3,)))
    """
    if not isinstance(name, str):
        raise MismatchError(f"{name!r:.60} is not a unit; write it like L3.H5, L3.MLP, L3.H5.D17 or L3.M17.")
    whole = _WHOLE.fullmatch(name.strip())
    site = Site.MLP if (whole and whole[2] == "MLP") or ".M" in name else Site.Z
    return site, parse_place(whole[1] if whole else name, site=site)


def places_of(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every place of an array, the last axis fastest, as `flatten` has them.

    >>> list(places_of((1, 2)))
    [(0, 0), (0, 1)]
    """
    if not shape:
        yield ()
        return
    for first in range(shape[0]):
        for rest in places_of(shape[1:]):
            yield (first, *rest)


def names_of(arrays: Mapping[Site, Tensor]) -> list[tuple[Site, tuple[int, ...]]]:
    """Every unit of arrays by site, one site after another."""
    return [(site, place) for site, array in arrays.items() for place in places_of(tuple(array.shape))]

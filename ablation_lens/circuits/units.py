"""Units: what is taken away as one. A neuron, a head, or a layer of a site; and what people write for it.

An MLP as a whole is the one head of its layer at `Site.MLP`, written `L3.MLP`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from ablation_lens.ablation.places import read_positions
from ablation_lens.errors import MismatchError
from ablation_lens.names import require_known
from ablation_lens.sites import Site, neuron_name, parse_place

Level = Literal["neuron", "head", "layer"]
Span = tuple[int | None, int | None, int | None]
LEVELS: tuple[Level, ...] = get_args(Level)
_WHOLE_SITES = {"ATTN" if site is Site.Z else site.value.upper(): site for site in Site}
_WHOLE = re.compile(rf"(L\d{{1,9}})\.({'|'.join(_WHOLE_SITES)})", re.ASCII)


def axes_of(level: str) -> int:
    """How many of `(layer, head, dim)` name a unit.

    >>> axes_of("head")
    2
    """
    require_known(level, LEVELS, "level")
    return 3 - LEVELS.index(level)


def level_and_sites(level: str, sites: Any) -> tuple[Level, Any]:
    """Where "mlp" is asked for: the layers of that site.

    >>> level_and_sites("head", None), level_and_sites("mlp", None)
    (('head', None), ('layer', [<Site.MLP: 'mlp'>]))
    """
    require_known(level, [*LEVELS, "mlp"], "level")
    if level != "mlp":
        return level, sites  # type: ignore[return-value]
    given = [Site.MLP] if sites is None else [sites] if isinstance(sites, Site | str) else list(sites)
    if [Site.of(site) for site in given] != [Site.MLP]:
        raise MismatchError('level="mlp" is for MLPs alone; for heads besides, give level="head", sites=["z", "mlp"].')
    return "layer", [Site.MLP]


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
    return f"L{place[0]}.{next(name for name, each in _WHOLE_SITES.items() if each is site)}"


def parse_unit(name: str) -> tuple[Site, tuple[int, ...]]:
    """The inverse: a unit's site and place; `L3` alone is all heads of the layer.

    >>> parse_unit("L3.H5"), parse_unit("L3.MLP"), parse_unit("L3.M7"), parse_unit("L3")
    ((<Site.Z: 'z'>, (3, 5)), (<Site.MLP: 'mlp'>, (3,)), (<Site.MLP: 'mlp'>, (3, 0, 7)), (<Site.Z: 'z'>, (3,)))
    """
    if not isinstance(name, str):
        raise MismatchError(f"{name!r:.60} is not a unit; write it like L3.H5, L3.MLP, L3.H5.D17 or L3.M17.")
    whole = _WHOLE.fullmatch(name.strip())
    site = _WHOLE_SITES[whole[2]] if whole else Site.MLP if ".M" in name else Site.Z
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


def positions_to_file(positions: Any) -> tuple[tuple[int, ...] | None, Span | None]:
    """Positions as numbers, or as a slice's start, stop and step; those of single batches are refused.

    >>> positions_to_file((-1,)), positions_to_file(slice(1, None))
    (((-1,), None), (None, (1, None, None)))
    """
    if callable(positions) or isinstance(positions, Tensor):
        raise MismatchError("positions that belong to single batches cannot be saved; give numbers or a slice.")
    span = (positions.start, positions.stop, positions.step) if isinstance(positions, slice) else None
    return positions if isinstance(positions, tuple) else None, span


def positions_of_file(numbers: tuple[int, ...] | None, span: Span | None) -> Any:
    """The inverse; a `MismatchError` where they are not possible."""
    return read_positions(numbers if span is None else slice(*span))


def names_of(arrays: Mapping[Site, Tensor]) -> list[tuple[Site, tuple[int, ...]]]:
    """Every unit of arrays by site, one site after another."""
    return [(site, place) for site, array in arrays.items() for place in places_of(tuple(array.shape))]

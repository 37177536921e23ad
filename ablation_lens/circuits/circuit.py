"""`Circuit`: the neurons that are kept; everything else, at the sites it speaks of, is ablated."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation, Ablations
from ablation_lens.ablation.masks import as_mask
from ablation_lens.ablation.places import describe_positions, read_positions
from ablation_lens.circuits.effects import Effects
from ablation_lens.circuits.units import (
    parse_unit,
    places_of,
    positions_of_file,
    positions_to_file,
    unit_name,
    units_of,
)
from ablation_lens.circuits.values import Statistics, Values, full
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.records import ModelRecord, Record
from ablation_lens.sites import Site

KIND = "circuit"
"""What these files call themselves."""


@dataclass(frozen=True)
class CircuitHeader(Record):
    """What a file says of a circuit beside its masks."""

    sites: tuple[str, ...]
    positions: tuple[int, ...] | None
    span: tuple[int | None, int | None, int | None] | None
    source: ModelRecord | None


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """The neurons that are kept, by site. Of sites that a circuit does not speak of, everything is kept.

    Circuits of the same sites combine: `a | b`, `a & b`, `a - b`, and `~a` is the rest of the model.

    An MLP as a whole is all of its neurons. Setting them to zero leaves its output bias in the stream, and setting a
    layer's heads to zero leaves that of attention: this is not the same as zeroing `mlp_out` or `attn_out`.

    Attributes:
        kept: site, or its name → mask `[layer head dim]`, `True` = kept.
        positions: what is outside is ablated at these positions only; what `Ablation.at` takes. None for all.
        source: the model it was found in.

    >>> circuit = Circuit({"z": torch.tensor([[[True, True], [False, False]]])})
    >>> circuit, ~circuit
    (Circuit(z: 1 of 2 heads: L0.H0), Circuit(z: 1 of 2 heads: L0.H1))
    >>> circuit.outside(0.0)
    Ablation(2 of 4 neurons in 1 layer → 0)
    """

    kept: Mapping[Site, Bool[Tensor, "layer head dim"]]
    positions: Any = None
    source: ModelRecord | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kept, Mapping) or not self.kept:
            raise MismatchError('a circuit is masks by site, such as {"z": mask, "mlp": mask}; True is kept.')
        kept = {}
        for name, mask in self.kept.items():
            if not hasattr(mask, "shape"):
                raise MismatchError("a circuit holds masks; of names it is made by Circuit.of_heads(names, model).")
            kept[Site.of(name)] = as_mask(mask, tuple(mask.shape), site=Site.of(name))
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "positions", read_positions(self.positions))

    # ------------------------------------------------------------------ how one is made

    @classmethod
    def of(cls, model: Any, keep: bool, sites: Iterable[Site | str] = (Site.Z,), positions: Any = None) -> "Circuit":
        """Everything, or nothing, of some sites of a model.

        >>> from ablation_lens import load_model
        >>> Circuit.of(load_model("tiny-opt"), True, ["z", "mlp"])
        Circuit(z: all 16 heads; mlp: all 4 MLPs)
        """
        listed = [sites] if isinstance(sites, Site | str) else sites
        return cls({Site.of(site): full(Site.of(site), model.cfg, keep) for site in listed}, positions)

    @classmethod
    def of_heads(
        cls,
        names: str | Iterable[str],
        model: Any,
        *,
        sites: Iterable[Site | str] | None = None,
        positions: Any = None,
    ) -> "Circuit":
        """The units of these names: heads `L3.H5`, MLPs `L3.MLP`, all heads of a layer `L3`, neurons `L3.H5.D17`.

        Args:
            names: what is kept.
            model: whose they are.
            sites: what the circuit speaks of; None for those of the names. With `["z", "mlp"]` and names of heads
                alone, every MLP is outside.
            positions: see `Circuit`.

        >>> from ablation_lens import load_model
        >>> model = load_model("tiny-opt")
        >>> Circuit.of_heads(["L0.H1", "L2.MLP"], model)
        Circuit(z: 1 of 16 heads: L0.H1; mlp: 1 of 4 MLPs: L2.MLP)
        """
        units = [parse_unit(name) for name in ([names] if isinstance(names, str) else names)]
        spoken = list(dict.fromkeys(site for site, _ in units)) if sites is None else [Site.of(site) for site in sites]
        if not spoken:
            raise MismatchError('no unit is named, so what the circuit speaks of is unknown; give sites=["z"].')
        masks = {site: full(site, model.cfg, False) for site in spoken}
        for site, place in units:
            if site not in masks:
                raise MismatchError(f"{unit_name(site, place)} is at {site.value}, of which sites= does not speak.")
            shape = site.shape(model.cfg)
            if any(number >= most for number, most in zip(place, shape, strict=False)):
                raise MismatchError(f"{unit_name(site, place)} does not exist: {site.value} has the shape {shape}.")
            masks[site][place] = True
        return cls(masks, positions)

    @classmethod
    def top(
        cls,
        effects: Effects,
        *,
        count: int | None = None,
        share: float | None = None,
        absolute: bool = False,
        model: Any = None,
        positions: Any = None,
    ) -> "Circuit":
        """The units that matter most: whose effects are the largest shares of m(∅) − m(M).

        The metric's sign does not matter. Of equal effects the earlier unit goes first, so that circuits of more units
        hold those of fewer.

        Args:
            effects: of heads, layers or neurons; all sites are ranked together.
            count: so many units, or
            share: this share of them, rounded down, from 0 to 1.
            absolute: rank by size, whatever the direction: units that hold the metric back are kept, too.
            model: needed for effects of heads and layers, which do not say how many dims there are, unless they know
                their model.
            positions: see `Circuit`; None for those at which the effects were measured, and slice(None) for all.
        """
        if (count is None) == (share is None):
            raise MismatchError("say how many units are kept: either count= or share=.")
        if positions is None and isinstance(effects.positions, str):
            raise MismatchError(
                f"these effects were measured{on_one_line(effects.positions)}, which a file cannot hold; give "
                "positions=."
            )
        if not effects.is_whole:
            raise MismatchError("these effects were interrupted, and units not measured cannot be ranked; go on.")
        shares = {site: effects.share(site) for site in effects.sites}
        flat = torch.cat([each.flatten() for each in shares.values()])
        if not bool(torch.isfinite(flat).all()):
            raise MismatchError("some effects are not numbers, so units cannot be ranked.")
        wanted = _count_of(count, share, len(flat))
        order = (flat.abs() if absolute else flat).argsort(descending=True, stable=True)[:wanted]
        chosen = torch.zeros(len(flat), dtype=torch.bool)
        chosen[order] = True
        kept, start = {}, 0
        for site, each in shares.items():
            units = chosen[start : start + each.numel()].view(each.shape)
            start += each.numel()
            shape = _shape_of(effects, site, model)
            kept[site] = units[(...,) + (None,) * (3 - units.ndim)].expand(shape).clone()
        return cls(kept, effects.positions if positions is None else positions, effects.source)

    # ------------------------------------------------------------------ what is done with one

    @property
    def sites(self) -> tuple[Site, ...]:
        """What it speaks of."""
        return tuple(self.kept)

    @property
    def size(self) -> int:
        """How many neurons are kept."""
        return sum(int(mask.sum()) for mask in self.kept.values())

    @property
    def share(self) -> float:
        """Which part of the neurons is kept."""
        return self.size / sum(mask.numel() for mask in self.kept.values())

    def units(self, level: str = "head") -> list[str]:
        """The units of which anything is kept, by their names.

        >>> Circuit({"z": torch.tensor([[[True, False]], [[False, False]]])}).units()
        ['L0.H0']
        """
        return [
            unit_name(site, place)
            for site, mask in self.kept.items()
            for place in places_of(units_of(tuple(mask.shape), level))
            if bool(mask[place].any())
        ]

    def outside(self, values: Any, statistics: Statistics = None) -> Ablation | Ablations:
        """What is to be ablated, so that the circuit alone is left, and to what; `al.evaluate` takes it.

        Args:
            values: whatever `circuits.Values.of` takes, for every site of the circuit.
            statistics: what centers are computed from.
        """
        made = Values.of(values, statistics, sites=self.sites)
        return made.ablation({site: ~mask for site, mask in self.kept.items()}, self.positions)

    def inside(self, values: Any, statistics: Statistics = None) -> Ablation | Ablations:
        """The other way round: the circuit is ablated, and the rest of the model kept."""
        return (~self).outside(values, statistics)

    def without(self, names: str | Iterable[str]) -> "Circuit":
        """The circuit without some units."""
        return self._set(names, False)

    def including(self, names: str | Iterable[str]) -> "Circuit":
        """The circuit with some units more."""
        return self._set(names, True)

    def _set(self, names: str | Iterable[str], value: bool) -> "Circuit":
        kept = {site: mask.clone() for site, mask in self.kept.items()}
        for name in [names] if isinstance(names, str) else names:
            site, place = parse_unit(name)
            if site not in kept:
                raise MismatchError(f"this circuit does not speak of {site.value}, where {name} is.")
            if any(number >= most for number, most in zip(place, kept[site].shape, strict=False)):
                raise MismatchError(f"{name} does not exist: {site.value} has the shape {tuple(kept[site].shape)}.")
            kept[site][place] = value
        return Circuit(kept, self.positions, self.source)

    def random_like(self, seed: int) -> "Circuit":
        """A circuit of as many units, drawn at random for each site: whole heads where it is made of whole heads.

        The draw is the same on every machine.
        """
        kept = {}
        for site, mask in self.kept.items():
            whole = bool((mask.all(-1) == mask.any(-1)).all())
            units = mask.all(-1) if whole else mask
            # `random()` is the one draw that Python promises to keep.
            draw = random.Random(f"circuit {seed} {site.value}")
            keys = [draw.random() for _ in range(units.numel())]
            chosen = sorted(range(units.numel()), key=keys.__getitem__)[: int(units.sum())]
            drawn = torch.zeros(units.numel(), dtype=torch.bool)
            drawn[chosen] = True
            drawn = drawn.view(units.shape)
            kept[site] = drawn[..., None].expand(mask.shape).clone() if whole else drawn
        return Circuit(kept, self.positions, self.source)

    # ------------------------------------------------------------------ sets

    def __or__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, torch.logical_or)

    def __and__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, torch.logical_and)

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, lambda mine, theirs: mine & ~theirs)

    def __invert__(self) -> "Circuit":
        return Circuit({site: ~mask for site, mask in self.kept.items()}, self.positions, self.source)

    def _combined(self, other: "Circuit", how: Callable[[Tensor, Tensor], Tensor]) -> "Circuit":
        if not isinstance(other, Circuit):
            raise MismatchError(f"a circuit combines with circuits, got a {type(other).__name__}.")
        mine, theirs = ({site: tuple(mask.shape) for site, mask in each.kept.items()} for each in (self, other))
        if mine != theirs:
            raise MismatchError(f"these circuits speak of different units: {_told(mine)}, and {_told(theirs)}.")
        if not _same_positions(self.positions, other.positions):
            raise MismatchError("these circuits are for different positions, and cannot be combined.")
        if self.source is not None and other.source is not None:
            self.source.require_same(other.source, "these circuits are of two models")
        kept = {site: how(mask, other.kept[site]) for site, mask in self.kept.items()}
        return Circuit(kept, self.positions, self.source or other.source)

    # ------------------------------------------------------------------ files and people

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        numbers, span = positions_to_file(self.positions)
        header = CircuitHeader(tuple(site.value for site in self.kept), numbers, span, self.source)
        save_tensors(path, KIND, header.to_dict(), {site.value: mask for site, mask in self.kept.items()})

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = CircuitHeader.from_dict(plain)
            if header.positions is not None and header.span is not None:
                raise FileFormatError("it names positions twice")
            kept = {Site(site): tensors[site] for site in header.sites}
            return cls(kept, positions_of_file(header.positions, header.span), header.source)
        except (FileFormatError, KeyError, ValueError, MismatchError) as error:
            raise FileFormatError(f"{path} is not a complete circuit ({error}); find it again.") from error

    def __repr__(self) -> str:
        said = [_described(site, mask) for site, mask in self.kept.items()]
        return f"Circuit({'; '.join(said)}{describe_positions(self.positions)})"


def listed(circuit: Circuit, level: str, most: int = 40) -> str:
    """The units of a circuit in a sentence; of more than `most`, how many there are.

    >>> listed(Circuit({"z": torch.tensor([[[True], [False], [True]]])}), "head")
    'L0.H0, L0.H2'
    """
    names = circuit.units(level)
    return ", ".join(names) if 0 < len(names) <= most else f"{len(names):,} {level}s"


def _count_of(count: int | None, share: float | None, units: int) -> int:
    if count is not None:
        count = _plain(count)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= units:
            raise MismatchError(f"count={count!r} is not possible; give a whole number from 0 to {units:,}.")
        return count
    share = _plain(share)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise MismatchError(f"share={share!r} is not possible; give a number from 0 to 1.")
    return part_of(share, units)


def _plain(number: Any) -> Any:
    """Python's own in place of NumPy's and torch's."""
    return number.item() if hasattr(number, "item") else number


def part_of(share: float, units: int) -> int:
    """How many units a share of them is, rounded down.

    >>> part_of(0.29, 100), part_of(0.1, 16)
    (29, 1)
    """
    # Of the number as written: 0.29 of 100 is 29, though 0.29 * 100 is not.
    return int(Fraction(repr(float(share))) * units)


def _shape_of(effects: Effects, site: Site, model: Any) -> tuple[int, int, int]:
    if effects.level == "neuron":
        layers, heads, dims = effects[site].shape
        return layers, heads, dims
    if model is not None:
        return site.shape(model.cfg)
    if effects.source is None:
        raise MismatchError(f"effects of {effects.level}s do not say how many dims there are; give model=.")
    return site.shape(effects.source)


def _same_positions(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)


def _told(shapes: Mapping[Site, tuple[int, ...]]) -> str:
    return ", ".join(f"{site.value} {shape}" for site, shape in shapes.items())


def _described(site: Site, mask: Tensor) -> str:
    heads, most = mask.any(-1), 8
    total = heads.numel()
    word = "heads" if site.has_heads else ("MLPs" if site is Site.MLP else "layers")
    if not bool((mask.all(-1) == heads).all()):
        return f"{site.value}: {int(mask.sum()):,} of {mask.numel():,} neurons in {int(heads.sum())} {word}"
    kept = int(heads.sum())
    if kept in (0, total):
        return f"{site.value}: {'all' if kept else 'none of'} {total} {word}"
    names = [unit_name(site, tuple(place)) for place in heads.nonzero()[:most].tolist()]
    more = f" and {kept - most} more" if kept > most else ""
    return f"{site.value}: {kept} of {total} {word}: {', '.join(names)}{more}"

"""`Effects`: by how much the metric changes when a unit is taken away, with what tells chance apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ablation_lens.ablation.places import describe_positions, read_positions
from ablation_lens.circuits.units import (
    LEVELS,
    axes_of,
    names_of,
    parse_unit,
    positions_of_file,
    positions_to_file,
    unit_name,
)
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.measure.intervals import Interval, mean_intervals
from ablation_lens.measure.score import Sums
from ablation_lens.names import require_known
from ablation_lens.records import ModelRecord, Record
from ablation_lens.sites import Site

if TYPE_CHECKING:
    import pandas

KIND = "effects"
"""What these files call themselves."""

Method = Literal["knockout", "gradient", "integrated", "graddrop"]
METHODS = ("knockout", "gradient", "integrated", "graddrop")
ADD_UP = ("gradient", "integrated")
"""Methods whose effects of several units together are the sum of theirs."""

_ROWS, _NEURONS = "rows", "neurons"
_PARTS = ("total", "squares", "products")


@dataclass(frozen=True, eq=False)
class NeuronSums:
    """Sums over rows of every neuron's s, s² and s·w, where s is its effect times the row's weight w.

    Mean and interval follow from them, so that memory does not grow with the rows.
    """

    total: Float64[Tensor, "layer head dim"]
    squares: Float64[Tensor, "layer head dim"]
    products: Float64[Tensor, "layer head dim"]

    @classmethod
    def of_rows(cls, rows: Float64[Tensor, "row layer head dim"], weights: Float64[Tensor, " row"]) -> "NeuronSums":
        """Of some rows' effects times weights."""
        rows = rows.double()
        return cls(rows.sum(0), rows.square().sum(0), torch.einsum("r,r...->...", weights.to(rows), rows))

    def __add__(self, other: "NeuronSums") -> "NeuronSums":
        return NeuronSums(self.total + other.total, self.squares + other.squares, self.products + other.products)

    def half_width(self, weights: Float64[Tensor, " row"]) -> Float64[Tensor, "layer head dim"]:
        """Half of a 95 % interval of the mean, by its normal approximation; NaN for a single row."""
        rows, total = int((weights > 0).sum()), weights.sum()
        mean = self.total / total
        spread = self.squares - 2 * mean * self.products + mean.square() * weights.square().sum()
        if rows < 2:
            return torch.full_like(mean, math.nan)
        return 1.959964 * (spread.clamp(min=0) * rows / (rows - 1)).sqrt() / total


@dataclass(frozen=True)
class EffectsHeader(Record):
    """What a file says of effects beside its tensors."""

    method: str
    level: str
    metric: str
    values: str
    sites: tuple[str, ...]
    positions: tuple[int, ...] | None
    span: tuple[int | None, int | None, int | None] | None
    steps: int | None
    source: ModelRecord | None
    collected_on: str | None = None
    positions_told: str | None = None
    """Positions of single batches, which a file does not hold, in words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, known in (("method", self.method, METHODS), ("level", self.level, LEVELS)):
            if value not in known:
                raise ValueError(f"its {name} is {value!r:.60}")
        if not self.sites or any(site not in [each.value for each in Site] for site in self.sites):
            raise ValueError("its sites are unknown")
        if self.positions is not None and self.span is not None:
            raise ValueError("it names positions twice")


@dataclass(frozen=True, eq=False, repr=False)
class Effects:
    """The change of a metric when single units are set to a value: m(without the unit) − m(model).

    `effects["z"]` are the means over rows, weighted as a score is; `effects.table()` lists them with intervals.

    Attributes:
        method: "knockout" (exact), "gradient", "integrated" or "graddrop".
        level: "neuron", "head" or "layer"; an MLP as a whole is the one head of its layer at `Site.MLP`.
        metric: what was measured.
        values: what units were set to, in a word.
        clean: the metric of the model as it is: value times weight of every row, and the weights.
        empty: the same with every unit ablated.
        rows: every row's effect times weight, of heads or layers.
        neurons: sums over rows, of neurons. Attributions of neurons have `rows` of their heads besides.
        done: units that were measured; those that an interruption left out are False.
        positions: where units were ablated; what `Ablation.at` takes. None for all positions; words, where a file could
            not hold them, as they belong to single batches.
        steps: of an attribution, how many points of the path it looked at.
        source: the model.
        collected_on: what the values were made from, in words.
    """

    method: str
    level: str
    metric: str
    values: str
    clean: Sums
    empty: Sums
    rows: Mapping[Site, Float64[Tensor, "row *unit"]] = field(default_factory=dict)
    neurons: Mapping[Site, NeuronSums] = field(default_factory=dict)
    done: Mapping[Site, Bool[Tensor, "*unit"]] = field(default_factory=dict)
    positions: Any = None
    steps: int | None = None
    source: ModelRecord | None = None
    collected_on: str | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where units were taken away."""
        return tuple(self.neurons if self.level == "neuron" else self.rows)

    def __post_init__(self) -> None:
        if not isinstance(self.positions, str):
            object.__setattr__(self, "positions", read_positions(self.positions))

    def __getitem__(self, site: Site | str) -> Float64[Tensor, "*unit"]:
        """The mean effect of every unit of a site; NaN where none was measured."""
        where = Site.of(site)
        require_known(where.value, [each.value for each in self.sites], "site of these effects")
        sums = self.neurons[where].total if self.level == "neuron" else self.rows[where].sum(0)
        means = sums / self.clean.weights.sum()
        return means.masked_fill(~self.done[where], math.nan) if where in self.done else means

    @property
    def is_whole(self) -> bool:
        """Whether every unit was measured."""
        return all(bool(done.all()) for done in self.done.values())

    @property
    def unablated(self) -> float:
        """m(M): the metric of the model as it is."""
        return float(self.clean.values.sum() / self.clean.weights.sum())

    @property
    def total(self) -> float:
        """m(∅) − m(M): what ablating every unit of these sites changes."""
        return float((self.empty.values - self.clean.values).sum() / self.clean.weights.sum())

    @property
    def residual(self) -> float | None:
        """What the effects of an attribution, added up, miss of `total`; None for methods that do not add up.

        The rest is left by the finite number of steps; the gradient alone may miss anything.
        """
        if self.method not in ADD_UP:
            return None
        return sum(float(self[site].sum()) for site in self.sites) - self.total

    @property
    def where(self) -> str:
        """At which positions units were ablated, in words."""
        return self.positions if isinstance(self.positions, str) else describe_positions(self.positions)

    def share(self, site: Site | str) -> Float64[Tensor, "*unit"]:
        """Effects as shares of `total`: 1 is as much as ablating everything, whatever the metric's sign.

        Of "graddrop", whose effects are sizes, shares are sizes, too.
        """
        total = self.total
        if total == 0:
            raise MismatchError(
                f"ablating every unit does not change {self.metric}, so no unit has a share of that change; give "
                "other values or inputs."
            )
        return self[site] / (abs(total) if self.method == "graddrop" else total)

    def interval(self, unit: str) -> Interval:
        """The mean effect of a unit, such as "L3.H5" or "L3.MLP", and its 95 % interval over rows."""
        site, place = parse_unit(unit)
        require_known(site.value, [each.value for each in self.sites], "site of these effects")
        if self.level == "head" and not site.has_heads and len(place) == 1:
            place = (*place, 0)
        shape = tuple(self[site].shape)
        if len(place) != axes_of(self.level) or any(n >= most for n, most in zip(place, shape, strict=True)):
            raise MismatchError(f"there is no {self.level} {unit} among these effects.")
        low, high = self._intervals(site)
        return Interval(float(self[site][place]), float(low[place]), float(high[place]), True)

    def _intervals(self, site: Site) -> tuple[Tensor, Tensor]:
        if self.level == "neuron":
            means, half = self[site], self.neurons[site].half_width(self.clean.weights)
            return means - half, means + half
        rows = self.rows[site]
        low, high = mean_intervals(rows.flatten(1).T.numpy(), self.clean.weights.numpy())
        return tuple(torch.from_numpy(end).view(rows.shape[1:]) for end in (low, high))  # type: ignore[return-value]

    def table(self) -> "pandas.DataFrame":
        """A row per unit: where it is, its effect with a 95 % interval over rows, and its share of `total`.

        Sorted by share, so that what the metric needs most comes first. Intervals of neurons are normal
        approximations, others a bootstrap.
        """
        import pandas

        frames = []
        for site in self.sites:
            effect = self[site]
            low, high = self._intervals(site)
            places = [place for _, place in names_of({site: effect})]
            columns: dict[str, Any] = {"site": site.value}
            for axis, name in enumerate(("layer", "head", "dim")[: effect.ndim]):
                columns[name] = [place[axis] for place in places]
            columns |= {"effect": effect.flatten().numpy(), "low": low.flatten().numpy()}
            columns["high"] = high.flatten().numpy()
            columns["share"] = self.share(site).flatten().numpy() if self.total else math.nan
            index = pandas.Index([unit_name(site, place) for place in places], name=self.level)
            frames.append(pandas.DataFrame(columns, index=index))
        return pandas.concat(frames).sort_values("share", ascending=False, kind="stable")

    def by(self, level: str) -> "Effects":
        """An attribution of larger units, as the sum of their parts'; knock-outs do not add up, and raise."""
        if axes_of(level) > axes_of(self.level):
            raise MismatchError(f"effects of {self.level}s say nothing of a single {level}; measure at that level.")
        if level == self.level:
            return self
        if self.method not in ADD_UP:
            raise MismatchError(
                f"effects by {self.method} do not add up, as units stand in for each other: ask for level={level!r} "
                "when they are measured."
            )
        rows = {site: each.sum(2, keepdim=False) if level == "layer" else each for site, each in self.rows.items()}
        return self._changed(level=level, rows=rows, neurons={}, done={})

    def _changed(self, **changes: Any) -> "Effects":
        return Effects(**{**vars(self), **changes})

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        told = self.where if callable(self.positions) or isinstance(self.positions, Tensor | str) else None
        numbers, span = positions_to_file(None if told else self.positions)
        header = EffectsHeader(
            self.method,
            self.level,
            self.metric,
            self.values,
            tuple(site.value for site in self.sites),
            numbers,
            span,
            self.steps,
            self.source,
            self.collected_on,
            told,
        )
        tensors = {"weights": self.clean.weights, "clean": self.clean.values, "empty": self.empty.values}
        tensors |= {f"{_ROWS}.{site.value}": rows for site, rows in self.rows.items()}
        tensors |= {f"done.{site.value}": done for site, done in self.done.items()}
        for site, sums in self.neurons.items():
            tensors |= {f"{_NEURONS}.{site.value}.{part}": getattr(sums, part) for part in _PARTS}
        save_tensors(path, KIND, header.to_dict(), tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Effects":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = EffectsHeader.from_dict(plain)
            return _of_file(header, tensors)
        except (FileFormatError, KeyError, ValueError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise FileFormatError(f"{path} is not a complete file of effects ({told}); measure them again.") from error

    def __repr__(self) -> str:
        counts = {site: self[site].numel() for site in self.sites}
        told = " and ".join(f"{count:,} {_many(site, self.level, count)}" for site, count in counts.items())
        left = "" if self.is_whole else f", {sum(int((~done).sum()) for done in self.done.values()):,} left out"
        steps = f", {self.steps} steps" if self.steps else ""
        missed = "" if self.residual is None else f" ({self.residual:+.2g} is missed)"
        outcome = f"m(M) = {self.unablated:.4g}, m(∅) − m(M) = {self.total:+.4g}{missed}"
        to = f"{on_one_line(self.values)}{on_one_line(self.where)}"
        head = f"Effects({self.method}{steps}: {on_one_line(self.metric)}, {told}{left} → {to}; {outcome})"
        first = self.table().head(5)
        lines = [
            f"  {name}  {row['effect']:+.4g}  [{row['low']:+.4g}, {row['high']:+.4g}]"
            for name, row in zip(first.index, first.to_dict("records"), strict=True)
        ]
        return "\n".join([head, *lines])


def _many(site: Site, level: str, count: int) -> str:
    """What several units of a site are called."""
    if level == "neuron":
        return f"{site.value} neurons"
    if site is Site.MLP:
        return "MLP" if count == 1 else "MLPs"
    return f"{level}s" if site.has_heads else f"layers of {site.value}"


def _of_file(header: EffectsHeader, tensors: Mapping[str, Tensor]) -> Effects:
    weights = tensors["weights"]
    plain = {name: each for name, each in tensors.items() if not name.startswith(f"{_ROWS}.")}
    if weights.ndim != 1 or not all(bool(torch.isfinite(each).all()) for each in plain.values()):
        raise FileFormatError("it holds what are not numbers")
    rows = len(weights)
    sites = [Site(site) for site in header.sites]
    for name in ("weights", "clean", "empty"):
        if tensors[name].dtype != torch.float64 or tensors[name].shape != (rows,):
            raise FileFormatError(f"its {name} are not numbers per row")
    if not bool((weights >= 0).all()) or not float(weights.sum()) > 0:
        raise FileFormatError("its weights are not possible")
    neurons = {}
    if header.level == "neuron":
        for site in sites:
            parts = [tensors[f"{_NEURONS}.{site.value}.{part}"] for part in _PARTS]
            if any(part.ndim != 3 or part.shape != parts[0].shape or part.dtype != torch.float64 for part in parts):
                raise FileFormatError("its sums of neurons are not numbers [layer head dim]")
            neurons[site] = NeuronSums(*parts)
    held = {site: tensors[f"{_ROWS}.{site.value}"] for site in sites if f"{_ROWS}.{site.value}" in tensors}
    if header.level != "neuron" and len(held) < len(sites):
        raise FileFormatError("it lacks the rows of a site")
    axes = 3 if header.level != "layer" else 2
    for site in [site for site in sites if header.source is not None and site not in (Site.K, Site.V)]:
        shape = tuple(neurons[site].total.shape) if site in neurons else tuple(held[site].shape[1:])
        if shape != site.shape(header.source)[: len(shape)]:  # (keys and values may have fewer heads)
            raise FileFormatError(f"its {site.value} units are {shape}, and its model has {site.shape(header.source)}")
    if any(each.ndim != axes or len(each) != rows or each.dtype != torch.float64 for each in held.values()):
        raise FileFormatError("its rows do not fit")
    done = {site: tensors[f"done.{site.value}"] for site in sites if f"done.{site.value}" in tensors}
    for site, marks in done.items():
        expected = neurons[site].total.shape if header.level == "neuron" else held[site].shape[1:]
        if marks.dtype != torch.bool or marks.shape != expected:
            raise FileFormatError("what it says of measured units does not fit")
    for site, each in held.items():
        measured = each[:, done[site]] if site in done and header.level != "neuron" else each
        if not bool(torch.isfinite(measured).all()):
            raise FileFormatError("it holds what are not numbers")
    return Effects(
        header.method,
        header.level,
        header.metric,
        header.values,
        Sums(tensors["clean"], weights),
        Sums(tensors["empty"], weights),
        held,
        neurons,
        done,
        header.positions_told or positions_of_file(header.positions, header.span),
        header.steps,
        header.source,
        header.collected_on,
    )

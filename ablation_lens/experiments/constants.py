"""`loss_curves`: loss as a function of the constant that neurons are set to, the paper's working model (3.3).

A neuron is set to μ + s·σ, for s from −4 to 4, and everything else is left as it is. The lowest loss on that curve is
what no constant gives back, "information removed"; what a center loses beyond it is "noise added". Several neurons (a
head, a random set) move together, each by its own σ about its own mean.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import random_neurons, top_neurons
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.minima import LEAST_POINTS, describe_growth, find_lowest
from ablation_lens.experiments.scores import Scores
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.hooked import projection
from ablation_lens.measure.intervals import ENOUGH_SEEDS, RESAMPLES, bootstrap_means
from ablation_lens.measure.metrics import BUILT_IN
from ablation_lens.measure.score import Sums
from ablation_lens.names import require_known
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over
from ablation_lens.records import ModelRecord, Record, record_of
from ablation_lens.sites import Site, neuron_name, parse_place

if TYPE_CHECKING:
    import pandas

KIND = "loss curves"
"""What these files call themselves."""

SIGMAS = (-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Where curves are measured, in σ from the mean; closer where most minima are."""

CENTERS = ("zero", "mean", "median", "peak")

FEWEST = 6
"""Of fewer neurons nothing is said of others: of five, all agree by chance in one case of sixteen."""

KINDS = ("neuron", "head", "layer", "random")


@dataclass(frozen=True)
class Unit(Record):
    """What is set to constants in one curve.

    Attributes:
        name: as people write it; of random neurons, their share and seed.
        kind: "neuron", "head", "layer" or "random".
        neurons: how many neurons move.
        share: of random neurons, which share of every layer they are.
        seed: of random neurons, the one that they were drawn with.
    """

    name: str
    kind: str
    neurons: int
    share: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"its kind is {self.kind!r:.60}")
        if self.neurons < 1 or (self.kind == "neuron" and self.neurons != 1):
            raise ValueError(f"it has {self.neurons} neurons")
        if (self.kind == "random") != (self.share is not None and self.seed is not None):
            raise ValueError("random neurons, and only they, have a share and a seed")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"its share is {self.share}")


@dataclass(frozen=True)
class CurvesHeader(Record):
    """What a file says of curves beside its tensors."""

    metric: str
    site: str
    units: tuple[Unit, ...]
    sigmas: tuple[float, ...]
    centers: tuple[str, ...]
    source: ModelRecord
    collected_on: str
    judged_on: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site not in [site.value for site in Site]:
            raise ValueError(f"its site is {self.site!r:.60}")
        _require_grid(self.sigmas, ValueError)
        if not self.units or not self.centers or len(set(self.centers)) < len(self.centers):
            raise ValueError("it has no curves, no centers, or one of them twice")
        for unit in self.units:
            if unit.kind != "random":
                try:
                    parse_place(unit.name, Site(self.site).shape(self.source), self.site)
                except MismatchError as error:
                    raise ValueError(str(error)) from None


@dataclass(frozen=True, eq=False, repr=False)
class LossCurves:
    """Loss against the constant, per unit and document; made by `loss_curves`.

    Attributes:
        metric: what was measured; lower is better.
        site: where the neurons are.
        units: what was set to constants, a curve each.
        sigmas: where, in σ from the mean.
        centers: the values that were measured besides.
        sums: every document's metric times its weight, at every σ and then under every center.
        clean: the same of the model as it is.
        places: where a center lies on a curve, in σ; of several neurons the nearest point of the line along which they
            move, which is their average.
        distances: how far a center is from the mean, in σ; of several neurons the average, on the line or off it.
        mean, std: μ and σ of a curve's neuron; of several, their averages.
        source: the model.
        collected_on: what the statistics are from, in words.
        judged_on: what the loss was measured on, in words.
    """

    metric: str
    site: Site
    units: tuple[Unit, ...]
    sigmas: tuple[float, ...]
    centers: tuple[str, ...]
    sums: Float64[Tensor, "curve point document"]
    clean: Sums
    places: Float64[Tensor, "curve center"]
    distances: Float64[Tensor, "curve center"]
    mean: Float64[Tensor, " curve"]
    std: Float64[Tensor, " curve"]
    source: ModelRecord
    collected_on: str
    judged_on: str

    @property
    def unablated(self) -> float:
        """The loss of the model as it is."""
        return float(self.clean.values.sum() / self.clean.weights.sum())

    @cached_property
    def _differences(self) -> Float[ndarray, "curve point"]:
        """What every curve loses at every point, beside the model as it is."""
        gap = self.sums - self.clean.values
        return (gap.sum(-1) / self.clean.weights.sum()).numpy()

    @cached_property
    def _replicates(self) -> Float[ndarray, "curve point resample"]:
        """The same over documents drawn again, the same ones for all curves and points."""
        gap = (self.sums - self.clean.values).flatten(0, 1).numpy()
        means = bootstrap_means(gap, np.broadcast_to(self.clean.weights.numpy(), gap.shape))
        return means.reshape(*self.sums.shape[:2], -1)

    @cached_property
    def _groups(self) -> "tuple[_Group, ...]":
        """Curves as they are told of: random sets of one share together, every other one for itself."""
        made = []
        for name in dict.fromkeys(map(_group_name, self.units)):
            members = [place for place, unit in enumerate(self.units) if _group_name(unit) == name]
            is_single = self.units[members[0]].kind == "neuron"
            differences, replicates = self._differences[members], self._replicates[members]
            weights = np.full((replicates.shape[-1], len(members)), 1 / len(members))
            if len(members) >= ENOUGH_SEEDS:
                generator = np.random.Generator(np.random.PCG64(1))
                weights = generator.multinomial(len(members), weights[0], size=len(weights)) / len(members)
            made.append(
                _Group(
                    name,
                    self.units[members[0]],
                    len(members),
                    self.places[members].mean(0).numpy(),
                    self.distances[members].mean(0).numpy(),
                    float(self.mean[members[0]]) if is_single else math.nan,
                    float(self.std[members[0]]) if is_single else math.nan,
                    differences.mean(0),
                    np.einsum("spr,rs->pr", replicates, weights),
                )
            )
        return tuple(made)

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """A row per curve and point: what is lost there beside the model as it is, with a 95 % interval.

        `point` is "grid" or a center's name, `sigma` where it lies and `value` the constant, of single neurons. Random
        sets of one share are averaged over their `masks`; of fewer than ten, intervals are over documents alone.
        """
        import pandas

        frames = []
        for group in self._groups:
            at = np.concatenate([self.sigmas, group.places])
            low, high = group.interval(group.replicates)
            columns = group.about | {
                "point": ["grid"] * len(self.sigmas) + list(self.centers),
                "sigma": at,
                "value": group.mean + at * group.std,
                "difference": group.differences,
                "low": low,
                "high": high,
            }
            frames.append(pandas.DataFrame(columns))
        return pandas.concat(frames, ignore_index=True)

    @cached_property
    def fits(self) -> "pandas.DataFrame":
        """A row per curve: its minimum, what is lost there, and what every center adds to that, with 95 % intervals.

        `minimum` is in σ from the mean, `minimum_value` that constant (of single neurons), `floor` the loss there
        beside the model as it is, and `noise_…` a center's loss less the floor. `depth` is the way from the lowest to
        the highest point; a curve is `resolved` where that is more than `depth_by_chance`, below which 95 % of flat
        curves would stay. `bend`, `explained` and `power` set it beside a parabola (`minima.Growth`).
        """
        import pandas

        points = np.array(self.sigmas)
        rows = []
        for group in self._groups:
            curve, again = group.differences[: len(points)], group.replicates[: len(points)]
            found, drawn = find_lowest(points, curve), find_lowest(points, again.T)
            lowest, highest = int(curve.argmin()), int(curve.argmax())
            depth = float(curve[highest] - curve[lowest])
            by_chance = group.range_by_chance(len(points))
            growth = describe_growth(points, curve)
            row = group.about | {"minimum": float(found.place), "at_edge": bool(found.at_edge)}
            row |= {"minimum_value": group.mean + float(found.place) * group.std}
            row |= _ends("minimum", *group.interval(drawn.place[None]))
            row |= {"floor": float(found.height), **_ends("floor", *group.interval(drawn.height[None]))}
            row |= {"depth": depth, "depth_by_chance": by_chance, "resolved": depth > by_chance}
            row |= {"bend": growth.bend, "explained": growth.explained, "power": growth.power}
            for place, center in enumerate(self.centers):
                loss, losses = group.differences[len(points) + place], group.replicates[len(points) + place]
                row |= {f"place_{center}": float(group.places[place])}
                row |= {f"distance_{center}": float(group.distances[place]), f"loss_{center}": float(loss)}
                row |= {f"noise_{center}": float(loss - found.height)}
                row |= _ends(f"noise_{center}", *group.interval((losses - drawn.height)[None]))
            rows.append(row)
        return pandas.DataFrame(rows)

    @property
    def neurons(self) -> "pandas.DataFrame":
        """The fits of single neurons."""
        return self.fits[self.fits["kind"] == "neuron"]

    def summary(self) -> "pandas.DataFrame":
        """A row per center: how far it is from the minimum, over the neurons whose curve is resolved.

        `distance` is the mean of |minimum − center| in σ, where a minimum at an edge counts as that edge; `within` the
        share of neurons whose minimum may be there, by its own interval; `nearest` the share whose minimum is nearest
        to this center, `least` the share that lose least under it (ties are shared); `noise` what it adds to the
        floor, in the metric: a little too much, alike for all, as the floor was found on the same documents.
        Intervals are 95 %, over neurons; NaN of fewer than six.
        """
        import pandas

        found = self.neurons[self.neurons["resolved"]]
        parts = self._over_neurons(found)
        rows: dict[str, dict[str, float]] = {}
        for place, center in enumerate(self.centers):
            rows[center] = {"neurons": len(found)}
            for name, values in parts.items():
                low, high = _over_units(values[:, place])
                mean = float(values[:, place].mean()) if len(values) else math.nan
                rows[center] |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("center")

    def _over_neurons(self, found: "pandas.DataFrame") -> dict[str, Float[ndarray, "neuron center"]]:
        def of(start: str) -> Float[ndarray, "neuron center"]:
            return found[[f"{start}_{center}" for center in self.centers]].to_numpy(dtype=float)

        minimum, low, high = (
            found[name].to_numpy(dtype=float)[:, None] for name in ("minimum", "minimum_low", "minimum_high")
        )
        distance = np.abs(minimum - of("place"))
        return {
            "distance": distance,
            "within": ((of("place") >= low) & (of("place") <= high)).astype(float),
            "nearest": _shared_least(distance),
            "least": _shared_least(of("loss")),
            "noise": of("noise"),
        }

    def sentence(self) -> str:
        """What single neurons say, in words."""
        every, found = self.neurons, self.neurons[self.neurons["resolved"]]
        if not len(every):
            return "No curve of a single neuron was measured."
        told = f"{len(found)} of {_counted(len(every), 'neuron')} have a curve that stands out from noise"
        if len(found) < FEWEST:
            return f"{told}: too few to say where minima lie."
        edge = int(found["at_edge"].sum())
        told += f" ({edge} of them still fall at an end of it)." if edge else "."
        distance = self._over_neurons(found)["distance"]
        order = np.argsort(distance.mean(0), kind="stable")
        best = int(order[0])
        alike: list[int] = []
        further: list[int] = []
        for other in map(int, order[1:]):
            low, high = _over_units(distance[:, other] - distance[:, best])
            (further if low > 0 else alike).append(other)
            assert not high < 0
        away = distance.mean(0)
        told += f" Their minimum lies {away[best]:.2f} σ from {_the(self.centers[best])} on average"
        parts = []
        if alike:
            listed = _listed([f"{_the(self.centers[other])} ({away[other]:.2f} σ)" for other in alike])
            parts.append(f"{listed} cannot be told from it")
        if further:
            listed = _listed([f"{_the(self.centers[other])} ({away[other]:.2f} σ)" for other in further])
            parts.append(f"{listed} {'are' if len(further) > 1 else 'is'} further away")
        return "; ".join([told, *parts]) + "."

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header = CurvesHeader(
            self.metric,
            self.site.value,
            self.units,
            self.sigmas,
            self.centers,
            self.source,
            self.collected_on,
            self.judged_on,
        )
        tensors = {"sums": self.sums, "clean": self.clean.values, "weights": self.clean.weights}
        tensors |= {"places": self.places, "distances": self.distances, "mean": self.mean, "std": self.std}
        save_tensors(path, KIND, header.to_dict(), tensors)

    @classmethod
    def load(cls, path: str | Path) -> "LossCurves":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = CurvesHeader.from_dict(plain)
            _require_tensors(header, tensors)
        except (FileFormatError, KeyError, ValueError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise FileFormatError(f"{path} is not a complete file of loss curves ({told}); measure again.") from error
        return cls(
            header.metric,
            Site(header.site),
            header.units,
            header.sigmas,
            header.centers,
            tensors["sums"],
            Sums(tensors["clean"], tensors["weights"]),
            tensors["places"],
            tensors["distances"],
            tensors["mean"],
            tensors["std"],
            header.source,
            header.collected_on,
            header.judged_on,
        )

    def __repr__(self) -> str:
        centers = [on_one_line(center) for center in self.centers]
        head = (
            f"LossCurves({on_one_line(self.source.name)}, {self.site.value}: {on_one_line(self.metric)} of "
            f"{_counted(len(self.units), 'curve')}, {self.sigmas[0]:g} to {self.sigmas[-1]:g} σ)"
        )
        lines = [head]
        if int(self.neurons["resolved"].sum()) > 1:
            heads = f"{'from minimum':>14}{'may be it':>11}{'nearest':>10}{'least loss':>12}{'noise added':>13}"
            lines.append(f"  {'':<14}{heads}")
            for center, row in zip(centers, self.summary().to_dict("records"), strict=True):
                lines.append(
                    f"  {center:<14}{row['distance']:>12.2f} σ{row['within']:>11.0%}{row['nearest']:>10.0%}"
                    f"{row['least']:>12.0%}{row['noise']:>+13.4f}"
                )
        several = self.fits[self.fits["kind"] != "neuron"]
        if len(several):
            noise = "".join(f"{'+ ' + center:>14}" for center in centers)
            lines.append(f"  {'':<14}{'minimum':>14}{'floor':>10}{noise}")
        for row in several.to_dict("records"):
            edge = "≤" if row["at_edge"] and row["minimum"] < 0 else "≥" if row["at_edge"] else ""
            noise = "".join(f"{row[f'noise_{center}']:>+14.4f}" for center in self.centers)
            place = f"{edge}{row['minimum']:+.2f} σ"
            lines.append(f"  {on_one_line(str(row['name'])):<14}{place:>14}{row['floor']:>+10.4f}{noise}")
        return "\n".join([*lines, on_one_line(self.sentence())])


@dataclass(frozen=True, eq=False)
class _Group:
    """Curves that are told of together."""

    name: str
    unit: Unit
    masks: int
    places: Float[ndarray, " center"]
    distances: Float[ndarray, " center"]
    mean: float
    std: float
    differences: Float[ndarray, " point"]
    replicates: Float[ndarray, "point resample"]

    @property
    def about(self) -> dict[str, Any]:
        """The columns that say which curve it is."""
        unit = self.unit
        return {
            "name": self.name,
            "kind": unit.kind,
            "share": math.nan if unit.share is None else unit.share,
            "neurons": unit.neurons,
            "masks": self.masks,
        }

    def range_by_chance(self, points: int) -> float:
        """From lowest to highest of what documents drawn again change, at so many points: 95 % stay below it.

        Which points are lowest and highest is chosen in every draw anew, as in the curve itself.
        """
        if not self.replicates.shape[-1]:
            return math.inf
        changes = self.replicates[:points] - self.differences[:points, None]
        return float(np.quantile(changes.max(0) - changes.min(0), 0.95))

    def interval(
        self, values: Float[ndarray, "quantity resample"]
    ) -> tuple[Float[ndarray, " quantity"], Float[ndarray, " quantity"]]:
        """95 %; NaN where one document says nothing of others."""
        if not values.shape[-1]:
            return np.full(len(values), math.nan), np.full(len(values), math.nan)
        low, high = np.quantile(values, [0.025, 0.975], axis=-1)
        return low, high


def loss_curves(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics,
    *,
    neurons: int | Iterable[str] = 4,
    heads: int | Iterable[str] = 1,
    shares: Sequence[float] = (0.1, 0.5, 0.9),
    seeds: Sequence[int] = (0, 1, 2),
    sigmas: Sequence[float] = SIGMAS,
    centers: Sequence[str] = CENTERS,
    metric: str = "cross_entropy",
    folder: str | Path | None = None,
    progress: bool = True,
) -> LossCurves:
    """Measure loss as a function of the constant, for single neurons, heads and random sets.

    Args:
        model: the model.
        batches: what the loss is measured on; not what the statistics are of.
        statistics: of one site of the model; means, σ and centers come from them.
        neurons: so many of every layer at random, and as many that write most to the residual stream (σ times the
            norm of the neuron's row of the output matrix); or names, such as ["L0.H1.D3"].
        heads: so many of every layer at random (where a site has no heads, the layer), or names.
        shares: random sets with these shares of every layer, drawn with each of `seeds`.
        seeds: as in a study; 1.0 is every neuron, whatever the seed.
        sigmas: where curves are measured, ascending, in σ from the mean.
        centers: what is measured besides.
        metric: one of al.metrics of which lower is better.
        folder: keeps every score, so that an interruption loses none, and the next run measures what is new.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> task = al.task_for(model)
    >>> stats = al.collect(model, task.batches(split="collect", tokens=2000), progress=False)
    >>> found = loss_curves(model, task.batches(split="evaluate", tokens=500), stats, neurons=["L2.H1.D9"], heads=0,
    ...                     shares=(), sigmas=(-4, -2, 0, 2, 4), progress=False)
    >>> found.fits[["name", "at_edge"]].to_dict("records")
    [{'name': 'L2.H1.D9', 'at_edge': False}]
    """
    sigmas = _require_grid(tuple(map(float, sigmas)), MismatchError)
    require_known(metric, [name for name, each in BUILT_IN.items() if each.better == "lower"], "loss")
    if not centers:
        raise MismatchError("a curve is set beside centers; give at least one, such as centers=['mean'].")
    if len(set(centers)) < len(centers):
        raise MismatchError(f"a center is named twice in {list(centers)}; name each once.")
    mean, std = statistics.mean.double(), statistics.std.double()
    values = {center: statistics.center(center) for center in centers}
    units = list(_units(model, statistics, neurons, heads, shares, seeds))
    if not units:
        raise MismatchError("nothing was asked for; give neurons, heads or shares.")
    for unit, mask in units:
        if not bool((std[mask] > 0).any()):
            raise MismatchError(f"{unit.name} is constant over the statistics, so there is no σ to move it by.")
    scores = Scores(model, batches, statistics=statistics, metrics=[metric], folder=folder)
    clean, source = scores.of().sums(metric), statistics.ablation(units[0][1], centers[0]).source
    points = [mean + sigma * std for sigma in sigmas] + list(values.values())
    sums, away = [], []
    with progress_over("curves", len(units) * len(points), progress, unit="points") as advance:
        for unit, mask in units:
            advance.describe(f"curve of {unit.name}")
            curve = []
            for point in points:
                ablation = Ablation(mask, point, source, site=statistics.site)
                curve.append(scores.of(ablation).sums(metric).values.double())
                advance(1)
            sums.append(torch.stack(curve))
            moving = mask & (std > 0)
            away.append([(center - mean)[moving] / std[moving] for center in values.values()])
    origin = statistics.provenance
    return LossCurves(
        metric,
        statistics.site,
        tuple(unit for unit, _ in units),
        sigmas,
        tuple(centers),
        torch.stack(sums),
        Sums(clean.values.double(), clean.weights.double()),
        torch.stack([torch.stack([each.mean() for each in of_unit]) for of_unit in away]),
        torch.stack([torch.stack([each.abs().mean() for each in of_unit]) for of_unit in away]),
        torch.stack([mean[mask].mean() for _, mask in units]),
        torch.stack([std[mask].mean() for _, mask in units]),
        record_of(model),
        f"{origin.tokens:,} positions of {' + '.join(corpus.name for corpus in origin.corpora) or 'your own batches'}",
        f"{int(clean.weights.sum()):,} predictions of {scores.batches.corpus.name}/{scores.batches.corpus.split}",
    )


# ---------------------------------------------------------------------- what is measured


def _units(
    model: Any,
    statistics: ActivationStatistics,
    neurons: int | Iterable[str],
    heads: int | Iterable[str],
    shares: Sequence[float],
    seeds: Sequence[int],
) -> Iterator[tuple[Unit, Bool[Tensor, "layer head dim"]]]:
    """Every curve's neurons, each once."""
    layers, per_layer, _ = statistics.shape
    names: list[str | tuple[int, ...]] = []
    if isinstance(neurons, int):
        names += _neurons_of_every_layer(model, statistics, neurons)
    else:
        names += [neurons] if isinstance(neurons, str) else list(neurons)
    if isinstance(heads, int):
        wanted = min(_count("heads", heads), per_layer)
        drawn = random_neurons((layers, per_layer, 1), wanted / per_layer, seed=0).nonzero().tolist() if wanted else []
        names += [(layer, head) if statistics.site.has_heads else (layer,) for layer, head, _ in drawn]
    else:
        names += [heads] if isinstance(heads, str) else list(heads)
    places = dict.fromkeys(parse_place(name, statistics.shape, statistics.site) for name in names)
    for place in places:
        mask = torch.zeros(statistics.shape, dtype=torch.bool)
        mask[place] = True
        kind = ("layer", "head", "neuron")[len(place) - 1]
        yield Unit(_place_name(place, statistics.site), kind, int(mask.sum())), mask
    for share in shares:
        # Every neuron is one set, whatever the seed.
        for seed in seeds[:1] if share == 1 else seeds:
            mask = random_neurons(statistics.shape, share, seed)
            if bool(mask.any()):
                yield Unit(f"{share:.4g} at random, seed {seed}", "random", int(mask.sum()), float(share), seed), mask


def _neurons_of_every_layer(model: Any, statistics: ActivationStatistics, count: int) -> list[tuple[int, int, int]]:
    per_layer = statistics.std[0].numel()
    count = min(_count("neurons", count), per_layer)
    if not count:
        return []
    share = count / per_layer
    chosen = random_neurons(statistics.shape, share, seed=0) | top_neurons(_written(model, statistics), share)
    return [(layer, head, dim) for layer, head, dim in (chosen & (statistics.std > 0)).nonzero().tolist()]


def _written(model: Any, statistics: ActivationStatistics) -> Float64[Tensor, "layer head dim"]:
    """How much of every neuron's σ gets into the residual stream; σ alone where no matrix reads the site."""
    std, weights = statistics.std.double(), statistics.site.weights
    if weights is None or weights.made:
        return std
    norms = [projection(block, weights).weight().detach().double().norm(dim=-1).cpu() for block in model.blocks]
    return std * torch.stack(norms).view(statistics.shape)


def _count(what: str, given: int) -> int:
    if isinstance(given, bool) or given < 0:
        raise MismatchError(f"{what}={given!r} is not possible; give how many of every layer, or names.")
    return given


def _place_name(place: tuple[int, ...], site: Site) -> str:
    if len(place) == 3:
        return neuron_name(*place, site)
    return ".".join(f"{letter}{number}" for letter, number in zip("LH", place, strict=False))


def _require_grid(sigmas: tuple[float, ...], error: type[Exception]) -> tuple[float, ...]:
    if not all(map(math.isfinite, sigmas)) or list(sigmas) != sorted(set(sigmas)) or len(sigmas) < LEAST_POINTS:
        raise error(f"sigmas are {list(sigmas)!s:.80}; give at least {LEAST_POINTS} different numbers, ascending.")
    return sigmas


def _require_tensors(header: CurvesHeader, tensors: dict[str, Tensor]) -> None:
    curves, documents = len(header.units), tensors["weights"].numel()
    expected = {
        "sums": (curves, len(header.sigmas) + len(header.centers), documents),
        "clean": (documents,),
        "weights": (documents,),
        "places": (curves, len(header.centers)),
        "distances": (curves, len(header.centers)),
        "mean": (curves,),
        "std": (curves,),
    }
    for name, shape in expected.items():
        each = tensors[name]
        if each.dtype != torch.float64 or tuple(each.shape) != shape or not bool(torch.isfinite(each).all()):
            raise FileFormatError(f"its {name} are not {' × '.join(map(str, shape))} numbers")
    weights = tensors["weights"]
    if not bool((weights >= 0).all()) or not float(weights.sum()) > 0 or not bool((tensors["std"] > 0).all()):
        raise FileFormatError("its weights or σ are not possible")


# ---------------------------------------------------------------------- what is told


def _group_name(unit: Unit) -> str:
    return unit.name if unit.share is None else f"{100 * unit.share:.4g} % at random"


def _ends(name: str, low: Float[ndarray, "1"], high: Float[ndarray, "1"]) -> dict[str, float]:
    return {f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}


def _shared_least(values: Float[ndarray, "neuron center"]) -> Float[ndarray, "neuron center"]:
    """1 at the least of each row, shared by equals; rounding tells none apart."""
    least = values <= values.min(-1, keepdims=True) + 1e-9 if len(values) else values > 0
    return least / least.sum(-1, keepdims=True)  # type: ignore[no-any-return]


def _over_units(values: Float[ndarray, " unit"]) -> tuple[float, float]:
    """The 95 % interval of a mean over units; NaN of few."""
    if len(values) < FEWEST:
        return math.nan, math.nan
    means = bootstrap_means(values[None], np.ones((1, len(values))), resamples=RESAMPLES)
    low, high = np.quantile(means[0], [0.025, 0.975])
    return float(low), float(high)


def _the(center: str) -> str:
    return center if center == "zero" else f"the {center}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

"""`ActivationStatistics`: how every neuron of a site is distributed, and where that was measured."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ablation_lens import zoo
from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import as_mask
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.neurons import centers, shapes
from ablation_lens.neurons.arrays import PROVENANCE, Arrays, from_arrays, to_arrays, word
from ablation_lens.neurons.grid import scale_by
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.histogram_file import HistogramHeader
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.rows import Rows
from ablation_lens.neurons.statistics_file import Parts, read_parts
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.records import CorpusRecord, ModelRecord, Record, Versions
from ablation_lens.sites import Site, neuron_names

if TYPE_CHECKING:
    import pandas

KIND = "activation statistics"
VERSION = 6
"""Of the file. The first said which batches were read in a sentence; `PlanReading` reads both. Until the second, how
many values are above 0 was one of the moments; `read_parts` reads both. Until the third, nothing was said of rows. The
fifth says what each of several ranks read; what one process collected is of the fourth, as it says nothing more. The
sixth is of a site that is one hook."""

_UNNAMED = "unknown"
"""The architecture of values that were given without a model."""


@dataclass(frozen=True)
class PlanReading(Record):
    """Which batches of a batch plan were read.

    Attributes:
        plan: the plan's digest.
        batches: how many batches the plan has; None in files that did not say.
        read: ranges of their numbers, `[start, stop)`, in order; of a plan that did not say how many, empty: all.

    >>> first, rest = PlanReading("d1", 5, ((0, 2),)), PlanReading("d1", 5, ((2, 5),))
    >>> first.is_whole, first.join(rest), first.join(rest).is_whole
    (False, PlanReading(plan='d1', batches=5, read=((0, 5),)), True)
    """

    plan: str
    batches: int | None
    read: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = [0, *(end for both in self.read for end in both)]
        # None says nothing of batches; 0 leaves room for no range but an empty one.
        if ends != sorted(ends) or ends[-1] > (self.batches or 0):
            raise ValueError(f"of {self.batches} batches it says that {self.read} were read")

    @property
    def is_whole(self) -> bool:
        """Whether every batch was read."""
        return self.batches is None or self.read == ((0, self.batches),)

    def join(self, other: "PlanReading") -> "PlanReading | None":
        """Both together; None where they are not of one plan, or some batch was read twice."""
        if self.batches is None or (self.plan, self.batches) != (other.plan, other.batches):
            return None
        joined: list[tuple[int, int]] = []
        for start, stop in sorted([*self.read, *other.read]):
            # Read twice is counted twice: that must not pass for the plan read once.
            if joined and start < joined[-1][1]:
                return None
            if joined and start == joined[-1][1]:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
        return replace(self, read=tuple(joined))

    @classmethod
    def from_dict(cls, values: "Mapping[str, Any] | str") -> "PlanReading":
        """The inverse of `to_dict`; also reads the sentence that the first format wrote."""
        if not isinstance(values, str):
            return super().from_dict(values)
        digest, _, part = values.partition(" ")
        # The first format wrote the digest alone for a whole plan.
        if not part:
            return cls(digest, None)
        numbers = re.fullmatch(r"\(first (\d+) of (\d+) batches\)", part)
        if numbers is None:
            raise FileFormatError(f"{values!r} does not say which batches of a plan were read.")
        return cls(digest, int(numbers[2]), ((0, int(numbers[1])),))


@dataclass(frozen=True)
class Provenance(Record):
    """Where statistics come from: the model, the documents, and how they were read.

    `corpora` and `plans` have one entry per plan that was read, in part or whole; parts that were merged are one
    entry again. Both are empty for a user's own batches. `ranks` says how many batches each of several processes read
    that collected together; it is empty for one process, and for what was merged since.
    """

    model: ModelRecord
    site: str
    include_bos: bool
    tokens: int
    corpora: tuple[CorpusRecord, ...]
    plans: tuple[PlanReading, ...]
    versions: Versions
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            Site(self.site)
        except ValueError:
            sites = ", ".join(site.value for site in Site)
            raise ValueError(f"its site is {self.site!r}, and not one of {sites}, or a hook's name") from None
        if not 0 <= self.tokens < 2**62:
            raise ValueError(f"it is over {self.tokens} positions")
        if len(self.corpora) != len(self.plans):
            raise ValueError(f"it names {len(self.corpora)} corpora and {len(self.plans)} plans over them")
        if min(self.ranks, default=0) < 0:
            raise ValueError(f"its ranks read {self.ranks} batches")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; of one process' as before there could be several."""
        told = super().to_dict()
        if not self.ranks:
            del told["ranks"]
        return told

    def merge(self, other: "Provenance") -> "Provenance":
        """Of statistics that have seen both; shards of one plan, merged in any order, are the plan again."""
        read = list(zip(self.corpora, self.plans, strict=True))
        for corpus, plan in zip(other.corpora, other.plans, strict=True):
            for place, (known, reading) in enumerate(read):
                both = reading.join(plan) if known == corpus else None
                if both is not None:
                    read[place] = (known, both)
                    break
            else:
                read.append((corpus, plan))
        # The model, site and settings are this one's: `ActivationStatistics.merge` has compared them before.
        return replace(
            self,
            tokens=self.tokens + other.tokens,
            corpora=tuple(corpus for corpus, _ in read),
            plans=tuple(plan for _, plan in read),
            ranks=(),
        )


@dataclass(frozen=True)
class StatisticsHeader(Record):
    """What a file says before its numbers."""

    provenance: Provenance
    histogram: HistogramHeader
    trimmed: HistogramHeader | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().to_dict(), "provenance": self.provenance.to_dict()}


# eq=False: `==` of two tensors is a tensor, and has no single truth value.
@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Histogram, moments and provenance of every neuron of a site; made by `collect`.

    `trimmed` is the second pass' histogram; `positions` are there when the per-position mean was asked for. `rows` are
    digests of the rows that were read (`tasks.known_rows`), sorted, on which no center is to be judged; None where
    that is not known. The state is not to be edited; everything else is computed from it when asked.
    """

    histogram: NeuronHistogram
    moments: Moments
    provenance: Provenance
    trimmed: TrimmedHistogram | None = None
    positions: Positions | None = None
    rows: Int64[Tensor, " digest"] | None = None

    @classmethod
    def of_values(
        cls,
        values: Float[Tensor, "*batch layer head dim"],
        valid: Bool[Tensor, "*batch"] | None = None,
        *,
        model: ModelRecord | None = None,
        site: Site | str = Site.Z,
        bins: int = 256,
        passes: int = 1,
    ) -> "ActivationStatistics":
        """What `collect` would have made of activations that you have already.

        Args:
            values: one number per position, layer, head and dim; an MLP's neurons are one head.
            valid: which positions count; None for all.
            model: the record of the model they are of (`record_of(model)`), so that ablations of another are refused.
            site: where they are from.
            bins: most bins per neuron.
            passes: 2 adds the trimmed histogram.

        >>> statistics = ActivationStatistics.of_values(torch.tensor([1.0, 2.0, 2.0, 100.0]).view(4, 1, 1, 1))
        >>> statistics.center("peak").item(), statistics.mean.item()
        (2.5, 26.25)
        """
        shape = (values.shape[-3], values.shape[-2], values.shape[-1])
        histogram = NeuronHistogram(shape, bins, resolution=values.dtype, device=values.device)
        histogram.update(values, valid)
        moments = Moments(shape, device=values.device)
        for layer in range(shape[0]):
            moments.add(layer, Rows(values[..., layer, :, :], valid))
        trimmed = None
        if passes == 2:
            trimmed = TrimmedHistogram.around(histogram)
            trimmed.update(values, valid)
        provenance = _of_somebody(model or _unnamed(shape, values.dtype), Site.of(site), int(moments.count[0]))
        return cls(histogram, moments, provenance, trimmed)

    @classmethod
    def of_arrays(
        cls, arrays: Mapping[str, Any], *, model: ModelRecord | None = None, site: Site | str | None = None
    ) -> "ActivationStatistics":
        """The statistics whose `arrays()` these are, bit for bit; what does not fit together is refused.

        Args:
            arrays: the arrays by name, also as `numpy.load` gives them.
            model: the record of the model, where the arrays hold no `provenance`; as for `of_values`.
            site: where they are from, then; None for z.

        >>> statistics = ActivationStatistics.of_values(torch.tensor([1.0, 2.0, 2.0, 100.0]).view(4, 1, 1, 1))
        >>> ActivationStatistics.of_arrays(statistics.arrays()).center("peak").item()
        2.5
        """
        told = _provenance_in(arrays)
        where = Site.of(site if site is not None else Site.Z if told is None else told.site)
        parts = from_arrays(arrays, where, None if told is None else told.tokens)
        if told is None:
            dtype = parts.histogram.resolution
            told = _of_somebody(model or _unnamed(parts.histogram.shape, dtype), where, int(parts.moments.count[0]))
        elif told.site != where.value:
            raise MismatchError(f"these arrays are of {told.site!r}, and not of {where.value!r}; leave site out.")
        elif model is not None:
            model.require_same(told.model, "these arrays are another model's")
        return cls(parts.histogram, parts.moments, told, parts.trimmed, parts.positions, parts.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(layer, head, dim)`."""
        return self.histogram.shape

    @property
    def site(self) -> Site:
        """Which site was measured."""
        return Site(self.provenance.site)

    @property
    def count(self) -> Int64[Tensor, "layer head dim"]:
        """Values per neuron."""
        return self.histogram.total.cpu()

    @property
    def mean(self) -> Float[Tensor, "layer head dim"]:
        """Mean value, in float64."""
        return self.moments.mean.cpu()

    @property
    def variance(self) -> Float[Tensor, "layer head dim"]:
        """Population variance, in float64."""
        return self.moments.variance.cpu()

    @property
    def std(self) -> Float[Tensor, "layer head dim"]:
        """Standard deviation σ."""
        return self.variance.sqrt()

    @property
    def minimum(self) -> Float[Tensor, "layer head dim"]:
        """Smallest value."""
        return self.histogram.minimum.cpu()

    @property
    def maximum(self) -> Float[Tensor, "layer head dim"]:
        """Largest value."""
        return self.histogram.maximum.cpu()

    @property
    def position_sums(self) -> Float64[Tensor, "layer pos head dim"] | None:
        """What `position_mean` is the mean of, where it was gathered."""
        return None if self.positions is None else self.positions.sums

    @property
    def position_counts(self) -> Int64[Tensor, " pos"] | None:
        """How many values were seen at every position."""
        return None if self.positions is None else self.positions.counts

    @property
    def position_mean(self) -> Float[Tensor, "layer pos head dim"]:
        """Mean at every position; needs `collect(..., positions=True)`."""
        if self.positions is None:
            raise MismatchError("these statistics hold no per-position mean; collect(..., positions=True) gathers it.")
        return self.positions.mean

    def center(self, name: str, **parameters: Any) -> Float[Tensor, "layer head dim"]:
        """One value per neuron: "zero", "mean", "median", "peak", … (`centers.names()` lists them)."""
        return centers.center(name, self, **parameters)

    def ablation(
        self, mask: Bool[Tensor, "layer head dim"] | str | Iterable[str], center: str, **parameters: Any
    ) -> Ablation:
        """Set the masked neurons, or those that are named, to a center; the ablation remembers which model it is for.

        >>> statistics = ActivationStatistics.of_values(torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1, 1))
        >>> statistics.ablation(["L0.H0"], "mean")
        Ablation(1 of 1 neurons in 1 layer → mean)
        """
        mask = as_mask(mask, self.shape, site=self.site)
        model, values = self.provenance.model, self.center(center, **parameters)
        source = None if model.architecture == _UNNAMED else model  # values of nobody's fit anybody of their shape
        return Ablation(mask, values, source, site=self.site, center=center)

    def shapes(self) -> "shapes.Shapes":
        """What every distribution looks like: skew, kurtosis, peaks, a word."""
        return shapes.describe(self)

    def table(self) -> "pandas.DataFrame":
        """One row per neuron, to sort and filter: moments, peak, resolution and shape.

        Indexed by the neuron's name; `peak_over_sigma` is |peak|/σ, `mean_to_peak_over_sigma` |mean − peak|/σ
        and `epsilon_over_sigma` ε/σ, the bin width.
        """
        import pandas

        quarters, peak = self.histogram.quantile([0.25, 0.5, 0.75]).cpu(), self.center("peak")
        described = shapes.describe(self, quartiles=quarters[::2], peak=peak)
        # The order in which `flatten` below goes through a tensor: dim fastest.
        places = np.indices(self.shape, dtype=np.int64).reshape(3, -1)
        columns = dict(zip(("layer", "head", "dim"), places, strict=True))
        numbers = {
            "count": self.count,
            "mean": self.mean,
            "std": self.std,
            "min": self.minimum,
            "max": self.maximum,
            "median": quarters[1],
            "peak": peak,
            "mean_abs": self.moments.mean_absolute.cpu(),
            "mean_sqrt_abs": self.moments.mean_root.cpu(),
            "share_positive": self.histogram.positive.cpu().double() / self.count,
            "share_zero": self.histogram.zeros.cpu().double() / self.count,
            **{f.name: getattr(described, f.name) for f in fields(described) if f.name != "word"},
        }
        frame = pandas.DataFrame(
            columns | {name: tensor.flatten().numpy() for name, tensor in numbers.items()},
            index=pandas.Index(neuron_names(self.shape, self.site), name="neuron"),
        )
        frame["shape"] = np.array(shapes.SHAPE_WORDS, dtype=object)[described.word.flatten().numpy()]
        return frame

    def bins(self, neurons: Bool[Tensor, "layer head dim"] | str | Iterable[str] | None = None) -> "pandas.DataFrame":
        """One row per bin that holds a value: `neuron layer head dim left right count`, to plot with any library.

        Bin `[left, right)` holds `count` values. A neuron's bins are equally wide and in order; those without a value
        are left out. For all neurons, or those that are named, or in a mask.

        >>> statistics = ActivationStatistics.of_values(torch.tensor([1.0, 2.0, 2.0, 100.0]).view(4, 1, 1, 1))
        >>> statistics.bins("L0.H0.D0")[["neuron", "left", "right", "count"]]
             neuron   left  right  count
        0  L0.H0.D0    1.0    1.5      1
        1  L0.H0.D0    2.0    2.5      2
        2  L0.H0.D0  100.0  100.5      1
        """
        import pandas

        counts = self.histogram.counts().cpu()
        if neurons is not None:
            counts = counts * as_mask(neurons, self.shape, site=self.site).cpu()[..., None]
        place = counts.nonzero(as_tuple=True)
        flat = np.ravel_multi_index([axis.numpy() for axis in place[:3]], self.shape)
        exponent, offset = (grid.cpu()[place[:3]] for grid in (self.histogram.exponent, self.histogram.offset))
        columns = {
            "neuron": np.array(neuron_names(self.shape, self.site), dtype=object)[flat],
            **{name: axis.numpy() for name, axis in zip(("layer", "head", "dim"), place, strict=False)},
            "left": scale_by(offset + place[3], exponent).numpy(),
            "right": scale_by(offset + place[3] + 1, exponent).numpy(),
            "count": counts[place].numpy(),
        }
        return pandas.DataFrame(columns)

    def arrays(self) -> Arrays:
        """All of it as NumPy arrays by name, for `numpy.savez` and people without this library; `of_arrays` reads them.

        Per neuron `[layer head dim]`: bin i of `counts [… bin]` is `[left + i·width, left + (i + 1)·width)`; then
        `minimum`, `maximum`, `count`, `mean`, `variance` (divided by the count), and how many values are `zeros` and
        how many `positive`. So that the way back is exact: `pivot`, the sums of x − pivot (`deviation_sum`), of its
        square (`squared_deviation_sum`), of |x| (`absolute_sum`) and √|x| (`root_sum`), and two texts, `resolution`
        (the dtype of the values) and `provenance` (JSON). A second pass is `trimmed_…`, with the ends of its range as
        minimum and maximum and what lies `trimmed_below` and `trimmed_above` it. Where they are known,
        `position_sums [layer pos head dim]`, `position_counts` and `rows` follow.

        >>> arrays = ActivationStatistics.of_values(torch.tensor([1.0, 2.0, 2.0]).view(3, 1, 1, 1), bins=2).arrays()
        >>> [arrays[name].tolist() for name in ("left", "width", "counts")]
        [[[[1.0]]], [[[1.0]]], [[[[1, 2]]]]]
        """
        told = np.array(json.dumps(self.provenance.to_dict()))
        return {**to_arrays(self._parts()), PROVENANCE: told}

    def _parts(self) -> Parts:
        return Parts(self.histogram, self.moments, self.trimmed, self.positions, self.rows)

    def merge(self, other: "ActivationStatistics") -> "ActivationStatistics":
        """Statistics that have seen both; unlike models, sites, dtypes or settings are refused, naming both."""
        mine, theirs = self.provenance, other.provenance
        mine.model.require_same(theirs.model, "cannot merge statistics")
        for field in ("site", "include_bos"):
            if getattr(mine, field) != getattr(theirs, field):
                raise MismatchError(
                    f"cannot merge statistics: {field} is {getattr(mine, field)!r} and {getattr(theirs, field)!r}."
                )
        if (self.trimmed is None, self.positions is None) != (other.trimmed is None, other.positions is None):
            raise MismatchError("cannot merge statistics: one has a second pass or per-position means, the other not.")
        trimmed, positions = self.trimmed, self.positions
        return ActivationStatistics(
            self.histogram.merge(other.histogram),
            self.moments.merge(other.moments),
            mine.merge(theirs),
            None if trimmed is None or other.trimmed is None else trimmed.merge(other.trimmed),
            None if positions is None or other.positions is None else positions.merge(other.positions),
            None if self.rows is None or other.rows is None else torch.cat([self.rows, other.rows]).unique(),
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header = StatisticsHeader(
            self.provenance,
            HistogramHeader.of(self.histogram),
            None if self.trimmed is None else HistogramHeader.of(self.trimmed),
        )
        version = VERSION if self.site.is_one_hook else 5 if self.provenance.ranks else 4
        save_tensors(path, KIND, header.to_dict(), self._parts().tensors(), version=version)

    @classmethod
    def load(cls, path: str | Path) -> "ActivationStatistics":
        """Read what `save` wrote; a truncated, foreign, changed, forged or newer file is one clear error."""
        if str(path) in zoo.NAMES and not Path(path).exists():
            raise FileFormatError(
                f"{path} is a model, and a file of its statistics is expected; make one by "
                f"`ablation-lens collect {path} --out stats.safetensors`."
            )
        values, tensors = load_tensors(path, KIND, newest=VERSION)
        try:
            header = StatisticsHeader.from_dict(values)
            parts = read_parts(tensors, header.histogram, header.trimmed, header.provenance.tokens)
        except FileFormatError as error:
            raise FileFormatError(
                f"{path} is not complete, or was changed ({str(error).rstrip('.')}); collect it again."
            ) from error
        return cls(parts.histogram, parts.moments, header.provenance, parts.trimmed, parts.positions, parts.rows)

    def __repr__(self) -> str:
        layers, heads, dims = self.shape
        model = self.provenance.model
        passes = ", two passes" if self.trimmed is not None else ""
        return (
            f"ActivationStatistics({model.name}, {self.provenance.site}: "
            f"{layers} layers × {heads} heads × {dims} dims, {self.provenance.tokens:,} positions, "
            f"{self.histogram.bins} bins{passes})"
        )


def _provenance_in(arrays: Mapping[str, Any]) -> Provenance | None:
    if not isinstance(arrays, Mapping) or PROVENANCE not in arrays:
        return None
    try:
        return Provenance.from_dict(json.loads(word(arrays, PROVENANCE)))
    except (ValueError, RecursionError, FileFormatError) as error:
        raise MismatchError(
            f"the provenance of these arrays cannot be read ({str(error).rstrip('.')}); leave it out, and give model "
            "and site."
        ) from error


def _of_somebody(model: ModelRecord, site: Site, tokens: int) -> Provenance:
    """Where values come from that somebody brought along."""
    return Provenance(
        model=model,
        site=site.value,
        # Nobody said which positions are special, so all were counted.
        include_bos=True,
        tokens=tokens,
        corpora=(),
        plans=(),
        versions=Versions.current(),
    )


def _unnamed(shape: tuple[int, int, int], dtype: torch.dtype) -> ModelRecord:
    """The record of a model of which nothing is known but what its values show."""
    layers, heads, dims = shape
    return ModelRecord(
        name="values",
        revision=None,
        architecture=_UNNAMED,
        dtype=str(dtype).removeprefix("torch."),
        processing="unknown",
        weights=None,
        n_layers=layers,
        n_heads=heads,
        d_head=dims,
        d_model=heads * dims,
        d_mlp=0,
        n_ctx=0,
    )

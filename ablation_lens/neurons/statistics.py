"""`ActivationStatistics`: how every neuron of a site is distributed, and where that was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.neurons import centers, shapes
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.records import CorpusRecord, ModelRecord, Record, Versions
from ablation_lens.sites import Site, neuron_name

if TYPE_CHECKING:
    import pandas

KIND = "activation statistics"


@dataclass(frozen=True)
class Provenance(Record):
    """Where statistics come from: the model, the documents, and how they were read.

    `corpora` and `plans` have one entry per collection that was merged in; both are empty for a user's own batches.
    """

    model: ModelRecord
    site: str
    include_bos: bool
    tokens: int
    corpora: tuple[CorpusRecord, ...]
    plans: tuple[str, ...]
    versions: Versions

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Provenance":
        """The inverse of `to_dict`."""
        plain = super().from_dict(values)
        return replace(
            plain,
            model=ModelRecord.from_dict(values["model"]),
            corpora=tuple(CorpusRecord.from_dict(corpus) for corpus in values["corpora"]),
            versions=Versions.from_dict(values["versions"]),
        )


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Histogram, moments and provenance of every neuron of a site; made by `collect`.

    `trimmed` is the second pass' histogram; `position_sums` and `position_counts` are there when the per-position
    mean was asked for. The state is not to be edited; everything else is computed from it when asked.
    """

    histogram: NeuronHistogram
    moments: Moments
    provenance: Provenance
    trimmed: TrimmedHistogram | None = None
    position_sums: Float[Tensor, "layer pos head dim"] | None = None
    position_counts: Int64[Tensor, " pos"] | None = None

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
    def position_mean(self) -> Float[Tensor, "layer pos head dim"]:
        """Mean at every position; needs `collect(..., positions=True)`."""
        if self.position_sums is None or self.position_counts is None:
            raise MismatchError("these statistics hold no per-position mean; collect(..., positions=True) gathers it.")
        counts: Tensor = self.position_counts.double()
        means: Tensor = self.position_sums / counts[None, :, None, None]
        return means

    def center(self, name: str, **parameters: Any) -> Float[Tensor, "layer head dim"]:
        """One value per neuron: "zero", "mean", "median", "peak", … (`centers.names()` lists them)."""
        return centers.center(name, self, **parameters)

    def ablation(self, mask: Bool[Tensor, "layer head dim"], center: str, **parameters: Any) -> Ablation:
        """Set the masked neurons to a center; the ablation remembers which model it is for."""
        values = self.center(center, **parameters)
        return Ablation(mask, values, self.provenance.model, site=self.site, center=center)

    def shapes(self) -> "shapes.Shapes":
        """What every distribution looks like: skew, kurtosis, peaks, label."""
        return shapes.describe(self)

    def table(self) -> "pandas.DataFrame":
        """One row per neuron, to sort and filter: moments, peak, resolution and shape.

        Indexed by the neuron's name; `peak_over_sigma` is |peak|/σ, `mean_to_peak_over_sigma` |mean − peak|/σ
        and `epsilon_over_sigma` ε/σ, the bin width.
        """
        import pandas

        described = self.shapes()
        layers, heads, dims = self.shape
        places = [(layer, head, dim) for layer in range(layers) for head in range(heads) for dim in range(dims)]
        columns = {
            "layer": [place[0] for place in places],
            "head": [place[1] for place in places],
            "dim": [place[2] for place in places],
        }
        numbers = {
            "count": self.count,
            "mean": self.mean,
            "std": self.std,
            "min": self.minimum,
            "max": self.maximum,
            "median": self.center("median"),
            "peak": self.center("peak"),
            "mean_abs": self.moments.mean_absolute.cpu(),
            "mean_sqrt_abs": self.moments.mean_root.cpu(),
            "share_positive": self.moments.share_positive.cpu(),
            **{f.name: getattr(described, f.name) for f in fields(described) if f.name != "label"},
        }
        frame = pandas.DataFrame(
            columns | {name: tensor.flatten().numpy() for name, tensor in numbers.items()},
            index=pandas.Index([neuron_name(*place) for place in places], name="neuron"),
        )
        frame["shape"] = [shapes.LABELS[code] for code in described.label.flatten().tolist()]
        return frame

    def merge(self, other: "ActivationStatistics") -> "ActivationStatistics":
        """Statistics that have seen both; unlike models, sites, dtypes or settings are refused, naming both."""
        mine, theirs = self.provenance, other.provenance
        mine.model.require_same(theirs.model, "cannot merge statistics")
        for field in ("site", "include_bos"):
            if getattr(mine, field) != getattr(theirs, field):
                raise MismatchError(
                    f"cannot merge statistics: {field} is {getattr(mine, field)!r} and {getattr(theirs, field)!r}."
                )
        if (self.trimmed is None) != (other.trimmed is None) or (self.position_sums is None) != (
            other.position_sums is None
        ):
            raise MismatchError("cannot merge statistics: one has a second pass or per-position means, the other not.")
        merged = replace(
            self,
            histogram=self.histogram.merge(other.histogram),
            moments=self.moments.merge(other.moments),
            provenance=replace(
                mine,
                tokens=mine.tokens + theirs.tokens,
                corpora=mine.corpora + theirs.corpora,
                plans=mine.plans + theirs.plans,
            ),
        )
        if self.trimmed is not None and other.trimmed is not None:
            merged = replace(merged, trimmed=self.trimmed.merge(other.trimmed))
        if self.position_sums is not None:
            sums, counts = _merged_positions(self, other)
            merged = replace(merged, position_sums=sums, position_counts=counts)
        return merged

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        histogram, histogram_header = self.histogram.state()
        tensors = {f"histogram.{name}": tensor for name, tensor in histogram.items()}
        tensors |= {f"moments.{name}": tensor for name, tensor in self.moments.state().items()}
        header: dict[str, Any] = {"provenance": self.provenance.to_dict(), "histogram": histogram_header}
        if self.trimmed is not None:
            trimmed, header["trimmed"] = self.trimmed.state()
            tensors |= {f"trimmed.{name}": tensor for name, tensor in trimmed.items()}
        if self.position_sums is not None and self.position_counts is not None:
            tensors |= {"position.sums": self.position_sums, "position.counts": self.position_counts}
        save_tensors(path, KIND, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "ActivationStatistics":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        header, tensors = load_tensors(path, KIND)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        try:
            histogram = NeuronHistogram.from_state(part("histogram."), header["histogram"])
            trimmed = TrimmedHistogram.from_state(part("trimmed."), header["trimmed"]) if "trimmed" in header else None
            return cls(
                histogram=histogram,
                moments=Moments.from_state(part("moments."), histogram.shape),
                provenance=Provenance.from_dict(header["provenance"]),
                trimmed=trimmed,
                position_sums=tensors.get("position.sums"),
                position_counts=tensors.get("position.counts"),
            )
        except (KeyError, TypeError, ValueError, MismatchError) as error:
            raise FileFormatError(f"{path} is not complete ({error}); collect it again.") from error

    def __repr__(self) -> str:
        layers, heads, dims = self.shape
        model = self.provenance.model
        passes = ", two passes" if self.trimmed is not None else ""
        return (
            f"ActivationStatistics({model.name}, {self.provenance.site}: "
            f"{layers} layers × {heads} heads × {dims} dims, {self.provenance.tokens:,} positions, "
            f"{self.histogram.bins} bins{passes})"
        )


def _merged_positions(one: ActivationStatistics, two: ActivationStatistics) -> tuple[Tensor, Tensor]:
    assert one.position_sums is not None
    assert one.position_counts is not None
    assert two.position_sums is not None
    assert two.position_counts is not None
    length = max(len(one.position_counts), len(two.position_counts))

    def padded(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        missing = length - len(counts)
        return torch.nn.functional.pad(sums, (0, 0, 0, 0, 0, missing)), torch.nn.functional.pad(counts, (0, missing))

    first, second = padded(one.position_sums, one.position_counts), padded(two.position_sums, two.position_counts)
    return first[0] + second[0], first[1] + second[1]

"""`Learned`: what ablated neurons are set to, where that was learned from a model rather than read off statistics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import as_mask
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.measure.collection import collect
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.records import ModelRecord, Record, Versions, record_of
from ablation_lens.sites import Site

KIND = "learned values"
"""What these files call themselves."""


@dataclass(frozen=True)
class Cost(Record):
    """What learning took.

    Attributes:
        positions: of the documents that were learned from.
        forward: positions that the model ran over.
        backward: positions that gradients were taken through.
    """

    positions: int
    forward: int
    backward: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions < 1 or min(self.forward, self.backward) < 0:
            raise ValueError(f"its cost of {self.forward} and {self.backward} over {self.positions} is not possible")

    @property
    def passes(self) -> float:
        """In forward passes over those documents; a backward one counts as two.

        >>> Cost(1000, 3000, 1000).passes
        5.0
        """
        return (self.forward + 2 * self.backward) / self.positions


@dataclass(frozen=True)
class LearnedHeader(Record):
    """What a file of learned values says beside its tensors."""

    method: str
    site: str
    model: ModelRecord | None
    settings: dict[str, Any]
    cost: Cost
    told: str
    versions: Versions

    def __post_init__(self) -> None:
        super().__post_init__()
        Site(self.site)


@dataclass(frozen=True, eq=False, repr=False)
class Learned:
    """One value per neuron, and how it was come by.

    Attributes:
        method: its label, as studies write it.
        values: what an ablated neuron is set to.
        site: where the neurons are.
        model: which they are of; other models are refused.
        settings: of the method, as plain values.
        rows: digests of the documents that were learned from, and that their statistics are of
            (`tasks.known_rows`): nothing is judged on these. None where none are known.
        cost: what it took.
        told: what came out, in a few words.
        further: other tensors of a method, such as the losses on the way.

    >>> learned = Learned("optimal", torch.zeros(1, 1, 2).double(), Site.Z, None, {}, None, Cost(10, 20), "")
    >>> learned.ablation(["L0.H0"])
    Ablation(2 of 2 neurons in 1 layer → optimal)
    """

    method: str
    values: Float64[Tensor, "layer head dim"]
    site: Site
    model: ModelRecord | None
    settings: Mapping[str, Any]
    rows: Int64[Tensor, " digest"] | None
    cost: Cost
    told: str
    further: Mapping[str, Tensor] = field(default_factory=dict)
    versions: Versions = field(default_factory=Versions.current)

    def ablation(self, mask: Bool[Tensor, "layer head dim"] | str | Iterable[str]) -> Ablation:
        """Set the masked neurons, or those that are named, to these values."""
        chosen = as_mask(mask, tuple(self.values.shape), site=self.site)
        return Ablation(chosen, self.values, self.model, site=self.site, center=self.method)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header = LearnedHeader(
            self.method, self.site.value, self.model, dict(self.settings), self.cost, self.told, self.versions
        )
        tensors = {"values": self.values, **{f"further {name}": each for name, each in self.further.items()}}
        if self.rows is not None:
            tensors["rows"] = self.rows
        save_tensors(path, KIND, header.to_dict(), tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Learned":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = LearnedHeader.from_dict(plain)
            rows = tensors.pop("rows", None)
            further = {name.removeprefix("further "): each for name, each in tensors.items() if name != "values"}
            if rows is not None and (rows.dtype != torch.int64 or rows.ndim != 1):
                raise FileFormatError("its rows are not digests")
            if not all(bool(each.isfinite().all()) for each in further.values()):
                raise FileFormatError("it holds what are not finite numbers")
            return cls(
                header.method,
                _require_values(tensors.get("values"), header),
                Site(header.site),
                header.model,
                header.settings,
                rows,
                header.cost,
                header.told,
                further,
                header.versions,
            )
        except FileFormatError as error:
            raise FileFormatError(f"{path} is not a complete file of learned values ({error}); learn again.") from error

    def __repr__(self) -> str:
        layers, heads, dims = self.values.shape
        told = f"; {on_one_line(self.told)}" if self.told else ""
        return (
            f"Learned({on_one_line(self.method)}: {layers} × {heads} × {dims} {self.site.value} neurons, "
            f"{self.cost.passes:,.1f} passes{told})"
        )


def _require_values(values: Tensor | None, header: LearnedHeader) -> Float64[Tensor, "layer head dim"]:
    good = values is not None and values.ndim == 3 and values.numel() and values.dtype == torch.float64
    if values is None or not good or not bool(values.isfinite().all()):
        raise FileFormatError("its values are not finite numbers [layer head dim]")
    if header.model is not None and not Site(header.site).could_have(tuple(values.shape), header.model):
        raise FileFormatError(f"its values are of {tuple(values.shape)} neurons, and its model has others")
    return values


# ---------------------------------------------------------------------- what all that learn begin with


def statistics_of(
    model: Any, batches: Any, given: ActivationStatistics | None, site: Site | str | None, progress: bool
) -> ActivationStatistics:
    """Those that were given, or of the batches."""
    if given is None:
        return collect(model, batches, site=Site.of(Site.Z if site is None else site), progress=progress)
    if site is not None and Site.of(site) is not given.site:
        raise MismatchError(
            f"site={Site.of(site).value!r} was asked for, and the statistics are of {given.site.value!r}; leave site= "
            "out, or give statistics of that site."
        )
    if given.provenance.model.architecture != "unknown":
        given.provenance.model.require_same(record_of(model), "these statistics are another model's")
    return given


def all_rows(statistics: ActivationStatistics, rows: Int64[Tensor, " digest"]) -> Int64[Tensor, " digest"]:
    """Digests of what statistics are of, as far as they know (older files do not), and of what was read besides."""
    return rows if statistics.rows is None else torch.cat([statistics.rows, rows]).unique()


def distance_told(values: Float64[Tensor, "layer head dim"], statistics: ActivationStatistics) -> str:
    """How far values are from the mean, in words."""
    moved = (values - statistics.mean).abs() / statistics.std
    return f"{float(moved[statistics.std > 0].mean()) if bool((statistics.std > 0).any()) else 0.0:.2f} σ from the mean"

"""`Values`: what ablated units are set to, at one site or several, under a name that tables and figures show."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from numbers import Real
from operator import or_
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation, Ablations, Provider
from ablation_lens.errors import MismatchError
from ablation_lens.measure.forward import capture
from ablation_lens.measure.learned import Learned
from ablation_lens.measure.resampling import Resampled
from ablation_lens.neurons.centers import about
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.records import ModelRecord
from ablation_lens.sites import Site
from ablation_lens.tasks.plans import Batch

Statistics = ActivationStatistics | Mapping[Site, ActivationStatistics] | None
"""Of one site, or by site, as `collect(site=["z", "mlp"])` gives them."""

_FORMS = (
    "give a number, a center's name with statistics=, a tensor [layer head dim], values by position, what "
    "al.resampling or al.learn gives, a function of (model, batch, site), or a dict of these by site"
)


@dataclass(frozen=True, eq=False, repr=False)
class Values:
    """What units are set to when they are taken away.

    Attributes:
        name: what they are called, for people.
        by_site: a number, values per neuron, values by position, or a provider that is asked for every batch.
        source: the model they belong to; other models are then refused.
        rows: digests of the rows they were made from (`tasks.known_rows`), which nothing is judged on.
        plans: digests of the batch plans they were made from instead, where statistics do not know their rows.
        collected_on: those inputs, in words.

    >>> Values.of(0.0), Values.of({"z": torch.zeros(2, 3, 4), "mlp": torch.ones(2, 1, 8)}).sites
    (Values(0 at z), (<Site.Z: 'z'>, <Site.MLP: 'mlp'>))
    """

    name: str
    by_site: Mapping[Site, float | Tensor | Provider]
    source: ModelRecord | None = None
    plans: tuple[str, ...] = ()
    collected_on: str | None = None
    rows: Int64[Tensor, " digest"] | None = None

    @classmethod
    def of(
        cls,
        given: Any,
        statistics: Statistics = None,
        *,
        sites: Site | str | Iterable[Site | str] | None = None,
        name: str | None = None,
    ) -> "Values":
        """Values, whatever they were given as.

        Args:
            given: a number; a center's name, with statistics; a tensor `[layer head dim]`, `[layer pos head dim]` or
                `[layer batch pos head dim]`; a `Resampled` or several, or `Learned` values; a function `(model, batch,
                site)`, such as `counterfactual(prompts)`; or a dict of these by site.
            statistics: what centers are computed from, of one site or by site.
            sites: where units are taken away. What statistics, dicts and `Resampled` say goes before; a number or a
                function alone is for heads, `z`.
            name: what to call them.

        >>> import ablation_lens as al
        >>> model = al.load_model("tiny-opt")
        >>> batches = al.task_for(model).batches(split="collect", tokens=1000)
        >>> stats = al.collect(model, batches, site=["z", "mlp"], progress=False)
        >>> Values.of("peak", stats)
        Values(peak at z, mlp)
        """
        wanted = None if sites is None else _sites(sites)
        made = given if isinstance(given, Values) else _read(given, statistics, wanted)
        if wanted is not None:
            made = made.only(wanted)
        return made if name is None else replace(made, name=name)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where there are values."""
        return tuple(self.by_site)

    def only(self, sites: Iterable[Site | str]) -> "Values":
        """Those of some sites."""
        wanted = _sites(sites)
        missing = [site.value for site in wanted if site not in self.by_site]
        if missing:
            raise MismatchError(
                f"the values {self.name!r} are for {', '.join(site.value for site in self.by_site)}, and "
                f"{', '.join(missing)} was asked for; collect(site=[...]) gives statistics of several sites."
            )
        return replace(self, by_site={site: self.by_site[site] for site in wanted})

    def on(self, prompts: "Twins") -> "Values":
        """The same for other prompts: counterfactual values ask these for their twins."""
        by_site = {
            site: counterfactual(prompts) if isinstance(values, _Counterfactual) else values
            for site, values in self.by_site.items()
        }
        return replace(self, by_site=by_site)

    def ablation(
        self, masks: Mapping[Site, Bool[Tensor, "layer head dim"]], positions: Any = None
    ) -> Ablation | Ablations:
        """The neurons of these masks, set to these values.

        >>> masks = {Site.Z: torch.tensor([[[True, False]]])}
        >>> Values.of(0.0).ablation(masks)
        Ablation(1 of 2 neurons in 1 layer → 0)
        """
        values = self.only(masks).by_site
        parts = [
            Ablation(mask, values[site], self.source, site=site, positions=positions, center=self.name)  # type: ignore[arg-type]
            for site, mask in masks.items()
        ]
        return reduce(or_, parts)

    def everywhere(self, model: Any, positions: Any = None) -> Ablation | Ablations:
        """Every neuron of these sites, set to these values."""
        return self.ablation({site: full(site, model.cfg) for site in self.sites}, positions)

    def __repr__(self) -> str:
        return f"Values({self.name} at {', '.join(site.value for site in self.sites)})"


def full(site: Site, cfg: Any, value: bool = True) -> Bool[Tensor, "layer head dim"]:
    """A mask of all neurons of a site, or of none."""
    return torch.full(site.shape(cfg), value)


class Twins(Protocol):
    """Prompts that know the corrupted twin of every row."""

    def twins(self, batch: Batch) -> Batch:
        """The twins of a batch's rows, in its columns."""
        ...


def counterfactual(prompts: Twins) -> Provider:
    """What the site holds for the corrupted twin of every row, position by position.

    >>> from ablation_lens import circuits, load_model
    >>> model = load_model("tiny-opt")
    >>> prompts = circuits.prompts_for("induction", model, count=4)
    >>> batch = next(iter(prompts))
    >>> values = counterfactual(prompts)(model, batch, Site.Z)  # [layer batch pos head dim]
    >>> values.shape[:3] == (model.cfg.n_layers, *batch.inputs.shape)
    True
    """
    return _Counterfactual(prompts)


@dataclass(frozen=True, eq=False)
class _Counterfactual:
    prompts: Twins
    name: ClassVar[str] = "counterfactual"

    def __call__(self, model: Any, batch: Batch, site: Site) -> Float[Tensor, "layer batch pos head dim"]:
        """Run the model over the twins."""
        with torch.no_grad():
            captured = capture(model, self.prompts.twins(batch).to(model.cfg.device), site)
        return torch.stack([captured[layer] for layer in sorted(captured)])


def position_mean(statistics: ActivationStatistics) -> Provider:
    """The mean at every position, of statistics that hold it (`collect(..., positions=True)`).

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> stats = al.collect(model, [torch.arange(5, 60).view(5, 11)], positions=True, progress=False)
    >>> Values.of("position-mean", stats)
    Values(position-mean at z)
    """
    return _PositionMean(statistics)


@dataclass(frozen=True, eq=False)
class _PositionMean:
    statistics: ActivationStatistics
    name: ClassVar[str] = "position-mean"

    def __post_init__(self) -> None:
        self.statistics.position_mean  # noqa: B018  (raises where the means were not kept)

    def __call__(self, model: Any, batch: Batch, site: Site) -> Float[Tensor, "layer pos head dim"]:
        """The means, as long as the longest text that was seen."""
        if site is not self.statistics.site:
            raise MismatchError(
                f"these means by position are of {self.statistics.site.value}, and {site.value} was asked for."
            )
        # Beyond what was seen there is NaN, which the ablation refuses where a text reaches it.
        return self.statistics.position_mean


def _sites(given: Site | str | Iterable[Site | str]) -> tuple[Site, ...]:
    listed = [given] if isinstance(given, Site | str) else list(given)
    if not listed:
        raise MismatchError('there is no site; give sites=["z"], ["mlp"] or both.')
    return tuple(dict.fromkeys(map(Site.of, listed)))


def _read(given: Any, statistics: Statistics, sites: tuple[Site, ...] | None) -> Values:
    if isinstance(given, str):
        return _of_center(given, statistics, sites)
    if isinstance(given, Mapping):
        return _of_mapping(given, statistics)
    if isinstance(given, Resampled):
        return Values(f"resample-{given.kind}", {given.site: given.values}, given.model)
    if isinstance(given, Learned):
        told = f"what it was learned from ({given.cost.positions:,} positions)"
        return Values(given.method, {given.site: given.values}, given.model, (), told, given.rows)
    if isinstance(given, list | tuple) and given and all(isinstance(each, Resampled | Learned) for each in given):
        return _joined([_read(each, None, None) for each in given])
    if isinstance(given, Ablation | Ablations):
        raise MismatchError("values are what units are set to, and an ablation says which, too; give its values.")
    if isinstance(given, bool) or not (isinstance(given, Real | Tensor | np.ndarray) or callable(given)):
        raise MismatchError(f"values are a {type(given).__name__}; {_FORMS}.")
    where = sites or (Site.Z,)
    if isinstance(given, Real):
        return Values(f"{float(given):g}", dict.fromkeys(where, float(given)))
    if callable(given) and not isinstance(given, Tensor):
        if isinstance(given, _PositionMean):
            return _center_of(given.name, given.statistics)
        _require_provider(given)
        name = getattr(given, "name", None) or getattr(given, "__name__", type(given).__name__)
        return Values(str(name).replace("_", "-"), dict.fromkeys(where, given))
    if len(where) > 1:
        raise MismatchError("one tensor cannot be for several sites; give a dict by site.")
    return Values("given values", {where[0]: torch.as_tensor(given)})


def _require_provider(given: Any) -> None:
    try:
        inspect.signature(given).bind("model", "batch", "site")
    except TypeError:
        raise MismatchError(
            f"values that depend on the input are asked as function(model, batch, site), which {given!r:.60} does not "
            "take."
        ) from None
    except ValueError:  # of functions written in C nobody knows
        return


def _of_center(name: str, statistics: Statistics, sites: tuple[Site, ...] | None) -> Values:
    by_site = {statistics.site: statistics} if isinstance(statistics, ActivationStatistics) else statistics
    if name == "zero":
        # Of whatever there are statistics, and where there are none: nothing is computed from them.
        of_statistics = map(Site.of, by_site) if isinstance(by_site, Mapping) else (Site.Z,)
        return Values("zero", dict.fromkeys(sites or of_statistics, 0.0))
    if name == _Counterfactual.name:
        raise MismatchError("counterfactual values are those of prompts' twins; give circuits.counterfactual(prompts).")
    if by_site is None:
        raise MismatchError(
            f"values={name!r} is a center of the neurons' distributions; give statistics=, which al.collect(model, "
            'batches, site=["z", "mlp"]) measures.'
        )
    by_site = by_site if isinstance(by_site, Mapping) else {}
    if not by_site or not all(isinstance(each, ActivationStatistics) for each in by_site.values()):
        raise MismatchError("statistics are what al.collect gives, of one site or by site.")
    held = {Site.of(site): each for site, each in by_site.items()}
    missing = [site.value for site in sites or () if site not in held]
    if missing:
        raise MismatchError(
            f"these statistics are of {', '.join(site.value for site in held)}, and {', '.join(missing)} was asked "
            'for; collect(site=["z", "mlp"]) gives those of several sites.'
        )
    return _joined([_center_of(name, each) for site, each in held.items() if sites is None or site in sites])


def _center_of(name: str, statistics: ActivationStatistics) -> Values:
    values: Tensor | Provider
    if name == _PositionMean.name:
        values, source = position_mean(statistics), statistics.ablation(_nobody(statistics), "mean").source
    else:
        ablation = statistics.ablation(_nobody(statistics), name)
        values, source = ablation.values, ablation.source
        if about(name).passes == 0:  # made from nothing but the shape: it may be judged on any inputs
            return Values(name, {statistics.site: values}, source)
    provenance = statistics.provenance
    corpora = ", ".join(f"{corpus.name}/{corpus.split}" for corpus in provenance.corpora) or "inputs of one's own"
    plans = tuple(reading.plan for reading in provenance.plans) if statistics.rows is None else ()
    told = f"{corpora} ({provenance.tokens:,} positions)"
    return Values(name, {statistics.site: values}, source, plans, told, statistics.rows)


def _nobody(statistics: ActivationStatistics) -> Tensor:
    return torch.zeros(statistics.shape, dtype=torch.bool)


def _of_mapping(given: Mapping[Any, Any], statistics: Statistics) -> Values:
    if not given:
        raise MismatchError(f"values are an empty dict; {_FORMS}.")
    return _joined([_read(each, statistics, (Site.of(site),)).only([site]) for site, each in given.items()])


def _joined(parts: list[Values]) -> Values:
    """Of several sites, one after another."""
    by_site: dict[Site, Any] = {}
    for part in parts:
        for site, values in part.by_site.items():
            if site in by_site:
                raise MismatchError(f"there are two values for {site.value}; give one for each site.")
            by_site[site] = values
    sources = [part.source for part in parts if part.source is not None]
    for source in sources[1:]:
        sources[0].require_same(source, "these values are of two models")
    told = [part.collected_on for part in parts if part.collected_on is not None]
    rows = [part.rows for part in parts if part.rows is not None]
    return Values(
        " and ".join(dict.fromkeys(part.name for part in parts)),
        by_site,
        sources[0] if sources else None,
        tuple(dict.fromkeys(plan for part in parts for plan in part.plans)),
        told[0] if told else None,
        torch.cat(rows).unique() if rows else None,
    )


def named_values(
    given: Any,
    statistics: Statistics = None,
    *,
    sites: Site | str | Iterable[Site | str] | None = None,
) -> dict[str, Values]:
    """Several values by name, of a list of centers or a dict; `{"peak": "peak", "mine": tensor}`.

    >>> list(named_values(["zero"])), named_values({"nothing": 0.0})
    (['zero'], {'nothing': Values(nothing at z)})
    """
    if isinstance(given, Mapping):
        # Read as names, both would be for heads alone.
        if any(isinstance(each, Site) for each in given) or (given and set(given) <= {site.value for site in Site}):
            raise MismatchError(
                "several values are a dict by their names, and this one is by site; name it, as in {'mine': {'z': …, "
                "'mlp': …}}."
            )
        return {str(name): Values.of(each, statistics, sites=sites, name=str(name)) for name, each in given.items()}
    listed = [given] if isinstance(given, str | Values) else list(given)
    made = [Values.of(each, statistics, sites=sites) for each in listed]
    if len({each.name for each in made}) < len(made) or not made:
        raise MismatchError("values need one name each, and at least one of them; give a dict by name.")
    return {each.name: each for each in made}

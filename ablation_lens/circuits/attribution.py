"""Attributions: what every neuron is worth, all of them at once, from a few runs with gradients."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ablation_lens.ablation.places import read_positions
from ablation_lens.circuits.circuit import Circuit
from ablation_lens.circuits.effects import Effects, NeuronSums
from ablation_lens.circuits.setting import Prepared, Setting, join_rows
from ablation_lens.circuits.units import Level, level_and_sites
from ablation_lens.circuits.values import Statistics
from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.hooked import require_site
from ablation_lens.measure.forward import ordinary, require_ordinary
from ablation_lens.measure.metrics import Given
from ablation_lens.measure.score import Sums
from ablation_lens.names import require_known
from ablation_lens.progress import Advance, progress_over
from ablation_lens.records import record_of
from ablation_lens.sites import Hook, Site, neuron_name

Way = Literal["integrated", "gradient"]
_MOST_STEPS = 1000

ByNeuron = dict[Site, Float64[Tensor, "row layer head dim"]]
"""Every row's attributions, times the row's weight."""


def attribution_effects(
    model: Any,
    batches: Any,
    metric: Given,
    values: Any,
    *,
    method: Way = "integrated",
    steps: int = 8,
    graddrop: bool = False,
    level: Level | Literal["mlp"] = "neuron",
    among: Circuit | str | Iterable[str] | None = None,
    positions: Any = None,
    statistics: Statistics = None,
    sites: Site | str | Iterable[Site | str] | None = None,
    progress: bool = True,
) -> Effects:
    """What every neuron of every site is worth, estimated from gradients; no unit is taken away by itself.

    `integrated` goes from the model as it is to the one with everything ablated: all units move together, from what
    they are to what they are set to, and each is given its part of what the metric changes on the way. The parts of
    all units **add up** to m(∅) − m(M), whatever the values; `Effects.residual` is what so many steps leave of that.
    `gradient` looks at the first step alone: the change that each unit would make by itself, were everything linear.

    Both add up over neurons, so that `.by("head")` gives heads.

    Args:
        model: any hooked model.
        batches: what `al.evaluate` takes; `circuits.Prompts` among it.
        metric: one metric with a gradient: a name out of `al.metrics`, or a function of one's own.
        values: what units are set to: whatever `circuits.Values.of` takes.
        method: "integrated" or "gradient".
        steps: how many points of the way "integrated" looks at (Gauss-Legendre nodes), each by one forward and one
            backward pass. Smooth models need few; kinks, as of ReLU, need more.
        graddrop: the gradient once for each layer, without what passes through that layer's attention and MLP: mean of
            the absolute values (AtP*). It finds units whose ways through the model cancel each other. Absolute values
            are taken in every row, of every unit as a whole, so that they do not add up.
        level: of the units that are given back: "neuron", "head" or "layer"; "mlp" is for MLPs as wholes, alone.
        among: only these units are set to their values; the others stay in the model, and are given 0. The parts of a
            single head then add up to exactly what taking it away does. A circuit, or names such as "L3.H5".
        positions: where units are ablated; what `Ablation.at` takes.
        statistics: what centers are computed from.
        sites: where units are; `Values.of` says which by itself.
        progress: show a bar.

    >>> from ablation_lens import Batch, load_model
    >>> batch = Batch.prompts(torch.tensor([[2, 7, 9], [2, 5, 8]]), answers=[4, 6])
    >>> effects = attribution_effects(load_model("tiny-opt"), batch, "cross_entropy", 0.0, sites=["z", "mlp"], steps=16)
    >>> effects["z"].shape, effects["mlp"].shape, abs(effects.residual) < 0.05 * abs(effects.total)
    (torch.Size([4, 4, 32]), torch.Size([4, 1, 512]), True)
    """
    require_known(method, get_args(Way), "method of attribution")
    at, where = level_and_sites(level, sites)
    # Values that are made in inference mode cannot take part in gradients, and callers may have switched them off.
    with torch.inference_mode(False), torch.enable_grad():
        setting = Setting.of(model, batches, metric, values, statistics=statistics, sites=where, positions=positions)
        require_gradients(setting, method)
        if graddrop:
            _require_droppable(setting, method)
        setting = replace(setting, batches=tuple(map(ordinary, setting.batches)))
        nodes = _nodes(steps) if method == "integrated" else ((0.0, 1.0),)
        attribution = _Attribution(setting, nodes, graddrop, at, _masks(setting, among))
        parts = _Parts(setting)
        with progress_over("attribution", len(setting.batches) * attribution.passes, progress, "passes") as advance:
            try:
                for part in setting.each(lambda prepared: attribution.of(prepared, advance)):
                    parts.add(part)
            except KeyboardInterrupt:
                if not parts.rows:
                    raise
                warnings.warn(
                    f"interrupted: these effects are of {parts.rows:,} of {setting.rows:,} rows.", stacklevel=2
                )
    found = parts.effects(
        method="graddrop" if graddrop else method,
        level=at,
        metric=setting.name,
        values=setting.values.name,
        positions=read_positions(positions),
        steps=steps if method == "integrated" else None,
        source=record_of(model),
        collected_on=setting.values.collected_on,
    )
    if method == "gradient" and setting.metric.clean:
        _require_slope(found)
    return found


# ---------------------------------------------------------------------- what is possible


def require_gradients(setting: Setting, method: str) -> None:
    """Raise `MismatchError` where a gradient cannot be had, or says nothing."""
    name, metric = setting.name, setting.metric
    require_ordinary(setting.model)
    if method == "gradient" and metric.is_ours and metric.clean:
        raise _flat(name)


def _require_droppable(setting: Setting, method: str) -> None:
    if method != "gradient":
        raise MismatchError('graddrop is a way of looking at the gradient; give method="gradient".')
    if setting.model.cfg.n_layers < 2:
        raise MismatchError("graddrop leaves out one layer after another, and this model has a single one.")
    for site in _adds(setting.model.cfg):
        require_site(setting.model, site)


def _require_slope(found: Effects) -> None:
    """Refuse what a function of one's own leaves where the model is compared with itself: nothing but rounding."""
    size = sum(float(found[site].abs().sum()) for site in found.sites)
    if size <= 1e-4 * abs(found.total):
        raise _flat(found.metric)


def _flat(name: str) -> MismatchError:
    return MismatchError(
        f"{name} is 0 for the model as it is, and least there, so that its gradient is 0 for every unit; use "
        'method="integrated".'
    )


def _nodes(steps: int) -> tuple[tuple[float, float], ...]:
    """Gauss-Legendre nodes of [0, 1] with their weights."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= _MOST_STEPS:
        raise MismatchError(f"steps={steps!r} is not possible; give a whole number from 1 to {_MOST_STEPS:,}.")
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return tuple(zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


def _masks(setting: Setting, among: Any) -> Mapping[Site, Bool[Tensor, "layer head dim"]] | None:
    """The neurons that are set to their values; None for all of them."""
    if among is None:
        return None
    circuit = among if isinstance(among, Circuit) else Circuit.of_heads(among, setting.model)
    if circuit.positions is not None:
        raise MismatchError("positions= says where units are set to their values; the circuit of among= has its own.")
    for site, mask in circuit.kept.items():
        if site not in setting.values.by_site:
            raise MismatchError(f"among= names units at {site.value}, for which there are no values.")
        if tuple(mask.shape) != setting.shape(site):
            raise MismatchError(
                f"among= is of shape {tuple(mask.shape)} at {site.value}, the model has {setting.shape(site)}."
            )
    device = setting.model.cfg.device
    none = {site: torch.zeros(setting.shape(site), dtype=torch.bool) for site in setting.values.sites}
    return {site: circuit.kept.get(site, mask).to(device) for site, mask in none.items()}


def _adds(cfg: Any) -> tuple[Site, ...]:
    """What a layer adds to the residual stream."""
    alone = getattr(cfg, "attn_only", False) or not cfg.d_mlp
    return (Site.ATTN_OUT,) if alone else (Site.ATTN_OUT, Site.MLP_OUT)


# ---------------------------------------------------------------------- one batch


@dataclass(frozen=True)
class _Part:
    """What a batch gave: per row the metric of the model and with all ablated, and attributions."""

    clean: Sums
    empty: Sums
    rows: Mapping[Site, Float64[Tensor, "row *unit"]]
    neurons: Mapping[Site, NeuronSums]


@dataclass(frozen=True)
class _Attribution:
    setting: Setting
    nodes: tuple[tuple[float, float], ...]
    graddrop: bool
    level: Level
    among: Mapping[Site, Bool[Tensor, "layer head dim"]] | None

    @property
    def constant(self) -> bool:
        """Whether units are set to the same values at every position of every row."""
        alike = (not callable(each) and getattr(each, "ndim", 3) == 3 for each in self.setting.values.by_site.values())
        return self.setting.positions is None and all(alike)

    @property
    def passes(self) -> int:
        """Backward passes of each batch."""
        return self.setting.model.cfg.n_layers if self.graddrop else len(self.nodes)

    def of(self, prepared: Prepared, advance: Advance) -> _Part:
        """The attributions of a batch."""
        moving = _moving(prepared, self.setting)
        with torch.no_grad():
            clean = prepared.readout.under([])
            empty = prepared.readout.under(self._all_the_way(prepared))
        if self.graddrop:
            run = _Run(self, prepared, moving, 0.0)
            rows, neurons = self._dropping(run, clean.weights, advance)
            return _Part(clean, empty, rows, neurons)
        made: ByNeuron = {}
        for share, weight in self.nodes:
            slopes = _Run(self, prepared, moving, share).slopes()
            made = {site: weight * each + made.get(site, 0) for site, each in slopes.items()}
            advance(1)
        self._require_finite(made)
        return _Part(clean, empty, *self._at_level(made, clean.weights))

    def _all_the_way(self, prepared: Prepared) -> list[Hook]:
        if self.among is None:
            return prepared.hooks()

        def chosen(site: Site, layer: int, replacement: Callable[..., Tensor]) -> Callable[..., Tensor]:
            assert self.among is not None
            mask = site.from_heads(self.among[site][layer])
            return lambda value, hook: torch.where(mask.to(value.device), replacement(value, hook), value)

        return [
            (site.hook_name(layer), chosen(site, layer, replacement))
            for (site, layer), replacement in prepared.replacements.items()
        ]

    def _dropping(
        self, run: "_Run", weights: Tensor, advance: Advance
    ) -> tuple[dict[Site, Tensor], dict[Site, NeuronSums]]:
        """Absolute values of units of this level, averaged over the layer that is left out."""
        layers = self.setting.model.cfg.n_layers
        by_neuron: dict[Site, Tensor] = {}
        by_unit: dict[Site, Tensor] = {}
        for dropped in range(layers):
            slopes = run.slopes(without=dropped, again=dropped + 1 < layers)
            self._require_finite(slopes)
            for site, each in slopes.items():
                units = each.sum((-1, -2)) if self.level == "layer" else each.sum(-1)
                by_unit[site] = by_unit.get(site, 0) + units.abs() / (layers - 1)
                if self.level == "neuron":
                    by_neuron[site] = by_neuron.get(site, 0) + each.abs() / (layers - 1)
            advance(1)
        rows = {site: each.cpu() for site, each in by_unit.items()}
        return rows, {site: NeuronSums.of_rows(each.cpu(), weights.cpu()) for site, each in by_neuron.items()}

    def _at_level(self, made: ByNeuron, weights: Tensor) -> tuple[dict[Site, Tensor], dict[Site, NeuronSums]]:
        neurons = {}
        if self.level == "neuron":
            neurons = {site: NeuronSums.of_rows(each.cpu(), weights.cpu()) for site, each in made.items()}
        rows = {site: each.sum((-1, -2) if self.level == "layer" else -1).cpu() for site, each in made.items()}
        return rows, neurons

    def _require_finite(self, made: ByNeuron) -> None:
        for site, each in made.items():
            if not bool(torch.isfinite(each.sum())):
                row, layer, head, dim = (~torch.isfinite(each)).nonzero()[0].tolist()
                raise NonFiniteError(
                    f"the gradient of {self.setting.name} at {neuron_name(layer, head, dim, site)} is not finite in "
                    f"row {row} of a batch; the metric has no slope there, or the model's dtype overflows. Try "
                    "float32."
                )


class _Run:
    """The model run once, with every unit a share of the way from what it is to what it is set to."""

    def __init__(self, attribution: _Attribution, prepared: Prepared, moving: Tensor | None, share: float) -> None:
        self._attribution, self._prepared, self._moving, self._share = attribution, prepared, moving, share
        self._ends: dict[tuple[Site, int], Tensor] = {}
        self._dropped: int | None = None
        hooks: list[Hook] = [
            (site.hook_name(layer), self._at(site, layer, replacement))
            for (site, layer), replacement in prepared.replacements.items()
        ]
        if attribution.graddrop:
            cfg = attribution.setting.model.cfg
            hooks += [(site.hook_name(n), self._door(n)) for site in _adds(cfg) for n in range(cfg.n_layers)]
        self._total = self._measured(hooks)

    def slopes(self, without: int | None = None, again: bool = False) -> ByNeuron:
        """By how much the metric changes for every unit's next bit of the way, in every row.

        Rows do not see each other, so the gradient of their sum is each row's own.
        """
        self._dropped = without
        ends = list(self._ends.values())
        found = torch.autograd.grad(self._total, ends, allow_unused=True, retain_graph=again)
        by_place = {
            place: torch.zeros_like(end) if slope is None else slope
            for (place, end), slope in zip(self._ends.items(), found, strict=True)
        }
        sites, home = dict.fromkeys(site for site, _ in by_place), ends[0].device
        return {
            # Layers may lie on several devices.
            site: torch.stack([slope.to(home) for (where, _), slope in by_place.items() if where is site], 1).double()
            for site in sites
        }

    def _measured(self, hooks: list[Hook]) -> Tensor:
        try:
            total = self._prepared.readout.under(hooks).values.sum()
        except RuntimeError as error:
            # What torch says to a metric that leaves it, for NumPy or plain numbers.
            if "requires grad" not in str(error):
                raise
            raise self._without_gradient() from error
        if not total.requires_grad:
            raise self._without_gradient()
        return total

    def _without_gradient(self) -> MismatchError:
        return MismatchError(
            f"{self._attribution.setting.name} has no gradient, on which attributions rest; give another metric, or "
            "measure units one by one with knockout_effects."
        )

    def _at(self, site: Site, layer: int, replacement: Callable[..., Tensor]) -> Callable[..., Tensor]:
        among = self._attribution.among
        moves = self._moving
        if among is not None:
            moves = among[site][layer] if moves is None else moves & among[site][layer]

        def hook(value: Tensor, hook: Any) -> Tensor:
            here = site.to_heads(value)
            with torch.no_grad():
                # The same at every position: one value per neuron is enough, and no more is kept.
                like = torch.zeros_like(here[:1, :1]) if self._attribution.constant else here.detach()
                target = site.to_heads(replacement(site.from_heads(like), hook))
                if among is not None:
                    target = torch.where(among[site][layer].to(here.device), target, here)
            wide = torch.float64 if here.dtype == torch.float64 else torch.float32
            end = torch.zeros(len(here), *here.shape[2:], dtype=wide, device=here.device, requires_grad=True)
            self._ends[site, layer] = end
            move = None if moves is None else moves.to(here.device)
            return site.from_heads(_OnTheWay.apply(here, target, end, self._share, move))  # type: ignore[no-untyped-call]

        return hook

    def _door(self, layer: int) -> Callable[..., None]:
        """What a layer adds, with a gradient that can be shut off."""

        def shut(gradient: Tensor) -> Tensor | None:
            return torch.zeros_like(gradient) if self._dropped == layer else None

        def hook(value: Tensor, hook: Any) -> None:
            if value.requires_grad:
                value.register_hook(shut)

        return hook


class _OnTheWay(torch.autograd.Function):
    """A share of the way from here to a target; the gradient of `end` is what more of it would change, row by row.

    The target is a constant, so what was here before counts for less, the farther one is: 1 − share.
    """

    @staticmethod
    def forward(
        ctx: Any,
        here: Float[Tensor, "row pos head dim"],
        target: Float[Tensor, "#row #pos head dim"],
        end: Float[Tensor, "row head dim"],
        share: float,
        moves: Bool[Tensor, "#row #pos #head #dim"] | None,
    ) -> Float[Tensor, "row pos head dim"]:
        ctx.save_for_backward(here, target, moves)
        ctx.share, ctx.wide = share, end.dtype
        # Exact where both are the same: what stays is not rounded.
        return torch.lerp(here, target, share)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor, None, None]:
        here, target, moves = ctx.saved_tensors
        slope = (target - here).to(ctx.wide).mul_(gradient).sum(1)
        if not ctx.needs_input_grad[0]:
            return None, None, slope, None, None
        if ctx.share:
            less = gradient * (1 - ctx.share)
            gradient = less if moves is None else torch.where(moves, less, gradient)
        return gradient, None, slope, None, None


def _moving(prepared: Prepared, setting: Setting) -> Bool[Tensor, "row pos 1 1"] | None:
    """At which positions units are set to their values; None where that is so at all of them."""
    valid = prepared.batch.valid
    if setting.positions is None and bool(valid.all()):
        return None
    (site, _), replacement = next(iter(prepared.replacements.items()))
    # Values are numbers: what is not a number afterwards has stayed.
    nothing = torch.full((*valid.shape, *setting.shape(site)[1:]), torch.nan, device=valid.device)
    moves = ~site.to_heads(replacement(site.from_heads(nothing), None)).isnan()[..., :1, :1]
    return None if bool(moves.all()) else moves


# ---------------------------------------------------------------------- all batches


class _Parts:
    """What the batches gave, one after another."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._parts: list[_Part] = []
        self._neurons: dict[Site, NeuronSums] = {}

    @property
    def rows(self) -> int:
        """How many rows are done."""
        return sum(len(part.clean.weights) for part in self._parts)

    def add(self, part: _Part) -> None:
        """One batch more."""
        # Neurons are added up at once: what is kept of them must not grow with the rows.
        neurons = {
            site: sums if site not in self._neurons else self._neurons[site] + sums
            for site, sums in part.neurons.items()
        }
        self._neurons, self._parts = neurons, [*self._parts, replace(part, neurons={})]

    def effects(self, **told: Any) -> Effects:
        """All together."""
        return Effects(
            clean=join_rows(part.clean for part in self._parts),
            empty=join_rows(part.empty for part in self._parts),
            rows={site: torch.cat([part.rows[site] for part in self._parts]) for site in self._setting.values.sites},
            neurons=self._neurons,
            **told,
        )

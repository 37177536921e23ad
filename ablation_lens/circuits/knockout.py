"""`knockout_effects`: units are taken away one at a time, exactly, and the metric is measured again."""

import math
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ablation_lens.ablation.places import read_positions
from ablation_lens.circuits.branches import Trunk, Units
from ablation_lens.circuits.effects import Effects, NeuronSums
from ablation_lens.circuits.setting import Prepared, Setting, join_rows
from ablation_lens.circuits.units import axes_of, level_and_sites, units_of
from ablation_lens.circuits.values import Statistics
from ablation_lens.measure.metrics import Given
from ablation_lens.measure.score import Sums
from ablation_lens.progress import progress_over
from ablation_lens.records import record_of
from ablation_lens.sites import Site


def knockout_effects(
    model: Any,
    batches: Any,
    metric: Given,
    values: Any,
    *,
    level: Literal["head", "neuron", "layer", "mlp"] = "head",
    positions: Any = None,
    statistics: Statistics = None,
    sites: Site | str | Iterable[Site | str] | None = None,
    progress: bool = True,
) -> Effects:
    """Ablate every unit by itself, and say by how much the metric changes: m(without the unit) − m(model), row by row.

    Exact: nothing is approximated. What units have in common is computed once: the blocks before them, and attention
    in the block of an ablated head.

    An MLP as a whole is all of its neurons. Setting them to zero leaves its output bias in the stream, and setting a
    layer's heads to zero leaves that of attention: this is not the same as zeroing `mlp_out` or `attn_out`.

    Args:
        model: any hooked model.
        batches: prompts or other inputs, as `al.evaluate` takes them.
        metric: a name out of `al.metrics`, or a function `(logits, batch) -> [row]`.
        values: what units are set to; whatever `circuits.Values.of` takes.
        level: "head", "layer" or "neuron"; an MLP as a whole is the one head of its layer at the site "mlp", and
            level="mlp" is that site's layers.
        positions: where units are ablated, as `Ablation.at` takes it; None for all positions.
        statistics: what centers are computed from.
        sites: where units are; see `circuits.Values.of`.
        progress: show a bar. After Ctrl-C, units that were measured on all inputs are kept; see `Effects.done`.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> prompts = al.Batch.prompts(torch.tensor([[2, 7, 9], [2, 8, 4]]), answers=[5, 6], wrong=[7, 8])
    >>> effects = knockout_effects(model, prompts, "logit_difference", 0.0)
    >>> effects["z"].shape, effects.is_whole
    (torch.Size([4, 4]), True)
    """
    at, where = level_and_sites(level, sites)
    setting = Setting.of(model, batches, metric, values, statistics=statistics, sites=where, positions=positions)
    measured = _Measured(setting, at)
    try:
        with torch.inference_mode(), progress_over("knocking out", measured.size, progress, "rows") as advance:
            measured.run(advance)
    except KeyboardInterrupt:
        if not measured.count:
            raise
        warnings.warn(
            f"interrupted: {measured.count:,} of {measured.units:,} units were measured; effects.done says which, and "
            "the others are NaN.",
            stacklevel=2,
        )
    return measured.effects()


class _Measured:
    """What is known of every unit so far."""

    def __init__(self, setting: Setting, level: str) -> None:
        self.setting, self.level = setting, level
        shapes = {site: setting.shape(site) for site in setting.values.sites}
        of_units = {site: units_of(shape, level) for site, shape in shapes.items()}
        self.counts = {site: math.prod(units[1:]) for site, units in of_units.items()}
        self.done = {site: torch.zeros(units, dtype=torch.bool) for site, units in of_units.items()}
        self.rows: dict[Site, Tensor] = {}
        self.neurons: dict[Site, NeuronSums] = {}
        for site, units in of_units.items():
            if axes_of(level) == 3:
                self.neurons[site] = NeuronSums(*(torch.zeros(units, dtype=torch.float64) for _ in range(3)))
            else:
                # NaN, so that what an interruption left out has no interval.
                self.rows[site] = torch.full((setting.rows, *units), math.nan, dtype=torch.float64)
        self.clean: list[Sums] = []
        self.empty: list[Sums] = []

    @property
    def units(self) -> int:
        """How many there are."""
        return sum(done.numel() for done in self.done.values())

    @property
    def count(self) -> int:
        """How many were measured on all inputs."""
        return sum(int(done.sum()) for done in self.done.values())

    @property
    def size(self) -> int:
        """How much there is to measure."""
        return self.units * self.setting.rows

    def run(self, advance: Any) -> None:
        """Layer by layer, each on all inputs: when it ends early, most units were measured on all inputs or on none."""
        trunks: list[Trunk] = []

        def prepare(prepared: Prepared) -> tuple[Trunk, Sums]:
            trunk = Trunk(prepared, thorough=not trunks)
            return trunk, prepared.readout.under(prepared.hooks())

        for trunk, empty in self.setting.each(prepare):
            trunks.append(trunk)
            self.clean.append(trunk.clean)
            self.empty.append(empty)
        for layer in range(self.setting.model.cfg.n_layers):
            start = 0
            for trunk in trunks:
                for units, effects in trunk.effects(layer, self.counts):
                    self._add(layer, units, effects.T.cpu(), start, trunk.clean.weights)
                    if trunk is trunks[-1]:
                        done = self.done[units.site]
                        done.view(len(done), -1)[layer, units.first : units.last] = True
                    advance(effects.numel())
                start += trunk.rows

    def _add(
        self, layer: int, units: Units, effects: Float64[Tensor, "row unit"], start: int, weights: Float[Tensor, " row"]
    ) -> None:
        site, here = units.site, slice(units.first, units.last)
        if site in self.rows:
            rows = self.rows[site].view(len(self.rows[site]), len(self.done[site]), -1)
            rows[start : start + len(effects), layer, here] = effects
            return
        more, held = NeuronSums.of_rows(effects, weights.cpu()), self.neurons[site]
        for sums, further in zip(vars(held).values(), vars(more).values(), strict=True):
            sums[layer].view(-1)[here] += further

    def effects(self) -> Effects:
        """Of what was measured."""
        setting = self.setting
        done: dict[Site, Bool[Tensor, "*unit"]] = self.done
        return Effects(
            "knockout",
            self.level,
            setting.name,
            setting.values.name,
            join_rows(self.clean),
            join_rows(self.empty),
            self.rows,
            self.neurons,
            done,
            read_positions(setting.positions),
            source=record_of(setting.model),
            collected_on=setting.values.collected_on,
        )

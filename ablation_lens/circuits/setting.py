"""`Setting`: what every circuit analysis is about: a model, inputs, one metric, and the values of what is ablated."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ablation_lens.circuits.prompt_tasks import require_no_task
from ablation_lens.circuits.values import Statistics, Values
from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.measure.metrics import Given, Metric, metrics_of
from ablation_lens.measure.readout import Readout
from ablation_lens.measure.score import Sums
from ablation_lens.sites import Hook, Site
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Prepared:
    """One batch, ready to be measured.

    Attributes:
        readout: the metric, row by row.
        replacements: site and layer → what a hook there would make of an activation if every unit were ablated.
            Positions that stay come out as they went in; of padding, to which nobody attends, nothing is promised.
    """

    readout: Readout
    replacements: dict[tuple[Site, int], Callable[[Tensor, Any], Tensor]]

    @property
    def batch(self) -> Batch:
        """As the model sees it."""
        return self.readout.batch

    def hooks(self) -> list[Hook]:
        """Those that ablate everything."""
        return [(site.hook_name(layer), hook) for (site, layer), hook in self.replacements.items()]


@dataclass(frozen=True, eq=False)
class Setting:
    """A model, inputs, a metric and values, checked once.

    Attributes:
        name: what the metric is called.
        batches: read once, in their order.
        positions: where units are ablated; None for all positions.
    """

    model: Any
    batches: tuple[Batch, ...]
    name: str
    metric: Metric
    values: Values
    positions: Any = None

    @classmethod
    def of(
        cls,
        model: Any,
        batches: Any,
        metric: Given,
        values: Any,
        *,
        statistics: Statistics = None,
        sites: Site | str | Iterable[Site | str] | None = None,
        positions: Any = None,
    ) -> "Setting":
        """Understand what people give, and refuse what cannot be measured.

        >>> from ablation_lens import load_model
        >>> batch = Batch.prompts(torch.tensor([[2, 7, 9], [2, 5, 8]]), answers=[4, 6])
        >>> setting = Setting.of(load_model("tiny-opt"), batch, "cross_entropy", 0.0)
        >>> setting.name, setting.values
        ('cross_entropy', Values(0 at z))
        """
        require_no_task(batches)
        named = metrics_of(metric)
        if len(named) != 1:
            raise MismatchError(f"one metric says what a circuit is for, got {len(named)}; ask once for each.")
        name, measured = next(iter(named.items()))
        made = Values.of(values, statistics, sites=sites)
        # By item, as a plan reads its batches anew every time.
        padding = Padding(model, stacklevel=5)  # the line that calls the public function
        listed = tuple(padding.marked(batch) for batch in batches_of(model, batches, keep=True, scored=True))
        if not any(bool(batch.scored.any()) for batch in listed) and not measured.whole:
            raise CorpusError("there is nothing to measure: the batches hold no scored position.")
        _require_no_experts(model, made.sites)
        made.everywhere(model, positions).require_fits(model)
        return cls(model, listed, name, measured, made, positions)

    @property
    def rows(self) -> int:
        """How many rows all batches have."""
        return sum(len(batch.inputs) for batch in self.batches)

    def shape(self, site: Site) -> tuple[int, int, int]:
        """`(layer, head, dim)` of a site."""
        return site.shape(self.model.cfg)

    def prepare(self, batch: Batch) -> Prepared:
        """A batch, or some of its rows, with values in plain tensors."""
        readout = Readout(self.model, batch.to(self.model.cfg.device), self.metric)
        # Providers run the model, and what they give is constant.
        with torch.no_grad():
            ablation = self.values.everywhere(self.model, self.positions)
            plain = ablation.resolve(self.model, readout.given, run_as=readout.batch)
        by_name: dict[str, Any] = dict(plain.hooks(offset=0))
        layers = range(self.model.cfg.n_layers)
        places = {(site, layer): by_name[site.hook_name(layer)] for layer in layers for site in self.values.sites}
        return Prepared(readout, places)

    def each(self, measure: Callable[[Prepared], Made]) -> Iterator[Made]:
        """What a function gives for every batch, in order; where memory runs out, for its halves."""
        for batch in self.batches:
            yield from self._within_memory(batch, measure)

    def _within_memory(self, batch: Batch, measure: Callable[[Prepared], Made]) -> Iterator[Made]:
        try:
            made = measure(self.prepare(batch))
        except torch.OutOfMemoryError:
            if len(batch.inputs) == 1:
                raise
        else:
            yield made
            return
        # Outside the except: inside it the traceback keeps the failed run's tensors alive, and memory stays full.
        middle = len(batch.inputs) // 2
        yield from self._within_memory(batch.rows(0, middle), measure)
        yield from self._within_memory(batch.rows(middle), measure)

    def everything(self) -> tuple[Sums, Sums]:
        """Row by row, the metric of the model as it is, and with every unit ablated."""

        def both(prepared: Prepared) -> tuple[Sums, Sums]:
            return prepared.readout.under([]), prepared.readout.under(prepared.hooks())

        with torch.inference_mode():
            made = list(self.each(both))
        return join_rows(first for first, _ in made), join_rows(second for _, second in made)


def join_rows(parts: Iterable[Sums]) -> Sums:
    """Rows of several batches, one batch after another, on the CPU and in float64."""
    listed = list(parts)
    values, weights = (
        torch.cat([each.detach().double().cpu() for each in parts])
        for parts in zip(*((part.values, part.weights) for part in listed), strict=True)
    )
    if not bool(weights.any()):
        raise CorpusError("there is nothing to measure: the metric gives every row a weight of 0.")
    return Sums(values, weights)


def _require_no_experts(model: Any, sites: Iterable[Site]) -> None:
    experts = next(
        (name for name in ("num_experts", "num_local_experts") if getattr(model.cfg, name, None)),
        None,
    )
    if experts is not None and Site.MLP in sites:
        raise MismatchError(
            f"this model's MLPs are mixtures of {getattr(model.cfg, experts)} experts, each with neurons of its own; "
            "circuits take its attention only: sites='z'."
        )

"""`sequential-mean`: the mean of every layer where all below it is ablated already, each layer to its own such mean."""

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.errors import CorpusError, NonFiniteError
from ablation_lens.hooked import require_site, task_of
from ablation_lens.measure.forward import require_positions, watch, within_memory
from ablation_lens.measure.learned import Cost, Learned, all_rows, distance_told, statistics_of
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over
from ablation_lens.sites import Site, neuron_name
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.known_rows import row_digests
from ablation_lens.tasks.padding import Padding

METHOD = "sequential-mean"


def sequential_mean(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics | None = None,
    *,
    site: Site | str | None = None,
    progress: bool = True,
) -> Learned:
    """The mean layer by layer: of what a layer does once all below it says nothing any more.

    A plain mean is of the model as it is. Under ablation a layer sees something else, and its mean moves: this is
    where it moves to when all of the layers below are set to their own means. In the first layer both are the same.

    Args:
        model: any hooked model.
        batches: what is read, as `collect` takes it.
        statistics: their mean is the first layer's; None collects them from the batches.
        site: where neurons are, if there are no statistics.
        progress: show a bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> batches = al.task_for(model).batches(split="collect", tokens=1000)
    >>> statistics = al.collect(model, batches, progress=False)
    >>> found = sequential_mean(model, batches, statistics, progress=False)
    >>> torch.equal(found.values[0], statistics.mean[0]), torch.equal(found.values[1], statistics.mean[1])
    (True, False)
    """
    listed = batches_of(model, batches, keep=True)
    statistics = statistics_of(model, listed, statistics, site, progress)
    require_site(model, statistics.site, replaced=True)
    padding, task = Padding(model, stacklevel=4), task_of(model)
    given = [padding.mark(each) for each in listed]
    device, layers = model.cfg.device, statistics.shape[0]
    positions = sum(batch.size for batch in given)
    values = statistics.mean.clone()
    with progress_over("sequential mean", positions * (layers - 1), progress) as advance:
        for layer in range(1, layers):
            mean = _Mean(model, statistics, layer, values)
            for batch in given:
                within_memory(batch.to(device), mean.add)
                advance(batch.size)
            values[layer] = mean.found()
    return Learned(
        METHOD,
        values,
        statistics.site,
        statistics.provenance.model,
        {},
        all_rows(statistics, torch.cat([row_digests(batch, task).flatten() for batch in given])),
        # A run ends after the layer that it is for.
        Cost(positions, statistics.provenance.tokens + positions * sum(range(2, layers + 1)) // layers),
        f"on average {distance_told(values, statistics)}",
    )


class _Mean:
    """The mean of one layer, with all below it set to `values`."""

    def __init__(
        self, model: Any, statistics: ActivationStatistics, layer: int, values: Float64[Tensor, "layer head dim"]
    ) -> None:
        self.model, self.layer, self.site = model, layer, statistics.site
        self.include_bos = statistics.provenance.include_bos
        below = torch.zeros(statistics.shape, dtype=torch.bool)
        below[:layer] = True
        self.hooks = Ablation(below, values, site=self.site).hooks()
        # About the plain mean: sums of what is far from zero lose digits.
        self.about = statistics.mean[layer].to(model.cfg.device)
        self.total, self.count = torch.zeros_like(self.about), 0

    @torch.inference_mode()
    def add(self, batch: Any) -> None:
        """Add a batch."""
        counted = batch.counted(self.include_bos)
        seen: list[Tensor] = []

        def see(layer: int, activation: Tensor) -> None:
            require_positions(self.site, layer, activation, counted)
            total = (activation[counted.to(activation.device)].double() - self.about.to(activation.device)).sum(0)
            if not bool(total.isfinite().all()):
                head, dim = (~total.isfinite()).nonzero()[0].tolist()
                raise NonFiniteError(
                    f"{neuron_name(layer, head, dim, self.site)} is not finite where the layers below are set to their "
                    "means; the model's dtype overflows. Try bfloat16 or float32."
                )
            seen.append(total)

        watch(self.model, batch, self.site, see, [self.layer], self.hooks)
        # Only now: memory may run out after the site, and the halves then come again.
        self.total += seen[0].to(self.total.device)
        self.count += int(counted.sum())

    def found(self) -> Float64[Tensor, "head dim"]:
        """The mean of what was added."""
        if not self.count:
            raise CorpusError("there was nothing to take a mean of: the batches hold no real position.")
        return (self.about + self.total / self.count).cpu()

"""`sensitivity-mean`: the mean of every neuron, each of its values weighted by how much it matters there."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ablation_lens.errors import CorpusError, MismatchError, NonFiniteError
from ablation_lens.hooked import require_site, task_of
from ablation_lens.measure.descent import Masking, generator_for
from ablation_lens.measure.evaluation import CHUNK_LOGITS
from ablation_lens.measure.forward import (
    ordinary,
    require_ordinary,
    require_positions,
    scored_logits,
    within_memory,
)
from ablation_lens.measure.learned import Cost, Learned, all_rows, distance_told, statistics_of
from ablation_lens.measure.metrics import Asked
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over
from ablation_lens.sites import Hook, Site, neuron_name
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.known_rows import row_digests
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch

METHOD = "sensitivity-mean"

_MOST_ANSWERS = 2**12
"""Backward passes of a batch that an exact expectation may take."""


def require_share(*, ablated: float = 0.0, draws: int | None = 1, seed: int = 0) -> None:
    """Refuse settings that no model could be asked with.

    >>> require_share(ablated=7)
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: ablated=7 is not possible; give a share from 0 to 1.
    """
    if isinstance(ablated, bool) or not isinstance(ablated, int | float) or not 0 <= ablated <= 1:
        raise MismatchError(f"ablated={ablated!r} is not possible; give a share from 0 to 1.")


def sensitivity_mean(
    model: Any,
    batches: Any,
    statistics: ActivationStatistics | None = None,
    *,
    ablated: float = 0.0,
    draws: int | None = 1,
    seed: int = 0,
    site: Site | str | None = None,
    progress: bool = True,
) -> Learned:
    """The mean of every neuron, weighted by how much its value matters: E[w·z] / E[w] with w = (∂ log p / ∂z)².

    For small changes, this is the constant under which what the model says moves least (by KL divergence) when a
    neuron is set to it at one position after another, by itself; of many neurons and all positions at once it promises
    nothing. Where a neuron matters nowhere it is its mean.

    p is what the model itself says, not what is right: labels are drawn from it, one at every scored position, and one
    backward pass is of all of them together, as their products vanish on average. A model in 16 bits gives gradients
    in 16 bits; all else is in 32 and 64.

    Args:
        model: any hooked model.
        batches: what is read, as `collect` takes it.
        statistics: what the mean is from, and whether special positions count; None collects them from the batches.
        ablated: this share of every layer is set to the mean meanwhile, other neurons in every row: how much values
            matter where others are ablated, too.
        draws: how often labels are drawn; None takes every label with its probability, in a backward pass for each
            label and scored position: for models that have few.
        seed: draws labels, and neurons that are ablated; no study draws such masks.
        site: where neurons are, if there are no statistics.
        progress: show a bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> batches = al.task_for(model).batches(split="collect", tokens=1000)
    >>> sensitivity_mean(model, batches, ablated=0.5, progress=False).method
    'sensitivity-mean ablated=0.5'
    """
    require_share(ablated=ablated)
    if draws is not None and (isinstance(draws, bool) or not isinstance(draws, int) or draws < 1):
        raise MismatchError(f"draws={draws!r} is not possible; give a whole number from 1, or None for every label.")
    require_ordinary(model)
    listed = batches_of(model, batches, keep=True, scored=True)
    statistics = statistics_of(model, listed, statistics, site, progress)
    require_site(model, statistics.site, replaced=True)
    padding, rows = Padding(model, stacklevel=4), []
    # Values that are made in inference mode cannot take part in gradients, and callers may have switched them off.
    with torch.inference_mode(False), torch.enable_grad(), progress_over(METHOD, None, progress) as advance:
        sums = _Sums(model, statistics, float(ablated), draws, seed)
        for item in listed:
            batch = ordinary(padding.mark(item))
            within_memory(batch, sums.add)
            rows.append(row_digests(batch, sums.task).flatten())
            advance(batch.size)
    values, nowhere = sums.found()
    return Learned(
        METHOD + (f" ablated={float(ablated)!r}" if ablated else ""),
        values,
        statistics.site,
        statistics.provenance.model,
        {"ablated": float(ablated), "draws": draws, "seed": seed},
        all_rows(statistics, torch.cat(rows)),
        Cost(sums.positions, statistics.provenance.tokens + sums.positions, sums.backward),
        f"on average {distance_told(values, statistics)}"
        + (f"; {nowhere:,} of {values.numel():,} matter nowhere, and are their mean" if nowhere else ""),
    )


class _Sums:
    """Sums of w and of w·(z − mean) over positions, in float64."""

    def __init__(
        self, model: Any, statistics: ActivationStatistics, ablated: float, draws: int | None, seed: int
    ) -> None:
        self.model, self.site, self.task = model, statistics.site, task_of(model)
        self.include_bos = statistics.provenance.include_bos
        self.masking = Masking((ablated, ablated)) if ablated else None
        self.draws, self.seed = draws, seed
        self.device = torch.device(model.cfg.device)
        self.mean = statistics.mean
        self.weight, self.weighted = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        self.positions = self.backward = self.predictions = 0

    def add(self, given: Batch) -> None:
        """Add a batch, which lies where digests of its rows are made."""
        digests = row_digests(given, self.task)[:, 0].tolist()
        batch = given.to(self.device)
        seen = _Seen(self.site, self.mean, self._masks(digests))
        log_p = scored_logits(self.model, batch, seen.hooks())
        log_p = (log_p if log_p.dtype == torch.float64 else log_p.float()).log_softmax(-1)
        if bool(log_p.isnan().any()):
            raise NonFiniteError(
                "what the model says at some scored position is not finite; its dtype overflows. Try bfloat16 or "
                "float32."
            )
        row = Asked.of(batch).row
        counted = batch.counted(self.include_bos)
        weight, weighted, backward = torch.zeros_like(self.weight), torch.zeros_like(self.weight), 0
        objectives = list(self._objectives(log_p, row, digests))
        for number, (said, shares) in enumerate(objectives, start=1):
            # The last one frees what the run has kept, layer by layer.
            kept = number < len(objectives)
            gradients = torch.autograd.grad(said, seen.additions(), retain_graph=kept, allow_unused=True)
            for layer, gradient in enumerate(gradients):
                # None in a layer on which nothing that is scored depends.
                if gradient is not None:
                    added = self._layer(layer, seen.before[layer], gradient, shares, counted)
                    weight[layer] += added[0]
                    weighted[layer] += added[1]
            backward += batch.size
        # At the end: a batch of which memory runs out half-way is not counted twice.
        self.weight += weight
        self.weighted += weighted
        self.positions += batch.size
        self.backward += backward
        self.predictions += len(row)

    def found(self) -> tuple[Float64[Tensor, "layer head dim"], int]:
        """The weighted mean, and how many neurons have no weight."""
        if not self.predictions:
            raise CorpusError("nothing tells how much values matter: the batches hold no scored position.")
        nowhere = self.weight == 0
        return self.mean + torch.where(nowhere, 0.0, self.weighted / self.weight), int(nowhere.sum())

    def _masks(self, digests: Sequence[int]) -> Bool[Tensor, "row layer head dim"] | None:
        """Drawn for what a row holds: however rows are batched, each has the same mask."""
        if self.masking is None:
            return None
        layers, heads, dims = self.mean.shape
        drawn = [
            self.masking.draw((layers, heads, dims), 1, generator_for(self.seed, f"sensitivity mask {digest}"))
            for digest in digests
        ]
        return torch.cat(drawn)

    def _objectives(
        self, log_p: Float[Tensor, "prediction out"], row: Int64[Tensor, " prediction"], digests: Sequence[int]
    ) -> Iterator[tuple[Float[Tensor, ""], Float64[Tensor, " row"]]]:
        """What to take the gradient of, and what its square counts for in every row."""
        if not len(row):
            return
        rows = len(digests)
        if self.draws is not None:
            everywhere = torch.full((rows,), 1 / self.draws, dtype=torch.float64, device=row.device)
            for labels in self._drawn(log_p.detach(), row, digests):
                yield log_p.gather(1, labels[:, None]).sum(), everywhere
            return
        counts = torch.bincount(row, minlength=rows)
        at_once, labels_each = int(counts.max()), log_p.shape[1]
        if at_once * labels_each > _MOST_ANSWERS:
            raise MismatchError(
                f"an exact expectation takes a backward pass for every label and scored position, here {labels_each:,} "
                f"× {at_once:,} for one batch; give draws=1, or more of them."
            )
        # Rows know nothing of each other: the first scored position of all of them together, then the second.
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        for number in range(at_once):
            here = (place == number).nonzero().flatten()
            for label in range(labels_each):
                shares = torch.zeros(rows, dtype=torch.float64, device=row.device)
                shares[row[here]] = log_p[here, label].detach().double().exp()
                if bool(shares.any()):
                    yield log_p[here, label].sum(), shares

    def _drawn(
        self, log_p: Float[Tensor, "prediction out"], row: Int64[Tensor, " prediction"], digests: Sequence[int]
    ) -> Int64[Tensor, "draw prediction"]:
        """Labels, drawn for what a row holds."""
        assert self.draws is not None
        counts = torch.bincount(row, minlength=len(digests)).tolist()
        drawn = torch.cat(
            [
                torch.rand(
                    (count, self.draws),
                    generator=generator_for(self.seed, f"sensitivity labels {digest}"),
                    dtype=torch.float64,
                )
                for count, digest in zip(counts, digests, strict=True)
            ]
        ).to(row.device)
        labels = []
        at_once = max(1, CHUNK_LOGITS // log_p.shape[1])
        for part, each in zip(log_p.split(at_once), drawn.split(at_once), strict=True):
            reached = part.double().exp().cumsum(1)
            # Of rounding, what is added up ends near 1 and not at it.
            found = torch.searchsorted(reached, each * reached[:, -1:], right=True)
            labels.append(found.clamp(max=log_p.shape[1] - 1))
        return torch.cat(labels).T

    def _layer(
        self,
        layer: int,
        values: Float[Tensor, "batch pos head dim"],
        gradient: Float[Tensor, "batch pos *site"],
        shares: Float64[Tensor, " row"],
        counted: Bool[Tensor, "batch pos"],
    ) -> tuple[Float64[Tensor, "head dim"], Float64[Tensor, "head dim"]]:
        """What one layer adds."""
        slope = self.site.to_heads(gradient)
        require_positions(self.site, layer, slope, counted)
        counted, shares = counted.to(slope.device), shares.to(slope.device)
        row = counted.nonzero()[:, 0]
        weight = slope[counted].double().square() * shares[row, None, None]
        away = values[counted].double() - self.mean[layer].to(slope.device)
        both = weight.sum(0).cpu(), (weight * away).sum(0).cpu()
        wrong = ~(both[0].isfinite() & both[1].isfinite())
        if bool(wrong.any()):
            head, dim = wrong.nonzero()[0].tolist()
            raise NonFiniteError(
                f"{neuron_name(layer, head, dim, self.site)}, or the gradient there, is not finite; the model's dtype "
                "overflows. Try bfloat16 or float32."
            )
        return both


class _Seen:
    """What a site holds while the model runs, and zeros added after it, whose gradient is that of what comes after."""

    def __init__(
        self,
        site: Site,
        mean: Float64[Tensor, "layer head dim"],
        masks: Bool[Tensor, "row layer head dim"] | None,
    ) -> None:
        self.site, self.mean, self.masks = site, mean, masks
        self.before: dict[int, Float[Tensor, "batch pos head dim"]] = {}
        self._added: dict[int, Tensor] = {}

    def hooks(self) -> list[Hook]:
        """One per layer."""
        return [(self.site.hook_name(layer), self._hook(layer)) for layer in range(len(self.mean))]

    def additions(self) -> list[Tensor]:
        """The zeros of every layer."""
        missing = [self.site.hook_name(layer) for layer in range(len(self.mean)) if layer not in self._added]
        if missing:
            raise MismatchError(f"this model has no {missing[0]}, so there are no neurons at {self.site.value!r}.")
        return [self._added[layer] for layer in range(len(self.mean))]

    def _hook(self, layer: int) -> Callable[..., Tensor]:
        def see(activation: Tensor, hook: Any) -> Tensor:
            heads = self.site.to_heads(activation)
            self.before[layer] = heads.detach()
            if self.masks is not None:
                mask = self.masks[:, None, layer].to(heads.device)
                heads = torch.where(mask, self.mean[layer].to(heads.device, heads.dtype), heads)
            after = self.site.from_heads(heads)
            # The same zeros where a single hook fires several times: their gradient is of all that comes after.
            if layer not in self._added:
                self._added[layer] = torch.zeros_like(after, requires_grad=True)
            return after + self._added[layer]

        return see

"""Several processes collect together: which batches are whose, and what they counted, added up exactly.

`Ranks` moves tensors from one to another. Counts are whole numbers on grids that nest, so how many ranks there were
changes none of them; moments are added in the order of the ranks.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.neurons.histogram import RESOLUTION_NAMES, NeuronHistogram
from ablation_lens.neurons.histogram_file import HistogramHeader
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.rows import own_memory
from ablation_lens.neurons.statistics import ActivationStatistics, PlanReading, Provenance, StatisticsHeader
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.ranks import Ranks
from ablation_lens.tasks.given import Given
from ablation_lens.tasks.plans import Batch, BatchPlan, PlanPart, TextItem


@dataclass(frozen=True)
class Share:
    """The batches of a plan that one rank reads; all of them, where there is one.

    >>> from ablation_lens import load_model, task_for
    >>> plan = task_for(load_model("tiny-opt")).batches(tokens=1000, batch_size=1)
    >>> [list(share_of(plan, Ranks(rank, 2)).numbers) for rank in (0, 1)]
    [[0, 2, 4], [1, 3]]
    """

    plan: BatchPlan
    numbers: range
    dealt: range
    """The batches of all ranks together."""

    @property
    def size(self) -> int:
        """Tokens (special ones included), or images."""
        items = [self.plan.items[place] for number in self.numbers for place in self.plan.batches[number]]
        return sum(item.length if isinstance(item, TextItem) else 1 for item in items)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.plan.nth, self.numbers)

    def read(self, count: int) -> PlanReading:
        """What the first so many of them are of the plan."""
        numbers = self.numbers[:count]
        return PlanReading(self.plan.digest, len(self.plan), tuple(_ranges(numbers)))


def share_of(batches: Any, ranks: Ranks) -> "Share | Given":
    """What is this rank's to read: as many batches as any other, and, as the longest come first, about as long ones.

    A user's own batches are read by one process only.
    """
    if isinstance(batches, BatchPlan | PlanPart):
        part = batches if isinstance(batches, PlanPart) else batches.part(0)
        dealt = range(part.start, part.stop)
        return Share(part.plan, dealt[ranks.rank :: ranks.size], dealt)
    if ranks.size > 1:
        raise MismatchError(
            f"these batches are not a plan, and nothing says that all {ranks.size} processes are given the same; give "
            "al.task_for(model).batches(...) or texts, or start one process."
        )
    return batches  # type: ignore[no-any-return]


def require_alike(share: "Share | Given", settings: Mapping[str, Any], ranks: Ranks) -> None:
    """Raise, on every rank, unless all collect alike over the same plan."""
    if isinstance(share, Share):
        plan = {"the plan's digest": share.plan.digest, "its batches": len(share.plan)}
        dealt = f"{share.dealt.start} to {share.dealt.stop}"
        ranks.require_alike({**plan, "which of them": dealt, **settings}, "collect the same")


def _ranges(numbers: range) -> Iterator[tuple[int, int]]:
    """Ranges `[start, stop)` that hold just these numbers."""
    if numbers.step == 1:
        yield numbers.start, numbers.stop
    else:
        yield from ((number, number + 1) for number in numbers)


# ---------------------------------------------------------------------- adding up


def add_up(mine: ActivationStatistics | None, ranks: Ranks) -> ActivationStatistics | None:
    """What all ranks together have collected of a site, the same on each; None where nobody has anything.

    >>> statistics = ActivationStatistics.of_values(torch.ones(4, 1, 1, 1))
    >>> add_up(statistics, Ranks()) is statistics
    True
    """
    if ranks.size == 1:
        return mine
    header = "" if mine is None else json.dumps(StatisticsHeader(mine.provenance, _header(mine)).to_dict())
    headers = [StatisticsHeader.from_dict(json.loads(text)) if text else None for text in ranks.texts(header)]
    known = [each for each in headers if each is not None]
    if not known:
        return None
    for each in known[1:]:
        known[0].provenance.model.require_same(each.provenance.model, "ranks cannot add up what they collected")
        if each.histogram != known[0].histogram:
            raise MismatchError(
                f"ranks cannot add up what they collected: one has {known[0].histogram}, another {each.histogram}."
            )
    counted = known[0].histogram
    return ActivationStatistics(
        add_histograms(_empty(counted) if mine is None else mine.histogram, ranks),
        add_moments(Moments(counted.shape) if mine is None else mine.moments, ranks),
        _provenance([None if each is None else each.provenance for each in headers]),
        positions=add_positions(None if mine is None else mine.positions, counted.shape, ranks),
        rows=_add_rows(None if mine is None else mine.rows, ranks),
    )


def _header(statistics: ActivationStatistics) -> HistogramHeader:
    return HistogramHeader.of(statistics.histogram)


def _empty(counted: HistogramHeader) -> NeuronHistogram:
    return NeuronHistogram(counted.shape, counted.bins, resolution=RESOLUTION_NAMES[counted.resolution])


def _provenance(parts: list[Provenance | None]) -> Provenance:
    """Of all ranks' together."""
    whole = reduce(Provenance.merge, [part for part in parts if part is not None])
    plans = [() if part is None else part.plans for part in parts]
    return replace(whole, ranks=tuple(sum(stop - start for plan in own for start, stop in plan.read) for own in plans))


def add_histograms(mine: NeuronHistogram, ranks: Ranks) -> NeuronHistogram:
    """The histogram that has seen the values of all ranks."""
    layers = range(mine.shape[0])
    ends = [mine.ends(layer) for layer in layers]
    lows = ranks.lowest(torch.stack([low.cpu() for low, _ in ends]))
    highs = ranks.highest(torch.stack([high.cpu() for _, high in ends]))
    whole = NeuronHistogram(mine.shape, mine.bins, resolution=mine.resolution, device=mine.device)
    positive = mine.positive
    with own_memory():
        for layer in layers:
            held = mine.grid(layer)
            device = held.exponent.device
            whole.place(layer, lows[layer].to(device), highs[layer].to(device))
            counts = held.rebin(mine.counts(layer).flatten(0, 1), whole.grid(layer), mine.bins)
            _add_counts(whole, layer, counts, positive[layer].flatten(), ranks)
    return whole


def _add_counts(
    whole: NeuronHistogram,
    layer: int,
    counts: Int64[Tensor, "neuron bin"],
    positive: Int64[Tensor, " neuron"],
    ranks: Ranks,
) -> None:
    """Add every rank's counts of a layer, which are on the grid of `whole`."""
    both = ranks.total(torch.cat([counts, positive.unsqueeze(1).to(counts.device)], 1)).to(counts.device)
    whole.add_counts(layer, both[:, :-1], both[:, -1])


def trimmed_around(first: NeuronHistogram, ranks: Ranks) -> TrimmedHistogram:
    """`TrimmedHistogram.around`, with the same ends on every rank, also where machines round differently."""
    made = TrimmedHistogram.around(first)
    if ranks.size == 1:
        return made
    low, high = ranks.spread(made.inside.minimum), ranks.spread(made.inside.maximum)
    return TrimmedHistogram(low, high, made.bins, resolution=made.resolution, device=made.device)


def add_trimmed(mine: TrimmedHistogram, ranks: Ranks) -> TrimmedHistogram:
    """The trimmed histogram that has seen the values of all ranks."""
    if ranks.size == 1:
        return mine
    ends = mine.inside.minimum, mine.inside.maximum
    whole = TrimmedHistogram(*ends, mine.bins, resolution=mine.resolution, device=mine.device)
    positive = mine.inside.positive
    with own_memory():
        for layer in range(mine.shape[0]):
            # The range is the same on all ranks, and so is the grid.
            counts = mine.inside.counts(layer).flatten(0, 1)
            _add_counts(whole.inside, layer, counts, positive[layer].flatten(), ranks)
        whole.underflow += ranks.total(mine.underflow).to(whole.underflow.device)
        whole.overflow += ranks.total(mine.overflow).to(whole.overflow.device)
    return whole


def add_moments(mine: Moments, ranks: Ranks) -> Moments:
    """The moments that have seen the values of all ranks, added in the order of the ranks: the same on each."""
    whole, held = Moments(mine.shape, device=mine.pivot.device), mine.state()
    for rank in range(ranks.size):
        state = {name: ranks.spread(part, rank).to(part.device) for name, part in held.items()}
        whole = whole.merge(Moments.from_state(state, mine.shape))
    return whole


def add_positions(mine: Positions | None, shape: tuple[int, int, int], ranks: Ranks) -> Positions | None:
    """The means at every position of all ranks; None where they were not gathered."""
    length = int(ranks.highest(torch.tensor(-1 if mine is None else len(mine.counts))))
    if length < 0:
        return None
    layers = range(shape[0])
    held = Positions(shape) if mine is None else mine
    missing = length - len(held.counts)
    # F.pad counts axes from the last one: dim, head, then positions.
    sums = [ranks.total(F.pad(held.sums[layer], (0, 0, 0, 0, 0, missing))) for layer in layers]
    return Positions(shape, torch.stack(sums), ranks.total(F.pad(held.counts, (0, missing))))


def _add_rows(mine: Int64[Tensor, " digest"] | None, ranks: Ranks) -> Int64[Tensor, " digest"]:
    digests = torch.zeros(0, dtype=torch.int64) if mine is None else mine
    every: Tensor = torch.cat(ranks.gathered(digests)).unique()
    return every

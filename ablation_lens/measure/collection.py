"""One pass of a model over batches → `ActivationStatistics` of a site or several, by hooks, in bounded memory."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from jaxtyping import Bool
from torch import Tensor

from ablation_lens.errors import CorpusError, MismatchError, ModelError
from ablation_lens.hooked import task_of
from ablation_lens.interrupts import put_off
from ablation_lens.measure.forward import require_positions, watch
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.rows import Rows, Scratch
from ablation_lens.neurons.statistics import ActivationStatistics, PlanReading, Provenance
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.progress import progress_over
from ablation_lens.records import ModelRecord, Versions, record_of
from ablation_lens.sites import Site
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.inputs import told, whole
from ablation_lens.tasks.known_rows import row_digests
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch, BatchPlan, PlanPart, plan_of


class CollectionInterrupted(KeyboardInterrupt):
    """Ctrl-C during `collect`: `statistics` holds every batch that was finished, ready to save and merge.

    Of several sites, a dictionary as `collect` returns it.
    """

    def __init__(self, statistics: Any) -> None:
        super().__init__("collection interrupted")
        self.statistics = statistics


@overload
def collect(
    model: Any,
    batches: Any,
    *,
    site: Site | str = ...,
    bins: int = ...,
    passes: int = ...,
    include_bos: bool = ...,
    positions: bool = ...,
    progress: bool = ...,
) -> ActivationStatistics: ...


@overload
def collect(
    model: Any,
    batches: Any,
    *,
    site: Iterable[Site] | Iterable[str],
    bins: int = ...,
    passes: int = ...,
    include_bos: bool = ...,
    positions: bool = ...,
    progress: bool = ...,
) -> dict[Site, ActivationStatistics]: ...


def collect(
    model: Any,
    batches: Any,
    *,
    site: Site | str | Iterable[Site] | Iterable[str] = Site.Z,
    bins: int = 256,
    passes: int = 1,
    include_bos: bool = True,
    positions: bool = False,
    progress: bool = True,
) -> ActivationStatistics | dict[Site, ActivationStatistics]:
    """Measure how every neuron of a site, or of several in one pass, is distributed.

    Nothing but histograms and sums is kept, so memory does not grow with the number of tokens. Padding never
    counts. On Ctrl-C the batch at hand is finished, also at a second one, and `CollectionInterrupted` carries what
    was collected; a third does not wait, and loses it.

    Args:
        model: any model with TransformerLens hooks.
        batches: a `BatchPlan` or a part of one; texts; token ids or pixels; dicts of `input_ids`, `attention_mask` and
            `labels`; `Batch`es; a list, `Dataset`, `DataLoader` or iterator of these (docs/INPUTS.md). What is padding
            in token ids without a mask is told by the pad token of the model's tokenizer (with a `PaddingWarning`);
            without a tokenizer, everything counts.
        site: which neurons: "z", "mlp", ... (docs/SITES.md). Of a list, all are collected in the same pass, and the
            result is a dictionary, `{Site: statistics}`, which is read by name, too.
        bins: most bins per neuron; between half of them and all are used.
        passes: 2 adds a histogram trimmed to the 0.1–99.9 % range, which resolves neurons with outliers.
        include_bos: whether BOS, CLS, EOS and the like count (the paper counted them). Where a batch does not say
            which positions those are, everything counts.
        positions: also keep the mean at every position.
        progress: show a progress bar.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-opt")
    >>> statistics = collect(model, [torch.arange(5, 60)[None]], progress=False)
    >>> statistics.shape == Site.Z.shape(model.cfg), int(statistics.count.min())
    (True, 55)
    >>> both = collect(model, [torch.arange(5, 60)[None]], site=["z", "resid_post"], progress=False)
    >>> both["resid_post"].shape
    (4, 1, 128)
    """
    if passes not in (1, 2):
        raise MismatchError(f"passes={passes} is not possible; use 1, or 2 for the trimmed histogram.")
    several = not isinstance(site, Site | str)
    if several and not isinstance(site, Iterable):
        raise MismatchError(f"site is {told(site)}; give one such as 'z', or a list such as ['z', 'mlp'].")
    sites = dict.fromkeys(Site.of(each) for each in ([site] if isinstance(site, Site | str) else site))
    if not sites:
        raise MismatchError("there is no site to collect; name at least one, such as 'z'.")
    bins = whole(bins, "bins")
    batches = batches_of(model, batches, passes=passes)

    def given(found: dict[Site, ActivationStatistics]) -> Any:
        return found if several else next(iter(found.values()))

    # Around all of it: between the passes and after them there is most to lose.
    with put_off(2) as interrupted, ThreadPoolExecutor(1) as aside:
        padding = Padding(model, stacklevel=5)  # `mark`, `take`, `_run`, `collect`, and the user's own line
        counting = {each: _Counting(each, bins, positions) for each in sites}
        first = _Pass(model, counting, include_bos, padding, aside)
        try:
            _run(first, batches, "collecting", progress, interrupted)
        except KeyboardInterrupt:  # a third one: the batch at hand is counted in some layers only
            raise CollectionInterrupted(None) from None
        if interrupted():
            raise CollectionInterrupted(given(first.statistics(batches)) if first.tokens else None)
        if not first.tokens:
            raise CorpusError("there was nothing to collect: the batches hold no real position.")
        if passes == 2:
            try:
                trimmed = {each: TrimmedHistogram.around(counting[each].found()) for each in sites}
                again = {each: _Counting(each, trimmed=trimmed[each]) for each in sites}
                second = _Pass(model, again, include_bos, padding)
                _run(second, batches, "second pass", progress, interrupted)
                stopped = interrupted() and second.fed < first.fed
            except KeyboardInterrupt:
                stopped = True
            # Half a second pass is of no use, and the first one is whole.
            if stopped:
                raise CollectionInterrupted(given(first.statistics(batches)))
            for each in sites:
                counting[each].trimmed = trimmed[each]
        statistics = given(first.statistics(batches))
        if interrupted():  # too late to miss anything
            raise CollectionInterrupted(statistics)
    return statistics  # type: ignore[no-any-return]


_Counter = NeuronHistogram | TrimmedHistogram | Moments | Positions


@dataclass
class _Counting:
    """All that counts or sums the neurons of one site in one pass."""

    site: Site
    bins: int = 256
    wants_positions: bool = False
    trimmed: TrimmedHistogram | None = None
    histogram: NeuronHistogram | None = None
    moments: Moments | None = None
    positions: Positions | None = None

    def feed(
        self,
        layer: int,
        values: Tensor,
        valid: Bool[Tensor, "batch pos"] | None,
        scratch: Scratch,
        n_layers: int,
    ) -> None:
        counters = self._counters(values, n_layers)
        held = self.trimmed or self.histogram
        assert held is not None
        device = held.device  # a model may be spread over several
        rows = Rows(values.to(device), None if valid is None else valid.to(device), scratch)
        for counter in counters:
            counter.add(layer, rows)

    def _counters(self, values: Tensor, n_layers: int) -> "list[_Counter]":
        """What is fed, the one that refuses NaN first; made when the first activation shows its shape."""
        if self.trimmed is not None:
            return [self.trimmed]
        if self.histogram is None or self.moments is None:
            shape = (n_layers, values.shape[-2], values.shape[-1])
            self.histogram = NeuronHistogram(shape, self.bins, resolution=values.dtype, device=values.device)
            self.moments = Moments(shape, device=values.device)
            self.positions = Positions(shape) if self.wants_positions else None
        return [self.histogram, self.moments, *([] if self.positions is None else [self.positions])]

    def found(self) -> NeuronHistogram:
        """The histogram of a pass that saw something."""
        assert self.histogram is not None
        return self.histogram


@dataclass
class _Pass:
    """One pass over batches: every layer's activation becomes rows, and is fed to all that counts or sums."""

    model: Any
    counting: dict[Site, _Counting]
    include_bos: bool
    padding: Padding
    aside: ThreadPoolExecutor | None = None  # None for a second pass, which reads the same rows
    tokens: int = 0
    fed: int = 0
    rows: list[Tensor] = field(default_factory=list)
    scratch: Scratch = field(default_factory=Scratch)
    between_layers: Callable[[], None] = lambda: None

    def take(self, item: Batch) -> int:
        """Run the model on one batch; returns how many positions counted."""
        given = self.padding.mark(item)
        batch = given.to(self.model.cfg.device)
        counted = batch.counted(self.include_bos)
        # While the model runs: a digest of an image takes half a millisecond, which is long beside a GPU.
        digests = None if self.aside is None else self.aside.submit(row_digests, given, task_of(self.model))
        # None spares every layer the selection of positions.
        valid = None if bool(counted.all()) else counted
        thread = threading.get_ident()

        def see(site: Site, layer: int, values: Tensor) -> None:
            # A model has one set of hooks: without this, what another thread feeds it would be counted here.
            if threading.get_ident() != thread:
                raise ModelError("this model is collecting in another thread; give every thread its own copy.")
            require_positions(site, layer, values, counted)
            self.counting[site].feed(layer, values, valid, self.scratch, self.model.cfg.n_layers)
            self.between_layers()

        watch(self.model, batch, self.counting, see)
        count = int(counted.sum())
        self.tokens += count
        self.fed += 1
        if digests is not None:
            self.rows.append(digests.result()[counted.any(1).cpu()].flatten())
        return count

    def statistics(self, batches: Any) -> dict[Site, ActivationStatistics]:
        """What was collected so far, with its provenance."""
        plan = plan_of(batches)
        start = batches.start if isinstance(batches, PlanPart) else 0
        model = record_of(self.model)
        return {site: self._statistics(counting, model, plan, start) for site, counting in self.counting.items()}

    def _statistics(
        self, counting: _Counting, model: ModelRecord, plan: BatchPlan | None, start: int
    ) -> ActivationStatistics:
        assert counting.moments is not None
        return ActivationStatistics(
            histogram=counting.found(),
            moments=counting.moments,
            provenance=Provenance(
                model=model,
                site=counting.site.value,
                include_bos=self.include_bos,
                tokens=self.tokens,
                corpora=() if plan is None else (plan.corpus,),
                plans=() if plan is None else (PlanReading(plan.digest, len(plan), ((start, start + self.fed),)),),
                versions=Versions.current(),
            ),
            trimmed=counting.trimmed,
            positions=counting.positions,
            rows=torch.cat(self.rows).unique(),
        )


def _run(running: _Pass, batches: Any, title: str, progress: bool, interrupted: Callable[[], bool]) -> None:
    """Feed every batch, or whole ones until Ctrl-C: no set of documents has a batch in some of the layers only."""
    plan = plan_of(batches)
    # For images `size` counts images, and the bar is advanced by positions: no total then.
    total = batches.size if plan is not None and plan.task != "image-classification" else None
    with torch.inference_mode(), progress_over(title, total, progress) as advance:

        def tell() -> None:
            if interrupted():
                advance.describe("interrupted: finishing this batch")

        running.between_layers = tell
        for item in batches:
            advance(running.take(item))
            if interrupted():
                return

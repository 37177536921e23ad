"""One pass of a model over batches → `ActivationStatistics` of a site or several, by hooks, in bounded memory."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Protocol, Self, TypeVar, overload

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ablation_lens.errors import CorpusError, MismatchError, ModelError
from ablation_lens.hooked import task_of
from ablation_lens.interrupts import put_off
from ablation_lens.measure.forward import require_positions, watch
from ablation_lens.measure.sharding import Share, add_trimmed, add_up, require_alike, share_of, trimmed_around
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.layer_group import GROUP_BYTES, LayerGroup
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.rows import Rows, Scratch
from ablation_lens.neurons.statistics import ActivationStatistics, Provenance
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.progress import progress_over
from ablation_lens.ranks import RankError, Ranks
from ablation_lens.records import ModelRecord, Versions, record_of
from ablation_lens.sending import Fetch, send
from ablation_lens.sites import Site
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.inputs import told, whole
from ablation_lens.tasks.known_rows import row_digests
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch


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
    ranks: Ranks | None = ...,
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
    ranks: Ranks | None = ...,
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
    ranks: Ranks | None = None,
) -> ActivationStatistics | dict[Site, ActivationStatistics]:
    """Measure how every neuron of a site, or of several in one pass, is distributed.

    Nothing but histograms and sums is kept, so memory does not grow with the number of tokens. Padding never
    counts. On Ctrl-C the batch at hand is finished, also at a second one, and `CollectionInterrupted` carries what
    was collected; a third does not wait, and loses it.

    Args:
        model: any model with TransformerLens hooks.
        batches: a `BatchPlan` or a part of one; texts; token ids or pixels; dicts of `input_ids`, `attention_mask` and
            `labels`; `Batch`es; a list, `Dataset`, `DataLoader` or iterator of these (docs/guide/inputs.md). What is
            padding in token ids without a mask is told by the pad token of the model's tokenizer (with a
            `PaddingWarning`); without a tokenizer, everything counts.
        site: which neurons: "z", "mlp", ... or the full name of a hook (docs/guide/sites.md). Of a list, all are
            collected in the same pass, and the result is a dictionary, `{Site: statistics}`, which is read by name,
            too.
        bins: most bins per neuron; between half of them and all are used.
        passes: 2 adds a histogram trimmed to the 0.1–99.9 % range, which resolves neurons with outliers.
        include_bos: whether BOS, CLS, EOS and the like count (the paper counted them). Where a batch does not say
            which positions those are, everything counts.
        positions: also keep the mean at every position.
        progress: show a progress bar.
        ranks: `Ranks.join()` in a program that torchrun started several times: each of them reads its share of a plan,
            and all get the same statistics, of the whole (docs/guide/scale.md).

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
    ranks = ranks or Ranks()
    read = share_of(batches_of(model, batches, passes=passes), ranks)
    settings = {"bins": bins, "passes": passes, "include_bos": include_bos, "positions": positions}
    require_alike(read, {"sites": [each.value for each in sites], **settings}, ranks)

    def given(found: dict[Site, ActivationStatistics]) -> Any:
        return found if several else next(iter(found.values()), None)

    # Around all of it: between the passes and after them there is most to lose.
    with put_off(2) as interrupted, ThreadPoolExecutor(1) as aside:
        padding = Padding(
            model, stacklevel=7
        )  # `mark`, `take`, `_run`, its lambda, `do`, `collect`, the user's own line
        first = _Pass(model, {each: _Counting(each, bins, positions) for each in sites}, include_bos, padding, aside)
        with _handing_over(lambda: given(first.statistics(read))):
            work = ranks.share_work()
            try:
                finished = work.do(lambda: _run(first, read, "collecting", progress, interrupted, work.is_given_up))
            except KeyboardInterrupt:  # a third one: the batch at hand is counted in some layers only
                raise CollectionInterrupted(None) from None
            found = first.statistics(read)
            if not finished:
                raise CollectionInterrupted(given(found) if found else None)
            added = {site: add_up(found.get(site), ranks) for site in sites}
            found = {site: statistics for site, statistics in added.items() if statistics is not None}
        if not found:
            raise CorpusError("there was nothing to collect: the batches hold no real position.")
        if passes == 2:
            with _handing_over(lambda: given(found)):
                again = ranks.share_work()
                try:
                    around = {site: trimmed_around(found[site].histogram, ranks) for site in sites}
                    counting = {site: _Counting(site, around=around[site]) for site in sites}
                    second = _Pass(model, counting, include_bos, padding)
                    finished = again.do(
                        # Ctrl-C after the last batch is too late to miss anything.
                        lambda: (
                            _run(second, read, "second pass", progress, interrupted, again.is_given_up)
                            or second.fed == first.fed
                        )
                    )
                except KeyboardInterrupt:
                    finished = False
                # Half a second pass is of no use, and the first one is whole.
                if not finished:
                    raise CollectionInterrupted(given(found))
                trimmed = {site: add_trimmed(counting[site].found_trimmed(), ranks) for site in sites}
                found = {site: replace(found[site], trimmed=trimmed[site]) for site in sites}
        if interrupted():  # too late to miss anything
            raise CollectionInterrupted(given(found))
    return given(found)  # type: ignore[no-any-return]


@contextmanager
def _handing_over(held: Callable[[], Any]) -> Iterator[None]:
    """Where other ranks fail, the error takes along what this one holds."""
    try:
        yield
    except RankError as error:
        error.statistics = held()
        raise


class _Counted:
    """Which positions of a batch count: found on the host, and sent once to every device that asks."""

    def __init__(self, counted: Bool[Tensor, "batch pos"]) -> None:
        self.counted = counted.cpu()
        self.tokens = int(self.counted.sum())
        # None spares every layer the selection of positions.
        everywhere = self.tokens == self.counted.numel()
        self._valid = None if everywhere else self.counted
        self._places = None if everywhere else self.counted.flatten().nonzero().flatten()
        self._sent: dict[tuple[str, torch.device], Tensor] = {}

    def valid(self, device: torch.device) -> Bool[Tensor, "batch pos"] | None:
        """As a mask; None where all positions count."""
        return self._on(device, "valid", self._valid)

    def places(self, device: torch.device) -> Int64[Tensor, " token"] | None:
        """As numbers of positions of the flattened batch; None where all count."""
        return self._on(device, "places", self._places)

    def _on(self, device: torch.device, name: str, here: Tensor | None) -> Tensor | None:
        if here is None:
            return None
        if (name, device) not in self._sent:
            self._sent[name, device] = send(here, device)
        return self._sent[name, device]


class _Merges(Protocol):
    def merge(self, other: Self, /) -> Self: ...


_Part = TypeVar("_Part", bound=_Merges)


@dataclass
class _Share:
    """What counts or sums the layers of a site that lie on one device."""

    histogram: NeuronHistogram | TrimmedHistogram
    moments: Moments | None = None
    positions: Positions | None = None
    group: LayerGroup | None = None  # None: every layer by itself

    def feed(self, layer: int, values: Tensor, counted: _Counted, scratch: Scratch) -> None:
        """Count one layer, or keep it until there are more."""
        device = values.device
        if self.group is not None:
            self.group.put(layer, values, counted.places(device))
            if self.positions is not None:
                self.positions.add_values(layer, values, counted.valid(device))
            return
        rows = Rows(values, counted.valid(device), scratch)
        # The histogram first: it refuses NaN.
        for each in (self.histogram, self.moments, self.positions):
            if each is not None:
                each.add(layer, rows)

    def count(self, layers: slice, rows: Rows) -> None:
        """Count some layers that were kept."""
        self.histogram.add_layers(layers, rows)
        if self.moments is not None:
            self.moments.add(layers, rows)


@dataclass
class _Counting:
    """All that counts or sums the neurons of one site in one pass, on every device that holds some of its layers.

    `grouped` is whether layers are counted in groups; None groups them on accelerators. `lies_on` says where one is.
    """

    site: Site
    bins: int = 256
    wants_positions: bool = False
    around: TrimmedHistogram | None = None  # empty: what a second pass counts in
    grouped: bool | None = None
    group_bytes: int = GROUP_BYTES
    lies_on: Callable[[Tensor], Hashable] = attrgetter("device")
    shares: dict[Hashable, _Share] = field(default_factory=dict)

    def feed(self, layer: int, values: Tensor, counted: _Counted, scratch: Scratch, n_layers: int) -> None:
        """One layer's activation of a batch."""
        place = self.lies_on(values)
        share = self.shares.get(place)
        if share is None:
            share = self.shares[place] = self._share(values, n_layers)
        share.feed(layer, values, counted, scratch)

    def _share(self, values: Tensor, n_layers: int) -> _Share:
        """Made when the first activation on a device shows its shape."""
        device = values.device
        if self.around is not None:
            share = _Share(self.around.to(device))
        else:
            shape = (n_layers, values.shape[-2], values.shape[-1])
            share = _Share(
                NeuronHistogram(shape, self.bins, resolution=values.dtype, device=device),
                Moments(shape, device=device),
                Positions(shape, device=device) if self.wants_positions else None,
            )
        if self.grouped or (self.grouped is None and device.type != "cpu"):
            share.group = LayerGroup(n_layers, share.count, most_bytes=self.group_bytes)
        return share

    def finish(self) -> list[Fetch]:
        """Count what is left of a batch; whether all of it was finite is on its way."""
        grouped = [share for share in self.shares.values() if share.group is not None]
        for share in grouped:
            assert share.group is not None
            share.group.flush()
        return [Fetch(share.histogram.all_finite()) for share in grouped]

    def require_finite(self) -> None:
        """Raise `NonFiniteError` where something was not."""
        for share in self.shares.values():
            share.histogram.require_finite()

    # Layers of several devices are disjoint, so what was counted there adds up exactly.

    def found(self) -> NeuronHistogram:
        """The histogram of a pass that saw something."""
        held = [share.histogram for share in self.shares.values()]
        return _together([each for each in held if isinstance(each, NeuronHistogram)])

    def found_trimmed(self) -> TrimmedHistogram:
        """The histogram of a second pass; as it began where nothing was fed."""
        held = [share.histogram for share in self.shares.values()]
        return _together([each for each in held if isinstance(each, TrimmedHistogram)]) if held else self._empty()

    def _empty(self) -> TrimmedHistogram:
        assert self.around is not None
        return self.around

    def found_moments(self) -> Moments:
        """The sums of a first pass."""
        return _together([share.moments for share in self.shares.values() if share.moments is not None])

    def found_positions(self) -> Positions | None:
        """Sums at every position, where they are wanted."""
        held = [share.positions for share in self.shares.values() if share.positions is not None]
        return _together(held).to("cpu") if held else None


def _together(parts: list[_Part]) -> _Part:
    first, *others = parts
    for other in others:
        first = first.merge(other)
    return first


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
    unsettled: list[Fetch] = field(default_factory=list)
    between_layers: Callable[[], None] = lambda: None

    def take(self, item: Batch) -> int:
        """Run the model on one batch; returns how many positions counted."""
        given = self.padding.mark(item)
        # On the host, before the batch leaves it: asking a device is waiting for it.
        counted = _Counted(given.counted(self.include_bos))
        batch = given.to(self.model.cfg.device)
        # While the model runs: a digest of an image takes half a millisecond, which is long beside a GPU.
        digests = None if self.aside is None else self.aside.submit(row_digests, given, task_of(self.model))
        thread = threading.get_ident()

        def see(site: Site, layer: int, values: Tensor) -> None:
            # A model has one set of hooks: without this, what another thread feeds it would be counted here.
            if threading.get_ident() != thread:
                raise ModelError("this model is collecting in another thread; give every thread its own copy.")
            require_positions(site, layer, values, counted.counted)
            n_layers = len(site.layers(self.model.cfg))
            self.counting[site].feed(layer, values, counted, self.scratch, n_layers)
            self.between_layers()

        watch(self.model, batch, self.counting, see)
        flags = [flag for counting in self.counting.values() for flag in counting.finish()]
        # Waits for the batch before, while the device has this one to work on.
        self.settle()
        self.unsettled = flags
        self.tokens += counted.tokens
        self.fed += 1
        if digests is not None:
            self.rows.append(digests.result()[counted.counted.any(1)].flatten())
        return counted.tokens

    def settle(self) -> None:
        """Wait for what was fed; raises `NonFiniteError` if some of it was not finite."""
        flags, self.unsettled = self.unsettled, []
        if not all(bool(flag.result()) for flag in flags):
            for counting in self.counting.values():
                counting.require_finite()

    def statistics(self, batches: Any) -> dict[Site, ActivationStatistics]:
        """What was collected so far, with its provenance; nothing where no position was."""
        if not self.tokens:
            return {}
        share = batches if isinstance(batches, Share) else None
        model = record_of(self.model)
        return {site: self._statistics(counting, model, share) for site, counting in self.counting.items()}

    def _statistics(self, counting: _Counting, model: ModelRecord, share: Share | None) -> ActivationStatistics:
        return ActivationStatistics(
            histogram=counting.found(),
            moments=counting.found_moments(),
            provenance=Provenance(
                model=model,
                site=counting.site.value,
                include_bos=self.include_bos,
                tokens=self.tokens,
                corpora=() if share is None else (share.plan.corpus,),
                plans=() if share is None else (share.read(self.fed),),
                versions=Versions.current(),
            ),
            positions=counting.found_positions(),
            rows=torch.cat(self.rows).unique(),
        )


def _run(
    running: _Pass,
    batches: Any,
    title: str,
    progress: bool,
    interrupted: Callable[[], bool],
    given_up: Callable[[], bool] = lambda: False,
) -> bool:
    """Feed every batch, or whole ones until Ctrl-C: no set of documents has a batch in some of the layers only.

    Returns whether it came to the end, which it need not where another rank does not.
    """
    is_of_images = isinstance(batches, Share) and batches.plan.task == "image-classification"
    # For images `size` counts images, and the bar is advanced by positions: no total then.
    total = batches.size if isinstance(batches, Share) and not is_of_images else None
    finished = True
    with torch.inference_mode(), progress_over(title, total, progress) as advance:

        def tell() -> None:
            if interrupted():
                advance.describe("interrupted: finishing this batch")

        running.between_layers = tell
        for item in batches:
            advance(running.take(item))
            if interrupted() or given_up():
                finished = False
                break
        running.settle()
    return finished

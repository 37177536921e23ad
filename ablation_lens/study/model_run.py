"""One model of a study: what it reads, what its neurons are set to, and its cells, measured one after another."""

import hashlib
import json
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ablation_lens import zoo
from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import random_neurons
from ablation_lens.corpora import CorpusSizeWarning
from ablation_lens.errors import CorpusError, FileFormatError, MismatchError, ModelError
from ablation_lens.files import CannotWrite
from ablation_lens.hooked import task_of, tokenizer_of
from ablation_lens.measure import learners, resampling
from ablation_lens.measure.collection import collect
from ablation_lens.measure.evaluation import evaluate_each
from ablation_lens.measure.metrics import Metric, metrics_of
from ablation_lens.measure.metrics import identity_of as identity_of_metric
from ablation_lens.models.checkpoints import find_checkpoint
from ablation_lens.models.load import load_model, task_of_checkpoint
from ablation_lens.neurons import centers
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import CellProgress
from ablation_lens.ranks import RankLost, Ranks
from ablation_lens.records import ModelRecord, Versions, record_of
from ablation_lens.runs.folder import keeping, key_of
from ablation_lens.sites import Site
from ablation_lens.study import paper
from ablation_lens.study.cells import Cell, StudyFolder
from ablation_lens.study.methods import Method
from ablation_lens.study.own import SIDES
from ablation_lens.study.records import CellRecord, GroupRecord, InputRecord, learned_facts, statistics_key
from ablation_lens.tasks.batch_sizes import AUTO, fitting_batch_size
from ablation_lens.tasks.freezing import FrozenPlan, freeze, require_disjoint
from ablation_lens.tasks.known_rows import require_unknown
from ablation_lens.tasks.plans import BatchPlan, TextItem
from ablation_lens.tasks.tasks import Task, task_for

if TYPE_CHECKING:
    from ablation_lens.study.study import Study


_LEARNING = 3600.0
"""Seconds that learning may well take, in which nobody begins the same."""


class _Elsewhere(Exception):  # noqa: N818  (no error)
    """Another process makes what a cell needs, and there are other cells to go on with."""


def load_model_runs(
    study: "Study", name: str, folder: StudyFolder, *, patience: float | None = None
) -> "list[ModelRun]":
    """Load a model of the study, unless it was given, and fix what it reads: a run for everything that is counted."""
    given = study.named_models[name]
    loaded = isinstance(given, str)
    model = _loaded(study, given) if loaded else given
    record = model.record if loaded else _record_of_ones_own(model, name)
    collected, scored = _plans(study, given, model)
    if study.batch_size == AUTO:
        # By what they would be otherwise: nothing of the machine is in it but the kind of device, and nothing of
        # what is counted, as studies of one count and of both share cells.
        known = {
            "model": _identity(record, given),
            "collect": collected.digest,
            "evaluate": scored[0].corpus.to_dict(),
            "device": torch.device(model.cfg.device).type,
        }
        size = folder.batch_size(known, partial(fitting_batch_size, model, collected, *scored))
        collected, scored = collected.cut(size), [plan.cut(size) for plan in scored]
    # run.py asks this before anything is loaded, but cannot for models on the hub: their task is known only now.
    if not any(Method.parse(method).suits(collected.task) for method in study.methods):
        raise MismatchError(f"{', '.join(study.methods)} cannot be applied to {name}, a model for {collected.task}.")
    runs = [ModelRun(study, name, folder, model, record, collected, plan, patience) for plan in scored]
    for run in runs:
        run.beside = [other for other in runs if other is not run]
    return runs


def _loaded(study: "Study", name: str) -> Any:
    # What an adapter hooks lies on one device, also in a study of large causal models.
    spread = study.n_devices > 1 and task_of_checkpoint(find_checkpoint(name)) == "causal-lm"
    count = study.n_devices if spread else 1
    return load_model(name, device=study.device, dtype=study.dtype_of(name), n_devices=count)


def _identity(record: ModelRecord, given: Any) -> dict[str, Any]:
    # What a model of one's own is called may depend on the others that it stands beside: it is its weights.
    return record.identity | ({} if isinstance(given, str) else {"name": None, "revision": None})


def _record_of_ones_own(model: Any, name: str) -> ModelRecord:
    """By what it is called in the study. What makes it this model is a checksum of its weights."""
    record = record_of(model)
    if record.checksum is None:
        raise ModelError(
            f"{name} is not a torch module, and what its weights are cannot be told; give a study the module itself."
        )
    return replace(record, name=name)


def _plans(study: "Study", given: Any, model: Any) -> tuple[BatchPlan, list[BatchPlan]]:
    """What statistics are of, and scores, for everything that is counted."""
    own = study.batches_of(given)
    if own is not None:
        plans = tuple(freeze(model, own[side], split=side, scored=side == "evaluate") for side in SIDES)
        require_disjoint(*plans)
        return plans[0], [plans[1]]
    image = task_of(model) == "image-classification"
    options = {"labels": study.labels} if image and study.labels else {}
    corpus = study.corpora.get("image" if image else "text")
    task = task_for(model, corpus, context=None if image else study.context, **options)
    sizes = (study.collect_images, study.evaluate_images) if image else (study.collect_tokens, study.evaluate_tokens)
    # Of images all are counted, whatever else is asked of texts beside them.
    counts = ("all",) if image and "all" in study.counts else study.counts
    scored = [_plan(study, task, "evaluate", sizes[1], count) for count in counts]
    return _plan(study, task, "collect", sizes[0], "all"), scored


def _plan(study: "Study", task: Task, split: str, size: int | None, count: str) -> BatchPlan:
    unit = task.unit
    wanted = size or paper.SIZES[unit]
    # A corpus that is too small is an error below where a size was asked for; otherwise what there is will do.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CorpusSizeWarning)
        plan = task.batches(
            split=split,
            **{unit: wanted},
            batch_size=None if study.batch_size == AUTO else study.batch_size,
            seed=study.mask_seed,
            count=count,
        )
    if size is not None and wanted - plan.size >= 2:  # a single token left over cannot be scored
        raise CorpusError(
            f"the {split} split of {plan.corpus.name} has only {plan.size:,} of the {wanted:,} {unit} asked for; "
            f"ask for fewer ({split}_{unit}={plan.size}), or leave {split}_{unit} out to take what there is."
        )
    return plan


@dataclass(eq=False)
class ModelRun:
    """A loaded model, the plans that its statistics and scores are of, and where its cells are kept.

    `patience` is how many seconds it waits for another process at a piece of work; None for as long as ten pieces
    have taken, and a minute at least.
    """

    study: "Study"
    name: str
    folder: StudyFolder
    model: Any
    record: ModelRecord
    collected: BatchPlan
    scored: BatchPlan
    patience: float | None = None
    beside: "Sequence[ModelRun]" = ()
    """Runs of the same model that count other predictions of the same documents."""
    keys: set[str] = field(default_factory=set)
    """Of the cells that are finished, as far as this run has come."""
    _values: dict[tuple[str, float | None], tuple[int | None, Tensor, dict[str, Any]]] = field(default_factory=dict)
    """The last values of every method, and share that they were learned for, with the seed they were drawn from."""
    _longest: float = 0.0
    """Seconds that a piece of work has taken."""
    _waits: bool = True
    """Whether the cell at hand is waited for: there is nothing else to do."""

    @property
    def task(self) -> str:
        """What the model is scored on."""
        return self.scored.task

    @property
    def site(self) -> Site:
        """Where the neurons are."""
        return Site(self.study.site)

    @cached_property
    def cells(self) -> list[Cell]:
        """The study's cells of a model of this task."""
        return self.study.cells(self.task)

    # ------------------------------------------------------------------ keys

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What all cells of this model must share to be compared."""
        if self._is_old:
            return self._first_facts
        metrics = {"metrics": self._metric_facts} if self.metrics else {}
        return self._first_facts | self._further_facts | metrics

    @cached_property
    def _is_old(self) -> bool:
        """Whether the folder holds a group of before there were further facts: it is gone on with."""
        if self.metrics:
            return False
        group = key_of(self._first_facts)
        baseline = key_of({"group": group, **Cell(None, 0.0, None).facts})
        return self.folder.json("groups", group).exists() or self.folder.has("cells", baseline)

    @property
    def _first_facts(self) -> dict[str, Any]:
        study = self.study
        facts = {
            "model": _identity(self.record, self.study.named_models[self.name]),
            "evaluate": self.scored.digest,
            "collect": self.collected.digest,
            "bins": study.bins,
            "include_bos": study.include_bos,
            "site": study.site,
            # A shared input is the first seed's: with other seeds it is another one.
            "shared_input": study.seeds[0] if study.shared_input else None,
            # A causal model writes its own text: its cells do not depend on the generator.
            "generator": study.generator if self.task == "masked-lm" else None,
            # Without its number, so that cuda:1 goes on with what cuda:0 began.
            "device": torch.device(self.model.cfg.device).type,
            # Python itself changes no number, and what it brings along is in the plans' digests.
            "versions": {**Versions.current().to_dict(), "python": None},
        }
        # An MLP's neuron is often exactly 0. Since that is counted, its median and peak are other numbers.
        return facts | ({"zeros": "counted"} if self.site is Site.MLP else {})

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What is measured besides top-1 and cross-entropy."""
        return metrics_of(self.study.metrics)

    @property
    def _metric_facts(self) -> dict[str, Any]:
        batch, classes = next(iter(self.scored)), int(self.model.cfg.d_vocab_out)
        layout = self.scored.layout if isinstance(self.scored, FrozenPlan) else ""
        return {
            name: {"identity": identity_of_metric(metric, batch, classes), "better": metric.better}
            # A function may count from the end of a row; ours give the same wherever padding stands.
            | ({"layout": layout} if layout and not metric.is_ours else {})
            for name, metric in self.metrics.items()
        }

    @property
    def _further_facts(self) -> dict[str, Any]:
        """What can be changed beside equal weights and equal documents."""
        facts = {"context": self.scored.context, **identity_of(self.model, self.record)}
        if not self.study.include_bos:
            # The plan's digest is without them, as no score depends on them; these statistics do.
            special = [item.special for item in self.collected.items if isinstance(item, TextItem)]
            facts["special"] = key_of({"special": special})
        return facts

    @cached_property
    def group(self) -> str:
        """The key of the group that this model's cells form."""
        return key_of(self.facts)

    def cell_facts(self, cell: Cell, shown: CellProgress) -> dict[str, Any]:
        """Everything that determines the cell's score; what its center gives may have to be computed for it."""
        facts, method = {"group": self.group, **cell.facts}, cell.method
        if method is None:
            return facts
        if method.draws:
            return facts | self._generator_facts(method)
        if method.learns:
            version = learners.about(method.name).version
            return facts | ({"version": version} if version > 1 else {})
        if not centers.is_ours(method.name):
            # Who edits a center wants it measured; its name says nothing of what it gives.
            values, _ = self._values_of(method, cell, shown)
            # As the model gets them: what is rounded away changes no score.
            return facts | {"values": resampling.digest_of(values.to(self.model.cfg.dtype))}
        version = centers.version_of(method.name)
        return facts | ({"version": version} if version > 1 else {})

    def _generator_facts(self, method: Method) -> dict[str, Any]:
        """What tells texts apart that a masked model reads from generators of one name."""
        if method.name != "resample-generated" or self.task != "masked-lm":
            return {}
        # Which one of the zoo it was, the version of this package says; cells of old groups say no more.
        if self._is_old and self.study.generator in zoo.NAMES:
            return {}
        return {"generator_weights": self._generator_weights}

    @cached_property
    def _generator_weights(self) -> str:
        generator = load_model(self.study.generator, device=self.study.device)
        return key_of({"weights": generator.record.weights, **identity_of(generator)})

    @cached_property
    def _group_record(self) -> GroupRecord:
        return GroupRecord(
            facts=self.facts,
            model=self.record,
            task=self.task,
            evaluate=self.scored.corpus,
            collect=self.collected.corpus,
            context=self.scored.context,
            batch_size=max(map(len, self.scored.batches)),
            mask_seed=self.scored.seed,
            count=self.scored.count,
            predictions=self.scored.predictions,
            padding=self.scored.padding,
            statistics=(statistics_key(self.facts, 1), statistics_key(self.facts, 2)),
            versions=Versions.current(),
            outputs=int(self.model.cfg.d_vocab_out),
        )

    # ------------------------------------------------------------------ measuring

    def measure(self, shown: CellProgress) -> dict[str, Exception]:
        """Measure the cells that are not there yet; returns what went wrong, by cell.

        Cells that another process is at, or whose values it makes, are left for later: by then it has finished them, or
        died, or is waited for no longer. Whoever measures a cell writes the same file.
        """
        self.folder.write_group(self._group_record)
        failed: dict[str, Exception] = {}
        left = list(self.cells)
        while left:
            taken: deque[Cell] = deque()
            for cell in left:
                if not self._is_done(cell, shown, failed):
                    taken.append(cell)
                # What others have finished since shows at once.
                while taken and taken[0] is not cell and self._is_done(taken[0], shown, failed):
                    taken.popleft()
            if len(taken) == len(left):  # others are at all that is left
                self._is_done(taken.popleft(), shown, failed, waits=True)
            left = list(taken)
        return failed

    def _is_done(self, cell: Cell, shown: CellProgress, failed: dict[str, Exception], waits: bool = False) -> bool:
        """Whether a cell is there now, or failed, which is noted; False while another process is at it."""
        what = f"{self.name}: {cell}"
        try:
            if not self._finish(cell, what, shown, waits):
                return False
        except CannotWrite:  # a full disk ends the study: the next cells would fail, and none be recorded
            raise
        except Exception as error:
            failed[what] = without_frames(error)
            return True
        shown.advance()
        return True

    def _finish(self, cell: Cell, what: str, shown: CellProgress, waits: bool) -> bool:
        """Measure a cell unless it is there; False while another process is at it, and we do not wait."""
        self._waits = waits
        # What is known without its values: the key of a failure to make them.
        facts = {"group": self.group, **cell.facts}
        try:
            facts, known = self.cell_facts(cell, shown), facts
            key = key_of(facts)
            if facts != known:
                self.folder.forget_failure(key_of(known))
            if not self.folder.has("cells", key):
                shown.describe(what)  # not before: a log would count as missing what is only not looked at yet
                with self._working_on(key, what, shown, waits) as mine:
                    if not (mine or waits):
                        return False
                    # Asked again: another process may have finished it between the first question and the lock.
                    if not self.folder.has("cells", key):
                        self._measure(cell, facts, shown)
            self.keys.add(key)
        except _Elsewhere:
            return False
        except CannotWrite:
            raise
        except Exception as error:
            told = {"model": self.name, "cell": str(cell), "facts": facts}
            self.folder.record_failure(key_of(facts), told, error)
            raise
        return True

    def _measure(self, cell: Cell, facts: dict[str, Any], shown: CellProgress) -> None:
        started = time.perf_counter()
        ablation, origin = self._ablation(cell, shown)
        with ExitStack() as held:
            others = [
                (other, found)
                for other in self.beside
                if (found := other._measured_by_the_way(cell, ablation, held, shown)) is not None
            ]
            told = [(self, {**facts, **origin}), *others]
            measured = partial(evaluate_each, self.model, ablation=ablation, metrics=self.metrics)
            try:
                scores = measured([run.scored for run, _ in told])
            except Exception:
                if not others:
                    raise
                # It may be about what the others count, and is then said when it is their turn.
                told = told[:1]
                scores = measured([self.scored])
            seconds = self._took(started)
            for (run, header), score in zip(told, scores, strict=True):
                # The time of a run that served several is dealt out among them.
                header |= {"seconds": seconds / len(told), "threads": torch.get_num_threads(), "splits": score.splits}
                run.folder.write_cell(CellRecord.from_dict(header), score)

    def _measured_by_the_way(
        self, cell: Cell, ablation: Ablation | None, held: ExitStack, shown: CellProgress
    ) -> dict[str, Any] | None:
        """What this run's cell is told by, where the run of another, ablated so, can measure it, too; else None.

        Whatever is wrong here is found again, and said, when it is this run's turn.
        """
        self._waits = False
        try:
            facts = self.cell_facts(cell, shown)
            key = key_of(facts)
            if self.folder.has("cells", key):
                return None
            free = held.enter_context(self._working_on(key, f"{self.name}: {cell}", shown, waits=False))
            if not free or self.folder.has("cells", key):
                return None
            mine, origin = self._ablation(cell, shown)
        except CannotWrite:
            raise
        except Exception:
            return None
        same = (mine is None and ablation is None) or (
            mine is not None and ablation is not None and torch.equal(mine.values, ablation.values)  # type: ignore[arg-type]
        )
        if not same:  # an input that another machine drew for one of the two
            return None
        self.folder.write_group(self._group_record)
        return {**facts, **origin}

    def _took(self, started: float) -> float:
        seconds = time.perf_counter() - started
        self._longest = max(self._longest, seconds)
        return seconds

    @contextmanager
    def _working_on(
        self, key: str, what: str, shown: CellProgress, waits: bool = True, usually: float = 0.0
    ) -> Iterator[bool]:
        """Whether nobody else is at it, after waiting for who is; a process that was stopped is not waited for.

        `usually` is how many seconds it may well take.
        """
        patience, who = self._patience if waits else 0.0, ""
        if waits and self.patience is None:
            patience = max(patience, usually)

        def waiting(holder: str) -> None:
            nonlocal who
            who = holder
            shown.describe(f"{what}: waiting for {holder}")

        with self.folder.locked(key, what=what, patience=patience, waiting=waiting) as mine:
            if waits and not mine:
                warnings.warn(
                    f"{what}: {who} has not finished it in {patience:.0f} s. It is done here, too; the result is the "
                    "same.",
                    stacklevel=3,
                )
            yield mine

    @contextmanager
    def _making(self, key: str, what: str, shown: CellProgress, usually: float = 0.0) -> Iterator[None]:
        """Around what several cells share, as `_working_on`: nothing that others make now is waited for in between."""
        with self._working_on(key, what, shown, self._waits, usually) as mine:
            if not (mine or self._waits):
                raise _Elsewhere
            yield

    @property
    def _patience(self) -> float:
        if self.patience is not None:
            return self.patience
        # Somebody may have measured the baseline, where nothing was measured here yet.
        with suppress(FileFormatError):
            baseline, _ = self.folder.read_cell(key_of({"group": self.group, **Cell(None, 0.0, None).facts}))
            self._longest = max(self._longest, baseline.seconds)
        return max(60.0, 10 * self._longest)

    def _ablation(self, cell: Cell, shown: CellProgress) -> tuple[Ablation | None, dict[str, Any]]:
        if cell.method is None:
            return None, {}
        values, origin = self._values_of(cell.method, cell, shown)
        # A seed that draws nothing but the neurons is not needed to draw all of them.
        mask = random_neurons(self.site.shape(self.model.cfg), cell.fraction, cell.seed or 0)
        # Without a source: the values are this model's by their keys, and to compare its weights takes time every time.
        return Ablation(mask, values, site=self.site, center=cell.method.label), origin

    def _values_of(self, method: Method, cell: Cell, shown: CellProgress) -> tuple[Tensor, dict[str, Any]]:
        """What the neurons are set to, and where that is from."""
        drawn = (self.study.seeds[0] if self.study.shared_input else cell.seed) if method.draws else None
        # One seed per method is enough, as cells come seed by seed; those of all seeds would only take memory.
        place = method.label, method.share_at(cell.fraction)
        held = self._values.get(place)
        if held is None or held[0] != drawn:
            if method.draws:
                assert drawn is not None
                values, origin = self._resampled(method, drawn, shown)
            elif method.learns:
                values = self._learned(method, cell.fraction, shown)
                origin = {"learned": resampling.digest_of(values)}
            else:
                values, origin = self._statistics(method.passes, shown).center(method.name, **method.parameters), {}
            held = self._values[place] = (drawn, values, origin)
        return held[1], held[2]

    def _statistics(self, passes: int, shown: CellProgress) -> ActivationStatistics:
        key = statistics_key(self.facts, passes)
        path = self.folder.statistics(key)
        with self._making(f"statistics {key}", f"{self.name}: statistics", shown):
            if not path.exists():
                statistics = self._collected(passes, shown)
                with keeping(self.folder.path):
                    statistics.save(path)
        # Read back also by the process that wrote it: all compute from what the file holds.
        return self.folder.read_statistics(self._group_record, passes)

    def _collected(self, passes: int, shown: CellProgress, ranks: Ranks | None = None) -> ActivationStatistics:
        started = time.perf_counter()
        with shown.paused():
            statistics = collect(
                self.model,
                self.collected,
                site=self.site,
                bins=self.study.bins,
                passes=passes,
                include_bos=self.study.include_bos,
                progress=shown.visible,
                ranks=ranks,
            )
        self._took(started)
        return statistics

    def share_statistics(self, ranks: Ranks, shown: CellProgress) -> None:
        """Collect with all ranks what cells ask for and is not there: the first one looks, and writes the file.

        What fails here is tried again by whoever comes to a cell of it, and recorded there.
        """
        for passes in (1, 2):
            path = self.folder.statistics(key := statistics_key(self.facts, passes))
            with ExitStack() as stack:
                wanted = False
                if ranks.is_first:
                    what = f"{self.name}: statistics"
                    stack.enter_context(self._working_on(f"statistics {key}", what, shown))
                    wanted = not path.exists() and self._asks_for(passes, shown)
                if not ranks.first_text("collect" if wanted else ""):
                    continue
                try:
                    statistics = self._collected(passes, shown, ranks)
                except RankLost:
                    raise
                except Exception:
                    continue
                if ranks.is_first:
                    with keeping(self.folder.path):
                        statistics.save(path)
            ranks.require_written(path)

    def _asks_for(self, passes: int, shown: CellProgress) -> bool:
        """Whether a cell that is not there takes statistics of so many passes."""
        for cell in self.cells:
            method = cell.method
            if method is None or method.draws or method.passes != passes:
                continue
            # What a center of one's own gives is in its cells' keys: it is computed to know whether they are there.
            if not (method.learns or centers.is_ours(method.name)):
                return True
            if not self.folder.has("cells", key_of(self.cell_facts(cell, shown))):
                return True
        return False

    def _learned(self, method: Method, fraction: float, shown: CellProgress) -> Tensor:
        """The values that are learned for this share; they are in the folder, for everybody who works there."""
        facts, share = learned_facts(self.facts, method, fraction), method.share_at(fraction)
        key = key_of(facts)
        what = f"{self.name}: learning {method.label}" + ("" if share is None else f" for {100 * share:g} %")
        with self._making(f"learned {key}", what, shown, usually=_LEARNING):
            statistics = self._statistics(method.passes, shown)
            if not self.folder.has("learned", key):
                started = time.perf_counter()
                about = learners.about(method.name)
                options: dict[str, Any] = {} if share is None else {"share": share}
                options |= {"keep": self.folder.unfinished(facts)} if about.keeps else {}
                with shown.paused():
                    learned = learners.learn(
                        self.model,
                        self.collected,
                        method.name,
                        statistics,
                        **{**options, **method.parameters},
                        progress=shown.visible,
                    )
                self._took(started)
                # As studies write it; the name alone does not say its parameters.
                self.folder.write_learned(facts, replace(learned, method=method.label))
        # Read back also by the process that wrote it: all compute from what the file holds.
        found = self.folder.read_learned(self._group_record, method, fraction)
        plans = [reading.plan for reading in statistics.provenance.plans]
        require_unknown(self.model, self.scored, found.rows, plans)
        return found.values

    def _resampled(self, method: Method, seed: int, shown: CellProgress) -> tuple[Tensor, dict[str, Any]]:
        kind = method.name.removeprefix("resample-")
        key = key_of({"group": self.group, "kind": kind, "seed": seed, **self._generator_facts(method)})
        with self._making(f"inputs {key}", f"{self.name}: {method.label}, input of seed {seed}", shown):
            if not self.folder.has("inputs", key):
                return self._drawn_anew(method, kind, seed)  # with the values of this one run: no second one is needed
        # The same input for everybody who works in this folder, also where another machine would have drawn another.
        record, inputs = self.folder.read_input(key)
        return resampling.values_of(self.model, inputs, self.site), {"input": record.digest}

    def _drawn_anew(self, method: Method, kind: str, seed: int) -> tuple[Tensor, dict[str, Any]]:
        generator = None
        if kind == "generated" and self.task == "masked-lm":
            generator = load_model(self.study.generator, device=self.study.device)
        drawn = resampling.resample(
            self.model, kind, seed=seed, positions=self.scored.context, site=self.site, generator=generator
        )
        record = InputRecord(
            group=self.group,
            kind=kind,
            seed=seed,
            text=drawn.text,
            extract=drawn.extract(),
            generator=drawn.generator,
            digest=drawn.digest,
            **self._generator_facts(method),
        )
        self.folder.write_input(record, drawn.inputs)
        return drawn.values, {"input": drawn.digest}


def identity_of(model: Any, record: ModelRecord | None = None) -> dict[str, Any]:
    """What a model computes and reads, besides its shape and the digest of its weights."""
    # Made from a config of TransformerLens, a model has none of Hugging Face.
    config = getattr(model, "hf_config", None)
    return {
        "checksum": (record or model.record).checksum,
        "config": _digest(_own_settings(model.cfg) if config is None else _telling(config.to_dict())),
        "reader": _digest(_reader(model)),
    }


def _own_settings(cfg: Any) -> dict[str, str]:
    """The settings of a TransformerLens config that may change a number, as text: another process gives the same."""
    plain = {name: value for name, value in getattr(cfg, "__dict__", {}).items() if name not in _CHANGES_NOTHING}
    return {
        name: str(value)
        for name, value in plain.items()
        if value is None or isinstance(value, bool | int | float | str | list | tuple | torch.dtype)
    }


_CHANGES_NOTHING = frozenset(
    ("device", "n_devices", "seed", "init_mode", "init_weights", "initializer_range", "model_name", "tokenizer_name")
)
"""Where a model lies, how its weights came about, and what it is called."""


# Where it is from, what wrote it, what a class is called; the dtype is in the model's record.
_SAYS_NOTHING = frozenset(
    ("_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label")
) | frozenset(("label2id", "processor_class", "_processor_class"))


def _telling(values: Any) -> Any:
    """Settings without those that change no number."""
    if isinstance(values, Mapping):
        return {str(name): _telling(value) for name, value in values.items() if name not in _SAYS_NOTHING}
    return values


def _reader(model: Any) -> Any:
    """How texts become tokens, or images pixels."""
    if (processor := getattr(model, "image_processor", None)) is not None:
        return _telling(processor.to_dict())
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = {"vocabulary": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    # Every call sets padding and truncation anew.
    return {**whole, "padding": None, "truncation": None, "special": sorted(tokenizer.all_special_ids)}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def without_frames(error: Exception) -> Exception:
    """The error alone: what its frames hold is the model, which is to make room for the next."""
    link: BaseException | None = error
    # An error raised from another keeps that one, and its frames, alive.
    while link is not None:
        link.__traceback__, link = None, link.__cause__ or link.__context__
    return error

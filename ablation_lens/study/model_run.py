"""One model of a study: what it reads, what its neurons are set to, and its cells, measured one after another."""

import math
import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import random_neurons
from ablation_lens.corpora import CorpusSizeWarning
from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.files import CannotWrite
from ablation_lens.hooked import task_of
from ablation_lens.measure import resampling
from ablation_lens.measure.collection import collect
from ablation_lens.measure.evaluation import evaluate
from ablation_lens.models.load import load_model
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import CellProgress
from ablation_lens.records import Versions
from ablation_lens.runs.folder import keeping, key_of, mending
from ablation_lens.sites import Site
from ablation_lens.study import paper
from ablation_lens.study.cells import Cell, StudyFolder
from ablation_lens.study.methods import Method
from ablation_lens.tasks.plans import BatchPlan
from ablation_lens.tasks.tasks import Task, task_for

if TYPE_CHECKING:
    from ablation_lens.study.study import Study


def load_model_run(study: "Study", name: str, folder: StudyFolder) -> "ModelRun":
    """Load a model of the study, and fix what it reads."""
    model = load_model(name, device=study.device, dtype=study.dtype_of(name))
    image = task_of(model) == "image-classification"
    options = {"labels": study.labels} if image and study.labels else {}
    corpus = study.corpora.get("image" if image else "text")
    task = task_for(model, corpus, context=None if image else study.context, **options)
    sizes = (study.collect_images, study.evaluate_images) if image else (study.collect_tokens, study.evaluate_tokens)
    collected = _plan(study, task, "collect", sizes[0], "all")
    scored = _plan(study, task, "evaluate", sizes[1], study.count)
    # run.py asks this before anything is loaded, but cannot for models on the hub: their task is known only now.
    if not any(Method.parse(method).suits(task.name) for method in study.methods):
        raise MismatchError(f"{', '.join(study.methods)} cannot be applied to {name}, a model for {task.name}.")
    return ModelRun(study, name, folder, model, task, collected, scored)


def _plan(study: "Study", task: Task, split: str, size: int | None, count: str) -> BatchPlan:
    unit = task.unit
    wanted = size or paper.SIZES[unit]
    # A corpus that is too small is an error below where a size was asked for; otherwise what there is will do.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CorpusSizeWarning)
        plan = task.batches(
            split=split, **{unit: wanted}, batch_size=study.batch_size, seed=study.mask_seed, count=count
        )
    if size is not None and wanted - plan.size >= 2:  # a single token left over cannot be scored
        raise CorpusError(
            f"the {split} split of {plan.corpus.name} has only {plan.size:,} of the {wanted:,} {unit} asked for; "
            f"ask for fewer ({split}_{unit}={plan.size}), or leave {split}_{unit} out to take what there is."
        )
    return plan


@dataclass(eq=False)
class ModelRun:
    """A loaded model, the plans that its statistics and scores are of, and where its cells are kept."""

    study: "Study"
    name: str
    folder: StudyFolder
    model: Any
    task: Task
    collected: BatchPlan
    scored: BatchPlan
    _values: dict[str, tuple[int | None, Tensor, dict[str, Any]]] = field(default_factory=dict)
    """The last values of every method, with the seed they were drawn from."""

    @property
    def site(self) -> Site:
        """Where the neurons are."""
        return Site(self.study.site)

    @cached_property
    def cells(self) -> list[Cell]:
        """The study's cells of a model of this task."""
        return self.study.cells(self.task.name)

    # ------------------------------------------------------------------ keys

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What all cells of this model must share to be compared."""
        study = self.study
        return {
            "model": self.model.record.identity,
            "evaluate": self.scored.digest,
            "collect": self.collected.digest,
            "bins": study.bins,
            "include_bos": study.include_bos,
            "site": study.site,
            # A shared input is the first seed's: with other seeds it is another one.
            "shared_input": study.seeds[0] if study.shared_input else None,
            # A causal model writes its own text: its cells do not depend on the generator.
            "generator": study.generator if self.task.name == "masked-lm" else None,
            # Without its number, so that cuda:1 goes on with what cuda:0 began.
            "device": torch.device(self.model.cfg.device).type,
            # Python itself changes no number, and what it brings along is in the plans' digests.
            "versions": {**Versions.current().to_dict(), "python": None},
        }

    @cached_property
    def group(self) -> str:
        """The key of the group that this model's cells form."""
        return key_of(self.facts)

    def key(self, cell: Cell) -> str:
        """Everything that determines the cell's score."""
        return key_of({"group": self.group, **cell.facts})

    def _statistics_key(self, passes: int) -> str:
        # Not the whole group: what is scored, and the shared input, change no statistics, so such groups share a file.
        parts = ("model", "collect", "bins", "include_bos", "site", "device", "versions")
        return key_of({"passes": passes, **{part: self.facts[part] for part in parts}})

    def _write_group(self) -> None:
        self.folder.write_once(
            "groups",
            self.group,
            {
                "facts": self.facts,
                "model": self.model.record.to_dict(),
                "task": self.task.name,
                "evaluate": self.scored.corpus.to_dict(),
                "collect": self.collected.corpus.to_dict(),
                "context": self.scored.context,
                "batch_size": max(map(len, self.scored.batches)),
                "mask_seed": self.scored.seed,
                "count": self.scored.count,
                "predictions": self.scored.predictions,
                "padding": self.scored.padding,
                "statistics": [self._statistics_key(passes) for passes in (1, 2)],
                "versions": Versions.current().to_dict(),
            },
        )

    # ------------------------------------------------------------------ measuring

    def measure(self, shown: CellProgress) -> dict[str, Exception]:
        """Measure the cells that are not there yet; returns what went wrong, by cell.

        Cells that another process is at are left for last: by then it has finished them, or died.
        """
        self._write_group()
        failed: dict[str, Exception] = {}
        taken: list[Cell] = []
        # The second round iterates over what the first appended. With wait=True a lock is always ours, so `taken` does
        # not grow meanwhile.
        for wait, cells in ((False, self.cells), (True, taken)):
            for cell in cells:
                key, what = self.key(cell), f"{self.name}: {cell}"
                shown.describe(what)
                if not self.folder.has("cells", key):
                    with self.folder.locked(key, patience=math.inf if wait else 0.0) as mine:
                        if not mine:
                            taken.append(cell)
                            continue
                        # Asked again: another process may have finished it between the first question and the lock.
                        error = None if self.folder.has("cells", key) else self._measure(cell, key, shown)
                    if error is not None:
                        failed[what] = without_frames(error)
                        continue
                shown.advance()
        return failed

    def _measure(self, cell: Cell, key: str, shown: CellProgress) -> Exception | None:
        started = time.perf_counter()
        try:
            ablation, origin = self._ablation(cell, shown)
            score = evaluate(self.model, self.scored, ablation)
        except CannotWrite:  # a full disk ends the study: the next cells would fail, too, and nothing can be recorded
            raise
        except Exception as error:
            self.folder.record_failure(key, {"model": self.name, "cell": str(cell)}, error)
            return error
        header = {
            "group": self.group,
            **cell.facts,
            **origin,
            "seconds": time.perf_counter() - started,
            "threads": torch.get_num_threads(),
        }
        self.folder.write_cell(key, header, score)
        return None

    def _ablation(self, cell: Cell, shown: CellProgress) -> tuple[Ablation | None, dict[str, Any]]:
        if cell.method is None:
            return None, {}
        values, origin = self._values_of(cell.method, cell.seed, shown)
        # A seed that draws nothing but the neurons is not needed to draw all of them.
        mask = random_neurons(self.site.shape(self.model.cfg), cell.fraction, cell.seed or 0)
        # Without a source: the values are this model's by their keys, and to compare its weights takes time every time.
        return Ablation(mask, values, site=self.site, center=cell.method.label), origin

    def _values_of(self, method: Method, seed: int | None, shown: CellProgress) -> tuple[Tensor, dict[str, Any]]:
        """What the neurons are set to, and where that is from."""
        drawn = (self.study.seeds[0] if self.study.shared_input else seed) if method.draws else None
        # One seed per method is enough, as cells come seed by seed; those of all seeds would only take memory.
        held = self._values.get(method.label)
        if held is None or held[0] != drawn:
            if method.draws:
                assert drawn is not None
                values, origin = self._resampled(method, drawn)
            else:
                values, origin = self._statistics(method.passes, shown).center(method.name, **method.parameters), {}
            held = self._values[method.label] = (drawn, values, origin)
        return held[1], held[2]

    def _statistics(self, passes: int, shown: CellProgress) -> ActivationStatistics:
        key = self._statistics_key(passes)
        path = self.folder.statistics(key)
        with self.folder.locked(f"statistics {key}"):
            if not path.exists():
                with shown.paused():
                    statistics = collect(
                        self.model,
                        self.collected,
                        site=self.site,
                        bins=self.study.bins,
                        passes=passes,
                        include_bos=self.study.include_bos,
                        progress=shown.visible,
                    )
                with keeping(self.folder.path):
                    statistics.save(path)
        # Read back also by the process that wrote it: all compute from what the file holds.
        with mending():
            return ActivationStatistics.load(path)

    def _resampled(self, method: Method, seed: int) -> tuple[Tensor, dict[str, Any]]:
        kind = method.name.removeprefix("resample-")
        key = key_of({"group": self.group, "kind": kind, "seed": seed})
        with self.folder.locked(f"inputs {key}"):
            if not self.folder.has("inputs", key):
                return self._drawn_anew(key, kind, seed)  # with the values of this one run: no second one is needed
        # The same input for everybody who works in this folder, also where another machine would have drawn another.
        header, inputs = self.folder.read_input(key)
        return resampling.values_of(self.model, inputs, self.site), {"input": header["digest"]}

    def _drawn_anew(self, key: str, kind: str, seed: int) -> tuple[Tensor, dict[str, Any]]:
        generator = None
        if kind == "generated" and self.task.name == "masked-lm":
            generator = load_model(self.study.generator, device=self.study.device)
        drawn = resampling.resample(
            self.model, kind, seed=seed, positions=self.task.context, site=self.site, generator=generator
        )
        header = {
            "group": self.group,
            "kind": kind,
            "seed": seed,
            "text": drawn.text,
            "extract": drawn.extract(),
            "generator": drawn.generator,
            "digest": drawn.digest,
        }
        self.folder.write_input(key, header, drawn.inputs)
        return drawn.values, {"input": drawn.digest}


def without_frames(error: Exception) -> Exception:
    """The error alone: what its frames hold is the model, which is to make room for the next."""
    link: BaseException | None = error
    # An error raised from another keeps that one, and its frames, alive.
    while link is not None:
        link.__traceback__, link = None, link.__cause__ or link.__context__
    return error

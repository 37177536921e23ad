"""One model on the bench: the cells of a study that are its own, measured one after another."""

import time
import warnings
from typing import Any

import torch
from torch import Tensor

from ablation_lens import resampling
from ablation_lens.ablation import Ablation
from ablation_lens.collection import collect
from ablation_lens.corpora import CorpusSizeWarning
from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.evaluation import Score, evaluate
from ablation_lens.methods import BASELINE, Method
from ablation_lens.models import load_model
from ablation_lens.plans import BatchPlan
from ablation_lens.progress import CellProgress
from ablation_lens.records import Versions
from ablation_lens.run_folder import CannotWrite, RunFolder, key_of, reading, writing
from ablation_lens.selection import random_neurons
from ablation_lens.sites import Site
from ablation_lens.statistics import ActivationStatistics
from ablation_lens.study_settings import Cell, StudySettings
from ablation_lens.tasks import task_for

PAPER_SIZE = {"tokens": 100_000, "images": 1000}


class Bench:
    """One loaded model, what it reads, and the values its neurons are set to."""

    def __init__(self, study: StudySettings, name: str, run: RunFolder) -> None:
        self.study, self.name, self.run = study, name, run
        self.site = Site(study.site)
        self.model = load_model(name, device=study.device, dtype=study.dtype_of(name))
        image = getattr(self.model, "task", "causal-lm") == "image-classification"
        options = {"labels": study.labels} if image and study.labels else {}
        corpus = study.corpora.get("image" if image else "text")
        self.task = task_for(self.model, corpus, context=None if image else study.context, **options)
        sizes = (
            (study.collect_images, study.evaluate_images) if image else (study.collect_tokens, study.evaluate_tokens)
        )
        self.collected = self._plan("collect", sizes[0], "all")
        self.scored = self._plan("evaluate", sizes[1], study.count)
        if not any(Method.parse(method).suits(self.task.name) for method in study.methods):
            raise MismatchError(
                f"{', '.join(study.methods)} cannot be applied to {name}, a model for {self.task.name}."
            )
        self.cells = study.cells(self.task.name)
        self.group = self._write_group()
        self._held: dict[str, tuple[int | None, Tensor, dict[str, Any]]] = {}

    def _plan(self, split: str, size: int | None, count: str) -> BatchPlan:
        unit = self.task.unit
        wanted = size or PAPER_SIZE[unit]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CorpusSizeWarning)
            plan = self.task.batches(
                split=split,
                **{unit: wanted},
                batch_size=self.study.batch_size,
                seed=self.study.mask_seed,
                count=count,
            )
        if size is not None and wanted - plan.size >= 2:  # a single token left over cannot be scored
            raise CorpusError(
                f"the {split} split of {plan.corpus.name} has only {plan.size:,} of the {wanted:,} {unit} asked for; "
                f"ask for fewer ({split}_{unit}={plan.size}), or leave {split}_{unit} out to take what there is."
            )
        return plan

    def _write_group(self) -> str:
        """What all cells of this model must share to be compared."""
        record, study, versions = self.model.record, self.study, Versions.current()
        masked = self.task.name == "masked-lm"
        identity = record.to_dict()
        if record.weights:  # the same weights in another place are the same model
            identity |= {"name": None, "revision": None}
        facts = {
            "model": identity,
            "evaluate": self.scored.digest,
            "collect": self.collected.digest,
            "bins": study.bins,
            "include_bos": study.include_bos,
            "site": study.site,
            # A shared input is the first seed's: with other seeds it is another one.
            "shared_input": study.seeds[0] if study.shared_input else None,
            "generator": study.generator if masked else None,
            "device": torch.device(self.model.cfg.device).type,
            # Python itself changes no number, and what it brings along is in the plans' digests.
            "versions": {**versions.to_dict(), "python": None},
        }
        group = key_of(facts)
        self.run.write_group(
            group,
            {
                "facts": facts,
                "model": record.to_dict(),
                "task": self.task.name,
                "evaluate": self.scored.corpus.to_dict(),
                "collect": self.collected.corpus.to_dict(),
                "context": self.scored.context,
                "batch_size": max(map(len, self.scored.batches)),
                "mask_seed": self.scored.seed,
                "count": self.scored.count,
                "predictions": self.scored.predictions,
                "padding": self.scored.padding,
                "statistics": [self._statistics_key(passes, facts) for passes in (1, 2)],
                "versions": versions.to_dict(),
            },
        )
        self._facts = facts
        return group

    def _statistics_key(self, passes: int, facts: dict[str, Any]) -> str:
        parts = ("model", "collect", "bins", "include_bos", "site", "device", "versions")
        return key_of({"passes": passes, **{part: facts[part] for part in parts}})

    def key(self, cell: Cell) -> str:
        """Everything that determines the cell's score."""
        return key_of({"group": self.group, **_described(cell)})

    def measure(self, shown: CellProgress) -> dict[str, Exception]:
        """Measure the cells that are not there yet; returns what went wrong, by cell.

        Cells that another process is at are left for last: by then it has finished them, or died.
        """
        failed: dict[str, Exception] = {}
        taken: list[Cell] = []
        for wait, cells in ((False, self.cells), (True, taken)):
            for cell in cells:
                key, what = self.key(cell), f"{self.name}: {cell}"
                shown.describe(what)
                if not self.run.has(key):
                    with self.run.locked(key, wait=wait) as mine:
                        if not mine:
                            taken.append(cell)
                            continue
                        error = None if self.run.has(key) else self._measure(cell, key, shown)
                    if error is not None:
                        failed[what] = without_frames(error)
                        continue
                shown.advance()
        return failed

    def _measure(self, cell: Cell, key: str, shown: CellProgress) -> Exception | None:
        started = time.perf_counter()
        try:
            ablation, origin = self._ablation(cell, shown)
            score: Score = evaluate(self.model, self.scored, ablation)
        except CannotWrite:
            raise
        except Exception as error:
            self.run.record_failure(key, {"model": self.name, "cell": str(cell)}, error)
            return error
        header = {
            "group": self.group,
            **_described(cell),
            **origin,
            "seconds": time.perf_counter() - started,
            "threads": torch.get_num_threads(),
        }
        self.run.write_cell(key, header, score)
        return None

    def _ablation(self, cell: Cell, shown: CellProgress) -> tuple[Ablation | None, dict[str, Any]]:
        if cell.method is None:
            return None, {}
        values, origin = self._values(cell.method, cell.seed, shown)
        # A seed that draws nothing but the neurons is not needed to draw all of them.
        mask = random_neurons(self.site.shape(self.model.cfg), cell.fraction, cell.seed or 0)
        return Ablation(mask, values, self.model.record, site=self.site, center=cell.method.label), origin

    def _values(self, method: Method, seed: int | None, shown: CellProgress) -> tuple[Tensor, dict[str, Any]]:
        """What the neurons are set to, and where that is from; the last values of every method are kept at hand."""
        drawn = (self.study.seeds[0] if self.study.shared_input else seed) if method.draws else None
        held = self._held.get(method.label)
        if held is None or held[0] != drawn:
            if method.draws:
                assert drawn is not None
                values, origin = self._resampled(method, drawn)
            else:
                values, origin = self._statistics(method.passes, shown).center(method.name, **method.parameters), {}
            held = self._held[method.label] = (drawn, values, origin)
        return held[1], held[2]

    def _statistics(self, passes: int, shown: CellProgress) -> ActivationStatistics:
        key = self._statistics_key(passes, self._facts)
        path = self.run.statistics(key)
        with self.run.locked(f"statistics {key}", wait=True):
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
                with writing(self.run.path):
                    statistics.save(path)
        with reading(path):
            return ActivationStatistics.load(path)

    def _resampled(self, method: Method, seed: int) -> tuple[Tensor, dict[str, Any]]:
        kind = method.name.removeprefix("resample-")
        key = key_of({"group": self.group, "kind": kind, "seed": seed})
        with self.run.locked(f"inputs {key}", wait=True):
            if not self.run.input(key).exists():
                return self._drawn_anew(key, kind, seed)
        # The same input for everybody who works in this folder, also where another machine would have drawn another.
        header, inputs = self.run.read_input(key)
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
        self.run.write_input(key, header, drawn.inputs)
        return drawn.values, {"input": drawn.digest}


def _described(cell: Cell) -> dict[str, Any]:
    return {
        "method": BASELINE if cell.method is None else cell.method.label,
        "fraction": cell.fraction,
        "seed": cell.seed,
    }


def without_frames(error: Exception) -> Exception:
    """The error alone: what its frames hold is the model, which is to make room for the next."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__, link = None, link.__cause__ or link.__context__
    return error

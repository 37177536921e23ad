"""A cell: one evaluation of a study, what it is called, and how it lies in a run folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.measure.learned import Learned
from ablation_lens.measure.score import Score
from ablation_lens.measure.score_file import score_of, tensors_of
from ablation_lens.names import require_known
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.runs.folder import FAILURE, RunFolder, checking, keeping, key_of, mending
from ablation_lens.study.group_labels import label_groups
from ablation_lens.study.methods import BASELINE, Method
from ablation_lens.study.records import (
    BatchSizeRecord,
    CellRecord,
    FailureRecord,
    GroupRecord,
    InputRecord,
    StudyRecord,
    learned_facts,
)

KIND = "study cell"
INPUT_KIND = "resampling input"
GROUP_KIND = "run group"
STUDY_KIND = "study settings"
BATCH_SIZE_KIND = "batch size"


def plain_share(share: float) -> float:
    """A share without what arithmetic leaves behind, so that a fraction is the same however it was come by.

    >>> 3 * 0.1, plain_share(3 * 0.1)
    (0.30000000000000004, 0.3)
    """
    # The fraction is in every key: a different last bit would be another cell, and a frame would not find it.
    return round(float(share), 12)


@dataclass(frozen=True)
class Cell:
    """One evaluation of a model: a method at a fraction with a seed; all None or 0 for the baseline."""

    method: Method | None
    fraction: float
    seed: int | None

    def __str__(self) -> str:
        if self.method is None:
            return "baseline"
        return f"{self.method.label}, {100 * self.fraction:g} %" + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def facts(self) -> dict[str, Any]:
        """What tells the cells of a group apart, as plain JSON values: a part of the cell's key and header."""
        # What stands here goes into the key: another name or format makes every finished cell a new one.
        method = BASELINE if self.method is None else self.method.label
        return {"method": method, "fraction": self.fraction, "seed": self.seed}


class StudyFolder(RunFolder):
    """A run folder as studies use it: scores under `cells/`, random inputs, statistics, and groups of cells.

    What it reads is possible, and lies under the name that it must have; all else is a `FileFormatError`.
    """

    gained: ClassVar[tuple[str, ...]] = ("learned", "batch_sizes")

    def write_cell(self, record: CellRecord, score: Score) -> None:
        """Keep a finished cell, and forget that it failed before."""
        self.write("cells", record.key, KIND, record.to_dict(), tensors_of(score))
        # After the cell: a run that is killed in between keeps both; the other order could lose both.
        self.forget_failure(record.key)

    def read_cell(self, key: str) -> tuple[CellRecord, Score]:
        """What `write_cell` kept."""
        header, tensors = self.read("cells", key, KIND)
        with checking(self.file("cells", key)):
            record = CellRecord.from_dict(header)
            _require_name(record.key, key)
            return record, score_of(tensors, record.splits)

    def write_group(self, record: GroupRecord) -> None:
        """Keep what the cells of a group share, under the key of its facts."""
        self.write_once("groups", record.key, GROUP_KIND, record.to_dict())

    def group(self, group: Any) -> GroupRecord:
        """What the cells of a group share: model, corpora, versions."""
        values = self.read_once("groups", group, GROUP_KIND)
        with checking(self.json("groups", group)):
            record = GroupRecord.from_dict(values)
            _require_name(record.key, group)
            return record

    def failures(self) -> list[FailureRecord]:
        """The cells and models that failed and have not succeeded since."""
        return list(map(self.failure, self.failed()))

    def failure(self, key: str) -> FailureRecord:
        """Why something failed."""
        values = self.read_once("failures", key, FAILURE)
        with checking(self.json("failures", key)):
            record = FailureRecord.from_dict(values)
            _require_name(record.key or key, key)
            return record

    def write_study(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of a study that runs here."""
        self.write_once("studies", key_of(settings), STUDY_KIND, settings)

    def studies(self) -> list[StudyRecord]:
        """The settings of every study that ran here, the oldest first."""
        return list(map(self.study, self.names("studies")))

    def study(self, key: str) -> StudyRecord:
        """The settings of a study."""
        settings = self.read_once("studies", key, STUDY_KIND)
        with checking(self.json("studies", key)):
            record = StudyRecord.from_dict(settings)
            _require_name(key_of(settings), key)
            return record

    def batch_size(self, facts: Mapping[str, Any], choose: Callable[[], int]) -> int:
        """The documents per batch that were chosen here once for these facts; `choose` says how many, if nobody has."""
        key = key_of(facts)
        made = self.settle("batch_sizes", key, BATCH_SIZE_KIND, lambda: {"facts": facts, "batch_size": choose()})
        with checking(self.json("batch_sizes", key)):
            record = BatchSizeRecord.from_dict(made)
            _require_name(key_of(record.facts), key)
            return record.batch_size

    def write_input(self, record: InputRecord, inputs: Tensor) -> None:
        """Keep a random input."""
        self.write("inputs", record.key, INPUT_KIND, record.to_dict(), {"inputs": inputs})

    def read_input(self, key: str) -> tuple[InputRecord, Tensor]:
        """What `write_input` kept."""
        header, tensors = self.read("inputs", key, INPUT_KIND)
        with checking(self.file("inputs", key)):
            record = InputRecord.from_dict(header)
            _require_name(record.key, key)
            return record, record.require_inputs(tensors)

    def inputs(self) -> list[InputRecord]:
        """What the random inputs of resampling were: kind, seed, text and group of each."""
        return [self.read_input(key)[0] for key in self.keys("inputs")]

    def unfinished(self, facts: Mapping[str, Any]) -> Path:
        """The file of a state from which learning is gone on with; gone once it is finished."""
        with keeping(self.path):
            (self.path / "learned").mkdir(exist_ok=True)
        return self.path / "learned" / f"{key_of(facts)}.unfinished"

    def write_learned(self, facts: Mapping[str, Any], learned: Learned) -> None:
        """Keep learned values under what they follow from, and forget the state on the way there."""
        unfinished = self.unfinished(facts)
        with keeping(self.path):
            replace(learned, settings={**learned.settings, "study": dict(facts)}).save(
                self.file("learned", key_of(facts))
            )
            unfinished.unlink(missing_ok=True)

    def read_learned(self, group: GroupRecord, method: Method, fraction: float) -> Learned:
        """What `write_learned` kept of a method for a group; values of anything else are refused."""
        facts = learned_facts(group.facts, method, fraction)
        path = self.file("learned", key_of(facts))
        with mending():
            learned = Learned.load(path)
        with checking(path):
            differences = [] if learned.model is None else learned.model.differences(group.model)
            told = {
                "facts": (learned.settings.get("study"), facts),
                "site": (learned.site.value, group.facts["site"]),
                "method": (learned.method, method.label),
            }
            differences += [f"{name}: {has} against {wanted}" for name, (has, wanted) in told.items() if has != wanted]
            if differences:
                raise FileFormatError(f"these are values learned of something else ({'; '.join(differences)}).")
        return learned

    def statistics(self, key: Any) -> Path:
        """The file of a model's statistics."""
        return self.file("statistics", key)

    def find_statistics(self, model: str | None = None) -> Path:
        """The file of a model's statistics, by the model's name, or by the label of a group that needs one.

        The file of two passes where there is one, as it holds the first one's numbers, too.
        """
        found: dict[str, tuple[str, Path]] = {}
        groups = {str(name): self.group(name) for name in self.names("groups")}
        for name, label in label_groups({name: group.to_dict() for name, group in groups.items()}).items():
            paths = [self.statistics(key) for key in reversed(groups[name].statistics)]
            if there := next((path for path in paths if path.exists()), None):
                found[label] = (groups[name].model.name, there)
        if not found:
            raise AblationLensError(f"{self.path} holds no statistics; give it a study of a center, such as peak.")
        chosen = [path for label, (name, path) in found.items() if model in (None, name, label)]
        if not chosen:
            require_known(str(model), list(found), f"model with statistics in {self.path},")
        if len(set(chosen)) > 1:
            labels = ", ".join(repr(label) for label, (name, _) in found.items() if model in (None, name))
            raise AblationLensError(
                f"{self.path} holds statistics of several models or settings; say which by model=…, one of {labels}."
            )
        return chosen[0]

    def read_statistics(self, group: GroupRecord, passes: int) -> ActivationStatistics:
        """The statistics that a group's values are from; those of another collection are refused."""
        path = self.statistics(group.statistics[passes - 1])
        with mending():
            statistics = ActivationStatistics.load(path)
        with checking(path):
            differences = _differences(statistics, group, passes)
            if differences:
                raise FileFormatError(f"these are statistics of something else ({'; '.join(differences)}).")
        return statistics


def _require_name(key: str, name: str) -> None:
    if key != name:
        raise FileFormatError(f"its name must be {key}, which follows from its content.")


def _differences(statistics: ActivationStatistics, group: GroupRecord, passes: int) -> list[str]:
    """Where statistics are not what a group says that its values are from."""
    source, facts = statistics.provenance, group.facts
    corpora = source.corpora[0].differences(group.collect) if len(source.corpora) == 1 else ["no one corpus"]
    found = {
        "site": (source.site, facts["site"]),
        "include_bos": (source.include_bos, facts["include_bos"]),
        "bins": (statistics.histogram.bins, facts["bins"]),
        "passes": (1 if statistics.trimmed is None else 2, passes),
        "plan": ([reading.plan for reading in source.plans if reading.is_whole], [facts["collect"]]),
        # Python itself changes no number.
        "versions": ({**source.versions.to_dict(), "python": None}, {**group.versions.to_dict(), "python": None}),
    }
    told = [f"{name}: {has} against {wanted}" for name, (has, wanted) in found.items() if has != wanted]
    return source.model.differences(group.model) + corpora + told

"""How far the studies of a run folder are: what is done, left and failed, and who is at work. Nothing is run for it."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ablation_lens import zoo
from ablation_lens.errors import FileFormatError
from ablation_lens.measure import resampling
from ablation_lens.runs.claims import Holder
from ablation_lens.study import paper
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.group_labels import label_groups
from ablation_lens.study.methods import BASELINE, split_label
from ablation_lens.study.records import FailureRecord, GroupRecord, StudyRecord

_Read = TypeVar("_Read")
_Places = dict[str, set[tuple[float, int | None]]]
"""Method → the fractions and seeds of its cells."""


@dataclass(frozen=True)
class MethodStatus:
    """The cells of a method in a group, or of a model that was not begun."""

    model: str
    method: str
    done: int
    left: int
    failed: int


@dataclass(frozen=True)
class Status:
    """How far a run folder's studies are.

    Attributes:
        rows: a row per model and method, in the order of the studies.
        failures: what failed, and has not succeeded since.
        unreadable: what is not counted, because a file is damaged, each with the way out.
        at_work: which processes hold which keys at this moment, the first that began first.
    """

    rows: tuple[MethodStatus, ...]
    failures: tuple[FailureRecord, ...]
    unreadable: tuple[str, ...]
    at_work: tuple[Holder, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of a failure all but its traceback."""
        told = ("model", "cell", "error", "message")
        return {
            "rows": [asdict(row) for row in self.rows],
            "failures": [{name: getattr(failure, name) for name in told} for failure in self.failures],
            "unreadable": list(self.unreadable),
            "at_work": [holder.to_dict() for holder in self.at_work],
        }


def status_of(folder: str | Path) -> Status:
    """Compare what a run folder holds with what the studies that ran in it asked for.

    A model of which nothing was measured yet is taken for a text model, unless it is one of the zoo.
    """
    return _Comparison(StudyFolder(folder)).status()


class _Comparison:
    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.unreadable: list[str] = []
        self.groups = {name: group for name in folder.names("groups") if (group := self._read(folder.group, name))}
        self.done: dict[str, _Places] = defaultdict(lambda: defaultdict(set))
        for key in folder.keys("cells"):
            if (read := self._read(folder.read_cell, key)) and read[0].group in self.groups:
                self.done[read[0].group][read[0].method].add((read[0].fraction, read[0].seed))
        self.studies = [study for name in folder.names("studies") if (study := self._read(folder.study, name))]
        self.failures = [failure for key in folder.failed() if (failure := self._read(folder.failure, key))]

    def _read(self, read: "Callable[[str], _Read]", name: str) -> "_Read | None":
        try:
            return read(name)
        except FileFormatError as error:
            self.unreadable.append(str(error))
            return None

    def status(self) -> Status:
        labels = label_groups({name: group.to_dict() for name, group in self.groups.items()})
        # By group, and by name where a model has none yet.
        asked: dict[str, _Places] = defaultdict(lambda: defaultdict(set))
        for study in self.studies:
            for model, count in itertools.product(study.models, study.counts):
                group = self._group(study, model, count)
                task = self.groups[group].task if group else _task(model)
                if task == "image-classification" and count != study.counts[0]:
                    continue  # of images there is one count
                for method, places in _asked(study, task).items():
                    asked[group or model][method] |= places
        rows = []
        for place in dict.fromkeys([*asked, *self.done]):
            wanted, done = asked[place], self.done.get(place, {})
            for method in dict.fromkeys([*wanted, *done]):
                have = done.get(method, set())
                left = len(wanted.get(method, set()) - have)
                failed = sum(self._is_of(failure, place, method) for failure in self.failures)
                rows.append(MethodStatus(labels.get(place, place), method, len(have), left, failed))
        return Status(tuple(rows), tuple(self.failures), tuple(self.unreadable), tuple(self.folder.holders()))

    def _group(self, study: StudyRecord, model: str, count: str) -> str | None:
        """The group that the study's cells of a model are in: of those with its settings, the one with most cells."""
        fitting = [
            name
            for name, group in self.groups.items()
            if group.model.name == model
            and _is_measured_so(study, group)
            and (group.count == count or group.task == "image-classification")
        ]
        return max(fitting, key=lambda name: sum(map(len, self.done[name].values())), default=None)

    @staticmethod
    def _is_of(failure: FailureRecord, place: str, method: str) -> bool:
        return (failure.facts.get("group"), failure.facts.get("method")) == (place, method)


def _task(model: str) -> str:
    is_of_images = model in zoo.NAMES and zoo.training_record(model)["corpus"] == "digits"
    return "image-classification" if is_of_images else "causal-lm"


def _is_measured_so(study: StudyRecord, group: GroupRecord) -> bool:
    """Whether a group has the settings of a study, as far as both say them."""
    kind = "image" if group.task == "image-classification" else "text"
    unit = group.evaluate.unit
    asked = (getattr(study, f"evaluate_{unit}", None), getattr(study, f"collect_{unit}", None))
    wanted: dict[str, tuple[Any, Any]] = {
        "site": (study.site, group.facts["site"]),
        "bins": (study.bins, group.facts.get("bins")),
        "include_bos": (study.include_bos, group.facts.get("include_bos")),
        "metrics": (set(study.metrics), set(group.metrics)),
        # Early files say False where None stands now.
        "shared": (study.shared_input, group.facts.get("shared_input") not in (None, False)),
    }
    if not study.given:  # batches and corpora of one's own have no names and no sizes that were asked for
        wanted |= {
            "corpus": (study.corpora.get(kind), group.evaluate.name if kind in study.corpora else None),
            "evaluate": (asked[0] or paper.SIZES.get(unit), group.evaluate.size_requested),
            "collect": (asked[1] or paper.SIZES.get(unit), group.collect.size_requested),
        }
    return all(one == other for one, other in wanted.values() if other is not None)


def _asked(study: StudyRecord, task: str) -> _Places:
    """What `Study.cells` asks for, also of centers that nobody has registered here."""
    partial = [fraction for fraction in study.fractions if 0 < fraction < 1]
    places: _Places = {BASELINE: {(0.0, None)}}
    for method in study.methods:
        name, _ = split_label(method)
        draws = name in resampling.METHODS
        if draws and (name == "resample-pixels") != (task == "image-classification"):
            continue
        places[method] = {(fraction, seed) for fraction in partial for seed in study.seeds}
        if 1.0 in study.fractions:
            places[method] |= (
                {(1.0, seed) for seed in study.seeds} if draws and not study.shared_input else {(1.0, None)}
            )
    return places

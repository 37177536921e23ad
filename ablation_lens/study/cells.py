"""A cell: one evaluation of a study, what it is called, and how it lies in a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ablation_lens.measure.score import Score
from ablation_lens.runs.folder import RunFolder, damaged

if TYPE_CHECKING:
    from ablation_lens.study.methods import Method

BASELINE = "none"
"""The method of the cell in which nothing is ablated."""

KIND = "study cell"
INPUT_KIND = "resampling input"


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

    method: "Method | None"
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
    """A run folder as studies use it: scores under `cells/`, random inputs, statistics, and groups of cells."""

    def write_cell(self, key: str, header: Mapping[str, Any], score: Score) -> None:
        """Keep a finished cell, and forget that it failed before."""
        tensors = {
            "documents": torch.tensor(score.documents),
            "correct": score.correct,
            "loss": score.loss,
            "predictions": score.predictions_per_document,
        }
        self.write("cells", key, KIND, {**header, "splits": score.splits}, tensors)
        # After the cell: a run that is killed in between keeps both; the other order could lose both.
        self.forget_failure(key)

    def read_cell(self, key: str) -> tuple[dict[str, Any], Score]:
        """What `write_cell` kept."""
        header, tensors = self.read("cells", key, KIND)
        try:
            score = Score(
                documents=tuple(tensors["documents"].tolist()),
                correct=tensors["correct"],
                loss=tensors["loss"],
                predictions_per_document=tensors["predictions"],
                splits=header["splits"],
            )
        except KeyError as error:
            raise damaged(self.file("cells", key)) from error
        return header, score

    def group(self, group: Any) -> dict[str, Any]:
        """What the cells of a group share: model, corpora, versions."""
        values = self.read_once("groups", group, "model", "evaluate", "task")
        if not all(isinstance(values[part], dict) and "name" in values[part] for part in ("model", "evaluate")):
            raise damaged(self.path / "groups" / f"{group}.json")
        return values

    def failures(self, *needed: str) -> list[dict[str, Any]]:
        """The cells and models that failed and have not succeeded since."""
        return super().failures("model", *needed)

    def studies(self) -> list[dict[str, Any]]:
        """The settings of every study that ran here, the oldest first."""
        return self.read_all("studies", "models", "methods")

    def write_input(self, key: str, header: Mapping[str, Any], inputs: Tensor) -> None:
        """Keep a random input."""
        self.write("inputs", key, INPUT_KIND, header, {"inputs": inputs})

    def read_input(self, key: str) -> tuple[dict[str, Any], Tensor]:
        """What `write_input` kept."""
        header, tensors = self.read("inputs", key, INPUT_KIND)
        return header, tensors["inputs"]

    def inputs(self) -> list[dict[str, Any]]:
        """What the random inputs of resampling were: kind, seed, text and group of each."""
        return [self.read("inputs", key, INPUT_KIND)[0] for key in self.keys("inputs")]

    def statistics(self, key: Any) -> Path:
        """The file of a model's statistics."""
        return self.file("statistics", key)

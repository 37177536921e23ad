"""The results of a run folder: a row per cell, a summary per method and fraction, exports."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablation_lens.errors import AblationLensError, FileFormatError, MismatchError
from ablation_lens.files import write_atomically, writing
from ablation_lens.measure.intervals import Interval, difference
from ablation_lens.measure.score import Score
from ablation_lens.study.cells import BASELINE, StudyFolder, plain_share
from ablation_lens.study.group_labels import label_groups

METRICS = ("top1", "cross_entropy")

CELL_COLUMNS = (
    "model",
    "corpus",
    "group",
    "method",
    "fraction",
    "seed",
    "top1",
    "cross_entropy",
    "baseline_top1",
    "baseline_cross_entropy",
)
"""What figures need of every ablated cell: the columns of a frame that somebody made without a run folder."""


class UnreadableCell(UserWarning):
    """A cell's file is damaged, and the results are without it."""


class _Cells:
    """What the files of a run folder hold: `read` once, and not changed afterwards."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.scores: dict[str, Score] = {}
        self.groups: dict[str, dict[str, Any]] = {}
        self.unreadable: list[str] = []
        self.frame = pd.DataFrame()

    def read(self) -> None:
        """Every cell that can be read becomes a row, in the order of the studies."""
        rows = list(self._rows())
        if not rows and self.unreadable:
            raise FileFormatError(self.unreadable[0])
        if not rows:
            raise AblationLensError(f"{self.folder.path} holds no finished cell yet; run the study first.")
        frame = pd.DataFrame(rows).set_index("key")
        # The nullable Int64: with a seed missing, pandas would make floats of all, and 42 would become 42.0.
        frame["seed"] = frame["seed"].astype("Int64")
        models, methods = self._places("models"), self._places("methods", BASELINE)
        frame = frame.assign(
            _model=frame["model"].map(lambda name: models.get(name, len(models))),
            _method=frame["method"].map(lambda name: methods.get(name, len(methods))),
        ).sort_values(["_model", "model", "group", "fraction", "_method", "method", "seed"], kind="stable")
        self.frame = self._with_baselines(frame.drop(columns=["_model", "_method"]))

    def _places(self, setting: str, *first: str) -> dict[str, int]:
        """The order of models or methods: that of the first study that names them."""
        named = [name for study in self.folder.studies() for name in study[setting]]
        return {name: place for place, name in enumerate(dict.fromkeys([*first, *named]))}

    def _rows(self) -> Iterator[dict[str, Any]]:
        """A row per cell; a file that was copied in part must not cost the others their table."""
        for key in self.folder.keys("cells"):
            try:
                yield self._row(key)
            except FileFormatError as error:
                self.unreadable.append(str(error))

    def _row(self, key: str) -> dict[str, Any]:
        header, score = self.folder.read_cell(key)
        self.scores[key] = score
        try:
            name = str(header["group"])
            if name not in self.groups:
                self.groups[name] = self.folder.group(name)
            group = self.groups[name]
            return {
                "key": key,
                "model": group["model"]["name"],
                "corpus": group["evaluate"]["name"],
                "group": name,
                "task": group["task"],
                "method": header["method"],
                "fraction": header["fraction"],
                "seed": header["seed"],
                "top1": score.top1,
                "cross_entropy": score.cross_entropy,
                "predictions": score.predictions,
                "splits": score.splits,
                "seconds": header["seconds"],
            }
        except (KeyError, TypeError) as error:
            raise FileFormatError(
                f"{self.folder.file('cells', key)} lacks {error}; delete it and run the same command again."
            ) from error

    def _with_baselines(self, frame: pd.DataFrame) -> pd.DataFrame:
        # pandas takes missing seeds for equal here, so two cells at 100 % are found as well.
        twice = frame[frame.duplicated(["group", "method", "fraction", "seed"], keep=False)]
        if len(twice):
            row = twice.iloc[0]
            raise MismatchError(
                f"{self.folder.path} holds two different cells for {row['model']}, {row['method']} at "
                f"{row['fraction']:g}; delete one of {', '.join(twice.index[:2])}."
            )
        baselines = frame[frame["method"] == BASELINE].set_index("group")[list(METRICS)].add_prefix("baseline_")
        # A left join: where a group's baseline failed, its cells stay, with NaN. No other group's will do.
        return frame.join(baselines, on="group")


class Results:
    """What a run folder holds; cells are comparable within a *group*: one model, one plan, one set of versions.

    Attributes:
        frame: one row per cell, indexed by the cell's key. `seed` is missing where a cell does not depend on one.
        failed: what went wrong in the run that gave these results.
        left_out: methods of that run that apply to none of its models.
        unreadable: cells that are left out because their files are damaged, each with the way out.
    """

    def __init__(self, folder: StudyFolder, cells: "_Cells", failed: Sequence[str], left_out: Sequence[str]) -> None:
        self.folder, self.failed, self.left_out = folder, list(failed), list(left_out)
        self.unreadable, self._scores, self._groups = cells.unreadable, cells.scores, cells.groups
        self.frame = cells.frame

    @classmethod
    def load(
        cls, folder: str | Path | StudyFolder, *, failed: Sequence[str] = (), left_out: Sequence[str] = ()
    ) -> "Results":
        """Read a run folder, finished or not; `failed` and `left_out` are what a run knows besides."""
        folder = folder if isinstance(folder, StudyFolder) else StudyFolder(folder)
        cells = _Cells(folder)
        cells.read()
        if cells.unreadable:
            more = f" (and {len(cells.unreadable) - 1} more like it)" if len(cells.unreadable) > 1 else ""
            warnings.warn(f"left out of the results: {cells.unreadable[0]}{more}", UnreadableCell, stacklevel=2)
        return cls(folder, cells, failed, left_out)

    @property
    def groups(self) -> dict[str, str]:
        """Group → its label: the model's name, and what tells groups of one model apart."""
        return label_groups({str(group): self._groups[group] for group in self.frame["group"].unique()})

    @property
    def ablated(self) -> pd.DataFrame:
        """The cells in which something is ablated, with groups by their label: what figures are drawn from."""
        cells = self.frame[self.frame["method"] != BASELINE]
        return cells.assign(group=cells["group"].map(self.groups))

    def facts(self, group: str) -> dict[str, Any]:
        """Model, corpora, sizes and versions of a group."""
        return self._groups[group]

    def _sums(self, rows: pd.DataFrame, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """`[seed document]`, in the order of the rows."""
        scores = [self._scores[str(key)] for key in rows.index]
        return np.stack([(score.correct if metric == "top1" else score.loss).numpy() for score in scores]).astype(float)

    def difference(self, group: str, fraction: float, first: str, second: str, metric: str) -> Interval:
        """How much two methods differ, paired by mask and document."""
        one, two = (self._of(group, method, fraction) for method in (first, second))
        drawn = [set(rows["seed"].dropna()) for rows in (one, two)]
        # An empty set is a value without seeds (100 %): broadcasting below sets it against every seed of the other.
        if all(drawn):
            common = drawn[0] & drawn[1]
            one, two = (rows[rows["seed"].isin(common)] for rows in (one, two))
        if one.empty or two.empty:
            raise MismatchError(f"{first} and {second} have no seed in common at {100 * fraction:g} %.")
        sums = np.broadcast_arrays(self._sums(one, metric), self._sums(two, metric))
        # One cell speaks for all: those of a group have one plan, and so the same predictions per document.
        predictions = self._scores[str(one.index[0])].predictions_per_document.numpy()
        interval = difference(sums[0], sums[1], predictions)
        # Where every neuron is ablated there is one mask, and nothing that the interval is conditional on.
        return interval if any(drawn) else dataclasses.replace(interval, conditional=False)

    def _of(self, group: str, method: str, fraction: float) -> pd.DataFrame:
        frame = self.frame
        chosen = (frame["group"] == group) & (frame["method"] == method) & (frame["fraction"] == plain_share(fraction))
        # In the order of seeds: `difference` pairs the rows of two methods by their place.
        return frame[chosen].sort_values("seed")

    def summary(self, fractions: Sequence[float] | None = None) -> pd.DataFrame:
        """One row per group, fraction and method: mean and sd (ddof=1) over seeds, and who is as good as the best.

        `…_as_best` marks the methods that cannot be told from the best one (95 % interval of the difference);
        `conditional` says that with so few seeds this holds for the masks drawn.
        """
        frame = self.frame[self.frame["method"] != BASELINE]
        wanted = sorted(set(frame["fraction"] if fractions is None else map(plain_share, fractions)))
        rows = []
        for group in self.groups:
            for fraction in wanted:
                here = frame[(frame["group"] == group) & (frame["fraction"] == fraction)]
                if here.empty:
                    continue
                # sort=False keeps the study's order of methods, which tables follow.
                methods = {str(name): rows for name, rows in here.groupby("method", sort=False)}
                best = {
                    "top1": max(methods, key=lambda name: methods[name]["top1"].mean()),
                    "cross_entropy": min(methods, key=lambda name: methods[name]["cross_entropy"].mean()),
                }
                for method, cells in methods.items():
                    row: dict[str, Any] = {"group": group, "model": here["model"].iloc[0], "fraction": fraction}
                    row |= {"method": method, "seeds": len(cells)}
                    for metric in METRICS:
                        row[metric], row[f"{metric}_sd"] = cells[metric].mean(), cells[metric].std(ddof=1)
                        row[f"baseline_{metric}"] = float(here[f"baseline_{metric}"].iloc[0])
                        interval = self.difference(group, fraction, method, best[metric], metric)
                        row[f"{metric}_to_best"] = interval.difference
                        row[f"{metric}_low"], row[f"{metric}_high"] = interval.low, interval.high
                        row[f"{metric}_as_best"] = method == best[metric] or not interval.excludes_zero
                        row["conditional"] = interval.conditional
                    rows.append(row)
        if not rows:
            asked = ", ".join(f"{100 * fraction:g} %" for fraction in wanted) or "any fraction"
            raise MismatchError(f"{self.folder.path} holds no cell that was measured at {asked}.")
        return pd.DataFrame(rows)

    def export(self, path: str | Path) -> None:
        """Write the frame as CSV or Parquet, by the file's suffix."""
        path = Path(path)
        writers: dict[str, Callable[[Path], Any]] = {".csv": self.frame.to_csv, ".parquet": self.frame.to_parquet}
        if path.suffix not in writers:
            raise AblationLensError(f"{path} must end in {' or '.join(writers)}.")
        with writing(path.parent):
            write_atomically(path, writers[path.suffix])

    def __repr__(self) -> str:
        groups = ", ".join(self.groups.values())
        return f"Results({len(self.frame)} cells of {groups} in {self.folder.path})"

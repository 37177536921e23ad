"""The results of a run folder: a row per cell, a summary per method and fraction, exports."""

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from ablation_lens.errors import AblationLensError, FileFormatError, MismatchError
from ablation_lens.escaping import for_csv
from ablation_lens.files import write_atomically, writing
from ablation_lens.measure.intervals import Interval, difference
from ablation_lens.measure.score import Score
from ablation_lens.study.cells import StudyFolder, plain_share
from ablation_lens.study.group_labels import label_groups
from ablation_lens.study.methods import BASELINE
from ablation_lens.study.records import GroupRecord

_Read = TypeVar("_Read")

BETTER = {"top1": "higher", "cross_entropy": "lower"}
"""What every cell has measured, and whether more of it is better."""
METRICS = tuple(BETTER)
_NAMED = 5
"""How many files that cannot be read are named in a warning of their own; `Results.unreadable` has them all."""

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


class UnreadableFile(UserWarning):
    """A file of a run folder is damaged, and what is made from the folder is without it."""


class _Cells:
    """What the files of a run folder hold: `read` once, and not changed afterwards."""

    def __init__(self, folder: StudyFolder, own: Collection[str]) -> None:
        self.folder, self.own = folder, own
        self.scores: dict[str, Score] = {}
        self.groups: dict[str, GroupRecord] = {}
        self.unreadable: list[str] = []
        self.further: dict[str, Any] = {}
        """The metrics of all groups besides the two of every cell."""
        self.frame = pd.DataFrame()

    def read(self) -> None:
        """Every cell that can be read becomes a row, in the order of the studies."""
        rows = [row for key in self.folder.keys("cells") if (row := self._row(key)) is not None]
        rows = self._of_the_same_documents(rows)
        if not rows and self.unreadable:
            raise FileFormatError(self.unreadable[0])
        if not rows:
            raise AblationLensError(f"{self.folder.path} holds no finished cell yet; run the study first.")
        frame = pd.DataFrame(rows).set_index("key")
        # The nullable Int64: with a seed missing, pandas would make floats of all, and 42 would become 42.0.
        frame["seed"] = frame["seed"].astype("Int64")
        names = self._or_none(self.folder.names, "studies") or []
        studies = [study for name in names if (study := self._or_none(self.folder.study, name))]
        models = _places(name for study in studies for name in study.models)
        methods = _places([BASELINE, *(name for study in studies for name in study.methods)])
        frame = frame.assign(
            _model=frame["model"].map(lambda name: models.get(name, len(models))),
            _method=frame["method"].map(lambda name: methods.get(name, len(methods))),
            method=self._told_apart(frame),
        ).sort_values(["_model", "model", "group", "fraction", "_method", "method", "seed"], kind="stable")
        frame = frame.drop(columns=[column for column in frame.columns if column.startswith("_")])
        measured = [*METRICS, *self.further]
        baselines = frame[frame["method"] == BASELINE].set_index("group")[measured].add_prefix("baseline_")
        # A left join: where a group's baseline failed, its cells stay, with NaN. No other group's will do.
        self.frame = frame.join(baselines, on="group")

    def _row(self, key: str) -> dict[str, Any] | None:
        """A row of the frame; a file that was copied in part must not cost the others their table."""
        read = self._or_none(self.folder.read_cell, key)
        if read is None:
            return None
        record, score = read
        if record.group not in self.groups:
            group = self._or_none(self.folder.group, record.group)
            if group is None:
                return None
            self.groups[record.group] = group
        group = self.groups[record.group]
        if score.predictions != group.predictions:
            self._leave_out(key, f"it has {score.predictions:,} predictions, its group {group.predictions:,}")
            return None
        if set(score.further) != set(group.metrics):
            self._leave_out(key, "its metrics are not those of its group")
            return None
        self.further |= group.metrics
        self.scores[key] = score
        return {
            "key": key,
            "model": group.model.name,
            "corpus": group.evaluate.name,
            "group": record.group,
            "task": group.task,
            "method": record.method,
            "fraction": record.fraction,
            "seed": record.seed,
            "top1": score.top1,
            "cross_entropy": score.cross_entropy,
            "predictions": score.predictions,
            **{name: score[name] for name in score.further},
            "splits": score.splits,
            "seconds": record.seconds,
            "_variant": record.variant(),
            "_short": record.variant(6),
            "_version": record.version,
        }

    def _of_the_same_documents(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows without those whose documents are not those of most cells of their group."""
        documents = {
            row["key"]: (row["group"], score.documents, tuple(score.predictions_per_document.tolist()))
            for row in rows
            for score in [self.scores[row["key"]]]
        }
        most: dict[str, Any] = {}
        for read, _ in Counter(documents.values()).most_common():
            most.setdefault(read[0], read)
        kept = []
        for row in rows:
            if documents[row["key"]] == most[row["group"]]:
                kept.append(row)
            else:
                self._leave_out(row["key"], "its documents are not those of the other cells of its group")
        return kept

    def _told_apart(self, frame: pd.DataFrame) -> "pd.Series[str]":
        """The methods' names; values that went by one name in a group are told apart.

        Of a center that was edited the folder holds the old cells and the new ones. The run that gives these results
        knows which are its own: those keep the name. Of versions of a center, the newest does.
        """
        named = frame["method"].copy()
        for (_, method), cells in frame.groupby(["group", "method"], sort=False):
            variants = cells["_variant"]
            if variants.nunique() == 1:
                continue
            versions = set(variants) <= {"", *(f"version {number}" for number in cells["_version"])}
            newest = variants[cells["_version"] == cells["_version"].max()] if versions else variants[:0]
            plain = set(variants[cells.index.isin(self.own)]) or set(newest)
            told = cells["_short"] if cells["_short"].nunique() == variants.nunique() else variants
            first = "version 1" if versions else "earlier values"
            named[cells.index] = [
                method if variant in plain else f"{method} ({text or first})"
                for variant, text in zip(variants, told, strict=True)
            ]
        return named

    def _or_none(self, read: "Callable[[str], _Read]", key: str) -> "_Read | None":
        try:
            return read(key)
        except FileFormatError as error:
            if str(error) not in self.unreadable:  # a group is missed by each of its cells
                self.unreadable.append(str(error))
            return None

    def _leave_out(self, key: str, why: str) -> None:
        self.unreadable.append(
            f"{self.folder.file('cells', key)} does not fit the others: {why}; delete it and run the same command "
            "again."
        )


def _places(names: Iterable[str]) -> dict[str, int]:
    """The order of models or methods: that of the first study that names them."""
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def csv_of(frame: pd.DataFrame, *, index: bool) -> str:
    """A frame as CSV, in which every name is one line and no formula."""

    def shown(value: Any) -> Any:
        return for_csv(value) if isinstance(value, str) else value

    texts = {str(name): column.map(shown) for name, column in frame.items() if not is_numeric_dtype(column)}
    text: str = frame.assign(**texts).to_csv(index=index)
    return text


class Results:
    """What a run folder holds; cells are comparable within a *group*: one model, one plan, one set of versions.

    Where a folder holds cells of several values under one name, as of a center that was edited, the names say so:
    `mine (values 3f2a1c)`. In the results of a run its own cells keep the plain name.

    Attributes:
        frame: one row per cell, indexed by the cell's key. `seed` is missing where a cell does not depend on one.
        better: every metric, and whether "higher" or "lower" is better; None where nobody said so.
        failed: what went wrong in the run that gave these results.
        left_out: methods of that run that apply to none of its models.
        unreadable: what is left out because a file is damaged, each with the way out.
        own: the keys of the cells of that run.
    """

    def __init__(self, folder: StudyFolder, cells: "_Cells", failed: Sequence[str], left_out: Sequence[str]) -> None:
        self.folder, self.failed, self.left_out = folder, list(failed), list(left_out)
        self.unreadable, self._scores, self._groups = cells.unreadable, cells.scores, cells.groups
        self.better: dict[str, str | None] = BETTER | {name: told.get("better") for name, told in cells.further.items()}
        self.frame = cells.frame
        self.own = frozenset(cells.own)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was measured: top-1, cross-entropy, and what some study asked for besides."""
        return tuple(self.better)

    @classmethod
    def load(
        cls,
        folder: str | Path | StudyFolder,
        *,
        failed: Sequence[str] = (),
        left_out: Sequence[str] = (),
        own: Collection[str] = (),
    ) -> "Results":
        """Read a run folder, finished or not; the rest is what a run knows besides: `own` are the keys of its cells."""
        folder = folder if isinstance(folder, StudyFolder) else StudyFolder(folder)
        cells = _Cells(folder, own)
        cells.read()
        for number, text in enumerate(cells.unreadable[:_NAMED]):
            left = len(cells.unreadable) - _NAMED if number == _NAMED - 1 else 0
            more = f" ({left} more like it)" if left > 0 else ""
            warnings.warn(f"left out of the results: {text}{more}", UnreadableFile, stacklevel=2)
        return cls(folder, cells, failed, left_out)

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Go on without a file that cannot be read, and say so."""
        try:
            yield
        except FileFormatError as error:
            if str(error) not in self.unreadable:
                self.unreadable.append(str(error))
                # After contextlib's __exit__ and the block.
                warnings.warn(f"left out of the results: {error}", UnreadableFile, stacklevel=3)

    @property
    def groups(self) -> dict[str, str]:
        """Group → its label: the model's name, and what tells groups of one model apart."""
        return label_groups({str(group): self.facts(group) for group in self.frame["group"].unique()})

    @property
    def ablated(self) -> pd.DataFrame:
        """The cells in which something is ablated, with groups by their label: what figures are drawn from."""
        cells = self.frame[self.frame["method"] != BASELINE]
        return cells.assign(group=cells["group"].map(self.groups))

    def facts(self, group: str) -> dict[str, Any]:
        """Model, corpora, sizes and versions of a group."""
        return self._groups[group].to_dict()

    def record(self, group: str) -> GroupRecord:
        """The same, as a record."""
        return self._groups[group]

    def _sums(self, rows: pd.DataFrame, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """`[seed document]`, in the order of the rows."""
        scores = [self._scores[str(key)] for key in rows.index]
        return np.stack([score.sums(metric).values.numpy() for score in scores]).astype(float)

    def difference(self, group: str, fraction: float, first: str, second: str, metric: str) -> Interval:
        """How much two methods differ, paired by mask and document."""
        interval = self._difference(group, fraction, first, second, metric)
        if interval is None:
            raise MismatchError(f"{first} and {second} have no seed in common at {100 * fraction:g} %.")
        return interval

    def _difference(self, group: str, fraction: float, first: str, second: str, metric: str) -> Interval | None:
        one, two = (self._of(group, method, fraction) for method in (first, second))
        drawn = [set(rows["seed"].dropna()) for rows in (one, two)]
        # An empty set is a value without seeds (100 %): broadcasting below sets it against every seed of the other.
        if all(drawn):
            common = drawn[0] & drawn[1]
            one, two = (rows[rows["seed"].isin(common)] for rows in (one, two))
        if one.empty or two.empty:
            return None
        sums = np.broadcast_arrays(self._sums(one, metric), self._sums(two, metric))
        # One cell speaks for all: those of a group have one plan, and so the same predictions per document.
        predictions = self._scores[str(one.index[0])].sums(metric).weights.numpy()
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
                best = self._best(methods)
                for method, cells in methods.items():
                    row: dict[str, Any] = {"group": group, "model": here["model"].iloc[0], "fraction": fraction}
                    row |= {"method": method, "seeds": len(cells)}
                    for metric in self.metrics:
                        row[metric], row[f"{metric}_sd"] = cells[metric].mean(), cells[metric].std(ddof=1)
                        row[f"baseline_{metric}"] = float(here[f"baseline_{metric}"].iloc[0])
                        # Where cells are missing, two methods may have no seed in common: none is known to be better.
                        against = best.get(metric)
                        interval = (
                            None if against is None else self._difference(group, fraction, method, against, metric)
                        )
                        row[f"{metric}_to_best"] = math.nan if interval is None else interval.difference
                        row[f"{metric}_low"] = math.nan if interval is None else interval.low
                        row[f"{metric}_high"] = math.nan if interval is None else interval.high
                        alike = interval is not None and not interval.excludes_zero
                        row[f"{metric}_as_best"] = method == against or alike
                        if metric in METRICS:
                            row["conditional"] = interval is None or interval.conditional
                    rows.append(row)
        if not rows:
            asked = ", ".join(f"{100 * fraction:g} %" for fraction in wanted) or "any fraction"
            measured = ", ".join(f"{100 * fraction:g} %" for fraction in sorted(set(frame["fraction"]))) or "nothing"
            raise MismatchError(f"{self.folder.path} holds no cell that was measured at {asked}; there is {measured}.")
        return pd.DataFrame(rows)

    def _best(self, methods: Mapping[str, pd.DataFrame]) -> dict[str, str]:
        """The best method by every metric of which it is known what is better."""
        best = {}
        for metric, better in self.better.items():
            means = {name: float(rows[metric].mean()) for name, rows in methods.items()}
            # All NaN in a group that has not measured it.
            if better is not None and not any(map(math.isnan, means.values())):
                best[metric] = (max if better == "higher" else min)(means, key=means.__getitem__)
        return best

    def export(self, path: str | Path) -> None:
        """Write the frame as CSV or Parquet, by the file's suffix.

        In CSV a name is one line and no formula: controls are shown escaped, and a name that begins with =, +, - or @
        has an apostrophe in front. Parquet has names as they are.
        """
        path = Path(path)
        writers: dict[str, Callable[[Path], Any]] = {
            ".csv": lambda target: target.write_text(csv_of(self.frame, index=True), encoding="utf-8", newline=""),
            ".parquet": self.frame.to_parquet,
        }
        if path.suffix not in writers:
            raise AblationLensError(f"{path} must end in {' or '.join(writers)}.")
        with writing(path.parent):
            write_atomically(path, writers[path.suffix])

    def __repr__(self) -> str:
        groups = ", ".join(self.groups.values())
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"Results({len(self.frame)} cells of {groups} in {self.folder.path}{failed})"

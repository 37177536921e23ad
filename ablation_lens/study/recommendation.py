"""`recommend`: what to set ablated neurons to in this model, found in one small study."""

import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation_lens.corpora import CorpusSizeWarning
from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.escaping import for_html, on_one_line, shorten
from ablation_lens.measure.metrics import Given, metrics_of
from ablation_lens.models.load import load_model
from ablation_lens.ranks import Ranks
from ablation_lens.sites import Site
from ablation_lens.study.cells import Cell, plain_share
from ablation_lens.study.methods import BASELINE, Method, names, split_label
from ablation_lens.study.results import Results
from ablation_lens.study.study import Study
from ablation_lens.tasks.tasks import Task, task_for

if TYPE_CHECKING:
    import pandas

CENTERS = ("zero", "mean", "median", "peak", "peak-kde", "optimal")
"""What is compared where nobody says otherwise."""
SIZES = {"tokens": {"collect": 20_000, "evaluate": 10_000}, "images": {"collect": 1000, "evaluate": 500}}
"""How much is read of either split, or all there is."""
_NONE_IN_FULL = "no center was measured at every fraction with every seed"


@dataclass(frozen=True, eq=False, repr=False)
class Recommendation:
    """Which center to take at which fraction, what it costs, and how sure that is.

    Attributes:
        model: its name.
        corpus: what centers were judged on.
        metric: what they were judged by.
        better: whether "higher" or "lower" is better.
        unablated: the metric of the model as it is.
        frame: a row per fraction and center, the best one first: the metric as `value`, its `sd` over masks, `change`
            from the model as it is, `to_best` with its 95 % interval `low` to `high`, paired by mask and document,
            `as_best` (cannot be told from the best), `passes` over the collected documents that the values took, and
            which one is `recommended`.
        conditional: whether the intervals hold for the masks that were drawn only.
        left_out: centers that were not measured at every fraction with every seed: where, and the first reason. What
            has a gap at a fraction is not compared there, as its masks are not those of the others.
    """

    model: str
    corpus: str
    metric: str
    better: str
    unablated: float
    frame: "pandas.DataFrame"
    conditional: bool
    left_out: Mapping[str, str]

    @property
    def fractions(self) -> tuple[float, ...]:
        """The shares of neurons that were ablated."""
        return tuple(float(each) for each in self.frame["fraction"].unique())

    def best(self, fraction: float | None = None) -> str:
        """The center to take: the cheapest of those that cannot be told from the best.

        Of all fractions together, where none is said: one that this holds for at every fraction. Where there is none,
        the one that is furthest from the best least. What was not measured at every fraction is never taken for all.
        """
        if fraction is not None:
            here = self._at(fraction)
            return str(here.loc[here["recommended"], "center"].iloc[0])
        full = self._full()
        if full.empty:
            raise MismatchError(f"{_NONE_IN_FULL}; ask for the best at one of {self._measured()}.")
        everywhere = self._as_best_everywhere()
        if everywhere:
            return min(everywhere, key=self._cost)
        worst = full.assign(far=full["to_best"].abs()).groupby("center", sort=False)["far"].max()
        return str(worst.idxmin())

    def told(self, fraction: float | None = None) -> str:
        """In a sentence: at a fraction, or of all."""
        return self._overall() if fraction is None else self._sentence(fraction)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = self.frame.drop(columns="fraction")
        return {
            "model": self.model,
            "corpus": self.corpus,
            "metric": self.metric,
            "better": self.better,
            "unablated": self.unablated,
            "recommended": None if self._full().empty else self.best(),
            "told": self.told(),
            "conditional": self.conditional,
            "fractions": [
                {
                    "fraction": fraction,
                    "recommended": self.best(fraction),
                    "told": self.told(fraction),
                    "centers": rows[self.frame["fraction"] == fraction].to_dict("records"),
                }
                for fraction in self.fractions
            ],
            "left_out": dict(self.left_out),
        }

    def __repr__(self) -> str:
        names = [on_one_line(str(name)) for name in self.frame["center"]]
        wide = max(6, *map(len, names))
        lines = [
            f"{on_one_line(self.model)} on {on_one_line(self.corpus)}: {on_one_line(self.metric)} ({self.better} is "
            f"better); the model as it is: {self.unablated:.4f}",
            f"  {'ablated':>7}  {'center':{wide}}  {'value':>9}  {'change':>9}  {'to the best':>11}  "
            f"{'95 % interval':20}  {'passes':>7}",
        ]
        before = None
        for name, row in zip(names, self.frame.to_dict("records"), strict=True):
            mark = "→" if row["recommended"] else "*" if row["as_best"] else " "
            ablated = "" if row["fraction"] == before else f"{100 * row['fraction']:g} %"
            before = row["fraction"]
            interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]" if row["low"] == row["low"] else "–"
            lines.append(
                f"{mark} {ablated:>7}  {name:{wide}}  {row['value']:9.4f}  {row['change']:+9.4f}  "
                f"{row['to_best']:+11.4f}  {interval:20}  {row['passes']:7,.1f}"
            )
        over = "documents, given these masks" if self.conditional else "masks and documents"
        lines.append(f"→ recommended; * cannot be told from the best (paired difference, bootstrapped over {over})")
        lines += [self.told(fraction) for fraction in self.fractions]
        lines += [self.told()]
        lines += [f"left out: {on_one_line(name)} ({on_one_line(why)})" for name, why in self.left_out.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{for_html(repr(self))}</pre>"

    def _at(self, fraction: float) -> "pandas.DataFrame":
        here = self.frame[self.frame["fraction"] == round(float(fraction), 12)]
        if here.empty:
            raise MismatchError(f"nothing was measured at fraction={fraction:g}; there are {self._measured()}.")
        return here

    def _measured(self) -> str:
        return ", ".join(f"{each:g}" for each in self.fractions)

    def _full(self) -> "pandas.DataFrame":
        """The rows of centers that were measured at every fraction with every seed."""
        return self.frame[~self.frame["center"].isin(list(self.left_out))]

    def _cost(self, center: str) -> tuple[Any, ...]:
        return _order(center, float(self.frame.loc[self.frame["center"] == center, "passes"].max()))

    def _as_best_everywhere(self) -> list[str]:
        full = self._full()
        held = full[full["as_best"]].groupby("center", sort=False)["fraction"].nunique()
        return [str(center) for center, number in held.items() if number == len(self.fractions)]

    def _sentence(self, fraction: float) -> str:
        here = self._at(fraction)
        absent = [on_one_line(name) for name in self.left_out if name not in set(here["center"])]
        return self._compared(fraction, here) + (f" Left out here: {_joined(absent)}." if absent else "")

    def _compared(self, fraction: float, here: "pandas.DataFrame") -> str:
        alike = [on_one_line(str(each)) for each in here.loc[here["as_best"], "center"]]
        taken = here[here["recommended"]].iloc[0]
        name = on_one_line(str(taken["center"]))
        ablated = f"With {100 * fraction:g} % of the neurons ablated,"
        cost = f"{taken['change']:+.4f} from the model as it is"
        if len(alike) > 1:
            which = f"{_joined(alike)} cannot be told apart"
            equal = here.loc[here["as_best"], "passes"].nunique() == 1
            why = "the simplest of them, which cost the same" if equal else "the cheapest of them"
            cheapest = f"take {name}, {why} ({_passes(taken['passes'])}; {cost})."
            others = "" if len(alike) == len(here) else ", and the others are worse"
            return f"{ablated} {which}{others}: {cheapest}"
        if len(here) == 1:
            return f"{ablated} there is only {name} to take ({cost})."
        second = here.iloc[1]
        return (
            f"{ablated} {name} does best ({cost}; {_passes(taken['passes'])}): the next, "
            f"{on_one_line(str(second['center']))}, differs by {second['to_best']:+.4f}, 95 % interval "
            f"{second['low']:+.4f} to {second['high']:+.4f}."
        )

    def _overall(self) -> str:
        chosen = {fraction: on_one_line(self.best(fraction)) for fraction in self.fractions}
        by_center: dict[str, list[str]] = {}
        for fraction, name in chosen.items():
            by_center.setdefault(name, []).append(f"{100 * fraction:g} %")
        told = "; ".join(f"{name} at {_joined(where)}" for name, where in by_center.items())
        full = self._full()
        if full.empty:
            return f"{_NONE_IN_FULL[0].upper()}{_NONE_IN_FULL[1:]}: take {told}."
        overall = on_one_line(self.best())
        gaps = len(full) < len(self.frame)
        if bool(self.frame["as_best"].all()) and self.frame["center"].nunique() > 1 and not gaps:
            return f"These centers cannot be told apart here: take {overall}, the cheapest."
        if set(chosen.values()) == {overall}:
            return f"Take {overall}."
        if self._as_best_everywhere():
            return f"Take {overall}: at no fraction can it be told from the best."
        none = "No center that was measured at every fraction" if gaps else "No center"
        return f"{none} is as good as the best at every fraction: take {told}. If it must be one, take {overall}."


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _passes(number: float) -> str:
    return "no pass over the documents" if number == 0 else f"{number:,.3g} pass{'' if number == 1 else 'es'}"


def _order(label: str, passes: float) -> tuple[Any, ...]:
    """The cheaper one first: what is read off statistics before what is learned, of equals the simpler one."""
    name, _ = split_label(label)
    known = names()
    return Method.parse(label).learns, passes, known.index(name) if name in known else len(known), label


def recommend(
    model: Any,
    task: Any = None,
    *,
    fractions: Iterable[float] | float = (0.1, 0.5, 0.9),
    centers: Iterable[str] | str | None = None,
    learned: bool = True,
    seeds: Sequence[int] | int = 10,
    metric: Given = "cross_entropy",
    site: Site | str = Site.Z,
    tokens: int | None = None,
    images: int | None = None,
    folder: str | Path | None = None,
    dtype: str | None = None,
    device: str | None = None,
    progress: bool = True,
    ranks: Ranks | None = None,
) -> Recommendation:
    """Say which center loses least in this model at which fraction, at what cost, or that it cannot be told.

    A small study: the same masks and documents for every center, differences in pairs. Of those that cannot be told
    from the best, the cheapest is recommended: zero before mean before the others, learned ones last.

    Args:
        model: a hooked model, a zoo name, a local folder or a hub id.
        task: what it reads: an `al.task_for`, a corpus by name or path, or batches, `{"collect": …, "evaluate": …}`;
            None for the model's default corpus.
        fractions: shares of every layer's neurons that are ablated.
        centers: methods of a study; None for zero, mean, median, peak, peak-kde and optimal.
        learned: whether centers that are learned are among them, which takes minutes.
        seeds: how many masks at every fraction, or which seeds draw them.
        metric: what is lost: a name out of `al.metrics`, or one that says what is better.
        site: where the neurons are.
        tokens: to read of either split; None for 20,000 to collect and 10,000 to judge on, or all there is.
        images: likewise, for an image model; None for 1,000 and 500.
        folder: where the study is kept, and gone on with; None for nowhere.
        dtype: of a model that is loaded.
        device: likewise.
        progress: show how far it is.
        ranks: `Ranks.join()` in a program that torchrun started several times; they share the folder.

    >>> found = recommend("tiny-opt", centers=["zero", "mean"], fractions=0.5, seeds=2, tokens=500, progress=False)
    >>> found.best(0.5) in ("zero", "mean")
    True
    """
    name, measured = _one_metric(metric)
    wanted = [centers] if isinstance(centers, str) else list(CENTERS if centers is None else centers)
    methods = [Method.parse(each) for each in wanted]
    methods = [each for each in methods if learned or not each.learns]
    if not methods:
        raise MismatchError("there is no center to recommend; name some, or leave centers= out.")
    shares, drawn = _shares(fractions), _seeds(seeds)
    if folder is None and ranks is not None and ranks.size > 1:
        raise MismatchError(f"{ranks.size} processes share the work by a folder; give folder='runs/which'.")
    loaded = load_model(str(model), dtype=dtype, device=device) if isinstance(model, str | Path) else model
    study = Study(
        models=[loaded],
        methods=[each.label for each in methods],
        fractions=shares,
        seeds=drawn,
        batches=_batches(loaded, task, tokens, images),
        metrics={name: measured},
        site=Site.of(site).value,
    )
    with ExitStack() as stack:
        if folder is None:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="ablation-lens-"))
            try:
                results = study.run(place, progress=progress)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("interrupted; folder=… keeps what is measured.") from None
        else:
            results = study.run(folder, progress=progress, ranks=ranks)
        return _recommended(results, study, name)


def _shares(fractions: Any) -> list[float]:
    """The fractions as a list. At 0 nothing is ablated, and there is no center to choose."""
    given = _listed(fractions)
    possible = all(
        isinstance(each, Real) and not isinstance(each, bool) and 0 < plain_share(float(each)) <= 1 for each in given
    )
    if not given or not possible:
        raise MismatchError(f"fractions={_shown(fractions)} is not possible; give numbers above 0 and up to 1.")
    return given


def _seeds(seeds: Any) -> list[int]:
    """The seeds as a list. For Python True is a whole number, too."""
    if isinstance(seeds, Integral) and not isinstance(seeds, bool) and int(seeds) > 0:
        return list(range(int(seeds)))
    given = [] if isinstance(seeds, Real) else _listed(seeds)
    if not given or not all(isinstance(each, Integral) and not isinstance(each, bool) for each in given):
        raise MismatchError(
            f"seeds={_shown(seeds)} is not possible; give how many masks, at least 1, or a list of whole numbers."
        )
    return given


def _listed(value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError:  # as of an array without dimensions, too
        return [value]


def _shown(value: Any) -> str:
    return shorten(on_one_line(repr(value)), 60)


def _one_metric(metric: Given) -> tuple[str, Any]:
    found = metrics_of(metric)
    if len(found) != 1:
        raise MismatchError(f"centers are recommended by one metric, got {len(found)}; ask once for each.")
    name, measured = next(iter(found.items()))
    if measured.better is None:
        raise MismatchError(
            f"whether more of {name} is better cannot be told; give al.metrics.Metric(function, better='lower')."
        )
    return name, measured


def _batches(model: Any, task: Any, tokens: int | None, images: int | None) -> Mapping[str, Any]:
    """What is collected over, and what is judged on."""
    if isinstance(task, Mapping):
        if tokens is not None or images is not None:
            raise MismatchError(
                "batches are read as they are given, so tokens= and images= say nothing; leave them out."
            )
        return task
    read = task if isinstance(task, Task) else task_for(model, task)
    asked = {name: size for name, size in (("tokens", tokens), ("images", images)) if size is not None}
    with warnings.catch_warnings():
        if not asked:  # a corpus that is smaller will do
            warnings.simplefilter("ignore", CorpusSizeWarning)
        sizes = {split: asked or {read.unit: size} for split, size in SIZES[read.unit].items()}
        return {split: read.batches(split=split, **size) for split, size in sizes.items()}  # type: ignore[arg-type]


def _recommended(results: Results, study: Study, metric: str) -> Recommendation:
    import pandas

    # A folder may hold more; what was asked for now is judged by itself.
    results.frame = results.frame[results.frame.index.isin(results.own)]
    cells = results.frame[results.frame["method"] != BASELINE]
    if cells.empty or results.frame[f"baseline_{metric}"].isna().all():
        raise AblationLensError(results.failed[0] if results.failed else "nothing could be measured.")
    record = results.record(str(cells["group"].iloc[0]))
    gaps = _gaps(cells, study.cells(record.task))
    # Over other masks than the others' a center is not compared, and is not to be the best that others are held to.
    holes = {(label, cell.fraction) for label, missing in gaps.items() for cell in missing}
    pairs = zip(cells["method"], cells["fraction"], strict=True)
    cells = cells[[pair not in holes for pair in pairs]]
    if cells.empty:
        first = f": {results.failed[0]}" if results.failed else "."
        raise AblationLensError(f"no center was measured with every seed at any fraction{first}")
    results.frame = cells
    rows = []
    summary = results.summary()
    for fraction in sorted(map(float, summary["fraction"].unique())):
        here = summary[summary["fraction"] == fraction]
        better = str(results.better[metric])
        found = here.sort_values(metric, ascending=better == "lower", kind="stable").to_dict("records")
        passes = {row["method"]: _passes_of(results, record, row["method"], fraction) for row in found}
        alike = [row["method"] for row in found if row[f"{metric}_as_best"]]
        taken = min(alike, key=lambda label: _order(label, passes[label]))
        rows += [
            {
                "fraction": fraction,
                "center": row["method"],
                "value": row[metric],
                "sd": row[f"{metric}_sd"],
                "change": row[metric] - row[f"baseline_{metric}"],
                "to_best": row[f"{metric}_to_best"],
                "low": row[f"{metric}_low"],
                "high": row[f"{metric}_high"],
                "as_best": bool(row[f"{metric}_as_best"]),
                "passes": passes[row["method"]],
                "recommended": row["method"] == taken,
            }
            for row in found
        ]
    left_out = {}
    for label in study.methods:
        if not Method.parse(label).suits(record.task):
            left_out[label] = "it applies to no model of this task"
        elif label in gaps:
            left_out[label] = _why(results, study, record.task, label, gaps[label])
    return Recommendation(
        record.model.name,
        record.evaluate.name,
        metric,
        str(results.better[metric]),
        float(cells[f"baseline_{metric}"].iloc[0]),
        pandas.DataFrame(rows),
        bool(summary["conditional"].any()),
        left_out,
    )


def _passes_of(results: Results, record: Any, label: str, fraction: float) -> float:
    method = Method.parse(label)
    if method.learns:
        return results.folder.read_learned(record, method, fraction).cost.passes
    from ablation_lens.neurons import centers

    return 0.0 if method.draws else float(centers.about(method.name).passes)


def _gaps(cells: "pandas.DataFrame", wanted: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells that are not there, by center."""
    import pandas

    seeds = [None if pandas.isna(seed) else int(seed) for seed in cells["seed"]]
    there = set(zip(cells["method"], cells["fraction"], seeds, strict=True))
    gaps: dict[str, list[Cell]] = {}
    for cell in wanted:
        if cell.method is not None and (cell.method.label, cell.fraction, cell.seed) not in there:
            gaps.setdefault(cell.method.label, []).append(cell)
    return gaps


def _why(results: Results, study: Study, task: str, label: str, missing: Sequence[Cell]) -> str:
    """Where a center was not measured, unless that is everywhere, and the first reason."""
    name = next(iter(study.named_models))
    starts = tuple(f"{name}: {cell}: " for cell in missing)
    told = [text[len(start) :] for text in results.failed for start in starts if text.startswith(start)]
    reason = told[0] if told else "not measured"
    wanted: dict[float, int] = {}
    for cell in study.cells(task):
        if cell.method is not None and cell.method.label == label:
            wanted[cell.fraction] = wanted.get(cell.fraction, 0) + 1
    if len(missing) == sum(wanted.values()):
        return reason
    where = []
    for fraction in sorted({cell.fraction for cell in missing}):
        seeds = [str(cell.seed) for cell in missing if cell.fraction == fraction]
        which = "" if len(seeds) == wanted[fraction] else f" with seed{'s' * (len(seeds) > 1)} {_joined(seeds)}"
        where.append(f"{100 * fraction:g} %{which}")
    return f"at {'; '.join(where)}: {reason}"

"""What ablation costs: the paper's Figures 2 and 3, and who is how far from the best, from a study's results."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.names import choose
from ablation_lens.plots.metrics import ShownMetric, shown_metric, shown_metrics
from ablation_lens.plots.template import (
    BELOW,
    FAINT,
    LENS_TEMPLATE,
    add_frame,
    faint,
    line_of,
    lines,
    method_order,
    symbol_of,
)
from ablation_lens.study.results import CELL_COLUMNS, Results

_TITLE_WIDTH = 44
"""Letters of a panel's title that fit on a line, of two panels in a row."""


def figure_2(
    results: Results | pandas.DataFrame,
    *,
    model: str | None = None,
    metrics: Sequence[str] | None = None,
    seeds: bool = False,
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """The paper's Figures 2 and 3: metrics against the share of neurons ablated, a row of panels per group of cells.

    `results` is a study's, or a frame with CELL_COLUMNS. Lines go through the means over seeds, from the unablated
    model at 0; bands are ± one standard deviation, or with `seeds` a thin line per seed.

    >>> import pandas
    >>> cells = [("opt", "pile", "opt", "peak", 0.5, seed, 0.3 + seed / 10, 2.0, 0.5, 1.5) for seed in (0, 1, 2)]
    >>> figure_2(pandas.DataFrame(cells, columns=CELL_COLUMNS)).data[1].y
    (50.0, 40.0)
    """
    measured = shown_metrics(results, metrics)
    chance = _outputs(results)
    if isinstance(results, Results):
        results = results.ablated
    missing = [column for column in CELL_COLUMNS if column not in results.columns]
    if missing:
        raise MismatchError(f"results lack the columns {', '.join(missing)}; expected {', '.join(CELL_COLUMNS)}.")
    results = _of_model(results, model)
    if results.empty:
        raise MismatchError("there are no results to show; a study's finished cells are needed, one row each.")
    # A frame of the user's own may have no corpus; groupby drops rows without a key by default.
    rows = list(results.groupby(["group", "model", "corpus"], sort=False, dropna=False))
    figure, layout = _rows_of_panels(_row_titles([key for key, _ in rows]), [metric.name for metric in measured])
    methods = sorted(results["method"].unique(), key=lambda method: method_order(str(method)))
    named: set[str] = set()
    for row, ((group, *_), cells) in enumerate(rows, 1):
        for col, metric in enumerate(measured, 1):
            level = metric.chance(chance.get(str(group)))
            if level is not None:
                figure.add_trace(_chance(level, metric, chance[str(group)], "chance" not in named), row, col)
                named.add("chance")
        for rank, method in enumerate(methods):
            mine = cells[cells["method"] == method]
            if mine.empty:
                continue
            for col, metric in enumerate(measured, 1):
                points = list(_points(mine, metric))
                shown = {"legendgroup": for_plotly(method), "legendrank": rank, "showlegend": False}
                # Seeds or bands first: later traces are drawn over earlier ones.
                below = _seeds(mine, metric, str(method)) if seeds else _band(points, str(method))
                figure.add_trace(below.update(shown), row, col)
                # Once per method, where it first appears: the first row of panels may lack it.
                shown["showlegend"] = method not in named
                figure.add_trace(_line(points, str(method), metric).update(shown), row, col)
                named.add(method)
    for col, metric in enumerate(measured, 1):
        figure.update_yaxes(title_text=metric.title, col=col)
    figure.update_xaxes(title_text="neurons ablated (%)", range=[-2, 102], dtick=20)
    return add_frame(
        figure, "What ablation costs", _seeds_note(results, seeds), template, hovermode="closest", **layout
    )


def differences_to_best(
    results: Results | pandas.DataFrame,
    *,
    model: str | None = None,
    metrics: Sequence[str] | None = None,
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """How far every method is from the best one at its fraction, with 95 % intervals; a row of panels per model.

    A filled mark cannot be told from the best. The first view is that of the constants, as resampling is far off; a
    double click shows all. `results` may be their `summary()`, which takes a while.
    """
    summary = results.summary() if isinstance(results, Results) else results
    if isinstance(results, Results):
        summary = summary.assign(group=summary["group"].map(results.groups))
    # Of a metric for which nobody said what is better, there is no best.
    known = summary.columns[summary.notna().any()]
    compared = [str(column).removesuffix("_to_best") for column in known if str(column).endswith("_to_best")]
    wanted = compared if metrics is None else [choose(name, {c: c for c in compared}, "metric") for name in metrics]
    summary = _of_model(summary, model)
    if summary.empty or not wanted:
        raise MismatchError("there is nothing to compare; the summary of a study with cells is needed.")
    measured = tuple(map(shown_metric, wanted))
    groups = list(summary.groupby("group", sort=False))
    figure, layout = _rows_of_panels([str(group) for group, _ in groups], [metric.name for metric in measured])
    methods = sorted(summary["method"].unique(), key=lambda method: method_order(str(method)))
    fractions = sorted(set(summary["fraction"]))
    gap = min([10.0, *(100 * (b - a) for a, b in itertools.pairwise(fractions))])  # percent between two groups of marks
    named: set[str] = set()
    for row, (_, cells) in enumerate(groups, 1):
        for col, metric in enumerate(measured, 1):
            figure.add_hline(0, line={"color": FAINT, "width": 1}, layer="below", row=row, col=col)
            for rank, method in enumerate(methods):
                mine = cells[cells["method"] == method].dropna(subset=[f"{metric.column}_to_best"])
                if mine.empty:
                    continue
                # Side by side: intervals on one place would hide each other.
                beside = gap * 0.6 * ((rank + 0.5) / len(methods) - 0.5)
                trace = _differences(mine, metric, str(method), beside)
                shown = {"legendgroup": for_plotly(method), "legendrank": rank, "showlegend": method not in named}
                figure.add_trace(trace.update(shown), row, col)
                named.add(method)
            figure.update_yaxes(range=_constants_in_view(cells, metric), row=row, col=col)
    for col, metric in enumerate(measured, 1):
        unit = f" ({'points' if metric.unit == '%' else metric.unit})" if metric.unit else ""
        figure.update_yaxes(title_text=f"{metric.name} − the best{unit}", col=col)
    figure.update_xaxes(title_text="neurons ablated (%)", range=[-2, 104], dtick=20)
    note = "95 % intervals of the paired difference; filled: cannot be told from the best"
    return add_frame(figure, "Difference to the best method", note, template, hovermode="closest", **layout)


def _rows_of_panels(rows: Sequence[str], columns: Sequence[str]) -> tuple[go.Figure, dict[str, Any]]:
    """Panels with titles that say row and column, and what of the layout follows from their number."""
    titles = [lines(title, _TITLE_WIDTH * 2 // max(len(columns), 2)) for title in rows]
    above = 17 * max(title.count("<br>") for title in titles)  # what titles of several lines take, in pixels
    height = 180 + (300 + above) * len(rows)
    figure = make_subplots(
        rows=len(rows),
        cols=len(columns),
        subplot_titles=[f"{title}: {what}" for title in titles for what in columns],
        horizontal_spacing=0.22 / len(columns) if len(columns) > 1 else None,
        # Plotly takes a share of the height; this one is as many pixels for any number of rows.
        vertical_spacing=(96 + above) / height if len(rows) > 1 else None,
    )
    figure.update_annotations(font_size=13)
    return figure, {"height": height, "margin": {"t": 105 + above}, "legend": BELOW}


def _of_model(frame: pandas.DataFrame, model: str | None) -> pandas.DataFrame:
    """The rows of one group or model."""
    if model is None or frame.empty:
        return frame
    known = {str(name): str(name) for column in ("group", "model") for name in frame[column].unique()}
    name = choose(model, known, "model")
    return frame[(frame["group"].astype(str) == name) | (frame["model"].astype(str) == name)]


def _outputs(results: Results | pandas.DataFrame) -> dict[str, int]:
    """Between how many outputs the model of a group chooses, by the group's label, where its file says so."""
    if not isinstance(results, Results):
        return {}
    found = {label: results.record(group).outputs for group, label in results.groups.items()}
    return {label: outputs for label, outputs in found.items() if outputs is not None}


def _chance(level: float, metric: ShownMetric, outputs: int, named: bool) -> go.Scatter:
    # A trace and not a shape: it must be in view, also where nothing else comes near it.
    return go.Scatter(
        x=[-2, 102],
        y=[level, level],
        name="chance",
        mode="lines",
        line={"color": FAINT, "width": 1.5, "dash": "dot"},
        legendgroup="chance",
        legendrank=2000,
        showlegend=named,
        hovertemplate=f"chance: {level:.4g}{metric.suffix}<br>each of {outputs:,} outputs alike<extra></extra>",
    )


def _differences(cells: pandas.DataFrame, metric: ShownMetric, method: str, beside: float) -> go.Scatter:
    cells = cells.sort_values("fraction")
    percent = (100 * cells["fraction"]).tolist()
    low, gap, high = ((metric.scale * cells[f"{metric.column}_{end}"]).tolist() for end in ("low", "to_best", "high"))
    alike = cells[f"{metric.column}_as_best"].tolist()
    hover = [
        f"{share:.4g} % ablated<br>{there:+.4g}{metric.suffix} [{under:+.4g}, {over:+.4g}]"
        f"<br>{'cannot be told from the best' if best else 'differs from the best'}"
        for share, there, under, over, best in zip(percent, gap, low, high, alike, strict=True)
    ]
    line = line_of(method)
    return go.Scatter(
        x=[share + beside for share in percent],
        y=gap,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [over - there for over, there in zip(high, gap, strict=True)],
            "arrayminus": [there - under for there, under in zip(gap, low, strict=True)],
            "thickness": 1.2,
            "width": 3,
            "color": line["color"],
        },
        name=for_plotly(method),
        mode="lines+markers",
        line=line | {"width": 1},
        marker={"symbol": [symbol_of(method) + ("" if best else "-open") for best in alike], "size": 8},
        customdata=hover,
        hovertemplate=f"<b>{for_plotly(method)}</b>, %{{customdata}}<extra></extra>",
    )


def _constants_in_view(cells: pandas.DataFrame, metric: ShownMetric) -> tuple[float, float] | None:
    """The range of all intervals but those of resampling; None where nothing else was measured."""
    near = cells[~cells["method"].map(lambda method: str(method).startswith("resample-"))]
    low, high = (metric.scale * near[f"{metric.column}_{end}"].dropna() for end in ("low", "high"))
    if low.empty or low.min() == high.max():
        return None
    air = 0.06 * float(high.max() - low.min())
    return float(low.min()) - air, float(high.max()) + air


def _row_titles(keys: list[Any]) -> list[str]:
    """Group, and what else tells rows apart: another model or corpus of the same group."""
    titles = []
    for group, model, corpus in keys:
        models = {other[1] for other in keys if other[0] == group}
        corpora = {other[2] for other in keys if other[0] == group}
        parts = [group, *([model] if len(models) > 1 else []), *([corpus] if len(corpora) > 1 else [])]
        titles.append(" · ".join(map(str, parts)))
    return titles


def _seeds_note(results: pandas.DataFrame, lines_of_seeds: bool) -> str:
    seeds = results["seed"].dropna().nunique()
    if seeds <= 1:
        return "one seed" if lines_of_seeds else "one seed, so no band"
    return (
        f"mean over {seeds} seeds, and each of them"
        if lines_of_seeds
        else f"mean ± standard deviation over {seeds} seeds"
    )


@dataclass(frozen=True)
class _Point:
    """`spread` is 0 where the seed makes no difference, and NaN where one seed is all there is."""

    percent: float
    mean: float
    spread: float
    cells: int
    baseline: float


def _points(cells: pandas.DataFrame, metric: ShownMetric) -> Iterator[_Point]:
    cells = cells.dropna(subset=[metric.column])  # an older cell may lack a metric of the user's own
    values = cells.assign(
        value=cells[metric.column] * metric.scale, base=cells[f"baseline_{metric.column}"] * metric.scale
    )
    # One per seed: a seed may draw masks, and then has a baseline of its own.
    baselines = values.groupby("seed", dropna=False)["base"].first().dropna().tolist()
    baseline = statistics.fmean(baselines) if baselines else math.nan
    if baselines:
        # This covers a single baseline, too, for which `stdev` raises.
        spread = 0.0 if len(set(baselines)) == 1 else statistics.stdev(baselines)
        yield _Point(0.0, baseline, spread, len(baselines) if spread else 1, baseline)
    # A measured fraction of 0 is the baseline again, and is needed only where no baseline is known.
    for _, there in values[(values["fraction"] > 0) | (not baselines)].groupby("fraction"):
        percent = 100 * float(there["fraction"].iloc[0])
        found = there["value"].tolist()
        spread = 0.0 if there["seed"].isna().all() else statistics.stdev(found) if len(found) > 1 else math.nan
        yield _Point(percent, statistics.fmean(found), spread, len(found), baseline)


def _line(points: list[_Point], method: str, metric: ShownMetric) -> go.Scatter:
    return go.Scatter(
        x=[point.percent for point in points],
        y=[point.mean for point in points],
        customdata=[_hover(point, metric) for point in points],
        name=for_plotly(method),
        mode="lines+markers",
        line=line_of(method),
        marker={"symbol": symbol_of(method), "size": 7},
        hovertemplate=f"<b>{for_plotly(method)}</b>, %{{x:.4~g}} % ablated<br>%{{customdata}}<extra></extra>",
    )


def _hover(point: _Point, metric: ShownMetric) -> str:
    about = f" ± {point.spread:.4g}" if point.cells > 1 else ""
    cells = f"{point.cells} seeds" if point.cells > 1 else "one evaluation"
    if point.percent == 0:
        return f"{point.mean:.4g}{about}{metric.suffix}<br>the model as it is"
    return (
        f"{point.mean:.4g}{about}{metric.suffix}, {cells}<br>change {point.mean - point.baseline:+.4g}{metric.suffix}"
    )


def _band(points: list[_Point], method: str) -> go.Scatter:
    """One closed outline per stretch of points whose spread is known."""
    x: list[float | None] = []
    y: list[float | None] = []
    for known, stretch in itertools.groupby(points, key=lambda point: not math.isnan(point.spread)):
        run = list(stretch)
        if known and any(point.spread > 0 for point in run):
            # None ends an outline; without it Plotly would join two stretches over the gap.
            x += [*(point.percent for point in run), *(point.percent for point in reversed(run)), None]
            y += [*(p.mean + p.spread for p in run), *(p.mean - p.spread for p in reversed(run)), None]
    return go.Scatter(
        x=x,
        y=y,
        name=f"{for_plotly(method)} ± sd",
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(line_of(method)["color"]),
        hoverinfo="skip",
    )


def _seeds(cells: pandas.DataFrame, metric: ShownMetric, method: str) -> go.Scatter:
    """A thin line per seed, from the baseline on."""
    cells = cells.dropna(subset=[metric.column])
    # What does not depend on a seed, as all neurons set to a constant, is where every seed's line ends.
    shared = cells[cells["seed"].isna()]
    x: list[float | None] = []
    y: list[float | None] = []
    said: list[str] = []
    for seed in cells["seed"].dropna().unique().tolist():
        drawn = cells[cells["seed"] == seed]
        rows = pandas.concat([drawn, shared]).sort_values("fraction")
        base = rows[f"baseline_{metric.column}"].dropna().tolist()[:1]
        x += [*([0.0] if base else []), *(100 * rows["fraction"]).tolist(), None]
        y += [*(metric.scale * value for value in (*base, *rows[metric.column].tolist())), None]
        said += [f"seed {int(seed)}"] * (len(x) - len(said))
    return go.Scatter(
        x=x,
        y=y,
        customdata=said,
        name=f"{for_plotly(method)}, by seed",
        mode="lines",
        opacity=0.4,
        line=line_of(method) | {"width": 1},
        hovertemplate=f"{for_plotly(method)}, %{{customdata}}<br>%{{y:.4g}}{metric.suffix}<extra></extra>",
    )

"""What ablation costs: the paper's Figures 2 and 3, from a study's results."""

import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.names import choose
from ablation_lens.palette import METHOD_COLORS
from ablation_lens.plots.template import BELOW, LENS_TEMPLATE, add_frame, line_of, lines, symbol_of
from ablation_lens.study.results import CELL_COLUMNS, Results

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class _Panel:
    column: str
    title: str
    scale: float
    unit: str


_TITLE_WIDTH = 44
"""Letters of a panel's title that fit on a line."""

_PANELS = (_Panel("top1", "top-1 (%)", 100.0, " %"), _Panel("cross_entropy", "cross-entropy (nats)", 1.0, " nats"))


def figure_2(
    results: "Results | pandas.DataFrame", *, model: str | None = None, template: Any = LENS_TEMPLATE
) -> go.Figure:
    """The paper's Figures 2 and 3: top-1 and cross-entropy against the fraction of neurons ablated.

    The two figures are one plot of different models: 2 of OPT and Mistral, 3 of ViT and RoBERTa. `results` is what a
    study gave, or a frame with a row per cell and the columns model, corpus, group, method, fraction, seed, top1,
    cross_entropy, baseline_top1 and baseline_cross_entropy. Every group gets a row of two panels; `model` picks one,
    by group or model. A line goes through the means over seeds, from the unablated model at fraction 0; its band is ±
    one standard deviation over seeds (of a sample). Where the seed makes no difference, as with everything ablated,
    the band has no width; where there is only one seed yet, there is no band.

    >>> import pandas
    >>> cells = [("opt", "pile", "opt", "peak", 0.5, seed, 0.3 + seed / 10, 2.0, 0.5, 1.5) for seed in (0, 1, 2)]
    >>> line = figure_2(pandas.DataFrame(cells, columns=CELL_COLUMNS)).data[1]
    >>> line.name, list(line.x), [round(y) for y in line.y]
    ('peak', [0.0, 50.0], [50, 40])
    """
    if isinstance(results, Results):
        results = results.ablated
    missing = [column for column in CELL_COLUMNS if column not in results.columns]
    if missing:
        raise MismatchError(f"results lack the columns {', '.join(missing)}; expected {', '.join(CELL_COLUMNS)}.")
    if model is not None and not results.empty:
        known = {str(name): str(name) for column in ("group", "model") for name in results[column].unique()}
        name = choose(model, known, "model")
        results = results[(results["group"].astype(str) == name) | (results["model"].astype(str) == name)]
    if results.empty:
        raise MismatchError("there are no results to show; a study's finished cells are needed, one row each.")
    # A frame of the user's own may have no corpus; groupby drops rows without a key by default.
    rows = list(results.groupby(["group", "model", "corpus"], sort=False, dropna=False))
    titles = [lines(title, _TITLE_WIDTH) for title in _row_titles([key for key, _ in rows])]
    above = 17 * max(title.count("<br>") for title in titles)  # what titles of several lines take, in pixels
    height = 180 + (300 + above) * len(rows)
    figure = make_subplots(
        rows=len(rows),
        cols=2,
        subplot_titles=[f"{title}: {what}" for title in titles for what in ("top-1", "cross-entropy")],
        horizontal_spacing=0.11,
        # Plotly takes a share of the height; this one is as many pixels for any number of rows.
        vertical_spacing=(96 + above) / height if len(rows) > 1 else None,
    )
    figure.update_annotations(font_size=13)
    methods = sorted(results["method"].unique(), key=lambda method: _order(str(method)))
    named: set[str] = set()
    for row, (_, cells) in enumerate(rows, 1):
        for rank, method in enumerate(methods):
            mine = cells[cells["method"] == method]
            if mine.empty:
                continue
            for col, panel in enumerate(_PANELS, 1):
                points = list(_points(mine, panel))
                shown = {"legendgroup": for_plotly(method), "legendrank": rank, "showlegend": False}
                # The band first: later traces are drawn over earlier ones.
                figure.add_trace(_band(points, method).update(shown), row, col)
                # Once per method, where it first appears: the first row of panels may lack it.
                shown["showlegend"] = method not in named
                figure.add_trace(_line(points, method, panel).update(shown), row, col)
                named.add(method)
    for col, panel in enumerate(_PANELS, 1):
        figure.update_yaxes(title_text=panel.title, col=col)
    figure.update_xaxes(title_text="neurons ablated (%)", range=[-2, 102], dtick=20)
    return add_frame(
        figure,
        "What ablation costs",
        _seeds_note(results),
        template,
        height=height,
        margin={"t": 105 + above},
        hovermode="closest",
        legend=BELOW,
    )


def _row_titles(keys: list[Any]) -> list[str]:
    """Group, and what else tells rows apart: another model or corpus of the same group."""
    titles = []
    for group, model, corpus in keys:
        models = {other[1] for other in keys if other[0] == group}
        corpora = {other[2] for other in keys if other[0] == group}
        parts = [group, *([model] if len(models) > 1 else []), *([corpus] if len(corpora) > 1 else [])]
        titles.append(" · ".join(map(str, parts)))
    return titles


def _order(method: str) -> tuple[int, str]:
    known = list(METHOD_COLORS)
    return (known.index(method) if method in known else len(known), method)


def _seeds_note(results: "pandas.DataFrame") -> str:
    seeds = results["seed"].dropna().nunique()
    return f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed, so no band"


@dataclass(frozen=True)
class _Point:
    """`spread` is 0 where the seed makes no difference, and NaN where one seed is all there is."""

    percent: float
    mean: float
    spread: float
    cells: int
    baseline: float


def _points(cells: "pandas.DataFrame", panel: _Panel) -> Iterator[_Point]:
    values = cells.assign(value=cells[panel.column] * panel.scale, base=cells[f"baseline_{panel.column}"] * panel.scale)
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


def _line(points: list[_Point], method: str, panel: _Panel) -> go.Scatter:
    return go.Scatter(
        x=[point.percent for point in points],
        y=[point.mean for point in points],
        customdata=[_hover(point, panel) for point in points],
        name=for_plotly(method),
        mode="lines+markers",
        line=line_of(method),
        marker={"symbol": symbol_of(method), "size": 7},
        hovertemplate=f"<b>{for_plotly(method)}</b>, %{{x:.4~g}} % ablated<br>%{{customdata}}<extra></extra>",
    )


def _hover(point: _Point, panel: _Panel) -> str:
    about = f" ± {point.spread:.4g}" if point.cells > 1 else ""
    cells = f"{point.cells} seeds" if point.cells > 1 else "one evaluation"
    if point.percent == 0:
        return f"{point.mean:.4g}{about}{panel.unit}<br>the model as it is"
    return f"{point.mean:.4g}{about}{panel.unit}, {cells}<br>change {point.mean - point.baseline:+.4g}{panel.unit}"


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
        fillcolor=_faint(line_of(method)["color"]),
        hoverinfo="skip",
    )


def _faint(color: str) -> str:
    # The palette is #RRGGBB throughout; a name such as "red" would fail here.
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"

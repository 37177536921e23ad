"""Loss against the constant: the curves of the paper's working model, and where their minima lie."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.names import require_known
from ablation_lens.palette import color_of
from ablation_lens.plots.metrics import shown_metric
from ablation_lens.plots.template import (
    BELOW,
    FAINT,
    GRID,
    LENS_TEMPLATE,
    SERIES,
    add_frame,
    capitalise,
    faint,
    symbol_of,
)

if TYPE_CHECKING:
    import pandas

    from ablation_lens.experiments.constants import LossCurves

_LINE = SERIES[4]
_PANELS = 3
"""Panels in a row; and of how many neurons, heads and sets curves are shown where nobody names any."""
_HEIGHT = 270


def loss_curve(
    curves: "LossCurves", names: Iterable[str] | str | None = None, *, template: Any = LENS_TEMPLATE
) -> go.Figure:
    """Loss against the constant, a panel per curve, with 95 % bands, the centers, and a dotted cross at the minimum.

    `names` says which curves ("L0.H1.D3", "10 % at random"); left out, those of the deepest neurons and heads, and of
    every share. The cross's height is the floor, what no constant gives back; a center above it adds noise.
    """
    metric = shown_metric(curves.metric)
    shown = _chosen(curves, names)
    columns = min(_PANELS, len(shown))
    rows = math.ceil(len(shown) / columns)
    titles = [for_plotly(name) for name in shown]
    height = 150 + _HEIGHT * rows
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=titles,
        vertical_spacing=70 / height,
        horizontal_spacing=0.09 if columns > 1 else 0,
    )
    fits = {str(row["name"]): row for row in curves.fits.to_dict("records")}
    for number, name in enumerate(shown):
        points = curves.frame[curves.frame["name"] == name]
        at = {"row": number // columns + 1, "col": number % columns + 1}
        grid, marks = points[points["point"] == "grid"], points[points["point"] != "grid"]
        figure.add_hline(0, line={"color": GRID, "width": 1}, layer="below", **at)
        for trace in (
            _band(grid, metric.scale),
            _curve(grid, name, metric.scale),
            _cross(fits[name], grid, metric.scale),
        ):
            figure.add_trace(trace, **at)
        for mark in marks.to_dict("records"):
            figure.add_trace(_center(mark, metric.scale, metric.suffix, legend=number == 0), **at)
        figure.update_xaxes(range=[curves.sigmas[0] - 0.2, curves.sigmas[-1] + 0.2], **at)
    unit = f" ({metric.unit})" if metric.unit else ""
    figure.update_yaxes(title_text=f"Δ {metric.name}{unit}", col=1)
    figure.update_xaxes(title_text="constant, in σ from the mean", row=rows)
    model = for_plotly(curves.source.name)
    alone = all(fits[name]["kind"] == "neuron" for name in shown)
    note = f"{model}, {curves.site.value}: beside the model as it is; bands: 95 % intervals over documents"
    if not alone:
        note += "<br>several neurons move together; their centers lie off that line, and stand at its nearest point"
    return add_frame(
        figure,
        "Loss as a function of the constant",
        note,
        template,
        hovermode="closest",
        height=height,
        width=max(520, 330 * columns),
        legend=BELOW,
        margin={"b": 95, "t": 115},
    )


def loss_minima(curves: "LossCurves | Sequence[LossCurves]", *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """Where single neurons lose least, from every center, a row of panels per model; over resolved curves only.

    Left, a point per neuron: minimum less center, in σ. Middle: how often each center is the nearest one, and how
    often it may itself be the minimum, by that one's interval over documents. Right: what each adds to the floor.
    Intervals are 95 %, over neurons.
    """
    given = list(curves) if isinstance(curves, Sequence) else [curves]
    if not given or not all(bool(each.neurons["resolved"].any()) for each in given):
        raise MismatchError(
            "no single neuron's curve stands out from noise, so nothing is known of where minima lie; measure more "
            "neurons, or on more documents."
        )
    titles = []
    for each in given:
        found = each.neurons
        about = f"{for_plotly(each.source.name)}, {each.site.value}: {found['resolved'].sum()} of {len(found)} neurons"
        titles += [about, "nearest to it, may be it", "noise added"]
    height = 150 + 225 * len(given)
    figure = make_subplots(
        len(given), 3, subplot_titles=titles, column_widths=[0.44, 0.28, 0.28], horizontal_spacing=0.09,
        vertical_spacing=105 / height,
    )  # fmt: skip
    for row, each in enumerate(given, 1):
        metric = shown_metric(each.metric)
        found, summary = each.neurons[each.neurons["resolved"]], each.summary()
        centers = [str(center) for center in each.centers]
        shown = [for_plotly(center, 16) for center in centers]
        figure.add_vline(0, line={"color": FAINT, "width": 1}, layer="below", row=row, col=1)
        for center, label in zip(centers, shown, strict=True):
            figure.add_trace(_distances(found, center, label), row, 1)
        for measure, name, filled in (
            ("nearest", "nearest to the minimum", True),
            ("within", "may be the minimum", False),
        ):
            figure.add_trace(_bars(summary, measure, name, shown, centers, filled, legend=row == 1), row, 2)
        figure.add_trace(_noise(summary, shown, centers, metric.scale, metric.suffix), row, 3)
        figure.update_xaxes(title_text="minimum − center (σ)", row=row, col=1)
        figure.update_xaxes(title_text="neurons (%)", rangemode="tozero", row=row, col=2)
        figure.update_xaxes(title_text=f"Δ {metric.title}", row=row, col=3)
        figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=shown, row=row)
    return add_frame(
        figure,
        "Where loss is lowest",
        "bars and marks: 95 % intervals over neurons whose curve stands out from noise",
        template,
        height=height,
        width=1050,
        legend=BELOW,
        barmode="group",
        margin={"b": 95, "t": 100},
    )


def _chosen(curves: "LossCurves", names: Iterable[str] | str | None) -> list[str]:
    known = [str(name) for name in curves.fits["name"]]
    if names is not None:
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            require_known(name, known, "curve")
        if wanted:
            return wanted
    deepest = curves.fits.sort_values("depth", ascending=False, kind="stable")
    parts = [deepest[deepest["kind"] == "neuron"], deepest[deepest["kind"].isin(["head", "layer"])]]
    picked = [str(name) for part in parts for name in part["name"].head(_PANELS)]
    return picked + [str(name) for name in curves.fits.loc[curves.fits["kind"] == "random", "name"]]


def _band(grid: "pandas.DataFrame", scale: float) -> go.Scatter:
    x, low, high = grid["sigma"].tolist(), (scale * grid["low"]).tolist(), (scale * grid["high"]).tolist()
    return go.Scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        name="95 % interval",
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(_LINE),
        hoverinfo="skip",
        showlegend=False,
    )


def _curve(grid: "pandas.DataFrame", name: str, scale: float) -> go.Scatter:
    return go.Scatter(
        x=grid["sigma"].tolist(),
        y=(scale * grid["difference"]).tolist(),
        name=for_plotly(name),
        mode="lines+markers",
        line={"color": _LINE, "width": 2},
        marker={"size": 4},
        showlegend=False,
        hovertemplate="%{x:+.3~g} σ: %{y:+.4g}<extra></extra>",
    )


def _cross(fit: dict[Any, Any], grid: "pandas.DataFrame", scale: float) -> go.Scatter:
    """The minimum, and the floor along all constants."""
    ends = [float(grid["sigma"].min()), float(grid["sigma"].max())]
    floor, top = scale * float(fit["floor"]), scale * float(grid["difference"].max())
    place = float(fit["minimum"])
    return go.Scatter(
        x=[*ends, None, place, place],
        y=[floor, floor, None, floor, top],
        name="minimum",
        mode="lines",
        line={"color": FAINT, "width": 1, "dash": "dot"},
        showlegend=False,
        hovertemplate=f"minimum at {place:+.3g} σ, floor {floor:+.4g}<extra></extra>",
    )


def _center(mark: dict[Any, Any], scale: float, suffix: str, *, legend: bool) -> go.Scatter:
    name, difference = str(mark["point"]), scale * float(mark["difference"])
    low, high = scale * float(mark["low"]), scale * float(mark["high"])
    return go.Scatter(
        x=[float(mark["sigma"])],
        y=[difference],
        name=for_plotly(name),
        legendgroup=for_plotly(name),
        mode="markers",
        marker={"color": color_of(name), "symbol": symbol_of(name), "size": 10, "line": {"color": "white", "width": 1}},
        showlegend=legend,
        hovertemplate=(
            f"{for_plotly(name)} at {mark['sigma']:+.3g} σ: {difference:+.4g}{suffix} [{low:+.4g}, {high:+.4g}]"
            "<extra></extra>"
        ),
    )


def _distances(found: "pandas.DataFrame", center: str, label: str) -> go.Box:
    return go.Box(
        x=(found["minimum"] - found[f"place_{center}"]).tolist(),
        y=[label] * len(found),
        orientation="h",
        name=label,
        boxpoints="all",
        pointpos=0,
        jitter=0.6,
        marker={"color": color_of(center), "size": 4, "opacity": 0.6},
        line={"color": color_of(center), "width": 1.2},
        fillcolor="rgba(0,0,0,0)",
        customdata=[for_plotly(name) for name in found["name"]],
        hovertemplate="%{customdata}: %{x:+.3g} σ<extra></extra>",
        showlegend=False,
    )


def _bars(
    summary: "pandas.DataFrame",
    measure: str,
    name: str,
    shown: list[str],
    centers: list[str],
    filled: bool,
    *,
    legend: bool,
) -> go.Bar:
    percent, low, high = (100 * summary[column] for column in (measure, f"{measure}_low", f"{measure}_high"))
    colors = [color_of(center) for center in centers]
    return go.Bar(
        x=percent.tolist(),
        y=shown,
        orientation="h",
        name=capitalise(name),
        legendgroup=name,
        marker={
            "color": colors if filled else ["rgba(0,0,0,0)"] * len(colors),
            "line": {"color": colors, "width": 1.5},
        },
        error_x=_error(percent, low, high),
        showlegend=legend,
        hovertemplate=f"%{{y}}, {name}: %{{x:.3g}} &#37;<extra></extra>",
    )


def _noise(summary: "pandas.DataFrame", shown: list[str], centers: list[str], scale: float, suffix: str) -> go.Scatter:
    noise, low, high = (scale * summary[column] for column in ("noise", "noise_low", "noise_high"))
    return go.Scatter(
        x=noise.tolist(),
        y=shown,
        mode="markers",
        marker={"color": [color_of(c) for c in centers], "symbol": [symbol_of(c) for c in centers], "size": 9},
        error_x=_error(noise, low, high),
        showlegend=False,
        hovertemplate=f"%{{y}}: %{{x:+.4g}}{suffix}<extra></extra>",
    )


def _error(middle: "pandas.Series[float]", low: "pandas.Series[float]", high: "pandas.Series[float]") -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - middle).tolist(),
        "arrayminus": (middle - low).tolist(),
        "thickness": 1.2,
        "width": 3,
        "color": FAINT,
    }

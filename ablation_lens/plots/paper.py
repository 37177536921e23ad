"""The paper's figures: three distributions, and performance against the fraction of neurons ablated."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.palette import METHOD_COLORS
from ablation_lens.plots.distributions import CENTERS, Place, histogram_bars, layer_traces, view_of
from ablation_lens.plots.template import (
    BELOW,
    DENSITY_TITLE,
    LENS_TEMPLATE,
    SERIES,
    activation_title,
    chosen,
    framed,
    layer_at,
    line_of,
    linear_or_log,
    model_name,
    symbol_of,
    text,
)
from ablation_lens.shapes import Shapes, Thresholds
from ablation_lens.sites import neuron_name
from ablation_lens.statistics import ActivationStatistics

if TYPE_CHECKING:
    import pandas

_NORMAL_L_KURTOSIS = 0.1226

# ---------------------------------------------------------------------- Figure 1


def figure_1(
    stats: ActivationStatistics, *, layer: int | None = None, log: bool = False, template: Any = LENS_TEMPLATE
) -> go.Figure:
    """The paper's Figure 1: the average of a layer's neurons, a bi-modal neuron, and an atypical one.

    The layer is the middle one unless given. The bi-modal neuron has exactly two peaks, both off zero (by half a σ),
    and of those the clearest: the nearer peak's distance to zero, in σ, times the height of the lower peak over
    the higher. The atypical one is the off-zero, skewed, flat or multi-modal neuron with one L-skewness and
    L-kurtosis the furthest from a normal neuron's. Where a model has no such neuron, the panel says so.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> [note.text for note in figure_1(stats).layout.annotations]
    ['Layer 2: average of 96 neurons', 'Two peaks off zero: L0.H0.D0', 'Atypical: L0.H0.D0']
    """
    layer = layer_at(stats.shape[0] // 2 if layer is None else layer, stats)
    shapes = stats.shapes()
    bimodal, why_no_bimodal = _bimodal(stats, shapes)
    atypical = _atypical(shapes, bimodal)
    panels = (
        ("Two peaks off zero", bimodal, why_no_bimodal),
        ("Atypical", atypical, "No such neuron:<br>all that are resolved have<br>one peak, at zero, and<br>even tails"),
    )
    titles = [f"Layer {layer}: average of {stats.shape[1] * stats.shape[2]:,} neurons"]
    titles += [f"{what}: {neuron_name(*place)}" if place else f"{what}: none" for what, place, _ in panels]
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.09)
    figure.update_annotations(font_size=13)
    traces, view = layer_traces(stats, layer, (0.05, 0.95))
    for trace in traces:
        figure.add_trace(trace.update(showlegend=False), row=1, col=1)
    _lines(figure, 1, {"zero": 0.0}, named=())
    figure.update_xaxes(range=view, row=1, col=1)
    centers = {name: stats.center(name) for name in CENTERS}
    unnamed = CENTERS  # one legend serves all panels
    for col, (_, place, absent) in enumerate(panels, 2):
        if place is None:
            _say(figure, col, absent)
            continue
        values = {name: float(center[place]) for name, center in centers.items()}
        figure.add_trace(histogram_bars(stats, place, neuron_name(*place), SERIES[0]).update(showlegend=False), 1, col)
        _lines(figure, col, values, named=unnamed)
        figure.update_xaxes(range=view_of(stats, place, values.values()), row=1, col=col)
        unnamed = ()
    figure.update_xaxes(title_text=activation_title(stats))
    figure.update_yaxes(type="log" if log else "linear", exponentformat="power")
    figure.update_yaxes(title_text=DENSITY_TITLE, col=1)
    return framed(
        figure,
        "How neurons are distributed",
        f"{model_name(stats)} · {stats.provenance.tokens:,} positions · band: 5–95 % of the layer's neurons",
        template,
        height=420,
        hovermode="closest",
        bargap=0,
        margin={"t": 110},
        legend=BELOW,
        updatemenus=linear_or_log(["yaxis", "yaxis2", "yaxis3"], log),
    )


def _lines(figure: go.Figure, col: int, values: Mapping[str, float], named: Sequence[str]) -> None:
    for name, value in values.items():
        figure.add_vline(
            value, line=line_of(name), name=name, legendgroup=name, showlegend=name in named, row=1, col=col
        )


def _say(figure: go.Figure, col: int, words: str) -> None:
    """Words in place of a panel's plot."""
    axes = {"showgrid": False, "showticklabels": False, "ticks": "", "range": [0, 1]}
    figure.add_trace(
        go.Scatter(x=[0.5], y=[0.5], mode="text", text=[words], showlegend=False, hoverinfo="skip"), 1, col
    )
    figure.update_xaxes(**axes, row=1, col=col)
    figure.update_yaxes(**axes, row=1, col=col)


def _bimodal(stats: ActivationStatistics, shapes: Shapes) -> tuple[Place | None, str]:
    """The clearest neuron with exactly two peaks, both off zero; or none, and why."""
    sigma = stats.std
    nearer = torch.minimum(shapes.main_peak.abs(), shapes.second_peak.abs()) / sigma
    two = shapes.having("multi-modal") & (shapes.peaks == 2)
    fitting = two & (nearer > Thresholds().off_zero)
    if not fitting.any():
        many = int(shapes.having("multi-modal").sum())
        return None, (
            f"No such neuron: {many:,} have several<br>peaks, one of them at zero" if many else
            f"No such neuron: each of the<br>{two.numel():,} has a single peak"
        )  # fmt: skip
    clearness = {}
    for place in map(tuple, fitting.nonzero().tolist()):
        heights = [_height(stats, place, float(peaks[place])) for peaks in (shapes.main_peak, shapes.second_peak)]
        clearness[place] = float(nearer[place]) * min(heights) / max(heights)
    return max(clearness, key=clearness.__getitem__), ""


def _height(stats: ActivationStatistics, place: Place, value: float) -> float:
    """Values counted in the bins around a value: five bins, so that it is no matter of chance."""
    bin_ = int((value - float(stats.histogram.edges(place)[0])) / float(stats.histogram.epsilon[place]))
    return float(stats.histogram.counts(place)[max(bin_ - 2, 0) : bin_ + 3].sum())


def _atypical(shapes: Shapes, but: Place | None) -> Place | None:
    """The neuron furthest from a normal one in the plane of L-moment ratios, if any looks unlike one at zero."""
    unusual = torch.stack([shapes.having(name) for name in ("off-zero", "skewed", "flat", "multi-modal")]).any(0)
    if but is not None:
        unusual[but] = False
    if not unusual.any():
        return None
    away = torch.hypot(shapes.l_skewness, shapes.l_kurtosis - _NORMAL_L_KURTOSIS).masked_fill(~unusual, -torch.inf)
    place = torch.unravel_index(away.argmax(), away.shape)
    return int(place[0]), int(place[1]), int(place[2])


# ---------------------------------------------------------------------- Figures 2 and 3

_COLUMNS = (
    "model", "corpus", "group", "method", "fraction", "seed", "top1", "cross_entropy", "baseline_top1",
    "baseline_cross_entropy",
)  # fmt: skip


@dataclass(frozen=True)
class _Panel:
    column: str
    title: str
    scale: float
    unit: str


_PANELS = (_Panel("top1", "top-1 (%)", 100.0, " %"), _Panel("cross_entropy", "cross-entropy (nats)", 1.0, " nats"))


def figure_2(results: "pandas.DataFrame", *, model: str | None = None, template: Any = LENS_TEMPLATE) -> go.Figure:
    """The paper's Figures 2 and 3: top-1 and cross-entropy against the fraction of neurons ablated.

    The two figures are one plot of different models: 2 of OPT and Mistral, 3 of ViT and RoBERTa. `results` has a
    row per cell with the columns model, corpus, group, method, fraction, seed, top1, cross_entropy, baseline_top1 and
    baseline_cross_entropy. Every group gets a row of two panels; `model` picks one, by group or model. A line goes
    through the means over seeds, from the unablated model at fraction 0; its band is ± one standard deviation over
    seeds (of a sample). Where the seed makes no difference, as with everything ablated, the band has no width; where
    there is only one seed yet, there is no band.

    >>> import pandas
    >>> cells = [("opt", "pile", "opt", "peak", 0.5, seed, 0.3 + seed / 10, 2.0, 0.5, 1.5) for seed in (0, 1, 2)]
    >>> line = figure_2(pandas.DataFrame(cells, columns=_COLUMNS)).data[1]
    >>> line.name, list(line.x), [round(y) for y in line.y]
    ('peak', [0.0, 50.0], [50, 40])
    """
    missing = [column for column in _COLUMNS if column not in results.columns]
    if missing:
        raise MismatchError(f"results lack the columns {', '.join(missing)}; expected {', '.join(_COLUMNS)}.")
    if model is not None and not results.empty:
        known = {str(name): str(name) for column in ("group", "model") for name in results[column].unique()}
        name = chosen(model, known, "model")
        results = results[(results["group"].astype(str) == name) | (results["model"].astype(str) == name)]
    if results.empty:
        raise MismatchError("there are no results to show; a study's finished cells are needed, one row each.")
    rows = list(results.groupby(["group", "model", "corpus"], sort=False, dropna=False))
    titles = _row_titles([key for key, _ in rows])
    figure = make_subplots(
        rows=len(rows),
        cols=2,
        subplot_titles=[f"{title}: {what}" for title in titles for what in ("top-1", "cross-entropy")],
        horizontal_spacing=0.11,
        vertical_spacing=0.32 / max(len(rows), 2) if len(rows) > 1 else None,
    )
    figure.update_annotations(font_size=13)
    methods = sorted(results["method"].unique(), key=lambda method: _order(str(method)))
    named: set[str] = set()
    for row, (_, cells) in enumerate(rows, 1):
        for method in methods:
            mine = cells[cells["method"] == method]
            if mine.empty:
                continue
            for col, panel in enumerate(_PANELS, 1):
                points = list(_points(mine, panel))
                shown = {"legendgroup": method, "showlegend": False}
                figure.add_trace(_band(points, method).update(shown), row, col)
                shown["showlegend"] = method not in named
                figure.add_trace(_line(points, method, panel).update(shown), row, col)
                named.add(method)
    for col, panel in enumerate(_PANELS, 1):
        figure.update_yaxes(title_text=panel.title, col=col)
    figure.update_xaxes(title_text="neurons ablated (%)", range=[-2, 102], dtick=20)
    return framed(
        figure,
        "What ablation costs",
        _seeds_note(results),
        template,
        height=160 + 300 * len(rows),
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
        titles.append(" · ".join(text(part, 32) for part in parts))
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
    baselines = values.groupby("seed", dropna=False)["base"].first().dropna()
    baseline = float(baselines.mean()) if len(baselines) else math.nan
    if len(baselines):
        spread = float(baselines.std(ddof=1)) if baselines.nunique() > 1 else 0.0
        yield _Point(0.0, baseline, spread, len(baselines), baseline)
    for fraction, there in values.groupby("fraction"):
        if float(fraction) == 0 and len(baselines):
            continue
        spread = 0.0 if there["seed"].isna().all() else float(there["value"].std(ddof=1))
        yield _Point(100 * float(fraction), float(there["value"].mean()), spread, len(there), baseline)


def _line(points: list[_Point], method: str, panel: _Panel) -> go.Scatter:
    return go.Scatter(
        x=[point.percent for point in points],
        y=[point.mean for point in points],
        customdata=[_hover(point, panel) for point in points],
        name=text(method),
        mode="lines+markers",
        line=line_of(method),
        marker={"symbol": symbol_of(method), "size": 7},
        hovertemplate=f"<b>{text(method)}</b>, %{{x:.4~g}} % ablated<br>%{{customdata}}<extra></extra>",
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
            x += [*(point.percent for point in run), *(point.percent for point in reversed(run)), None]
            y += [*(p.mean + p.spread for p in run), *(p.mean - p.spread for p in reversed(run)), None]
    return go.Scatter(
        x=x,
        y=y,
        name=f"{text(method)} ± sd",
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=_faint(line_of(method)["color"]),
        hoverinfo="skip",
    )


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"

"""The paper's Figure 1: how most neurons are distributed, and two that are not like most."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float64
from plotly.subplots import make_subplots
from torch import Tensor

from ablation_lens.neurons.peaks import PEAK_BINS, kernel_width, smooth
from ablation_lens.neurons.shapes import Shapes, Thresholds
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.plots.distributions import CENTERS, Place, coarse, histogram_bars, layer_traces, view_of
from ablation_lens.plots.template import (
    BELOW,
    DENSITY_TITLE,
    INK,
    LENS_TEMPLATE,
    SERIES,
    activation_title,
    add_frame,
    density_axis,
    layer_at,
    line_of,
    linear_or_log,
    model_name,
    name_of,
)

_TYPICAL_L_KURTOSIS = (0.1226, 0.2357)
"""From a normal to a Laplace distribution; both have L-skewness 0."""


def figure_1(
    stats: ActivationStatistics, *, layer: int | str | None = None, log: bool = False, template: Any = LENS_TEMPLATE
) -> go.Figure:
    """The paper's Figure 1: the average of a layer (the middle one), a bi-modal neuron, and an atypical one.

    Neurons are found by shape: the deepest valley between two peaks off zero, and the L-moments furthest from those
    of normal and Laplace distributions. Where a model has no such neuron, the panel says so.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> [note.text.split(":")[0] for note in figure_1(stats).layout.annotations]
    ['Layer 2', 'Two peaks off zero', 'Atypical']
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
    titles += [f"{what}: {name_of(place, stats)}" if place else f"{what}: none" for what, place, _ in panels]
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.09)
    # The titles of panels are annotations, and so far the only ones.
    figure.update_annotations(font_size=13)
    traces, view = layer_traces(stats, layer, (0.05, 0.95))
    for trace in traces:
        figure.add_trace(trace.update(showlegend=False), row=1, col=1)
    _lines(figure, 1, {"zero": 0.0}, named=() if bimodal or atypical else ("zero",))
    figure.update_xaxes(title_text=activation_title(stats), range=view, row=1, col=1)
    figure.update_yaxes(title_text=DENSITY_TITLE, **density_axis(log), row=1, col=1)
    centers = {name: stats.center(name) for name in CENTERS}
    histogram = coarse(stats, PEAK_BINS)  # the bins whose fullest the peak is
    shown = ["yaxis"]
    for col, (_, place, absent) in enumerate(panels, 2):
        if place is None:
            _say(figure, col, absent)
            continue
        values = {name: float(center[place]) for name, center in centers.items()}
        bars = histogram_bars(histogram, place, name_of(place, stats), SERIES[0]).update(showlegend=False)
        figure.add_trace(bars, 1, col)
        if place is bimodal:
            figure.add_trace(_peak_marks(stats, shapes, place), 1, col)
        _lines(figure, col, values, named=CENTERS if len(shown) == 1 else ())  # one legend serves all panels
        figure.update_xaxes(
            title_text=activation_title(stats), range=view_of(stats.histogram, place, values.values()), row=1, col=col
        )
        shown.append(f"yaxis{col}")
        figure.update_yaxes(**density_axis(log), row=1, col=col)
    return add_frame(
        figure,
        "How neurons are distributed",
        f"{model_name(stats)} · {stats.provenance.tokens:,} positions · band: 5–95 % of the layer's neurons",
        template,
        height=420,
        hovermode="closest",
        bargap=0,
        margin={"t": 125},
        legend=BELOW,
        updatemenus=linear_or_log(shown, log, above=26),
    )


def _lines(figure: go.Figure, col: int, values: Mapping[str, float], named: Sequence[str]) -> None:
    for name, value in values.items():
        figure.add_vline(
            value, line=line_of(name), name=name, legendgroup=name, showlegend=name in named, row=1, col=col
        )


def _say(figure: go.Figure, col: int, words: str) -> None:
    """Words in place of a panel's plot."""
    axes = {"showgrid": False, "showticklabels": False, "ticks": "", "showline": False, "range": [0, 1]}
    figure.add_trace(
        go.Scatter(x=[0.5], y=[0.5], mode="text", text=[words], showlegend=False, hoverinfo="skip"), 1, col
    )
    figure.update_xaxes(**axes, row=1, col=col)
    figure.update_yaxes(**axes, row=1, col=col)


def _bimodal(stats: ActivationStatistics, shapes: Shapes) -> tuple[Place | None, str]:
    """The neuron with exactly two peaks, both off zero by half a σ, and the deepest valley; or none, and why."""
    sigma = stats.std
    nearer = torch.minimum(shapes.main_peak.abs(), shapes.second_peak.abs()) / sigma
    two = shapes.having("multi-modal") & (shapes.peaks == 2)
    fitting = two & (nearer > Thresholds().off_zero)
    if not fitting.any():
        many = int(shapes.having("multi-modal").sum())
        return None, (
            f"No such neuron: {many:,} are multi-modal,<br>but none with just two peaks,<br>both off zero" if many else
            f"No such neuron: none of the<br>{two.numel():,} is multi-modal"
        )  # fmt: skip
    # The smoothing that `shapes` found these peaks with; another would put the valley elsewhere.
    width = kernel_width(stats)
    depth = {}
    for place in map(tuple, fitting.nonzero().tolist()):
        heights = smooth(stats.histogram.counts(place).cpu(), width[place])
        ends = sorted(_bin_of(stats, place, peaks) for peaks in (shapes.main_peak, shapes.second_peak))
        top, lower = heights[ends].max(), heights[ends].min()
        depth[place] = float((lower - heights[ends[0] : ends[1] + 1].min()) / top)
    return max(depth, key=depth.__getitem__), ""


def _bin_of(stats: ActivationStatistics, place: Place, values: Float64[Tensor, "layer head dim"]) -> int:
    start = float(stats.histogram.edges(place)[0])
    # A peak is the middle of a bin, or 0, whose bin begins there exactly: rounding cannot move it to a neighbour.
    return int((float(values[place]) - start) / float(stats.histogram.epsilon[place]))


def _peak_marks(stats: ActivationStatistics, shapes: Shapes, place: Place) -> go.Scatter:
    """A triangle on each of the two peaks of a neuron's smoothed histogram."""
    epsilon = float(stats.histogram.epsilon[place])
    heights = smooth(stats.histogram.counts(place).cpu(), kernel_width(stats)[place])
    peaks = (shapes.main_peak, shapes.second_peak)
    # As a density, which does not depend on the width: the bars may be of merged bins, these heights are not.
    return go.Scatter(
        x=[float(values[place]) for values in peaks],
        y=[float(heights[_bin_of(stats, place, values)]) / (int(stats.count[place]) * epsilon) for values in peaks],
        mode="markers",
        marker={"symbol": "triangle-down", "size": 12, "color": "white", "line": {"color": INK, "width": 1.5}},
        name="peaks of the smoothed histogram",
        hovertemplate=f"<b>{name_of(place, stats)}</b><br>peak of the smoothed histogram<br>value %{{x:.4~g}}"
        "<br>density %{y:.4~g}<extra></extra>",
    )


def _atypical(shapes: Shapes, but: Place | None) -> Place | None:
    """The neuron furthest, in the plane of L-moment ratios, from all between normal and Laplace; none if all are so."""
    unusual = torch.stack([shapes.having(name) for name in ("off-zero", "skewed", "flat", "multi-modal")]).any(0)
    if but is not None:
        unusual[but] = False
    if not unusual.any():
        return None
    tails = shapes.l_kurtosis - shapes.l_kurtosis.clamp(*_TYPICAL_L_KURTOSIS)
    # `argmax` takes NaN for the largest. Constant neurons have NaN, and the mask covers them.
    away = torch.hypot(shapes.l_skewness, tails).masked_fill(~unusual, -torch.inf)
    layer, head, dim = (int(at) for at in torch.unravel_index(away.argmax(), away.shape))
    return layer, head, dim

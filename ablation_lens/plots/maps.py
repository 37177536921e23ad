"""All neurons or heads of a model at once: heat maps over layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from einops import rearrange
from jaxtyping import Float, Float64
from plotly.colors import sample_colorscale
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.names import choose
from ablation_lens.neurons.shapes import Shapes
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.plots.template import (
    DIVERGING,
    INK,
    LENS_TEMPLATE,
    SEQUENTIAL,
    add_frame,
    capitalise,
    model_name,
    name_of,
)


@dataclass(frozen=True)
class Measure:
    """A number per neuron: its field in `Shapes`, how people write it, whether its sign matters, whether it counts."""

    field: str
    title: str
    signed: bool = False
    counted: bool = False

    def of(self, shapes: Shapes) -> Float64[Tensor, "layer head dim"]:
        """The numbers themselves; NaN for a constant neuron."""
        values: Tensor = getattr(shapes, self.field)
        return values.double()


_ALL = (
    Measure("peak_over_sigma", "|peak|/σ"),
    Measure("mean_to_peak_over_sigma", "|mean−peak|/σ"),
    Measure("skew", "skew", signed=True),
    Measure("excess_kurtosis", "excess kurtosis", signed=True),
    Measure("peaks", "number of peaks", counted=True),
    Measure("epsilon_over_sigma", "ε/σ"),
)
MEASURES: dict[str, Measure] = {measure.field: measure for measure in _ALL}
"""What maps can show, by the name of the column in `stats.table()`."""

_ALIASES = {measure.title: measure for measure in _ALL} | {
    "peak/σ": MEASURES["peak_over_sigma"],
    "mean-peak/σ": MEASURES["mean_to_peak_over_sigma"],
    "|mean-peak|/σ": MEASURES["mean_to_peak_over_sigma"],
    "kurtosis": MEASURES["excess_kurtosis"],
    "ε/σ": MEASURES["epsilon_over_sigma"],
}

SUMMARIES = {
    # torch's median of an even number of values is the lower of the two in the middle, unlike NumPy's.
    "median": lambda values: values.nanmedian(-1).values,
    "mean": lambda values: values.nanmean(-1),
    # `amax` would pass NaN on, and one constant neuron would blank its whole head.
    "max": lambda values: values.nan_to_num(nan=-torch.inf).amax(-1),
}
"""How the neurons of a head become one number."""


def neuron_map(
    stats: ActivationStatistics, measure: str = "peak_over_sigma", *, template: Any = LENS_TEMPLATE
) -> go.Figure:
    """A heat map of layer × (head, dim) by a measure of shape: "|peak|/σ", "|mean−peak|/σ", "skew", "kurtosis", …

    Colours end where all but 0.5 % of the neurons are within. Constant neurons stay blank.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> figure = neuron_map(stats, "skew")
    >>> figure.data[0].z.shape, figure.data[0].x[25], figure.data[0].y[3]
    ((4, 96), 'H1.D1', 'L3')
    """
    wanted = choose(measure, MEASURES | _ALIASES, "measure")
    values = wanted.of(stats.shapes())
    layers, heads, dims = stats.shape
    scale, note = _color_scale(values, wanted)
    figure = go.Figure(
        go.Heatmap(
            # Plotly writes an array in its own dtype, so float32 halves the figure.
            z=rearrange(values, "layer head dim -> layer (head dim)").float().numpy(),
            x=[name_of((0, head, dim), stats).removeprefix("L0.") for head in range(heads) for dim in range(dims)],
            y=[f"L{layer}" for layer in range(layers)],
            hovertemplate=f"<b>%{{y}}.%{{x}}</b><br>{wanted.title} %{{z:.4~g}}<extra></extra>",
            hoverongaps=False,
            **scale,
        )
    )
    # More labels than about sixteen would collide. A layer's MLP is a single head.
    if heads > 1:
        ticks = {head * dims + dims // 2: f"H{head}" for head in range(0, heads, -(-heads // 16))}
    else:
        ticks = {
            dim: name_of((0, 0, dim), stats).removeprefix("L0.H0.").removeprefix("L0.")
            for dim in range(0, dims, -(-dims // 8))
        }
    figure.update_xaxes(
        # On a category axis a number is a place: ticks stand on cells, lines between two of them at a half.
        type="category",
        title_text="head, and the neurons in it" if heads > 1 else "neuron",
        tickvals=list(ticks),
        ticktext=list(ticks.values()),
        showgrid=False,
        ticks="",
        tickangle=0,
    )
    for head in range(1, heads):
        figure.add_vline(head * dims - 0.5, line={"color": INK if wanted.signed else "white", "width": 0.75})
    _layers_downwards(figure, layers)
    title = f"{capitalise(wanted.title)} of every neuron"
    return add_frame(figure, title, f"{model_name(stats)}{note}", template, height=max(320, 170 + 20 * layers))


def head_map(
    stats: ActivationStatistics,
    measure: str = "peak_over_sigma",
    *,
    summary: str = "median",
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """A heat map of layer × head: the "median", "mean" or "max" of a measure over a head's neurons.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> head_map(stats, "peaks", summary="max").data[0].z.shape
    (4, 4)
    """
    wanted = choose(measure, MEASURES | _ALIASES, "measure")
    values = choose(summary, SUMMARIES, "summary")(wanted.of(stats.shapes()))
    # The "max" of a head of constant neurons is -inf.
    values = values.masked_fill(~values.isfinite(), torch.nan)
    scale, _ = _color_scale(values, wanted, clipped=False)
    figure = _layer_by_head(values, f"{summary} {wanted.title}", scale)
    title = f"{capitalise(wanted.title)} of every head"
    return add_frame(
        figure,
        title,
        f"{model_name(stats)} · {summary} over {stats.shape[2]:,} neurons",
        template,
        **_size(values),
    )


def damage_map(
    effects: Float[Tensor, "layer head"],
    *,
    method: str = "",
    model: str = "",
    unit: str = "nats",
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """A heat map of layer × head: by how much the loss rises when a head is ablated; blue where it falls.

    >>> damage_map(torch.tensor([[0.5, -0.25]]), method="peak").data[0].z.tolist()
    [[0.5, -0.25]]
    """
    values = torch.as_tensor(effects).detach().double().cpu()
    if values.ndim != 2 or not values.numel():
        raise MismatchError(f"effects have shape {tuple(values.shape)}; expected one number per (layer, head).")
    scale, _ = _color_scale(values, Measure("damage", f"rise ({for_plotly(unit)})", signed=True), clipped=False)
    figure = _layer_by_head(values, f"rise in cross-entropy ({for_plotly(unit)})", scale)
    how = f"each head set to its {for_plotly(method)}" if method else "one head ablated at a time"
    return add_frame(
        figure,
        "Damage by head: rise in cross-entropy",
        " · ".join([*([for_plotly(model)] if model else []), how]),
        template,
        **_size(values),
    )


def _layer_by_head(values: Float64[Tensor, "layer head"], what: str, scale: Mapping[str, Any]) -> go.Figure:
    layers, heads = values.shape
    figure = go.Figure(
        go.Heatmap(
            z=values.float().numpy(),
            x=[f"H{head}" for head in range(heads)],
            y=[f"L{layer}" for layer in range(layers)],
            hovertemplate=f"<b>%{{y}}.%{{x}}</b><br>{what} %{{z:.4~g}}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2~g}" if heads <= 12 and layers <= 24 else None,
            **scale,
        )
    )
    step = -(-heads // 16)
    figure.update_xaxes(type="category", title_text="head", showgrid=False, dtick=step, tickangle=0)
    _layers_downwards(figure, layers)
    return figure


def _size(values: Float64[Tensor, "layer head"]) -> dict[str, int]:
    return {"height": max(320, 170 + 26 * values.shape[0])}


def _layers_downwards(figure: go.Figure, layers: int) -> None:
    """The first layer on top, as one reads; every second label when there are many."""
    figure.update_yaxes(
        type="category", title_text="layer", autorange="reversed", showgrid=False, dtick=1 if layers <= 32 else 2
    )


def _color_scale(values: Tensor, measure: Measure, clipped: bool = True) -> tuple[dict[str, Any], str]:
    """Colours, their range and bar for a heat map, and what to say about them."""
    finite = values[values.isfinite()]
    # All neurons are constant. `max` and `quantile` refuse an empty tensor.
    if not finite.numel():
        finite = torch.zeros(1, dtype=torch.float64)
    bar: dict[str, Any] = {"title": {"text": measure.title, "side": "right"}, "thickness": 14, "outlinewidth": 0}
    # A mean over the neurons of a head is not a whole number, and gets the continuous scale.
    if measure.counted and bool((finite == finite.round()).all()):
        most = min(max(int(finite.max()), 2), 6)  # two at least, or the next line divides by zero
        shades = sample_colorscale(SEQUENTIAL, [step / (most - 1) for step in range(most)])
        # Every shade at both ends of its step, as Plotly blends between two stops.
        steps = [[place / most, shade] for step, shade in enumerate(shades) for place in (step, step + 1)]
        names = [str(step) for step in range(1, most)] + [f"{most}+" if float(finite.max()) > most else str(most)]
        bar |= {"tickvals": list(range(1, most + 1)), "ticktext": names}
        return {"colorscale": steps, "zmin": 0.5, "zmax": most + 0.5, "colorbar": bar}, _tally(finite)
    size = finite.abs() if measure.signed else finite
    # `quantile` refuses more than 2^24 values.
    end = float(size.quantile(0.995)) if clipped and size.numel() <= 2**24 else float(size.max())
    end = end or 1.0  # all zero
    note = f" · colours end at {end:.3g}, the largest is {float(size.max()):.3g}" if float(size.max()) > end else ""
    # Symmetric, so that the middle of the diverging scale is zero.
    low = -end if measure.signed else min(0.0, float(finite.min()))
    return {
        "colorscale": DIVERGING if measure.signed else SEQUENTIAL,
        "zmin": low,
        "zmax": end,
        "colorbar": bar,
    }, note


def _tally(counts: Float64[Tensor, " cell"]) -> str:
    numbers, cells = counts.long().unique(return_counts=True)
    return "".join(f" · {many:,} have {number}" for number, many in zip(numbers.tolist(), cells.tolist(), strict=True))

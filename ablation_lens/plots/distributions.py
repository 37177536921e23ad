"""How a neuron, or a layer of neurons, is distributed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float64
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.peaks import PEAK_BINS, require_values
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.plots.template import (
    BELOW,
    DENSITY_TITLE,
    FAINT,
    LENS_TEMPLATE,
    SERIES,
    activation_title,
    add_frame,
    density_axis,
    layer_at,
    line_of,
    linear_or_log,
    model_name,
    neuron_at,
)
from ablation_lens.sites import neuron_name

Place = tuple[int, int, int]

CENTERS = ("zero", "mean", "median", "peak")
"""The centers that distributions show unless others are asked for."""

_SHOWN_SHARE = 0.001
"""At either end of the axis, the share of values that may lie outside the first view: one value at 300 σ would
otherwise leave a needle. A double click shows everything."""


def neuron_distribution(
    stats: ActivationStatistics | Mapping[str, ActivationStatistics],
    layer: int,
    head: int,
    dim: int,
    *,
    also: Iterable[str | Place] = (),
    centers: Sequence[str] = CENTERS,
    bins: int = PEAK_BINS,
    log: bool = False,
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """The histogram of a neuron, with a line per center and buttons for a linear or logarithmic density.

    `also` overlays further neurons, "L3.H5.D17" or `(3, 5, 17)`. A mapping name → statistics of one model overlays
    what each has seen, such as two corpora. The density of a bin is count / (values · ε). Bins are merged to at most
    `bins` per neuron; 128 are those whose fullest the `peak` is. The axis ends where all but 0.1 % of the values at
    either end are in view, or at the furthest center; a double click shows all.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> figure = neuron_distribution(stats, 0, 1, 2, also=["L0.H1.D3"])
    >>> [trace.name for trace in figure.data], figure.layout.yaxis.type
    (['L0.H1.D2', 'L0.H1.D3'], 'linear')
    """
    several = dict(stats) if isinstance(stats, Mapping) else {"": stats}
    if not several:
        raise MismatchError("there are no statistics to show; give at least one name and its statistics.")
    first = next(iter(several.values()))
    for other in several.values():
        require_values(other.histogram)
        if other.shape != first.shape or other.site != first.site:
            raise MismatchError(
                f"statistics of unlike sites cannot be overlaid: {first!r} and {other!r}; give those of one model."
            )
    places = [neuron_at((layer, head, dim), first), *(neuron_at(place, first) for place in also)]
    # Asked for twice, drawn once; a set would lose the order, and with it the colours.
    series = [(name, one, place) for name, one in several.items() for place in dict.fromkeys(places)]
    overlaid = len(series) > 1
    figure, views = go.Figure(), []
    # Before the loop: a center is computed for all neurons at once.
    lines = {name: {center: one.center(center) for center in centers} for name, one in several.items()}
    histograms = {name: coarse(one, bins) for name, one in several.items()}
    for number, (name, one, place) in enumerate(series):
        label = " · ".join([*([for_plotly(name, 24)] if name else []), neuron_name(*place, first.site)])
        group = str(number) if overlaid else None  # one column of the legend
        bars = histogram_bars(histograms[name], place, label, SERIES[number % len(SERIES)], 0.6 if overlaid else 1)
        figure.add_trace(bars.update(legendgroup=group))
        for center, values in lines[name].items():
            if center == "zero" and number:
                continue  # it is the same line for all
            value = float(values[place])
            figure.add_vline(
                value,
                line=line_of(center) | ({"width": 1.5} if overlaid and number else {}),
                name=f"{for_plotly(center)} {value:.3g}",
                showlegend=True,
                legendgroup=group,
            )
        views.append(view_of(one.histogram, place, [float(values[place]) for values in lines[name].values()]))
    add_frame(
        figure,
        " against ".join(dict.fromkeys(neuron_name(*place, first.site) for _, _, place in series)),
        " · ".join([*dict.fromkeys(map(model_name, several.values())), _counted(series, histograms)]),
        template,
        height=520 if overlaid else 440,
        barmode="overlay",
        bargap=0,
        showlegend=True,
        margin={"t": 105},
        legend=BELOW,
        updatemenus=linear_or_log(["yaxis"], log),
    )
    figure.update_xaxes(title_text=activation_title(first), range=hull(views))
    figure.update_yaxes(title_text=DENSITY_TITLE, **density_axis(log))
    return figure


def _counted(
    series: Sequence[tuple[str, ActivationStatistics, Place]], histograms: Mapping[str, NeuronHistogram]
) -> str:
    """How many values, and how wide the bins: both a range when they differ."""
    values = sorted({int(one.count[place]) for _, one, place in series})
    widths = sorted({float(histograms[name].epsilon[place]) for name, _, place in series})
    many = "–".join(f"{end:,}" for end in dict.fromkeys((values[0], values[-1])))
    wide = "–".join(f"{end:.3g}" for end in dict.fromkeys((widths[0], widths[-1])))
    return f"{many} values in bins of ε = {wide}"


def coarse(stats: ActivationStatistics, bins: int) -> NeuronHistogram:
    """The histogram with at most so many bins per neuron."""
    return stats.histogram if bins >= stats.histogram.bins else stats.histogram.coarsen(bins)


def histogram_bars(histogram: NeuronHistogram, place: Place, label: str, color: str, opacity: float = 1) -> go.Bar:
    """One neuron's bins as bars, from its lowest to its highest value."""
    counts, edges = histogram.counts(place).cpu(), histogram.edges(place).cpu()
    # Only the upper end needs a cut: the grid begins at the smallest value.
    used = int(counts.nonzero().max()) + 1
    counts, low, high = counts[:used], edges[:used], edges[1 : used + 1]
    epsilon = float(histogram.epsilon[place])
    return go.Bar(
        # Arrays and not lists: Plotly writes them as base64, which is about half as long.
        x=((low + high) / 2).numpy(),
        y=(counts.double() / (counts.sum() * epsilon)).numpy(),
        width=epsilon,
        customdata=torch.stack([low, high, counts.double()], -1).numpy(),
        name=label,
        marker={"color": color, "line": {"width": 0}},
        opacity=opacity,
        hovertemplate=f"<b>{label}</b><br>value %{{customdata[0]:.4~g}} to %{{customdata[1]:.4~g}}"
        "<br>count %{customdata[2]:,}<br>density %{y:.4~g}<extra></extra>",
    )


def view_of(histogram: NeuronHistogram, place: Place, also: Iterable[float]) -> tuple[float, float]:
    """From where to where a neuron's axis goes: nearly all values, and every value in `also`."""
    counts, edges = histogram.counts(place).cpu().double(), histogram.edges(place).cpu()
    # Whole numbers in float64 are exact, so the last share is 1 and both searches below find a bin.
    share = counts.cumsum(0) / counts.sum()
    low = float(edges[int((share > _SHOWN_SHARE).nonzero()[0])])
    high = float(edges[int((share >= 1 - _SHOWN_SHARE).nonzero()[0]) + 1])
    return hull([(low, high), *((value, value) for value in also)])


def hull(views: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The range of several, with a little air."""
    lows, highs = zip(*views, strict=True)
    # An axis needs some width also where all values are equal.
    air = 0.02 * (max(highs) - min(lows)) or 0.5
    return min(lows) - air, max(highs) + air


# ---------------------------------------------------------------------- a layer


def layer_distribution(
    stats: ActivationStatistics,
    layer: int,
    *,
    quantiles: tuple[float, float] = (0.05, 0.95),
    log: bool = False,
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """The average density of a layer's neurons, and at every value the band that a share of the neurons lies in.

    Neurons have bins of unlike width; they are brought onto one grid as if the values of a bin lay evenly in it.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> [trace.name for trace in layer_distribution(stats, 3).data]
    ['5 % of neurons', '5–95 % of neurons', 'average of 96 neurons']
    """
    traces, view = layer_traces(stats, layer_at(layer, stats), quantiles)
    figure = go.Figure(traces)
    figure.add_vline(0, line=line_of("zero"), name="zero", showlegend=True)
    add_frame(
        figure,
        f"Layer {layer}: average of {stats.shape[1] * stats.shape[2]:,} neurons",
        f"{model_name(stats)} · {stats.provenance.tokens:,} positions",
        template,
        height=440,
        margin={"t": 105},
        hovermode="x",
        updatemenus=linear_or_log(["yaxis"], log),
        legend=BELOW,
    )
    figure.update_xaxes(title_text=activation_title(stats), range=view)
    figure.update_yaxes(title_text=DENSITY_TITLE, **density_axis(log))
    return figure


def layer_traces(
    stats: ActivationStatistics, layer: int, quantiles: tuple[float, float], cells: int = 240
) -> tuple[list[go.Scatter], tuple[float, float]]:
    """Lower edge, band and average of a layer's densities, and the range they are over."""
    require_values(stats.histogram)
    below = _shares_below(stats, layer)
    low, high = (_pooled_quantile(stats, layer, below, q) for q in (_SHOWN_SHARE, 1 - _SHOWN_SHARE))
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, cells + 1, dtype=torch.float64)
    width = (high - low) / cells
    # Shares first, then differences: a cell gets its part of a bin however the two overlap.
    density = below(edges).diff(dim=-1) / width
    average = density.mean(0)
    # In float64 like the densities: `quantile` refuses to mix dtypes.
    lower, upper = density.quantile(torch.tensor(quantiles, dtype=torch.float64), 0)
    # A logarithmic axis has no place for zero, and a band without an end would not be drawn.
    floor = float(average[average > 0].min())
    lower, upper = lower.clamp(min=floor), upper.clamp(min=floor)
    middles = ((edges[:-1] + edges[1:]) / 2).numpy()
    percent = [f"{100 * q:.3g}" for q in quantiles]
    neurons, color = len(density), SERIES[0]

    def line(values: Tensor, name: str, said: str, **options: Any) -> go.Scatter:
        return go.Scatter(
            x=middles,
            y=values.numpy(),
            name=name,
            mode="lines",
            hovertemplate=f"layer {layer}, {said}<br>value %{{x:.4~g}}<br>density %{{y:.4~g}}<extra></extra>",
            **options,
        )

    faint = {"color": color, "width": 0.5}
    return [
        line(
            lower,
            f"{percent[0]} % of neurons",
            f"{percent[0]} % of neurons are below",
            line=faint,
            showlegend=False,
            legendgroup="band",
        ),
        line(
            upper,
            f"{percent[0]}–{percent[1]} % of neurons",
            f"{percent[1]} % of neurons are below",
            line=faint,
            # Fills down to the trace before this one, so the lower edge must come first.
            fill="tonexty",
            legendgroup="band",
        ),
        line(average, mean := f"average of {neurons:,} neurons", mean, line={"color": FAINT, "width": 2.5}),
    ], (low, high)


Shares = Callable[[Float64[Tensor, " value"]], Float64[Tensor, "neuron value"]]


def _shares_below(stats: ActivationStatistics, layer: int) -> Shares:
    """A function: values → the share of each neuron's values below them, linear within a bin."""
    counts = stats.histogram.counts(layer).cpu().flatten(0, -2).double()
    # With a zero in front: `below[j]` is the share under the lower edge of bin j.
    below = torch.nn.functional.pad(counts.cumsum(-1) / counts.sum(-1, keepdim=True), (1, 0))
    start = stats.histogram.edges(layer).cpu().flatten(0, -2)[:, :1]
    epsilon = stats.histogram.epsilon.cpu()[layer].flatten().unsqueeze(-1)

    def shares(values: Float64[Tensor, " value"]) -> Float64[Tensor, "neuron value"]:
        place = ((values - start) / epsilon).clamp(0, counts.shape[-1])
        # The uppermost edge belongs to the last bin, as `whole + 1` must exist.
        whole = place.floor().long().clamp(max=counts.shape[-1] - 1)
        left, right = below.gather(-1, whole), below.gather(-1, whole + 1)
        found: Tensor = left + (right - left) * (place - whole)
        return found

    return shares


def _pooled_quantile(stats: ActivationStatistics, layer: int, below: Shares, share: float) -> float:
    """The value a share of all neurons' values lies below, by bisection."""
    # The largest value's bin ends above it, and a constant neuron has its whole share there.
    ends = stats.maximum[layer] + stats.histogram.epsilon.cpu()[layer]
    low, high = float(stats.minimum[layer].min()), float(ends.max())
    for _ in range(60):
        middle = (low + high) / 2
        if float(below(torch.tensor([middle], dtype=torch.float64)).mean()) < share:
            low = middle
        else:
            high = middle
    return high

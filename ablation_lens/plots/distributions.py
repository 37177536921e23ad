"""How a neuron, or a layer of neurons, is distributed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    name_of,
    neurons_at,
)

Place = tuple[int, int, int]
Named = str | Place

MOST_OVERLAID, MOST_PANELS = 4, 64
"""More histograms than four in one panel cannot be told apart, and more panels cannot be read."""

_ABOVE, _ROW = 105, 190
"""Pixels: of the title and the buttons, and of a row of panels."""

CENTERS = ("zero", "mean", "median", "peak")
"""The centers that distributions show unless others are asked for."""

_SHOWN_SHARE = 0.001
"""At either end of the axis, the share of values that may lie outside the first view: one value at 300 σ would
otherwise leave a needle. A double click shows everything."""


def neuron_distribution(
    stats: ActivationStatistics | Mapping[str, ActivationStatistics],
    layer: int | Named | Iterable[Named],
    head: int | None = None,
    dim: int | None = None,
    *,
    also: Named | Iterable[Named] = (),
    centers: str | Sequence[str] = CENTERS,
    bins: int = PEAK_BINS,
    log: bool = False,
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """The histogram of a neuron (layer, head, dim), or of several by their names, with a line per center.

    Up to four lie over each other, more have a panel each. A mapping name → statistics overlays what each has seen.
    The first view leaves out 0.1 % of the values at either end; a double click shows all.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> [trace.name for trace in neuron_distribution(stats, ["L0.H1.D2", "L0.H1.D3"]).data]
    ['L0.H1.D2', 'L0.H1.D3']
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
    # Asked for twice, drawn once; a set would lose the order, and with it the colours.
    places = list(dict.fromkeys([*_places(layer, head, dim, first), *_places(also, None, None, first)]))
    if not 0 < len(places) <= MOST_PANELS:
        raise MismatchError(
            f"{len(places)} neurons are asked for; a figure shows 1 to {MOST_PANELS}. `explore` shows all of a model."
        )
    series = [_Series(name, one, place) for name, one in several.items() for place in places]
    names = (centers,) if isinstance(centers, str) else tuple(centers)
    # Before the loops: a center is computed for all neurons at once.
    values = {name: {center: one.center(center) for center in names} for name, one in several.items()}
    histograms = {name: coarse(one, bins) for name, one in several.items()}
    figure = go.Figure()
    if len(series) <= MOST_OVERLAID:
        _overlay(figure, series, histograms, values)
        axes, rows = ["yaxis"], 0
    else:
        rows = _panels(figure, series, histograms, values)
        axes = [f"yaxis{number or ''}" for number in (0, *range(2, len(places) + 1))]
    add_frame(
        figure,
        _title([name_of(place, first) for place in places]),
        " · ".join([*dict.fromkeys(map(model_name, several.values())), _counted(series, histograms)]),
        template,
        # In pixels, so that panels are as high in any number of rows.
        height=_ABOVE + 70 + _ROW * rows if rows else 520 if len(series) > 1 else 440,
        barmode="overlay",
        bargap=0,
        showlegend=True,
        margin={"t": _ABOVE, **({"b": 70} if rows else {})},
        legend=BELOW,
        updatemenus=linear_or_log(axes, log, above=26 if rows else 6),
    )
    for axis in axes:
        figure.layout[axis].update(density_axis(log))
    return figure


@dataclass(frozen=True)
class _Series:
    """A neuron, and the statistics it is drawn of; `name` is what the caller calls these."""

    name: str
    stats: ActivationStatistics
    place: Place

    @property
    def neuron(self) -> str:
        return name_of(self.place, self.stats)

    @property
    def label(self) -> str:
        return " · ".join([*([for_plotly(self.name, 24)] if self.name else []), self.neuron])


Centers = Mapping[str, Mapping[str, Float64[Tensor, "layer head dim"]]]


def _places(
    given: int | Named | Iterable[Named], head: int | None, dim: int | None, stats: ActivationStatistics
) -> list[Place]:
    """The neurons that a caller means by (layer, head, dim), a name, or several of either; a head is all of its."""
    numbers = [number for number in (head, dim) if number is not None]
    if len(numbers) == 2 and not isinstance(given, str):
        return neurons_at((given, *numbers), stats)  # type: ignore[arg-type]
    if numbers or not isinstance(given, Iterable):
        raise MismatchError(
            f"a neuron is a layer, a head and a dim, or a name such as L3.H5.D17; got {given!r}"
            + "".join(f", {name}={value}" for name, value in (("head", head), ("dim", dim)) if value is not None)
            + "."
        )
    if isinstance(given, str):
        return neurons_at(given, stats)
    listed = list(given)
    # (3, 5, 17) is a neuron, and ["L3.H5.D17"] a list of them; an empty list is a list.
    if listed and not any(isinstance(one, str | Iterable) for one in listed):
        return neurons_at(listed, stats)  # type: ignore[arg-type]
    return [neuron for one in listed for neuron in neurons_at(one, stats)]  # type: ignore[arg-type]


def _title(names: Sequence[str]) -> str:
    if len(names) <= 2:
        return " against ".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) <= 3 else f"{len(names)} neurons"


def _overlay(
    figure: go.Figure, series: Sequence[_Series], histograms: Mapping[str, NeuronHistogram], values: Centers
) -> None:
    """All in one panel, each with its centers beside it in the legend."""
    views, overlaid = [], len(series) > 1
    for number, one in enumerate(series):
        group = str(number) if overlaid else None  # one column of the legend
        opacity = (1, 1, 0.6, 0.5, 0.45)[len(series)]
        bars = histogram_bars(histograms[one.name], one.place, one.label, SERIES[number], opacity)
        figure.add_trace(bars.update(legendgroup=group))
        for center, of_all in values[one.name].items():
            if center == "zero" and number:
                continue  # it is the same line for all
            value = float(of_all[one.place])
            figure.add_vline(
                value,
                line=line_of(center) | ({"width": 1.5} if number else {}),
                name=f"{for_plotly(center)} {value:.3g}",
                showlegend=True,
                legendgroup=group,
            )
        views.append(_view(one, values))
    figure.update_xaxes(title_text=activation_title(series[0].stats), range=hull(views))
    figure.update_yaxes(title_text=DENSITY_TITLE)


def _panels(
    figure: go.Figure, series: Sequence[_Series], histograms: Mapping[str, NeuronHistogram], values: Centers
) -> int:
    """A panel per neuron, with all statistics in it; returns how many rows there are."""
    places = list(dict.fromkeys(one.place for one in series))
    columns = 3 if len(places) <= 9 else 4
    rows = -(-len(places) // columns)
    figure.set_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[name_of(place, series[0].stats) for place in places],
        horizontal_spacing=0.18 / columns,
        vertical_spacing=56 / (_ROW * rows) if rows > 1 else None,
    )
    figure.update_annotations(font_size=13)
    sources = list(values)
    for number, place in enumerate(places):
        row, col = number // columns + 1, number % columns + 1
        here = [one for one in series if one.place == place]
        for one in here:
            source = sources.index(one.name)
            # Panels have the neurons' names above them; colours tell statistics apart.
            bars = histogram_bars(
                histograms[one.name], place, one.label, SERIES[source % len(SERIES)], 0.6 if len(here) > 1 else 1
            ).update(legendgroup=f"of {source}", showlegend=number == 0 and len(here) > 1)
            if len(here) > 1:
                bars.name = for_plotly(one.name, 24)
            figure.add_trace(bars, row, col)
            for center, of_all in values[one.name].items():
                figure.add_vline(
                    float(of_all[place]),
                    line=line_of(center) | {"width": 1.5},
                    name=for_plotly(center),
                    showlegend=number == 0 and source == 0,
                    legendgroup=center,
                    row=row,
                    col=col,
                )
        figure.update_xaxes(range=hull([_view(one, values) for one in here]), nticks=5, row=row, col=col)
    # Below the lowest panel of each column, and beside the first of each row.
    for col in range(1, columns + 1):
        last = (len(places) - col) // columns + 1
        if last:
            figure.update_xaxes(title_text=activation_title(series[0].stats), row=last, col=col)
    figure.update_yaxes(title_text="density", col=1)
    return rows


def _view(one: _Series, values: Centers) -> tuple[float, float]:
    return view_of(one.stats.histogram, one.place, [float(of[one.place]) for of in values[one.name].values()])


def _counted(series: Sequence[_Series], histograms: Mapping[str, NeuronHistogram]) -> str:
    """How many values, and how wide the bins: both a range when they differ."""
    values = sorted({int(one.stats.count[one.place]) for one in series})
    widths = sorted({float(histograms[one.name].epsilon[one.place]) for one in series})
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
    layer: int | str,
    *,
    quantiles: tuple[float, float] = (0.05, 0.95),
    log: bool = False,
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """The average density of a layer's neurons, and at every value the band that a share of the neurons lies in.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> [trace.name for trace in layer_distribution(stats, 3).data]
    ['5 % of neurons', '5–95 % of neurons', 'average of 96 neurons']
    """
    layer = layer_at(layer, stats)
    traces, view = layer_traces(stats, layer, quantiles)
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
    # Bins are of unlike width, so they are brought onto one grid, as if the values of a bin lay evenly in it.
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

"""Make the pictures of docs/start.md and docs/concepts.md from the zoo, offline: a neuron, each center, values, bins.

    python scripts/concepts.py

Needs the `images` extra and a Chrome or Chromium. A few minutes.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
import torch
from PIL import Image
from plotly.subplots import make_subplots

import ablation_lens as al
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.peaks import kernel_width, smooth
from ablation_lens.plots.distributions import coarse, histogram_bars, view_of
from ablation_lens.plots.template import FAINT, INK, LENS_TEMPLATE, SERIES, faint, line_of
from ablation_lens.sites import parse_place

WIDTH, HEIGHT = 860, 250
LARGEST = 40_000
"""Bytes: a page with ten pictures should open at once."""

CENTERS = ("zero", "mean", "median", "peak", "peak-smooth", "peak-kde", "half-sample", "peak-trimmed")
PICTURES = ("neuron", "bins", *CENTERS, "inputs")


@dataclass(frozen=True)
class Telling:
    """A neuron that is on all pictures, and what it is there for."""

    model: str
    name: str
    about: str

    @property
    def place(self) -> tuple[int, int, int]:
        """Layer, head and dim."""
        layer, head, dim = parse_place(self.name)
        return layer, head, dim


NEURONS = (
    Telling("tiny-opt", "L1.H1.D8", "skewed, away from zero"),
    Telling("tiny-roberta", "L0.H1.D2", "two peaks"),
    Telling("tiny-mistral", "L2.H1.D21", "narrow, with far values"),
)


def collected(model: Any, tokens: int, **options: Any) -> al.ActivationStatistics:
    """Statistics of two passes, so that every center of the package can be had."""
    plan = al.task_for(model).batches(split="collect", tokens=tokens)
    return al.collect(model, plan, passes=2, progress=False, **options)


# ---------------------------------------------------------------------- a picture per center


def of_center(center: str, statistics: dict[str, al.ActivationStatistics]) -> go.Figure:
    """Each telling neuron's histogram, as this center sees it, with its line and that of the mean."""
    figure = strip([f"<b>{neuron.about}</b><br>{neuron.model} {neuron.name}" for neuron in NEURONS])
    for col, neuron in enumerate(NEURONS, start=1):
        stats, place = statistics[neuron.model], neuron.place
        histogram = seen_by(center, stats)
        figure.add_trace(histogram_bars(histogram, place, neuron.name, SERIES[0]).update(showlegend=False), 1, col)
        for trace in beside(center, stats, place):
            figure.add_trace(trace.update(showlegend=False), 1, col)
        for name in dict.fromkeys(("mean", center)):
            value = float(stats.center(name)[place])
            # Thicker than elsewhere: these pictures are about one line.
            line = line_of(name) | {"width": 3 if name == center else 2}
            figure.add_vline(value, line=line, row=1, col=col, name=name, showlegend=col == 1)
        # The same view for every center, so that only lines move from picture to picture.
        low, high = view_of(coarse(stats, 128), place, [0.0])
        figure.update_xaxes(range=[low, high], row=1, col=col)
    return figure


def seen_by(center: str, stats: al.ActivationStatistics) -> NeuronHistogram:
    """The bins that a center looks at."""
    if center == "peak-trimmed":
        return stats.trimmed.inside.coarsen(128)
    return stats.histogram if center in {"peak-smooth", "peak-kde", "half-sample"} else coarse(stats, 128)


def beside(center: str, stats: al.ActivationStatistics, place: tuple[int, int, int]) -> Iterator[go.Scatter]:
    """What a center makes of the bins before it looks for the highest one."""
    layer, *within = place
    histogram = stats.histogram
    counts, edges = histogram.counts(layer), histogram.edges(place)
    scale = float(counts[tuple(within)].sum() * histogram.epsilon[place])
    if center in {"peak-smooth", "peak-kde"}:
        width = kernel_width(stats, order=1)[layer] if center == "peak-kde" else torch.full(counts.shape[:2], 2.0)
        heights = smooth(counts, width.double())[tuple(within)] / scale
        yield go.Scatter(
            x=((edges[:-1] + edges[1:]) / 2).numpy(),
            y=heights.numpy(),
            mode="lines",
            line=line_of(center) | {"dash": "solid"},
        )
    if center == "half-sample":
        own = counts[tuple(within)]
        for first, last in halves(own.tolist()):
            top = float(own.max()) / scale
            x0, x1 = float(edges[first]), float(edges[last])
            yield go.Scatter(
                x=[x0, x0, x1, x1], y=[0, top, top, 0], mode="lines", line_width=0, fill="toself",
                fillcolor=faint(line_of(center)["color"]),
            )  # fmt: skip


def halves(counts: list[int]) -> Iterator[tuple[int, int]]:
    """The shortest stretch of bins with half of the values, of those the half, and so on, as (first, last) edges."""
    first, last = 0, len(counts)
    while last - first > 1:
        half = (sum(counts[first:last]) + 1) // 2
        found = []
        for start in range(first, last):
            total = 0
            for end in range(start, last):
                total += counts[end]
                if total >= half:
                    found.append((end + 1 - start, -total, start))
                    break
        length, _, start = min(found)
        first, last = start, start + length
        yield first, last


# ---------------------------------------------------------------------- values that a histogram does not give


def of_inputs(stats: al.ActivationStatistics, model: Any) -> go.Figure:
    """One neuron's learned value on its histogram; its mean, and a random input's values, at every position."""
    neuron = NEURONS[0]
    place = neuron.place
    figure = strip(
        [
            "<b>optimal</b><br>learned from the loss, on the histogram",
            "<b>position-mean</b><br>a mean for every position",
            "<b>resample-tokens</b><br>z for one random input",
        ]
    )
    mean = float(stats.mean[place])
    figure.add_trace(histogram_bars(coarse(stats, 128), place, neuron.name, SERIES[0]).update(showlegend=False), 1, 1)
    batches = al.task_for(model).batches(split="collect", tokens=2000)
    learned = al.learn(model, batches, "optimal", stats, share=0.5, progress=False)
    figure.add_vline(mean, line=line_of("mean"), row=1, col=1, name="mean", showlegend=True)
    figure.add_vline(
        float(learned.values[place]),
        line=line_of("optimal") | {"width": 3},
        row=1,
        col=1,
        name="optimal",
        showlegend=True,
    )
    low, high = view_of(coarse(stats, 128), place, [0.0])
    figure.update_xaxes(range=[low, high], title_text="z", row=1, col=1)
    layer, head, dim = place
    by_position = stats.position_mean[layer, :, head, dim].numpy()
    resampled = al.resampling.resample(model, "tokens", seed=42).values[layer, :, head, dim].numpy()
    shown = 100
    for col, values, color in (
        (2, by_position, line_of("mean")["color"]),
        (3, resampled, line_of("resample-tokens")["color"]),
    ):
        figure.add_trace(
            go.Scatter(y=values[:shown], mode="lines", line={"color": color, "width": 1.5}, showlegend=False), 1, col
        )
        figure.add_hline(mean, line=line_of("mean"), row=1, col=col)
        figure.update_xaxes(title_text="position", row=1, col=col)
    figure.update_yaxes(matches="y2", row=1, col=3)
    return figure


# ---------------------------------------------------------------------- bins


EARLIER = [0.1, 0.4, 0.45, 0.7, 0.8, 0.8, 0.9, 1.0, 1.05, 1.1, 1.3, 1.55, 1.9]
LATER = [2.6, 2.7, 2.8, 2.8, 3.1, 3.4]


def of_bins() -> go.Figure:
    """Eight bins that a far value makes wider, and two shards: each has its own width, and together the same bins."""
    figure = strip(
        [
            "<b>13 values</b><br>8 bins, each ε = 1/4 wide",
            "<b>6 more, up to 3.4</b><br>pairs have merged: ε = 1/2",
            "<b>two shards, merged</b><br>dark: the first; green: the second",
        ]
    )
    one, two = NeuronHistogram((1, 1, 1), bins=8), NeuronHistogram((1, 1, 1), bins=8)
    one.update(column(EARLIER))
    whole = NeuronHistogram((1, 1, 1), bins=8)
    whole.update(column(EARLIER + LATER))
    two.update(column(LATER))
    merged = one.merge(two)
    if merged.counts().tolist() != whole.counts().tolist():
        raise AssertionError("the picture would not be true")
    # What each bin of the right panels is made of: halves of the left panel's, in its two colours.
    pairs = (SERIES[0], SERIES[1])
    colors = [pairs[place % 2] for place in range(8)]
    bars(figure, 1, one, colors)
    stack(
        figure,
        2,
        [(values, color) for values, color in zip(parted(EARLIER, 0.25), pairs, strict=True)] + [(LATER, SERIES[3])],
    )
    stack(figure, 3, [(EARLIER, FAINT), (LATER, SERIES[3])])
    figure.update_xaxes(range=[-0.1, 4.1], title_text="value", tickvals=[0, 1, 2, 3, 4])
    figure.update_yaxes(range=[0, 6.5], tickvals=[0, 2, 4, 6])
    figure.update_yaxes(title_text="values", row=1, col=1)
    for col, width in ((1, 0.25), (2, 0.5), (3, 0.5)):
        end = 2 if col == 1 else 4
        for edge in range(round(end / width) + 1):
            figure.add_shape(
                type="line",
                x0=edge * width,
                x1=edge * width,
                y0=0,
                y1=-0.25,
                line={"color": INK, "width": 1},
                row=1,
                col=col,
            )
    return figure


def column(values: list[float]) -> torch.Tensor:
    """Values of a single neuron."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def parted(values: list[float], width: float) -> tuple[list[float], list[float]]:
    """Those in even and those in odd bins of this width."""
    return [v for v in values if int(v / width) % 2 == 0], [v for v in values if int(v / width) % 2 == 1]


def bars(figure: go.Figure, col: int, histogram: NeuronHistogram, colors: list[str]) -> None:
    """All bins of the only neuron."""
    edges, counts = histogram.edges((0, 0, 0)), histogram.counts((0, 0, 0))
    middles = (edges[:-1] + edges[1:]) / 2
    figure.add_trace(
        go.Bar(
            x=middles.numpy(), y=counts.numpy(), width=float(histogram.epsilon), marker_color=colors, showlegend=False
        ),
        1,
        col,
    )


def stack(figure: go.Figure, col: int, parts: list[tuple[list[float], str]]) -> None:
    """Bins half a unit wide, of several parts that lie on each other."""
    below = [0] * 8
    for values, color in parts:
        counts = [sum(int(v / 0.5) == place for v in values) for place in range(8)]
        figure.add_trace(
            go.Bar(
                x=[0.25 + 0.5 * place for place in range(8)],
                y=counts,
                base=list(below),
                width=0.5,
                marker_color=color,
                showlegend=False,
            ),
            1,
            col,
        )
        below = [low + count for low, count in zip(below, counts, strict=True)]


# ---------------------------------------------------------------------- drawing


def strip(titles: list[str]) -> go.Figure:
    """Three small panels in a row."""
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.06)
    figure.update_annotations(font={"size": 12, "color": INK})
    figure.update_layout(
        template=LENS_TEMPLATE, width=WIDTH, height=HEIGHT, bargap=0, barmode="overlay",
        margin={"l": 40, "r": 12, "t": 48, "b": 56},
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "yref": "container", "y": 0, "yanchor": "bottom"},
    )  # fmt: skip
    figure.update_xaxes(nticks=6, title_font_size=12)
    figure.update_yaxes(nticks=4, rangemode="tozero", title_font_size=12)
    return figure


def of_neuron() -> go.Figure:
    """What the first page shows: the figure of its own lines, without the buttons."""
    model = al.load_model(NEURONS[0].model)
    stats = al.collect(model, al.task_for(model).batches(split="collect", tokens=5_000), progress=False)
    figure = al.plots.neuron_distribution(stats, NEURONS[0].name)
    figure.layout.updatemenus = ()
    return figure.update_layout(width=720, height=400)


def write(figure: go.Figure, path: Path) -> None:
    """A figure as a PNG of few colours; by coverage, or the few pixels of a thin line would become grey."""
    raw = plotly.io.to_image(figure, "png", width=figure.layout.width, height=figure.layout.height, scale=1.5)
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    for colors in (64, 48, 32):
        small = io.BytesIO()
        image.quantize(colors, Image.Quantize.MAXCOVERAGE).save(small, "png", optimize=True)
        if len(small.getvalue()) <= LARGEST:
            break
    path.write_bytes(small.getvalue())
    sys.stdout.write(f"{path}: {len(small.getvalue()) / 1000:.0f} kB\n")


def main() -> None:
    """Write all of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", help="some of: " + ", ".join(PICTURES))
    parser.add_argument("--out", type=Path, default=Path("docs/concepts"), help="the folder to write to")
    parser.add_argument("--tokens", type=int, default=20_000, help="how many are collected")
    arguments = parser.parse_args()
    wanted = arguments.pictures or PICTURES
    arguments.out.mkdir(parents=True, exist_ok=True)
    if "bins" in wanted:
        write(of_bins(), arguments.out / "bins.png")
    if "neuron" in wanted:
        write(of_neuron(), arguments.out / "neuron.png")
    needed = set(wanted) & {*CENTERS, "inputs"}
    models = {neuron.model: al.load_model(neuron.model) for neuron in NEURONS} if needed else {}
    statistics = {name: collected(model, arguments.tokens, positions=True) for name, model in models.items()}
    for center in CENTERS:
        if center in wanted:
            write(of_center(center, statistics), arguments.out / f"{center}.png")
    if "inputs" in wanted:
        name = NEURONS[0].model
        write(of_inputs(statistics[name], models[name]), arguments.out / "inputs.png")


if __name__ == "__main__":
    main()

"""One center against another, of all neurons."""

import re
from typing import Any

import plotly.graph_objects as go
import torch

from ablation_lens.escaping import for_plotly
from ablation_lens.neurons.shapes import SHAPE_WORDS
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.plots.template import (
    FAINT,
    LENS_TEMPLATE,
    activation_title,
    add_frame,
    capitalise,
    model_name,
    name_of,
)

_LOOKS = {
    "gaussian-like": ("#B8C0CC", "circle"),
    "laplace-like": ("#7B8794", "circle"),
    "flat": ("#117733", "square"),
    "skewed": ("#DDAA33", "diamond"),
    "off-zero": ("#004488", "triangle-up"),
    "multi-modal": ("#BB5566", "x"),
    "sparse": ("#44AA99", "triangle-down"),
    "unresolved": ("#AA4499", "cross"),
    "constant": ("#000000", "star"),
}


def centers_scatter(
    stats: ActivationStatistics,
    *,
    x: str = "mean",
    y: str = "peak",
    over_sigma: bool = False,
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """One center of every neuron against another; on the diagonal they agree. Colours and symbols tell shapes apart.

    `over_sigma` divides both by the neuron's σ, and leaves out constant ones.

    >>> import ablation_lens as al
    >>> stats = al.collect(model := al.load_model("tiny-vit"), al.task_for(model).batches(split="collect", images=20))
    >>> sum(len(trace.x) for trace in centers_scatter(stats).data)
    384
    """
    across, up, sigma = stats.center(x).flatten(), stats.center(y).flatten(), stats.std.flatten()
    words = stats.shapes().word.flatten()
    if over_sigma:
        across, up = across / sigma, up / sigma
    layers, heads, dims = stats.shape
    # Plotly writes arrays in their own dtype: as int64 the places would outweigh the values.
    small = torch.uint8 if max(stats.shape) <= 256 else torch.int16 if max(stats.shape) < 2**15 else torch.int32
    place = torch.cartesian_prod(*(torch.arange(size, dtype=small) for size in (layers, heads, dims)))
    # As a neuron is written, with a field of Plotly's in place of each number.
    written = re.sub(r"\d", lambda number: f"%{{customdata[{number[0]}]}}", name_of((0, 1, 2), stats))
    figure = go.Figure()
    for name, (color, symbol) in _LOOKS.items():
        having = (words == SHAPE_WORDS.index(name)) & across.isfinite() & up.isfinite()
        if having.any():
            figure.add_trace(
                # WebGL: as SVG every neuron would be an element of the page.
                go.Scattergl(
                    x=across[having].float().numpy(),
                    y=up[having].float().numpy(),
                    customdata=place[having].numpy(),
                    mode="markers",
                    name=f"{name} ({int(having.sum()):,})",
                    marker={"color": color, "symbol": symbol, "size": 6 if len(words) <= 5000 else 4, "opacity": 0.75},
                    hovertemplate=f"<b>{written}</b>"
                    f"<br>{for_plotly(x)} %{{x:.4~g}}<br>{for_plotly(y)} %{{y:.4~g}}<extra>{name}</extra>",
                )
            )
    known = across.isfinite() & up.isfinite()
    ranges = (
        [(float(values[known].min()), float(values[known].max())) for values in (across, up)] if known.any() else []
    )
    ends = [max(low for low, _ in ranges), min(high for _, high in ranges)] if ranges else [0.0, 1.0]
    figure.add_shape(
        type="line", x0=ends[0], y0=ends[0], x1=ends[1], y1=ends[1], line={"color": FAINT, "dash": "dot", "width": 1},
        layer="below", name=f"{for_plotly(x)} = {for_plotly(y)}", showlegend=True,
    )  # fmt: skip
    unit = " / σ" if over_sigma else f" of {activation_title(stats)}"
    zero = {"zeroline": True, "zerolinecolor": FAINT, "zerolinewidth": 1}
    figure.update_xaxes(title_text=f"{for_plotly(x)}{unit}", **zero)
    figure.update_yaxes(title_text=f"{for_plotly(y)}{unit}", **zero)
    return add_frame(
        figure,
        f"{capitalise(for_plotly(x))} against {for_plotly(y)} of {len(words):,} neurons",
        f"{model_name(stats)} · {stats.provenance.tokens:,} positions",
        template,
        height=520,
        legend={"itemsizing": "constant"},
    )

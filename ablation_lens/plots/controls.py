"""Centers, learned ones among them, beside the controls that say what learning them shows."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.experiments.controls import CONTROLS, Benefit, BetterCenters
from ablation_lens.experiments.damage import unit_of
from ablation_lens.plots.metrics import shown_metric
from ablation_lens.plots.template import FAINT, LENS_TEMPLATE, add_frame, line_of, lines, symbol_of


def better_centers(found: BetterCenters, metric: str = "cross_entropy", *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """What ablating a share of the neurons costs by every center, and by every control (open), a column per share.

    95 % intervals over masks and documents; on the left how many passes over its documents a center takes.
    """
    rows = [row for row in found.rows if row.metric == metric]
    if not rows:
        raise MismatchError(f"{metric!r} was not measured; there is {', '.join(found.unablated)}.")
    shares = sorted({row.share for row in rows})
    methods = list(dict.fromkeys(row.method for row in rows))
    unit = for_plotly(unit_of(metric))
    figure = make_subplots(
        rows=1,
        cols=len(shares),
        shared_yaxes=True,
        subplot_titles=[f"{100 * share:g} % ablated" for share in shares],
        horizontal_spacing=0.03,
    )
    for col, share in enumerate(shares, 1):
        here = [row for row in rows if row.share == share]
        figure.add_trace(_marks(here, methods, unit), 1, col)
        best = min((row.damage for row in here if row.method in found.plain), default=math.nan)
        for x, color in ((0.0, FAINT), (best, "#555555")):
            if not math.isnan(x):
                figure.add_vline(x, line={"color": color, "width": 1, "dash": "dot"}, layer="below", row=1, col=col)
        figure.update_xaxes(title_text=f"damage ({unit})", row=1, col=col)
    passes = {row.method: row.passes for row in rows}  # of the last share; they differ by little
    figure.update_yaxes(
        tickvals=list(range(len(methods))),
        ticktext=[f"{lines(method, 26)}  ({passes[method]:,.0f})" for method in methods],
        range=[len(methods) - 0.5, -0.5],
        showgrid=False,
    )
    about = f"{for_plotly(found.model)} · {found.site} · {shown_metric(metric).name} · {found.masks} masks"
    note = f"{about} · in brackets: passes over the documents"
    height = 190 + 26 * len(methods)
    return add_frame(figure, "Better centers", note, template, height=height, margin={"t": 105, "b": 60, "l": 190})


def _marks(rows: Sequence[Benefit], methods: Sequence[str], unit: str) -> go.Scatter:
    return go.Scatter(
        x=[row.damage for row in rows],
        y=[methods.index(row.method) for row in rows],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [row.high - row.damage for row in rows],
            "arrayminus": [row.damage - row.low for row in rows],
            "thickness": 1.2,
            "width": 3,
        },
        mode="markers",
        showlegend=False,
        marker={
            "size": 9,
            "symbol": [symbol_of(row.method) + ("-open" if row.method in CONTROLS else "") for row in rows],
            "color": [line_of(row.method)["color"] for row in rows],
        },
        customdata=[
            f"{for_plotly(row.method)}<br>{row.damage:+.4g} [{row.low:+.4g}, {row.high:+.4g}] {unit}<br>"
            f"to the best that is not learned: {row.to_best:+.4g} [{row.to_best_low:+.4g}, {row.to_best_high:+.4g}]"
            for row in rows
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )

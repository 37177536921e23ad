"""What processing of weights makes of an ablation."""

from typing import Any

import plotly.graph_objects as go

from ablation_lens.escaping import for_plotly
from ablation_lens.experiments.damage import unit_of
from ablation_lens.experiments.processing import Processing
from ablation_lens.plots.template import BELOW, FAINT, LENS_TEMPLATE, add_frame, line_of, method_order, symbol_of


def processing_differences(found: Processing, *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """By how much ablating to a center is worse in a processed model, for every switch; 0 is the same experiment.

    95 % intervals over masks and documents, which were the same for both models.
    """
    switches = list(dict.fromkeys(row.switch for row in found.rows))
    names = sorted({row.center for row in found.rows}, key=method_order)
    unit = for_plotly(unit_of(found.metric))
    figure = go.Figure()
    for rank, name in enumerate(names):
        mine = [row for row in found.rows if row.center == name]
        # Side by side: intervals on one place would hide each other.
        beside = 0.6 * ((rank + 0.5) / len(names) - 0.5)
        figure.add_trace(
            go.Scatter(
                x=[switches.index(row.switch) + beside for row in mine],
                y=[row.difference for row in mine],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [row.high - row.difference for row in mine],
                    "arrayminus": [row.difference - row.low for row in mine],
                    "thickness": 1.2,
                    "width": 3,
                },
                mode="markers",
                name=for_plotly(name),
                marker={"symbol": symbol_of(name), "size": 9, "color": line_of(name)["color"]},
                customdata=[
                    f"{row.switch}<br>{row.plainly:.4f} without, {row.metric:.4f} with: {row.difference:+.4g} "
                    f"[{row.low:+.4g}, {row.high:+.4g}] {unit}<br>moves by {row.shift:.3g} σ at most, astray by "
                    f"{row.astray:.3g} σ at most"
                    for row in mine
                ],
                hovertemplate=f"<b>{for_plotly(name)}</b>, %{{customdata}}<extra></extra>",
            )
        )
    figure.add_hline(0, line={"color": FAINT, "width": 1}, layer="below")
    figure.update_xaxes(
        tickvals=list(range(len(switches))), ticktext=switches, range=[-0.5, len(switches) - 0.5], showgrid=False
    )
    figure.update_yaxes(title_text=f"with − without processing ({unit})")
    note = f"{for_plotly(found.model)} · {found.site} · {found.fraction:.0%} ablated, {found.masks} masks"
    return add_frame(figure, "Processing of weights", note, template, height=430, legend=BELOW)

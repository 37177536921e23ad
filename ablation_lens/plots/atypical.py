"""What neurons of a shape cost, beside their gaussian-like partners."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.experiments.atypical import Atypical, KindDamage
from ablation_lens.experiments.damage import unit_of
from ablation_lens.plots.template import FAINT, LENS_TEMPLATE, add_frame, line_of, lines, method_order, symbol_of


def atypical_damage(found: Atypical, *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """What ablating neurons of a kind costs to every center (filled) and their partners (open); below the difference.

    A column per kind; 95 % intervals over masks and documents.
    """
    if not found.matchings:
        raise MismatchError("no kind of neuron could be matched, so there is nothing to show.")
    unit = for_plotly(unit_of(found.metric))
    titles = [f"{each.kind}: {each.ablated:,} of {each.pairs:,} pairs" for each in found.matchings]
    columns = len(found.matchings)
    figure = make_subplots(
        rows=2,
        cols=columns,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=titles,
        vertical_spacing=0.06,
        horizontal_spacing=0.04,
    )
    figure.update_annotations(font_size=13)
    for col, matching in enumerate(found.matchings, 1):
        rows = [row for row in found.rows if row.kind == matching.kind]
        rows.sort(key=lambda row: method_order(row.center))
        for side, name in enumerate(("the kind", f"{' or '.join(found.partners)} partners")):
            figure.add_trace(_sides(rows, side == 1, name, unit).update(showlegend=col == 1), 1, col)
        figure.add_trace(_differences(rows, unit), 2, col)
        for row in (1, 2):
            figure.add_hline(0, line={"color": FAINT, "width": 1}, layer="below", row=row, col=col)
        figure.update_xaxes(
            tickvals=list(range(len(rows))),
            ticktext=[lines(row.center, 14) for row in rows],
            tickangle=-45,
            range=[-0.5, len(rows) - 0.5],
            showgrid=False,
            showticklabels=True,
            col=col,
            row=2,
        )
    # Said outright: of axes that are tied to others, Plotly's own range does not see the marks.
    sides = [(row.damage_low, row.damage_high) for row in found.rows]
    sides += [(row.match_low, row.match_high) for row in found.rows]
    figure.update_yaxes(range=_range(sides), row=1)
    figure.update_yaxes(range=_range([(row.low, row.high) for row in found.rows]), row=2)
    figure.update_yaxes(title_text=f"damage ({unit})", row=1, col=1)
    figure.update_yaxes(title_text=f"kind − partners ({unit})", row=2, col=1)
    note = f"{for_plotly(found.model)} · {found.site} · equal counts, layers and variances · {found.masks} masks"
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "yref": "container", "y": 0.99, "yanchor": "top"}
    return add_frame(figure, "Atypical neurons", note, template, height=560, margin={"t": 105, "b": 90}, legend=legend)


def _range(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """From the lowest end to the highest, zero included, with some air."""
    ends = [end for both in intervals for end in both if not math.isnan(end)]
    low, high = min(0.0, *ends, 0.0), max(0.0, *ends, 0.0)
    air = 0.08 * (high - low) or 1.0
    return low - air, high + air


def _sides(rows: Sequence[KindDamage], partners: bool, name: str, unit: str) -> go.Scatter:
    ends = [
        (row.match_damage, row.match_low, row.match_high) if partners else (row.damage, row.damage_low, row.damage_high)
        for row in rows
    ]
    return _marks(
        # Side by side: intervals on one place would hide each other.
        [place + (0.15 if partners else -0.15) for place in range(len(rows))],
        ends,
        rows,
        name,
        unit,
        "-open" if partners else "",
    )


def _differences(rows: Sequence[KindDamage], unit: str) -> go.Scatter:
    ends = [(row.difference, row.low, row.high) for row in rows]
    trace = _marks(list(range(len(rows))), ends, rows, "kind − partners", unit, "")
    return trace.update(showlegend=False)


def _marks(
    x: Sequence[float],
    ends: Sequence[tuple[float, float, float]],
    rows: Sequence[KindDamage],
    name: str,
    unit: str,
    style: str,
) -> go.Scatter:
    return go.Scatter(
        x=list(x),
        y=[middle for middle, _, _ in ends],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - middle for middle, _, high in ends],
            "arrayminus": [middle - low for middle, low, _ in ends],
            "thickness": 1.2,
            "width": 3,
        },
        mode="markers",
        name=name,
        legendgroup=name,
        marker={
            "size": 9,
            "symbol": [symbol_of(row.center) + style for row in rows],
            "color": [line_of(row.center)["color"] for row in rows],
        },
        customdata=[
            f"{for_plotly(row.center)}<br>{middle:+.4g} [{low:+.4g}, {high:+.4g}] {unit}"
            for row, (middle, low, high) in zip(rows, ends, strict=True)
        ],
        hovertemplate=f"<b>{name}</b>, %{{customdata}}<extra></extra>",
    )

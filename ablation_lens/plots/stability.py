"""How far centers move from one collection to another, and what that costs."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.escaping import for_plotly
from ablation_lens.experiments.damage import unit_of
from ablation_lens.experiments.stability import Moved, Stability
from ablation_lens.plots.template import BELOW, FAINT, LENS_TEMPLATE, add_frame, line_of, lines, method_order, symbol_of


def stability_curves(found: Stability, *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """How far centers move between collections, by their size, and against other corpora; beside it what that costs.

    On the left the median over neurons, with a thin line up to where 90 % of them are. On the right 95 % intervals.

    >>> row = Moved("mean", "", 1000, 2, 0.1, 0.2, 0.4, 0.09, 0.11, 0.01, 0.0, 0.02)
    >>> figure = stability_curves(Stability("m", "z", "cross_entropy", 0.5, 10, "tokens", (row,), ()))
    >>> figure.data[0].y, figure.data[1].y
    ((0.1,), (0.01,))
    """
    own = [row for row in found.rows if not row.against]
    others = [row for row in found.rows if row.against]
    parts = [part for part in (own, others) if part]
    figure = make_subplots(
        rows=max(len(parts), 1),
        cols=2,
        subplot_titles=[title for part in parts for title in _titles(part is own)],
        horizontal_spacing=0.12,
        vertical_spacing=0.2,
    )
    figure.update_annotations(font_size=13)
    names = sorted({row.center for row in found.rows}, key=method_order)
    for place, part in enumerate(parts, 1):
        for rank, name in enumerate(names):
            mine = sorted((row for row in part if row.center == name), key=lambda row: row.size)
            if not mine:
                continue
            # Side by side: marks on one place would hide each other. On a logarithmic axis that is a factor.
            beside = ((rank + 0.5) / len(names) - 0.5) * 0.6
            if part is own:
                x: list[Any] = [row.size * 10 ** (0.25 * beside) for row in mine]
            else:
                corpora = list(dict.fromkeys(row.against for row in others))
                x = [corpora.index(row.against) + beside for row in mine]
            shown = {
                "name": for_plotly(name),
                "legendgroup": for_plotly(name),
                "legendrank": rank,
                "mode": "lines+markers" if part is own else "markers",
                "line": line_of(name),
                "marker": {"symbol": symbol_of(name), "size": 8, "color": line_of(name)["color"]},
            }
            figure.add_trace(_shift(x, mine, name, found.unit, shown | {"showlegend": place == 1}), place, 1)
            figure.add_trace(_cost(x, mine, name, found, shown | {"showlegend": False}), place, 2)
        _axes(figure, place, part, part is own, found)
    note = f"{for_plotly(found.model)} · {found.site} · cost: {found.fraction:.0%} ablated, {found.masks} masks"
    height = 160 + 330 * max(len(parts), 1)
    return add_frame(figure, "How stable centers are", note, template, height=height, margin={"t": 105}, legend=BELOW)


def _titles(own: bool) -> tuple[str, str]:
    if own:
        return "between disjoint collections", "cost of centers from so few"
    return "against centers of another corpus", "cost of the other corpus' centers"


def _shift(x: list[Any], rows: Sequence[Moved], name: str, unit: str, shown: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=[row.median for row in rows],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [row.q90 - row.median for row in rows],
            "arrayminus": [0.0 for _ in rows],
            "thickness": 1,
            "width": 3,
        },
        customdata=[
            f"{row.size:,} {unit}<br>median {row.median:.3g} σ, 90 % below {row.q90:.3g} σ, 99 % below {row.q99:.3g} σ"
            for row in rows
        ],
        hovertemplate=f"<b>{for_plotly(name)}</b>, %{{customdata}}<extra></extra>",
        **shown,
    )


def _cost(x: list[Any], rows: Sequence[Moved], name: str, found: Stability, shown: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=[row.cost for row in rows],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [row.high - row.cost for row in rows],
            "arrayminus": [row.cost - row.low for row in rows],
            "thickness": 1.2,
            "width": 3,
        },
        customdata=[
            f"{row.size:,} {found.unit}<br>{row.cost:+.4g} [{row.low:+.4g}, {row.high:+.4g}] {unit_of(found.metric)}"
            for row in rows
        ],
        hovertemplate=f"<b>{for_plotly(name)}</b>, %{{customdata}}<extra></extra>",
        **shown,
    )


def _axes(figure: go.Figure, place: int, rows: Sequence[Moved], own: bool, found: Stability) -> None:
    for col in (1, 2):
        if own:
            sizes = sorted({row.size for row in rows})
            figure.update_xaxes(
                type="log",
                title_text=f"{found.unit} in a collection",
                tickvals=sizes,
                ticktext=[f"{size:,}" for size in sizes],
                row=place,
                col=col,
            )
        else:
            corpora = list(dict.fromkeys(row.against for row in rows))
            figure.update_xaxes(
                tickvals=list(range(len(corpora))),
                ticktext=[lines(name, 24) for name in corpora],
                range=[-0.5, len(corpora) - 0.5],
                showgrid=False,
                row=place,
                col=col,
            )
    figure.update_yaxes(title_text="|c₁ − c₂| / σ", rangemode="tozero", row=place, col=1)
    figure.update_yaxes(title_text=f"worse by ({for_plotly(unit_of(found.metric))})", row=place, col=2)
    figure.add_hline(0, line={"color": FAINT, "width": 1}, layer="below", row=place, col=2)

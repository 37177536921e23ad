"""What one token carries: cross-entropy by token, and the share that layers and sites transfer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.experiments.transfer import BASE, FULL, NEUTRAL, TRANSFERRED, WRONG, Transfer
from ablation_lens.palette import METHOD_COLORS
from ablation_lens.plots.template import BELOW, FAINT, LENS_TEMPLATE, add_frame, faint

if TYPE_CHECKING:
    import pandas

_COLORS = {
    FULL: METHOD_COLORS["peak-kde"],
    TRANSFERRED: METHOD_COLORS["peak"],
    WRONG: METHOD_COLORS["half-sample"],
    NEUTRAL: METHOD_COLORS["mean"],
}
_WIDTHS = {FULL: 5, TRANSFERRED: 2, WRONG: 2, NEUTRAL: 2}
"""The full context is seen below a transfer that is as good."""
_DASHES = {FULL: "solid", TRANSFERRED: "solid", WRONG: "dash", NEUTRAL: "dot"}
_SYMBOLS = {"only": "circle", "all but": "circle-open"}


def transfer_curves(found: Transfer, *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """Cross-entropy of the true paragraph token by token, and below it how much lower than the neutral one it is.

    Bands are 95 % intervals over documents; below they are of differences in pairs. Tokens lie on a logarithmic axis,
    as what a transfer does is over soon, as far as a tenth of the documents go.
    """
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.09,
        subplot_titles=["cross-entropy of the true paragraph", "gain over the blank line alone"],
    )
    figure.update_annotations(font_size=13)
    for name in BASE:
        rows = found.frame[(found.frame["condition"] == name) & (found.frame["documents"] >= len(found.lengths) / 10)]
        for row, measure, low, high in ((1, "cross_entropy", "low", "high"), (2, "gain", "gain_low", "gain_high")):
            figure.add_trace(_band(rows, low, high, name), row, 1)
            figure.add_trace(_line(rows, measure, low, high, name, legend=row == 1), row, 1)
    figure.update_xaxes(type="log", tickvals=[digit * 10**power for power in range(5) for digit in (1, 2, 3, 5)])
    figure.update_xaxes(title_text="token of the paragraph", row=2, col=1)
    figure.update_yaxes(title_text="nats per token")
    figure.update_layout(legend=BELOW, hovermode="closest")
    return add_frame(
        figure, "What is read after one token", _about(found), template, height=620, margin={"t": 105, "b": 90}
    )


def transfer_shares(found: Transfer, *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """What single layers and sites transfer of what the full context gains, alone (filled) and all but one (open).

    Over tokens 2 and later, with 95 % intervals over documents. A wrong donor that is far off is a number. Where the
    full context gains nothing there is no share, and the gain over the neutral prompt is shown.
    """
    scrubbed = found.shares[found.shares["kind"] != "base"]
    if scrubbed.empty:
        raise MismatchError("no layer or site was transferred alone; measure with scrub=('layers', 'sites').")
    base = found.shares.set_index("condition").loc[[TRANSFERRED, WRONG]]
    is_share = not bool(base["share"].isna().any())
    measure, scale = ("share", 100.0) if is_share else ("gain", 1.0)
    units = list(dict.fromkeys(scrubbed["unit"]))
    figure = go.Figure()
    labels = {name: f"all, {name}" for name in (TRANSFERRED, WRONG)}
    rest = found.shares[found.shares["condition"].isin([TRANSFERRED, *scrubbed["condition"]])]
    low, high = (scale * float(end) for end in (min(0, rest[f"{measure}_low"].min()), rest[f"{measure}_high"].max()))
    wrong = scale * float(base[measure].tolist()[1])
    if not low - (high - low) <= wrong <= high + (high - low):
        # It would leave no room for all else.
        labels[WRONG] += f" ({wrong:.3g}{' %' if is_share else ''})"
        figure.update_xaxes(range=[low - 0.1 * (high - low), high + 0.1 * (high - low)])
    for name, label in labels.items():
        figure.add_trace(_points(base.loc[[name]], [label], measure, scale, name, "diamond", _COLORS[name]))
    for kind, symbol in _SYMBOLS.items():
        rows = scrubbed[scrubbed["kind"] == kind]
        if len(rows):
            names = [for_plotly(unit) for unit in rows["unit"]]
            figure.add_trace(_points(rows, names, measure, scale, f"{kind} this", symbol, METHOD_COLORS["mean"]))
    order = [*labels.values(), *map(for_plotly, units)]
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], type="category", showgrid=False)
    figure.update_xaxes(
        title_text="% of what the full context gains" if is_share else "gain over the blank line alone (nats per token)"
    )
    figure.add_vline(x=0, line={"color": FAINT, "width": 1, "dash": "dot"}, layer="below")
    figure.update_layout(legend=BELOW)
    height = 220 + 26 * len(order)
    return add_frame(
        figure, "Which layers and sites carry it", _about(found), template, height=height, margin={"t": 85, "b": 100}
    )


def _about(found: Transfer) -> str:
    where = " at the donor's positions" if found.positions else ""
    return (
        f"{for_plotly(found.source.name)} · {' and '.join(found.sites)} of {len(found.layers)} layers{where} · "
        f"{for_plotly(found.judged_on)}, {len(found.lengths):,} documents"
    )


def _band(rows: "pandas.DataFrame", low: str, high: str, name: str) -> go.Scatter:
    kept = rows.dropna(subset=[low, high])
    tokens = kept["token"].tolist()
    return go.Scatter(
        x=[*tokens, *reversed(tokens)],
        y=[*kept[high].tolist(), *reversed(kept[low].tolist())],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(_COLORS[name]),
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
    )


def _line(rows: "pandas.DataFrame", measure: str, low: str, high: str, name: str, *, legend: bool) -> go.Scatter:
    return go.Scatter(
        x=rows["token"].tolist(),
        y=rows[measure].tolist(),
        name=name,
        legendgroup=name,
        mode="lines",
        line={"color": _COLORS[name], "width": _WIDTHS[name], "dash": _DASHES[name]},
        showlegend=legend,
        customdata=rows[[low, high, "documents"]].to_numpy(),
        hovertemplate=f"{name}, token %{{x}}: %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}], "
        "%{customdata[2]:.0f} documents<extra></extra>",
    )


def _points(
    rows: "pandas.DataFrame", names: Sequence[str], measure: str, scale: float, label: str, symbol: str, color: str
) -> go.Scatter:
    middle, low, high = (scale * rows[column] for column in (measure, f"{measure}_low", f"{measure}_high"))
    return go.Scatter(
        x=middle.tolist(),
        y=list(names),
        name=label,
        mode="markers",
        marker={"symbol": symbol, "size": 9, "color": color, "line": {"width": 1.5, "color": color}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (high - middle).tolist(),
            "arrayminus": (middle - low).tolist(),
            "thickness": 1.2,
            "width": 3,
        },
        hovertemplate=f"%{{y}}, {label}: %{{x:.3g}}<extra></extra>",
    )

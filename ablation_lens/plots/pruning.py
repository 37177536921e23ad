"""Unlearning: what is forgotten against what else is lost, step by step, beside random neurons."""

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.escaping import for_plotly
from ablation_lens.names import require_known
from ablation_lens.palette import color_of
from ablation_lens.plots.metrics import shown_metric
from ablation_lens.plots.template import BELOW, FAINT, LENS_TEMPLATE, add_frame, faint, line_of, symbol_of

if TYPE_CHECKING:
    import pandas

    from ablation_lens.experiments.pruning import Unlearning


def unlearning_curves(found: "Unlearning", measure: str = "top1", *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """Left, the drop on the corpus to forget against that on the corpus to retain; right, how far it is ahead.

    A line per value, from the model as it is to the last step. On the diagonal both are lost alike. Bands are what
    random neurons do, from the least seed to the best; error bars are 95 % intervals over documents of both corpora.
    """
    require_known(measure, found.about.measures, "measure")
    frame = found.frame[found.frame["measure"] == measure]
    figure = make_subplots(1, 2, horizontal_spacing=0.12, subplot_titles=["", ""])
    values = [str(value) for value in found.about.values]
    drops = frame[["forget_drop", "retain_drop"]].to_numpy()
    ends = [min(0.0, 100 * float(drops.min())), max(5.0, 100 * float(drops.max()))]
    figure.add_trace(_diagonal(ends), 1, 1)
    figure.add_hline(0, line={"color": FAINT, "width": 1, "dash": "dot"}, row=1, col=2)
    for value in values:
        random = frame[(frame["value"] == value) & frame["seed"].notna()]
        if len(random):
            for column, trace in enumerate(_bands(random, value), 1):
                figure.add_trace(trace, 1, column)
    for value in values:
        chosen = frame[(frame["value"] == value) & frame["seed"].isna()]
        for column, trace in enumerate(_lines(chosen, value), 1):
            figure.add_trace(trace, 1, column)
    name = _name(measure)
    sites = " and ".join(found.about.sites)
    figure.update_xaxes(title_text=f"drop on {for_plotly(found.about.retain, 24)} (%)", row=1, col=1)
    figure.update_yaxes(title_text=f"drop on {for_plotly(found.about.forget, 24)} (%)", row=1, col=1)
    figure.update_xaxes(title_text=f"{found.about.sites[0]} neurons pruned (%)", row=1, col=2)
    figure.update_yaxes(title_text="Δ: forgotten less lost (points)", row=1, col=2)
    subtitle = (
        f"{for_plotly(found.about.source.name)}, {sites}, neurons chosen by {for_plotly(found.about.kind)}; "
        f"relative drops of {name}, steps of {100 * found.about.steps[0]:g} %"
    )
    if found.about.seeds:
        subtitle += f"<br>bands: {len(found.about.seeds)} random seeds; error bars: 95 % intervals over documents"
    return add_frame(
        figure,
        "What is forgotten, and what is lost besides",
        subtitle,
        template,
        height=500,
        width=980,
        legend=BELOW,
        hovermode="closest",
        margin={"b": 100, "t": 95},
    )


def _name(measure: str) -> str:
    metric, _, uncommon = measure.partition("_uncommon")
    plain = "cross-entropy" if measure == "cross_entropy" else shown_metric(metric).name
    return f"{plain} without the commonest tokens" if measure.endswith("_uncommon") or uncommon else plain


def _diagonal(ends: list[float]) -> go.Scatter:
    return go.Scatter(
        x=ends,
        y=ends,
        name="both lost alike",
        mode="lines",
        line={"color": FAINT, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )


def _bands(random: "pandas.DataFrame", value: str) -> tuple[go.Scatter, go.Scatter]:
    by_step = random.groupby("step")
    retain = 100 * by_step["retain_drop"].mean().to_numpy()
    least, most = (100 * getattr(by_step["ahead"], end)().to_numpy() for end in ("min", "max"))
    fraction = 100 * by_step["fraction"].first().to_numpy()

    def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, *, legend: bool) -> go.Scatter:
        return go.Scatter(
            x=[*x.tolist(), *reversed(x.tolist())],
            y=[*high.tolist(), *reversed(low.tolist())],
            name=f"random, {for_plotly(value, 24)}",
            legendgroup=f"random {value}",
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=faint(color_of(value)),
            hoverinfo="skip",
            showlegend=legend,
        )

    return (
        band(retain, retain + least, retain + most, legend=True),
        band(fraction, least, most, legend=False),
    )


def _lines(chosen: "pandas.DataFrame", value: str) -> tuple[go.Scatter, go.Scatter]:
    percent = {name: 100 * chosen[name].to_numpy() for name in ("retain_drop", "forget_drop", "ahead", "low", "high")}
    fraction = 100 * chosen["fraction"].to_numpy()
    shown = {
        "name": for_plotly(value, 24),
        "legendgroup": for_plotly(value),
        "mode": "lines+markers",
        "line": line_of(value),
        "marker": {"symbol": symbol_of(value), "size": 7},
    }
    left = go.Scatter(
        x=percent["retain_drop"].tolist(),
        y=percent["forget_drop"].tolist(),
        customdata=fraction.tolist(),
        hovertemplate=(
            f"{for_plotly(value)}, %{{customdata:.3~g}} &#37; pruned: %{{y:.1f}} &#37; forgotten, %{{x:.1f}} &#37; lost"
            "<extra></extra>"
        ),
        **shown,
    )
    right = go.Scatter(
        x=fraction.tolist(),
        y=percent["ahead"].tolist(),
        error_y={
            "type": "data",
            "symmetric": False,
            "array": (percent["high"] - percent["ahead"]).tolist(),
            "arrayminus": (percent["ahead"] - percent["low"]).tolist(),
            "thickness": 1,
            "width": 3,
        },
        showlegend=False,
        hovertemplate=f"{for_plotly(value)}, %{{x:.3~g}} &#37; pruned: Δ %{{y:+.1f}} points<extra></extra>",
        **shown,
    )
    return left, right

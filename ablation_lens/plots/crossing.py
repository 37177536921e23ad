"""What tasks keep without the neurons of each, and what whole clusters are worth to them."""

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.experiments.crossing import CrossPruning
from ablation_lens.experiments.modularity import ClusterDamage
from ablation_lens.plots.template import DIVERGING, INK, LENS_TEMPLATE, SEQUENTIAL, add_frame, lines
from ablation_lens.sites import Site

WITH_INTERVALS = 4
"""Up to so many tasks a cell has room for its interval."""


@dataclass(frozen=True)
class _Panel:
    title: str
    values: Tensor
    is_share: bool


def cross_pruning_matrix(
    found: CrossPruning, *, twin: CrossPruning | None = None, template: Any = LENS_TEMPLATE
) -> go.Figure:
    """What every task keeps of its top-1 (columns) without the neurons of each (rows), beside random neurons.

    Args:
        found: of `cross_pruning`.
        twin: the same of the randomly initialised model. Where that does no task, it has no shares: both models are
            then set beside each other by the rise of the cross-entropy.
        template: the look.
    """
    if twin is not None and twin.tasks != found.tasks:
        raise MismatchError(f"the twin's tasks are {list(twin.tasks)}, and those of the model {list(found.tasks)}.")
    rows = []
    if any(found.is_done):
        rows.append(
            [_Panel("without its neurons", found.relative, True), _Panel("without random ones", found.random, True)]
        )
        if twin is not None and any(twin.is_done):
            rows[0].append(_Panel("before training", twin.relative, True))
    if len(rows) == 0 or (twin is not None and not any(twin.is_done)):
        last = _Panel("without random ones", found.random_rise, False)
        if twin is not None:
            last = _Panel("before training", twin.rise, False)
        rows.append([_Panel("without its neurons", found.rise, False), last])
    tasks, across = len(found.tasks), max(map(len, rows))
    titles = [f"{panel.title}: {'share kept' if panel.is_share else 'rise'}" for row in rows for panel in row]
    figure = make_subplots(
        rows=len(rows),
        cols=across,
        shared_yaxes=True,
        subplot_titles=titles,
        horizontal_spacing=0.04,
        vertical_spacing=0.24 if tasks <= WITH_INTERVALS else 0.16,
    )
    figure.update_annotations(font_size=13)
    for number, row in enumerate(rows, 1):
        for col, panel in enumerate(row, 1):
            figure.add_trace(_matrix(found, panel), number, col)
            figure.update_xaxes(title_text="task that is judged", row=number, col=col)
        figure.update_yaxes(title_text="task that is pruned", row=number, col=1)
    # By number and not by name, as two names may look alike once they are made safe.
    names = {"tickvals": list(range(tasks)), "ticktext": [lines(name, 16) for name in found.tasks]}
    figure.update_xaxes(showgrid=False, ticks="", tickangle=0 if tasks <= WITH_INTERVALS else None, **names)
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", **names)
    shares = [float(value) for row in rows for panel in row if panel.is_share for value in _known(panel.values)]
    rises = [abs(float(value)) for row in rows for panel in row if not panel.is_share for value in _known(panel.values)]
    figure.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL,
            "cmin": min(shares, default=0.0),
            "cmax": max([1.0, *shares]),
            "colorbar": _bar("share of top-1 kept", 0, len(rows)),
        },
        coloraxis2={
            "colorscale": DIVERGING,
            "cmin": -(max(rises, default=0.0) or 1.0),
            "cmax": max(rises, default=0.0) or 1.0,
            "colorbar": _bar("cross-entropy, nats", len(rows) - 1, len(rows)),
        },
    )
    pruned = [each for each in found.fractions if each]
    share = f"{min(pruned):.2%} to {max(pruned):.2%} of the neurons" if pruned else "no neuron"
    note = (
        f"{for_plotly(found.source.name)} · {found.site} → {for_plotly(found.value)} · {share} · "
        f"chosen by {for_plotly(found.kind)} against {for_plotly(found.retained)}"
    )
    cell = 58 if tasks <= WITH_INTERVALS else 30
    height = 170 + len(rows) * (110 + cell * tasks)
    return add_frame(figure, "Cross-pruning", note, template, height=height, margin={"t": 105})


def _known(values: Tensor) -> list[float]:
    return [value for value in values[..., 0].flatten().tolist() if math.isfinite(value)]


def _matrix(found: CrossPruning, panel: _Panel) -> go.Heatmap:
    tasks = range(len(found.tasks))
    texts, hovers = [], []
    for i, pruned in enumerate(found.tasks):
        cells = panel.values[i].tolist()
        texts.append([_cell(cell, panel.is_share, len(tasks) <= WITH_INTERVALS) for cell in cells])
        without = f"without the neurons of {for_plotly(pruned)}"
        hovers.append(
            [
                f"<b>{for_plotly(task)}</b> {without}<br>{_told(cell, panel.is_share)}<br>"
                f"{found.fractions[i]:.2%} of the neurons ({found.outcomes[i]})"
                for task, cell in zip(found.tasks, cells, strict=True)
            ]
        )
    return go.Heatmap(
        z=[[None if math.isnan(value) else value for value in row] for row in panel.values[..., 0].tolist()],
        x=list(tasks),
        y=list(tasks),
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 12 if len(tasks) <= WITH_INTERVALS else 10},
        customdata=hovers,
        hovertemplate="%{customdata}<extra></extra>",
        coloraxis="coloraxis" if panel.is_share else "coloraxis2",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )


def _cell(estimate: list[float], is_share: bool, with_interval: bool) -> str:
    # Without the sign of a zero.
    value, low, high = (round(each, 2) + 0.0 for each in estimate)
    if math.isnan(value):
        return "–"
    form = ".2f" if is_share else "+.2f"
    told = f"{value:{form}}"
    return told if not with_interval or math.isnan(low) else f"{told}<br>[{low:{form}}, {high:{form}}]"


def _told(estimate: list[float], is_share: bool) -> str:
    value, low, high = estimate
    if math.isnan(value):
        return "not done by the model, so without a share"
    form, unit = (".3f", "of its top-1") if is_share else ("+.4f", "nats")
    return f"{value:{form}} {unit}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")


def _bar(title: str, row: int, rows: int) -> dict[str, Any]:
    return {
        "title": {"text": title, "side": "right"},
        "thickness": 14,
        "outlinewidth": 0,
        "len": 0.95 / rows,
        "y": 1 - (row + 0.5) / rows,
        "yanchor": "middle",
    }


def cluster_map(found: ClusterDamage, *, twin: ClusterDamage | None = None, template: Any = LENS_TEMPLATE) -> go.Figure:
    """What every whole cluster (columns, layer by layer) costs every task (rows), in nats; below it the untrained twin.

    Within a layer clusters stand by their mean damage, as their numbers say nothing.
    """
    both = [found] if twin is None else [found, twin]
    names = ["trained", "before training"]
    shown = [f"{name}: {lines(each.told, 110, 1)}" for name, each in zip(names, both, strict=False)]
    titles = None if twin is None else shown
    what = "heads" if Site(found.site).has_heads else "clusters"
    height = 170 + len(both) * (70 + 24 * len(found.tasks))
    figure = make_subplots(rows=len(both), cols=1, subplot_titles=titles, vertical_spacing=80 / (height - 165))
    figure.update_annotations(font_size=12, x=0, xanchor="left")
    layers = sorted({layer for layer, _ in found.places})
    tasks = [lines(task, 16) for task in found.tasks]
    for row, each in enumerate(both, 1):
        order = sorted(range(len(each.places)), key=lambda c: (each.places[c][0], -float(each.rise[c, :, 0].mean())))
        hovers = [
            [f"<b>{each.names[c]}, {for_plotly(task)}</b><br>{_told(each.rise[c, j].tolist(), False)}" for c in order]
            for j, task in enumerate(each.tasks)
        ]
        trace = go.Heatmap(
            z=each.rise[order, :, 0].T.tolist(),
            y=list(range(len(tasks))),
            customdata=hovers,
            hovertemplate="%{customdata}<extra></extra>",
            coloraxis="coloraxis",
        )
        figure.add_trace(trace, row, 1)
        per_layer = len(order) // len(layers)
        for number in range(1, len(layers)):
            figure.add_vline(number * per_layer - 0.5, line={"color": INK, "width": 1}, row=row, col=1)
        figure.update_xaxes(
            tickvals=[(number + 0.5) * per_layer - 0.5 for number in range(len(layers))],
            ticktext=[f"L{layer}" for layer in layers],
            title_text=f"{what}, most damage first in each layer" if row == len(both) else None,
            row=row,
        )
    figure.update_xaxes(showgrid=False, ticks="")
    figure.update_yaxes(
        autorange="reversed", showgrid=False, ticks="", tickvals=list(range(len(tasks))), ticktext=tasks
    )
    widest = max(abs(value) for each in both for value in _known(each.rise)) or 1.0
    figure.update_layout(
        coloraxis={
            "colorscale": DIVERGING,
            "cmin": -widest,
            "cmax": widest,
            "colorbar": _bar("cross-entropy, nats", 0, 1),
        }
    )
    note = f"{for_plotly(found.source.name)} · {found.site} → {for_plotly(found.value)} · one whole cluster at a time"
    return add_frame(figure, "Damage by cluster and task", note, template, height=height, margin={"t": 105})

"""How many neurons tasks share, and whether those of one lie in few clusters, beside chance and the untrained model."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.experiments.agreement import Concentrated, Concentration, Overlap, Shared
from ablation_lens.plots.template import BELOW, FAINT, LENS_TEMPLATE, SEQUENTIAL, SERIES, add_frame, lines

MODELS = ("trained", "before training")
_COLORS = (SERIES[4], SERIES[2])
_WITH_CHANCE = 5
"""Up to so many masks a cell has room for what chance gives."""


def overlap_map(found: Overlap, *, twin: Overlap | None = None, template: Any = LENS_TEMPLATE) -> go.Figure:
    """The share of neurons that every two masks have in common, beside the untrained `twin`; *: as random masks.

    >>> import torch
    >>> from ablation_lens.experiments import overlap
    >>> one = torch.arange(20).view(1, 1, 20) < 5
    >>> overlap_map(overlap({"code": one, "prose": one.roll(1)})).data[0].text[0][1]
    '0.80<br>chance 0.25'
    """
    both = [found] if twin is None else [found, twin]
    if any(each.names != found.names for each in both):
        raise MismatchError(f"the twin's masks are {list(both[1].names)}, and those of the model {list(found.names)}.")
    masks = len(found.names)
    figure = make_subplots(
        rows=1,
        cols=len(both),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[
            _panel(each, name if twin is not None else "") for each, name in zip(both, MODELS, strict=False)
        ],
    )
    figure.update_annotations(font_size=13)
    for column, each in enumerate(both, 1):
        figure.add_trace(_overlaps(each), 1, column)
    # By number and not by name, as two names may look alike once they are made safe.
    names = {"tickvals": list(range(masks)), "ticktext": [lines(name, 16) for name in found.names]}
    figure.update_xaxes(showgrid=False, ticks="", **names)
    figure.update_yaxes(showgrid=False, ticks="", autorange="reversed", **names)
    shares = [row.overlap for each in both for row in each.rows if not math.isnan(row.overlap)]
    figure.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL,
            "cmin": 0,
            "cmax": max(shares, default=0.0) or 1.0,
            "colorbar": {
                "title": {"text": "share of the smaller mask", "side": "right"},
                "thickness": 14,
                "outlinewidth": 0,
            },
        }
    )
    note = "share of the smaller mask that the other has, too · * no more and no less than random neurons would"
    cell = 52 if masks <= _WITH_CHANCE else 28
    return add_frame(figure, "Neurons that tasks share", note, template, height=200 + cell * masks, margin={"t": 105})


def _panel(found: Overlap, model: str) -> str:
    known = [row for row in found.rows if not math.isnan(row.chance)]
    if not known:
        return model
    shared, chance = (sum(getattr(row, field) for row in known) / len(known) for field in ("overlap", "chance"))
    return f"{model}{': ' if model else ''}on average {shared:.2f}, by chance {chance:.2f}"


def _overlaps(found: Overlap) -> go.Heatmap:
    names, masks = found.names, range(len(found.names))
    rows = {(row.first, row.second): row for row in found.rows}
    cells = [[rows.get((one, other)) or rows.get((other, one)) for other in names] for one in names]
    with_chance = len(names) <= _WITH_CHANCE
    return go.Heatmap(
        z=[[None if cell is None or math.isnan(cell.overlap) else cell.overlap for cell in row] for row in cells],
        x=list(masks),
        y=list(masks),
        text=[["" if cell is None else _share(cell, with_chance) for cell in row] for row in cells],
        texttemplate="%{text}",
        textfont={"size": 12 if with_chance else 10},
        customdata=[["" if cell is None else _shared(cell) for cell in row] for row in cells],
        hovertemplate="%{customdata}<extra></extra>",
        coloraxis="coloraxis",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )


def _share(cell: Shared, with_chance: bool) -> str:
    if math.isnan(cell.overlap):
        return "–"
    star = "*" if cell.low <= cell.overlap <= cell.high else ""
    return f"{cell.overlap:.2f}{star}" + (f"<br>chance {cell.chance:.2f}" if with_chance else "")


def _shared(cell: Shared) -> str:
    names = f"<b>{for_plotly(cell.first)}, {for_plotly(cell.second)}</b>"
    if math.isnan(cell.overlap):
        return f"{names}<br>{cell.note}"
    z = cell.note if math.isnan(cell.z) else f"z = {cell.z:.1f}, corrected {cell.corrected:+.3f}"
    return (
        f"{names}<br>{cell.shared:,} of {cell.smaller:,} neurons: {cell.overlap:.3f}<br>"
        f"by chance {cell.chance:.3f} [{cell.low:.3f}, {cell.high:.3f}]<br>{z}"
    )


def concentration_by_layer(
    found: Mapping[str, Concentration],
    *,
    twin: Mapping[str, Concentration] | None = None,
    template: Any = LENS_TEMPLATE,
) -> go.Figure:
    """How concentrated neurons are in few clusters, by task and layer, beside the untrained `twin`.

    >>> import torch
    >>> from ablation_lens.experiments import concentration
    >>> labels = torch.arange(64).div(8, rounding_mode="floor")[None]
    >>> concentration_by_layer({"code": concentration(labels, (labels < 2)[:, None])}).data[1].x
    ('L0', 'all')
    """
    if not found or (twin is not None and list(twin) != list(found)):
        told = "there is nothing to show" if not found else f"the twin's tasks are {list(twin or ())}"
        raise MismatchError(f"{told}; give concentrations by task, the same tasks of both models.")
    models = [found] if twin is None else [found, twin]
    across = min(len(found), 3)
    down = -(-len(found) // across)
    figure = make_subplots(
        rows=down,
        cols=across,
        shared_yaxes=True,
        subplot_titles=[lines(task, 32, 2) for task in found],
        horizontal_spacing=0.04,
        vertical_spacing=0.28 / down,
    )
    figure.update_annotations(font_size=13)
    for place, task in enumerate(found):
        row, column = place // across + 1, place % across + 1
        for number, model in enumerate(models):
            for trace in _areas(model[task], number, len(models), first=not place):
                figure.add_trace(trace, row, column)
        if column == 1:
            figure.update_yaxes(title_text="area", row=row, col=1)
    places = [_place(row) for row in next(iter(found.values())).rows]
    # In their order, and all of them, also where a task or a model has nothing to show of a layer.
    ends_of_x = [-0.5, len(places) - 0.5]
    figure.update_xaxes(
        type="category", categoryorder="array", categoryarray=places, range=ends_of_x, showgrid=False, tickangle=0
    )
    rows = [row for model in models for each in model.values() for row in each.rows if not math.isnan(row.auc)]
    ends = [value for row in rows for value in (row.auc, row.low, row.high)] or [0.0, 1.0]
    margin = 0.06 * (max(ends) - min(ends)) or 0.05
    figure.update_yaxes(range=[min(ends) - margin, max(ends) + margin])
    # Side by side on a category: two models, each with its bar and its mark.
    figure.update_layout(scattermode="group", scattergap=0.5)
    whole = next(iter(found.values())).whole
    note = f"{whole.clusters:,} clusters · area under the neurons in the fullest ones · filled: not as random neurons"
    title = "Concentration in few clusters"
    return add_frame(figure, title, note, template, height=190 + 210 * down, margin={"t": 105}, legend=BELOW)


def _areas(found: Concentration, number: int, models: int, *, first: bool) -> Iterator[go.Scatter]:
    rows = [row for row in found.rows if not math.isnan(row.auc)]
    places = [_place(row) for row in rows]
    name = MODELS[number] if models > 1 else "selected neurons"
    color = _COLORS[number]
    shared = {"x": places, "mode": "markers", "offsetgroup": str(number), "showlegend": first}
    yield go.Scatter(
        y=[row.chance for row in rows],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [row.high - row.chance for row in rows],
            "arrayminus": [row.chance - row.low for row in rows],
            "color": "#CBD2D9",
            "thickness": 8,
            "width": 0,
        },
        marker={"symbol": "line-ew", "size": 8, "line": {"width": 1.5, "color": FAINT}},
        name="random neurons, 95 %",
        legendgroup="random",
        legendrank=3,
        hoverinfo="skip",
        **shared | {"showlegend": first and not number},
    )
    yield go.Scatter(
        y=[row.auc for row in rows],
        marker={
            "size": 9,
            "color": color,
            "symbol": ["circle" if _stands_out(row) else "circle-open" for row in rows],
            "line": {"width": 1.5, "color": color},
        },
        name=name,
        legendgroup=name,
        legendrank=number,
        customdata=[
            f"{row.selected:,} neurons in {row.clusters:,} clusters<br>area {row.auc:.3f}, by chance {row.chance:.3f} "
            f"[{row.low:.3f}, {row.high:.3f}]<br>" + (row.note or f"z = {row.z:.1f}, p = {row.p:.3g}")
            for row in rows
        ],
        hovertemplate=f"<b>{name}, %{{x}}</b><br>%{{customdata}}<extra></extra>",
        **shared,
    )


def _place(row: Concentrated) -> str:
    return "all" if row.layer is None else f"L{row.layer}"


def _stands_out(row: Concentrated) -> bool:
    return not row.low <= row.auc <= row.high

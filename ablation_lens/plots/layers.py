"""What every layer and every head costs, center by center."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.experiments.damage import unit_of
from ablation_lens.experiments.layers import LayerDamage, UnitDamage
from ablation_lens.names import choose
from ablation_lens.plots.metrics import shown_metric
from ablation_lens.plots.template import DIVERGING, LENS_TEMPLATE, SEQUENTIAL, add_frame, lines, method_order


def layer_damage(found: LayerDamage, *, level: str | None = None, template: Any = LENS_TEMPLATE) -> go.Figure:
    """Heat maps of damage for every center, and below them how much worse it is than the unit's best center.

    Of heads a map per center; of layers a column per center. A star marks what cannot be told from the best.
    `level` is "head" or "layer"; None takes heads where there are some.
    """
    there = {each: each for each in ("head", "layer") if found.at(each)}
    if not there:
        raise MismatchError("nothing was ablated, so there is nothing to show.")
    level = next(iter(there)) if level is None else choose(level, there, "level")
    names = sorted(found.centers, key=method_order)
    columns = [[name] for name in names] if level == "head" else [names]
    titles = [lines(name, 16) for name in names] if level == "head" else [f"rise in {shown_metric(found.metric).name}"]
    figure = make_subplots(
        rows=2,
        cols=len(columns),
        shared_yaxes=True,
        subplot_titles=[*titles, *(["" for _ in titles] if level == "head" else ["more than the best center"])],
        horizontal_spacing=0.15 / max(len(columns), 3),
        vertical_spacing=0.16,
    )
    figure.update_annotations(font_size=13)
    rows = found.at(level)
    for col, shown in enumerate(columns, 1):
        for row, best in enumerate((False, True), 1):
            cells = [each for each in rows if each.center in shown]
            figure.add_trace(_map(found, cells, names, level, best), row, col)
            figure.update_xaxes(type="category", showgrid=False, tickangle=0 if level == "head" else None, row=row)
            figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=1, row=row)
    if level == "head":
        figure.update_xaxes(title_text="head", row=2)
    figure.update_yaxes(title_text="layer", col=1)
    unit = for_plotly(unit_of(found.metric))
    widest = max((abs(row.damage) for row in rows), default=0.0) or 1.0
    height = max(520, 220 + 2 * 27 * found.shape[0])
    note = f"{for_plotly(found.model)} · {found.site} · one {level} at a time · * cannot be told from the best center"
    figure.update_layout(
        coloraxis={
            "colorscale": DIVERGING,
            "cmin": -widest,
            "cmax": widest,
            "colorbar": _bar(unit, 0.8),
        },
        coloraxis2={
            "colorscale": SEQUENTIAL,
            "cmin": 0,
            "cmax": max((row.to_best for row in rows), default=0.0) or 1.0,
            "colorbar": _bar(f"{unit} above the best", 0.2),
        },
    )
    return add_frame(figure, f"Damage by {level} and center", note, template, height=height, margin={"t": 105})


def _short(value: float, widest: float) -> str:
    """A number of at most five letters, so finely as matters beside the widest.

    >>> _short(-0.0093, 0.14), _short(0.0001, 0.14), _short(2.56, 2.56)
    ('-.009', '0', '2.56')
    """
    places = max(0, 2 - math.floor(math.log10(widest))) if widest > 0 else 0
    told = f"{abs(value):.{places}f}"
    if not float(told):
        return "0"
    return ("-" if value < 0 else "") + (told.removeprefix("0") if told.startswith("0.") else told)


def _bar(title: str, middle: float) -> dict[str, Any]:
    return {
        "title": {"text": title, "side": "right"},
        "thickness": 14,
        "outlinewidth": 0,
        "len": 0.42,
        "y": middle,
        "yanchor": "middle",
    }


def _map(found: LayerDamage, cells: Sequence[UnitDamage], names: Sequence[str], level: str, best: bool) -> go.Heatmap:
    layers, heads, _ = found.shape
    across = [f"H{head}" for head in range(heads)] if level == "head" else [for_plotly(name) for name in names]
    widest = max(abs(cell.damage) for cell in cells)
    values = [[float("nan")] * len(across) for _ in range(layers)]
    texts, hovers = ([[""] * len(across) for _ in range(layers)] for _ in range(2))
    for cell in cells:
        place = names.index(cell.center) if cell.head is None else cell.head
        value, low, high = (
            (cell.to_best, cell.to_best_low, cell.to_best_high) if best else (cell.damage, cell.low, cell.high)
        )
        values[cell.layer][place] = value
        texts[cell.layer][place] = f"{_short(value, widest)}{'*' if best and cell.as_best else ''}"
        hovers[cell.layer][place] = (
            f"<b>{for_plotly(cell.unit)}, {for_plotly(cell.center)}</b><br>{value:+.4g} [{low:+.4g}, {high:+.4g}]"
        )
    return go.Heatmap(
        z=values,
        x=across,
        y=[f"L{layer}" for layer in range(layers)],
        text=texts,
        texttemplate="%{text}" if len(across) <= 12 and layers <= 24 else None,
        textfont={"size": 10 if level == "head" else 12},
        customdata=hovers,
        hovertemplate="%{customdata}<extra></extra>",
        coloraxis="coloraxis2" if best else "coloraxis",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )

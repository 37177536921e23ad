"""Circuits: what every unit is worth, which are kept, and how faithful those are under every center."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from ablation_lens.circuits.effects import ADD_UP, Effects
from ablation_lens.circuits.units import parse_unit, unit_name
from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.names import choose
from ablation_lens.plots.metrics import ShownMetric, shown_metric
from ablation_lens.plots.template import (
    BELOW,
    FAINT,
    GRID,
    INK,
    LENS_TEMPLATE,
    add_frame,
    faint,
    line_of,
    method_order,
    symbol_of,
)
from ablation_lens.sites import Site

if TYPE_CHECKING:
    from ablation_lens.circuits.circuit import Circuit

WITH, AGAINST = "#D6604D", "#4393C3"
"""Of units that the metric needs, and of units that hold it back: of the diverging scale, seen on light and dark."""

_TOWARDS, _AWAY = "RdBu_r", "RdBu"
_GAP = " "
"""Between heads and what a layer has one of."""
_MOST_NAMED = 48
"""Units with their name beside them in a diagram; names of more would lie over each other."""
_MOST_EDGES = 60
"""Lines that a diagram draws, the strongest; more are a blot."""
_BEYOND = ("embed", "logits")
"""What edges may begin and end at beside units."""

_METHODS = {"knockout": "knocked out", "gradient": "by gradient", "integrated": "by integrated gradient"}
_METHODS["graddrop"] = "by gradient with layers dropped"


def effect_map(effects: Effects, *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """A heat map of layer × head of what units are worth, and a column of the MLPs where they were measured.

    Red is the way that ablating everything changes it. Of neurons: their sum, or of knock-outs the largest.

    >>> import ablation_lens as al
    >>> batch = al.Batch.prompts([[2, 7, 9], [2, 5, 8]], answers=[4, 6])
    >>> effects = al.circuits.knockout_effects(al.load_model("tiny-opt"), batch, "cross_entropy", 0.0)
    >>> effect_map(effects).data[0].z.shape
    (4, 4)
    """
    metric = shown_metric(effects.metric)
    cells, what = _by_head(effects)
    columns = _columns({cell.column for cell in cells})
    names, last = list(columns), next(reversed(columns))
    layers = max(cell.layer for cell in cells) + 1
    values = np.full((layers, len(columns)), np.nan, dtype=np.float32)
    said = np.full(values.shape, "", dtype=object)
    for cell in cells:
        at = cell.layer, names.index(cell.column)
        values[at] = metric.scale * cell.effect
        said[at] = cell.told(metric)
    end, note = _end_of(values, names, metric)
    places = _places(columns)
    figure = go.Figure(
        go.Heatmap(
            z=values,
            # Edges and not middles, so that the gap can be narrower than a unit.
            x=[*(places[name] - width / 2 for name, width in columns.items()), places[last] + 0.5],
            y=[f"L{layer}" for layer in range(layers)],
            customdata=said,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2~g}" if len(columns) <= 14 and layers <= 24 else None,
            colorscale=_TOWARDS if effects.total >= 0 else _AWAY,
            zmin=-end,
            zmax=end,
            colorbar={
                "title": {"text": f"change of {metric.title}", "side": "right"},
                "thickness": 14,
                "outlinewidth": 0,
            },
        )
    )
    _name_columns(figure, places, what)
    figure.update_yaxes(
        type="category", title_text="layer", autorange="reversed", showgrid=False, dtick=1 if layers <= 32 else 2
    )
    left = sum(int((~done).sum()) for done in effects.done.values())
    return add_frame(
        figure,
        f"Effect of every {'layer' if effects.level == 'layer' else 'head'}",
        " · ".join([*_about(effects, metric), *([f"{left:,} not measured"] if left else []), *note]),
        template,
        height=max(320, 180 + 26 * layers),
    )


@dataclass(frozen=True)
class _Cell:
    """A unit of a map: where it is, its name, and its effect with its interval and share."""

    layer: int
    column: str
    name: str
    effect: float
    low: float
    high: float
    share: float

    def told(self, metric: ShownMetric) -> str:
        effect, low, high = (metric.scale * each for each in (self.effect, self.low, self.high))
        if np.isnan(effect):
            return f"<b>{self.name}</b><br>not measured"
        share = "" if np.isnan(self.share) else f"<br>{100 * self.share:.3g} % of ablating everything"
        return f"<b>{self.name}</b><br>{effect:+.4g} [{low:+.4g}, {high:+.4g}]{metric.suffix}{share}"


def _by_head(effects: Effects) -> tuple[list[_Cell], str]:
    """Effects of heads or layers, and what the columns are; a head of neurons stands for them."""
    what = "head"
    if effects.level == "neuron" and effects.method in ADD_UP:
        effects, what = effects.by("head"), "head (sum over its neurons)"
    elif effects.level == "neuron":
        what = "head (its neuron of the largest effect)"
    elif effects.level == "layer":
        what = "all heads of the layer, and its MLP" if len(effects.sites) > 1 else "all of the layer"
    # Of neurons the largest comes first, and what comes later of its head is left out; NaN is last.
    table = effects.table().reset_index(names="name")
    table = table.assign(size=table["effect"].abs()).sort_values("size", ascending=False, kind="stable")
    cells: dict[tuple[int, str], _Cell] = {}
    for row in table.to_dict("records"):
        site, layer = Site(row["site"]), int(row["layer"])
        column = _column(site, None if effects.level == "layer" else int(row["head"]))
        cells.setdefault(
            (layer, column), _Cell(layer, column, *(row[name] for name in ("name", "effect", "low", "high", "share")))
        )
    return list(cells.values()), what


def _column(site: Site, head: int | None) -> str:
    """What stands below a column of units."""
    if head is not None and site.has_heads:
        return f"H{head}"
    return unit_name(site, (0,)).removeprefix("L0.")


def _columns(names: Collection[str]) -> dict[str, float]:
    """Heads by number, then what a layer has one of, with a gap between; and how wide each column is."""
    heads = sorted((name for name in names if _is_head(name)), key=lambda name: int(name[1:]))
    whole = sorted(set(names) - set(heads))  # ATTN before MLP
    return dict.fromkeys(heads, 1.0) | ({_GAP: 0.4} if heads and whole else {}) | dict.fromkeys(whole, 1.0)


def _is_head(column: str) -> bool:
    return column[1:].isdigit()


def _places(columns: Mapping[str, float]) -> dict[str, float]:
    """Where the middle of every column is; the first is at 0."""
    ends = itertools.accumulate(columns.values())
    return {name: end - (width + 1) / 2 for (name, width), end in zip(columns.items(), ends, strict=True)}


def _name_columns(figure: go.Figure, places: Mapping[str, float], title: str, most: int = 9) -> None:
    """The names of columns below them; of many heads every second or third, as they must fit on a telephone."""
    step = -(-len(places) // most)
    shown = {name: place for name, place in places.items() if name != _GAP and not (_is_head(name) and place % step)}
    figure.update_xaxes(
        title_text=title, showgrid=False, tickangle=0, tickvals=list(shown.values()), ticktext=list(shown)
    )


def _end_of(
    values: Float[np.ndarray, "layer column"], columns: Sequence[str], metric: ShownMetric
) -> tuple[float, list[str]]:
    """Where colours end: at the largest head, as an MLP can be worth more than all of them; and what to say of it."""
    sizes = np.abs(np.nan_to_num(values))
    heads = [number for number, name in enumerate(columns) if _is_head(name)]
    largest = float(sizes.max())
    end = float(sizes[:, heads].max()) if heads else largest
    end = end or largest or 1.0
    beyond = f"colours end at {end:.3g}{metric.suffix}, the largest is {largest:.3g}"
    return end, [beyond] if largest > end else []


def _about(effects: Effects, metric: ShownMetric) -> list[str]:
    """The model, what was done to units, and what ablating all of them does."""
    clean, empty = (metric.scale * each for each in (effects.unablated, effects.unablated + effects.total))
    return [
        *([for_plotly(effects.source.name)] if effects.source is not None else []),
        f"{_METHODS.get(effects.method, for_plotly(effects.method))}, set to {for_plotly(effects.values, 24)}",
        f"{metric.name} {clean:.3g}, all ablated {empty:.3g}{metric.suffix}",
    ]


# ---------------------------------------------------------------------- faithfulness


def faithfulness_curves(curves: Any, *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """How much of the metric circuits keep against their size: a panel per judge, a line per center used to find them.

    f is 1 for the model, 0 where everything is ablated. Only lines of one panel can be compared: each judge has an f
    of its own. `curves` is what `faithfulness_curve` gives, or one of its frames.
    """
    frame = _frame(curves, ("found_with", "judged_with", "units", "f"), "frame")
    frame = frame[frame["units"] > 0].drop_duplicates(["found_with", "judged_with", "units"])
    # The part of the units that was kept, and not what was asked for: of few units, shares round to the same.
    frame = frame.assign(percent=100 * frame["units"] / frame["units"].max())
    judges = _in_order(frame["judged_with"])
    finders = _in_order(frame["found_with"])
    across = 2 if len(judges) == 4 else min(len(judges), 3)
    rows = -(-len(judges) // across)
    height = 170 + 270 * rows
    figure = make_subplots(
        rows=rows,
        cols=across,
        subplot_titles=[_judged(frame, judge) for judge in judges],
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=100 / height if rows > 1 else None,
    )
    figure.update_annotations(font_size=12)
    for number, judge in enumerate(judges):
        row, col = number // across + 1, number % across + 1
        here = frame[frame["judged_with"] == judge]
        if not here["f"].notna().any():
            _say_in_panel(figure, "no f: m(M) − m(∅) cannot<br>be told from 0", row, col)
        for rank, finder in enumerate(finders):
            mine = here[here["found_with"] == finder].sort_values("units")
            shown = {"legendgroup": for_plotly(finder), "legendrank": rank}
            figure.add_trace(_f_band(mine, finder).update(showlegend=False, **shown), row, col)
            figure.add_trace(_f_line(mine, finder).update(showlegend=number == 0, **shown), row, col)
    # After the traces: Plotly draws none in panels that it takes for empty.
    for level in (0, 1):
        figure.add_hline(level, line={"color": FAINT, "width": 1, "dash": "dot"}, layer="below")
    ends = _shares(frame)
    ticks = (5, 10, 20, 50, 100) if ends[0] > 0.5 else (0.1, 1, 10, 100)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], range=ends)
    for col in range(1, across + 1):
        figure.update_xaxes(title_text=f"{_kind(curves)} kept (%)", row=(len(judges) - col) // across + 1, col=col)
    figure.update_yaxes(title_text="faithfulness f", col=1)
    view, cut = _f_view(frame)
    figure.update_yaxes(range=view)
    note = "bands: 95 % intervals over prompts; compare within a panel only"
    note = " · ".join([*_measured(curves), note])
    return add_frame(
        figure,
        "Faithfulness against size",
        note + (" · the axis is cut, a double click shows all" if cut else ""),
        template,
        height=height,
        hovermode="closest",
        margin={"t": 120},
        legend=BELOW | {"title": {"text": "found with"}},
    )


def _frame(curves: Any, columns: Sequence[str], name: str) -> pandas.DataFrame:
    frame = getattr(curves, name, curves)
    if not isinstance(frame, pandas.DataFrame):
        raise MismatchError(f"{type(curves).__name__} is not what faithfulness_curve gives; pass that, or its .{name}.")
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise MismatchError(
            f"the frame lacks the columns {', '.join(missing)}; pass the .{name} of faithfulness_curve."
        )
    if frame.empty:
        raise MismatchError("there are no curves to show; the frame has no rows.")
    return frame


def _kind(curves: Any) -> str:
    """What circuits are made of; a frame does not say."""
    level = getattr(curves, "level", None)
    return f"{level}s" if level in ("head", "neuron", "layer") else "units"


def _measured(curves: Any) -> list[str]:
    """The model and what m is, as far as they are known: a frame does not say."""
    source, metric = getattr(curves, "source", None), getattr(curves, "metric", None)
    told = [for_plotly(source.name)] if source is not None else []
    return [*told, f"m: {shown_metric(metric).name}"] if isinstance(metric, str) else told


def _in_order(names: "pandas.Series[Any]") -> list[str]:
    return sorted(map(str, names.unique()), key=method_order)


def _judged(frame: pandas.DataFrame, judge: str) -> str:
    """A judge, and what ablating everything with it does: without that no f says anything."""
    loss = _loss(frame, judge)
    return f"judged with {for_plotly(judge, 24)}" + (f"<br>m(M) {loss[0]:.3g}, m(∅) {loss[1]:.3g}" if loss else "")


def _loss(frame: pandas.DataFrame, judge: str) -> tuple[float, float] | None:
    """m(M) and m(∅), where the frame has them."""
    if "m_model" not in frame.columns or "m_empty" not in frame.columns:
        return None
    first = frame[frame["judged_with"] == judge].iloc[0]
    return float(first["m_model"]), float(first["m_empty"])


def _say_in_panel(figure: go.Figure, text: str, row: int, col: int) -> None:
    # On domains: an annotation at numbers of a log axis would have to be their powers of ten.
    figure.add_annotation(
        text=text,
        x=0.5,
        y=0.5,
        xref="x domain",
        yref="y domain",
        showarrow=False,
        font={"color": FAINT},
        row=row,
        col=col,
    )


def _f_line(mine: pandas.DataFrame, finder: str) -> go.Scatter:
    return go.Scatter(
        x=mine["percent"].tolist(),
        y=mine["f"].tolist(),
        customdata=[_f_told(row) for row in mine.to_dict("records")],
        name=for_plotly(finder),
        mode="lines+markers",
        line=line_of(finder),
        marker={"symbol": symbol_of(finder), "size": 6},
        hovertemplate=f"<b>found with {for_plotly(finder)}</b><br>%{{customdata}}<extra></extra>",
    )


def _f_told(row: Mapping[Any, Any]) -> str:
    def number(name: str) -> str:
        return f"{row[name]:.4g}" if name in row and not pandas.isna(row[name]) else "?"

    return (
        f"{row['percent']:.3g} % kept: {row['units']:,} units<br>f {number('f')} [{number('low')}, {number('high')}]"
        f"<br>m(C) {number('m_circuit')}, m(M) {number('m_model')}, m(∅) {number('m_empty')}"
    )


def _f_band(mine: pandas.DataFrame, finder: str) -> go.Scatter:
    known = mine.dropna(subset=[name for name in ("low", "high") if name in mine.columns])
    if not {"low", "high"} <= set(mine.columns):
        known = mine.iloc[:0]
    percent = known["percent"].tolist()
    return go.Scatter(
        x=[*percent, *reversed(percent)],
        y=[*known.get("low", []), *reversed(list(known.get("high", [])))],
        name=f"{for_plotly(finder)}, interval",
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(line_of(finder)["color"]),
        hoverinfo="skip",
    )


def _shares(frame: pandas.DataFrame) -> tuple[float, float]:
    """The ends of the logarithmic axis, in powers of ten."""
    return float(np.log10(frame["percent"].min())) - 0.1, 2.1


def _f_view(frame: pandas.DataFrame) -> tuple[tuple[float, float], bool]:
    """From where to where f is shown at first, and whether that cuts a line: f has no bounds."""
    known = frame["f"].dropna()
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    view = max(min(low, 0.0), -1.0) - 0.1, min(max(high, 1.0), 2.0) + 0.1
    return view, low < view[0] or high > view[1]


def pair_map(curves: Any, measure: Literal["cpr", "cmd"] = "cpr", *, template: Any = LENS_TEMPLATE) -> go.Figure:
    """How well circuits do, by the center they were found with and the one they are judged with.

    Colours are ranks within a column, as each judge has an f of its own: numbers of two columns cannot be compared.
    "cpr" is the area under f, more is better; "cmd" the area between f and 1, less is better. Above each column stands
    what ablating everything costs there.
    """
    title, better = choose(measure, _MEASURES, "measure")
    pairs = _frame(curves, ("found_with", "judged_with", measure), "pairs")
    finders, judges = _in_order(pairs["found_with"]), _in_order(pairs["judged_with"])
    table = pairs.pivot(index="found_with", columns="judged_with", values=measure).loc[finders, judges]
    # 1 is the best of a column; of equals each gets the better rank.
    ranks = table.rank(ascending=better == "less", method="min")
    among = ranks.notna().sum()
    told = [[_pair_told(table, ranks, finder, judge, int(among[judge])) for judge in judges] for finder in finders]
    heads = [f"{for_plotly(judge, 16)}{_all_ablated(pairs, judge)}" for judge in judges]
    last = max(len(finders), 2)
    figure = go.Figure(
        go.Heatmap(
            z=ranks.to_numpy(dtype=np.float32),
            x=list(range(len(judges))),
            y=list(range(len(finders))),
            text=table.map(lambda value: "" if np.isnan(value) else f"{value:.3g}").to_numpy(),
            texttemplate="%{text}",
            customdata=told,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=3,
            ygap=1,
            colorscale="Cividis",
            reversescale=True,
            zmin=1,
            zmax=last,
            colorbar={
                "title": {"text": "place in its column", "side": "right"},
                "tickvals": [1, last],
                "ticktext": ["best", "last"],
                "thickness": 14,
                "outlinewidth": 0,
            },
        )
    )
    # By number and not by name, as two names may look alike once they are made safe.
    figure.update_xaxes(
        title_text="judged with",
        side="top",
        showgrid=False,
        ticks="",
        tickvals=list(range(len(judges))),
        ticktext=heads,
    )
    figure.update_yaxes(
        title_text="found with",
        autorange="reversed",
        showgrid=False,
        ticks="",
        tickvals=list(range(len(finders))),
        ticktext=[for_plotly(finder, 24) for finder in finders],
    )
    return add_frame(
        figure,
        f"{title} of every pair of centers",
        f"{better} is better; compare within a column only"
        + (" · under each judge: what ablating everything changes" if _loss(pairs, judges[0]) else ""),
        template,
        height=max(320, 220 + 44 * len(finders)),
        margin={"t": 150, "b": 30},
    )


_MEASURES = {"cpr": ("CPR", "more"), "cmd": ("CMD", "less")}


def _pair_told(table: pandas.DataFrame, ranks: pandas.DataFrame, finder: str, judge: str, among: int) -> str:
    names = f"found with {for_plotly(finder)}, judged with {for_plotly(judge)}"
    value, rank = table[judge][finder], ranks[judge][finder]
    return f"{names}<br>" + ("no f" if np.isnan(value) else f"{value:.4g}, place {rank:.0f} of {among}")


def _all_ablated(frame: pandas.DataFrame, judge: str) -> str:
    loss = _loss(frame, judge)
    return f"<br>{loss[1] - loss[0]:+.3g}" if loss else ""


# ---------------------------------------------------------------------- diagram


def circuit_diagram(
    circuit: "Circuit", effects: Effects | None = None, edges: Any = None, *, template: Any = LENS_TEMPLATE
) -> go.Figure:
    """Which units a circuit keeps: layers from below, heads in a row, MLPs beside them.

    With `effects` a unit is as large as its share of what ablating everything does; blue ones hold the metric back.
    Of `edges`, what `edge_effects` gives, the strongest between kept units are drawn.

    >>> from ablation_lens import circuits, load_model
    >>> circuit = circuits.Circuit.of_heads(["L0.H1", "L2.H3"], load_model("tiny-opt"), sites=["z", "mlp"])
    >>> [f"{trace.name}: {len(trace.x)}" for trace in circuit_diagram(circuit).data]
    ['ablated: 18', 'kept: 2']
    """
    nodes = _nodes(circuit, effects)
    drawn = [] if edges is None else _edges(edges, {node.name for node in nodes if node.kept})
    ends = {end for edge in drawn for end in (edge.writer, edge.reader)}
    layers = max((node.layer for node in nodes), default=0) + 1
    across = _places(_columns({node.column for node in nodes}))
    places = {node.name: (across[node.column], float(node.layer)) for node in nodes}
    middle = (sum(map(_is_head, across)) - 1) / 2
    beyond = dict(zip(_BEYOND, ((max(middle, 0.0), -1.0), (max(middle, 0.0), float(layers))), strict=True))
    places |= {name: place for name, place in beyond.items() if name in ends}
    figure = go.Figure()
    for trace in _edge_traces(drawn, places):
        figure.add_trace(trace)
    for trace in _node_traces(nodes, places, effects):
        figure.add_trace(trace)
    for name in beyond.keys() & ends:
        x, y = places[name]
        outwards = "bottom" if name == "logits" else "top"
        figure.add_annotation(x=x, y=y, text=name, showarrow=False, yanchor=outwards, bordercolor=FAINT, borderpad=3)
    first, last = min(y for _, y in places.values()), max(y for _, y in places.values())
    _name_columns(figure, across, "head" if middle > 0 else "")
    figure.update_xaxes(showline=False, ticks="", range=[-0.7, max(across.values()) + 0.7])
    figure.update_yaxes(
        title_text="layer",
        showline=False,
        ticks="",
        gridcolor=GRID,
        tickvals=list(range(layers)),
        ticktext=[f"L{layer}" for layer in range(layers)],
        range=[first - 0.6, last + 0.6],
    )
    kept = sum(node.kept > 0 for node in nodes)
    said = f"{kept:,} of {len(nodes):,} units kept, {100 * circuit.share:.3g} % of the neurons"
    return add_frame(
        figure,
        "Circuit",
        (f"{for_plotly(circuit.source.name)} · " if circuit.source is not None else "") + said,
        template,
        height=int(max(340, 190 + 44 * (last - first + 1))),
        hovermode="closest",
        legend=BELOW,
    )


@dataclass(frozen=True)
class _Node:
    """A head or what a layer has one of: which part of it is kept, and its share of m(∅) − m(M)."""

    layer: int
    column: str
    name: str
    kept: float
    neurons: int
    share: float
    told: str

    @property
    def hover(self) -> str:
        whole = {0.0: "ablated", 1.0: "kept"}
        part = f"{round(self.kept * self.neurons):,} of {self.neurons:,} neurons kept"
        return f"<b>{self.name}</b>, {whole.get(self.kept, part)}{self.told}"


def _nodes(circuit: "Circuit", effects: Effects | None) -> list[_Node]:
    known: dict[tuple[int, str], _Cell] = {}
    metric = None
    if effects is not None:
        if effects.level == "layer":
            raise MismatchError("effects of layers say nothing of a head; give those of heads or neurons.")
        metric = shown_metric(effects.metric)
        known = {(cell.layer, cell.column): cell for cell in _by_head(effects)[0]}
    nodes = []
    for site, mask in circuit.kept.items():
        layers, heads, neurons = mask.shape
        for layer in range(layers):
            for head in range(heads):
                column = _column(site, head)
                cell = known.get((layer, column))
                share = 0.0 if cell is None or np.isnan(cell.share) else cell.share
                told = "" if cell is None or metric is None else "<br>" + cell.told(metric).partition("<br>")[2]
                kept = float(mask[layer, head].double().mean())
                nodes.append(_Node(layer, column, unit_name(site, (layer, head)), kept, neurons, share, told))
    return nodes


def _node_traces(
    nodes: Sequence[_Node], places: Mapping[str, tuple[float, float]], effects: Effects | None
) -> list[go.Scatter]:
    most = max((abs(node.share) for node in nodes), default=0.0) or 1.0
    groups: dict[str, list[_Node]] = {"ablated": [], "kept": [], "kept, holds it back": []}
    for node in nodes:
        groups["ablated" if not node.kept else "kept" if node.share >= 0 else "kept, holds it back"].append(node)
    traces = []
    for name, here in groups.items():
        if not here:
            continue
        kept = name != "ablated"
        sizes = [22.0 if effects is None else 14 + 18 * (abs(node.share) / most) ** 0.5 for node in here]
        small = [7.0 if effects is None else 6 + 12 * (abs(node.share) / most) ** 0.5 for node in here]
        color = {"kept": WITH, "kept, holds it back": AGAINST}.get(name, "rgba(0,0,0,0)")
        if effects is None and kept:
            color = INK
        traces.append(
            go.Scatter(
                x=[places[node.name][0] for node in here],
                y=[places[node.name][1] for node in here],
                mode="markers+text" if kept and len(here) <= _MOST_NAMED else "markers",
                name=name,
                text=[node.name for node in here],
                textposition="top center",
                cliponaxis=False,
                textfont={"size": 10, "color": FAINT},
                marker={
                    "symbol": ["circle" if _is_head(node.column) else "square" for node in here],
                    "size": sizes if kept else small,
                    "color": color,
                    "opacity": [0.35 + 0.65 * node.kept for node in here] if kept else 1,
                    "line": {"color": INK if kept else FAINT, "width": 1},
                },
                customdata=[node.hover for node in here],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    return traces


@dataclass(frozen=True)
class _Edge:
    """From a unit to one that reads it, in whichever ways."""

    writer: str
    reader: str
    size: float
    told: str


def _edges(given: Any, kept: Collection[str]) -> list[_Edge]:
    """Those between units that are kept, the strongest last, so that it is drawn over the others."""
    frame = given.table() if hasattr(given, "table") else given
    columns = ("from", "to", "effect")
    if not isinstance(frame, pandas.DataFrame) or not set(columns) <= set(frame.columns):
        raise MismatchError("edges are what edge_effects gives, or a table with the columns from, to and effect.")
    kinds = frame["kind"] if "kind" in frame.columns else frame["to"].map(lambda name: "")
    found: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for writer, reader, effect, kind in zip(frame["from"], frame["to"], frame["effect"], kinds, strict=True):
        ends = _end(writer), _end(reader)
        if all(end in kept or end in _BEYOND for end in ends):
            found.setdefault(ends, []).append((for_plotly(kind, 8), float(effect)))
    edges = []
    for (writer, reader), ways in found.items():
        said = f"{writer} → {reader} {sum(effect for _, effect in ways):+.4g}"
        if len(ways) > 1 or ways[0][0] in ("q", "k", "v"):
            said += f" ({', '.join(f'{kind} {effect:+.3g}' for kind, effect in ways)})"
        edges.append(_Edge(writer, reader, sum(abs(effect) for _, effect in ways), said))
    return sorted(edges, key=lambda edge: edge.size)[-_MOST_EDGES:]


def _end(name: object) -> str:
    """A unit's name, as nodes have it."""
    return str(name) if name in _BEYOND else unit_name(*parse_unit(str(name)))


def _edge_traces(edges: Sequence[_Edge], places: Mapping[str, tuple[float, float]]) -> list[go.Scatter]:
    """A line each, as wide and as opaque as its effect is large."""
    most = max((edge.size for edge in edges), default=0.0) or 1.0
    traces = []
    for edge in edges:
        ends = [places[edge.writer], places[edge.reader]]
        share = edge.size / most
        traces.append(
            go.Scatter(
                x=[x for x, _ in ends],
                y=[y for _, y in ends],
                mode="lines",
                line={"width": 0.75 + 3.5 * share, "color": FAINT},
                opacity=0.2 + 0.6 * share,
                showlegend=False,
                name=f"{edge.writer} → {edge.reader}",
                hovertemplate=f"{edge.told}<extra></extra>",
            )
        )
    return traces

"""The look that all figures share, and the words on them."""

import itertools
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from operator import index
from typing import Any

import plotly.graph_objects as go

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_plotly
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.palette import METHOD_COLORS, color_of
from ablation_lens.sites import neuron_name, parse_place

INK, FAINT, GRID = "#1F2933", "#52606D", "#E4E7EB"

SERIES = ("#8A9BB0", "#DDCC77", "#AA4499", "#44AA99", "#332288", "#882255")
"""What distributions are filled with: no colour of a method among them."""

SEQUENTIAL, DIVERGING = "Cividis", "RdBu_r"

_AXIS = {
    "showgrid": True,
    "gridcolor": GRID,
    "zeroline": False,
    "showline": True,
    "linecolor": FAINT,
    "ticks": "outside",
    "tickcolor": FAINT,
    "automargin": True,
    "title": {"standoff": 8},
}


class _LensTemplate(go.layout.Template):  # type: ignore[misc]
    """A template that `help` shows by its name: as a default it would fill a screen in every signature."""

    def __repr__(self) -> str:
        return "LENS_TEMPLATE"


LENS_TEMPLATE = _LensTemplate(
    layout={
        "font": {
            "family": "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif",
            "size": 13,
            "color": INK,
        },
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(SERIES),
        "title": {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12},  # in pixels, however high the figure
            "font": {"size": 17},
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": INK}},
        "legend": {"bgcolor": "rgba(255,255,255,0.8)"},
        "margin": {"l": 70, "r": 20, "t": 80, "b": 60},
    }
)
"""The look of every figure here. Pass another as `template=`, or a name that Plotly knows, such as "plotly_dark"."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# As many as `palette` has methods: without colours each still has a symbol of its own.
_SYMBOLS = (
    "circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down", "pentagon", "hexagram",
    "bowtie", "hourglass", "hexagon", "octagon", "star-square", "star-diamond",
)  # fmt: skip
_THICK = {"peak"}


def line_of(method: str) -> dict[str, Any]:
    """Colour, dash and width of a method's line; without colours, dash and symbol tell methods apart.

    >>> line_of("peak")
    {'color': '#D55E00', 'dash': 'solid', 'width': 3}
    """
    place = _place(method)
    dash = "solid" if method in _THICK else _DASHES[place % len(_DASHES)]
    return {"color": color_of(method), "dash": dash, "width": 3 if method in _THICK else 2}


def symbol_of(method: str) -> str:
    """The marker of a method's points."""
    return _SYMBOLS[_place(method) % len(_SYMBOLS)]


def _place(method: str) -> int:
    known = list(METHOD_COLORS)
    # `hash` changes with the process. Reversed, as `color_of` takes the plain checksum modulo six, and dashes are six:
    # all names of one colour would have one dash.
    return known.index(method) if method in known else zlib.crc32(method[::-1].encode())


def method_order(method: str) -> tuple[int, str]:
    """Sorts methods: the package's own in their order, then others by name."""
    known = list(METHOD_COLORS)
    return (known.index(method) if method in known else len(known), method)


def faint(color: str) -> str:
    """A color as a band is filled with it."""
    # The palette is #RRGGBB throughout; a name such as "red" would fail here.
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def lines(name: object, width: int, most: int = 6) -> str:
    """As `escaping.for_plotly`, over several lines where it is long.

    >>> lines("tiny-opt on stdlib (10,000 tokens)", 20)
    'tiny-opt on stdlib<br>(10,000 tokens)'
    """
    # Wrapped before it is escaped, or an entity such as &lt; could be cut in two.
    broken = textwrap.wrap(" ".join(str(name).split()), width) or [""]
    kept = broken if len(broken) <= most else [*broken[: most - 1], " ".join(broken[most - 1 :])]
    return "<br>".join(for_plotly(line, width) for line in kept)


def name_of(place: Sequence[int], statistics: ActivationStatistics) -> str:
    """How people write a neuron of these statistics."""
    layer, head, dim = place
    return neuron_name(layer, head, dim, statistics.site)


def neurons_at(place: str | Sequence[int], statistics: ActivationStatistics) -> list[tuple[int, int, int]]:
    """The neuron, or all of the head or layer, that a name or numbers give, if these statistics have it."""
    if not isinstance(place, str):
        # NumPy's numbers, and tensors of one, are numbers here.
        with suppress(TypeError):
            place = tuple(map(index, place))
            if len(place) == 3 and min(place) >= 0 and (statistics.site.has_heads or place[1] == 0):
                place = name_of(place, statistics)  # what an error then says
    found = parse_place(place, statistics.shape, statistics.site)
    layers, heads, dims = _all_of(found, statistics.shape)
    return list(itertools.product(layers, heads, dims))


def _all_of(place: Sequence[int], shape: Sequence[int]) -> Iterator[Iterable[int]]:
    """The numbers along each axis: one where it is given, all where not."""
    for axis, size in enumerate(shape):
        yield [place[axis]] if axis < len(place) else range(size)


def layer_at(layer: int | str, statistics: ActivationStatistics) -> int:
    """A layer, given by number or as "L3", if these statistics have it."""
    try:
        place = parse_place(layer, None, statistics.site) if isinstance(layer, str) else (index(layer),)
    except TypeError:
        place = ()
    if len(place) != 1:
        raise MismatchError(f"{layer!r} is not a layer; give its number, or write it like L3.")
    if not 0 <= place[0] < statistics.shape[0]:
        raise MismatchError(
            f"layer {place[0]} does not exist: this model has {statistics.shape[0]} layers, counted from 0."
        )
    return place[0]


def model_name(statistics: ActivationStatistics) -> str:
    """The model's name, as text."""
    return for_plotly(statistics.provenance.model.name)


def capitalise(words: str) -> str:
    """The first letter upper case, the others as they are."""
    return words[:1].upper() + words[1:]


def activation_title(statistics: ActivationStatistics) -> str:
    """The title of an axis of activations, which are in units of their own."""
    return f"{statistics.site.value} (activation units)"


BELOW = {"orientation": "h", "x": 0.5, "xanchor": "center", "yref": "container", "y": 0, "yanchor": "bottom"}
"""A legend under everything, where as many lines as it takes push the panels up."""

DENSITY_TITLE = "density (1 / activation unit)"


def add_frame(figure: go.Figure, title: str, subtitle: str, template: Any, **layout: Any) -> go.Figure:
    """A figure with its title and look."""
    figure.update_layout(
        template=template,
        title={"text": title, "subtitle": {"text": subtitle, "font": {"size": 12, "color": FAINT}}},
        **layout,
    )
    return figure


def density_axis(log: bool) -> dict[str, Any]:
    """A density axis, linear or logarithmic; the latter with a label per power of ten."""
    # The mode of the ticks is said outright: Plotly would keep the one of the other axis after a switch.
    mode = {"type": "log", "tickmode": "linear", "dtick": 1} if log else {"type": "linear", "tickmode": "auto"}
    return mode | {"tickformat": "~g", "rangemode": "nonnegative"}


def linear_or_log(axes: Sequence[str], log: bool, above: int = 6) -> list[dict[str, Any]]:
    """Two buttons, so many pixels above the panels, that switch density axes: for `layout.updatemenus`."""
    return [
        {
            "type": "buttons",
            "direction": "right",
            "active": int(log),
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yanchor": "bottom",
            "pad": {"b": above},
            "font": {"size": 11},
            "bgcolor": "white",
            "bordercolor": GRID,
            "showactive": True,
            "buttons": [
                {
                    "label": label,
                    "method": "relayout",
                    "args": [
                        {
                            f"{axis}.{key}": value
                            for axis in axes
                            # A range left from the linear axis would be read as powers of ten.
                            for key, value in (density_axis(label == "log") | {"autorange": True}).items()
                        }
                    ],
                }
                for label in ("linear", "log")
            ],
        }
    ]

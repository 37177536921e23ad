"""One fixed colour per center and method, the same in every figure, page and report (after Okabe and Ito)."""

METHOD_COLORS = {
    "zero": "#000000",
    "mean": "#0072B2",
    "median": "#56B4E9",
    "peak": "#D55E00",
    "peak-smooth": "#CC79A7",
    "peak-kde": "#009E73",
    "half-sample": "#E69F00",
    "peak-trimmed": "#8C564B",
    "resample-characters": "#7F7F7F",
    "resample-tokens": "#A6761D",
    "resample-generated": "#666633",
    "resample-pixels": "#B2912F",
}
"""Method → colour on a light background; what users register themselves has none here."""

DARK_METHOD_COLORS = METHOD_COLORS | {"zero": "#BBBBBB"}
"""The same on a dark background, where black would be lost."""

OTHER_COLOR = "#9467BD"
"""Of centers that users registered."""


def method_color(name: str, *, dark: bool = False) -> str:
    """The colour of a center or method.

    >>> method_color("peak"), method_color("zero", dark=True), method_color("of my own")
    ('#D55E00', '#BBBBBB', '#9467BD')
    """
    return (DARK_METHOD_COLORS if dark else METHOD_COLORS).get(name, OTHER_COLOR)

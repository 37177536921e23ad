"""One fixed colour per center and method, the same in every figure, page and report (after Okabe and Ito)."""

import zlib

METHOD_COLORS: dict[str, str] = {
    "zero": "#000000",
    "mean": "#0072B2",
    "median": "#56B4E9",
    "peak": "#D55E00",
    "peak-smooth": "#CC79A7",
    "peak-kde": "#009E73",
    "half-sample": "#E69F00",
    "peak-trimmed": "#8C564B",
    "optimal": "#6A3D9A",
    "optimal-kl": "#B15FD0",
    "sensitivity-mean": "#1B7A3D",
    "sequential-mean": "#3F51B5",
    "resample-characters": "#7F7F7F",
    "resample-tokens": "#A6761D",
    "resample-generated": "#666633",
    "resample-pixels": "#B2912F",
}
"""Method → colour on a light background."""

DARK_METHOD_COLORS = METHOD_COLORS | {"zero": "#BBBBBB"}
"""The same on a dark background, where black would be lost."""

_FURTHER = ("#332288", "#882255", "#44AA99", "#999933", "#AA4499", "#117733")


def color_of(method: str, *, dark: bool = False) -> str:
    """The method's colour. A center of the user's own gets one by its name, so the same in every session.

    >>> color_of("peak"), color_of("zero", dark=True), color_of("first-quartile")
    ('#D55E00', '#BBBBBB', '#117733')
    """
    known = DARK_METHOD_COLORS if dark else METHOD_COLORS
    # crc32 and not hash(), which differs from process to process for strings.
    return known.get(method) or _FURTHER[zlib.crc32(method.encode()) % len(_FURTHER)]

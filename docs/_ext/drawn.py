"""How notebooks on the site show figures: data that `figures.js` draws, in place of a copy of plotly.js in each."""

from html import escape
from typing import Any

import plotly.io
from plotly.io.base_renderers import MimetypeRenderer


class Drawn(MimetypeRenderer):
    """A figure as its data."""

    def to_mimebundle(self, figure: dict[str, Any]) -> dict[str, str]:
        """An element of the page."""
        layout = figure["layout"]
        title = layout.get("title", {}).get("text") or "A figure"
        # `</` would end the script that holds it.
        held = plotly.io.to_json(figure, validate=False).replace("</", "<\\/")
        return {
            "text/html": f'<div class="drawn" role="figure" aria-label="{escape(title)}" '
            f'style="height: {layout.get("height") or 450}px"><script type="application/json">{held}</script></div>'
        }


def use() -> None:
    """What a notebook calls "notebook" is this renderer from now on."""
    plotly.io.renderers["notebook"] = Drawn()

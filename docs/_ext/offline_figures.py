"""Pages with figures get plotly.js from the site itself, as it lies in the plotly that is installed."""

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from plotly.offline import get_plotlyjs
from sphinx.application import Sphinx

SCRIPT = "plotly.min.js"


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None) -> None:
    """Pages without figures do not load what draws them."""
    if tree is not None and any('class="drawn"' in node.astext() for node in tree.findall(nodes.raw)):
        app.add_js_file(SCRIPT, loading_method="defer")
        app.add_js_file("figures.js", loading_method="defer")


def write_script(app: Sphinx) -> None:
    """Before pages are written, as Sphinx puts a checksum of it in their addresses of it."""
    if app.builder.format == "html":
        script = Path(app.outdir) / "_static" / SCRIPT
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(get_plotlyjs(), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    # The kernels that run notebooks find `drawn` by it.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    app.connect("builder-inited", write_script)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Putting the page together: one HTML file that asks nobody for anything.

Outside text (tokens, file and model names) enters as JSON only, and the scripts show it through `textContent`. A
content security policy lets nothing run but the scripts written here, each known by its hash, and nothing load.
"""

import base64
import hashlib
import json
import re
from importlib.resources import files
from typing import Any

from ablation_lens.escaping import for_html

SCRIPTS = (
    "text.js",
    "names.js",
    "decode.js",
    "measures.js",
    "filter.js",
    "state.js",
    "theme.js",
    "heatmap.js",
    "curve.js",
    "histogram.js",
    "list.js",
    "examples.js",
    "whole.js",
    "damage.js",
    "exports.js",
    "notes.js",
    "panel.js",
    "app.js",
)
"""In the order they run; each hangs its functions on one global object, `lens`."""

_MARK = re.compile(r"\{\{ (\w+) \}\}")


def asset(name: str) -> str:
    """The text of one of the page's own files."""
    return (files("ablation_lens.explorer") / "assets" / name).read_text(encoding="utf-8")


def embedded_json(value: Any) -> str:
    r"""JSON that can stand inside a `<script>` element: it holds no `<`, `>`, `&` nor line separator as such.

    >>> embedded_json({"token": "</script><!--\u2028"})
    '{"token":"\\u003c/script\\u003e\\u003c!--\\u2028"}'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def assemble(title: str, payload: dict[str, Any], blobs: dict[str, str]) -> str:
    """The whole page: `payload` is there at once, `blobs` (base64 text) are decoded when they are needed."""
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), *(asset(name) for name in SCRIPTS)]
    # The parser turns CR LF into LF before the browser takes the hash.
    scripts = [_closed(script.replace("\r\n", "\n")) for script in scripts]
    # After all changes: a hash must be of the text exactly as it stands in the page.
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        # Styles may be inline, as Plotly sets them while it draws.
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": for_html(title),
        "styles": asset("style.css"),
        "payload": embedded_json(payload),
        # Of this type a script is only data: it does not run, and needs no hash.
        "blobs": "\n".join(
            f'<script type="text/plain" id="{for_html(name)}">{text}</script>' for name, text in blobs.items()
        ),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # One pass: what is put in is not searched for marks again.
    # A function, as `sub` would interpret the backslashes of a text, such as those of \u003c.
    return _MARK.sub(lambda match: parts[match[1]], asset("page.html"))


def frame(page: str, height: int) -> str:
    """The page inside a notebook's cell: an origin of its own, which may run scripts and offer downloads."""
    return (
        # No allow-same-origin: together with allow-scripts it would let the page reach the notebook.
        f'<iframe srcdoc="{for_html(page)}" sandbox="allow-scripts allow-downloads" '
        f'title="ablation-lens explorer" style="width:100%;height:{int(height)}px;border:0;border-radius:6px"></iframe>'
    )


def _closed(script: str) -> str:
    """A script that cannot end its own element early."""
    # Inside a JavaScript string the added backslash changes nothing.
    return re.sub(r"</(?=script)|<!(?=--)", lambda match: match[0][0] + "\\" + match[0][1], script, flags=re.IGNORECASE)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")

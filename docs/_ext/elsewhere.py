"""Pages whose text lies elsewhere in the repository, and links that lead there.

A page of `docs/` may stand for a file outside: the site then shows that file, and no copy of it is committed. Links in
pages are relative paths within the repository, as they work where no site is built; those that leave `docs/` are
pointed at the page that shows their target, and files that no page shows are downloaded.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHOWN_BY = {
    "README.md": "readme",
    "CHANGELOG.md": "changelog",
    "benchmarks/RESULTS.md": "benchmarks",
    "ablation_lens/zoo/README.md": "reference/zoo",
    **{f"notebooks/{path.name}": f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))},
    "notebooks": "notebooks/index",
}
"""Which page shows a file of the repository."""

TEXT_OF = {
    page: path
    for path, page in SHOWN_BY.items()
    if page.startswith(("readme", "changelog", "benchmarks", "notebooks/0"))
}
"""Pages that are replaced by the file they stand for."""

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def as_markdown(notebook: Path) -> str:
    """A notebook as MyST-NB reads it from Markdown, to be run when the page is built."""
    head = ["---", "file_format: mystnb", "kernelspec:", "  name: python3", "  display_name: Python 3", "---", ""]
    cells = ["```{code-cell} ipython3\n:tags: [remove-cell]\nimport drawn\n\ndrawn.use()\n```\n"]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        cells.append(source if cell["cell_type"] == "markdown" else f"```{{code-cell}} ipython3\n{source}\n```")
    return "\n".join(head) + "\n\n+++\n\n".join(cells) + "\n"


def relinked(text: str, origin: Path, page: str) -> str:
    """The text of a page, its links to files outside `docs/` led to the pages that show them."""

    def lead(link: re.Match[str]) -> str:
        target = link[2]
        if re.match(r"[a-z]+:", target):
            return link[0]
        path = Path(os.path.normpath(origin.parent / target))
        if path.is_relative_to(DOCS):
            found = path
        elif (shown := SHOWN_BY.get(str(path.relative_to(ROOT)))) is not None:
            found = DOCS / f"{shown}.md"
        else:
            found = path  # a file that no page shows is downloaded
        return f"{link[1]}{os.path.relpath(found, (DOCS / page).parent)}{link[3]}"

    # Code may hold what looks like a link.
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("`") else LINK.sub(lead, part) for part in parts)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """What Sphinx reads as a page."""
    path = Path(app.env.doc2path(page))
    if page in TEXT_OF:
        path = ROOT / TEXT_OF[page]
        app.env.note_dependency(path)
        source[0] = as_markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    source[0] = relinked(source[0], path, page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

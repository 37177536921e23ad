"""What `forget`, `modularity` or `transfer` left in a folder, as one page.

Each has a module here with a function `blocks`: what a reader sees of its result, in order.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ablation_lens.errors import FileFormatError
from ablation_lens.report.page import Heading, Page

RESULTS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "forget": ("Unlearning by selective pruning", "pruning", "Unlearning"),
        "modularity": ("Modularity", "modularity", "Modularity"),
        "transfer": ("What one token carries", "transfer", "Transfer"),
    }
)
"""The command, which is the name of its file, too → its title, and the module and class of its result."""


def write_experiment_report(folder: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Write report.html and report.md about every result of a folder; returns where."""
    target = folder if out is None else out
    return make_experiment_report(folder).write(target / "report.html", target / "report.md")


def make_experiment_report(folder: Path) -> Page:
    """The page about every result of a folder."""
    found = {name: folder / f"{name}.safetensors" for name in RESULTS if (folder / f"{name}.safetensors").exists()}
    if not found:
        raise FileFormatError(
            f"{folder} holds no result of {', '.join(RESULTS)}; run one of these commands with this folder. What "
            "`ablation-lens experiment` leaves there is a table and a page already."
        )
    titles = [RESULTS[name][0] for name in found]
    page = Page(titles[0] if len(titles) == 1 else "Experiments")
    for name, path in found.items():
        title, module, kind = RESULTS[name]
        result: Any = getattr(import_module(f"ablation_lens.experiments.{module}"), kind).load(path)
        if len(found) > 1:
            page.add(Heading(title))
        for block in import_module(f"ablation_lens.report.{name}").blocks(result):
            page.add(block)
    return page

"""Imports point one way: a module imports only from rows above its own in this list."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

ROWS = [
    "errors",
    "choices",
    "palette",
    "records",
    "sites",
    "memory",
    "columns",
    "grids",
    "counting",
    "grid_counts",
    "histogram",
    "trimmed",
    "moments",
    "shapes",
    "centers",
    "storage",
    "selection",
    "copying",
    "baking",
    "ablation",
    "statistics",
    "zoo",
    "checkpoints",
    "adapters",
    "attention_steps",
    "fast_attention",
    "bridge_attention",
    "models",
    "corpora",
    "plans",
    "tasks",
    "progress",
    "forward",
    "collection",
    "examples",
    "random_inputs",
    "resampling",
    "methods",
    "evaluation",
    "locks",
    "run_folder",
    "study_settings",
    "intervals",
    "group_labels",
    "results",
    "table2",
    "bench",
    "study_run",
    "study",
    "plots",
    "explorer",
    "pages",
    "report",
    "circuits",
    "cli_study",
    "demo",
    "cli",
    "__main__",
]


def sources():
    """(row, path) of every module of the package, `adapters/` included."""
    for path in sorted((ROOT / "ablation_lens").rglob("*.py")):
        parts = path.relative_to(ROOT / "ablation_lens").with_suffix("").parts
        if parts != ("__init__",):  # the root only re-exports, lazily
            yield parts[0], ".".join(parts), path
    for path in sorted((ROOT / "adapters").rglob("*.py")):
        yield "adapters", f"adapters.{path.stem}", path


def imported_rows(tree):
    """Rows imported anywhere in a module, also inside functions."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "ablation_lens" and len(parts) > 1 and parts[1] in ROWS:
                yield parts[1]


def wrong_way(row, tree):
    return sorted({other for other in imported_rows(tree) if ROWS.index(other) > ROWS.index(row)})


def test_every_module_has_a_row():
    unknown = {row for row, _, _ in sources()} - set(ROWS)
    assert not unknown, f"add {unknown} to ROWS, where it belongs"


def test_imports_point_one_way():
    problems = {
        name: wrong
        for row, name, path in sources()
        # Training the zoo is a program of its own: it needs corpora, and nothing needs it.
        if (row != "zoo" or name == "zoo.__init__")
        and (wrong := wrong_way(row, ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert not problems, f"modules that import from rows below their own: {problems}"


def test_the_check_notices_an_import_the_wrong_way():
    assert wrong_way("sites", ast.parse("def f():\n    from ablation_lens.models import load_model")) == ["models"]
    assert wrong_way("models", ast.parse("from ablation_lens import sites")) == []


def test_only_sites_spells_a_hook_name():
    """Adapters define hook points as attributes; everything else asks `sites` for names."""
    spelled = {
        path.name
        for row, _, path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in ("attn.hook_z", "hook_z", "mlp.hook_post")
    }
    assert spelled == {"sites.py"}

"""The house: eight floors, each importing only from floors below, and nothing in a circle (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ablation_lens

ROOT = Path(__file__).parents[1]

FLOORS = (
    (
        *("errors", "names", "escaping", "interrupts", "palette", "progress", "records", "files", "sites", "hooked"),
        *("unhooked", "sending", "weights", "ranks", "memory"),
    ),
    ("ablation", "corpora", "zoo", "runs"),
    ("neurons", "models", "adapters", "tasks"),
    ("measure",),
    ("study", "circuits", "experiments"),
    ("plots", "explorer"),
    ("report",),
    ("cli",),
)
"""From the ground up. On the ground there are modules, above it packages."""

SIDEWAYS = {("models", "adapters"), ("explorer", "plots"), ("zoo.train", "corpora")}
"""Rooms that may look into a room on their own floor. (Training the zoo is a program of its own.)"""

AT_A_CALL = {("adapters.encoder", "models.load")}
"""`from_pretrained` asks for a model by the same function as everybody; no import of `adapters` needs `models`."""

NO_FLOOR = {"__init__", "__main__", "fast_attention", "centers", "metrics", "resampling"}
"""The root re-exports, lazily; the last three are other addresses of modules."""


def modules():
    """Name → path of every module of the package, `adapters/` included."""
    found = {}
    for folder, prefix in ((ROOT / "ablation_lens", ""), (ROOT / "adapters", "adapters.")):
        for path in sorted(folder.rglob("*.py")):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return {name: path for name, path in found.items() if name not in NO_FLOOR}


def imports(tree, known):
    """The modules that a module imports, also inside functions; not what only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, _, name = name.partition(".")
            while first == "ablation_lens" and name:
                if name in known:
                    yield name
                    break
                name = name.rpartition(".")[0]
        yield from imports(node, known)


def graph():
    known = modules()
    return {
        name: sorted(set(imports(ast.parse(path.read_text(encoding="utf-8")), known)) - {name})
        for name, path in known.items()
    }


def floor_of(name):
    room = name.split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def allowed(importer, imported):
    """Whether one module may import another."""
    here, there = importer.split(".")[0], imported.split(".")[0]
    if here == there or floor_of(importer) > floor_of(imported) or floor_of(importer) == 0 == floor_of(imported):
        return True
    beside = any(importer.startswith(a) and there == b for a, b in SIDEWAYS)
    return (floor_of(importer) == floor_of(imported) and beside) or (importer, imported) in AT_A_CALL


def circle(arrows):
    """A list of modules that import each other in turn; empty when there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in arrows.get(name, ()):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    return next((found for name in arrows if (found := visit(name))), [])


def test_every_module_is_on_a_floor():
    rooms = {room for floor in FLOORS for room in floor}
    assert {name.split(".")[0] for name in modules()} <= rooms


def test_imports_point_downwards():
    wrong = [(name, other) for name, others in graph().items() for other in others if not allowed(name, other)]
    assert not wrong, f"imports from a floor that is not below: {wrong}"


def test_there_is_no_circle():
    arrows = {name: [o for o in others if (name, o) not in AT_A_CALL] for name, others in graph().items()}
    assert circle(arrows) == []


def test_the_checks_notice_what_they_look_for():
    known = {"sites", "models.load", "study.run", "study.study", "plots.maps", "explorer"}
    upward = ast.parse("def f():\n    from ablation_lens.models.load import load_model")
    assert list(imports(upward, known)) == ["models.load"]
    assert not allowed("sites", "models.load")
    assert allowed("models.load", "sites")
    assert allowed("explorer", "plots.maps")
    assert not allowed("plots.maps", "explorer")
    assert list(imports(ast.parse("if TYPE_CHECKING:\n    import ablation_lens.study.run"), known)) == []
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"]}) == ["a", "b", "c", "a"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_no_module_is_named_like_a_public_function_of_its_package():
    """Importing a submodule sets it as an attribute of its package, which would hide the function."""
    names, functions = {}, {"": set(ablation_lens.__all__)}
    for name, path in modules().items():
        package, _, own = name.rpartition(".")
        names.setdefault(package, set()).add(own)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                home = name if path.name == "__init__.py" else package
                functions.setdefault(home, set()).add(node.name)
    # `app` takes every command from its module, and the package shows none of them.
    functions.pop("cli", None)
    # Packages that the root shows as such.
    functions[""] -= {"adapters", "circuits", "corpora", "experiments", "plots", "zoo"}
    assert not {package: same for package, own in names.items() if (same := own & functions.get(package, set()))}


@pytest.mark.parametrize("package", sorted(name for name, path in modules().items() if path.name == "__init__.py"))
def test_every_package_says_why_it_exists_and_what_to_open(package):
    text = ast.get_docstring(ast.parse(modules()[package].read_text(encoding="utf-8")))
    assert text
    assert len(text.split("\n\n")[0]) < 200
    own = {name.rpartition(".")[2] for name in modules() if name.rpartition(".")[0] == package} - {"__main__"}
    assert {name for name in own if f"`{name}`" not in text and f"`{name}/`" not in text} == set()


def test_modules_that_the_root_shows_are_imported_from_there_too():
    import ablation_lens.centers
    import ablation_lens.metrics
    import ablation_lens.resampling
    from ablation_lens.measure import metrics, resampling
    from ablation_lens.neurons import centers

    assert ablation_lens.centers is centers is sys.modules["ablation_lens.centers"]
    assert ablation_lens.metrics is metrics
    assert ablation_lens.resampling is resampling


def test_only_sites_spells_a_hook_name():
    """Adapters define hook points as attributes; everything else asks `sites` for names."""
    spelled = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in ("attn.hook_z", "hook_z", "mlp.hook_post")
    }
    assert spelled == {"sites"}


@pytest.mark.parametrize("word", ["difflib"])
def test_only_names_looks_for_the_nearest(word):
    assert [name for name, path in modules().items() if word in path.read_text(encoding="utf-8")] == ["names"]


# ---------------------------------------------------------------------- in a fresh process


def imported_by(program, heavy):
    """Which of these modules a program has imported at its end."""
    end = f"\nimport sys; print(*sorted({set(heavy)!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program + end], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split() if result.stdout.strip() else []


def test_importing_the_package_and_asking_for_help_import_no_torch():
    program = (
        "import ablation_lens, sys\nsys.argv = ['ablation-lens', '--help']\nfrom ablation_lens.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert imported_by(program, ["torch", "transformers", "transformer_lens", "datasets", "numpy"]) == []


def test_reading_results_imports_nothing_that_runs_a_model():
    """The table, the figures and the report of a finished folder, on a machine that need not know the models."""
    program = f"""
import tempfile
import ablation_lens as al
from ablation_lens.report.study import write_report
from ablation_lens.study.table2 import make_table2
results = al.Results.load({str(ROOT / "tests/files/format-1/run")!r})
assert "RS1" in make_table2(results).markdown()
al.plots.figure_2(results).to_json()
with tempfile.TemporaryDirectory() as folder:
    page, _ = write_report(results.folder.path, folder)
    assert "Neurons of tiny-vit" in page.read_text(encoding="utf-8")
"""
    assert imported_by(program, ["transformer_lens", "transformers", "ablation_lens.adapters"]) == []

"""Which test files can tell one major of transformer-lens from another: those from which an import leads to it.

The two locks agree in everything else, so a file that never comes to transformer-lens need not run on both. Imports
inside functions count, also of what the package shows lazily, and so do strings: a program that a test gives to another
Python, a module that it runs. Where that cannot be read, the file counts as one that can.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import ablation_lens

ROOT = Path(__file__).parents[1]
LENS = "transformer_lens"
HOMES = {**ablation_lens._HOMES, **ablation_lens._MODULES}
"""Where the names lie that the root shows."""


@functools.cache
def sources() -> dict[str, Path]:
    """Name → path of every module of the package and of the tests."""
    folders = {"ablation_lens": "ablation_lens", "adapters": "ablation_lens.adapters", "tests": "tests"}
    return {
        ".".join((name, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for folder, name in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def module_of(name: str) -> str | None:
    """The module of ours that a dotted name lies in, transformer-lens itself, or None: somebody else's."""
    if name.partition(".")[0] in (LENS, "scripts", "benchmarks"):
        return LENS  # programs that run models
    root, _, shown = name.partition(".")
    if root == "ablation_lens" and shown in HOMES:
        name = f"{root}.{HOMES[shown]}"
    while name not in sources() and "." in name:
        name = name.rpartition(".")[0]
    return name if name in sources() else None


def modules_in(tree: ast.AST) -> set[str]:
    """The modules that a piece of Python imports or spells."""
    names = set(_imported(tree))
    roots = {"ablation_lens"} | {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "ablation_lens"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in roots:
            names.add(f"ablation_lens.{node.attr}")
    # `import ablation_lens` alone imports nothing else.
    return {module for name in names if (module := module_of(name))} - {"ablation_lens"}


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield LENS  # it could be anything
        yield from _imported(node)


def modules_of_a_test(tree: ast.AST) -> set[str]:
    """`modules_in`, its strings, and the fixtures of tests/conftest.py that it asks for."""
    found = modules_in(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= _modules_of_a_string(node.value)
        elif isinstance(node, ast.FunctionDef):
            for argument in node.args.args:
                if (fixture := _fixtures().get(argument.arg)) not in (None, node):
                    found |= modules_of_a_test(fixture)
    return found


def _modules_of_a_string(text: str) -> set[str]:
    if text == "ablation_lens":
        return {"ablation_lens.__main__"}
    if text in sources():
        return {text}
    if "import " not in text or "ablation_lens" not in text:
        return {LENS} if LENS in text else set()
    try:
        return modules_in(ast.parse(text))
    except SyntaxError:
        return {LENS}


@functools.cache
def _fixtures() -> dict[str, ast.FunctionDef]:
    tree = ast.parse((ROOT / "tests/conftest.py").read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@functools.cache
def modules_of(name: str) -> set[str]:
    """What a module imports, itself and by the packages around it."""
    tree = ast.parse(sources()[name].read_text(encoding="utf-8"))
    if not name.startswith("tests."):
        # The package's own strings are messages and examples. Its root imports nothing until it is asked.
        found = set() if name == "ablation_lens" else modules_in(tree)
        return found | {f"{name.rpartition('.')[0]}"} - {"", "ablation_lens"}
    beside = {f"{name.rpartition('.')[0]}.conftest"} & sources().keys() - {"tests.conftest", name}
    return modules_of_a_test(tree) | beside


def way_to_the_lens(name: str) -> list[str]:
    """The imports that lead from a module to transformer-lens; empty where none does."""
    ways, seen = [[name]], {name}
    while ways:
        way = ways.pop(0)
        if way[-1] == LENS:
            return way
        new = sorted(modules_of(way[-1]) - seen)
        seen.update(new)
        ways += [[*way, other] for other in new]
    return []


def can_tell(path: Path) -> bool:
    """Whether a test file could go well on one major and fail on the other; what is in `integration/` always could."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return "integration" in path.parts or name not in sources() or bool(way_to_the_lens(name))

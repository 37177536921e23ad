"""The API reference: ``{api}`` with a name per line becomes a table and an entry for each, from docstrings.

Docstrings are written for people who read the source: single backticks are code, and `Args:` and `Attributes:` are
lists. Signatures are shown as they are written there.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from importlib import import_module
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import ablation_lens

SHOWN_AS = "al."
"""In the place of `ablation_lens.`, for what can be written so."""


def look_up(name: str) -> Any:
    """The object of a dotted name."""
    module, _, rest = name.rpartition(".")
    try:
        return getattr(import_module(module), rest)
    except ModuleNotFoundError:  # a member of a class
        return getattr(look_up(module), rest)


def kind_of(thing: Any) -> str:
    """Which directive documents a thing."""
    if inspect.isclass(thing):
        return "exception" if issubclass(thing, BaseException) else "class"
    return "function" if inspect.isfunction(thing) else "data"


class Api(SphinxDirective):
    """`{api} module`, and a name per line."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A table of the names, and their entries."""
        module = self.arguments[0]
        names = [f"{module}.{name.strip()}" for name in self.content if name.strip()]
        lines = [".. autosummary::", "   :nosignatures:", "", *(f"   ~{name}" for name in names), ""]
        for name in names:
            thing = look_up(name)
            lines += [f".. auto{kind_of(thing)}:: {name}"]
            if kind_of(thing) == "class":
                lines += ["   :members:", *(["   :undoc-members:"] if issubclass(thing, Enum) else [])]
            elif kind_of(thing) == "data":
                lines += ["   :no-value:"]
            lines += [""]
        return self.parse_text_to_nodes("\n".join(["````{eval-rst}", *lines, "````"]))


# Docstrings

CODE = re.compile(r"(?<!`)`((?:[^`\n]|\n(?!\s*\n))+)`(?!`)(?=(\w?))")
PAGE = re.compile(r"(?<!`)docs/([\w/-]+)\.md")
SECTIONS = {"Args": "param", "Attributes": "ivar", "Raises": "raises"}
"""Lists that docstrings have, and Sphinx' word for an entry of each."""


def public_names() -> dict[str, str]:
    """What docstrings call something, and where it is documented."""
    names = {}
    for module in (ablation_lens, *(getattr(ablation_lens, name) for name in ablation_lens.__all__)):
        if not isinstance(module, ModuleType):
            continue
        place = "ablation_lens" if module is ablation_lens else f"ablation_lens.{module.__name__.rpartition('.')[2]}"
        for name in getattr(module, "__all__", ()):
            if not isinstance(getattr(module, name), ModuleType):
                names.setdefault(name, f"{place}.{name}")
    return names


PUBLIC = public_names()


def as_fields(lines: list[str]) -> list[str]:
    """Lists of arguments and attributes as Sphinx reads them."""
    fields: list[str] = []
    kind, indent = "", 0
    for line in lines:
        heading = re.fullmatch(r"( *)(\w+):", line)
        if heading and (heading[2] in SECTIONS or heading[2] == "Returns"):
            kind, indent = heading[2], len(heading[1])
            fields += [":returns:"] if kind == "Returns" else []
        elif not line.strip() or len(line) - len(line.lstrip()) <= indent:
            # A field must not be followed by text without an empty line between them.
            fields += ["", line] if kind and line.strip() else [line]
            kind = ""
        elif kind == "Returns":
            fields.append("    " + line.strip())
        elif kind and (entry := re.fullmatch(rf" {{{indent + 4}}}([^\s:]+): (.*)", line)):
            fields.append(f":{SECTIONS[kind]} {entry[1]}: {entry[2]}")
        else:
            fields.append(line)
    return fields


def told_where_defined(thing: Any) -> list[str]:
    """What stands below a constant where it is defined; a package that shows it says nothing of it."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("ablation_lens."):
            for known, value in vars(module).items():
                if value is thing and (told := ModuleAnalyzer.for_module(name).find_attr_docs().get(("", known))):
                    return list(told)
    return []


def as_rst(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Single backticks are code, and a link where they hold a public name; stars and bars are themselves."""

    def code(found: re.Match[str]) -> str:
        text = " ".join(found[1].split())
        after = "\\ " if found[2] else ""
        first, dot, rest = text.partition(".")
        if first in PUBLIC and PUBLIC[first] != name and re.fullmatch(r"\w*", rest):
            return f":py:obj:`{text} <{PUBLIC[first]}{dot}{rest}>`{after}"
        return f"``{text}``{after}"

    if what == "data" and thing.__doc__ == type(thing).__doc__:
        lines[:] = told_where_defined(thing)
    text = "\n".join(as_fields(lines))
    # Examples end at an empty line, and are shown as they are.
    parts = re.split(r"(^ *>>> .*?(?:\n\s*\n|\Z))", text, flags=re.DOTALL | re.MULTILINE)
    for number, part in enumerate(parts):
        if number % 2 == 0:
            # Code and the rest take turns, too.
            pieces = re.split(r"(`[^`]+`)", part)
            pieces[::2] = [re.sub(r"[*|]|_(?=\W|$)", r"\\\g<0>", piece) for piece in pieces[::2]]
            # Pages last, as the backticks of a link would be taken for code.
            parts[number] = PAGE.sub(r":doc:`/\1`", CODE.sub(code, "".join(pieces)))
    lines[:] = "".join(parts).split("\n")


# Signatures


class _Written(ast.NodeTransformer):
    """Annotations without the quotes that only Python needs."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            return self.visit(ast.parse(node.value, mode="eval").body)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "Literal":
            return node
        if isinstance(node.slice, ast.Tuple) and isinstance(node.slice.elts[-1], ast.Constant):  # a jaxtyping shape
            shape = node.slice.elts[-1]
            if isinstance(shape.value, str) and "Tensor" in ast.unparse(node.slice.elts[0]):
                shape.value = shape.value.strip()
                return node
        return self.generic_visit(node)


def annotation(node: ast.expr) -> str:
    """An annotation as a reader wants it."""
    return ast.unparse(_Written().visit(node))


def parsed(thing: Any) -> Any:
    """The source of a function or class, as a tree."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def parameters(function: ast.FunctionDef, bound: bool) -> Iterator[str]:
    """The parameters of a function, as they are written."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)

    def one(argument: ast.arg, default: ast.expr | None, stars: str = "") -> str:
        said = stars + argument.arg + (f": {annotation(argument.annotation)}" if argument.annotation else "")
        if default is None:
            return said
        return f"{said} = {ast.unparse(default)}" if argument.annotation else f"{said}={ast.unparse(default)}"

    for number, (argument, default) in enumerate(zip(plain, defaults, strict=True), start=1):
        if not (bound and number == 1):
            yield one(argument, default)
        if number == len(arguments.posonlyargs):
            yield "/"
    if arguments.vararg:
        yield one(arguments.vararg, None, "*")
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield one(argument, default)
    if arguments.kwarg:
        yield one(arguments.kwarg, None, "**")


def fields_of(cls: type) -> Iterator[str]:
    """The parameters of a dataclass, those of its bases first."""
    written: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base) or "__dataclass_fields__" not in vars(base):
            continue
        for node in parsed(base).body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name = node.target.id
            if annotation(node.annotation).startswith("ClassVar"):
                continue
            if annotation(node.annotation) == "KW_ONLY":
                written["*"] = "*"
                continue
            if name.startswith("_"):
                continue
            default = "" if node.value is None else f" = {default_of(node.value)}"
            written[name] = f"{name}: {annotation(node.annotation)}{default}"
    yield from written.values()


def default_of(value: ast.expr) -> str:
    """What a field is when it is not given."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default" in given:
            return ast.unparse(given["default"])
        return f"{ast.unparse(given['default_factory'])}()" if "default_factory" in given else "..."
    return ast.unparse(value)


def signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, shown: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """The signature as the source has it."""
    if inspect.isclass(thing) and issubclass(thing, Enum | BaseException):
        return None if shown is None else ("", None)
    try:
        if inspect.isclass(thing):
            if "__init__" in vars(thing) and not is_dataclass(thing):
                return f"({', '.join(parameters(parsed(thing.__init__), bound=True))})", None
            return (f"({', '.join(fields_of(thing))})", None) if is_dataclass(thing) else None
        function = inspect.unwrap(getattr(thing, "__func__", thing))
        tree = parsed(function)
        decorators = [ast.unparse(each) for each in tree.decorator_list]
        bound = what == "method" and "staticmethod" not in decorators
        result = annotation(tree.returns) if tree.returns else None
        return f"({', '.join(parameters(tree, bound))})", result
    except (TypeError, OSError, SyntaxError, AttributeError):
        return None


def spoken(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Names as they are written after `import ablation_lens as al`, and shapes in double quotes."""
    for node in tree.findall(addnodes.desc_addname):
        full = node.astext()
        first = full.split(".")[1] if "." in full else ""
        if full.startswith("ablation_lens.") and first in ("", *ablation_lens.__all__):
            node.children = [nodes.Text(SHOWN_AS + full.removeprefix("ablation_lens."))]
    strings = [*tree.findall(addnodes.desc_sig_literal_string)]
    strings += [node for node in tree.findall(nodes.inline) if "default_value" in node["classes"]]
    for node in strings:
        text = node.astext()
        if re.fullmatch(r"'[^'\"]*'", text):
            node.children = [nodes.Text(f'"{text[1:-1]}"')]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    for field in PythonDomain.directives["class"].doc_field_types:
        if field.name == "variable":  # what Sphinx calls "Variables"
            field.label = "Attributes"
    app.add_directive("api", Api)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-resolved", spoken)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The reference has an entry for every public name; pages are read as they are written, so that nothing is built."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import ablation_lens as al

DOCS = Path(__file__).parents[2] / "docs"
BESIDE = ("ablation_lens.models.load.hook_model", "ablation_lens.measure.learned.Learned", "ablation_lens.ranks.Ranks")
BESIDE += ("ablation_lens.models.fast_attention.enable_fast_attention", "ablation_lens.tasks.plans.BatchPlan")
"""What pages call public that no package exports."""


def entries(text):
    """The names in the `{api}` blocks of a page."""
    for module, names in re.findall(r"^```\{api\} (\S+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for name in names.split():
            yield f"{module}.{name}"


def exported(module):
    """The public names of a module: what it lists or, where it has no list, what it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    inside = vars(module).items()
    return [
        name
        for name, thing in inside
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__ and callable(thing)
    ]


def public_names():
    for name in al.__all__:
        thing = getattr(al, name)
        if isinstance(thing, ModuleType):
            yield from (f"ablation_lens.{name}.{inner}" for inner in exported(thing))
        else:
            yield f"ablation_lens.{name}"
    yield from BESIDE


PAGES = sorted((DOCS / "reference/api").glob("*.md"))
DOCUMENTED = [name for page in PAGES for name in entries(page.read_text("utf-8"))]


def test_every_public_name_has_one_entry():
    assert sorted(set(public_names()) - set(DOCUMENTED)) == []
    assert sorted(name for name in set(DOCUMENTED) if DOCUMENTED.count(name) > 1) == []


def test_every_entry_is_there_and_says_something():
    for name in DOCUMENTED:
        module, _, last = name.rpartition(".")
        thing = getattr(import_module(module), last)
        assert inspect.isclass(thing) or not callable(thing) or inspect.getdoc(thing), name


def test_a_name_that_is_missing_is_noticed():
    assert list(entries("text\n\n```{api} ablation_lens.plots\nfigure_1\nfigure_2\n```\n")) == [
        "ablation_lens.plots.figure_1",
        "ablation_lens.plots.figure_2",
    ]
    assert "ablation_lens.circuits.discover" in set(public_names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_of_the_reference_is_in_its_index(page):
    assert f"api/{page.stem}\n" in (DOCS / "reference/index.md").read_text("utf-8")

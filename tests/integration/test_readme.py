"""The Python of README and docs runs as it stands."""

import re
from pathlib import Path

import pytest

from ablation_lens import adapters
from ablation_lens.models.load import transformer_lens_major

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
# What notebooks show is made from them, and they are run by a test of their own.
WRITTEN = [page for page in PAGES[1:] if not page.startswith("docs/notebooks/")]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def run(page, names):
    for block in blocks(page):
        if "HookedTransformer(" in block and transformer_lens_major() >= 4:  # which has none
            continue
        exec(compile(block, page, "exec"), names)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(adapters.families())
    yield
    for name in set(adapters.families()) - before:
        adapters.unregister(name)


def test_the_readme_and_then_the_guide_run(elsewhere):
    """The guide goes on from the names of the README."""
    names = {"__name__": "readme"}
    run("README.md", names)
    run("docs/guide/tour.md", names)
    al, model, held_out = names["al"], names["model"], names["held_out"]
    assert al.evaluate(model, held_out, names["ablation"]).cross_entropy > al.evaluate(model, held_out).cross_entropy


# transformer-lens 3.9 says the first of every HookedTransformer, and two pages make one.
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated", "ignore:it is not known how this model's weights")
@pytest.mark.parametrize("page", [page for page in WRITTEN if blocks(page) and page != "docs/guide/tour.md"])
def test_a_page_runs(page, elsewhere):
    run(page, {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_and_links_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not (ROOT / page).parent.joinpath(target).exists()]
    assert missing == []


def test_a_recipe_is_about_ten_lines():
    for block in blocks("docs/howto/recipes.md"):
        assert len([line for line in block.splitlines() if line and not line.startswith(("import", "from"))]) <= 12


def test_the_readme_is_one_screen_and_begins_with_an_example():
    first = blocks("README.md")[0].strip().splitlines()
    assert len([line for line in first if line.strip()]) <= 15
    assert README.index(blocks("README.md")[0]) < 900
    assert len(README.splitlines()) <= 60

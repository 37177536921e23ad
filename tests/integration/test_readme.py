"""The Python of README and docs runs as it stands."""

import dataclasses
import linecache
import re
import tomllib
from pathlib import Path

import pytest

import ablation_lens as al
from ablation_lens import adapters
from ablation_lens.models.load import transformer_lens_major

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
# What notebooks show is made from them; these and the gallery's minutes are run, in small, by tests of their own.
WRITTEN = [page for page in PAGES[1:] if not page.startswith(("docs/notebooks/", "docs/gallery.md"))]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


OTHERS = ("circuitsvis", "nnsight", "sae_lens")
"""Libraries that are tried beside this package: pages whose first block imports one are skipped without it."""


def run(page, names):
    imported = re.findall(r"^(?:import|from) (\w+)", blocks(page)[0], flags=re.MULTILINE)
    for library in imported:
        if library in OTHERS:
            pytest.importorskip(library, reason=f"{page} needs {library}, which is not installed")
    for number, block in enumerate(blocks(page), 1):
        if "HookedTransformer(" in block and transformer_lens_major() >= 4:  # which has none
            continue
        file = f"<block {number} of {page}>"
        # For tracebacks, and for nnsight, which reads the source of what it traces.
        linecache.cache[file] = (len(block), None, block.splitlines(keepends=True), file)
        exec(compile(block, file, "exec"), names)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder; what a page registers is forgotten after it, as later tests list what the package has."""
    monkeypatch.chdir(tmp_path)
    registers = [
        (adapters.families, adapters.unregister),
        (al.circuits.prompt_names, al.circuits.unregister_prompts),
        (al.centers.names, al.centers.unregister),
    ]
    before = [set(known()) for known, _ in registers]
    yield
    for (known, forget), names in zip(registers, before, strict=True):
        for name in set(known()) - names:
            forget(name)


def test_the_readme_and_then_the_guide_run(elsewhere):
    """The guide goes on from the names of the README."""
    names = {"__name__": "readme"}
    run("README.md", names)
    run("docs/guide/tour.md", names)
    al, model, held_out = names["al"], names["model"], names["held_out"]
    assert al.evaluate(model, held_out, names["ablation"]).cross_entropy > al.evaluate(model, held_out).cross_entropy


# transformer-lens 3.9 says the first of every HookedTransformer, and two pages make one.
# transformer-lens 4 says of a hook within a norm that its results differ from others by rounding.
@pytest.mark.filterwarnings(
    "ignore:HookedTransformer is deprecated",
    "ignore:it is not known how this model's weights",
    "ignore:A forward hook edited hook_scale/hook_normalized",
)
@pytest.mark.parametrize("page", [page for page in WRITTEN if blocks(page) and page != "docs/guide/tour.md"])
def test_a_page_runs(page, elsewhere):
    run(page, {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_and_links_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not (ROOT / page).parent.joinpath(target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in WRITTEN if page.startswith("docs/howto/")])
def test_a_how_to_is_one_task_on_one_screen(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    prose = re.sub(r"^```.*?^```", "", "\n".join(lines), flags=re.DOTALL | re.MULTILINE)
    assert len(lines) <= 60
    assert len(re.findall(r"^# ", prose, flags=re.MULTILINE)) == 1


def test_every_key_of_a_study_s_file_is_in_the_table_with_what_it_is_when_left_out():
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|", (ROOT / "docs/howto/study-file.md").read_text(), flags=re.MULTILINE)
    told = {key: value for keys, value in rows for key in re.findall(r"`(\w+)`", keys)}
    study = al.Study(models=["tiny-opt"])
    fields = {field.name for field in dataclasses.fields(study)} - {"batches"}  # which no file can name
    assert told.keys() == fields | {"preset"}
    for key in fields - {"models"}:
        value = getattr(study, key)
        default = list(value) if isinstance(value, tuple) or key == "metrics" else value
        written = told[key].strip("`")
        assert (None if written == "–" else tomllib.loads(f"it = {written}")["it"]) == default, key


def test_the_readme_is_one_screen_and_begins_with_an_example():
    first = blocks("README.md")[0].strip().splitlines()
    assert len([line for line in first if line.strip()]) <= 15
    assert README.index(blocks("README.md")[0]) < 900
    assert len(README.splitlines()) <= 60

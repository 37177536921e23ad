"""The wheel holds everything: package, adapters, zoo, the explorer's assets; `make try-release` tries it."""

import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ablation_lens
from ablation_lens.corpora.embedded import stdlib_documents

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, ablation_lens, ablation_lens.adapters
assert ablation_lens.__file__.startswith(sys.argv[1]), ablation_lens.__file__
assert ablation_lens.adapters.__file__.startswith(sys.argv[1])
for name in ablation_lens.zoo.NAMES:
    model = ablation_lens.load_model(name)
    if name == "tiny-vit":
        plan = ablation_lens.task_for(model).batches(split="evaluate", images=100)
    else:
        plan = ablation_lens.task_for(model, sys.argv[2]).batches(split="all", tokens=600)
    print(name, ablation_lens.evaluate(model, plan).top1)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy of what git tracks: building in place would leave build/ and egg-info behind.
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if name.startswith(("ablation_lens/", "adapters/", "pyproject.toml", "README.md", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(source),
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    subprocess.run([*command, "--quiet"], check=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    (built,) = folder.glob("*.whl")
    return built


def test_every_python_file_and_the_zoo_are_in_the_wheel(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "ablation_lens").rglob("*.py")}
    expected |= {f"ablation_lens/{path.relative_to(ROOT)}" for path in (ROOT / "adapters").rglob("*.py")}
    expected |= {"ablation_lens/py.typed", "ablation_lens/zoo/README.md"}
    for name in ("tiny-opt", "tiny-mistral", "tiny-roberta", "tiny-vit"):
        expected |= {
            f"ablation_lens/zoo/{name}/{file}" for file in ("config.json", "model.safetensors", "training.json")
        }
    assets = (ROOT / "ablation_lens" / "explorer" / "assets").iterdir()
    expected |= {f"ablation_lens/explorer/assets/{path.name}" for path in assets}
    assert expected <= held, sorted(expected - held)
    assert not [name for name in held if name.startswith(("adapters/", "tests/", "benchmarks/"))]


def test_the_zoo_loads_from_an_unpacked_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    texts = tmp_path / "texts"  # a few of the documents, as reading them all takes as long as everything else here
    texts.mkdir()
    for number, document in enumerate(stdlib_documents()[:20]):
        (texts / f"{number}.txt").write_text(document, encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(texts)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    scores = dict(line.split() for line in result.stdout.splitlines())
    assert float(scores["tiny-vit"]) > 0.9
    assert all(float(scores[name]) > 0.2 for name in ("tiny-opt", "tiny-mistral", "tiny-roberta"))


def test_the_version_is_that_of_the_package(wheel):
    assert wheel.name == f"ablation_lens-{ablation_lens.__version__}-py3-none-any.whl"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [ablation_lens.__version__]


def test_the_wheel_carries_its_licence_and_says_that_it_is_typed(wheel):
    archive = zipfile.ZipFile(wheel)
    folder = f"ablation_lens-{ablation_lens.__version__}.dist-info"
    assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "Classifier: Typing :: Typed" in archive.read(f"{folder}/METADATA").decode()


# ---------------------------------------------------------------------- what tries a release notices


@pytest.fixture(scope="module")
def release():
    return runpy.run_path(str(ROOT / "scripts/release.py"))


def test_a_release_with_a_file_too_many_or_too_few_is_refused(release):
    release["require_same"]("files", {"one"}, {"one"})
    with pytest.raises(SystemExit, match="junk should not be there, and one is missing"):
        release["require_same"]("files", {"junk"}, {"one"})


def test_a_type_that_is_lost_in_a_release_is_noticed(release):
    source = (
        'import ablation_lens\nreveal_type(x)  # note: Revealed type is "float"\ny: str = x  # error: [assignment]\n'
    )
    right = (
        'project.py:2: note: Revealed type is "float"\n'
        'project.py:3: error: Incompatible types in assignment (expression has type "float")  [assignment]\n'
        'project.py:3: note: "x" defined in "ablation_lens"\n'
        "Found 1 error in 1 file (checked 1 source file)\n"
    )
    untyped = (
        'project.py:1: error: Skipping analyzing "ablation_lens"  [import-untyped]\n'
        'project.py:2: note: Revealed type is "Any"\n'
    )
    assert release["said"](right) == release["announced"](source)
    assert release["said"](untyped) == {"1: [import-untyped]", '2: Revealed type is "Any"'}


def test_a_release_is_refused_without_its_day_in_the_changelog(release, tmp_path):
    with pytest.raises(SystemExit, match=r"9\.9\.9"):
        release["day_in"]("## [Unreleased]\n\n## [0.1.0] - 2026-01-01\n", "9.9.9")
    with pytest.raises(SystemExit, match="tomorrow"):
        release["day_in"]("## [9.9.9] - tomorrow\n", "9.9.9")
    assert release["day_in"]("## [Unreleased]\n\n## [9.9.9] - 2026-11-27\n", "9.9.9").day == 27

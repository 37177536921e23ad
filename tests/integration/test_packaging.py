"""The wheel holds everything: package, adapters, zoo, the explorer's assets."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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

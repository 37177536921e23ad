"""Build what is released, and try it as somebody who installs it.

`make release` does it in an empty environment, and leaves the files in dist/: it needs a clean checkout and the package
index, and takes minutes. `make try-release` (CI) takes the dependencies from this environment, and leaves nothing.
"""

import argparse
import contextlib
import csv
import datetime
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
WINDOWS = sys.platform == "win32"

LONGEST = 1_800
"""Seconds that one command may take."""

NOT_RELEASED = (".ci/", ".gitignore", ".npmrc")
"""What git tracks and an sdist does not need."""

ZOO = ("tiny-opt", "tiny-mistral", "tiny-roberta", "tiny-vit", "tiny-llama")
ONE = ("tiny-vit",)
METHODS = ("zero", "mean", "peak")

DOWNSTREAM = '''\
"""A project that uses the library. What mypy must say of a line stands at its end."""

import ablation_lens as al

model = al.load_model("tiny-opt")
task = al.task_for(model)
stats = al.collect(model, task.batches(split="collect", tokens=1_000))
mask = al.random_neurons(stats.shape, fraction=0.5, seed=42)
ablation = stats.ablation(mask, "peak")
score = al.evaluate(model, task.batches(split="evaluate", tokens=1_000), ablation)

reveal_type(stats)  # note: Revealed type is "ablation_lens.neurons.statistics.ActivationStatistics"
reveal_type(ablation)  # note: Revealed type is "ablation_lens.ablation.ablation.Ablation"
reveal_type(score.top1)  # note: Revealed type is "float"
top1: str = score.top1  # error: [assignment]
al.evaluate(model, [], ablations=ablation)  # error: [call-arg]
al.Ablation.load(3)  # error: [arg-type]
al.evaluat(model, [])  # error: [attr-defined]
'''


class Failure(SystemExit):
    """Something that must not be released; the command ends with this sentence."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, check, install and try; say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the dependencies of this environment; keep nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the files are put, unless --quick")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    tracked = tracked_files()
    version = version_of_source()
    if not asked.quick:
        check_ready(version)
    # Resolved, as the place of an installed module is compared with it.
    with tempfile.TemporaryDirectory(prefix="release-") as place:
        folder = Path(place).resolve()
        wheel, sdist = build(tracked, folder)
        check_contents(wheel, sdist, tracked, version)
        environment = borrow(folder / "environment") if asked.quick else make(folder / "environment", wheel)
        # What the sdist becomes has the same files: in CI one model is enough for it.
        for file, models in ((wheel, ZOO), (sdist, ONE if asked.quick else ZOO)):
            with timed(f"{file.name} installed and tried on {', '.join(models)}"):
                install(file, environment, isolated=not asked.quick)
                check_installed(environment, wheel)
                try_commands(environment, folder / f"empty-{file.suffix[1:]}", version, models)
        with timed("a project that uses the types"):
            check_types(environment, folder / "downstream")
        if not asked.quick:
            asked.out.mkdir(parents=True, exist_ok=True)
            for file in (wheel, sdist):
                print(f"{shutil.copy2(file, asked.out)}")
    print(f"ablation-lens {version} can be released ({time.monotonic() - began:.0f} s)")


def tracked_files() -> set[str]:
    """What is released is what git tracks; a new file counts as soon as git does not ignore it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def version_of_source() -> str:
    """As setuptools reads it, without importing anything."""
    text = (ROOT / "ablation_lens/__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, flags=re.MULTILINE)[1]  # type: ignore[index]


def check_ready(version: str) -> None:
    """A release is of a commit, and has its day in the changelog."""
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True).stdout:
        raise Failure("there are uncommitted changes; commit them, as a release is of a commit.")
    day_in((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)


def day_in(changelog: str, version: str) -> datetime.date:
    """When a changelog says that a version was released."""
    found = re.search(rf"^## \[{re.escape(version)}\] - (.+)$", changelog, flags=re.MULTILINE)
    try:
        return datetime.date.fromisoformat(found[1] if found else "")
    except ValueError:
        wrong = f"dates {version} {found[1]!r}" if found else f"does not date {version}"
        raise Failure(f"CHANGELOG.md {wrong}; its heading must be '## [{version}] - YYYY-MM-DD'.") from None


def build(tracked: set[str], folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of the tracked files; building in place would leave build/ and egg-info behind."""
    source = folder / "source"
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    dist = folder / "dist"
    with timed("wheel and sdist built"):
        run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", dist, source)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path, tracked: set[str], version: str) -> None:
    """The sdist holds what git tracks, and both hold the licence; nothing else is in them."""
    root = f"ablation_lens-{version}"
    with tarfile.open(sdist) as archive:
        held = {member.name.removeprefix(f"{root}/") for member in archive.getmembers() if member.isfile()}
    written = {name for name in held if name.startswith("ablation_lens.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    expected = {name for name in tracked if not name.startswith(NOT_RELEASED)}
    require_same(f"files of {sdist.name}", held - written, expected)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    written = {name for name in names if name.startswith(f"{root}.dist-info/")}
    package = {name for name in tracked if name.startswith("ablation_lens/")}
    package |= {f"ablation_lens/{name}" for name in tracked if name.startswith("adapters/")}
    require_same(f"files of {wheel.name}", names - written, package)
    if not {f"{root}.dist-info/licenses/LICENSE", f"{root}.dist-info/METADATA"} <= written:
        raise Failure(f"{wheel.name} lacks the licence or its metadata, and holds {', '.join(sorted(written))}.")
    for file in (wheel, sdist):
        print(f"{file.name}: {file.stat().st_size / 2**20:.1f} MiB")


def require_same(what: str, held: set[str], expected: set[str]) -> None:
    """Both sides are named where they differ."""
    if held != expected:
        more, less = (", ".join(sorted(names)[:5]) or "nothing" for names in (held - expected, expected - held))
        raise Failure(f"{what}: {more} should not be there, and {less} is missing.")


def make(folder: Path, wheel: Path) -> Path:
    """An empty environment, with the wheel, its dependencies and mypy in the versions of the lock."""
    with timed("an empty environment"):
        venv.create(folder, with_pip=True)
        # The lock is a list of constraints here: what the wheel does not ask for is not installed.
        wanted = (wheel, "mypy", "pandas-stubs", "--constraint", LOCK)
        run(program(folder, "python"), "-m", "pip", "install", "--quiet", *wanted)
    return folder


def borrow(folder: Path) -> Path:
    """An environment that sees the packages of this one, but not the editable install of this checkout."""
    venv.create(folder, with_pip=False)
    # What a .pth names is searched last, and the .pth files in there, such as those of editable installs, are not read.
    places = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (purelib(folder) / "borrowed.pth").write_text("\n".join(places) + "\n", encoding="utf-8")
    return folder


def install(file: Path, environment: Path, *, isolated: bool) -> None:
    """In the place of what was installed before; the dependencies are there already."""
    python = program(environment, "python")
    pip = (sys.executable, "-m", "pip", "--python", python)
    for place in purelib(environment).glob("ablation_lens*"):
        shutil.rmtree(place)
    how = () if isolated else ("--no-build-isolation", "--no-index")
    run(*pip, "install", "--quiet", "--no-deps", "--ignore-installed", *how, file)
    run(*pip, "check")


def check_installed(environment: Path, wheel: Path) -> None:
    """Byte by byte what the wheel holds, whichever file it was installed from."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name.startswith("ablation_lens/")}
    place = purelib(environment)
    require_same("installed files", {name for name in held if (place / name).read_bytes() == held[name]}, set(held))


def try_commands(environment: Path, folder: Path, version: str, models: Sequence[str]) -> None:
    """From an empty folder, by the installed command: a study of models of the zoo, its table and its report."""
    folder.mkdir()
    command = program(environment, "ablation-lens")
    where = "import importlib.util as u; print(u.find_spec('ablation_lens').origin)"
    origin = run(program(environment, "python"), "-c", where, cwd=folder).strip()
    if not Path(origin).is_relative_to(environment):
        raise Failure(f"ablation_lens is imported from {origin}, and not from what was installed in {environment}.")
    require_same("--version", {run(command, "--version", cwd=folder).strip()}, {f"ablation-lens {version}"})
    grid = [word for name in models for word in ("--model", name)] + [
        word for name in METHODS for word in ("--method", name)
    ]
    sizes = (
        "--collect-tokens",
        "2000",
        "--evaluate-tokens",
        "1000",
        "--collect-images",
        "60",
        "--evaluate-images",
        "60",
    )
    run(command, "study", "--out", "run", *grid, *sizes, "--fractions", "0.5", "--seeds", "42", cwd=folder)
    run(command, "export", "run", "cells.csv", cwd=folder)
    with (folder / "cells.csv").open(encoding="utf-8", newline="") as lines:
        cells = {f"{row['model']} {row['method']}" for row in csv.DictReader(lines)}
    require_same("the study's cells", cells, {f"{model} {method}" for model in models for method in ("none", *METHODS)})
    table = run(command, "table", "run", cwd=folder)
    require_same("methods in the table", {method for method in METHODS if method in table}, set(METHODS))
    run(command, "report", "run", cwd=folder)
    if not list(folder.rglob("*.html")):
        raise Failure("ablation-lens report wrote no page.")


def check_types(environment: Path, folder: Path) -> None:
    """mypy --strict sees our types in a project that installed the library, and reports its mistakes."""
    folder.mkdir()
    (folder / "project.py").write_text(DOWNSTREAM, encoding="utf-8")
    command = [program(environment, "python"), "-m", "mypy", "--strict", "--no-pretty", "project.py"]
    result = subprocess.run(
        command, cwd=folder, env=clean(), capture_output=True, text=True, check=False, timeout=LONGEST
    )
    if result.returncode not in (0, 1):
        raise Failure(f"mypy failed: {result.stdout}{result.stderr}")
    require_same("what mypy says of a project that uses the library", said(result.stdout), announced(DOWNSTREAM))


def announced(source: str) -> set[str]:
    """What a file says mypy should say, as `line: note` or `line: [code]`."""
    found = ((number, line.rpartition("  # ")[2]) for number, line in enumerate(source.splitlines(), 1))
    return {f"{number}: {text.partition(': ')[2]}" for number, text in found if text.startswith(("note: ", "error: "))}


def said(output: str) -> set[str]:
    """What mypy said, in the same words: of an error only its code, of notes the types."""
    found = re.findall(
        r"^project\.py:(\d+): (?:error: .*(\[[\w-]+\])|note: (Revealed type .*))$", output, flags=re.MULTILINE
    )
    return {f"{number}: {code or text}" for number, code, text in found}


def program(environment: Path, name: str) -> Path:
    """A program of an environment."""
    return environment / ("Scripts" if WINDOWS else "bin") / (f"{name}.exe" if WINDOWS else name)


def purelib(environment: Path) -> Path:
    """Where an environment's packages lie."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment), "platbase": str(environment)}))


def clean() -> dict[str, str]:
    """This process's environment without what could show the checkout; no hub is asked for anything."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"HF_HUB_OFFLINE": "1"}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; where it fails, that ends all."""
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            words, cwd=cwd, env=clean(), capture_output=True, text=True, check=False, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(words)} was not done after {LONGEST} s.") from None
    if result.returncode:
        raise Failure(f"{' '.join(words)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Says what was done, and how long it took."""
    began = time.monotonic()
    yield
    print(f"{what} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

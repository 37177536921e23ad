"""Run the tests on the lowest versions that pyproject.toml admits: once before a release, not in CI.

uv, which must be installed (`pip install uv`), resolves them, and pip installs them into a throwaway environment. A
bound below what can be installed beside the others is named. torch's lowest may be a build of gigabytes:
`--pin torch==2.13.0` tries another. What comes after `--` goes to pytest; left out, the quick half of the suite runs.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICK = ("integration/test_zoo.py", "ground", "neurons", "ablation", "tasks", "measure", "study")


def main() -> None:
    """Resolve, install, test; exit as pytest does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pin", action="append", default=[], help="a version in the place of the lowest: name==1.0")
    parser.add_argument("--resolve-only", action="store_true", help="print the versions, and install nothing")
    parser.add_argument("pytest", nargs="*", help="what pytest is given, after --")
    asked = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    # The build's too, as the package is installed without an isolated environment.
    wanted = (*project["project"]["dependencies"], *extras["dev"], *project["build-system"]["requires"])
    bounds = lower_bounds(wanted)
    with tempfile.TemporaryDirectory(prefix="lowest-") as folder:
        versions = resolve(bounds, asked.pin, Path(folder))
        for name, bound in bounds.items():
            told = "" if is_of(versions[name], bound) else ": nothing lower fits with the others, so raise the bound"
            say(f"{name}>={bound}  {versions[name]}{told}")
        if asked.resolve_only:
            return
        venv.create(folder, with_pip=True, clear=False)
        python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        pins = [f"{name}=={version}" for name, version in versions.items()]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, "wheel"], check=True)
        editable = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT)
        subprocess.run([python, "-m", "pip", *editable], check=True)
        tests = asked.pytest or ["-n", "0", *(str(ROOT / "tests" / name) for name in QUICK)]
        raise SystemExit(subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT, check=False).returncode)


def lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """Name → the version after `>=`; every direct dependency has one."""
    found = (re.match(r"([\w-]+)(?:\[.*?\])?>=([\w.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in found}  # type: ignore[index]


def resolve(bounds: dict[str, str], pins: list[str], folder: Path) -> dict[str, str]:
    """The lowest version of every direct dependency that fits with the others, and the newest of what these need."""
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join([*(f"{name}>={bound}" for name, bound in bounds.items()), *pins]), encoding="utf-8")
    command = ("uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--python", sys.executable)
    result = subprocess.run(
        [*command, "--resolution", "lowest-direct", wanted], check=True, capture_output=True, text=True
    )
    return dict(line.split(" ")[0].split("==") for line in result.stdout.splitlines() if "==" in line)


def is_of(version: str, bound: str) -> bool:
    """Whether a version is its bound, or the first that goes by that number.

    >>> is_of("0.8.0", "0.8"), is_of("2.2.0.240218", "2.2"), is_of("5.9.0", "5.0"), is_of("3.6.1", "3.6")
    (True, True, False, True)
    """
    return f"{version}.".startswith(f"{bound}.")


def say(line: str) -> None:
    """Before what pip and pytest print."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

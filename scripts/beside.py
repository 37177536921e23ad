"""Try the package beside another library: `python scripts/beside.py sae-lens nnsight circuitsvis`.

For every name: a throwaway environment that holds the other library already, the wheel of this checkout installed into
it as a user would, `pip check`, and the tests of `tests/beside` for that library, which use both. Prints a row of
docs/reference/compatibility.md. An environment takes about 1.5 GB of disk while its row is made.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINS = ("torch==2.13.0", "transformer-lens==3.9.0")
NEIGHBOURS = {"sae-lens": "sae-lens==6.54.12", "nnsight": "nnsight==0.8.1", "circuitsvis": "circuitsvis==1.43.3"}
SHOWN = ("torch", "transformers", "transformer-lens", "numpy")
"""Whose versions a row shows, and whether installing the wheel moved them."""


def main() -> int:
    """Print the table; returns how many of the libraries something failed beside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", choices=sorted(NEIGHBOURS), help="the other library")
    parser.add_argument("--env", type=Path, help="an environment that has the library already, and is kept")
    parser.add_argument("--uv", action="store_true", help="install the wheel by `uv pip install`")
    arguments = parser.parse_args()
    if arguments.env and len(arguments.name) > 1:
        parser.error("--env is the environment of one library; name one.")
    failed = 0
    say(f"| Beside | {' | '.join(SHOWN)} | Versions moved | pip check | Tests |")
    say("| --- " * (len(SHOWN) + 4) + "|")
    with tempfile.TemporaryDirectory(prefix="beside-") as folder:
        scratch = Path(folder)
        wheel = build(scratch / "wheel")
        for name in arguments.name:
            place = arguments.env or scratch / name
            if not arguments.env:
                venv.create(place, with_pip=True)
                pip(place, "install", *PINS, NEIGHBOURS[name])
            row, fine = beside(name, place, wheel, scratch / "run", uv=arguments.uv)
            say(row)
            failed += not fine
    return failed


def say(line: str) -> None:
    """A line of the table, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def build(folder: Path) -> Path:
    """The wheel of this checkout."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return next(folder.glob("*.whl"))


def beside(name: str, place: Path, wheel: Path, scratch: Path, *, uv: bool) -> tuple[str, bool]:
    """A row of the table for an environment that has the library, and whether all went well."""
    before = versions(place)
    if uv:
        pip(place, "install", "uv")
        run([python_of(place), "-m", "uv", "pip", "install", "--quiet", "--python", python_of(place), wheel])
    else:
        pip(place, "install", wheel)
    after = versions(place)
    moved = [f"{each} {before[each]} → {after[each]}" for each in SHOWN if before[each] != after[each]]
    # Another library's own quarrels are not about this one.
    complaints = run([python_of(place), "-m", "pip", "check"], check=False).stdout.splitlines()
    ours = [line for line in complaints if line.startswith("ablation-lens ")]
    pip(place, "install", "pytest")
    tests = run_tests(place, name, scratch)
    row = [
        f"{name} {after[name]}",
        *(after[each] for each in SHOWN),
        ", ".join(moved) or "none",
        "; ".join(ours) or "nothing missing",
        tests,
    ]
    return f"| {' | '.join(row)} |", not ours and not moved and "passed" in tests and "failed" not in tests


def run_tests(place: Path, name: str, scratch: Path) -> str:
    """What pytest says in the end. From a copy: beside the checkout, it would be imported instead of the wheel."""
    scratch.mkdir(exist_ok=True)
    test = scratch / test_of(name)
    test.write_bytes((ROOT / "tests" / "beside" / test.name).read_bytes())
    command = [python_of(place), "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--rootdir", scratch, test]
    done = run(command, check=False, cwd=scratch)
    sys.stderr.write(done.stdout)
    counted = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", done.stdout.strip().rpartition("\n")[2])
    return ", ".join(counted) or f"pytest ended with {done.returncode}"


def test_of(name: str) -> str:
    """The file in `tests/beside` that uses both."""
    return f"test_{name.replace('-', '_')}.py"


def versions(place: Path) -> dict[str, str]:
    """The installed versions by name."""
    listed = run([python_of(place), "-m", "pip", "list", "--format", "json"]).stdout
    return {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(listed)}


def pip(place: Path, *arguments: str | Path) -> None:
    """Pip of an environment, quietly."""
    run([python_of(place), "-m", "pip", *arguments[:1], "--quiet", *arguments[1:]])


def run(
    command: Sequence[str | Path], *, check: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Without what this process would lend to it: its own packages, and a hub."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done


def python_of(place: Path) -> Path:
    """The interpreter of an environment."""
    return place / ("Scripts" if sys.platform == "win32" else "bin") / "python"


if __name__ == "__main__":
    sys.exit(main())

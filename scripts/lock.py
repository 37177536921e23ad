"""Resolve the project's dependencies in a throwaway environment and write them down exactly.

Used by `make lock`. torch is pinned by its public version: a local build tag such as `+cpu` in the lock
would name a wheel that other machines cannot get.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

TORCH = "torch==2.13.0"


def main() -> None:
    """Write the lock file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--pin", action="append", default=[], help="a requirement to resolve with, such as a==1.0")
    parser.add_argument("--without", action="append", default=[], help="an extra that this environment does not have")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    wanted = list(project["project"]["dependencies"])
    for extra, requirements in project["project"]["optional-dependencies"].items():
        wanted += [] if extra in arguments.without else requirements
    # setuptools builds the editable install without an isolated environment, so it is locked as well.
    wanted += [*project["build-system"]["requires"], "wheel", TORCH, *arguments.pin]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        frozen = subprocess.run(
            [python, "-m", "pip", "freeze", "--all", "--exclude", "pip"], check=True, capture_output=True, text=True
        ).stdout
    lines = [re.sub(r"\+\w+$", "", line) for line in frozen.splitlines() if "==" in line]
    header = f"# Written by `make lock`; resolved with {', '.join(arguments.pin) or 'no extra pins'}.\n"
    arguments.lock.write_text(header + "\n".join(sorted(lines, key=str.lower)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

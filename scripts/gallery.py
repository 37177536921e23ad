"""Run the blocks of docs/gallery.md, and write the picture that each of them makes.

    python scripts/gallery.py                      # or: make gallery; some minutes
    python scripts/gallery.py --only circuit

The page is the only place where the code is: a picture is what the block of its section calls `figure`.
Needs the `images` extra and a Chrome or Chromium.
"""

import argparse
import contextlib
import re
import sys
import tempfile
import time
from pathlib import Path

from findings import draw

PAGE = Path(__file__).parents[1] / "docs" / "gallery.md"
LARGEST = 120_000
"""Of a picture, in bytes."""
WIDTH = 800


def sections(page: str) -> dict[str, str]:
    """The code of every section that has any, by the name of its picture."""
    found = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        (picture,) = re.findall(r"\]\(gallery/([\w-]+)\.png\)", section)
        (found[picture],) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return found


def made(code: str, name: str) -> object:
    """The figure that a block makes, run in an empty folder."""
    names: dict[str, object] = {"__name__": name}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(code, f"{PAGE.name}: {name}", "exec"), names)
    return names["figure"]


def main() -> None:
    """Draw the pictures named on the command line, or all."""
    known = sections(PAGE.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=known, default=list(known), help="these pictures (default: all)")
    parser.add_argument("--out", type=Path, default=PAGE.parent / "gallery", help="the folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        begun = time.monotonic()
        path = arguments.out / f"{name}.png"
        draw(made(known[name], name), path, largest=LARGEST, width=WIDTH)
        took = time.monotonic() - begun
        sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB, {took:.0f} s\n")


if __name__ == "__main__":
    main()

"""How long a table and a page of many neurons take: `stats.table()` and `al.explore(stats, html=…)`, 2 threads.

The statistics are made up, of the size of an OPT of 1.3 billion parameters: 24 layers, 32 heads, 64 dims.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

GOALS = {"table": 1.0, "page": 5.0}
"""Seconds."""


def seconds(run: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Wall and CPU, medians of so many rounds."""
    found = []
    for _ in range(rounds):
        wall, spent = time.perf_counter(), time.process_time()
        run()
        found.append((time.perf_counter() - wall, time.process_time() - spent))
    wall, spent = (statistics.median(each) for each in zip(*found, strict=True))
    return wall, spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1]))
    from ablation_lens import explore
    from tests.synthetic_statistics import large_statistics

    torch.set_num_threads(1 if arguments.toy else 2)
    shape, tokens = ((2, 2, 8), 64) if arguments.toy else ((24, 32, 64), 2048)
    made = large_statistics(shape, tokens)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}; "
          f"{made.mean.numel():,} neurons")  # fmt: skip
    made.table()  # warms up
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        runs: dict[str, Callable[[], Any]] = {
            "table": made.table,
            "page": lambda: explore(made, html=page, progress=False),
        }
        for name, run in runs.items():
            wall, spent = seconds(run, arguments.rounds)
            verdict = "reached" if wall <= GOALS[name] else "MISSED"
            print(f"{name:6} {wall:6.2f} s, {spent:6.2f} s of CPU; goal ≤ {GOALS[name]:.0f} s: {verdict}")
        print(f"the page has {page.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

"""How long the first statistics take: `ablation-lens collect` on a model of the zoo, from the shell and back.

Each time is that of a process of its own, wall and CPU: the first with an empty cache folder, as on the first use of a
machine, the others with what it kept there. The same once more with nothing kept says what the cache is worth.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

GOAL = 8.0
"""Seconds of the second use."""


def collect(folder: Path, tokens: int, place: Mapping[str, str], toy: bool) -> tuple[float, float]:
    """Collect once; wall and CPU seconds."""
    out = folder / "statistics.safetensors"
    arguments = ["collect", "tiny-opt", "--corpus", "stdlib", "--tokens", str(tokens), "--out", str(out)]
    wall, before = time.perf_counter(), os.times()
    if toy:  # here, where everything is imported: all that is asked is whether it runs
        from ablation_lens.cli.app import run

        sys.argv = ["ablation-lens", *arguments]
        run()
    else:
        command = [sys.executable, "-c", "from ablation_lens.cli import main; main()", *arguments]
        subprocess.run(command, check=True, env={**os.environ, **place}, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = sum(after[:4]) - sum(before[:4])  # of this process and of what it started
    out.unlink()
    return time.perf_counter() - wall, spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    arguments = parser.parse_args()
    tokens = 200 if arguments.toy else arguments.tokens
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"torch {version('torch')}, transformer-lens {version('transformer-lens')}; {tokens:,} tokens")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = {"ABLATION_LENS_CACHE": str(folder / "cache")}
        rounds: dict[str, list[tuple[float, float]]] = {"first use": [], "second use": [], "nothing kept": []}
        # Once before all, so that the disk has read what Python imports.
        collect(folder, tokens, {"ABLATION_LENS_CACHE": "off"}, arguments.toy)
        rounds["first use"].append(collect(folder, tokens, here, arguments.toy))
        for _ in range(arguments.rounds):  # in turns: a shared machine drifts
            rounds["second use"].append(collect(folder, tokens, here, arguments.toy))
            rounds["nothing kept"].append(collect(folder, tokens, {"ABLATION_LENS_CACHE": "off"}, arguments.toy))
    for what, found in rounds.items():
        wall, cpu = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"{what:14} {wall:6.2f} s, {cpu:6.2f} s of CPU (median of {len(found)})")
    second = statistics.median(wall for wall, _ in rounds["second use"])
    print(f"goal ≤ {GOAL:.0f} s on the second use: {'reached' if second <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()

"""What several processes gain: collecting and a study by one process and by N under torchrun, a thread for each.

The same N processes do both in turn, round by round, so that loading is left out and a machine's drift hits both: first
the first rank alone, while the others wait without taking time, then all of them. Give it as many idle cores.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from collection import random_opt

from ablation_lens.ranks import Ranks

GOAL = 1.7
VOCABULARY = 2048


@dataclass(frozen=True)
class Size:
    """How much is measured: layers, width and heads of a model; how many batches, and the shape of each."""

    model: tuple[int, int, int]
    collected: int
    evaluated: int
    batch: tuple[int, int]


WHOLE = Size((4, 384, 6), 16, 3, (4, 256))
TOY = Size((2, 32, 2), 2, 1, (2, 16))


def tokens(size: Size, count: int, seed: int) -> list[torch.Tensor]:
    """So many batches of random ids, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, size.batch, generator=generator) for _ in range(count)]


def work_of(size: Size) -> dict[str, Callable[[Ranks, str], Any]]:
    """What is done, by some ranks, in a folder of its own."""
    from ablation_lens import Study, collect
    from ablation_lens.models.load import hook_model
    from ablation_lens.tasks.freezing import freeze

    # Not saved and loaded: of several processes transformers saves in the first alone.
    model = hook_model(random_opt(*size.model, vocabulary=VOCABULARY), name="random")
    collected, evaluated = tokens(size, size.collected, 1), tokens(size, size.evaluated, 2)
    plan = freeze(model, collected, split="collect", scored=False)
    study = Study(
        models=[model],
        methods=["zero", "mean", "peak"],
        fractions=[0.3, 0.6],
        seeds=[1, 2, 3],
        batches={"collect": collected, "evaluate": evaluated},
    )
    return {
        "collect": lambda ranks, folder: collect(model, plan, progress=False, ranks=ranks),
        "study": lambda ranks, folder: study.run(folder, progress=False, ranks=ranks),
    }


def seconds(ranks: Ranks, at_work: Ranks | None, work: Callable[[Ranks, str], Any], base: str) -> float:
    """How long it takes until all are ready again; who is not at work waits."""
    folder = ranks.first_text(tempfile.mkdtemp(dir=base) if ranks.is_first else "")
    ranks.texts("ready")
    started = time.perf_counter()
    if at_work is not None:
        work(at_work, folder)
    ranks.texts("done")
    return time.perf_counter() - started


def measure(size: Size, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of one process, and of all, in every round."""
    ranks = Ranks.join()
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as base:
        for name, work in work_of(size).items():
            seconds(ranks, ranks, work, base)  # warms up
            found[name] = [
                (seconds(ranks, Ranks() if ranks.is_first else None, work, base), seconds(ranks, ranks, work, base))
                for _ in range(rounds)
            ]
        ranks.texts("the folder is of no more use")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing, in one process")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        found = measure(TOY if arguments.toy else WHOLE, arguments.rounds)
        if Ranks.told().is_first:
            arguments.child.write_text(json.dumps(found))
        return
    processes = 1 if arguments.toy else arguments.processes
    print(f"{platform.machine()}, {processes} processes of one thread, torch {version('torch')}, "
          f"transformer-lens {version('transformer-lens')}")  # fmt: skip
    if arguments.toy:
        found = measure(TOY, arguments.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.json"
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            child = [__file__, "--rounds", str(arguments.rounds), "--child", str(out)]
            subprocess.run([sys.executable, *launch, *child], check=True)
            found = json.loads(out.read_text())
    for name, pairs in found.items():
        ratio = statistics.median(one / all_of_them for one, all_of_them in pairs)
        one, all_of_them = (statistics.median(column) for column in zip(*pairs, strict=True))
        verdict = "reached" if ratio >= GOAL else "MISSED"
        print(f"{name:8} {one:6.2f} s by one, {all_of_them:6.2f} s by {processes}: {ratio:.2f} × the throughput "
              f"(median of {len(pairs)} rounds); goal ≥ {GOAL}: {verdict}")  # fmt: skip


if __name__ == "__main__":
    main()

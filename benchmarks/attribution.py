"""What attributions cost: those of all neurons in 8 steps, beside 8 bare forward-backward passes, and peak memory.

A bare pass runs the same model over the same batch to its logits at scored positions, takes the metric, and its
gradient with respect to the embeddings: no hooks at the sites, and nothing made of what passes there. Time: one
interleaved run. Memory: peak resident set of a process of its own.
"""

import argparse
import functools
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from ablation import interleaved, median_ratio
from collection import opt
from peak_memory import apart, peak_mib

import ablation_lens as al
from ablation_lens import circuits
from ablation_lens.measure.readout import Readout
from ablation_lens.tasks.plans import Batch

GOAL, STEPS = 1.15, 8


@dataclass(frozen=True)
class Size:
    """Layers, width and heads of a random model, and rows and length of the prompts."""

    model: tuple[int, int, int]
    batch: tuple[int, int]


WHOLE, TOY = Size((12, 768, 12), (16, 64)), Size((2, 32, 2), (2, 16))


def contenders(size: Size) -> dict[str, Callable[[], Any]]:
    """Ours and the bare passes, of one model and batch."""
    model = opt(*size.model)
    rows, length = size.batch
    batch = Batch.prompts(torch.randint(3, 2048, (rows, length)), [5] * rows, [6] * rows)
    values = {site: torch.randn(site.shape(model.cfg)) / 10 for site in (al.Site.Z, al.Site.MLP)}

    def ours() -> Any:
        return circuits.attribution_effects(
            model, batch, "logit_difference", values, steps=STEPS, level="head", progress=False
        )

    def bare() -> None:
        readout = Readout(model, batch, al.metrics.logit_difference)
        for _ in range(STEPS):
            one_pass(readout)

    return {"ours": ours, "bare": bare}


def one_pass(readout: Readout) -> None:
    """Forward to the metric, and back to the embeddings."""
    embedded: list[torch.Tensor] = []
    start = (al.Site.RESID_PRE.hook_name(0), lambda value, hook: embedded.append(value.requires_grad_()))
    torch.autograd.grad(readout.under([start]).values.sum(), embedded)


def child(which: str, size: Size = WHOLE) -> float:
    """One contender alone, and its peak resident set in MiB."""
    contenders(size)[which]()
    return peak_mib()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    parser.add_argument("--child", choices=["ours", "bare"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.toy else 2)
    if arguments.child:
        print(child(arguments.child))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}, "
          f"transformer-lens {version('transformer-lens')}")  # fmt: skip
    size = TOY if arguments.toy else WHOLE
    seconds = interleaved(contenders(size), arguments.rounds)
    ratio = median_ratio(seconds, "ours", "bare")
    print(f"{STEPS} bare passes: {statistics.median(seconds['bare']):.2f} s; attribution of all neurons {ratio:.3f} × "
          f"that; goal ≤ {GOAL}: {'reached' if ratio <= GOAL else 'MISSED'}")  # fmt: skip
    for which in ("ours", "bare"):
        peak = apart(__file__, functools.partial(child, size=size), which, toy=size is TOY)
        print(f"{which}: peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()

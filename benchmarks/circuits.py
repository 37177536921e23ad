"""What knocking out every head costs, beside a run of the model per head.

12 layers of 12 heads with random weights, prompts whose last token is scored. *plain* is TransformerLens as people
write it: `run_with_hooks` for every head, logits everywhere. *evaluate* is `al.evaluate` for every head, which
unembeds scored positions only. Both take the same time for every head, so some heads are timed, and that is multiplied.
Time: one interleaved run. Memory: peak resident set of a process of its own.
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
from ablation_lens.experiments.scores import Scores
from ablation_lens.tasks.freezing import freeze

GOAL = 0.55


@dataclass(frozen=True)
class Size:
    """Layers, width and heads of the model, rows and tokens of the prompts, and how many heads are timed one by one."""

    model: tuple[int, int, int]
    prompts: tuple[int, int]
    timed: int


WHOLE = Size((12, 768, 12), (16, 24), 24)
QUICK = Size((12, 768, 12), (8, 16), 12)
TOY = Size((3, 32, 2), (3, 8), 2)


def prompts_of(size: Size) -> al.Batch:
    """Random tokens, answers and wrong answers."""
    rows, length = size.prompts
    tokens = torch.randint(3, 2048, (rows, length))
    return al.Batch.prompts(tokens, list(range(3, 3 + rows)), list(range(100, 100 + rows)))


def heads(size: Size) -> list[tuple[int, int]]:
    """Those that are timed one by one, from all layers."""
    layers, _, count = size.model
    every = [(layer, head) for layer in range(layers) for head in range(count)]
    return every[:: len(every) // size.timed]


def ours(model: Any, batch: al.Batch, size: Size) -> torch.Tensor:
    """All heads at once."""
    effects = circuits.knockout_effects(model, batch, "logit_difference", 0.0, progress=False)
    return torch.stack([effects["z"][head] for head in heads(size)])


@torch.inference_mode()
def plain(model: Any, batch: al.Batch, size: Size) -> torch.Tensor:
    """One run of the whole model for each head."""
    answers, wrong = batch.answers[:, :1], batch.wrong[:, :1]

    def difference(hooks: list[Any]) -> torch.Tensor:
        last = model.run_with_hooks(batch.inputs, fwd_hooks=hooks)[:, -1]
        return (last.gather(1, answers) - last.gather(1, wrong)).mean()

    def without(head: int) -> Callable[[torch.Tensor, Any], torch.Tensor]:
        def hook(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z[:, :, head] = 0
            return z

        return hook

    clean = difference([])
    return torch.stack([difference([(f"blocks.{layer}.attn.hook_z", without(head))]) - clean
                        for layer, head in heads(size)])  # fmt: skip


def evaluate(model: Any, batch: al.Batch, size: Size) -> torch.Tensor:
    """One evaluation for each head."""
    shape = al.Site.Z.shape(model.cfg)

    def score(ablation: Any) -> float:
        return al.evaluate(model, batch, ablation, metrics="logit_difference")["logit_difference"]

    clean = score(None)
    changes = []
    for layer, head in heads(size):
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[layer, head] = True
        changes.append(score(al.Ablation(mask, 0.0)) - clean)
    return torch.tensor(changes)


WAYS = {"ours": ours, "plain": plain, "evaluate": evaluate}


def child(which: str, size: Size) -> float:
    """One of them, and its peak resident set in MiB."""
    model = opt(*size.model)
    WAYS[which](model, prompts_of(size), size)
    return peak_mib()


def knockouts(rounds: int, size: Size) -> None:
    """Time of the three, and whether they say the same."""
    model, batch = opt(*size.model), prompts_of(size)
    found = {which: way(model, batch, size) for which, way in WAYS.items()}
    for which in ("plain", "evaluate"):
        gap = float((found["ours"].double() - found[which].double()).abs().max())
        print(f"ours and {which}: differ by {gap:.1e} at most, of effects up to {float(found[which].abs().max()):.2g}")
    seconds = interleaved({name: functools.partial(way, model, batch, size) for name, way in WAYS.items()}, rounds)
    layers, _, count = size.model
    # One run more is the model as it is.
    factor = (layers * count + 1) / (len(heads(size)) + 1)
    for which in ("plain", "evaluate"):
        seconds[which] = [each * factor for each in seconds[which]]
    print(f"{layers} × {count} heads, {size.prompts[0]} × {size.prompts[1]} tokens: " + ", ".join(
        f"{which} {statistics.median(times):.2f} s" for which, times in seconds.items()
    ))  # fmt: skip
    for which in ("plain", "evaluate"):
        ratio = median_ratio(seconds, "ours", which)
        print(f"ours over {which}: {ratio:.3f}; goal ≤ {GOAL}: {'reached' if ratio <= GOAL else 'MISSED'}")


def layers_one_by_one(rounds: int, size: Size) -> None:
    """Every layer and some heads, to three values each, as experiments score them, over evaluating each alone."""
    model = opt(*size.model)
    rows, length = size.prompts
    plan = freeze(model, [al.Batch.causal(torch.randint(3, 2048, (rows, 4 * length)))])
    units = [f"L{layer}" for layer in range(model.cfg.n_layers)]
    units += sorted((f"L{layer}.H{head}" for layer, head in heads(size)), key=lambda name: int(name[1:].split(".")[0]))
    ablations = [al.Ablation.from_names(unit, value, model=model) for unit in units for value in (0.0, 0.1, -0.1)]

    def shared() -> list[float]:
        scores = Scores(model, plan)
        return [scores.of(ablation).cross_entropy for ablation in ablations]

    def alone() -> list[float]:
        return [al.evaluate(model, plan, ablation).cross_entropy for ablation in ablations]

    same = shared() == alone()
    seconds = interleaved({"shared": shared, "alone": alone}, rounds)
    print(f"{len(units)} layers and heads one by one, to three values: over evaluating each alone "
          f"{median_ratio(seconds, 'shared', 'alone'):.3f}, {'the same bits' if same else 'OTHER bits'}")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter prompts, fewer heads timed")
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = TOY if arguments.toy else QUICK if arguments.quick else WHOLE
    torch.set_num_threads(1 if arguments.toy else 2)
    if arguments.child:
        print(child(arguments.child, size))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}, "
          f"transformer-lens {version('transformer-lens')}")  # fmt: skip
    knockouts(arguments.rounds, size)
    layers_one_by_one(arguments.rounds, size)
    for which in WAYS:
        peak = apart(
            __file__, functools.partial(child, size=size), which, *(["--quick"] * arguments.quick), toy=size is TOY
        )
        print(f"{which}: peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()

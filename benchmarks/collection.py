"""What collecting statistics costs: time over the bare forward pass, and memory as tokens grow.

Time: a 12-layer, 768-wide OPT at 4×512 tokens, 2 threads, the bare forward, ours, and the paper's way (keep every raw
z in a list, bin afterwards). Collecting takes turns with the bare forward batch by batch, as a shared machine's speed
drifts within seconds: every batch is compared with the bare ones before and after it. A run asks once which model it
is, by a checksum over its weights, whose share of the run is taken right after it. Memory: peak resident set of a
process of its own at 20k, 50k and 200k tokens, on a model small enough that its statistics do not drown the difference.

`--operations` needs no accelerator: it runs one batch on `meta`, as it would run on one, where whatever waits for the
device raises, and prints how many operations the device is given, by the forward pass and by collecting.
"""

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from peak_memory import apart, peak_mib
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GOAL_TIME, WORST_TIME, GOAL_GROWTH, GOAL_CHECKSUM = 1.05, 1.10, 1.03, 0.01


@dataclass(frozen=True)
class Size:
    """How much is measured: layers, width and heads of a model, its batches, and token counts for the memory."""

    model: tuple[int, int, int]
    batches: int
    batch: tuple[int, int]
    tokens: tuple[int, ...]


WHOLE = Size((12, 768, 12), 10, (4, 512), (20_000, 50_000, 200_000))
TOY = Size((2, 32, 2), 2, (2, 16), (2_000, 4_000))


def random_opt(layers: int, width: int, heads: int, vocabulary: int = 2048) -> Any:
    """A random OPT of transformers, the same in every process."""
    import transformers

    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=vocabulary, hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=1024,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


def opt(layers: int, width: int, heads: int, vocabulary: int = 2048) -> Any:
    """A random OPT, loaded the way users load models."""
    from ablation_lens import load_model

    with tempfile.TemporaryDirectory() as folder:
        random_opt(layers, width, heads, vocabulary).save_pretrained(folder)
        return load_model(folder)


def keep_everything_and_bin_afterwards(model: Any, batches: Iterable[torch.Tensor], bins: int = 100) -> torch.Tensor:
    """The paper's way: raw activations in lists, then per neuron a histogram between its minimum and maximum."""
    from ablation_lens.measure.forward import final_residual
    from ablation_lens.sites import Site
    from ablation_lens.tasks.plans import Batch

    kept: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(model.cfg.n_layers)}
    hooks = [
        (name, lambda z, hook, layer=layer: kept[layer].append(z.flatten(0, 1).flatten(1).cpu().clone()))
        for layer, name in enumerate(Site.Z.hook_names(model.cfg))
    ]
    for tokens in batches:
        final_residual(model, Batch.causal(tokens), hooks)
    peaks = []
    for parts in kept.values():
        values = torch.cat(parts)
        for neuron in range(values.shape[1]):
            column = values[:, neuron]
            low, high = column.min(), column.max()
            counts = torch.histc(column, bins, low.item(), high.item())
            peaks.append(low + (counts.argmax() + 0.5) * (high - low) / bins)
    return torch.stack(peaks)


def over_the_bare_forward(
    model: Any, batches: list[torch.Tensor], run: Callable[[Iterable[torch.Tensor]], Any]
) -> list[float]:
    """How many times the bare forward every batch took; `run` goes through the batches it is given.

    What `run` does after the last one is shared out among all.
    """
    from ablation_lens.measure.forward import final_residual
    from ablation_lens.tasks.plans import Batch

    bare, ours = [], []
    started = 0.0

    def feed() -> Iterator[torch.Tensor]:
        nonlocal started
        bare.append(time_of_bare(batches[0]))
        for tokens in batches:
            started = time.perf_counter()
            yield tokens
            ours.append(time.perf_counter() - started)
            bare.append(time_of_bare(tokens))
            started = time.perf_counter()

    def time_of_bare(tokens: torch.Tensor) -> float:
        before = time.perf_counter()
        with torch.inference_mode():
            final_residual(model, Batch.causal(tokens))
        return time.perf_counter() - before

    with torch.inference_mode():
        run(feed())
    shared = (time.perf_counter() - started) / len(ours)
    return [(time + shared) / ((a + b) / 2) for time, a, b in zip(ours, bare[:-1], bare[1:], strict=True)]


def share_of_the_checksum(model: Any, batches: list[torch.Tensor]) -> tuple[float, float]:
    """What part of a whole run the checksum of its model takes, and the seconds of it."""
    from ablation_lens import collect
    from ablation_lens.weights import checksum

    started = time.perf_counter()
    collect(model, batches, progress=False)
    finished = time.perf_counter()
    checksum(model)  # a number in the end, so that nothing is left to do on any device
    seconds = time.perf_counter() - finished
    return seconds / (finished - started), seconds


def measure_time(rounds: int, size: Size) -> None:
    """Print the median over all batches of all rounds, and the quartiles; then the checksum's share."""
    from ablation_lens import collect

    model = opt(*size.model)
    batches = [torch.randint(3, 2048, size.batch) for _ in range(size.batches)]
    contenders: dict[str, Callable[[Iterable[torch.Tensor]], Any]] = {
        "collect": lambda fed: collect(model, fed, progress=False),
        "keep raw z, bin afterwards": lambda fed: keep_everything_and_bin_afterwards(model, fed),
    }
    over_the_bare_forward(model, batches[:2], contenders["collect"])  # warms up
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in random.sample(list(contenders), len(contenders)):
            ratios[name] += over_the_bare_forward(model, batches, contenders[name])
    for name, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"{name:28} {middle:6.3f} × the bare forward (quartiles {low:.3f} to {high:.3f}, {len(found)} batches)")
    ratio = statistics.median(ratios["collect"])
    verdict = "reached" if ratio <= GOAL_TIME else "within the worst case" if ratio <= WORST_TIME else "MISSED"
    print(f"goal ≤ {GOAL_TIME} (at worst {WORST_TIME}): {verdict}")
    shares, seconds = zip(*(share_of_the_checksum(model, batches) for _ in range(rounds)), strict=True)
    bits = sum(parameter.nbytes for parameter in model.parameters())
    tokens = sum(batch.numel() for batch in batches)
    verdict = "reached" if statistics.median(shares) <= GOAL_CHECKSUM else "MISSED"
    print(f"checksum of {bits / 2**20:.0f} MiB of weights: {statistics.median(seconds):.3f} s, "
          f"{statistics.median(shares):.2%} of collecting {tokens:,} tokens")  # fmt: skip
    print(f"goal ≤ {GOAL_CHECKSUM:.0%}: {verdict}")


class Operations(TorchDispatchMode):
    """Counts what a device is told to do: not views, which cost nothing there, and not what the host does."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.counts = device, Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        there = [part for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        if any(part.device.type == self.device for part in there) and not function.is_view:
            self.counts[function.overloadpacket.__name__] += 1
        return result


def count_operations(size: Size) -> None:
    """Print how many operations a batch is for an accelerator, without padding and with it."""
    from ablation_lens.measure.collection import _Counting, _Pass
    from ablation_lens.measure.forward import final_residual
    from ablation_lens.sites import Site
    from ablation_lens.tasks.padding import Padding
    from ablation_lens.tasks.plans import Batch

    model = opt(*size.model).to("meta")
    model.cfg.device = torch.device("meta")
    tokens, valid = torch.randint(3, 2048, size.batch), torch.ones(size.batch, dtype=torch.bool)
    valid[1:, -5:] = False
    for name, batch in (("no padding", Batch.causal(tokens)), ("padding", Batch.causal(tokens, valid))):
        with torch.inference_mode():
            running = _Pass(model, {Site.Z: _Counting(Site.Z)}, True, Padding(model))
            running.take(batch)  # a first batch also makes what counts, and chooses pivots
            running.unsettled = []  # of numbers that do not exist, nobody can say whether they are finite
            with Operations("meta") as bare:
                final_residual(model, batch.to("meta"))
            with Operations("meta") as collecting:
                running.take(batch)
        ours = collecting.counts - bare.counts
        print(f"{name:12} forward {bare.counts.total()} operations, collecting {ours.total()} more, in one batch of "
              f"{size.batch[0]}×{size.batch[1]} and {size.model[0]} layers; waits within the batch: 0")  # fmt: skip
        print("            ", ", ".join(f"{count} {operation}" for operation, count in ours.most_common()))


def child(tokens: int) -> float:
    """Collect that many tokens; the peak resident set in MiB."""
    from ablation_lens import collect

    model = opt(4, 256, 8)
    generator = torch.Generator().manual_seed(0)
    batches = (torch.randint(3, 2048, (4, 500), generator=generator) for _ in range(tokens // 2000))
    collect(model, batches, progress=False)
    return peak_mib()


def measure_memory(size: Size) -> None:
    """Print the peak at every size, and how it grows."""
    peaks = {}
    for tokens in size.tokens:
        peaks[tokens] = apart(__file__, child, tokens, toy=size is TOY)
        raw = 4 * 256 * tokens * 4 / 2**20
        print(f"{tokens:7,} tokens: peak {peaks[tokens]:6.0f} MiB (the raw z alone would be {raw:.0f} MiB)")
    fewest, most = size.tokens[0], size.tokens[-1]
    growth = peaks[most] / peaks[fewest]
    verdict = "reached" if growth <= GOAL_GROWTH else "MISSED"
    print(f"growth from {fewest // 1000}k to {most // 1000}k: {growth:.3f}; goal ≤ {GOAL_GROWTH}: {verdict}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operations", action="store_true", help="count operations of an accelerator, and no time")
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.toy else 2)
    if arguments.child:
        print(child(arguments.child))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}, "
          f"transformer-lens {version('transformer-lens')}")  # fmt: skip
    size = TOY if arguments.toy else WHOLE
    if arguments.operations:
        count_operations(size)
        return
    measure_time(arguments.rounds, size)
    measure_memory(size)


if __name__ == "__main__":
    main()

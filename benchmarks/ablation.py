"""What ablation costs: an ablated evaluation beside the same one without, and a small study beside two plain ones.

The study is zero, mean and peak at five fractions with one seed on the four zoo models: the same batch plans, dtype
and threads for all three. *plain* is a transformers model with SDPA, a pre-hook on each output projection, raw
activations kept and binned afterwards; *stock* is TransformerLens' own attention and forward, with plain hook
functions, scoring all logits. Time: one interleaved run. Memory: peak resident set of a process of its own.
"""

import argparse
import functools
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from collection import opt
from peak_memory import apart, peak_mib

import ablation_lens as al
from ablation_lens.measure.forward import logits_everywhere
from ablation_lens.tasks.plans import Batch, BatchPlan

GOAL = 1.03
MODELS = ("tiny-opt", "tiny-mistral", "tiny-roberta", "tiny-vit")
METHODS = ("zero", "mean", "peak")
SEED = 42


@dataclass(frozen=True)
class Size:
    """How much is measured: layers, width and heads of a random model, its batches, and what a study consists of."""

    model: tuple[int, int, int]
    batch: tuple[int, int]
    models: tuple[str, ...]
    fractions: tuple[float, ...]
    tokens: dict[str, int]
    images: int


WHOLE = Size((12, 768, 12), (4, 512), MODELS, (0.1, 0.3, 0.5, 0.7, 0.9), {"collect": 10_000, "evaluate": 5_000}, 200)
TOY = Size((2, 32, 2), (2, 16), ("tiny-roberta", "tiny-vit"), (0.5,), {"collect": 300, "evaluate": 300}, 10)


def ablated_evaluation(rounds: int, size: Size) -> None:
    """`evaluate` with half of the neurons at their peak over `evaluate` as it is."""
    model = opt(*size.model)
    batches = [Batch.causal(torch.randint(3, 2048, size.batch)) for _ in range(2)]
    shape = al.Site.Z.shape(model.cfg)
    ablation = al.Ablation(al.random_neurons(shape, 0.5, SEED), torch.randn(shape))
    seconds = interleaved(
        {"plain": lambda: al.evaluate(model, batches), "ablated": lambda: al.evaluate(model, batches, ablation)}, rounds
    )
    ratio = median_ratio(seconds, "ablated", "plain")
    layers, width, _ = size.model
    documents, length = size.batch
    plain = statistics.median(seconds["plain"])
    print(f"evaluate, {layers} layers of {width}, {documents}×{length} tokens: {plain:.2f} s; ablated "
          f"{ratio:.3f} × that; goal ≤ {GOAL}: {'reached' if ratio <= GOAL else 'MISSED'}")  # fmt: skip


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round, in random order; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in random.sample(list(contenders), len(contenders)):
            started = time.perf_counter()
            contenders[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """Of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def plans_for(model: Any, size: Size) -> dict[str, BatchPlan]:
    """The same documents for every contender."""
    task = al.task_for(model)
    if task.unit == "images":
        return {split: task.batches(split=split, images=size.images) for split in size.tokens}
    return {split: task.batches(split=split, tokens=tokens) for split, tokens in size.tokens.items()}


def our_study(name: str, size: Size) -> None:
    """The library's study, in a folder of its own."""
    images = {} if name != "tiny-vit" else {"collect_images": size.images, "evaluate_images": size.images}
    with tempfile.TemporaryDirectory() as folder:
        al.Study(
            models=[name], methods=METHODS, fractions=size.fractions, seeds=[SEED],
            collect_tokens=size.tokens["collect"], evaluate_tokens=size.tokens["evaluate"], **images,
        ).run(folder, progress=False)  # fmt: skip


def plain_study(name: str, size: Size) -> None:
    """The same written plainly: Hugging Face with SDPA and pre-hooks."""
    import transformers

    ours = al.load_model(name)
    plans = plans_for(ours, size)
    kinds = {"tiny-roberta": "AutoModelForMaskedLM", "tiny-vit": "AutoModelForImageClassification"}
    kind = getattr(transformers, kinds.get(name, "AutoModelForCausalLM"))
    model = kind.from_pretrained(al.zoo.folder(name), dtype=torch.float32, attn_implementation="sdpa").eval()
    projections = [
        module for path, module in model.named_modules()
        if path.endswith(("self_attn.out_proj", "self_attn.o_proj", "attention.output.dense", "attention.o_proj"))
        and "attention.output" not in path.replace("attention.output.dense", "")
    ]  # fmt: skip
    assert len(projections) == ours.cfg.n_layers, [len(projections), ours.cfg.n_layers]
    shape = al.Site.Z.shape(ours.cfg)
    del ours

    def logits(batch: Batch) -> torch.Tensor:
        args, options = batch.arguments()
        return model(*args, **options).logits

    kept: list[list[torch.Tensor]] = [[] for _ in projections]

    def run_hooked(batches: Iterable[Batch], hook_for: Callable[[int, Batch], Any]) -> list[tuple[torch.Tensor, Batch]]:
        scored = []
        for batch in batches:
            handles = [p.register_forward_pre_hook(hook_for(layer, batch)) for layer, p in enumerate(projections)]
            scored.append((logits(batch)[batch.scored], batch))
            for handle in handles:
                handle.remove()
        return scored

    run_hooked(plans["collect"], lambda layer, batch: lambda m, a: kept[layer].append(a[0][batch.valid]))
    study_loop(
        [torch.cat(parts) for parts in kept],
        shape,
        size.fractions,
        lambda hooks: [
            score(found, batch)
            for found, batch in run_hooked(plans["evaluate"], lambda layer, _: lambda m, a: (hooks[layer](a[0]),))
        ],
    )


def stock_study(name: str, size: Size) -> None:
    """The same as a TransformerLens loop: stock attention, plain hook functions, all logits."""
    model = al.load_model(name, attention="stock") if name in ("tiny-opt", "tiny-mistral") else al.load_model(name)
    plans = plans_for(model, size)
    shape = al.Site.Z.shape(model.cfg)
    names = al.Site.Z.hook_names(model.cfg)
    kept: list[list[torch.Tensor]] = [[] for _ in names]
    for batch in plans["collect"]:
        hooks = [
            (hook_name, lambda z, hook, layer=layer, batch=batch: kept[layer].append(z[batch.valid].flatten(1)))
            for layer, hook_name in enumerate(names)
        ]
        logits_everywhere(model, batch, hooks)

    def evaluated(ablate: list[Callable[[torch.Tensor], torch.Tensor]]) -> Any:
        hooks = [
            (hook_name, lambda z, hook, layer=layer: ablate[layer](z.flatten(2)).view(z.shape))
            for layer, hook_name in enumerate(names)
        ]
        return [score(logits_everywhere(model, batch, hooks)[batch.scored], batch) for batch in plans["evaluate"]]

    study_loop([torch.cat(parts) for parts in kept], shape, size.fractions, evaluated)


def score(logits: torch.Tensor, batch: Batch) -> tuple[int, float]:
    """Right predictions and summed cross-entropy."""
    labels = batch.labels[batch.scored]
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return int((logits.argmax(-1) == labels).sum()), float(loss)


def study_loop(
    values: list[torch.Tensor],
    shape: tuple[int, int, int],
    fractions: tuple[float, ...],
    evaluated: Callable[[Any], Any],
) -> None:
    """Centers from raw activations, then every method at every fraction."""
    centers = {
        "zero": [torch.zeros(layer.shape[1]) for layer in values],
        "mean": [layer.mean(0) for layer in values],
        "peak": [histogram_peak(layer) for layer in values],
    }
    evaluated([lambda z: z for _ in values])
    for fraction in fractions:
        mask = al.random_neurons(shape, fraction, SEED).flatten(1)
        for method in METHODS:
            evaluated([
                lambda z, m=m, c=c: z * ~m + c * m for m, c in zip(mask, centers[method], strict=True)
            ])  # fmt: skip


def histogram_peak(values: torch.Tensor, bins: int = 100) -> torch.Tensor:
    """The fullest of 100 bins between each neuron's minimum and maximum."""
    peaks = []
    for column in values.T.contiguous():
        low, high = column.min(), column.max()
        place = torch.histc(column, bins, low.item(), high.item()).argmax()
        peaks.append(low + (place + 0.5) * (high - low) / bins)
    return torch.stack(peaks)


STUDIES = {"ours": our_study, "plain": plain_study, "stock": stock_study}


def child(which: str, size: Size = WHOLE) -> float:
    """One study of all zoo models, and its peak resident set in MiB."""
    with torch.inference_mode():
        for name in size.models:
            STUDIES[which](name, size)
    return peak_mib()


def whole_study(rounds: int, size: Size) -> None:
    """Time of the three studies, model by model and in all, and the memory they need."""
    total: dict[str, list[float]] = {which: [0.0] * rounds for which in STUDIES}
    with torch.inference_mode():
        for name in size.models:
            seconds = interleaved({which: functools.partial(run, name, size) for which, run in STUDIES.items()}, rounds)
            for which, times in seconds.items():
                total[which] = [a + b for a, b in zip(total[which], times, strict=True)]
            print(f"{name:13}" + "".join(
                f" {which} {statistics.median(times):6.2f} s" for which, times in seconds.items()
            ))  # fmt: skip
    for which in ("plain", "stock"):
        print(f"ours over {which}: {median_ratio(total, 'ours', which):.2f} in time")
    for which in STUDIES:
        peak = apart(__file__, functools.partial(child, size=size), which, toy=size is TOY)
        print(f"{which}: peak {peak:.0f} MiB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    parser.add_argument("--child", choices=list(STUDIES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.toy else 2)
    if arguments.child:
        print(child(arguments.child))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}, "
          f"transformer-lens {version('transformer-lens')}")  # fmt: skip
    size = TOY if arguments.toy else WHOLE
    ablated_evaluation(arguments.rounds, size)
    whole_study(arguments.rounds, size)


if __name__ == "__main__":
    main()

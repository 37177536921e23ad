"""How fast is fast attention? transformers with SDPA, stock TransformerLens and ours, side by side in one run.

Random weights, saved once per family and loaded by each contender. An identity hook sits on the input of every
layer's attention output projection (transformers) or on `hook_z` (TransformerLens). Every round runs each contender
once, in a random order, and a ratio is the median over the rounds of the ratios to transformers in the same round: a
machine that slows down for a while slows down all of them.

    python benchmarks/attention_speed.py
    python benchmarks/attention_speed.py --vocabulary 50272 --run-with-hooks
"""

import argparse
import contextlib
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ablation_lens.models.load import load_model
from ablation_lens.records import Versions

GOAL = 1.05


@dataclass(frozen=True)
class Size:
    """Of the models, and how many rounds for so many documents and tokens."""

    layers: int
    width: int
    heads: int
    rounds: dict[tuple[int, int], int]


WHOLE = Size(12, 768, 12, {(4, 512): 20, (4, 8): 300})
TOY = Size(2, 96, 6, {(2, 16): 3})


def configuration(family: str, vocabulary: int, size: Size) -> Any:
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": 1024,
    }
    if family == "opt":
        return transformers.OPTConfig(**shape, ffn_dim=4 * size.width, word_embed_proj_dim=size.width)
    return transformers.MistralConfig(
        **shape,
        intermediate_size=4 * size.width,
        num_key_value_heads=size.heads // 3,
        head_dim=size.width // size.heads,
        sliding_window=4096,
    )


def hooked_reference(folder: str) -> Any:
    """The transformers model with SDPA and its identity hooks."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    assert model.config._attn_implementation == "sdpa"
    projections = [m for name, m in model.named_modules() if name.endswith(("self_attn.out_proj", "self_attn.o_proj"))]
    assert len(projections) == model.config.num_hidden_layers
    for projection in projections:
        projection.register_forward_pre_hook(lambda module, inputs: inputs)
    return lambda tokens: model(tokens, use_cache=False).logits


def contenders(
    family: str, vocabulary: int, size: Size, stack: contextlib.ExitStack, run_with_hooks: bool
) -> dict[str, Callable[[Any], Any]]:
    """What is timed, by name; hooks stay on until the stack is closed."""
    hooks = [(f"blocks.{layer}.attn.hook_z", lambda z, hook: z) for layer in range(size.layers)]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModelForCausalLM.from_config(configuration(family, vocabulary, size)).save_pretrained(folder)
        runs: dict[str, Callable[[Any], Any]] = {"transformers": hooked_reference(folder)}
        for name, attention in (("stock", "stock"), ("ours", "fast")):
            runs[name] = load_model(folder, device="cpu", attention=attention)
            stack.enter_context(runs[name].hooks(fwd_hooks=hooks))
        if run_with_hooks:
            model = load_model(folder, device="cpu")
            runs["ours, run_with_hooks"] = lambda tokens: model.run_with_hooks(tokens, fwd_hooks=hooks)
    return runs


def measure(runs: dict[str, Callable[[Any], Any]], tokens: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for warm_up in (True, True, *[False] * rounds):
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            runs[name](tokens)
            if not warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fast attention against transformers with SDPA and stock.")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=float, default=1.0, help="a factor on the number of rounds")
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    parser.add_argument("--run-with-hooks", action="store_true", help="also time hooks that are added on every call")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    random.seed(0)

    versions = Versions.current()
    print(f"{processor()}, {os.cpu_count()} cores, {options.threads} threads, load {os.getloadavg()[0]:.2f}")
    print(
        f"Python {versions.python}, torch {versions.torch}, transformers {versions.transformers}, "
        f"transformer-lens {versions.transformer_lens}; {time.strftime('%Y-%m-%d')}"
    )
    size = TOY if options.toy else WHOLE
    sizes = f"{size.layers} layers, d{size.width}, fp32, vocabulary {options.vocabulary}"
    print(f"{sizes}; ratios to transformers with SDPA\n")
    print(
        "| model   | tokens | contender            | median ms | best ms |  ratio | quartiles     | logits differ by |"
    )
    print(
        "| ------- | ------ | -------------------- | --------: | ------: | -----: | ------------- | ---------------: |"
    )
    within = True
    for family in ("opt", "mistral"):
        with contextlib.ExitStack() as stack, torch.inference_mode():
            runs = contenders(family, options.vocabulary, size, stack, options.run_with_hooks)
            for (documents, length), rounds in size.rounds.items():
                tokens = torch.randint(5, options.vocabulary, (documents, length))
                expected = runs["transformers"](tokens)
                seconds = measure(runs, tokens, max(3, round(rounds * options.rounds)))
                for name, times in seconds.items():
                    ratios = [a / b for a, b in zip(times, seconds["transformers"], strict=True)]
                    low, ratio, high = statistics.quantiles(ratios, n=4)
                    within &= name != "ours" or ratio <= GOAL
                    cell = f"| {family:7} | {f'{documents}x{length}':6} | {name:20}"
                    cell += f" | {statistics.median(times) * 1e3:9.1f} | {min(times) * 1e3:7.1f}"
                    difference = (runs[name](tokens) - expected).abs().max().item()
                    print(f"{cell} | {ratio:6.3f} | {low:.3f} – {high:.3f} | {difference:16.1e} |", flush=True)
    print(f"\nours within {GOAL}x of transformers in all four cells: {'yes' if within else 'NO'}")


if __name__ == "__main__":
    main()

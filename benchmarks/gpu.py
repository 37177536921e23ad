"""What a GPU makes of it: the paper's four models at full size, and how long the whole of its study would take.

OPT-1.3B, Mistral-7B, RoBERTa-large and ViT-B with random weights are built on the device, in the dtypes of their
checkpoints, and hooked where they lie: nothing is downloaded, and no file is read. RoBERTa-large comes a second time in
float16, as the paper ran it; that it ran Mistral in float16, too, changes no time. All ways go over the same plan,
100,000 random tokens in documents of the context's length or 1000 images of random pixels, in turns, with a clock that
waits for the device; medians. *transformers* is the bare model with SDPA; what stops after the last block is compared
with its body, which has no unembedding, and `al.evaluate` (which unembeds, and scores every prediction) with the whole
of it. Memory is the most that was allocated on the device, weights included. Counts of the same activations are
compared with the CPU's, bit for bit. How often the host waits for the device in every further batch is counted, too.

The paper's study (preset "paper") is its cells, each as long as an evaluation of its kind, and what centers and random
inputs take. A small study is predicted in the same way, and run. Reading checkpoints and corpora is not in it. Every
model has its share of a budget of time: what does not fit, rounds or batches, is left out and named.

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --models opt vit --tokens 20000
    python benchmarks/gpu.py --toy                              # on a CPU, to see that it runs
"""

import argparse
import contextlib
import functools
import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import ablation_lens as al
from ablation_lens import circuits
from ablation_lens.measure import resampling
from ablation_lens.measure.forward import capture, logits_everywhere
from ablation_lens.models.checkpoints import quiet
from ablation_lens.models.load import hook_model, transformer_lens_major
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.records import CorpusRecord, Versions
from ablation_lens.study import paper
from ablation_lens.study.cells import Cell
from ablation_lens.tasks.plans import BatchPlan, ImageItem, Item, TextItem, cut_batches

GOAL_FORWARD, GOAL_COLLECT, GOAL_MINUTES = 0.90, 1.05, 20
SEED = 42
PROMPT = 64
"""Tokens of a row whose prediction is attributed, and of a text that is generated to see how long that takes."""


# ---------------------------------------------------------------------- models


@dataclass(frozen=True)
class Family:
    """One of the paper's models.

    Attributes:
        name: how the table calls it.
        auto_class: what transformers makes of its config.
        config: the config's class.
        full, toy: its values.
        context: positions of a document.
        dtype: of the weights.
        preset: its name in the paper's study; None for what the study runs in another dtype.
    """

    name: str
    auto_class: str
    config: str
    full: Mapping[str, Any]
    toy: Mapping[str, Any]
    context: tuple[int, int]
    dtype: torch.dtype
    preset: str | None

    @property
    def is_image(self) -> bool:
        """Whether it reads images."""
        return self.auto_class == "AutoModelForImageClassification"

    def build(self, device: torch.device, toy: bool) -> Any:
        """The Hugging Face model, with random weights that are drawn on the device."""
        config = getattr(transformers, self.config)(**(self.toy if toy else self.full))
        loader = getattr(transformers, self.auto_class)
        torch.manual_seed(0)
        with quiet(), torch.device(device):
            model = loader.from_config(config, dtype=self.dtype, attn_implementation="sdpa")
        return model.requires_grad_(False).eval()


_ROBERTA: dict[str, Any] = {
    "auto_class": "AutoModelForMaskedLM",
    "config": "RobertaConfig",
    "full": {
        "vocab_size": 50265, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1,
    },
    "toy": {
        "vocab_size": 120, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 32, "max_position_embeddings": 70, "type_vocab_size": 1, "pad_token_id": 1,
    },
    "context": (512, 40),
}  # fmt: skip

FAMILIES = {
    "opt": Family(
        "OPT-1.3B", "AutoModelForCausalLM", "OPTConfig",
        {"vocab_size": 50272, "hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192,
         "num_hidden_layers": 24, "num_attention_heads": 32, "max_position_embeddings": 2048, "use_cache": False},
        {"vocab_size": 120, "hidden_size": 24, "word_embed_proj_dim": 24, "ffn_dim": 32, "num_hidden_layers": 2,
         "num_attention_heads": 3, "max_position_embeddings": 100, "use_cache": False},
        (1000, 40), torch.float16, "facebook/opt-1.3b",
    ),
    "mistral": Family(
        "Mistral-7B", "AutoModelForCausalLM", "MistralConfig",
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
         "sliding_window": 4096, "use_cache": False},
        {"vocab_size": 120, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 100,
         "sliding_window": 90, "use_cache": False},
        (1000, 40), torch.bfloat16, "mistralai/Mistral-7B-v0.1",
    ),
    "roberta": Family("RoBERTa-large", dtype=torch.float32, preset=None, **_ROBERTA),
    "roberta-fp16": Family("RoBERTa-large", dtype=torch.float16, preset="FacebookAI/roberta-large", **_ROBERTA),
    "vit": Family(
        "ViT-B", "AutoModelForImageClassification", "ViTConfig",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
         "image_size": 224, "patch_size": 16, "num_labels": 1000},
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
         "image_size": 8, "patch_size": 4, "num_labels": 10},
        (197, 5), torch.float32, "google/vit-base-patch16-224",
    ),
}  # fmt: skip


# ---------------------------------------------------------------------- what they read


def plan_of(model: Any, split: str, size: int, context: int, *, at_once: int = 8192) -> BatchPlan:
    """Random documents as a plan: about `size` tokens in documents of `context`, or so many images."""
    image = model.task == "image-classification" if hasattr(model, "task") else False
    draw = torch.Generator().manual_seed(1 if split == "collect" else 2)
    count = max(2, size if image else size // context)
    items: list[Item] = []
    for number in range(count):
        items.append(_image(model, number, draw) if image else _text(model, number, context, draw))
    digest = hashlib.sha256(json.dumps([split, size, context]).encode()).hexdigest()
    lengths = [item.length for item in items]
    obtained = count if image else sum(lengths)
    return BatchPlan(
        task=getattr(model, "task", "causal-lm"),
        corpus=CorpusRecord(
            name="random", source="benchmarks/gpu.py", split=split, kind="image" if image else "text", digest=digest,
            python=None, size_requested=size, size_obtained=obtained, unit="images" if image else "tokens",
            documents=count,
        ),
        context=context,
        count="all",
        seed=SEED if getattr(model, "task", "") == "masked-lm" else None,
        items=tuple(items),
        batches=cut_batches(lengths, max(1, at_once // max(lengths))),
        pad_token=1,
    )  # fmt: skip


def _text(model: Any, number: int, context: int, draw: torch.Generator) -> TextItem:
    # From 3 on: what is below is padding, or begins and ends texts, and RoBERTa counts positions by it.
    tokens = torch.randint(3, model.cfg.d_vocab - 1, (context,), generator=draw).tolist()
    if getattr(model, "task", "") != "masked-lm":
        return TextItem(f"document {number}", tuple(tokens), tuple(tokens), tuple(range(context - 1)), ())
    masked = sorted(torch.randperm(context, generator=draw)[: max(1, round(0.15 * context))].tolist())
    mask_token = model.cfg.d_vocab - 1
    inputs = [mask_token if place in set(masked) else token for place, token in enumerate(tokens)]
    return TextItem(f"document {number}", tuple(tokens), tuple(inputs), tuple(masked), ())


def _image(model: Any, number: int, draw: torch.Generator) -> ImageItem:
    pixels = torch.rand(model.n_channels, *model.image_size, generator=draw) * 2 - 1
    label = int(torch.randint(model.cfg.d_vocab_out, (1,), generator=draw))
    content = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]
    return ImageItem(f"image {number}", content, label, model.cfg.n_ctx, pixels)


# ---------------------------------------------------------------------- clock, memory, budget


class Device:
    """The device, its clock, which waits for what was begun, and its memory."""

    def __init__(self, toy: bool) -> None:
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.name = torch.cuda.get_device_name() if self.cuda else "a CPU, toy size" if toy else "a CPU"

    def now(self) -> float:
        """Seconds, when everything that was begun is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, run: Callable[[], Any]) -> float:
        """How long something takes."""
        started = self.now()
        run()
        return self.now() - started

    def peak_mib(self, run: Callable[[], Any], others: float) -> float | None:
        """The most that was allocated meanwhile, without what others hold; None on a CPU."""
        if not self.cuda:
            run()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20 - others

    def waits(self, run: Callable[[], Any]) -> int:
        """How often the host waits for the device meanwhile; on a CPU it never does."""
        if not self.cuda:
            run()
            return 0
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(each.message) for each in said)

    def free(self) -> None:
        """Give back what a model that is gone has held."""
        if self.cuda:
            torch.cuda.empty_cache()


@dataclass
class Budget:
    """How many seconds are left, what was left out for want of them, and what went wrong."""

    total: float
    started: float = field(default_factory=time.perf_counter)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.total - (time.perf_counter() - self.started)

    @contextlib.contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """A GPU is lent for minutes: what goes wrong with one thing is told in the end, and the others are measured."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed.append(f"{what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


# ---------------------------------------------------------------------- the ways, and their measurement


def ways_of(bare: Any, model: Any, context: int, device: torch.device) -> dict[str, Callable[[Sequence[Any]], Any]]:
    """What is timed, by name: each goes over the batches it is given. Every way moves them to the device itself."""
    body = bare.base_model
    shape = al.Site.Z.shape(model.cfg)
    draw = torch.Generator().manual_seed(SEED)
    mean = torch.randn(shape, generator=draw) / 100
    drawn = torch.randn(shape[0], context, *shape[1:], generator=draw) / 100

    def each(run: Callable[[Any], Any]) -> Callable[[Sequence[Any]], None]:
        def over(batches: Sequence[Any]) -> None:
            with torch.inference_mode():
                for batch in batches:
                    run(batch)

        return over

    def ablated(values: torch.Tensor) -> Callable[[Sequence[Any]], Any]:
        # With the mask, as every cell of a study draws its own.
        return lambda batches: al.evaluate(model, batches, al.Ablation(al.random_neurons(shape, 0.5, SEED), values))

    return {
        "transformers": each(lambda batch: bare(batch.inputs.to(device)).logits),
        "transformers, its body": each(lambda batch: body(batch.inputs.to(device))),
        "ours": each(lambda batch: logits_everywhere(model, batch.to(device))),
        "ours, collecting": lambda batches: al.collect(model, batches, progress=False),
        "ours, evaluating": lambda batches: al.evaluate(model, batches),
        "ours, ablated": ablated(mean),
        "ours, resampled": ablated(drawn),
    }


OVER = {
    "ours": "transformers",
    "ours, collecting": "transformers, its body",
    "ours, evaluating": "transformers",
    "ours, ablated": "ours, evaluating",
    "ours, resampled": "ours, evaluating",
}
"""What each way is compared with."""


@dataclass
class Measured:
    """One model.

    Attributes:
        family: which.
        dtype: of its weights.
        unit: "tokens" or "images".
        size: how many every way read.
        seconds: of every way in every round, for that many.
        peaks: in MiB.
        extra: seconds of single things: an attribution, an input, a token that is generated.
        waits: of the host for the device in every further batch.
        gap: how far our logits are from transformers', over the largest.
        counts_equal: whether the device counts what the CPU counts.
    """

    family: str
    dtype: str
    unit: str
    size: int
    seconds: dict[str, list[float]]
    peaks: dict[str, float | None]
    extra: dict[str, float]
    waits: dict[str, float]
    gap: float
    counts_equal: bool

    def rate(self, way: str) -> float:
        """Seconds per token or image."""
        return statistics.median(self.seconds[way]) / self.size

    def ratio(self, way: str) -> float | None:
        """Time over what the way is compared with: the median over rounds."""
        if way not in OVER:
            return None
        pairs = zip(self.seconds[way], self.seconds[OVER[way]], strict=True)
        return statistics.median(ours / base for ours, base in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "dtype": self.dtype,
            "unit": self.unit,
            "size": self.size,
            "ways": {
                way: {
                    "seconds": times,
                    "per_second": 1 / self.rate(way),
                    "over": OVER.get(way),
                    "ratio": self.ratio(way),
                    "peak_mib": self.peaks[way],
                }
                for way, times in self.seconds.items()
            },
            **self.extra,
            "waits_per_batch": self.waits,
            "logits_differ_by": self.gap,
            "counts_equal_the_cpus": self.counts_equal,
        }


def measure(family: Family, device: Device, size: int, budget: Budget, share: float, toy: bool) -> tuple[Measured, Any]:
    """Build, hook and time one model, in about `share` seconds; the model comes along."""
    began = time.perf_counter()
    hf_model = family.build(device.device, toy)
    # transformer-lens 4 builds its bridge into the model that it is given.
    shared = transformer_lens_major() < 4 or family.auto_class != "AutoModelForCausalLM"
    bare = hf_model if shared else family.build(device.device, toy)
    model = hook_model(hf_model, name=family.preset or family.name)
    context = family.context[toy]
    plan = plan_of(model, "evaluate", size, context)
    batches = list(plan)
    ways = ways_of(bare, model, context, device.device)

    gap = logits_gap(bare, model, batches[0], device.device)
    counts_equal = counts_are_the_cpus(model, batches[0], device.device)
    # Twice: what is compiled, chosen or allocated at a first run is not what is measured.
    few = batches[:2]
    for run in ways.values():
        run(few)
    others = 0 if shared else sum(weight.nbytes for weight in bare.parameters()) / 2**20
    peaks = {way: device.peak_mib(functools.partial(run, few), others) for way, run in ways.items()}
    probe = {way: device.seconds(functools.partial(run, few)) for way, run in ways.items()}
    extra = single_things(model, batches[0], device, context, budget, family.name)
    # What is asked once is in both, and not in the difference.
    more = (batches * 4)[:4]
    waits = {
        way: (device.waits(functools.partial(ways[way], more)) - device.waits(functools.partial(ways[way], more[:2])))
        / 2
        for way in ("ours, collecting", "ours, evaluating", "ours, ablated")
    }

    # One round over everything has to fit, or it is over less.
    a_round = sum(probe.values()) / len(few)
    room = share - (time.perf_counter() - began)
    fits = max(2, min(len(batches), int(room / a_round)))
    if fits < len(batches):
        budget.left_out.append(f"{family.name}: {fits} of {len(batches)} batches, for want of time")
    kept = batches[:fits]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    last, most = 0.0, 1 if toy else 5
    while len(seconds["ours"]) < most:
        round_began = time.perf_counter()
        if seconds["ours"] and round_began - began + last > share:
            budget.left_out.append(f"{family.name}: rounds after the {len(seconds['ours'])}. of {most}")
            break
        for way in random.sample(list(ways), len(ways)):
            seconds[way].append(device.seconds(functools.partial(ways[way], kept)))
        last = time.perf_counter() - round_began
    read = sum(len(batch.inputs) if family.is_image else batch.size for batch in kept)
    measured = Measured(
        family.name, str(family.dtype).removeprefix("torch."), "images" if family.is_image else "tokens", read, seconds,
        peaks, extra, waits, gap, counts_equal,
    )  # fmt: skip
    return measured, model


@torch.inference_mode()
def logits_gap(bare: Any, model: Any, batch: Any, device: torch.device) -> float:
    """How far our logits of a batch are from transformers', over the largest."""
    some = batch.rows(0, 2).to(device)
    expected = bare(some.inputs).logits.float()
    return float((logits_everywhere(model, some).float() - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def counts_are_the_cpus(model: Any, batch: Any, device: torch.device) -> bool:
    """Whether histograms of the same activations are the same on the device and on the CPU, in both passes."""
    last = int(model.cfg.n_layers) - 1
    captured = capture(model, batch.to(device), layers=sorted({0, last // 2, last}))
    there = torch.stack([values.flatten(0, 1) for values in captured.values()], dim=1)
    here, shape = there.cpu(), tuple(there.shape[1:])
    first = [NeuronHistogram(shape, resolution=values.dtype, device=values.device) for values in (here, there)]
    for histogram, values in zip(first, (here, there), strict=True):
        histogram.update(values)
    trimmed = [TrimmedHistogram.around(histogram) for histogram in first]
    for second, values in zip(trimmed, (here, there), strict=True):
        second.update(values)
    return all(
        torch.equal(part(one), part(other).cpu())
        for one, other, parts in ((*first, _FIRST), (*trimmed, _SECOND))
        for part in parts
    )


_FIRST: tuple[Callable[[Any], torch.Tensor], ...] = (
    lambda histogram: histogram.counts(), lambda histogram: histogram.exponent, lambda histogram: histogram.offset,
)  # fmt: skip
_SECOND: tuple[Callable[[Any], torch.Tensor], ...] = (lambda trimmed: trimmed.inside.counts(),)


def single_things(model: Any, batch: Any, device: Device, context: int, budget: Budget, name: str) -> dict[str, float]:
    """Seconds of an attribution to every neuron of z, of the values of a random input, and of a generated token."""
    rows = batch.rows(0, 16)
    if rows.inputs.ndim == 2:
        rows = rows.each_tensor(lambda part: part[:, :PROMPT] if part.ndim == 2 else part)
    zero = torch.zeros(al.Site.Z.shape(model.cfg))
    positions = min(PROMPT, context)
    things: dict[str, tuple[int, Callable[[], Any]]] = {
        "attribution_seconds": (1, lambda: circuits.attribution_effects(
            model, rows, "cross_entropy", zero, steps=8, level="head", progress=False
        )),
        "input_seconds": (1, lambda: resampling.values_of(model, batch.inputs[:1])),
    }  # fmt: skip
    if getattr(model, "task", "causal-lm") == "causal-lm":
        things["generated_token_seconds"] = (
            positions,
            lambda: resampling.resample(model, "generated", seed=SEED, positions=positions),
        )
    found: dict[str, float] = {}
    for what, (times, run) in things.items():
        with budget.going_on(f"{name}, {what.removesuffix('_seconds').replace('_', ' ')}"):
            run()
            found[what] = device.seconds(run) / times
    return found


# ---------------------------------------------------------------------- a study's time


def predicted(
    measured: Measured, cells: Sequence[Cell], collected: int, evaluated: int, positions: int, written: float
) -> float:
    """Seconds of a study's cells on one model; a generated token takes `written`."""
    seconds = collected * measured.rate("ours, collecting")
    for cell in cells:
        kind = "evaluating" if cell.method is None else "resampled" if cell.method.draws else "ablated"
        seconds += evaluated * measured.rate(f"ours, {kind}")
    # One input for all seeds, as in the paper: the values of each kind are taken once.
    kinds = {cell.method.name for cell in cells if cell.method is not None and cell.method.draws}
    seconds += len(kinds) * measured.extra.get("input_seconds", 0.0)
    return seconds + ("resample-generated" in kinds) * positions * written


def whole_study(found: Mapping[str, Measured]) -> dict[str, Any]:
    """The paper's study, model by model; of models that were not measured nothing is said."""
    study = al.Study.preset("paper")
    by_model: dict[str, Any] = {}
    author = found.get("opt")
    for name, measured in found.items():
        family = FAMILIES[name]
        if family.preset is None:
            continue
        task = _TASKS[family.auto_class]
        cells = study.cells(task)
        size = paper.SIZES[measured.unit]
        written = measured.extra.get("generated_token_seconds")
        if written is None:  # OPT-1.3B writes what a masked model reads
            written = 0.0 if author is None else author.extra.get("generated_token_seconds", 0.0)
        seconds = predicted(measured, cells, size, size, family.context[0], written)
        by_model[family.preset] = {"cells": len(cells), "minutes": seconds / 60}
    missing = [model for model in paper.MODELS if model not in by_model]
    return {
        "models": by_model,
        "missing": missing,
        "minutes": sum(each["minutes"] for each in by_model.values()),
        "goal_minutes": GOAL_MINUTES,
    }


_TASKS = {
    "AutoModelForCausalLM": "causal-lm",
    "AutoModelForMaskedLM": "masked-lm",
    "AutoModelForImageClassification": "image-classification",
}


def small_study(family: Family, measured: Measured, model: Any, device: Device, size: int, toy: bool) -> dict[str, Any]:
    """A study of a few cells, predicted as the whole one is, and run."""
    context = family.context[toy]
    draws = () if family.is_image else ("resample-tokens",)  # random pixels need an image processor
    plans = {split: plan_of(model, split, size, context) for split in ("collect", "evaluate")}
    study = al.Study(
        models=[model], methods=("zero", "mean", "peak", *draws), fractions=(0.3, 0.6, 1.0), seeds=(SEED,),
        batches=plans, shared_input=True,
    )  # fmt: skip
    cells = study.cells(plans["evaluate"].task)
    expected = predicted(measured, cells, plans["collect"].size, plans["evaluate"].size, context, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        actual = device.seconds(lambda: study.run(folder, progress=False))
    return {
        "model": family.name,
        "cells": len(cells),
        measured.unit: size,
        "predicted_seconds": expected,
        "seconds": actual,
    }


# ---------------------------------------------------------------------- what is printed


def print_table(found: Mapping[str, Measured]) -> None:
    """One row for every model and way."""
    print("| model | dtype | way | per second | time over | peak, MiB |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for measured in found.values():
        for way in measured.seconds:
            ratio, peak = measured.ratio(way), measured.peaks[way]
            over = "" if ratio is None else f"{ratio:.3f} × {OVER[way]}"
            rate = f"{1 / measured.rate(way):,.0f} {measured.unit}"
            memory = "–" if peak is None else f"{peak:,.0f}"
            print(f"| {measured.family} | {measured.dtype} | {way} | {rate} | {over} | {memory} |")
        if "attribution_seconds" in measured.extra:
            once = f"{1000 * measured.extra['attribution_seconds']:.0f} ms each"
            print(f"| {measured.family} | {measured.dtype} | an attribution, 8 steps | {once} |  |  |")


def print_verdicts(report: dict[str, Any], found: Mapping[str, Measured]) -> None:
    """What the goals say, and what was left out."""

    def verdict(reached: bool) -> str:
        return "reached" if reached else "MISSED"

    for measured in found.values():
        forward, collect = 1 / (measured.ratio("ours") or 1), measured.ratio("ours, collecting") or 1
        print(
            f"{measured.family} ({measured.dtype}): forwards at {forward:.0%} of bare ones, goal ≥ "
            f"{GOAL_FORWARD:.0%}: {verdict(forward >= GOAL_FORWARD)}; collecting {collect:.3f} × the bare body, goal ≤ "
            f"{GOAL_COLLECT}: {verdict(collect <= GOAL_COLLECT)}; logits differ by {measured.gap:.1e} of the largest; "
            f"counts equal the CPU's: {'yes' if measured.counts_equal else 'NO'}; host waits per further batch: "
            + ", ".join(f"{count:g} {way.removeprefix('ours, ')}" for way, count in measured.waits.items())
        )
    study, check = report["study"], report["check"]
    if report["toy"]:
        print("toys say nothing about the paper's study")
    else:
        for name, each in study["models"].items():
            print(f"the paper's study of {name}: {each['cells']} cells, {each['minutes']:.1f} minutes predicted")
        missing = ", ".join(study["missing"])
        print(
            f"the paper's whole study: not predicted, without {missing}"
            if missing
            else f"the paper's whole study: {study['minutes']:.1f} minutes predicted, goal < {GOAL_MINUTES}: "
            f"{verdict(study['minutes'] < GOAL_MINUTES)}"
        )
    if check:
        print(
            f"a study of {check['cells']} cells of {check['model']}: {check['predicted_seconds']:.1f} s predicted, "
            f"{check['seconds']:.1f} s measured ({check['seconds'] / check['predicted_seconds']:.2f} ×)"
        )
    for what in report["left_out"]:
        print(f"left out: {what}")
    for what in report["failed"]:
        print(f"FAILED: {what}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000, help="that texts have in all; images: a hundredth")
    parser.add_argument("--models", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--budget", type=float, default=320, help="seconds; what does not fit is left out, and named")
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds, on a CPU too, and says nothing")
    options = parser.parse_args()
    device = Device(options.toy)
    if not device.cuda and not options.toy:
        sys.exit("torch sees no CUDA GPU here, and models of this size need one; --toy runs on a CPU.")
    if not device.cuda:
        torch.set_num_threads(1)
    random.seed(0)
    versions, budget = Versions.current(), Budget(options.budget)
    print(
        f"{device.name}; Python {versions.python}, torch {torch.__version__}, transformers {versions.transformers}, "
        f"transformer-lens {versions.transformer_lens}; {time.strftime('%Y-%m-%d')}",
        flush=True,
    )
    tokens = min(options.tokens, 400) if options.toy else options.tokens
    found: dict[str, Measured] = {}
    check: dict[str, Any] = {}

    def report() -> dict[str, Any]:
        return {
            "device": device.name,
            "versions": versions.to_dict(),
            "date": time.strftime("%Y-%m-%d"),
            "toy": options.toy,
            "models": {name: {"name": each.family, **each.to_dict()} for name, each in found.items()},
            "study": whole_study(found),
            "check": check,
            "left_out": budget.left_out,
            "failed": budget.failed,
            "seconds": budget.total - budget.left,
        }

    for place, name in enumerate(options.models):
        family = FAMILIES[name]
        told = f"{family.name} ({str(family.dtype).removeprefix('torch.')})"
        # Of what is left, a tenth is for the study that is run; the rest is shared out among those to come.
        share = 0.9 * budget.left / (len(options.models) - place)
        if share < 5:
            budget.left_out.append(f"{told}, for want of time")
            continue
        size = max(4, tokens // 100) if family.is_image else tokens
        model = None
        with budget.going_on(told):
            found[name], model = measure(family, device, size, budget, share, options.toy)
        if not check and model is not None:
            small = size if found[name].rate("ours, ablated") * size * 15 < 0.1 * budget.left else size // 5
            with budget.going_on(f"a study of {told}"):
                check |= small_study(family, found[name], model, device, small, options.toy)
        del model
        device.free()
        # After every model: who is cut off has what was measured until then.
        if options.out is not None:
            options.out.write_text(json.dumps(report(), indent=1) + "\n", encoding="utf-8")
        print(f"{told}: measured after {budget.total - budget.left:.0f} s", file=sys.stderr, flush=True)
    print_table(found)
    print_verdicts(report(), found)
    if budget.failed or not all(each.counts_equal for each in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

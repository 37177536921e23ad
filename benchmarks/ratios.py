"""What the work costs, in one table of ratios: ours beside plain transformers, stock TransformerLens, nnsight, pyvene.

*plain* is how people write it with transformers alone: SDPA, a pre-hook on every attention output projection, raw
activations kept and binned afterwards, logits everywhere. *stock* is TransformerLens' own attention and forward with
hook functions. nnsight and pyvene do the ablated forward where they are installed; neither is needed. Rows:

- load: a random OPT of 12 layers, 768 wide, from disk, and one forward of 4×8 tokens, or some only map the file;
- collect: z of three batches of 4×512 tokens, and the fullest of 100 bins for every neuron;
- ablated forward: half of the neurons set to given values, logits everywhere, at 4×512 and at 4×8 tokens;
- ablated evaluation: the same, and top-1 and cross-entropy of every prediction;
- study: zero, mean and peak at five fractions of a model of the zoo, from loading it to its last score;
- knock-outs: all 144 heads, 8×16 tokens; of plain and stock every twelfth is timed, and that multiplied.

Every row is one interleaved run: each way once in every round, in random order, after one to warm up. A ratio is the
median of those within rounds, so that a machine that slows down slows down all. The more a round takes, the fewer there
are; quartiles are beside the median. Memory is the peak resident set of a process that does one thing once, its
imports included. The second table is how ours grows: medians at 1×, 2× and 4× of something, and the exponent
between the first and the last.

    python benchmarks/ratios.py
    python benchmarks/ratios.py --only forward --rounds 3     # three times as many rounds of some rows
"""

import argparse
import contextlib
import functools
import io
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import ablation as studies
import circuits as knocking
import torch
import transformers
from ablation import histogram_peak, interleaved, score
from attention_speed import configuration, processor
from collection import keep_everything_and_bin_afterwards, opt
from peak_memory import apart, peak_mib

import ablation_lens as al
from ablation_lens import circuits
from ablation_lens.measure.forward import logits_everywhere
from ablation_lens.models.load import transformer_lens_major
from ablation_lens.records import Versions
from ablation_lens.tasks.plans import Batch

WAYS = ("ours", "stock", "nnsight", "pyvene")
"""What is compared with plain transformers."""

Build = Callable[["Models"], Callable[[], Any]]
"""Makes ready what is timed."""


@dataclass(frozen=True)
class Size:
    """How much is measured: of models, of batches, and of studies (of no family at toy size: ablation.py has toys)."""

    model: knocking.Size
    long: tuple[int, int]
    short: tuple[int, int]
    batches: int
    families: tuple[str, ...]
    study: studies.Size
    growth: tuple[int, int, int]
    """Layers, width and heads of the smallest model that grows."""


WHOLE = Size(knocking.QUICK, (4, 512), (4, 8), 3, studies.MODELS, studies.WHOLE, (3, 256, 8))
TOY = Size(knocking.TOY, (2, 16), (2, 8), 1, (), studies.TOY, (1, 32, 2))
VOCABULARY = 2048


@dataclass
class Models:
    """One model from one folder, as each way has it; loaded when it is asked for."""

    folder: str
    size: Size

    @staticmethod
    def write(folder: str, size: Size) -> None:
        """A random OPT."""
        torch.manual_seed(0)
        layers, width, heads = size.model.model
        # What attention_speed reads of a size.
        shape: Any = argparse.Namespace(layers=layers, width=width, heads=heads)
        transformers.OPTForCausalLM(configuration("opt", VOCABULARY, shape)).save_pretrained(folder)

    def fresh(self) -> Any:
        """The transformers model, loaded."""
        return transformers.AutoModelForCausalLM.from_pretrained(self.folder, attn_implementation="sdpa").eval()

    @cached_property
    def plain(self) -> Any:
        """With SDPA."""
        return self.fresh()

    @cached_property
    def ours(self) -> Any:
        """As users load it."""
        return al.load_model(self.folder, device="cpu")

    @cached_property
    def stock(self) -> Any:
        """With TransformerLens' own attention."""
        return al.load_model(self.folder, device="cpu", attention="stock")

    def tokens(self, shape: tuple[int, int]) -> torch.Tensor:
        """The same for every way."""
        return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))

    @cached_property
    def ablation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Half of the neurons, and values for all."""
        layers, width, heads = self.size.model.model
        shape = (layers, heads, width // heads)
        return al.random_neurons(shape, 0.5, 42), torch.randn(shape, generator=torch.Generator().manual_seed(2)) / 10


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: what is done.
        rounds: how many are timed.
        ways: what does it; the first is what the others are compared with.
        goal: of ours, if there is one.
        times: what a time is multiplied by, for who does a part of the work only.
        agree: whether all give the same logits.
        memory: whether peaks are taken.
    """

    name: str
    rounds: int
    ways: Mapping[str, Build]
    goal: float | None = None
    times: Mapping[str, float] = field(default_factory=dict)
    agree: bool = False
    memory: bool = True


# ---------------------------------------------------------------------- load


def used_once(load: Callable[[], Any], models: Models) -> Callable[[], Any]:
    """Loading, and a forward that needs every weight."""
    tokens = models.tokens(models.size.short)

    def run() -> None:
        model = load()
        with torch.inference_mode():
            model(tokens)

    return run


def plain_load(models: Models) -> Callable[[], Any]:
    return used_once(models.fresh, models)


def our_load(models: Models) -> Callable[[], Any]:
    return used_once(lambda: al.load_model(models.folder, device="cpu"), models)


def stock_load(models: Models) -> Callable[[], Any]:
    """As `HookedTransformer.from_pretrained_no_processing` does it, which would ask the hub for a tokenizer."""

    def run() -> Any:
        from transformer_lens import HookedTransformer
        from transformer_lens import loading_from_pretrained as loading

        hf_model = models.fresh()
        values = {**hf_model.config.to_dict(), "architectures": ["OPTForCausalLM"]}
        cfg = loading.get_pretrained_model_config(models.folder, hf_cfg=values, device="cpu", dtype=torch.float32)
        cfg.tokenizer_name = None
        model = HookedTransformer(cfg)
        state = loading.get_pretrained_state_dict("gpt2", cfg, hf_model, dtype=torch.float32)
        off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
        model.load_and_process_state_dict(state, **off)
        return model

    return used_once(run, models)


# ---------------------------------------------------------------------- collect


def plain_collect(models: Models) -> Callable[[], Any]:
    model, projections = models.plain, projections_of(models.plain)
    batches = [models.tokens(models.size.long)] * models.size.batches

    @torch.inference_mode()
    def run() -> Any:
        kept: list[list[torch.Tensor]] = [[] for _ in projections]
        handles = [
            projection.register_forward_pre_hook(lambda m, inputs, layer=layer: kept[layer].append(inputs[0]))
            for layer, projection in enumerate(projections)
        ]
        for tokens in batches:
            model.base_model(tokens, use_cache=False)
        for handle in handles:
            handle.remove()
        return [histogram_peak(torch.cat(parts).flatten(0, -2)) for parts in kept]

    return run


def our_collect(models: Models) -> Callable[[], Any]:
    model, batches = models.ours, [models.tokens(models.size.long)] * models.size.batches
    return lambda: al.collect(model, batches, progress=False).center("peak")


def stock_collect(models: Models) -> Callable[[], Any]:
    model, batches = models.stock, [models.tokens(models.size.long)] * models.size.batches
    return torch.inference_mode()(lambda: keep_everything_and_bin_afterwards(model, batches))


def projections_of(model: Any) -> list[torch.nn.Module]:
    """The output projection of every layer's attention."""
    return [layer.self_attn.out_proj for layer in model.model.decoder.layers]


# ---------------------------------------------------------------------- ablated forward


def plain_forward(models: Models, shape: tuple[int, int]) -> Callable[[], Any]:
    model, tokens = models.plain, models.tokens(shape)

    @torch.inference_mode()
    def run() -> Any:
        with ablated(models):
            return model(tokens, use_cache=False).logits

    return run


@contextlib.contextmanager
def ablated(models: Models) -> Any:
    """The transformers model with pre-hooks that ablate, put on and taken off at every call, as ours are."""
    masks, values = (part.flatten(1) for part in models.ablation)
    handles = [
        projection.register_forward_pre_hook(lambda m, inputs, at=at: (torch.where(masks[at], values[at], inputs[0]),))
        for at, projection in enumerate(projections_of(models.plain))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def our_forward(models: Models, shape: tuple[int, int]) -> Callable[[], Any]:
    model, tokens = models.ours, models.tokens(shape)
    hooks = al.Ablation(*models.ablation).hooks()
    return torch.inference_mode()(lambda: model.run_with_hooks(tokens, fwd_hooks=hooks))


def stock_hooks(models: Models) -> list[Any]:
    """Plain hook functions."""
    masks, values = models.ablation
    return [
        (name, lambda z, hook, at=at: torch.where(masks[at], values[at], z))
        for at, name in enumerate(al.Site.Z.hook_names(models.stock.cfg))
    ]


def stock_forward(models: Models, shape: tuple[int, int]) -> Callable[[], Any]:
    model, tokens, hooks = models.stock, models.tokens(shape), stock_hooks(models)
    return torch.inference_mode()(lambda: model.run_with_hooks(tokens, fwd_hooks=hooks))


def nnsight_forward(models: Models, shape: tuple[int, int]) -> Callable[[], Any]:
    from nnsight import NNsight

    model, tokens = NNsight(models.fresh()), models.tokens(shape)
    masks, values = (part.flatten(1) for part in models.ablation)

    @torch.inference_mode()
    def run() -> Any:
        with model.trace(tokens, use_cache=False):
            for at, layer in enumerate(model.model.decoder.layers):
                layer.self_attn.out_proj.input = torch.where(masks[at], values[at], layer.self_attn.out_proj.input)
            logits = model.output.logits.save()
        return logits  # noqa: RET504  (a trace brings out what was given a name in it)

    return run


def pyvene_forward(models: Models, shape: tuple[int, int]) -> Callable[[], Any]:
    with contextlib.redirect_stdout(io.StringIO()):  # a greeting, in the middle of the table
        from pyvene import IntervenableModel

    masks, values = (part.flatten(1) for part in models.ablation)
    places = [
        {
            "component": f"model.decoder.layers.{at}.self_attn.out_proj.input",
            "intervention": lambda base, source, at=at: torch.where(masks[at], values[at], base),
        }
        for at in range(len(masks))
    ]
    model, inputs = IntervenableModel(places, model=models.fresh()), {"input_ids": models.tokens(shape)}
    return torch.inference_mode()(lambda: model({**inputs, "use_cache": False})[1].logits)


# ---------------------------------------------------------------------- ablated evaluation


def plain_evaluation(models: Models) -> Callable[[], Any]:
    model, batch = models.plain, Batch.causal(models.tokens(models.size.long))

    @torch.inference_mode()
    def run() -> Any:
        with ablated(models):
            return score(model(batch.inputs, use_cache=False).logits[batch.scored], batch)

    return run


def our_evaluation(models: Models) -> Callable[[], Any]:
    model, batch = models.ours, Batch.causal(models.tokens(models.size.long))
    ablation = al.Ablation(*models.ablation)
    return lambda: al.evaluate(model, batch, ablation)


def stock_evaluation(models: Models) -> Callable[[], Any]:
    model, batch, hooks = models.stock, Batch.causal(models.tokens(models.size.long)), stock_hooks(models)
    return torch.inference_mode()(lambda: score(logits_everywhere(model, batch, hooks)[batch.scored], batch))


# ---------------------------------------------------------------------- studies and knock-outs


def a_study(models: Models, which: str, name: str) -> Callable[[], Any]:
    return torch.inference_mode()(functools.partial(studies.STUDIES[which], name, models.size.study))


def our_knockouts(models: Models) -> Callable[[], Any]:
    return functools.partial(knocking.ours, models.ours, knocking.prompts_of(models.size.model), models.size.model)


def stock_knockouts(models: Models) -> Callable[[], Any]:
    return functools.partial(knocking.plain, models.stock, knocking.prompts_of(models.size.model), models.size.model)


def plain_knockouts(models: Models) -> Callable[[], Any]:
    """One run of the whole model for each head, whose values a pre-hook sets to 0."""
    model, size = models.plain, models.size.model
    batch = knocking.prompts_of(size)
    _, width, count = size.model
    projections = projections_of(model)

    def difference() -> torch.Tensor:
        last = model(batch.inputs, use_cache=False).logits[:, -1]
        return (last.gather(1, batch.answers[:, :1]) - last.gather(1, batch.wrong[:, :1])).mean()

    def without(head: int) -> Callable[..., Any]:
        dims = slice(head * width // count, (head + 1) * width // count)

        def hook(module: Any, inputs: Any) -> Any:
            z = inputs[0].clone()
            z[..., dims] = 0
            return (z,)

        return hook

    @torch.inference_mode()
    def run() -> Any:
        clean, effects = difference(), []
        for layer, head in knocking.heads(size):
            handle = projections[layer].register_forward_pre_hook(without(head))
            effects.append(difference() - clean)
            handle.remove()
        return torch.stack(effects)

    return run


def rows(size: Size) -> list[Row]:
    """The table's rows, in its order."""
    layers, _, heads = size.model.model
    one_by_one = (layers * heads + 1) / (len(knocking.heads(size.model)) + 1)
    stock_is_there = transformer_lens_major() < 4  # 4.x has no HookedTransformer to load by itself
    forwards: dict[str, Callable[..., Callable[[], Any]]] = {
        "plain": plain_forward, "ours": our_forward, "stock": stock_forward, "nnsight": nnsight_forward,
        "pyvene": pyvene_forward,
    }  # fmt: skip

    def forward(shape: tuple[int, int]) -> dict[str, Build]:
        there = {way: make for way, make in forwards.items() if way not in ("nnsight", "pyvene") or find_spec(way)}
        return {way: functools.partial(make, shape=shape) for way, make in there.items()}

    def study(name: str) -> dict[str, Build]:
        return {way: functools.partial(a_study, which=way, name=name) for way in ("plain", "ours", "stock")}

    def told(shape: tuple[int, int]) -> str:
        return "×".join(map(str, shape))

    return [
        Row(
            "load, and run once",
            5,
            {"plain": plain_load, "ours": our_load} | ({"stock": stock_load} if stock_is_there else {}),
        ),
        Row(
            f"collect, {size.batches} × {told(size.long)}",
            3,
            {"plain": plain_collect, "ours": our_collect, "stock": stock_collect},
        ),
        Row(f"ablated forward, {told(size.long)}", 7, forward(size.long), 1.02, agree=True),
        Row(f"ablated forward, {told(size.short)}", 80, forward(size.short), 1.05, agree=True, memory=False),
        Row(
            f"ablated evaluation, {told(size.long)}",
            5,
            {"plain": plain_evaluation, "ours": our_evaluation, "stock": stock_evaluation},
        ),
        *(
            # Only what is scored is unembedded, and a masked model scores little.
            Row(f"study, {name}", 5, study(name), 0.85 if name == "tiny-roberta" else 0.95, memory=name == "tiny-opt")
            for name in size.families
        ),
        Row(
            f"knock-outs of {layers}×{heads} heads",
            3,
            {"plain": plain_knockouts, "ours": our_knockouts, "stock": stock_knockouts},
            0.55,
            {"plain": one_by_one, "stock": one_by_one},
        ),
    ]


# ---------------------------------------------------------------------- measuring


def child(row: str, which: str, folder: str, size: Size = WHOLE) -> float:
    """One way of one row, once, and its peak resident set in MiB."""
    made = next(each for each in rows(size) if each.name == row)
    made.ways[which](Models(folder, size))()
    return peak_mib()


def measure(row: Row, models: Models, factor: float) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every way in every round, and peaks."""
    runs = {way: build(models) for way, build in row.ways.items()}
    if row.agree:
        expected = runs["plain"]()
        for way, run in runs.items():
            gap = float((run() - expected).abs().max())
            if gap > 1e-3:
                sys.exit(f"{row.name}: {way} is {gap:.1e} from plain, so that they do not do the same.")
    seconds = interleaved(runs, max(1, round(row.rounds * factor)))
    seconds = {way: [each * row.times.get(way, 1.0) for each in times] for way, times in seconds.items()}
    peaks = {}
    if row.memory:
        for way in row.ways:
            run = functools.partial(child, size=models.size)
            peaks[way] = apart(__file__, run, row.name, way, models.folder, toy=models.size is TOY)
    return seconds, peaks


def ratios_of(seconds: Mapping[str, list[float]], way: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios to plain within rounds."""
    found = [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return low, middle, high


def print_row(row: Row, seconds: Mapping[str, list[float]], peaks: Mapping[str, float]) -> bool:
    """A line of the table; whether the goal is reached."""
    low, middle, high = ratios_of(seconds, "ours")
    reached = row.goal is None or middle <= row.goal
    verdict = "" if row.goal is None else f"≤ {row.goal}: {'reached' if reached else 'MISSED'}"
    others = [f"{ratios_of(seconds, way)[1]:.2f}" if way in seconds else "–" for way in WAYS[1:]]
    memory = " / ".join(f"{peaks[way]:.0f}" for way in peaks)
    cells = [
        row.name, f"{statistics.median(seconds['plain']):.3f} s", f"{middle:.3f}", f"{low:.3f}–{high:.3f}", verdict,
        *others, f"{len(seconds['plain'])}", memory,
    ]  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)
    return reached


# ---------------------------------------------------------------------- growth


def growing(size: Size) -> dict[tuple[str, str], list[Callable[[], Any]]]:
    """What is done, and with what it grows: at 1×, 2× and 4× of that."""
    layers, width, heads = size.growth
    rows_, length = size.long
    length = max(8, length // 2)
    models = [opt(layers * times, width, heads) for times in (1, 2, 4)]
    draw = torch.Generator().manual_seed(3)
    batches = [Batch.causal(torch.randint(3, VOCABULARY, (rows_, length), generator=draw)) for _ in range(8)]
    prompts = knocking.prompts_of(size.model)

    def ablation(model: Any) -> al.Ablation:
        shape = al.Site.Z.shape(model.cfg)
        return al.Ablation(al.random_neurons(shape, 0.5, 42), torch.zeros(shape))

    def collect(model: Any, count: int) -> Callable[[], Any]:
        return lambda: al.collect(model, batches[:count], progress=False)

    def forward(model: Any, count: int) -> Callable[[], Any]:
        tokens = torch.cat([batch.inputs for batch in batches[:count]])
        hooks = ablation(model).hooks()
        return torch.inference_mode()(lambda: model.run_with_hooks(tokens, fwd_hooks=hooks))

    def evaluate(model: Any, count: int) -> Callable[[], Any]:
        made = ablation(model)
        return lambda: al.evaluate(model, batches[:count], made)

    def knock(model: Any) -> Callable[[], Any]:
        return lambda: circuits.knockout_effects(model, prompts, "logit_difference", 0.0, progress=False)

    def study(methods: tuple[str, ...], times: int) -> Callable[[], Any]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                al.Study(
                    models=["tiny-opt"], methods=methods, fractions=size.study.fractions, seeds=[42],
                    collect_tokens=size.study.tokens["collect"] * times // 2,
                    evaluate_tokens=size.study.tokens["evaluate"] * times // 2,
                ).run(folder, progress=False)  # fmt: skip

        return run

    first, methods = models[0], ("zero", "mean", "peak", "median")
    grown = {
        ("collect", "tokens"): [collect(first, count) for count in (2, 4, 8)],
        ("collect", "layers"): [collect(model, 2) for model in models],
        ("ablated forward", "tokens"): [forward(first, count) for count in (1, 2, 4)],
        ("ablated forward", "layers"): [forward(model, 1) for model in models],
        ("ablated evaluation", "tokens"): [evaluate(first, count) for count in (2, 4, 8)],
        ("ablated evaluation", "layers"): [evaluate(model, 2) for model in models],
        ("knock-outs", "layers (and heads)"): [knock(model) for model in models],
    }
    if size.families:
        grown["study of tiny-opt", "tokens"] = [study(("zero", "peak"), times) for times in (1, 2, 4)]
        grown["study of tiny-opt", "methods"] = [study(methods[:count], 2) for count in (1, 2, 4)]
    return grown


def print_growth(size: Size, factor: float) -> None:
    """The second table."""
    print("\n| how ours grows | with | 1× | 2× | 4× | exponent |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for (what, by), runs in growing(size).items():
        seconds = interleaved(dict(zip(("1", "2", "4"), runs, strict=True)), max(1, round(3 * factor)))
        one, two, four = (statistics.median(times) for times in seconds.values())
        exponent = math.log(four / one, 4)
        print(f"| {what} | {by} | {one:.3f} s | {two / one:.2f} | {four / one:.2f} | {exponent:.2f} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=float, default=1.0, help="a factor on the number of rounds")
    parser.add_argument("--only", default="", help="rows whose name holds this, and no growth")
    parser.add_argument("--toy", action="store_true", help="a size that takes seconds and says nothing")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1 if options.toy else 2)
    if options.child:
        print(child(*options.child))
        return
    size, versions, began = TOY if options.toy else WHOLE, Versions.current(), time.perf_counter()
    print(
        f"{processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.2f}; Python {versions.python}, torch {versions.torch}, transformers "
        f"{versions.transformers}, transformer-lens {versions.transformer_lens}; {time.strftime('%Y-%m-%d')}"
    )
    for other in ("nnsight", "pyvene"):
        if not find_spec(other):
            print(f"{other} is not installed, and left out")
    print("\n| | plain | ours | quartiles | goal | stock | nnsight | pyvene | rounds | peak MiB, plain / ours / … |")
    print("| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | --- |")
    reached = True
    with tempfile.TemporaryDirectory(prefix="ratios-") as folder:
        Models.write(folder, size)
        models = Models(folder, size)
        for row in rows(size):
            if options.only in row.name:
                reached &= print_row(row, *measure(row, models, options.rounds))
    if not options.only:
        print_growth(size, options.rounds)
    print(f"\nall goals reached: {'yes' if reached else 'NO'}; {(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()

"""The whole chain once more, by other means: plain Hugging Face models, a hook before the output projection, NumPy.

Nothing of the package is used but the ids and pixels of the plans' items. Documents are run one by one, unpadded.
"""

import hashlib
import random
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
import transformers

import ablation_lens as al
from ablation_lens import zoo

AUTO = {
    "tiny-opt": "AutoModelForCausalLM",
    "tiny-mistral": "AutoModelForCausalLM",
    "tiny-roberta": "AutoModelForMaskedLM",
    "tiny-vit": "AutoModelForImageClassification",
}
METHODS = ("zero", "mean", "median", "peak", "resample")
SEED = 42


@dataclass
class Reference:
    """A Hugging Face model whose z (the output projections' input) can be read and replaced."""

    model: torch.nn.Module

    @property
    def projections(self):
        names = ("out_proj", "o_proj", "attention.output.dense")
        return [module for name, module in self.model.named_modules() if name.endswith(names)]

    def run(self, inputs, replace=None):
        """Logits, and z [layer pos neuron], of one document; `replace` gets each layer's z and gives another."""
        seen = []

        def before(layer):
            def hook(module, args):
                z = args[0].numpy()
                seen.append(z[0].copy())
                return None if replace is None else (torch.from_numpy(replace(layer, z)), *args[1:])

            return hook

        handles = [module.register_forward_pre_hook(before(n)) for n, module in enumerate(self.projections)]
        try:
            with torch.no_grad():
                return self.model(inputs[None]).logits[0].double().numpy(), np.stack(seen)
        finally:
            for handle in handles:
                handle.remove()


def fed(item):
    return item.pixels if hasattr(item, "pixels") else torch.tensor(item.inputs)


def predictions(name, item, logits):
    """Logits of the scored predictions, and what is right."""
    if name == "tiny-vit":
        return logits[None], np.array([item.label])
    tokens = np.array(item.tokens)
    if name == "tiny-roberta":
        return logits[list(item.scored)], tokens[list(item.scored)]
    return logits[:-1], tokens[1:]  # every next token


def score(name, reference, plan, replace=None):
    """Top-1 and cross-entropy in nats, over all predictions of a plan."""
    right = nats = count = 0
    for item in plan.items:
        logits, _ = reference.run(fed(item), replace)
        logits, labels = predictions(name, item, logits)
        top = logits.max(-1, keepdims=True)
        total = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
        nats += (total - logits[np.arange(len(labels)), labels]).sum()
        right += (logits.argmax(-1) == labels).sum()
        count += len(labels)
    return right / count, nats / count


# ---------------------------------------------------------------------- centers


def dyadic_bins(values, bins):
    """ε and cells of one neuron's values: the smallest power of two with which its range takes at most `bins` cells."""
    low, high = values.min(), values.max()
    # no finer than float32's own spacing at the largest magnitude
    exponent = int(np.floor(np.log2(max(abs(low), abs(high))))) - 23
    while np.floor(high * 2.0**-exponent) - np.floor(low * 2.0**-exponent) >= bins:
        exponent += 1
    return 2.0**exponent, np.floor(values * 2.0**-exponent)


def peak(values):
    """The middle of the fullest bin of at most 128, the lower of equals; and by how many values it leads."""
    epsilon, cells = dyadic_bins(values, 128)
    places, counts = np.unique(cells, return_counts=True)
    lead = np.sort(counts)[-2:]
    return (places[counts.argmax()] + 0.5) * epsilon, lead[-1] - lead[0]


def median(values):
    """The median, supposing that the values of each of at most 256 bins lie evenly in it."""
    epsilon, cells = dyadic_bins(values, 256)
    cells = np.sort(cells)

    def ordered(rank):
        cell = cells[rank]
        first, last = np.searchsorted(cells, [cell, cell + 1])
        return np.clip((cell + (rank - first + 0.5) / (last - first)) * epsilon, values.min(), values.max())

    return (ordered((len(cells) - 1) // 2) + ordered(len(cells) // 2)) / 2


def drawn(layers, neurons, fraction):
    """The first ⌊fraction · n⌋ of a permutation per layer: neurons sorted by Python's own random numbers."""
    mask = np.zeros((layers, neurons), dtype=bool)
    for layer in range(layers):
        generator = random.Random(int(hashlib.sha256(f"neurons {SEED} {layer}".encode()).hexdigest(), 16))
        keys = np.array([generator.random() for _ in range(neurons)])
        mask[layer, keys.argsort(kind="stable")[: int(Fraction(str(fraction)) * neurons)]] = True
    return mask


# ---------------------------------------------------------------------- the comparison


@pytest.mark.parametrize("name", AUTO)
def test_the_whole_chain_agrees_with_an_independent_one(name):
    model = al.load_model(name)
    task = al.task_for(model)
    unit, collect, evaluate = ("images", 24, 32) if name == "tiny-vit" else ("tokens", 1500, 1000)
    collected, evaluated = (
        task.batches(split="collect", **{unit: collect}),
        task.batches(split="evaluate", **{unit: evaluate}),
    )
    hf_model = getattr(transformers, AUTO[name]).from_pretrained(zoo.folder(name), dtype=torch.float32).eval()
    reference = Reference(hf_model)
    layers, heads, dims = shape = al.Site.Z.shape(model.cfg)
    assert len(reference.projections) == layers

    # Centers: ours in one pass over batches; theirs from all values at once.
    statistics = al.collect(model, collected, progress=False)
    z = np.concatenate([reference.run(fed(item))[1] for item in collected.items], axis=1).astype(np.float64)
    assert z.shape == (layers, statistics.provenance.tokens, heads * dims)
    columns = z.transpose(0, 2, 1).reshape(layers * heads * dims, -1)
    peaks, leads = (np.array(part) for part in zip(*(peak(column) for column in columns), strict=True))
    centers = {
        "zero": np.zeros(len(columns)),
        "mean": columns.mean(1),
        "median": np.array([median(column) for column in columns]),
        "peak": peaks,
    }
    ours = {center: statistics.center(center).numpy().reshape(-1) for center in centers}
    apart = {center: np.abs(ours[center] - centers[center]) for center in centers}
    moved = {center: distance > 1e-5 for center, distance in apart.items()}
    # z differs in its last bits, so a value may lie just across the edge of a bin. Only then, and seldom, a median
    # moves within its bin, or one of two equally full bins becomes the fullest.
    epsilon = np.array([dyadic_bins(column, 256)[0] for column in columns])
    assert not moved["zero"].any()
    assert not moved["mean"].any()
    assert moved["median"].mean() <= 0.01
    assert (apart["median"] <= epsilon)[moved["median"]].all()
    assert moved["peak"].mean() <= 0.01
    assert (leads[moved["peak"]] <= 2).all()
    centers = {center: np.where(moved[center], ours[center], values) for center, values in centers.items()}

    # Resampling: z of one fixed random input, position by position, each side from its own model.
    length = max(item.length for item in evaluated.items)
    generator = np.random.default_rng(SEED)
    if name == "tiny-vit":
        fixed = torch.from_numpy(generator.uniform(-1, 1, tuple(evaluated.items[0].pixels.shape)).astype(np.float32))
    else:
        fixed = torch.from_numpy(generator.integers(5, model.cfg.d_vocab, length))
    _, resampled = reference.run(fixed)
    seen = []
    model.run_with_hooks(
        fixed[None],
        fwd_hooks=[(hook, lambda z, hook: seen.append(z[0])) for hook in al.Site.Z.hook_names(model.cfg)],
    )
    our_resampled = torch.stack(seen)

    found = {"baseline": (score(name, reference, evaluated), al.evaluate(model, evaluated))}
    for fraction in (0.5, 1.0):
        mask, our_mask = drawn(layers, heads * dims, fraction), al.random_neurons(shape, fraction, SEED)
        assert np.array_equal(our_mask.numpy().reshape(mask.shape), mask)
        for method in METHODS:

            def replace(layer, values, method=method, mask=mask):
                if method == "resample":
                    new = resampled[layer, : values.shape[1]]
                else:
                    new = centers[method].reshape(layers, -1)[layer]
                return np.where(mask[layer], new, values).astype(np.float32)

            ablation = (
                al.Ablation(our_mask, our_resampled, model.record)
                if method == "resample"
                else statistics.ablation(our_mask, method)
            )
            theirs = score(name, reference, evaluated, replace)
            found[f"{method} {fraction}"] = theirs, al.evaluate(model, evaluated, ablation)
    assert len({nats for (_, nats), _ in found.values()}) == 11  # every cell is an experiment of its own
    for what, ((top1, nats), own) in found.items():
        assert own.top1 == top1, what
        assert abs(own.cross_entropy - nats) <= 1e-5, what

"""Statistics of a model of any size without the model: every neuron of a known family, at a scale of its own."""

import numpy as np
import pandas
import torch

from ablation_lens.neurons.grid import Grid
from ablation_lens.neurons.histogram_file import histogram_from_file, to_file
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.statistics import ActivationStatistics, Provenance
from ablation_lens.records import ModelRecord, Versions


def record(shape, name="synthetic"):
    layers, heads, dims = shape
    return ModelRecord(
        name=name,
        revision=None,
        architecture="Synthetic",
        dtype="float32",
        processing="none",
        weights=None,
        n_layers=layers,
        n_heads=heads,
        d_head=dims,
        d_model=heads * dims,
        d_mlp=0,
        n_ctx=1024,
    )


def draw(tokens, shape, seed=0):
    """`[token layer head dim]`: normal, off-zero, skewed, heavy-tailed, flat and two-peaked neurons, in turn."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, *shape, generator=generator)
    family = torch.arange(z[0].numel()).view(shape) * 7 % 23
    layer = torch.arange(shape[0]).view(-1, 1, 1) / max(1, shape[0] - 1)
    z = torch.where(family == 3, z + 2.5 * layer, z)
    z = torch.where(family == 8, z.abs() * z.sign().add(1.5), z)
    z = torch.where((family == 11) | (family == 12), z * z.abs(), z)
    z = torch.where(family == 15, z.erf(), z)
    sides = (torch.arange(tokens) % 3 > 0).view(-1, 1, 1, 1) * 4.0 - 2.0
    z = torch.where(family == 19, z * 0.6 + sides, z)
    return z * torch.exp(torch.rand(shape, generator=generator) * 3 - 2)


def statistics_of(values, bins=256, name="synthetic"):
    """What `collect` would have made of `[token layer head dim]` values."""
    return ActivationStatistics.of_values(values, model=record(tuple(values.shape[1:]), name), bins=bins)


def large_statistics(shape=(24, 32, 64), tokens=2048, scale=50):
    """As many values as a real collection has, without drawing each: counts are drawn around those of a sample.

    The sample's counts are smoothed, multiplied by `scale` and drawn again as Poisson numbers, within the bins the
    sample used; moments stay the sample's.
    """
    parts = [statistics_of(draw(tokens, (1, *shape[1:]), seed=layer)) for layer in range(shape[0])]
    tensors = [to_file(part.histogram)[0] for part in parts]
    state = {name: torch.cat([each[name] for each in tensors]) for name in tensors[0]}
    counts = state["counts"].double()
    kernel = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0], dtype=torch.float64)[None, None] / 9
    rates = torch.nn.functional.conv1d(counts.view(-1, 1, counts.shape[-1]), kernel, padding=2).view_as(counts) * scale
    place = torch.arange(counts.shape[-1])
    last = (place * (counts > 0)).amax(-1, keepdim=True)
    drawn = torch.poisson(rates, generator=torch.Generator().manual_seed(1)).long() * (place <= last)
    drawn = torch.where((place == 0) | (place == last), drawn.clamp(min=1), drawn)
    grid = Grid(state["exponent"], state["offset"])
    state |= {"counts": drawn, "total": drawn.sum(-1), "positive": drawn.sum(-1) - grid.below_zero(drawn)}
    header = {"kind": "NeuronHistogram", "shape": list(shape), "bins": counts.shape[-1], "resolution": "float32"}
    histogram = histogram_from_file(state, header)
    moments = [part.moments.state() for part in parts]
    provenance = Provenance(
        model=record(shape, "synthetic-1.3b"),
        site="z",
        include_bos=True,
        tokens=tokens * scale,
        corpora=(),
        plans=(),
        versions=Versions.current(),
    )
    joined = {name: torch.cat([each[name] for each in moments]) for name in moments[0]}
    return ActivationStatistics(histogram, Moments.from_state(joined, shape), provenance)


def study_results():
    """Four cells of a study of the model "synthetic": two seeds, one without, one that failed."""
    rows = [
        ("peak", 0.5, 1, 0.4, 3.5),
        ("peak", 0.5, 2, 0.2, 4.5),
        ("peak", 1.0, np.nan, 0.1, 5.0),
        ("zero", 0.5, 1, 0.3, np.nan),
    ]
    frame = pandas.DataFrame(rows, columns=["method", "fraction", "seed", "top1", "cross_entropy"])
    return frame.assign(
        model="synthetic", corpus="stdlib", group=None, predictions=9, baseline_top1=0.5, baseline_cross_entropy=3.0
    )

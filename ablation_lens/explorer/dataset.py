"""Statistics as the page wants them: a few numbers per neuron, and every layer's packed counts."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ablation_lens.circuits.effects import Effects
from ablation_lens.errors import AblationLensError
from ablation_lens.explorer.effects import describe_effects, worth
from ablation_lens.explorer.moved import moved_over_sigma, overlap
from ablation_lens.explorer.packing import (
    byte_planes,
    code_planes,
    deflate,
    display_histogram,
    pack_counts,
    slider_widths,
    zero_merges,
)
from ablation_lens.neurons import centers
from ablation_lens.neurons.shapes import SHAPE_WORDS
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.progress import progress_over
from ablation_lens.sites import Site, neuron_name

SUMMARY = (
    "mean",
    "std",
    "skew",
    "excess_kurtosis",
    "peaks",
    "peak",
    "peak_over_sigma",
    "mean_to_peak_over_sigma",
    "epsilon_over_sigma",
    "bins_in_iqr",
    "share_zero",
)
"""What the page sorts, filters and colours by; columns of `ActivationStatistics.table`, to float32."""


def pack_dataset(
    statistics: ActivationStatistics,
    label: str,
    *,
    compared: ActivationStatistics | None = None,
    effects: Effects | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Plain JSON values: provenance, one blob of numbers per neuron, one blob of counts per layer.

    With `compared`, two numbers more per neuron: how far its mean moved, and how much of both lies over each other.
    With `effects`, two more: what it is worth to a metric, and which share that is of all.

    >>> from ablation_lens import collect, load_model
    >>> statistics = collect(load_model("tiny-opt"), [torch.arange(5, 60)[None]], progress=False)
    >>> dataset = pack_dataset(statistics, "tiny-opt")
    >>> dataset["shape"], dataset["widths"], len(dataset["layers"])
    ([4, 4, 32], [128, 64, 32, 16, 8], 4)
    """
    layers = statistics.shape[0]
    with progress_over("packing", 2 * layers + 1, progress, unit="steps") as advance:
        values = _centers(statistics)
        arrays = _summary(statistics, values)
        if compared is not None:
            arrays["moved_over_sigma"] = _single(moved_over_sigma(statistics, compared))
            arrays["overlap"] = _single(overlap(statistics.histogram, compared.histogram))
        if effects is not None:
            arrays |= {name: _single(values) for name, values in worth(effects, statistics).items()}
        advance(layers)
        histogram = display_histogram(statistics.histogram)
        widths = slider_widths(histogram.bins)
        packed, digits, merges = [], [], []
        # A layer at a time: the page inflates only the layers that it shows.
        for layer in range(layers):
            offset = histogram.offset[layer].flatten()
            counts = histogram.counts(layer).flatten(0, 1)
            codes, kept = pack_counts(counts, offset, widths)
            data, planes = code_planes(codes)
            packed.append({"planes": planes, "data": deflate(data)})
            digits.append(kept)
            merges.append(zero_merges(counts, offset, histogram.zeros_of(layer).flatten()))
            advance(1)
        arrays |= {
            # Little-endian on every machine, and of the types that decode.js knows.
            # Two bytes hold every exponent of float64, -1074 to 1023.
            "exponent": histogram.exponent.flatten().numpy().astype("<i2"),
            "offset": histogram.offset.flatten().numpy().astype("<f8"),  # below 2^53, whatever the resolution
            "digits": torch.cat(digits).numpy().astype("u1"),
            "zero_merges": torch.cat(merges).numpy().astype("u1"),
            "total": histogram.total.flatten().numpy().astype("<f8"),
        }
        # decode.js cuts the numbers by this list: both must be in one order.
        columns = [{"name": name, "type": array.dtype.str[1:]} for name, array in arrays.items()]
        summary = deflate(b"".join(map(byte_planes, arrays.values())))
        advance(1)
    return {
        "label": label,
        "digest": _digest(statistics),
        "naming": _naming(statistics.site),
        "provenance": [
            *_provenance(statistics),
            *([["effects", describe_effects(effects)]] if effects is not None else []),
        ],
        "shape": list(statistics.shape),
        "bins": histogram.bins,
        "widths": list(widths),
        "centers": list(values),
        "shapes": list(SHAPE_WORDS),
        "columns": columns,
        "summary": summary,
        "layers": packed,
    }


def _centers(statistics: ActivationStatistics) -> dict[str, Float[Tensor, "layer head dim"]]:
    """Every center these statistics can give, users' own among them; not what needs a second pass, for example."""
    found = {}
    for name in centers.names():
        with suppress(AblationLensError):
            found[name] = statistics.center(name)
    return found


def _summary(
    statistics: ActivationStatistics, values: Mapping[str, Float[Tensor, "layer head dim"]]
) -> dict[str, NDArray[Any]]:
    table = statistics.table()
    arrays: dict[str, NDArray[Any]] = {name: table[name].to_numpy().astype("<f4") for name in SUMMARY}
    # The exact ends: a constant neuron's peak is its value.
    arrays |= {name: table[name].to_numpy().astype("<f8") for name in ("min", "max")}
    arrays["shape"] = np.array([SHAPE_WORDS.index(word) for word in table["shape"]], dtype="u1")
    # The page computes zero and the peak itself, the latter at every width.
    arrays |= {f"center:{name}": _single(at) for name, at in values.items() if name not in ("zero", "peak")}
    return arrays


def _single(values: Float[Tensor, "layer head dim"]) -> NDArray[np.generic]:
    return values.flatten().numpy().astype("<f4")


def _naming(site: Site) -> str:
    """The letters of a neuron's name, in order: LHD, LM or LD."""
    return "".join(filter(str.isalpha, neuron_name(0, 0, 0, site)))


def _digest(statistics: ActivationStatistics) -> str:
    """Names these statistics, so that a page with other things beside them finds the same notes."""
    origin = statistics.provenance.to_dict()
    # A file that is written anew by another version holds the same neurons.
    del origin["versions"]
    told = hashlib.sha256(json.dumps(origin, sort_keys=True).encode())
    for ends in (statistics.minimum, statistics.maximum):
        told.update(ends.double().numpy().astype("<f8").tobytes())
    return told.hexdigest()[:24]


def _provenance(statistics: ActivationStatistics) -> list[list[str]]:
    """What the page says about where the numbers come from, as (term, words) pairs."""
    origin = statistics.provenance
    model = origin.model
    pairs = [
        ("model", model.name),
        ("architecture", model.architecture),
        ("dtype", model.dtype),
        ("processing", model.processing),
        ("site", origin.site),
        ("positions", f"{origin.tokens:,}"),
        ("special positions", "counted" if origin.include_bos else "left out"),
    ]
    for corpus, reading in zip(origin.corpora, origin.plans, strict=True):
        pairs.append(("corpus", f"{corpus.name}/{corpus.split}, {corpus.documents:,} documents"))
        if not reading.is_whole:
            ranges = ", ".join(f"{start} to {stop - 1}" for start, stop in reading.read)
            pairs.append(("read", f"only batches {ranges} of 0 to {(reading.batches or 0) - 1}"))
    if not origin.corpora:
        pairs.append(("corpus", "your own batches"))
    pairs.append(("ablation-lens", origin.versions.ablation_lens))
    return [list(pair) for pair in pairs]

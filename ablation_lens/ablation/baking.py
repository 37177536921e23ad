"""Folding constants into weights: a model that computes, without hooks, what an ablated one does.

Neurons only act through the projection after them, so a neuron that is always `c` is a row of that projection
set to zero, and `c` times the old row added to its bias.
"""

import hashlib
from dataclasses import replace
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ablation_lens.ablation.copying import sharing_copy
from ablation_lens.hooked import output_projection
from ablation_lens.records import record_of
from ablation_lens.sites import Site
from ablation_lens.weights import checksum


def bake(model: Any, site: Site, mask: Bool[Tensor, "layer head dim"], values: Float[Tensor, "layer head dim"]) -> Any:
    """A copy of `model` that shares every tensor with it, but for the projections after ablated neurons."""
    copied = sharing_copy(model)
    for layer in mask.flatten(1).any(1).nonzero().flatten().tolist():
        projection = output_projection(copied.blocks[layer], site)
        weight = projection.weight()
        gone = mask[layer].flatten().to(weight.device)
        # In float64, rounded once at the end: a bias is a sum over up to all of a layer's neurons.
        constant = values[layer].flatten().to(weight.device).double().masked_fill(~gone, 0.0)
        bias = constant @ weight.double()
        # Families without an output bias get one.
        if (old := projection.bias()) is not None:
            bias = bias + old.double()
        # A new tensor: the old one is the original's, too.
        projection.set(weight.masked_fill(gone[:, None], 0.0), bias.to(weight.dtype))
    # Statistics of the original, or of a model baked otherwise, are not this model's, nor the other way round.
    record = record_of(model)
    what = f"{int(mask.sum())} {site.value} neurons baked ({_digest(mask, values)})"
    copied.record = replace(record, processing=f"{record.processing}, {what}", checksum=checksum(copied))
    return copied


def _digest(mask: Bool[Tensor, "layer head dim"], values: Float[Tensor, "layer head dim"]) -> str:
    constants = values.detach().double().cpu().masked_fill(~mask.cpu(), 0.0) + 0.0  # -0.0 is 0.0
    digest = hashlib.sha256(mask.cpu().contiguous().numpy().tobytes())
    digest.update(constants.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]

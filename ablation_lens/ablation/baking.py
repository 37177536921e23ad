"""Folding constants into weights: a model that computes, without hooks, what an ablated one does.

Neurons of `z` and `mlp` only act through the projection after them, so a neuron that is always `c` is a row of that
projection set to zero, and `c` times the old row added to its bias. Those of `v`, `attn_out` and `mlp_out` are what a
projection gives, so such a neuron is a column set to zero, and a bias of `c`.
"""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablation_lens.ablation.copying import sharing_copy
from ablation_lens.errors import MismatchError
from ablation_lens.hooked import projection
from ablation_lens.records import record_of
from ablation_lens.sites import Site, Weights
from ablation_lens.weights import checksum


def bake(model: Any, site: Site, mask: Bool[Tensor, "layer head dim"], values: Float[Tensor, "layer head dim"]) -> Any:
    """A copy of `model` that shares every tensor with it, but for the projections after ablated neurons."""
    weights = _weights(model, site)
    copied = sharing_copy(model)
    for layer in mask.flatten(1).any(1).nonzero().flatten().tolist():
        held = projection(copied.blocks[layer], weights)
        weight = held.weight()
        gone = mask[layer].flatten().to(weight.device)
        # In float64, rounded once at the end: a bias is a sum over up to all of a layer's neurons.
        constant = values[layer].flatten().to(weight.device).double().masked_fill(~gone, 0.0)
        # Families without a bias get one.
        old = held.bias()
        bias = weight.new_zeros(weight.shape[1], dtype=torch.float64) if old is None else old.double()
        bias = torch.where(gone, constant, bias) if weights.made else bias + constant @ weight.double()
        # A new tensor: the old one is the original's, too.
        held.set(weight.masked_fill(gone if weights.made else gone[:, None], 0.0), bias.to(weight.dtype))
    # Statistics of the original, or of a model baked otherwise, are not this model's, nor the other way round.
    record = record_of(model)
    what = f"{int(mask.sum())} {site.value} neurons baked ({_digest(mask, values)})"
    copied.record = replace(record, processing=f"{record.processing}, {what}", checksum=checksum(copied))
    return copied


def _weights(model: Any, site: Site) -> Weights:
    """Where constants of this site go, or one sentence: after a norm, for one, they would no longer be constants."""
    if site.weights is None:
        possible = [each.value for each in Site if each.weights is not None]
        raise MismatchError(
            f"what is set at {site.value!r} cannot be baked into weights; use applied_to(model), or one of "
            f"{', '.join(possible)}."
        )
    if site in (Site.ATTN_OUT, Site.MLP_OUT) and _norm_follows(model):
        raise MismatchError(
            f"this model's {site.value} comes out of a norm, and cannot be baked into weights; use applied_to(model)."
        )
    if site is Site.V and hasattr(model, "original_model") and not _apart(model):
        raise MismatchError(
            "this model makes queries, keys and values with one matrix, into which transformer-lens 4 cannot bake; "
            "use applied_to(model)."
        )
    return site.weights


def _norm_follows(model: Any) -> bool:
    # OLMo 2 has its only norms there; others have a second pair, which both majors call ln1_post and ln2_post.
    after = getattr(model.cfg, "use_normalization_before_and_after", False) or hasattr(model.blocks[0], "ln1_post")
    return bool(after) or str(getattr(model.cfg, "original_architecture", "")).startswith("Olmo")


def _apart(model: Any) -> bool:
    """Whether a `TransformerBridge` runs the Linear that makes values, and not one for queries and keys, too."""
    running = {id(module) for module in model.original_model.modules()}
    return id(model.blocks[0].attn.v.original_component) in running


def _digest(mask: Bool[Tensor, "layer head dim"], values: Float[Tensor, "layer head dim"]) -> str:
    constants = values.detach().double().cpu().masked_fill(~mask.cpu(), 0.0) + 0.0  # -0.0 is 0.0
    digest = hashlib.sha256(mask.cpu().contiguous().numpy().tobytes())
    digest.update(constants.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]

"""Folding constants into weights: a model that computes, without hooks, what an ablated one does.

Neurons only act through the projection behind them, so a neuron that is always `c` is a row of that projection
set to zero, and `c` times the old row added to its bias.
"""

import hashlib
from dataclasses import replace
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ablation_lens.copying import sharing_copy
from ablation_lens.records import record_of
from ablation_lens.sites import Site


def baked(model: Any, site: Site, mask: Bool[Tensor, "layer head dim"], values: Float[Tensor, "layer head dim"]) -> Any:
    """A copy of `model` that shares every tensor with it, but for the projections behind ablated neurons."""
    copied = sharing_copy(model)
    for layer in mask.flatten(1).any(1).nonzero().flatten().tolist():
        projection = _projection(copied.blocks[layer], site)
        weight = projection.weight()
        gone = mask[layer].flatten().to(weight.device)
        constant = values[layer].flatten().to(weight.device).double().masked_fill(~gone, 0.0)
        bias = constant @ weight.double()
        if (old := projection.bias()) is not None:
            bias = bias + old.double()
        projection.set(weight.masked_fill(gone[:, None], 0.0), bias.to(weight.dtype))
    # Statistics of the original, or of a model baked otherwise, are not this model's, nor the other way round.
    record = record_of(model)
    what = f"{int(mask.sum())} {site.value} neurons baked ({_digest(mask, values)})"
    copied.record = replace(record, processing=f"{record.processing}, {what}")
    return copied


def _digest(mask: Bool[Tensor, "layer head dim"], values: Float[Tensor, "layer head dim"]) -> str:
    constants = values.detach().double().cpu().masked_fill(~mask.cpu(), 0.0) + 0.0  # -0.0 is 0.0
    digest = hashlib.sha256(mask.cpu().contiguous().numpy().tobytes())
    digest.update(constants.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


class _Linear:
    """A torch `Linear` (weight `[out in]`) or a GPT-2 `Conv1D` (weight `[in out]`)."""

    def __init__(self, module: Any) -> None:
        self.module, self.transposed = module, isinstance(module, nn.Linear)

    def weight(self) -> Float[Tensor, "neuron d_model"]:
        weight: Tensor = self.module.weight
        return weight.T if self.transposed else weight

    def bias(self) -> Tensor | None:
        found: Tensor | None = self.module.bias
        return found

    def set(self, weight: Tensor, bias: Tensor) -> None:
        self.module.weight = _parameter(weight.T if self.transposed else weight)
        self.module.bias = _parameter(bias)


class _Parameters:
    """TransformerLens' own weights: `W_O [head dim d_model]` and `b_O`, or `W_out [d_mlp d_model]` and `b_out`."""

    def __init__(self, module: Any, weight: str, bias: str) -> None:
        self.module, self.names = module, (weight, bias)

    def weight(self) -> Float[Tensor, "neuron d_model"]:
        weight: Tensor = getattr(self.module, self.names[0])
        return weight.flatten(0, -2)

    def bias(self) -> Tensor | None:
        found: Tensor | None = getattr(self.module, self.names[1])
        return found

    def set(self, weight: Tensor, bias: Tensor) -> None:
        old = getattr(self.module, self.names[0])
        setattr(self.module, self.names[0], _parameter(weight.view(old.shape)))
        setattr(self.module, self.names[1], _parameter(bias))


def _projection(block: Any, site: Site) -> _Linear | _Parameters:
    """What reads the site's neurons: in the adapters, in a `TransformerBridge`, in a `HookedTransformer`."""
    module = block.attn if site is Site.Z else block.mlp
    own, bridged = ("out", "o") if site is Site.Z else ("linear_out", "out")
    if isinstance(linear := getattr(module, own, None), nn.Linear):
        return _Linear(linear)
    bridge = getattr(getattr(module, bridged, None), "original_component", None)
    if bridge is not None:
        return _Linear(bridge)
    return _Parameters(module, *(("W_O", "b_O") if site is Site.Z else ("W_out", "b_out")))


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)

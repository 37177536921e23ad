"""Which output tokens a neuron promotes and suppresses by itself: its row of W_O, the final norm's weights, W_U.

This is the direct effect: what later layers make of the neuron is not in it. The final norm divides by the size of the
whole residual stream, which no neuron has alone, so effects of one neuron can be compared, and those of two cannot;
they are told in standard deviations over the vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ablation_lens.hooked import projection
from ablation_lens.measure.forward import ends_plainly, logits_from
from ablation_lens.sites import Site
from ablation_lens.tasks.plans import Batch

_AT_ONCE = 64
"""Neurons whose effects on a whole vocabulary are in memory together."""


@dataclass(frozen=True)
class OutputTokens:
    """What a neuron does to the logits as it rises: `(token, effect)` pairs, the strongest first.

    An effect is in standard deviations over the vocabulary, from its mean: a softmax does not see the mean.
    """

    promoted: tuple[tuple[int, float], ...]
    suppressed: tuple[tuple[int, float], ...]


def has_direct_effects(model: Any, site: Site) -> bool:
    """Whether a neuron of this site reaches the logits through W_O and W_U alone, in one line.

    Not where a norm follows the block's output, where the head is more than norm and unembedding (encoders, images),
    nor at a site that is not read by an output projection.
    """
    cfg = model.cfg
    if site.weights is None or site.weights.made or getattr(cfg, "use_normalization_before_and_after", False):
        return False
    if not (hasattr(model, "ln_final") and hasattr(model, "unembed")) or hasattr(model, "encode"):
        return False
    tokens = torch.arange(min(8, cfg.d_vocab))[None].to(cfg.device)
    return ends_plainly(model, Batch.causal(tokens))


@torch.inference_mode()
def find_output_tokens(
    model: Any, neurons: Iterable[tuple[int, int, int]], site: Site = Site.Z, k: int = 10
) -> dict[tuple[int, int, int], OutputTokens]:
    """The `k` tokens that each neuron promotes and suppresses most; empty where there is no direct effect.

    >>> from ablation_lens import load_model
    >>> found = find_output_tokens(load_model("tiny-opt"), [(3, 1, 7)], k=2)[3, 1, 7]
    >>> [effect > 0 for _, effect in found.promoted], [effect < 0 for _, effect in found.suppressed]
    ([True, True], [True, True])
    """
    if not has_direct_effects(model, site) or site.weights is None:
        return {}
    _, _, dims = site.shape(model.cfg)
    by_layer: dict[int, list[tuple[int, int, int]]] = {}
    for neuron in neurons:
        by_layer.setdefault(neuron[0], []).append(neuron)
    found = {}
    for layer, all_of_layer in by_layer.items():
        rows = projection(model.blocks[layer], site.weights).weight()
        for start in range(0, len(all_of_layer), _AT_ONCE):
            chosen = all_of_layer[start : start + _AT_ONCE]
            effects = _effects(model, rows[[head * dims + dim for _, head, dim in chosen]])
            high, low = effects.topk(min(k, effects.shape[-1])), (-effects).topk(min(k, effects.shape[-1]))
            for place, neuron in enumerate(chosen):
                found[neuron] = OutputTokens(
                    tuple(zip(high.indices[place].tolist(), high.values[place].tolist(), strict=True)),
                    tuple(zip(low.indices[place].tolist(), (-low.values[place]).tolist(), strict=True)),
                )
    return found


def _effects(model: Any, rows: Float[Tensor, "neuron d_model"]) -> Float[Tensor, "neuron token"]:
    # Against a residual stream of zeros, a norm's weights and centering act as they always do, and its bias and that
    # of the unembedding fall out; only its division differs, by one factor for all tokens.
    logits = logits_from(model, rows).double() - logits_from(model, torch.zeros_like(rows[:1])).double()
    return (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True)

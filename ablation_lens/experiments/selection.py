"""`selective_neurons`: the neurons that matter more on one corpus than on another.

Importance and score are those of "Dissecting Language Models: Machine Unlearning via Selective Pruning" (Pochinkov and
Schoots, 2023).
"""

import math
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ablation_lens.ablation.masks import as_mask, top_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.names import require_known
from ablation_lens.neurons.grid import scale_by
from ablation_lens.neurons.peaks import require_values
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.sites import Site

IMPORTANCES = ("abs", "sqrt", "freq", "std", "rms", "mean")
"""What can be said of a neuron on one corpus."""

HISTOGRAM_DISTANCE = "histogram-distance"

KINDS = (*IMPORTANCES, HISTOGRAM_DISTANCE)
"""By what the neurons of two corpora are told apart."""

HEADS = ("mean", "median")


def importance(statistics: ActivationStatistics, kind: str = "abs") -> Float64[Tensor, "layer head dim"]:
    """How much every neuron does on one corpus.

    Args:
        statistics: of the corpus.
        kind: "abs" is E|z|, "sqrt" E√|z|, "freq" P(z > 0), "std" σ, "rms" √(σ² + μ²), and "mean" μ itself.

    >>> statistics = ActivationStatistics.of_values(torch.tensor([0.0, 0.0, -1.0, 9.0]).view(4, 1, 1, 1))
    >>> [importance(statistics, kind).item() for kind in ("abs", "sqrt", "freq", "mean")]
    [2.5, 1.0, 0.25, 2.0]
    """
    _require_statistics(statistics)
    if kind == HISTOGRAM_DISTANCE:
        raise MismatchError("histogram-distance compares two corpora; use selectivity(forget, retain, kind=…).")
    require_known(kind, IMPORTANCES, "kind of importance")
    require_values(statistics.histogram)
    if kind == "abs":
        found = statistics.moments.mean_absolute
    elif kind == "sqrt":
        found = statistics.moments.mean_root
    elif kind == "freq":
        found = statistics.histogram.positive.cpu().double() / statistics.count
    elif kind == "std":
        found = statistics.std
    elif kind == "rms":
        found = (statistics.variance + statistics.mean.square()).sqrt()
    else:
        found = statistics.mean
    return found.cpu().double()


def selectivity(
    forget: ActivationStatistics, retain: ActivationStatistics, *, kind: str = "abs", epsilon: float | None = None
) -> Float64[Tensor, "layer head dim"]:
    """How much more a neuron matters on the corpus to forget than on the one to retain: the score it is pruned by.

    The importance on the one, over that on the other plus ε. Two kinds are not such a ratio:

    - "mean" is |μ_forget − μ_retain|.
    - "histogram-distance" is how far the values of one corpus have to be moved to lie as those of the other
      (Wasserstein-1), in the latter's σ (plus ε). So it does not hang on the scale of a neuron, nor on how fine its
      bins are, as the total variation would; and it also sees neurons that do as much on both corpora, but otherwise.
      Both histograms are brought to one grid, which moves no value by more than half of a bin.

    A neuron that is silent on both corpora scores 0, also with `epsilon=0`; one that is silent on the retain corpus
    alone is then infinitely selective.

    Args:
        forget: statistics of the corpus to forget.
        retain: statistics of the corpus to retain, of the same model and site, collected alike.
        kind: of importance, or "histogram-distance".
        epsilon: keeps neurons that do nearly nothing from being chosen; None takes the authors' 0.001 for MLP neurons
            and 0.0001 for those of attention, and also the latter at all other sites.

    >>> code, prose = torch.tensor([[1.0, 3.0]]).view(1, 1, 1, 2), torch.tensor([[2.0, 0.5]]).view(1, 1, 1, 2)
    >>> of = ActivationStatistics.of_values
    >>> selectivity(of(code), of(prose), epsilon=0).flatten().tolist()
    [0.5, 6.0]
    """
    require_comparable(forget, retain)
    require_known(kind, KINDS, "kind of importance")
    least = epsilon_of(epsilon, retain.site)
    if kind == "mean":
        return (importance(forget, kind) - importance(retain, kind)).abs()
    if kind == HISTOGRAM_DISTANCE:
        return _over(_moved(forget, retain), importance(retain, "std"), least)
    return _over(importance(forget, kind), importance(retain, kind), least)


def selective_neurons(
    forget: ActivationStatistics,
    retain: ActivationStatistics,
    fraction: float,
    *,
    kind: str = "abs",
    epsilon: float | None = None,
    per_layer: bool = False,
    heads: str | None = None,
    already: Any = None,
) -> Bool[Tensor, "layer head dim"]:
    """The ⌊fraction · N⌋ neurons that are most selective for the corpus to forget, as a mask.

    Of equal scores the earlier neuron goes first, so masks are nested in the fraction.

    Args:
        forget: statistics of the corpus to forget.
        retain: statistics of the corpus to retain.
        fraction: of all neurons, from 0 to 1.
        kind: of importance; see `selectivity`.
        epsilon: see `selectivity`.
        per_layer: the same share of every layer; otherwise the best of all layers together.
        heads: "mean" or "median" chooses ⌊fraction · heads⌋ whole heads, by that of their neurons' scores.
        already: neurons (or names) that are chosen whatever their score, and count among the fraction: what was pruned
            before.

    >>> values = torch.tensor([[1.0, 2.0, 8.0, 4.0]]).view(1, 1, 1, 4)
    >>> of = ActivationStatistics.of_values
    >>> selective_neurons(of(values), of(torch.ones(1, 1, 1, 4)), 0.5).flatten().tolist()
    [False, False, True, True]
    """
    scores = selectivity(forget, retain, kind=kind, epsilon=epsilon)
    before = None if already is None else as_mask(already, forget.shape, site=forget.site)
    if before is not None and tuple(before.shape) != forget.shape:
        raise MismatchError(
            f"already is a mask of shape {tuple(before.shape)}, and the statistics are of {forget.shape} neurons."
        )
    if heads is not None:
        scores = _of_heads(scores, heads, forget.site)
        before = None if before is None else before.any(-1, keepdim=True)
    if before is not None:
        # Above every other score, an infinite one, too.
        scores = scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill(before.cpu(), math.inf)
    mask = top_neurons(scores, fraction, per_layer=per_layer)
    if before is not None and bool((before.cpu() & ~mask).any()):
        what = "heads" if heads is not None else "neurons"
        where = " of every layer" if per_layer else ""
        raise MismatchError(
            f"{int(before.sum())} {what} are chosen already, and fraction={fraction} allows {int(mask.sum())} "
            f"{what}{where and ', the same share of every layer'}; give a larger fraction."
        )
    return mask.expand(forget.shape).contiguous()


def require_comparable(forget: ActivationStatistics, retain: ActivationStatistics) -> None:
    """Raise `MismatchError` unless both are of one model and site, collected alike."""
    for each in (forget, retain):
        _require_statistics(each)
    mine, theirs = forget.provenance, retain.provenance
    mine.model.require_same(theirs.model, "the corpora to forget and to retain were read by two models")
    if forget.site is not retain.site:
        raise MismatchError(
            f"the statistics to forget are of {forget.site.value!r}, those to retain of {retain.site.value!r}; collect "
            "both at one site."
        )
    if mine.include_bos != theirs.include_bos:
        raise MismatchError(
            f"the statistics to forget have include_bos={mine.include_bos}, those to retain {theirs.include_bos}; "
            "collect both alike."
        )
    if forget.shape != retain.shape:
        raise MismatchError(f"the statistics to forget are of {forget.shape} neurons, those to retain {retain.shape}.")


def _require_statistics(given: Any) -> None:
    if not isinstance(given, ActivationStatistics):
        raise MismatchError(f"statistics are what al.collect gives for one site, got {type(given).__name__}.")


def epsilon_of(given: float | None, site: Site) -> float:
    """What keeps neurons that do nearly nothing from being chosen; that of the site, if none is given."""
    if given is None:
        return 1e-3 if site is Site.MLP else 1e-4
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) < math.inf:
        raise MismatchError(f"epsilon={given!r} is not possible; give a number from 0, or None for that of the site.")
    return float(given)


def _over(
    one: Float64[Tensor, "layer head dim"], other: Float64[Tensor, "layer head dim"], epsilon: float
) -> Float64[Tensor, "layer head dim"]:
    # 0/0, where epsilon is 0, is of a neuron that does nothing on either corpus: the least that a score can be.
    return torch.where(one == 0, 0.0, one / (other + epsilon))


def _moved(forget: ActivationStatistics, retain: ActivationStatistics) -> Float64[Tensor, "layer head dim"]:
    """The Wasserstein-1 distance of each neuron's two histograms."""
    one, other = forget.histogram.to("cpu"), retain.histogram.to("cpu")
    for each in (one, other):
        require_values(each)
    # On the grid of both, where each keeps its own counts.
    both = one.merge(other)
    layers = []
    for layer in range(both.shape[0]):
        grid = both.grid(layer)
        below = []
        for each in (one, other):
            counts = each.grid(layer).rebin(each.counts(layer).flatten(0, -2), grid, both.bins)
            below.append(counts.cumsum(-1).double() / counts.sum(-1, keepdim=True))
        layers.append(scale_by((below[0] - below[1]).abs().sum(-1), grid.exponent).view(both.shape[1:]))
    return torch.stack(layers)


def require_scored_heads(heads: str | None, site: Site) -> None:
    """Raise `MismatchError` for a way to score heads that there is not, and where a site has none."""
    if heads is None:
        return
    require_known(heads, HEADS, "way to score heads")
    if not site.has_heads:
        raise MismatchError(f"neurons at {site.value!r} have no heads, so none can be chosen whole; leave heads= out.")


def _of_heads(scores: Float64[Tensor, "layer head dim"], heads: str, site: Site) -> Float64[Tensor, "layer head 1"]:
    require_scored_heads(heads, site)
    if heads == "mean":
        return scores.mean(-1, keepdim=True)
    # Not `quantile`, whose interpolation makes NaN of infinite scores.
    ordered, dims = scores.sort(-1).values, scores.shape[-1]
    return (ordered[..., (dims - 1) // 2] + ordered[..., dims // 2]).unsqueeze(-1) / 2

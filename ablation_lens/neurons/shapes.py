"""What a neuron's distribution looks like: its moments, the peaks of its smoothed histogram, one word for it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.neurons.grid import Grid
from ablation_lens.neurons.peaks import (
    NeuronStatistics,
    at_bins,
    highest,
    kernel_width,
    naive_peak,
    require_values,
    smooth,
    zeros_lead,
)

SHAPE_WORDS = (
    "constant",
    "sparse",
    "unresolved",
    "multi-modal",
    "off-zero",
    "skewed",
    "laplace-like",
    "flat",
    "gaussian-like",
)
"""One word per neuron, the first that applies. What each means is said at `Thresholds`."""


@dataclass(frozen=True)
class Thresholds:
    """Where one word ends and the next begins. A word needs what it says, and that no earlier one applies.

    - constant: a single value.
    - sparse: more than `sparse` of the values are exactly 0, as in a ReLU neuron that is mostly silent.
    - unresolved: fewer than `resolved_bins` bins within the IQR. The other words would be guesses.
    - multi-modal: two peaks or more. Between two peaks the smoothed histogram falls below either by `prominence`
      of the highest peak, and by `noise` standard deviations of the counting noise of their difference. The mean
      count under the smoothing kernel is Poisson, so its square root has the same noise everywhere.
    - off-zero: |peak| and |mean| both exceed `off_zero` σ. (The peak alone would be chance on a plateau around 0.)
    - skewed: the L-skewness exceeds `skewed` either way. Normal 0, half-normal 0.2, exponential 0.33.
    - laplace-like: L-kurtosis above `heavy_tails`. Normal 0.123, logistic 0.167, Laplace 0.236, Student-t with 3
      degrees of freedom 0.26: any peaked, heavy-tailed neuron.
    - flat: L-kurtosis below `light_tails`. Uniform 0.
    - gaussian-like: the rest: one peak at zero, symmetric, tails about those of a normal distribution.

    L-moment ratios decide because a few far values leave them alone: one at 20σ in 20 000 adds 8 to the excess
    kurtosis of a normal neuron, and 0.001 to its L-kurtosis.
    """

    sparse: float = 0.5
    resolved_bins: float = 8.0
    prominence: float = 0.1
    noise: float = 5.0
    off_zero: float = 0.5
    skewed: float = 0.1
    heavy_tails: float = 0.18
    light_tails: float = 0.06


@dataclass(frozen=True)
class Shapes:
    """Numbers per neuron, `[layer head dim]` each. Positions and widths are NaN in units of σ where σ is zero.

    Skew and excess kurtosis are those of the histogram, corrected for the bins' width as far as a smooth density
    allows (Sheppard). They and the L-moment ratios differ from those of the values by about (ε/σ)², which is less
    than their sampling error.
    `main_peak` and `second_peak` are the two highest peaks of the smoothed histogram, to ± ε/2 and the noise a
    peak has; NaN where there is no second one. `peak_over_sigma` and `mean_to_peak_over_sigma` are about the
    `peak` center, the paper's, without sign.
    """

    skew: Float64[Tensor, "layer head dim"]
    excess_kurtosis: Float64[Tensor, "layer head dim"]
    l_skewness: Float64[Tensor, "layer head dim"]
    l_kurtosis: Float64[Tensor, "layer head dim"]
    peaks: Int64[Tensor, "layer head dim"]
    main_peak: Float64[Tensor, "layer head dim"]
    second_peak: Float64[Tensor, "layer head dim"]
    peak_over_sigma: Float64[Tensor, "layer head dim"]
    mean_to_peak_over_sigma: Float64[Tensor, "layer head dim"]
    epsilon_over_sigma: Float64[Tensor, "layer head dim"]
    bins_in_iqr: Float64[Tensor, "layer head dim"]
    word: UInt8[Tensor, "layer head dim"]
    """Places in `SHAPE_WORDS`."""

    def having(self, word: str) -> Bool[Tensor, "layer head dim"]:
        """Which neurons are described by a word."""
        if word not in SHAPE_WORDS:
            raise MismatchError(f"{word!r} is not a shape; expected one of {', '.join(SHAPE_WORDS)}.")
        return self.word == SHAPE_WORDS.index(word)


def describe(
    statistics: NeuronStatistics,
    thresholds: Thresholds | None = None,
    *,
    quartiles: Float64[Tensor, "2 layer head dim"] | None = None,
    peak: Float64[Tensor, "layer head dim"] | None = None,
) -> Shapes:
    """The shape of every neuron's distribution, layer by layer.

    Who knows the quartiles already, or the `peak` center, gives them.

    >>> from types import SimpleNamespace
    >>> from ablation_lens.neurons.histogram import NeuronHistogram
    >>> histogram = NeuronHistogram((1, 1, 2))
    >>> values = torch.linspace(-1, 1, 1001)
    >>> histogram.update(torch.stack([values, values.sign() * 5 + values], -1).view(-1, 1, 1, 2))
    >>> shapes = describe(SimpleNamespace(histogram=histogram, mean=torch.zeros(1, 1, 2), variance=torch.ones(1, 1, 2)))
    >>> [SHAPE_WORDS[code] for code in shapes.word.flatten()], shapes.peaks.flatten().tolist()
    (['flat', 'multi-modal'], [1, 2])
    """
    thresholds = thresholds or Thresholds()
    histogram = statistics.histogram
    require_values(histogram)
    mean, variance = statistics.mean.double().cpu(), statistics.variance.double().cpu()
    constant = (histogram.minimum == histogram.maximum).cpu()
    # NaN, because over 0 the peak of a constant neuron would be infinitely far away.
    sigma = variance.sqrt().masked_fill(constant, torch.nan)
    epsilon = histogram.epsilon.cpu()
    quartiles = histogram.quantile([0.25, 0.75]).cpu() if quartiles is None else quartiles
    peak = naive_peak(histogram) if peak is None else peak
    in_iqr = (quartiles[1] - quartiles[0]) / epsilon
    width = kernel_width(statistics, quartiles=quartiles)
    layers, turns = [], []
    exponent, offset = histogram.exponent.cpu(), histogram.offset.cpu()
    for layer in range(histogram.shape[0]):
        counts, zeros = histogram.counts(layer).cpu(), histogram.zeros_of(layer).cpu()
        grid = Grid(exponent[layer], offset[layer])
        moments = _moments(counts, grid, zeros, (sigma / epsilon)[layer])
        turns.append(_Turns.of(smooth(counts, width[layer])))
        layers.append((zeros, zeros_lead(counts, grid, zeros), *moments))
    zeros, lead, skew, excess, l_skewness, l_kurtosis = map(torch.stack, zip(*layers, strict=True))
    peaks, main, second = _peaks(_Turns.joined(turns), width, thresholds)
    # A peak in the bin of leading zeros is exactly there.
    main_peak, second_peak = (at_bins(histogram, at).masked_fill(lead & (at == -offset), 0.0) for at in (main, second))
    applies = {
        "constant": constant,
        "sparse": zeros.double() > thresholds.sparse * histogram.total.cpu(),
        "unresolved": in_iqr < thresholds.resolved_bins,
        "multi-modal": peaks > 1,
        "off-zero": torch.minimum(peak.abs(), mean.abs()) > thresholds.off_zero * sigma,
        "skewed": l_skewness.abs() > thresholds.skewed,
        "laplace-like": l_kurtosis > thresholds.heavy_tails,
        "flat": l_kurtosis < thresholds.light_tails,
        "gaussian-like": torch.ones_like(constant),
    }
    return Shapes(
        skew=skew,
        excess_kurtosis=excess,
        l_skewness=l_skewness,
        l_kurtosis=l_kurtosis,
        peaks=peaks,
        main_peak=main_peak,
        second_peak=second_peak.masked_fill(peaks < 2, torch.nan),
        peak_over_sigma=peak.abs() / sigma,
        mean_to_peak_over_sigma=(mean - peak).abs() / sigma,
        epsilon_over_sigma=epsilon / sigma,
        bins_in_iqr=in_iqr,
        # argmax gives the first 1, so the order of SHAPE_WORDS decides. As bytes: torch has no argmax of booleans.
        word=torch.stack([applies[word] for word in SHAPE_WORDS]).byte().argmax(0).byte(),
    )


@dataclass(frozen=True)
class _Turns:
    """Where the heights of some neurons turn, neuron after neuron: no other bin is a peak or a valley.

    Also their highest bin, and how high it is.
    """

    number: Int64[Tensor, " neuron"]
    bin: Int64[Tensor, " turn"]
    height: Float[Tensor, " turn"]
    main: Int64[Tensor, " neuron"]
    highest: Float[Tensor, " neuron"]

    @classmethod
    def of(cls, heights: Float[Tensor, "*neurons bin"]) -> "_Turns":
        """Bins that do not lie between a lower and a higher neighbour, the first of equal ones.

        Outside the range heights are zero. One empty bin at the end counts, too: they fall after a peak in the last.
        """
        around = F.pad(heights.flatten(0, -2), (1, 1))
        up, down = around[:, 1:] > around[:, :-1], around[:, 1:] < around[:, :-1]
        turn = up | down
        turn[:, :-1] &= ~(up[:, :-1] & up[:, 1:]) & ~(down[:, :-1] & down[:, 1:])
        neuron, bin_ = turn.nonzero(as_tuple=True)
        highest_bin = highest(heights).flatten()
        return cls(turn.sum(-1), bin_, around[neuron, bin_ + 1], highest_bin, around.amax(-1))

    @classmethod
    def joined(cls, parts: "Sequence[_Turns]") -> "_Turns":
        """Those of all parts, in turn."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


def _peaks(
    turns: _Turns, width: Float[Tensor, "*neurons"], thresholds: Thresholds
) -> tuple[Int64[Tensor, "*neurons"], Int64[Tensor, "*neurons"], Int64[Tensor, "*neurons"]]:
    """How many peaks, and the bins of the highest two (the same bin twice where there is one)."""
    neurons = width.numel()
    neuron, bin_, height = _sure_peaks(turns, width.flatten().double(), thresholds)
    number = neuron.bincount(minlength=neurons)

    def lowest_of_highest(which: Bool[Tensor, " peak"]) -> Int64[Tensor, " neuron"]:
        """As `highest`, among peaks."""
        of, at, high = neuron[which], bin_[which], height[which]
        most = high.new_zeros(neurons).scatter_reduce_(0, of, high, "amax")
        among = high >= most[of] * (1 - 1e-9)
        return at.new_full((neurons,), torch.iinfo(torch.int64).max).scatter_reduce_(0, of[among], at[among], "amin")

    main = lowest_of_highest(torch.ones_like(neuron, dtype=torch.bool))
    # Too few values to be sure of any peak: the highest bin counts as one.
    main = torch.where(number == 0, turns.main, main)
    second = torch.where(number > 1, lowest_of_highest(bin_ != main[neuron]), main)
    return number.clamp(min=1).view(width.shape), main.view(width.shape), second.view(width.shape)


def _sure_peaks(
    turns: _Turns, width: Float[Tensor, " neuron"], thresholds: Thresholds
) -> tuple[Int64[Tensor, " peak"], Int64[Tensor, " peak"], Float[Tensor, " peak"]]:
    """Neuron, bin and height of every peak.

    One walk along the turns of all neurons: a peak is sure once the heights fall far enough below it, a valley once
    they rise far enough above it.
    """
    # A smoothed count has the noise of a Poisson count of so many bins together: one over the sum of squared weights.
    # That sum is e^-2t I0(2t), t = width². i0e has the exponential in it; I0 alone overflows for wide kernels.
    together = 1 / torch.special.i0e(2 * width.square())
    # Those with the most turns first: those that still walk are then a slice.
    order = turns.number.argsort(descending=True)
    least_fall = (thresholds.prominence * turns.highest)[order]
    least_root = (thresholds.noise * torch.rsqrt(2 * together))[order]
    first = (turns.number.cumsum(0) - turns.number)[order]
    walking = len(order) - turns.number.bincount().cumsum(0)[:-1]
    rising = torch.ones(len(order), dtype=torch.bool)
    extreme, place = torch.zeros_like(width), torch.zeros(len(order), dtype=torch.long)
    found = [(order[:0], place[:0], extreme[:0])]
    for step, still in enumerate(walking.tolist()):
        at, up, before = first[:still] + step, rising[:still], extreme[:still]
        here = turns.height[at]
        top, bottom = torch.where(up, before, here), torch.where(up, here, before)
        deep = torch.minimum((top.sqrt() - least_root[:still]).clamp(min=0).square(), top - least_fall[:still])
        turned = bottom < deep
        sure = (turned & up).nonzero().flatten()
        found.append((order[sure], place[sure], before[sure]))
        moved = turned | torch.where(up, here > before, here < before)
        place[:still] = torch.where(moved, turns.bin[at], place[:still])
        extreme[:still] = torch.where(moved, here, before)
        rising[:still] = up ^ turned
    neuron, bin_, height = (torch.cat(parts) for parts in zip(*found, strict=True))
    return neuron, bin_, height


# ---------------------------------------------------------------------- moments


def _moments(
    counts: Int64[Tensor, "*neurons bin"],
    grid: Grid,
    zeros: Int64[Tensor, "*neurons"],
    sigma: Float[Tensor, "*neurons"],
) -> tuple[Float[Tensor, "*neurons"], ...]:
    """Skew, excess kurtosis, L-skewness and L-kurtosis; `sigma` in bins, NaN for a constant neuron."""
    cumulative = counts.cumsum(-1)
    total = cumulative[..., -1].double()
    spread, repeated = grid.without(counts, zeros).double().div_(total.unsqueeze(-1)), zeros / total
    place = torch.arange(counts.shape[-1], dtype=torch.float64)
    # Places are the middles of bins, and 0 is an edge.
    edge = -grid.offset.double() - 0.5
    mean = spread @ place + repeated * edge
    away, at_zero = place - mean.unsqueeze(-1), edge - mean
    squared = away.square()
    spread.mul_(squared)  # products, as a power takes longer
    third = (spread * away).sum(-1) + repeated * at_zero**3
    fourth = spread.mul_(squared).sum(-1) + repeated * at_zero**4
    # Sheppard's correction in bins, for what is spread over them. Its usual +7/240 is for the σ² of the histogram; the
    # values' own σ² is less by 1/12, which makes it -1/80.
    excess = (fourth - (sigma**2 - repeated * at_zero**2) / 2 - (1 - repeated) / 80) / sigma**4 - 3
    # λ2 = ∫F(1-F), and so on with Legendre polynomials: a trapezoid sum over bin edges, where F is known exactly.
    below = cumulative.double().div_(total.unsqueeze(-1))
    # At 0 it jumps, so the bin before ends lower than the bin after begins.
    before = grid.below_zero_of(cumulative) / total
    jump = torch.stack([before, before + repeated])
    l2, l3, l4 = (
        at_edges + at_jump.diff(dim=0)[0] / 2
        for at_edges, at_jump in zip(_legendre_sums(below), _legendre(jump), strict=True)
    )
    l2 = l2.masked_fill(sigma.isnan(), torch.nan)
    return third / sigma**3, excess, l3 / l2, l4 / l2


def _legendre(below: Float[Tensor, "*any"]) -> tuple[Float[Tensor, "*any"], ...]:
    """What λ2, λ3 and λ4 are integrals of, where a share `below` of the values is smaller."""
    l2 = below * (1 - below)
    return l2, l2 * (2 * below - 1), l2 * (1 - 5 * l2)


def _legendre_sums(below: Float[Tensor, "*neurons edge"]) -> tuple[Float[Tensor, "*neurons"], ...]:
    """The sums of `_legendre` over the edges, without making all of the three; `below` is used up."""
    l2 = below * (1 - below)
    total, first, second = l2.sum(-1), below.mul_(l2).sum(-1), l2.square_().sum(-1)
    return total, 2 * first - total, total - 5 * second

"""What an ablated neuron is set to: statistics in, one value per neuron out, by a name in a registry."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.names import nearest
from ablation_lens.neurons.peaks import (
    PEAK_BINS,
    NeuronStatistics,
    at_bins,
    highest,
    kernel_width,
    naive_peak,
    require_values,
    smooth,
    zeros_lead_in,
)
from ablation_lens.sites import neuron_name

_Center = TypeVar("_Center", bound=Callable[..., Tensor])

_CENTERS: dict[str, Callable[..., Tensor]] = {}


@dataclass(frozen=True)
class About:
    """What people are told of a center.

    Attributes:
        name: how it is asked for.
        estimates: what it is, in a line.
        resolution: how finely; ε is the width of a neuron's bins. Empty where nobody has said.
        passes: over the corpus, that its statistics need; 0 where nothing but their shape is read.
        version: of its numbers.
    """

    name: str
    estimates: str
    resolution: str = ""
    passes: int = 1
    version: int = 1


_ABOUT: dict[str, About] = {}


def register(name: str, *, version: int = 1, resolution: str = "", passes: int = 1) -> Callable[[_Center], _Center]:
    """Make a function a center: everything that takes a center's name knows it from then on.

    The function takes statistics, then keyword parameters with defaults, and returns a float `[layer head dim]`
    tensor. Its docstring says what it estimates, and how finely; the first line and `resolution` are shown in lists.
    `passes` is 2 where it reads `statistics.trimmed`. `version` is for those of this package: it is raised when their
    numbers change, and a study then measures them anew. (Of others it compares the values themselves.)

    >>> @register("first-quartile")
    ... def first_quartile(statistics):
    ...     '''The value a quarter of all values lies below, to ± ε.'''
    ...     return statistics.histogram.quantile(0.25)
    >>> names()[-1], describe("first-quartile")
    ('first-quartile', 'The value a quarter of all values lies below, to ± ε.')
    >>> unregister("first-quartile")
    """

    if not isinstance(name, str) or not name or any(sign.isspace() or sign == "=" for sign in name):
        raise MismatchError(
            f"the name of a center is {name!r}; choose one without spaces and '=', such as 'my-center', as a method is "
            "written 'peak bins=64'."
        )

    def add(function: _Center) -> _Center:
        known = _CENTERS.get(name)
        # The same definition again is a notebook cell or a module run twice.
        if known and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise MismatchError(
                f"center {name!r} exists already, as {known.__module__}.{known.__qualname__}; choose another name."
            )
        first, *_ = (inspect.getdoc(function) or "").splitlines() or [""]
        _CENTERS[name], _ABOUT[name] = function, About(name, first, resolution, passes, version)
        return function

    return add


def unregister(name: str) -> None:
    """Forget a center again."""
    _CENTERS.pop(name, None)
    _ABOUT.pop(name, None)


def is_ours(name: str) -> bool:
    """Whether a center is one of this package's, not a user's."""
    return name in _CENTERS and _CENTERS[name].__module__ == __name__


def version_of(name: str) -> int:
    """How often the numbers that a center gives have changed, plus one."""
    return _ABOUT[name].version if name in _ABOUT else 1


def about(name: str) -> About:
    """A center in a line: what it estimates, how finely, and in how many passes.

    >>> about("peak-trimmed").passes, about("median").resolution
    (2, '± ε')
    """
    _find(name)
    return _ABOUT[name]


def names() -> tuple[str, ...]:
    """All centers, those of this package first.

    >>> names()[:4]
    ('zero', 'mean', 'median', 'peak')
    """
    return tuple(_CENTERS)


def describe(name: str) -> str:
    """What a center estimates, and how finely.

    >>> describe("zero")
    'Zero: what most ablations use. Exact.'
    """
    return inspect.getdoc(_find(name)) or ""


def center(name: str, statistics: NeuronStatistics, **parameters: Any) -> Float64[Tensor, "layer head dim"]:
    """One value per neuron, on the CPU.

    >>> from types import SimpleNamespace
    >>> from ablation_lens.neurons.histogram import NeuronHistogram
    >>> histogram = NeuronHistogram((1, 1, 1))
    >>> histogram.update(torch.tensor([1.0, 2.0, 2.0, 100.0]).view(4, 1, 1, 1))
    >>> center("peak", SimpleNamespace(histogram=histogram), bins=128).item()
    2.5
    >>> center("pique", SimpleNamespace(histogram=histogram))
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: 'pique' is not a center; the nearest is 'peak'. There are zero, mean, median, \
peak, peak-smooth, peak-kde, half-sample, peak-trimmed.
    """
    function = require_parameters(name, parameters)
    require_values(statistics.histogram)
    values = torch.as_tensor(function(statistics, **parameters))
    if tuple(values.shape) != statistics.histogram.shape:
        raise MismatchError(
            f"center {name!r} gave values of shape {tuple(values.shape)}; expected one per neuron, "
            f"{statistics.histogram.shape}."
        )
    # Always a copy: a center may return a tensor that the statistics hold, and callers may write into theirs.
    values = values.detach().to("cpu", torch.float64, copy=True)
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        place = tuple(bad[0].tolist())
        raise NonFiniteError(
            f"center {name!r} of {neuron_name(*place)} is {values[place].item()}; expected a finite number. "
            "Choose another center, or correct this one."
        )
    return values


def require_parameters(name: str, parameters: Mapping[str, Any]) -> Callable[..., Tensor]:
    """The center of that name; `MismatchError` when there is none, or when it does not take these parameters.

    >>> require_parameters("peak", {"bims": 64})
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: center 'peak' was given bims: got an unexpected keyword argument 'bims'. \
It takes bins, epsilon.
    """
    function = _find(name)
    try:
        # Only the signature is tried; None stands for the statistics.
        inspect.signature(function).bind(None, **parameters)
    except TypeError as error:
        taken = list(inspect.signature(function).parameters)[1:]
        raise MismatchError(
            f"center {name!r} was given {', '.join(parameters) or 'no parameters'}: {error}. It takes "
            f"{', '.join(taken) or 'no parameters'}."
        ) from None
    return function


def _find(name: str) -> Callable[..., Tensor]:
    if name not in _CENTERS:
        raise MismatchError(
            f"{name!r} is not a center; the nearest is {nearest(name, _CENTERS)!r}. There are {', '.join(_CENTERS)}."
        )
    return _CENTERS[name]


def _positive(name: str, value: float) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise MismatchError(f"{name}={value!r}; expected a finite number above zero.")
    return float(value)


def _bins(histogram_bins: int, bins: int | None) -> int:
    """The paper's number of bins, or as many as were asked for."""
    if bins is not None and not (isinstance(bins, int) and 2 <= bins <= histogram_bins):
        raise MismatchError(
            f"bins={bins!r}; expected a whole number from 2 to {histogram_bins}, the bins that were collected. "
            "Collect with more to see finer."
        )
    return PEAK_BINS if bins is None else bins


# ---------------------------------------------------------------------- the centers


@register("zero", resolution="exact", passes=0)
def zero(statistics: NeuronStatistics) -> Float64[Tensor, "layer head dim"]:
    """Zero: what most ablations use. Exact."""
    return torch.zeros(statistics.histogram.shape, dtype=torch.float64)


@register("mean", resolution="exact")
def mean(statistics: NeuronStatistics) -> Float64[Tensor, "layer head dim"]:
    """The mean of all values. Exact to float64 rounding, as it comes from sums, not from the histogram."""
    return statistics.mean


@register("median", resolution="± ε")
def median(statistics: NeuronStatistics) -> Float64[Tensor, "layer head dim"]:
    """The value half of all values lies below, from the histogram: within one ε of the values' own median.

    Exactly 0 where the values' own is one that is exactly 0, as in a ReLU neuron that is mostly silent.
    """
    return statistics.histogram.quantile(0.5)


@register("peak", resolution="± ε/2, ≤ 128 bins")
def peak(
    statistics: NeuronStatistics, *, bins: int | None = None, epsilon: float | None = None
) -> Float64[Tensor, "layer head dim"]:
    """The most frequent value as the paper defines it: the middle of the fullest bin, the lower one of equals.

    Resolution ± ε/2. Bins are first merged to at most `bins` (default 128; 64 to 128 then cover a neuron's range):
    exactly the histogram that collecting with so many bins gives. Alternatively `epsilon` asks for bins of one
    width for all neurons. It is rounded down to a power of two; a neuron whose collected bins are wider than that
    keeps those. A constant neuron's peak is the constant, which bins have at their edge; and the peak is 0 where
    more values are exactly 0 than any bin has others, as in a ReLU neuron that is often silent.
    """
    if bins is not None and epsilon is not None:
        raise MismatchError(f"bins={bins} and epsilon={epsilon} both set the width of a bin; give one of them.")
    width = None if epsilon is None else _positive("epsilon", epsilon)
    if width is not None and width > torch.finfo(torch.float16).max:
        # The middle of such a bin is a value that no model survives, and it would say so in its cells only.
        raise MismatchError(f"epsilon={epsilon} is wider than any activation; expected at most 65504.")
    return naive_peak(statistics.histogram, _bins(statistics.histogram.bins, bins), width)


@register("peak-smooth", resolution="± ε/2")
def peak_smooth(statistics: NeuronStatistics, *, sigma: float = 2.0) -> Float64[Tensor, "layer head dim"]:
    """The highest bin once counts are averaged under a Gaussian of `sigma` bins, normalised at the range's ends.

    Resolution ± ε/2 on the bins as collected (256 by default: half as wide as those of `peak`); the lower of
    equal bins. Modes closer than about 2·sigma bins become one. 0 where more values are exactly 0 than any bin has
    others, as for `peak`.
    """
    histogram = statistics.histogram
    if _positive("sigma", sigma) > histogram.bins / 8:
        raise MismatchError(f"sigma={sigma} bins smooths a histogram of {histogram.bins} away; at most an eighth.")
    width = torch.full(histogram.shape[1:], sigma, dtype=torch.float64)
    # Layer by layer: smoothing takes several times the memory of the counts.
    layers = [highest(smooth(histogram.counts(layer).cpu(), width)) for layer in range(histogram.shape[0])]
    return at_bins(histogram, torch.stack(layers)).masked_fill(zeros_lead_in(histogram), 0.0)


@register("peak-kde", resolution="finer than ε")
def peak_kde(statistics: NeuronStatistics, *, bandwidth: float | None = None) -> Float64[Tensor, "layer head dim"]:
    """The mode of a kernel density estimate over the bins, whose width follows from σ, IQR and the number of values.

    Finer than ε: the top of the parabola through the highest bin and its neighbours. What is left is the noise of
    sampling: of 20 000 normal values it finds the mode to 0.04 σ, where `peak` finds it to 0.15 σ. `bandwidth` in σ
    overrides the automatic one, but at most an eighth of all bins. Skewed neurons are smoothed a little (about
    0.07 σ in a gamma distribution of shape 2) towards their longer tail. 0 where more values are exactly 0 than any
    bin has others, as for `peak`.
    """
    histogram = statistics.histogram
    width = kernel_width(statistics, order=1)
    if bandwidth is not None:
        wanted = _positive("bandwidth", bandwidth) * statistics.variance.double().cpu().sqrt()
        width = (wanted / histogram.epsilon.cpu()).clamp(max=histogram.bins / 8)
    places, shifts = [], []
    for layer in range(histogram.shape[0]):
        heights = smooth(histogram.counts(layer).cpu(), width[layer])
        place = highest(heights).unsqueeze(-1)
        # Padded by one bin in front, so `place + 0` is the left neighbour and `place + 1` the top.
        left, top, right = (F.pad(heights, (1, 1)).gather(-1, place + step).squeeze(-1) for step in range(3))
        bend = 2 * top - left - right
        # No parabola on a plateau, nor at an end of the range: what lies beyond is not low, it is unknown.
        none = (left == 0) | (right == 0) | (bend <= 1e-9 * top)
        places.append(place.squeeze(-1))
        # `highest` forgives rounding: a neighbour may be slightly higher, and the vertex then lie outside the bin.
        shifts.append(((right - left) / (2 * bend)).masked_fill(none, 0).clamp(-0.5, 0.5))
    values = at_bins(histogram, torch.stack(places)) + torch.stack(shifts) * histogram.epsilon.cpu()
    values = values.clamp(histogram.minimum.cpu(), histogram.maximum.cpu())
    return values.masked_fill(zeros_lead_in(histogram), 0.0)


@register("half-sample", resolution="± ε/2")
def half_sample(statistics: NeuronStatistics) -> Float64[Tensor, "layer head dim"]:
    """The half-sample mode: the shortest stretch with half of the values, of those again the half, to a single bin.

    Resolution ± ε/2 on the bins as collected, and stretches are whole bins: of equally short ones the fuller, then
    the lower. Far values do not move it, but it is as noisy as `peak`. 0 where more values are exactly 0 than any bin
    has others, as for `peak`.
    """
    histogram = statistics.histogram
    layers = [_densest_bin(histogram.counts(layer).cpu()) for layer in range(histogram.shape[0])]
    return at_bins(histogram, torch.stack(layers)).masked_fill(zeros_lead_in(histogram), 0.0)


def _densest_bin(counts: Int64[Tensor, "head dim bin"]) -> Int64[Tensor, "head dim"]:
    shape = counts.shape[:-1]
    below = F.pad(counts.flatten(0, -2).cumsum(-1), (1, 0))  # values below every edge of the stretch that is left
    first = torch.zeros(len(below), 1, dtype=torch.int64)
    while (bins := below.shape[-1] - 1) > 1:
        # Rounded up, or half of one value would be none.
        half = (below[:, -1:] - below[:, :1] + 1) // 2
        start = below[:, :-1]
        # The first edge with at least half of the values before it, counted from `start`; `bins + 1` if there is none.
        end = torch.searchsorted(below, start + half)
        length = (end - torch.arange(bins)).masked_fill(end > bins, bins + 1)
        shortest = length.amin(-1, keepdim=True)
        inside = below.gather(-1, end.clamp(max=bins)) - start
        # Among the shortest the fullest; argmax gives the first of equals, which is the lowest.
        best = inside.masked_fill(length > shortest, -1).argmax(-1, keepdim=True)
        # Every stretch shrinks, as either its first or its last bin can be spared; shorter ones repeat their last edge.
        below = below.gather(-1, best + torch.minimum(torch.arange(int(shortest.max()) + 1), shortest))
        first += best
    return first.view(shape)


@register("peak-trimmed", resolution="± ε/2 of the trimmed range", passes=2)
def peak_trimmed(statistics: NeuronStatistics, *, bins: int | None = None) -> Float64[Tensor, "layer head dim"]:
    """The paper's peak among the middle 99.8 % of a neuron's values, whose bins far values cannot widen.

    Resolution ± ε/2 of the trimmed histogram, merged to at most `bins` (default 128). Needs a second pass over the
    corpus.
    """
    trimmed = statistics.trimmed
    if trimmed is None:
        raise MismatchError(
            "center 'peak-trimmed' needs the trimmed histogram of a second pass, and these statistics have seen one "
            "pass; collect them with collect(..., passes=2)."
        )
    outside = (trimmed.inside.total == 0).nonzero()
    if len(outside):
        raise MismatchError(
            f"the second pass saw no value of {neuron_name(*outside[0].tolist())} in its trimmed range; it was "
            "interrupted, or ran over another corpus than the first: collect again."
        )
    return naive_peak(trimmed.inside, _bins(trimmed.bins, bins))

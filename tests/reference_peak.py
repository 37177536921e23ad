"""Synthetic neurons of known shape, and the peak as the paper's own code took it, to compare with."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from ablation_lens import centers
from ablation_lens.neurons.histogram import NeuronHistogram

# ------------------------------------------------------------------ synthetic neurons


def uniform(tokens, neurons):
    # Float64: float32's uniform numbers are multiples of 2^-24, zero among them.
    return torch.rand(tokens, neurons, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)


def normal(tokens, neurons):
    return torch.randn(tokens, neurons)


def exponential(tokens, neurons):
    return -uniform(tokens, neurons).log()


def laplace(tokens, neurons):
    return exponential(tokens, neurons) * (torch.randint(0, 2, (tokens, neurons)) * 2 - 1)


def student(degrees):
    def draw(tokens, neurons):
        squares = sum(normal(tokens, neurons).square() for _ in range(degrees))
        return normal(tokens, neurons) / (squares / degrees).sqrt()

    return draw


def gamma(shape):
    return lambda tokens, neurons: sum(exponential(tokens, neurons) for _ in range(shape))


def mixture(apart, share=0.5, width=1.0):
    """A share of normal values `apart` σ from the rest, and `width` as wide; 0 lies in the middle of the two."""

    def draw(tokens, neurons):
        values = normal(tokens, neurons)
        return torch.where(uniform(tokens, neurons) < share, values * width + apart / 2, values - apart / 2)

    return draw


def with_outlier(at):
    def draw(tokens, neurons):
        values = normal(tokens, neurons)
        values[0] = at
        return values

    return draw


FAMILIES = {
    "normal": normal,
    "normal + 1": lambda *size: normal(*size) + 1,
    "normal - 4": lambda *size: normal(*size) - 4,
    "laplace": laplace,
    "laplace + 2": lambda *size: laplace(*size) + 2,
    "logistic": lambda *size: uniform(*size).logit(),
    "student 5": student(5),
    "student 3": student(3),
    "student 2": student(2),
    "exponential": exponential,
    "exponential, mean 0": lambda *size: 1 - exponential(*size),
    "gamma 2": gamma(2),
    "gamma 4": gamma(4),
    "log-normal": lambda *size: normal(*size).exp(),
    "uniform": lambda *size: uniform(*size) * 2 - 1,
    "relu": lambda *size: (normal(*size) + 0.5).relu(),
    "silent relu": lambda *size: (normal(*size) - 1).relu(),
    "gelu": lambda *size: torch.nn.functional.gelu(normal(*size)),
    "two modes, 2 apart": mixture(2),
    "two modes, 4 apart": mixture(4),
    "two modes, 8 apart": mixture(8),
    "two modes, 4 : 1": mixture(5, 0.2),
    "narrow on broad": mixture(0, 0.3, 0.05),
    "outlier at 20": with_outlier(20.0),
    "outlier at 300": with_outlier(300.0),
    "whole numbers": lambda *size: (normal(*size) * 2).round(),
    "bfloat16": lambda *size: normal(*size).bfloat16(),
}


def drawn(family, tokens, neurons):
    """`[token neuron]` values of a family, each neuron with a scale of its own, so that grids differ."""
    values = FAMILIES[family](tokens, neurons)
    if values.dtype == torch.bfloat16:  # rounding once more would leave gaps that no model makes
        return (values.float() * 2.0 ** torch.randint(-10, 10, (neurons,))).bfloat16()
    return (values * torch.exp(torch.rand(neurons) * 14 - 7)).float()


def statistics_of(values, bins=256, resolution=None, trimmed=None):
    """What centers and shapes read, from `[token neuron]` values: one layer, one head."""
    histogram = NeuronHistogram((1, 1, values.shape[1]), bins, resolution=resolution or values.dtype)
    histogram.update(values.view(len(values), 1, 1, -1))
    moments = [torch.var_mean(part.double(), 0, correction=0) for part in values.split(256, 1)]
    variance, mean = (torch.cat(parts) for parts in zip(*moments, strict=True))
    return SimpleNamespace(
        histogram=histogram, trimmed=trimmed, mean=mean.view(1, 1, -1), variance=variance.view(1, 1, -1)
    )


# ------------------------------------------------------------------ the reference's peak


def reference_peak(values):
    """Peak, counts and bin width of `[token neuron]` values: argmax of 100 bins from minimum to maximum."""
    found = [np.histogram(column, bins=100) for column in values.double().numpy().T]
    counts = np.stack([counts for counts, _ in found])
    edges = np.stack([edges for _, edges in found])
    middles = (edges[:, :-1] + edges[:, 1:]) / 2
    return np.take_along_axis(middles, counts.argmax(1)[:, None], 1)[:, 0], counts, edges[:, 1] - edges[:, 0]


def clearly_peaked(counts):
    """Whether the top of `[neuron bin]` counts exceeds every bin outside ±2 of it by 4·√count."""
    top = counts.max(1)
    far = np.abs(np.arange(counts.shape[1]) - counts.argmax(1)[:, None]) > 2
    return top > np.where(far, counts, 0).max(1) + 4 * np.sqrt(top)


@dataclass
class PeakComparison:
    """Per neuron: clearly peaked in both histograms; |ours - reference| and ε, in the reference's bin widths."""

    qualifying: np.ndarray
    distance: np.ndarray
    epsilon: np.ndarray

    @property
    def qualifying_share(self):
        return self.qualifying.mean()

    @property
    def matched_share(self):
        """Of the qualifying neurons, those within one bin width of the reference."""
        return (self.distance[self.qualifying] <= 1).mean()

    def where(self, chosen):
        return PeakComparison(self.qualifying[chosen], self.distance[chosen], self.epsilon[chosen])

    @classmethod
    def of_all(cls, parts):
        return cls(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)))

    def __str__(self):
        return (
            f"{len(self.qualifying)} neurons, {self.qualifying_share:.1%} clearly peaked, {self.matched_share:.2%} of "
            f"these within one bin width of the reference, the farthest {self.distance[self.qualifying].max():.2f}; ε "
            f"is {self.epsilon.min():.2f} to {self.epsilon.max():.2f} of its bin width"
        )


def compare_peaks(values, statistics, bins=256, reference=None):
    """Compare `peak` with the reference's, for the `[token neuron]` values the statistics were collected from."""
    peak, counts, width = reference or reference_peak(values)
    histogram = statistics.histogram.coarsen(bins)
    ours = centers.center("peak", statistics, bins=bins).flatten().numpy()
    return PeakComparison(
        clearly_peaked(counts) & clearly_peaked(histogram.counts().flatten(0, 2).numpy()),
        np.abs(ours - peak) / width,
        histogram.epsilon.flatten().numpy() / width,
    )

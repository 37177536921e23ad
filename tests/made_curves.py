"""Loss curves as they were never measured: parabolas with planted minima, and documents that agree more or less."""

import torch

from ablation_lens.experiments.constants import CENTERS, SIGMAS, LossCurves, Unit
from ablation_lens.measure.score import Sums
from ablation_lens.sites import Site
from tests.synthetic_statistics import record

DOCUMENTS = 12


def curves_of(minima, *, floor=0.1, bend=0.01, noise=0.0, units=None, places=(0.5, 0.0, -0.25, 1.0), **given):
    """A curve per minimum: floor + bend · (s − minimum)² in every document, of two predictions each.

    `places` are those of the centers in σ; `noise` is a slope by document, whose mean is 0; `keep` weights documents.
    """
    sigmas, centers = given.pop("sigmas", SIGMAS), given.pop("centers", CENTERS)
    if units is None:
        units = tuple(
            Unit(f"L{number % 2}.H{number // 2 % 3}.D{number // 6}", "neuron", 1) for number in range(len(minima))
        )
    at = torch.tensor([*sigmas, *places]).double()
    weights = given.pop("keep", torch.full((DOCUMENTS,), 2.0)).double()
    slopes = noise * (torch.arange(DOCUMENTS).double() - (DOCUMENTS - 1) / 2)
    curves = torch.stack([floor + bend * (at - minimum) ** 2 for minimum in minima])
    losses = 3.0 + curves[..., None] + at[:, None] * slopes
    count = len(minima)
    return LossCurves(
        given.pop("metric", "cross_entropy"),
        Site.of(given.pop("site", Site.Z)),
        units,
        tuple(map(float, sigmas)),
        tuple(centers),
        losses * weights,
        Sums(3.0 * weights, weights),
        *(torch.tensor(at_mean).double().expand(count, -1).clone() for at_mean in (places, list(map(abs, places)))),
        torch.full((count,), 0.25).double(),
        torch.full((count,), 2.0).double(),
        given.pop("source", record((2, 3, 4))),
        "100 positions of made up",
        "24 predictions of made up",
    )

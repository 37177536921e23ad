"""Effects of circuits as they were never measured: whatever numbers a test gives."""

import torch

from ablation_lens.circuits import Effects
from ablation_lens.circuits.effects import NeuronSums
from ablation_lens.measure.score import Sums

ROWS = 6
WEIGHTS = torch.ones(ROWS, dtype=torch.float64)


def effects_of(by_site, *, method="knockout", level="head", clean=3.0, empty=-1.0, metric="logit_difference", **given):
    """Effects that every row agrees on; of neurons with the rows of their heads, as attributions have them."""
    rows = {site: torch.as_tensor(each).double().expand(ROWS, *each.shape).clone() for site, each in by_site.items()}
    neurons = {}
    if level == "neuron":
        neurons = {site: NeuronSums.of_rows(each, WEIGHTS) for site, each in rows.items()}
        rows = {site: each.sum(-1) for site, each in rows.items()} if method != "knockout" else {}
    sums = Sums(clean * WEIGHTS, WEIGHTS), Sums(empty * WEIGHTS, WEIGHTS)
    return Effects(method, level, metric, given.pop("values", "peak"), *sums, rows, neurons, **given)

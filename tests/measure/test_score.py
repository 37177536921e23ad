from functools import reduce
from operator import add

import torch

from ablation_lens.measure.score import Score


def test_losses_are_added_from_left_to_right_by_every_python():
    """`sum` of Python 3.12 makes up for rounding: the same files would give other last bits than under 3.11."""
    losses = [1e16, 1.0, 1.0, 0.1]
    score = Score((0, 1, 2, 3), torch.ones(4).long(), torch.tensor(losses, dtype=torch.float64), torch.ones(4).long())
    assert score.cross_entropy == reduce(add, losses) / 4 == 1e16 / 4

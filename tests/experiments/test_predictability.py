"""Whether shape predicts the best constant: planted cases."""

import pytest
import torch

from ablation_lens import ActivationStatistics
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.predictability import predict_constants


@pytest.fixture(scope="module")
def stats():
    drawn = torch.Generator().manual_seed(3)
    values = torch.randn(800, 2, 4, 25, generator=drawn) ** 3 + 3 * torch.randn(2, 4, 25, generator=drawn)
    return ActivationStatistics.of_values(values)


def test_what_follows_from_a_feature_is_explained_by_it(stats):
    found = predict_constants(stats, 0.3 * stats.mean)
    assert found.explained["zero"] > 0.9
    assert found.explained["all"] > 0.9
    assert found.explained["skew"] < 0.2


def test_chance_is_not_explained(stats):
    noise = stats.mean + stats.std * torch.randn(stats.shape, generator=torch.Generator().manual_seed(1))
    found = predict_constants(stats, noise)
    assert max(found.explained.values()) < 0.1
    assert found.repeated is None


def test_a_second_learning_says_what_is_not_chance(stats):
    drawn = torch.Generator().manual_seed(1)
    true, *noise = (torch.randn(stats.shape, generator=drawn, dtype=torch.float64) for _ in range(3))
    first, second = (stats.mean + stats.std * (true + 0.1 * each) for each in noise)
    assert predict_constants(stats, first, second).repeated == pytest.approx(0.98, abs=0.01)
    assert "a second learning" in repr(predict_constants(stats, first, second))


def test_neurons_that_never_vary_are_left_out():
    values = torch.randn(200, 1, 1, 40, generator=torch.Generator().manual_seed(0))
    values[..., :5] = 1.0
    stats = ActivationStatistics.of_values(values)
    assert predict_constants(stats, stats.mean).neurons == 35


def test_wrong_shapes_and_too_few_neurons_are_refused(stats):
    with pytest.raises(MismatchError, match="one per neuron"):
        predict_constants(stats, torch.zeros(1, 2, 3))
    few = ActivationStatistics.of_values(torch.randn(50, 1, 1, 6))
    with pytest.raises(MismatchError, match="at least 20"):
        predict_constants(few, few.mean)

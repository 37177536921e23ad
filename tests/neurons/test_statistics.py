"""Statistics of given values, and what a provenance says after a merge."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.rows import Rows
from ablation_lens.neurons.statistics import ActivationStatistics, PlanReading
from tests.synthetic_statistics import draw, record

SHAPE = (2, 3, 4)


def test_of_values_is_what_numpy_says_and_saves_like_any_other(tmp_path):
    values = draw(500, SHAPE)
    statistics = ActivationStatistics.of_values(values, passes=2)
    assert torch.allclose(statistics.mean, values.double().mean(0), atol=1e-12)
    assert torch.allclose(statistics.variance, values.double().var(0, correction=0), atol=1e-12)
    assert torch.equal(statistics.maximum, values.amax(0).double())
    assert statistics.count.unique().tolist() == [500]
    statistics.save(tmp_path / "s.safetensors")
    again = ActivationStatistics.load(tmp_path / "s.safetensors")
    for center in al.centers.names():
        assert torch.equal(again.center(center), statistics.center(center))


def test_of_values_leaves_out_positions_that_are_not_valid():
    values = draw(40, SHAPE).view(4, 10, *SHAPE)
    valid = torch.arange(10) < torch.tensor([[10], [3], [1], [0]])
    values[~valid] = torch.nan
    statistics = ActivationStatistics.of_values(values, valid)
    assert torch.allclose(statistics.mean, values[valid].double().mean(0), atol=1e-12)
    assert statistics.provenance.tokens == 14


def test_an_ablation_of_given_values_fits_any_model_of_their_shape_unless_one_is_named():
    values = draw(50, SHAPE)
    mask = al.random_neurons(SHAPE, 0.5, seed=0)
    assert ActivationStatistics.of_values(values).ablation(mask, "mean").source is None
    known = record(SHAPE)
    assert ActivationStatistics.of_values(values, model=known).ablation(mask, "mean").source == known


# ---------------------------------------------------------------------- which batches were read


def reading(*read, plan="d", batches=9):
    return PlanReading(plan, batches, read)


def test_parts_of_a_plan_join_whatever_their_order():
    parts = [reading((4, 6)), reading((0, 2)), reading((6, 9)), reading((2, 4))]
    joined = parts[0].join(parts[1]).join(parts[2])
    assert joined == reading((0, 2), (4, 9))
    assert not joined.is_whole
    assert joined.join(parts[3]).is_whole


@pytest.mark.parametrize(
    "other", [reading((1, 3)), reading((0, 9)), reading((2, 4), plan="e"), reading((2, 4), batches=8)]
)
def test_what_overlaps_or_is_of_another_plan_does_not_join(other):
    assert reading((0, 2)).join(other) is None


def test_the_first_formats_sentence_is_read_as_data():
    assert PlanReading.from_dict("abc") == PlanReading("abc", None)
    assert PlanReading.from_dict("abc").is_whole
    assert PlanReading.from_dict("abc (first 2 of 3 batches)") == PlanReading("abc", 3, ((0, 2),))
    assert PlanReading.from_dict(reading((0, 2)).to_dict()) == reading((0, 2))
    with pytest.raises(FileFormatError, match="does not say which batches"):
        PlanReading.from_dict("abc (most of it)")


# ---------------------------------------------------------------------- positions


def test_position_means_of_several_batches_of_unlike_length():
    batches = [torch.randn(3, 5, 2, 3), torch.randn(2, 8, 2, 3)]
    valid = [torch.rand(3, 5) < 0.7, torch.ones(2, 8, dtype=torch.bool)]
    positions = Positions((1, 2, 3))
    for values, mask in zip(batches, valid, strict=True):
        positions.add(0, Rows(values, mask))
    for place in range(8):
        seen = [
            values[mask[:, place], place]
            for values, mask in zip(batches, valid, strict=True)
            if place < values.shape[1]
        ]
        assert torch.allclose(positions.mean[0, place], torch.cat(seen).double().mean(0), atol=1e-12)
        assert positions.counts[place] == sum(map(len, seen))


def test_values_without_positions_are_refused():
    with pytest.raises(MismatchError, match="expected \\[batch pos head dim\\]"):
        Positions((1, 2, 3)).add(0, Rows(torch.zeros(5, 2, 3)))
    with pytest.raises(MismatchError, match="do not fit"):
        Positions((1, 2, 3), torch.zeros(1, 4, 2, 3).double(), torch.zeros(5, dtype=torch.int64))

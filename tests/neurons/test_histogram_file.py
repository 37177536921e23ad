"""What a file holds reads back bit for bit, and what no collection produces is refused."""

import json
import math

import pytest
import torch

from ablation_lens.errors import FileFormatError
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.histogram_file import histogram_from_file, to_file, trimmed_from_file
from ablation_lens.neurons.trimmed import TrimmedHistogram
from tests.histograms import assert_same_state, collected, outliers


def read(kind):
    return trimmed_from_file if kind is TrimmedHistogram else histogram_from_file


def examples() -> list[NeuronHistogram]:
    some = collected(torch.randn(50, 3) * torch.tensor([1e-30, 1.0, 1e30]), 100, torch.bfloat16)
    first, values = outliers()
    trimmed = TrimmedHistogram.around(first)
    trimmed.update(values)
    half = NeuronHistogram((2, 1, 2))
    half.update_layer(0, torch.zeros(4, 1, 2))
    return [some, trimmed, NeuronHistogram((1, 2, 3)), half]


@pytest.mark.parametrize("index", range(4))
def test_state_survives_a_round_trip(index):
    histogram = examples()[index]
    tensors, header = to_file(histogram)
    again = read(type(histogram))(tensors, json.loads(json.dumps(header)))
    assert_same_state(again, histogram)
    assert (
        torch.equal(
            again.quantile(0.5),
            histogram.quantile(0.5),
        )
        or histogram.quantile(0.5).isnan().any()
    )
    tensors["counts"].zero_()
    assert_same_state(again, histogram)


def tamper(name, change):
    def apply(tensors, header):
        tensors[name] = change(tensors[name].clone())

    return apply


def plus(value, at=(0, 0, 1)):
    def change(tensor):
        tensor[at] += value
        return tensor

    return change


def put(value, at=(0, 0, 1)):
    def change(tensor):
        tensor[at] = value
        return tensor

    return change


TAMPERED = {
    "a tensor missing": (lambda tensors, header: tensors.pop("offset"), "offset"),
    "a tensor too many": (lambda tensors, header: tensors.update(extra=torch.zeros(1)), "extra"),
    "another dtype": (tamper("minimum", torch.Tensor.float), "minimum"),
    "another shape": (tamper("counts", lambda counts: counts[..., :-1].clone()), "counts"),
    "one more value": (tamper("counts", plus(1, (0, 0, 1, 3))), "total"),
    "a negative count": (tamper("counts", put(-1, (0, 0, 1, 3))), "negative count"),
    "a count that overflows": (tamper("counts", put(2**63 - 1, (0, 0, 1, 3))), "2\\^62"),
    "another total": (tamper("total", plus(1)), "total"),
    "a finer grid": (tamper("exponent", plus(-1)), "bins that do not fit"),
    "a coarser grid": (tamper("exponent", plus(1)), "bins that do not fit"),
    "an absurd grid": (tamper("exponent", put(2**62)), "bins that do not fit"),
    "a shifted grid": (tamper("offset", plus(1)), "bins that do not fit"),
    "a NaN": (tamper("minimum", put(math.nan)), "not finite"),
    "an infinity": (tamper("maximum", put(math.inf)), "not finite"),
    "values without a range": (
        lambda tensors, header: (put(math.inf)(tensors["minimum"]), put(-math.inf)(tensors["maximum"])),
        "range",
    ),
    "a minimum above its maximum": (
        lambda tensors, header: tensors["minimum"].copy_(tensors["maximum"] + 1),
        "minimum above",
    ),
    "negative zero": (tamper("minimum", put(-0.0)), "-0.0"),
    "a foreign kind": (lambda tensors, header: header.update(kind="Other"), "was expected, not a 'Other'"),
    "another size": (lambda tensors, header: header.update(bins=128), "counts"),
    "bins that are not a number": (lambda tensors, header: header.update(bins="256"), "bins is '256'; expected int"),
    "an absurd size": (lambda tensors, header: header.update(shape=[2**40, 2**40, 2**40]), "counts"),
    "a negative size": (lambda tensors, header: header.update(shape=[1, 1, -3]), "three sizes"),
    "another resolution": (lambda tensors, header: header.update(resolution="float16"), "bins that do not fit"),
    "an unknown resolution": (lambda tensors, header: header.update(resolution="int8"), "resolution is 'int8'"),
    "an unhashable resolution": (lambda tensors, header: header.update(resolution=[]), "resolution is"),
    "a missing field": (lambda tensors, header: header.pop("bins"), "needs the fields"),
}


@pytest.mark.parametrize(("change", "message"), TAMPERED.values(), ids=TAMPERED.keys())
@pytest.mark.parametrize("trimmed", [False, True])
def test_tampered_contents_are_refused(change, message, trimmed):
    values = torch.tensor([[-1.0, 1.0, 2.0], [0.5, 1.0 + 2**-22, 2.5], [0.75, 1.0 + 2**-21, 3.0]]).view(3, 1, 1, 3)
    histogram = NeuronHistogram((1, 1, 3))
    histogram.update(values)
    if trimmed:
        histogram = TrimmedHistogram(values.amin(0), values.amax(0))
        histogram.update(values)
    tensors, header = to_file(histogram)
    read(type(histogram))(tensors, header)
    change(tensors, header)
    with pytest.raises(FileFormatError, match=message):
        read(type(histogram))(tensors, header)


def move(source, target):
    """One value of neuron 1 counted in another bin: totals still agree."""

    def apply(tensors):
        tensors["counts"][0, 0, 1, source] -= 1
        tensors["counts"][0, 0, 1, target] += 1

    return apply


def one_value_of_two(tensors):
    tensors["counts"][0, 0, 1, 1:] = 0
    tensors["counts"][0, 0, 1, 0] = 1
    tensors["total"][0, 0, 1] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move(0, 1), "bin of its minimum"),
        (move(4, 3), "bin of its minimum or maximum"),
        (move(1, 5), "beyond its maximum"),
        (one_value_of_two, "one value"),
    ],
)
def test_counts_that_contradict_the_range_are_refused(change, message):
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 256.0]).view(5, 1, 1, 1).expand(5, 1, 1, 3)
    histogram = NeuronHistogram((1, 1, 3), bins=6)
    histogram.update(values)
    assert histogram.counts((0, 0, 1)).tolist() == [4, 0, 0, 0, 1, 0]
    tensors, header = to_file(histogram)
    tensors["counts"][0, 0, 1, 1] += 1
    tensors["total"][0, 0, 1] += 1
    histogram_from_file(tensors, header)
    change(tensors)
    if change is not one_value_of_two and message == "bin of its minimum":
        tensors["counts"][0, 0, 1, :2] = torch.tensor([0, 5])
    with pytest.raises(FileFormatError, match=rf"L0\.H0\.D1 .*{message}"):
        histogram_from_file(tensors, header)

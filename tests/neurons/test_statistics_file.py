"""What a statistics file may hold: forged ones are refused by name, or hold statistics that all can be read of."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.neurons.positions import Positions
from ablation_lens.neurons.rows import Rows
from ablation_lens.neurons.statistics import KIND, VERSION, ActivationStatistics, PlanReading
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.records import CorpusRecord
from tests.forging import Forger
from tests.histograms import BINS, NASTY, assert_same_state
from tests.synthetic_statistics import record

SHAPE = (2, 1, 4)
TOKENS = 180


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file with all there can be: two passes, means per position, a corpus, zeros, a constant neuron."""
    values = torch.randn(6, 30, *SHAPE, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 1e-3, 50, 1.0])
    values[..., 0] = values[..., 0].relu()
    values[:, :, 1, :, 3] = 0.25
    one = ActivationStatistics.of_values(values, model=record(SHAPE), passes=2, bins=16)
    positions = Positions(SHAPE)
    for layer in range(SHAPE[0]):
        positions.add(layer, Rows(values[:, :, layer]))
    corpus = CorpusRecord(
        name="stdlib", source="embedded", split="collect", kind="text", digest="0" * 64, python="3.11",
        size_requested=TOKENS, size_obtained=TOKENS, unit="tokens", documents=6, settings=(("language", "en"),),
    )  # fmt: skip
    plan = PlanReading("1" * 64, 3, ((0, 1), (1, 3)))
    provenance = replace(one.provenance, corpora=(corpus,), plans=(plan,))
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    rows = torch.tensor([-(2**63), -5, 0, 7, 9, 2**63 - 1])
    ActivationStatistics(one.histogram, one.moments, provenance, one.trimmed, positions, rows).save(path)
    return path


def require_readable(statistics):
    """All that is read of statistics is a number, but where it says that there is none."""
    table = statistics.table()
    numbers = torch.tensor(table.drop(columns=["shape", "second_peak"]).to_numpy(dtype=float))
    varying = torch.tensor((table["shape"] != "constant").to_numpy())
    assert numbers[varying].isfinite().all()
    assert not numbers.isinf().any()
    for name in al.centers.names():
        if name != "peak-trimmed" or statistics.trimmed is not None:
            assert statistics.center(name).isfinite().all()
    assert statistics.positions is None or statistics.position_mean.isfinite().all()
    assert statistics.site in al.Site
    assert statistics.merge(statistics).provenance.tokens == 2 * TOKENS


def refusal(path):
    """What is said of a file that is refused; None for one that can be read, and whose numbers can."""
    try:
        statistics = ActivationStatistics.load(path)
    except FileFormatError as error:
        return str(error)
    require_readable(statistics)
    return None


def test_forged_files_are_refused_by_name_or_hold_numbers(whole, tmp_path):
    forger, target = Forger(whole, KIND, VERSION), tmp_path / "forged.safetensors"
    refused = 0
    for number in range(400):
        told = forger.forge(target, number)
        try:
            said = refusal(target)
        except Exception as error:
            raise AssertionError(told) from error
        assert said is None or (str(target) in said and said.isprintable()), told
        refused += said is not None
    print(f"\n{refused} of 400 forgeries were refused")
    assert 300 <= refused <= 390  # neither is everything refused, nor are most mutations harmless


@given(
    rows=st.lists(st.tuples(NASTY, st.floats(-4, 4, width=32), NASTY), min_size=1, max_size=24),
    cut=st.integers(0, 24),
    bins=BINS,
    passes=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(deadline=None, max_examples=50)
def test_whatever_is_collected_and_merged_can_be_read_again(tmp_path_factory, rows, cut, bins, passes, dtype):
    values = torch.tensor(rows).to(dtype).view(-1, 1, 1, 3)
    values = values[values.isfinite().all(-1)].view(-1, 1, 1, 3)  # bfloat16 and its few digits round up to infinity
    whole = ActivationStatistics.of_values(values, bins=bins, passes=passes)
    halves = [ActivationStatistics.of_values(part, bins=bins) for part in (values[:cut], values[cut:]) if len(part)]
    for number, statistics in enumerate([whole, *halves, halves[0].merge(halves[-1])]):
        path = tmp_path_factory.getbasetemp() / f"{number}.safetensors"
        statistics.save(path)
        again = ActivationStatistics.load(path)
        assert_same_state(again.histogram, statistics.histogram)
        assert torch.equal(again.variance, statistics.variance)


# ---------------------------------------------------------------------- one flaw each


def put(name, value, at=(0, 0, 1)):
    def apply(header, tensors):
        tensors[name][at] = value

    return apply


def times(name, factor):
    def apply(header, tensors):
        tensors[name] *= factor

    return apply


def header_with(path, value):
    def apply(header, tensors):
        *above, last = path.split(".")
        for key in above:
            header = header[key]
        header[last] = value

    return apply


def drop(*names):
    def apply(header, tensors):
        for name in names:
            tensors.pop(name, header.pop(name, None))

    return apply


FLAWS = {
    # sums that contradict each other, or the histogram
    "a sum that is not finite": (put("moments.root", torch.inf), "L0.H0.D1 has sums that are not finite"),
    "a sum that is not a number": (put("moments.deviation", torch.nan), "not finite"),
    "a pivot far away": (put("moments.pivot", 1e9), "L0.H0.D1 has a pivot outside its range"),
    "a mean beyond the maximum": (times("moments.deviation", 1e4), "a mean outside its range"),
    "a negative sum of squares": (times("moments.squared_deviation", -1), "variance"),
    "squares less than N·mean²": (put("moments.squared_deviation", 1e-9), "variance"),
    "squares of nothing": (put("moments.squared_deviation", 0.0), "variance"),
    "squares beyond the range": (times("moments.squared_deviation", 1e3), "variance"),
    "sizes less than the mean": (put("moments.absolute", 0.0, (0, 0, 0)), "mean size"),
    "sizes beyond the range": (times("moments.absolute", 1e3), "mean size"),
    "a negative root": (times("moments.root", -1), "mean root"),
    "roots beyond the range": (times("moments.root", 1e3), "mean root"),
    "another count": (put("moments.count", TOKENS + 1, 0), f"over {TOKENS} positions.* to {TOKENS + 1} values"),
    "other tokens": (header_with("provenance.tokens", TOKENS + 1), f"over {TOKENS + 1} positions"),
    "more tokens than there are numbers": (header_with("provenance.tokens", 10**40), "over 1000"),
    # means per position
    "a negative number of texts": (put("position.counts", -1, 3), "means per position are over others"),
    "other positions": (put("position.counts", 7, 3), "means per position are over others"),
    "a mean at a position that no value has": (put("position.sums", 1e6, (1, 2, 0, 3)), "L1.H0.D3 has a mean outside"),
    "no mean at a position": (put("position.sums", torch.nan, (1, 2, 0, 3)), "L1.H0.D3 has a mean outside"),
    # digests of rows
    "a row twice": (put("rows.digests", -5, 2), "not those of different rows"),
    "rows in no order": (put("rows.digests", 8, 2), "not those of different rows"),
    "no rows": (lambda header, tensors: tensors.update({"rows.digests": torch.zeros(0).long()}), "its 0 digests"),
    "more rows than positions": (
        lambda header, tensors: tensors.update({"rows.digests": torch.arange(2 * TOKENS + 1)}),
        "its 361 digests of rows",
    ),
    "rows of another type": (
        lambda header, tensors: tensors.update({"rows.digests": torch.zeros(1)}),
        "its rows .* digests",
    ),
    "rows that are a table": (
        lambda header, tensors: tensors.update({"rows.digests": torch.arange(6).view(2, 3)}),
        "its rows .* digests",
    ),
    # parts that are not there, or too many
    "no moments": (drop("moments.count"), "its moments .* count"),
    "a stranger": (lambda header, tensors: tensors.update(x=torch.zeros(1)), "holds a tensor 'x'"),
    "a second pass that nobody speaks of": (drop("trimmed"), "holds a tensor 'trimmed"),
    "a second pass without numbers": (drop("trimmed.counts"), "TrimmedHistogram .* counts"),
    "a second pass in the place of the first": (
        lambda header, tensors: header.update(histogram=header["trimmed"]),
        "a NeuronHistogram was expected",
    ),
    "half of the means per position": (drop("position.counts"), "its means per position"),
    # headers
    "more bins than a file can hold": (header_with("histogram.bins", 10**9), "1000000000 bins"),
    "more neurons than there are": (header_with("histogram.shape", [2**40] * 3), "NeuronHistogram .* counts"),
    "heads of 0": (header_with("histogram.shape", [2, 0, 4]), "three sizes"),
    "heads of -1": (header_with("histogram.shape", [2, -1, 4]), "three sizes"),
    "an unknown dtype": (header_with("histogram.resolution", "int8"), "'int8', and not one of float64"),
    "an unknown site": (header_with("provenance.site", "resid"), "'resid', and not one of z, mlp"),
    "a site that is a number": (header_with("provenance.site", 3), "site is 3; expected str"),
    "a corpus without its plan": (header_with("provenance.plans", []), "1 corpora and 0 plans"),
    "a batch that the plan does not have": (
        lambda header, tensors: header["provenance"]["plans"][0].update(read=[[0, 10**6]]),
        "were read",
    ),
    "batches in no order": (
        lambda header, tensors: header["provenance"]["plans"][0].update(batches=9, read=[[4, 6], [0, 2]]),
        "were read",
    ),
    "a lone surrogate": (header_with("provenance.model.name", "\ud800"), "header of .* is damaged"),
    "an empty header": (lambda header, tensors: header.clear(), "needs the fields"),
}


@pytest.mark.parametrize(("change", "message"), FLAWS.values(), ids=FLAWS.keys())
def test_what_no_collection_makes_is_refused(whole, tmp_path, change, message):
    header, tensors = load_tensors(whole, KIND, newest=VERSION)
    change(header, tensors)
    target = tmp_path / "forged.safetensors"
    save_tensors(target, KIND, header, tensors, version=VERSION)
    with pytest.raises(FileFormatError, match=message) as caught:
        ActivationStatistics.load(target)
    assert str(target) in str(caught.value)


def test_digests_of_rows_are_read_as_they_were_written(whole, tmp_path):
    statistics = ActivationStatistics.load(whole)
    assert statistics.rows.tolist() == [-(2**63), -5, 0, 7, 9, 2**63 - 1]
    other = replace(statistics, rows=torch.tensor([-6, 7]))
    both = statistics.merge(other)
    both.save(tmp_path / "both.safetensors")
    assert ActivationStatistics.load(tmp_path / "both.safetensors").rows.tolist() == [
        *[-(2**63), -6, -5, 0, 7, 9, 2**63 - 1],
    ]
    # Of all rows, or of none: some would pass for all.
    assert statistics.merge(replace(statistics, rows=None)).rows is None


def test_a_second_pass_reaches_no_further_than_the_first(tmp_path):
    values = torch.randn(50, 1, 1, 2)
    wide, narrow = (ActivationStatistics.of_values(values * scale, passes=2) for scale in (10, 1))
    for second, fits in ((narrow, True), (wide, False)):
        path = tmp_path / "mixed.safetensors"
        replace(narrow, trimmed=second.trimmed).save(path)
        if fits:
            ActivationStatistics.load(path)
        else:
            with pytest.raises(FileFormatError, match="beyond that of the first pass"):
                ActivationStatistics.load(path)


def test_a_second_pass_is_over_as_many_values_as_the_first(tmp_path):
    values = torch.randn(50, 1, 1, 2)
    statistics = ActivationStatistics.of_values(values, passes=2)
    second = TrimmedHistogram.around(statistics.histogram)
    second.update(values[:25])
    mixed = replace(statistics, trimmed=second)
    mixed.save(tmp_path / "mixed.safetensors")
    with pytest.raises(FileFormatError, match=r"second pass, L0.H0.D0 has more or fewer values"):
        ActivationStatistics.load(tmp_path / "mixed.safetensors")
    with pytest.raises(MismatchError, match="more or fewer values"):
        ActivationStatistics.of_arrays(mixed.arrays())

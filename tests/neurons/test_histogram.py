"""The state is what the definition says, whatever the order, the batches or the merges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.histogram_file import histogram_from_file, to_file
from ablation_lens.neurons.rows import Rows
from ablation_lens.neurons.trimmed import TrimmedHistogram
from tests.histograms import (
    BINS,
    NASTY,
    RESOLUTIONS,
    SAMPLES,
    assert_same_state,
    collected,
    column,
    oracle,
    state_differences,
)

# ---------------------------------------------------------------------- one update is what the definition says


@given(samples=SAMPLES, bins=BINS, resolution=RESOLUTIONS)
@settings(deadline=None, max_examples=200)
def test_exponent_offset_and_counts_are_the_definitions(samples, bins, resolution):
    histogram = collected(column(samples), bins, resolution)
    exponent, offset, counts = oracle(samples, bins, resolution)
    assert (histogram.exponent.item(), histogram.offset.item()) == (exponent, offset)
    assert histogram.counts((0, 0, 0)).tolist() == counts
    assert (histogram.minimum.item(), histogram.maximum.item()) == (min(samples), max(samples))


@given(
    samples=st.lists(st.floats(-1e300, 1e300) | st.floats(-1e-300, 1e-300), min_size=1, max_size=20),
    bins=BINS,
    resolution=RESOLUTIONS,
)
@settings(deadline=None)
def test_float64_values_are_counted_exactly_too(samples, bins, resolution):
    histogram = collected(column(samples, torch.float64), bins, resolution)
    exponent, offset, counts = oracle(samples, bins, resolution)
    assert (histogram.exponent.item(), histogram.offset.item()) == (exponent, offset)
    assert histogram.counts((0, 0, 0)).tolist() == counts


@pytest.mark.parametrize("resolution", [torch.float32, torch.float64], ids=str)
def test_values_of_several_dtypes_share_a_histogram(resolution):
    wide = column([1 - 2**-40, 2 - 2**-41, 1 + 2**-40, 1.5], torch.float64)
    narrow = column([1.0, 1.5, 2.0, 1.25])
    both = torch.cat([wide, narrow.double()]).flatten().tolist()
    for batches in ([wide, narrow, wide], [narrow, wide, wide]):
        histogram = NeuronHistogram((1, 1, 1), 7, resolution=resolution)
        for batch in batches:
            histogram.update(batch.view(-1, 1, 1, 1))
        exponent, offset, counts = oracle(both + wide.flatten().tolist(), 7, resolution)
        assert (histogram.exponent.item(), histogram.offset.item()) == (exponent, offset)
        assert histogram.counts((0, 0, 0)).tolist() == counts


def test_float32_values_on_a_grid_whose_offset_only_float64_holds():
    wide, narrow = 1 - 2**-53 * 3, 1.0
    histogram = NeuronHistogram((1, 1, 1), 256, resolution=torch.float64)
    histogram.update(column([wide], torch.float64).view(-1, 1, 1, 1))
    histogram.update(column([narrow]).view(-1, 1, 1, 1))
    assert histogram.offset.item() == 2**52 - 2
    assert histogram.counts((0, 0, 0)).nonzero().flatten().tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_values_are_counted_as_the_numbers_they_are(dtype):
    values = torch.randn(500, 3).to(dtype)
    assert_same_state(collected(values, resolution=dtype), collected(values.double(), resolution=dtype))


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param([0.3] * 5, id="constant"),
        pytest.param([0.0] * 5, id="dead"),
        pytest.param([-7.5], id="a single value"),
        pytest.param([0.25, 0.5, 1.0, 2.0, 4.0, -0.25, -0.5, -4.0], id="powers of two"),
        pytest.param([3e-45, -1e-45, 1e-40, 0.0], id="subnormals"),
        pytest.param([1e-30, -1e-30, 1e30, 1.0], id="wide"),
        pytest.param([-1e-45, 1e30, -1e-30, 0.0], id="negative values that underflow when scaled"),
        pytest.param([-3.0, -2.5, -2.0, -1e-3], id="all negative"),
        pytest.param([1e6, 1e6 + 0.5, 1e6 + 1], id="far from zero"),
        pytest.param([float(np.nextafter(np.float32(1), np.float32(0))), 1.0, 1.0 + 2**-23], id="beside an edge"),
        pytest.param([-3.4e38, 3.4e38], id="float32's whole range"),
    ],
)
def test_special_neurons(samples):
    exact = [float(np.float32(value)) for value in samples]
    # Beside an ordinary neuron: one neuron's scale must not spoil a layer's other neurons.
    both = torch.cat([column(samples), torch.linspace(-1, 1, len(samples)).view(-1, 1)], 1)
    histogram = collected(both)
    for neuron in range(2):
        exponent, offset, counts = oracle(both[:, neuron].tolist(), 256, torch.float32)
        assert (histogram.exponent[0, 0, neuron].item(), histogram.offset[0, 0, neuron].item()) == (exponent, offset)
        assert histogram.counts((0, 0, neuron)).tolist() == counts
    width, edges = histogram.epsilon[0, 0, 0].item(), histogram.edges((0, 0, 0))
    for value in exact:
        place = int(np.searchsorted(edges.numpy(), value, side="right")) - 1
        assert edges[place] <= value < edges[place] + width
        assert histogram.counts((0, 0, 0))[place] > 0


def test_negative_zero_is_zero_in_every_order():
    assert_same_state(collected(column([0.0, -0.0])), collected(column([-0.0, 0.0])))
    assert_same_state(collected(column([-0.0])), collected(column([0.0])))


@pytest.mark.parametrize(("shape", "bins"), [((2, 3, 37), 100), ((1, 5, 601), 256), ((3, 1, 7), 1001)])
def test_every_bin_of_every_neuron_counts(shape, bins):
    generator = np.random.default_rng(0)
    exponent = generator.integers(-12, 3, shape)
    # 2^e·(j + something) for every bin j; the outermost bins are kept occupied so that the grid is known.
    repeats = generator.integers(1, 3, (*shape, bins))
    tokens = int(repeats.sum(-1).max())
    values = np.zeros((tokens, *shape))
    expected = repeats.copy()
    for place in np.ndindex(*shape):
        cells = np.repeat(np.arange(bins), repeats[place])
        expected[place][0] += tokens - len(cells)
        cells = np.concatenate([cells, np.zeros(tokens - len(cells), int)])
        values[(slice(None), *place)] = (generator.permutation(cells) - bins // 3 + 0.5) * 2.0 ** exponent[place]
    histogram = NeuronHistogram(shape, bins)
    histogram.update(torch.from_numpy(values).float())
    np.testing.assert_array_equal(histogram.exponent.numpy(), exponent)
    np.testing.assert_array_equal(histogram.offset.numpy(), np.full(shape, -(bins // 3)))
    np.testing.assert_array_equal(histogram.counts().numpy(), expected)


@pytest.mark.gpu
def test_the_state_on_cuda_equals_the_cpus():
    values = torch.randn(3, 300, 2, 5, 37) * torch.logspace(-3, 3, 37)
    values[..., 0] = values[..., 0].relu()
    valid = torch.rand(3, 300) < 0.8
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        here, there = (NeuronHistogram((2, 5, 37), resolution=dtype, device=device) for device in ("cpu", "cuda"))
        for batch, mask in zip(values.to(dtype), valid, strict=True):
            here.update(batch, mask)
            there.update(batch.cuda(), mask.cuda())
        assert_same_state(here, there.to("cpu"))
        trimmed = TrimmedHistogram.around(here), TrimmedHistogram.around(there)
        trimmed[0].update(values.to(dtype))
        trimmed[1].update(values.to("cuda", dtype))
        assert_same_state(trimmed[0], trimmed[1].to("cpu"))
        assert torch.equal(here.quantile([0.1, 0.5]), there.quantile([0.1, 0.5]).cpu())


# ---------------------------------------------------------------------- the state depends on the values alone


def merged_tree(draw, parts: list[NeuronHistogram]) -> NeuronHistogram:
    while len(parts) > 1:
        left = parts.pop(draw(st.integers(0, len(parts) - 1)))
        right = parts.pop(draw(st.integers(0, len(parts) - 1)))
        parts.append(left.merge(right))
    return parts[0]


@given(
    data=st.data(),
    rows=st.lists(st.tuples(NASTY, st.floats(-4, 4, width=32), NASTY), min_size=1, max_size=24),
    bins=BINS,
    resolution=RESOLUTIONS,
)
@settings(deadline=None, max_examples=150)
def test_any_order_split_and_merge_tree_gives_the_same_bits(data, rows, bins, resolution):
    whole = collected(torch.tensor(rows), bins, resolution)
    order = torch.tensor(data.draw(st.permutations(rows)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    shards = [order[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    parts = []
    for shard in shards:  # some shards are collected in two batches, some are empty
        part = NeuronHistogram((1, 1, 3), bins, resolution=resolution)
        middle = data.draw(st.integers(0, len(shard)))
        part.update(shard[:middle].view(-1, 1, 1, 3))
        part.update(shard[middle:].view(-1, 1, 1, 3))
        parts.append(part)
    assert_same_state(merged_tree(data.draw, parts), whole)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [{}, {"piece": 20_000, "block": 2000}], ids=str)
def test_small_batches_large_ones_and_threads_agree(threads, sizes):
    values = torch.randn(700, 2, 3, 65) * torch.logspace(-2, 2, 65)
    whole = NeuronHistogram((2, 3, 65))
    whole.update(values.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pieces = NeuronHistogram((2, 3, 65))
        for batch in values.split([1, 7, 300, 392]):
            for layer in range(2):
                pieces.add(layer, Rows(batch[:, layer], **sizes))
    finally:
        torch.set_num_threads(before)
    assert_same_state(pieces, whole)


def test_layer_by_layer_equals_all_at_once():
    values = torch.randn(2, 9, 3, 4, 5)
    valid = torch.rand(2, 9) < 0.7
    whole, layers = NeuronHistogram((3, 4, 5)), NeuronHistogram((3, 4, 5))
    whole.update(values, valid)
    for layer in (2, 0, 1):
        layers.update_layer(layer, values[:, :, layer], valid)
    assert_same_state(layers, whole)


def test_memory_layout_does_not_matter():
    values = torch.randn(3, 40, 4, 5)
    plain, permuted = NeuronHistogram((1, 4, 5)), NeuronHistogram((1, 4, 5))
    plain.update_layer(0, values)
    permuted.update_layer(0, values.transpose(1, 2).contiguous().transpose(1, 2))
    assert_same_state(plain, permuted)


def test_positions_that_are_not_valid_are_not_even_looked_at():
    values = torch.randn(4, 6, 1, 2, 3)
    valid = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    values[~valid] = torch.nan
    histogram, kept = NeuronHistogram((1, 2, 3)), NeuronHistogram((1, 2, 3))
    histogram.update(values, valid)
    kept.update(values[valid])
    assert_same_state(histogram, kept)
    assert histogram.total.unique().tolist() == [10]


def test_the_callers_values_stay_as_they_are():
    values = torch.randn(50, 1, 2, 3)
    before = values.clone()
    NeuronHistogram((1, 2, 3)).update(values)
    assert torch.equal(values, before)


def test_the_comparison_notices_a_planted_error():
    one, two = collected(torch.randn(50, 3)), None
    for name, state in one.tensors().items():
        two = one.copy()
        assert state_differences(one, two) == []
        two.tensors()[name].view(-1)[1] += 1
        assert name in state_differences(one, two), state
    signed = collected(column([0.0]))
    signed._minimum.fill_(-0.0)
    assert state_differences(signed, collected(column([0.0]))) == ["minimum"]


def test_inference_mode_and_gradients_leave_no_trace():
    values = torch.randn(20, 1, 1, 3, requires_grad=True)
    expected = collected(values.detach().view(20, 3))
    with torch.inference_mode():
        inside = NeuronHistogram((1, 1, 3))
        inside.update(values[:9] * 1)
        copied = inside.copy()
    for histogram in (inside, copied):
        histogram.update(values[9:])
        assert_same_state(histogram, expected)
    with torch.inference_mode():
        late = histogram_from_file(*to_file(inside))
    late.merge_(collected(torch.zeros(0, 3)))
    assert_same_state(late, expected)
    assert not late.counts().requires_grad


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_names_its_neuron_and_counts_nothing(bad):
    histogram = NeuronHistogram((4, 6, 18))
    histogram.update(torch.randn(5, 4, 6, 18))
    before = histogram.copy()
    values = 100 * torch.randn(2, 5, 4, 6, 18)
    values[1, 3, 3, 5, 17] = bad
    with pytest.raises(NonFiniteError, match=rf"^L3\.H5\.D17 is {bad} "):
        histogram.update(values)
    assert_same_state(histogram, before)
    with pytest.raises(NonFiniteError, match=r"^L3\.H5\.D17 "):
        histogram.update_layer(3, values[:, :, 3])
    assert_same_state(histogram, before)
    histogram.update(values[0])
    assert histogram.total.unique().tolist() == [10]


def test_a_neuron_that_is_infinite_everywhere_is_refused_too():
    with pytest.raises(NonFiniteError, match=r"L0\.H0\.D1 is inf"):
        collected(torch.tensor([[1.0, math.inf], [2.0, math.inf]]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(5, 2, 3, 5), r"\(5, 2, 3, 5\); expected .*\(2, 3, 4\)"),
        (torch.zeros(3, 4), r"\(3, 4\); expected"),
        (torch.zeros(5, 2, 3, 4, dtype=torch.int64), "torch.int64"),
    ],
)
def test_values_of_another_shape_or_kind_are_refused(values, message):
    with pytest.raises(MismatchError, match=message):
        NeuronHistogram((2, 3, 4)).update(values)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_does_not_exist_is_refused(layer):
    with pytest.raises(MismatchError, match="this histogram has 2 layers"):
        NeuronHistogram((2, 3, 4)).update_layer(layer, torch.zeros(5, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (2, 3)}, "three sizes"),
        ({"shape": (2, 0, 4)}, "three sizes"),
        ({"bins": 1}, "bins=1"),
        ({"bins": 2**16 + 1}, "bins=65537"),
        ({"resolution": torch.int32}, "torch.int32"),
    ],
)
def test_a_histogram_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(MismatchError, match=message):
        NeuronHistogram(**{"shape": (2, 3, 4)} | arguments)


@pytest.mark.parametrize(
    ("other", "both"),
    [
        (NeuronHistogram((1, 1, 3)), r"\(1, 1, 2\) and \(1, 1, 3\)"),
        (NeuronHistogram((1, 1, 2), bins=100), "256 and 100"),
        (NeuronHistogram((1, 1, 2), resolution=torch.bfloat16), "float32 and bfloat16"),
        (TrimmedHistogram(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)), "NeuronHistogram and TrimmedHistogram"),
    ],
)
def test_unlike_histograms_do_not_merge(other, both):
    histogram = collected(torch.randn(5, 2))
    before = histogram.copy()
    with pytest.raises(MismatchError, match=both):
        histogram.merge(other)
    with pytest.raises(MismatchError, match=both):
        histogram.merge_(other)
    assert_same_state(histogram, before)


@pytest.mark.parametrize("neuron", [(0, 0, 3), (1,), -1, (0, 0, 0, 0)])
def test_a_neuron_that_does_not_exist_is_refused(neuron):
    with pytest.raises(MismatchError, match="is not a neuron or layer here"):
        NeuronHistogram((1, 2, 3)).counts(neuron)


# ---------------------------------------------------------------------- merging and coarsening


def test_merge_leaves_its_arguments_alone():
    parts = [collected(scale * torch.randn(20, 3)) for scale in (1, 100, 0.01)]
    before = [part.copy() for part in parts]
    merged = parts[0].merge(*parts[1:])
    merged.update(torch.full((1, 1, 1, 3), 1e6))
    for part, old in zip(parts, before, strict=True):
        assert_same_state(part, old)


def test_merging_with_nothing_changes_nothing():
    empty, some = NeuronHistogram((1, 1, 3)), collected(torch.randn(20, 3))
    assert_same_state(empty.merge(some), some)
    assert_same_state(some.merge(empty), some)
    assert_same_state(empty.merge(empty), empty)
    assert_same_state(some.merge(), some)


def test_counts_far_beyond_32_bits():
    values = column([1.0, 2.0, 2.0, 4.0])
    histogram = collected(values)
    for _ in range(40):
        histogram.merge_(histogram)
    assert histogram.total.item() == 4 * 2**40
    assert histogram.counts((0, 0, 0)).max().item() == 2 * 2**40
    histogram.update(values.view(4, 1, 1, 1))
    assert histogram.total.item() == 4 * 2**40 + 4
    assert abs(histogram.quantile(0.5).item() - 2.0) <= histogram.epsilon.item()


@given(
    rows=st.lists(st.tuples(NASTY, st.floats(-4, 4, width=32)), max_size=24),
    bins=BINS,
    fewer=st.integers(2, 256),
    resolution=RESOLUTIONS,
)
@settings(deadline=None)
def test_coarsening_equals_collecting_with_fewer_bins(rows, bins, fewer, resolution):
    values, fewer = torch.tensor(rows).view(-1, 2), min(fewer, bins)
    fine = collected(values, bins, resolution)
    before = fine.copy()
    assert_same_state(fine.coarsen(fewer), collected(values, fewer, resolution))
    assert_same_state(fine, before)


@pytest.mark.parametrize(("max_bins", "message"), [(257, "can only be made coarser"), (1, "bins=1")])
def test_a_histogram_cannot_be_made_finer_or_a_single_bin(max_bins, message):
    with pytest.raises(MismatchError, match=message):
        NeuronHistogram((1, 1, 1)).coarsen(max_bins)


# ---------------------------------------------------------------------- reading


@given(samples=SAMPLES, bins=BINS, q=st.floats(0, 1))
@settings(deadline=None, max_examples=200)
def test_quantiles_are_within_one_bin_of_numpys(samples, bins, q):
    histogram = collected(column(samples), bins)
    expected = np.quantile(np.array(samples, dtype=np.float64), q)
    # NumPy's own interpolation rounds, by at most an ulp of what it interpolates between.
    rounding = 2**-50 * max(abs(min(samples)), abs(max(samples)))
    assert abs(histogram.quantile(q).item() - expected) <= histogram.epsilon.item() + rounding


@pytest.mark.parametrize("tokens", [1, 2, 3, 10, 5000])
def test_quantiles_of_many_neurons_at_once(tokens):
    values = torch.randn(tokens, 2, 3, 5) ** 3 + torch.linspace(-50, 50, 5)
    histogram = NeuronHistogram((2, 3, 5))
    histogram.update(values)
    q = [0.0, 0.001, 0.25, 0.5, 0.75, 0.999, 1.0]
    got, expected = histogram.quantile(q), np.quantile(values.double().numpy(), q, axis=0)
    assert got.dtype == torch.float64
    assert np.all(np.abs(got.numpy() - expected) <= histogram.epsilon.numpy())
    assert torch.equal(got[0], values.amin(0).double())
    assert torch.equal(got[-1], values.amax(0).double())
    assert bool((got.diff(dim=0) >= 0).all())
    assert torch.equal(histogram.quantile(0.25), got[2])


def test_quantiles_of_a_constant_neuron_are_that_constant():
    histogram = collected(column([0.1] * 7))
    assert histogram.quantile([0.0, 0.3, 0.5, 1.0]).unique().tolist() == [float(np.float32(0.1))]


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, [0.5, 2.0]])
def test_quantiles_outside_zero_to_one_are_refused(q):
    with pytest.raises(MismatchError, match="not between 0 and 1"):
        collected(column([1.0])).quantile(q)


def test_edges_and_centres_are_numpys_for_the_same_bins():
    values = torch.randn(1000, 2, 3, 5)
    histogram = NeuronHistogram((2, 3, 5))
    histogram.update(values)
    edges, counts = histogram.edges(), histogram.counts()
    for place in np.ndindex(2, 3, 5):
        here = histogram.edges(place).numpy()
        assert len(here) == 257
        np.testing.assert_array_equal(np.diff(here), histogram.epsilon[place].item())
        np.testing.assert_array_equal(here, edges[place].numpy())
        # NumPy's last bin is closed; the last edge lies above every value, so that makes no difference.
        column_ = values[(slice(None), *place)].double().numpy()
        np.testing.assert_array_equal(np.histogram(column_, here)[0], histogram.counts(place).numpy())
    peak = counts.argmax(-1)
    lower = edges.gather(-1, peak.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(histogram.bin_center(peak), lower + histogram.epsilon / 2)
    assert torch.equal(histogram.counts(1), counts[1])
    assert bool((counts[..., 128:].sum(-1) > 0).all()), "fewer than half of the bins are in use"


def test_what_is_read_is_a_copy():
    histogram = collected(torch.randn(20, 3))
    before = histogram.copy()
    for tensor in (histogram.counts(), histogram.counts(0), histogram.minimum, histogram.exponent, histogram.offset):
        tensor.zero_()
    for tensor in to_file(histogram)[0].values():
        tensor.zero_()
    assert_same_state(histogram, before)


def test_a_neuron_without_values_is_not_a_number():
    histogram = NeuronHistogram((2, 1, 1))
    histogram.update_layer(1, torch.tensor([[[1.0]], [[3.0]]]))
    assert histogram.total.flatten().tolist() == [0, 2]
    read = [histogram.minimum, histogram.maximum, histogram.epsilon, histogram.quantile(0.5)]
    read.append(histogram.bin_center(torch.zeros(2, 1, 1, dtype=torch.int64)))
    for values in read:
        assert values.isnan().flatten().tolist() == [True, False]
    assert histogram.edges((0, 0, 0)).isnan().all()
    assert histogram.counts((0, 0, 0)).sum() == 0


@pytest.mark.parametrize(("dtype", "mean"), [(torch.bfloat16, 100.0), (torch.float16, 1000.0)])
def test_rounding_to_the_values_dtype_leaves_no_comb(dtype, mean):
    values = (mean + torch.linspace(-3, 3, 20_000)).to(dtype).view(-1, 1)

    def holes(histogram):
        counts = histogram.counts((0, 0, 0))
        filled = counts.nonzero().flatten()
        return int(filled[-1] - filled[0] + 1 - len(filled))

    assert holes(collected(values, resolution=dtype)) == 0
    assert holes(collected(values, resolution=torch.float32)) > 50  # what the guard prevents


def test_repr_is_for_people():
    histogram = NeuronHistogram((4, 8, 16))
    assert repr(histogram) == "NeuronHistogram(4 layers × 8 heads × 16 dims, 256 bins, no values)"
    histogram.update(torch.zeros(5, 4, 8, 16))
    for _ in range(12):
        histogram.merge_(histogram)
    assert repr(histogram) == "NeuronHistogram(4 layers × 8 heads × 16 dims, 256 bins, 20 480 values per neuron)"
    histogram.update_layer(1, torch.zeros(2, 8, 16))
    assert repr(histogram).endswith("20 480–20 482 values per neuron)")

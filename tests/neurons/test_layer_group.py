"""Layers counted together, as on an accelerator: the same state as layer by layer, and no device is asked anything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.layer_group import LayerGroup
from ablation_lens.neurons.moments import Moments
from ablation_lens.neurons.rows import Rows
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.sending import send
from tests.histograms import NASTY, assert_same_state

MOMENTS = ("mean", "variance", "mean_absolute", "mean_root")


def places_of(valid):
    """Where the valid positions of a flattened batch are; None where all are."""
    return None if valid is None else valid.flatten().nonzero().flatten()


def feed(counters, batches, **options):
    """Show the counters batches `[layer batch pos head dim]`, with their masks, as a pass over an accelerator does."""

    def count(layers, rows):
        for counter in counters:
            (counter.add if isinstance(counter, Moments) else counter.add_layers)(layers, rows)

    group = LayerGroup(len(batches[0][0]), count, **options)
    for values, valid in batches:
        places = places_of(valid)
        if places is not None:
            places = send(places, values.device)
        for layer, part in enumerate(values):
            group.put(layer, part, places)
        group.flush()


def by_layer(counters, batches):
    """The same, as on a CPU."""
    for values, valid in batches:
        for layer, part in enumerate(values):
            rows = Rows(part, valid)
            for counter in counters:
                counter.add(layer, rows)


def assert_close(one, other):
    assert torch.equal(one.count, other.count)
    for name in MOMENTS:
        found, expected = getattr(one, name), getattr(other, name)
        # Sums are exact to their own size: a mean is what is left of values that cancel, and a variance of squares,
        # where the pivots of the two ways differ by nothing.
        scale = {
            "mean": one.mean_absolute,
            "variance": expected.abs() + one.mean.square() * 1e-9,
        }.get(name, expected.abs())
        assert ((found - expected).abs() <= 1e-12 * scale + 1e-300).logical_or(expected.isnan()).all(), name


@st.composite
def passes(draw):
    """Batches of one model, ever wider, some with padding, now and then with numbers on edges and beside them."""
    layers, heads, dims = draw(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    awkward = torch.tensor(draw(st.lists(NASTY, min_size=1, max_size=12)), dtype=torch.float64)
    if dtype == torch.float16:
        awkward = awkward.clamp(-60000, 60000)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        rows, positions = draw(st.integers(1, 4)), draw(st.integers(1, 9))
        shape = (layers, rows, positions, heads, dims)
        widening = 10.0 ** draw(st.integers(-3, 3))
        values = (torch.randn(shape, generator=generator) * widening).double()
        if draw(st.booleans()):
            chosen = torch.randint(len(awkward), shape, generator=generator)
            values = torch.where(torch.rand(shape, generator=generator) < 0.3, awkward[chosen], values)
        if draw(st.booleans()):
            values[..., 0] = values[..., 0].relu()
        values = values.to(dtype)
        if draw(st.booleans()):  # as attention leaves it: heads before positions in memory
            values = values.transpose(2, 3).contiguous().transpose(2, 3)
        valid = torch.rand(rows, positions, generator=generator) < 0.7 if draw(st.booleans()) else None
        if valid is not None:
            values[:, ~valid] = torch.nan
        batches.append((values, valid))
    return (layers, heads, dims), dtype, batches


@given(made=passes(), bins=st.integers(2, 300), share=st.sampled_from([1, 3, 1000]))
@settings(deadline=None, max_examples=40)
def test_groups_of_layers_are_counted_as_each_layer_is(made, bins, share):
    shape, dtype, batches = made
    one, two = ((NeuronHistogram(shape, bins, resolution=dtype), Moments(shape)) for _ in range(2))
    by_layer(one, batches)
    # Groups of one layer, of a few, and of all.
    feed(two, batches, most_bytes=share * batches[0][0][0].nbytes)
    assert two[0].all_finite()
    assert_same_state(one[0], two[0])
    assert_close(one[1], two[1])
    if (one[0].total == 0).any():
        return
    trimmed = [TrimmedHistogram.around(one[0], (0.2, 0.8)) for _ in range(2)]
    by_layer(trimmed[:1], batches)
    feed(trimmed[1:], batches, most_bytes=share * batches[0][0][0].nbytes)
    assert trimmed[1].all_finite()
    assert_same_state(*trimmed)


def test_the_comparison_of_moments_notices_a_planted_error():
    one, two = Moments((1, 1, 2)), Moments((1, 1, 2))
    by_layer([one, two], [(torch.randn(1, 3, 5, 1, 2), None)])
    assert_close(one, two)
    two._sums["root"] *= 1 + 1e-11
    with pytest.raises(AssertionError, match="mean_root"):
        assert_close(one, two)


def test_both_ways_may_take_turns():
    batches = [(torch.randn(3, 2, 7, 2, 4) * scale, None) for scale in (1.0, 20.0, 0.1, 300.0)]
    one, two = ((NeuronHistogram((3, 2, 4)), Moments((3, 2, 4))) for _ in range(2))
    by_layer(one, batches)
    for turn, batch in enumerate(batches):
        (feed if turn % 2 else by_layer)(two, [batch])
    assert_same_state(one[0], two[0])
    assert_close(one[1], two[1])


def test_a_layer_that_was_seen_alone_joins_a_group():
    values = torch.randn(3, 2, 7, 2, 4) + 50
    one, two = ((NeuronHistogram((3, 2, 4)), Moments((3, 2, 4))) for _ in range(2))
    for counters in (one, two):
        for counter in counters:
            counter.update_layer(1, values[0] * 2)
    by_layer(one, [(values, None)])
    feed(two, [(values, None)])
    assert_same_state(one[0], two[0])
    assert_close(one[1], two[1])


def test_layers_out_of_order_and_other_shapes_begin_a_new_group():
    shown = []
    group = LayerGroup(5, lambda layers, rows: shown.append((layers, rows.tokens, rows.dtype)))
    for layer in (0, 1, 3, 4, 2):
        group.put(layer, torch.zeros(2, 3, 1, 1))
    group.put(3, torch.zeros(2, 4, 1, 1))
    group.put(4, torch.zeros(2, 4, 1, 1, dtype=torch.float64))
    group.flush()
    group.flush()
    whole, half = torch.float32, torch.float64
    assert shown == [
        (slice(0, 2), 6, whole), (slice(3, 5), 6, whole), (slice(2, 3), 6, whole), (slice(3, 4), 8, whole),
        (slice(4, 5), 8, half),
    ]  # fmt: skip


def test_a_group_holds_no_more_than_it_may_but_at_least_a_layer():
    shown = []
    for most_bytes in (0, 2 * 24, 3 * 24 - 1, 4 * 24):
        group = LayerGroup(5, lambda layers, rows: shown.append(layers.stop - layers.start), most_bytes=most_bytes)
        for layer in range(5):
            group.put(layer, torch.zeros(6, 1, 1))
        group.flush()
    assert shown == [1, 1, 1, 1, 1, 2, 2, 1, 2, 2, 1, 4, 1]


def test_what_a_hook_changes_after_us_is_not_counted():
    values, histogram = torch.ones(2, 3, 1, 1), NeuronHistogram((1, 1, 1))
    group = LayerGroup(1, histogram.add_layers)
    group.put(0, values)
    values.fill_(7)
    group.flush()
    assert histogram.maximum.item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_device_is_asked_nothing_while_a_batch_is_counted(dtype):
    """On `meta`, where every question, and every copy to the host, raises."""
    shape = (4, 2, 8)
    histogram = NeuronHistogram(shape, resolution=dtype, device="meta")
    trimmed = TrimmedHistogram(torch.zeros(shape), torch.ones(shape), resolution=dtype).to("meta")
    valid = torch.rand(3, 11) < 0.7
    batches = [(torch.randn(4, 3, 11, 2, 8, dtype=dtype, device="meta"), mask) for mask in (None, valid, None)]
    feed([histogram, Moments(shape, device="meta"), trimmed], batches, most_bytes=2**10)
    assert histogram.all_finite().device.type == trimmed.all_finite().device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
        histogram.require_finite()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["whole", "trimmed"])
def test_what_is_not_finite_is_named_at_the_end(bad, kind):
    values = torch.randn(3, 2, 5, 2, 4)
    whole = NeuronHistogram((3, 2, 4))
    feed([whole], [(values, None)])
    histogram = whole if kind == "whole" else TrimmedHistogram.around(whole)
    feed([histogram], [(values, None)])
    assert histogram.all_finite()
    histogram.require_finite()
    values[2, 1, 3, 1, 2] = bad
    feed([histogram], [(values, None)])
    assert not histogram.all_finite()
    with pytest.raises(NonFiniteError, match=r"L2\.H1\.D2 is -?(nan|inf) somewhere"):
        histogram.require_finite()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named_in_torchs_deterministic_mode_too(bad):
    torch.use_deterministic_algorithms(True)
    try:
        test_what_is_not_finite_is_named_at_the_end(bad, "whole")
    finally:
        torch.use_deterministic_algorithms(False)


def test_rows_of_other_layers_are_refused():
    rows = Rows(torch.zeros(5, 4, 4))
    for counter in (NeuronHistogram((3, 2, 4)), TrimmedHistogram(torch.zeros(3, 2, 4), torch.ones(3, 2, 4))):
        with pytest.raises(MismatchError, match=r"rows are of \(4, 4\) \(head, dim\); expected \(6, 4\)"):
            counter.add_layers(slice(0, 3), rows)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_cuda_is_asked_nothing_and_counts_what_the_cpu_does(dtype):
    shape = (5, 3, 37)
    scales = torch.logspace(-3, 3, 37)
    valid = torch.rand(3, 300) < 0.8
    batches = [
        ((torch.randn(5, 3, 300, 3, 37) * scales * wider).to(dtype), mask)
        for wider, mask in ((1, None), (8, valid), (0.1, None))
    ]
    there = [(values.cuda(), mask) for values, mask in batches]
    here, on_cuda = (
        (NeuronHistogram(shape, resolution=dtype, device=device), Moments(shape, device=device))
        for device in ("cpu", "cuda")
    )
    feed(on_cuda, there[:1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        feed(on_cuda, there[1:], most_bytes=2 * there[0][0][0].nbytes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    by_layer(here, batches)
    assert_same_state(here[0], on_cuda[0].to("cpu"))
    for name in MOMENTS:
        torch.testing.assert_close(getattr(on_cuda[1], name).cpu(), getattr(here[1], name), rtol=1e-11, atol=0)
    trimmed = [TrimmedHistogram.around(each) for each in (here[0], on_cuda[0])]
    by_layer(trimmed[:1], batches)
    feed(trimmed[1:], there)
    assert_same_state(trimmed[0], trimmed[1].to("cpu"))

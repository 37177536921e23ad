"""Which neurons: exact shares, nested draws, the same on every machine."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablation_lens.ablation.masks import as_mask, named_neurons, random_neurons, top_neurons, whole_heads
from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.sites import neuron_name

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12))
# Fractions as people write them, and any float besides.
fractions = st.one_of(st.integers(0, 1000).map(lambda n: n / 1000), st.floats(0, 1))
seeds = st.integers(-(2**40), 2**80)


def test_the_draw_is_pinned():
    """These numbers are a promise: masks drawn years apart, by other versions, are the same masks."""
    mask = random_neurons((2, 4, 16), fraction=0.1, seed=42)
    assert [row.nonzero().flatten().tolist() for row in mask.flatten(1)] == [
        [38, 48, 51, 55, 57, 63],
        [10, 19, 32, 47, 55, 62],
    ]
    assert mask.dtype == torch.bool
    assert mask.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("fraction", "chosen"),
    [(0.29, 29), (0.57, 57), (0.58, 58), (0.1, 10), (0.7, 70), (0.999, 99), (0.0, 0), (1e-9, 0), (1, 100), (1.0, 100)],
)
def test_fractions_are_taken_as_written(fraction, chosen):
    """In floats 0.29 · 100 is 28.999999999999996."""
    assert random_neurons((3, 5, 20), fraction, seed=0).sum((1, 2)).tolist() == [chosen] * 3


@given(shapes, fractions, fractions, seeds)
def test_draws_are_nested_and_have_their_exact_share(shape, one, other, seed):
    low, high = sorted([one, other])
    smaller, larger = random_neurons(shape, low, seed), random_neurons(shape, high, seed)
    assert not bool((smaller & ~larger).any())
    for fraction, mask in ((low, smaller), (high, larger)):
        wanted = int(Decimal(repr(fraction)) * shape[1] * shape[2])
        assert mask.shape == shape
        assert mask.sum((1, 2)).tolist() == [wanted] * shape[0]


@given(shapes, seeds)
def test_all_are_all_and_none_are_none(shape, seed):
    assert random_neurons(shape, 1.0, seed).all()
    assert not random_neurons(shape, 0.0, seed).any()


def test_layers_and_seeds_are_drawn_apart():
    mask = random_neurons((8, 4, 64), 0.5, seed=1)
    for one in range(8):
        for other in range(one):
            common = (mask[one] & mask[other]).sum().item()
            assert 32 < common < 96  # 64 expected of 128, σ = 5.7
    for seed in (2, 11, -1):
        assert 400 < (mask & random_neurons((8, 4, 64), 0.5, seed)).sum() < 624  # 512 expected
    # A layer's draw does not depend on how many layers there are.
    assert torch.equal(random_neurons((3, 4, 64), 0.5, seed=1), mask[:3])


def test_neurons_are_drawn_evenly():
    counts = sum(random_neurons((1, 4, 10), 0.25, seed).int() for seed in range(2000))
    assert 400 < counts.min() <= counts.max() < 600  # 500 expected, σ = 19


@pytest.mark.parametrize("fraction", [-0.1, 1.0001, float("nan"), float("inf")])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(MismatchError, match="from 0 to 1"):
        random_neurons((1, 2, 3), fraction, seed=0)
    with pytest.raises(MismatchError, match="from 0 to 1"):
        top_neurons(torch.ones(1, 2, 3), fraction)


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3, 4), (1, 0, 4), (1, -2, 3)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(MismatchError, match=r"\(layer, head, dim\)"):
        random_neurons(shape, 0.5, seed=0)


def test_whole_heads_by_name_and_by_number():
    mask = whole_heads((2, 4, 3), ["L0.H1", (1, 3), "L0.H1"])
    assert mask.all(-1).nonzero().tolist() == [[0, 1], [1, 3]]
    assert mask.sum() == 2 * 3
    assert not whole_heads((2, 4, 3), []).any()
    for wrong in ("L2.H0", (0, 4), (-1, 0), "L0"):
        with pytest.raises(MismatchError):
            whole_heads((2, 4, 3), [wrong])


def test_neurons_heads_and_layers_by_name():
    mask = named_neurons(["L2.H1.D3", "L3.H2", (0,), (1, 0), "L2.H1.D3"], (4, 3, 5))
    assert mask.sum((1, 2)).tolist() == [15, 5, 1, 5]
    assert mask[2, 1, 3]
    assert torch.equal(named_neurons("L3.H2", (4, 3, 5)), whole_heads((4, 3, 5), "L3.H2"))
    assert not named_neurons([], (4, 3, 5)).any()
    both = named_neurons(["L1.M6", "L0"], (2, 1, 7), site="mlp")
    assert both.sum((1, 2)).tolist() == [7, 1]
    for wrong in ("L4", "L0.H3", "L0.H0.D5", "L0.M1", "H1", (0, -1), (), None, 3):
        with pytest.raises(MismatchError):
            named_neurons([wrong], (4, 3, 5))


@given(shapes, st.data())
def test_every_neuron_is_found_by_its_name(shape, data):
    place = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    mask = named_neurons([neuron_name(*place)], shape)
    assert mask.nonzero().tolist() == [list(place)]
    assert torch.equal(named_neurons([place], shape), mask)


def test_a_mask_is_a_mask_or_names():
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    assert as_mask(mask, (1, 2, 3)) is mask
    assert torch.equal(as_mask(("L0",), (1, 2, 3)), mask)
    for wrong in (mask.int(), mask.int().numpy(), None, 5):
        with pytest.raises(MismatchError, match="boolean tensor"):
            as_mask(wrong, (1, 2, 3))


def test_top_neurons_per_layer_and_over_the_whole_model():
    scores = torch.tensor([[[1.0, 5.0], [3.0, 2.0]], [[40.0, 10.0], [30.0, 20.0]]])
    assert top_neurons(scores, 0.5).nonzero().tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
    assert top_neurons(scores, 0.5, largest=False).nonzero().tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]]
    assert torch.equal(top_neurons(scores, 0.5, per_layer=False), scores >= 10)
    assert torch.equal(top_neurons(scores, 0.375, largest=False, per_layer=False), scores <= 3)
    assert top_neurons(scores, 1.0).all()
    assert not top_neurons(scores, 0.0).any()


@given(st.lists(st.integers(0, 3), min_size=24, max_size=24), fractions, fractions, st.booleans(), st.booleans())
def test_top_neurons_are_nested_even_among_equals(values, one, other, largest, per_layer):
    scores = torch.tensor(values, dtype=torch.float64).view(2, 3, 4)
    low, high = (
        top_neurons(scores, fraction, largest=largest, per_layer=per_layer) for fraction in sorted([one, other])
    )
    assert not bool((low & ~high).any())
    for rows, chosen in [(scores.view(1, -1), high.view(1, -1))] if not per_layer else zip(scores, high, strict=True):
        inside, outside = rows[chosen.view(rows.shape)], rows[~chosen.view(rows.shape)]
        if len(inside) and len(outside):
            assert inside.min() >= outside.max() if largest else inside.max() <= outside.min()


def test_scores_that_cannot_be_ranked_are_refused_by_name():
    scores = torch.zeros(2, 3, 4)
    scores[1, 2, 3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"L1\.H2\.D3"):
        top_neurons(scores, 0.5)
    scores[1, 2, 3] = torch.inf  # this can
    assert top_neurons(scores, 0.1)[1, 2, 3]
    with pytest.raises(MismatchError):
        top_neurons(torch.zeros(3, 4), 0.5)


def test_masks_combine():
    shape = (2, 4, 8)
    half, head = random_neurons(shape, 0.5, seed=3), whole_heads(shape, ["L1.H2"])
    spared = half & ~head
    assert not spared[1, 2].any()
    assert torch.equal(spared | (half & head), half)
    assert (half | head)[1, 2].all()


SHAPE = (2, 3, 4)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: named_neurons(1, SHAPE), "names are 1; expected"),
        (lambda: named_neurons(None, SHAPE), "names are None; expected"),
        (lambda: named_neurons(slice(1), SHAPE), "names are slice"),
        (lambda: named_neurons([1], SHAPE), "1 is not a neuron"),
        (lambda: named_neurons("L1", object()), "the shape is a object; expected .layer, head, dim., such as stats"),
        (lambda: whole_heads(SHAPE, [1]), "1 is not a head"),
        (lambda: whole_heads(SHAPE, None), "heads are None; expected"),
        (lambda: whole_heads(SHAPE, [(1,)]), "is not a head"),
        (lambda: whole_heads(SHAPE, [(1, 2, 3)]), "is not a head"),
        (lambda: random_neurons(object(), 0.5, 1), "the shape is a object"),
        (lambda: random_neurons(SHAPE, "0.5", 1), "fraction='0.5' is not possible"),
        (lambda: random_neurons(SHAPE, None, 1), "fraction=None is not possible"),
        (lambda: random_neurons(SHAPE, torch.ones(2), 1), "fraction=a Tensor is not possible"),
        (lambda: random_neurons(SHAPE, 0.5, None), "seed=None is not possible"),
        (lambda: random_neurons(SHAPE, 0.5, 1.0), "seed=1.0 is not possible"),
        (lambda: top_neurons("peak", 0.5), "scores are 'peak'; expected numbers"),
        (lambda: top_neurons(None, 0.5), "scores are None; expected numbers"),
    ],
)
def test_what_makes_no_mask_is_one_sentence(wrong, why):
    with pytest.raises(MismatchError, match=why):
        wrong()


def test_a_tuple_of_numbers_is_one_place_and_numbers_of_numpy_will_do():
    assert torch.equal(named_neurons((1, 0), SHAPE), named_neurons("L1.H0", SHAPE))
    assert torch.equal(named_neurons((1,), SHAPE), named_neurons("L1", SHAPE))
    assert torch.equal(named_neurons([(np.int64(1), np.int64(2))], SHAPE), named_neurons("L1.H2", SHAPE))
    assert torch.equal(whole_heads(SHAPE, (1, np.int64(2))), named_neurons("L1.H2", SHAPE))
    assert torch.equal(random_neurons(np.array(SHAPE), np.float64(0.5), np.int64(3)), random_neurons(SHAPE, 0.5, 3))


def test_arrays_are_scores_and_masks():
    scores = np.arange(24.0).reshape(SHAPE)
    mask = top_neurons(scores, 0.25)
    assert torch.equal(mask, top_neurons(torch.from_numpy(scores), 0.25))
    assert torch.equal(as_mask(mask.numpy(), SHAPE), mask)
    assert torch.equal(as_mask(np.array(["L1.H2"]), SHAPE), named_neurons("L1.H2", SHAPE))

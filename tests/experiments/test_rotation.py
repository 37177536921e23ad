"""Rotated heads: the same function, with every head's neurons in order of what they can write."""

import functools

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens import Site, load_model
from ablation_lens.errors import MismatchError
from ablation_lens.experiments import head_rotations, rotate_heads
from ablation_lens.experiments.scores import Scores
from ablation_lens.hooked import projection
from ablation_lens.models.load import transformer_lens_major
from tests.integration.test_micro_model import Micro
from tests.tiny_models import BY_NAME, run

ROTATABLE = ["opt", "roberta", "vit", "vit-no-qkv-bias", "mistral-multi-head", "gpt2"]

TOKENS = torch.randint(3, 2000, (16, 24), generator=torch.Generator().manual_seed(0))


def loaded(name, saved, dtype="float64"):
    return load_model(saved(name), dtype=dtype), BY_NAME[name].inputs()[0]


@pytest.fixture(scope="module")
def rotated_once(saved):
    """A model and itself rotated, and inputs."""

    @functools.cache
    def both(name):
        model, inputs = loaded(name, saved)
        return model, rotate_heads(model), inputs

    return both


def weights_of(model, layer, heads):
    """W_V and b_V, W_O of every head, in NumPy."""
    values, out = (projection(model.blocks[layer], site.weights) for site in (Site.V, Site.Z))
    read, written = (each.weight().detach().double().numpy() for each in (values, out))
    bias = np.zeros(read.shape[1]) if values.bias() is None else values.bias().detach().double().numpy()
    dim = read.shape[1] // heads
    parts = [slice(head * dim, (head + 1) * dim) for head in range(heads)]
    return [(read[:, part], bias[part], written[part]) for part in parts]


def places(model):
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ROTATABLE)
def test_the_function_is_the_same_and_the_model_that_was_given_is_untouched(name, saved):
    model, inputs = loaded(name, saved)
    before, where = run(model, inputs, None), places(model)
    rotated = rotate_heads(model)
    assert type(rotated) is type(model)
    assert (run(rotated, inputs, None) - before).abs().max() <= 1e-10
    assert torch.equal(run(model, inputs, None), before)
    assert places(model) == where
    new = {key for key, place in places(rotated).items() if place not in where.values()}
    biased = name != "vit-no-qkv-bias" and (name != "mistral-multi-head" or transformer_lens_major() < 4)
    assert len(new) == (9 if biased else 6)  # W_V, b_V where there is one, and W_O of each of three layers
    assert places(rotated).keys() == where.keys()


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-roberta", "tiny-vit"])
def test_in_float32_logits_move_by_rounding_alone(name):
    model = load_model(name)
    inputs = torch.randn(4, 3, *model.image_size) if name == "tiny-vit" else TOKENS[:4]
    before, after = (each(inputs) for each in (model, rotate_heads(model)))
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


@pytest.mark.parametrize("name", ROTATABLE)
def test_neurons_of_a_head_are_in_the_order_of_its_singular_values(name, rotated_once):
    model, rotated, _ = rotated_once(name)
    heads = model.cfg.n_heads
    for layer in range(model.cfg.n_layers):
        pairs = zip(weights_of(model, layer, heads), weights_of(rotated, layer, heads), strict=True)
        for (read, bias, written), (new_read, new_bias, new_written) in pairs:
            sizes = np.linalg.svd(read @ written, compute_uv=False)[: read.shape[1]]
            assert np.allclose(new_read @ new_written, read @ written, atol=1e-10)
            assert np.allclose(new_bias @ new_written, bias @ written, atol=1e-10)
            assert np.allclose(new_read.T @ new_read, np.diag(sizes), atol=1e-8)
            assert np.allclose(new_written @ new_written.T, np.diag(sizes), atol=1e-8)


@pytest.mark.parametrize("name", ROTATABLE)
def test_z_is_that_of_the_model_times_r(name, rotated_once):
    model, rotated, inputs = rotated_once(name)
    turns = head_rotations(model)
    seen = {"before": [], "after": []}
    for each, found in zip((model, rotated), seen.values(), strict=True):
        hooks = [(hook, lambda value, hook, found=found: found.append(value)) for hook in Site.Z.hook_names(model.cfg)]
        run(each, inputs, None, hooks)
    for turn, before, after in zip(turns, *seen.values(), strict=True):
        assert (torch.einsum("bphd,hdr->bphr", before, turn) - after).abs().max() <= 1e-9


def test_the_basis_that_a_model_happens_to_have_and_its_signs_do_not_matter(saved):
    model, _ = loaded("opt", saved)
    other = load_model(saved("opt"), dtype="float64")
    for block in other.blocks:
        values, out = (projection(block, site.weights) for site in (Site.V, Site.Z))
        turn = torch.block_diag(*torch.linalg.qr(torch.randn(6, 6, 6, dtype=torch.float64))[0])
        values.set(values.weight() @ turn, values.bias() @ turn)
        out.set(turn.T @ out.weight(), None)
    for one, two in zip(
        rotate_heads(model).state_dict().values(), rotate_heads(other).state_dict().values(), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-9)


@pytest.fixture(scope="module")
def both():
    """tiny-opt and itself rotated, and statistics of each."""
    model = load_model("tiny-opt")
    models = (model, rotate_heads(model))
    return models, [al.collect(each, [TOKENS[4:]], progress=False) for each in models]


def test_whole_heads_ablated_cost_the_same_in_both(both):
    models, statistics = both
    for heads, center in (([], "zero"), (["L1.H2", "L3.H0"], "zero"), (["L1.H2", "L3.H0"], "mean")):
        mask = al.whole_heads(statistics[0].shape, heads)
        logits = [
            model.run_with_hooks(TOKENS[:4], fwd_hooks=stats.ablation(mask, center).hooks())
            for model, stats in zip(models, statistics, strict=True)
        ]
        assert torch.allclose(*logits, rtol=0, atol=3e-4)


def test_what_is_constant_costs_no_more_in_one_basis_than_in_the_other(both):
    """The mean of z·R is the mean of z, times R."""
    models, (before, after) = both
    expected = torch.einsum("lhd,lhdr->lhr", before.mean, head_rotations(models[0]))
    assert torch.allclose(after.mean, expected, atol=1e-6)


def test_the_first_neurons_of_a_rotated_head_carry_most_of_what_it_writes(both):
    models, statistics = both
    shares = [
        (spread := stats.std.square() * model.W_O.norm(dim=-1).double().square())[..., :8].sum() / spread.sum()
        for model, stats in zip(models, statistics, strict=True)
    ]
    assert shares[0] == pytest.approx(8 / 32, abs=0.05)
    assert shares[1] > 0.4


def test_values_and_scores_of_one_are_not_taken_for_the_others(both, tmp_path):
    models, statistics = both
    mask = al.random_neurons(statistics[0].shape, 0.5, 0)
    for model, stats in zip(models, reversed(statistics), strict=True):
        with pytest.raises(MismatchError, match="processing: "):
            stats.ablation(mask, "mean").bake(model)
    for model in models:
        Scores(model, [al.Batch.causal(TOKENS[:4])], folder=tmp_path).of()
    assert len(list((tmp_path / "scores").iterdir())) == 2
    assert al.record_of(models[1]) == models[1].record == rotate_heads(models[0]).record


# ---------------------------------------------------------------------- what cannot be rotated


def test_heads_that_share_their_values_are_refused():
    with pytest.raises(MismatchError, match="4 heads of tiny-mistral share the values of 2"):
        rotate_heads(load_model("tiny-mistral"))


@pytest.mark.parametrize("factor", [0.0, 1e-14])
def test_a_head_of_a_lower_rank_is_named(factor, saved):
    model, _ = loaded("opt", saved)
    values = projection(model.blocks[1], Site.V.weights)
    weight = values.weight().clone()
    weight[:, 13] = weight[:, 12] + factor * weight[:, 13]  # two neurons of the third head
    values.set(weight, None)
    with pytest.raises(MismatchError, match=r"L1\.H2 cannot be rotated: the rank"):
        rotate_heads(model)


def test_values_that_pass_through_something_else_are_noticed(saved):
    model, _ = loaded("opt", saved)
    model.add_hook("blocks.2.attn.hook_v", lambda value, hook: value.tanh(), is_permanent=True)
    with pytest.raises(MismatchError, match="pass through more than attention"):
        rotate_heads(model)


def test_hooks_that_come_and_go_do_not_hinder(saved):
    model, _ = loaded("opt", saved)
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda value, hook: value * 0)]):
        rotated = rotate_heads(model)
    assert rotated.record == rotate_heads(model).record


def test_a_model_of_ones_own_without_values_is_refused():
    with pytest.raises(MismatchError, match="hook_v"):
        rotate_heads(Micro())

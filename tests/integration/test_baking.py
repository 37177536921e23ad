"""A baked model computes what the hooked one does, shares everything else, and leaves the original as it was."""

import contextlib
import gc
import weakref

import pytest
import torch

import ablation_lens as al
from ablation_lens import Ablation, Site, load_model, random_neurons, whole_heads
from ablation_lens.errors import MismatchError
from ablation_lens.models.load import transformer_lens_major
from tests.tiny_models import BY_NAME, FAMILIES, VARIANTS, run

ALL_SITES = ("opt", "mistral", "roberta", "vit-no-qkv-bias", "gpt2")
BAKED = [site for site in Site if site.weights is not None]
OFTEN = [(tiny, site) for tiny in VARIANTS for site in BAKED if site in (Site.Z, Site.MLP) or tiny.name in ALL_SITES]


def loaded(tiny, saved, **options):
    if transformer_lens_major() not in tiny.majors:
        pytest.skip("transformer-lens has no such model")
    return (load_model(saved(tiny.name), **options), *tiny.inputs())


def drawn(model, site=Site.Z, layers=(0, 2), seed=0):
    """Half of the neurons of some layers, set to random values."""
    shape = site.shape(model.cfg)
    mask = random_neurons(shape, 0.5, seed)
    mask[[layer for layer in range(shape[0]) if layer not in layers]] = False
    return Ablation(mask, torch.randn(shape, dtype=torch.float64), site=site)


def storages(model):
    """Where every tensor a model reads lies: a bridge's too, which lists only some of them as parameters."""
    found = dict(model.state_dict())
    for name, module in torch.nn.Module.named_modules(model):
        for kind in (module._parameters, module._buffers, vars(module)):
            found |= {
                f"{name} {key}": value
                for key, value in kind.items()
                if isinstance(value, torch.Tensor) and not key.startswith("_captured")
            }
    return {name: tensor.data_ptr() for name, tensor in found.items()}


@pytest.mark.parametrize(("tiny", "site"), OFTEN, ids=lambda given: given.name)
def test_logits_equal_the_hooked_runs_and_the_original_is_untouched(tiny, site, saved):
    model, inputs, mask = loaded(tiny, saved)
    ablation = drawn(model, site)
    before = run(model, inputs, mask)
    expected = run(model, inputs, mask, ablation.hooks())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = storages(model)

    baked = ablation.bake(model)
    logits = run(baked, inputs, mask)
    real = slice(None) if mask is None else mask.bool()
    assert (expected - before)[real].abs().max() > 0.1
    assert (logits - expected)[real].abs().max() <= 1e-4
    assert type(baked) is type(model)

    assert storages(model) == places
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(run(model, inputs, mask), before)


@pytest.mark.parametrize("site", [Site.Z, Site.MLP])
@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_two_tensors_per_touched_layer_are_new_and_all_others_shared(tiny, site, saved):
    model, *_ = loaded(tiny, saved)
    baked = drawn(model, site, layers=(0, 2)).bake(model)
    old = set(model.state_dict())
    ours, theirs = (
        {name: tensor.data_ptr() for name, tensor in found.state_dict().items()} for found in (baked, model)
    )
    new = {name for name, place in ours.items() if place not in theirs.values()}
    assert len(new) == 4
    assert {name.split(".")[1] for name in new} == {"0", "2"}
    assert old <= set(baked.state_dict())
    kept = {place for name, place in storages(baked).items() if place not in set(storages(model).values())}
    assert len(kept) == 4
    assert len({id(module) for module in baked.modules()} & {id(module) for module in model.modules()}) == 0


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_weights_and_biases_are_what_the_arithmetic_says(tiny, saved):
    model, *_ = loaded(tiny, saved)
    ablation = drawn(model, layers=(1,))
    baked = ablation.bake(model)
    mask, values = ablation.mask[1], ablation.values[1]
    old, new = model.blocks[1].attn, baked.blocks[1].attn
    assert not new.W_O[mask].any()
    assert torch.equal(new.W_O[~mask], old.W_O[~mask])
    bias = 0.0 if old.b_O is None else old.b_O.double()
    expected = bias + torch.einsum("hd,hdm->m", values * mask, old.W_O.double())
    assert torch.allclose(new.b_O.double(), expected, atol=1e-6)
    assert not new.W_O.requires_grad
    assert not new.b_O.requires_grad


def test_everything_and_nothing(saved):
    model, tokens, mask = loaded(BY_NAME["mistral"], saved)
    shape = Site.Z.shape(model.cfg)
    values = torch.randn(shape)
    nothing = Ablation(torch.zeros(shape, dtype=torch.bool), values).bake(model)
    assert torch.equal(run(nothing, tokens, mask), run(model, tokens, mask))
    everything = Ablation(torch.ones(shape, dtype=torch.bool), values)
    expected = run(model, tokens, mask, everything.hooks())
    assert torch.allclose(run(everything.bake(model), tokens, mask), expected, atol=1e-4)


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_a_baked_model_can_be_baked_again(tiny, saved):
    model, inputs, mask = loaded(tiny, saved)
    first, second = drawn(model), drawn(model, Site.MLP, layers=(0, 1), seed=1)
    expected = run(model, inputs, mask, first.hooks() + second.hooks())
    logits = run(second.bake(first.bake(model)), inputs, mask)
    real = slice(None) if mask is None else mask.bool()
    assert (logits - expected)[real].abs().max() <= 1e-4


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_hooks_work_on_the_baked_model_and_on_it_alone(tiny, saved):
    model, inputs, mask = loaded(tiny, saved)
    baked = drawn(model).bake(model)
    names = [Site.Z.hook_name(1), "blocks.2.attn.hook_pattern", "blocks.0.hook_resid_post"]
    seen = []

    def note(which):
        return lambda value, hook: seen.append((which, hook is which.hook_dict[hook.name]))

    # Every hook point that works fires on the model that runs, and gives itself: also those that a bridge forwards to.
    working = fired_in(model, inputs, mask)
    assert set(names) <= working
    assert fired_in(baked, inputs, mask) == working
    with (
        model.hooks(fwd_hooks=[(name, note(model)) for name in working]),
        baked.hooks(fwd_hooks=[(name, note(baked)) for name in working]),
    ):
        for chosen in (model, baked):
            seen.clear()
            run(chosen, inputs, mask)
            assert seen
            assert all(which is chosen and own for which, own in seen)
    # an ablation on top of what is baked in
    on_top = drawn(model, layers=(1,))
    expected = run(model, inputs, mask, drawn_again(model).hooks() + on_top.hooks())
    logits = run(drawn_again(model).bake(model), inputs, mask, on_top.hooks())
    real = slice(None) if mask is None else mask.bool()
    assert (logits - expected)[real].abs().max() <= 1e-4


def fired_in(model, inputs, mask):
    """The names of all hook points that fire."""
    fired = set()

    def note(name):
        return lambda value, hook: fired.add(name)

    for name in model.hook_dict:
        with contextlib.suppress(AssertionError, ValueError):  # some ask for a setting of cfg
            run(model, inputs, mask, [(name, note(name))])
    return fired


def drawn_again(model):
    torch.manual_seed(7)
    return drawn(model)


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_hooks_on_the_original_are_not_baked_in_and_stay_there(tiny, saved):
    model, inputs, mask = loaded(tiny, saved)
    ablation, other = drawn(model), drawn(model, layers=(0, 1, 2), seed=5)
    expected = run(model, inputs, mask, ablation.hooks())
    fired = []
    model.hook_dict[Site.Z.hook_name(0)].add_hook(lambda z, hook: fired.append(1))
    with other.applied_to(model):
        hooked = run(model, inputs, mask)
        baked = ablation.bake(model)
        assert not [name for name, point in baked.hook_dict.items() if point.has_hooks(including_permanent=False)]
        fired.clear()
        inside = run(baked, inputs, mask)
        assert not fired
        assert torch.equal(run(model, inputs, mask), hooked)  # and they still work
        assert fired
    real = slice(None) if mask is None else mask.bool()
    assert (inside - expected)[real].abs().max() <= 1e-4
    assert torch.equal(run(baked, inputs, mask), inside)


def test_the_dtype_stays(saved):
    model, tokens, mask = loaded(BY_NAME["mistral"], saved, dtype="bfloat16")
    ablation = drawn(model)
    baked = ablation.bake(model)
    assert {parameter.dtype for parameter in baked.parameters()} == {torch.bfloat16}
    assert baked.blocks[0].attn.b_O.dtype == torch.bfloat16
    logits, expected = run(baked, tokens, mask), run(model, tokens, mask, ablation.hooks())
    assert logits.dtype == torch.bfloat16
    assert (logits - expected)[mask.bool()].abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("site", [site for site in Site if site.weights is None])
def test_what_no_weights_make_or_read_alone_cannot_be_baked(site, saved):
    model = load_model(saved("opt"))
    if site is Site.RESID_MID and transformer_lens_major() >= 4:
        pytest.skip("refused for another reason")
    with pytest.raises(MismatchError, match="cannot be baked into weights; use applied_to"):
        drawn(model, site).bake(model)


def test_what_comes_out_of_a_norm_cannot_be_baked(saved, monkeypatch):
    model = load_model(saved("opt"))
    monkeypatch.setattr(model.cfg, "use_normalization_before_and_after", True, raising=False)
    for site in (Site.ATTN_OUT, Site.MLP_OUT):
        with pytest.raises(MismatchError, match="comes out of a norm"):
            drawn(model, site).bake(model)


def test_what_depends_on_the_position_cannot_be_baked(saved):
    model, *_ = loaded(BY_NAME["opt"], saved)
    ablation = drawn(model)
    for wrong in (Ablation(ablation.mask, ablation.values[:, None].repeat(1, 9, 1, 1)), ablation.at(3)):
        with pytest.raises(MismatchError, match=r"use applied_to\(model\)"):
            wrong.bake(model)


def test_a_baked_model_is_another_model_to_statistics(saved):
    model, *_ = loaded(BY_NAME["opt"], saved)
    tokens = torch.randint(3, 61, (2, 9))
    statistics = al.collect(model, [tokens], progress=False)
    mask = whole_heads(statistics.shape, ["L1.H2"])
    baked = statistics.ablation(mask, "mean").bake(model)
    assert model.record == statistics.provenance.model
    assert "6 z neurons baked" in baked.record.processing
    with pytest.raises(MismatchError, match="processing: none against none, 6 z neurons baked"):
        statistics.ablation(mask, "zero").require_fits(baked)
    own = al.collect(baked, [tokens], progress=False)
    with pytest.raises(MismatchError, match="not the same model"):
        own.merge(statistics)
    own.ablation(mask, "zero").require_fits(baked)
    # So is one with as many neurons baked to other values; one baked alike is the same.
    with pytest.raises(MismatchError, match="not the same model"):
        own.ablation(mask, "zero").require_fits(statistics.ablation(mask, "peak").bake(model))
    own.ablation(mask, "zero").require_fits(statistics.ablation(mask, "mean").bake(model))


def test_a_baked_model_of_unknown_origin_has_a_record_of_its_own_too(saved):
    model, *_ = loaded(BY_NAME["opt"], saved)
    del model.record
    statistics = al.collect(model, [torch.randint(3, 61, (2, 9))], progress=False)
    ablation = statistics.ablation(whole_heads(statistics.shape, ["L1.H2"]), "mean")
    ablation.require_fits(model)
    with pytest.raises(MismatchError, match="not the same model"):
        ablation.require_fits(ablation.bake(model))
    assert not hasattr(model, "record")


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-mistral"])
def test_a_baked_model_generates_and_shares_its_tokenizer(name):
    model = load_model(name)
    ablation = drawn(model, layers=(1, 3))
    baked = ablation.bake(model)
    assert baked.tokenizer is model.tokenizer
    assert baked.hf_tokenizer is model.hf_tokenizer
    tokens = torch.randint(5, 200, (2, 6))
    options = {"max_new_tokens": 8, "do_sample": False, "stop_at_eos": False, "return_type": "tokens", "verbose": False}
    with ablation.applied_to(model):
        expected = model.generate(tokens, **options)
    assert baked.generate(tokens, **options).tolist() == expected.tolist()


def test_scores_of_a_baked_model_are_those_of_the_hooked_one():
    model = load_model("tiny-opt")
    batch = al.Batch.causal(torch.randint(5, 200, (4, 60)))
    ablation = drawn(model, layers=(0, 1, 2, 3))
    hooked, baked = al.evaluate(model, [batch], ablation), al.evaluate(ablation.bake(model), [batch])
    assert hooked.correct.tolist() == baked.correct.tolist()
    assert abs(hooked.cross_entropy - baked.cross_entropy) <= 1e-5


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_a_baked_model_outlives_the_original(tiny, saved):
    model, inputs, mask = loaded(tiny, saved)
    ablation = drawn(model)
    expected = run(model, inputs, mask, ablation.hooks())
    baked = ablation.bake(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    real = slice(None) if mask is None else mask.bool()
    assert (run(baked, inputs, mask) - expected)[real].abs().max() <= 1e-4

"""Latents of sparse autoencoders of sae-lens are a site."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError

sae_lens = pytest.importorskip("sae_lens")

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries deprecate is not ours
STREAM = "blocks.2.hook_resid_pre"
LATENTS = f"{STREAM}.hook_sae_acts_post"


def autoencoder(seed=0, hook=STREAM, width=128):
    torch.manual_seed(seed)
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=hook)
    reshaped = "hook_z" if hook.endswith("hook_z") else "none"
    config = sae_lens.StandardSAEConfig(d_in=width, d_sae=64, metadata=metadata, reshape_activations=reshaped)
    sae = sae_lens.StandardSAE(config)
    with torch.no_grad():
        sae.W_enc.normal_()
        sae.W_dec.normal_()
        sae.b_enc.fill_(-12.0)
    return sae


@pytest.fixture(scope="module")
def model():
    ours = al.load_model("tiny-opt")
    model = sae_lens.HookedSAETransformer(ours.cfg, ours.tokenizer)
    model.load_state_dict(ours.state_dict())
    model.add_sae(autoencoder(), use_error_term=True)
    return model


@pytest.fixture(scope="module")
def plan(model):
    return al.task_for(model).batches(split="collect", tokens=1_500)


@pytest.fixture(scope="module")
def stats(model, plan):
    return al.collect(model, plan, site=LATENTS, progress=False)


def test_latents_are_collected_as_the_autoencoder_gives_them(model, plan, stats):
    assert stats.shape == (1, 1, 64)
    batch = next(iter(plan))
    _, cache = model.run_with_cache(batch.inputs)
    active = (cache[LATENTS][batch.valid] != 0).double().mean(0)
    torch.testing.assert_close(1 - stats.table()["share_zero"].to_numpy(), active.numpy(), rtol=0, atol=1e-3)
    assert 0 < active.mean() < 0.5


def test_ablating_latents_is_what_sae_lens_does_with_a_hook(model, plan, stats):
    tokens = next(iter(plan)).inputs[:1]
    ablation = stats.ablation(["L0.D3", "L0.D9"], "mean")

    def by_hand(acts, hook):
        acts = acts.clone()
        acts[..., [3, 9]] = stats.mean[0, 0, [3, 9]].to(acts)
        return acts

    expected = model.run_with_hooks(tokens, fwd_hooks=[(LATENTS, by_hand)])
    assert not torch.allclose(expected, model(tokens))
    torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=ablation.hooks()), expected)
    everything = stats.ablation(al.random_neurons(stats.shape, 1.0, seed=0), "peak")
    assert al.evaluate(model, plan, everything).cross_entropy != al.evaluate(model, plan).cross_entropy


def test_statistics_of_another_autoencoder_are_refused(model, stats):
    model.reset_saes()
    try:
        with pytest.raises(MismatchError, match="has no hook"):
            stats.ablation(["L0.D3"], "mean").require_fits(model)
        model.add_sae(autoencoder(seed=1), use_error_term=True)
        with pytest.raises(MismatchError, match="another model"):
            stats.ablation(["L0.D3"], "mean").require_fits(model)
    finally:
        model.reset_saes()
        model.add_sae(autoencoder(), use_error_term=True)
    stats.ablation(["L0.D3"], "mean").require_fits(model)


@pytest.mark.parametrize("hook", ["blocks.3.hook_resid_post", "blocks.3.hook_resid_pre", "blocks.1.attn.hook_z"])
def test_an_autoencoder_anywhere_leaves_the_rest_to_measure(hook):
    ours = al.load_model("tiny-opt")
    model = sae_lens.HookedSAETransformer(ours.cfg, ours.tokenizer)
    model.load_state_dict(ours.state_dict())
    plan = al.task_for(model).batches(split="collect", tokens=1_500)
    plain = al.evaluate(ours, plan)
    model.add_sae(autoencoder(hook=hook), use_error_term=True)
    assert al.evaluate(model, plan).cross_entropy == pytest.approx(plain.cross_entropy, abs=1e-4)
    found = al.collect(model, plan, site=[f"{hook}.hook_sae_acts_post", "mlp"], progress=False)
    assert [stats.shape for stats in found.values()] == [(1, 1, 64), (4, 1, 512)]

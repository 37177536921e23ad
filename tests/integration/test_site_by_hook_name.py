"""A single hook of a model, by its name, is a site: the latents of a sparse autoencoder, a norm's output, any other."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.experiments.grabbing import grab
from ablation_lens.hooked import shape_at
from ablation_lens.measure.contexts import gather_contexts
from ablation_lens.measure.forward import capture
from ablation_lens.measure.sensitivity import _Seen
from ablation_lens.models.load import transformer_lens_major
from ablation_lens.plots import neuron_distribution

NORM = "blocks.1.ln1.hook_normalized"
LATENTS = "blocks.1.hook_resid_pre.hook_sae_acts_post"
TOKENS = torch.arange(5, 45).view(2, 20)

# What transformer-lens 4 says of a norm whose inside is changed.
pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def plan(model):
    return al.task_for(model).batches(split="collect", tokens=1_500)


@pytest.fixture(scope="module")
def stats(model, plan):
    return al.collect(model, plan, site=NORM, progress=False)


class Autoencoder(nn.Module):
    """In the place of a hook point, as sae-lens attaches one: most latents are 0, and what is lost is added again."""

    def __init__(self, width, latents):
        from transformer_lens.hook_points import HookPoint

        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Parameter(torch.randn(width, latents) / width**0.5, requires_grad=False)
        self.hook_sae_acts_post, self.hook_sae_seen = HookPoint(), HookPoint()

    def forward(self, x):
        latents = torch.relu(x @ self.encoder - x.std())
        changed = self.hook_sae_acts_post(latents)
        self.hook_sae_seen(latents)  # what a hook gives here is not used
        return x + (changed - latents) @ self.encoder.T


@pytest.fixture(scope="module")
def with_latents():
    if transformer_lens_major() >= 4:
        pytest.skip("a bridge has no hook points of its own to put an autoencoder in place of")
    model = al.load_model("tiny-opt")
    model.blocks[1].hook_resid_pre = Autoencoder(128, 48)
    model.setup()
    return model


def test_a_hooks_values_are_what_run_with_cache_shows(model, stats, plan):
    batch = next(iter(plan))
    _, cache = model.run_with_cache(batch.inputs[:1])
    seen = capture(model, al.Batch.causal(batch.inputs[:1]), NORM)
    assert list(seen) == [0]
    torch.testing.assert_close(seen[0][:, :, 0], cache[NORM], rtol=0, atol=1e-5)
    assert stats.shape == shape_at(model, al.Site.of(NORM)) == (1, 1, 128)
    # The norm is called for queries, keys and values alike: every position counts once.
    assert int(stats.count.max()) == stats.provenance.tokens


def test_ablating_a_hook_equals_setting_it_by_hand(model, stats):
    mask = al.random_neurons(stats.shape, 0.5, seed=1)
    ablation = stats.ablation(mask, "mean")
    chosen, values = mask[0, 0], stats.mean[0, 0].float()
    by_hand = model.run_with_hooks(TOKENS, fwd_hooks=[(NORM, lambda value, hook: torch.where(chosen, values, value))])
    assert not torch.allclose(by_hand, model(TOKENS))
    torch.testing.assert_close(model.run_with_hooks(TOKENS, fwd_hooks=ablation.hooks()), by_hand, rtol=0, atol=1e-5)
    with ablation.at(-1).applied_to(model):
        last = model(TOKENS)
    torch.testing.assert_close(last[:, :-1], model(TOKENS)[:, :-1], rtol=0, atol=1e-4)
    assert not torch.allclose(last[:, -1], model(TOKENS)[:, -1])


def test_a_hook_after_the_blocks_is_seen_and_ablated(model, plan):
    stats = al.collect(model, plan, site="ln_final.hook_normalized", progress=False)
    ablation = stats.ablation(al.random_neurons(stats.shape, 1.0, seed=0), "mean")
    assert al.evaluate(model, plan, ablation).cross_entropy > al.evaluate(model, plan).cross_entropy + 0.5
    with pytest.raises(MismatchError, match="not in a block"), ablation.at(-1).applied_to(model):
        pass


def test_several_sites_in_one_pass_have_layers_of_their_own(model, plan, stats):
    both = al.collect(model, plan, site=["z", NORM, "unembed.hook_in"], progress=False)
    assert both["z"].shape == (4, 4, 32)
    torch.testing.assert_close(both[NORM].mean, stats.mean)
    assert both["unembed.hook_in"].shape == (1, 1, 128)


def test_a_hook_with_heads_has_them(model, plan):
    one, all_layers = al.collect(model, plan, site=["blocks.2.attn.hook_z", "z"], progress=False).values()
    assert torch.equal(one.mean[0], all_layers.mean[2])
    assert one.table().index[33] == "L0.H1.D1"


def test_files_of_a_hook_are_read_again_and_others_are_written_as_before(stats, model, plan, tmp_path):
    stats.save(tmp_path / "s.safetensors")
    again = al.ActivationStatistics.load(tmp_path / "s.safetensors")
    assert again.site is stats.site
    assert torch.equal(again.center("peak"), stats.center("peak"))
    ablation = stats.ablation(["L0.D3", "L0.D100"], "mean") | al.Ablation.from_names("L1.H0", model=model)
    ablation.save(tmp_path / "a.safetensors")
    assert [part.site.value for part in al.Ablations.load(tmp_path / "a.safetensors")] == [NORM, "z"]
    ablation.parts[0].save(tmp_path / "one.safetensors")
    assert al.Ablation.load(tmp_path / "one.safetensors").site is stats.site
    with pytest.raises(MismatchError, match="site is"):
        stats.merge(al.collect(model, plan, progress=False))


def test_a_file_that_names_no_hook_is_refused(stats, tmp_path):
    for name in ("<img src=x>", "blocks.1.ln1.hook\x1b[31m", "hook z", "blocks..hook_z", "b." * 200 + "hook_z"):
        with pytest.raises(ValueError, match="its site is"):
            type(stats.provenance)(**{**vars(stats.provenance), "site": name})


def test_what_takes_statistics_takes_those_of_a_hook(stats, model, plan, tmp_path):
    assert stats.table().index[5] == "L0.D5"
    neuron = stats.table().index[0]
    examples = gather_contexts(model, plan, stats, [neuron], k=1)[neuron]
    assert [example.where for example in examples] == ["low", "peak", "high"]
    assert NORM in str(neuron_distribution(stats, neuron).layout)
    al.explore(stats).save(tmp_path / "page.html")
    assert NORM in (tmp_path / "page.html").read_text(encoding="utf-8")
    held_out = al.task_for(model).batches(split="evaluate", tokens=600)
    compared = al.compare_centers(
        model, held_out, statistics=stats, centers=["zero", "mean"], seeds=[0], progress=False
    )
    assert set(compared.frame.index) == {"zero", "mean"}


def test_one_name_is_one_site_however_it_is_copied():
    site = al.Site.of(NORM)
    assert al.Site.of(NORM) is site
    assert copy.deepcopy(site) is pickle.loads(pickle.dumps(site)) is al.Site(NORM) is site
    assert {site: 1}[NORM] == 1
    assert NORM not in [each.value for each in al.Site]


def test_a_hook_that_the_model_lacks_is_answered_with_the_nearest(model, plan):
    with pytest.raises(MismatchError, match=f"did you mean '{NORM}'"):
        al.collect(model, plan, site="blocks.1.ln1.hook_normalised", progress=False)
    with pytest.raises(MismatchError, match="has no hook 'blocks"):
        al.Ablation.from_names("L0.D1", model=model, site="blocks.9.ln1.hook_normalized")


@pytest.mark.parametrize("name", ["__class__.__init__", "blocks.1.forward", "hook_dict.clear", "blocks.1.attn.W_Q"])
def test_a_hostile_name_is_only_compared_with_names_of_hooks(model, plan, name):
    with pytest.raises(MismatchError, match="has no hook"):
        al.collect(model, plan, site=name, progress=False)


def test_what_is_not_by_position_is_not_a_site(model, plan):
    with pytest.raises(MismatchError, match="so it is not a site"):
        al.collect(model, plan, site="blocks.1.attn.hook_pattern", progress=False)
    with pytest.raises(MismatchError, match="never fires"):
        al.collect(model, plan, site="blocks.1.attn.hook_result", progress=False)


def test_a_hook_that_the_model_does_not_obey_is_not_ablated(with_latents, plan):
    name = LATENTS.replace("acts_post", "seen")
    stats = al.collect(with_latents, plan, site=name, progress=False)
    with pytest.raises(MismatchError, match="whatever is put at"):
        al.evaluate(with_latents, plan, stats.ablation(["L0.D1"], "mean"))


def test_what_is_learned_at_a_norm_counts_all_three_branches_after_it(model, plan, stats):
    """By hand: the gradient at the one tensor that queries, keys and values read."""
    seen = _Seen(stats.site, stats.mean, None)
    loss = model.run_with_hooks(TOKENS, return_type="loss", fwd_hooks=seen.hooks())
    (slope,) = torch.autograd.grad(loss, seen.additions())
    step = 1e-2 * slope / slope.norm()

    def moved(sign):
        hook = (NORM, lambda value, hook: value + sign * step)
        return model.run_with_hooks(TOKENS, return_type="loss", fwd_hooks=[hook]).item()

    assert (moved(1) - moved(-1)) / 2 == pytest.approx((slope * step).sum().item(), rel=0.05)


def test_what_needs_a_site_in_every_block_says_so(stats, model):
    mask = al.random_neurons(stats.shape, 0.5, seed=0)
    with pytest.raises(MismatchError, match="cannot be baked"):
        stats.ablation(mask, "mean").bake(model)
    with pytest.raises(MismatchError, match="one hook of a model"):
        al.Study(models=["tiny-opt"], site=NORM)
    with pytest.raises(MismatchError, match="one hook of a model"):
        grab(model, "return self.", sites=[NORM])
    prompts = al.circuits.prompts_for("induction", model, count=4)
    with pytest.raises(MismatchError, match="one hook of a model"):
        al.circuits.knockout_effects(model, prompts, "logit_difference", "mean", statistics=stats)
    with pytest.raises(MismatchError, match="one hook of a model"):
        al.Site.of(NORM).shape(model.cfg)


def test_sparse_latents_are_what_their_statistics_say(with_latents, plan):
    stats = al.collect(with_latents, plan, site=LATENTS, progress=False)
    assert stats.shape == (1, 1, 48)
    table = stats.table()
    _, cache = with_latents.run_with_cache(next(iter(plan)).inputs)
    assert (cache[LATENTS] == 0).double().mean() > 0.7
    assert (table["share_zero"] > 0.5).all()
    # A latent that is silent at most positions has its peak there, and its mean elsewhere.
    assert torch.equal(stats.center("peak"), torch.zeros_like(stats.center("peak")))
    assert (stats.mean > 0).all()


def test_ablating_latents_changes_what_the_model_says(with_latents, plan):
    stats = al.collect(with_latents, plan, site=LATENTS, progress=False)
    ablation = stats.ablation(al.random_neurons(stats.shape, 1.0, seed=0), "zero")
    before, after = al.evaluate(with_latents, plan), al.evaluate(with_latents, plan, ablation)
    assert after.cross_entropy != before.cross_entropy
    # The hook point that the autoencoder replaces is gone, and with it a site of every block.
    with pytest.raises(MismatchError, match="resid_pre"):
        al.collect(with_latents, plan, site="resid_pre", progress=False)


def test_an_autoencoder_after_the_last_block_does_not_hide_its_end(plan):
    if transformer_lens_major() >= 4:
        pytest.skip("a bridge has no hook points of its own to put an autoencoder in place of")
    model = al.load_model("tiny-opt")
    plain = al.evaluate(model, plan)
    model.blocks[3].hook_resid_post = Autoencoder(128, 48)
    model.setup()
    assert al.evaluate(model, plan).cross_entropy == pytest.approx(plain.cross_entropy, abs=1e-6)
    stats = al.collect(model, plan, site=["blocks.3.hook_resid_post.hook_sae_acts_post", "z"], progress=False)
    assert stats["z"].shape == (4, 4, 32)


def test_statistics_of_another_autoencoder_are_refused(with_latents, plan):
    stats = al.collect(with_latents, plan, site=LATENTS, progress=False)
    other = copy.deepcopy(with_latents)
    other.blocks[1].hook_resid_pre.encoder.mul_(2)
    with pytest.raises(MismatchError, match="another model"):
        stats.ablation(["L0.D1"], "mean").require_fits(other)


def test_images_have_hooks_too():
    model = al.load_model("tiny-vit")
    name = next(name for name in model.hook_dict if name.startswith("blocks.1.") and name.endswith("hook_post"))
    assert shape_at(model, al.Site.of(name), replaced=True) == (1, 1, model.cfg.d_mlp)


def test_a_broken_file_of_a_hook_is_one_sentence(stats, tmp_path):
    ablation = al.Ablation(torch.ones(1, 1, 4, dtype=torch.bool), 0.0, site=NORM)
    ablation.save(tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(whole.replace(NORM.encode(), NORM.replace(".", " ").encode()))
    with pytest.raises(FileFormatError):
        al.Ablation.load(tmp_path / "b.safetensors")

"""Every site is where it says: its values, and the effect of ablating it, against hooks on Hugging Face's modules."""

from collections import defaultdict
from contextlib import contextmanager

import pytest
import torch

import ablation_lens as al
from ablation_lens import Ablation, Site, load_model, random_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.measure.forward import capture
from ablation_lens.models.load import transformer_lens_major
from tests.tiny_models import FAMILIES, run

MODULES = {
    "opt": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc2"),
    "mistral": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"),
    "roberta": (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "output.dense"),
    ),
    "vit": ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc2"),
}
"""What makes q, k, v, attn_out and mlp_out, in a layer of Hugging Face."""

MADE = (Site.Q, Site.K, Site.V, Site.ATTN_OUT, Site.MLP_OUT)
STREAM = (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST)
OBEYED = [site for site in (*MADE, *STREAM) if site is not Site.RESID_MID or transformer_lens_major() == 3]


def layers_of(hf_model):
    for path in ("model.decoder.layers", "model.layers", "roberta.encoder.layer", "vit.layers"):
        try:
            return list(hf_model.get_submodule(path))
        except AttributeError:
            continue
    raise AssertionError(type(hf_model))


@contextmanager
def watched(hf_model, tiny, layer, change=None):
    """What stands at each site of a layer, in a dictionary; `change` may be `(site, function)` to replace it."""
    seen = defaultdict(list)
    block = layers_of(hf_model)[layer]
    post_norm = tiny.name == "roberta"

    def at(site, value):
        if change is not None and change[0] is site:
            value = change[1](value)
        seen[site] = value.detach().clone()
        return value

    def before_block(module, args, kwargs):
        first = at(Site.RESID_PRE, args[0] if args else kwargs["hidden_states"])
        return ((first, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": first})

    def after_block(module, args, output):
        if post_norm:
            return None
        plain = isinstance(output, torch.Tensor)
        value = at(Site.RESID_POST, output if plain else output[0])
        return value if plain else (value, *output[1:])

    def after(site):
        def hook(module, args, output):
            value = at(site, output)
            if site is Site.ATTN_OUT and not post_norm:
                start = seen[Site.RESID_PRE]
                middle = at(Site.RESID_MID, start + value.view_as(start))
                return (middle - start).view_as(value)
            return value

        return hook

    def into(site):
        return lambda module, args: (at(site, args[0]),)

    handles = [
        block.register_forward_pre_hook(before_block, with_kwargs=True),
        block.register_forward_hook(after_block),
        *(
            block.get_submodule(path).register_forward_hook(after(site))
            for site, path in zip(MADE, MODULES[tiny.name], strict=True)
        ),
    ]
    if post_norm:
        handles.append(block.attention.output.LayerNorm.register_forward_pre_hook(into(Site.RESID_MID)))
        handles.append(block.output.LayerNorm.register_forward_pre_hook(into(Site.RESID_POST)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits_of(hf_model, inputs, mask):
    return (hf_model(inputs) if mask is None else hf_model(inputs, attention_mask=mask)).logits


def real(mask):
    return slice(None) if mask is None else mask.bool()


@pytest.fixture(params=FAMILIES, ids=lambda tiny: tiny.name)
def both(request, saved):
    """Our model and Hugging Face's."""
    tiny = request.param
    hf_model = tiny.model()
    return (tiny, load_model(saved(tiny.name)), hf_model, *tiny.inputs())


def test_what_a_site_holds_is_what_hugging_face_computes_there(both):
    tiny, model, hf_model, inputs, mask = both
    batch = al.Batch.images(inputs, model.cfg.n_ctx) if mask is None else al.Batch.causal(inputs, mask.bool())
    with watched(hf_model, tiny, 1) as seen:
        logits_of(hf_model, inputs, mask)
    for site in (*MADE, *STREAM):
        ours = capture(model, batch, site, [1])[1]
        assert tuple(ours.shape[2:]) == site.shape(model.cfg)[1:]
        theirs = seen[site].view(*ours.shape[:2], -1)
        assert (ours.flatten(2) - theirs)[real(mask)].abs().max() < 1e-4, site


def test_what_is_put_at_a_site_has_the_effect_that_it_has_in_hugging_face(both):
    tiny, model, hf_model, inputs, mask = both
    before = logits_of(hf_model, inputs, mask)[real(mask)]
    for site in OBEYED:
        shape = site.shape(model.cfg)
        chosen = random_neurons(shape, 0.5, seed=1)
        chosen[[0, 2]] = False
        ablation = Ablation(chosen, torch.randn(shape), site=site)
        one, values = chosen[1].flatten(), ablation.values[1].flatten()
        replace = (site, lambda value, one=one, values=values: torch.where(one, values, value))
        with watched(hf_model, tiny, 1, replace):
            expected = logits_of(hf_model, inputs, mask)[real(mask)]
        with ablation.applied_to(model):
            ours = run(model, inputs, mask)[real(mask)]
        assert (ours - expected).abs().max() < 2e-4, site
        assert (expected - before).abs().max() > 0.01, site  # which is what an ablation is for


def test_a_stream_that_the_bridge_does_not_obey_is_refused(saved):
    if transformer_lens_major() == 3:
        pytest.skip("transformer-lens 3 obeys")
    model = load_model(saved("opt"))
    shape = Site.RESID_MID.shape(model.cfg)
    ablation = Ablation(random_neurons(shape, 1.0, 0), torch.zeros(shape), site="resid_mid")
    with pytest.raises(MismatchError, match="reaches the MLP alone"):
        ablation.applied_to(model)


def test_a_model_without_a_hook_is_told_so_in_one_sentence(saved):
    model = load_model(saved("opt"))
    tokens = torch.arange(3, 12)[None]
    for name in [name for name in model.hook_dict if name.endswith("hook_resid_mid")]:
        (getattr(model, "_hook_registry", None) or model.hook_dict).pop(name)
    if "blocks.0.hook_resid_mid" in model.hook_dict:
        pytest.skip("a bridge makes this name anew")
    with pytest.raises(MismatchError, match=r"no blocks.0.hook_resid_mid, .* it has z, mlp, q, k, v, attn_out"):
        al.collect(model, [tokens], site="resid_mid", progress=False)


def test_keys_and_values_have_their_own_heads_under_grouped_heads(saved):
    model = load_model(saved("mistral"))
    tokens = torch.arange(3, 30)[None]
    for site in ("k", "v"):
        stats = al.collect(model, [tokens], site=site, progress=False)
        assert stats.shape == (3, 2, 10)
        ablation = stats.ablation(["L1.H1", "L2.H0.D9"], "mean")
        with ablation.applied_to(model):
            seen = capture(model, al.Batch.causal(tokens), site)
        assert torch.allclose(seen[1][0, :, 1], stats.mean[1, 1].float().expand(27, 10))
        with pytest.raises(MismatchError, match=f"2 {site} heads"):
            stats.ablation("L1.H2", "mean")


def test_sites_have_files_tables_and_resampled_values(saved, tmp_path):
    model = load_model(saved("mistral"))
    for site in ("k", "attn_out", "resid_post"):
        stats = al.collect(model, [torch.arange(3, 30)[None]], site=site, progress=False)
        stats.save(tmp_path / site)
        again = al.ActivationStatistics.load(tmp_path / site)
        assert again.site is Site(site)
        assert again.table().index[1] == ("L0.H0.D1" if site == "k" else "L0.D1")
        resampled = al.resampling.resample(model, "tokens", seed=0, positions=9, site=site)
        resampled.save(tmp_path / f"{site}-r")
        assert al.resampling.Resampled.load(tmp_path / f"{site}-r").site is Site(site)


@pytest.mark.skipif(transformer_lens_major() >= 4, reason="transformer-lens 4 has no HookedTransformer")
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_a_model_of_attention_alone_is_told_so_wherever_an_mlp_is_asked_for():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=6, d_head=4, n_heads=2, d_vocab=9, attn_only=True, seed=0
    )
    model, tokens = HookedTransformer(cfg), torch.tensor([[1, 2, 3]])
    for site in ("mlp", "mlp_out"):
        ablation = Ablation(torch.ones(1, 1, 8, dtype=torch.bool), torch.zeros(1, 1, 8), site=site)
        for ask in (
            lambda site=site: al.collect(model, [tokens], site=site, progress=False),
            lambda site=site: Ablation.from_names("L0", model=model, site=site),
            lambda ablation=ablation: ablation.applied_to(model),
            lambda site=site: Site.of(site).shape(model.cfg),
        ):
            with pytest.raises(MismatchError, match=r"attention only, .* use site='z'"):
                ask()
    with pytest.raises(MismatchError, match=r"no blocks\.0\.hook_resid_mid"):
        al.collect(model, [tokens], site="resid_mid", progress=False)

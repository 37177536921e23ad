"""Knock-outs of every family: shared runs are plain runs, and both are what Hugging Face computes."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import transformers

import ablation_lens as al
from ablation_lens import circuits
from ablation_lens.models.load import transformer_lens_major
from ablation_lens.sites import Site
from tests.tiny_models import BY_NAME, TEXT, VARIANTS, Tiny

VALUE = 0.3
"""What is put in the place of a head: neither zero nor anything that a model holds by chance."""
TOLERANCE = 1e-5

OTHERS = [
    # Attention and MLP side by side, with a norm each, and with one for both.
    Tiny("neox", lambda: neox(), lambda model: [layer.attention.dense for layer in model.gpt_neox.layers]),
    Tiny("gpt-j", lambda: gpt_j(), lambda model: [block.attn.out_proj for block in model.transformer.h]),
    # Norms before and after, soft caps; norms after only; scales everywhere.
    Tiny("gemma-2", lambda: gemma_2(), lambda model: _o_proj(model), majors=(4,)),
    Tiny("olmo-2", lambda: olmo_2(), lambda model: _o_proj(model), majors=(4,)),
    Tiny("granite", lambda: granite(), lambda model: _o_proj(model), majors=(4,)),
]


def _o_proj(model):
    return [layer.self_attn.o_proj for layer in model.model.layers]


def neox():
    config = {**TEXT, "intermediate_size": 40, "max_position_embeddings": 64, "rotary_pct": 0.4}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**config))


def gpt_j():
    config = {"vocab_size": 61, "n_embd": 36, "n_layer": 3, "n_head": 6, "n_positions": 64, "rotary_dim": 4}
    return transformers.GPTJForCausalLM(transformers.GPTJConfig(**config))


def gemma_2():
    config = {**TEXT, "intermediate_size": 40, "num_key_value_heads": 3, "head_dim": 8, "query_pre_attn_scalar": 8}
    caps = {"final_logit_softcapping": 6.0, "attn_logit_softcapping": 5.0, "sliding_window": 5}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**config, **caps))


def olmo_2():
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**TEXT, intermediate_size=40, num_key_value_heads=6))


def granite():
    scales = {"residual_multiplier": 0.5, "logits_scaling": 2.0}
    config = {**TEXT, "intermediate_size": 40, "num_key_value_heads": 6}
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**config, **scales))


@pytest.fixture(params=[*VARIANTS, *OTHERS], ids=lambda tiny: tiny.name)
def tiny(request):
    if transformer_lens_major() not in request.param.majors:
        pytest.skip(f"transformer-lens {transformer_lens_major()} has no {request.param.name}")
    return request.param


@pytest.fixture
def folder(tiny, saved, tmp_path):
    if tiny.name in BY_NAME:
        return saved(tiny.name)
    tiny.model().save_pretrained(tmp_path)
    return tmp_path


def batch_of(tiny):
    """Padded rows, some positions of which are scored, or images."""
    torch.manual_seed(3)
    inputs, mask = tiny.inputs()
    if mask is None:
        batch = al.Batch.images(inputs, positions=1)
        return dataclasses.replace(batch, labels=torch.tensor([1, 5, 2]), scored=torch.tensor([True, True, False]))
    scored = mask.bool() & (torch.rand(mask.shape) < 0.5)
    scored[:, 0] = True
    labels = torch.randint(3, 61, inputs.shape)
    return al.Batch(inputs, mask.bool(), torch.where(scored, labels, 0), scored, valid_given=True)


def positions_made(model, batch):
    """A batch of images says how many positions a model makes of each."""
    if batch.inputs.ndim == 2:
        return batch
    return dataclasses.replace(batch, valid=torch.ones(len(batch.inputs), model.cfg.n_ctx, dtype=torch.bool))


def every_head(shape):
    for layer in range(shape[0]):
        for head in range(shape[1]):
            mask = torch.zeros(shape, dtype=torch.bool)
            mask[layer, head] = True
            yield mask


def one_by_one(model, batch, site):
    where = Site.of(site)

    def losses(ablation=None):
        return al.evaluate(model, batch, ablation).loss.double()

    made = [losses(al.Ablation(mask, VALUE, site=where)) for mask in every_head(where.shape(model.cfg))]
    return torch.stack(made, 1) - losses()[:, None]


def hand_built(**changes):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(1)
    config = {"n_layers": 3, "d_model": 24, "n_ctx": 16, "d_head": 4, "n_heads": 6, "d_vocab": 61, "d_mlp": 40}
    model = HookedTransformer(HookedTransformerConfig(**{**config, "act_fn": "gelu", "seed": 0, **changes}))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith(".w")), std=0.2)
    return model


def require_equal(model, batch):
    runs = []
    for site in ("z",) if getattr(model.cfg, "attn_only", False) else ("z", "mlp"):
        runs.clear()
        # A hook, as blocks that stand in for themselves call none.
        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: runs.append(1))]):
            effects = circuits.knockout_effects(model, batch, "cross_entropy", VALUE, sites=site, progress=False)
        plain = one_by_one(model, batch, site)
        assert plain.abs().max() > 1e-2
        assert torch.allclose(effects.rows[site].flatten(1), plain, rtol=TOLERANCE, atol=TOLERANCE)
        # Nothing is alike by being the same: the first block was not run for every head.
        assert site == "mlp" or len(runs) < effects[site].numel() - 6


def test_shared_runs_are_plain_runs(tiny, folder):
    model = al.load_model(folder)
    require_equal(model, positions_made(model, batch_of(tiny)))


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.skipif(transformer_lens_major() != 3, reason="transformer-lens 4 has no HookedTransformer")
@pytest.mark.parametrize(
    "changes",
    [
        {"parallel_attn_mlp": True},
        {"parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 2},
        {"use_attn_result": True},
        {"use_normalization_before_and_after": True, "normalization_type": "RMS", "output_logits_soft_cap": 3.0},
        {"attn_scores_soft_cap": 5.0},
        {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS"},
        {"attn_only": True},
        {"gated_mlp": True, "n_key_value_heads": 2, "use_split_qkv_input": True},
        {"act_fn": "solu_ln"},
        {"positional_embedding_type": "shortformer"},
        {"use_attn_in": True, "use_hook_mlp_in": True},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.parametrize("fast", [False, True], ids=["stock", "fast"])
def test_shared_runs_are_plain_runs_in_models_of_ones_own(changes, fast):
    model = hand_built(**changes)
    if fast:
        from ablation_lens.fast_attention import enable_fast_attention

        enable_fast_attention(model)
    require_equal(model, batch_of(BY_NAME["opt"]))


def cross_entropies(logits, batch):
    """Of every row, in NumPy and float64, added up over its scored positions."""
    logits, labels = logits.numpy().astype(np.float64), batch.labels.numpy()
    if labels.ndim == 1:  # one prediction for an image
        logits, labels = logits[:, None], labels[:, None]
    peaks = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - peaks).sum(-1)) + peaks[..., 0]
    losses = total - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return (losses * batch.scored.numpy().reshape(labels.shape)).sum(1)


@torch.no_grad()
def by_hugging_face(hf_model, tiny, batch, heads, dims):
    """The same of a plain model, where heads `{(layer, head)}` are set to a value before the output projection."""

    def ablate(layer, module, args):
        z = args[0].clone()
        for where, head in heads:
            if where == layer:
                z[..., head * dims : (head + 1) * dims] = VALUE
        return (z, *args[1:])

    handles = [
        projection.register_forward_pre_hook(functools.partial(ablate, layer))
        for layer, projection in enumerate(tiny.projections(hf_model))
    ]
    options = {} if batch.inputs.ndim > 2 else {"attention_mask": batch.valid.long()}
    try:
        return cross_entropies(hf_model(batch.inputs, **options).logits.float(), batch)
    finally:
        for handle in handles:
            handle.remove()


def test_effects_are_those_of_hooks_on_a_plain_hugging_face_model(tiny, folder):
    model = al.load_model(folder)
    batch = positions_made(model, batch_of(tiny))
    hf_model = tiny.model()
    layers, heads, dims = Site.Z.shape(model.cfg)
    everything = {(layer, head) for layer in range(layers) for head in range(heads)}
    run = functools.partial(by_hugging_face, hf_model, tiny, batch, dims=dims)
    clean, empty = run(set()), run(everything)
    count = batch.scored.sum().item()

    effects = circuits.knockout_effects(model, batch, "cross_entropy", VALUE, progress=False)
    for layer, head in everything:
        expected = run({(layer, head)}) - clean
        assert np.abs(effects.rows["z"][:, layer, head].numpy() - expected).max() <= 1e-4, (layer, head)
    assert abs(effects.unablated - clean.sum() / count) <= 1e-4
    assert abs(effects.total - (empty - clean).sum() / count) <= 1e-4

    # The same through circuits in which everything is kept, and nothing.
    for keep, expected in ((True, clean), (False, empty)):
        outside = circuits.Circuit.of(model, keep).outside(VALUE)
        assert abs(al.evaluate(model, batch, outside).cross_entropy - expected.sum() / count) <= 1e-4

"""Every loaded model computes what Hugging Face computes: the same logits and the same z."""

import shutil

import pytest
import torch
import transformers

import ablation_lens as al
from ablation_lens import load_model
from ablation_lens.errors import AblationLensError, ModelError
from ablation_lens.models.load import hook_model, transformer_lens_major
from ablation_lens.sites import Site
from tests.tiny_models import BY_NAME, FAMILIES, TEXT, VARIANTS, Tiny, gpt2, llama, mistral, opt, reference, run

LOGITS, Z = 1e-4, 1e-5


def gap(ours, theirs, mask):
    """The largest difference over real positions."""
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs()
    if mask is not None:
        difference = difference[mask.bool()]
    return difference.max().item()


def loaded_beside_reference(tiny, saved, **options):
    if transformer_lens_major() not in tiny.majors:
        pytest.skip(f"transformer-lens {transformer_lens_major()} has no {tiny.name}")
    hf_model = tiny.model()
    inputs, mask = tiny.inputs()
    logits, z = reference(hf_model, tiny, inputs, mask)
    return load_model(saved(tiny.name), **options), inputs, mask, logits, z


@pytest.mark.parametrize("attention", ["fast", "stock"])
@pytest.mark.parametrize("tiny", VARIANTS, ids=lambda tiny: tiny.name)
def test_logits_and_z_equal_hugging_faces(tiny, attention, saved):
    model, inputs, mask, logits, reference_z = loaded_beside_reference(tiny, saved, attention=attention)
    z = []
    hooks = [(name, lambda value, hook: z.append(value.flatten(2).clone())) for name in Site.Z.hook_names(model.cfg)]
    ours = run(model, inputs, mask, hooks)

    per_position = mask if logits.ndim == 3 else None
    assert logits.abs().max() > 0.5  # a model that outputs next to nothing would agree with anything
    assert gap(ours, logits, per_position) <= LOGITS
    assert len(z) == len(reference_z) == model.cfg.n_layers
    for ours_at_layer, theirs in zip(z, reference_z, strict=True):
        assert gap(ours_at_layer, theirs, mask) <= Z


def stored(model):
    return {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_a_hugging_face_model_in_memory_is_hooked_as_its_files_would_be(tiny, saved, tmp_path, monkeypatch):
    shutil.copytree(saved("opt"), tmp_path / "here")
    (tmp_path / "here" / "tokenizer.json").write_text("not read", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")  # it has no files, not even those of the current folder
    loaded, inputs, mask, logits, _ = loaded_beside_reference(tiny, saved)
    hf_model = tiny.model()
    before = stored(hf_model)
    model = hook_model(hf_model, name="mine")
    assert gap(run(model, inputs, mask), logits, mask if logits.ndim == 3 else None) <= LOGITS
    same = ("checksum", "weights", "architecture", "n_ctx", "dtype")
    assert [getattr(model.record, name) for name in same] == [getattr(loaded.record, name) for name in same]
    assert model.record.name == "mine"
    assert before <= stored(model)  # shared, not copied
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("given", ["tiny-opt", torch.nn.Linear(2, 2), transformers.OPTModel(opt().config)])
def test_what_cannot_be_hooked_in_memory_is_refused(given):
    with pytest.raises(ModelError, match=r"expected a model of transformers|cannot be hooked"):
        hook_model(given)


def test_a_plain_model_where_a_hooked_one_is_wanted_is_told_of_hook_model():
    plain, tokens = BY_NAME["opt"].model(), torch.tensor([[2, 7, 9]])
    ablation = al.Ablation.from_names("L0.H1", 0.0, model=plain)
    for wrong in (
        lambda: al.load_model(plain),
        lambda: al.collect(plain, tokens, progress=False),
        lambda: al.evaluate(plain, tokens, ablation),
        lambda: ablation.bake(plain),
        lambda: ablation.hooks(model=plain),
    ):
        with pytest.raises(AblationLensError, match=r"OPTForCausalLM.*; a model in memory is hooked by .*hook_model"):
            wrong()


def test_the_comparison_notices_a_planted_error(saved):
    _, _, mask, logits, _ = loaded_beside_reference(BY_NAME["opt"], saved)
    wrong = logits.clone()
    wrong[1, 6, 3] += 2 * LOGITS
    assert gap(wrong, logits, mask) > LOGITS
    padded = logits.clone()
    padded[1, 7:] = 99.0  # beyond the row's seven real tokens
    assert gap(padded, logits, mask) == 0


QWEN = {**TEXT, "intermediate_size": 40, "num_key_value_heads": 3, "head_dim": 8, "max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
UNUSUAL = {
    "llama attention biases": lambda: llama(attention_bias=True),
    "llama MLP biases": lambda: llama(mlp_bias=True),
    "llama linear rope": lambda: llama(rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama yarn": lambda: llama(rope_scaling=YARN),
    "mistral mixed attention": lambda: mistral(layer_types=["full_attention", "sliding_attention", "full_attention"]),
    "gpt2 unscaled": lambda: gpt2(scale_attn_weights=False),
    "gpt2 scaled by layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "qwen2 sliding window": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**QWEN, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "qwen3 attention biases": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**QWEN, attention_bias=True)
    ),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)
    ),
    "bloom with six heads": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=61, hidden_size=36, n_layer=2, n_head=6)
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_a_major_would_compute_in_another_way_is_refused(name, tmp_path):
    hf_model = Tiny(name, UNUSUAL[name], lambda model: []).model()
    hf_model.save_pretrained(tmp_path)
    tokens = torch.randint(3, 61, (2, 12))
    try:
        ours = load_model(tmp_path)(tokens)
    except ModelError as error:
        refusal = str(error)
    else:
        with torch.no_grad():
            assert gap(ours, hf_model(tokens).logits, None) <= LOGITS
        return
    assert "cannot be hooked: transformer-lens" in refusal


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_the_site_has_the_shape_the_config_says(tiny, saved):
    model, inputs, mask, *_ = loaded_beside_reference(tiny, saved)
    for site in Site:
        shapes = []
        hooks = [
            (name, lambda value, hook, site=site, shapes=shapes: shapes.append(tuple(site.to_heads(value).shape[2:])))
            for name in site.hook_names(model.cfg)
        ]
        run(model, inputs, mask, hooks)
        layers, *neurons = site.shape(model.cfg)
        assert shapes == [tuple(neurons)] * layers


@pytest.mark.parametrize("tiny", [tiny for tiny in VARIANTS if tiny.name != "gpt2"], ids=lambda tiny: tiny.name)
def test_weights_have_transformer_lens_shapes_and_rebuild_z_from_values(tiny, saved):
    model, inputs, mask, *_ = loaded_beside_reference(tiny, saved)
    values, patterns, outputs = [], [], []
    hooks = [
        ("blocks.1.attn.hook_v", lambda value, hook: values.append(value)),
        ("blocks.1.attn.hook_pattern", lambda value, hook: patterns.append(value)),
        ("blocks.1.attn.hook_z", lambda value, hook: outputs.append(value)),
    ]
    run(model, inputs, mask, hooks)
    cfg = model.cfg
    assert tuple(model.W_O.shape) == (cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_model)
    repeat = cfg.n_heads // values[0].shape[2]
    rebuilt = torch.einsum("bhqk,bkhd->bqhd", patterns[0], values[0].repeat_interleave(repeat, dim=2))
    assert gap(rebuilt, outputs[0], mask) <= Z


def test_post_layer_norm_opt_is_refused_where_transformer_lens_cannot_run_it(saved):
    if transformer_lens_major() >= 4:
        pytest.skip("transformer-lens 4 runs it; covered by the parity tests")
    with pytest.raises(ModelError, match="post-LN"):
        load_model(saved("opt-post-ln"))


@pytest.mark.parametrize("name", ["mistral-under-llama", "bert", "t5-gemma", "gemma-2-llama"])
def test_a_folder_named_after_another_model_still_loads_as_what_it_is(name, saved, tmp_path):
    model = load_model(shutil.copytree(saved("mistral"), tmp_path / name / "checkpoint"))
    tiny = BY_NAME["mistral"]
    inputs, mask = tiny.inputs()
    logits, _ = reference(tiny.model(), tiny, inputs, mask)
    assert model.record.architecture == "MistralForCausalLM"
    assert gap(run(model, inputs, mask), logits, mask) <= LOGITS


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_bfloat16_stays_close_to_hugging_faces_bfloat16(tiny, saved):
    model, inputs, mask, logits, _ = loaded_beside_reference(tiny, saved, dtype="bfloat16")
    assert model.record.dtype == "bfloat16"
    assert next(model.parameters()).dtype == torch.bfloat16
    ours = run(model, inputs, mask).float()
    # bf16 keeps 8 bits; two orders of summation differ by a few of its steps
    assert gap(ours, logits, mask if logits.ndim == 3 else None) <= 0.1 * logits.abs().max().item()

"""RoBERTa's and ViT's own ways: masks, positions, token types, heads, sizes, caches, and the registry."""

import copy

import pytest
import torch
import transformers
from transformer_lens import ActivationCache

from ablation_lens import adapters, load_model
from ablation_lens.adapters import HookedRoberta, HookedViT
from ablation_lens.errors import MismatchError, ModelError
from tests.tiny_models import BY_NAME, roberta


@pytest.fixture
def hooked_roberta():
    hf_model = BY_NAME["roberta"].model()
    return HookedRoberta(hf_model), hf_model


@pytest.fixture
def hooked_vit():
    hf_model = BY_NAME["vit"].model()
    return HookedViT(hf_model), hf_model


def test_token_types_reach_the_embedding(hooked_roberta):
    model, hf_model = hooked_roberta
    tokens, _ = BY_NAME["roberta"].inputs()
    types = torch.tensor([[0] * 6 + [1] * 6] * 3)
    with torch.no_grad():
        expected = hf_model(tokens, token_type_ids=types).logits
        ours = model(tokens, token_type_ids=types)
    assert (ours - expected).abs().max() <= 1e-4
    assert (ours - model(tokens)).abs().max() > 1e-2


def test_positions_count_from_after_the_padding_id_and_skip_padding(hooked_roberta):
    model, _ = hooked_roberta
    seen = []
    padded_left = torch.tensor([[1, 1, 0, 9, 2]])  # 1 is the padding id
    model.run_with_hooks(padded_left, fwd_hooks=[("hook_pos_embed", lambda value, hook: seen.append(value))])
    table = model.position_embedding.weight
    assert torch.equal(seen[0][0], table[[1, 1, 2, 3, 4]])


def test_padding_changes_nothing_at_real_positions(hooked_roberta):
    model, _ = hooked_roberta
    tokens = torch.tensor([[0, 7, 9, 2]])
    padded = torch.tensor([[0, 7, 9, 2, 1, 1, 1]])
    mask = (padded != 1).long()
    assert (model(padded, mask)[:, :4] - model(tokens)).abs().max() <= 1e-5


def test_a_mask_beside_text_is_refused_not_dropped():
    model = load_model("tiny-roberta")
    with pytest.raises(ModelError, match="text brings its own attention_mask"):
        model("def f(x):", torch.ones(1, 5))


def test_a_fully_masked_row_attends_to_nothing_and_leaks_no_nan(hooked_roberta):
    model, _ = hooked_roberta
    tokens, mask = BY_NAME["roberta"].inputs()
    mask[2] = 0
    z = []
    kept = torch.zeros(3, 12, 36, requires_grad=True)
    hooks = [
        ("hook_full_embed", lambda value, hook: value + kept),
        ("blocks.0.attn.hook_z", lambda value, hook: z.append(value)),
    ]
    for extra in ([], [("blocks.0.attn.hook_pattern", lambda value, hook: value)]):  # fused, then in the open
        z.clear()
        logits = model.run_with_hooks(tokens, mask, fwd_hooks=hooks + extra)
        assert z[0][2].abs().max() == 0
        assert torch.isfinite(logits).all()
    (gradient,) = torch.autograd.grad(model.run_with_hooks(tokens, mask, fwd_hooks=hooks).sum(), kept)
    assert torch.isfinite(gradient).all()


def test_wrong_inputs_say_what_was_expected(hooked_roberta, hooked_vit):
    text_model, image_model = hooked_roberta[0], hooked_vit[0]
    with pytest.raises(ModelError, match="at most 18 positions"):
        text_model(torch.zeros(1, 19, dtype=torch.long))
    with pytest.raises(ModelError, match="token ids"):
        text_model(torch.zeros(4, dtype=torch.long))
    with pytest.raises(MismatchError, match="attention_mask has shape"):
        text_model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 5))
    with pytest.raises(ModelError, match="without a tokenizer"):
        text_model("some text")
    with pytest.raises(ModelError, match=r"takes \[batch 3 12 12\]"):
        image_model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ModelError, match=r"takes \[batch 3 12 12\]"):
        image_model(torch.zeros(1, 1, 12, 12))


def test_a_decoder_roberta_is_refused():
    with pytest.raises(ModelError, match="decoder"):
        HookedRoberta(roberta(is_decoder=True))


def test_stopping_at_a_layer_and_going_on_from_there_is_the_whole_run(hooked_roberta, hooked_vit):
    tokens, mask = BY_NAME["roberta"].inputs()
    model = hooked_roberta[0]
    embedded = model(tokens, mask, stop_at_layer=0)
    assert torch.equal(embedded, model.embed(tokens))
    residual = model(tokens, mask, stop_at_layer=model.cfg.n_layers)
    assert torch.equal(model.head(residual), model(tokens, mask))
    # the head works position by position, so evaluation may feed it scored positions only
    assert torch.allclose(model.head(residual[mask.bool()]), model(tokens, mask)[mask.bool()], atol=1e-5)

    images, _ = BY_NAME["vit"].inputs()
    vit = hooked_vit[0]
    assert torch.equal(vit.head(vit(images, stop_at_layer=vit.cfg.n_layers)), vit(images))


@pytest.mark.parametrize("name", ["roberta", "vit"])
def test_attention_and_mlp_outputs_are_what_is_added_to_the_residual_stream(name, hooked_roberta, hooked_vit):
    model = {"roberta": hooked_roberta, "vit": hooked_vit}[name][0]
    inputs, mask = BY_NAME[name].inputs()
    _, cache = model.run_with_cache(inputs) if mask is None else model.run_with_cache(inputs, mask)
    assert isinstance(cache, ActivationCache)
    block = "blocks.1"
    mid = cache[f"{block}.hook_resid_pre"] + cache[f"{block}.hook_attn_out"]
    assert torch.allclose(mid, cache[f"{block}.hook_resid_mid"], atol=1e-6)
    into_mlp = cache[f"{block}.ln1.hook_normalized"] if model.cfg.post_norm else mid
    assert torch.allclose(into_mlp + cache[f"{block}.hook_mlp_out"], cache[f"{block}.hook_resid_post"], atol=1e-6)


def test_a_listened_norm_equals_the_fused_one(hooked_vit):
    model, _ = hooked_vit
    images, _ = BY_NAME["vit"].inputs()
    scales = []
    looked = model.run_with_hooks(images, fwd_hooks=[("ln_final.hook_scale", lambda s, hook: scales.append(s))])
    assert scales[0].shape == (3, 10, 1)
    assert torch.allclose(looked, model(images), atol=1e-5)
    halved = model.run_with_hooks(images, fwd_hooks=[("ln_final.hook_scale", lambda s, hook: s * 2)])
    assert (halved - looked).abs().max() > 1e-2


def test_moving_a_model_moves_its_config(hooked_vit):
    model, _ = hooked_vit
    moved = copy.deepcopy(model).to(torch.float64)
    assert moved.cfg.dtype == torch.float64
    assert moved(BY_NAME["vit"].inputs()[0]).dtype == torch.float64
    assert model.cfg.dtype == torch.float32


def test_from_pretrained_loads_its_own_family_and_refuses_others(saved):
    model = HookedRoberta.from_pretrained(saved("roberta"), dtype="float64")
    assert model.record.dtype == "float64"
    assert model.tokenizer is None
    with pytest.raises(ModelError, match="HookedViT loads vit"):
        HookedViT.from_pretrained(saved("roberta"))


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "cat", "sat"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip


def test_a_tokenizer_beside_the_weights_rides_along(tmp_path):
    BY_NAME["roberta"].model().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model = load_model(tmp_path)
    tokens, mask = model.to_tokens(["a cat sat", "cat"])
    assert tokens.tolist() == [[0, 5, 6, 7, 2], [0, 6, 2, 1, 1]]
    assert torch.equal(model(["a cat sat", "cat"]), model(tokens, mask))
    assert model("cat").shape == (1, 3, 61)


def test_an_image_processor_beside_the_weights_rides_along(tmp_path):
    BY_NAME["vit"].model().save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    from PIL import Image

    pixels = model.image_processor(Image.new("RGB", (40, 30), "red"), return_tensors="pt")["pixel_values"]
    assert model(pixels).shape == (1, 7)


def test_a_third_party_adds_a_family_without_touching_load_model(tmp_path):
    folder = tmp_path / "their-model"
    BY_NAME["roberta"].model().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"roberta"', '"camembert"'))
    with pytest.raises(ModelError, match="camembert model and cannot be hooked"):
        load_model(folder)

    @adapters.register("camembert", auto_class="AutoModelForMaskedLM")
    class HookedCamembert(HookedRoberta):
        pass

    try:
        model = load_model(folder)
        assert type(model) is HookedCamembert
        assert model.record.architecture == "CamembertForMaskedLM"
    finally:
        adapters.unregister("camembert")
    assert "camembert" not in adapters.families()

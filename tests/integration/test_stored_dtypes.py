"""Checkpoints that are stored in one dtype and loaded in another: every weight is converted, and no more changes."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ablation_lens import load_model
from ablation_lens.errors import ModelError
from ablation_lens.models.checkpoints import find_checkpoint, load_weights
from ablation_lens.weights import weights_digest
from tests.tiny_models import BY_NAME, FAMILIES, TEXT

CPU = torch.device("cpu")
AUTO = {"roberta": "AutoModelForMaskedLM", "vit": "AutoModelForImageClassification"}


def expected(folder, auto_class, dtype):
    return getattr(transformers, auto_class).from_pretrained(folder, dtype=dtype)


def loaded(folder, auto_class, dtype):
    return load_weights(find_checkpoint(folder), auto_class, device=CPU, dtype=dtype)[0]


def assert_same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert {name: weight.dtype for name, weight in ours.items()} == {name: w.dtype for name, w in theirs.items()}
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize("tiny", [*FAMILIES, BY_NAME["gpt2"]], ids=lambda tiny: tiny.name)
def test_half_precision_in_shards_is_loaded_as_float32_with_the_same_numbers(tiny, tmp_path):
    tiny.model().to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    theirs = expected(tmp_path, AUTO.get(tiny.name, "AutoModelForCausalLM"), torch.float32)
    model = load_model(tmp_path, dtype="float32")
    assert model.cfg.dtype == torch.float32
    assert model.record.weights == weights_digest(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_file_may_hold_weights_of_several_dtypes(tmp_path, dtype):
    BY_NAME["opt"].model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {name: weight if "norm" in name else weight.half() for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    auto_class = "AutoModelForCausalLM"
    assert_same(loaded(tmp_path, auto_class, dtype), expected(tmp_path, auto_class, dtype))


def test_names_and_layouts_of_a_family_are_converted_as_transformers_does(tmp_path):
    """Experts lie one by one in files, and as one tensor in memory; a bare GPT-2's names lack their prefix."""
    mixtral = transformers.MixtralConfig(
        **TEXT, intermediate_size=16, num_key_value_heads=2, num_local_experts=3, max_position_embeddings=32
    )
    gpt2 = transformers.GPT2Config(vocab_size=61, n_embd=36, n_layer=2, n_head=6, n_positions=33)
    for name, model in (("mixtral", transformers.MixtralForCausalLM(mixtral)), ("gpt2", transformers.GPT2Model(gpt2))):
        folder = tmp_path / name
        model.to(torch.bfloat16).save_pretrained(folder)
        auto_class = "AutoModelForCausalLM"
        assert_same(loaded(folder, auto_class, torch.float32), expected(folder, auto_class, torch.float32))


@pytest.mark.parametrize("keep", [100, 20_000])
def test_a_truncated_file_in_half_precision_is_one_sentence(tmp_path, keep):
    BY_NAME["opt"].model().to(torch.bfloat16).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(tmp_path, dtype="float32")


def test_what_a_checkpoint_says_about_generating_is_read(tmp_path):
    model = BY_NAME["opt"].model()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    ours = loaded(tmp_path, "AutoModelForCausalLM", torch.float32)
    assert ours.generation_config.max_new_tokens == 7
    assert ours.config.name_or_path == str(tmp_path)

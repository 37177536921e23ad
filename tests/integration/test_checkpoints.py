"""Every way a checkpoint can be wrong is one sentence with the way out."""

import json
import os
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ablation_lens import load_model
from ablation_lens.errors import AblationLensError, ModelError
from ablation_lens.models.checkpoints import find_checkpoint, resolve_dtype
from ablation_lens.weights import weights_digest
from tests.tiny_models import BY_NAME


@pytest.fixture
def opt_folder(saved):
    return saved("opt")


@pytest.fixture
def copy(opt_folder, tmp_path):
    return shutil.copytree(opt_folder, tmp_path / "copy")


def failure(*args, **options):
    with pytest.raises(AblationLensError) as caught:
        load_model(*args, **options)
    message = str(caught.value)
    assert isinstance(caught.value, ModelError)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere-at-all", "a/b/c", ""])
def test_no_such_folder(name):
    assert "no folder" in failure(name)


def test_a_file_instead_of_a_folder(copy):
    assert "is a file" in failure(copy / "config.json")


def test_a_folder_without_config(tmp_path):
    assert "has no config.json" in failure(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{ not json", "not readable JSON"),
        ("[1, 2]", "names no model_type"),
        ("{}", "names no model_type"),
        ('{"model_type": "no-such-family"}', "cannot read"),
        ('{"model_type": "opt", "hidden_size": "wide"}', "cannot read"),
    ],
)
def test_a_config_that_cannot_be_read(copy, text, expected):
    (copy / "config.json").write_text(text)
    assert expected in failure(copy)


def test_bytes_that_are_no_text_in_config(copy):
    (copy / "config.json").write_bytes(b"\xff\xfe\x00garbage")
    assert "not readable JSON" in failure(copy)


def test_an_unsupported_architecture_names_the_supported_ones(tmp_path):
    config = transformers.BertConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    message = failure(tmp_path)
    assert "bert model and cannot be hooked" in message
    for family in ("roberta", "vit", "opt", "mistral", "register"):
        assert family in message


def test_the_hub_out_of_reach_says_how_to_use_a_folder():
    message = failure("facebook/opt-1.3b")
    assert "facebook/opt-1.3b" in message
    assert "local folder" in message
    assert "neither a folder here nor a hub id" in failure("not a hub id!")


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_truncated_weights(copy, keep):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "cannot be read" in failure(copy)


def test_missing_weights(copy):
    (copy / "model.safetensors").unlink()
    assert "no weights; expected model.safetensors" in failure(copy)


def test_a_missing_shard(copy):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors" in failure(copy)


def test_pickled_weights_are_not_read(copy):
    (copy / "model.safetensors").rename(copy / "elsewhere.txt")
    torch.save({}, copy / "pytorch_model.bin")
    assert "a pickle, which is not read" in failure(copy)


def test_a_checkpoint_without_some_weight_is_refused_rather_than_filled_with_random_numbers(copy):
    tensors = load_file(copy / "model.safetensors")
    lost = next(name for name in tensors if "layers.1.self_attn.out_proj.weight" in name)
    del tensors[lost]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    message = failure(copy)
    assert "layers.1.self_attn.out_proj.weight" in message
    assert "random numbers" in message


def test_a_weight_of_another_shape_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "fc1.weight" in name)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    failure(copy)


@pytest.mark.parametrize("dtype", ["float33", "int8", torch.int64, 16])
def test_a_wrong_dtype_lists_the_right_ones(opt_folder, dtype):
    message = failure(opt_folder, dtype=dtype)
    assert "float32" in message
    assert "bfloat16" in message


def test_a_wrong_device_and_a_wrong_attention(opt_folder):
    assert "is not a device" in failure(opt_folder, device="gpu")
    assert "'fast' or 'stock'" in failure(opt_folder, attention="flash")
    if not torch.cuda.is_available():
        assert "no CUDA" in failure(opt_folder, device="cuda")


def test_dtype_defaults_to_float32_on_a_cpu_and_the_checkpoints_own_elsewhere(tmp_path):
    BY_NAME["opt"].model().to(torch.bfloat16).save_pretrained(tmp_path)
    checkpoint = find_checkpoint(tmp_path)
    assert resolve_dtype(None, checkpoint, torch.device("cpu")) == torch.float32
    assert resolve_dtype(None, checkpoint, torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("torch.float16", checkpoint, torch.device("cpu")) == torch.float16


def test_code_in_a_repository_is_never_run(copy):
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (copy / "config.json").write_text(json.dumps(config))
    marker = copy / "was-run"
    (copy / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    load_model(copy)
    assert not marker.exists()


def test_a_folder_is_found_relative_to_here_and_under_home(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    assert find_checkpoint("copy").local
    monkeypatch.setenv("HOME", str(copy.parent))
    assert find_checkpoint("~/copy").model_type == "opt"


def test_an_unreadable_tokenizer_is_said(copy):
    (copy / "tokenizer.json").write_text("{")
    assert "tokenizer" in failure(copy)


def test_loading_leaves_no_trace_in_logging_or_temporary_folders(opt_folder, tmp_path, monkeypatch):
    from transformers.utils import logging

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(opt_folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert os.listdir(tmp_path) == []


def test_the_weight_digest_changes_with_any_tensor_and_only_then():
    model = BY_NAME["opt"].model()
    digest = weights_digest(model)
    assert weights_digest(BY_NAME["opt"].model()) == digest
    with torch.no_grad():
        model.model.decoder.layers[2].fc2.bias += 1e-3
    assert weights_digest(model) != digest

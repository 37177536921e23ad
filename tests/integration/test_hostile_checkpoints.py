"""Model folders that somebody else wrote, and wrote badly or with intent: a load or one sentence, and nothing runs."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import socket
import struct
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ablation_lens import load_model
from ablation_lens.errors import ModelError
from tests.tiny_models import BY_NAME, FAMILIES
from tests.tiny_tokenizers import word_tokenizer


@pytest.fixture(autouse=True)
def _nothing_waits_for_ever():
    def ring(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder_of(saved, tmp_path):
    """A model's folder to be changed, with a tokenizer where it reads text."""

    def copied(name):
        folder = shutil.copytree(saved(name), tmp_path / name)
        if BY_NAME[name].image is None:
            word_tokenizer().save_pretrained(folder)
        else:
            values = {"image_processor_type": "ViTImageProcessor", "size": {"height": 12, "width": 12}}
            (folder / "preprocessor_config.json").write_text(json.dumps(values))
        return folder

    return copied


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def attempt(folder):
    """The model, or the sentence that says why not; nothing else is possible."""
    try:
        return load_model(folder)
    except ModelError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 700
        return message


def refusal(folder):
    message = attempt(folder)
    assert isinstance(message, str)
    return message


# ---------------------------------------------------------------------- nothing runs


AUTO_MAP = {
    **dict.fromkeys(["AutoConfig", "AutoModelForCausalLM", "AutoModelForMaskedLM"], "evil.Evil"),
    **dict.fromkeys(["AutoModelForImageClassification", "AutoImageProcessor", "AutoProcessor"], "evil.Evil"),
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}


@pytest.fixture
def yes(monkeypatch):
    """Somebody, or a pipe, that answers every question by yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"config.json": {"model_type": "evil"}},
        {"tokenizer_config.json": {"tokenizer_class": "EvilTokenizer"}},
        {"preprocessor_config.json": {"image_processor_type": "EvilProcessor"}},
    ],
    ids=["native", "config", "tokenizer", "processor"],
)
@pytest.mark.parametrize("name", ["opt", "llama", "roberta", "vit"])
def test_code_in_a_folder_never_runs_whatever_is_answered(folder_of, yes, name, changes):
    folder = folder_of(name)
    marker = folder / "was-run"
    code = f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\ndef generate(*_, **__): pass\n"
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    for path in folder.glob("*config.json"):
        edit(path, auto_map=AUTO_MAP, trust_remote_code=True, **changes.get(path.name, {}))
    model = attempt(folder)
    assert not marker.exists()
    if not changes:
        assert not isinstance(model, str)
    if "config.json" in changes:
        assert "no code from a repository is run" in model


def test_a_tokenizers_file_sets_no_option_of_how_it_is_loaded(folder_of, tmp_path):
    """TransformerLens loads the tokenizer again, with what its file said."""
    folder = folder_of("llama")
    elsewhere = tmp_path / "elsewhere"
    word_tokenizer(before=(), after=("</s>",)).save_pretrained(elsewhere)
    expected = load_model(folder).to_tokens("the cat").tolist()
    edit(folder / "tokenizer_config.json", subfolder="../elsewhere", trust_remote_code=True, gguf_file="x")
    assert load_model(folder).to_tokens("the cat").tolist() == expected


# ---------------------------------------------------------------------- nothing hangs or bursts


def fifo(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def sock(path):
    os.chdir(path.parent)  # the path of a socket is short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(path.name)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(8 * 2**30)


def nested(path):
    path.write_text("[" * 100_000)


def half_a_pair(path):
    path.write_text('{"model_type": "opt", "tokenizer_class": "\\ud800", "do_resize": "\\ud800"}')


FILES = [
    ("opt", "config.json"),
    ("opt", "model.safetensors"),
    ("opt", "model.safetensors.index.json"),
    ("opt", "tokenizer.json"),
    ("opt", "tokenizer_config.json"),
    ("opt", "generation_config.json"),
    ("vit", "preprocessor_config.json"),
]


@pytest.mark.parametrize("kind", [fifo, endless, folder, sock, sparse, nested, half_a_pair])
@pytest.mark.parametrize(("name", "file"), FILES)
def test_another_kind_of_file_in_place_of_any_is_refused_at_once(folder_of, monkeypatch, name, file, kind):
    path = folder_of(name) / file
    if file.endswith("index.json"):
        (path.parent / "model.safetensors").unlink()
    path.unlink(missing_ok=True)
    monkeypatch.chdir(path.parent)
    kind(path)
    message = attempt(path.parent)
    if kind in (fifo, endless, folder, sock):
        assert file in message
        assert "a file was expected" in message
    elif kind is not half_a_pair or file == "config.json":
        # What is not needed is passed over, and text that nobody shows may hold anything.
        assert isinstance(message, str) or file == "generation_config.json"


def test_a_pipe_under_any_name_is_not_waited_for(folder_of):
    path = folder_of("gpt2") / "additional_chat_templates"
    path.mkdir()
    os.mkfifo(path / "x.jinja")
    assert "x.jinja is a pipe" in refusal(path.parent)


def test_shards_elsewhere_are_not_read(folder_of, saved, tmp_path):
    folder = folder_of("opt")
    (folder / "model.safetensors").rename(tmp_path / "shard.safetensors")
    names = load_file(tmp_path / "shard.safetensors")
    for shard in ("../shard.safetensors", str(tmp_path / "shard.safetensors")):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "a file elsewhere" in refusal(folder)
    shutil.copy(tmp_path / "shard.safetensors", folder / "shard.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "shard.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("opt", {"num_hidden_layers": 100_000}),
        ("mistral", {"num_hidden_layers": 10**9}),
        ("gpt2", {"n_layer": 9_000}),
        ("vit", {"num_hidden_layers": 9_000}),
        ("opt", {"hidden_size": 6 * 10**7, "word_embed_proj_dim": 6 * 10**7}),
        ("llama", {"intermediate_size": 10**12}),
        ("roberta", {"vocab_size": 10**9}),
        ("roberta", {"max_position_embeddings": 10**12}),
        ("mistral", {"head_dim": 10**9}),
        ("vit", {"image_size": 10**6}),
        ("vit", {"num_labels": 10**9}),
    ],
    ids=str,
)
def test_more_than_the_files_hold_is_refused_before_it_is_built(folder_of, name, changes):
    folder = folder_of(name)
    edit(folder / "config.json", **changes)
    message = refusal(folder)
    assert "asks for" in message or "expected a whole number" in message


@pytest.fixture
def hub(monkeypatch, tmp_path, saved):
    """A hub that is out of reach, but for what was downloaded before: `hub("opt")` is a folder there, and its id."""

    def downloaded(name):
        snapshot = tmp_path / f"models--someone--{name}" / "snapshots" / COMMIT
        shutil.copytree(saved(name), snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
        return snapshot, f"someone/{name}"

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return downloaded


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_what_was_downloaded_is_looked_at_as_folders_are(hub, saved):
    snapshot, name = hub("opt")
    record = load_model(name).record
    assert (record.name, record.revision) == (name, COMMIT)
    assert record.differences(load_model(saved("opt")).record) == []
    for number, expected in ((9_000, "asks for 9,000 blocks"), (10**6, "expected a whole number")):
        edit(snapshot / "config.json", num_hidden_layers=number)
        assert expected in refusal(name)


# ---------------------------------------------------------------------- no wrong numbers


@pytest.mark.parametrize("tiny", [*FAMILIES, BY_NAME["gpt2"], BY_NAME["llama"]], ids=lambda tiny: tiny.name)
def test_a_checkpoint_with_more_blocks_than_its_config_says_is_refused(folder_of, tiny):
    folder = folder_of(tiny.name)
    edit(folder / "config.json", **{"n_layer" if tiny.name == "gpt2" else "num_hidden_layers": 2})
    message = refusal(folder)
    assert "holds weights of blocks that its config does not mention" in message
    assert ".2." in message


def test_what_else_a_block_holds_must_be_read_too(folder_of):
    folder = folder_of("vit")
    edit(folder / "config.json", qkv_bias=False)
    assert "holds weights of blocks" in refusal(folder)


def test_weights_that_the_model_has_no_use_for_are_in_its_record(folder_of):
    folder = folder_of("roberta")
    assert load_model(folder).record.unread == ()
    others = {
        "roberta.pooler.dense.weight": torch.ones(36, 36),
        "classifier.2.weight": torch.ones(2, 36),
        "vision.encoder.layer.0.weight": torch.ones(3),
    }
    edit_weights(folder, lambda tensors: tensors.update(others))
    model = load_model(folder)
    assert model.record.unread == tuple(sorted(others))
    assert model.record.identity == load_model(folder).record.identity
    edit_weights(folder, lambda tensors: tensors.update({f"head.weight{i}": torch.ones(1) for i in range(100)}))
    unread = load_model(folder).record.unread
    assert len(unread) == 21
    assert unread[-1] == "and 83 more"


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": (1, 1, 33, 33), "transformer.h.1.attn.masked_bias": ()}),
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": (3,)}),
        ("roberta", {"roberta.embeddings.position_ids": (1, 20)}),
    ],
)
def test_buffers_that_older_checkpoints_keep_in_their_blocks_are_no_weights(folder_of, name, buffers):
    folder = folder_of(name)
    edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(shape) for key, shape in buffers.items()}))
    assert load_model(folder).record.unread == ()


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_weights_that_are_no_numbers_are_refused_by_name(folder_of, tiny, number):
    folder = folder_of(tiny.name)

    def spoil(tensors):
        name = next(name for name in tensors if ".1." in name and tensors[name].ndim == 2)
        tensors[name][3, 5] = number

    edit_weights(folder, spoil)
    message = refusal(folder)
    assert f"is {number} at [3, 5]" in message
    assert ".1." in message


def test_weights_whose_sum_is_beyond_their_dtype_are_finite(folder_of):
    folder = folder_of("opt")
    name = "model.decoder.layers.1.fc1.weight"
    edit_weights(folder, lambda tensors: tensors[name].fill_(3e38))
    load_model(folder)


# ---------------------------------------------------------------------- mutations


VALUES = [
    *(0, -1, 1, 2, 5, 7, 100_000, 10**9, 2**31, 2**63, 10**30, 1.5, -0.5, 1e300, True, False, None),
    *("", "x", "gelu", "none", "float16", "\x1b[31m", "x" * 10_000, [], [1], [0, 0], ["x"], {}, {"a": 1}, [None]),
]
FIELDS = [
    *("num_labels", "id2label", "rope_theta", "rope_scaling", "quantization_config", "auto_map", "layer_types"),
    *("attn_implementation", "dtype", "torch_dtype", "tie_word_embeddings", "is_decoder", "attention_bias"),
    *("head_dim", "num_experts", "text_config", "pruned_heads", "add_cross_attention", "torchscript"),
]
"""Fields that a config of a tiny model does not write down, and may."""


@pytest.mark.parametrize("name", ["opt", "mistral", "gpt2", "roberta", "vit"])
def test_any_value_in_a_config_is_a_load_or_one_sentence(folder_of, name):
    folder = folder_of(name)
    draw = random.Random(name)
    before = json.loads((folder / "config.json").read_text())
    fields = sorted({*before, *FIELDS})
    outcomes = set()
    for _ in range(60):
        changes = {draw.choice(fields): draw.choice(VALUES) for _ in range(draw.choice([1, 1, 1, 2]))}
        (folder / "config.json").write_text(json.dumps({**before, **changes}))
        outcomes.add(type(attempt(folder)))
    assert len(outcomes) == 2


@pytest.mark.parametrize("field", ["num_attention_heads", "num_hidden_layers"])
@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_no_heads_and_no_layers_are_said_as_they_are(folder_of, tiny, field, number):
    folder = folder_of(tiny.name)
    edit(folder / "config.json", **{field: number})
    assert f"says that {field} is {number}; expected a whole number" in refusal(folder)


def test_an_unknown_activation_is_answered_with_the_nearest(folder_of):
    folder = folder_of("vit")
    edit(folder / "config.json", hidden_act="gelu_nevv")
    assert "the nearest is 'gelu_new'" in refusal(folder)


def mutations(draw, content):
    """Damage as disks and hands do it: cut, flipped, doubled, and other values in valid JSON."""
    for _ in range(12):
        changed = bytearray(content)
        how = draw.choice(["cut", "flip", "flip", "double", "value"])
        place = draw.randrange(len(changed))
        if how == "cut":
            del changed[place:]
        elif how == "flip":
            changed[place] ^= 1 << draw.randrange(8)
        elif how == "double":
            changed[place:place] = changed[place : place + 20]
        else:
            values = json.loads(content)
            parent = draw.choice([part for part in (values, *values.values()) if isinstance(part, dict) and part])
            parent[draw.choice(list(parent))] = draw.choice(VALUES)
            changed = json.dumps(values).encode()
        yield bytes(changed)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("opt", "tokenizer.json"),
        ("roberta", "tokenizer.json"),
        ("llama", "tokenizer_config.json"),
        ("opt", "generation_config.json"),
        ("vit", "preprocessor_config.json"),
    ],
)
def test_a_damaged_file_beside_the_weights_is_a_load_or_one_sentence(folder_of, name, file):
    folder = folder_of(name)
    draw = random.Random(file)
    for content in mutations(draw, (folder / file).read_bytes()):
        (folder / file).write_bytes(content)
        attempt(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}]}},
    ],
    ids=["when it is read", "of its model", "when it is used"],
)
@pytest.mark.parametrize("name", ["opt", "roberta"])
def test_a_panic_in_a_tokenizer_is_one_sentence_too(folder_of, name, changes):
    """Rust's panics are no Exceptions in Python."""
    folder = folder_of(name)
    values = json.loads((folder / "tokenizer.json").read_text())
    for field, value in changes.items():
        values[field] = {**(values[field] or {}), **value}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert f"the tokenizer in {folder} cannot be read (PanicException" in refusal(folder)


def test_a_damaged_header_of_weights_is_a_load_or_one_sentence(folder_of):
    path = folder_of("opt") / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    draw = random.Random("header")
    for _ in range(40):
        changed = bytearray(content)
        if draw.random() < 0.7:
            changed[draw.randrange(8 + length)] ^= 1 << draw.randrange(8)
        else:
            entry = dict(header[draw.choice(sorted(header.keys() - {"__metadata__"}))])
            entry[draw.choice(list(entry))] = draw.choice(VALUES)
            text = json.dumps({**header, draw.choice(sorted(header)): entry}).encode()
            changed[: 8 + length] = struct.pack("<Q", len(text)) + text
        path.write_bytes(changed)
        attempt(path.parent)

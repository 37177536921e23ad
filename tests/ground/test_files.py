"""A file is read whole, as what it is, or not at all."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from ablation_lens import files as storage
from ablation_lens.errors import FileFormatError
from ablation_lens.files import load_tensors, save_tensors

TENSORS = {
    "a": torch.arange(6).reshape(2, 3),
    "b": torch.randn(5).double(),
    "c": torch.zeros(0),
    "d": torch.tensor(3.5),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, "example", {"text": "μ", "list": [1, 2.5, None]}, TENSORS)
    return path


def test_header_and_tensors_round_trip(path):
    header, tensors = load_tensors(path, "example")
    assert header == {"text": "μ", "list": [1, 2.5, None]}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="not a whole safetensors file"):
            load_tensors(path, "example")


def test_any_flipped_byte_is_noticed(path):
    whole = bytearray(path.read_bytes())
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        try:
            header, tensors = load_tensors(path, "example")
        except FileFormatError:
            continue
        # what is left is whitespace of safetensors' own header
        assert header == {"text": "μ", "list": [1, 2.5, None]}
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def rewrite(path, change):
    """Change our header in place of the file's metadata, leaving the tensors."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    outer = json.loads(raw[8 : 8 + length])
    ours = json.loads(outer["__metadata__"]["ablation_lens"])
    change(ours)
    outer["__metadata__"]["ablation_lens"] = json.dumps(ours)
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(version=2), "format version 2, this ablation-lens reads 1"),
        (lambda h: h.update(kind="ablation"), "holds ablation, but example was expected"),
        (lambda h: h["header"].update(text="m"), "changed or damaged after it was written"),
        (lambda h: h.pop("checksum"), "changed or damaged after it was written"),
        (lambda h: h.pop("version"), "header of .* is damaged"),
        (lambda h: h.update(header=[]), "header of .* is damaged"),
    ],
)
def test_another_version_kind_or_header_is_refused(path, change, message):
    rewrite(path, change)
    with pytest.raises(FileFormatError, match=message):
        load_tensors(path, "example")


def test_foreign_files_are_refused_and_never_executed(tmp_path):
    save_file(TENSORS, tmp_path / "plain.safetensors")
    with pytest.raises(FileFormatError, match="not written by ablation-lens"):
        load_tensors(tmp_path / "plain.safetensors", "example")

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'was-run')!r}, 'w').close()",))

    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        load_tensors(tmp_path / "evil.safetensors", "example")
    assert not (tmp_path / "was-run").exists()
    with pytest.raises(FileFormatError, match="there is no file"):
        load_tensors(tmp_path / "none.safetensors", "example")
    with pytest.raises(FileFormatError, match="there is no file"):
        load_tensors(tmp_path, "example")


def test_a_header_that_is_no_json_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_tensors(tmp_path / "x.safetensors", "example", {"nan": float("nan")}, TENSORS)
    assert not (tmp_path / "x.safetensors").exists()


def test_what_the_disk_answers_is_an_error_of_the_disk(tmp_path, monkeypatch):
    """safetensors wraps it into an error of its own."""
    monkeypatch.setattr(storage, "write_atomically", lambda path, write: write(path))
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        save_tensors(tmp_path / "nowhere" / "x.safetensors", "example", {}, TENSORS)

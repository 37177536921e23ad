"""A file is read whole, as what it is, or not at all."""

import contextlib
import errno
import itertools
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ablation_lens import files
from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.files import (
    CannotWrite,
    load_json,
    load_tensors,
    parse_json,
    require_target,
    require_target_folder,
    save_json,
    save_tensors,
    write_atomically,
    write_beside,
    write_result,
    write_text,
    writing,
)

TENSORS = {
    "a": torch.arange(6).reshape(2, 3),
    "b": torch.randn(5).double(),
    "c": torch.zeros(0),
    "d": torch.tensor(3.5),
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


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


def test_older_versions_of_a_kind_are_read_and_newer_ones_refused(tmp_path):
    for version in (1, 2, 3):
        save_tensors(tmp_path / f"{version}", "example", {}, TENSORS, version=version)
    assert load_tensors(tmp_path / "1", "example", newest=2)[0] == load_tensors(tmp_path / "2", "example", newest=2)[0]
    with pytest.raises(FileFormatError, match="format version 3, this ablation-lens reads 1 to 2"):
        load_tensors(tmp_path / "3", "example", newest=2)


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


def others(folder):
    """What is not a file: each with the word for it."""
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder / "loop")
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(folder):  # the name of a socket must be short
        listener.bind("socket")
    listener.close()
    words = {"pipe": "is a pipe", "zero": "is a device", "socket": "is a socket", ".": "is a folder"}
    return words | {"loop": "cannot be read"}


def test_what_is_not_a_file_is_refused_before_it_is_opened(tmp_path):
    """Opening a pipe would already wait for ever."""
    for name, told in others(tmp_path).items():
        for read in (load_tensors, load_json):
            with pytest.raises(FileFormatError, match=told):
                read(tmp_path / name, "example")


def test_a_file_that_may_not_be_read_is_not_said_to_be_missing(path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # not by its mode, as root may read everything
    with pytest.raises(FileFormatError, match=r"cannot be read \(Permission denied\)"):
        load_tensors(path, "example")


def test_sizes_are_looked_at_before_anything_is_read(tmp_path):
    sparse = tmp_path / "sparse"
    for length in (0, 2**33):  # what the first eight bytes say of the header
        with sparse.open("wb") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(2**33)
        with pytest.raises(FileFormatError, match="not a whole safetensors file"):
            load_tensors(sparse, "example")
        with pytest.raises(FileFormatError, match=r"8,589,934,592 bytes; at most 1,000 were expected"):
            load_tensors(sparse, "example", most=1000)
        with pytest.raises(FileFormatError, match="at most 16,777,216 were expected"):
            load_json(sparse, "example")


def test_a_header_that_is_no_json_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_tensors(tmp_path / "x.safetensors", "example", {"nan": float("nan")}, TENSORS)
    assert not (tmp_path / "x.safetensors").exists()


def test_what_the_disk_answers_is_an_error_of_the_disk(tmp_path, monkeypatch):
    """safetensors wraps it into an error of its own."""
    monkeypatch.setattr(files, "write_atomically", lambda path, write: write(path))
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        save_tensors(tmp_path / "nowhere" / "x.safetensors", "example", {}, TENSORS)


# ---------------------------------------------------------------------- JSON


@given(json_values)
def test_what_python_writes_as_json_is_read(values):
    assert parse_json(json.dumps(values)) == values


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[-Infinity]", "1e999", '"\\ud800"', '{"\\udfff": 1}', "[" * 10**5, "9" * 10**4]
)
def test_what_json_does_not_know_is_one_kind_of_error(text):
    with pytest.raises(ValueError):  # noqa: PT011  (any)
        parse_json(text)


def test_json_files_are_of_a_kind_and_a_version_and_notice_every_change(tmp_path):
    path = tmp_path / "x.json"
    save_json(path, "example", {"text": "μ", "list": [1, 2.5, None]})
    assert load_json(path, "example") == {"text": "μ", "list": [1, 2.5, None]}
    whole = path.read_bytes()
    for place, bit in itertools.product(range(len(whole)), (0x01, 0x10)):
        changed = bytearray(whole)
        changed[place] ^= bit
        path.write_bytes(changed)
        try:
            values = load_json(path, "example")
        except FileFormatError:
            continue
        # Either a space became another one, or our part is gone: then it is a first version, for the caller to check.
        assert values == {"text": "μ", "list": [1, 2.5, None]} or "content" in values
    save_json(path, "example", {}, version=3)
    with pytest.raises(FileFormatError, match="format version 3, this ablation-lens reads 1 to 2"):
        load_json(path, "example")
    with pytest.raises(FileFormatError, match="holds example, but group was expected"):
        load_json(path, "group")
    path.write_text('{"as": "before"}')
    assert load_json(path, "example") == {"as": "before"}


# ---------------------------------------------------------------------- whole or not at all


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "result"
    target.write_text("old")
    write_atomically(target, lambda path: path.write_text("new"))
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["result"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("of another folder")
    write_atomically(tmp_path / "x", lambda path: (tmp_path / "name").write_text(path.name))
    name = (tmp_path / "name").read_text()
    ours, young, link = (tmp_path / name.replace(name[-6:-4], digits) for digits in ("00", "01", "02"))
    theirs = [tmp_path / other for other in (".tmp", ".notes.tmp", f"{name}.gz", ".x.safetensors.abc.tmp")]
    for path in (ours, young, *theirs):
        path.write_text("half")
    link.symlink_to(kept)
    for path in (ours, link, kept, *theirs):
        os.utime(path, (0, 0), follow_symlinks=False)
    files.sweep(tmp_path, older_than=3600)
    assert not ours.exists()
    assert all(path.exists() for path in (young, link, kept, *theirs))
    files.sweep(tmp_path / "nowhere", older_than=0)


def test_a_failing_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "result"
    target.write_text("old")

    def fill_the_disk(path):
        path.write_text("half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, fill_the_disk)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["result"]


def test_a_killed_write_never_shows_half_a_file(tmp_path):
    target = tmp_path / "result"
    target.write_text("old")
    program = f"""
import os, signal
from ablation_lens.files import write_atomically
def write(path):
    path.write_text("half of")
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically({str(target)!r}, write)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert target.read_text() == "old"


def test_a_file_to_write_is_checked_before_the_work(tmp_path):
    read = tmp_path / "stats.safetensors"
    read.write_text("x")
    (tmp_path / "link").symlink_to(read)
    require_target(tmp_path / "new.csv", read, None)
    require_target(read)  # written again, as before
    for path, message in (
        (read, "is what is read"),
        (tmp_path / "link", "is what is read"),
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere" / "new.csv", "there is no folder"),
    ):
        with pytest.raises(AblationLensError, match=message):
            require_target(path, read)


def test_nothing_is_replaced_in_a_folder_that_is_read(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_text("weights")
    require_target(model / "new.safetensors", model)
    require_target(tmp_path / "elsewhere.safetensors", model)
    (tmp_path / "link").symlink_to(model)
    for path in (model / "model.safetensors", tmp_path / "link" / "model.safetensors"):
        with pytest.raises(AblationLensError, match=r"is a file of .*model, which is read; give a file elsewhere"):
            require_target(path, model)


def test_what_is_not_a_file_to_write_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to("round")
    for name, message in (
        ("pipe", "is a pipe; give a file"),
        ("file/new", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("round", "Too many levels of symbolic links"),
    ):
        with pytest.raises(AblationLensError, match=message):
            require_target(tmp_path / name)
    with pytest.raises(AblationLensError, match="is a device; give a file"):
        require_target(Path("/dev/null"))
    for name in ("file", "file/new"):
        with pytest.raises(AblationLensError, match="file is a file; give a folder"):
            require_target_folder(tmp_path / name)
    require_target_folder(tmp_path / "made" / "later")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe", "round"]


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of its own; skips where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(("options", "reason"), [("ro", "Read-only file system"), ("size=4k", "No space left")])
def test_a_disk_that_takes_nothing_is_noticed_before_the_work(tmp_path, options, reason):
    with mounted(tmp_path / "disk", options):
        with contextlib.suppress(OSError):
            (tmp_path / "disk" / "full").write_bytes(bytes(4096))
        for require, name in ((require_target, "new"), (require_target_folder, "new/folder")):
            with pytest.raises(AblationLensError, match=reason):
                require(tmp_path / "disk" / name)
        assert len(list((tmp_path / "disk").iterdir())) == (options != "ro")


# ---------------------------------------------------------------------- results of long work


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where the system's temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def save(path):
    write_text(path, "a result")


def test_a_result_whose_folder_is_gone_is_kept_and_the_error_says_where(tmp_path, temporary):
    with pytest.raises(CannotWrite, match=r"cannot write to .*No such file.* is in .*temporary/ablation-lens-") as told:
        write_result(tmp_path / "gone" / "r.txt", save)
    (path,) = temporary.glob("*/*")
    assert path.name == "r.txt"
    assert path.read_text() == "a result"
    assert str(path) in str(told.value)


def test_a_result_whose_name_is_taken_meanwhile_is_kept_beside_it(tmp_path, temporary):
    (tmp_path / "r.txt").mkdir()
    with pytest.raises(CannotWrite, match=r"is in .*r\.rescued\.txt instead"):
        write_result(tmp_path / "r.txt", save)
    assert (tmp_path / "r.rescued.txt").read_text() == "a result"
    assert list(temporary.iterdir()) == []


def test_names_beside_replace_nothing(tmp_path, temporary):
    (tmp_path / "r.partial.txt").write_text("an earlier one")
    found = [write_beside(tmp_path / "r.txt", "partial", save).name for _ in range(2)]
    assert found == ["r.partial-2.txt", "r.partial-3.txt"]
    assert (tmp_path / "r.partial.txt").read_text() == "an earlier one"


def test_what_fits_nowhere_is_said_to_be_lost(tmp_path, temporary):
    def refuse(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CannotWrite, match=r"No space left on device.* is lost"):
        write_result(tmp_path / "r.txt", refuse)
    assert list(tmp_path.glob("*.txt")) == [tmp_path / "r.txt"]  # what `refuse` itself left, not atomically
    assert list(temporary.iterdir()) == []


def test_ctrl_c_waits_until_a_result_is_written(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def pressed(path):
        signal.raise_signal(signal.SIGINT)
        save(path)

    try:
        write_result(tmp_path / "r.txt", pressed)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "r.txt").read_text() == "a result"


def test_a_full_disk_is_one_sentence_with_the_writers_own_advice(tmp_path):
    for advice, said in (((), "make room, or give another place"), (("go on later.",), "go on later")):
        told = rf"cannot write to .* \(No space left on device\); {said}\."
        with pytest.raises(CannotWrite, match=told), writing(tmp_path, *advice):
            raise OSError(errno.ENOSPC, "No space left on device")

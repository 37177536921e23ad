import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from ablation_lens.errors import AblationLensError, FileFormatError, MismatchError
from ablation_lens.files import require_target, write_atomically
from ablation_lens.records import ModelRecord, Versions, record_of

RECORD = ModelRecord(
    name="facebook/opt-1.3b",
    revision="abc",
    architecture="OPTForCausalLM",
    dtype="float32",
    processing="none",
    weights="0123",
    n_layers=2,
    n_heads=3,
    d_head=4,
    d_model=12,
    d_mlp=16,
    n_ctx=32,
)


def test_records_survive_json():
    assert ModelRecord.from_dict(RECORD.to_dict()) == RECORD
    assert Versions.from_dict(Versions.current().to_dict()) == Versions.current()


@pytest.mark.parametrize("spoil", [lambda d: d.pop("dtype"), lambda d: d.update(extra=1)], ids=["missing", "unknown"])
def test_a_record_with_other_fields_is_a_format_error(spoil):
    values = RECORD.to_dict()
    spoil(values)
    with pytest.raises(FileFormatError, match="ModelRecord needs the fields"):
        ModelRecord.from_dict(values)
    with pytest.raises(FileFormatError):
        ModelRecord.from_dict(["not", "a", "mapping"])


def test_the_same_weights_under_another_path_are_the_same_model():
    assert RECORD.differences(replace(RECORD, name="/data/opt", revision=None)) == []
    retrained = replace(RECORD, weights="4567")
    with pytest.raises(MismatchError, match="weights: 0123 against 4567"):
        RECORD.require_same(retrained, "cannot merge statistics")
    unknown = replace(RECORD, weights=None, name="mine")
    assert RECORD.differences(unknown) == ["name: facebook/opt-1.3b against mine", "revision: abc against abc"][:1]


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"processing": "unknown"}, {"n_heads": 6}])
def test_dtype_processing_and_shape_are_compared(change):
    (difference,) = RECORD.differences(replace(RECORD, **change))
    assert difference.startswith(next(iter(change)))


def test_a_users_own_model_has_a_record_of_unknown_processing():
    class Config:
        n_layers, n_heads, d_head, d_model, d_mlp, n_ctx, dtype = 2, 3, 4, 12, None, 32, "torch.float32"

    class Mine:
        cfg = Config()

    record = record_of(Mine())
    assert (record.name, record.processing, record.dtype, record.d_mlp) == ("Mine", "unknown", "float32", 0)


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

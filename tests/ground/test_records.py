from dataclasses import replace

import pytest

from ablation_lens.errors import FileFormatError, MismatchError
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

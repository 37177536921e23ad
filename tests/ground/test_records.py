import json
from dataclasses import dataclass, replace

import pytest

from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.records import ModelRecord, Record, Versions, record_of

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


@dataclass(frozen=True)
class Inner(Record):
    number: int | float

    def __post_init__(self):
        super().__post_init__()
        if self.number < 0:
            raise ValueError(f"number is {self.number}")


@dataclass(frozen=True)
class Outer(Record):
    inner: Inner
    pairs: tuple[tuple[str, int], ...]
    named: dict[str, float]


OUTER = Outer(Inner(0.5), (("a", 1), ("b", 2)), {"x": 1.5})


def test_records_survive_json():
    assert Outer.from_dict(json.loads(json.dumps(OUTER.to_dict()))) == OUTER
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


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        (RECORD, "name", ["a", "list"]),
        (RECORD, "revision", 5),
        (RECORD, "n_heads", True),
        (RECORD, "n_heads", 2.0),
        (RECORD, "n_heads", None),
        (RECORD, "n_heads", {"a": {"nested": ["value"]}}),
        (OUTER, "inner", {"number": "1"}),
        (OUTER, "inner", []),
        (OUTER, "pairs", [["a", 1], ["b"]]),
        (OUTER, "pairs", "ab"),
        (OUTER, "named", {"a": "b"}),
    ],
)
def test_a_value_of_another_type_is_a_format_error_that_names_the_field(record, field, value):
    with pytest.raises(FileFormatError, match=f"{field} is|number is|Inner needs|a {type(record).__name__}"):
        type(record).from_dict({**record.to_dict(), field: value})


def test_a_value_that_is_not_possible_is_a_format_error():
    with pytest.raises(FileFormatError, match=r"an? Inner is not possible: number is -1"):
        Inner.from_dict({"number": -1})


def test_a_name_that_is_not_utf_8_can_be_written():
    assert replace(RECORD, name="folder \udcff").name == "folder ?"


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

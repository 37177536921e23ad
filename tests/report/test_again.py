"""The settings that a report gives are those of the study, whatever is in them."""

import pytest

from ablation_lens.report.again import command_for, toml_of
from ablation_lens.study.paper import PRESETS
from ablation_lens.study.records import StudyRecord
from ablation_lens.study.study import Study

HOSTILE = 'm\n"\x1b[31m\\u0041\x7f\u202e😀\u2028]'


def record(study):
    return StudyRecord.from_dict(study.to_dict())


@pytest.mark.parametrize(
    "study",
    [
        *map(Study.preset, PRESETS),
        Study(models=["tiny-vit"]),
        Study(models=[HOSTILE], corpora={"text": HOSTILE}, dtype={HOSTILE: "float16"}, labels=HOSTILE),
        Study(models=["a"], metrics=["kl", "rank"], site="mlp", context=99),
        Study(models=["a"], fractions=[1e-05, 1], seeds=[-(2**62)], include_bos=False, shared_input=True, bins=64),
    ],
    ids=[*PRESETS, "defaults", "hostile", "metrics", "all kinds"],
)
def test_settings_are_read_back_as_they_were(study, tmp_path):
    text = toml_of(record(study))
    assert text.replace("\n", "").isprintable()
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    assert Study.from_toml(tmp_path / "study.toml") == study


def test_a_preset_is_given_by_its_name_and_a_changed_one_by_its_settings():
    assert "--preset paper " in command_for(record(Study.preset("paper")))
    assert " study.toml " in command_for(record(Study.preset("paper", seeds=[1])))


def test_a_metric_that_is_a_function_is_named_and_not_made_up(tmp_path):
    text = toml_of(record(Study(models=["a"], metrics={"kl": "kl", "mine": lambda logits, batch: logits[:, 0, 0]})))
    assert 'metrics = ["kl"]' in text
    assert "# mine is a function" in text


def test_what_was_given_in_python_is_described_and_no_command_is_made_up():
    held = StudyRecord(("mine",), ("zero",), given={f"model {HOSTILE}": "HookedTransformer, checksum 3f"})
    assert command_for(held) is None
    first, *rest = toml_of(held).splitlines()
    assert first.startswith("# model m")
    assert first.endswith(", given in Python: HookedTransformer, checksum 3f")
    assert rest == ['models = ["mine"]', 'methods = ["zero"]']


def test_settings_of_before_there_were_more_are_read_as_far_as_they_go(tmp_path):
    text = toml_of(StudyRecord(("tiny-opt",), ("zero",)))
    assert text.splitlines() == ['models = ["tiny-opt"]', 'methods = ["zero"]']

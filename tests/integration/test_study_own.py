"""Studies of what people hold: models that are loaded already, batches and corpora of their own."""

import json
import subprocess
import sys

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import CorpusError, MismatchError, ModelError
from ablation_lens.study.results import Results
from ablation_lens.study.study import Study
from tests.studies import files, rows

# Said once of every model that `load_model` has not made.
pytestmark = pytest.mark.filterwarnings("ignore:it is not known how this model's weights were processed")

SETTINGS = {"methods": ["zero", "peak"], "fractions": [0.5], "seeds": [1]}
TEXTS = [f"the cat number {number} sat on the mat and then the dog number {number} ran home" for number in range(24)]


def bare(folder, change=0.0):
    """A hooked model as somebody else makes one: no record, no Hugging Face config, no tokenizer."""
    model = al.load_model(folder, device="cpu")
    for name in ("record", "hf_config"):
        delattr(model, name)
    model.tokenizer = model.hf_tokenizer = None
    with torch.no_grad():
        next(iter(model.parameters())).add_(change)
    return model


def own_batches(seed=0):
    draw = torch.Generator().manual_seed(seed)
    collect, evaluate = (torch.randint(3, 61, (4, 10), generator=draw) for _ in range(2))
    return {"collect": collect, "evaluate": {"input_ids": evaluate, "labels": evaluate}}


@pytest.fixture(scope="module")
def folder(saved):
    return saved("opt")


@pytest.fixture
def model(folder):
    return bare(folder)


def study(models, **changes):
    return Study(models=models, **{**SETTINGS, "batches": own_batches(), **changes})


def test_a_model_without_name_record_and_tokenizer_is_studied_on_its_owners_batches(model, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = study([model]).run(tmp_path / "run", progress=False)
    assert not results.failed
    assert results.frame["method"].tolist() == ["none", "zero", "peak"]
    assert results.frame["corpus"].unique().tolist() == ["own batches"]
    baseline = al.evaluate(model, own_batches()["evaluate"])
    assert results.frame["cross_entropy"].iloc[0] == pytest.approx(baseline.cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not hasattr(model, "record")


def test_the_record_says_what_was_given(model, tmp_path):
    run = tmp_path / "run"
    results = study([model]).run(run, progress=False)
    (record,) = results.folder.studies()
    (name,) = record.models
    assert al.record_of(model).checksum in record.given[f"model {name}"]
    assert set(record.given) == {f"model {name}", "batches to collect", "batches to evaluate"}
    (key,) = results.folder.names("groups")
    group = results.folder.group(key)
    assert (group.model.name, group.model.checksum) == (name, al.record_of(model).checksum)
    assert group.collect.digest.startswith(group.facts["collect"])
    with pytest.raises(MismatchError, match="no settings file can name"):
        record.require_named()


def test_what_was_measured_is_found_again_and_other_weights_or_batches_are_measured_anew(model, folder, tmp_path):
    run = tmp_path / "run"
    first = study([model]).run(run, progress=False)
    there = files(run / "cells")
    again = study([bare(folder)]).run(run, progress=False)
    assert files(run / "cells") == there
    assert rows(again) == rows(first)
    study([bare(folder, change=0.5)]).run(run, progress=False)
    study([model], batches=own_batches(seed=1)).run(run, progress=False)
    assert len(files(run / "cells")) == 3 * len(there)


SCRIPT = """
import sys
from tests.integration.test_study_own import bare, study
results = study([bare(sys.argv[1])]).run(sys.argv[2], progress=False)
print(len(results.frame))
"""


def test_a_new_process_goes_on_with_the_same_object(model, folder, tmp_path):
    run = tmp_path / "run"
    study([model]).run(run, progress=False)
    there = files(run / "cells")
    done = subprocess.run([sys.executable, "-c", SCRIPT, folder, run], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "3"
    assert files(run / "cells") == there


def test_objects_and_names_stand_side_by_side(model, folder, tmp_path):
    mixed = Study(
        models=[model, str(folder), "tiny-vit"],
        batches={model: own_batches(), str(folder): own_batches()},
        collect_images=32,
        evaluate_images=32,
        **SETTINGS,
    )
    results = mixed.run(tmp_path / "run", progress=False)
    assert not results.failed
    assert results.frame["corpus"].tolist() == ["own batches"] * 6 + ["digits"] * 3
    assert results.frame["model"].nunique() == 3
    scores = results.frame["cross_entropy"].tolist()
    assert scores[:3] == scores[3:6]  # the same weights


def test_two_models_of_one_name_are_told_apart(model, folder, tmp_path):
    other = bare(folder, change=0.5)
    assert al.record_of(model).name == al.record_of(other).name
    results = study([model, other]).run(tmp_path / "run", progress=False)
    assert results.frame["model"].nunique() == 2
    assert len(results.frame) == 6
    # Alone, or beside a namesake, it is the same model.
    assert set(study([other]).run(tmp_path / "alone", progress=False).frame.index) < set(results.frame.index)


def test_a_loaded_model_and_its_name_share_their_cells(tmp_path):
    settings = {**SETTINGS, "collect_images": 32, "evaluate_images": 32, "device": "cpu"}
    named = Study(models=["tiny-vit"], **settings).run(tmp_path / "run", progress=False)
    given = Study(models=[al.load_model("tiny-vit", device="cpu")], **settings).run(tmp_path / "run", progress=False)
    assert rows(given) == rows(named)


def test_texts_of_ones_own_are_a_corpus_of_a_study(tmp_path):
    settings = {**SETTINGS, "methods": ["zero"], "device": "cpu"}
    results = Study(models=["tiny-opt"], corpora={"text": TEXTS}, **settings).run(tmp_path / "run", progress=False)
    assert results.frame["corpus"].unique().tolist() == ["own texts"]
    (record,) = results.folder.studies()
    assert record.given == {"text corpus": "24 texts"}
    changed = [text.replace("cat", "cow") for text in TEXTS]
    Study(models=["tiny-opt"], corpora={"text": changed}, **settings).run(tmp_path / "run", progress=False)
    assert len(files(tmp_path / "run" / "cells")) == 4


def test_an_iterator_of_batches_serves_every_model(model, folder, tmp_path):
    batches = {side: iter([batch]) for side, batch in own_batches().items()}
    results = study([model, bare(folder, change=0.5)], batches=batches).run(tmp_path / "run", progress=False)
    assert len(results.frame) == 6


def test_rows_that_stand_on_both_sides_are_refused(model, tmp_path):
    same = {side: torch.arange(5, 15)[None] for side in ("collect", "evaluate")}
    with pytest.raises(MismatchError, match="1 of 1 rows"):
        study([model], batches=same).run(tmp_path / "run", progress=False)


def test_resampling_reads_own_models_without_a_tokenizer(model, tmp_path):
    results = study([model], methods=["resample-tokens"]).run(tmp_path / "run", progress=False)
    assert results.frame["method"].tolist() == ["none", "resample-tokens"]


def test_results_are_read_without_the_objects(model, tmp_path):
    results = study([model]).run(tmp_path / "run", progress=False)
    assert rows(Results.load(tmp_path / "run")) == rows(results)
    for path in (tmp_path / "run" / "studies").iterdir():
        json.loads(path.read_text())


class Wrapper:
    """Somebody's own: it has hooks, and weights that nobody can find."""

    def __init__(self, model):
        self.cfg, self.run_with_hooks = model.cfg, model.run_with_hooks


MISTAKES = {
    "a model that is none": (lambda model: {"models": [5]}, "model 5 is not possible"),
    "batches that are no table": (lambda model: {"batches": [1]}, "batches is a list"),
    "one side only": (lambda model: {"batches": {"collect": [[5, 6]]}}, "need 'collect' and 'evaluate', got 'collect'"),
    "batches of another model": (lambda model: {"batches": {"tiny-opt": own_batches()}}, "given for tiny-opt"),
    "a size beside batches": (lambda model: {"evaluate_tokens": 100}, "evaluate_tokens=100"),
    "a corpus of numbers": (lambda model: {"corpora": {"text": 5}}, "corpora="),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_what_a_study_is_given_is_one_sentence(model, mistake):
    changes, told = MISTAKES[mistake]
    with pytest.raises(MismatchError, match=told):
        study(**{"models": [model], **changes(model)})


def test_mistakes_that_show_in_a_run_are_one_sentence(model, tmp_path):
    with pytest.raises(ModelError, match="torch module"):
        study([Wrapper(model)]).run(tmp_path / "wrapper", progress=False)
    with pytest.raises(ModelError, match="no tokenizer"):
        Study(models=[model], **SETTINGS).run(tmp_path / "texts", progress=False)
    with pytest.raises(CorpusError, match="empty list"):
        Study(models=["tiny-opt"], corpora={"text": []}, **SETTINGS).run(tmp_path / "empty", progress=False)


def test_a_study_is_shown_by_the_names_of_what_it_was_given(model):
    shown = repr(study([model], corpora={"text": TEXTS}))
    assert al.record_of(model).name in shown
    assert "'own texts'" in shown
    assert "\n" not in shown


def test_a_preset_leaves_its_sizes_out_where_batches_are_given(model):
    assert Study.preset("quick", models=[model], batches=own_batches()).collect_tokens is None

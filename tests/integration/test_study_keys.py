"""What a cell depends on is in its key: change one thing, and it is another cell; change another, and it is not."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ablation_lens.errors import MismatchError
from ablation_lens.neurons import centers
from ablation_lens.progress import CellProgress
from ablation_lens.records import Versions
from ablation_lens.runs.folder import key_of
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.model_run import load_model_runs
from ablation_lens.study.status import status_of
from ablation_lens.study.study import Study
from tests.tiny_tokenizers import word_tokenizer

TEXT = "the cat sat on a mat and a dog ran to it\n\nthen we saw one of them so we sat\n\n" * 3
METHODS = ("zero", "peak", "resample-tokens", "resample-generated")


@pytest.fixture(scope="module")
def originals(saved, tmp_path_factory):
    """A masked model, the model that writes for it, an image model, and what they read."""
    place = tmp_path_factory.mktemp("originals")
    for name, family in (("model", "roberta"), ("generator", "opt"), ("vit", "vit")):
        shutil.copytree(saved(family), place / name)
        if family == "vit":
            from transformers import ViTImageProcessorPil

            ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(place / name)
        else:
            word_tokenizer().save_pretrained(place / name)
    (place / "texts").mkdir()
    for number in range(6):
        (place / "texts" / f"{number}.txt").write_text(
            TEXT.replace("cat", ("dog", "mat", "home", "one", "so", "we")[number])
        )
    (place / "images").mkdir()
    draw = np.random.default_rng(0)
    rows = ["file,label"]
    for number in range(12):
        Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(place / "images" / f"{number}.png")
        rows.append(f"{number}.png,{number % 7}")
    (place / "labels.csv").write_text("\n".join(rows))
    return place


@pytest.fixture
def place(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "place")


def model_run(place, model, **changes):
    settings = {"methods": METHODS, "fractions": [0.5], "seeds": [1], "context": 14, "device": "cpu"}
    settings |= {"corpora": {"text": str(place / "texts"), "image": str(place / "images")}}
    settings |= {"generator": str(place / "generator"), "labels": str(place / "labels.csv")}
    if model == "vit":
        settings["methods"] = ("zero", "resample-pixels")
    study = Study(models=[str(place / model)], **{**settings, **changes})
    (run,) = load_model_runs(study, study.models[0], StudyFolder.create(place / "run"))
    return run


def keys(place, model, **changes):
    """Method → key."""
    run = model_run(place, model, **changes)
    facts = {cell.facts["method"]: run.cell_facts(cell, CellProgress()) for cell in run.cells}
    return {method: key_of(values) for method, values in facts.items()}


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    change(tensors[name].view(-1))
    save_file(tensors, path, {"format": "pt"})


def retrain(folder):
    edit_weights(folder, lambda weights: weights.mul_(1.5))


def swap_two_words(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"cat"', '"CAT"').replace('"go"', '"cat"').replace('"CAT"', '"go"'))


def rewrite(place):
    for path in (place / "texts").iterdir():
        path.write_text(path.read_text().replace("mat", "home"))


def repaint(place):
    for path in (place / "images").iterdir():
        image = np.asarray(Image.open(path)).copy()
        image[0, 0] ^= 255
        Image.fromarray(image).save(path)


def nudge_one_weight(folder):
    def change(weights):
        weights[1] *= 1.001  # not one of those that the digest of a checkpoint looks at

    edit_weights(folder, change)


CHANGES = {
    "weights": ("model", lambda place: retrain(place / "model"), {}),
    "one weight": ("model", lambda place: nudge_one_weight(place / "model"), {}),
    "config": ("model", lambda place: edit(place / "model" / "config.json", layer_norm_eps=0.1), {}),
    "tokenizer": ("model", lambda place: swap_two_words(place / "model"), {}),
    # No document holds it, so that the documents' ids are the same; random tokens are others.
    "special token": (
        "model",
        lambda place: edit(place / "model" / "tokenizer_config.json", additional_special_tokens=["home"]),
        {},
    ),
    "texts": ("model", rewrite, {}),
    "context that no document reaches": ("model", None, {"context": 15}),
    "mask_seed": ("model", None, {"mask_seed": 7}),
    "dtype": ("model", None, {"dtype": "bfloat16"}),
    "image processor": (
        "vit",
        lambda place: edit(place / "vit" / "preprocessor_config.json", image_mean=[0.1] * 3),
        {},
    ),
    "labels": (
        "vit",
        lambda place: (place / "labels.csv").write_text((place / "labels.csv").read_text()[:-1] + "6"),
        {},
    ),
    "images": ("vit", repaint, {}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_input_of_a_cell_is_another_cell(place, what):
    model, change, settings = CHANGES[what]
    before = keys(place, model)
    if change is not None:
        change(place)
    after = keys(place, model, **settings)
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda place: retrain(place / "generator"),
        lambda place: swap_two_words(place / "generator"),
        lambda place: edit(place / "generator" / "config.json", activation_function="gelu"),
    ],
    ids=["weights", "tokenizer", "config"],
)
def test_another_generator_is_another_cell_where_its_text_is_read_and_nowhere_else(place, change):
    before = keys(place, "model")
    change(place)
    after = keys(place, "model")
    assert {method for method in before if before[method] != after[method]} == {"resample-generated"}


def test_what_changes_no_score_changes_no_key(place, monkeypatch, two_threads):
    before = keys(place, "model"), keys(place, "vit")
    edit(place / "model" / "config.json", transformers_version="0.0", architectures=["RobertaForMaskedLM"])
    moved = place.parent / "moved"
    shutil.copytree(place, moved)
    current = Versions.current()
    monkeypatch.setattr(Versions, "current", lambda: dataclasses.replace(current, python="3.99"))
    torch.set_num_threads(1)
    assert (keys(moved, "vit"), before[1]) == (before[1], keys(place, "vit", methods=["resample-pixels", "zero"]))
    # The generator's place was in the group before there were digests of it.
    assert keys(moved, "model", generator=str(place / "generator")) == before[0]


def test_special_positions_are_a_fact_where_statistics_leave_them_out(place):
    for include_bos, facts in ((True, 1), (False, 2)):
        run = model_run(place, "model", include_bos=include_bos)
        items = tuple(dataclasses.replace(item, special=()) for item in run.collected.items)
        other = dataclasses.replace(run, collected=dataclasses.replace(run.collected, items=items))
        assert other.collected.digest == run.collected.digest
        assert len({run.group, other.group}) == facts


def test_exact_zeros_are_counted_in_groups_of_mlps_only(place):
    assert model_run(place, "vit", site="mlp").facts["zeros"] == "counted"
    assert "zeros" not in model_run(place, "vit").facts


def test_a_center_of_ones_own_is_keyed_by_the_values_it_gives(place, registry):
    factor = [1.0]

    @registry.register("mine")
    def mine(statistics):
        return factor[0] * statistics.mean

    first = keys(place, "vit", methods=["mine", "zero"])
    registry.register("mine")(mine)
    assert keys(place, "vit", methods=["mine", "zero"]) == first
    factor[0] = 2.0
    second = keys(place, "vit", methods=["mine", "zero"])
    assert {method for method in first if first[method] != second[method]} == {"mine"}


def test_a_center_of_this_package_is_keyed_by_its_version(place, monkeypatch):
    before = keys(place, "vit", methods=["peak", "zero"])
    monkeypatch.setitem(centers._ABOUT, "peak", dataclasses.replace(centers.about("peak"), version=2))
    after = keys(place, "vit", methods=["peak", "zero"])
    assert {method for method in before if before[method] != after[method]} == {"peak"}
    assert SimpleNamespace(**before).zero == after["zero"]


def test_a_study_of_both_counts_runs_a_model_once_and_fills_the_cells_of_each(tmp_path, monkeypatch):
    import ablation_lens.study.model_run as model_run

    evaluated, evaluate_each = [], model_run.evaluate_each

    def counting(model, plans, *args, **options):
        evaluated.append(len(plans))
        return evaluate_each(model, plans, *args, **options)

    monkeypatch.setattr(model_run, "evaluate_each", counting)
    settings = {
        "models": ["tiny-roberta"],
        "methods": ["zero", "resample-tokens"],
        "fractions": [0.5],
        "seeds": [1],
        "collect_tokens": 300,
        "evaluate_tokens": 300,
    }
    both = Study(**settings, count=["all", "skip-common"])
    together = both.run(tmp_path / "both", progress=False)
    assert evaluated == [2, 2, 2]
    assert Study(**both.to_dict()) == both
    assert {(row.left, row.done) for row in status_of(tmp_path / "both").rows} == {(0, 1)}
    for count in both.counts:
        apart = Study(**settings, count=count).run(tmp_path / count, progress=False)
        assert set(apart.frame.index) < set(together.frame.index)  # by their keys
        difference = apart.frame["cross_entropy"] - together.frame.loc[apart.frame.index, "cross_entropy"]
        assert difference.abs().max() < 1e-6
    evaluated.clear()
    Study(**settings, count="skip-common").run(tmp_path / "both", progress=False)
    assert not evaluated
    with pytest.raises(MismatchError, match="skip-common"):
        Study(**settings, count=["all", "skip-comon"])
    with pytest.raises(MismatchError, match="count=3"):
        Study(**settings, count=3)


def test_what_fails_for_one_count_is_measured_for_the_other(tmp_path):
    def of_all(logits, batch):
        # The first one is asked what the metric is.
        if batch.documents == (0,) and batch.scored.float().mean() < 0.9:
            raise ValueError("a token is missing")
        return logits[:, -1, 0]

    settings = {
        "models": "tiny-opt",
        "methods": "zero",
        "fractions": 0.5,
        "seeds": 1,
        "collect_tokens": 300,
        "evaluate_tokens": 600,
        "batch_size": 1,
        "metrics": {"mine": of_all},
    }
    alone = Study(**settings).run(tmp_path / "all", progress=False)
    assert not alone.failed
    for counts in (["all", "skip-common"], ["skip-common", "all"]):
        both = Study(**settings, count=counts).run(tmp_path / counts[0], progress=False)
        assert set(both.frame.index) == set(alone.frame.index)
        assert len(both.failed) == 2
        assert all("a token is missing" in told for told in both.failed)

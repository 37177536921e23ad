"""Studies of the zoo, end to end, small enough to take seconds."""

import shutil
import weakref

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import ablation_lens as al
from ablation_lens import zoo
from ablation_lens.adapters import HookedViT
from ablation_lens.errors import AblationLensError, CorpusError, MismatchError
from ablation_lens.files import CannotWrite
from ablation_lens.measure.evaluation import evaluate
from ablation_lens.study import model_run
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.results import Results, UnreadableFile
from ablation_lens.study.study import Study
from tests.studies import files, rows

SMALL = {"collect_images": 16, "evaluate_images": 16}


def vit(**changes):
    return Study(
        **{
            "models": ["tiny-vit"],
            "methods": ["zero", "peak"],
            "fractions": [0.5, 1.0],
            "seeds": [1, 2],
            **SMALL,
            **changes,
        }
    )


def measured(run):
    """The cells that are measured from now on, as they are written."""
    written = []
    before = StudyFolder.write_cell

    def note(self, record, score):
        written.append((record.method, record.fraction, record.seed))
        before(self, record, score)

    run.setattr(StudyFolder, "write_cell", note)
    return written


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    vit().run(folder, progress=False)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run folder that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_study_measures_every_cell_once(finished):
    frame = Results.load(finished).frame
    assert set(zip(frame["method"], frame["fraction"], frame["seed"].fillna(-1), strict=True)) == {
        ("none", 0.0, -1),
        ("zero", 0.5, 1),
        ("zero", 0.5, 2),
        ("peak", 0.5, 1),
        ("peak", 0.5, 2),
        ("zero", 1.0, -1),
        ("peak", 1.0, -1),
    }
    assert len(frame) == len(list((finished / "cells").iterdir())) == 7
    assert frame["group"].nunique() == 1


def test_its_cells_are_what_evaluate_says(finished):
    """The same by hand, from the parts a user has."""
    frame = Results.load(finished).frame.set_index(["method", "fraction", "seed"])
    model = al.load_model("tiny-vit")
    task = al.task_for(model)
    plan = task.batches(split="evaluate", images=16)
    statistics = al.collect(model, task.batches(split="collect", images=16), progress=False)
    mask = al.random_neurons(statistics.shape, 0.5, seed=2)
    score = evaluate(model, plan, statistics.ablation(mask, "peak"))
    row = frame.loc[("peak", 0.5, 2)]
    assert row["cross_entropy"] == pytest.approx(score.cross_entropy, rel=1e-6)
    assert row["top1"] == score.top1
    assert row["baseline_cross_entropy"] == pytest.approx(evaluate(model, plan).cross_entropy, rel=1e-6)


def test_running_again_does_nothing(copied, monkeypatch):
    before, written = files(copied), measured(monkeypatch)
    results = vit().run(copied, progress=False)
    assert written == []
    assert files(copied) == before
    assert results.failed == []


def test_a_finished_study_needs_no_right_to_write(copied, monkeypatch):
    """As on a disk that is mounted read-only, where even removing what is not there is an error."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("ablation_lens.files._new_temporary", refuse)
    monkeypatch.setattr("ablation_lens.runs.folder.Path.unlink", refuse)
    assert len(vit().run(copied, progress=False).frame) == 7
    with pytest.raises(CannotWrite, match=r"cannot write to .*Read-only file system.*what is finished is kept"):
        vit(seeds=[3]).run(copied, progress=False)


def test_more_seeds_add_cells_and_keep_the_others(copied, monkeypatch):
    before, written = files(copied / "cells"), measured(monkeypatch)
    results = vit(seeds=[1, 2, 3], methods=["zero", "peak", "mean"]).run(copied, progress=False)
    assert sorted(written, key=str) == sorted(
        [("zero", 0.5, 3), ("peak", 0.5, 3), ("mean", 0.5, 1), ("mean", 0.5, 2), ("mean", 0.5, 3), ("mean", 1.0, None)],
        key=str,
    )
    assert {name: files(copied / "cells")[name] for name in before} == before
    assert results.frame["group"].nunique() == 1
    assert (results.frame["method"] == "none").sum() == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate_images": 15},
        {"collect_images": 15},
        {"bins": 128},
        {"include_bos": False},
        {"batch_size": 7},
        {"site": "mlp"},
        {"dtype": "bfloat16"},
        {"shared_input": True},
    ],
    ids=str,
)
def test_another_setting_is_another_group(copied, changes):
    before = files(copied / "cells")
    frame = vit(seeds=[1], fractions=[0.5], **changes).run(copied, progress=False).frame
    assert frame["group"].nunique() == 2
    assert frame.groupby("group")["baseline_cross_entropy"].nunique().tolist() == [1, 1]
    assert sorted(frame.groupby("group").size()) == [3, 7]
    assert {name: files(copied / "cells")[name] for name in before} == before


def test_a_shared_input_is_the_first_seeds_so_other_seeds_make_another_group(tmp_path):
    for seeds in ([1, 2], [2, 1]):
        vit(methods=["resample-pixels"], fractions=[0.5], seeds=seeds, shared_input=True).run(tmp_path, progress=False)
    frame = Results.load(tmp_path).frame
    assert frame["group"].nunique() == 2
    drawn = frame[frame["method"] == "resample-pixels"]
    assert drawn.groupby("seed")["cross_entropy"].nunique().tolist() == [2, 2]
    assert sorted(drawn.seed for drawn in StudyFolder(tmp_path).inputs()) == [1, 2]


def test_the_mask_does_not_matter_where_everything_is_ablated(finished):
    model = al.load_model("tiny-vit")
    task = al.task_for(model)
    statistics = al.collect(model, task.batches(split="collect", images=16), progress=False)
    plan = task.batches(split="evaluate", images=16)
    whole = {
        evaluate(model, plan, statistics.ablation(al.random_neurons(statistics.shape, 1.0, seed), "peak")).cross_entropy
        for seed in (1, 2, 99)
    }
    frame = Results.load(finished).frame
    row = frame[(frame["method"] == "peak") & (frame["fraction"] == 1.0)]
    assert len(whole) == len(row) == 1
    assert row["cross_entropy"].iloc[0] == pytest.approx(whole.pop(), rel=1e-6)


def test_a_drawn_input_is_run_through_the_model_once(tmp_path, monkeypatch):
    """Its values are those of the run that drew it; only a process that finds it drawn already runs it again."""
    runs, forward = [], HookedViT.forward

    def counting(self, inputs, **options):
        runs.append(len(inputs))
        return forward(self, inputs, **options)

    monkeypatch.setattr(HookedViT, "forward", counting)
    study = vit(methods=["resample-pixels"], fractions=[0.5], seeds=[1], evaluate_images=16, batch_size=16)
    study.run(tmp_path, progress=False)
    assert runs == [1, 16, 1, 16]  # how the model ends, the baseline, the input, the ablated images
    runs.clear()
    vit(methods=["resample-pixels"], fractions=[0.5, 0.7], seeds=[1], batch_size=16).run(tmp_path, progress=False)
    assert runs == [1, 1, 16]


def test_resampling_differs_between_seeds_also_at_100_percent(tmp_path):
    frame = vit(methods=["resample-pixels", "zero"]).run(tmp_path, progress=False).frame
    whole = frame[(frame["method"] == "resample-pixels") & (frame["fraction"] == 1.0)]
    assert sorted(whole["seed"]) == [1, 2]
    assert whole["cross_entropy"].nunique() == 2
    inputs = StudyFolder(tmp_path).inputs()
    assert sorted((drawn.kind, drawn.seed) for drawn in inputs) == [("pixels", 1), ("pixels", 2)]


def test_text_models_with_every_way_of_resampling(tmp_path):
    """A causal model writes its own text, a masked one reads another's; values are position-wise."""
    study = Study(
        models=["tiny-opt", "tiny-roberta"],
        methods=["peak bins=64", "resample-characters", "resample-tokens", "resample-generated", "resample-pixels"],
        fractions=[0.5],
        seeds=[1],
        collect_tokens=400,
        evaluate_tokens=400,
        context=40,
    )
    results = study.run(tmp_path, progress=False)
    assert results.failed == []
    methods = ["none", "peak bins=64", "resample-characters", "resample-tokens", "resample-generated"]
    assert results.frame[["model", "method"]].values.tolist() == [
        [model, method] for model in ("tiny-opt", "tiny-roberta") for method in methods
    ]
    assert results.frame.groupby("model")["task"].first().to_dict() == {
        "tiny-opt": "causal-lm",
        "tiny-roberta": "masked-lm",
    }
    authors = {drawn.generator for drawn in StudyFolder(tmp_path).inputs() if drawn.kind == "generated"}
    assert authors == {"tiny-opt"}


@pytest.fixture
def capricious(registry):
    """A center that fails on a model's neurons until it is told not to."""
    mood = {"fails": True}

    @registry.register("capricious")
    def capricious(statistics):
        if mood["fails"] and statistics.shape != (1, 1, 1):  # not where it is tried before anything runs
            raise ValueError("not today")
        return statistics.mean

    return mood


def test_a_failing_cell_is_recorded_the_rest_goes_on_and_it_is_tried_again(tmp_path, capricious):
    study = vit(methods=["zero", "capricious", "peak"], fractions=[0.5], seeds=[1])
    results = study.run(tmp_path, progress=False)
    assert results.failed == ["tiny-vit: capricious, 50 %, seed 1: not today"]
    assert results.frame["method"].tolist() == ["none", "zero", "peak"]
    (failure,) = StudyFolder(tmp_path).failures()
    assert (failure.model, failure.cell, failure.error, failure.message) == (
        "tiny-vit",
        "capricious, 50 %, seed 1",
        "ValueError",
        "not today",
    )
    capricious["fails"] = False
    results = study.run(tmp_path, progress=False)
    assert results.failed == []
    assert StudyFolder(tmp_path).failures() == []
    assert results.frame["method"].tolist() == ["none", "zero", "capricious", "peak"]


def test_an_edited_center_is_measured_anew_and_the_old_cells_keep_apart(tmp_path, registry):
    factor = [1.0]

    @registry.register("mine")
    def mine(statistics):
        if factor[0] is None and statistics.shape != (1, 1, 1):  # not where it is tried before anything runs
            raise ValueError("not today")
        return (factor[0] or 0) * (statistics.mean + 1)

    def run(folder, methods=("zero", "mine")):
        return vit(methods=methods, fractions=[0.5], seeds=[1]).run(folder, progress=False)

    def loss(results, method="mine"):
        (row,) = results.frame[results.frame["method"] == method].itertuples()
        return row.cross_entropy

    folder = tmp_path / "run"
    before = run(folder)
    factor[0] = 4.0
    after, fresh = run(folder), run(tmp_path / "fresh")
    assert loss(after) == loss(fresh) != loss(before)
    assert loss(after, "zero") == loss(before, "zero")
    old = set(after.frame["method"]) - {"none", "zero", "mine"}
    assert loss(after, *old) == loss(before)
    assert len(old) == 1
    assert {
        loss(Results.load(folder), name) for name in set(Results.load(folder).frame["method"]) - {"none", "zero"}
    } == {
        loss(before),
        loss(after),
    }
    factor[0] = 1.0
    cells = files(folder / "cells")
    assert loss(run(folder)) == loss(before)  # found again, as nothing is ever thrown away
    assert files(folder / "cells") == cells
    factor[0] = None
    assert run(folder).failed  # and not the cells of before
    assert [failure.cell for failure in StudyFolder(folder).failures()] == ["mine, 50 %, seed 1"]
    factor[0] = 2.0
    assert run(folder).failed == []
    assert StudyFolder(folder).failures() == []


def test_a_generator_that_was_trained_further_writes_anew(tmp_path):
    generator = shutil.copytree(zoo.folder("tiny-opt"), tmp_path / "generator")

    def run():
        study = Study(
            models=["tiny-roberta"],
            methods=["zero", "resample-generated"],
            generator=str(generator),
            fractions=[0.5],
            seeds=[1],
            collect_tokens=300,
            evaluate_tokens=300,
            context=30,
        )
        frame = study.run(tmp_path / "run", progress=False).frame
        return frame.set_index("method")["cross_entropy"].to_dict()

    before = run()
    tensors = load_file(generator / "model.safetensors")
    save_file({name: 1.1 * tensor for name, tensor in tensors.items()}, generator / "model.safetensors")
    after = run()
    assert after["resample-generated"] != before["resample-generated"]
    assert {after[name] for name in after if name.startswith("resample-generated (generator ")} == {
        before["resample-generated"]
    }
    assert after["zero"] == before["zero"]
    assert len({drawn.text for drawn in StudyFolder(tmp_path / "run").inputs()}) == 2


def test_a_model_that_failed_is_not_kept_in_memory(tmp_path, capricious, monkeypatch):
    loaded = []

    def load(*arguments, **options):
        model = al.load_model(*arguments, **options)
        loaded.append(weakref.ref(model))
        if len(loaded) == 2:
            import gc

            gc.collect()
            assert loaded[0]() is None, "the first model should be gone before the second is used"
        return model

    monkeypatch.setattr(model_run, "load_model", load)
    study = vit(
        models=["tiny-vit", "tiny-opt"], methods=["capricious"], fractions=[0.5], seeds=[1], evaluate_tokens=500
    )
    results = study.run(tmp_path, progress=False)
    assert len(loaded) == 2
    assert len(results.failed) == 2


def test_a_model_that_cannot_be_measured_leaves_the_others_their_cells(tmp_path):
    broken = str(shutil.copytree(zoo.folder("tiny-vit"), tmp_path / "broken"))
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    study = vit(models=[broken, "tiny-vit"], fractions=[0.5], seeds=[1])
    results = study.run(tmp_path / "run", progress=False)
    assert set(results.frame["model"]) == {"tiny-vit"}
    (failed,) = results.failed
    assert failed.startswith(f"{broken}: ")
    assert [failure.model for failure in StudyFolder(tmp_path / "run").failures()] == [broken]


def test_a_generator_that_nothing_is_resampled_by_need_not_exist(tmp_path):
    study = Study(
        models=["tiny-opt"],
        methods=["resample-generated"],
        generator="tiny-optt",
        fractions=[1.0],
        seeds=[1],
        evaluate_tokens=300,
    )
    assert study.run(tmp_path, progress=False).frame["method"].tolist() == ["none", "resample-generated"]


def test_a_mistake_that_was_mended_is_forgotten(tmp_path):
    with pytest.raises(CorpusError, match="ask for fewer"):
        vit(fractions=[0.5], seeds=[1], evaluate_images=10**6).run(tmp_path, progress=False)
    assert len(StudyFolder(tmp_path).failures()) == 1
    vit(fractions=[0.5], seeds=[1]).run(tmp_path, progress=False)
    assert StudyFolder(tmp_path).failures() == []


def test_where_nothing_can_be_measured_the_study_raises(copied, capricious, monkeypatch):
    """Whatever other studies have left in the folder."""
    with pytest.raises(CorpusError, match="ask for fewer"):
        vit(evaluate_images=10**6).run(copied, progress=False)
    with pytest.raises(MismatchError, match="resample-tokens cannot be applied to tiny-vit"):
        vit(methods=["resample-tokens"]).run(copied, progress=False)

    def broken(*_, **__):
        raise RuntimeError("something odd")

    monkeypatch.setattr(model_run, "evaluate_each", broken)
    with pytest.raises(AblationLensError, match=r"RuntimeError: something odd \(the traceback is in .*failures"):
        vit(evaluate_images=12).run(copied, progress=False)


def test_a_size_left_out_takes_what_there_is(tmp_path):
    study = Study(models=["tiny-vit"], methods=["zero"], fractions=[0.5], seeds=[1], collect_images=16)
    frame = study.run(tmp_path, progress=False).frame
    assert frame["predictions"].nunique() == 1
    assert 32 < frame["predictions"].iloc[0] < 1000


def test_a_damaged_cell_is_named_and_measured_anew_once_it_is_deleted(copied):
    before = rows(Results.load(copied))
    path = next((copied / "cells").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UnreadableFile, match=rf"{path.name}.* delete it and run the same command again"):
        results = vit().run(copied, progress=False)
    assert len(results.frame) == len(before) - 1
    assert len(results.unreadable) == 1
    path.unlink()
    assert rows(vit().run(copied, progress=False)) == before


def test_damaged_statistics_are_named_and_collected_anew_once_they_are_deleted(copied):
    before = rows(Results.load(copied))
    for path in (copied / "cells").iterdir():
        path.unlink()
    (statistics,) = (copied / "statistics").glob("*.safetensors")
    statistics.write_bytes(statistics.read_bytes()[:1000])
    results = vit().run(copied, progress=False)
    assert len(results.frame) == 1  # the baseline needs none
    assert all(statistics.name in failed and "delete it and run" in failed for failed in results.failed)
    statistics.unlink()
    assert rows(vit().run(copied, progress=False)) == before


def test_two_halves_merged_by_copying_are_the_whole(finished, tmp_path, monkeypatch):
    for seed in (1, 2):
        vit(seeds=[seed]).run(tmp_path / str(seed), progress=False)
        shutil.copytree(tmp_path / str(seed), tmp_path / "merged", dirs_exist_ok=True)
    written = measured(monkeypatch)
    merged = vit().run(tmp_path / "merged", progress=False)
    assert written == []
    assert rows(merged) == rows(Results.load(finished))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["tiny-vitt"]}, "did you mean tiny-vit"),
        ({"models": ["./nowhere"]}, r"there is no folder './nowhere'"),
        ({"corpora": {"image": "digitz"}}, "digits"),
        ({"corpora": {"image": "./nowhere"}}, "nowhere"),
        (
            {"models": ["tiny-roberta"], "methods": ["resample-generated"], "generator": "tiny-optt"},
            "did you mean tiny-opt",
        ),
        (
            {"models": ["tiny-roberta"], "methods": ["resample-generated"], "generator": "tiny-vit"},
            "generator='tiny-vit' is a model for image-classification; give one that writes text",
        ),
        ({"methods": ["resample-tokens"]}, "resample-tokens cannot be applied to tiny-vit"),
    ],
)
def test_unknown_names_are_said_before_anything_is_made(tmp_path, changes, message):
    with pytest.raises(AblationLensError, match=message):
        vit(**changes).run(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_a_cell_file_says_about_itself(finished):
    run = StudyFolder(finished)
    record, score = run.read_cell(run.keys("cells")[0])
    assert record.threads == torch.get_num_threads()
    group = run.group(record.group)
    assert group.predictions == score.predictions == 16
    assert group.versions.torch in torch.__version__
    assert pd.notna(Results.load(finished).frame["seconds"]).all()

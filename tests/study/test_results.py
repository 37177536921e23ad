import os
import shutil
import statistics

import numpy as np
import pandas as pd
import pytest
import torch

from ablation_lens.errors import AblationLensError, FileFormatError, MismatchError
from ablation_lens.files import CannotWrite
from ablation_lens.runs.folder import key_of
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.results import Results, UnreadableFile
from tests.made_runs import add_baseline, add_cell, add_group, cell_record, group_record, made_run, score

COLUMNS = [
    "model",
    "corpus",
    "group",
    "task",
    "method",
    "fraction",
    "seed",
    "top1",
    "cross_entropy",
    "predictions",
    "splits",
    "seconds",
    "baseline_top1",
    "baseline_cross_entropy",
]
SEEDS = (42, 123, 456)
G1 = group_record().key


@pytest.fixture
def run(tmp_path):
    """Two documents of 100 predictions; `mean` loses 0.5 nats to `peak` in every document of every seed."""
    run = made_run(tmp_path / "run")
    add_group(run)
    add_baseline(run, G1, [60, 40], [2.0, 1.0])
    for seed, extra in zip(SEEDS, (0.0, 0.1, 0.2), strict=True):
        add_cell(run, G1, "mean", 0.5, seed, [30, 20], [3.5 + extra, 2.5])
        add_cell(run, G1, "peak", 0.5, seed, [40, 30], [3.0 + extra, 2.0])
    add_cell(run, G1, "mean", 1.0, None, [1, 2], [9.0, 9.0])
    add_cell(run, G1, "peak", 1.0, None, [1, 3], [8.0, 8.0])
    return run


def test_the_frame_has_a_row_per_cell_and_exactly_these_columns(run):
    frame = Results.load(run.path).frame
    assert list(frame.columns) == COLUMNS
    assert frame.index.name == "key"
    assert sorted(frame.index) == run.keys("cells")
    assert str(frame["seed"].dtype) == "Int64"
    baseline = frame[frame["method"] == "none"].iloc[0]
    assert (baseline["top1"], baseline["cross_entropy"], baseline["predictions"]) == (0.5, 1.5, 200)
    assert pd.isna(baseline["seed"])
    assert set(frame["baseline_top1"]) == {0.5}
    assert set(frame["baseline_cross_entropy"]) == {1.5}
    row = frame[(frame["method"] == "mean") & (frame["seed"] == 123)].iloc[0]
    assert row["cross_entropy"] == pytest.approx((3.6 + 2.5) / 2)
    assert row["top1"] == 0.25


def test_rows_are_ordered_as_the_study_names_things_not_as_files_are_named(run):
    frame = Results.load(run.path).frame
    assert frame[["method", "fraction"]].drop_duplicates().values.tolist() == [
        ["none", 0.0],
        ["mean", 0.5],
        ["peak", 0.5],
        ["mean", 1.0],
        ["peak", 1.0],
    ]


def test_models_keep_the_place_that_the_first_study_gave_them(run):
    for name in ("first", "second"):
        add_baseline(run, add_group(run, name), [60, 40], [2.0, 1.0])
    for models in (["first"], ["second", "first"]):
        settings = {"models": models, "methods": []}
        run.write_study(settings)
        os.utime(run.json("studies", key_of(settings)), (len(models), len(models)))  # in this order
    assert Results.load(run.path).frame["model"].drop_duplicates().tolist() == ["first", "second", "some-model"]


def test_the_summary_is_mean_and_sd_over_seeds(run):
    summary = Results.load(run.path).summary([0.5]).set_index("method")
    losses = [(3.5 + extra + 2.5) / 2 for extra in (0.0, 0.1, 0.2)]
    assert summary.loc["mean", "cross_entropy"] == pytest.approx(statistics.mean(losses))
    assert summary.loc["mean", "cross_entropy_sd"] == pytest.approx(statistics.stdev(losses))
    assert summary.loc["mean", "seeds"] == 3
    assert summary.loc["mean", "cross_entropy_to_best"] == pytest.approx(0.5)
    assert not summary.loc["mean", "cross_entropy_as_best"]
    assert summary.loc["peak", "cross_entropy_as_best"]
    assert summary.loc["peak", "top1_as_best"]
    assert summary["conditional"].all()


def test_a_fraction_is_found_however_it_was_come_by(run):
    for seed in SEEDS:
        for method in ("mean", "peak"):
            add_cell(run, G1, method, 0.3, seed, [50, 30], [2.5, 1.5])
    results = Results.load(run.path)
    assert results.summary([3 * 0.1])["fraction"].tolist() == [0.3, 0.3]
    assert results.difference(G1, 3 * 0.1, "mean", "peak", "top1").difference == 0


def test_where_everything_is_ablated_there_is_one_value_no_sd_and_no_condition(run):
    summary = Results.load(run.path).summary([1.0]).set_index("method")
    assert summary["seeds"].tolist() == [1, 1]
    assert summary["cross_entropy_sd"].isna().all()
    assert not summary["conditional"].any()
    assert not summary.loc["mean", "cross_entropy_as_best"]


def test_a_value_without_seeds_is_compared_with_every_seed_of_another(run):
    for seed, loss in zip(SEEDS, (8.5, 8.6, 8.7), strict=True):
        add_cell(run, G1, "resample-tokens", 1.0, seed, [1, 1], [loss, loss])
    interval = Results.load(run.path).difference(G1, 1.0, "resample-tokens", "peak", "cross_entropy")
    assert interval.difference == pytest.approx(0.6)
    assert interval.conditional


def test_methods_are_compared_on_the_seeds_both_have(run):
    add_cell(run, G1, "zero", 0.5, 42, [30, 20], [3.5, 2.5])
    add_cell(run, G1, "zero", 0.5, 7, [0, 0], [99.0, 99.0])
    results = Results.load(run.path)
    assert results.difference(G1, 0.5, "zero", "peak", "cross_entropy").difference == pytest.approx(0.5)
    run.file(
        "cells", results.frame.index[(results.frame["method"] == "zero") & (results.frame["seed"] == 42)][0]
    ).unlink()
    with pytest.raises(MismatchError, match="zero and peak have no seed in common at 50 %"):
        Results.load(run.path).difference(G1, 0.5, "zero", "peak", "cross_entropy")


def test_two_groups_are_never_mixed(run):
    """The same model with another plan: another group, with a baseline of its own."""
    g2 = add_group(run, bins=32, documents=3)
    add_baseline(run, g2, [10, 10, 10], [5.0, 5.0, 5.0])
    add_cell(run, g2, "peak", 0.5, 42, [1, 1, 1], [7.0, 7.0, 7.0])
    g3 = add_group(run, corpus="wikitext", documents=1)
    add_cell(run, g3, "peak", 0.5, 42, [1], [6.0])
    results = Results.load(run.path)
    assert results.groups == {
        G1: "some-model on stdlib (16 bins)",
        g2: "some-model on stdlib (32 bins)",
        g3: "some-model on wikitext",
    }
    baselines = results.frame.groupby("group")["baseline_cross_entropy"].agg(["nunique", "first"])
    assert baselines.loc[G1].tolist() == [1, 1.5]
    assert baselines.loc[g2].tolist() == [1, 5.0]
    assert np.isnan(baselines.loc[g3, "first"])  # its own is not there yet, and nobody else's will do
    summary = results.summary([0.5]).set_index(["group", "method"])
    assert summary.loc[(g2, "peak"), "cross_entropy"] == pytest.approx(7.0)
    assert summary.loc[(G1, "peak"), "seeds"] == 3
    assert results.facts(g3)["evaluate"]["name"] == "wikitext"


def methods_of(results):
    return results.frame["method"].drop_duplicates().tolist()[1:]


def test_cells_of_other_values_under_one_name_are_told_apart(run):
    """A center was edited, and the study run again: the run's own cells have the name, for others both are named."""
    old = [add_cell(run, G1, "mine", 0.5, seed, [1, 1], [9.0, 9.0], values="0a1b2c3d") for seed in SEEDS]
    assert methods_of(Results.load(run.path)) == ["mean", "peak", "mine"]
    new = [add_cell(run, G1, "mine", 0.5, seed, [2, 2], [7.0, 7.0], values="4e5f6071") for seed in SEEDS]
    earlier = [add_cell(run, G1, "mine", 0.5, seed, [3, 3], [6.0, 6.0]) for seed in SEEDS]  # their values unknown
    names = Results.load(run.path).frame["method"]
    assert [set(names[keys]) for keys in (old, new, earlier)] == [
        {"mine (values 0a1b2c)"},
        {"mine (values 4e5f60)"},
        {"mine (earlier values)"},
    ]
    summary = Results.load(run.path, own=new).summary([0.5]).set_index("method")
    assert summary.loc["mine", "cross_entropy"] == 7.0
    assert summary.loc["mine (values 0a1b2c)", "cross_entropy"] == 9.0


def test_of_two_versions_of_a_center_the_newest_has_the_name(run):
    for seed in SEEDS:
        add_cell(run, G1, "peak", 0.5, seed, [40, 30], [2.5, 1.5], version=2)
    summary = Results.load(run.path).summary([0.5]).set_index("method")
    assert summary.loc["peak", "cross_entropy"] == 2.0
    assert summary.loc["peak (version 1)", "seeds"] == 3


def test_folders_merged_by_copying_are_one_set_of_results(run, tmp_path):
    other = made_run(tmp_path / "other", models=("another-model",), methods=("zero",))
    group = add_group(other, "another-model", documents=1)
    add_baseline(other, group, [50], [1.0])
    add_cell(other, group, "zero", 0.5, 42, [20], [2.0])
    merged = tmp_path / "merged"
    for source in (run.path, other.path):
        shutil.copytree(source, merged, dirs_exist_ok=True)
    frame = Results.load(merged).frame
    parts = pd.concat([Results.load(run.path).frame, Results.load(other.path).frame])
    pd.testing.assert_frame_equal(frame.sort_index(), parts.sort_index())


def test_exports_read_back(run, tmp_path):
    results = Results.load(run.path)
    results.export(tmp_path / "cells.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "cells.parquet"), results.frame)
    results.export(tmp_path / "cells.csv")
    read = pd.read_csv(tmp_path / "cells.csv", index_col="key", dtype={"seed": "Int64"})
    pd.testing.assert_frame_equal(read, results.frame, check_dtype=False, check_exact=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.csv", "cells.parquet", "run"]


def test_an_export_that_cannot_be_written(run, tmp_path):
    results = Results.load(run.path)
    with pytest.raises(AblationLensError, match=r"must end in \.csv or \.parquet"):
        results.export(tmp_path / "cells.xlsx")
    with pytest.raises(CannotWrite, match="No such file or directory"):
        results.export(tmp_path / "nowhere" / "cells.csv")


def test_a_damaged_cell_is_left_out_and_named_with_the_way_out(run):
    cells = len(Results.load(run.path).frame)
    path = run.file("cells", run.keys("cells")[0])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.warns(UnreadableFile, match=rf"{path.name} is not a whole .* delete it and run the same command again"):
        results = Results.load(run.path)
    assert len(results.frame) == cells - 1
    assert len(results.unreadable) == 1


def test_many_damaged_cells_are_named_and_counted(run):
    for number in range(9):
        (run.path / "cells" / f"a copy ({number}).safetensors").write_bytes(b"")
    with pytest.warns(UnreadableFile) as said:
        results = Results.load(run.path)
    assert len(results.unreadable) == 9
    assert len(said) == 5
    assert "(4 more like it)" in str(said[-1].message)


def test_a_group_that_is_missing_or_damaged_is_named_once(run):
    other = add_group(run, "another-model")
    add_baseline(run, other, [60, 40], [2.0, 1.0])
    run.json("groups", G1).write_text("{")
    with pytest.warns(UnreadableFile, match=rf"{G1}\.json is damaged"):
        results = Results.load(run.path)
    assert len(results.unreadable) == 1  # not once per cell
    assert set(results.frame["model"]) == {"another-model"}
    run.json("groups", G1).unlink()
    run.json("groups", other).unlink()
    with pytest.raises(FileFormatError, match=r"\.json is missing\. .* run the same command again"):  # no cell is left
        Results.load(run.path)


def test_a_damaged_study_costs_its_order_only(run):
    (path,) = (run.path / "studies").iterdir()
    cells = len(Results.load(run.path).frame)
    path.write_text("[]")
    with pytest.warns(UnreadableFile, match=path.name):
        results = Results.load(run.path)
    assert len(results.frame) == cells


def test_cells_that_do_not_fit_their_group_are_left_out(run):
    more = add_cell(run, G1, "zero", 0.5, 42, [30, 20, 1], [3.5, 2.5, 1.0])
    others = score([30, 20], [3.5, 2.5])
    others.predictions_per_document[:] = torch.tensor([150, 50])
    record = cell_record(G1, "zero", 0.5, 123)
    run.write_cell(record, others)
    with pytest.warns(UnreadableFile):
        results = Results.load(run.path)
    assert len(results.frame) == 9
    for key, why in ((more, "it has 300 predictions, its group 200"), (record.key, "its documents are not those")):
        assert any(key in said and why in said for said in results.unreadable)


def test_where_methods_have_no_seed_in_common_the_summary_says_nothing_of_which_is_better(run):
    add_cell(run, G1, "zero", 0.5, 7, [0, 0], [99.0, 99.0])
    summary = Results.load(run.path).summary([0.5]).set_index("method")
    assert not summary.loc["zero", "cross_entropy_as_best"]
    assert np.isnan(summary.loc["zero", "cross_entropy_low"])


def test_an_empty_folder_and_a_fraction_nobody_measured(run, tmp_path):
    with pytest.raises(AblationLensError, match="holds no finished cell yet"):
        Results.load(StudyFolder.create(tmp_path / "empty"))
    with pytest.raises(MismatchError, match="holds no cell that was measured at 30 %, 70 %"):
        Results.load(run.path).summary([0.3, 0.7])
    with pytest.raises(AblationLensError, match="is not a run folder"):
        Results.load(tmp_path / "nowhere")


def test_its_repr_says_what_is_there(run):
    assert repr(Results.load(run.path)) == f"Results(9 cells of some-model in {run.path})"

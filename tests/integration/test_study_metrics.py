"""Studies of a metric of one's own: kept with the cells, in tables and files, and keyed by what it gives."""

import json

import pytest

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.study.table2 import make_table2

SMALL = {
    "models": ["tiny-vit"],
    "methods": ["zero", "mean"],
    "fractions": [0.5],
    "seeds": [1, 2],
    "collect_images": 64,
    "evaluate_images": 64,
}


def boldness(logits, batch):
    return logits.amax(-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    al.Study(**SMALL, metrics={"kl": "kl", "boldness": boldness}).run(folder, progress=False)
    return folder


@pytest.fixture
def results(folder):
    return al.Results.load(folder)


def test_every_cell_has_them_as_evaluate_gives_them(results):
    assert results.metrics == ("top1", "cross_entropy", "boldness", "kl")
    model = al.load_model("tiny-vit")
    task = al.task_for(model)
    statistics = al.collect(model, task.batches(split="collect", images=64, batch_size=None))
    mask = al.random_neurons(statistics.shape, 0.5, 2)
    score = al.evaluate(
        model, task.batches(images=64), statistics.ablation(mask, "mean"), metrics={"kl": "kl", "boldness": boldness}
    )
    frame = results.frame
    row = frame[(frame["method"] == "mean") & (frame["seed"] == 2)].iloc[0]
    assert (row["kl"], row["boldness"]) == (score["kl"], score["boldness"])
    assert row["baseline_kl"] == 0
    assert row["baseline_boldness"] > 0


def test_what_is_better_is_known_of_kl_and_not_of_a_function(results):
    summary = results.summary()
    assert summary["kl_as_best"].any()
    assert not summary["boldness_as_best"].any()
    assert summary["boldness_to_best"].isna().all()
    interval = results.difference(summary["group"].iloc[0], 0.5, "zero", "mean", "boldness")
    assert interval.low <= interval.difference <= interval.high


def test_tables_and_exports_have_them(results, tmp_path):
    table = make_table2(results)
    for text in (table.markdown(), table.latex(), table.csv()):
        assert "boldness" in text
        assert "KL" in text or "kl" in text
    results.export(tmp_path / "cells.csv")
    assert "boldness" in (tmp_path / "cells.csv").read_text().splitlines()[0]


def test_the_same_function_is_not_measured_again(folder, results):
    again = al.Study(**SMALL, metrics={"kl": "kl", "boldness": boldness}).run(folder, progress=False)
    assert again.frame["seconds"].tolist() == results.frame["seconds"].tolist()


def test_a_function_that_was_edited_is(folder, results):
    edited = al.Study(**SMALL, metrics={"kl": "kl", "boldness": lambda logits, batch: 2 * logits.amax(-1)})
    again = edited.run(folder, progress=False)
    assert len(again.groups) == 2
    old, new = (again.frame[again.frame["group"] == group] for group in again.frame["group"].unique())
    assert sorted(2 * old["boldness"]) == pytest.approx(sorted(new["boldness"]), rel=1e-6) or sorted(
        old["boldness"]
    ) == pytest.approx(sorted(2 * new["boldness"]), rel=1e-6)


def test_a_study_without_them_has_the_keys_it_always_had(tmp_path):
    plain = al.Study(**SMALL)
    assert "metrics" not in plain.to_dict()
    with_names = al.Study(**SMALL, metrics=["kl", "top1"])
    assert json.dumps(with_names.to_dict()["metrics"]) == '["kl"]'


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["kll"], "kl"),
        ({"seed": boldness}, "another column"),
        ({"": boldness}, "name"),
        ({"a\nb": boldness}, "name"),
        ({"top1": boldness}, "another name"),
        (7, "metric"),
    ],
)
def test_metrics_that_a_study_refuses_before_it_starts(metrics, said):
    with pytest.raises(MismatchError, match=said):
        al.Study(**SMALL, metrics=metrics)


def test_a_study_s_file_of_settings_may_name_them(tmp_path):
    (tmp_path / "study.toml").write_text('models = ["tiny-vit"]\nmetrics = ["kl", "rank"]\n')
    assert list(al.Study.from_toml(tmp_path / "study.toml").metrics) == ["kl", "rank"]


def test_a_function_sees_padding_where_it_was_given_as_in_evaluate(tmp_path):
    model = al.load_model("tiny-opt", device="cpu")
    ids = [[5, 6, 7, 8], [1, 1, 9, 4]]
    held = {"input_ids": ids, "attention_mask": [[1, 1, 1, 1], [0, 0, 1, 1]]}
    metrics = {"last": lambda logits, batch: logits[:, -1, 5]}
    study = al.Study(
        models=[model],
        methods=["zero"],
        fractions=[1.0],
        seeds=[1],
        metrics=metrics,
        batches={"collect": [[20, 21, 22]], "evaluate": held},
    )
    frame = study.run(tmp_path, progress=False).frame
    plain = al.evaluate(model, held, metrics=metrics)
    assert frame["baseline_last"].iloc[-1] == pytest.approx(plain["last"], rel=1e-5)

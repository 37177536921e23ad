"""Modularity of a model with two tasks in neurons of their own, and of one that does neither."""

import json
import math
import subprocess
import sys

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.experiments.clustering import clusters
from ablation_lens.experiments.modularity import Modularity, cluster_damage, specific_share, study_modularity
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.measure.score import Score
from ablation_lens.plots import cluster_map, cross_pruning_matrix
from ablation_lens.report.modularity import blocks, write_modularity
from ablation_lens.report.page import Page
from tests.experiments.two_tasks import TwoTasks, two_tasks

SMALL = {"collect": 16, "evaluate": 10, "progress": False}
OPTIONS = {"size": 8, "fraction": 0.25, "target": 0.5, "seeds": range(3), "progress": False}


def untrained():
    model = TwoTasks()
    model.blocks[0].mlp.W_out.data = model.blocks[0].mlp.W_out.data.roll(1, 1)
    return model


@pytest.fixture(scope="module")
def model():
    return TwoTasks()


@pytest.fixture(scope="module")
def tasks(model):
    return two_tasks(model)


@pytest.fixture(scope="module")
def found(model, tasks):
    return study_modularity(model, tasks, twin=untrained(), **OPTIONS)


def test_tasks_in_blocks_of_neurons_are_found_apart(found):
    trained = found.trained
    assert trained.labels[0, :8].unique().numel() == trained.labels[0, 8:].unique().numel() == 1
    assert trained.overlap.rows[0].overlap == 0
    assert [each.whole.selected for each in trained.concentration.values()] == [4, 4]
    assert trained.pruned.relative[..., 0].tolist() == [[0.5, 1.0], [1.0, 0.5]]
    # Without the cluster of a task all of its answers are lost, and none of the other's.
    lost = trained.damage.lost[..., 0]
    first = int(trained.labels[0, 0])
    assert lost[first].tolist() == [1.0, 0.0]
    assert lost[1 - first].tolist() == [0.0, 1.0]


def test_the_untrained_twin_stands_beside_every_number(found):
    counts = found.frame.groupby(["measure", "model"]).size().unstack()
    assert (counts["trained"] == counts["untrained"]).all()
    assert found.twin.pruned.fractions == found.trained.pruned.fractions
    assert bool(torch.isnan(found.twin.pruned.relative).all())
    assert "Before training" in repr(found)


def collected(model, digits):
    first, second = (
        al.collect(model, task.batches(split="collect", images=16), progress=False) for task in digits.values()
    )
    return first.merge(second)


def test_attention_neurons_are_clustered_by_heads():
    model = al.load_model("tiny-vit")
    task = al.task_for(model)
    digits = {str(digit): task.only(label=digit) for digit in (3, 8)}
    found = study_modularity(model, digits, site="z", fraction=0.1, seeds=[0], **SMALL)
    assert (found.method, found.size) == ("heads", 24)
    assert found.trained.damage.names[:5] == ("L0.H0", "L0.H1", "L0.H2", "L0.H3", "L1.H0")
    stats = collected(model, digits)
    plan = digits["3"].batches(images=10)
    rise = (
        al.evaluate(model, plan, stats.ablation(["L1.H0"], "zero")).cross_entropy
        - al.evaluate(model, plan).cross_entropy
    )
    assert found.trained.damage.rise[4, 0, 0] == pytest.approx(rise, abs=1e-6)
    with pytest.raises(MismatchError, match="leave it out"):
        study_modularity(model, digits, site="z", method="weights", progress=False)


def scores(losses):
    return {
        name: Score(tuple(range(len(row))), torch.zeros(len(row)).long(), row.double(), torch.ones(len(row)).long())
        for name, row in losses.items()
    }


def conditions(common, own, noise, documents=200, seed=0, tasks=("first", "second")):
    """Clusters whose damage is common to all tasks, or a task's own, with noise by document."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    both = common * draw(30)
    return {
        cluster: scores({task: both[cluster] + own * draw(1) + noise * draw(documents) for task in tasks})
        for cluster in range(30)
    }


def test_noise_of_documents_is_no_task_of_a_cluster():
    whole = scores({task: torch.zeros(200) for task in ("first", "second")})
    assert float(specific_share(whole, conditions(1, 0, 3))[0]) == pytest.approx(0, abs=0.1)
    assert math.isnan(float(specific_share(whole, conditions(0, 0, 3))[0]))


@pytest.mark.parametrize("tasks", [("a", "b"), ("a", "b", "c", "d", "e")], ids=len)
@pytest.mark.parametrize(("common", "own", "share"), [(0, 1, 1.0), (1, 1, 0.5), (1, 2, 0.8)])
def test_a_share_does_not_hang_on_the_number_of_tasks(tasks, common, own, share):
    """The variance of what is a task's own, beside that and the variance of what is common."""
    whole = scores({task: torch.zeros(60) for task in tasks})
    found = [
        float(specific_share(whole, conditions(common, own, 3, documents=60, seed=seed, tasks=tasks))[0])
        for seed in range(8)
    ]
    assert sum(found) / len(found) == pytest.approx(share, abs=0.12)


def test_clusters_of_another_model_are_refused(model, tasks):
    other = TwoTasks()
    other.blocks[0].mlp.W_in.data[0, 0] = 7
    with pytest.raises(MismatchError, match="not of this model"):
        cluster_damage(model, tasks, clusters(other, 8, progress=False), progress=False)
    with pytest.raises(MismatchError, match="give what"):
        cluster_damage(model, tasks, torch.zeros(1, 16), progress=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fraction": 0.01}, "of 16 neurons is none"),
        ({"fraction": 1.5}, "from 0 to 1"),
        ({"fraction": "0.1"}, "from 0 to 1"),
        ({"target": "most"}, "between 0 and 1"),
        ({"size": 5}, "does not divide"),
        ({"site": "resid_post"}, "has no clusters"),
        ({"method": "names"}, "method"),
        ({"value": "middle"}, "middle"),
    ],
)
def test_settings_that_are_not_possible(model, tasks, options, said):
    with pytest.raises(al.errors.AblationLensError, match=said):
        study_modularity(model, tasks, **{**OPTIONS, **options})


def test_a_twin_is_another_model_of_the_same_sizes(model, tasks):
    with pytest.raises(MismatchError, match="itself"):
        study_modularity(model, tasks, twin=TwoTasks(), **OPTIONS)
    with pytest.raises(MismatchError, match="is not the twin"):
        study_modularity(model, tasks, twin=al.load_model("tiny-vit"), **OPTIONS)
    with pytest.raises(MismatchError, match="the model is a str"):
        study_modularity(model, tasks, twin="tiny-vit", **OPTIONS)


def test_what_is_not_possible_is_said_before_anything_is_read(model, tasks):
    for options in ({"seeds": 3}, {"seeds": "123"}, {"target": 1}, {"fraction": 2}):
        with pytest.raises(MismatchError, match="possible"):
            study_modularity(model, dict.fromkeys(tasks), **{**OPTIONS, **options})


def test_what_was_interrupted_goes_on(model, tasks, tmp_path, monkeypatch):
    calls = []
    from ablation_lens.experiments import scores as kept

    evaluate_each = kept.evaluate_each

    def stop(*args, **options):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return evaluate_each(*args, **options)

    monkeypatch.setattr(kept, "evaluate_each", stop)
    with pytest.raises(KeyboardInterrupt):
        study_modularity(model, tasks, folder=tmp_path / "run", **OPTIONS)
    first = len(calls)
    study_modularity(model, tasks, folder=tmp_path / "run", **OPTIONS)
    alone = len(calls) - first
    calls[:] = [0] * 100
    study_modularity(model, tasks, **OPTIONS)
    assert len(calls) - 100 == first - 1 + alone


def test_a_file_is_read_as_it_was_written_without_what_runs_models(found, tmp_path):
    found.save(tmp_path / "m.safetensors")
    again = Modularity.load(tmp_path / "m.safetensors")
    assert repr(again) == repr(found)
    assert again.frame.equals(found.frame)
    code = (
        "import sys; from ablation_lens.experiments import Modularity; print(Modularity.load(sys.argv[1]));"
        "assert not {'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.safetensors"], check=True, capture_output=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: header.update(tasks=["first", "first"]),
        lambda header, tensors: header.update(site="resid_post"),
        lambda header, tensors: header.update(size=0),
        lambda header, tensors: header.update(seeds=[]),
        lambda header, tensors: header["trained"].update(outcomes=["well", "well"]),
        lambda header, tensors: header["trained"]["source"].update(d_mlp=24),
        lambda header, tensors: tensors.pop("trained.masks"),
        lambda header, tensors: tensors.update({"trained.labels": torch.zeros(1, 16, dtype=torch.int64)}),
        lambda header, tensors: tensors.update({"untrained.rise": torch.full((2, 2, 3), math.inf).double()}),
    ],
)
def test_a_forged_file_is_refused(found, tmp_path, change):
    found.save(tmp_path / "m.safetensors")
    header, tensors = load_tensors(tmp_path / "m.safetensors", "modularity")
    header = json.loads(json.dumps(header))
    change(header, tensors)
    save_tensors(tmp_path / "m.safetensors", "modularity", header, tensors)
    with pytest.raises(FileFormatError, match="not a complete file of modularity"):
        Modularity.load(tmp_path / "m.safetensors")


def test_the_matrix_shows_what_a_task_keeps_and_the_twin_beside_it(found):
    figure = cross_pruning_matrix(found.trained.pruned, twin=found.twin.pruned)
    selected, random, rise, twin = figure.data
    assert [list(row) for row in selected.z] == [[0.5, 1.0], [1.0, 0.5]]
    assert "[0.50, 0.50]" in selected.text[0][0]
    assert [value for row in random.z for value in row] == found.trained.pruned.random[..., 0].flatten().tolist()
    assert torch.tensor(rise.z)[0, 0] == pytest.approx(float(found.trained.pruned.rise[0, 0, 0]))
    assert torch.tensor(twin.z)[0, 0] == pytest.approx(float(found.twin.pruned.rise[0, 0, 0]))
    only = cross_pruning_matrix(found.twin.pruned)
    assert len(only.data) == 2


def test_the_map_of_clusters_has_a_column_per_cluster(found):
    figure = cluster_map(found.trained.damage, twin=found.twin.damage)
    assert torch.tensor(figure.data[0].z).shape == (2, 2)
    assert sorted(torch.tensor(figure.data[0].z).flatten().tolist()) == pytest.approx(
        sorted(found.trained.damage.rise[..., 0].flatten().tolist())
    )


def test_a_page_tells_everything_and_runs_nothing_of_a_name(model, tasks, tmp_path):
    hostile = "<script>alert(1)</script>\x1b[31m"
    named = dict(zip((hostile, "second"), tasks.values(), strict=True))
    found = study_modularity(model, named, **OPTIONS)
    assert "\x1b" not in repr(found)
    files = write_modularity(found, tmp_path)
    assert all(path.exists() for path in files.values())
    page = Page("Modularity", list(blocks(Modularity.load(files["safetensors"]))))
    assert "<script>alert" not in page.html()
    for path in files.values():
        if path.suffix == ".html":
            assert "<script>alert" not in path.read_text(encoding="utf-8")
    assert "keeps 0.500 of its top-1" in page.markdown()

"""`ablation-lens experiment`, as typed: a folder that is gone on with, its table, figure and files."""

import csv
import shutil
from pathlib import Path

import pytest

import ablation_lens as al
from ablation_lens.experiments import layers
from ablation_lens.experiments.constants import LossCurves
from ablation_lens.neurons import centers as registry
from ablation_lens.report.experiment import EXPERIMENTS, conduct
from tests.answers import answered

SMALL = ("tiny-opt", "--tokens", "300", "--collect-tokens", "2000")
TWO = ("--center", "zero", "--center", "mean")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Layers and heads of tiny-opt, made in Python as the command makes them."""
    model = al.load_model("tiny-opt")
    folder = tmp_path_factory.mktemp("experiment") / "run"
    return conduct(
        "layers",
        model,
        al.task_for(model),
        folder,
        tokens=300,
        collect_tokens=2000,
        options={"centers": ["zero", "mean"]},
    )


def test_the_table_the_figure_and_the_statistics_are_in_the_folder(done):
    rows = list(csv.DictReader(done.files["csv"].read_text(encoding="utf-8").splitlines()))
    assert [row["unit"] for row in rows] == done.found.frame["unit"].tolist()
    page = done.files["html"].read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page
    assert 'src="http' not in page
    assert al.ActivationStatistics.load(done.files["statistics"]).site.value == "z"


def test_the_same_command_measures_nothing_twice(done, command, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("this is there already")

    for place in ("ablation_lens.experiments.scores.evaluate_each", "ablation_lens.measure.collection.collect"):
        monkeypatch.setattr(place, refuse)
    folder = done.files["csv"].parent
    values = answered(command("experiment", "layers", *SMALL, *TWO, "--out", folder, "--json"), "experiment")
    assert values["text"] == repr(done.found)
    assert len(values["rows"]) == len(done.found.frame)
    assert sorted(values["files"]) == ["csv", "html", "html whole", "statistics"]


def test_statistics_may_be_given_and_say_the_site(done, command, tmp_path):
    code, out, _ = command(
        "experiment", "layers", *SMALL[:3], "--statistics", done.files["statistics"], *TWO, "--out", tmp_path / "run"
    )
    assert code == 0
    assert out.startswith(repr(done.found))
    assert not (tmp_path / "run" / "statistics.safetensors").exists()


def test_statistics_of_other_documents_replace_none(done, command, tmp_path):
    folder = shutil.copytree(done.files["csv"].parent, tmp_path / "run")
    before = (folder / "statistics.safetensors").read_bytes()
    fewer = (*SMALL[:-1], "1000", *TWO, "--out", folder, "--json")
    first, again = (answered(command("experiment", "layers", *fewer), "experiment") for _ in range(2))
    assert first["files"] == again["files"]
    assert Path(first["files"]["statistics"]).name.startswith("statistics-")
    assert al.ActivationStatistics.load(first["files"]["statistics"]).provenance.tokens < 2000
    assert len(list(folder.glob("statistics*"))) == 2
    assert (folder / "statistics.safetensors").read_bytes() == before


def test_a_folder_of_another_model_is_refused(done, command):
    folder = done.files["csv"].parent
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, out, errors = command("experiment", "layers", "tiny-mistral", *SMALL[1:], *TWO, "--out", folder)
    assert (code, out) == (2, "")
    assert "is of another model; give another folder" in errors
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_no_figure_of_before_stays_beside_a_new_table(tmp_path):
    folder = tmp_path / "run"
    model = al.load_model("tiny-opt")
    options = {"centers": ["zero", "mean"], "fractions": [0.5], "seeds": 1, "steps": 1}

    def pages(**further):
        made = conduct(
            "centers", model, al.task_for(model), folder, tokens=100, collect_tokens=500, options=options | further
        )
        written = {path.name for part, path in made.files.items() if part.startswith("html")}
        assert written == {path.name for path in folder.glob("centers*.html")} - {"centers-mine.html"}
        return written

    assert len(pages()) > 1
    (folder / "centers-mine.html").write_text("of a user")
    assert pages(metric="kl") == {"centers.html"}
    assert (folder / "centers-mine.html").exists()


def test_all_centers_of_the_full_grid_are_all_that_move(tmp_path):
    model = al.load_model("tiny-opt")
    made = conduct(
        "stability", model, al.task_for(model), tmp_path / "run", tokens=50, collect_tokens=100, full=True,
        others={"again": al.task_for(model)}, options={"seeds": 1},
    )  # fmt: skip
    assert set(made.found.frame["center"]) == {name for name in registry.names() if registry.about(name).passes}


def test_curves_leave_what_the_explorer_shows(tmp_path):
    model = al.load_model("tiny-opt")
    options = {"centers": ["mean"], "fractions": [0.5], "seeds": 1}
    made = conduct(
        "curves", model, al.task_for(model), tmp_path / "run", site="mlp", tokens=100, collect_tokens=500,
        options=options,
    )  # fmt: skip
    assert LossCurves.load(made.files["curves"]).frame.equals(made.found.frame)
    assert made.site == "mlp"


def test_ctrl_c_says_what_to_do(command, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(layers, "ablate_layers", interrupt)
    code, _, errors = command("experiment", "layers", *SMALL, "--out", tmp_path / "run")
    assert code == 130
    assert errors.endswith(f"what is finished is in {tmp_path / 'run'}. Run the same again to go on.\n")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("layer",), "layers"),
        (("layers", "--fraction", "0.5"), "takes no --fraction"),
        (("curves", "--steps", "5"), "takes no --steps"),
        (("atypical", "--fraction", "0.5", "--fraction", "0.9"), "2 were given; give --fraction once"),
        (("layers", "--other", "stdlib-code"), "leave --other out"),
        (("processing", "--statistics", "none.safetensors"), "--statistics says nothing"),
        (("layers", "--center", "peek"), "peak"),
        (("layers", "--site", "zz"), "zz"),
    ],
)
def test_what_cannot_be_is_one_sentence(command, tmp_path, typed, said):
    name, *rest = typed
    code, out, errors = command("experiment", name, *SMALL, *rest, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert said in errors
    assert errors.count("\n") == 1


def test_every_experiment_says_what_it_asks():
    assert all(each.about and each.takes for each in EXPERIMENTS.values())

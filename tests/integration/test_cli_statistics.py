"""`ablation-lens neurons`, `merge`, `centers` and `explore` of run folders, as typed."""

import re
from types import SimpleNamespace

import pandas
import pytest

import ablation_lens as al
from tests.answers import answered
from tests.pages import payload_of
from tests.synthetic_statistics import draw, statistics_of


def require_refused(answer, message):
    code, out, errors = answer
    assert (code, out) == (2, "")
    assert re.search(message, errors), errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    for name, rows, neurons in (("one", 50, 6), ("two", 70, 6), ("other", 50, 5)):
        statistics_of(draw(rows, (2, 1, neurons))).save(folder / f"{name}.safetensors")
    return folder


# ---------------------------------------------------------------------- neurons


@pytest.mark.parametrize(
    ("heading", "column"),
    [
        *(("σ", "std"), ("mean μ", "mean"), ("|peak|/σ", "peak_over_sigma"), ("|μ−peak|/σ", "mean_to_peak_over_sigma")),
        *(
            ("|μ-peak|/σ", "mean_to_peak_over_sigma"),
            ("peak", "peak"),
            ("kurtosis", "excess_kurtosis"),
            ("skew", "skew"),
        ),
    ],
)
def test_neurons_are_sorted_by_what_stands_above_a_column(command, files, heading, column):
    values = answered(command("neurons", files / "one.safetensors", "--sort", heading, "--json"), "neurons")
    shown = [neuron[column] for neuron in values["neurons"]]
    assert values["sort"] == column
    assert shown == sorted(shown, reverse=True)


def test_every_heading_that_is_shown_can_be_sorted_by(command, files, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = command("neurons", files / "one.safetensors")
    headings = re.split(r"  +", next(line for line in out.splitlines() if line.strip().startswith("neuron")).strip())
    assert len(headings) == 7
    for heading in headings:
        assert command("neurons", files / "one.safetensors", "--sort", heading)[0] == 0


@pytest.mark.parametrize("columns", [50, 80])
def test_in_a_narrow_terminal_columns_are_left_out_and_no_number_is_cut(command, files, monkeypatch, columns):
    """The one it is sorted by stays."""
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = command("neurons", files / "one.safetensors", "--sort", "excess_kurtosis")
    assert code == 0
    assert "…" not in out
    assert "excess_kurtosis" in out
    assert max(map(len, out.splitlines())) <= columns


def test_a_pipe_gets_every_column_as_it_has_no_width(command, files, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    _, out, _ = command("neurons", files / "one.safetensors", "--sort", "excess_kurtosis")
    assert "…" not in out
    assert all(heading in out for heading in ("mean μ", "|μ−peak|/σ", "excess_kurtosis", "shape"))


def test_names_and_words_are_sorted_from_a_on(command, files):
    place = files / "one.safetensors"
    for way, first in (((), "L0.H0.D0"), (("--descending",), "L1.H0.D5")):
        values = answered(command("neurons", place, "--sort", "neuron", "--top", "1", "--json", *way), "neurons")
        assert values["neurons"][0]["neuron"] == first
        assert values["found"] == 12
    words = answered(command("neurons", place, "--sort", "shape", "--json"), "neurons")["neurons"]
    assert [row["shape"] for row in words] == sorted(row["shape"] for row in words)


def test_an_unknown_column_names_the_known(command, files):
    require_refused(command("neurons", files / "one.safetensors", "--sort", "sigma"), r"no column 'sigma'.*\|peak\|/σ")


@pytest.mark.parametrize("typed", [("neurons", "tiny-opt"), ("explore", "tiny-opt", "--html", "page.html")])
def test_a_model_in_place_of_its_statistics_is_told_how_to_make_them(command, tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    require_refused(command(*typed), "tiny-opt is a model.*ablation-lens collect tiny-opt --out")


def test_a_csv_file_and_json_say_where_it_is(command, files, tmp_path):
    csv = tmp_path / "n.csv"
    values = answered(command("neurons", files / "one.safetensors", "--csv", csv, "--json"), "neurons")
    assert (values["csv"], values["found"], values["neurons"]) == (str(csv), 12, [])
    assert len(pandas.read_csv(csv)) == 12


# ---------------------------------------------------------------------- merge


def test_merged_files_are_as_of_one_pass(command, files, tmp_path):
    one, two = files / "one.safetensors", files / "two.safetensors"
    code, out, errors = command("merge", one, two, "--out", tmp_path / "whole.safetensors")
    assert (code, errors) == (0, "")
    assert "120 positions" in out
    whole = al.ActivationStatistics.load(tmp_path / "whole.safetensors")
    parts = [al.ActivationStatistics.load(place) for place in (one, two)]
    assert (whole.count == parts[0].count + parts[1].count).all()
    assert (whole.center("peak") == parts[0].merge(parts[1]).center("peak")).all()
    values = answered(command("merge", one, two, "--out", tmp_path / "again.safetensors", "--json"), "statistics")
    assert (values["positions"], values["shape"]) == (120, {"layers": 2, "heads": 1, "dims": 6})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("one",), "is one file; give two or more"),
        (("one", "one"), "is given twice"),
        (("one", "none"), "there is no file"),
        (("one", "other"), "are not the same model|shape"),
        (("one", "."), "is a folder; give statistics files. Run folders are merged by copying"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_written(command, files, tmp_path, given, message):
    places = [files if name == "." else files / f"{name}.safetensors" for name in given]
    require_refused(command("merge", *places, "--out", tmp_path / "m"), message)
    assert list(tmp_path.iterdir()) == []


def test_merging_replaces_no_file_that_is_read(command, files):
    one, two = files / "one.safetensors", files / "two.safetensors"
    before = one.read_bytes()
    require_refused(command("merge", one, two, "--out", one), "is what is read")
    assert one.read_bytes() == before


# ---------------------------------------------------------------------- centers


def test_every_center_says_what_it_is_and_what_it_takes(command, registry):
    @registry.register("mine")
    def mine(statistics):
        """Of my own."""
        return statistics.mean

    listed = answered(command("centers", "--json"), "centers")["centers"]
    assert [each["name"] for each in listed] == list(registry.names())
    by_name = {each["name"]: each for each in listed}
    assert by_name["mine"] == {"name": "mine", "estimates": "Of my own.", "resolution": "", "passes": 1, "version": 1}
    assert by_name["peak-trimmed"]["passes"] == 2
    assert all(each["estimates"] and (each["resolution"] or each["name"] == "mine") for each in listed)
    code, out, _ = command("centers")
    assert code == 0
    assert all(name in out for name in registry.names())


# ---------------------------------------------------------------------- statistics in run folders


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the statistics of two models."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    sizes = {"collect_images": 16, "evaluate_images": 16, "collect_tokens": 300, "evaluate_tokens": 300}
    al.Study(models=["tiny-vit", "tiny-opt"], methods=["mean"], fractions=[0.5], seeds=[1], **sizes).run(
        folder, progress=False
    )
    return folder


def test_statistics_in_a_run_folder_are_found_by_model(command, run, tmp_path):
    values = answered(command("neurons", run, "--model", "tiny-opt", "--top", "1", "--json"), "neurons")
    assert (values["model"], values["found"]) == ("tiny-opt", 512)
    page = tmp_path / "page.html"
    values = answered(command("explore", run, "--model", "tiny-vit", "--html", page, "--json"), "page")
    assert (values["neurons"], values["bytes"]) == (384, page.stat().st_size)
    payload = payload_of(SimpleNamespace(html=page.read_text(encoding="utf-8")))
    assert [line["method"] for line in payload["damage"]] == ["mean"]  # the run's own results


def test_several_models_in_a_run_folder_are_named_and_asked_for(command, run, tmp_path):
    for asked in (("neurons", run), ("explore", run, "--html", tmp_path / "page.html")):
        require_refused(command(*asked), "say which by --model …, one of 'tiny-vit', 'tiny-opt'")
        require_refused(command(*asked, "--model", "tiny-vt"), "did you mean 'tiny-vit'. Known: tiny-vit, tiny-opt")


def test_a_file_of_statistics_has_no_models_to_choose_from(command, files):
    require_refused(command("neurons", files / "one.safetensors", "--model", "tiny-opt"), "leave --model out")


def test_a_folder_that_is_no_run_is_said_so(command, tmp_path):
    require_refused(command("neurons", tmp_path), "is not a run folder")

"""`ablation-lens info`, `collect`, `neurons` and `explore`, as typed: what is printed, and with which exit code."""

import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas
import pytest

import ablation_lens as al
from ablation_lens import files as ground
from ablation_lens import zoo
from ablation_lens.corpora import CorpusWarning
from ablation_lens.explorer import files as explorer_files
from ablation_lens.measure import collection
from tests.answers import answered
from tests.pages import payload_of
from tests.synthetic_statistics import draw, statistics_of


def test_info_prints_the_record(command, saved):
    code, out, errors = command("info", saved("vit"))
    assert code == 0, errors
    assert "ViTForImageClassification" in out
    require_refused(command("info", "./no-such-folder"), "there is no folder './no-such-folder'")


def test_collect_and_info_print_json(command, tmp_path):
    file = tmp_path / "s.safetensors"
    values = answered(
        command("collect", "tiny-opt", "--tokens", "200", "--context", "50", "--out", file, "--json"), "statistics"
    )
    assert (values["file"], values["positions"], values["corpora"][0]["name"]) == (str(file), 200, "stdlib")
    assert answered(command("info", "tiny-vit", "--json"), "model")["n_layers"] == 4


def test_collect_then_list_neurons(command, tmp_path):
    file = tmp_path / "stats.safetensors"
    code, out, errors = command("collect", "tiny-opt", "--tokens", "1000", "--out", file)
    assert code == 0, errors
    assert "1,000 positions" in out
    code, out, errors = command("neurons", file, "--sort", "peak/σ", "--top", "3")
    assert code == 0, errors
    assert len([line for line in out.splitlines() if line.startswith(" L")]) == 3
    code, _, errors = command("neurons", file, "--sort", "skew", "--ascending", "--csv", tmp_path / "n.csv")
    assert code == 0, errors
    frame = pandas.read_csv(tmp_path / "n.csv", index_col="neuron")
    assert len(frame) == 512
    assert frame["skew"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("collect", "tiny-opt", "--site", "zz"), "no site 'zz'; did you mean 'z'"),
        (("collect", "tiny-opt", "--tokens", "1"), "--tokens 1 is too few"),
        (("collect", "tiny-opt", "--images", "5"), "measured in tokens"),
        (("collect", "tiny-op"), "did you mean tiny-opt"),
        (("collect", "tiny-opt", "--corpus", "stdlb"), "stdlib"),
        (("collect", "tiny-vit", "--corpus", "stdlib", "--images", "4"), "image"),
    ],
)
def test_bad_requests_are_one_line_exit_code_two_and_no_file(command, arguments, message, tmp_path):
    require_refused(command(*arguments, "--out", tmp_path / "s.safetensors"), message)
    assert list(tmp_path.iterdir()) == []


def require_refused(answer, message):
    code, _, errors = answer
    assert code == 2
    assert re.search(message, errors)
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("The quick brown fox.\n\nJumps over the lazy dog.\n")
    return file


def test_the_corpus_is_never_overwritten(command, corpus):
    answer = command("collect", "tiny-opt", "--corpus", corpus, "--split", "all", "--out", corpus)
    require_refused(answer, "is what is read; give another file")
    assert corpus.read_text().startswith("The quick")


def test_files_of_a_model_or_a_corpus_folder_are_never_overwritten(command, saved, corpus):
    weights = saved("opt") / "model.safetensors"
    before = weights.read_bytes()
    for source, target in ((saved("opt"), weights), (corpus.parent, corpus)):
        answer = command("collect", saved("opt"), "--corpus", corpus.parent, "--out", target)
        require_refused(answer, f"is a file of {re.escape(str(source))}, which is read; give a file elsewhere")
    assert weights.read_bytes() == before
    assert corpus.read_text().startswith("The quick")


def test_a_small_corpus_is_said_in_one_plain_line(corpus, tmp_path):
    """In a process of its own, whose warnings nobody catches."""
    command = [sys.executable, "-m", "ablation_lens", "collect", "tiny-opt", "--tokens", "500", "--split", "all"]
    command += ["--corpus", str(corpus), "--out", str(tmp_path / "s.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("warning: all of ")
    assert "500 were asked for" in result.stderr
    assert result.stderr.count("\n") == 1


def test_statistics_of_an_interrupted_collection_replace_no_others(command, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise collection.CollectionInterrupted(next(collected))

    collected = iter([statistics_of(draw(rows, (1, 1, 4))) for rows in (30, 40)] + [None])
    monkeypatch.setattr(collection, "collect", interrupted)
    out = tmp_path / "s.safetensors"
    out.write_text("of an earlier run")
    for name, rows in (("s.partial.safetensors", 30), ("s.partial-2.safetensors", 40)):
        code, said, errors = command("collect", "tiny-opt", "--tokens", "100", "--out", out)
        assert (code, said) == (130, "")
        assert errors.endswith(f" is in {tmp_path / name}\n")
        assert al.ActivationStatistics.load(tmp_path / name).provenance.tokens == rows
    code, _, errors = command("collect", "tiny-opt", "--tokens", "100", "--out", out)
    assert (code, errors) == (130, "interrupted within a batch; nothing is saved.\n")
    assert len(list(tmp_path.iterdir())) == 3
    assert out.read_text() == "of an earlier run"


@pytest.fixture
def lost(tmp_path, monkeypatch):
    """A folder that is gone when the work is done, and where the system's temporary files go."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "lost").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    write = ground.write_result

    def gone(path, *arguments):
        shutil.rmtree(path.parent)
        write(path, *arguments)

    for module in (explorer_files, ground):
        monkeypatch.setattr(module, "write_result", gone)
    return tmp_path / "lost"


def test_what_was_collected_is_kept_where_its_folder_is_gone(command, lost):
    answer = command("collect", "tiny-opt", "--tokens", "100", "--out", lost / "s.safetensors")
    require_refused(answer, "cannot write to .*; what was made is in .*s.safetensors instead")
    (path,) = lost.parent.glob("temporary/*/s.safetensors")
    assert str(path) in answer[2]
    assert al.ActivationStatistics.load(path).provenance.tokens == 100


def test_a_page_is_kept_where_its_folder_is_gone(command, files, lost):
    answer = command("explore", files / "first.safetensors", "--html", lost / "page.html")
    require_refused(answer, "what was made is in .*page.html instead")
    (path,) = lost.parent.glob("temporary/*/page.html")
    assert payload_of(SimpleNamespace(html=path.read_text(encoding="utf-8")))["datasets"]


# ---------------------------------------------------------------------- explore


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    model = al.load_model("tiny-opt")
    for name, split in (("first", "collect"), ("second", "evaluate")):
        plan = al.task_for(model).batches(split=split, tokens=1500)
        al.collect(model, plan, progress=False).save(folder / f"{name}.safetensors")
    statistics_of(draw(50, (1, 1, 4))).save(folder / "own.safetensors")
    return folder


def test_explore_writes_a_page_with_examples_and_a_comparison(command, files, tmp_path):
    target, first, second = tmp_path / "page.html", files / "first.safetensors", files / "second.safetensors"
    code, out, errors = command("explore", first, "--html", target, "--compare", second, "--examples", "3")
    assert code == 0, errors
    assert "512 neurons" in out
    payload = payload_of(SimpleNamespace(html=target.read_text(encoding="utf-8")))
    assert [dataset["label"] for dataset in payload["datasets"]] == ["first.safetensors", "second.safetensors"]
    assert len(payload["examples"]["neurons"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.safetensors", "--html", "page.html"), "there is no file"),
        (("first.safetensors", "--html", "nowhere/page.html"), "there is no folder"),
        (("first.safetensors", "--html", "first.safetensors"), "is what is read; give another file"),
        (("first.safetensors", "--html", "page.html", "--compare", "own.safetensors"), "cannot lie over each other"),
        (("own.safetensors", "--html", "page.html", "--examples", "2"), "of 'synthetic', and what a file names is not"),
        (("first.safetensors", "--html", "page.html", "--corpus", "stdlib", "--examples", "0"), "one or the other"),
        (
            ("first.safetensors", "--html", "page.html", "--examples", "2", "--model", "tiny-mistral"),
            "tiny-opt and tiny-mistral are not the same model",
        ),
    ],
)
def test_bad_requests_for_pages_are_one_line_exit_code_two_and_no_file(command, files, tmp_path, arguments, message):
    places = [files / each if each.endswith(".safetensors") else each for each in arguments]
    places = [tmp_path / each if str(each).endswith(".html") else each for each in places]
    require_refused(command("explore", *places), message)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def named(tmp_path, saved):
    """Statistics whose model and corpus are paths, and these."""
    secret = tmp_path / "secret.txt"
    secret.write_text("\n\n".join(f"The root password number {number} is swordfish." for number in range(40)))
    model = shutil.copytree(zoo.folder("tiny-opt"), tmp_path / "model")
    hooked = al.load_model(model)
    plan = al.task_for(hooked, str(secret)).batches(split="all")
    al.collect(hooked, plan, progress=False).save(tmp_path / "s.safetensors")
    return tmp_path / "s.safetensors", model, secret


def test_what_a_statistics_file_names_is_not_opened(command, named, tmp_path):
    """It may come from anybody, and its page may go to anybody."""
    statistics, model, _ = named
    page = tmp_path / "page.html"
    asked = ("explore", statistics, "--html", page, "--examples", "3")
    require_refused(command(*asked), r"they are of '.*model', and what a file names is not loaded.*--model")
    require_refused(
        command(*asked, "--model", model), r"over '.*secret.txt', and what a file names is not opened.*--cor"
    )
    assert not page.exists()


def test_who_names_model_and_corpus_gets_examples(command, named, tmp_path):
    statistics, model, corpus = named
    page = tmp_path / "page.html"
    asked = ("explore", statistics, "--html", page, "--examples", "3", "--model", model, "--corpus")
    code, _, errors = command(*asked, corpus)
    assert (code, errors) == (0, "")
    assert "swordfish" in str(payload_of(SimpleNamespace(html=page.read_text(encoding="utf-8")))["examples"])
    with pytest.warns(CorpusWarning, match="stdlib does not hold the documents these statistics were collected over"):
        code, _, _ = command(*asked, "stdlib")
    assert code == 0
    require_refused(
        command(*asked[:4], "--examples", "3", "--model", model, "--corpus", corpus, "--html", corpus), "read"
    )


def test_a_page_never_replaces_a_file_of_the_results_it_reads(command, files, tmp_path):
    cell = tmp_path / "cell"
    cell.write_text("precious")
    answer = command("explore", files / "first.safetensors", "--html", cell, "--results", tmp_path)
    require_refused(answer, f"is a file of {re.escape(str(tmp_path))}, which is read")
    assert cell.read_text() == "precious"

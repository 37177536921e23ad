"""`ablation-lens evaluate`, as typed: a model's scores with and without one ablation."""

import pytest

import ablation_lens as al
from tests.answers import answered

SIZE = ("--tokens", "300")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with statistics and an ablation of tiny-opt, and the scores that they must give."""
    folder = tmp_path_factory.mktemp("evaluate")
    model = al.load_model("tiny-opt")
    task = al.task_for(model)
    statistics = al.collect(model, task.batches(split="collect", tokens=300), progress=False)
    statistics.save(folder / "s.safetensors")
    plan = task.batches(split="evaluate", tokens=300)
    ablations = {
        "drawn": statistics.ablation(al.random_neurons(statistics.shape, 0.5, 7), "peak"),
        "named": statistics.ablation(al.whole_heads(statistics.shape, ["L1.H2", "L3.H0"]), "peak"),
        "zero": statistics.ablation(al.random_neurons(statistics.shape, 0.5, 42), "zero"),
    }
    ablations["named"].save(folder / "a.safetensors")
    scores = {name: al.evaluate(model, plan, ablation) for name, ablation in ablations.items()}
    return folder, al.evaluate(model, plan), scores


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("drawn", ("--center", "peak", "--fraction", "0.5", "--seed", "7")),  # collected first
        ("drawn", ("--center", "peak", "--fraction", "0.5", "--seed", "7", "--statistics", "s.safetensors")),
        ("named", ("--center", "peak", "--neuron", "L1.H2", "--neuron", "L3.H0", "--statistics", "s.safetensors")),
        ("named", ("--ablation", "a.safetensors")),
        ("zero", ("--center", "zero", "--fraction", "0.5")),
    ],
)
def test_an_ablation_is_scored_as_by_python_however_it_is_said(command, measured, monkeypatch, name, asked):
    folder, before, scores = measured
    monkeypatch.chdir(folder)
    values = answered(command("evaluate", "tiny-opt", *asked, *SIZE, "--json"), "evaluation")
    assert values["before"] == {"top1": before.top1, "cross_entropy": before.cross_entropy}
    assert values["after"] == {"top1": scores[name].top1, "cross_entropy": scores[name].cross_entropy}
    change = values["difference"]["cross_entropy"]
    assert change["low"] <= change["value"] <= change["high"]
    assert change["value"] == pytest.approx(scores[name].cross_entropy - before.cross_entropy)
    assert values["ablation"]["neurons"] == {"drawn": 256, "zero": 256, "named": 64}[name]


def test_the_scores_are_shown_for_people(command, measured):
    folder, before, scores = measured
    code, out, _ = command("evaluate", "tiny-opt", "--ablation", folder / "a.safetensors", *SIZE)
    assert code == 0
    assert f"{before.cross_entropy:.3f}" in out
    assert f"{scores['named'].cross_entropy:.3f}" in out
    assert "95 % interval" in out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((), "say what to ablate: --ablation FILE, or --center peak"),
        (("--center", "peak"), "say which neurons, and once"),
        (("--center", "peak", "--fraction", "0.5", "--neuron", "L1"), "say which neurons, and once"),
        (("--fraction", "0.5"), "say what the neurons are set to, such as --center peak"),
        (("--center", "peak", "--fraction", "2"), "--fraction 2 is not possible; give a number from 0 to 1"),
        (("--center", "peak", "--neuron", "L1", "--seed", "3"), "--neuron names them; leave one out"),
        (
            ("--center", "paek", "--fraction", "0.5"),
            "'paek' is not a center; the nearest is 'peak'. There are zero, mean",
        ),
        (("--center", "peak bins=x", "--fraction", "0.5"), "is not a parameter"),
        (("--center", "zero", "--neuron", "L9.H1"), "L9.H1 does not exist"),
        (("--center", "zero", "--neuron", "neuron 3"), "'neuron 3' is not a"),
        (("--center", "zero", "--fraction", "0.5", "--site", "mpl"), "no site 'mpl'; did you mean 'mlp'"),
        (("--center", "peak", "--fraction", "0.5", "--images", "5"), "give --tokens …"),
        (("--ablation", "no-such-file"), "there is no file"),
        (("--ablation", "a", "--center", "peak"), "--ablation and --center both say what to ablate"),
        (("--center", "zero", "--fraction", "0.5", "--statistics", "no-such-file"), "there is no file"),
    ],
)
def test_bad_requests_are_one_line_and_exit_code_2(command, asked, message):
    code, out, errors = command("evaluate", "tiny-opt", *asked)
    assert (code, out) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


def test_one_label_is_scored_alone_and_the_answer_says_so(command, tmp_path):
    rows = [f'{{"text": "number {number} is here", "kind": "{("code", "prose")[number % 2]}"}}' for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    asked = ("--center", "zero", "--neuron", "L0.H0")
    texts = ("--corpus", tmp_path / "rows.jsonl", "--label-column", "kind")
    for model, further, name, task in (
        ("tiny-vit", ("--only", "3", "--only", "5", "--except", "5"), "digits, only 3", {}),
        ("tiny-opt", (*texts, "--except", "code"), "rows.jsonl, except code", {"corpus": tmp_path / "rows.jsonl"}),
    ):
        values = answered(command("evaluate", model, *asked, *further, "--json"), "evaluation")
        assert values["corpus"]["name"].endswith(name)
        whole = al.task_for(al.load_model(model), **task).batches()
        assert 0 < values["documents"] < len(whole.items)


def test_the_column_that_an_error_asks_for_can_be_given(command, tmp_path):
    rows = [f'{{"body": "number {number} is here", "title": "{number}"}}' for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    asked = ("evaluate", "tiny-opt", "--center", "zero", "--neuron", "L0.H0", "--corpus", tmp_path / "rows.jsonl")
    code, _, errors = command(*asked)
    assert code == 2
    assert "say which to take with --column NAME" in errors
    read = answered(command(*asked, "--column", "body", "--json"), "evaluation")["corpus"]
    assert ["column", "body"] in read["settings"]


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        ("tiny-vit", ("--only", "seven"), "'seven' is not one of the model's 10 classes; give one of '0', '1'"),
        ("tiny-vit", ("--only", "3", "--except", "3"), "nothing is both 'only 3' and 'except 3'"),
        ("tiny-opt", ("--only", "code"), "stdlib has no labels that documents could be chosen by; give JSON lines, "
         "Parquet or a data set, and --label-column NAME"),
        ("tiny-opt", ("--label-column", "kind"), "--label-column 'kind' does not apply to stdlib; leave it out"),
    ],
)  # fmt: skip
def test_labels_that_are_not_there_are_one_line(command, model, asked, message):
    code, out, errors = command("evaluate", model, "--center", "zero", "--neuron", "L0.H0", *asked)
    assert (code, out) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


def test_statistics_of_another_model_or_site_are_refused(command, measured):
    asked = ("--center", "mean", "--fraction", "0.5", "--statistics", measured[0] / "s.safetensors", *SIZE)
    for model, further, message in (
        ("tiny-mistral", (), "are not the same model"),
        ("tiny-opt", ("--site", "mlp"), "is of site 'z'; leave --site out"),
    ):
        code, out, errors = command("evaluate", model, *asked, *further)
        assert (code, out) == (2, "")
        assert message in errors

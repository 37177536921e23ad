"""`ablation-lens circuit`, as typed: a folder that is gone on with, and a page about what came out."""

import json
import os
import re
import shutil

import pytest
import torch

import ablation_lens as al
from ablation_lens.circuits import Circuit, Effects, Prompts, analysis
from ablation_lens.circuits.analysis import AnalysisSettings, CircuitFolder
from ablation_lens.cli.circuits import TASKS
from ablation_lens.files import save_json
from ablation_lens.measure.learned import Cost, Learned
from ablation_lens.records import record_of
from ablation_lens.report.circuit import write_circuit_report
from ablation_lens.sites import Site
from ablation_lens.study.cells import StudyFolder
from ablation_lens.tasks.known_rows import row_digests
from tests.answers import answered

ASKED = ("circuit", "tiny-opt", "--task", "induction", "--count", "12", "--tokens", "2000", "--steps", "3")
HOSTILE = '<img src=x onerror=alert(1)>\x1b]0;owned\x07|**"'


def parts_of(folder):
    """Every finished part, and when it was written."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for part in ("circuits", "curves", "effects", "prompts", "statistics")
        for path in (folder / part).iterdir()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished folder, made in Python with the settings that `ASKED` has."""
    folder = tmp_path_factory.mktemp("circuit") / "run"
    model = al.load_model("tiny-opt")
    prompts = al.circuits.prompts_for("induction", model, count=12)
    about = {"metric": "logit_difference", "sites": ("z", "mlp"), "level": "head", "method": "attribution"}
    about |= {"target": 0.9, "steps": 3, "tokens": 2000, "count": 12, "seed": 0}
    settings = AnalysisSettings("tiny-opt", "induction", None, centers=("zero", "peak"), **about)
    plan = al.task_for(model).batches(split="collect", tokens=2000)
    analysis.analyse(model, prompts, settings, folder, statistics=plan, progress=False)
    write_circuit_report(CircuitFolder(folder))
    return folder


@pytest.fixture
def copied(run, tmp_path):
    """One that a test may change; a copy is as good as the folder itself."""
    return shutil.copytree(run, tmp_path / "copy")


BOTH = ("--center", "zero", "--center", "peak")


def test_the_answer_names_circuits_files_and_pairs(run, command):
    folder = run
    values = answered(command(*ASKED, *BOTH, "--out", folder, "--json"), "circuit")
    assert [each["center"] for each in values["centers"]] == ["zero", "peak"]
    assert len(values["pairs"]) == 4
    for each in values["centers"]:
        assert Effects.load(each["knockouts"]).level == "head"
        assert Effects.load(each["attributions"]).level == "neuron"
        circuit = Circuit.load(each["circuit"])
        assert circuit.units("head") == each["kept"]
        assert (len(each["kept"]), each["of"]) == (each["units"], 20)
        assert each["found"]["rows"] + each["judged"]["rows"] == 12
        assert len(each["judged"]["random"]) == 10
        judged = each["judged"]
        f = (judged["m_circuit"] - judged["m_empty"]) / (judged["m_model"] - judged["m_empty"])
        assert each["refused"] is None
        assert judged["f"] is None or judged["f"] == pytest.approx(f)
    assert len(Prompts.load(next((folder / "prompts").iterdir()))) == 12


def test_the_same_command_measures_nothing_twice(copied, command, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("this is there already")

    for name in ("knockout_effects", "attribution_effects", "discover", "faithfulness_curve", "collect"):
        monkeypatch.setattr(analysis, name, refuse)
    before = parts_of(copied)
    code, out, errors = command(*ASKED, *BOTH, "--out", copied)
    assert (code, errors) == (0, "")
    assert parts_of(copied) == before
    lines = out.splitlines()
    assert "tiny-opt, logit_difference of induction: 12 of 40 tokens" in " ".join(lines[:2])
    assert [line.split()[0] for line in lines if line.startswith(("zero", "peak"))] == ["zero", "peak"]
    folder = CircuitFolder(copied)
    for name, key in folder.latest().circuits.items():
        assert f"Kept with {name}: {', '.join(folder.circuit(key)[1].units())}" in " ".join(out.split())
    assert "Each row is a circuit of its own" in " ".join(out.split())


def test_other_settings_keep_what_they_do_not_touch_and_it_is_said(copied, command):
    before = parts_of(copied)
    code, _, errors = command(*ASKED, "--center", "peak", "--target", "0.5", "--out", copied)
    assert code == 0
    assert "other settings (centers: zero and peak before; target: 0.9 before)" in errors
    after = parts_of(copied)
    assert {name: after[name] for name in before} == before
    assert sorted({name.split("/")[0] for name in after.keys() - before.keys()}) == ["circuits", "curves"]
    assert CircuitFolder(copied).latest().settings.target == 0.5


@pytest.mark.parametrize(
    ("name", "finished"),
    [("knockout_effects", 0), ("attribution_effects", 1), ("discover", 2), ("faithfulness_curve", 4)],
)
def test_ctrl_c_keeps_what_is_finished(command, tmp_path, name, finished, monkeypatch):
    folder = tmp_path / "run"

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    asked = (*ASKED, "--center", "zero", "--level", "layer", "--out", folder)
    with monkeypatch.context() as patch:
        patch.setattr(analysis, name, interrupted)
        code, out, errors = command(*asked)
    assert (code, out) == (130, "")
    assert "Run the same again to go on" in errors
    kept = parts_of(folder)
    assert len([part for part in kept if not part.startswith(("prompts", "statistics"))]) == finished
    # The page of what there is says what is not.
    code, _, errors = command("report", folder)
    assert code == 1
    assert "run the same command again" in errors
    assert command(*asked)[0] == 0
    after = parts_of(folder)
    assert {part: after[part] for part in kept} == kept


def test_effects_of_an_interruption_are_not_taken_for_whole(command, tmp_path, monkeypatch):
    whole = analysis.knockout_effects

    def in_part(*args, **options):
        effects = whole(*args, **options)
        done = {site: effects[site].bool() & False for site in effects.sites}
        return Effects(**{**vars(effects), "done": done})

    monkeypatch.setattr(analysis, "knockout_effects", in_part)
    code, _, _ = command(*ASKED, "--center", "zero", "--site", "z", "--out", tmp_path / "run")
    assert code == 130
    assert not list((tmp_path / "run" / "effects").iterdir())


def test_the_page_says_what_was_asked_and_what_came_out(run):
    folder = CircuitFolder(run)
    record = folder.latest()
    text = (run / "report.md").read_text(encoding="utf-8")
    for heading in ("With everything ablated", "What every unit is worth", "The circuits", "To do it again"):
        assert f"## {heading}" in text
    assert "ablation-lens circuit tiny-opt --task induction --count 12 --center zero --center peak" in text
    for key in record.circuits.values():
        found, circuit = folder.circuit(key)
        assert f"{found.units} of 20" in text
        assert f": {', '.join(circuit.units())}." in text
        assert found.judged.f is None or f"**{found.judged.f:.3f}" in text
    page = (run / "report.html").read_text(encoding="utf-8")
    figures = set(re.findall(r'<figure id="([\w-]+)">', page))
    assert {"effects-0", "effects-1", "circuit-0", "circuit-1", "curves", "cpr", "cmd"} <= figures
    named = set(re.findall(r'data-name="([\w.]+)"', page))
    assert named == {"effects.csv", "curves.csv", "pairs.csv", "prompts.json"}


def test_report_knows_the_folder_and_other_commands_refuse_it(run, command, tmp_path):
    folder = run
    values = answered(command("report", folder, "--out", tmp_path / "page", "--json"), "report")
    assert (tmp_path / "page" / "report.html").stat().st_size > 1e6
    assert values["markdown"].endswith("report.md")
    code, out, errors = command("table", folder)
    assert (code, out) == (2, "")
    assert "folder of 'circuits'" in errors


def test_status_tells_which_parts_of_an_analysis_are_done_and_who_is_at_work(run, command, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    whole = answered(command("status", folder, "--json"), "status")
    assert sum(row["left"] for row in whole["rows"]) == 0
    assert whole["at_work"] == []
    kept = CircuitFolder(folder)
    kept.file("effects", next(iter(kept.latest().knockouts.values()))).unlink()
    with kept.locked("some key", what="judging"):
        code, out, _ = command("status", folder)
    assert code == 0
    assert re.search(rf"judging +{os.getpid()} ", out)
    assert out.endswith("1 left, 1 at work\n")


def test_a_study_s_folder_is_not_written_to(command, tmp_path):
    StudyFolder.create(tmp_path / "run")
    code, _, errors = command(*ASKED, "--out", tmp_path / "run")
    assert code == 2
    assert "folder of 'study'" in errors


def test_a_damaged_part_is_left_out_and_said(copied, command):
    effects = next((copied / "effects").iterdir())
    effects.write_bytes(effects.read_bytes()[:-9])
    code, _, errors = command("report", copied)
    assert code == 1
    assert effects.name in errors
    assert "What is missing" in (copied / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["../../outside", "", "x" * 5000, "a/b"])
def test_a_forged_analysis_names_no_file_elsewhere(copied, command, key):
    """A checksum is anybody's to compute; the name of a part is looked at all the same."""
    folder = CircuitFolder(copied)
    held = folder.latest().to_dict()
    for part in ("knockouts", "circuits"):
        held[part] = dict.fromkeys(held[part], key)
    save_json(folder.json("analyses", "forged"), analysis.ANALYSIS, held)
    code, out, errors = command("report", copied)
    assert (code, out) == (2, "")
    assert "forged.json" in errors
    assert len(errors) < 1500


def test_neurons_are_explored_by_what_a_circuit_s_folder_says(run, command, tmp_path):
    folder = run
    commands = re.findall(r"^ablation-lens (explore .*)$", (folder / "report.md").read_text("utf-8"), re.MULTILINE)
    assert len(commands) == 4  # two centers at two sites
    words = commands[0].split()
    words[-1] = str(tmp_path / "page.html")
    code, _, errors = command(*words, "--examples", "0")
    assert (code, errors) == (0, "")
    assert '"effect_share"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    # Those of the other site.
    words[1] = commands[1].split()[1]
    words[3] = str(next((folder / "circuits").glob("*.safetensors")))
    code, _, errors = command(*words, "--examples", "0")
    assert code == 2
    assert "effects" in errors


# ---------------------------------------------------------------------- what else is taken


def test_prompts_of_a_file_and_statistics_of_their_own(command, tmp_path):
    model = al.load_model("tiny-opt")
    prompts = al.circuits.prompts_for("induction", model, count=10, seed=3)
    prompts.save(tmp_path / "mine.json")
    asked = ("circuit", "tiny-opt", "--prompts", tmp_path / "mine.json", "--out", tmp_path / "run")
    options = ("--statistics", "prompts", "--center", "mean", "--center", "counterfactual", "--level", "layer")
    values = answered(command(*asked, *options, "--steps", "2", "--json"), "circuit")
    assert "half of the prompts" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert values["prompts"].startswith("induction: 10")
    assert not list((tmp_path / "run" / "statistics").iterdir())
    assert "--prompts" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


def test_statistics_of_files_are_taken_by_site(command, tmp_path):
    for site in ("z", "mlp"):
        collected = ("collect", "tiny-opt", "--tokens", "1000", "--site", site, "--out", tmp_path / site)
        assert command(*collected)[0] == 0
    asked = [*ASKED, "--center", "peak", "--level", "layer", "--out", tmp_path / "run"]
    del asked[asked.index("--tokens") : asked.index("--tokens") + 2]
    both = ("--statistics", tmp_path / "z", "--statistics", tmp_path / "mlp")
    assert command(*asked, *both)[0] == 0
    for given, words in (
        (both[:2], "of z, and none are of mlp"),
        ((*both[:2], *both[:2]), "two of the --statistics are of z"),
        ((*both, "--tokens", "10"), "--corpus and --tokens say nothing"),
    ):
        code, out, errors = command(*asked, *given)
        assert (code, out) == (2, ""), given
        assert re.search(words, errors), errors


def learned_file(path, site, model, rows=(1, 2), method="optimal"):
    """A file as `ablation-lens learn` writes it."""
    values = torch.full(Site(site).shape(model.cfg), 0.01).double()
    Learned(method, values, Site(site), record_of(model), {}, torch.tensor(rows), Cost(70, 90), "").save(path)
    return "--values", path


def test_learned_values_are_tried_beside_centers(command, tmp_path):
    model, asked = (
        al.load_model("tiny-opt"),
        (*ASKED, "--center", "zero", "--level", "layer", "--out", tmp_path / "run"),
    )
    assert command(*asked)[0] == 0
    before = parts_of(tmp_path / "run")
    both = [word for site in ("z", "mlp") for word in learned_file(tmp_path / site, site, model)]
    code, out, errors = command(*asked, *both, "--json")
    assert "other settings (values: none before)" in errors
    values = answered((code, out, ""), "circuit")
    assert [each["center"] for each in values["centers"]] == ["zero", "optimal"]
    assert len(values["pairs"]) == 4
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "set to: zero, optimal." in text
    assert "what it was learned from (70 positions)" in text
    assert f"--values {tmp_path / 'mlp'}" in text
    after = parts_of(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    # Whatever a file calls its values, they are text, and name no file.
    hostile = learned_file(tmp_path / "hostile", "z", model, method="../../x" + HOSTILE)
    code, out, errors = command(*asked, "--site", "z", *hostile)
    assert code in (0, 1)
    assert "\x1b" not in out + errors
    assert "<img" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8").split("<script>")[0]


def test_learned_values_that_cannot_be_used_are_refused_in_one_sentence(command, tmp_path):
    model = al.load_model("tiny-opt")
    prompts = al.circuits.prompts_for("induction", model, count=12)
    seen = torch.cat([row_digests(batch, "causal").flatten() for batch in prompts]).unique()
    z, mlp = (learned_file(tmp_path / site, site, model) for site in ("z", "mlp"))
    other = learned_file(tmp_path / "other", "z", al.load_model("tiny-mistral"))
    judged = learned_file(tmp_path / "judged", "z", model, seen.tolist())
    called = learned_file(tmp_path / "called", "z", model, method="zero")
    asked = (*ASKED, "--center", "zero", "--out", tmp_path / "run")
    for given, words in (
        ((*mlp, "--site", "z"), "holds values of mlp"),
        (z, "none are of mlp"),
        ((*z, *mlp, *z), "two of the --values are optimal of z"),
        ((*other, "--site", "z"), "model"),
        ((*judged, "--site", "z"), "were computed from the inputs that are to be judged on"),
        ((*called, "--site", "z"), "as a center is"),
        (("--values", tmp_path / "nowhere"), "nowhere"),
    ):
        code, out, errors = command(*asked, *given)
        assert (code, out) == (2, ""), given
        assert words in errors
        assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("values", [(), ("a", "b")])
def test_settings_of_before_there_were_learned_values_keep_their_key(run, values):
    held = CircuitFolder(run).latest()
    settings = AnalysisSettings(**{**held.settings.to_dict(), "values": values})
    assert ("values" in settings.to_dict()) == bool(values)
    assert AnalysisSettings.from_dict(settings.to_dict()) == settings
    assert "values" not in held.to_dict()["settings"]


def test_what_cannot_be_said_stands_there_as_a_sentence(command, tmp_path):
    """A rank has no gradient: there are exact effects, and nothing that is made of attributions."""
    folder = tmp_path / "run"
    code, out, errors = command(*ASKED, "--center", "zero", "--metric", "rank", "--level", "layer", "--out", folder)
    assert (code, errors) == (1, "")  # no circuit was found
    assert "gradient" in out
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "No attributions with zero: " in text
    assert "With zero: " in text


def test_names_in_a_file_are_text(command, tmp_path):
    prompts = al.circuits.prompts_for("induction", al.load_model("tiny-opt"), count=8)
    prompts.save(tmp_path / "mine.json")
    held = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))
    (tmp_path / "mine.json").write_text(json.dumps(held | {"name": HOSTILE}), encoding="utf-8")
    asked = ("circuit", "tiny-opt", "--prompts", tmp_path / "mine.json", "--out", tmp_path / "run")
    code, out, errors = command(*asked, "--center", "zero", "--level", "layer", "--steps", "2")
    assert code == 0
    assert "\x1b" not in out + errors
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8").split("<script>")[0]
    assert "&lt;img" in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\x1b" not in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--task induction, or --prompts FILE"),
        (("--task", "induction", "--prompts", "x.json"), "--task induction, or --prompts FILE"),
        (("--prompts", "x.json", "--count", "8"), "--count draws the prompts of --task"),
        (("--prompts", "x.json"), "x.json"),
        (("--task", "inductoin"), "did you mean 'induction'"),
        (("--task", "induction", "--center", "peek"), "did you mean 'peak'"),
        (("--task", "induction", "--site", "x"), "site 'x'"),
        (("--task", "induction", "--level", "haed"), "did you mean 'head'"),
        (("--task", "induction", "--method", "gready"), "did you mean 'greedy'"),
        (("--task", "induction", "--method", "greedy", "--level", "neuron"), "--method"),
        (("--task", "induction", "--target", "2"), "--target 2"),
        (("--task", "induction", "--metric", "logit_diference"), "logit_difference"),
        (("--task", "induction", "--steps", "0"), "--steps"),
        (("--task", "induction", "--statistics", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_about_the_option(command, tmp_path, options, words):
    code, out, errors = command("circuit", "tiny-opt", *options, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_shell_completes_every_task():
    assert set(al.circuits.prompt_names()) == set(TASKS)

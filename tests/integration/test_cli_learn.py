"""`ablation-lens learn`, and commands that take what it wrote, as typed."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.measure import descent
from ablation_lens.measure.learned import Learned
from tests.answers import answered

SIZE = ("--tokens", "600")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A file, and its values, as Python learns them."""
    path = tmp_path_factory.mktemp("learn") / "v.safetensors"
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=600)
    values = al.learn(model, plan, "optimal", share=0.9, steps=2, progress=False)
    values.save(path)
    return path, values


def test_a_file_is_learned_as_by_python(command, learned, tmp_path):
    out = tmp_path / "v.safetensors"
    asked = ("--method", "optimal steps=2", "--share", "0.9", "--out", out, *SIZE, "--json")
    values = answered(command("learn", "tiny-opt", *asked), "learned")
    assert torch.equal(Learned.load(out).values, learned[1].values)
    assert (values["method"], values["site"], values["settings"]["share"]) == ("optimal", "z", [0.9, 0.9])
    assert values["passes"] == pytest.approx(learned[1].cost.passes)
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


@pytest.fixture
def stopped(monkeypatch):
    """Ctrl-C at this step; and the steps that were taken."""
    taken, stop_at = [], [3]
    before = descent._Descent.take_step

    def note(self, state):
        if state.step == stop_at[0]:
            raise KeyboardInterrupt
        taken.append(state.step)
        before(self, state)

    monkeypatch.setattr(descent._Descent, "take_step", note)
    return taken, stop_at


def test_after_ctrl_c_the_same_command_goes_on(command, tmp_path, stopped):
    out, (taken, stop_at) = tmp_path / "v.safetensors", stopped
    asked = ("learn", "tiny-opt", "--steps", "4", "--out", out, *SIZE)
    code, printed, errors = command(*asked)
    assert (code, printed) == (130, "")
    assert "interrupted after 3 of 4 steps" in errors
    (state,) = tmp_path.iterdir()
    assert state.name.startswith("v.safetensors.")
    assert errors.endswith(f"What is kept is in {state}.\n")
    assert "othing is kept" not in errors
    stop_at[0] = None
    code, printed, _ = command(*asked)
    assert (code, taken) == (0, [0, 1, 2, 3])
    assert printed.startswith("Learned(optimal")
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


def test_what_other_settings_have_learned_stays(command, tmp_path, stopped):
    out, (_, stop_at) = tmp_path / "v.safetensors", stopped
    asked = ("learn", "tiny-opt", "--out", out, *SIZE)
    assert command(*asked, "--steps", "4")[0] == 130
    (state,) = tmp_path.iterdir()
    before, stop_at[0] = state.read_bytes(), None
    for others in (("--steps", "2"), ("--method", "sensitivity-mean")):
        assert command(*asked, *others)[0] == 0
        assert sorted(tmp_path.iterdir()) == [out, state]
        assert state.read_bytes() == before


def test_nothing_is_said_to_be_kept_where_nothing_is(command, tmp_path, stopped):
    out, (_, stop_at) = tmp_path / "v.safetensors", stopped
    stop_at[0] = 0
    code, _, errors = command("learn", "tiny-opt", "--steps", "4", "--out", out, *SIZE)
    assert code == 130
    assert errors.endswith("interrupted after 0 of 4 steps. Nothing is kept.\n")
    assert not list(tmp_path.iterdir())


def test_the_statistics_it_begins_from_are_not_replaced(command, tmp_path):
    path = tmp_path / "s.safetensors"
    path.write_bytes(b"statistics")
    code, printed, errors = command("learn", "tiny-opt", "--statistics", path, "--out", path, *SIZE)
    assert (code, printed) == (2, "")
    assert "is what is read; give another file to write" in errors
    assert path.read_bytes() == b"statistics"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--method", "optimla"), "did you mean 'optimal'"),
        (("--share", "2"), "--share"),
        (("--method", "optimal steps=3", "--steps", "3"), "--method and --steps both say steps"),
        (("--site", "zz"), "zz"),
    ],
)
def test_what_cannot_be_learned_is_one_line(command, tmp_path, asked, message):
    code, printed, errors = command("learn", "tiny-opt", "--out", tmp_path / "v.safetensors", *asked, *SIZE)
    assert (code, printed) == (2, "")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_file_takes_the_place_of_a_center(command, learned):
    path, values = learned
    asked = ("--values", path, "--fraction", "0.5", "--seed", "7", "--json")
    scored = answered(command("evaluate", "tiny-opt", *asked, "--tokens", "300"), "evaluation")
    model = al.load_model("tiny-opt")
    ablation = values.ablation(al.random_neurons(values.values.shape, 0.5, 7))
    expected = al.evaluate(model, al.task_for(model).batches(tokens=300), ablation)
    assert scored["after"]["cross_entropy"] == expected.cross_entropy
    assert (scored["ablation"]["values"], scored["ablation"]["center"]) == (str(path), "optimal")
    said = answered(
        command("ablate", "tiny-opt", "return self.", "--values", path, "--neuron", "L1", "--json"), "prompt"
    )
    assert said["ablation"]["values"] == str(path)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--split", "collect"), "very documents they would be judged on"),
        (("--center", "mean"), "--values and --center both say what the neurons are set to"),
        (("--site", "mlp"), "is of site 'z'"),
    ],
)
def test_a_file_is_refused_where_it_would_mislead(command, learned, asked, message):
    code, printed, errors = command("evaluate", "tiny-opt", "--values", learned[0], "--fraction", "0.5", *asked, *SIZE)
    assert (code, printed) == (2, "")
    assert message in errors

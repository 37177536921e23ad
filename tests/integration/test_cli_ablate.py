"""`ablation-lens ablate`, as typed: what a model predicts after a prompt, before and after."""

import pytest

import ablation_lens as al
from tests.answers import answered

ASKED = ("--center", "zero", "--neuron", "L0", "--neuron", "L1.H2")


def test_a_prompt_before_and_after_is_as_by_python(command):
    model = al.load_model("tiny-opt")
    shape = al.Site.Z.shape(model.cfg)
    ablation = al.Ablation(al.named_neurons(["L0", "L1.H2"], shape), model.W_O.new_zeros(shape), center="zero")
    expected = al.prompt(model, "return self.", answer="name", ablation=ablation, top=3)
    asked = ("ablate", "tiny-opt", "return self.", *ASKED, "--answer", "name", "--top", "3")
    code, out, errors = command(*asked)
    assert (code, errors) == (0, "")
    assert out == repr(expected) + "\n"
    values = answered(command(*asked, "--json"), "prompt")
    assert (values["kl"], values["ablation"]["neurons"]) == (expected.kl, 160)
    frame = expected.frame.reset_index()
    assert [row["prediction"] for row in values["predictions"]] == frame["prediction"].tolist()
    assert [row["rank_after"] for row in values["predictions"]] == frame["rank_after"].tolist()


@pytest.mark.parametrize(
    ("model", "prompt", "asked", "message"),
    [
        ("tiny-opt", "return", (), "say what to ablate"),
        ("tiny-opt", "return", (*ASKED, "--answer", "two words"), "give one of a single token"),
        ("tiny-vit", "return", ASKED, "reads images, and a prompt is a text"),
        ("tiny-roberta", "return", ASKED, "write one <mask> into"),
        ("tiny-opt", "return", ("--center", "zero", "--neuron", "L7"), "L7 does not exist"),
    ],
)
def test_a_bad_prompt_is_one_line_and_exit_code_2(command, model, prompt, asked, message):
    code, out, errors = command("ablate", model, prompt, *asked)
    assert (code, out) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1

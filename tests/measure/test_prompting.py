"""One text, before and after an ablation."""

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def ablation(model):
    return al.Ablation(["L0", "L2.H1"], torch.full(al.Site.Z.shape(model.cfg), 0.2), center="mine")


def test_both_sides_are_the_model_s_own_probabilities(model, ablation):
    said = al.prompt(model, "return self.", ablation=ablation, answer=5)
    tokens = torch.tensor([said.tokens])
    for side, hooks in ((said.before, []), (said.after, ablation.hooks())):
        expected = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].double().softmax(-1)
        assert torch.allclose(side, expected, atol=1e-6)
    row = said.frame[said.frame["id"] == 5].iloc[0]
    assert row["probability_after"] - row["probability_before"] == pytest.approx(row["change"])
    p, q = said.before.numpy(), said.after.numpy()
    assert said.kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6)


def test_the_lines_show_both_sides_and_the_answer(model, ablation):
    text = repr(al.prompt(model, "return self.", ablation=ablation, answer=" self", top=3))
    assert "as it is" in text
    assert "ablated" in text
    assert "' self':" in text
    assert "→" in text
    assert "ablated" not in repr(al.prompt(model, "return self."))


def test_a_masked_model_answers_at_its_mask():
    model = al.load_model("tiny-roberta")
    said = al.prompt(model, "def f(<mask>, x)", answer="self")
    assert said.before.argmax() == said.frame["id"].iloc[1]
    with pytest.raises(MismatchError, match="<mask>"):
        al.prompt(model, "def f(self, x)")


def test_an_image_model_answers_with_a_label():
    model = al.load_model("tiny-vit")
    pixels = next(iter(al.task_for(model).batches(images=2))).inputs[0]
    said = al.prompt(model, pixels, answer="3")
    assert said.frame.index[0] == "3"
    assert said.before.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("return", {"answer": "a word of many tokens"}, "single token"),
        ("return", {"answer": 10**6}, "no class"),
        ("return", {"answer": 1.5}, "or ids"),
        ("return", {"top": 0}, "top=0"),
        (7, {}, "token ids"),
        ([], {}, "empty"),
        (["return", "self"], {}, "token ids"),
        ("return " * 2000, {}, "shorten it"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(text, options, said, model):
    with pytest.raises(MismatchError, match=said):
        al.prompt(model, text, **options)


def test_a_text_of_control_characters_is_shown_not_obeyed(model):
    said = al.prompt(model, "\x1b[31m<script>alert(1)</script>")
    assert "\x1b" not in repr(said)
    assert "<script>" not in said._repr_html_()


def test_a_model_without_a_tokenizer_takes_ids(ablation):
    model = al.load_model("tiny-opt")
    model.tokenizer = model.hf_tokenizer = None
    assert al.prompt(model, [2, 7, 9], ablation=ablation).frame.index[0].isdigit()
    with pytest.raises(al.AblationLensError, match="no tokenizer"):
        al.prompt(model, "return")

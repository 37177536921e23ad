"""Prompts: which prediction counts, and what is right and wrong about it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.tasks.padding import Padding, PaddingWarning
from ablation_lens.tasks.plans import Batch
from tests.tiny_tokenizers import word_tokenizer

VALID = torch.ones(2, 3, dtype=torch.bool)
TOKENS = torch.tensor([[5, 6, 7], [0, 8, 9]])


def test_the_token_after_the_last_real_one_counts_also_under_left_padding() -> None:
    batch = Batch.prompts(TOKENS, [1, 2], valid=TOKENS > 0)
    assert batch.scored.nonzero().tolist() == [[0, 2], [1, 2]]
    moved = batch.from_start()
    assert moved.scored.nonzero().tolist() == [[0, 2], [1, 1]]
    assert moved.labels[moved.scored].tolist() == [1, 2]


def test_padding_that_nobody_marked_is_not_where_a_prompt_ends() -> None:
    pad = word_tokenizer().pad_token_id
    tokens = torch.tensor([[5, 6, 7], [8, 9, pad]])
    model = type("Model", (), {"tokenizer": word_tokenizer()})()
    with pytest.warns(PaddingWarning):
        batch = Padding(model).mark(Batch.prompts(tokens, [1, 2]))
    assert batch.scored.nonzero().tolist() == [[0, 2], [1, 1]]
    assert batch.labels[batch.scored].tolist() == [1, 2]


def test_padding_that_nobody_marked_does_not_move_the_question_of_a_masked_model() -> None:
    tokenizer = word_tokenizer()
    model: Any = SimpleNamespace(tokenizer=tokenizer, task="masked-lm")
    mask, pad = tokenizer.mask_token_id, tokenizer.pad_token_id
    batch = Batch.prompts(torch.tensor([[5, mask, 7], [8, mask, pad], [5, 6, mask]]), [11, 12, 13], model=model)
    with pytest.warns(PaddingWarning):
        batch = Padding(model).mark(batch)
    assert batch.inputs[batch.scored].tolist() == [mask] * 3
    assert batch.labels[batch.scored].tolist() == [11, 12, 13]


def test_rows_and_devices_keep_answers() -> None:
    batch = Batch.prompts(TOKENS, [[1], [2, 3]], wrong=[4, 5])
    second = batch.rows(1).to("cpu")
    assert second.answers is not None
    assert second.wrong is not None
    assert (second.answers.tolist(), second.wrong.tolist()) == ([[2, 3]], [[5]])


@pytest.mark.parametrize("answers", [[1], [1, []], ["Paris", "Rome"], 7, [1.5, 2.0]])
def test_answers_that_are_not_one_or_more_ids_per_prompt(answers: object) -> None:
    with pytest.raises(MismatchError, match="answers"):
        Batch.prompts(TOKENS, answers)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-roberta"])
def test_texts_are_read_by_the_model_and_asked_where_it_answers(name: str) -> None:
    model = al.load_model(name)
    texts = ["def f(self, x)", "self"] if name == "tiny-opt" else ["def f(<mask>, x)", "<mask>."]
    batch = Batch.prompts(texts, [" self", [5, 6]], model=model)
    asked = batch.inputs[batch.scored].tolist()
    last = [model.tokenizer(text)["input_ids"][-1] for text in texts]
    assert asked == (last if name == "tiny-opt" else [model.tokenizer.mask_token_id] * 2)
    assert batch.answers is not None
    assert batch.labels[batch.scored].tolist() == batch.answers[:, 0].tolist()


def test_texts_without_a_model() -> None:
    with pytest.raises(MismatchError, match="model=model"):
        Batch.prompts(["def f(self"], [5])
    with pytest.raises(MismatchError, match="model=model"):
        Batch.prompts(TOKENS, [",", ","], valid=VALID)


def test_one_answer_for_one_prompt() -> None:
    model = al.load_model("tiny-opt")
    single = Batch.prompts("self", " self", wrong=5, model=model)
    listed = Batch.prompts(["self"], [[" self"]], wrong=[[5]], model=model)
    assert single.answers is not None
    assert listed.answers is not None
    assert single.answers.tolist() == listed.answers.tolist()


@pytest.mark.parametrize("hold", [np.array, iter, tuple, list])
def test_texts_of_prompts_in_any_hand(hold: type) -> None:
    texts = ["def f(self, x)", "self"]
    batch = Batch.prompts(hold(texts), [np.int64(5), torch.tensor(6)], model=al.load_model("tiny-opt"))
    assert batch.labels[batch.scored].tolist() == [5, 6]


def test_what_a_tokenizer_returns_is_a_prompt() -> None:
    model = al.load_model("tiny-opt")
    model.hf_tokenizer.padding_side = "right"
    encoded = model.hf_tokenizer(["def f(self, x)", "self"], padding=True, return_tensors="pt")
    batch = Batch.prompts(encoded, np.array([5, 6]))
    assert batch.valid.tolist() == encoded["attention_mask"].bool().tolist() == Batch.causal(encoded).valid.tolist()
    one = model.hf_tokenizer("self", return_tensors="pt")
    assert al.prompt(model, one, answer=np.int64(5)).tokens == tuple(one["input_ids"][0].tolist())
    with pytest.raises(MismatchError, match="one text, got 2"):
        al.prompt(model, encoded)


def test_a_mask_beside_what_needs_none() -> None:
    model = al.load_model("tiny-opt")
    with pytest.raises(MismatchError, match="leave it out"):
        Batch.prompts(["self", "x"], [5, 6], valid=VALID, model=model)
    with pytest.raises(MismatchError, match="leave valid out"):
        Batch.causal({"input_ids": TOKENS, "attention_mask": VALID}, VALID)
    with pytest.raises(MismatchError, match="without 'input_ids'"):
        Batch.causal({"ids": TOKENS})  # type: ignore[arg-type]


def test_no_prompts() -> None:
    with pytest.raises(MismatchError, match="tokens is an empty list"):
        Batch.prompts([], [])


def test_an_answer_that_is_given_twice_counts_once() -> None:
    batch = Batch.prompts(TOKENS, [[5, 5], [6, 7]], wrong=[[8, 8, 9], [4, 3, 4]])
    assert batch.answers is not None
    assert batch.wrong is not None
    assert (batch.answers.tolist(), batch.wrong.tolist()) == ([[5, -1], [6, 7]], [[8, 9], [4, 3]])


def test_answers_that_are_no_ids() -> None:
    for answers, wrong in ([[5, -3], [1]], None), ([5, 6], [-1, 2]), ([5, -2], None):
        with pytest.raises(MismatchError, match="counted from 0"):
            Batch.prompts(TOKENS, answers, wrong)
    plain = Batch.prompts(TOKENS, [1, 2])
    with pytest.raises(MismatchError, match="give a tensor"):
        replace(plain, answers=[5, 6])  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [{"answers": [99999]}, {"answers": [5], "wrong": [99999]}])
def test_answers_beyond_the_vocabulary(asked: dict[str, list[int]]) -> None:
    model = al.load_model("tiny-opt")
    with pytest.raises(MismatchError, match="answers hold 99999"):
        al.evaluate(model, Batch.prompts(TOKENS[:1], **asked), metrics=["probability"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "options", "told"),
    [
        ([2, 99999], {}, "token ids hold 99999"),
        ([-3], {}, "token ids hold -3"),
        ([2], {"top": "3"}, "top='3'"),
        ([2], {"top": 2.5}, "top=2.5"),
        ([2], {"top": 0}, "1 or more"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_one_sentence(ids: list[int], options: dict[str, int], told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        al.prompt(al.load_model("tiny-opt"), ids, **options)


def test_an_empty_prompt() -> None:
    with pytest.raises(MismatchError, match="empty"):
        Batch.prompts(TOKENS, [1, 2], valid=torch.tensor([[True, True, True], [False, False, False]]))


@pytest.mark.parametrize("measure", ["evaluate", "knockout", "judge"])
def test_a_masked_model_is_asked_about_its_mask_token_or_not_at_all(measure: str) -> None:
    model = al.load_model("tiny-roberta")
    mask = model.tokenizer.mask_token_id
    tokens = torch.tensor([[5, mask, 7], [8, 9, mask]])
    circuit = al.circuits.Circuit.of_heads(["L0.H1"], model)

    def ask(batch: Any) -> Any:
        if measure == "evaluate":
            return al.evaluate(model, [batch])
        if measure == "judge":
            return al.circuits.faithfulness(model, batch, "cross_entropy", circuit, 0.0, random=0)
        return al.circuits.knockout_effects(model, batch, "cross_entropy", 0.0, progress=False)

    with pytest.raises(MismatchError, match=rf"mask token \(id {mask}\), and 1 of 2 prompts"):
        ask(Batch.prompts(tokens, [6, 6]))
    assert ask(Batch.prompts(tokens, [6, 6], model=model))
    labels = torch.tensor([[5, 6, 7], [8, 9, 6]])  # labels are scored wherever they are given
    assert ask(Batch(tokens, torch.ones_like(tokens).bool(), labels, torch.ones_like(tokens).bool()))

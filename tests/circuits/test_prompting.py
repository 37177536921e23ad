"""Prompts: batches that know their corrupted twins, halves that share nothing, and files of them."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ablation_lens as al
from ablation_lens.circuits.prompting import Prompts
from ablation_lens.errors import AblationLensError, FileFormatError, MismatchError
from ablation_lens.tasks.padding import PaddingWarning
from tests.tiny_tokenizers import word_tokenizer

CLEAN = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
TWINS = [[5, 6, 4, 8], [4, 10], [4, 12, 13]]


def made(**options: Any) -> Prompts:
    return Prompts.of(CLEAN, [1, [2, 3], 4], [7, 8, 9], TWINS, **options)


rows_of_ids = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 5)), min_size=1, max_size=12
)
"""Prompts over so few ids that some come again, and an answer of each."""


def test_batches_hold_the_prompts_in_order_with_columns_that_are_positions() -> None:
    batches = list(made(batch_size=2))
    assert [batch.documents for batch in batches] == [(0, 1), (2,)]
    assert batches[0].inputs.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batches[0].scored.nonzero().tolist() == [[0, 3], [1, 1]]
    assert batches[0].labels[batches[0].scored].tolist() == [1, 2]
    assert {batch.plan for batch in batches} == {made().digest}
    assert len(made()) == 3


def test_padding_on_the_left_is_moved_to_the_right() -> None:
    tokens = torch.tensor([[0, 0, 9, 10], [5, 6, 7, 8]])
    twins = torch.tensor([[0, 0, 4, 10], [5, 6, 4, 8]])
    prompts = Prompts.of(tokens, [2, 1], corrupted=twins, valid=tokens > 0)
    assert prompts.digest == Prompts.of([[9, 10], [5, 6, 7, 8]], [2, 1], corrupted=[[4, 10], [5, 6, 4, 8]]).digest


@pytest.mark.parametrize("hold", [np.array, torch.tensor, iter, tuple])
def test_ids_in_any_hand(hold: Any) -> None:
    listed = [[5, 6], [7, 8]]
    prompts = Prompts.of(hold(listed), hold([1, 2]) if hold is not iter else [1, 2], corrupted=hold(listed))
    assert prompts.digest == Prompts.of(listed, [1, 2], corrupted=listed).digest


def test_what_a_tokenizer_returns_and_one_prompt() -> None:
    encoded = {"input_ids": [[5, 6, 7], [8, 9, 0]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
    twins = torch.tensor([[4, 6, 7], [4, 9, 0]])
    assert Prompts.of(encoded, [1, 2], corrupted=twins).valid.sum(1).tolist() == [3, 2]
    assert len(Prompts.of([5, 6, 7], 1, corrupted=[5, 6, 4])) == 1


def test_texts_are_read_by_the_model() -> None:
    model = al.load_model("tiny-opt")
    prompts = Prompts.of(["self.x", "def f(self"], [")", [",", ")"]], [5, 5], ["self.y", "def g(self"], model=model)
    assert prompts.tokens[0][prompts.valid[0]].tolist() == model.tokenizer("self.x")["input_ids"]
    assert prompts.corrupted is not None
    with pytest.raises(MismatchError, match="model=model"):
        Prompts.of(["self.x"], [5])


def test_a_masked_model_is_asked_at_its_mask_token() -> None:
    model = al.load_model("tiny-roberta")
    prompts = Prompts.of(["def f(<mask>, x)", "<mask>."], [" self", 5], model=model)
    assert prompts.tokens[prompts.scored].tolist() == [model.tokenizer.mask_token_id] * 2


def test_a_score_has_the_prompts_in_their_order_whatever_the_batches() -> None:
    model = al.load_model("tiny-opt")
    made = Prompts.of([[2, 5, 6, 7], [2, 9], [2, 7, 7]], [5, [6, 7], 8], [9, 9, 9])
    whole = al.evaluate(model, made, metrics="logit_difference").rows("logit_difference")
    singly = al.evaluate(model, replace(made, batch_size=1), metrics="logit_difference").rows("logit_difference")
    turned = al.evaluate(model, made.rows([2, 1, 0]), metrics="logit_difference").rows("logit_difference")
    assert np.allclose(whole, singly, atol=1e-5)
    assert np.allclose(whole, turned[::-1], atol=1e-5)
    logits = model(torch.tensor([[2, 7, 7]]))[0, -1]
    assert np.isclose(whole[2], float(logits[8] - logits[9]), atol=1e-4)


def test_centers_are_collected_on_prompts() -> None:
    assert al.collect(al.load_model("tiny-opt"), made()).histogram.shape == (4, 4, 32)


# ---------------------------------------------------------------------- twins


def test_the_twins_of_a_part_of_a_batch_are_those_of_its_rows() -> None:
    prompts = made(batch_size=3)
    (batch,) = prompts
    assert prompts.twins(batch.rows(1)).inputs.tolist() == [[4, 10, 0, 0], [4, 12, 13, 0]]
    twin = prompts.twins(batch.rows(1, 2))
    assert (twin.valid.tolist(), twin.documents) == (batch.rows(1, 2).valid.tolist(), (1,))
    assert [each.inputs.tolist() for each in prompts.corrupted_batches()] == [prompts.twins(batch).inputs.tolist()]


def test_the_twins_of_a_batch_that_is_not_of_these_prompts_are_refused() -> None:
    prompts = made()
    for other in (al.Batch.causal(torch.tensor([[5, 6]])), next(iter(prompts.rows([0, 1])))):
        with pytest.raises(MismatchError, match="not one of the prompts"):
            prompts.twins(other)
    batch = next(iter(prompts))
    with pytest.raises(MismatchError, match="was changed"):
        prompts.twins(replace(batch, inputs=batch.inputs.roll(1, dims=1)))
    with pytest.raises(MismatchError, match=r"corrupted=…"):
        Prompts.of(CLEAN, [1, 2, 3]).twins(batch)


def test_twins_of_other_lengths_have_no_corresponding_positions() -> None:
    with pytest.raises(MismatchError, match="prompt 1 has 2 tokens and its corrupted twin 3"):
        Prompts.of(CLEAN, [1, 2, 3], corrupted=[[5, 6, 7, 8], [9, 10, 1], [11, 12, 13]])
    with pytest.raises(MismatchError, match="3 prompts and 2 corrupted"):
        Prompts.of(CLEAN, [1, 2, 3], corrupted=[[5, 6, 7, 8], [9, 10]])


def test_padding_that_nobody_marked_is_the_tokenizers_in_both() -> None:
    tokenizer = word_tokenizer()
    pad = tokenizer.pad_token_id
    model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=8, d_vocab=40, d_vocab_out=40))
    clean, twins = torch.tensor([[5, 6, 7], [8, 9, pad]]), torch.tensor([[4, 6, 7], [4, 9, pad]])
    with pytest.warns(PaddingWarning):
        prompts = Prompts.of(clean, [1, 2], corrupted=twins, model=model)
    assert prompts.valid.sum(1).tolist() == [3, 2]
    # Without a model it is for whoever reads the batches to find.
    assert not next(iter(Prompts.of(clean, [1, 2]))).valid_given


# ---------------------------------------------------------------------- what is no prompt


def test_a_wrong_answer_that_is_right_is_refused() -> None:
    with pytest.raises(MismatchError, match="prompt 1 has 3 among its answers and"):
        Prompts.of([[5, 6], [7, 8]], [1, [2, 3]], [4, [5, 3]])


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [
        ([], []),
        ([[]], [1]),
        ([[5], []], [1, 2]),
        (5, 1),
        (None, 1),
        ([[5, 0.5]], [1]),
        ([[[5]]], [1]),
        ([[5, 6]], [1, 2]),
    ],
)
def test_what_is_not_prompts(prompts: Any, answers: Any) -> None:
    with pytest.raises(AblationLensError):
        Prompts.of(prompts, answers)


def test_ids_and_answers_that_the_model_does_not_have() -> None:
    model = al.load_model("tiny-opt")
    with pytest.raises(MismatchError, match="token ids hold 2048"):
        Prompts.of([[5, 2048]], [1], model=model)
    with pytest.raises(MismatchError, match="answers hold 2048"):
        Prompts.of([[5, 6]], [2048], model=model)
    with pytest.raises(MismatchError, match="token ids hold 2048"):
        Prompts.of([[5, 6]], [1], corrupted=[[5, 2048]], model=model)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", None])
def test_a_batch_size_that_is_none(size: Any) -> None:
    with pytest.raises(MismatchError, match="batch_size"):
        made(batch_size=size)


def test_parts_that_do_not_fit_are_one_sentence() -> None:
    prompts = made()
    for change in (
        {"valid": prompts.valid.long()},
        {"scored": prompts.scored[:, :2]},
        {"scored": prompts.valid},
        {"scored": ~prompts.valid},
        {"answers": [1, 2, 3]},
        {"corrupted": prompts.tokens[:2]},
        {"valid": prompts.valid.flip(1), "scored": prompts.scored.flip(1)},
        {"name": 5},
    ):
        with pytest.raises(MismatchError):
            replace(prompts, **change)


# ---------------------------------------------------------------------- some of them


def test_some_of_the_prompts() -> None:
    prompts = made()
    assert prompts[[2, 0]].digest == prompts.rows(torch.tensor([2, 0])).digest
    assert prompts[1:].digest == prompts[torch.tensor([False, True, True])].digest
    assert prompts[-1].tokens.tolist() == [[11, 12, 13]]  # no wider than it must be
    for wrong in (3, -4, [0, 7], "1", None, True, [], slice(5, 9), slice("a", None), [True], 0.5):
        with pytest.raises(MismatchError):
            prompts.rows(wrong)


@given(rows_of_ids, st.integers(-3, 3))
def test_halves_share_no_prompt_and_lose_none(rows: list[tuple[list[int], int]], seed: int) -> None:
    prompts = Prompts.of([ids for ids, _ in rows], [answer for _, answer in rows])
    different = {tuple(ids) for ids, _ in rows}
    if len(different) < 2:
        with pytest.raises(MismatchError, match="all the same"):
            prompts.split(seed)
        return
    halves = [texts(half) for half in prompts.split(seed)]
    assert not set(halves[0]) & set(halves[1])
    assert sorted(halves[0] + halves[1]) == sorted(tuple(ids) for ids, _ in rows)


@given(rows_of_ids.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), st.integers(0, 3))
def test_a_split_does_not_depend_on_the_order(both: tuple[list[Any], list[Any]], seed: int) -> None:
    one, other = (Prompts.of([ids for ids, _ in rows], [answer for _, answer in rows]) for rows in both)
    if len({tuple(ids) for ids, _ in both[0]}) < 2:
        return
    assert [set(texts(half)) for half in one.split(seed)] == [set(texts(half)) for half in other.split(seed)]


def test_a_split_is_the_same_everywhere_and_another_for_another_seed() -> None:
    prompts = Prompts.of([[5, number] for number in range(12)], [1] * 12)
    assert prompts.split(0)[0].tokens[:, 1].tolist() == [3, 4, 6, 7, 10, 11]
    assert len({tuple(prompts.split(seed)[0].tokens[:, 1].tolist()) for seed in range(5)}) > 1
    first, second = prompts.split()
    assert len({prompts.digest, first.digest, second.digest}) == 3
    with pytest.raises(MismatchError, match="seed"):
        prompts.split("0")  # type: ignore[arg-type]


def texts(prompts: Prompts) -> list[tuple[int, ...]]:
    return [tuple(row[real].tolist()) for row, real in zip(prompts.tokens, prompts.valid, strict=True)]


# ---------------------------------------------------------------------- files


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=5),
            st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
            st.lists(st.integers(10, 19), min_size=1, max_size=3, unique=True),
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
def test_what_is_saved_is_read_again(rows: list[Any], both: bool, name: str) -> None:
    clean, twins = ([[pair[side] for pair in ids] for ids, _, _ in rows] for side in (0, 1))
    made = Prompts.of(clean, [r for _, r, _ in rows], *([[w for _, _, w in rows], twins] if both else []), name=name)
    with tempfile.TemporaryDirectory() as folder:
        made.save(f"{folder}/prompts.json")
        read = Prompts.load(f"{folder}/prompts.json", batch_size=2)
    assert (read.digest, read.name, read.batch_size) == (made.digest, name, 2)


def test_a_file_is_auto_circuits_schema(tmp_path: Path) -> None:
    made().save(tmp_path / "prompts.json")
    first = json.loads((tmp_path / "prompts.json").read_text())["prompts"][0]
    assert first == {"clean": [5, 6, 7, 8], "corrupt": [5, 6, 4, 8], "answers": [1], "wrong_answers": [7]}


def test_texts_in_a_file_are_read_by_the_model(tmp_path: Path) -> None:
    model = al.load_model("tiny-opt")
    row = {"clean": "self.x", "corrupt": "self.y", "answers": [")", " self"], "wrong_answers": [5]}
    path = written(tmp_path, {"word_idxs": {"end": 2}, "seq_labels": ["a", "b"], "prompts": [row]})
    read = Prompts.load(path, model)
    assert read.digest == Prompts.of(["self.x"], [[")", " self"]], [5], ["self.y"], model=model).digest
    assert (read.name, dict(read.word_idxs), read.seq_labels) == ("prompts", {"end": 2}, ("a", "b"))
    with pytest.raises(FileFormatError, match=r"prompt 0 of .*model that reads it"):
        Prompts.load(path)
    read.save(path)
    assert (Prompts.load(path).digest, dict(Prompts.load(path).word_idxs)) == (read.digest, {"end": 2})


def test_where_a_masked_model_is_asked_is_kept(tmp_path: Path) -> None:
    model = al.load_model("tiny-roberta")
    prompts = Prompts.of(["def f(<mask>, x)", "<mask>."], [" self", 5], model=model)
    prompts.save(tmp_path / "prompts.json")
    assert torch.equal(Prompts.load(tmp_path / "prompts.json").scored, prompts.scored)
    assert torch.equal(Prompts.load(tmp_path / "prompts.json", model).scored, prompts.scored)


ROW = {"clean": [5, 6], "corrupt": [5, 7], "answers": [1], "wrong_answers": [2]}


@pytest.mark.parametrize(
    "change",
    [
        {"clean": None},
        {"clean": []},
        {"clean": [[5, 6]]},
        {"clean": [5, -1]},
        {"clean": [5, True]},
        {"clean": [5, 6.0]},
        {"clean": [5, 2**70]},
        {"clean": {"a": 1}},
        {"corrupt": [5, 7, 8]},
        {"corrupt": 5},
        {"answers": []},
        {"answers": 1},
        {"answers": [None]},
        {"answers": [2**40]},
        {"answers": ["a"]},
        {"answers": [2]},
        {"wrong_answers": {"a": 1}},
        {"wrong_answers": []},
        {"asked": 2},
        {"asked": "1"},
        {"asked": True},
    ],
)
def test_a_prompt_of_a_file_that_cannot_be_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = written(tmp_path, {"prompts": [ROW, {**ROW, **change}]})
    with pytest.raises(FileFormatError, match="prompt 1 of"):
        Prompts.load(path)


@pytest.mark.parametrize("name", ["clean", "answers", "corrupt"])
def test_a_prompt_of_a_file_that_lacks_something_is_named(tmp_path: Path, name: str) -> None:
    lacking = {key: value for key, value in ROW.items() if key != name}
    with pytest.raises(FileFormatError, match="prompt 1 of"):
        Prompts.load(written(tmp_path, {"prompts": [ROW, lacking]}))


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "null", "{" * 100_000, "[" * 100_000, '{"prompts": NaN}', '{"prompts": []}', '"\\ud800"'),
        *('{"prompts": {}}', '{"prompts": 5}', '{"prompts": ["a"]}', '{"prompts": [[5]]}', '{"prompts": [null]}'),
        '{"prompts": [{"clean": [1e999], "answers": [1]}]}',
        '{"prompts": [{"clean": ["a"], "answers": [1]}]}',
        json.dumps({"prompts": [ROW], "name": 5}),
        json.dumps({"prompts": [ROW], "seq_labels": [5]}),
        json.dumps({"prompts": [ROW], "word_idxs": {"a": "b"}}),
    ],
)
def test_a_file_that_holds_no_prompts(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(FileFormatError):
        Prompts.load(path)


def test_one_long_prompt_among_many_short_ones_does_not_fill_memory(tmp_path: Path) -> None:
    rows = [{"clean": [5] * 100_000, "answers": [1]}, *[{"clean": [5], "answers": [1]}] * 2000]
    with pytest.raises(FileFormatError, match="positions with padding"):
        Prompts.load(written(tmp_path, {"prompts": rows}))
    rows = [{"clean": [5], "answers": [*range(100_000)]}, *[{"clean": [5], "answers": [1]}] * 2000]
    with pytest.raises(FileFormatError, match="more answers than"):
        Prompts.load(written(tmp_path, {"prompts": rows}))
    assert Prompts.load(written(tmp_path, {"prompts": rows[:2]})).answers.shape == (2, 100_000)


def test_a_file_with_ids_that_the_model_does_not_have(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompts": [ROW, {**ROW, "corrupt": [5, 2048]}]})
    with pytest.raises(FileFormatError, match=r"prompt 1 of .*2048"):
        Prompts.load(path, al.load_model("tiny-opt"))


def test_a_prompt_longer_than_the_context_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompts": [{"clean": [5] * 300, "answers": [1]}]})
    with pytest.raises(FileFormatError, match="context"):
        Prompts.load(path, al.load_model("tiny-opt"))


def test_no_file_a_folder_and_a_full_file_are_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(FileFormatError):
            Prompts.load(path)
    with pytest.raises(AblationLensError):
        made().save(tmp_path)


def test_a_hostile_name_is_shown_as_plain_characters(tmp_path: Path) -> None:
    read = Prompts.load(written(tmp_path, {"name": "\x1b[31m red\nline" + "x" * 1000, "prompts": [ROW]}))
    assert repr(read).isprintable()
    assert len(repr(read)) < 200


def written(folder: Path, content: Any) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(content))
    return path

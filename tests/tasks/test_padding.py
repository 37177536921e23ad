"""What is padding in batches that do not say so."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from ablation_lens.errors import MismatchError
from ablation_lens.tasks.padding import Padding, PaddingWarning
from ablation_lens.tasks.plans import Batch


def model_with(**ids):
    """A model of which only the tokenizer's special tokens are known."""
    return SimpleNamespace(tokenizer=SimpleNamespace(**{f"{name}_token_id": token for name, token in ids.items()}))


OPT = model_with(pad=1, bos=2, eos=2, unk=3)
GPT2 = model_with(pad=0, bos=0, eos=0, unk=0)


def texts_of(model, rows):
    """The real tokens of every row, as the model will read them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaddingWarning)
        batch = Padding(model).mark(torch.tensor(rows))
    assert not (batch.valid[:, 1:] & ~batch.valid[:, :-1]).any()  # every text is at the start of its row
    return [row[valid].tolist() for row, valid in zip(batch.inputs, batch.valid, strict=True)]


@pytest.mark.parametrize(
    ("model", "rows", "texts"),
    [
        # A token that is for padding alone is padding wherever the text has not begun, or has ended.
        (OPT, [[2, 5, 6], [2, 7, 1], [2, 1, 1]], [[2, 5, 6], [2, 7], [2]]),
        (OPT, [[1, 2, 5], [1, 1, 2], [2, 6, 7]], [[2, 5], [2], [2, 6, 7]]),
        (OPT, [[2, 5, 1, 1]], [[2, 5]]),
        (OPT, [[1, 1], [2, 5]], [[], [2, 5]]),
        (OPT, [[2, 1, 5], [2, 6, 2]], [[2, 1, 5], [2, 6, 2]]),  # within a text it is the text's own
        # One token for everything: the first of a row begins the text, as in all rows.
        (GPT2, [[0, 5, 6, 7], [0, 8, 0, 0]], [[0, 5, 6, 7], [0, 8]]),
        (GPT2, [[0, 5, 6, 7], [0, 0, 0, 8]], [[0, 5, 6, 7], [0, 8]]),
        (GPT2, [[5, 6, 7], [8, 9, 0]], [[5, 6, 7], [8, 9]]),
        (GPT2, [[0, 5, 6], [0, 0, 0]], [[0, 5, 6], [0]]),  # an empty prompt
        # A single one after every row ends the texts.
        (GPT2, [[0, 5, 6, 0], [0, 7, 8, 0]], [[0, 5, 6, 0], [0, 7, 8, 0]]),
        (GPT2, [[0, 5, 6, 7, 0], [0, 8, 0, 0, 0]], [[0, 5, 6, 7, 0], [0, 8, 0]]),
        (GPT2, [[0, 5, 0, 6, 7]], [[0, 5, 0, 6, 7]]),
        (GPT2, [[0]], [[0]]),
        # Nothing to go by.
        (SimpleNamespace(), [[5, 1, 1]], [[5, 1, 1]]),
        (model_with(pad=None), [[5, 1, 1]], [[5, 1, 1]]),
    ],
)
def test_texts_are_told_from_their_padding(model, rows, texts):
    assert texts_of(model, rows) == texts


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 5, 0, 0], [0, 6, 0, 0]],  # every row is padded: whether the first one ends the text cannot be seen
        [[0, 0, 5], [0, 0, 6]],
        [[0, 5, 6, 7], [0, 0, 8, 9], [0, 5, 0, 0]],  # on both sides
        [[0, 0, 0]],
    ],
)
def test_what_cannot_be_told_is_refused_with_the_way_out(rows):
    with pytest.raises(MismatchError, match=r"al\.Batch\.causal\(tokens, valid\) says which"):
        Padding(GPT2).mark(torch.tensor(rows))


def test_who_says_what_is_real_is_believed():
    tokens = torch.tensor([[2, 5, 1, 1]])
    batch = Padding(OPT).mark(Batch.causal(tokens, torch.ones_like(tokens).bool()))
    assert batch.valid.all()
    assert batch.scored.sum() == 3


def test_padding_is_neither_scored_nor_a_label():
    with pytest.warns(PaddingWarning):
        batch = Padding(OPT).mark(Batch.causal(torch.tensor([[2, 5, 6, 7], [1, 1, 2, 8]])))
    assert batch.scored.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert batch.labels[batch.scored].tolist() == [5, 6, 7, 8]


def test_it_is_said_once_and_only_where_there_is_some():
    padded, plain = torch.tensor([[2, 5, 6], [2, 7, 1]]), torch.tensor([[2, 5, 6]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        padding = Padding(OPT)
        for tokens in (plain, padded, padded):
            padding.mark(tokens)
    (warning,) = caught
    assert "1 of 6 positions" in str(warning.message)
    assert warning.filename == __file__


def test_texts_move_to_the_start_with_all_that_is_known_of_them():
    tokens = torch.tensor([[1, 1, 2, 5], [2, 6, 7, 1]])
    valid = tokens != 1
    given = Batch(tokens, valid, tokens * 10, valid & (tokens > 2), special=tokens == 2, documents=(4, 9))
    moved = given.from_start()
    assert moved.inputs.tolist() == [[2, 5, 1, 1], [2, 6, 7, 1]]
    assert moved.valid.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert moved.labels.tolist() == [[20, 50, 10, 10], [20, 60, 70, 10]]
    assert moved.scored.tolist() == [[False, True, False, False], [False, True, True, False]]
    assert moved.special.tolist() == [[True, False, False, False], [True, False, False, False]]
    assert moved.documents == (4, 9)
    assert moved.from_start() is moved
    images = Batch.images(torch.zeros(2, 3, 4, 4), positions=5)
    assert images.from_start() is images

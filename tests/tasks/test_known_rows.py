"""Rows are known again: whatever the batches, padding and types, and whatever a masked model is shown of them."""

from dataclasses import replace

import torch

import ablation_lens as al
from ablation_lens.tasks.known_rows import among, row_digests
from ablation_lens.tasks.plans import Batch

CAUSAL, MASKED = "causal-lm", "masked-lm"


def of(*rows, pad="right"):
    longest = max(map(len, rows))
    filled = [
        [*row, *[0] * (longest - len(row))] if pad == "right" else [*[0] * (longest - len(row)), *row] for row in rows
    ]
    real = [[*[1] * len(row), *[0] * (longest - len(row))] for row in rows]
    if pad == "left":
        real = [each[::-1] for each in real]
    return Batch.causal(torch.tensor(filled), torch.tensor(real))


def test_rows_are_the_same_wherever_their_padding_and_whatever_their_type():
    rows = [5, 6, 7], [8, 9], [1, 2, 3, 4]
    one, other = of(*rows), of(*rows, pad="left")
    short = replace(one, inputs=one.inputs.to(torch.int32))
    assert row_digests(one, CAUSAL).tolist() == row_digests(other, CAUSAL).tolist()
    assert row_digests(one, CAUSAL).tolist() == row_digests(short, CAUSAL).tolist()
    alone = [row_digests(of(row), CAUSAL).item() for row in rows]
    assert row_digests(one, CAUSAL).flatten().tolist() == alone


def test_other_rows_are_others():
    rows = [5, 6, 7], [5, 7, 6], [5, 6], [5, 6, 0], [], [0]
    assert len(set(row_digests(of(*rows), CAUSAL).flatten().tolist())) == len(rows)


def test_a_document_is_known_again_whatever_is_hidden_of_it():
    plans = [
        al.task_for(al.load_model("tiny-roberta")).batches(split="collect", tokens=500, seed=seed) for seed in (0, 1)
    ]
    one, other = (torch.cat([row_digests(batch, MASKED) for batch in plan]) for plan in plans)
    assert not among(other[:, :1], one[:, 0]).any()  # by what is fed
    assert among(other, one.flatten()).all()


def test_answers_do_not_tell_prompts_of_a_masked_model_apart():
    tokens = torch.tensor([[5, 1, 7], [8, 9, 1]])
    one, other = (Batch.prompts(tokens, answers) for answers in ([3, 4], [6, 2]))
    assert row_digests(one, MASKED).tolist() == row_digests(other, MASKED).tolist()


def test_images_are_known_by_their_pixels():
    pixels = torch.randn(3, 1, 4, 4)
    changed = pixels.clone()
    changed[1, 0, 3, 3] += 1
    known = row_digests(Batch.images(pixels, 5), "image-classification").flatten()
    assert among(row_digests(Batch.images(changed, 5), "image-classification"), known).tolist() == [True, False, True]
    # NumPy has no bfloat16.
    halves = Batch.images(pixels.bfloat16(), 5)
    assert row_digests(halves, "image-classification").unique().numel() == 3

"""What was given becomes batches and plans: the rules behind `tests/integration/test_what_people_give.py`."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ablation_lens.errors import CorpusError, MismatchError
from ablation_lens.tasks.freezing import freeze, require_disjoint
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.plans import Batch, plan_of

CFG = SimpleNamespace(n_ctx=16, d_vocab=50, d_vocab_out=50, n_layers=1)
BARE = SimpleNamespace(cfg=CFG)
MASKED = SimpleNamespace(cfg=CFG, task="masked-lm")
IDS = [[5, 6, 7], [8, 9, 4]]


def listed(model, given):
    return list(batches_of(model, given))


def test_rows_of_one_length_are_batched_and_others_are_not_padded_without_a_word():
    assert [len(batch.inputs) for batch in listed(BARE, [[1, 2], [3, 4], [5, 6, 7]])] == [2, 1]


def test_rows_with_masks_are_padded_together():
    (batch,) = listed(BARE, [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ([1, 2], [3, 4, 5])])
    assert batch.inputs.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert batch.valid.tolist() == [[True, True, False], [True] * 3]
    assert batch.scored.tolist() == [[True, False, False], [True, True, False]]


def test_labels_of_rows_of_different_lengths_are_padded_with_them():
    given = {"input_ids": [[1, 2], [3, 4, 5]], "attention_mask": [[1, 1], [1] * 3], "labels": [[1, 2], [-100, 4, 5]]}
    (causal,) = listed(BARE, given)
    assert causal.labels.tolist() == [[2, 0, 0], [4, 5, 0]]
    assert causal.scored.tolist() == [[True, False, False], [True, True, False]]
    (masked,) = listed(MASKED, given)
    assert masked.labels.tolist() == [[1, 2, 0], [0, 4, 5]]
    assert masked.scored.tolist() == [[True, True, False], [False, True, True]]


def test_a_label_at_padding_is_not_scored():
    given = {"input_ids": [[1, 2, 0]], "attention_mask": [[1, 1, 0]], "labels": [[1, 2, 0]]}
    for model, scored in ((BARE, [[True, False, False]]), (MASKED, [[True, True, False]])):
        assert listed(model, given)[0].scored.tolist() == scored


def test_special_tokens_are_marked_where_a_tokenizer_says_so():
    (batch,) = listed(BARE, {"input_ids": [[1, 2, 3]], "special_tokens_mask": [[1, 0, 0]]})
    assert batch.special.tolist() == [[True, False, False]]


def test_a_token_that_is_its_own_successor_is_no_sign_of_shifted_labels():
    (batch,) = listed(BARE, {"input_ids": [[7, 7, 7, 2]], "labels": [[7, 7, 7, 2]]})
    assert batch.labels.tolist() == [[7, 7, 2, 0]]


def test_a_batch_takes_lists_arrays_and_masks_of_0_and_1():
    batch = Batch.causal([[5, 6, 7]], [[1, 1, 0]])
    assert batch.valid.tolist() == [[True, True, False]]
    assert Batch.causal(torch.tensor([5, 6, 7]).numpy()).inputs.tolist() == [[5, 6, 7]]
    with pytest.raises(MismatchError, match="made of tensors"):
        Batch([[5, 6]], [[True, True]], [[6, 0]], [[True, False]])


def test_a_list_is_read_as_often_as_needed_and_an_iterator_once():
    assert len(listed(BARE, iter([IDS]))) == 1
    again = batches_of(BARE, [torch.tensor(IDS)])
    assert len(list(again)) == len(list(again)) == 1
    kept = batches_of(BARE, iter([torch.tensor(IDS)]), keep=True)
    assert len(list(kept)) == len(list(kept)) == 1


# ---------------------------------------------------------------------- frozen


def test_a_frozen_plan_is_a_plan():
    plan = freeze(BARE, iter([IDS[0], torch.tensor(IDS)]))
    assert plan_of(plan) is plan
    assert (len(plan), plan.size, plan.predictions, plan.padding) == (2, 9, 6, 0.0)
    assert [batch.documents for batch in plan] == [(0,), (1, 2)]
    assert [item.id for item in plan.items] == ["row 0", "row 1", "row 2"]
    (second,) = plan.part(1)
    assert second.inputs.tolist() == IDS
    assert freeze(BARE, plan) is plan


def test_the_digest_is_of_tokens_mask_labels_and_what_is_scored():
    plain = {"input_ids": torch.tensor(IDS), "attention_mask": torch.ones(2, 3), "labels": torch.tensor(IDS)}
    changes = [
        {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 3]])},
        {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])},
        {"labels": torch.tensor([[5, 6, 7], [8, 9, 3]])},
        {"labels": torch.tensor([[5, 6, 7], [8, 9, -100]])},
    ]
    digests = [freeze(BARE, plain).digest, *(freeze(BARE, plain | change).digest for change in changes)]
    assert len(set(digests)) == 5
    assert digests[0] == freeze(BARE, {name: part.tolist() for name, part in plain.items() if name != "x"}).digest


def test_answers_are_in_the_digest():
    ids = torch.tensor(IDS)
    assert freeze(BARE, Batch.prompts(ids, [1, 2], [3, 4])).digest != freeze(BARE, Batch.prompts(ids, [1, 2])).digest


def test_documents_of_ones_own_stay_together():
    first = Batch.causal(torch.tensor(IDS))
    batches = [
        Batch(first.inputs, first.valid, first.labels, first.scored, documents=numbers) for numbers in ((7, 9), (9, 7))
    ]
    plan = freeze(BARE, batches)
    assert [item.id for item in plan.items] == ["document 7", "document 9"]
    assert [batch.documents for batch in plan] == [(0, 1), (1, 0)]
    assert plan.items[0].tokens == (*IDS[0], *IDS[1])
    assert [batch.documents for batch in plan.part(1)] == [(1, 0)]


def test_padding_stays_where_it_was_given_and_is_not_in_the_digest():
    right = {"input_ids": [[5, 6, 0], [8, 9, 4]], "attention_mask": [[1, 1, 0], [1] * 3]}
    left = {"input_ids": [[0, 5, 6], [8, 9, 4]], "attention_mask": [[0, 1, 1], [1] * 3]}
    plan, other = freeze(BARE, left), freeze(BARE, right)
    assert plan[0].inputs.tolist() == left["input_ids"]
    assert plan.items == other.items
    assert plan.digest == other.digest  # keys of cells that are there
    assert plan.layout != other.layout == ""


def test_documents_of_two_plans_are_not_glued_together():
    first = Batch.causal(torch.tensor(IDS))
    batches = [replace(first, documents=(0, 1), plan=plan) for plan in ("one", "other")]
    assert [batch.documents for batch in freeze(BARE, batches)] == [(0, 1), (2, 3)]
    with pytest.raises(MismatchError, match="2 of 2 rows"):
        require_disjoint(freeze(BARE, batches), freeze(BARE, IDS))


def test_images_are_frozen_by_their_pixels():
    vision = SimpleNamespace(cfg=SimpleNamespace(n_ctx=5, d_vocab_out=3), task="image-classification")
    pixels = torch.rand(2, 1, 4, 4)
    plan = freeze(vision, {"pixel_values": pixels, "labels": [0, 2]})
    assert (plan.size, plan.predictions, plan.corpus.unit) == (2, 2, "images")
    assert torch.equal(plan.items[1].pixels, pixels[1])
    with pytest.raises(MismatchError, match="row 0"):
        require_disjoint(plan, freeze(vision, pixels[1]))


def test_rows_on_both_sides_are_refused_and_padding_hides_none():
    collected = freeze(BARE, {"input_ids": [[5, 6, 0], [8, 9, 4]], "attention_mask": [[1, 1, 0], [1] * 3]})
    with pytest.raises(MismatchError, match="1 of 2 rows"):
        require_disjoint(collected, freeze(BARE, [[1, 2, 3], [5, 6]]))
    require_disjoint(collected, freeze(BARE, [[1, 2, 3], [5, 6, 7]]))


def test_nothing_real_cannot_be_frozen():
    with pytest.raises(CorpusError, match="no real position"):
        freeze(BARE, {"input_ids": [[5, 6]], "attention_mask": [[0, 0]]})

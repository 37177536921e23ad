"""Values turned round: every valid one once, in pieces of bounded size, whatever their layout in memory."""

import pytest
import torch

from ablation_lens.errors import MismatchError
from ablation_lens.neurons.rows import Rows, Scratch


def layouts() -> list[tuple[str, torch.Tensor]]:
    values = torch.arange(3 * 5 * 2 * 4, dtype=torch.float32).view(3, 5, 2, 4)
    wide = torch.zeros(3, 5, 2, 8)
    wide[..., ::2] = values
    return [
        ("batch pos head dim in memory", values),
        ("batch head pos dim in memory", values.transpose(1, 2).contiguous().transpose(1, 2)),
        ("pos batch head dim in memory", values.transpose(0, 1).contiguous().transpose(0, 1)),
        ("every other number", wide[..., ::2]),
        ("three batch axes, permuted", values.view(3, 5, 1, 2, 4).transpose(0, 1).contiguous().transpose(0, 1)),
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "values"), layouts(), ids=[name for name, _ in layouts()])
def test_rows_are_the_valid_positions_however_memory_is_laid_out(name, values, masked):
    valid = torch.arange(15).view(values.shape[:-2]) % 4 != 0
    taken = Rows(values, valid if masked else None)
    expected = values.reshape(15, 8)[valid.flatten()] if masked else values.reshape(15, 8)
    assert taken.tokens == len(expected)
    (piece,) = taken
    assert sorted(piece.T.tolist()) == sorted(expected.tolist())
    assert torch.equal(*(torch.stack(taken.range()), torch.stack([expected.amin(0), expected.amax(0)]).double()))


@pytest.mark.parametrize("masked", [False, True])
def test_pieces_stay_small_however_many_tokens_there_are(masked):
    valid = torch.ones(1000, dtype=torch.bool)
    valid[7] = not masked
    values = torch.randn(1000, 2, 3)
    pieces = [piece.clone() for piece in Rows(values, valid, piece=60)]
    assert max(piece.numel() for piece in pieces) <= 60
    assert torch.equal(torch.cat(pieces, 1), values[valid].flatten(1).T)


def test_texts_that_lie_apart_in_memory_fill_pieces_together():
    values = torch.randn(7, 2, 5, 4).transpose(1, 2)  # seven texts of five positions
    pieces = [piece.clone() for piece in Rows(values, piece=8 * 12)]
    assert [piece.shape[1] for piece in pieces] == [10, 10, 10, 5]
    assert torch.equal(torch.cat(pieces, 1), values.reshape(35, 8).T)


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_cover_every_neuron_once(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    values = torch.randn(30, 4, 5)
    blocks = list(Rows(values, block=100).blocks())
    assert max(part.numel() for _, part in blocks) <= 100 * threads
    assert torch.equal(torch.cat([part for _, part in blocks]), values.flatten(1).T)
    assert [row for which, _ in blocks for row in range(20)[which]] == list(range(20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_narrow_values_are_widened_exactly_and_wide_ones_kept(dtype):
    values = torch.randn(30, 4, 5).to(dtype)
    (piece,) = Rows(values)
    assert piece.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(piece.T, values.flatten(1).to(piece.dtype))


def test_scratch_memory_is_used_again_also_after_inference_mode():
    scratch = Scratch()
    with torch.inference_mode():
        (first,) = Rows(torch.zeros(30, 4, 5), scratch=scratch)
    (second,) = Rows(torch.ones(20, 4, 5), scratch=scratch)
    assert first.data_ptr() == second.data_ptr()
    assert second.eq(1).all()


def test_no_valid_position_means_no_piece():
    nothing = Rows(torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.bool))
    assert nothing.tokens == 0
    assert list(nothing) == []


@pytest.mark.parametrize(
    "valid", [torch.ones(4, 6, dtype=torch.bool), torch.ones(4, 5), torch.ones(20, dtype=torch.bool)]
)
def test_a_mask_that_does_not_fit_is_refused(valid):
    with pytest.raises(MismatchError, match=r"expected torch\.bool \(4, 5\)"):
        Rows(torch.zeros(4, 5, 2, 3), valid)

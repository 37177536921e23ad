"""The checksum of a model's weights: every bit counts, and nothing else does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ablation_lens.weights import checksum, layout_of

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.complex64, torch.complex128, torch.int64, torch.int8, torch.uint8),
]


def model_of(**tensors):
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return model


def numbers(dtype, *shape):
    return (torch.randn(shape) * 50).to(dtype)


@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 4), max_size=3), st.data())
def test_any_changed_bit_changes_it(dtype, shape, data):
    values = numbers(dtype, *shape)
    model = model_of(first=values.clone(), second=values.clone())
    before = checksum(model)
    changed = getattr(model, data.draw(st.sampled_from(["first", "second"]))).data.reshape(-1).view(torch.uint8)
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    after = checksum(model)
    assert after != before
    assert layout_of(after) == layout_of(before)
    changed[:] = values.reshape(-1).view(torch.uint8)
    assert checksum(model) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_the_same_numbers_lie_in_memory_does_not_matter(dtype):
    values = numbers(dtype, 4, 6, 5)
    expected = checksum(model_of(w=values))
    rows = torch.cat([values, values], dim=1)[:, :6]
    for other in (values.permute(2, 0, 1).contiguous().permute(1, 2, 0), values.mT.contiguous().mT, rows):
        assert torch.equal(other, values)
        assert not other.is_contiguous()
        assert checksum(model_of(w=other)) == expected
    same = values[:1].expand(4, 6, 5)
    assert checksum(model_of(w=same)) == checksum(model_of(w=same.contiguous()))


def test_order_and_names_matter():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    sums = [
        checksum(model_of(x=x, y=y)) for x, y in ((a, b), (b, a), (a.flip(0), b), (a.flip(1), b), (a[[0, 2, 1]], b))
    ]
    assert len(set(sums)) == len(sums)
    assert len(set(map(layout_of, sums))) == 1
    others = [model_of(x=a, z=b), model_of(x=a), model_of(x=a, y=b.view(4, 3)), model_of(x=a, y=b.double())]
    assert len({layout_of(checksum(model)) for model in others} | {layout_of(sums[0])}) == 5


def test_the_number_of_threads_and_the_size_of_pieces_do_not_matter(two_threads):
    model = model_of(long=torch.randn(2**21 + 3), wide=torch.randn(3, 2**20 + 1), tall=torch.randn(2**20 + 1, 3))
    two = checksum(model)
    torch.set_num_threads(1)
    assert checksum(model) == two
    model.long.data[-1] = torch.nextafter(model.long[-1], torch.tensor(torch.inf))
    assert checksum(model) != two


def test_shared_weights_count_once_and_weights_elsewhere_not_at_all():
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert checksum(tied) == checksum(nn.Sequential(tied[0]))
    elsewhere = [checksum(model_of(here=torch.ones(2), there=torch.ones(n, device="meta"))) for n in (3, 3, 4)]
    assert elsewhere[0] == elsewhere[1]
    assert layout_of(elsewhere[0]) != layout_of(elsewhere[2])
    checksum(nn.Module())
    checksum(model_of(empty=torch.ones(0, 3), number=torch.tensor(2.0), sparse=torch.eye(3).to_sparse()))


@pytest.mark.gpu
def test_every_device_gives_the_same():
    for dtype in DTYPES:
        model = model_of(w=numbers(dtype, 700, 300).mT, long=numbers(dtype, 2**21 + 3))
        on_the_cpu = checksum(model)
        assert checksum(model.cuda()) == on_the_cpu

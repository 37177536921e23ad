import numpy as np
import pytest
import torch

from ablation_lens.neurons import grid as counting
from ablation_lens.neurons.grid import Binning, Counter, Grid, histc_counts
from ablation_lens.neurons.rows import Rows


# Sizes that are no powers of two: float32 positions i / n * n round there.
@pytest.mark.parametrize(("neurons", "bins"), [(1, 3), (37, 100), (768, 257), (333, 1001), (5, 60_001)])
def test_histc_counts_every_bin(neurons, bins):
    repeats = np.random.default_rng(0).integers(1, 4, (neurons, bins))
    tokens = repeats.sum(1).max()
    repeats[:, bins // 2] += tokens - repeats.sum(1)  # as many values for every neuron
    index = np.stack([np.repeat(np.arange(bins, dtype=np.float32), times) for times in repeats])
    np.testing.assert_array_equal(histc_counts(torch.from_numpy(index), bins).numpy(), repeats)
    as_on_an_accelerator = torch.from_numpy(index.T.copy()).T
    np.testing.assert_array_equal(histc_counts(as_on_an_accelerator, bins).numpy(), repeats)


def test_histc_counts_in_calls_of_bounded_size(monkeypatch):
    calls = []
    histc = torch.histc

    def spy(values, bins, low, high):
        calls.append((values.numel(), bins))
        return histc(values, bins, low, high)

    monkeypatch.setattr(torch, "histc", spy)
    monkeypatch.setattr(counting, "HISTC_BINS", 1000)
    monkeypatch.setattr(counting, "HISTC_VALUES", 50)
    index = torch.randint(0, 101, (23, 333)).float()
    got = histc_counts(index, 101)
    expected = np.stack([np.bincount(column.astype(int), minlength=101) for column in index.numpy()])
    np.testing.assert_array_equal(got.numpy(), expected)
    assert all(bins <= 1000 and values // (bins // 101) < 50 for values, bins in calls)


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
def test_counting_works_in_torchs_deterministic_mode():
    test_histc_counts_every_bin(37, 100)
    test_both_ways_of_counting_hit_every_bin(37, 100, 0, torch.float32)


def every_bin(neurons: int, bins: int, coarsest: int = 0) -> tuple[torch.Tensor, Grid, np.ndarray]:
    """Values on every lower edge and just below every upper edge, and how often each bin is hit."""
    generator = np.random.default_rng(1)
    exponents = generator.integers(-12, coarsest + 1, neurons)
    offsets = generator.integers(-bins, 9, neurons)
    edges = (offsets[:, None] + np.arange(bins + 1)) * np.exp2(exponents)[:, None]
    lower, upper = edges[:, :-1].astype(np.float32), edges[:, 1:].astype(np.float32)
    values = np.concatenate([lower, np.nextafter(upper, np.float32(-np.inf)), lower, lower[:, : bins // 3]], axis=1)
    counts = np.full((neurons, bins), 3)
    counts[:, : bins // 3] += 1
    order = generator.permuted(values, axis=1).T.copy()
    return torch.from_numpy(order), Grid(torch.from_numpy(exponents), torch.from_numpy(offsets)), counts


@pytest.mark.parametrize(("coarsest", "arithmetic"), [(0, torch.float32), (9, torch.float64)])
@pytest.mark.parametrize(("neurons", "bins"), [(11, 3), (37, 100), (769, 256), (2049, 99), (13, 30_001)])
def test_both_ways_of_counting_hit_every_bin(neurons, bins, coarsest, arithmetic):
    values, grid, expected = every_bin(neurons, bins, coarsest)
    binning = Binning(grid, bins, torch.float32, torch.float32)
    assert binning.dtype == arithmetic
    for on_cpu in (True, False):
        columns = Rows(values.view(-1, 1, neurons))
        columns.on_cpu = on_cpu  # the accelerator's way works on a CPU too
        counts = torch.zeros(neurons, bins, dtype=torch.int64)
        Counter().add(counts, columns, binning)
        np.testing.assert_array_equal(counts.numpy(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("neurons", "bins"), [(37, 100), (4099, 256), (16_400, 256), (3, 30_001)])
def test_counts_on_cuda_equal_the_cpus(neurons, bins, deterministic, request):
    if deterministic:
        request.getfixturevalue("_deterministic")
    values, grid, expected = every_bin(neurons, bins)
    there = Grid(grid.exponent.cuda(), grid.offset.cuda())
    counts = torch.zeros(neurons, bins, dtype=torch.int64, device="cuda")
    for dtype in (torch.float32, torch.float64):
        columns = Rows(values.to("cuda", dtype).view(-1, 1, neurons))
        Counter().add(counts, columns, Binning(there, bins, dtype, torch.float32))
    np.testing.assert_array_equal(counts.cpu().numpy(), 2 * expected)

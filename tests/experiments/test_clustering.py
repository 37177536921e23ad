"""Clusters of equal size: an oracle for the assignment, planted groups, and the weights that Hugging Face has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError, NonFiniteError
from ablation_lens.experiments import Clusters, clusters
from ablation_lens.experiments.balanced import assign, partition
from ablation_lens.experiments.clustering import _add_together
from ablation_lens.hooked import projection

QUIET = {"progress": False}


def together(label):
    """Which things share a group, whatever groups are called."""
    label = np.asarray(label)
    return label[:, None] == label


def put_in(model, layer, weight):
    """Columns of W_in `[d_model d_mlp]`, in a model that may be of either major."""
    held = projection(model.blocks[layer], al.Site.MLP.incoming)
    held.set(weight, torch.zeros(weight.shape[1]))


# ---------------------------------------------------------------------- the assignment


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_no_assignment_is_cheaper_than_scipys_and_all_groups_are_equal(groups, size, seed, whole):
    generator = np.random.default_rng(seed)
    shape = (groups * size, groups)
    cost = generator.integers(0, 4, shape).astype(float) if whole else generator.normal(size=shape)
    label, prices = assign(cost)
    assert np.bincount(label, minlength=groups).tolist() == [size] * groups
    least = linear_sum_assignment(repeated := np.repeat(cost, size, axis=1))
    assert cost[np.arange(len(cost)), label].sum() == pytest.approx(repeated[least].sum(), abs=1e-9)
    # Prices of another problem change the way, not the end.
    other = assign(generator.normal(size=shape))[1]
    again = assign(cost, other)[0]
    assert cost[np.arange(len(cost)), again].sum() == pytest.approx(repeated[least].sum(), abs=1e-9)
    # At these prices nobody would rather be elsewhere.
    dear = cost + prices
    assert (dear[np.arange(len(cost)), label] <= dear.min(1) + 1e-9).all()


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_groups_are_always_equal_and_hold_no_less_than_any_exchange_would(groups, size, seed):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(groups * size, groups * size))
    weights = weights + weights.T
    label, _ = partition(weights, size, restarts=2)
    assert np.bincount(label).tolist() == [size] * groups
    np.fill_diagonal(weights, 0)
    held = weights[together(label)].sum()
    for one in range(len(label)):
        for other in range(one):
            moved = label.copy()
            moved[[one, other]] = label[[other, one]]
            assert weights[together(moved)].sum() <= held + 1e-6


def test_the_affinity_that_is_told_is_the_mean_of_the_pairs():
    weights = np.random.default_rng(0).normal(size=(12, 12))
    weights = weights + weights.T
    label, told = partition(weights, 3)
    pairs = together(label) & ~np.eye(12, dtype=bool)
    assert told == pytest.approx(weights[pairs].mean())


def test_what_comes_first_says_nothing_about_who_belongs_together():
    generator = np.random.default_rng(1)
    points = generator.normal(size=(8, 16)).repeat(6, axis=0) + 0.5 * generator.normal(size=(48, 16))
    order = generator.permutation(48)
    label, _ = partition(points @ points.T, 6)
    moved, _ = partition(points[order] @ points[order].T, 6)
    assert (together(moved) == together(label)[order][:, order]).all()


def test_planted_groups_of_a_graph_are_found_exactly():
    """A graph's edges need not be inner products of anything."""
    generator = np.random.default_rng(2)
    label = generator.permutation(np.arange(8).repeat(16))
    edges = (generator.random((128, 128)) < np.where(together(label), 0.7, 0.1)).astype(float)
    found, _ = partition(np.triu(edges, 1) + np.triu(edges, 1).T, 16)
    assert (together(found) == together(label)).all()


# ---------------------------------------------------------------------- neurons


def planted(width, size, d_model, noise, seed=0):
    """Which of as many groups every neuron is in, in random order, and columns around a direction per group."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(width // size).repeat_interleave(size)[torch.randperm(width, generator=generator)]
    directions = torch.randn(width // size, d_model, generator=generator)
    columns = directions[label] + noise * torch.randn(width, d_model, generator=generator)
    lengths = torch.rand(width, 1, generator=generator) * 10 + 0.1
    return label, (columns * lengths).T


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-mistral", "tiny-vit"])
def test_planted_blocks_of_w_in_are_found_exactly_whatever_their_lengths(name):
    model = al.load_model(name)
    size = {"tiny-mistral": 32, "tiny-opt": 32, "tiny-vit": 24}[name]
    label, weight = planted(model.cfg.d_mlp, size, model.cfg.d_model, noise=0.7)
    put_in(model, 1, weight)
    found = clusters(model, size, layers=[1], **QUIET)
    assert (together(found.labels[0]) == together(label)).all()
    assert found.within[0] > 10 * abs(found.overall[0])


def test_planted_groups_of_neurons_that_are_active_together_are_found_exactly():
    model = al.load_model("tiny-opt")
    label, weight = planted(512, 32, 128, noise=0.05)
    # Columns that point the same way are active together; the gate of ReLU is where they are not.
    put_in(model, 0, weight * 3)
    tokens = torch.randint(5, 500, (4, 30))
    found = clusters(model, 32, "co-activation", batches=tokens, layers=[0], **QUIET)
    assert (together(found.labels[0]) == together(label)).all()
    assert found.read
    assert found.within[0] > 1.5 * found.overall[0]


def test_co_activation_is_the_sum_of_what_is_at_most_one():
    active = torch.rand(40, 9, dtype=torch.float64).mul(3) * (torch.rand(40, 9) > 0.5)
    active[3] *= 1e6
    active[4] = 0
    total = torch.zeros(9, 9, dtype=torch.float64)
    _add_together(total, active)
    expected = (active[:, :, None] * active[:, None, :]).clamp(max=1).sum(0)
    torch.testing.assert_close(total, expected)


def test_padding_is_not_read_and_what_is_negative_counts_as_zero():
    model = al.load_model("tiny-roberta")
    short = torch.tensor([[0, 50, 60, 2]])
    longer = torch.tensor([[0, 50, 60, 2, 1, 1]])
    one = clusters(model, 32, "co-activation", batches={"input_ids": short}, layers=[0], **QUIET)
    mask = (longer != 1).long()
    same = clusters(
        model, 32, "co-activation", batches={"input_ids": longer, "attention_mask": mask}, layers=[0], **QUIET
    )
    torch.testing.assert_close(one.overall, same.overall)
    seen = {}
    al.measure.forward.watch(model, al.Batch.causal(short), "mlp", seen.__setitem__, [0])
    active = seen[0][0].flatten(1).relu().double()
    edges = (active[:, :, None] * active[:, None, :]).clamp(max=1).mean(0)
    edges.fill_diagonal_(0)
    assert one.overall.item() == pytest.approx(edges.sum().item() / (512 * 511))


READING = {
    "tiny-opt": "fc1.weight",
    "tiny-mistral": "mlp.up_proj.weight",
    "tiny-roberta": "intermediate.dense.weight",
    "tiny-vit": "mlp.fc1.weight",
}


@pytest.mark.parametrize("name", READING)
def test_what_neurons_read_is_what_hugging_face_multiplies_by(name):
    theirs = transformers.AutoModel.from_pretrained(al.zoo.folder(name)).state_dict()
    (found,) = [key for key in theirs if key.endswith(f".2.{READING[name]}")]
    ours = projection(al.load_model(name).blocks[2], al.Site.MLP.incoming).weight()
    assert torch.equal(ours.T, theirs[found])


def test_neurons_that_read_nothing_fill_up_clusters():
    model = al.load_model("tiny-opt")
    _, weight = planted(512, 32, 128, noise=0.1)
    weight[:, ::7] = 0
    put_in(model, 0, weight)
    found = clusters(model, 32, layers=[0], **QUIET)
    assert found.labels[0].unique(return_counts=True)[1].tolist() == [32] * 16
    assert bool(found.within.isfinite().all())


def test_the_seed_says_everything():
    model = al.load_model("tiny-opt")
    one, same = (clusters(model, 64, layers=[1, 2], seed=3, restarts=2, **QUIET) for _ in range(2))
    assert torch.equal(one.labels, same.labels)
    assert one.within.min() > one.overall.max()


# ---------------------------------------------------------------------- what is kept, and what is refused


@pytest.fixture(scope="module")
def small():
    return clusters(al.load_model("tiny-vit"), 96, layers=[0, 3], restarts=1, **QUIET)


def test_a_file_gives_back_what_was_saved(small, tmp_path):
    small.save(tmp_path / "x.safetensors")
    read = Clusters.load(tmp_path / "x.safetensors")
    assert torch.equal(read.labels, small.labels)
    assert torch.equal(read.within, small.within)
    assert (read.layers, read.size, read.method, read.source) == ((0, 3), 96, "weights", small.source)
    assert repr(read) == repr(small)


@pytest.mark.parametrize("change", [{"labels": torch.zeros(2, 384).long()}, {"within": torch.zeros(3).double()}])
def test_a_file_of_what_is_not_possible_is_refused(small, tmp_path, change):
    replace(small, **change).save(tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match="not a complete file of clusters"):
        Clusters.load(tmp_path / "x.safetensors")


def test_a_layer_that_is_kept_is_not_clustered_again(tmp_path):
    model = al.load_model("tiny-opt")
    options = {"size": 128, "restarts": 1, "folder": tmp_path, **QUIET}
    one = clusters(model, layers=[1], **options)
    (kept,) = (tmp_path / "pieces").iterdir()
    before = kept.stat().st_mtime_ns
    both = clusters(model, layers=[0, 1], **options)
    assert torch.equal(both.labels[1], one.labels[0])
    assert kept.stat().st_mtime_ns == before
    assert torch.equal(both.labels, clusters(model, 128, layers=[0, 1], restarts=1, **QUIET).labels)


def test_a_cluster_is_a_mask_of_its_neurons(small):
    mask = small.mask(3, 1)
    assert tuple(mask.shape) == (4, 1, 384)
    assert torch.equal(mask[3, 0], small.labels[1] == 1)
    assert int(mask.sum()) == 96
    with pytest.raises(MismatchError, match="no cluster 4 of layer 3"):
        small.mask(3, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 50}, "does not divide the 384 neurons of a layer.* take 32, 48, 64"),
        ({"size": 0}, "size=0"),
        ({"method": "weight"}, "did you mean 'weights'"),
        ({"method": "co-activation"}, "need batches="),
        ({"batches": [[1]]}, "read no batches"),
        ({"restarts": 0}, "restarts=0"),
        ({"seed": "a"}, "seed='a'"),
        ({"layers": [4]}, "this model has 4"),
        ({"layers": []}, "this model has 4"),
        ({"layers": 1}, "give their numbers"),
    ],
)
def test_what_is_not_possible_is_one_sentence(options, said):
    with pytest.raises(MismatchError, match=said):
        clusters(al.load_model("tiny-vit"), **{"size": 96, **QUIET, **options})


def test_weights_that_are_not_finite_are_refused():
    model = al.load_model("tiny-vit")
    weight = projection(model.blocks[0], al.Site.MLP.incoming).weight().clone()
    weight[0, 3] = float("nan")
    put_in(model, 0, weight)
    with pytest.raises(NonFiniteError, match="W_in of layer 0"):
        clusters(model, 96, **QUIET)

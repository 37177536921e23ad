"""The mean weighted by sensitivity: by hand, by brute force, and what it does not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import CorpusError, MismatchError, NonFiniteError
from ablation_lens.measure import learners
from ablation_lens.measure.learners import learn
from ablation_lens.measure.sensitivity import sensitivity_mean
from ablation_lens.models.load import transformer_lens_major
from tests.integration.test_evaluation import batch_for
from tests.integration.test_micro_model import Micro, hooked_transformer
from tests.measure.test_optimal import TOKENS, one_head
from tests.tiny_models import FAMILIES

A, B, C = 0, 1, 2
V = np.array([[0.0, 2.0], [4.0, 0.0], [8.0, -2.0]])


@pytest.fixture(
    params=[
        Micro,
        pytest.param(
            hooked_transformer,
            marks=[
                pytest.mark.skipif(transformer_lens_major() >= 4, reason="transformer-lens 4 has no HookedTransformer"),
                pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
            ],
        ),
    ],
    ids=["own module", "HookedTransformer"],
)
def micro(request):
    return request.param()


def scored_everywhere(rows, **others):
    tokens = torch.tensor(rows)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    return al.Batch(tokens, everywhere, tokens, everywhere, **others)


def positions(rows):
    """Every position of the micro-model: its token, and z = the mean of v over the tokens so far."""
    for row in rows:
        for end in range(1, len(row) + 1):
            yield row[end - 1], V[row[:end]].mean(0)


def weights(token, z):
    """E[(∂ log p / ∂z)²] at a position of the micro-model.

    Logits are (0, z0, z1) plus 1 for the token itself, and ∂ log p(y) / ∂ logit_i = [y = i] − p_i. Its square, y
    drawn from p, is p_i (1 − p_i) on average.
    """
    logits = np.array([0.0, *z])
    logits[token] += 1
    p = np.exp(logits) / np.exp(logits).sum()
    return (p * (1 - p))[1:]


def weighted(pairs):
    pairs = list(pairs)
    return sum(w * z for w, z in pairs) / sum(w for w, _ in pairs)


ROWS = [[A, B], [B, B], [C, B], [B, C]]


def test_it_is_what_is_computed_by_hand(micro):
    learned = sensitivity_mean(micro, [scored_everywhere(ROWS)], draws=None, progress=False)
    expected = weighted((weights(token, z), z) for token, z in positions(ROWS))
    assert learned.values[0, 0].numpy() == pytest.approx(expected, abs=1e-6)
    assert learned.method == "sensitivity-mean"
    # Statistics, a forward pass, and a backward one for three labels at two positions of every row.
    assert learned.cost.passes == 1 + 1 + 2 * 3 * 2


def test_with_all_ablated_values_are_those_before_and_slopes_those_at_the_mean(micro):
    learned = sensitivity_mean(micro, [scored_everywhere(ROWS)], draws=None, ablated=1.0, progress=False)
    at = list(positions(ROWS))
    mean = np.mean([z for _, z in at], axis=0)
    assert learned.values[0, 0].numpy() == pytest.approx(weighted((weights(t, mean), z) for t, z in at), abs=1e-6)
    assert learned.method == "sensitivity-mean ablated=1.0"


def test_half_of_two_neurons_is_one_of_them(micro):
    stats = al.collect(micro, [torch.tensor(ROWS)], progress=False)
    mean, at = stats.mean[0, 0].numpy(), list(positions([[C, B]]))
    expected = [weighted((weights(token, np.where(mask, mean, z)), z) for token, z in at) for mask in ([1, 0], [0, 1])]
    drawn = set()
    for seed in range(12):
        batch = scored_everywhere([[C, B]])
        found = sensitivity_mean(micro, [batch], stats, ablated=0.5, draws=None, seed=seed, progress=False)
        near = [found.values[0, 0].numpy() == pytest.approx(each, abs=1e-6) for each in expected]
        assert sum(near) == 1
        drawn.add(near.index(True))
    assert drawn == {0, 1}


def test_special_positions_count_where_the_statistics_count_them(micro):
    batch = scored_everywhere([[C, B], [A, B]])
    batch = replace(batch, special=torch.tensor([[True, False], [True, False]]))
    stats = al.collect(micro, [batch], include_bos=False, progress=False)
    learned = sensitivity_mean(micro, [batch], stats, draws=None, progress=False)
    at = [*positions([[C, B]])][1:] + [*positions([[A, B]])][1:]
    expected = weighted((weights(token, z), z) for token, z in at)
    assert learned.values[0, 0].numpy() == pytest.approx(expected, abs=1e-6)


def brute(model, tokens):
    """E[w·z] / E[w], with a backward pass for every row, position and label."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(len(model.blocks))]
    over, under = 0.0, 0.0
    for row in tokens:
        seen = {}

        def keep(z, hook, seen=seen):
            seen[hook.name] = z.requires_grad_()
            return seen[hook.name]

        said = model.run_with_hooks(row[None], fwd_hooks=[(name, keep) for name in names]).log_softmax(-1)[0, :-1]
        for place in range(len(said)):
            for label in range(said.shape[1]):
                slopes = torch.autograd.grad(said[place, label], list(seen.values()), retain_graph=True)
                w = torch.stack(slopes).square() * said[place, label].exp().detach()
                over = over + (w * torch.stack(list(seen.values())).detach()).sum((1, 2))
                under = under + w.sum((1, 2))
    return over / under


def test_a_position_matters_to_all_that_is_said_later():
    model = one_head(layers=2)
    exact = sensitivity_mean(model, TOKENS[:6], draws=None, progress=False)
    assert torch.allclose(exact.values, brute(model, TOKENS[:6]), atol=1e-9)


def test_many_draws_come_to_the_exact_expectation():
    model = one_head(layers=2)
    stats = al.collect(model, TOKENS, progress=False)
    exact = sensitivity_mean(model, TOKENS, stats, draws=None, progress=False).values

    def miss(draws):
        found = sensitivity_mean(model, TOKENS, stats, draws=draws, progress=False).values
        return float(((found - exact) / stats.std).abs().mean())

    assert miss(400) < 0.02
    assert miss(400) < miss(1) / 4


def test_other_seeds_draw_other_labels():
    model = one_head()
    one, again, other = (sensitivity_mean(model, TOKENS, seed=seed, progress=False).values for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_neuron_that_matters_nowhere_is_its_mean():
    model = one_head()
    with torch.no_grad():
        model.blocks[0].attn.W_O[0, 1] = 0.0
    stats = al.collect(model, TOKENS, progress=False)
    learned = sensitivity_mean(model, TOKENS, stats, progress=False)
    assert (learned.values == stats.mean).nonzero().tolist() == [[0, 0, 1]]
    assert "1 of 6 matter nowhere" in learned.told


@pytest.mark.parametrize("options", [{}, {"ablated": 0.5}, {"draws": None}], ids=str)
def test_padding_order_and_batches_change_nothing(options):
    model = one_head(layers=2)
    stats = al.collect(model, TOKENS, progress=False)
    lengths = [2 + row % 4 for row in range(len(TOKENS))]
    rows = [row[:length] for row, length in zip(TOKENS, lengths, strict=True)]
    valid = torch.stack([torch.arange(5) < length for length in lengths])
    right = al.Batch.causal(torch.where(valid, TOKENS, 3), valid)
    order = torch.argsort(valid.byte(), dim=1, stable=True)
    left = al.Batch.causal(TOKENS.gather(1, order), valid.gather(1, order))
    found = [
        sensitivity_mean(model, batches, stats, **options, progress=False).values
        for batches in ([al.Batch.causal(row[None]) for row in rows[::-1]], [right], [left])
    ]
    assert not bool(left.valid[0, 0])
    assert torch.allclose(found[0], found[1], atol=1e-9)
    assert torch.allclose(found[0], found[2], atol=1e-9)
    assert not torch.allclose(found[0], stats.mean, atol=1e-3)


def test_where_memory_runs_out_batches_are_halved():
    model = one_head()
    stats = al.collect(model, TOKENS, progress=False)
    expected = sensitivity_mean(model, TOKENS, stats, ablated=0.5, progress=False)
    run = model.run_with_hooks

    def limited(tokens, **options):
        if len(tokens) > 12:
            raise torch.OutOfMemoryError
        return run(tokens, **options)

    model.run_with_hooks = limited
    again = sensitivity_mean(model, TOKENS, stats, ablated=0.5, progress=False)
    assert torch.allclose(again.values, expected.values, atol=1e-9)
    assert again.cost == expected.cost


@pytest.mark.parametrize("site", ["z", "mlp", "resid_post"])
@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_every_family_has_one_at_every_site(tiny, site, saved):
    model, batch = al.load_model(saved(tiny.name)), batch_for(tiny)
    stats = al.collect(model, [batch], site=site, progress=False)
    with torch.inference_mode():
        learned = sensitivity_mean(model, [batch], stats, draws=2, progress=False)
        half = sensitivity_mean(model, [batch], stats, ablated=0.5, progress=False)
    # A mean of values, whatever their weights.
    assert bool((learned.values >= stats.minimum - 1e-4).all())
    assert bool((learned.values <= stats.maximum + 1e-4).all())
    for values in (learned.values, half.values):
        assert not torch.allclose(values, stats.mean, atol=1e-3)
    al.evaluate(model, [batch], half.ablation("L1"))


def test_nothing_is_judged_on_what_was_read():
    model = one_head()
    stats = al.collect(model, TOKENS[:10], progress=False)
    learned = learn(model, TOKENS[10:], "sensitivity-mean", stats, progress=False)
    for rows in (TOKENS[:10], TOKENS[10:]):
        read = al.collect(model, rows, progress=False).rows
        assert bool(torch.isin(read, learned.rows).all())


def test_its_label_sets_how_much_is_ablated():
    learners.require_parameters("sensitivity-mean", {"ablated": 0.5})
    assert learn(one_head(), TOKENS, "sensitivity-mean", ablated=0.5, progress=False).settings["ablated"] == 0.5


@pytest.mark.parametrize(
    "options", [{"ablated": 1.5}, {"ablated": "half"}, {"draws": 0}, {"draws": 1.5}, {"draws": True}], ids=str
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(MismatchError, match="is not possible"):
        sensitivity_mean(one_head(), TOKENS, **options, progress=False)


def test_an_exact_expectation_over_many_labels_is_refused():
    model = al.load_model("tiny-opt")
    with pytest.raises(MismatchError, match="give draws=1"):
        sensitivity_mean(model, torch.arange(5, 60)[None], draws=None, progress=False)


def test_without_a_scored_position_nothing_tells():
    with pytest.raises(CorpusError, match="no scored position"):
        sensitivity_mean(one_head(), TOKENS[:, :1], progress=False)


def test_what_is_not_finite_is_told():
    model = one_head()
    stats = al.collect(model, TOKENS, progress=False)
    model.blocks[0].hook_resid_post.add_hook(lambda residual, hook: residual + torch.inf)
    with pytest.raises(NonFiniteError, match="not finite"):
        sensitivity_mean(model, TOKENS, stats, progress=False)

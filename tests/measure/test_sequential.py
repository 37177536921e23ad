"""The mean layer by layer: against `collect` under an ablation of all that lies below."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import CorpusError, NonFiniteError
from ablation_lens.measure.learners import learn
from ablation_lens.measure.sequential import sequential_mean
from tests.integration.test_evaluation import batch_for
from tests.measure.test_optimal import TOKENS, one_head
from tests.tiny_models import FAMILIES


@pytest.mark.parametrize("site", ["z", "mlp"])
@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_every_layer_is_what_is_collected_where_those_below_are_ablated(tiny, site, saved):
    model, batch = al.load_model(saved(tiny.name)), batch_for(tiny)
    stats = al.collect(model, [batch], site=site, progress=False)
    learned = sequential_mean(model, [batch], stats, progress=False)
    assert torch.equal(learned.values[0], stats.mean[0])
    for layer in range(1, len(learned.values)):
        below = [f"L{lower}" for lower in range(layer)]
        with learned.ablation(below).applied_to(model):
            expected = al.collect(model, [batch], site=site, progress=False).mean[layer]
        assert torch.allclose(learned.values[layer], expected, atol=1e-5)
        assert not torch.allclose(expected, stats.mean[layer], atol=1e-3)


def test_layers_above_are_not_run():
    model = one_head(layers=3)
    ran = [0, 0, 0]
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.__setitem__(layer, ran[layer] + 1))
    stats = al.collect(model, TOKENS, progress=False)
    # The last block of a run is left in its middle.
    before = list(ran)
    learned = sequential_mean(model, TOKENS, stats, progress=False)
    assert [after - first for after, first in zip(ran, before, strict=True)] == [2, 1, 0]
    assert learned.cost.passes == pytest.approx(1 + 2 / 3 + 3 / 3, abs=0.01)


def test_padding_order_and_batches_change_nothing():
    model = one_head(layers=3)
    stats = al.collect(model, TOKENS, progress=False)
    valid = torch.arange(5) < torch.arange(len(TOKENS))[:, None] % 4 + 2
    order = torch.argsort(valid.byte(), dim=1, stable=True)
    left = al.Batch.causal(TOKENS.gather(1, order), valid.gather(1, order))
    alone = [al.Batch.causal(row[real][None]) for row, real in zip(TOKENS, valid, strict=True)][::-1]
    found = [
        sequential_mean(model, batches, stats, progress=False).values
        for batches in (alone, [al.Batch.causal(torch.where(valid, TOKENS, 3), valid)], [left])
    ]
    assert torch.allclose(found[0], found[1], atol=1e-12)
    assert torch.allclose(found[0], found[2], atol=1e-12)


def test_where_memory_runs_out_batches_are_halved():
    model = one_head(layers=2)
    expected = sequential_mean(model, TOKENS, progress=False)
    run = model.run_with_hooks

    def limited(tokens, **options):
        if len(tokens) > 12:
            raise torch.OutOfMemoryError
        return run(tokens, **options)

    stats = al.collect(model, TOKENS, progress=False)
    model.run_with_hooks = limited
    assert torch.allclose(sequential_mean(model, TOKENS, stats, progress=False).values, expected.values, atol=1e-12)


def test_a_batch_for_which_memory_runs_out_after_the_site_counts_once():
    model = one_head(layers=2)
    expected = sequential_mean(model, TOKENS, progress=False)
    stats = al.collect(model, TOKENS, progress=False)

    def run_out(value, hook):
        if len(value) > 12:
            raise torch.OutOfMemoryError

    # What attention gives comes after z, and before the end of the last block that is run.
    run, later = model.run_with_hooks, ("blocks.1.hook_attn_out", run_out)
    model.run_with_hooks = lambda tokens, fwd_hooks, **options: run(tokens, fwd_hooks=[*fwd_hooks, later], **options)
    found = sequential_mean(model, [TOKENS[:30], TOKENS[30:]], stats, progress=False)
    assert torch.allclose(found.values, expected.values, atol=1e-12)


def test_it_has_a_name_and_rows_that_nothing_is_judged_on():
    model = one_head(layers=2)
    stats = al.collect(model, TOKENS[:10], progress=False)
    learned = learn(model, iter([TOKENS[10:]]), "sequential-mean", stats, progress=False)
    assert learned.method == "sequential-mean"
    assert bool(torch.isin(al.collect(model, TOKENS, progress=False).rows, learned.rows).all())


def test_an_iterator_is_read_once_where_statistics_are_collected_from_it():
    learned = learn(one_head(layers=2), iter([TOKENS]), "sequential-mean", progress=False)
    assert torch.equal(learned.values, sequential_mean(one_head(layers=2), TOKENS, progress=False).values)


def test_a_neuron_that_is_not_finite_is_named():
    model = one_head(layers=2)
    stats = al.collect(model, TOKENS, progress=False)
    model.blocks[1].attn.hook_z.add_hook(lambda z, hook: z.index_fill(3, torch.tensor([1]), torch.inf))
    with pytest.raises(NonFiniteError, match=r"L1\.H0\.D1"):
        sequential_mean(model, TOKENS, stats, progress=False)


def test_nothing_real_has_no_mean():
    model = one_head(layers=2)
    stats = al.collect(model, TOKENS, progress=False)
    nothing = al.Batch.causal(TOKENS, torch.zeros_like(TOKENS, dtype=torch.bool))
    with pytest.raises(CorpusError):
        sequential_mean(model, [nothing], stats, progress=False)

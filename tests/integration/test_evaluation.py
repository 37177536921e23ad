"""Scores against Hugging Face and NumPy, in every family, whole or in chunks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import ablation_lens.measure.evaluation as evaluation
from ablation_lens import load_model
from ablation_lens.ablation.ablation import Ablation
from ablation_lens.ablation.masks import random_neurons
from ablation_lens.errors import CorpusError, MismatchError, NonFiniteError
from ablation_lens.measure.evaluation import evaluate, evaluate_each
from ablation_lens.measure.forward import ends_plainly, final_residual, logits_from, reads_first, residual_at
from ablation_lens.models.load import transformer_lens_major
from ablation_lens.sites import Site
from ablation_lens.tasks.padding import PaddingWarning
from ablation_lens.tasks.plans import Batch
from ablation_lens.tasks.tasks import task_for
from tests.tiny_models import BY_NAME, VARIANTS, reference


def oracle(logits, batch):
    """Top-1 hits, summed negative log-likelihood and count per row, in NumPy and float64."""
    rows = []
    for row in range(len(batch.inputs)):
        scored = batch.scored[row].reshape(-1).numpy()
        values = logits[row].reshape(len(scored), -1).double().numpy()[scored]
        labels = batch.labels[row].reshape(-1).numpy()[scored]
        shifted = values - values.max(-1, keepdims=True)
        nats = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
        rows.append((int((values.argmax(-1) == labels).sum()), nats.sum(), len(labels)))
    return np.array(rows)


def batch_for(tiny):
    inputs, mask = tiny.inputs()
    if mask is None:
        valid = torch.ones(len(inputs), 10, dtype=torch.bool)
        return Batch(inputs, valid, torch.tensor([0, 3, 6]), torch.ones(3, dtype=torch.bool))
    batch = Batch.causal(inputs, mask.bool())
    if tiny.name.endswith("roberta"):
        scored = mask.bool() & (torch.rand(inputs.shape) < 0.3)
        batch = Batch(inputs, mask.bool(), torch.where(scored, inputs, 0), scored)
    return batch


def beside_the_oracle(tiny, saved):
    """The model, a batch, and what NumPy makes of Hugging Face's logits."""
    if transformer_lens_major() not in tiny.majors:
        pytest.skip("transformer-lens has no such model")
    batch = batch_for(tiny)
    logits, _ = reference(tiny.model(), tiny, batch.inputs, None if batch.inputs.ndim > 2 else batch.valid.long())
    return load_model(saved(tiny.name)), batch, oracle(logits, batch)


@pytest.mark.parametrize("tiny", VARIANTS, ids=lambda tiny: tiny.name)
def test_scores_equal_hugging_face_and_numpy(tiny, saved):
    model, batch, expected = beside_the_oracle(tiny, saved)
    score = evaluate(model, [batch])
    assert score.correct.tolist() == expected[:, 0].tolist()
    assert score.predictions_per_document.tolist() == expected[:, 2].tolist()
    assert np.abs(score.loss.numpy() - expected[:, 1]).max() <= 1e-4
    assert score.top1 == expected[:, 0].sum() / expected[:, 2].sum()
    assert abs(score.cross_entropy - expected[:, 1].sum() / expected[:, 2].sum()) <= 1e-5


@pytest.mark.parametrize("tiny", VARIANTS, ids=lambda tiny: tiny.name)
def test_so_they_do_four_positions_at_a_time(tiny, saved):
    model, batch, expected = beside_the_oracle(tiny, saved)
    with torch.inference_mode():
        top1, loss = evaluation.row_sums(
            model, [batch], lambda given, run: [], evaluation._ALWAYS, at_once=4 * model.cfg.d_vocab_out
        )
    assert top1.tolist() == expected[:, 0].tolist()
    assert np.abs(loss.numpy() - expected[:, 1]).max() <= 1e-4


@pytest.fixture
def opt(saved):
    return load_model(saved("opt"))


@pytest.mark.parametrize("name", ["opt", "mistral", "roberta"])
def test_the_chunked_path_is_really_taken_and_skips_what_is_not_scored(name, saved):
    model = load_model(saved(name))
    batch = batch_for(BY_NAME[name])
    assert ends_plainly(model, batch)
    residual = final_residual(model, batch)
    assert residual.shape == (3, 12, model.cfg.d_model)
    assert logits_from(model, residual[batch.scored]).shape == (int(batch.scored.sum()), 61)


def test_a_model_that_ends_in_another_way_is_run_whole(opt):
    class Scaled:  # its own logits are not norm and unembedding of the last residual, but a third of that
        cfg, ln_final, run_with_hooks = opt.cfg, opt.ln_final, staticmethod(opt.run_with_hooks)

        def unembed(self, residual):
            return 3 * opt.unembed(residual)

    batch = batch_for(BY_NAME["opt"])
    assert ends_plainly(opt, batch)
    assert not ends_plainly(Scaled(), batch)
    assert torch.allclose(evaluate(Scaled(), [batch]).loss, evaluate(opt, [batch]).loss, atol=1e-4)


def test_documents_are_added_in_their_own_order_whatever_the_batches(opt):
    tokens = torch.randint(3, 61, (6, 9))
    whole = evaluate(opt, [Batch.causal(tokens)])
    order = [4, 2, 0, 5, 1, 3]
    parts = []
    for rows in (order[:3], order[3:]):
        part = Batch.causal(tokens[rows])
        parts.append(Batch(part.inputs, part.valid, part.labels, part.scored, documents=tuple(rows)))
    shuffled = evaluate(opt, parts)
    assert shuffled.documents == whole.documents == tuple(range(6))
    assert shuffled.correct.tolist() == whole.correct.tolist()
    assert torch.allclose(shuffled.loss, whole.loss, atol=1e-5)


def test_hooks_of_an_ablation_are_in_place_and_gone_afterwards(opt):
    from ablation_lens.sites import Site

    class Zero:
        def hooks(self):
            return [(name, lambda z, hook: torch.zeros_like(z)) for name in Site.Z.hook_names(opt.cfg)]

    batch = batch_for(BY_NAME["opt"])
    before = evaluate(opt, [batch])
    ablated = evaluate(opt, [batch], Zero())
    assert ablated.cross_entropy != before.cross_entropy
    assert torch.equal(evaluate(opt, [batch]).loss, before.loss)


def test_out_of_memory_splits_the_batch_and_keeps_its_padding(opt):
    batch = batch_for(BY_NAME["opt"])
    expected = evaluate(opt, [batch])
    shapes = []
    run = opt.run_with_hooks

    def limited(tokens, **options):
        shapes.append(tuple(tokens.shape))
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("planted")
        return run(tokens, **options)

    opt.run_with_hooks = limited
    score = evaluate(opt, [batch])
    assert score.splits == 2  # 3 rows → 1 + 2 → 1 + (1 + 1)
    assert {shape[1] for shape in shapes} == {12}
    assert score.correct.tolist() == expected.correct.tolist()
    assert torch.allclose(score.loss, expected.loss, atol=1e-6 * expected.loss.abs().max())

    def hopeless(tokens, **options):
        raise torch.OutOfMemoryError("planted")

    opt.run_with_hooks = hopeless
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(opt, [batch])


def test_a_bare_name_is_answered_with_what_to_give(opt):
    with pytest.raises(MismatchError, match=r"str is not an ablation; give for example"):
        evaluate(opt, [batch_for(BY_NAME["opt"])], "peak")


def test_padded_tokens_score_as_each_text_alone():
    model = load_model("tiny-opt")
    prompts = ["The cat sat on the mat, and then some more was to come.", "Hello", "A dog ran."]
    alone = evaluate(model, [Batch.causal(model.to_tokens(prompt)) for prompt in prompts])
    for side in ("right", "left"):
        with pytest.warns(PaddingWarning):
            padded = evaluate(model, [Batch.causal(model.to_tokens(prompts, padding_side=side))])
        assert torch.equal(padded.predictions_per_document, alone.predictions_per_document)
        assert torch.equal(padded.correct, alone.correct)
        assert torch.allclose(padded.loss, alone.loss, atol=1e-4)


def test_values_by_position_meet_the_positions_of_the_text(opt):
    """Also in a batch that is padded on the left."""
    tokens, shape = torch.randint(3, 61, (2, 6)), Site.Z.shape(opt.cfg)
    layers, heads, dims = shape
    values = torch.randn(layers, 6, heads, dims)
    ablation = Ablation(torch.ones(shape, dtype=torch.bool), values)
    valid = torch.ones_like(tokens, dtype=torch.bool)
    valid[1, :2] = False
    alone = evaluate(opt, [Batch.causal(tokens[:1]), Batch.causal(tokens[1:, 2:])], ablation)
    assert torch.allclose(evaluate(opt, [Batch.causal(tokens, valid)], ablation).loss, alone.loss, atol=1e-4)


def test_nothing_to_score_and_numbers_that_overflow_are_errors(opt):
    batch = batch_for(BY_NAME["opt"])
    nothing = Batch(batch.inputs, batch.valid, batch.labels, torch.zeros_like(batch.scored))
    with pytest.raises(CorpusError, match="nothing to score"):
        evaluate(opt, [nothing])

    class Overflow:
        def hooks(self):
            return [("blocks.0.hook_resid_post", lambda value, hook: value * float("inf"))]

    with pytest.raises(NonFiniteError, match="not finite"):
        evaluate(opt, [batch], Overflow())


def test_rows_that_nobody_numbered_are_never_taken_for_numbered_documents(opt):
    rows = [Batch.causal(torch.randint(3, 61, (1, 9))) for _ in range(4)]
    losses = [evaluate(opt, [row]).loss.item() for row in rows]
    numbered = [replace(row, documents=(number,)) for row, number in zip(rows, (5, 0, 1, 2), strict=True)]
    # The second and third begin where the count of documents stands, and where a later document is.
    score = evaluate(opt, [numbered[0], rows[1], rows[2], numbered[3]])
    assert score.documents == (2, 5, 6, 7)
    assert score.loss.tolist() == pytest.approx([losses[3], losses[0], losses[1], losses[2]])


def test_float64_stays_float64(saved):
    model = load_model(saved("roberta"), dtype="float64")
    batch = batch_for(BY_NAME["roberta"])
    expected = oracle(model(batch.inputs, batch.valid.long()).detach(), batch)
    assert evaluate(model, [batch]).loss.numpy() == pytest.approx(expected[:, 1], rel=1e-13)


TEXTS = torch.tensor([[2, 7, 9, 11], [1, 2, 8, 4]])
REAL = torch.tensor([[True, True, True, True], [False, True, True, True]])


def test_positions_from_the_end_are_those_of_every_row(opt):
    """The last real token, also under left padding."""
    shape = Site.Z.shape(opt.cfg)
    everywhere = Ablation(random_neurons(shape, 1.0, seed=0), torch.full(shape, 0.5))
    batch = Batch.prompts(TEXTS, [5, 6], valid=REAL)

    score = evaluate(opt, [batch], everywhere.at(-1))
    for row in (0, 1):
        tokens = TEXTS[row][REAL[row]][None]
        logits = opt.run_with_hooks(tokens, fwd_hooks=everywhere.at(tokens.shape[1] - 1).hooks())
        expected = torch.nn.functional.cross_entropy(logits[0, -1:], torch.tensor([[5, 6][row]])).item()
        assert abs(score.rows("cross_entropy")[row] - expected) <= 1e-4


def test_a_provider_is_asked_for_every_batch_and_for_its_halves(opt):
    asked = []

    def provider(model, batch, site):
        asked.append(len(batch.inputs))
        return torch.zeros(site.shape(model.cfg))

    def full(value, hook):
        if len(value) > 1:
            raise torch.OutOfMemoryError

    shape = Site.Z.shape(opt.cfg)
    mask = random_neurons(shape, 0.5, seed=0)
    plan = [Batch.causal(torch.tensor([[2, 7, 9], [2, 8, 4]]))]
    expected = evaluate(opt, plan, Ablation(mask, torch.zeros(shape)))
    opt.blocks[0].hook_resid_pre.add_hook(full)
    try:
        score = evaluate(opt, plan, Ablation(mask, provider))
    finally:
        opt.reset_hooks()
    assert asked == [2, 1, 1]
    assert np.abs(score.loss.numpy() - expected.loss.numpy()).max() <= 1e-4


def test_several_ablations_are_one(opt):
    shape = Site.Z.shape(opt.cfg)
    first = Ablation(random_neurons(shape, 0.5, seed=0), torch.zeros(shape))
    second = Ablation(random_neurons(shape, 0.5, seed=1), torch.ones(shape))
    together = Ablation(first.mask | second.mask, torch.where(second.mask, second.values, first.values))
    plan = [Batch.causal(torch.tensor([[2, 7, 9], [2, 8, 4]]))]
    assert torch.equal(evaluate(opt, plan, first | second).loss, evaluate(opt, plan, together).loss)


@pytest.mark.parametrize("name", ["opt", "mistral", "roberta", "vit"])
def test_a_batch_waits_for_its_device_nowhere_but_at_the_end(name, saved):
    """On the meta device whatever would wait raises."""
    if transformer_lens_major() > 3 and name in ("opt", "mistral"):
        pytest.skip("a bridge asks its device for padding")
    model, batch = load_model(saved(name)), batch_for(BY_NAME[name])
    shape = Site.Z.shape(model.cfg)
    ablation = Ablation(random_neurons(shape, 0.5, seed=1), torch.zeros(shape))
    metrics = evaluation.metrics_of(["kl", "rank", "probability"])
    expected = evaluate(model, [batch], ablation, metrics=metrics)  # also tries out, once, how the model ends
    model.to("meta")
    model.cfg.device = torch.device("meta")
    with torch.inference_mode():
        hooks_on = evaluation.hooks_for(model, ablation)
        table = evaluation.row_sums(model, [batch, batch], hooks_on, {**evaluation._ALWAYS, **metrics})
    assert (table.device.type, table.shape) == ("meta", (10, len(expected.documents)))


@pytest.mark.parametrize("name", ["opt", "mistral", "roberta", "vit"])
def test_the_last_block_goes_on_with_what_is_scored_unless_somebody_listens(name, saved):
    model, batch = load_model(saved(name)), batch_for(BY_NAME[name])
    last = model.cfg.n_layers - 1
    row, column = batch.scored.reshape(len(batch.scored), -1).nonzero().unbind(1)
    mine = [("blocks.0.hook_resid_pre", lambda value, hook: value * 1.5), (Site.Z.hook_name(last), lambda z, hook: -z)]
    whole, seen = final_residual(model, batch, mine)[row, column], []

    def look(value, hook):
        seen.append(tuple(value.shape[:2]))

    with torch.inference_mode():
        alone = residual_at(model, batch, row, column, mine, few=0)
        assert torch.allclose(alone, whole, atol=1e-5)
        for place in ("hook_resid_mid", "mlp.hook_post", "hook_resid_post", "hook_attn_out"):
            listener = (f"blocks.{last}.{place}", look)
            assert torch.equal(residual_at(model, batch, row, column, [*mine, listener], few=0), whole), place
            with model.hooks(fwd_hooks=[listener]):
                assert torch.equal(residual_at(model, batch, row, column, mine, few=0), whole), place
    assert set(seen) == {tuple(batch.valid.shape)}


def test_an_image_model_whose_head_reads_all_positions_is_run_whole(saved):
    model, batch = load_model(saved("vit")), batch_for(BY_NAME["vit"])
    assert reads_first(model, batch)
    before = evaluate(model, [batch]).loss
    pooled = load_model(saved("vit"))
    pooled.head = lambda residual: pooled.classifier(pooled.ln_final(residual).mean(1))
    assert not reads_first(pooled, batch)
    assert not torch.allclose(evaluate(pooled, [batch]).loss, before, atol=1e-3)


def test_a_batch_that_is_written_to_again_is_read_again():
    model, tokens = load_model("tiny-roberta"), torch.arange(5, 45).view(2, 20)
    scored, everywhere = torch.zeros(2, 20, dtype=torch.bool), torch.ones(2, 20, dtype=torch.bool)
    scored[:, 2:5] = True
    labels, shorter = torch.where(scored, tokens, 0), everywhere.clone()
    shorter[0, 8:] = False

    def overwritten():
        batch = Batch(tokens, everywhere.clone(), labels, scored)
        yield batch
        batch.valid.copy_(shorter)
        yield batch

    expected = [evaluate(model, Batch(tokens, valid, labels, scored)).loss for valid in (everywhere, shorter)]
    assert torch.equal(evaluate(model, overwritten()).loss, torch.cat(expected))


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-roberta"])
def test_one_run_gives_the_scores_of_every_count(name):
    model = load_model(name)
    plans = [task_for(model).batches(tokens=900, batch_size=2, count=count) for count in ("skip-common", "all")]
    shape = Site.Z.shape(model.cfg)
    ablation = Ablation(random_neurons(shape, 0.5, seed=1), torch.zeros(shape))
    metrics = {"kl": "kl", "mine": lambda logits, batch: batch.scored.sum(-1).double()}
    calls, run = [], model.run_with_hooks
    evaluate(model, plans[0])  # tries out, once, how the model ends
    model.run_with_hooks = lambda *args, **options: (calls.append(1), run(*args, **options))[1]
    together = evaluate_each(model, plans, ablation, metrics=metrics)
    runs = len(calls)
    apart = [evaluate(model, plan, ablation, metrics=metrics) for plan in plans]
    assert runs * 2 == len(calls) - runs
    for one, other in zip(together, apart, strict=True):
        assert one.documents == other.documents
        assert one.correct.tolist() == other.correct.tolist()
        assert torch.equal(one.predictions_per_document, other.predictions_per_document)
        for metric in ("cross_entropy", "kl", "mine"):
            assert np.allclose(one.rows(metric), other.rows(metric), rtol=1e-6, equal_nan=True), metric
    assert together[0].predictions < together[1].predictions
    with pytest.raises(MismatchError, match="other documents"):
        evaluate_each(model, [plans[0], task_for(model).batches(tokens=800)])


def test_plans_whose_labels_differ_are_not_one():
    model = load_model("tiny-vit")
    plan = task_for(model).batches(split="evaluate", images=8)
    items = tuple(replace(item, label=1 - min(item.label, 1)) for item in plan.items)
    with pytest.raises(MismatchError, match="evaluated together, got"):
        evaluate_each(model, [plan[:1], plan[:1]])
    with pytest.raises(MismatchError, match="other labels"):
        evaluate_each(model, [plan, replace(plan, items=items)])

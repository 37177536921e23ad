"""A metric row by row for one batch: as `evaluate` has it, with gradients, and of a residual of several copies."""

import pytest
import torch

import ablation_lens as al
from ablation_lens import metrics
from ablation_lens.errors import MismatchError
from ablation_lens.measure.forward import final_residual
from ablation_lens.measure.readout import Readout
from ablation_lens.models.load import transformer_lens_major
from tests.tiny_models import BY_NAME


def lowest(logits, batch):
    """A metric of one's own, of whole logits."""
    return logits.flatten(1).amin(1)


def far(logits, batch, clean):
    return (logits - clean).abs().flatten(1).amax(1)


far_away = metrics.Metric(far, clean=True)
METRICS = ["logit_difference", "cross_entropy", "kl", "rank", lowest, far_away]


@pytest.fixture(scope="module", params=["opt", "mistral", "roberta", "gpt2"])
def model(request, saved):
    return al.load_model(saved(request.param), dtype=torch.float32)


def prompts(padded=False):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 61, (4, 9), generator=generator)
    valid = torch.arange(9) >= torch.tensor([[0], [3], [0], [5]]) if padded else None
    return al.Batch.prompts(tokens, [5, 6, [7, 8], 9], [15, [16, 17], 18, 19], valid=valid)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: getattr(metric, "__name__", None))
def test_rows_are_those_of_evaluate(model, metric, padded):
    batch, named = prompts(padded), metrics.metrics_of({"it": metric} if callable(metric) else metric)
    (name, one), ablation = next(iter(named.items())), al.Ablation.from_names("L1.H2", 0.0, model=model)
    expected = al.evaluate(model, batch, ablation, metrics=named).rows(name)
    readout = Readout(model, batch, one)
    found = readout.under(ablation.hooks())
    assert torch.allclose(found.values / found.weights, torch.from_numpy(expected), atol=2e-5)
    residual = final_residual(model, readout.batch, ablation.hooks())
    twice = readout.of_residual(torch.cat([final_residual(model, readout.batch), residual]))
    assert torch.allclose(twice.values[4:], found.values, atol=2e-5)
    assert torch.equal(twice.weights, found.weights.repeat(2))
    if one.clean:  # the model compared with itself
        assert float(readout.under([]).values.detach().abs().max()) == 0


def test_images_are_read_out_by_their_head(saved):
    model = al.load_model(saved("vit"))
    tiny = BY_NAME["vit"]
    batch = next(iter(al.task_for(al.load_model("tiny-vit")).batches(split="evaluate", images=3)))
    batch = al.Batch(torch.randn(3, *tiny.image), batch.valid[:3], batch.labels[:3] % 7, batch.scored[:3])
    readout = Readout(model, batch, metrics.cross_entropy)
    residual = final_residual(model, batch)
    expected = al.evaluate(model, batch).rows("cross_entropy")
    assert torch.allclose(readout.of_residual(torch.cat([residual] * 3)).values, torch.from_numpy(expected).repeat(3))


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
@pytest.mark.skipif(transformer_lens_major() >= 4, reason="transformer-lens 4 has no HookedTransformer")
def test_a_model_that_goes_on_after_its_norm_is_run_whole():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=12, n_ctx=9, d_head=4, n_heads=3, d_vocab=61, act_fn="relu", output_logits_soft_cap=0.5
    )
    model = HookedTransformer(cfg)
    readout = Readout(model, prompts(), metrics.logit_difference)
    assert not readout.reads_residuals
    expected = al.evaluate(model, prompts(), metrics="logit_difference").rows("logit_difference")
    assert torch.allclose(readout.under([]).values, torch.from_numpy(expected), atol=1e-6)


@pytest.mark.skipif(transformer_lens_major() >= 4, reason="a bridge's norms are Hugging Face's")
def test_a_hook_after_the_blocks_sees_whole_rows(saved):
    """Of single positions it would see all scored ones as one row."""
    model, seen = al.load_model(saved("opt")), []
    with model.hooks([("ln_final.hook_normalized", lambda value, hook: seen.append(tuple(value.shape[:2])))]):
        found = Readout(model, prompts(), metrics.logit_difference).under([])
    assert set(seen) == {(4, 9)}
    assert torch.allclose(found.values, Readout(model, prompts(), metrics.logit_difference).under([]).values, atol=1e-5)


def test_weights_that_depend_on_the_logits_are_refused(model):
    """Effects are differences of rows: one row must count alike in both runs."""
    sharp = metrics.Metric(lambda logits, batch: (logits[:, -1, 5], logits[:, -1, 6].exp()))
    ablation = al.Ablation.from_names("L1", 0.0, model=model)
    readout = Readout(model, prompts(), sharp)
    assert torch.equal(readout.under([]).values, readout.under([]).values)
    with pytest.raises(MismatchError, match="depend on what the model says"):
        readout.under(ablation.hooks())


@pytest.mark.parametrize("metric", ["logit_difference", "cross_entropy", lowest])
def test_gradients_are_those_of_the_logits(model, metric):
    batch, one = prompts(padded=True), next(iter(metrics.metrics_of(metric).values()))
    seen = {}

    def watched(value, hook):
        seen["z"] = value.detach().requires_grad_()
        return seen["z"]

    name = al.Site.Z.hook_name(0)
    total = Readout(model, batch, one).under([(name, watched)]).values.sum()
    ours = torch.autograd.grad(total, seen["z"])[0]
    moved = batch.from_start()
    logits = model.run_with_hooks(moved.inputs, fwd_hooks=[(name, watched)], attention_mask=moved.valid.long())
    plain = torch.autograd.grad(one(logits, moved).sum(), seen["z"])[0]
    assert float(ours.abs().max()) > 0
    assert torch.allclose(ours, plain, atol=1e-5)

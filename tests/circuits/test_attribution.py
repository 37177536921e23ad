"""Attributions: parts that add up to what ablating everything changes, whatever the values and the inputs' layout."""

import signal

import pytest
import torch
from torch import nn

import ablation_lens as al
from ablation_lens import circuits
from ablation_lens.circuits import attribution_effects
from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.sites import Site
from tests.circuits.models import (
    BACKUP,
    FIRST,
    INDUCTION,
    PREVIOUS,
    backup_batch,
    backup_model,
    induction_batch,
    induction_model,
    linear_batch,
    linear_model,
)

BOTH = [Site.Z, Site.MLP]
TEXT = torch.tensor([[2, 7, 9, 11, 4], [2, 5, 8, 6, 3], [2, 30, 41, 12, 9]])


def prompts(tokens=TEXT, **options):
    return al.Batch.prompts(tokens, answers=[4, 6, 8][: len(tokens)], wrong=[5, 7, 9][: len(tokens)], **options)


def attributed(model, batches, metric="logit_difference", values=0.0, **options):
    options = {"progress": False, "level": "head", **options}
    return attribution_effects(model, batches, metric, values, **options)


def knocked_out(model, batch, name, values=0.0, metric="logit_difference", **options):
    """What taking a unit away changes, by `evaluate`."""
    ablation = circuits.Circuit.of_heads(name, model, **options).inside(values)
    score = al.evaluate(model, batch, ablation, metrics=metric)[metric]
    return score - al.evaluate(model, batch, metrics=metric)[metric]


@pytest.fixture(scope="module")
def opt():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def statistics(opt):
    batches = al.task_for(opt).batches(split="collect", tokens=500)
    return al.collect(opt, batches, site=BOTH, progress=False)


# ---------------------------------------------------------------------- what they are


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_the_one_neuron_of_a_model_is_attributed_by_hand(method):
    """One head that looks at its own position alone: z = x·v, logit = z·o, so ablating it to c changes (c − z)·o."""
    model = linear_model(layers=1, heads=1, mlps=False)
    batch = linear_batch(rows=3)
    effects = attributed(model, batch, values=2.0, method=method, level="neuron")
    x = model.W_E[batch.inputs] + model.W_pos
    z = x.cumsum(1)[:, -1] / 10 @ model.blocks[0].attn.W_V[0]  # the last position sees all ten evenly
    reads = model.blocks[0].attn.W_O[0] @ model.W_U
    reads = reads[:, batch.answers[:, 0]] - reads[:, batch.wrong[:, 0]]
    expected = ((2.0 - z) * reads.T).mean(0)
    torch.testing.assert_close(effects["z"][0, 0], expected)


def test_in_a_linear_model_the_gradient_is_what_taking_away_does():
    model, batch = linear_model(), linear_batch()
    effects = attributed(model, batch, method="gradient", sites=BOTH)
    for name in ("L0.H1", "L1.H3", "L2.H0", "L0.MLP", "L2.MLP"):
        assert effects.interval(name).difference == pytest.approx(knocked_out(model, batch, name), abs=1e-9)


@pytest.mark.parametrize("values", [0.0, "mean", "peak"])
def test_parts_add_up_to_what_ablating_everything_changes(opt, statistics, values):
    batches = al.task_for(opt).batches(split="evaluate", tokens=800)
    statistics = statistics if isinstance(values, str) else None
    effects = attributed(opt, batches, "cross_entropy", values, statistics=statistics, sites=BOTH, steps=16)
    everything = circuits.Circuit.of(opt, False, BOTH).outside(values, statistics)
    total = al.evaluate(opt, batches, everything).cross_entropy - al.evaluate(opt, batches).cross_entropy
    assert effects.total == pytest.approx(total, rel=1e-5)
    assert abs(effects.residual) < 1e-3 * abs(total)


@pytest.mark.parametrize("name", ["L0.H1", "L2.H3", "L1.MLP"])
def test_the_parts_of_one_unit_add_up_to_taking_it_away(opt, name):
    values = {"z": 0.3, "mlp": 0.1}
    effects = attributed(opt, prompts(), values=values, among=name, steps=64)
    exact = knocked_out(opt, prompts(), name, values)
    assert effects.total == pytest.approx(exact, abs=1e-5)
    assert effects.interval(name).difference == pytest.approx(exact, rel=0.03, abs=1e-3)
    others = torch.cat([effects[site].flatten() for site in BOTH])
    assert int((others != 0).sum()) == 1


def test_attribution_finds_the_induction_heads():
    effects = attributed(induction_model(), induction_batch(), steps=32)
    assert abs(effects.residual) < 1e-3 * abs(effects.total)
    assert set(effects.table().index[:2]) == {PREVIOUS, INDUCTION}
    assert effects["z"].flatten()[[0, 2, 3, 4]].abs().max() < 1e-9


def test_graddrop_finds_a_head_whose_ways_cancel():
    model, batch = backup_model(cancelling=True), backup_batch()
    plain = attributed(model, batch, method="gradient")
    dropped = attributed(model, batch, method="gradient", graddrop=True)
    first, backup = (dropped.interval(name).difference for name in (FIRST, BACKUP))
    assert abs(plain.interval(FIRST).difference) < 0.05 * plain["z"].abs().max()
    assert first > 1.0
    assert backup > 0
    with pytest.raises(MismatchError, match="do not add up"):
        dropped.by("layer")


def test_graddrop_is_the_mean_over_layers_left_out():
    """Of absolute values in every row, of the unit as a whole, divided by all layers but one."""
    model, batch = linear_model(), linear_batch()
    found = {
        level: attributed(model, batch, method="gradient", graddrop=True, sites=BOTH, level=level)
        for level in ("neuron", "head", "layer")
    }
    assert found["head"]["z"].shape == (3, 4)
    # The last layer feeds nobody but the logits: its gradient is whole unless it is left out itself.
    plain = attributed(model, batch, method="gradient", sites=BOTH)
    last = plain.rows[Site.Z][:, 2].abs().mean(0)
    torch.testing.assert_close(found["head"]["z"][2], last)
    torch.testing.assert_close(found["neuron"].rows[Site.Z], found["head"].rows[Site.Z])
    assert bool((found["neuron"]["mlp"].sum(-1) >= found["head"]["mlp"] - 1e-9).all())
    assert bool((found["head"]["z"].sum(-1) >= found["layer"]["z"] - 1e-9).all())


# ---------------------------------------------------------------------- what they must not depend on


def rows_of(effects, site=Site.Z):
    return effects.rows[site]


def test_batches_and_their_order_change_nothing(opt):
    whole = attributed(opt, prompts(), values=0.2, sites=BOTH)
    batch = prompts()
    alone = attributed(opt, [batch.rows(row, row + 1) for row in (2, 0, 1)], values=0.2, sites=BOTH)
    for site in BOTH:
        torch.testing.assert_close(rows_of(alone, site), rows_of(whole, site)[[2, 0, 1]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone[site], whole[site], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [0.2, torch.linspace(-1, 1, 4 * 5 * 4 * 32).view(4, 5, 4, 32)])
def test_padding_changes_nothing(opt, values):
    short = TEXT[:1, :3]
    alone = attributed(opt, al.Batch.prompts(short, [4], [5]), values=values)
    for left in (True, False):
        padding = torch.ones(1, 2, dtype=torch.int64)
        tokens = torch.cat([padding, short] if left else [short, padding], 1)
        valid = torch.tensor([[False] * 2 + [True] * 3 if left else [True] * 3 + [False] * 2])
        batch = al.Batch.prompts(tokens, [4], [5], valid)
        padded = attributed(opt, batch, values=values)
        torch.testing.assert_close(rows_of(padded), rows_of(alone), rtol=1e-4, atol=1e-5)


def test_the_sign_of_the_metric_is_the_sign_of_the_effects(opt):
    def difference(logits, batch):
        return al.metrics.logit_difference(logits, batch)

    plus = attributed(opt, prompts(), difference)
    minus = attributed(opt, prompts(), lambda logits, batch: -difference(logits, batch))
    torch.testing.assert_close(minus["z"], -plus["z"])
    torch.testing.assert_close(minus.share("z"), plus.share("z"))
    torch.testing.assert_close(plus["z"], attributed(opt, prompts())["z"])


def test_heads_in_another_order_get_their_effects_in_that_order():
    model, batch = linear_model(), linear_batch()
    before = attributed(model, batch, sites=BOTH)
    order = [2, 0, 3, 1]
    for block in model.blocks:
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            setattr(block.attn, name, nn.Parameter(getattr(block.attn, name)[order], requires_grad=False))
    after = attributed(model, batch, sites=BOTH)
    torch.testing.assert_close(after["z"], before["z"][:, order])
    torch.testing.assert_close(after["mlp"], before["mlp"])


def test_a_metric_is_not_divided_by_the_batch(opt):
    one = attributed(opt, prompts().rows(0, 1))
    all_rows = attributed(opt, prompts())
    torch.testing.assert_close(rows_of(all_rows)[:1], rows_of(one), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- levels, sites, positions, values


def test_levels_add_up(opt):
    neurons = attributed(opt, prompts(), sites=BOTH, level="neuron")
    heads, layers = (attributed(opt, prompts(), sites=BOTH, level=level) for level in ("head", "layer"))
    for site in BOTH:
        torch.testing.assert_close(neurons[site].sum(-1), heads[site])
        torch.testing.assert_close(heads[site].sum(-1), layers[site])
        torch.testing.assert_close(neurons.by("head").rows[site], heads.rows[site])
        torch.testing.assert_close(heads.by("layer").rows[site], layers.rows[site])


def test_positions_that_stay_have_no_part(opt):
    values = 0.3
    somewhere = attributed(opt, prompts(), values=values, positions=slice(1, None), sites=BOTH, steps=64)
    ablation = circuits.Circuit.of(opt, False, BOTH, positions=slice(1, None)).outside(values)
    scores = [al.evaluate(opt, prompts(), each, metrics="logit_difference") for each in (ablation, None)]
    total = scores[0]["logit_difference"] - scores[1]["logit_difference"]
    assert somewhere.total == pytest.approx(total, abs=1e-5)
    assert abs(somewhere.residual) < 0.02 * abs(total)
    assert somewhere.positions == slice(1, None)
    split = [attributed(opt, prompts(), values=values, positions=at, method="gradient") for at in (0, slice(1, None))]
    everywhere = attributed(opt, prompts(), values=values, method="gradient")
    torch.testing.assert_close(split[0]["z"] + split[1]["z"], everywhere["z"], rtol=1e-4, atol=1e-6)


class Backwards:
    """Prompts whose twins are the same tokens, the other way round after the first."""

    def twins(self, batch):
        tokens = torch.cat([batch.inputs[:, :1], batch.inputs[:, 1:].flip(1)], 1)
        return al.Batch(tokens, batch.valid, batch.labels, batch.scored, answers=batch.answers, wrong=batch.wrong)


def test_values_that_depend_on_the_input_add_up_too(opt):
    values = circuits.counterfactual(Backwards())
    effects = attributed(opt, prompts(), values=values, sites=BOTH, steps=64)
    everything = circuits.Circuit.of(opt, False, BOTH).outside(values)
    ablated, plain = (
        al.evaluate(opt, prompts(), each, metrics="logit_difference")["logit_difference"] for each in (everything, None)
    )
    assert effects.total == pytest.approx(ablated - plain, abs=1e-5)
    assert abs(effects.residual) < 0.02 * abs(effects.total)
    assert effects.values == "counterfactual"


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-roberta", "tiny-vit"])
def test_every_family_adds_up(name):
    model = al.load_model(name)
    size = {"images": 4} if name == "tiny-vit" else {"tokens": 100}
    batches = al.task_for(model).batches(split="evaluate", **size)
    # Of logits, as the cross-entropy of a wrecked image model has cliffs that take many steps.
    effects = attributed(model, batches, lambda logits, batch: logits.flatten(1)[:, 5], 0.1, sites=BOTH, steps=32)
    assert abs(effects.residual) < 0.01 * max(abs(effects.total), 1)


def test_the_divergence_from_the_model_itself_is_attributed_along_the_way(opt):
    effects = attributed(opt, prompts(), "kl", 0.0, sites=BOTH, steps=32)
    assert effects.unablated == pytest.approx(0, abs=1e-6)
    assert abs(effects.residual) < 0.05 * effects.total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_more(dtype):
    model = al.load_model("tiny-opt", dtype=dtype)
    half, whole = (attributed(each, prompts(), values=0.2) for each in (model, al.load_model("tiny-opt")))
    assert half["z"].dtype == torch.float64
    assert float((half["z"] - whole["z"]).abs().max()) < 0.1 * float(whole["z"].abs().max())


# ---------------------------------------------------------------------- against others


def test_plain_hugging_face_hooks_give_the_same_gradient(opt):
    """Gradient times change at the inputs of the output projections, in float64, without this package."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(al.zoo.folder("tiny-opt"), dtype=torch.float64).eval()
    seen = []
    handles = [
        layer.self_attn.out_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0].requires_grad_()))
        for layer in model.model.decoder.layers
    ]
    logits = model(TEXT).logits[:, -1]
    for handle in handles:
        handle.remove()
    metric = logits[torch.arange(3), [4, 6, 8]] - logits[torch.arange(3), [5, 7, 9]]
    gradients = torch.autograd.grad(metric.sum(), seen)
    expected = torch.stack(
        [((0.3 - z.detach()) * g).sum(1).unflatten(1, (4, 32)).sum(-1) for z, g in zip(seen, gradients, strict=True)], 1
    )
    ours = attributed(opt, prompts(), values=0.3, method="gradient")
    torch.testing.assert_close(rows_of(ours), expected, rtol=1e-3, atol=1e-5)


def test_transformer_lens_patches_attributions_alike(opt):
    """Its gradient is taken at the run that is patched into: our clean one is its corrupted one."""
    patching = pytest.importorskip("transformer_lens.tools.analysis.attribution_patching")
    batch = prompts().rows(0, 1)
    opt.W_E.requires_grad_(True)  # which theirs takes for granted
    try:
        theirs = patching.attribution_patch(
            opt, Backwards().twins(batch).inputs, batch.inputs, lambda logits: logits[0, -1, 4] - logits[0, -1, 5]
        )
    finally:
        opt.W_E.requires_grad_(False)
    expected = torch.zeros(1, 4, 4, dtype=torch.float64)
    for node, score in theirs.node_scores.items():
        if node.kind == "attn_head_out":
            expected[0, node.layer, node.head] += score
    ours = attributed(opt, batch, values=circuits.counterfactual(Backwards()), method="gradient")
    torch.testing.assert_close(rows_of(ours), expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- manners


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_by_the_caller_do_not_matter(opt, context):
    expected = attributed(opt, prompts())
    with context():
        found = attributed(opt, prompts(TEXT.clone()), values=torch.zeros(4, 4, 32))
    torch.testing.assert_close(found["z"], expected["z"])


def test_nothing_of_the_model_is_changed(opt):
    weights = list(opt.parameters())
    weights[0].requires_grad_(True)
    try:
        attributed(opt, prompts())
        assert all(weight.grad is None for weight in weights)
        assert [weight.requires_grad for weight in weights] == [True] + [False] * (len(weights) - 1)
        assert not al.hooked.is_hooked(opt)
    finally:
        weights[0].requires_grad_(False)


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        model = linear_model()
    with pytest.raises(MismatchError, match="inference_mode"):
        attributed(model, linear_batch())


@pytest.mark.parametrize(
    "metric",
    [
        "top1",
        "rank",
        lambda logits, batch: logits.argmax(-1)[:, -1].double(),
        lambda logits, batch: torch.from_numpy(logits.numpy())[:, -1, 0],
    ],
)
def test_a_metric_without_a_gradient_is_refused(opt, metric):
    with pytest.raises(MismatchError, match="has no gradient"):
        attributed(opt, prompts(), metric)


def test_a_metric_that_is_least_at_the_model_itself_is_refused_by_the_gradient(opt):
    with pytest.raises(MismatchError, match='"integrated"'):
        attributed(opt, prompts(), "kl", method="gradient")


def test_a_slope_that_is_not_a_number_is_refused(opt):
    with pytest.raises(NonFiniteError, match=r"L\d.H\d.D\d+ is not finite"):
        attributed(opt, prompts(), lambda logits, batch: (0 * logits[:, -1, 0]).sqrt(), method="gradient")


def test_a_metric_that_reads_nothing_has_no_effects(opt):
    effects = attributed(opt, prompts(), lambda logits, batch: 0 * logits[:, 0, 0])
    assert effects["z"].abs().max() == 0 == effects.residual


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "gradeint"}, "gradient"),
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"level": "edge"}, "edge"),
        ({"graddrop": True}, 'method="gradient"'),
        ({"among": "L0.MLP"}, "no values"),
        ({"among": "L9.H0"}, "L9.H0"),
    ],
)
def test_what_is_impossible_is_said(opt, options, said):
    with pytest.raises(MismatchError, match=said):
        attributed(opt, prompts(), **options)


def test_graddrop_needs_two_layers():
    with pytest.raises(MismatchError, match="single one"):
        attributed(linear_model(layers=1), linear_batch(), method="gradient", graddrop=True)


def test_an_interruption_keeps_the_rows_that_are_done(opt, heeding):
    batch, seen = prompts(), []

    def metric(logits, batch):
        seen.append(len(batch.inputs))
        if len(seen) > 15:
            signal.raise_signal(signal.SIGINT)
        return logits[:, -1, 4] - logits[:, -1, 5]

    with pytest.warns(UserWarning, match="of 1 of 3 rows"):
        effects = attributed(opt, [batch.rows(n, n + 1) for n in range(3)], metric)
    assert len(effects.clean.weights) == 1
    assert not al.hooked.is_hooked(opt)


def test_attributions_are_saved(opt, tmp_path):
    effects = attributed(opt, prompts(), sites=BOTH, level="neuron", steps=4)
    effects.save(tmp_path / "effects.safetensors")
    loaded = circuits.Effects.load(tmp_path / "effects.safetensors")
    assert (loaded.method, loaded.steps, loaded.residual) == ("integrated", 4, effects.residual)
    torch.testing.assert_close(loaded["mlp"], effects["mlp"])


def test_a_metric_of_ones_own_that_is_flat_at_the_model_as_it_is_is_refused(opt):
    """Its gradient there is rounding, which would be ranked without a word."""

    def divergence(logits, batch, clean):
        p, q = clean[:, -1].log_softmax(-1), logits[:, -1].log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    metric = al.metrics.Metric(divergence, clean=True)
    with pytest.raises(MismatchError, match=r'use method="integrated"'):
        attributed(opt, prompts(), metric, method="gradient")
    assert attributed(opt, prompts(), metric, steps=4).total > 0


def test_mlps_as_wholes_are_a_level_as_for_knockouts(opt):
    found = attributed(opt, prompts(), level="mlp")
    assert (found.level, found.sites) == ("layer", (Site.MLP,))
    with pytest.raises(MismatchError, match="for MLPs alone"):
        attributed(opt, prompts(), level="mlp", sites="z")

"""Exact knock-outs: every unit by itself, whatever is shared between them."""

import re
import signal
from types import SimpleNamespace

import pytest
import torch

import ablation_lens as al
from ablation_lens import circuits
from ablation_lens.errors import MismatchError
from ablation_lens.sites import Site
from tests.circuits.models import INDUCTION, PREVIOUS, induction_batch, induction_model, linear_batch, linear_model

EXACT = 1e-10


@pytest.fixture(scope="module")
def opt():
    # In float64, where what is exact is exact.
    return al.load_model("tiny-opt", dtype=torch.float64)


def prompts(rows=5, length=9, seed=3):
    """Right-padded prompts for tiny-opt."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 200, (rows, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (rows,), generator=generator)
    lengths[0] = length
    valid = torch.arange(length) < lengths[:, None]
    answers = torch.randint(5, 200, (rows,), generator=generator)
    return al.Batch.prompts(tokens, answers.tolist(), (answers + 1).tolist(), valid=valid)


def knock_out(model, batches, values=0.0, metric="logit_difference", **options):
    return circuits.knockout_effects(model, batches, metric, values, progress=False, **options)


@torch.inference_mode()
def one_by_one(model, batch, values=0.0, site="z", units=None, positions=None):
    """Logit differences [row unit] by runs with a hook, of every head, or of the units given as masks."""
    where, given = Site.of(site), batch.from_start()
    shape = where.shape(model.cfg)
    if units is None:
        units = torch.eye(shape[0] * shape[1], dtype=torch.bool).view(-1, *shape[:2], 1).expand(-1, -1, -1, shape[2])
    args, options = given.arguments()
    rows, last = torch.arange(len(given.inputs)), given.scored.int().argmax(1)

    def difference(hooks):
        logits = model.run_with_hooks(*args, fwd_hooks=hooks, **options)[rows, last]
        return (logits[rows, given.answers[:, 0]] - logits[rows, given.wrong[:, 0]]).double()

    clean, changed = difference([]), []
    for mask in units:
        ablation = al.Ablation(mask.clone(), values, site=where, positions=positions)
        changed.append(difference(ablation.resolve(model, batch, run_as=given).hooks(offset=0)) - clean)
    return torch.stack(changed, 1)


def runs_of(model, what):
    """How often blocks were called."""
    counts = [0] * len(model.blocks)

    def count(layer):
        def see(*_):
            counts[layer] += 1

        return see

    handles = [block.register_forward_pre_hook(count(layer)) for layer, block in enumerate(model.blocks)]
    try:
        made = what()
    finally:
        for handle in handles:
            handle.remove()
    return counts, made


@pytest.mark.parametrize("values", [0.0, 1.5])
@pytest.mark.parametrize("site", ["z", "mlp"])
def test_every_effect_is_that_of_a_run_of_its_own(opt, site, values):
    batch = prompts()
    ours = knock_out(opt, batch, values, sites=site).rows[site].flatten(1)
    assert torch.allclose(ours, one_by_one(opt, batch, values, site), rtol=0, atol=EXACT)


def test_what_all_units_have_in_common_is_computed_once(opt):
    batch = prompts()
    counts, effects = runs_of(opt, lambda: knock_out(opt, batch))
    heads = effects["z"].shape[1]
    # The clean run, that with everything ablated, and what is compared with them; not one for every head.
    assert counts[0] <= 8 < heads * opt.cfg.n_layers
    assert max(counts) <= 8 + opt.cfg.n_layers


@pytest.mark.parametrize("values", [0.0, 0.7, "twins"])
def test_the_known_circuit_is_found_exactly(values):
    model, batch = induction_model(), induction_batch()
    given = values
    if values == "twins":  # what z is for other prompts, in the place of a counterfactual
        other = induction_batch(seed=1)
        seen = {}
        hooks = [(name, lambda z, hook, name=name: seen.__setitem__(name, z)) for name in Site.Z.hook_names(model.cfg)]
        model.run_with_hooks(other.inputs, fwd_hooks=hooks)
        given = torch.stack([seen[name] for name in Site.Z.hook_names(model.cfg)])
    table = knock_out(model, batch, given).table()
    assert set(table.index[:2]) == {PREVIOUS, INDUCTION}
    assert (table["effect"][2:].abs() < 1e-12).all()
    assert (table["share"][:2] > 0.5).all()


def test_layers_and_mlps_are_taken_away_as_a_whole(opt):
    batch = prompts()
    shape = Site.Z.shape(opt.cfg)
    layers = torch.eye(shape[0], dtype=torch.bool).view(-1, shape[0], 1, 1).expand(-1, *shape)
    effects = knock_out(opt, batch, level="layer", sites=["z", "mlp"])
    assert torch.allclose(effects.rows["z"], one_by_one(opt, batch, units=layers), rtol=0, atol=EXACT)
    mlps = knock_out(opt, batch, level="mlp")
    assert mlps.sites == (Site.MLP,)
    assert torch.allclose(mlps.rows["mlp"], effects.rows["mlp"], rtol=0, atol=EXACT)
    heads = knock_out(opt, batch, sites="mlp")
    assert torch.allclose(heads.rows["mlp"].squeeze(-1), mlps.rows["mlp"], rtol=0, atol=EXACT)
    assert list(mlps.table().index) == sorted(mlps.table().index, key=lambda name: -mlps.table()["share"][name])
    assert mlps.interval("L1.MLP").difference == pytest.approx(float(mlps["mlp"][1]))


@pytest.mark.parametrize("site", ["z", "mlp"])
def test_single_neurons_keep_sums_and_their_interval(site):
    model, batch = linear_model(), linear_batch()
    shape = Site.of(site).shape(model.cfg)
    effects = knock_out(model, [batch.rows(0, 3), batch.rows(3)], 0.2, sites=site, level="neuron")
    units = torch.eye(shape[0] * shape[1] * shape[2], dtype=torch.bool).view(-1, *shape)
    rows = one_by_one(model, batch, 0.2, site, units)
    assert torch.allclose(effects[site].flatten(), rows.mean(0), rtol=0, atol=EXACT)
    assert not effects.rows
    half = 1.959964 * rows.std(0) / len(rows) ** 0.5
    assert torch.allclose(effects.neurons[site].half_width(effects.clean.weights).flatten(), half, rtol=0, atol=EXACT)


@pytest.mark.parametrize("positions", [-1, [0, 2], slice(1, None), "marks", "function"])
def test_units_are_ablated_at_some_positions_only(opt, positions):
    batch = prompts()
    if positions == "marks":
        positions = batch.valid & (batch.inputs % 2 == 0)
    if positions == "function":
        positions = lambda batch: batch.valid.sum(1) - 1  # noqa: E731
    effects = knock_out(opt, batch, 0.5, positions=positions)
    ours = effects.rows["z"].flatten(1)
    assert torch.allclose(ours, one_by_one(opt, batch, 0.5, positions=positions), rtol=0, atol=EXACT)
    assert " at " in repr(effects)


def test_values_may_be_others_for_every_row_and_position(opt):
    batch = prompts()
    shape = Site.Z.shape(opt.cfg)
    by_row = torch.randn(shape[0], *batch.inputs.shape, *shape[1:])
    for given in (by_row[:, 0], by_row, lambda model, batch, site: 2 * by_row):
        ours = knock_out(opt, batch, given).rows["z"].flatten(1)
        assert torch.allclose(ours, one_by_one(opt, batch, given), rtol=0, atol=EXACT)


def test_any_metric_will_do(opt):
    batch = prompts()
    for metric in ("cross_entropy", "kl"):
        ours = knock_out(opt, batch, metric=metric)
        clean, without = (
            al.evaluate(opt, batch, ablation, metrics=metric).sums(metric).values
            for ablation in (None, al.Ablation.from_names("L1.H2", 0.0, model=opt))
        )
        assert torch.allclose(ours.rows["z"][:, 1, 2], (without - clean).double(), rtol=0, atol=EXACT)

    def largest(logits, given):
        assert torch.equal(given.inputs, batch.inputs)  # one's own function sees the batch, and not copies of it
        return logits[torch.arange(len(logits)), given.scored.int().argmax(1)].amax(-1)

    effects = knock_out(opt, batch, metric=largest)
    ours = effects.rows["z"].flatten(1)
    clean = largest(opt(batch.inputs, attention_mask=batch.valid.long()), batch)
    without = opt.run_with_hooks(
        batch.inputs,
        attention_mask=batch.valid.long(),
        fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z.index_fill(2, torch.tensor([2]), 0))],
    )
    assert torch.allclose(ours[:, opt.cfg.n_heads + 2], (largest(without, batch) - clean).double(), rtol=0, atol=EXACT)


def test_neither_batch_size_nor_order_nor_padding_matters(opt):
    batch = prompts()
    whole = knock_out(opt, batch).rows["z"]

    split = knock_out(opt, [batch.rows(0, 1), batch.rows(1, 4), batch.rows(4)])
    assert torch.allclose(split.rows["z"], whole, rtol=0, atol=EXACT)

    order = torch.tensor([3, 0, 4, 1, 2])
    other = al.Batch.prompts(batch.inputs[order], batch.answers[order], batch.wrong[order], batch.valid[order])
    assert torch.allclose(knock_out(opt, other).rows["z"], whole[order], rtol=0, atol=EXACT)

    def padded(left, right):
        pads = [torch.full((len(batch.inputs), many), 1) for many in (left, right)]
        tokens = torch.cat([pads[0], batch.inputs, pads[1]], 1)
        valid = torch.cat([pads[0] == 0, batch.valid, pads[1] == 0], 1)
        return al.Batch.prompts(tokens, batch.answers, batch.wrong, valid)

    for left, right in ((0, 3), (3, 0), (2, 1)):
        assert torch.allclose(knock_out(opt, padded(left, right)).rows["z"], whole, rtol=0, atol=EXACT)


def test_the_sign_of_the_metric_turns_effects_and_leaves_shares(opt):
    batch = prompts()
    turned = al.Batch.prompts(batch.inputs, batch.wrong, batch.answers, batch.valid)
    effects, other = knock_out(opt, batch), knock_out(opt, turned)
    assert torch.allclose(effects.rows["z"], -other.rows["z"], rtol=0, atol=EXACT)
    assert torch.allclose(effects.share("z"), other.share("z"), rtol=0, atol=EXACT)


def test_heads_in_another_order_have_the_same_effects():
    order = [2, 0, 3, 1]
    model, other, batch = linear_model(), linear_model(), linear_batch()
    for block in other.blocks:
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            getattr(block.attn, name).data = getattr(block.attn, name).data[order]
    assert torch.allclose(knock_out(other, batch)["z"], knock_out(model, batch)["z"][:, order], rtol=0, atol=EXACT)


def test_the_model_as_it_is_and_without_everything_stand_beside_the_effects(opt):
    batch = prompts()
    effects = knock_out(opt, batch, sites=["z", "mlp"])
    everything = al.Ablation(torch.ones(Site.Z.shape(opt.cfg), dtype=torch.bool), 0.0) | al.Ablation(
        torch.ones(Site.MLP.shape(opt.cfg), dtype=torch.bool), 0.0, site="mlp"
    )
    clean, empty = (
        al.evaluate(opt, batch, ablation, metrics="logit_difference")["logit_difference"]
        for ablation in (None, everything)
    )
    assert effects.unablated == pytest.approx(clean, abs=EXACT)
    assert effects.total == pytest.approx(empty - clean, abs=EXACT)
    assert effects.source == al.record_of(opt)


# ---------------------------------------------------------------------- hooks of one's own


def halve(value, hook):
    return value / 2


@pytest.mark.parametrize(
    ("point", "permanent"),
    [
        ("hook_embed", False),
        ("blocks.1.hook_resid_pre", True),
        ("blocks.2.attn.hook_z", False),
        ("blocks.2.attn.hook_z", True),
        ("blocks.0.mlp.hook_post", False),
    ],
)
def test_hooks_on_the_model_act(opt, point, permanent):
    batch = prompts()
    without = knock_out(opt, batch).rows["z"]
    try:
        opt.add_hook(point, halve, is_permanent=permanent)
        ours = knock_out(opt, batch).rows["z"].flatten(1)
        expected = one_by_one(opt, batch)
    finally:
        opt.reset_hooks(including_permanent=True)
    assert torch.allclose(ours, expected, rtol=0, atol=EXACT)
    assert not torch.allclose(ours, without.flatten(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("point", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"])
def test_hooks_that_write_into_what_they_see_do_so_once(opt, point):
    batch = prompts()
    with opt.hooks(fwd_hooks=[(point, lambda value, hook: value.mul_(0.5))]):
        ours = knock_out(opt, batch).rows["z"].flatten(1)
        expected = one_by_one(opt, batch)
    assert torch.allclose(ours, expected, rtol=0, atol=EXACT)


def test_an_ablation_that_is_in_place_stays_there(opt):
    batch = prompts()
    with al.Ablation.from_names(["L1.H0", "L2.H3"], 0.7, model=opt).at(-1).applied_to(opt):
        ours = knock_out(opt, batch).rows["z"].flatten(1)
        expected = one_by_one(opt, batch)
    assert torch.allclose(ours, expected, rtol=0, atol=EXACT)
    assert not torch.allclose(ours, one_by_one(opt, batch), rtol=0, atol=1e-3)


def of_one_row(row):
    def hook(value, hook):
        value = value.clone()
        value[row] = 0
        return value

    return hook


def of_rows(mask):
    # For five rows, which it insists on.
    return lambda value, hook: value.masked_fill(mask[:, None, None], 0)


@pytest.mark.parametrize("point", ["blocks.0.hook_resid_mid", "blocks.3.hook_resid_post"])
@pytest.mark.parametrize(
    "hook", [of_one_row(0), of_one_row(-1), of_rows(torch.tensor([True, False, True, False, False]))]
)
def test_hooks_that_change_single_rows_are_not_taken_for_those_of_copies(opt, point, hook):
    batch = prompts()
    with opt.hooks(fwd_hooks=[(point, hook)]):
        ours = knock_out(opt, batch).rows["z"].flatten(1)
        expected = one_by_one(opt, batch)
    assert torch.allclose(ours, expected, rtol=0, atol=EXACT)


def test_a_hook_after_the_output_projection_sees_every_head(opt):
    batch = prompts()
    handle = opt.blocks[1].attn.register_forward_hook(
        lambda module, args, output: (output[0].relu(), *output[1:]) if isinstance(output, tuple) else output.relu()
    )
    try:
        ours = knock_out(opt, batch).rows["z"].flatten(1)
        expected = one_by_one(opt, batch)
    finally:
        handle.remove()
    assert torch.allclose(ours, expected, rtol=0, atol=EXACT)


def test_nothing_stays_on_the_model(opt):
    before = {name: dict(vars(module)) for name, module in opt.named_modules()}
    knock_out(opt, prompts(), sites=["z", "mlp"])
    for name, module in opt.named_modules():
        assert vars(module).get("forward") is before[name].get("forward"), name
        assert not {*module._forward_hooks} - {*before[name]["_forward_hooks"]}
        assert not {*module._forward_pre_hooks} - {*before[name]["_forward_pre_hooks"]}


# ---------------------------------------------------------------------- memory and Ctrl-C


@pytest.mark.parametrize("most", [20, 5, 3])
def test_memory_that_runs_out_makes_smaller_steps(opt, most):
    batch = prompts()
    plain = knock_out(opt, batch).rows["z"]
    counts = []

    def full(value, hook):
        counts.append(len(value))
        if len(value) > most:
            raise torch.OutOfMemoryError

    with opt.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", full)]):
        ours = knock_out(opt, batch).rows["z"]
    assert torch.allclose(ours, plain, rtol=0, atol=EXACT)
    assert max(counts) > most


def interrupting(model, after):
    """A hook that presses Ctrl-C when the last block has been called so many times."""
    called = []

    def hook(value, hook):
        called.append(1)
        if len(called) == after:
            signal.raise_signal(signal.SIGINT)

    return model.hooks(fwd_hooks=[(f"blocks.{model.cfg.n_layers - 1}.hook_resid_pre", hook)])


@pytest.mark.usefixtures("heeding")
@pytest.mark.parametrize("level", ["head", "neuron"])
def test_ctrl_c_keeps_units_measured_on_all_inputs(opt, level, tmp_path):
    batch = prompts(rows=3, length=4)
    batches = [batch.rows(0, 2), batch.rows(2)]
    whole = knock_out(opt, batches, level=level)
    # In the second layer, after some runs that all batches need and those of the first.
    with (
        pytest.warns(UserWarning, match=r"interrupted: [\d,]+ of [\d,]+ units were measured"),
        interrupting(opt, 10),
    ):
        effects = knock_out(opt, batches, level=level)
    assert not effects.is_whole
    done = effects.done["z"]
    assert 0 < int(done.sum()) < done.numel()
    assert bool(done[0].all())
    assert torch.allclose(effects["z"][done], whole["z"][done], rtol=0, atol=EXACT)
    assert bool(effects["z"][~done].isnan().all())
    table = effects.table()
    assert table["effect"].isna().sum() == table["low"].isna().sum() == int((~done).sum())
    assert "left out" in repr(effects)
    effects.save(tmp_path / "effects.safetensors")
    again = circuits.Effects.load(tmp_path / "effects.safetensors")
    assert torch.equal(again.done["z"], done)


@pytest.mark.usefixtures("heeding")
def test_ctrl_c_before_anything_is_measured_is_ctrl_c(opt):
    with pytest.raises(KeyboardInterrupt), interrupting(opt, 2):
        knock_out(opt, prompts())


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"level": "heads"}, "did you mean 'head'"),
        ({"level": "mlp", "sites": ["z", "mlp"]}, 'level="head", sites=["z", "mlp"]'),
        ({"level": "edge"}, "level"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(opt, options, told):
    with pytest.raises(MismatchError, match=re.escape(told)):
        knock_out(opt, prompts(), **options)


def test_a_warning_about_padding_points_at_the_line_that_gave_it():
    model = induction_model()
    model.tokenizer = SimpleNamespace(pad_token_id=1)
    with pytest.warns(UserWarning, match="pad token") as caught:
        circuits.knockout_effects(model, torch.tensor([[2, 7, 5], [2, 1, 1]]), "cross_entropy", 0.0, progress=False)
    assert caught[0].filename == __file__


def test_an_error_of_ones_own_metric_is_its_own(opt):
    def broken(logits, batch):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        knock_out(opt, prompts(), metric=broken)

"""What hooks see and do, the same in every family."""

import pytest
import torch

from ablation_lens import load_model
from ablation_lens.models.load import transformer_lens_major
from ablation_lens.sites import Site
from tests.tiny_models import FAMILIES, run


@pytest.fixture(params=FAMILIES, ids=lambda tiny: tiny.name)
def loaded(request, saved):
    tiny = request.param
    return (load_model(saved(tiny.name)), *tiny.inputs())


def torch_hooks(model):
    return {
        (name, kind, key)
        for name, module in model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        for key in getattr(module, kind)
    }


def lens_hooks(model):
    return [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]


def test_zeroing_all_of_z_leaves_the_output_bias(loaded):
    model, inputs, mask = loaded
    outputs = {}

    def keep(value, hook, layer):
        outputs[layer] = value

    hooks = [(name, lambda z, hook: torch.zeros_like(z)) for name in Site.Z.hook_names(model.cfg)]
    hooks += [
        (f"blocks.{layer}.hook_attn_out", lambda value, hook, layer=layer: keep(value, hook, layer))
        for layer in range(model.cfg.n_layers)
    ]
    run(model, inputs, mask, hooks)
    assert sorted(outputs) == list(range(model.cfg.n_layers))
    for layer, output in outputs.items():
        bias = model.blocks[layer].attn.b_O
        expected = torch.zeros_like(output) if bias is None else bias.expand_as(output)
        assert torch.allclose(output, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["hook_attn_scores", "hook_pattern"])
def test_a_hook_on_scores_or_pattern_fires_and_alters_the_output(loaded, name):
    model, inputs, mask = loaded
    before = run(model, inputs, mask)
    seen = []

    def look_only(value, hook):
        seen.append(tuple(value.shape))

    looked = run(model, inputs, mask, [(f"blocks.1.attn.{name}", look_only)])
    batch, length = inputs.shape[0], model.cfg.n_ctx if mask is None else inputs.shape[1]
    assert seen == [(batch, model.cfg.n_heads, length, length)]
    assert torch.allclose(looked, before, atol=1e-4)  # the open path and the fused one agree

    changed = run(model, inputs, mask, [(f"blocks.1.attn.{name}", lambda value, hook: value * 0.25)])
    assert (changed - before).abs().max() > 1e-2


def test_a_hook_on_every_module_of_the_process_sees_scores_and_pattern_too(loaded):
    """torch's global hooks: nothing sits on the hook points themselves, and yet somebody looks at them."""
    model, inputs, mask = loaded
    points = {id(model.hook_dict[f"blocks.1.attn.{name}"]): name for name in ("hook_attn_scores", "hook_pattern")}
    seen = []

    def look(module, args, output):
        if id(module) in points:
            seen.append(points[id(module)])

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        run(model, inputs, mask)
    finally:
        handle.remove()
    assert seen == ["hook_attn_scores", "hook_pattern"]
    seen.clear()
    run(model, inputs, mask)
    assert seen == []


def test_pattern_rows_are_distributions_over_visible_keys(loaded):
    model, inputs, mask = loaded
    patterns = []
    run(model, inputs, mask, [("blocks.0.attn.hook_pattern", lambda value, hook: patterns.append(value))])
    (pattern,) = patterns
    if mask is None:
        assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-5)
        return
    real = mask.bool()
    rows = pattern.transpose(1, 2)[real]  # [row head key] at real queries
    assert torch.allclose(rows.sum(-1), torch.ones(()), atol=1e-5)
    assert torch.masked_select(pattern, real[:, None, :, None] & ~real[:, None, None, :]).abs().max() == 0


def test_nothing_is_left_behind_by_run_with_hooks_even_when_a_hook_raises(loaded):
    model, inputs, mask = loaded
    before = run(model, inputs, mask)
    present = torch_hooks(model), lens_hooks(model)  # a bridge keeps some hooks of its own
    run(model, inputs, mask, [(Site.Z.hook_name(0), lambda z, hook: z * 2)])
    assert (torch_hooks(model), lens_hooks(model)) == present

    class OopsError(Exception):
        pass

    def fail(z, hook):
        raise OopsError

    with pytest.raises(OopsError):
        run(model, inputs, mask, [(Site.Z.hook_name(1), fail), (Site.Z.hook_name(2), lambda z, hook: z)])
    assert (torch_hooks(model), lens_hooks(model)) == present
    assert torch.equal(run(model, inputs, mask), before)


def test_run_with_cache_holds_z_under_its_transformer_lens_name(loaded):
    model, inputs, mask = loaded
    options = {} if mask is None else {"attention_mask": mask}
    logits, cache = model.run_with_cache(inputs, **options)
    assert torch.allclose(logits, run(model, inputs, mask), atol=1e-4)
    for name in Site.Z.hook_names(model.cfg):
        assert cache[name].shape[2:] == Site.Z.shape(model.cfg)[1:]


def test_models_come_frozen_and_in_eval_mode(loaded):
    model, *_ = loaded
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    devices = {parameter.device for parameter in model.parameters()}
    assert devices == {torch.device(model.cfg.device)}


def test_gradients_flow_to_a_hooked_z(loaded):
    """Attribution needs d(logits)/dz although the weights are frozen."""
    model, inputs, mask = loaded
    kept = []

    def keep(z, hook):
        z = z.detach().requires_grad_(True)
        kept.append(z)
        return z

    with torch.enable_grad():
        run(model, inputs, mask, [(Site.Z.hook_name(1), keep)]).sum().backward()
    assert kept[0].grad is not None
    assert kept[0].grad.abs().max() > 0


def test_transformer_lens_major_matches_what_is_returned(loaded):
    model, *_ = loaded
    expected = {3: {"HookedTransformer"}, 4: {"TransformerBridge"}}[transformer_lens_major()]
    assert type(model).__name__ in expected | {"HookedRoberta", "HookedViT"}


def test_only_the_hooks_of_a_run_come_off_at_its_end(loaded):
    model, inputs, mask = loaded
    places = {name: Site.Z.hook_name(layer) for layer, name in enumerate(("permanent", "before", "around"))}
    seen = []

    def look(name):
        return lambda value, hook: seen.append(name)

    model.hook_dict[places["permanent"]].add_perma_hook(look("permanent"))
    model.add_hook(places["before"], look("before"))
    with model.hooks(fwd_hooks=[(places["around"], look("around"))]):
        run(model, inputs, mask, [(places["around"], look("inside"))])
        run(model, inputs, mask)
    run(model, inputs, mask)
    model.reset_hooks()
    run(model, inputs, mask)
    model.reset_hooks(including_permanent=True)
    run(model, inputs, mask)
    assert [sorted(part) for part in (seen[:4], seen[4:7], seen[7:9], seen[9:])] == [
        ["around", "before", "inside", "permanent"],
        ["around", "before", "permanent"],
        ["before", "permanent"],
        ["permanent"],
    ]

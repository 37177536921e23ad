"""Runs that begin at the first ablated layer, in every family."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.measure.evaluation import evaluate_each
from ablation_lens.measure.prefix import Prefix
from ablation_lens.tasks.freezing import freeze
from tests.tiny_models import FAMILIES


@pytest.fixture(params=FAMILIES, ids=lambda tiny: tiny.name)
def reading(request, saved):
    tiny = request.param
    model, (inputs, mask) = al.load_model(saved(tiny.name)), tiny.inputs()
    if mask is None:
        marks = torch.ones(len(inputs), model.cfg.n_ctx, dtype=torch.bool)
        batches = [al.Batch(inputs, marks, torch.tensor([0, 3, 6]), torch.ones(3, dtype=torch.bool))]
    else:
        batches = [al.Batch.causal(inputs, mask.bool()), al.Batch.causal(inputs[:1, :3])]
    return model, freeze(model, batches, scored=True)


def of_layers(model, *layers):
    return [al.Ablation.from_names(f"L{layer}.H0", 0.5, model=model) for layer in layers]


def test_scores_of_one_layer_after_the_other_are_those_of_whole_runs(reading):
    model, plan = reading
    ablations = [*of_layers(model, 0, 1, 1, 2, 1), of_layers(model, 2)[0] | of_layers(model, 1)[0]]
    prefix, calls = Prefix(model), []
    whole = [al.evaluate(model, plan, ablation, metrics=["kl"]) for ablation in ablations]
    handle = model.blocks[0].register_forward_pre_hook(lambda *_: calls.append("heard"))
    heard = [evaluate_each(model, [plan], ablation, metrics=["kl"], prefix=prefix)[0] for ablation in ablations]
    handle.remove()
    assert len(calls) >= 2 * len(ablations)  # somebody listens, so nothing is left out
    begun = [evaluate_each(model, [plan], ablation, metrics=["kl"], prefix=prefix)[0] for ablation in ablations]
    for one, two, three in zip(whole, heard, begun, strict=True):
        assert torch.equal(one.loss, two.loss)
        assert torch.equal(one.loss, three.loss)
        assert torch.equal(one.further["kl"].values, three.further["kl"].values)


def test_blocks_before_the_ablated_layer_run_once_for_all(reading):
    model, plan = reading
    if hasattr(model, "original_model"):
        pytest.skip("a bridge listens to its own blocks, so its runs are whole")
    last, prefix, run = model.cfg.n_layers - 1, Prefix(model), []
    forward = model.blocks[0].forward

    def counted(*args, **options):
        run.append(1)
        return forward(*args, **options)

    evaluate_each(model, [plan], of_layers(model, last)[0], prefix=prefix)
    before = vars(model.blocks[0]).get("forward")
    model.blocks[0].forward = counted
    for ablation in of_layers(model, last, last, last):
        evaluate_each(model, [plan], ablation, prefix=prefix)
    assert not run
    al.evaluate(model, plan)
    assert run
    if before is None:
        del model.blocks[0].forward
    else:
        model.blocks[0].forward = before


def test_memory_that_runs_out_begins_at_the_beginning(reading):
    model, plan = reading
    (ablation,) = of_layers(model, 1)
    failed = []

    class Fails:
        def hooks(self):
            def fail(value, hook):
                if len(value) > 2:
                    failed.append(1)
                    raise torch.OutOfMemoryError

            return [*ablation.hooks(), (f"blocks.{model.cfg.n_layers - 1}.hook_resid_pre", fail)]

    (split,) = evaluate_each(model, [plan], Fails(), prefix=Prefix(model))
    assert failed
    assert split.splits == len(failed)
    assert torch.allclose(split.loss, al.evaluate(model, plan, ablation).loss, atol=1e-4)


def test_no_more_is_kept_than_may_be(reading):
    model, plan = reading
    (ablation,) = of_layers(model, 1)
    (score,) = evaluate_each(model, [plan], ablation, prefix=Prefix(model, most=0))
    assert torch.equal(score.loss, al.evaluate(model, plan, ablation).loss)


@pytest.mark.parametrize("change", ["written", "exchanged", "hooked at its embedding", "wrapped"])
def test_nothing_that_was_kept_outlives_a_change_of_the_model(change, reading):
    model, plan = reading
    prefix, (first, last) = Prefix(model), of_layers(model, 1, 2)
    evaluate_each(model, [plan], last, prefix=prefix)
    weight = next(model.blocks[0].ln1.parameters())
    embedding = next(module for name, module in model.named_modules() if name in ("hook_embed", "embed"))
    before, leaving = weight.data, []
    if change == "written":
        before = before.clone()
        with torch.no_grad():
            weight.zero_()
        leaving.append(lambda: weight.data.copy_(before))
    elif change == "exchanged":
        weight.data = torch.zeros_like(before)
        leaving.append(lambda: setattr(weight, "data", before))
    elif change == "wrapped":
        leaving.append(embedding.register_forward_hook(lambda module, args, output: 0 * output).remove)
    else:
        model.add_hook("hook_embed", lambda value, hook: 0 * value)
        leaving.append(model.reset_hooks)
    begun = [evaluate_each(model, [plan], ablation, prefix=prefix)[0] for ablation in (last, first)]
    whole = [al.evaluate(model, plan, ablation) for ablation in (last, first)]
    for undo in leaving:
        undo()
    assert not torch.equal(whole[0].loss, al.evaluate(model, plan, last).loss)  # it did change
    for one, other in zip(begun, whole, strict=True):
        assert torch.equal(one.loss, other.loss)


def test_hooks_whose_name_is_a_function_are_heard():
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(tokens=300)

    class Everywhere:
        def hooks(self):
            return [(lambda name: name.endswith("2.attn.hook_z"), lambda value, hook: 0 * value)]

    (score,) = evaluate_each(model, [plan], Everywhere(), prefix=Prefix(model))
    assert torch.equal(score.loss, al.evaluate(model, plan, Everywhere()).loss)

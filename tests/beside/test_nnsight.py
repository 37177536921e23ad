"""An ablation inside a trace of nnsight does to a plain Hugging Face model what our hooks do to a hooked one."""

from pathlib import Path

import pytest
import torch
import transformers

import ablation_lens as al
import ablation_lens.zoo

nnsight = pytest.importorskip("nnsight")

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries deprecate is not ours
TOKENS = torch.arange(5, 45).view(2, 20)


def folder(name):
    return Path(ablation_lens.zoo.__file__).parent / name


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def traced():
    return nnsight.NNsight(transformers.OPTForCausalLM.from_pretrained(folder("tiny-opt"), dtype=torch.float32).eval())


def test_heads_are_ablated_before_the_output_projection(model, traced):
    stats = al.collect(model, [torch.arange(5, 200)[None]], progress=False)
    ablation = stats.ablation(al.random_neurons(stats.shape, 0.5, seed=0), "peak")
    mask, values = ablation.mask.flatten(1), ablation.values.flatten(1)  # [layer, head × dim], as out_proj reads it
    with torch.no_grad(), traced.trace(TOKENS):
        for layer in range(len(mask)):
            projection = traced.model.decoder.layers[layer].self_attn.out_proj
            z = projection.input
            projection.input = torch.where(mask[layer], values[layer].to(z.dtype), z)
        logits = traced.output.logits.save()
    expected = model.run_with_hooks(TOKENS, fwd_hooks=ablation.hooks())
    assert not torch.allclose(expected, model(TOKENS), atol=1e-2)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_an_mlps_neurons_are_ablated_before_its_second_layer(model, traced):
    ablation = al.Ablation.from_names(["L1", "L2.M7"], 0.5, model=model, site="mlp")
    with torch.no_grad(), traced.trace(TOKENS):
        for layer in (1, 2):
            second = traced.model.decoder.layers[layer].fc2
            second.input = torch.where(ablation.mask[layer, 0], ablation.values[layer, 0], second.input)
        logits = traced.output.logits.save()
    torch.testing.assert_close(logits, model.run_with_hooks(TOKENS, fwd_hooks=ablation.hooks()), rtol=0, atol=1e-4)

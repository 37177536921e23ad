"""Output tokens: W_O, the final norm's weights, W_U; held against the weights multiplied by hand."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.hooked import projection
from ablation_lens.measure.output_tokens import find_output_tokens
from ablation_lens.sites import Site


def norm_weights(model):
    """γ of the final norm and whether it centers, wherever a version keeps them."""
    module = model.ln_final
    weight = getattr(module, "w", None)
    if weight is None:
        weight = module.original_component.weight
    return weight, not getattr(model.cfg, "normalization_type", "LN").startswith("RMS")


def unembedding(model):
    weight = model.unembed.W_U
    return weight if weight.shape[0] == model.cfg.d_model else weight.T


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-mistral"])
@pytest.mark.parametrize("site", [Site.Z, Site.MLP])
def test_they_are_those_of_the_weights_multiplied(name, site):
    model = al.load_model(name)
    _, _, dims = site.shape(model.cfg)
    neurons = [(1, 0, 5), (3, site.shape(model.cfg)[1] - 1, 9)]
    found = find_output_tokens(model, neurons, site)
    gamma, centers = norm_weights(model)
    for layer, head, dim in neurons:
        row = projection(model.blocks[layer], site.weights).weight()[head * dims + dim].double()
        row = row - row.mean() if centers else row
        effects = (row * gamma.double()) @ unembedding(model).double()
        effects = (effects - effects.mean()) / effects.std()
        best = effects.topk(10)
        tokens = found[layer, head, dim]
        assert [token for token, _ in tokens.promoted] == best.indices.tolist()
        assert [effect for _, effect in tokens.promoted] == pytest.approx(best.values.tolist(), rel=1e-3)
        assert [token for token, _ in tokens.suppressed] == (-effects).topk(10).indices.tolist()


@pytest.mark.parametrize("name", ["tiny-roberta", "tiny-vit"])
def test_a_head_that_is_more_than_norm_and_unembedding_has_none(name):
    assert find_output_tokens(al.load_model(name), [(0, 0, 0)]) == {}


def test_only_what_an_output_projection_reads_has_a_direct_effect():
    model = al.load_model("tiny-opt")
    assert {site for site in Site if find_output_tokens(model, [(0, 0, 0)], site)} == {Site.Z, Site.MLP}


def test_nothing_of_the_model_is_changed():
    model = al.load_model("tiny-opt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_output_tokens(model, [(0, 0, 0)])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

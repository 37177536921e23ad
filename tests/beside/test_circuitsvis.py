"""What an ablation changes, token by token and head by head, as circuitsvis shows it."""

import pytest
import torch

import ablation_lens as al

circuitsvis = pytest.importorskip("circuitsvis")

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries deprecate is not ours


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


def test_the_loss_of_every_token_is_shown_by_color(model):
    tokens = model.to_tokens("def area(self):\n    return self.width")
    ablation = al.Ablation.from_names(["L2", "L3"], 0.0, model=model)
    before = model(tokens, return_type="loss", loss_per_token=True)[0]
    after = model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=ablation.hooks())[0]
    added = torch.cat([torch.zeros(1), after - before])  # nothing predicts the first token
    page = str(circuitsvis.tokens.colored_tokens(model.to_str_tokens(tokens[0]), added.tolist()))
    assert added.abs().max() > 0.1
    assert f"{added[3].item():.4f}"[:5] in page
    assert "return" in page


def test_attention_patterns_of_an_ablated_run_are_shown(model):
    tokens = model.to_tokens("return self.width")
    name = "blocks.3.attn.hook_pattern"
    with al.Ablation.from_names("L2", 0.0, model=model).applied_to(model):
        _, cache = model.run_with_cache(tokens)
    _, plain = model.run_with_cache(tokens)
    assert not torch.allclose(cache[name], plain[name], atol=1e-2)
    page = circuitsvis.attention.attention_patterns(tokens=model.to_str_tokens(tokens[0]), attention=cache[name][0])
    assert "AttentionPatterns" in str(page)

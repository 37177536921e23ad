"""A model small enough to compute by hand: collection, every kind of ablation, top-1 and cross-entropy.

Three tokens A, B, C; one layer, one head of two dims. The embedding of a token is its unit vector (of 3), attention
looks at all positions so far evenly, values and output projection are

    v(A) = (0, 2)    v(B) = (4, 0)    v(C) = (8, -2)        W_O = (0 1 0)   b_O = 0
                                                                  (0 0 1)
and the unembedding is the identity, without norms. So at position p

    z = mean of v over positions 0 … p,    logits = unit vector of the token + (0, z0, z1)
"""

from math import exp, log
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

import ablation_lens as al
from ablation_lens.models.load import transformer_lens_major

A, B, C = 0, 1, 2
W_V = torch.tensor([[0.0, 2.0], [4.0, 0.0], [8.0, -2.0]])
W_O = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.W_O, self.b_O = nn.Parameter(W_O[None]), nn.Parameter(torch.zeros(3))
        self.hook_z = HookPoint()

    def forward(self, residual):
        values = residual @ W_V
        places = torch.arange(1, values.shape[1] + 1)
        z = self.hook_z((values.cumsum(1) / places[:, None])[:, :, None])
        return torch.einsum("bphd,hdm->bpm", z, self.W_O) + self.b_O


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.hook_resid_post = Attention(), HookPoint()

    def forward(self, residual):
        return self.hook_resid_post(residual + self.attn(residual))


class Micro(HookedRootModule):
    """A user's own model: TransformerLens' hooks, and nothing else of TransformerLens."""

    def __init__(self):
        super().__init__()
        sizes = {"n_layers": 1, "n_heads": 1, "d_head": 2, "d_model": 3, "d_mlp": None, "n_ctx": 2, "d_vocab_out": 3}
        self.cfg = SimpleNamespace(**sizes, device="cpu", dtype=torch.float32)
        self.blocks = nn.ModuleList([Block()])
        self.setup()

    def forward(self, tokens):
        return self.blocks[0](torch.eye(3)[tokens])


def hooked_transformer():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=1, n_heads=1, d_head=2, d_model=3, n_ctx=2, d_vocab=3, attn_only=True, normalization_type=None
        )
    )
    state = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    attn = "blocks.0.attn."  # no queries and keys: all scores are 0, and attention is even
    state |= {"embed.W_E": torch.eye(3), "unembed.W_U": torch.eye(3), f"{attn}W_V": W_V[None], f"{attn}W_O": W_O[None]}
    model.load_state_dict(state, strict=False)
    return model


@pytest.fixture(
    params=[
        Micro,
        pytest.param(
            hooked_transformer,
            marks=[
                pytest.mark.skipif(transformer_lens_major() >= 4, reason="transformer-lens 4 has no HookedTransformer"),
                pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
            ],
        ),
    ],
    ids=["own module", "HookedTransformer"],
)
def model(request):
    return request.param()


@pytest.fixture
def statistics(model):
    # z at position 0 and 1:     AB: (0, 2), (2, 1)       BB: (4, 0), (4, 0)
    #                            CB: (8, -2), (6, -1)     BC: (4, 0), (6, -1)
    return al.collect(model, [torch.tensor([[A, B], [B, B]]), torch.tensor([[C, B], [B, C]])], progress=False)


def test_centers(statistics):
    assert statistics.provenance.tokens == 8
    assert statistics.provenance.model.processing == "unknown"
    assert statistics.center("zero").tolist() == [[[0.0, 0.0]]]
    # z0: 0 2 4 4 8 6 4 6, sum 34;   z1: 2 1 0 0 -2 -1 0 -1, sum -1
    assert statistics.center("mean").tolist() == [[[34 / 8, -1 / 8]]]
    # z0 from 0 to 8: 128 bins of 1/16 would end at 8, so ε = 1/8; three times 4 → [4, 4 1/8), its middle 4 1/16.
    # z1 from -2 to 2: three times exactly 0, more than any bin has others, and 0 is then the peak itself.
    assert statistics.center("peak").tolist() == [[[4 + 1 / 16, 0]]]


def nats(label, *logits):
    return log(sum(exp(logit) for logit in logits)) - logits[label]


def scored(model, ablation=None):
    """Top-1 and cross-entropy of the document A B, whose next tokens are C and B."""
    batch = al.Batch(
        torch.tensor([[A, B]]), torch.ones(1, 2).bool(), torch.tensor([[C, B]]), torch.ones(1, 2, dtype=torch.bool)
    )
    score = al.evaluate(model, [batch], ablation)
    assert score.predictions == 2
    return score


def expect(score, right, first, second):
    assert score.top1 == right / 2
    assert score.cross_entropy == pytest.approx((nats(C, *first) + nats(B, *second)) / 2, abs=1e-6)


def test_the_model_itself(model):
    # z = (0, 2) and (2, 1):     (1, 0, 0) + (0, 0, 2)  and  (0, 1, 0) + (0, 2, 1): C and B, both right
    expect(scored(model), 2, (1, 0, 2), (0, 3, 1))


ALL = torch.tensor([[[True, True]]])
FIRST, SECOND = torch.tensor([[[True, False]]]), torch.tensor([[[False, True]]])


@pytest.mark.filterwarnings("ignore:it is not known how")
@pytest.mark.parametrize(
    ("mask", "center", "right", "first", "second"),
    [
        (ALL, "zero", 1, (1, 0, 0), (0, 1, 0)),  # only the tokens themselves are left: A (wrong) and B
        (FIRST, "zero", 2, (1, 0, 2), (0, 1, 1)),  # C; then of two equal ones the first: B
        (SECOND, "zero", 1, (1, 0, 0), (0, 3, 0)),
        (ALL, "mean", 1, (1, 4.25, -0.125), (0, 5.25, -0.125)),
        (FIRST, "mean", 1, (1, 4.25, 2), (0, 5.25, 1)),
        (SECOND, "mean", 1, (1, 0, -0.125), (0, 3, -0.125)),
        (ALL, "peak", 1, (1, 4.0625, 0), (0, 5.0625, 0)),
        (SECOND, "peak", 1, (1, 0, 0), (0, 3, 0)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_ablation_to_a_center(model, statistics, mask, center, right, first, second):
    ablation = statistics.ablation(mask, center)
    expect(scored(model, ablation), right, first, second)
    expect(scored(ablation.bake(model)), right, first, second)


def test_ablation_to_resampled_values(model):
    # The fixed input C A: z = (8, -2) at position 0, and ((8 + 0) / 2, (-2 + 2) / 2) = (4, 0) at position 1.
    seen = []
    model.run_with_hooks(torch.tensor([[C, A]]), fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: seen.append(z))])
    values = seen[0].detach()
    assert values.tolist() == [[[[8.0, -2.0]], [[4.0, 0.0]]]]
    expect(scored(model, al.Ablation(ALL, values)), 1, (1, 8, -2), (0, 5, 0))
    expect(scored(model, al.Ablation(SECOND, values)), 1, (1, 0, -2), (0, 3, 0))
    expect(scored(model, al.Ablation(ALL, values).at(1)), 2, (1, 0, 2), (0, 5, 0))
    expect(scored(model, al.Ablation(ALL, values[:, 0]).at(0)), 1, (1, 8, -2), (0, 3, 1))


def test_baked_weights(model, statistics):
    baked = statistics.ablation(FIRST, "mean").bake(model).blocks[0].attn
    assert baked.W_O.tolist() == [[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]
    assert baked.b_O.tolist() == [0.0, 4.25, 0.0]
    assert torch.equal(model.blocks[0].attn.W_O, W_O[None])

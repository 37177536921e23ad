"""Models whose circuits are known, because they are built by hand: attention alone, no norms, float64.

They are a user's own: TransformerLens' hook points on a plain torch module, on both majors.
"""

from types import SimpleNamespace

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

import ablation_lens as al
from ablation_lens import ModelRecord


class Attention(nn.Module):
    """Causal attention of heads whose weights are given: [head d_model d_head], and W_O [head d_head d_model]."""

    def __init__(self, heads, sharpness):
        super().__init__()
        self.W_Q, self.W_K, self.W_V, self.W_O = (
            nn.Parameter(torch.stack([head[name] for head in heads]), requires_grad=False) for name in "QKVO"
        )
        self.b_O = nn.Parameter(torch.zeros(self.W_O.shape[-1], dtype=torch.float64), requires_grad=False)
        self.sharpness = sharpness
        self.hook_z = HookPoint()

    def forward(self, x, attention_mask=None):
        query, key, value = (torch.einsum("bpm,hmd->bhpd", x, w) for w in (self.W_Q, self.W_K, self.W_V))
        scores = self.sharpness * query @ key.transpose(-1, -2)
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask.bool()[:, None, None, :]
        pattern = scores.masked_fill(~seen, -1e9).softmax(-1)
        z = self.hook_z((pattern @ value).transpose(1, 2))
        return torch.einsum("bphd,hdm->bpm", z, self.W_O) + self.b_O


class MLP(nn.Module):
    """ReLU neurons, all of them far on their linear side."""

    def __init__(self, width, hidden, generator):
        super().__init__()
        draw = torch.randn(2, width, hidden, generator=generator, dtype=torch.float64) / width
        self.W_in, self.W_out = (nn.Parameter(each, requires_grad=False) for each in (draw[0], draw[1].T.contiguous()))
        self.hook_post = HookPoint()

    def forward(self, x):
        return self.hook_post((x @ self.W_in + 50).relu()) @ self.W_out


class Block(nn.Module):
    def __init__(self, attention, mlp=None):
        super().__init__()
        self.attn, self.mlp = attention, mlp
        for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            setattr(self, f"hook_{name}", HookPoint())

    def forward(self, x, attention_mask=None):
        x = self.hook_resid_pre(x)
        x = x + self.hook_attn_out(self.attn(x, attention_mask=attention_mask))
        if self.mlp is not None:
            x = x + self.hook_mlp_out(self.mlp(x))
        return self.hook_resid_post(x)


class Handmade(HookedRootModule):
    """`embed [d_vocab d_model]` and `places [pos d_model]` in, `unembed [d_model d_vocab]` out, blocks between."""

    def __init__(self, layers, embed, places, unembed, *, sharpness=1.0, mlps=None):
        super().__init__()
        self.W_E, self.W_pos, self.W_U = (
            nn.Parameter(each.double(), requires_grad=False) for each in (embed, places, unembed)
        )
        mlps = mlps or [None] * len(layers)
        self.blocks = nn.ModuleList(
            Block(Attention(heads, sharpness), mlp) for heads, mlp in zip(layers, mlps, strict=True)
        )
        self.cfg = SimpleNamespace(
            n_layers=len(layers),
            n_heads=len(layers[0]),
            d_head=layers[0][0]["Q"].shape[1],
            d_model=embed.shape[1],
            d_mlp=0 if mlps[0] is None else mlps[0].W_in.shape[1],
            n_ctx=len(places),
            d_vocab=len(embed),
            d_vocab_out=unembed.shape[1],
            attn_only=mlps[0] is None,
            device=torch.device("cpu"),
            dtype=torch.float64,
        )
        self.record = ModelRecord.of_cfg(
            self.cfg, name="handmade", revision=None, architecture="Handmade", weights=None, processing="none"
        )
        self.setup()

    def forward(self, tokens, attention_mask=None):
        x = self.W_E[tokens] + self.W_pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, attention_mask=attention_mask)
        return x @ self.W_U


def _weights(width, dims, **entries):
    """A head's matrices; each entry is a list of (row, column, value)."""
    made = {name: torch.zeros(width, dims, dtype=torch.float64) for name in "QKV"}
    made["O"] = torch.zeros(dims, width, dtype=torch.float64)
    for name, places in entries.items():
        for row, column, value in places:
            made[name][row, column] = value
    return made


# ---------------------------------------------------------------------- induction

VOCAB, PLACES = 9, 12
PREVIOUS, INDUCTION = "L0.H1", "L1.H2"
"""The heads of the induction circuit; all others write where nobody reads."""


def induction_model():
    """After `… A B … A` it says B: L0.H1 writes what the previous token was, L1.H2 looks for the current one there.

    The stream holds the token [VOCAB], the place [PLACES], the previous token [VOCAB], the answer [VOCAB], and a
    wastebasket [VOCAB], which the four other heads fill with what they see.
    """
    token, place = 0, VOCAB
    previous, answer = place + PLACES, place + PLACES + VOCAB
    waste = answer + VOCAB
    width, dims = waste + VOCAB, max(VOCAB, PLACES)
    one = range(VOCAB)
    embed, places = torch.zeros(VOCAB, width), torch.zeros(PLACES, width)
    embed[one, one] = 1.0
    places[range(PLACES), range(place, previous)] = 1.0
    unembed = torch.zeros(width, VOCAB)
    unembed[range(answer, waste), one] = 4.0
    copies = [(token + t, t, 1.0) for t in one]

    def idle(seed):
        generator = torch.Generator().manual_seed(seed)
        made = _weights(width, dims, V=copies, O=[(t, waste + t, 1.0) for t in one])
        for name in "QK":
            made[name] += 0.3 * torch.randn(width, dims, generator=generator, dtype=torch.float64)
        return made

    looks_back = _weights(
        width,
        dims,
        Q=[(place + p, p - 1, 1.0) for p in range(1, PLACES)],
        K=[(place + p, p, 1.0) for p in range(PLACES)],
        V=copies,
        O=[(t, previous + t, 1.0) for t in one],
    )
    induces = _weights(
        width,
        dims,
        Q=copies,
        K=[(previous + t, t, 1.0) for t in one],
        V=copies,
        O=[(t, answer + t, 1.0) for t in one],
    )
    layers = [[idle(0), looks_back, idle(1)], [idle(2), idle(3), induces]]
    return Handmade(layers, embed, places, unembed, sharpness=6.0)


def induction_batch(rows=12, seed=0):
    """BOS (0), four tokens, the first two or three of them again: what came after the last one is asked."""
    generator = torch.Generator().manual_seed(seed)
    tokens, answers, wrong = [], [], []
    for _ in range(rows):
        half = (torch.randperm(VOCAB - 1, generator=generator)[:5] + 1).tolist()
        tokens.append([0, *half, *half[:3]])
        answers.append(half[3])
        wrong.append(half[4])
    return al.Batch.prompts(torch.tensor(tokens), answers, wrong)


# ---------------------------------------------------------------------- a pair of heads that stand in for each other

FIRST, BACKUP = "L0.H0", "L1.H0"


def backup_model(cancelling=False):
    """L0.H0 says the answer, which stands at position 1. L1.H0 says it too, but only if L0.H0 has not.

    The fewer of the answer the stream holds, the more L1.H0 attends to position 1 and not to position 0, which
    says nothing. With `cancelling`, what L0.H0 gives is what L1.H0 takes back, to first order: its gradient is zero.
    """
    vocab, length = 6, 4
    token, place = 0, vocab
    answer, said = place + length, place + length + vocab
    waste = said + 1
    width, dims = waste + vocab, vocab + 1
    embed, places = torch.zeros(vocab, width), torch.zeros(length, width)
    embed[range(vocab), range(vocab)] = 1.0
    places[range(length), range(place, answer)] = 1.0
    unembed = torch.zeros(width, vocab)
    unembed[range(answer, said), range(vocab)] = 1.0
    last = place + length - 1
    copies = [(token + t, t, 1.0) for t in range(1, vocab)]  # token 0, at position 0, says nothing
    # From the last position to position 1, surely.
    first = _weights(
        width,
        dims,
        Q=[(last, 0, 1.0)],
        K=[(place + 1, 0, 40.0)],
        V=copies,
        O=[*((t, answer + t, 3.0) for t in range(1, vocab)), *((t, said, 1.0) for t in range(1, vocab))],
    )
    # Of position 1 over position 0 its score is 4 − slope · (what was said), which is 1 where L0.H0 is as it is. With a
    # slope of 4, d/d(said) of 3 · σ(4 − 4 · said) is −3 there: as much as L0.H0 adds by itself.
    slope = 4.0 if cancelling else 8.0
    backup = _weights(
        width,
        dims,
        Q=[(last, 0, 4.0), (said, 0, -slope), (last, 1, 40.0)],
        K=[(place + 1, 0, 1.0), (place + 0, 1, 1.0), (place + 1, 1, 1.0)],
        V=copies,
        O=[(t, answer + t, 3.0) for t in range(1, vocab)],
    )
    idle = _weights(width, dims, V=copies, O=[(t, waste + t, 1.0) for t in range(vocab)])
    return Handmade([[first, idle], [backup, idle]], embed, places, unembed)


def backup_batch(rows=10, seed=0):
    """Token 0, the answer, and two others."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.stack([torch.randperm(5, generator=generator)[:4] + 1 for _ in range(rows)])
    tokens[:, 0] = 0
    return al.Batch.prompts(tokens, tokens[:, 1].tolist(), tokens[:, 2].tolist())


# ---------------------------------------------------------------------- linear


def linear_model(seed=0, layers=3, heads=4, mlps=True):
    """Heads look at all positions evenly, MLP neurons are on their linear side: the logits are linear in all."""
    generator = torch.Generator().manual_seed(seed)
    width, dims, vocab, length = 16, 4, 11, 10

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 4

    zero = torch.zeros(width, dims, dtype=torch.float64)
    made = [
        [{"Q": zero, "K": zero, "V": draw(width, dims), "O": draw(dims, width)} for _ in range(heads)]
        for _ in range(layers)
    ]
    neurons = [MLP(width, 12, generator) for _ in range(layers)] if mlps else None
    return Handmade(made, draw(vocab, width), draw(length, width), draw(width, vocab), mlps=neurons)


def linear_batch(rows=7, seed=0):
    """Random tokens, and logits of two of them compared: a metric that is linear, too."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(11, (rows, 10), generator=generator)
    answers = torch.randint(5, (rows,), generator=generator)
    return al.Batch.prompts(tokens, answers.tolist(), (answers + 5).tolist())

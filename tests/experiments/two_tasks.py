"""A model of two tasks that share no neuron, built by hand.

Tokens 0 … 3 are one task and 4 … 7 the other; in both, a token is followed by the next of its four. Neurons 2t and
2t + 1 fire for token t alone and write the answer. Where neither does, the model says 8, which is never right. What
neurons of one task read is alike, and has nothing to do with what those of the other read.
"""

from types import SimpleNamespace

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from ablation_lens import ModelRecord
from ablation_lens.tasks.freezing import freeze

TOKENS, WIDTH = 8, 16


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        token = torch.arange(WIDTH) // 2
        reads = torch.zeros(TOKENS + 2, WIDTH)
        reads[token, torch.arange(WIDTH)] = 1
        reads[TOKENS + token // 4, torch.arange(WIDTH)] = 3
        writes = torch.zeros(WIDTH, TOKENS + 1)
        writes[torch.arange(WIDTH), token // 4 * 4 + (token + 1) % 4] = 1
        self.W_in, self.W_out = (nn.Parameter(each, requires_grad=False) for each in (reads, writes))
        self.b_in = nn.Parameter(torch.full((WIDTH,), -9.0), requires_grad=False)
        self.hook_post = HookPoint()

    def forward(self, x):
        return self.hook_post((x @ self.W_in + self.b_in).relu()) @ self.W_out


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp, self.hook_resid_post = MLP(), HookPoint()

    def forward(self, x):
        return self.hook_resid_post(self.mlp(x))


class TwoTasks(HookedRootModule):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block()])
        self.cfg = SimpleNamespace(
            n_layers=1, n_heads=1, d_head=1, d_model=TOKENS + 2, d_mlp=WIDTH, n_ctx=16, d_vocab=TOKENS + 1,
            d_vocab_out=TOKENS + 1, attn_only=False, device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        self.record = ModelRecord.of_cfg(
            self.cfg, name="two tasks", revision=None, architecture="TwoTasks", weights=None
        )
        self.setup()

    def forward(self, tokens):
        token = torch.nn.functional.one_hot(tokens, TOKENS + 1)[..., :TOKENS].float()
        of_task = torch.nn.functional.one_hot(tokens // 4, 3)[..., :2].float()
        silence = torch.zeros(TOKENS + 1)
        silence[TOKENS] = 0.25
        # What a token's neurons read is 1 + 9 − 9.
        return self.blocks[0](torch.cat([token, 3 * of_task], dim=-1)) + silence


def rows(task, length):
    """A row from each of a task's tokens."""
    return torch.stack([4 * task + (start + torch.arange(length)) % 4 for start in range(4)])


def two_tasks(model):
    """Task → what its neurons are chosen on, and what is judged: every token equally often in both."""
    return {
        name: (freeze(model, rows(task, 9)), freeze(model, rows(task, 5)))
        for task, name in enumerate(("first", "second"))
    }

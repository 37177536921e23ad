"""Which positions of somebody's own batches are real, where nobody has said so.

`model.to_tokens(prompts)` pads by the tokenizer's pad token, and gives no mask.
"""

import warnings
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import task_of, tokenizer_of
from ablation_lens.tasks.inputs import require_answerable, require_readable
from ablation_lens.tasks.plans import Batch
from ablation_lens.tasks.prompts import require_asked_at_mask

_WAY_OUT = "al.Batch.causal(tokens, valid) says which positions are real."


class PaddingWarning(UserWarning):
    """Positions that hold the pad token were taken for padding."""


class Padding:
    """Tells text from padding in the batches of one call, and says so once.

    >>> from types import SimpleNamespace
    >>> tokenizer = SimpleNamespace(pad_token_id=1)
    >>> padding = Padding(SimpleNamespace(tokenizer=tokenizer))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     batch = padding.mark(torch.tensor([[5, 6, 7], [1, 8, 9]]))
    >>> batch.inputs.tolist(), batch.valid.tolist()
    ([[5, 6, 7], [8, 9, 1]], [[True, True, True], [True, True, False]])
    """

    def __init__(self, model: Any, *, stacklevel: int = 2) -> None:
        # TransformerLens gives its own tokenizer a pad token where there was none, and pads by that.
        tokenizers = [each for each in (getattr(model, "tokenizer", None), tokenizer_of(model)) if each is not None]
        self.model, self._stacklevel = model, stacklevel
        self._pads = _ids(tokenizers, "pad")
        # In GPT-2 and its kin one token is all of them, and a text may begin and end with it.
        self._ambiguous = not self._pads.isdisjoint(_ids(tokenizers, "bos", "eos", "unk"))
        self._told = False

    def mark(self, item: Batch | Tensor) -> Batch:
        """A batch that says what is padding, with every text at the start of its row."""
        return self.marked(item, further=1).from_start()

    def marked(self, item: Batch | Tensor, *, further: int = 0) -> Batch:
        """A batch that says what is padding, which stays where it is, and that the model can read."""
        batch = item if isinstance(item, Batch) else self._plain(item)
        batch = self._marked(batch, further) if not batch.valid_given and self._pads else batch
        if hasattr(self.model, "cfg"):
            require_answerable(self.model, batch.answers, batch.wrong)
            if batch.answers is not None:  # labels may be of any position
                require_asked_at_mask(self.model, batch.inputs, batch.scored)
            require_readable(self.model, batch.inputs, batch.valid, batch.labels, batch.scored)
            batch = self._embeddable(batch)
        return batch

    def _embeddable(self, batch: Batch) -> Batch:
        """Padding may be filled with what has no row in the embedding: -100, or a pad token that was added later."""
        if batch.inputs.ndim != 2 or bool(batch.valid.all()):
            return batch
        outside = ~batch.valid & ((batch.inputs < 0) | (batch.inputs >= self.model.cfg.d_vocab))
        return replace(batch, inputs=batch.inputs.masked_fill(outside, 0)) if bool(outside.any()) else batch

    def _plain(self, inputs: Tensor) -> Batch:
        if not isinstance(inputs, Tensor):
            raise MismatchError(f"a batch is a {type(inputs).__name__}; give a Batch, or a tensor of inputs.")
        if inputs.ndim == 2 and not inputs.is_floating_point():
            return Batch.causal(inputs)
        if inputs.ndim != 4:
            raise MismatchError(f"inputs of shape {tuple(inputs.shape)} are neither token ids [batch pos] nor images.")
        return Batch.images(inputs, self.model.cfg.n_ctx)

    def _marked(self, batch: Batch, further: int) -> Batch:
        pad = torch.isin(batch.inputs, torch.tensor(sorted(self._pads), device=batch.inputs.device))
        valid = _texts(pad) if self._ambiguous else ~(_run(pad) | _run(pad.flip(1)).flip(1))
        left_out = int((~valid).sum())
        if not left_out:
            return batch
        if not self._told:
            self._told = True
            warnings.warn(
                f"{left_out} of {valid.numel()} positions of a batch hold the pad token before or after the text, and "
                f"are left out as padding, here and in the batches after it; {_WAY_OUT}",
                PaddingWarning,
                # Counted from `mark` or `marked`, whose caller is 2.
                stacklevel=self._stacklevel + 1 + further,
            )
        if task_of(self.model) == "masked-lm":  # asked at its mask tokens
            return replace(batch, valid=valid, scored=batch.scored & valid, valid_given=True)
        if batch.answers is not None:
            return replace(batch, valid=valid, valid_given=True).asked_at_the_end()
        # Padding is not predicted, either.
        scored = batch.scored & Batch.causal(batch.inputs, valid).scored
        return replace(batch, valid=valid, scored=scored, valid_given=True)


def _ids(tokenizers: list[Any], *names: str) -> set[int]:
    found = {getattr(tokenizer, f"{name}_token_id", None) for tokenizer in tokenizers for name in names}
    return {int(token) for token in found if token is not None}


def _run(pad: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The pad tokens before the first other one."""
    return pad.long().cumprod(1).bool()


def _texts(pad: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """What is real where the pad token may also begin or end a text.

    The longest text of a batch is not padded, so the other rows' padding is what they have more of at one end.
    """
    length = pad.shape[1]
    before, after = _run(pad).sum(1), _run(pad.flip(1)).sum(1)
    empty = before == length  # a row of nothing but that token: an empty text
    texts = ~empty
    if not bool(texts.any()):
        own_before, own_after = length, 0
    else:
        own_before, own_after = int(before[texts].min()), int(after[texts].min())
    left, right = before - own_before, after - own_after
    if own_before > 1 or own_after > 1 or bool((left[texts] > 0).any() and (right[texts] > 0).any()):
        raise MismatchError(
            "it cannot be told what is padding in a batch: its pad token also begins or ends texts, and stands more "
            f"than once at that end of every row, or at both ends; {_WAY_OUT}"
        )
    places = torch.arange(length, device=pad.device)
    real = (places >= left[:, None]) & (places < (length - right)[:, None])
    return torch.where(empty[:, None], places < own_before + own_after, real)

"""Texts and answers of prompts as the token ids of a model."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ablation_lens.errors import MismatchError, ModelError
from ablation_lens.hooked import task_of, tokenizer_of


def ids_of_text(model: Any, text: str) -> list[int]:
    """A text as a model reads it, ending where its next token is asked for.

    >>> from ablation_lens import load_model
    >>> len(ids_of_text(load_model("tiny-opt"), "return self.")) > 2
    True
    """
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ModelError("this model has no tokenizer, so it cannot read a text; give token ids.")
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids, special = list(encoded["input_ids"]), encoded["special_tokens_mask"]
    # What a tokenizer puts after a text would be asked what comes next.
    while task_of(model) == "causal-lm" and len(ids) > 1 and special[len(ids) - 1]:
        del ids[-1]
    if not text or not ids:
        raise MismatchError("the text is empty; give at least one token.")
    limit = int(getattr(model.cfg, "n_ctx", 0) or 0)
    if limit and len(ids) > limit:
        raise MismatchError(f"the text is {len(ids):,} tokens long, and the model reads {limit:,}; shorten it.")
    return ids


def id_of_answer(model: Any, answer: Any) -> int:
    """An answer's token id: it must be a single token, or the id of one.

    >>> from ablation_lens import load_model
    >>> id_of_answer(load_model("tiny-opt"), 5)
    5
    """
    answer = answer.tolist() if hasattr(answer, "tolist") else answer  # NumPy's and torch's numbers
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    if not isinstance(answer, str):
        raise MismatchError(f"answers are texts of one token or ids, got {answer!r:.60}.")
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ModelError("this model has no tokenizer, so answers must be token ids.")
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        parts = ", ".join(repr(str(tokenizer.decode([each]))) for each in ids[:8])
        raise MismatchError(
            f"the answer {answer!r:.60} is {len(ids)} tokens for this model ({parts}); give one of a single token, "
            "often with a space before it."
        )
    return int(ids[0])


def tokens_of_texts(model: Any, texts: Sequence[Any]) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Texts as rows padded on the right, and which positions are real."""
    if not texts or not all(isinstance(text, str) for text in texts):
        raise MismatchError(f"prompts are texts, or token ids [batch pos]; got {texts!r:.100}.")
    rows = [ids_of_text(model, text) for text in texts]
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    valid = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    return tokens, valid


def require_asked_at_mask(model: Any, inputs: Int[Tensor, "batch pos"], scored: Bool[Tensor, "batch pos"]) -> None:
    """Refuse prompts of a masked model that are asked about another position than that of a mask token."""
    mask = getattr(tokenizer_of(model), "mask_token_id", None)
    if task_of(model) != "masked-lm" or mask is None or inputs.shape != scored.shape:
        return
    elsewhere = int((scored & (inputs != int(mask))).any(1).sum())
    if elsewhere:
        raise MismatchError(
            f"a masked model says what is at its mask token (id {mask}), and {elsewhere:,} of {len(inputs):,} prompts "
            "are asked about another position; write one into each, and give model= where the prompts are made."
        )


def mask_places(model: Any, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Where each row of a masked model has its one mask token, which is what such a model is asked about."""
    tokenizer = tokenizer_of(model)
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise ModelError("this model's tokenizer has no mask token, so nothing can be asked.")
    places = tokens == torch.tensor(mask)
    if not bool((places.sum(1) == 1).all()):
        found = int(places.sum(1)[places.sum(1) != 1][0])
        raise MismatchError(
            f"a masked model says what is at its mask token, and a text has {found} of them; write one "
            f"{tokenizer.mask_token} into each."
        )
    return places

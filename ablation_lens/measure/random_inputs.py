"""Random inputs: what a model reads when its activations are resampled.

Everything is drawn with Python's own generator, whose numbers are the same on every machine. Generated text also
depends on how a device rounds. Pixels are drawn by `randbytes`, which Python may change one day, as it may not change
`random`: a test compares them, and whoever keeps results keeps the input, too.
"""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablation_lens.errors import MismatchError, ModelError, NonFiniteError
from ablation_lens.hooked import task_of, tokenizer_of
from ablation_lens.models.load import incremental_logits
from ablation_lens.records import stated_record
from ablation_lens.tasks.tasks import CONTEXTS

ALPHANUMERIC = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

_SPECIAL_NAMES = frozenset({"<s>", "</s>", "<pad>", "<unk>", "<mask>"})
"""Tokens that OPT's and Mistral's vocabularies hold without always declaring them special."""


def author_for(model: Any, generator: Any = None) -> Any:
    """The model that generates text for `model` to read: `generator`, or the model itself."""
    author = model if generator is None else generator
    if task_of(author) != "causal-lm":
        raise MismatchError(
            f"{stated_record(author).name} is not a causal model and cannot generate text; pass generator=, a loaded "
            "causal model such as load_model('tiny-opt') (the paper's is facebook/opt-1.3b)."
        )
    if author is not model and (tokenizer_of(author) is None or tokenizer_of(model) is None):
        raise ModelError("another model's text can only be read where both models have a tokenizer.")
    return author


def random_text(
    model: Any, kind: str, draw: random.Random, positions: int | None = None, author: Any = None
) -> tuple[Int[Tensor, "1 pos"], str | None]:
    """Token ids of "characters", "tokens" or "generated" text, and the text without special tokens.

    Args:
        model: reads the text.
        kind: what it is made of.
        draw: the source of randomness.
        positions: how many ids, special ones included; None for the context that documents are truncated to.
        author: generates "generated" text.
    """
    before, after = _surroundings(model)
    special, limit = len(before) + len(after), int(model.cfg.n_ctx)
    wanted = min(limit, CONTEXTS[task_of(model)]) if positions is None else positions
    if not special < wanted <= limit:
        raise MismatchError(f"positions={wanted} is not possible; this model takes {special + 1} to {limit}.")
    tokens = _tokens(model, kind, wanted - special, draw, author)
    return torch.tensor([[*before, *tokens, *after]]), _decoded(model, tokens)


def random_pixels(
    model: Any, draw: random.Random, positions: int | None = None
) -> Float[Tensor, "1 channel height width"]:
    """An image of uniform random pixels, as the model's image processor prepares it."""
    from PIL import Image

    if positions not in (None, model.cfg.n_ctx):
        raise MismatchError(f"positions={positions}, but an image always has {model.cfg.n_ctx}; leave it out.")
    if getattr(model, "image_processor", None) is None:
        raise ModelError("this model has no image processor; put preprocessor_config.json beside its weights.")
    height, width = model.image_size
    mode = "L" if model.n_channels == 1 else "RGB"
    # PIL wants (width, height); `image_size` is (height, width).
    image = Image.frombytes(mode, (width, height), draw.randbytes(height * width * len(mode)))
    # The image has the model's size already; a processor that enlarges and crops would smooth the noise.
    prepared = model.image_processor(image, do_resize=False, do_center_crop=False, return_tensors="pt")
    return torch.as_tensor(prepared["pixel_values"])


def _tokens(model: Any, kind: str, room: int, draw: random.Random, author: Any) -> list[int]:
    known = _ordinary_ids(model)
    if kind == "tokens":
        # Not `choice`: only `random()` is promised to give the same numbers in every version of Python.
        return [known[int(draw.random() * len(known))] for _ in range(room)]
    if kind == "characters":
        if tokenizer_of(model) is None:
            raise ModelError("this model has no tokenizer to read random characters with; use kind 'tokens'.")
        letters = (ALPHANUMERIC[int(draw.random() * len(ALPHANUMERIC))] for _ in count())
        return _tokenized(model, room, letters, "".join)
    sampled = _sampled(author, draw)
    if author is model:
        return list(islice(sampled, room))
    return _tokenized(model, room, sampled, partial(_decoded, author))


def _tokenized(model: Any, room: int, source: Iterator[Any], as_text: Callable[[list[Any]], Any]) -> list[int]:
    """The first `room` tokens of a text without end."""
    # A text may spell a special token letter by letter.
    known = set(_ordinary_ids(model))
    taken: list[Any] = []
    # Every round doubles the text, up to 32 times as many pieces as tokens are needed.
    for _ in range(6):
        taken.extend(islice(source, max(room, len(taken))))
        # All of it again: the last token of a text depends on what follows. verbose=False, because Hugging Face
        # warns of texts longer than the context, and this one is cut below.
        ids = tokenizer_of(model)(as_text(taken), add_special_tokens=False, verbose=False)["input_ids"]
        tokens = [token for token in ids if token in known]
        if len(tokens) >= room:
            return tokens[:room]
    raise ModelError(
        f"this model's tokenizer made {len(tokens)} tokens of {len(as_text(taken))} characters, where {room} are "
        "needed; use kind 'tokens', or fewer positions."
    )


def _sampled(author: Any, draw: random.Random) -> Iterator[int]:
    """What a causal model writes after one random token, at temperature 1, without end; never a special token."""
    known = _ordinary_ids(author)
    allowed = torch.tensor(known)
    before, _ = _surroundings(author)
    written = [known[int(draw.random() * len(known))]]
    yield written[0]
    while True:
        # Where the context is full, the model goes on from its second half.
        fed = [*before, *written[-(author.cfg.n_ctx // 2) :]]
        logits_after, length = incremental_logits(author), len(fed)
        while length <= author.cfg.n_ctx:
            logits = logits_after(torch.tensor([fed], device=author.cfg.device)).to("cpu", torch.float64)
            cumulative = logits[allowed].softmax(0).cumsum(0)
            if not bool(cumulative[-1].isfinite()):
                raise NonFiniteError(f"the logits of {stated_record(author).name} are not finite; use another dtype.")
            # right=True: an id of probability 0 is never taken. Rounding may put the place after the last id.
            place = int(torch.searchsorted(cumulative, draw.random() * float(cumulative[-1]), right=True))
            fed = [known[min(place, len(known) - 1)]]
            written += fed
            length += 1
            yield fed[0]


def _ordinary_ids(model: Any) -> list[int]:
    """The ids that stand for text: not special, known to the tokenizer, and with a row in the embedding."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        return list(range(model.cfg.d_vocab))
    special = set(tokenizer.all_special_ids)
    # Some tokenizers declare a token special where it is added, and not among their named ones.
    special.update(token for token, added in tokenizer.added_tokens_decoder.items() if added.special)
    # Sorted, because a fast tokenizer's `get_vocab` comes in no fixed order, and tokens are drawn by place.
    return sorted(
        token
        for name, token in tokenizer.get_vocab().items()
        if token < model.cfg.d_vocab and token not in special and name not in _SPECIAL_NAMES
    )


def _surroundings(model: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts in front of a text and after it."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        return [], []
    # Asked, not looked up: what a tokenizer adds follows from its template, not from `bos_token`.
    probe, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if probe and whole[i : i + len(probe)] == probe), None)
    if start is None:
        raise ModelError(
            "which special tokens this model's tokenizer puts around a text cannot be told, as it reads 'a' as "
            f"{probe} alone and as {whole} with them; give the model another tokenizer."
        )
    return whole[:start], whole[start + len(probe) :]


def _decoded(model: Any, tokens: list[int]) -> str | None:
    tokenizer = tokenizer_of(model)
    # With clean-up, Hugging Face turns " ." into ".", and the text would not be the tokens' own.
    return None if tokenizer is None else tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

"""Token ids, masks, labels and pixels out of tensors, arrays and lists, and whether a model can read them."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import shorten
from ablation_lens.hooked import task_of


def tensor_of(value: Any, what: str) -> Tensor:
    """A tensor of a tensor, an array, a list of numbers, or a list of lists, tensors or arrays of one length.

    >>> tensor_of([np.arange(3), [7, 8, 9]], "input_ids").tolist()
    [[0, 1, 2], [7, 8, 9]]
    >>> tensor_of([[1, 2, 3], [4]], "input_ids")
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: input_ids has rows of different lengths (3 and 1) and no attention_mask that \
says which are whole; give tokenizer(texts, padding=True), or every row as a batch of its own.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        # A copy: torch warns of arrays that cannot be written to, such as memory maps. It has few unsigned types.
        return torch.from_numpy(value.astype(np.int64 if value.dtype.kind in "iu" else value.dtype, copy=True))
    if isinstance(value, list | tuple | np.ndarray) and len(value):
        if all(_is_number(each) for each in value):
            return torch.as_tensor([each.item() if hasattr(each, "item") else each for each in value])
        if all(isinstance(each, list | tuple | np.ndarray | Tensor) for each in value):
            rows = [tensor_of(each, what) for each in value]
            lengths = [tuple(row.shape) for row in rows]
            if len(set(lengths)) == 1:
                return torch.stack(rows)
            if {row.ndim for row in rows} == {1}:
                first, other = lengths[0][0], next(length[0] for length in lengths if length != lengths[0])
                raise MismatchError(
                    f"{what} has rows of different lengths ({first} and {other}) and no attention_mask that says "
                    "which are whole; give tokenizer(texts, padding=True), or every row as a batch of its own."
                )
    empty = isinstance(value, list | tuple) and not value
    raise MismatchError(
        f"{what} is {f'an empty {type(value).__name__}' if empty else told(value)}; expected a tensor, an array or a "
        "list of numbers."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_) or (
        isinstance(value, Tensor) and value.ndim == 0
    )


def ids_of(value: Any, what: str = "input_ids") -> Int[Tensor, "*batch pos"]:
    """Token ids, as int64.

    >>> ids_of([0.5, 1.5])
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: input_ids are torch.float32; token ids are whole numbers (to feed vectors \
instead of tokens is not possible here).
    """
    ids = tensor_of(value, what)
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise MismatchError(
            f"{what} are {ids.dtype}; token ids are whole numbers (to feed vectors instead of tokens is not possible "
            "here)."
        )
    return ids.long()


def one_or_more_rows(ids: Int[Tensor, "*batch pos"], what: str = "input_ids") -> Int[Tensor, "batch pos"]:
    """A single row as a batch of one."""
    if ids.ndim not in (1, 2) or not ids.numel():
        raise MismatchError(
            f"{what} have the shape {tuple(ids.shape)}; token ids are [pos], or [batch pos], not empty."
        )
    return ids[None] if ids.ndim == 1 else ids


def mask_of(value: Any, shape: Sequence[int], what: str = "attention_mask") -> Bool[Tensor, "*batch pos"]:
    """A mask of a given shape; zero, or False, is "no"."""
    mask = tensor_of(value, what)
    if mask.ndim == 1 and len(shape) == 2 and shape[0] == 1:  # of a single row, as its ids may be
        mask = mask[None]
    if tuple(mask.shape) != tuple(shape):
        raise MismatchError(
            f"{what} has the shape {tuple(mask.shape)}, and what it is for {tuple(shape)}; it says of every position "
            "whether it is real."
        )
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise MismatchError(f"{what} holds other numbers than 0 and 1; give 1 where a position is real, else 0.")
    return mask.bool()


def pixels_of(value: Any, what: str = "pixel_values") -> Float[Tensor, "*batch channel height width"]:
    """Pixels as an image processor prepares them: floating-point."""
    pixels = tensor_of(value, what)
    if not pixels.is_floating_point():
        raise MismatchError(
            f"{what} are {pixels.dtype}; a model reads what its image processor makes of an image: "
            "model.image_processor(images, return_tensors='pt')."
        )
    return pixels


def whole(value: Any, name: str) -> int:
    """A whole number, also one that is written as 1e4.

    >>> whole(1e4, "tokens")
    10000
    >>> whole("100", "tokens")
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: tokens='100' is not possible; give a whole number.
    """
    try:
        return int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError as error:
        raise MismatchError(f"{name}={shorten(repr(value), 60)} is not possible; give a whole number.") from error


def told(value: Any) -> str:
    """What a value is, in a few words, for a sentence."""
    if value is None:
        return "None"
    kind = type(value).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    return shorten(repr(value), 60) if isinstance(value, int | float | str | bytes) else f"{article} {kind}"


def require_readable(
    model: Any, inputs: Tensor, valid: Bool[Tensor, "batch pos"], labels: Tensor, scored: Bool[Tensor, "batch *pos"]
) -> None:
    """Refuse what would end in an error of torch: ids beyond the embedding, rows beyond the context, other images.

    Ids at padded positions do not matter: nobody looks there.
    """
    cfg = model.cfg
    if task_of(model) == "image-classification":
        _require_images(model, inputs)
    elif inputs.ndim != 2 or inputs.is_floating_point():
        raise MismatchError(
            f"inputs of shape {tuple(inputs.shape)} ({inputs.dtype}) were given to a model of text; it reads token ids "
            "[batch pos]."
        )
    else:
        # A model of one's own need not say either.
        context, vocabulary = getattr(cfg, "n_ctx", None), getattr(cfg, "d_vocab", None)
        if context is not None and inputs.shape[1] > context:
            raise MismatchError(
                f"rows of {inputs.shape[1]:,} positions were given to a model with a context of {context:,}; cut "
                f"them, as in tokens[:, :{context}]."
            )
        if vocabulary is not None:
            real = inputs[valid] if valid.shape == inputs.shape else inputs
            _require_among(real, int(vocabulary), "token ids", "vocabulary")
    _require_classes(model, labels[scored], "labels")


def require_answerable(model: Any, answers: Tensor | None, wrong: Tensor | None) -> None:
    """Refuse answers, and wrong ones, that are none of a model's classes; -1 fills rows up."""
    for what, ids in (("answers", answers), ("wrong answers", wrong)):
        if ids is not None:
            _require_classes(model, ids[ids != -1], what)


def _require_classes(model: Any, ids: Tensor, what: str) -> None:
    known = getattr(model.cfg, "d_vocab_out", None)
    if known is not None and known > 0:
        of = "range of classes" if task_of(model) == "image-classification" else "vocabulary"
        _require_among(ids, int(known), what, of)


def _require_among(numbers: Tensor, count: int, what: str, of: str) -> None:
    if not numbers.numel():
        return
    low, high = (int(end) for end in torch.aminmax(numbers))
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        way = (
            "-100 says that nothing is predicted there"
            if what == "labels"
            else "give those that the model's own tokenizer makes"
        )
        raise MismatchError(f"{what} hold {wrong}, and the model's {of} is 0 to {count - 1:,}; {way}.")


def _require_images(model: Any, inputs: Tensor) -> None:
    if inputs.ndim != 4 or not inputs.is_floating_point():
        raise MismatchError(
            f"inputs of shape {tuple(inputs.shape)} ({inputs.dtype}) were given to a model of images; it reads pixels "
            "[batch channel height width], as model.image_processor prepares them."
        )
    # Hooked by somebody else, a model need not say either.
    channels, size = getattr(model, "n_channels", None), getattr(model, "image_size", None)
    if channels is None or size is None:
        return
    wanted = (int(channels), *(int(side) for side in size))
    if tuple(inputs.shape[1:]) != wanted:
        raise MismatchError(
            f"images of {_by(inputs.shape[1:])} (channel × height × width) were given to a model of {_by(wanted)}; "
            "prepare them with model.image_processor."
        )


def _by(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))

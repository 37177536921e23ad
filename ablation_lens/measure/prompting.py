"""`prompt`: what a model says to one text, as it is and ablated, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.escaping import for_html, on_one_line, shorten
from ablation_lens.hooked import task_of, tokenizer_of
from ablation_lens.measure.evaluation import Hooks, hooks_for
from ablation_lens.measure.forward import logits_everywhere
from ablation_lens.names import require_known
from ablation_lens.tasks.inputs import require_readable, whole
from ablation_lens.tasks.plans import Batch
from ablation_lens.tasks.prompts import id_of_answer, ids_of_text

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class PromptResult:
    """What a model says to one text.

    Attributes:
        text: what was asked.
        tokens: its token ids; None for an image.
        before: probabilities of all classes, without the ablation.
        after: with it; None without one.
        names: what the classes are called.
        answer: the class that was asked about.
        ablation: what was ablated, in words.
        top: how many classes are shown.
    """

    text: str
    tokens: tuple[int, ...] | None
    before: Float[Tensor, " out"]
    after: Float[Tensor, " out"] | None
    names: "_Names"
    answer: int | None
    ablation: str
    top: int

    @property
    def frame(self) -> "pandas.DataFrame":
        """The most likely classes of both sides, and the answer: probability and rank before and after."""
        import pandas

        sides = [self.before] if self.after is None else [self.before, self.after]
        chosen = [int(place) for side in sides for place in side.topk(min(self.top, len(side))).indices]
        listed = list(dict.fromkeys([*([] if self.answer is None else [self.answer]), *chosen]))
        columns: dict[str, list[Any]] = {"id": listed}
        for name, side in zip(("before", "after"), sides, strict=False):
            columns[f"rank_{name}"] = [1 + int((side > side[place]).sum()) for place in listed]
            columns[f"probability_{name}"] = [float(side[place]) for place in listed]
        if self.after is not None:
            columns["change"] = [float(self.after[place] - self.before[place]) for place in listed]
        index = pandas.Index([self.names(place) for place in listed], name="prediction")
        return pandas.DataFrame(columns, index=index)

    @property
    def kl(self) -> float | None:
        """KL divergence, in nats, from what the model says to what it says when ablated."""
        if self.after is None:
            return None
        p, q = self.before.double(), self.after.double()
        return float(torch.where(p > 0, p * (p.log() - q.log()), 0).sum())

    def lines(self) -> list[str]:
        """The two sides, as plain lines that are safe to print."""
        sides = [("as it is", self.before)] + ([] if self.after is None else [("ablated", self.after)])
        cells = []
        for _, side in sides:
            best = side.topk(min(self.top, len(side))).indices.tolist()
            cells.append([f"{100 * float(side[place]):6.2f} %  {_shown(self.names(place))}" for place in best])
        wide = max(map(len, cells[0]))
        said = [f"{_shown(self.text, 70)}", ""]
        if self.after is not None:
            said = [f"{_shown(self.text, 70)}   {on_one_line(self.ablation)}", ""]
        said.append("      " + "    ".join(f"{title:{wide}}" for title, _ in sides).rstrip())
        for place, row in enumerate(zip(*cells, strict=True)):
            said.append(f"{place + 1:4}  " + "    ".join(f"{text:{wide}}" for text in row).rstrip())
        if self.answer is not None:
            ranks = [1 + int((side > side[self.answer]).sum()) for _, side in sides]
            told = [
                f"{100 * float(side[self.answer]):.2f} % (rank {rank})"
                for (_, side), rank in zip(sides, ranks, strict=True)
            ]
            said += ["", f"{_shown(self.names(self.answer))}: {' → '.join(told)}"]
        if self.kl is not None:
            said += [
                *([""] if self.answer is None else []),
                f"KL divergence from the model as it is: {self.kl:.4f} nats",
            ]
        return said

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        return f"<pre>{for_html(repr(self))}</pre>"


def prompt(
    model: Any,
    text: Any,
    *,
    answer: str | int | None = None,
    ablation: Hooks | None = None,
    top: int = 5,
) -> PromptResult:
    """The most likely predictions for one input, with and without an ablation, side by side.

    Args:
        model: any hooked model; with text it needs a tokenizer.
        text: a text, its token ids, or what a tokenizer returns of it; the token after it is predicted. For a masked
            model, the one at its mask token; for an image model, an image or its pixels [channel height width].
        answer: a token (or a class) whose probability and rank are told: a text of one token, or its id.
        ablation: an `Ablation`, or anything with `hooks()`.
        top: how many predictions are shown of each side.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> heads = al.Ablation(["L0", "L1.H2"], torch.zeros(4, 4, 32), center="zero")
    >>> said = prompt(model, "return self.", ablation=heads)
    >>> list(said.frame.columns)
    ['id', 'rank_before', 'probability_before', 'rank_after', 'probability_after', 'change']
    >>> said.kl > 0
    True
    """
    top = whole(top, "top")
    if top < 1:
        raise MismatchError(f"top={top} predictions cannot be shown; ask for 1 or more.")
    batch, shown = _image(model, text) if task_of(model) == "image-classification" else _text(model, text)
    names = _Names(model)
    wanted = None if answer is None else names.id_of(answer)
    batch = batch.to(model.cfg.device)
    with torch.inference_mode():
        before = _probabilities(model, batch, None)
        after = None if ablation is None else _probabilities(model, batch, ablation)
    if wanted is not None and not 0 <= wanted < len(before):
        raise MismatchError(f"there is no class {wanted}: this model tells {len(before):,} apart, counted from 0.")
    tokens = tuple(batch.inputs[0].tolist()) if batch.inputs.ndim == 2 else None
    return PromptResult(shown, tokens, before, after, names, wanted, "" if ablation is None else repr(ablation), top)


def _probabilities(model: Any, batch: Batch, ablation: Hooks | None) -> Float[Tensor, " out"]:
    logits = logits_everywhere(model, batch, hooks_for(model, ablation)(batch, batch))[batch.scored][0]
    return logits.double().softmax(-1).cpu()


def _text(model: Any, text: Any) -> tuple[Batch, str]:
    tokenizer = tokenizer_of(model)
    ids = ids_of_text(model, text) if isinstance(text, str) else _ids(text)
    if not ids:
        raise MismatchError("the text is empty; give at least one token.")
    tokens = torch.tensor([ids])
    # The answer does not matter here: probabilities of all are shown.
    batch = Batch.prompts(tokens, [0], valid=torch.ones_like(tokens, dtype=torch.bool), model=model)
    require_readable(model, batch.inputs, batch.valid, batch.labels, batch.scored)
    shown = text if isinstance(text, str) else str(ids) if tokenizer is None else str(tokenizer.decode(ids))
    return batch, shown


def _ids(given: Any) -> list[int]:
    if isinstance(given, Mapping):
        batch = Batch.causal(given)
        if len(batch.inputs) > 1:
            raise MismatchError(f"a prompt is one text, got {len(batch.inputs)}; give one row of them.")
        return [int(token) for token in batch.inputs[0][batch.valid[0]]]
    plain = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(plain, list | tuple) and len(plain) == 1 and isinstance(plain[0], list | tuple):
        plain = plain[0]
    if not isinstance(plain, list | tuple) or not all(isinstance(each, int) for each in plain):
        raise MismatchError(f"a prompt is a text or the token ids of one, got {type(given).__name__}.")
    return list(plain)


def _image(model: Any, image: Any) -> tuple[Batch, str]:
    processor = getattr(model, "image_processor", None)
    if isinstance(image, Tensor):
        pixels = image
    elif processor is not None and hasattr(image, "convert"):
        pixels = torch.as_tensor(processor(image.convert("RGB"), return_tensors="pt")["pixel_values"])
    else:
        raise MismatchError(f"give an image, or its pixels [channel height width]; got {type(image).__name__}.")
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or len(pixels) != 1:
        raise MismatchError(f"one image has pixels [channel height width], got {tuple(pixels.shape)}.")
    plain = Batch.images(pixels, int(model.cfg.n_ctx))
    scored = torch.ones_like(plain.scored)
    require_readable(model, plain.inputs, plain.valid, plain.labels, plain.scored)
    return Batch(plain.inputs, plain.valid, plain.labels, scored), "an image"


class _Names:
    """What a model's classes are called: tokens, or labels."""

    def __init__(self, model: Any) -> None:
        self._labels = getattr(model, "id2label", None) if task_of(model) == "image-classification" else None
        self._model, self._tokenizer = model, tokenizer_of(model)

    def __call__(self, place: int) -> str:
        if self._labels is not None:
            return str(self._labels.get(place, place))
        return str(place) if self._tokenizer is None else str(self._tokenizer.decode([place]))

    def id_of(self, answer: str | int) -> int:
        if self._labels is not None and isinstance(answer, str):
            by_name = {str(label): int(place) for place, label in self._labels.items()}
            require_known(answer, list(by_name), "class")
            return by_name[answer]
        return id_of_answer(self._model, answer)


def _shown(text: str, length: int = 30) -> str:
    """In quotes, as spaces at the ends of tokens matter."""
    return shorten(repr(text), length)

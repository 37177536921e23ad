"""Resampling: what an ablated neuron is set to when the values of one random input take its place.

One fixed input per kind and seed; what the site holds at position p of it replaces position p of every other
input. The exact input is kept with the values.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ablation_lens.errors import FileFormatError, MismatchError, NonFiniteError
from ablation_lens.escaping import on_one_line, shorten
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.hooked import task_of
from ablation_lens.measure.forward import capture
from ablation_lens.measure.random_inputs import author_for, random_pixels, random_text
from ablation_lens.names import nearest
from ablation_lens.records import ModelRecord, Record, record_of, stated_record
from ablation_lens.sites import Site, neuron_name
from ablation_lens.tasks.plans import Batch

KIND = "resampled values"
"""What these files call themselves."""

KINDS = ("characters", "tokens", "generated", "pixels")
"""What an input is made of."""

METHODS = tuple(f"resample-{kind}" for kind in KINDS)
"""The kinds as methods of a study."""


@dataclass(frozen=True)
class ResampledHeader(Record):
    """What the file of a `Resampled` says of it."""

    kind: str
    seed: int
    text: str | None
    generator: str | None
    site: str
    model: ModelRecord | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}")
        Site(self.site)


@dataclass(frozen=True, eq=False)
class Resampled:
    """A random input, and what a model's neurons were at every position of it.

    Attributes:
        kind: one of `KINDS`.
        seed: what the input was drawn from.
        values: the site's activation at every position, on the CPU.
        inputs: the exact input, special tokens included: ids [1 pos], or prepared pixels [1 channel height width].
        text: the input as text, without special tokens; None for images and models without a tokenizer.
        generator: the model that generated the text; None for other kinds.
        site: where the values are from.
        model: the model they are from.
    """

    kind: str
    seed: int
    values: Float[Tensor, "layer pos head dim"]
    inputs: Tensor
    text: str | None
    generator: str | None
    site: Site = Site.Z
    model: ModelRecord | None = None

    @property
    def digest(self) -> str:
        """A digest of the exact input."""
        return digest_of(self.inputs)

    def extract(self, length: int = 60) -> str:
        """How the input begins, on one line of printable characters: the paper's Table 3."""
        if self.inputs.ndim == 4:
            _, channels, height, width = self.inputs.shape
            return f"{height} × {width} random pixels in {channels} channel{'s' if channels > 1 else ''}"
        shown = self.text if self.text is not None else " ".join(map(str, self.inputs[0].tolist()))
        return shorten(on_one_line(" ".join(shown.split())), length)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header = {
            "kind": self.kind,
            "seed": self.seed,
            "text": self.text,
            "generator": self.generator,
            "site": self.site.value,
            "model": None if self.model is None else self.model.to_dict(),
        }
        save_tensors(path, KIND, header, {"values": self.values, "inputs": self.inputs})

    @classmethod
    def load(cls, path: str | Path) -> "Resampled":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = ResampledHeader.from_dict(plain)
            if set(tensors) != {"values", "inputs"}:
                raise FileFormatError(f"it holds {', '.join(sorted(tensors))}, not values and inputs")
            require_input(tensors["inputs"])
            return cls(
                kind=header.kind,
                seed=header.seed,
                values=_require_values(tensors["values"], header),
                inputs=tensors["inputs"],
                text=header.text,
                generator=header.generator,
                site=Site(header.site),
                model=header.model,
            )
        except FileFormatError as error:
            raise FileFormatError(f"{path} is not a complete resampled input ({error}); resample again.") from error

    def __repr__(self) -> str:
        layers, positions, heads, dims = self.values.shape
        return (
            f"Resampled({self.kind}, seed {self.seed}: {layers} layers × {positions} positions × {heads} heads × "
            f"{dims} dims, {self.extract()!r})"
        )


def _require_values(values: Tensor, header: ResampledHeader) -> Float[Tensor, "layer pos head dim"]:
    if values.ndim != 4 or not values.numel() or not values.is_floating_point() or not bool(values.isfinite().all()):
        raise FileFormatError("its values are not finite numbers [layer pos head dim]")
    shape = (values.shape[0], *values.shape[2:])
    site = Site(header.site)
    if header.model is not None and not site.could_have(shape, header.model):
        raise FileFormatError(f"its values are of {shape} neurons, and its model has {site.shape(header.model)}")
    return values


def require_input(inputs: Tensor) -> None:
    """Raise unless a tensor out of a file can be one input of a model: token ids [1 pos], or pixels.

    >>> require_input(torch.tensor([[2, 7, 9]]))
    >>> require_input(torch.tensor([2.5]))
    Traceback (most recent call last):
    ablation_lens.errors.FileFormatError: its input is neither token ids [1 pos] nor pixels [1 channel height width]
    """
    if inputs.ndim not in (2, 4) or len(inputs) != 1 or not inputs.numel():
        raise FileFormatError("its input is neither token ids [1 pos] nor pixels [1 channel height width]")
    ids = inputs.dtype in (torch.int64, torch.int32)
    if ids != (inputs.ndim == 2) or not bool(inputs.isfinite().all()) or (ids and bool((inputs < 0).any())):
        raise FileFormatError("its input has other numbers than token ids or pixels have")


def digest_of(inputs: Tensor) -> str:
    """A digest of an exact input.

    >>> digest_of(torch.tensor([[2, 7, 9]])) == digest_of(torch.tensor([[2, 7, 8]]))
    False
    """
    inputs = inputs.contiguous()
    # Shape and dtype, too: the same bytes may be other numbers.
    content = f"{tuple(inputs.shape)} {inputs.dtype} ".encode() + inputs.view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def methods_for(model: Any) -> tuple[str, ...]:
    """The methods that a model's inputs allow.

    >>> from ablation_lens import load_model
    >>> methods_for(load_model("tiny-vit"))
    ('resample-pixels',)
    """
    # "pixels" is the last of KINDS.
    return METHODS[3:] if task_of(model) == "image-classification" else METHODS[:3]


# Not inference mode: its tensors take no part in gradients, and circuits differentiate through ablations.
@torch.no_grad()
def resample(
    model: Any,
    kind: str,
    *,
    seed: int,
    positions: int | None = None,
    site: Site | str = Site.Z,
    generator: Any = None,
) -> Resampled:
    """Draw a random input and gather what the neurons of a site are at every position of it.

    Args:
        model: any hooked model; all kinds but "tokens" and "generated" need its tokenizer or image processor.
        kind: "characters" (letters and digits), "tokens" (ids, never special ones), "generated" (text that a
            causal model goes on with from one random token) or "pixels".
        seed: draws the input; the global random states are neither read nor changed.
        positions: how long the input is, special tokens included; None takes the context that documents are
            truncated to (causal models 1000, masked ones 512, or the model's own limit).
        site: which neurons.
        generator: the causal model that generates text. None takes `model` itself, which a masked model cannot do.

    >>> from ablation_lens import load_model
    >>> resampled = resample(load_model("tiny-opt"), "characters", seed=42, positions=100)
    >>> tuple(resampled.values.shape), resampled.inputs[0, :3].tolist(), resampled.extract(20)
    ((4, 100, 4, 32), [2, 23, 93], '3yRaStQaaHoJYxZI0aU…')
    """
    _require(model, kind, seed)
    # Not the bare seed, or two kinds would begin alike.
    draw = random.Random(f"{kind} {seed}")
    text = author = None
    if kind == "pixels":
        inputs = random_pixels(model, draw, positions)
    else:
        author = author_for(model, generator) if kind == "generated" else None
        inputs, text = random_text(model, kind, draw, positions, author)
    return Resampled(
        kind=kind,
        seed=seed,
        values=values_of(model, inputs, site),
        inputs=inputs,
        text=text,
        generator=None if author is None else stated_record(author).name,
        site=Site.of(site),
        model=record_of(model),
    )


def _require(model: Any, kind: str, seed: int) -> None:
    if kind not in KINDS:
        close = nearest(str(kind).removeprefix("resample-"), KINDS)
        raise MismatchError(f"{kind!r} is not a kind of resampling; the nearest is {close!r} of {', '.join(KINDS)}.")
    applicable = [method.removeprefix("resample-") for method in methods_for(model)]
    if kind not in applicable:
        raise MismatchError(
            f"{kind!r} does not apply to {stated_record(model).name}, a model for {task_of(model)}; use "
            f"{' or '.join(applicable)}."
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MismatchError(f"seed={seed!r}; expected a whole number.")


@torch.no_grad()
def values_of(model: Any, inputs: Tensor, site: Site | str = Site.Z) -> Float[Tensor, "layer pos head dim"]:
    """What the neurons of a site are at every position of one input: ids [1 pos], or pixels [1 c h w].

    >>> from ablation_lens import load_model
    >>> tuple(values_of(load_model("tiny-opt"), torch.tensor([[2, 7, 9]])).shape)
    (4, 3, 4, 32)
    """
    # Also for masked models: only the inputs are read, nothing is scored.
    batch = Batch.images(inputs, int(model.cfg.n_ctx)) if inputs.ndim == 4 else Batch.causal(inputs)
    captured = capture(model, batch.to(model.cfg.device), site)
    values = torch.stack([captured[layer][0].cpu() for layer in range(len(captured))])
    values = values if values.dtype == torch.float64 else values.float()
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        layer, position, head, dim = bad[0].tolist()
        raise NonFiniteError(
            f"{neuron_name(layer, head, dim, site)} is {values[layer, position, head, dim].item()} at position "
            f"{position} of the random input; load the model in another dtype, or use another seed."
        )
    return values

"""`Ablation`: which neurons are set to what, and the TransformerLens hooks that do it."""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ablation_lens.ablation.baking import bake
from ablation_lens.ablation.masks import as_mask
from ablation_lens.errors import FileFormatError, MismatchError, NonFiniteError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.hooked import CachedPositions, require_site
from ablation_lens.records import ModelRecord, Record, record_of, stated_record
from ablation_lens.sites import Hook, Site, neuron_name

KIND, VERSION = "ablation", 2
"""What these files call themselves, and their format: the second says more of the model."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Weak, so that no model stays in memory because it was warned about.
_warned: "weakref.WeakKeyDictionary[Any, set[str]]" = weakref.WeakKeyDictionary()
"""What was said about which model: once is enough."""


@dataclass(frozen=True)
class AblationHeader(Record):
    """What a file says of an ablation beside its tensors."""

    source: ModelRecord | None
    site: str
    positions: tuple[int, ...] | None
    center: str | None


# eq=False: `==` of two tensors is a tensor, and has no single truth value.
@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """Neurons, and the values they are set to.

    Attributes:
        mask: which neurons are ablated; names such as `["L3.H5", "L2.H1.D3"]` become one.
        values: what they are set to: one value per neuron, or one per neuron and position.
        source: the model the values belong to; other models are then refused.
        site: where the neurons are; its name will do.
        positions: ablate at these positions only, counted from 0; None for all.
        center: what the values are called, for people.

    >>> ablation = Ablation(torch.tensor([[[True, False]]]), torch.zeros(1, 1, 2), center="zero")
    >>> ablation
    Ablation(1 of 2 neurons in 1 layer → zero)
    >>> name, hook = ablation.hooks()[0]
    >>> name, hook(torch.ones(1, 3, 1, 2), hook=None)[0, :, 0].tolist()
    ('blocks.0.attn.hook_z', [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    """

    mask: Bool[Tensor, "layer head dim"]
    values: Float[Tensor, "layer head dim"] | Float[Tensor, "layer pos head dim"]
    source: ModelRecord | None = None
    _: KW_ONLY
    site: Site = Site.Z
    positions: tuple[int, ...] | None = None
    center: str | None = None

    def __post_init__(self) -> None:
        values = self.values
        # A frozen dataclass refuses plain assignments.
        object.__setattr__(self, "site", Site.of(self.site))
        # Without the position axis, which is the second.
        per_neuron = values.shape if values.ndim == 3 else (*values.shape[:1], *values.shape[2:])
        mask = as_mask(self.mask, per_neuron, site=self.site)
        object.__setattr__(self, "mask", mask)
        if values.ndim not in (3, 4) or tuple(per_neuron) != tuple(mask.shape):
            raise MismatchError(
                f"values of shape {tuple(values.shape)} do not fit a mask of shape {tuple(mask.shape)}; expected "
                "[layer head dim] or [layer pos head dim]."
            )
        if values.dtype not in _FLOATS:
            raise MismatchError(f"values must be floating-point numbers of 16, 32 or 64 bits, got {values.dtype}.")
        if not bool(torch.isfinite(values).all()):
            layer, *_, head, dim = (~torch.isfinite(values)).nonzero()[0].tolist()
            raise NonFiniteError(
                f"the value of {neuron_name(layer, head, dim, self.site)} is not finite; an ablated neuron needs "
                "a number."
            )
        if self.positions is not None:
            # Sorted and without repeats, as `repr` counts them.
            object.__setattr__(self, "positions", tuple(sorted({int(place) for place in self.positions})))
            if not self.positions or self.positions[0] < 0 or self.positions[-1] >= 2**31:
                raise MismatchError(f"positions={self.positions} is not possible; count from 0, and name at least one.")

    @property
    def depends_on_position(self) -> bool:
        """Whether what happens to a neuron differs between positions."""
        return self.values.ndim == 4 or self.positions is not None

    def hooks(self, offset: int | None = None, *, model: Any = None) -> list[Hook]:
        """Plain TransformerLens `(name, function)` pairs, for the layers with an ablated neuron.

        Args:
            offset: the position of the first token, where a key-value cache holds what came before. Needed only for
                ablations that depend on the position; without it several tokens are a text from its beginning, and
                a single one is refused. `applied_to` finds it by itself.
            model: the model that the hooks are for, whose shape and weights are then checked. Hooks alone do not know
                the model they end up in.
        """
        if model is not None:
            self.require_fits(model)
        return [(self.site.hook_name(layer), _Replace(self, layer, lambda: offset)) for layer in self._layers()]

    def _layers(self) -> list[int]:
        found: list[int] = self.mask.flatten(1).any(1).nonzero().flatten().tolist()
        return found

    def applied_to(self, model: Any) -> AbstractContextManager[Any]:
        """The model with this ablation in place, also under cached generation; nests, and always cleans up.

        >>> import ablation_lens as al
        >>> model = al.load_model("tiny-opt")
        >>> ablation = Ablation(al.random_neurons(al.Site.Z.shape(model.cfg), 1.0, seed=0), torch.zeros(4, 4, 32))
        >>> tokens = torch.tensor([[2, 7, 9]])
        >>> before = model(tokens)
        >>> with ablation.applied_to(model):
        ...     changed = bool((model(tokens) != before).any())
        >>> changed, torch.equal(model(tokens), before)
        (True, True)
        """
        # Here and not in the generator, which runs only at `with`: errors and warnings belong to this call.
        self.require_fits(model)
        return self._in_place(model)

    @contextmanager
    def _in_place(self, model: Any) -> Iterator[Any]:
        with ExitStack() as leaving:
            hooks = self.hooks()
            if self.depends_on_position:
                # One per block: while the model runs, the caches of earlier blocks hold the new positions already.
                caches = {layer: CachedPositions(layer) for layer in self._layers()}
                for layer, cached in caches.items():
                    handle = model.blocks[layer].register_forward_pre_hook(cached, with_kwargs=True)
                    # At once: if anything below fails, the handles made so far are removed.
                    leaving.callback(handle.remove)
                hooks = [(self.site.hook_name(layer), _Replace(self, layer, c.count)) for layer, c in caches.items()]
            leaving.enter_context(model.hooks(fwd_hooks=hooks))
            yield model

    def require_fits(self, model: Any) -> None:
        """Raise `MismatchError` unless the ablation's shape, and its source where known, are the model's."""
        require_site(model, self.site, replaced=True)
        expected = self.site.shape(model.cfg)
        if tuple(self.mask.shape) != expected:
            raise MismatchError(
                f"this ablation is for {self.site.value} neurons of shape {tuple(self.mask.shape)}, the model has "
                f"{expected} (layer, head, dim)."
            )
        if self.source is not None:
            model_record = record_of(model)
            self.source.require_same(model_record, "this ablation's values are another model's")
            if model_record.checksum and not (self.source.checksum or self.source.weights):
                _warn_once(
                    model,
                    "these values were saved by an earlier version, which noted of a model of your own only the name: "
                    "whether they are this model's cannot be told. Collect them again to have it checked.",
                )
        if stated_record(model).processing.startswith("unknown") and self._is_zero():
            _warn_once(
                model,
                "it is not known how this model's weights were processed: where value biases were folded (as "
                "transformer-lens does by default) hook_z is shifted, and zero is not the model's own zero. "
                "ablation_lens.load_model leaves weights as they are.",
            )

    def _is_zero(self) -> bool:
        by_position = self.values if self.values.ndim == 4 else self.values[:, None]
        # Both as [layer pos head dim], the positions of the mask to be broadcast.
        chosen = self.mask[:, None].to(self.values.device)
        return bool(chosen.any()) and not bool((chosen & (by_position != 0)).any())

    def bake(self, model: Any) -> Any:
        """An equivalent model without hooks: the values are folded into new output weights and biases.

        Every other tensor is shared with `model`, which stays as it is. Hooks that are on `model` stay there.

        >>> import ablation_lens as al
        >>> model = al.load_model("tiny-opt")
        >>> ablation = Ablation(al.random_neurons(al.Site.Z.shape(model.cfg), 0.5, seed=0), torch.ones(4, 4, 32))
        >>> tokens = torch.tensor([[2, 7, 9]])
        >>> hooked = model.run_with_hooks(tokens, fwd_hooks=ablation.hooks())
        >>> torch.allclose(ablation.bake(model)(tokens), hooked, atol=1e-4)
        True
        """
        self.require_fits(model)
        if self.depends_on_position:
            raise MismatchError(
                "values that depend on the position cannot be baked into weights, which are the same at every "
                "position; use applied_to(model)."
            )
        return bake(model, self.site, self.mask, self.values)

    def at(self, *positions: int) -> "Ablation":
        """The same ablation at some positions only."""
        return replace(self, positions=positions)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header = AblationHeader(self.source, self.site.value, self.positions, self.center)
        save_tensors(path, KIND, header.to_dict(), {"mask": self.mask, "values": self.values}, version=VERSION)

    @classmethod
    def load(cls, path: str | Path) -> "Ablation":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND, newest=VERSION)
        try:
            header = AblationHeader.from_dict(plain)
            return cls(
                tensors["mask"],
                tensors["values"],
                header.source,
                site=Site(header.site),
                positions=header.positions,
                center=header.center,
            )
        # What the constructor refuses is a fault of the file here, not of the caller.
        except (FileFormatError, KeyError, ValueError, MismatchError, NonFiniteError) as error:
            raise FileFormatError(f"{path} is not a complete ablation ({error}); make it again.") from error

    def __repr__(self) -> str:
        chosen, layers = int(self.mask.sum()), int(self.mask.flatten(1).any(1).sum())
        what = self.center or ("values by position" if self.values.ndim == 4 else "given values")
        where = "" if self.positions is None else f" at {len(self.positions)} positions"
        return (
            f"Ablation({chosen:,} of {self.mask.numel():,} neurons".replace(",", " ")
            + f" in {layers} layer{'' if layers == 1 else 's'} → {what}{where})"
        )


def _warn_once(model: Any, text: str) -> None:
    said = _warned.setdefault(model, set())
    if text not in said:
        said.add(text)
        # The line that called `applied_to`, `bake`, `hooks` or `evaluate`, which asked `require_fits`: the user's own.
        warnings.warn(text, stacklevel=4)


class _Replace:
    """The hook of one layer: one `torch.where`, on whatever device and in whatever dtype the activation is."""

    def __init__(self, ablation: Ablation, layer: int, offset: Callable[[], int | None]) -> None:
        self.ablation, self.layer, self.offset = ablation, layer, offset
        self.ready: tuple[Any, Tensor, Tensor] | None = None

    def __call__(self, value: Tensor, hook: Any) -> Tensor:
        site = self.ablation.site
        heads = site.to_heads(value)
        mask, replacement = self._on(heads)  # [head dim], and [head dim] or [pos head dim]
        if self.ablation.depends_on_position:
            places = self._places(value.shape[1])
            if replacement.ndim == 3:
                replacement = replacement[places]
            if self.ablation.positions is not None:
                here = torch.arange(places.start, places.stop, device=mask.device)
                chosen = torch.isin(here, torch.tensor(self.ablation.positions, device=mask.device))
                mask = mask & chosen[:, None, None]
        # Not in place: a cache may hold the activation. Not by arithmetic with the mask: 0 times NaN is NaN.
        return site.from_heads(torch.where(mask, replacement, heads))

    def _on(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and values like the activation, kept for the batches to come."""
        # Both may change between calls: one ablation serves models of several dtypes.
        key = (value.device, value.dtype)
        if self.ready is None or self.ready[0] != key:
            mask = self.ablation.mask[self.layer].to(value.device)
            self.ready = (key, mask, self.ablation.values[self.layer].to(value))
        return self.ready[1], self.ready[2]

    def _places(self, length: int) -> slice:
        offset = self.offset()
        # Several positions without an offset are taken for a text from its start. A single one may as well be
        # the next token of a text in a cache.
        if offset is None and length == 1:
            raise MismatchError(
                "this ablation depends on the position, and a single token came in, as happens with a key-value cache: "
                "which position it has cannot be told. Use applied_to(model), or hooks(offset=…)."
            )
        end = (offset or 0) + length
        if self.ablation.values.ndim == 4 and end > self.ablation.values.shape[1]:
            raise MismatchError(
                f"there are values for {self.ablation.values.shape[1]} positions, and the input reaches {end}; "
                "shorten it, or make the values from a longer one."
            )
        return slice(end - length, end)

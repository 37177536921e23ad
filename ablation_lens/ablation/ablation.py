"""`Ablation`: which neurons are set to what, and the hooks that do it; `Ablations`: several of them."""

import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ablation_lens.ablation.baking import bake
from ablation_lens.ablation.masks import as_mask, named_neurons
from ablation_lens.ablation.places import (
    Positions,
    by_row,
    count_from_end,
    describe_positions,
    find,
    move_columns,
    read_positions,
    values_at,
)
from ablation_lens.errors import FileFormatError, MismatchError, NonFiniteError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.hooked import Columns, is_unhooked, shape_at, watch_columns
from ablation_lens.records import ModelRecord, Record, record_of, stated_record
from ablation_lens.sites import Hook, Site, neuron_name
from ablation_lens.unhooked import Readers, find_readers, watch_call
from ablation_lens.weights import weights_digest

KIND, SEVERAL, VERSION = "ablation", "ablations", 4
"""What these files call themselves, and their format: the second says more of the model, the third of positions. The
fourth is of a site that is one hook; everything else is written as the third."""

PreHook = tuple[nn.Module, Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]]
"""A module, and what its `register_forward_pre_hook` takes."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Weak, so that no model stays in memory because it was warned about.
_warned: "weakref.WeakKeyDictionary[Any, set[str]]" = weakref.WeakKeyDictionary()
"""What was said about which model: once is enough."""


class Provider(Protocol):
    """Values that depend on the input: whoever runs a model asks for them, batch by batch.

    Counterfactual inputs and means by position are such values. `[layer pos head dim]` counts real tokens, wherever a
    row's padding is; `[layer batch pos head dim]` is in the columns of the batch, padding included.

    >>> def half_of_what_is_there(model, batch, site):
    ...     from ablation_lens.measure.forward import capture
    ...     return torch.stack([values / 2 for values in capture(model, batch, site).values()])
    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> ablation = Ablation(al.named_neurons("L1", (4, 4, 32)), half_of_what_is_there)
    >>> tuple(ablation.resolve(model, al.Batch.causal(torch.tensor([[2, 7, 9]]))).values.shape)
    (4, 1, 3, 4, 32)
    """

    def __call__(self, model: Any, batch: Any, site: Site, /) -> Tensor:
        """One value per neuron, per `[layer pos head dim]`, or per `[layer batch pos head dim]`."""
        ...


class _Batch(Protocol):
    """What is asked of a batch: which columns of it are real."""

    @property
    def valid(self) -> Bool[Tensor, "batch pos"]: ...


@dataclass(frozen=True)
class AblationHeader(Record):
    """What a file says of an ablation beside its tensors."""

    source: ModelRecord | None
    site: str
    positions: tuple[int, ...] | None
    center: str | None
    span: tuple[int | None, int | None, int | None] | None = None
    """A slice of positions: start, stop, step."""


# eq=False: `==` of two tensors is a tensor, and has no single truth value.
@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """Neurons, and the values they are set to. `ablation | other` is both, and `at` says where.

    Attributes:
        mask: which neurons are ablated; names such as `["L3.H5", "L2.H1.D3"]` become one.
        values: what they are set to: one number, one value per neuron, per neuron and position, or also per row of a
            batch (with a single column: the same at every position of the row); or a function that is asked for every
            batch (`Provider`).
        source: the model the values belong to; other models are then refused.
        site: where the neurons are; its name will do.
        positions: ablate at these positions only; None for all. What `at` takes.
        center: what the values are called, for people.

    >>> ablation = Ablation(torch.tensor([[[True, False]]]), torch.zeros(1, 1, 2), center="zero")
    >>> ablation
    Ablation(1 of 2 neurons in 1 layer → zero)
    >>> name, hook = ablation.hooks()[0]
    >>> name, hook(torch.ones(1, 3, 1, 2), hook=None)[0, :, 0].tolist()
    ('blocks.0.attn.hook_z', [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    """

    mask: Bool[Tensor, "layer head dim"]
    values: Float[Tensor, "layer *batch_and_pos head dim"] | Provider
    source: ModelRecord | None = None
    _: KW_ONLY
    site: Site = Site.Z
    positions: Positions | None = None
    center: str | None = None

    def __post_init__(self) -> None:
        # A frozen dataclass refuses plain assignments.
        object.__setattr__(self, "site", Site.of(self.site))
        object.__setattr__(self, "positions", read_positions(self.positions))
        object.__setattr__(self, "values", _read_values(self.values))
        # Names need the shape of the values, and a single value that of the mask.
        shape = _per_neuron(self.values.shape) if isinstance(self.values, Tensor) else ()
        named = not isinstance(self.mask, Tensor) and getattr(getattr(self.mask, "dtype", None), "kind", "O") in "OUS"
        if not shape and named:
            raise MismatchError(
                "names alone do not say how many neurons there are; use "
                "al.Ablation.from_names(names, values, model=model), or al.named_neurons(names, shape)."
            )
        object.__setattr__(self, "mask", as_mask(self.mask, shape, site=self.site))
        if isinstance(self.values, float):
            object.__setattr__(self, "values", torch.full(self.mask.shape, self.values))
        if isinstance(self.values, Tensor):
            self._require_possible(self.values)
        elif not callable(self.values):
            raise MismatchError(
                f"values are a {type(self.values).__name__}; expected a number, a tensor [layer head dim] or a "
                "function of (model, batch, site); centers such as 'mean' come by stats.ablation(names, 'mean')."
            )

    def _require_possible(self, values: Tensor) -> None:
        if values.ndim not in (3, 4, 5) or _per_neuron(values.shape) != tuple(self.mask.shape):
            raise MismatchError(
                f"values of shape {tuple(values.shape)} do not fit a mask of shape {tuple(self.mask.shape)}; expected "
                "[layer head dim], [layer pos head dim] or [layer batch pos head dim]."
            )
        if values.dtype not in _FLOATS:
            raise MismatchError(f"values must be floating-point numbers of 16, 32 or 64 bits, got {values.dtype}.")
        if not bool(torch.isfinite(values).all()):
            layer, *_, head, dim = (~torch.isfinite(values)).nonzero()[0].tolist()
            raise NonFiniteError(
                f"the value of {neuron_name(layer, head, dim, self.site)} is not finite; an ablated neuron needs "
                "a number."
            )

    @classmethod
    def from_names(
        cls,
        names: str | Iterable[str | tuple[int, ...]],
        values: "float | Tensor | Provider" = 0.0,
        *,
        model: Any,
        site: Site | str = Site.Z,
        positions: Any = None,
        center: str | None = None,
    ) -> "Ablation":
        """Set the named neurons, heads and layers of a model to values of your own.

        To a center of their distribution: `stats.ablation(["L3.H1", "L2.H0.D5"], "peak")`.

        >>> import ablation_lens as al
        >>> al.Ablation.from_names(["L3.H1", "L2.H0.D5"], 0.0, model=al.load_model("tiny-opt"))
        Ablation(33 of 512 neurons in 2 layers → 0)
        """
        where = Site.of(site)
        shape = find_readers(model, where).shape if is_unhooked(model) else shape_at(model, where)
        mask = named_neurons(names, shape, site=where)
        number = _read_values(values)
        if center is None and isinstance(number, float):
            center = f"{number:g}"
        return cls(mask, values, site=where, positions=positions, center=center)  # type: ignore[arg-type]

    @property
    def depends_on_position(self) -> bool:
        """Whether what happens to a neuron differs between positions."""
        return self.positions is not None or not isinstance(self.values, Tensor) or self.values.ndim > 3

    @property
    def depends_on_batch(self) -> bool:
        """Whether it is made for one batch, or has to be asked for every one: then it has no file, and is not baked."""
        per_batch = callable(self.positions) or isinstance(self.positions, Tensor)
        return per_batch or not isinstance(self.values, Tensor) or self.values.ndim == 5

    @property
    def for_rows(self) -> int | None:
        """Of how many rows the batch is that it was made for; None where it serves any batch."""
        if isinstance(self.positions, Tensor):
            return len(self.positions)
        return self.values.shape[1] if isinstance(self.values, Tensor) and self.values.ndim == 5 else None

    def resolve(self, model: Any, batch: "_Batch", *, run_as: "_Batch | None" = None) -> "Ablation":
        """This ablation for one batch, in plain tensors; itself where nothing depends on the batch.

        `al.evaluate` asks for that. Positions and values by position count the real tokens of every row; what is given
        row by row, `[batch pos]` or `[layer batch pos head dim]`, is in the columns of the batch.

        Args:
            model: what functions of the batch are asked with.
            batch: the batch as it was given.
            run_as: the same batch as the model will see it, where its texts were moved within their rows.

        >>> import ablation_lens as al
        >>> model, batch = al.load_model("tiny-opt"), al.Batch.causal(torch.tensor([[2, 7, 9], [2, 5, 8]]))
        >>> last = Ablation.from_names("L1.H0", model=model).at(-1).resolve(model, batch)
        >>> with last.applied_to(model):
        ...     logits = model(batch.inputs)
        """
        given, seen = _valid(batch), _valid(batch if run_as is None else run_as)
        if not self.depends_on_batch and _serves(self, seen):
            return self
        if given.shape != seen.shape or not torch.equal(given.sum(1), seen.sum(1)):
            raise MismatchError("run_as holds other texts than the batch; give batch.from_start(), or leave it out.")
        values, positions = self.values, self.positions
        if callable(positions):
            positions = read_positions(by_row(positions(batch), given))
            if callable(positions):
                raise MismatchError("positions are a function of the batch that gives a function; expected positions.")
        if not isinstance(values, Tensor):
            values = self._used(_read_values(values(model, batch, self.site)), given)
        plainly = Ablation(self.mask, values, self.source, site=self.site, positions=positions, center=self.center)
        plainly = plainly._moved(given, seen)
        return plainly if _serves(plainly, seen) else _ForBatch(**vars(plainly), real=seen)

    def _used(self, values: Any, valid: Bool[Tensor, "batch pos"]) -> Tensor:
        """What a provider gave, without what is never used: of padding, and of neurons that stay."""
        if not isinstance(values, Tensor):
            raise MismatchError(f"values(model, batch, site) gave a {type(values).__name__}; expected a tensor.")
        if values.ndim not in (3, 4, 5) or _per_neuron(values.shape) != tuple(self.mask.shape):
            return values  # which the constructor refuses
        used = self.mask.to(values.device).view(len(self.mask), *[1] * (values.ndim - 3), *self.mask.shape[1:])
        if values.ndim == 5 and values.shape[1:3] == valid.shape:
            used = used & valid.to(values.device)[None, :, :, None, None]
        elif values.ndim == 4:
            reached = torch.arange(values.shape[1], device=values.device) < int(valid.sum(1).max())
            used = used & reached[:, None, None]
        # Not only left unchecked: NaN at padding would reach real tokens through attention, as 0 times NaN is NaN.
        return values.masked_fill(~used & ~torch.isfinite(values), 0)

    def _moved(self, given: Bool[Tensor, "batch pos"], seen: Bool[Tensor, "batch pos"]) -> "Ablation":
        """Marks and values of rows, from the columns of a batch to those that its texts were moved to."""
        if self.for_rows is None:
            return self
        marks, values = self.positions, self.values
        shapes = [tuple(marks.shape)] if isinstance(marks, Tensor) else []
        # One column of values serves every position of its row, wherever that was moved.
        in_columns = isinstance(values, Tensor) and values.ndim == 5 and values.shape[2] != 1
        if isinstance(values, Tensor) and in_columns:
            shapes.append(tuple(values.shape[1:3]))
        for shape in shapes:
            if shape != tuple(given.shape):
                raise MismatchError(
                    f"this ablation is for the {shape[0]} rows of one batch, with {shape[1]} columns, and there are "
                    f"{given.shape[0]}, with {given.shape[1]}; give a function of the batch instead."
                )
        if torch.equal(given, seen):
            return self
        if isinstance(marks, Tensor):
            marks = move_columns(marks, given, seen)
        if isinstance(values, Tensor) and in_columns:
            values = torch.stack([move_columns(layer, given, seen) for layer in values])
        return replace(self, positions=marks, values=values)

    def hooks(self, offset: int | None = None, *, model: Any = None) -> list[Hook]:
        """Plain TransformerLens `(name, function)` pairs, for the layers with an ablated neuron.

        Hooks see no attention mask: positions are columns here. `applied_to` and `resolve` count real tokens.

        Args:
            offset: the position of the first token, where a key-value cache holds what came before. Needed only for
                ablations that depend on the position; without it several tokens are a text from its beginning, and
                a single one is refused. `applied_to` finds it by itself.
            model: the model that the hooks are for, whose shape and weights are then checked. Hooks alone do not know
                the model they end up in.
        """
        if model is not None:
            self.require_fits(model)
        self._require_tensors("hooks()")
        return self._hooks({layer: lambda count: _columns(offset, count) for layer in self._layers()})

    def pre_hooks(self, hf_model: Any, offset: int | None = None) -> list[PreHook]:
        """`(module, function)` pairs for a plain Hugging Face model: `module.register_forward_pre_hook(function)`.

        They do what `hooks()` does in TransformerLens. z is the input of every attention's output projection, an MLP's
        neurons are the input of its down projection. Such modules are found in models of one stack of blocks as
        transformers has them (OPT, GPT-2, GPT-Neo, GPT-J, GPT-NeoX, Llama, Mistral, Qwen, Gemma, Phi, BERT, RoBERTa,
        ViT, …); what is not found, or not surely, is refused, and so are other sites.

        Values of a `source` need a model of the same class with the same weights, by the digest that is in the source:
        over samples of every tensor, where the hooks of a hooked model compare every bit. Without a source, the shape
        is compared.

        Args:
            hf_model: the model as transformers loads it.
            offset: the position of the first column, for an ablation that depends on the position: 0 for texts that
                begin in the first column. Needed, as these hooks see neither padding nor cache; `applied_to(hf_model)`
                sees both, and `resolve(model, batch)` knows them.

        >>> import transformers
        >>> config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=12, n_layer=2, n_head=3)
        >>> hf_model = transformers.GPT2LMHeadModel(config)
        >>> ablation = Ablation.from_names("L1.H0", 0.0, model=hf_model)
        >>> handles = [module.register_forward_pre_hook(function) for module, function in ablation.pre_hooks(hf_model)]
        >>> logits = hf_model(torch.tensor([[2, 7, 9]])).logits
        >>> for handle in handles:
        ...     handle.remove()
        """
        readers = self._readers(hf_model)
        self._require_tensors("pre_hooks(hf_model)")
        if self.depends_on_position and offset is None:
            raise MismatchError(
                "this ablation depends on the position, and hooks of a plain model see neither padding nor cache; use "
                "applied_to(hf_model), or pre_hooks(hf_model, offset=0) for texts that begin in the first column."
            )
        columns = dict.fromkeys(self._layers(), lambda count: _columns(offset, count))
        return self._pre_hooks(readers, columns, lambda: None)

    def _pre_hooks(
        self, readers: Readers, columns: "Mapping[int, Callable[[int], Columns]]", width: Callable[[], int | None]
    ) -> list[PreHook]:
        return [
            (readers.modules[layer], _ReplaceInput(_Replace(self, layer, count), width))
            for layer, count in columns.items()
        ]

    def _readers(self, hf_model: Any) -> Readers:
        """The modules that read these neurons in a plain model; `MismatchError` unless it is the values' own."""
        if not is_unhooked(hf_model):
            raise MismatchError(
                f"got a {type(hf_model).__name__}; expected a model of transformers that nobody hooked. "
                "hooks() and applied_to(model) are for hooked ones."
            )
        readers = find_readers(hf_model, self.site)
        self._require_shape(readers.shape)
        if self.source is not None:
            _require_weights(self.source, hf_model)
        return readers

    def _hooks(self, columns: "Mapping[int, Callable[[int], Columns]]") -> list[Hook]:
        return [(self.site.hook_name(layer), _Replace(self, layer, count)) for layer, count in columns.items()]

    def _require_tensors(self, what: str) -> None:
        if callable(self.positions) or not isinstance(self.values, Tensor):
            raise MismatchError(
                f"{what} is not possible with values or positions that are asked for every batch; al.evaluate does so, "
                "and resolve(model, batch) gives them for one."
            )

    def _layers(self) -> list[int]:
        found: list[int] = self.mask.flatten(1).any(1).nonzero().flatten().tolist()
        return found

    def applied_to(self, model: Any) -> AbstractContextManager[Any]:
        """The model with this ablation in place, also under cached generation; nests, and always cleans up.

        Positions count real tokens where the model is given an attention mask, or makes one for left padding, and
        columns otherwise; a boolean `[batch pos]` is always in columns. A plain Hugging Face model will do as well: see
        `pre_hooks`, which says what is compared with `source`.

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
        if is_unhooked(model):
            readers = self._readers(model)
            self._require_tensors("applied_to(model)")
            return self._in_place_unhooked(model, readers)
        self.require_fits(model)
        self._require_tensors("applied_to(model)")
        return self._in_place(model)

    @contextmanager
    def _in_place(self, model: Any) -> Iterator[Any]:
        with ExitStack() as leaving:
            hooks = leaving.enter_context(self._hooks_in(model))
            leaving.enter_context(model.hooks(fwd_hooks=hooks))
            yield model

    @contextmanager
    def _in_place_unhooked(self, model: Any, readers: Readers) -> Iterator[Any]:
        with ExitStack() as leaving:
            known, layers = self._known_columns, self._layers()
            watching = watch_call(readers, layers, positions=self.depends_on_position and known is None)
            call = leaving.enter_context(watching)
            columns = dict.fromkeys(layers, known or call.columns)
            for module, function in self._pre_hooks(readers, columns, lambda: call.count):
                leaving.callback(module.register_forward_pre_hook(function).remove)
            yield model

    @property
    def _known_columns(self) -> Callable[[int], Columns] | None:
        """What says which columns an activation has, where that is known before a model runs."""
        return None

    @contextmanager
    def _hooks_in(self, model: Any) -> Iterator[list[Hook]]:
        """Hooks that know the columns of what the model is given."""
        if not self.depends_on_position:
            yield self.hooks()
            return
        if not self.site.is_one_hook:
            with watch_columns(model, self._layers()) as columns:
                yield self._hooks(columns)
            return
        block = self.site.block
        if block is None:
            raise MismatchError(
                f"{self.site.value} is not in a block, and only blocks know which position a column is; use "
                "resolve(model, batch), or hooks(), which counts columns."
            )
        with watch_columns(model, [block]) as columns:
            yield self._hooks(dict.fromkeys(self._layers(), columns[block]))

    def require_fits(self, model: Any) -> None:
        """Raise `MismatchError` unless the ablation's shape, and its source where known, are the model's."""
        self._require_shape(shape_at(model, self.site, replaced=True))
        if self.source is not None:
            model_record = record_of(model)
            self.source.require_same(model_record, "this ablation's values are another model's")
            if model_record.checksum and not (self.source.checksum or self.source.weights):
                _warn_once(
                    model,
                    "these values were saved by an earlier version, which noted of a model of your own only the name: "
                    "whether they are this model's cannot be told. Collect them again to have it checked.",
                )
        shifted = self.site.has_heads or not self.site.is_one_hook  # latents of an autoencoder, for one, are not
        if shifted and stated_record(model).processing.startswith("unknown") and self._is_zero():
            _warn_once(
                model,
                "it is not known how this model's weights were processed: where value biases were folded (as "
                "transformer-lens does by default) hook_z is shifted, and zero is not the model's own zero. "
                "ablation_lens.load_model leaves weights as they are.",
            )

    def _require_shape(self, expected: tuple[int, int, int]) -> None:
        if tuple(self.mask.shape) != expected:
            raise MismatchError(
                f"this ablation is for {self.site.value} neurons of shape {tuple(self.mask.shape)}, the model has "
                f"{expected} (layer, head, dim)."
            )

    def _is_zero(self) -> bool:
        if not isinstance(self.values, Tensor):
            return False
        # Masks of layers, with an axis for every one that the values have besides: rows and positions.
        between = [1] * (self.values.ndim - 3)
        chosen = self.mask.view(len(self.mask), *between, *self.mask.shape[1:]).to(self.values.device)
        return bool(chosen.any()) and not bool((chosen & (self.values != 0)).any())

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
        return bake(model, self.site, self.mask, self._constants())

    def _constants(self) -> Float[Tensor, "layer head dim"]:
        """The values, where they are the same at every position of everything."""
        self._require_tensors("baking")
        if self.depends_on_position:
            raise MismatchError(
                "values that depend on the position cannot be baked into weights, which are the same at every "
                "position; use applied_to(model)."
            )
        assert isinstance(self.values, Tensor)
        return self.values

    def at(self, *positions: Any) -> "Ablation":
        """The same ablation at some positions only, counted among a row's real tokens; -1 is the last.

        Numbers, `slice(0, 3)`, `range(3)`, `[0, 1]`, a boolean `[batch pos]` in the columns of its batch, or a function
        of the batch that gives one of these, or an integer tensor `[batch]`: one column for each row.

        >>> ablation = Ablation(["L0.H0"], torch.zeros(1, 2, 3))
        >>> ablation.at(-1), ablation.at(0, 1), ablation.at(slice(1, None))  # doctest: +NORMALIZE_WHITESPACE
        (Ablation(3 of 6 neurons in 1 layer → given values at position -1),
         Ablation(3 of 6 neurons in 1 layer → given values at 2 positions),
         Ablation(3 of 6 neurons in 1 layer → given values at positions 1:))
        """
        chosen: Any = positions[0] if len(positions) == 1 else list(positions)
        return replace(self, positions=chosen)

    def __or__(self, other: "Ablation | Ablations") -> "Ablations":
        """Both; where both speak of a neuron, the later one wins."""
        return Ablations((self,)) | other

    def __ror__(self, other: object) -> "Ablations":
        raise _not_joined(other)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header, tensors = self._to_file()
        save_tensors(path, KIND, header, tensors, version=_version([self]))

    def _to_file(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        self._require_tensors("a file")
        if self.depends_on_batch:
            raise MismatchError(
                "what is for the rows of one batch cannot be saved as an ablation; save positions that are the same in "
                "every row."
            )
        assert isinstance(self.values, Tensor)
        span = (self.positions.start, self.positions.stop, self.positions.step) if _is_slice(self.positions) else None
        places = self.positions if isinstance(self.positions, tuple) else None
        header = AblationHeader(self.source, self.site.value, places, self.center, span)
        return header.to_dict(), {"mask": self.mask, "values": self.values}

    @classmethod
    def load(cls, path: str | Path) -> "Ablation":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND, newest=VERSION)
        with _whole(path):
            return cls._of_file(plain, tensors)

    @classmethod
    def _of_file(cls, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Ablation":
        header = AblationHeader.from_dict(plain)
        if header.span is not None and header.positions is not None:
            raise FileFormatError("it names positions twice")
        if tensors["values"].ndim > 4:
            raise FileFormatError("it is for the rows of one batch")
        return cls(
            tensors["mask"],
            tensors["values"],
            header.source,
            site=Site(header.site),
            positions=header.positions if header.span is None else slice(*header.span),
            center=header.center,
        )

    def __repr__(self) -> str:
        chosen, layers = int(self.mask.sum()), int(self.mask.flatten(1).any(1).sum())
        by = "values by batch" if not isinstance(self.values, Tensor) or self.values.ndim == 5 else "values by position"
        given = isinstance(self.values, Tensor) and self.values.ndim == 3
        what, where = self.center or ("given values" if given else by), describe_positions(self.positions)
        return (
            f"Ablation({chosen:,} of {self.mask.numel():,} neurons".replace(",", " ")
            + f" in {layers} layer{'' if layers == 1 else 's'} → {what}{where})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class _ForBatch(Ablation):
    """An ablation of one batch, whose rows and columns are known."""

    real: Bool[Tensor, "batch pos"] = field(default_factory=lambda: torch.ones(1, 1, dtype=torch.bool))

    @property
    def depends_on_batch(self) -> bool:
        return True

    def hooks(self, offset: int | None = None, *, model: Any = None) -> list[Hook]:
        if model is not None:
            self.require_fits(model)
        if offset:
            raise MismatchError(f"an ablation of one batch has its positions already; offset={offset} is not possible.")
        return self._hooks(dict.fromkeys(self._layers(), self._columns))

    def pre_hooks(self, hf_model: Any, offset: int | None = None) -> list[PreHook]:
        if offset:
            raise MismatchError(f"an ablation of one batch has its positions already; offset={offset} is not possible.")
        columns = dict.fromkeys(self._layers(), self._columns)
        return self._pre_hooks(self._readers(hf_model), columns, lambda: self.real.shape[1])

    @property
    def _known_columns(self) -> Callable[[int], Columns]:
        return self._columns

    def _columns(self, count: int) -> Columns:
        if count != self.real.shape[1]:
            raise MismatchError(
                f"this ablation was resolved for a batch with {self.real.shape[1]} columns, and {count} came in; "
                "resolve it for this one."
            )
        return Columns(0, count, self.real)

    @contextmanager
    def _hooks_in(self, model: Any) -> Iterator[list[Hook]]:
        yield self.hooks()


@dataclass(frozen=True, eq=False, repr=False)
class Ablations:
    """Several ablations together, also of several sites; where two speak of a neuron, the later one wins.

    Does what an `Ablation` does.

    >>> one, other = Ablation(["L0.H0"], torch.zeros(1, 2, 3)), Ablation(["L0"], torch.ones(1, 1, 5), site="mlp")
    >>> one | other
    Ablations(3 of 6 z neurons in 1 layer → given values | 5 of 5 mlp neurons in 1 layer → given values)
    >>> [name for name, _ in (one | other).hooks()]
    ['blocks.0.attn.hook_z', 'blocks.0.mlp.hook_post']
    """

    parts: tuple[Ablation, ...]

    def __post_init__(self) -> None:
        parts = tuple(self.parts)
        object.__setattr__(self, "parts", parts)
        if not parts or not all(isinstance(part, Ablation) for part in parts):
            raise MismatchError("several ablations are a tuple of at least one; join them by `ablation | other`.")
        sources = [part.source for part in parts if part.source is not None]
        for source in sources[1:]:
            sources[0].require_same(source, "these ablations' values are of two models")

    def __or__(self, other: "Ablation | Ablations") -> "Ablations":
        """These, and after them the other."""
        if not isinstance(other, Ablation | Ablations):
            raise _not_joined(other)
        return Ablations((*self.parts, *(other.parts if isinstance(other, Ablations) else (other,))))

    def __iter__(self) -> Iterator[Ablation]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def depends_on_position(self) -> bool:
        """Whether that is so of any."""
        return any(part.depends_on_position for part in self.parts)

    @property
    def depends_on_batch(self) -> bool:
        """Whether that is so of any."""
        return any(part.depends_on_batch for part in self.parts)

    def at(self, *positions: Any) -> "Ablations":
        """The same at some positions only, all of them; see `Ablation.at`."""
        return Ablations(tuple(part.at(*positions) for part in self.parts))

    @property
    def for_rows(self) -> int | None:
        """Of how many rows the batch is that any was made for; None where all serve any batch."""
        return next((part.for_rows for part in self.parts if part.for_rows is not None), None)

    def resolve(self, model: Any, batch: "_Batch", *, run_as: "_Batch | None" = None) -> "Ablations":
        """These for one batch, in plain tensors; see `Ablation.resolve`."""
        parts = tuple(part.resolve(model, batch, run_as=run_as) for part in self.parts)
        return self if all(new is old for new, old in zip(parts, self.parts, strict=True)) else Ablations(parts)

    def require_fits(self, model: Any) -> None:
        """Raise `MismatchError` unless every one is the model's."""
        for part in self.parts:
            part.require_fits(model)

    def hooks(self, offset: int | None = None, *, model: Any = None) -> list[Hook]:
        """All pairs; see `Ablation.hooks`. TransformerLens calls hooks of one point in order."""
        return [pair for part in self.parts for pair in part.hooks(offset, model=model)]

    def pre_hooks(self, hf_model: Any, offset: int | None = None) -> list[PreHook]:
        """All pairs; see `Ablation.pre_hooks`. torch calls hooks of one module in the order in which they came."""
        return [pair for part in self.parts for pair in part.pre_hooks(hf_model, offset)]

    def applied_to(self, model: Any) -> AbstractContextManager[Any]:
        """The model with all in place; see `Ablation.applied_to`."""
        # Before `with`, as errors and warnings belong to this call.
        entered = [part.applied_to(model) for part in self.parts]
        return _all_of(entered, model)

    def bake(self, model: Any) -> Any:
        """An equivalent model without hooks, where every one can be baked; see `Ablation.bake`."""
        self.require_fits(model)
        joined: dict[Site, tuple[Tensor, Tensor]] = {}
        for part in self.parts:
            mask, values = part.mask.cpu(), part._constants().double().cpu()
            if part.site in joined:
                # A row that is zero already would keep the first value: the later one has to win before.
                before, first = joined[part.site]
                mask, values = mask | before, torch.where(mask, values, first)
            joined[part.site] = (mask, values)
        for site, (mask, values) in joined.items():
            model = bake(model, site, mask, values)
        return model

    def save(self, path: str | Path) -> None:
        """Write all into one safetensors file, atomically."""
        files = [part._to_file() for part in self.parts]
        tensors = {f"{number}.{name}": held[name] for number, (_, held) in enumerate(files) for name in held}
        save_tensors(path, SEVERAL, {"parts": [header for header, _ in files]}, tensors, version=_version(self.parts))

    @classmethod
    def load(cls, path: str | Path) -> "Ablations":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, SEVERAL, newest=VERSION)
        with _whole(path):
            headers = _AblationsHeader.from_dict(plain).parts
            return cls(
                tuple(
                    Ablation._of_file(header, {name: tensors[f"{number}.{name}"] for name in ("mask", "values")})
                    for number, header in enumerate(headers)
                )
            )

    def __repr__(self) -> str:
        parts = [
            repr(part).removeprefix("Ablation(").removesuffix(")").replace(" neurons", f" {part.site.value} neurons")
            for part in self.parts
        ]
        return f"Ablations({' | '.join(parts)})"


@dataclass(frozen=True)
class _AblationsHeader(Record):
    parts: tuple[dict[str, Any], ...]


@contextmanager
def _all_of(entered: list[AbstractContextManager[Any]], model: Any) -> Iterator[Any]:
    with ExitStack() as leaving:
        for context in entered:
            leaving.enter_context(context)
        yield model


@contextmanager
def _whole(path: str | Path) -> Iterator[None]:
    """What the constructor refuses is a fault of the file here, not of the caller."""
    try:
        yield
    except (FileFormatError, KeyError, ValueError, MismatchError, NonFiniteError) as error:
        raise FileFormatError(f"{path} is not a complete ablation ({error}); make it again.") from error


def _version(parts: Iterable[Ablation]) -> int:
    return VERSION if any(part.site.is_one_hook for part in parts) else 3


def _not_joined(other: object) -> MismatchError:
    return MismatchError(
        f"an ablation cannot be joined with a {type(other).__name__}; `one | other` takes two ablations."
    )


def _per_neuron(shape: Sequence[int]) -> tuple[int, ...]:
    """Without the axes of rows and positions, which stand between layers and heads."""
    return (*shape[:1], *shape[-2:]) if len(shape) > 2 else tuple(shape)


def _read_values(given: Any) -> Any:
    """A single number as a float, and an array as a tensor; anything else as it is."""
    if isinstance(given, np.ndarray | Tensor) and given.ndim == 0 and "bool" not in str(given.dtype):
        given = given.item()
    if isinstance(given, np.ndarray) and given.dtype.kind in "biuf":
        return torch.from_numpy(given.copy())
    return float(given) if isinstance(given, Real) and not isinstance(given, bool) else given


def _serves(ablation: Ablation, valid: Bool[Tensor, "batch pos"]) -> bool:
    """Whether hooks that count columns do what was meant in a batch with these real tokens."""
    if ablation.for_rows is not None or count_from_end(ablation.positions):
        return False
    return not ablation.depends_on_position or not bool((valid[:, 1:] & ~valid[:, :-1]).any())


def _valid(batch: Any) -> Bool[Tensor, "batch pos"]:
    valid = getattr(batch, "valid", None)
    if not isinstance(valid, Tensor):
        raise MismatchError(
            f"the batch is a {type(batch).__name__}; expected a Batch, such as al.Batch.causal(tokens, attention_mask)."
        )
    return valid


def _is_slice(positions: Positions | None) -> TypeGuard[slice]:
    return isinstance(positions, slice)


def _columns(offset: int | None, count: int) -> Columns:
    # Several positions without an offset are taken for a text from its start. A single one may as well be the next
    # token of a text in a cache.
    if offset is None and count == 1:
        raise MismatchError(
            "this ablation depends on the position, and a single token came in, as happens with a key-value cache: "
            "which position it has cannot be told. Use applied_to(model), or hooks(offset=…)."
        )
    return Columns(offset or 0, count)


def _require_weights(source: ModelRecord, hf_model: Any) -> None:
    """Raise unless a plain model is the one that values are of, as far as the digest of what was loaded says."""
    anyway = "dataclasses.replace(ablation, source=None) puts its values there unchecked"
    if source.weights is None or source.processing != "none":
        what = "changed after loading, or not loaded by this library" if source.weights is None else source.processing
        raise MismatchError(
            f"this ablation's values are of {source.name}, whose weights were {what}: whether they are a plain model's "
            f"cannot be told; {anyway}."
        )
    digest, dtype = weights_digest(hf_model), str(getattr(hf_model, "dtype", "?")).removeprefix("torch.")
    if digest != source.weights:
        raise MismatchError(
            f"this ablation's values are another model's: {source.name} is a {source.architecture} in {source.dtype} "
            f"with weights {source.weights}, and this is a {type(hf_model).__name__} in {dtype} with {digest}; load "
            f"the same checkpoint in the same class and dtype ({anyway})."
        )


def _warn_once(model: Any, text: str) -> None:
    said = _warned.setdefault(model, set())
    if text not in said:
        said.add(text)
        # The user's own line: the first outside of this package, however many calls of it lie between.
        frame, level = sys._getframe(1), 2
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ablation_lens."):
            frame, level = frame.f_back, level + 1
        warnings.warn(text, stacklevel=level)


class _Replace:
    """The hook of one layer: one `torch.where`, on whatever device and in whatever dtype the activation is."""

    def __init__(self, ablation: Ablation, layer: int, columns: Callable[[int], Columns]) -> None:
        self.ablation, self.layer, self.columns = ablation, layer, columns
        self.ready: tuple[Any, Tensor, Tensor] | None = None

    def __call__(self, value: Tensor, hook: Any) -> Tensor:
        site = self.ablation.site
        heads = site.to_heads(value)
        mask, replacement = self._on(heads)  # [head dim], and [head dim], [pos head dim] or [batch pos head dim]
        if self.ablation.depends_on_position:
            columns = self.columns(heads.shape[1])
            if replacement.ndim > 2:
                self._require_rows(replacement if replacement.ndim == 4 else None, heads)
                replacement = values_at(replacement, columns)
            if columns.real is not None:  # padding before a text has no position
                self._require_rows(columns.real, heads)
                mask = mask & (columns.places(mask.device) >= 0)[:, :, None, None]
            if self.ablation.positions is not None:
                marks = self.ablation.positions
                self._require_rows(marks if isinstance(marks, Tensor) else None, heads)
                mask = mask & find(marks, columns, mask.device)[:, :, None, None]
        # Not in place: a cache may hold the activation. Not by arithmetic with the mask: 0 times NaN is NaN.
        return site.from_heads(torch.where(mask, replacement, heads))

    def _require_rows(self, given: Tensor | None, heads: Tensor) -> None:
        # A single row would be broadcast over all, without an error.
        if given is not None and len(given) != len(heads):
            rows = f"{len(given)} row{'' if len(given) == 1 else 's'}"
            raise MismatchError(f"this ablation is for a batch of {rows}, and {len(heads)} came in.")

    def _on(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and values like the activation, kept for the batches to come."""
        # Both may change between calls: one ablation serves models of several dtypes.
        key = (value.device, value.dtype)
        if self.ready is None or self.ready[0] != key:
            assert isinstance(self.ablation.values, Tensor)
            mask = self.ablation.mask[self.layer].to(value.device)
            self.ready = (key, mask, self.ablation.values[self.layer].to(value))
        return self.ready[1], self.ready[2]


class _ReplaceInput:
    """The pre-hook of what reads a layer's neurons in a plain model: `_Replace`, on its first argument.

    `width` says how many columns a row has, where that is known: some MLPs are given the rows one after another.
    """

    def __init__(self, replace: _Replace, width: Callable[[], int | None]) -> None:
        self.replace, self.width = replace, width

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ablation = self.replace.ablation
        _, heads, dims = ablation.mask.shape
        if not args or not isinstance(args[0], Tensor) or args[0].shape[-1] != heads * dims:
            got = (
                tuple(args[0].shape) if args and isinstance(args[0], Tensor) else [type(each).__name__ for each in args]
            )
            raise MismatchError(
                f"a projection was called with {got}; expected {heads * dims} {ablation.site.value} neurons."
            )
        given, *rest = args
        rows = given
        if given.ndim == 2:
            columns = self.width()
            if columns is None and ablation.depends_on_position:
                raise MismatchError(
                    "this ablation depends on the position, and this model gives its MLPs the rows of a batch one "
                    "after another; use applied_to(hf_model), which knows how long they are."
                )
            rows = given.unflatten(0, (-1, columns or len(given)))
        shaped = rows.unflatten(-1, (heads, dims)) if ablation.site.has_heads else rows
        return (self.replace(shaped, None).reshape(given.shape), *rest)

"""Where neurons live. The only file that spells a TransformerLens hook name."""

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.names import require_known

Hook = tuple[str, Callable[..., Any]]
"""What `run_with_hooks` takes: a hook point's name, and the function that sees or replaces its activation."""


class Site(Enum):
    """A place in every block where neurons are measured and ablated.

    A site's shape is `(layer, head, dim)`. Where neurons have no heads, all of a layer count as one "head". Wherever
    a site is asked for, its name will do: `site="mlp"`.

    The full name of one hook is a site, too, with this hook as its only "layer": the latents of a sparse autoencoder
    are at `"blocks.2.hook_resid_pre.hook_sae_acts_post"`.

    >>> Site.Z.hook_name(3)
    'blocks.3.attn.hook_z'
    >>> Site.of("mlp").hook_name(0)
    'blocks.0.mlp.hook_post'
    >>> Site.of("blocks.1.ln1.hook_normalized").is_one_hook
    True
    """

    Z = "z"
    MLP = "mlp"
    Q = "q"
    K = "k"
    V = "v"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    RESID_PRE = "resid_pre"
    RESID_MID = "resid_mid"
    RESID_POST = "resid_post"

    @classmethod
    def of(cls, site: "Site | str") -> "Site":
        """A site, given as itself or by its name.

        >>> Site.of("mlp")
        <Site.MLP: 'mlp'>
        >>> Site.of("mpl")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ablation_lens.errors.MismatchError: there is no site 'mpl'; did you mean 'mlp'? Known: z, mlp, q, k, v, ...
        """
        if isinstance(site, Site):
            return site
        if not _is_hook_name(site):
            require_known(site, [each.value for each in cls], "site", nearest_to=_without_hook(site))
        return cls(site)

    @classmethod
    def _missing_(cls, value: object) -> "Site | None":
        """One hook, by its name: a member that is not listed, as `enum.Flag` makes them. One name, one object."""
        if not isinstance(value, str) or not _is_hook_name(value):
            return None
        made = object.__new__(cls)
        made._name_ = made._value_ = value
        found: Site = cls._value2member_map_.setdefault(value, made)  # type: ignore[assignment]
        return found

    def __eq__(self, other: object) -> bool:
        """A site is its name, so that a dictionary by site is read by name, too."""
        return self is other or (isinstance(other, str) and other == self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    @property
    def is_one_hook(self) -> bool:
        """Whether this is a single hook of a model, given by its name, and not a place in every block."""
        return self not in _PLACES

    @property
    def _place(self) -> "_Place":
        if self.is_one_hook:
            return _Place(self.value, "head" if self.value.rpartition(".")[2] in _WITH_HEADS else None, "dim")
        return _PLACES[self]

    @property
    def block(self) -> int | None:
        """The block that a single hook is in; None for one before the blocks or after them."""
        number = re.match(r"blocks\.(\d{1,9})\.", self.value)
        return int(number[1]) if number else None

    def layers(self, cfg: Any) -> range:
        """The numbers of a model's layers; a single hook is layer 0, whatever block it is in."""
        return range(1 if self.is_one_hook else cfg.n_layers)

    def hook_name(self, layer: int) -> str:
        """The TransformerLens name of this site's hook point in `layer`."""
        if self.is_one_hook:
            if layer != 0:
                raise self._not_in_every_block()
            return str(self.value)
        return f"blocks.{layer}.{self._place.hook}"

    def hook_names(self, cfg: Any) -> list[str]:
        """One hook name per layer of a model's `cfg`."""
        return [self.hook_name(layer) for layer in self.layers(cfg)]

    @property
    def has_heads(self) -> bool:
        """Whether neurons are counted by head; otherwise all of a layer are in head 0."""
        return self._place.heads is not None

    def require_every_block(self) -> None:
        """Raise `MismatchError` for a single hook, where every block has to have the neurons."""
        if self.is_one_hook:
            raise self._not_in_every_block()

    def _not_in_every_block(self) -> MismatchError:
        return MismatchError(
            f"{self.value} is one hook of a model, which collect, statistics, ablations, evaluate, compare_centers, "
            "learn and the explorer take; here a site of every block is needed, such as 'z' or 'mlp'."
        )

    def shape(self, cfg: Any) -> tuple[int, int, int]:
        """`(layer, head, dim)` for a model's `cfg`; under grouped heads, keys and values have fewer.

        How wide a single hook is, no `cfg` says: `hooked.shape_at` asks the model.
        """
        self.require_every_block()
        place = self._place
        if self in (Site.MLP, Site.MLP_OUT) and (getattr(cfg, "attn_only", False) or not cfg.d_mlp):
            raise MismatchError(f"this model has attention only, and so no neurons at {self.value!r}; use site='z'.")
        # None, or not there at all, where every head has keys and values of its own.
        heads = 1 if place.heads is None else getattr(cfg, place.heads, None) or cfg.n_heads
        return cfg.n_layers, heads, getattr(cfg, place.dims)

    def could_have(self, shape: tuple[int, ...], record: Any) -> bool:
        """Whether neurons of the model with this record may have a shape.

        A record does not say how many heads share keys and values, nor how wide a single hook is.
        """
        if self.is_one_hook:
            return len(shape) == 3 and shape[0] == 1 and (self.has_heads or shape[1] == 1)
        expected = self.shape(record)
        grouped = self in (Site.K, Site.V) and len(shape) == 3 and shape[1] > 0 and expected[1] % shape[1] == 0
        return shape == (expected[0], shape[1] if grouped else expected[1], expected[2])

    @property
    def weights(self) -> "Weights | None":
        """The weights an ablation can be baked into; None where that is not possible."""
        return self._place.weights

    @property
    def incoming(self) -> "Weights | None":
        """The weights that say what of the residual stream a site's neurons respond to; None but for the MLP.

        Where an MLP is gated, a neuron has two such columns: this is "up", the branch without the activation function.
        """
        return self._place.incoming

    def to_heads(self, activation: Float[Tensor, "batch pos *site"]) -> Float[Tensor, "batch pos head dim"]:
        """A hook's activation with an explicit head axis (a view)."""
        # Checked, because a tensor of another layout may broadcast against a mask without an error.
        wanted = 4 if self.has_heads else 3
        if self.is_one_hook and not (isinstance(activation, Tensor) and activation.is_floating_point()):
            raise MismatchError(
                f"{self.value} holds no floating-point numbers [batch, pos, dim], so it has no neurons to measure."
            )
        if activation.ndim != wanted:
            axes = f"batch, pos, {'head, ' if self.has_heads else ''}{self._place.dims}"
            why = ", so it is not a site." if self.is_one_hook else ". Is this model hooked the TransformerLens way?"
            raise MismatchError(
                f"{self._place.hook} gave a tensor of shape {tuple(activation.shape)}; expected {wanted} axes "
                f"({axes}){why}"
            )
        return activation if self.has_heads else activation.unsqueeze(-2)

    def from_heads(self, values: Float[Tensor, "*rest head dim"]) -> Float[Tensor, "*rest site"]:
        """The inverse of `to_heads` for the trailing axes: values as the hook wants them (a view)."""
        return values if self.has_heads else values.squeeze(-2)


@dataclass(frozen=True)
class Weights:
    """The matrix that reads a site's neurons, or that makes them, under every name it has.

    Attributes:
        module: of a block.
        linear: the `Linear` in the module of an adapter.
        bridged: the component in the module of a `TransformerBridge`.
        matrix: the parameter in the module of a `HookedTransformer`, and `bias` beside it.
        made: whether the neurons are what this matrix gives, and not what it reads.
    """

    module: str
    linear: str
    bridged: str
    matrix: str
    bias: str
    made: bool = False


@dataclass(frozen=True)
class _Place:
    """What is known about a site.

    Attributes:
        hook: the hook point's name in a block.
        heads: what a cfg calls the number of heads; None where neurons have none.
        dims: what it calls the number of dims.
        letter: before the number of a dim, in a neuron's name.
        weights: where constants can be folded in.
        incoming: what neurons respond to.
    """

    hook: str
    heads: str | None
    dims: str
    letter: str = "D"
    weights: Weights | None = None
    incoming: Weights | None = None


_OUT, _MLP_OUT = ("attn", "out", "o", "W_O", "b_O"), ("mlp", "linear_out", "out", "W_out", "b_out")

_PLACES = {
    Site.Z: _Place("attn.hook_z", "n_heads", "d_head", weights=Weights(*_OUT)),
    Site.MLP: _Place(
        "mlp.hook_post",
        None,
        "d_mlp",
        "M",
        weights=Weights(*_MLP_OUT),
        # TransformerLens calls the gate W_gate, and "up" W_in.
        incoming=Weights("mlp", "linear_in", "in", "W_in", "b_in", made=True),
    ),
    # Before rotation, where a model rotates queries and keys.
    Site.Q: _Place("attn.hook_q", "n_heads", "d_head"),
    Site.K: _Place("attn.hook_k", "n_key_value_heads", "d_head"),
    Site.V: _Place(
        "attn.hook_v", "n_key_value_heads", "d_head", weights=Weights("attn", "value", "v", "W_V", "b_V", made=True)
    ),
    # What attention and MLP add to the residual stream.
    Site.ATTN_OUT: _Place("hook_attn_out", None, "d_model", weights=Weights(*_OUT, made=True)),
    Site.MLP_OUT: _Place("hook_mlp_out", None, "d_model", weights=Weights(*_MLP_OUT, made=True)),
    # Before the block, between attention and MLP, after the block.
    Site.RESID_PRE: _Place("hook_resid_pre", None, "d_model"),
    Site.RESID_MID: _Place("hook_resid_mid", None, "d_model"),
    Site.RESID_POST: _Place("hook_resid_post", None, "d_model"),
}


_WITH_HEADS = (
    *(f"hook_{name}" for name in ("q", "k", "v", "z", "rot_q", "rot_k", "result", "attn_in")),
    *(f"hook_{name}_input" for name in "qkv"),
)
"""What TransformerLens calls hooks of `[batch pos head dim]`; all others that can be a site are `[batch pos dim]`."""

# Names of modules, and nothing that a page or a terminal might take for more than a name.
_HOOK_NAME = re.compile(r"(?=.*\.|hook_)(?:\w+\.)*\w+", re.ASCII)


def _is_hook_name(text: object) -> bool:
    """Whether this is the full name of a hook, and not a site in another spelling, such as `hook_z`."""
    if not isinstance(text, str) or len(text) > 200 or not _HOOK_NAME.fullmatch(text):
        return False
    return text.startswith("blocks.") or not any(f".{place.hook}".endswith(f".{text}") for place in _PLACES.values())


def _without_hook(text: object) -> str:
    """The site that a hook point's name, such as `blocks.0.attn.hook_z`, is nearest to."""
    point = str(text).rpartition("hook_")[2]
    return next((site.value for site, place in _PLACES.items() if place.hook.endswith(f"hook_{point}")), point)


SCORE_HOOKS = ("hook_attn_scores", "hook_pattern")
"""Attention hook points that only exist when the score matrix is materialised."""


POSITION_EMBEDDING = "hook_pos_embed"
"""The hook point of what a model with learned positions adds to its embeddings; `[batch pos d_model]`."""


def residual_after(layer: int) -> str:
    """The hook name of the residual stream after a block."""
    return Site.RESID_POST.hook_name(layer)


# ---------------------------------------------------------------------- how people write neurons, heads and layers

# No more digits than any model needs: Python refuses to read thousands of them, with an error of its own.
_PLACE = re.compile(r"L(\d{1,9})(?:\.H(\d{1,9}))?(?:\.([DM])(\d{1,9}))?", re.ASCII)


def neuron_name(layer: int, head: int, dim: int, site: Site | str = Site.Z) -> str:
    """How people write a neuron of a site.

    >>> neuron_name(3, 5, 17), neuron_name(3, 0, 17, "mlp")
    ('L3.H5.D17', 'L3.M17')
    """
    where = Site.of(site)
    return f"L{layer}.{f'H{head}.' if where.has_heads else ''}{where._place.letter}{dim}"


def neuron_names(shape: Iterable[int], site: Site | str = Site.Z) -> list[str]:
    """The names of all neurons of `(layer, head, dim)`, the last of them changing fastest.

    >>> neuron_names((1, 2, 2))
    ['L0.H0.D0', 'L0.H0.D1', 'L0.H1.D0', 'L0.H1.D1']
    """
    layers, heads, dims = shape
    # What comes before the dim is the same for a whole head: a name is slow to make, and there are many.
    stems = [neuron_name(layer, head, 0, site)[:-1] for layer in range(layers) for head in range(heads)]
    return [f"{stem}{dim}" for stem in stems for dim in range(dims)]


def parse_neuron(text: str, shape: Iterable[int] | None = None, site: Site | str = Site.Z) -> tuple[int, int, int]:
    """The inverse of `neuron_name`; with `shape`, also checks that the neuron exists.

    Neurons without heads may be written as those of head 0, as earlier versions did.

    >>> parse_neuron("L3.H5.D17"), parse_neuron("L3.M17", site="mlp"), parse_neuron("L3.H0.D17", site="mlp")
    ((3, 5, 17), (3, 0, 17), (3, 0, 17))
    """
    where = Site.of(site)
    layer, head, dim = _parse(text, shape, where, 3, f"a neuron; write it like {_example(where)}")
    return layer, head, dim


def parse_head(text: str | Sequence[int], shape: Iterable[int] | None = None) -> tuple[int, int]:
    """As `parse_neuron`, for a head.

    >>> parse_head("L3.H5")
    (3, 5)
    """
    layer, head = _parse(text, shape, Site.Z, 2, "a head; write it like L3.H5 (layer, head)")
    return layer, head


def parse_place(
    text: str | Sequence[int], shape: Iterable[int] | None = None, site: Site | str = Site.Z
) -> tuple[int, ...]:
    """A layer, head or neuron as `(layer,)`, `(layer, head)` or `(layer, head, dim)`; may be given as such.

    >>> parse_place("L3.H5"), parse_place("L4"), parse_place((1, 2, 3))
    ((3, 5), (4,), (1, 2, 3))
    """
    where = Site.of(site)
    return _parse(text, shape, where, None, f"a neuron, head or layer; write it like {_example(where)}, L3.H5 or L3")


def _parse(
    text: str | Sequence[int], shape: Iterable[int] | None, where: Site, numbers: int | None, expected: str
) -> tuple[int, ...]:
    place = _read(text, where) if isinstance(text, str) else _numbers(text)
    if place is None or numbers not in (None, len(place)):
        mlp = isinstance(text, str) and place is None and _read(text, Site.MLP) is not None
        hint = "; for MLP neurons give site='mlp'" if mlp else ""
        raise MismatchError(f"{text!r} is not {expected}{hint}.")
    if shape is not None:
        _require_exists(text, place, tuple(shape), where)
    elif not where.has_heads and place[1:2] not in ((), (0,)):
        raise MismatchError(f"{text} does not exist: {where.value} neurons have no heads; write {_example(where)}.")
    return place


def _read(text: str, site: Site) -> tuple[int, ...] | None:
    match = _PLACE.fullmatch(text.strip())
    if match is None or match[3] not in (None, "D", site._place.letter):
        return None
    layer, head, dim = (None if digits is None else int(digits) for digits in match.group(1, 2, 4))
    assert layer is not None
    if dim is None:
        return (layer,) if head is None else (layer, head)
    if head is None and site.has_heads:
        return None
    return layer, head or 0, dim


def _numbers(given: Sequence[int]) -> tuple[int, ...] | None:
    # A bool is an int to Python, and no place.
    whole = [number for number in given if not isinstance(number, bool)] if isinstance(given, Sequence) else []
    try:
        places = tuple(operator.index(number) for number in whole)
    except TypeError:
        return None
    return places if 1 <= len(places) <= 3 and len(places) == len(given) and min(places) >= 0 else None


def _example(site: Site) -> str:
    return f"{neuron_name(0 if site.is_one_hook else 3, 5, 17, site)} (layer, {'head, ' if site.has_heads else ''}dim)"


def _require_exists(text: object, place: tuple[int, ...], limits: tuple[int, ...], site: Site) -> None:
    # Not strict: a head gives two numbers, against three limits.
    if any(number >= limit for number, limit in zip(place, limits, strict=False)):
        if site.is_one_hook:
            last = neuron_name(0, limits[1] - 1, limits[2] - 1, site)
            raise MismatchError(
                f"{text} does not exist: the neurons of {site.value} are {neuron_name(0, 0, 0, site)} to {last}."
            )
        heads = f"{limits[1]} {'' if site is Site.Z else f'{site.value} '}heads and {limits[2]} dims"
        sizes = heads if site.has_heads else f"{limits[2]} {site.value} neurons in each"
        raise MismatchError(f"{text} does not exist: this model has {limits[0]} layers, {sizes}, counted from 0.")

"""Where neurons live. The only file that spells a TransformerLens hook name."""

import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ablation_lens.errors import MismatchError

Hook = tuple[str, Callable[..., Any]]
"""What `run_with_hooks` takes: a hook point's name, and the function that sees or replaces its activation."""


class Site(Enum):
    """A place in every block where neurons are measured and ablated.

    A site's shape is `(layer, head, dim)`. The MLP's hidden layer counts as one "head" of `d_mlp`.

    >>> Site.Z.hook_name(3)
    'blocks.3.attn.hook_z'
    >>> Site("mlp").hook_name(0)
    'blocks.0.mlp.hook_post'
    """

    Z = "z"
    MLP = "mlp"

    def hook_name(self, layer: int) -> str:
        """The TransformerLens name of this site's hook point in `layer`."""
        return f"blocks.{layer}.{_HOOKS[self]}"

    def hook_names(self, cfg: Any) -> list[str]:
        """One hook name per layer of a model's `cfg`."""
        return [self.hook_name(layer) for layer in range(cfg.n_layers)]

    def shape(self, cfg: Any) -> tuple[int, int, int]:
        """`(layer, head, dim)` for a model's `cfg`."""
        if self is Site.Z:
            return cfg.n_layers, cfg.n_heads, cfg.d_head
        return cfg.n_layers, 1, cfg.d_mlp

    def to_heads(self, activation: Float[Tensor, "batch pos *site"]) -> Float[Tensor, "batch pos head dim"]:
        """A hook's activation with an explicit head axis (a view)."""
        # Checked, because a tensor of another layout may broadcast against a mask without an error.
        wanted = 4 if self is Site.Z else 3
        if activation.ndim != wanted:
            raise MismatchError(
                f"{_HOOKS[self]} gave a tensor of shape {tuple(activation.shape)}; "
                f"expected {wanted} axes ({'batch, pos, head, d_head' if wanted == 4 else 'batch, pos, d_mlp'}). "
                "Is this model hooked the TransformerLens way?"
            )
        return activation if self is Site.Z else activation.unsqueeze(-2)

    def from_heads(self, values: Float[Tensor, "*rest head dim"]) -> Float[Tensor, "*rest site"]:
        """The inverse of `to_heads` for the trailing axes: values as the hook wants them (a view)."""
        return values if self is Site.Z else values.squeeze(-2)


_HOOKS = {Site.Z: "attn.hook_z", Site.MLP: "mlp.hook_post"}
"""Site → the hook point's name inside a block."""

SCORE_HOOKS = ("hook_attn_scores", "hook_pattern")
"""Attention hook points that only exist when the score matrix is materialised."""

_NEURON = re.compile(r"L(\d+)\.H(\d+)\.D(\d+)")
_HEAD = re.compile(r"L(\d+)\.H(\d+)")


def neuron_name(layer: int, head: int, dim: int) -> str:
    """How people write a neuron.

    >>> neuron_name(3, 5, 17)
    'L3.H5.D17'
    """
    return f"L{layer}.H{head}.D{dim}"


def parse_neuron(text: str, shape: Iterable[int] | None = None) -> tuple[int, int, int]:
    """The inverse of `neuron_name`; with `shape`, also checks that the neuron exists.

    >>> parse_neuron("L3.H5.D17")
    (3, 5, 17)
    """
    match = _NEURON.fullmatch(text.strip())
    if match is None:
        raise MismatchError(f"{text!r} is not a neuron; write it like L3.H5.D17 (layer, head, dim).")
    layer, head, dim = (int(group) for group in match.groups())
    if shape is not None:
        _require_exists(text, (layer, head, dim), tuple(shape))
    return layer, head, dim


def parse_head(text: str, shape: Iterable[int] | None = None) -> tuple[int, int]:
    """As `parse_neuron`, for a head.

    >>> parse_head("L3.H5")
    (3, 5)
    """
    match = _HEAD.fullmatch(text.strip())
    if match is None:
        raise MismatchError(f"{text!r} is not a head; write it like L3.H5 (layer, head).")
    layer, head = (int(group) for group in match.groups())
    if shape is not None:
        _require_exists(text, (layer, head), tuple(shape))
    return layer, head


def _require_exists(text: str, place: tuple[int, ...], limits: tuple[int, ...]) -> None:
    # Not strict: a head gives two numbers, against three limits.
    if any(number >= limit for number, limit in zip(place, limits, strict=False)):
        raise MismatchError(
            f"{text} does not exist: this model has {limits[0]} layers, {limits[1]} heads and "
            f"{limits[2]} dims, counted from 0."
        )


def residual_after(layer: int) -> str:
    """The hook name of the residual stream after a block."""
    return f"blocks.{layer}.hook_resid_post"

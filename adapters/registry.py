"""Which class hooks which model family: the one place to extend.

`load_model` looks families up here by the `model_type` of their config.json; families that are not
registered are taken for causal models and go to TransformerLens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ablation_lens.adapters.encoder import HookedEncoder

Adapter = TypeVar("Adapter", bound="Callable[..., HookedEncoder]")


@dataclass(frozen=True)
class Family:
    """One registered family: how Hugging Face loads it, and what wraps the result."""

    model_type: str
    auto_class: str
    wrap: "Callable[[Any], HookedEncoder]"


_FAMILIES: dict[str, Family] = {}


def register(*model_types: str, auto_class: str) -> Callable[[Adapter], Adapter]:
    """Class decorator: checkpoints of these `model_type`s are loaded by `auto_class` and wrapped by this class.

    >>> from ablation_lens.adapters import HookedRoberta, families, register
    >>> @register("my-roberta", auto_class="AutoModelForMaskedLM")
    ... class HookedMine(HookedRoberta):
    ...     pass
    >>> families()["my-roberta"].auto_class
    'AutoModelForMaskedLM'
    >>> unregister("my-roberta")
    """

    def decorate(adapter: Adapter) -> Adapter:
        for model_type in model_types:
            # A later registration replaces an earlier one, so a user's class can take over a family of ours.
            _FAMILIES[model_type] = Family(model_type, auto_class, adapter)
        return adapter

    return decorate


def unregister(model_type: str) -> None:
    """Forget a family again."""
    _FAMILIES.pop(model_type, None)


def families() -> dict[str, Family]:
    """The registered families by `model_type` (a copy)."""
    return dict(_FAMILIES)

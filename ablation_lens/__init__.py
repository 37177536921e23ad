"""Ablate attention neurons in TransformerLens models: to zero, to the mean, or to the peak of their distribution.

Importing this package imports nothing heavy; torch, transformers and transformer-lens are loaded with the
first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ablation_lens.errors import AblationLensError

if TYPE_CHECKING:
    from ablation_lens import adapters
    from ablation_lens.models import load_model
    from ablation_lens.records import ModelRecord, record_of
    from ablation_lens.sites import Site

__version__ = "0.1.0"

__all__ = ["AblationLensError", "ModelRecord", "Site", "adapters", "load_model", "record_of"]

_HOMES = {
    "ModelRecord": "ablation_lens.records",
    "Site": "ablation_lens.sites",
    "load_model": "ablation_lens.models",
    "record_of": "ablation_lens.records",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"ablation_lens.{name}")
    raise AttributeError(f"module 'ablation_lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

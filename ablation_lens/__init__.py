"""Ablate attention neurons in TransformerLens models: to zero, to the mean, or to the peak of their distribution.

Importing this package imports nothing heavy; torch, transformers and transformer-lens are loaded with the
first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ablation_lens.errors import AblationLensError

if TYPE_CHECKING:
    from ablation_lens import adapters, centers, corpora, zoo
    from ablation_lens.collection import collect
    from ablation_lens.evaluation import Score, evaluate
    from ablation_lens.explorer import explore
    from ablation_lens.models import load_model
    from ablation_lens.plans import Batch
    from ablation_lens.records import ModelRecord, record_of
    from ablation_lens.sites import Site
    from ablation_lens.statistics import ActivationStatistics
    from ablation_lens.tasks import task_for

__version__ = "0.1.0"

__all__ = [
    "AblationLensError",
    "ActivationStatistics",
    "Batch",
    "ModelRecord",
    "Score",
    "Site",
    "adapters",
    "centers",
    "collect",
    "corpora",
    "evaluate",
    "explore",
    "load_model",
    "record_of",
    "task_for",
    "zoo",
]

# No module is named like something it exports (collection.collect, evaluation.evaluate): importing a submodule
# sets it as an attribute of the package, which would hide the function.
_HOMES = {
    "ActivationStatistics": "statistics",
    "Batch": "plans",
    "ModelRecord": "records",
    "Score": "evaluation",
    "Site": "sites",
    "collect": "collection",
    "evaluate": "evaluation",
    "explore": "explorer",
    "load_model": "models",
    "record_of": "records",
    "task_for": "tasks",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ablation_lens.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"ablation_lens.{name}")
    raise AttributeError(f"module 'ablation_lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

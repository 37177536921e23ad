"""Ablate attention neurons in TransformerLens models: to zero, to the mean, or to the peak of their distribution.

Importing this package imports nothing heavy; torch, transformers and transformer-lens are loaded with the
first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ablation_lens.errors import AblationLensError

if TYPE_CHECKING:
    from ablation_lens import adapters, centers, corpora, plots, resampling, zoo
    from ablation_lens.ablation import Ablation
    from ablation_lens.collection import collect
    from ablation_lens.evaluation import Score, evaluate
    from ablation_lens.explorer import explore
    from ablation_lens.models import load_model
    from ablation_lens.plans import Batch
    from ablation_lens.records import ModelRecord, record_of
    from ablation_lens.results import Results
    from ablation_lens.selection import random_neurons, top_neurons, whole_heads
    from ablation_lens.sites import Site
    from ablation_lens.statistics import ActivationStatistics
    from ablation_lens.study import Study
    from ablation_lens.tasks import task_for

__version__ = "0.1.0"

__all__ = [
    "Ablation",
    "AblationLensError",
    "ActivationStatistics",
    "Batch",
    "ModelRecord",
    "Results",
    "Score",
    "Site",
    "Study",
    "adapters",
    "centers",
    "collect",
    "corpora",
    "evaluate",
    "explore",
    "load_model",
    "plots",
    "random_neurons",
    "record_of",
    "resampling",
    "task_for",
    "top_neurons",
    "whole_heads",
    "zoo",
]

# No module is named like something it exports (collection.collect, evaluation.evaluate): importing a submodule
# sets it as an attribute of the package, which would hide the function.
_HOMES = {
    "Ablation": "ablation",
    "ActivationStatistics": "statistics",
    "Batch": "plans",
    "ModelRecord": "records",
    "Results": "results",
    "Score": "evaluation",
    "Site": "sites",
    "Study": "study",
    "collect": "collection",
    "evaluate": "evaluation",
    "explore": "explorer",
    "load_model": "models",
    "random_neurons": "selection",
    "record_of": "records",
    "task_for": "tasks",
    "top_neurons": "selection",
    "whole_heads": "selection",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ablation_lens.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"ablation_lens.{name}")
    raise AttributeError(f"module 'ablation_lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

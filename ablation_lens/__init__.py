"""Ablate attention neurons in TransformerLens models: to zero, to the mean, or to the peak of their distribution.

Importing this package imports nothing heavy; torch, transformers and transformer-lens are loaded with the
first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ablation_lens.errors import AblationLensError

if TYPE_CHECKING:
    from ablation_lens import adapters, circuits, corpora, experiments, plots, zoo
    from ablation_lens.ablation.ablation import Ablation, Ablations
    from ablation_lens.ablation.masks import named_neurons, random_neurons, top_neurons, whole_heads
    from ablation_lens.explorer import explore
    from ablation_lens.measure import metrics, resampling
    from ablation_lens.measure.collection import collect
    from ablation_lens.measure.comparison import compare_centers
    from ablation_lens.measure.evaluation import evaluate
    from ablation_lens.measure.learners import learn
    from ablation_lens.measure.prompting import prompt
    from ablation_lens.measure.score import Score
    from ablation_lens.models.load import load_model
    from ablation_lens.neurons import centers
    from ablation_lens.neurons.statistics import ActivationStatistics
    from ablation_lens.records import ModelRecord, record_of
    from ablation_lens.sites import Site
    from ablation_lens.study.recommendation import recommend
    from ablation_lens.study.results import Results
    from ablation_lens.study.study import Study
    from ablation_lens.tasks.plans import Batch
    from ablation_lens.tasks.tasks import task_for

__version__ = "0.2.0"

__all__ = [
    "Ablation",
    "AblationLensError",
    "Ablations",
    "ActivationStatistics",
    "Batch",
    "ModelRecord",
    "Results",
    "Score",
    "Site",
    "Study",
    "adapters",
    "centers",
    "circuits",
    "collect",
    "compare_centers",
    "corpora",
    "evaluate",
    "experiments",
    "explore",
    "learn",
    "load_model",
    "metrics",
    "named_neurons",
    "plots",
    "prompt",
    "random_neurons",
    "recommend",
    "record_of",
    "resampling",
    "task_for",
    "top_neurons",
    "whole_heads",
    "zoo",
]

# No module, in any package, is named like something that the root exports: importing a submodule sets it as an
# attribute of its package, which would hide the function.
_HOMES = {
    "Ablation": "ablation.ablation",
    "Ablations": "ablation.ablation",
    "ActivationStatistics": "neurons.statistics",
    "Batch": "tasks.plans",
    "ModelRecord": "records",
    "Results": "study.results",
    "Score": "measure.score",
    "Site": "sites",
    "Study": "study.study",
    "collect": "measure.collection",
    "compare_centers": "measure.comparison",
    "evaluate": "measure.evaluation",
    "explore": "explorer",
    "learn": "measure.learners",
    "load_model": "models.load",
    "named_neurons": "ablation.masks",
    "prompt": "measure.prompting",
    "random_neurons": "ablation.masks",
    "recommend": "study.recommendation",
    "record_of": "records",
    "task_for": "tasks.tasks",
    "top_neurons": "ablation.masks",
    "whole_heads": "ablation.masks",
}
_MODULES = {"centers": "neurons.centers", "metrics": "measure.metrics", "resampling": "measure.resampling"}
"""Modules that the root shows, where they do not lie in it."""


if not TYPE_CHECKING:  # a type checker reads the imports above, and says which name is not there

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"ablation_lens.{_HOMES[name]}"), name)
        if name in __all__:
            return import_module(f"ablation_lens.{_MODULES.get(name, name)}")
        raise AttributeError(f"module 'ablation_lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Questions that the paper leaves open, and its authors' other three papers: small grids that can be gone on with.

What all use:

- `scores`: many ablations of one model on the same documents, each scored once and kept; other pieces of work.
- `damage`: what ablations cost, compared in pairs over masks and documents.

The open questions:

- `constants`: loss as a function of the constant (`loss_curves`); `minima`: where such a curve is lowest.
- `stability`: how far centers move between collections and corpora.
- `atypical`: what off-zero, multi-modal and skewed neurons cost, beside gaussian-like ones of the same variances.
- `layers`: what every layer and every head costs, center by center.
- `processing`: what TransformerLens' processing of weights makes of an ablation.
- `controls`: every center, learned ones among them, beside what the same learning buys otherwise.
- `predictability`: whether the best constant follows from a neuron's shape.

Unlearning, modularity, transfer:

- `selection`: which neurons matter more on one corpus than on another.
- `pruning`: such neurons pruned step by step, and what is forgotten (`unlearn`); `trajectories`: how far that is ahead
  of what else is lost; `forgetting`: the same for every class of an image model.
- `rotation`: a model of the same function, whose heads' neurons are in order (`rotate_heads`).
- `clustering`: MLP neurons in clusters of equal size (`clusters`); `balanced`: how such groups are found.
- `agreement`: what masks have to do with clusters (`concentration`) and with each other (`overlap`), beside chance.
- `crossing`: what every task keeps without the neurons of each.
- `modularity`: whether several tasks are done by different neurons, beside a model before training.
- `transfer`: how much of the next paragraph one token carries; `grabbing`: what a model holds there, to be put
  elsewhere (`grab`); `paragraphs`: documents cut at a blank line (`pairs_of`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablation_lens.experiments.agreement import Concentration, Overlap, concentration, overlap
    from ablation_lens.experiments.atypical import ablate_atypical
    from ablation_lens.experiments.clustering import Clusters, clusters
    from ablation_lens.experiments.constants import loss_curves
    from ablation_lens.experiments.controls import better_centers
    from ablation_lens.experiments.crossing import CrossPruning, cross_pruning
    from ablation_lens.experiments.forgetting import ForgottenLabels, forget_labels
    from ablation_lens.experiments.grabbing import Grabbed, grab
    from ablation_lens.experiments.layers import ablate_layers
    from ablation_lens.experiments.modularity import ClusterDamage, Modularity, cluster_damage, study_modularity
    from ablation_lens.experiments.paragraphs import pairs_of
    from ablation_lens.experiments.predictability import predict_constants
    from ablation_lens.experiments.processing import compare_processing
    from ablation_lens.experiments.pruning import Unlearning, unlearn
    from ablation_lens.experiments.rotation import head_rotations, rotate_heads
    from ablation_lens.experiments.selection import importance, selective_neurons, selectivity
    from ablation_lens.experiments.stability import compare_collections
    from ablation_lens.experiments.transfer import Transfer, transfer_study

__all__ = [
    "ClusterDamage",
    "Clusters",
    "Concentration",
    "CrossPruning",
    "ForgottenLabels",
    "Grabbed",
    "Modularity",
    "Overlap",
    "Transfer",
    "Unlearning",
    "ablate_atypical",
    "ablate_layers",
    "better_centers",
    "cluster_damage",
    "clusters",
    "compare_collections",
    "compare_processing",
    "concentration",
    "cross_pruning",
    "forget_labels",
    "grab",
    "head_rotations",
    "importance",
    "loss_curves",
    "overlap",
    "pairs_of",
    "predict_constants",
    "rotate_heads",
    "selective_neurons",
    "selectivity",
    "study_modularity",
    "transfer_study",
    "unlearn",
]

# Lazily, as what is left in a folder is read without anything that runs a model. No module is named like one of these.
_HOMES = {
    "ClusterDamage": "modularity",
    "Clusters": "clustering",
    "Concentration": "agreement",
    "CrossPruning": "crossing",
    "Grabbed": "grabbing",
    "Modularity": "modularity",
    "Overlap": "agreement",
    "Transfer": "transfer",
    "ForgottenLabels": "forgetting",
    "Unlearning": "pruning",
    "ablate_atypical": "atypical",
    "ablate_layers": "layers",
    "better_centers": "controls",
    "cluster_damage": "modularity",
    "clusters": "clustering",
    "compare_collections": "stability",
    "compare_processing": "processing",
    "concentration": "agreement",
    "cross_pruning": "crossing",
    "grab": "grabbing",
    "forget_labels": "forgetting",
    "head_rotations": "rotation",
    "importance": "selection",
    "loss_curves": "constants",
    "overlap": "agreement",
    "pairs_of": "paragraphs",
    "predict_constants": "predictability",
    "rotate_heads": "rotation",
    "selective_neurons": "selection",
    "selectivity": "selection",
    "study_modularity": "modularity",
    "transfer_study": "transfer",
    "unlearn": "pruning",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ablation_lens.experiments.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ablation_lens.experiments' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

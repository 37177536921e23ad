"""Figures: statistics or results in, `plotly.graph_objects.Figure` out.

Nothing is shown and no global theme is set; every function takes `template=`, and a figure is data that the caller
shows, changes or writes. Names that come from outside (models, corpora) appear as text, whatever they contain.

- `distributions`: a neuron, or a layer of them; `maps`: heat maps of a model, of its statistics or its damage.
- `scatter`: one center against another; `results`: what ablation costs; `paper`: the paper's Figure 1.
- `stability`: how far centers move between collections; `atypical`: what neurons of a shape cost;
  `layers`: what every layer and head costs; `processing`: what processed weights change.
- `circuits`: what units are worth, circuits, and how faithful they are.
- `transfer`: what one token carries, by token, layer and site.
- `constants`: loss against the constant, and where it is lowest; `controls`: better centers beside their controls.
- `crossing`: what tasks keep without the neurons of each; `modularity`: neurons that they share, and in clusters.
- `pruning`: what is forgotten against what else is lost.
- `metrics`: how what was measured is written; `template`: the look that all share.
"""

from ablation_lens.plots.atypical import atypical_damage
from ablation_lens.plots.circuits import circuit_diagram, effect_map, faithfulness_curves, pair_map
from ablation_lens.plots.constants import loss_curve, loss_minima
from ablation_lens.plots.controls import better_centers
from ablation_lens.plots.crossing import cluster_map, cross_pruning_matrix
from ablation_lens.plots.distributions import layer_distribution, neuron_distribution
from ablation_lens.plots.layers import layer_damage
from ablation_lens.plots.maps import MEASURES, damage_map, head_map, neuron_map
from ablation_lens.plots.modularity import concentration_by_layer, overlap_map
from ablation_lens.plots.paper import figure_1
from ablation_lens.plots.processing import processing_differences
from ablation_lens.plots.pruning import unlearning_curves
from ablation_lens.plots.results import differences_to_best, figure_2
from ablation_lens.plots.scatter import centers_scatter
from ablation_lens.plots.stability import stability_curves
from ablation_lens.plots.template import LENS_TEMPLATE
from ablation_lens.plots.transfer import transfer_curves, transfer_shares

__all__ = [
    "LENS_TEMPLATE",
    "MEASURES",
    "atypical_damage",
    "better_centers",
    "centers_scatter",
    "circuit_diagram",
    "cluster_map",
    "concentration_by_layer",
    "cross_pruning_matrix",
    "damage_map",
    "differences_to_best",
    "effect_map",
    "faithfulness_curves",
    "figure_1",
    "figure_2",
    "head_map",
    "layer_damage",
    "layer_distribution",
    "loss_curve",
    "loss_minima",
    "neuron_distribution",
    "neuron_map",
    "overlap_map",
    "pair_map",
    "processing_differences",
    "stability_curves",
    "transfer_curves",
    "transfer_shares",
    "unlearning_curves",
]

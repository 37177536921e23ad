"""Circuits: which heads, MLPs and neurons do what, with any value in the place of those that are taken away.

`values`: what units are set to, `counterfactual` and `position_mean` among them; `setting`: the model, inputs, metric
and values that every function here is given; `units`: what is taken away as one, and its name; `effects`: what single
units are worth; `circuit`: the units that are kept.
"""

from ablation_lens.circuits.circuit import Circuit
from ablation_lens.circuits.effects import Effects
from ablation_lens.circuits.values import Values, counterfactual, position_mean

__all__ = ["Circuit", "Effects", "Values", "counterfactual", "position_mean"]

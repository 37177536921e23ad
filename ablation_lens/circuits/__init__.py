"""Circuits: which heads, MLPs and neurons do what, with any value in the place of those that are taken away.

- `prompting`: `Prompts`, with answers, wrong answers and corrupted twins; `prompt_file`: what a file holds of them.
- `prompt_tasks`: `prompts_for`, prompts of a task by its name.
- `closed_tasks`, `templates`: these tasks, on token ids and of sentences; `examples`: how they are drawn.
- `values`: what units are set to; `counterfactual` and `position_mean` among it.
- `setting`: the model, inputs, metric and values that every function here is given.
- `units`: what is taken away as one, and what people write for it.
- `effects`: what single units are worth.
- `knockout`: exact effects, one unit at a time; `branches`: runs that share what they have in common.
- `attribution`: effects of all neurons at once, from gradients.
- `edges`: what units do through one another; exact path patching.
- `analysis`: all of it in a folder, which goes on where it was interrupted.
- `circuit`: the units that are kept.
- `judging`: how good a circuit is: faithfulness, and what the rest keeps.
- `removal`: what a circuit lacks and what it does not need: the completeness gap, minimality.
- `halving`: one half of the prompts to find circuits on, and the other to judge them on.
- `discovery`: the fewest units that do, found on one half of the prompts and judged on the other.
- `curves`: faithfulness against size, for every pair of values to find and to judge with.
"""

from ablation_lens.circuits.attribution import attribution_effects
from ablation_lens.circuits.circuit import Circuit
from ablation_lens.circuits.curves import Curves, faithfulness_curve
from ablation_lens.circuits.discovery import Discovery, discover
from ablation_lens.circuits.edges import Edge, EdgeEffects, edge_effects, path_patching
from ablation_lens.circuits.effects import Effects
from ablation_lens.circuits.judging import Faithfulness, completeness_of_rest, faithfulness
from ablation_lens.circuits.knockout import knockout_effects
from ablation_lens.circuits.prompt_tasks import prompt_names, prompts_for, register_prompts, unregister_prompts
from ablation_lens.circuits.prompting import Prompts
from ablation_lens.circuits.removal import CompletenessGap, Minimality, completeness_gap, minimality
from ablation_lens.circuits.values import Values, counterfactual, position_mean

__all__ = [
    "Circuit",
    "CompletenessGap",
    "Curves",
    "Discovery",
    "Edge",
    "EdgeEffects",
    "Effects",
    "Faithfulness",
    "Minimality",
    "Prompts",
    "Values",
    "attribution_effects",
    "completeness_gap",
    "completeness_of_rest",
    "counterfactual",
    "discover",
    "edge_effects",
    "faithfulness",
    "faithfulness_curve",
    "knockout_effects",
    "minimality",
    "path_patching",
    "position_mean",
    "prompt_names",
    "prompts_for",
    "register_prompts",
    "unregister_prompts",
]

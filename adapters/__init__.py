"""Model families that TransformerLens does not hook, or not the way ablation needs it.

Imported as `ablation_lens.adapters`. docs/howto/own-family.md shows how a third party adds a family.

- `registry`: `register`, and which class hooks which family.
- `encoder`: `HookedEncoder`, what all have in common; `attention`: its attention, with hooks.
- `roberta`, `vit`: the two families.
"""

from ablation_lens.adapters.attention import LayerParts
from ablation_lens.adapters.encoder import EncoderConfig, HookedEncoder, HookedLayerNorm
from ablation_lens.adapters.registry import Family, families, register, unregister
from ablation_lens.adapters.roberta import HookedRoberta
from ablation_lens.adapters.vit import HookedViT

__all__ = [
    "EncoderConfig",
    "Family",
    "HookedEncoder",
    "HookedLayerNorm",
    "HookedRoberta",
    "HookedViT",
    "LayerParts",
    "families",
    "register",
    "unregister",
]

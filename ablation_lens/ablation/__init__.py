"""What is set to what, and how a model is made to do it.

- `ablation`: `Ablation`, neurons and their values, as TransformerLens hooks.
- `masks`: which neurons: at random, the highest of some score, whole heads.
- `baking`: the same without hooks, folded into weights; `copying`: the second model that this needs.
"""

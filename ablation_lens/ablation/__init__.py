"""What is set to what, and how a model is made to do it.

- `ablation`: `Ablation`, neurons and their values, as TransformerLens hooks; `Ablations`, several of them.
- `masks`: which neurons: by name, at random, the highest of some score.
- `places`: at which positions of every row.
- `baking`: the same without hooks, folded into weights; `copying`: the second model that this needs.
"""

"""How the zoo was trained: `python -m ablation_lens.zoo.train NAME`. A program of its own, which nothing imports.

- `training`: the loop, and the folder that it leaves; `recipes`: the five models.
- `data`, `batches`, `vocabulary`, `warm_start`, `optimizer`: what it needs; `baselines`, `held_out`: how it is judged.
"""

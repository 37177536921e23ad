"""A model runs over batches, and something is measured.

- `forward`: running to the last block, watching a site on the way, logits where they are scored.
- `collection`: `collect`, statistics in one pass.
- `evaluation`: `evaluate`, with or without an ablation; `metrics`: what it measures; `score`: what it gives;
  `intervals`: how sure a difference is.
- `resampling`: the values of one random input; `random_inputs`: how it is drawn.
- `contexts`: the documents in which neurons are lowest, nearest to their peak, and highest.
"""

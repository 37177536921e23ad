"""A model runs over batches, and something is measured.

- `forward`: running to the last block, watching a site on the way, logits where they are scored.
- `collection`: `collect`, statistics in one pass; `sharding`: by several processes, and their sum.
- `evaluation`: `evaluate`, with or without an ablation; `metrics`: what it measures; `score`: what it gives;
  `score_file`: how that lies in a file; `intervals`: how sure a difference is.
- `prefix`: the blocks before the first ablated layer, kept for runs with other ablations.
- `readout`: a metric row by row for one batch, with gradients, and of residuals made apart.
- `comparison`: which center does the least harm; `prompting`: what a model says to one text, before and after.
- `resampling`: the values of one random input; `random_inputs`: how it is drawn.
- `learners`: `learn`, centers that are learned from a model, by name; `learned`: what they give;
  `optimal_constants`: those that cost least; `sensitivity`: means weighted by how much values matter; `sequential`:
  means with all below ablated; `descent`: learning through hooks, under random masks.
- `contexts`: the documents in which neurons are lowest, nearest to their peak, and highest.
- `whole_texts`: neurons at every token of those documents; `output_tokens`: what a neuron does to the logits by itself.
"""

"""How values are distributed: what one pass over a model's activations leaves behind, and what is read off it.

- `rows`: one layer's activation neuron by neuron, which the four that count and sum are fed with:
  `histogram`, `trimmed`, `moments`, `positions`; `grid` is the arithmetic of bins.
- `layer_group`: layers side by side, as an accelerator counts them.
- `statistics_file`, `histogram_file`: what a file holds of them, and what it must not hold; `arrays`: the same as NumPy
  arrays.
- `statistics`: `ActivationStatistics`, all of it together, with where it was measured.
- `peaks`, `shapes`: where a distribution is highest, and what it looks like.
- `centers`: what an ablated neuron is set to. A new center is a function here.
"""

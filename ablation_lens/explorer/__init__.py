"""The explorer: every neuron's distribution on one interactive page, as a file or inside a notebook.

The page is one self-contained HTML file. The same file, in a frame, is what a notebook's cell shows.

- `view`: `explore`, from statistics (or a model and batches) to the page; `files`: the same from files to a file.
- `dataset`, `packing`: statistics as the page wants them; `moved`: how far neurons moved between two of them.
- `effects`: effects of circuits as numbers per neuron.
- `curves`: the loss against the constant, under a neuron's histogram.
- `beside`: what stands beside a neuron: examples, whole texts, output tokens, damage.
- `page`: putting it together, so that nothing runs but the scripts in `assets/`.
"""

from ablation_lens.explorer.view import Explorer, explore

__all__ = ["Explorer", "explore"]

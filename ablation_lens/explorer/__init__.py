"""The explorer: every neuron's distribution on one interactive page, as a file or inside a notebook.

The page is one self-contained HTML file. The same file, in a frame, is what a notebook's cell shows.

- `view`: `explore`, from statistics (or a model and batches) to the page; `files`: the same from files to a file.
- `dataset`, `packing`: statistics as the page wants them; `beside`: examples and damage.
- `page`: putting it together, so that nothing runs but the scripts in `assets/`.
"""

from ablation_lens.explorer.view import Explorer, explore

__all__ = ["Explorer", "explore"]

"""The paper's experiment: every method at every fraction with every seed, for every model.

- `study`: `Study`, its settings; `paper`: presets, and every constant of the paper; `methods`: ways of ablating.
- `run`: measuring, model by model; `model_run`: one model's cells; `cells`: a cell, and how it lies in a run folder.
- `own`: models, batches and corpora that were given in Python: what they are called, and how records describe them.
- `records`: what the files of a run folder say, and which of it is possible.
- `results`: `Results`, a row per cell, and a summary; `table2`: the paper's table; `group_labels`: names of groups.
- `recommendation`: `recommend`, which center to take in a model, by one small study.
- `status`: how far the studies of a run folder are.
"""

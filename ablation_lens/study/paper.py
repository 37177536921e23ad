"""The paper: what it measured, at which sizes, and what it found. The presets begin here.

What lower floors need of it are their own defaults: the number of bins of the peak (`neurons.peaks.PEAK_BINS`), and in
`tasks.tasks` a document's longest context, the shares of masked language modelling and the number of common tokens.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

# Divided, not multiplied: 3 * 0.1 is not 0.3, and fractions are in keys.
FRACTIONS = tuple(tenth / 10 for tenth in range(1, 11))
SEEDS = (42, 123, 456)
SIZES: Mapping[str, int] = MappingProxyType({"tokens": 100_000, "images": 1000})
"""Of the corpora that statistics and scores are of."""

TABLE_FRACTIONS = (0.5, 0.9)
"""The shares that Table 2 shows."""

MODELS = (
    "facebook/opt-1.3b",
    "mistralai/Mistral-7B-v0.1",
    "google/vit-base-patch16-224",
    "FacebookAI/roberta-large",
)

_COLUMNS = {
    "opt-1.3b": "opt-1.3b",
    "Mistral-7B-v0.1": "mistral-7b",
    "vit-base-patch16-224": "vit-base",
    "roberta-large": "roberta-large",
}
"""Last part of a model's name → the column of the published table."""

_RESAMPLINGS = ("resample-characters", "resample-tokens", "resample-generated", "resample-pixels")
_ZOO = ("tiny-opt", "tiny-mistral", "tiny-vit", "tiny-roberta")

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # What the paper did. Mistral's dtype was not published.
        "paper": {
            "models": MODELS,
            "methods": ("peak", "mean", "zero", *_RESAMPLINGS),
            "corpora": {"text": "pile", "image": "imagenet-1k"},
            "collect_tokens": SIZES["tokens"],
            "evaluate_tokens": SIZES["tokens"],
            "collect_images": SIZES["images"],
            "evaluate_images": SIZES["images"],
            "shared_input": True,
            "generator": "facebook/opt-1.3b",
            "dtype": {
                "facebook/opt-1.3b": "float16",
                "mistralai/Mistral-7B-v0.1": "float16",
                "FacebookAI/roberta-large": "float16",
            },
        },
        # The zoo, with enough seeds to speak of more than the masks drawn.
        "tiny": {
            "models": _ZOO,
            "methods": ("zero", "mean", "median", "peak", "peak-kde", *_RESAMPLINGS),
            "seeds": (42, 123, 456, 789, 1011, 1213, 1415, 1617, 1819, 2021),
            "collect_tokens": 50_000,
            "evaluate_tokens": 10_000,
        },
        # A first look, in minutes on a laptop.
        "quick": {
            "models": _ZOO,
            "methods": ("zero", "mean", "peak", *_RESAMPLINGS),
            "fractions": (0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
            "collect_tokens": 20_000,
            "evaluate_tokens": 3_000,
        },
    }
)


def is_of_the_paper(model: str) -> bool:
    """Whether this is one of the paper's four models.

    >>> is_of_the_paper("/models/roberta-large"), is_of_the_paper("tiny-opt")
    (True, False)
    """
    return PurePath(model).name in _COLUMNS


def published(model: str, metric: str, method: str, fraction: float) -> tuple[float, float] | None:
    """The baseline and figure of the paper's Table 2; None for what it did not measure.

    >>> published("facebook/opt-1.3b", "cross_entropy", "peak", 0.5) is None, published("tiny-opt", "top1", "peak", 0.5)
    (False, None)
    >>> published("facebook/opt-1.3b", "cross_entropy", "peak", 0.504) is None
    True
    """
    import pandas as pd

    column = _COLUMNS.get(PurePath(model).name)
    if column is None:
        return None
    table = _table()
    table = table[table["metric"] == {"top1": "top1", "cross_entropy": "ce"}[metric]]
    baseline = table.loc[table["method"] == "baseline", column].iloc[0]
    # The table counts in percent, and 100 * 0.29 is 28.999…
    found = table.loc[(table["method"] == method) & (table["pruned"] == round(100 * fraction, 9)), column]
    if found.empty or pd.isna(found.iloc[0]):
        return None
    return float(baseline), float(found.iloc[0])


@cache
def _table() -> Any:
    import pandas as pd

    with (files("ablation_lens.study") / "paper_table2.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)

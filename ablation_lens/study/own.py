"""What a study was given in Python, models, batches and corpora: what it is called, and how records describe it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ablation_lens.corpora import Corpus, is_dataset
from ablation_lens.corpora.own import DATA_SET, TEXTS
from ablation_lens.errors import MismatchError
from ablation_lens.records import record_of, stated_record
from ablation_lens.tasks.inputs import told
from ablation_lens.tasks.plans import Batch, BatchPlan, PlanPart

SIDES = ("collect", "evaluate")
"""What batches are for."""

_WANTED = 'batches={"collect": …, "evaluate": …}, or such a pair for each model, as in {"tiny-opt": {…}, model: {…}}'


def is_model(value: Any) -> bool:
    """Whether this is a hooked model rather than the name of one."""
    return hasattr(value, "cfg") and hasattr(value, "run_with_hooks")


def names_of(models: Sequence[Any]) -> list[str]:
    """What models are called: by their names; of one name, those that were given by their weights, too.

    >>> names_of(["tiny-opt", "tiny-vit"])
    ['tiny-opt', 'tiny-vit']
    """
    plain = [model if isinstance(model, str) else stated_record(model).name for model in models]
    alike = Counter(plain)
    names: list[str] = []
    for name, model in zip(plain, models, strict=True):
        if not isinstance(model, str) and alike[name] > 1:
            name = f"{name} (weights {(record_of(model).checksum or '').rpartition('-')[2][:6]})"
        same = sum(known == name or known.startswith(f"{name} #") for known in names)
        names.append(f"{name} #{same + 1}" if same else name)  # of the same weights, but set up otherwise
    return names


def kept_batches(batches: Any, models: Sequence[Any]) -> tuple[tuple[Any, Mapping[str, Any]], ...]:
    """Pairs of a model, or None for every model, and its batches by side; iterators are read now.

    >>> kept_batches({"collect": ["One."], "evaluate": ["Two."]}, ["tiny-opt"])
    ((None, {'collect': ['One.'], 'evaluate': ['Two.']}),)
    """
    if not isinstance(batches, Mapping) or not batches:
        raise MismatchError(f"batches is {told(batches)}; give {_WANTED}.")
    if set(batches) & set(SIDES):
        return ((None, _sides(batches)),)
    for model in batches:
        if not any(model is known or (isinstance(model, str) and model == known) for known in models):
            named = model if isinstance(model, str) else stated_record(model).name if is_model(model) else told(model)
            raise MismatchError(f"batches are given for {named}, which is not among the models; give {_WANTED}.")
    return tuple((model, _sides(both)) for model, both in batches.items())


def _sides(batches: Any) -> Mapping[str, Any]:
    if not isinstance(batches, Mapping) or set(batches) != set(SIDES):
        got = ", ".join(map(repr, batches)) if isinstance(batches, Mapping) else told(batches)
        raise MismatchError(f"batches need 'collect' and 'evaluate', got {got}; give {_WANTED}.")
    # A study reads them once for every model.
    return {side: list(given) if isinstance(given, Iterator) else given for side, given in batches.items()}


def is_corpus(value: Any) -> bool:
    """Whether this can be a corpus in Python: texts, a data set, or an opened corpus."""
    return isinstance(value, list | tuple | Corpus) or is_dataset(value)


def alike(one: Any, other: Any) -> bool:
    """Whether two settings are equal, tensors by their numbers: `==` of two has no single truth value.

    >>> alike({"evaluate": np.array([5, 6])}, {"evaluate": np.array([5, 6])}), alike([1], [1.5])
    (True, False)
    """
    if one is other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        same = type(one) is type(other) and one.shape == other.shape and one.dtype == other.dtype
        return same and bool((one == other).all())
    if type(one) is type(other) and isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, Batch) and isinstance(other, Batch):
        return alike(vars(one), vars(other))
    return bool(one == other)


def corpus_name(value: Any) -> str:
    """What settings call a corpus: as its record does."""
    if isinstance(value, str | Corpus):
        return value if isinstance(value, str) else value.name
    return DATA_SET if is_dataset(value) else TEXTS


def description(
    models: Sequence[Any], batches: Sequence[tuple[Any, Mapping[str, Any]]], corpora: Any
) -> dict[str, str]:
    """What was given in Python, in words that a record keeps; empty where everything has a name.

    >>> description(["tiny-opt"], (), {"text": "stdlib"})
    {}
    """
    names = names_of(models)
    given = {}
    for name, model in zip(names, models, strict=True):
        if not isinstance(model, str):
            given[f"model {name}"] = f"{type(model).__name__}, checksum {record_of(model).checksum}"
    for model, both in batches:
        whose = "" if model is None else f" of {names[[each is model or each == model for each in models].index(True)]}"
        for side, batch in both.items():
            given[f"batches to {side}{whose}"] = _kind(batch)
    for kind, corpus in corpora.items():
        if not isinstance(corpus, str):
            given[f"{kind} corpus"] = _kind(corpus)
    return given


def _kind(value: Any) -> str:
    """A batch or a corpus in a few words; which rows it holds, the plans' digests in the groups say."""
    if isinstance(value, BatchPlan | PlanPart):
        plan = value if isinstance(value, BatchPlan) else value.plan
        return f"plan {plan.digest}"
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return f"{len(value):,} texts"
    if isinstance(value, Path | Corpus):
        return str(getattr(value, "name", value))
    try:
        return f"{type(value).__name__} of {len(value):,}"
    except TypeError:  # a stream has no length
        return type(value).__name__

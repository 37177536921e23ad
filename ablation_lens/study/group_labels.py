"""What groups of cells are called: by their model, and by whatever tells the groups of one model apart."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

_DIFFERENCES: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    lambda group: str(group["model"]["dtype"]),
    lambda group: str(group["facts"]["site"]),
    lambda group: f"{group['evaluate']['size_obtained']:,} {group['evaluate']['unit']}",
    lambda group: {"all": "all predictions"}.get(group["count"], str(group["count"])),
    lambda group: f"measuring {', '.join(group['facts']['metrics'])}",
    lambda group: f"context {group['context']}",
    lambda group: f"statistics of {group['collect']['size_obtained']:,} {group['collect']['unit']}",
    lambda group: f"{group['facts']['bins']} bins",
    lambda group: "with BOS" if group["facts"]["include_bos"] else "without BOS",
    lambda group: f"one input (seed {shared})" if (shared := _shared(group)) is not None else "an input per seed",
    lambda group: f"text by {group['facts']['generator']}",
    lambda group: f"masks of seed {group['mask_seed']}",
    lambda group: f"batches of {group['batch_size']}",
    lambda group: str(group["facts"]["device"]),
    lambda group: f"weights {str(group['model']['weights'])[:6]}",
    lambda group: f"config {str(group['facts']['config'])[:6]}",
    lambda group: f"tokenizer or image processor {str(group['facts']['reader'])[:6]}",
    lambda group: f"ablation-lens {group['versions']['ablation_lens']}",
    lambda group: f"transformer-lens {group['versions']['transformer_lens']}",
    lambda group: f"transformers {group['versions']['transformers']}",
    lambda group: f"torch {group['versions']['torch']}",
    lambda group: f"statistics of {group['collect']['name']}",
    lambda group: f"documents {str(group['evaluate']['digest'])[:6]}",
    lambda group: f"statistics of documents {str(group['collect']['digest'])[:6]}",
)
"""What two groups may differ in, as a person would say it; what matters most comes first."""


def _shared(group: Mapping[str, Any]) -> Any:
    shared = group["facts"]["shared_input"]
    # `is`, as a seed of 0 equals False. (Early files say False where None stands now.)
    return None if shared is False else shared


def label_groups(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Group → label, from what each group's cells share.

    >>> one = {"model": {"name": "tiny-opt", "dtype": "float32"}, "evaluate": {"name": "stdlib"}}
    >>> other = {"model": {"name": "tiny-opt", "dtype": "bfloat16"}, "evaluate": {"name": "stdlib"}}
    >>> list(label_groups({"a": one, "b": other}).values())
    ['tiny-opt on stdlib (float32)', 'tiny-opt on stdlib (bfloat16)']
    """
    models = Counter(str(group["model"]["name"]) for group in groups.values())
    labels = {}
    for key, group in groups.items():
        name = str(group["model"]["name"])
        labels[key] = name if models[name] == 1 else f"{name} on {group['evaluate']['name']}"
    for alike in {label: [key for key in labels if labels[key] == label] for label in labels.values()}.values():
        told = _told_apart({key: groups[key] for key in alike})
        labels |= {key: f"{labels[key]} ({told[key]})" for key in alike if told[key]}
    return labels


def _further(groups: Mapping[str, Mapping[str, Any]]) -> Iterator[Callable[[Mapping[str, Any]], str]]:
    """A difference for every single value in the groups' files, named by where it stands."""
    flat = [dict(_leaves(group)) for group in groups.values()]
    # Sorted, as a set of strings has another order in every process.
    for place in sorted({place for leaves in flat for place in leaves}):
        if len({str(leaves.get(place)) for leaves in flat}) > 1:
            yield partial(_say, place)


def _say(place: tuple[str, ...], group: Mapping[str, Any]) -> str:
    # KeyError where this group has no such value; `_told_apart` passes over that. Two long values may be cut to the
    # same text; then the groups' keys tell them apart.
    return f"{' '.join(place)} {str(dict(_leaves(group))[place])[:12]}"


def _leaves(values: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _leaves(value, (*place, str(name)))
    elif place[:1] != ("statistics",):  # keys that follow from the rest
        yield place, values


def _told_apart(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What differs between these: first what people have words for, then anything else; their keys if nothing does."""
    told = dict.fromkeys(groups, "")
    for difference in (*_DIFFERENCES, *_further(groups)):
        texts = {}
        for key, group in groups.items():
            with suppress(KeyError, TypeError, ValueError):  # written by an earlier version, or by hand
                texts[key] = difference(group)
        further = {key: ", ".join(filter(None, (told[key], texts.get(key)))) for key in groups}
        # A difference is said only if it splits groups that were still alike: labels stay short.
        if len(set(further.values())) > len(set(told.values())):
            told = further
    same = Counter(told.values())
    return {key: text if same[text] == 1 else ", ".join(filter(None, (text, key[:6]))) for key, text in told.items()}

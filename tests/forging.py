"""Files with a right checksum and wrong contents: what somebody makes who knows the format, and means no good.

A mutation changes a file's header and tensors in place; `Forger` draws them from a seed.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablation_lens.files import load_tensors, save_tensors

Mutation = Callable[[dict[str, Any], dict[str, Tensor], random.Random], None]

WRONG = (
    None, True, False, 0, 1, -1, 2, 10**9, 3.5, -0.0, 1e308, 2**31, 2**63, -(2**63), 10**40,
    "", "x", "z", "mlp", "float32", "bfloat16", "int8", "NeuronHistogram", "\ud800", "\x1b[31m", "a\nb", "/etc/passwd",
    [], {}, [[]], [0, 0, 0], [1, 1, 1], [-1, 2, 3], [2**40, 2**40, 2**40], [1, 2], ["1", "2", "3"], {"a": 1},
)  # fmt: skip

NUMBERS = (0, 1, -1, 2, 7, 100, 2**31, 2**53 + 1, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 5e-324, 1e10, 1e300, -1e300, float("nan"), float("inf"), float("-inf"))
DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8, torch.int8)


class Forger:
    """Forges one good file again and again."""

    def __init__(self, path: Path, kind: str, newest: int) -> None:
        self.kind, self.newest = kind, newest
        self.header, self.tensors = load_tensors(path, kind, newest=newest)

    def forge(self, target: Path, number: int) -> str:
        """Write the `number`-th forgery, always the same one; returns what was done to it, for a message."""
        header, tensors = copy.deepcopy((self.header, self.tensors))
        draw = random.Random(number)
        done = draw.choices(MUTATIONS, k=draw.choice((1, 1, 1, 2, 4)))
        for mutate in done:
            mutate(header, tensors, draw)
        save_tensors(target, self.kind, header, tensors, version=draw.randint(1, self.newest))
        return f"forgery {number}: {', '.join(mutate.__name__ for mutate in done)}"


# ---------------------------------------------------------------------- headers


def places(value: Any, above: Any = None, at: Any = None) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in nested JSON."""
    if above is not None:
        yield above, at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, value, key)


def wrong_value(header, tensors, draw):
    inside, at = draw.choice(list(places(header)))
    inside[at] = json.loads(json.dumps(draw.choice(WRONG)))


def number_moved(header, tensors, draw):
    numbers = [(inside, at) for inside, at in places(header) if type(inside[at]) is int]
    inside, at = draw.choice(numbers)
    inside[at] += draw.choice((-1, 1, 10**6, -(10**6)))


def field_dropped(header, tensors, draw):
    inside, at = draw.choice(list(places(header)))
    inside.pop(at)


def field_added(header, tensors, draw):
    inside, _ = draw.choice(list(places(header)))
    if isinstance(inside, dict):
        inside[draw.choice(("x", "trimmed", "shape", "read", ""))] = draw.choice(WRONG)
    else:
        inside.append(draw.choice(WRONG))


def fields_swapped(header, tensors, draw):
    (one, here), (other, there) = draw.choices(list(places(header)), k=2)
    one[here], other[there] = json.loads(json.dumps(other[there])), json.loads(json.dumps(one[here]))


def nested_deeply(header, tensors, draw):
    inside, at = draw.choice(list(places(header)))
    deep: Any = inside[at]
    for _ in range(draw.choice((3, 300))):
        deep = [deep] if draw.random() < 0.5 else {"a": deep}
    inside[at] = deep


# ---------------------------------------------------------------------- tensors


def some(tensors, draw):
    return draw.choice(sorted(tensors)) if tensors else None


def tensor_dropped(header, tensors, draw):
    tensors.pop(some(tensors, draw), None)


def tensor_renamed(header, tensors, draw):
    if name := some(tensors, draw):
        tensors[draw.choice((f"{name}.x", name.partition(".")[2] or "x", "position.sums", "trimmed.counts"))] = (
            tensors.pop(name).clone()
        )


def tensor_added(header, tensors, draw):
    tensors[draw.choice(("x", "histogram.x", "position.counts", "moments.positive", "\x1b[31m"))] = torch.zeros(
        draw.choice(((), (0,), (3,), (1, 2, 3)))
    )


def tensors_swapped(header, tensors, draw):
    one, other = some(tensors, draw), some(tensors, draw)
    if one:
        tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


def another_dtype(header, tensors, draw):
    if name := some(tensors, draw):
        tensors[name] = tensors[name].to(draw.choice(DTYPES))


def another_shape(header, tensors, draw):
    if name := some(tensors, draw):
        tensor = tensors[name]
        tensors[name] = draw.choice(
            (
                lambda: tensor.flatten(),
                lambda: tensor.unsqueeze(0),
                lambda: tensor[..., :-1].clone() if tensor.ndim else tensor,
                lambda: torch.cat([tensor, tensor], -1) if tensor.ndim else tensor,
                lambda: tensor.mT.contiguous() if tensor.ndim > 1 else tensor,
                lambda: tensor[:0].clone() if tensor.ndim else tensor,
                lambda: tensor.sum(),
            )
        )()


def wrong_entry(header, tensors, draw):
    name = some(tensors, draw)
    if name and tensors[name].numel():
        flat = tensors[name] = tensors[name].clone()
        flat, place = flat.view(-1), draw.randrange(tensors[name].numel())
        if flat.dtype.is_floating_point:
            old = float(flat[place])
            choices = (*FLOATS, -old, old * 2, old / 2, old * (1 + 1e-6), old * (1 + 1e-12), old + 1, old - 1)
        elif flat.dtype == torch.bool:
            choices = (0, 1)
        else:
            most = torch.iinfo(flat.dtype)
            old = int(flat[place])
            choices = tuple(
                min(max(each, most.min), most.max) for each in (*NUMBERS, -old, old + 1, old - 1, 2 * old, old // 2)
            )
        # By way of float64, as a number may be too large for a narrower dtype.
        chosen = draw.choice(choices)
        flat[place] = torch.tensor(chosen, dtype=torch.float64).to(flat.dtype) if isinstance(chosen, float) else chosen


def entries_moved(header, tensors, draw):
    """From one place to another, so that sums stay."""
    name = some(tensors, draw)
    if name and tensors[name].numel() and tensors[name].dtype != torch.bool:
        tensors[name] = tensors[name].clone()
        flat = tensors[name].view(-1)
        here, there = draw.randrange(len(flat)), draw.randrange(len(flat))
        much = draw.choice((1, 3, 50))
        flat[here] -= much
        flat[there] += much


def all_scaled(header, tensors, draw):
    name = some(tensors, draw)
    if name and tensors[name].dtype != torch.bool:
        tensors[name] = tensors[name] * draw.choice((-1, 0, 2, 1000))


def one_neuron_overwritten(header, tensors, draw):
    """The numbers of one neuron in the place of another's, in one tensor or in all of a part."""
    part = draw.choice(("", "histogram.", "moments.", "trimmed."))
    names = [name for name in sorted(tensors) if part and name.startswith(part)] or [some(tensors, draw)]
    place = [draw.randrange(1 << 30) for _ in range(2)]
    for name in names:
        if name and tensors[name].ndim >= 3:
            flat = tensors[name] = tensors[name].clone()
            flat = flat.flatten(0, 2)
            if len(flat):
                flat[place[0] % len(flat)] = flat[place[1] % len(flat)].clone()


MUTATIONS: tuple[Mutation, ...] = (
    wrong_value, wrong_value, number_moved, field_dropped, field_added, fields_swapped, nested_deeply,
    tensor_dropped, tensor_renamed, tensor_added, tensors_swapped, another_dtype, another_shape,
    wrong_entry, wrong_entry, wrong_entry, wrong_entry, entries_moved, entries_moved, all_scaled,
    one_neuron_overwritten,
)  # fmt: skip

"""Values that somebody wrote on purpose, under a checksum that is right: it says nothing about what is possible."""

import copy
import json
import struct

import torch

HOSTILE = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    -(2**70),
    10**30,
    0.5,
    -0.5,
    1e308,
    "",
    "x",
    "\x1b[31mred\x1b]0;title\x07",
    "two\nlines",
    "<script>document.title='run'</script>",
    "../../../../etc/passwd",
    "/dev/zero",
    "a" * 5000,
    "peak bins=0",
    "nan",
    [],
    {},
    [[[[1]]]],
    {"a": {"b": {"c": []}}},
    ["x"],
    [1, 2],
    [-1, -1, -1],
    [0, 0, 0],
    [2**40, 2**40, 2**40],
)


def places(values, path=()):
    """The path of every value in nested lists and dicts."""
    found = [path] if path else []
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        found += places(value, (*path, key))
    return found


def forged(values, draw):
    """Plain values with one of them replaced, removed, renamed, moved or added: (what was done, the values)."""
    values = copy.deepcopy(values)
    path = draw.choice(places(values) or [()])
    if not path:
        return "emptied", {}
    holder = values
    for step in path[:-1]:
        holder = holder[step]
    last, way = path[-1], draw.choice(("replace", "replace", "replace", "remove", "rename", "swap", "nest", "add"))
    if way == "replace":
        holder[last] = copy.deepcopy(draw.choice(HOSTILE))
    elif way == "remove":
        del holder[last]
    elif way == "rename" and isinstance(holder, dict):
        holder[f"{last}\x1b"] = holder.pop(last)
    elif way == "swap":
        other = values
        for step in (chosen := draw.choice(places(values))):
            other = other[step]
        holder[last] = copy.deepcopy(other)
        way += f" with {chosen}"
    elif way == "nest":
        holder[last] = [holder[last]]
    elif isinstance(holder, dict):
        holder["one more"] = copy.deepcopy(draw.choice(HOSTILE))
    else:
        holder.append(copy.deepcopy(draw.choice(HOSTILE)))
    return f"{way} {path}", values


def forged_tensors(tensors, draw):
    """Tensors with one of them changed in its values, shape, type or name: (what was done, the tensors)."""
    tensors = dict(tensors)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name].clone()
    way = draw.choice(
        ("value", "value", "value", "all", "shape", "longer", "dtype", "remove", "rename", "empty", "swap")
    )
    if way in ("value", "all") and tensor.numel():
        number = draw.choice((0, 1, -1, 2**20, -(2**31), 2**62, float("nan"), float("inf"), 1e30, -1e300))
        if tensor.is_floating_point():
            number = torch.tensor(number, dtype=torch.float64).to(tensor.dtype).item()  # 1e30 is infinite in 16 bits
        else:
            number = 0 if number != number else int(max(-(2**62), min(2**62, number)))
            number = number % 2 if tensor.dtype == torch.bool else number
            if tensor.dtype != torch.bool:
                limits = torch.iinfo(tensor.dtype)
                number = max(limits.min, min(limits.max, number))
        flat = tensor.view(-1)
        place = slice(None) if way == "all" else draw.randrange(len(flat))
        flat[place] = number
        way += f" {number}"
    elif way == "shape":
        tensor = tensor.reshape(-1)
    elif way == "longer":
        tensor = torch.cat([tensor, tensor]) if tensor.ndim else tensor.expand(3).clone()
    elif way == "dtype":
        tensor = tensor.to(draw.choice((torch.float16, torch.int32, torch.bool, torch.float32, torch.uint8)))
    elif way == "empty":
        tensor = tensor.new_zeros(0)
    elif way == "swap":
        tensor = tensors[other := draw.choice(sorted(tensors))].clone()
        way += f" with {other}"
    if way in ("remove", "rename"):
        del tensors[name]
    if way != "remove":
        tensors[name if way != "rename" else f"{name}\x1b"] = tensor
    return f"{way} {name}", tensors


def opened(path):
    """A tensor file of ours as (kind, version, header, tensors), with nothing checked."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        outer = json.loads(file.metadata()["ablation_lens"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    return outer["kind"], outer["version"], outer["header"], tensors


def own_header(content, change):
    """A safetensors file whose own header `change(dict)` has altered: offsets, types, shapes, names."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header = change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]

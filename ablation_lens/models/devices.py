"""A model that does not fit one device: its blocks lie on several, in equal parts, one after another.

What a block needs is sent to where it lies, and what the last one gives back to the first device, on which all else is:
embeddings and unembedding, which may be one weight, and batches. Hooks see a layer's values on the layer's device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ablation_lens.errors import ModelError


def devices_from(first: torch.device, count: Any) -> tuple[torch.device, ...]:
    """So many devices, counted from the first; raises `ModelError` where they are not there.

    >>> devices_from(torch.device("cpu"), 1)
    (device(type='cpu'),)
    >>> devices_from(torch.device("cpu"), 2)
    Traceback (most recent call last):
    ablation_lens.errors.ModelError: n_devices=2 splits a model over GPUs, and its device is cpu; leave n_devices out.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ModelError(f"n_devices={count!r:.60} is not possible; give a whole number from 1.")
    if count == 1:
        return (first,)
    if first.type != "cuda":
        raise ModelError(f"n_devices={count} splits a model over GPUs, and its device is {first}; leave n_devices out.")
    start, there = first.index or 0, torch.cuda.device_count()
    if start + count > there:
        raise ModelError(
            f"n_devices={count} asks for GPUs {start} to {start + count - 1}, and torch sees {there} here; ask for "
            "fewer, or load the model in bfloat16."
        )
    return tuple(torch.device("cuda", start + number) for number in range(count))


def spread(model: Any, devices: Sequence[torch.device]) -> None:
    """Move a model to several devices: block i of n to device i·k/n of k, the rest to the first."""
    layers, count = model.cfg.n_layers, len(devices)
    moved: set[nn.Module] = set()
    for layer, block in enumerate(model.blocks):
        # As TransformerLens 3 reckons, which sends the residual stream there itself.
        device = devices[layer * count // layers]
        for module in _modules(block):
            moved.add(module)
            _move(module, device)
        if device != devices[0]:
            block.register_forward_pre_hook(_Sending(device), prepend=True, with_kwargs=True)
    model.blocks[layers - 1].register_forward_hook(_Returning(devices[0]))
    for module in _modules(model):
        if module not in moved:
            _move(module, devices[0])
    model.cfg.device, model.cfg.n_devices = devices[0], count


def _modules(part: nn.Module) -> Iterator[nn.Module]:
    """Every module within; what a bridge of transformer-lens 4 stands around is not among its children."""
    found, waiting = set(), [part]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        yield module
        waiting += nn.Module.children(module)
        if isinstance(original := module.__dict__.get("original_model"), nn.Module):
            waiting.append(original)
        if isinstance(original := getattr(module, "original_component", None), nn.Module):
            waiting.append(original)


def _move(module: nn.Module, device: torch.device) -> None:
    for parameter in module._parameters.values():
        if parameter is not None and parameter.device != device:
            parameter.data = parameter.data.to(device)  # the same Parameter, as it may be tied to another's
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.device != device:
            module._buffers[name] = buffer.to(device)


def _sent(given: Any, device: torch.device) -> Any:
    """What is given, with every tensor in it on a device."""
    if isinstance(given, Tensor):
        return given.to(device, non_blocking=True)
    if type(given) in (tuple, list):
        return type(given)(_sent(each, device) for each in given)
    if type(given) is dict:
        return {name: _sent(each, device) for name, each in given.items()}
    return given


@dataclass(frozen=True)
class _Sending:
    """Before a block runs: everything that it is given goes to its device."""

    device: torch.device

    def __call__(self, block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _sent(args, self.device), _sent(kwargs, self.device)


@dataclass(frozen=True)
class _Returning:
    """After a block has run: what it gives goes to another device."""

    device: torch.device

    def __call__(self, block: nn.Module, args: Any, output: Any) -> Any:
        return _sent(output, self.device)

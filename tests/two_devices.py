"""Devices that are not there: tensors that compute on the CPU, say that they lie elsewhere, and refuse to be mixed."""

import contextlib

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

FIRST, SECOND = torch.device("meta", 0), torch.device("meta", 1)
"""PyTorch takes a device of this kind for granted, also for gradients, and it has numbers."""


class Elsewhere(torch.Tensor):
    """A tensor of the CPU that says it lies on another device."""

    @staticmethod
    def __new__(cls, inner, device):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )

    def __init__(self, inner, device):
        self.inner = inner

    def __repr__(self):
        return f"Elsewhere({self.device}, {self.inner})"

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, dict(kwargs or {}))


_MAY_MIX = ("_to_copy", "copy_")


def _run(func, args, kwargs):
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [each for each in tensors if isinstance(each, Elsewhere)]
    if name not in _MAY_MIX:
        index = name.startswith(("index", "_index", "_unsafe_index"))
        # As on GPUs: a number of the CPU goes with everything, and so does an index.
        counted = tensors[:1] if index and not isinstance(tensors[-1], Elsewhere) else tensors
        devices = {each.device for each in counted if each.ndim or isinstance(each, Elsewhere)}
        if len(devices) > 1:
            raise RuntimeError(f"{func} mixes {' and '.join(sorted(map(str, devices)))}")
    device = kwargs.get("device")
    device = _numbered(device if device is not None else here[0].device if here else "cpu")
    if device.type == "meta":
        kwargs = {**kwargs, **({"device": torch.device("cpu")} if kwargs.get("device") is not None else {})}
    kwargs.pop("non_blocking", None)
    with torch.no_grad():
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if (name.endswith("_") and not name.endswith("__")) or name.startswith("__i"):  # in place: it stays what it was
        return args[0]
    if (target := kwargs.get("out")) is not None:
        return target
    if device.type != "meta":
        return out
    return tree_map(lambda each: Elsewhere(each, device) if isinstance(each, torch.Tensor) else each, out)


def _inner(value):
    return value.inner if isinstance(value, Elsewhere) else value


class _Making(torch.utils._python_dispatch.TorchDispatchMode):
    """What is made on such a device is made here, and says that it lies there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "meta":
            return _run(func, args, {**kwargs, "device": _numbered(device)})
        if any(isinstance(leaf, Elsewhere) for leaf in tree_leaves((args, kwargs))):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class _Calling(torch.overrides.TorchFunctionMode):
    """A call that would pass by what is above."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        return func(*args, **kwargs)


def _numbered(device):
    device = torch.device(device)
    return FIRST if device.type == "meta" and device.index is None else device


@contextlib.contextmanager
def _without_inference_mode():
    """Where tensors that are not PyTorch's own cannot be made: without gradients instead."""
    kept = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    entered = []

    def enter(self):
        entered.append(torch.no_grad() if self.mode else contextlib.nullcontext())
        entered[-1].__enter__()

    torch.inference_mode.__enter__ = enter
    torch.inference_mode.__exit__ = lambda self, *error: entered.pop().__exit__(*error)
    try:
        yield
    finally:
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = kept


@contextlib.contextmanager
def two_devices(model, spread):
    """`model` on two devices that are not there, by `spread(model, devices)`."""
    with _without_inference_mode(), _Making(), _Calling():
        for module in _all_modules(model):
            for name, parameter in module._parameters.items():
                if parameter is not None and not isinstance(parameter.data, Elsewhere):
                    module._parameters[name] = nn.Parameter(Elsewhere(parameter.data, FIRST), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None and not isinstance(buffer, Elsewhere):
                    module._buffers[name] = Elsewhere(buffer, FIRST)
        spread(model, (FIRST, SECOND))
        yield model


def _all_modules(model):
    yield from nn.Module.modules(model)
    if hasattr(model, "original_model"):
        yield from model.original_model.modules()

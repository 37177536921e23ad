"""A second model around the same tensors, which the first one never notices."""

import contextlib
import copy
import weakref
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn


def sharing_copy(model: Any) -> Any:
    """New modules around the same tensors, and the same tokenizers; TransformerLens hooks that come and go stay behind.

    >>> from torch import nn
    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-vit")
    >>> copied = sharing_copy(model)
    >>> copied.blocks[0] is model.blocks[0], copied.blocks[0].attn.out.weight is model.blocks[0].attn.out.weight
    (False, True)
    """
    # Not `parameters()`: a bridge lists only some of them, and keeps views of others as plain attributes.
    shared: list[Any] = [
        value
        for module in nn.Module.modules(model)
        for values in (module._parameters, module._buffers, vars(module))
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    for name in ("tokenizer", "hf_tokenizer", "image_processor"):
        if getattr(model, name, None) is not None:
            shared.append(getattr(model, name))
    # deepcopy's memo: what is in it counts as copied already, and is taken over as it is.
    counterparts: dict[int, Any] = {id(thing): thing for thing in shared}
    copied = copy.deepcopy(model, counterparts)
    for module in nn.Module.modules(copied):
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            for key, hook in hooks.items():
                hooks[key] = _rebound(hook, counterparts)
    for point in copied.hook_dict.values():
        point.remove_hooks("both")  # nobody holds what could take them off the copy
    return copied


def _rebound(thing: Any, counterparts: dict[int, Any]) -> Any:
    """The copy's counterpart of something a hook refers to.

    `deepcopy` leaves functions as they are. A `TransformerBridge` wires its blocks with closures, so a copy would
    call the original's hook points and write into its attention.
    """
    if isinstance(thing, weakref.ProxyTypes):
        try:
            # A bound method is the way from a proxy to the object that it stands for.
            there = counterparts.get(id(thing.__init__.__self__))
        except ReferenceError:  # which is gone
            there = None
        return thing if there is None else weakref.proxy(there)
    if id(thing) in counterparts or not isinstance(thing, FunctionType) or thing.__closure__ is None:
        return counterparts.get(id(thing), thing)
    # New cells: shared ones would rebind the original, too.
    cells = tuple(CellType() for _ in thing.__closure__)
    function = FunctionType(thing.__code__, thing.__globals__, thing.__name__, thing.__defaults__, cells)
    function.__kwdefaults__ = thing.__kwdefaults__
    function.__dict__.update(thing.__dict__)
    counterparts[id(thing)] = function  # before its cells are filled, which may hold the function itself
    for cell, old in zip(cells, thing.__closure__, strict=True):
        with contextlib.suppress(ValueError):  # a variable that is not assigned yet
            cell.cell_contents = _rebound(old.cell_contents, counterparts)
    return function

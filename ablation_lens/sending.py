"""To a device and back without waiting for it.

A copy to an accelerator waits until all work before it is done, and so does a copy back, unless it is from or to
memory that the driver may read by itself ("pinned").
"""

import torch
from jaxtyping import Shaped
from torch import Tensor


def send(tensor: Shaped[Tensor, "*any"], device: torch.device | str) -> Shaped[Tensor, "*any"]:
    """The tensor on `device`; whoever uses it there finds it complete, and nobody waits here.

    >>> send(torch.ones(2), "meta").device
    device(type='meta')
    """
    if tensor.device.type != "cpu" or torch.device(device).type != "cuda":
        return tensor.to(device)
    # torch keeps pinned memory until copies from it are done, and gives it out again afterwards. Memory that somebody
    # pinned himself is copied, too: he may write to it before it is read.
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
    return pinned.to(device, non_blocking=True)


class Fetch:
    """A tensor on its way to the CPU: ordered now, waited for when `result` is asked.

    >>> Fetch(torch.tensor([1, 2])).result().tolist()
    [1, 2]
    """

    def __init__(self, tensor: Shaped[Tensor, "*any"]) -> None:
        self._there, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._there = here.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def result(self) -> Shaped[Tensor, "*any"]:
        """The tensor on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._there.cpu()

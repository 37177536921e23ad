"""What a model's weights are, in a few characters: a checksum over every bit of them, wherever and however they lie.

The digest of a Hugging Face model says what was loaded. The checksum says what a model computes with now, after
training, editing or quantising too, and also where there never was a file.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int64
from torch import Tensor, nn

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers that have as many bytes as a number."""

_OfPlaces = Callable[..., Int64[Tensor, " place"]]


def weights_digest(model: nn.Module) -> str:
    """A digest over evenly spaced samples of every tensor: cheap for 7B weights, new after any training step."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
        step = max(1, flat.numel() // 64)
        # Sampled before it is moved and widened. float64 holds every float type exactly, and NumPy has no bfloat16.
        digest.update(flat[::step].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def checksum(model: nn.Module) -> str:
    """A checksum over all parameters, `layout-sum`; the sum says something only beside another of the same layout.

    It does not depend on the device, nor on strides; any single bit changes it. The layout is a digest of names, shapes
    and dtypes: the two majors of TransformerLens keep the same weights under other names, and in other shapes.

    >>> model = nn.Linear(2, 1)
    >>> before = checksum(model)
    >>> model.weight.data[0, 1] += 1e-3
    >>> checksum(model) == before, checksum(model).split("-")[0] == before.split("-")[0]
    (False, True)
    """
    # nn.Module's own: it goes through every module, and lists a parameter once, whatever else it is called.
    # A bridge of transformer-lens 4 lists only some of its parameters.
    held = sorted([*nn.Module.named_parameters(model), *_attached(model)])
    layout = "".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n" for name, tensor in held)
    weights = functools.lru_cache(maxsize=32)(_weights)  # many tensors share their sizes
    total = sum(_odd(name) * _sum(tensor, weights) for name, tensor in held)
    return f"{hashlib.sha256(layout.encode()).hexdigest()[:8]}-{total % 2**64:016x}"


def _attached(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of sparse autoencoders that sae-lens attaches: it hides them from a model's own parameters."""
    for hook, autoencoder in getattr(model, "acts_to_saes", {}).items():
        for name, tensor in autoencoder.named_parameters():
            yield f"{hook}.{name}", tensor


def layout_of(checksum: str) -> str:
    """The part of a checksum that must be equal before the rest says anything.

    >>> layout_of("1234abcd-0123456789abcdef")
    '1234abcd'
    """
    return checksum.partition("-")[0]


def _odd(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) | 1


# All of it modulo 2^64, as int64 wraps around. Products of odd numbers are odd, and what changes a single number
# times an odd one is never a multiple of 2^64.


def _sum(tensor: Tensor, weights: _OfPlaces) -> int:
    """Every number's bits times an odd weight of its place: the product of one weight per axis."""
    if hasattr(tensor, "__tensor_flatten__"):  # a quantised or distributed weight is several tensors
        return sum(_odd(part) * _sum(getattr(tensor, part), weights) for part in tensor.__tensor_flatten__()[0])
    if tensor.device.type == "meta" or not tensor.numel():
        return 0
    values = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    bits = values.view(_INTEGERS[values.element_size()])
    # As it lies in memory, where a transposed weight needs no copy. Weights of axes make the order indifferent.
    axes = sorted(range(bits.ndim), key=bits.stride, reverse=True)
    bits = bits.permute(axes)
    for axis in reversed(axes):
        bits = _without_last(bits, functools.partial(weights, bits.device, axis))
    return int(bits)


def _without_last(bits: Tensor, weights: _OfPlaces) -> Int64[Tensor, "*rest"]:
    """Summed up over the last axis, with the weights of its places from one to another."""
    # What is multiplied at once: on a CPU as much as its cache holds, elsewhere enough to keep it busy. Into the same
    # memory every time, as fresh memory costs more than the product.
    most = 2**20 if bits.device.type == "cpu" else 2**24
    size = bits.shape[-1]
    rows = bits.reshape(-1, size)
    sums = torch.zeros(len(rows), dtype=torch.int64, device=bits.device)
    products = torch.empty(min(most, rows.numel()), dtype=torch.int64, device=bits.device)
    for start in range(0, size, most):
        stop = min(start + most, size)
        step = max(1, most // (stop - start))
        for total, part in zip(sums.split(step), rows[:, start:stop].split(step), strict=True):
            total += torch.mul(part, weights(start, stop), out=products[: part.numel()].view(part.shape)).sum(1)
    return sums.view(bits.shape[:-1])


def _weights(device: torch.device, axis: int, start: int, stop: int) -> Int64[Tensor, " place"]:
    """Odd, and as good as random (splitmix64 of the place), the same on every device."""
    mixed = (torch.arange(start, stop, device=device) + ((axis + 1) << 48)) * _wrapped(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> 30)) * _wrapped(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> 27)) * _wrapped(0x94D049BB133111EB)
    return (mixed ^ (mixed >> 31)) | 1


def _wrapped(number: int) -> int:
    """As int64 holds the 64 bits of a number."""
    return number - 2**64 if number >= 2**63 else number

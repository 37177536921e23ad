"""`rotate_heads`: a model of the same function, in which every head's neurons are in the order of what they can do.

What a head reads and writes is W_V·W_O alone, so that the basis in between is free: W_V·R, b_V·R and R⁻¹·W_O are the
same function for any R that has an inverse, and z becomes z·R. Here R is the one under which W_V·W_O = U·Σ·Vᵀ is split
evenly, into U·√Σ and √Σ·Vᵀ: neuron i reads a direction of the residual stream, writes one, and both are at right angles
to those of all other neurons of its head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ablation_lens.ablation.copying import sharing_copy
from ablation_lens.errors import MismatchError
from ablation_lens.hooked import Projection, projection, require_site, task_of
from ablation_lens.measure.resampling import digest_of
from ablation_lens.records import record_of, stated_record
from ablation_lens.sites import Site
from ablation_lens.weights import checksum

MOST_CONDITION = 1e6
"""How far the largest and the smallest change of scale by R may lie apart."""


def rotate_heads(model: Any) -> Any:
    """A second model that computes the same, with the neurons of every head rotated by the SVD of W_V·W_O.

    Neuron 0 of a head is the one that can write most, and so on down; at `z` a neuron is then a direction that the
    head cannot spread over others. The model that was given stays as it is, and all weights but W_V, b_V and W_O are
    shared with it. Its statistics are refused for the rotated model, whose record says what was done.

    Computed in float64, and rounded once to the dtype of the model, which is all that logits move by: in float32 as
    much as between two ways to compute attention, in half precision more.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> rotated = rotate_heads(model)
    >>> tokens = model.to_tokens("def rotate(model):")
    >>> torch.allclose(rotated(tokens), model(tokens), atol=1e-4), rotated.record.name
    (True, 'tiny-opt (heads rotated)')
    >>> size = rotated.W_O[0, 0].norm(dim=-1)
    >>> bool((size.diff() <= 0).all())
    True
    """
    turns = head_rotations(model)
    copied = sharing_copy(model)
    with _one_thread():
        for block, turn in zip(copied.blocks, turns, strict=True):
            _turn(block, turn)
    _require_alike(sharing_copy(model), copied)  # both without the hooks that may be on the model now
    record = record_of(model)
    copied.record = replace(
        record,
        name=f"{record.name} (heads rotated)",
        processing=f"{record.processing}, heads rotated ({digest_of(turns.float())[:12]})",
        checksum=checksum(copied),
    )
    return copied


def head_rotations(model: Any) -> Float[Tensor, "layer head dim rotated"]:
    """R of every head, in float64: `rotate_heads(model)` has z·R where the model has z.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> tokens = model.to_tokens("def rotate(model):")
    >>> z, of_rotated = (
    ...     each.run_with_cache(tokens)[1]["blocks.1.attn.hook_z"] for each in (model, rotate_heads(model))
    ... )
    >>> expected = torch.einsum("bphd,hdr->bphr", z.double(), head_rotations(model)[1])
    >>> torch.allclose(of_rotated.double(), expected, atol=1e-5)
    True
    """
    require_site(model, Site.Z)
    require_site(model, Site.V)
    heads, sharing = Site.Z.shape(model.cfg)[1], Site.V.shape(model.cfg)[1]
    if sharing != heads:
        raise MismatchError(
            f"{heads} heads of {stated_record(model).name} share the values of {sharing}, so that no head can be "
            "rotated by itself; leave the rotation out, or take a model whose heads have values of their own, such as "
            "tiny-opt."
        )
    turns = []
    with _one_thread():
        for layer, block in enumerate(model.blocks):
            turn = _rotation(*_by_head(*_around(block), heads))
            for head in (~_is_reversible(turn)).nonzero().flatten().tolist():
                raise MismatchError(
                    f"L{layer}.H{head} cannot be rotated: the rank of W_V·W_O is lower than its {turn.shape[-1]} "
                    "neurons, so that some have nothing to be turned to; leave the rotation out."
                )
            turns.append(turn)
    return torch.stack(turns)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several add up in another order, and one bit of the weights would make another model of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _turn(block: Any, turn: Float[Tensor, "head dim rotated"]) -> None:
    values, out = _around(block)
    read, written = _by_head(values, out, len(turn))
    bias = values.bias()
    if bias is not None:
        bias = (bias.detach().cpu().double().view(len(turn), 1, -1) @ turn).flatten().to(bias)
    values.set(rearrange(read @ turn, "head model dim -> model (head dim)").to(values.weight()), bias)
    back = rearrange(torch.linalg.solve(turn, written), "head dim model -> (head dim) model")
    out.set(back.to(out.weight()), None)


def _around(block: Any) -> tuple[Projection, Projection]:
    """What makes a block's values, and what reads its z."""
    made, read = Site.V.weights, Site.Z.weights
    assert made is not None
    assert read is not None
    return projection(block, made), projection(block, read)


def _by_head(
    values: Projection, out: Projection, heads: int
) -> tuple[Float[Tensor, "head model dim"], Float[Tensor, "head dim model"]]:
    try:
        read, written = (each.weight().detach().cpu().double() for each in (values, out))
    except AttributeError:  # a model of somebody's own
        read = written = torch.empty(0, 0)
    if read.shape[1] != len(written) or read.shape[1] % heads or not read.numel():
        raise MismatchError(
            "the blocks of this model have no W_V and W_O of TransformerLens' shapes, which rotating heads changes; "
            "leave the rotation out."
        )
    return (
        rearrange(read, "model (head dim) -> head model dim", head=heads),
        rearrange(written, "(head dim) model -> head dim model", head=heads),
    )


def _is_reversible(turn: Float[Tensor, "head dim rotated"]) -> Bool[Tensor, " head"]:
    finite = turn.isfinite().all(-1).all(-1)
    condition: Tensor = torch.linalg.cond(turn.where(finite[:, None, None], 0.0))  # of a 0 matrix it is no number
    return finite & (condition <= MOST_CONDITION)


def _rotation(
    read: Float[Tensor, "head model dim"], written: Float[Tensor, "head dim model"]
) -> Float[Tensor, "head dim rotated"]:
    """R = W_O·V/√Σ, as W_V·W_O·V = U·Σ; not a number where Σ holds a 0."""
    if read.shape[-1] > read.shape[-2]:  # of fewer dims than neurons, some singular values are 0
        return torch.full((len(read), read.shape[-1], read.shape[-1]), torch.nan, dtype=read.dtype)
    # W_V·W_O is d_model wide, and of rank d_head: all that says something about it is this small.
    _, inner = torch.linalg.qr(read)
    basis, outer = torch.linalg.qr(written.mT)
    _, size, right = torch.linalg.svd(inner @ outer.mT)
    direction = basis @ right.mT
    # A singular vector is one up to its sign: here what a neuron writes most to, it adds to.
    largest = direction.gather(1, direction.abs().argmax(1, keepdim=True))
    turn: Tensor = written @ (direction * largest.sign()) / size.sqrt()[:, None]
    return turn


@torch.no_grad()  # and not inference mode, whose tensors a model that keeps some could not be trained with
def _require_alike(model: Any, rotated: Any) -> None:
    """Raise where something else is between values and z, so that rotating both ends changes what comes out."""
    cfg = model.cfg
    if task_of(model) == "image-classification":
        inputs = torch.linspace(-1, 1, model.n_channels * model.image_size[0] * model.image_size[1])
        inputs = inputs.view(1, model.n_channels, *model.image_size)
    else:
        inputs = torch.arange(min(16, cfg.n_ctx, cfg.d_vocab or 16))[None]
    before, after = (each(inputs.to(cfg.device)).float() for each in (model, rotated))
    # What rounding alone does is below a tenth of either.
    allowed = 1e-4 if cfg.dtype in (torch.float32, torch.float64) else 0.1
    if not (after - before).square().mean().sqrt() <= allowed * before.std():
        raise MismatchError(
            f"rotating the heads of {stated_record(model).name} changes what it computes: its values pass through more "
            "than attention before they are z, or are made elsewhere; leave the rotation out."
        )

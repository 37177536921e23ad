"""The steps of attention between the hooks, on plain tensors: projecting, rotating, masking, attending.

Used by `fast_attention`, which says when they apply.
"""

import importlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# What the layers of one forward share: whether there is padding, and the masks. It lives exactly as long as the
# model's forward, so nothing is stale in the next one.
_SHARED: ContextVar[dict[Hashable, tuple[Any, Any]] | None] = ContextVar("shared_by_the_layers", default=None)


@contextmanager
def shared_by_the_layers() -> Iterator[None]:
    """Around one forward of a model."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def _once(attention_mask: Tensor | None, key: tuple[Hashable, ...], compute: Callable[[], Any]) -> Any:
    """`compute()`, or what it gave for this mask and key earlier in the same forward."""
    shared = _SHARED.get()
    if shared is None:
        return compute()
    # A hook may write into the mask between two layers; inference tensors keep no count of that.
    version = None if attention_mask is None or attention_mask.is_inference() else attention_mask._version
    full_key = (id(attention_mask), version, *key)
    if full_key not in shared:
        shared[full_key] = (attention_mask, compute())  # holding the mask keeps its id from being given away
    return shared[full_key][1]


def padding_in(attention_mask: Int[Tensor, "batch key"] | None) -> Int[Tensor, "batch key"] | None:
    """The mask, or None where it masks nothing."""
    if attention_mask is None or _once(attention_mask, ("padded",), lambda: bool((attention_mask == 1).all())):
        return None
    return attention_mask


def _make_mask(
    n_query: int, n_key: int, window: int | None, padding: Int[Tensor, "batch key"] | None, like: Tensor
) -> tuple[Float[Tensor, "#batch 1 query key"], Bool[Tensor, "#batch 1 query 1"] | None]:
    """What SDPA adds to the scores, and the rows that see nothing at all, if any."""
    key = torch.arange(n_key, device=like.device)
    query = key[n_key - n_query :, None]
    visible = key <= query
    if window is not None:
        visible = visible & (key > query - window)
    visible = visible[None, None]
    blind = None
    if padding is not None:
        visible = visible & padding.bool()[:, None, None, :]
        # Kernels disagree on a softmax over nothing (NaN here, 0 there), and so do their gradients. Such rows look
        # at everything instead, and their z is set to 0 afterwards.
        none = ~visible.any(dim=-1, keepdim=True)
        visible, blind = visible | none, none if bool(none.any()) else None
    bias = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill(~visible, -torch.inf), blind


def attend(
    attn: Any,
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch kv_head key d_head"],
    v: Float[Tensor, "batch kv_head key d_head"],
    padding: Int[Tensor, "batch key"] | None,
) -> Float[Tensor, "batch head query d_head"]:
    """z, by `scaled_dot_product_attention`; 0 in rows that see nothing."""
    q, k = q.to(v.dtype), k.to(v.dtype)  # a hook may have widened one of them
    n_query, n_key = q.shape[2], k.shape[2]
    window = attn.cfg.window_size if attn.attn_type == "local" and attn.cfg.window_size < n_key else None
    # As in stock, a bidirectional model looks at padding too, and knows no window.
    causal = (attn._attention_dir_override or attn.cfg.attention_dir) == "causal"
    bias, blind = None, None
    if causal and (window is not None or padding is not None or n_query not in (1, n_key)):
        signature = ("mask", n_query, n_key, window, q.dtype, q.device)
        bias, blind = _once(padding, signature, lambda: _make_mask(n_query, n_key, window, padding, q))
    grouped = q.shape[1] != k.shape[1]
    if grouped and bias is not None and q.is_cuda:
        # Fused CUDA kernels do not take grouped heads together with a mask, and the unfused one is slow.
        k, v = (x.repeat_interleave(attn.repeat_kv_heads, dim=1) for x in (k, v))
        grouped = False
    z = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=bias,
        is_causal=causal and bias is None and n_query > 1,
        scale=1 / float(attn.attn_scale),
        enable_gqa=grouped,
    )
    return z if blind is None else z.masked_fill(blind, 0)


def project(
    x: Float[Tensor, "batch pos d_model"],
    weight: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Queries, keys or values of all heads, by one multiplication where the weights lie as one matrix."""
    batch, pos, d_model = x.shape
    heads, _, d_head = weight.shape
    one_matrix = weight.stride(0) == d_head * weight.stride(2)  # as load_model leaves it
    if one_matrix or batch * pos > d_model:  # many tokens make up for copying a weight that lies head by head
        matrix = weight.transpose(1, 2).reshape(heads * d_head, d_model)
        return F.linear(x, matrix, bias.reshape(-1)).view(batch, pos, heads, d_head)
    rows = x.reshape(1, batch * pos, d_model).expand(heads, -1, -1)
    by_head = torch.baddbmm(bias[:, None], rows, weight)
    return by_head.transpose(0, 1).contiguous().view(batch, pos, heads, d_head)


def rotate(
    attn: Any, x: Float[Tensor, "batch pos head d_head"], offset: int, padding: Int[Tensor, "batch key"] | None
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary position embedding, as the tables of `attn` have it."""
    end, size = offset + x.shape[1], attn.cfg.rotary_dim
    if attn.cfg.rotary_adjacent_pairs or end > attn.rotary_cos.shape[0]:
        extended: Tensor = attn.apply_rotary(x, offset, padding)  # it also extends the tables
        return extended
    positions: slice | Tensor = slice(offset, end)
    if padding is not None:
        ids: Any = importlib.import_module("transformer_lens.utilities").get_offset_position_ids
        positions = _once(padding, ("positions", offset), lambda: ids(offset, padding))
    cos, sin = (table[positions][..., None, :] for table in (attn.rotary_cos, attn.rotary_sin))
    half = size // 2
    rotated = x[..., :size] * cos
    rotated[..., :half].addcmul_(x[..., half:size], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return rotated if size == x.shape[-1] else torch.cat([rotated, x[..., size:]], dim=-1)

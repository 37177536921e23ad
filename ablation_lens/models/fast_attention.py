"""Fast attention for transformer-lens 3.9's `HookedTransformer`: the same hooks and numbers, without the detours.

Stock spells attention out as scores, pattern and z, re-lays its weights on every call and runs `ln1` three times per
block. Here z comes from `scaled_dot_product_attention`, weights are used as they lie, and norms are one fused call.
Every call looks first at who listens: whenever somebody could see or change what would be left out (scores, pattern,
the inside of a norm), or the config asks for something else (alibi, soft-cap, per-head inputs, …), that module runs
its stock `forward`. So a hook on or inside `ln1` is called three times per block, as in stock, and may change the
three results separately; without one, queries, keys and values share a single result.

Nothing global is touched: single modules get a `forward` in their own `__dict__`, and lose it again.
"""

import functools
import importlib
import operator
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ablation_lens.errors import ModelError
from ablation_lens.hooked import hides, listening, remove_hooks

# Settings under which attention is not what `_attention_forward` computes.
_stock_only = operator.attrgetter(
    "use_attn_result",
    "use_split_qkv_input",
    "use_attn_in",
    "ungroup_grouped_query_attention",
    "use_attention_sinks",
    "use_logn_attn",
    "use_dynamic_ntk_rope",
    "load_in_4bit",
)


def enable_fast_attention(model: nn.Module) -> None:
    """Switch fast attention on for this one `HookedTransformer`; doing it twice is doing it once.

    Parameters, buffers and hooks stay as they are; deep copies of the model are fast too. Gradients are stock's;
    torch has no second derivatives and no forward-mode ones for its fused attention, so switch it off for those.

    With transformer-lens 3.9: `model = HookedTransformer(config)`, then `enable_fast_attention(model)`. Other
    modules are refused:

    >>> enable_fast_attention(nn.Linear(2, 2))
    Traceback (most recent call last):
    ablation_lens.errors.ModelError: got a Linear, expected a HookedTransformer of transformer-lens 3.9; use load_model.
    """
    _require_hooked_transformer(model)
    replacements = _replacements()
    for module in model.modules():
        replacement = _model_forward if module is model else replacements.get(type(module))
        present = vars(module).get("forward")
        # A forward that somebody else put there (accelerate does) is theirs. Ours may belong to the module that
        # this one is a shallow copy of, so it is made anew.
        if replacement is not None and (present is None or isinstance(present, _FastForward)):
            module.forward = _FastForward(replacement, module)
    vars(model)["remove_all_hook_fns"] = _FastForward(remove_hooks, model)


def disable_fast_attention(model: nn.Module) -> None:
    """Take back `enable_fast_attention`: the model is stock again, attribute for attribute.

    >>> disable_fast_attention(nn.Linear(2, 2))
    Traceback (most recent call last):
    ablation_lens.errors.ModelError: got a Linear, expected a HookedTransformer of transformer-lens 3.9; use load_model.
    """
    _require_hooked_transformer(model)
    for module in model.modules():
        for name in ("forward", "remove_all_hook_fns"):
            if isinstance(vars(module).get(name), _FastForward):
                delattr(module, name)


def is_fast(model: nn.Module) -> bool:
    """Whether fast attention is switched on; single calls may still take the stock path.

    >>> is_fast(nn.Linear(2, 2))
    False
    """
    return isinstance(vars(model).get("forward"), _FastForward)


class _FastForward(functools.partial[Any]):
    """A replaced method. A `partial` follows its module through deepcopy; the type tells ours from others'."""


def _require_hooked_transformer(model: nn.Module) -> None:
    # By name: importing transformer_lens takes seconds, and 4.x raises on the import of the class.
    names = [f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__]
    if "transformer_lens.HookedTransformer.HookedTransformer" not in names:
        raise ModelError(
            f"got a {type(model).__name__}, expected a HookedTransformer of transformer-lens 3.9; use load_model."
        )


@functools.cache
def _replacements() -> dict[type, Callable[..., Any]]:
    """By exact type: a subclass may have changed what these forwards take for granted."""
    components: Any = importlib.import_module("transformer_lens.components")
    return {
        components.Attention: _attention_forward,
        components.GroupedQueryAttention: _attention_forward,
        components.TransformerBlock: _block_forward,
        components.LayerNorm: _layer_norm_forward,
        components.LayerNormPre: _layer_norm_forward,
        components.RMSNorm: _rms_norm_forward,
        components.RMSNormPre: _rms_norm_forward,
        components.GatedMLP: _gated_mlp_forward,
        components.Unembed: _unembed_forward,
    }


def _stock(module: Any, *args: Any, **kwargs: Any) -> Any:
    return type(module).forward(module, *args, **kwargs)


def _model_forward(model: Any, *args: Any, **kwargs: Any) -> Any:
    with shared_by_the_layers():
        return _stock(model, *args, **kwargs)


def _is_plain(attn: Any) -> bool:
    """Whether these settings are what `_attention_forward` computes."""
    cfg = attn.cfg
    return not (
        cfg.positional_embedding_type not in ("rotary", "standard")
        or any(_stock_only(cfg))
        or cfg.attn_scores_soft_cap > 0
        or cfg.clip_qkv is not None
        or attn.q_norm is not None
        or attn.k_norm is not None
        or attn.W_Q.device.type == "mps"  # stock works around an error of torch's F.linear there
    )


def _attention_applies(attn: Any, inputs: tuple[Tensor, Tensor, Tensor], attention_mask: Tensor | None) -> bool:
    device = attn.W_Q.device
    rotary = attn.cfg.positional_embedding_type == "rotary"
    return _is_plain(attn) and not (
        listening(attn.hook_attn_scores, attn.hook_pattern)
        # Stock moves tensors between devices; this path does not.
        or any(x.device != device or x.shape != inputs[0].shape for x in inputs)
        or (attention_mask is not None and attention_mask.device != device)
        or (rotary and attn.rotary_cos.device != device)
    )


def _attention_forward(
    attn: Any,
    query_input: Float[Tensor, "batch pos d_model"],
    key_input: Float[Tensor, "batch pos d_model"],
    value_input: Float[Tensor, "batch pos d_model"],
    past_kv_cache_entry: Any = None,
    additive_attention_mask: Tensor | None = None,
    attention_mask: Int[Tensor, "batch key"] | None = None,
    position_bias: Tensor | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    inputs = (query_input, key_input, value_input)
    extras = additive_attention_mask is not None or position_bias is not None
    if extras or not _attention_applies(attn, inputs, attention_mask):
        args = (*inputs, past_kv_cache_entry, additive_attention_mask, attention_mask, position_bias)
        return _stock(attn, *args)

    grouped = hasattr(attn, "_W_K")  # where W_K and its like would be repeated for every head
    q = attn.hook_q(project(query_input, attn.W_Q, attn.b_Q))
    k = attn.hook_k(project(key_input, *((attn._W_K, attn._b_K) if grouped else (attn.W_K, attn.b_K))))
    v = attn.hook_v(project(value_input, *((attn._W_V, attn._b_V) if grouped else (attn.W_V, attn.b_V))))
    offset, padding = 0, padding_in(attention_mask)
    if past_kv_cache_entry is not None:
        offset = past_kv_cache_entry.past_keys.size(1)
        k, v = past_kv_cache_entry.append(k, v)
    # SDPA would take them without a word, and align its causal mask with the first key.
    if q.shape[1] + offset != k.shape[1]:
        raise ModelError(
            f"got {q.shape[1]} queries after {offset} cached positions but {k.shape[1]} keys; "
            "a hook on hook_q, hook_k or hook_v must leave the number of positions as it is."
        )
    if attn.cfg.positional_embedding_type == "rotary":
        q = attn.hook_rot_q(rotate(attn, q, offset, padding))
        # The cache holds keys before their rotation, so all of them are rotated from position 0.
        k = attn.hook_rot_k(rotate(attn, k, 0, padding))

    z = attend(attn, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), padding)
    return _project_out(attn, attn.hook_z(z.transpose(1, 2)))


def _project_out(attn: Any, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
    # [head d_head d_model] as [(head d_head) d_model]: a view of Hugging Face's weights and of TransformerLens' own.
    matrix = attn.W_O.reshape(-1, attn.W_O.shape[-1])
    return F.linear(z.to(matrix.dtype).flatten(2), matrix.T, attn.b_O)


def _block_forward(
    block: Any,
    resid_pre: Float[Tensor, "batch pos d_model"],
    shortformer_pos_embed: Tensor | None = None,
    past_kv_cache_entry: Any = None,
    attention_mask: Int[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    if (
        shortformer_pos_embed is not None
        or not _is_usual(block.cfg)
        or listening(block.ln1, *block.ln1._modules.values())
        or listening(block.attn)  # such a hook may write into one of the three inputs
    ):
        args = (resid_pre, shortformer_pos_embed, past_kv_cache_entry, attention_mask)
        return _stock(block, *args)

    resid_pre = block.hook_resid_pre(resid_pre)
    normalized = block.ln1(resid_pre)
    cached = {"past_kv_cache_entry": past_kv_cache_entry, "attention_mask": attention_mask}
    attn_out = block.attn(query_input=normalized, key_input=normalized, value_input=normalized, **cached)
    return _after_attention(block, resid_pre, attn_out)


def _is_usual(cfg: Any) -> bool:
    """Whether blocks of these settings are what `_block_forward` computes."""
    return not (
        cfg.use_attn_in
        or cfg.use_split_qkv_input
        or cfg.attn_only
        or cfg.original_architecture in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")  # norms after, not before
    )


def _after_attention(
    block: Any, resid_pre: Float[Tensor, "batch pos d_model"], attn_out: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    cfg = block.cfg
    if cfg.use_normalization_before_and_after:
        attn_out = block.ln1_post(attn_out)
    attn_out = block.hook_attn_out(attn_out)
    resid_pre = resid_pre.to(attn_out.device)
    resid_mid = resid_pre + attn_out
    if not cfg.parallel_attn_mlp:  # blocks with parallel branches have no hook_resid_mid
        resid_mid = block.hook_resid_mid(resid_mid)
    mlp_in = resid_pre if cfg.parallel_attn_mlp else resid_mid
    if cfg.use_hook_mlp_in:
        mlp_in = block.hook_mlp_in(mlp_in.clone())  # a hook may write into it, and the stream is needed below
    mlp_out = block.apply_mlp(block.ln2(mlp_in))
    return block.hook_resid_post(resid_mid + mlp_out)


def after_z(
    model: Any,
) -> Callable[[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos head d_head"]], Tensor] | None:
    """What the last block makes of its residual stream and of z, at each position alone; None if that is not ours.

    >>> after_z(nn.Linear(2, 2)) is None
    True
    """
    block: Any = getattr(model, "blocks", (None,))[-1]
    parts = (model, block, getattr(block, "attn", None))
    if not all(isinstance(getattr(part, "forward", None), _FastForward) for part in parts):
        return None
    if not (_is_usual(block.cfg) and _is_plain(block.attn)):
        return None
    return lambda residual, z: _after_attention(block, residual, _project_out(block.attn, z))


def _fused(norm: Any, x: Float[Tensor, "*batch d"], kernel: Callable[..., Tensor], *names: str) -> Tensor:
    """The norm in one call of `kernel`, unless a hook wants to see its parts or something has to be converted."""
    parameters = [getattr(norm, name, None) for name in names]
    unlike = [p for p in parameters if p is not None and (p.dtype != x.dtype or p.device != x.device)]
    if unlike or x.dtype != norm.cfg.dtype or listening(*norm._modules.values()):
        return _stock(norm, x)
    # LayerNormPre and RMSNormPre have no parameters: both kernels take None for them.
    return kernel(x, x.shape[-1:], *parameters, eps=norm.eps)


def _layer_norm_forward(norm: Any, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    return _fused(norm, x, F.layer_norm, "w", "b")


def _rms_norm_forward(norm: Any, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    if x.dtype in (torch.float16, torch.bfloat16):  # stock rounds where transformers does; the kernel would not
        return _stock(norm, x)
    return _fused(norm, x, F.rms_norm, "w")


def _gated_mlp_forward(mlp: Any, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    if mlp.cfg.is_layer_norm_activation() or mlp.W_gate.device != x.device:
        return _stock(mlp, x)
    # A view: stock's .contiguous() copies the matrix at every call, unless it lies as Hugging Face loaded it.
    pre = mlp.hook_pre(F.linear(x, mlp.W_gate.T))
    linear = mlp.hook_pre_linear(F.linear(x, mlp.W_in.T))
    post = mlp.hook_post(torch.addcmul(mlp.b_in, mlp.act_fn(pre), linear))
    return F.linear(post, mlp.W_out.T, mlp.b_out)


def _unembed_forward(unembed: Any, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
    logits = F.linear(unembed.hook_in(residual), unembed.W_U.T, unembed.b_U)
    return unembed.hook_out(logits)


# ---------------------------------------------------------------------- the steps between the hooks, on plain tensors

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
    if attention_mask is None or not _once(attention_mask, ("padded",), lambda: hides(attention_mask)):
        return None
    return attention_mask


def _make_mask(
    n_query: int, n_key: int, window: int | None, padding: Int[Tensor, "batch key"] | None, like: Tensor
) -> tuple[Float[Tensor, "#batch 1 query key"], Bool[Tensor, "#batch 1 query 1"] | None]:
    """What SDPA adds to the scores, and the rows that see nothing at all, if any."""
    key = torch.arange(n_key, device=like.device)
    query = key[n_key - n_query :, None]  # queries are the last positions; what lies before them is cached
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
        visible = visible | none
        # Setting nothing to 0 takes an accelerator less time than being asked whether there is something.
        blind = none if like.device.type != "cpu" or bool(none.any()) else None
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
    # Without a mask is_causal does: SDPA aligns it with the first key, which is right if nothing is cached. A single
    # query sees every key.
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
        scale=1 / float(attn.attn_scale),  # TransformerLens divides by it; it may hold the layer's number, too
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
    cos, first, second = _once(padding, ("angles", id(attn), offset, end), lambda: _angles(attn, offset, end, padding))
    # Dim i turns with dim i + half. In place only in `rotated`, which is new: x is what hooks have seen.
    half, turning = size // 2, x if size == x.shape[-1] else x[..., :size]
    rotated = turning * cos
    rotated[..., :half].addcmul_(turning[..., half:], first, value=-1)
    rotated[..., half:].addcmul_(turning[..., :half], second)
    return rotated if turning is x else torch.cat([rotated, x[..., size:]], dim=-1)


def _angles(
    attn: Any, offset: int, end: int, padding: Int[Tensor, "batch key"] | None
) -> tuple[Float[Tensor, "*batch pos 1 dim"], Float[Tensor, "*batch pos 1 half"], Float[Tensor, "*batch pos 1 half"]]:
    """Cosines, and the two halves of the sines, as queries and keys share them: one angle for all heads."""
    positions: slice | Tensor = slice(offset, end)
    if padding is not None:
        ids: Any = importlib.import_module("transformer_lens.utilities").get_offset_position_ids
        positions = _once(padding, ("positions", offset), lambda: ids(offset, padding))
    cos, sin = (table[positions][..., None, :] for table in (attn.rotary_cos, attn.rotary_sin))
    half = attn.cfg.rotary_dim // 2
    return cos, sin[..., :half], sin[..., half:]

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
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ablation_lens.attention_steps import attend, padding_in, project, rotate, shared_by_the_layers
from ablation_lens.errors import ModelError

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


def disable_fast_attention(model: nn.Module) -> None:
    """Take back `enable_fast_attention`: the model is stock again, attribute for attribute.

    >>> disable_fast_attention(nn.Linear(2, 2))
    Traceback (most recent call last):
    ablation_lens.errors.ModelError: got a Linear, expected a HookedTransformer of transformer-lens 3.9; use load_model.
    """
    _require_hooked_transformer(model)
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _FastForward):
            del module.forward


def is_fast(model: nn.Module) -> bool:
    """Whether fast attention is switched on; single calls may still take the stock path.

    >>> is_fast(nn.Linear(2, 2))
    False
    """
    return isinstance(vars(model).get("forward"), _FastForward)


class _FastForward(functools.partial[Any]):
    """A replaced forward. A `partial` follows its module through deepcopy; the type tells ours from others'."""


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


def _listened(*modules: Any) -> bool:
    """Whether any hook, TransformerLens' or torch's, forward or backward, may fire at one of these very modules."""
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return True
    everywhere: Any = nn.modules.module._has_any_global_hook
    return bool(everywhere())


def _model_forward(model: Any, *args: Any, **kwargs: Any) -> Any:
    with shared_by_the_layers():
        return _stock(model, *args, **kwargs)


def _attention_applies(attn: Any, inputs: tuple[Tensor, Tensor, Tensor], attention_mask: Tensor | None) -> bool:
    cfg, device = attn.cfg, attn.W_Q.device
    rotary = cfg.positional_embedding_type == "rotary"
    return not (
        (not rotary and cfg.positional_embedding_type != "standard")
        or any(_stock_only(cfg))
        or cfg.attn_scores_soft_cap > 0
        or cfg.clip_qkv is not None
        or attn.q_norm is not None
        or attn.k_norm is not None
        or _listened(attn.hook_attn_scores, attn.hook_pattern)
        or device.type == "mps"
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
    if q.shape[1] + offset != k.shape[1]:
        raise ModelError(
            f"got {q.shape[1]} queries after {offset} cached positions but {k.shape[1]} keys; "
            "a hook on hook_q, hook_k or hook_v must leave the number of positions as it is."
        )
    if attn.cfg.positional_embedding_type == "rotary":
        q = attn.hook_rot_q(rotate(attn, q, offset, padding))
        k = attn.hook_rot_k(rotate(attn, k, 0, padding))

    z = attend(attn, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), padding)
    z = attn.hook_z(z.transpose(1, 2))
    matrix = attn.W_O.reshape(-1, attn.W_O.shape[-1])
    return F.linear(z.to(matrix.dtype).reshape(*z.shape[:2], -1), matrix.T, attn.b_O)


def _block_forward(
    block: Any,
    resid_pre: Float[Tensor, "batch pos d_model"],
    shortformer_pos_embed: Tensor | None = None,
    past_kv_cache_entry: Any = None,
    attention_mask: Int[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    cfg = block.cfg
    if (
        shortformer_pos_embed is not None
        or cfg.use_attn_in
        or cfg.use_split_qkv_input
        or cfg.attn_only
        or cfg.original_architecture in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")  # norms after, not before
        or _listened(block.ln1, *block.ln1._modules.values())
        or _listened(block.attn)  # such a hook may write into one of the three inputs
    ):
        args = (resid_pre, shortformer_pos_embed, past_kv_cache_entry, attention_mask)
        return _stock(block, *args)

    resid_pre = block.hook_resid_pre(resid_pre)
    normalized = block.ln1(resid_pre)
    cached = {"past_kv_cache_entry": past_kv_cache_entry, "attention_mask": attention_mask}
    attn_out = block.attn(query_input=normalized, key_input=normalized, value_input=normalized, **cached)
    if cfg.use_normalization_before_and_after:
        attn_out = block.ln1_post(attn_out)
    attn_out = block.hook_attn_out(attn_out)
    resid_pre = resid_pre.to(attn_out.device)
    resid_mid = resid_pre + attn_out
    if not cfg.parallel_attn_mlp:
        resid_mid = block.hook_resid_mid(resid_mid)
    mlp_in = resid_pre if cfg.parallel_attn_mlp else resid_mid
    if cfg.use_hook_mlp_in:
        mlp_in = block.hook_mlp_in(mlp_in.clone())
    mlp_out = block.apply_mlp(block.ln2(mlp_in))
    return block.hook_resid_post(resid_mid + mlp_out)


def _fused(norm: Any, x: Float[Tensor, "*batch d"], kernel: Callable[..., Tensor], *names: str) -> Tensor:
    """The norm in one call of `kernel`, unless a hook wants to see its parts or something has to be converted."""
    parameters = [getattr(norm, name, None) for name in names]
    unlike = [p for p in parameters if p is not None and (p.dtype != x.dtype or p.device != x.device)]
    if unlike or x.dtype != norm.cfg.dtype or _listened(*norm._modules.values()):
        return _stock(norm, x)
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
    pre = mlp.hook_pre(F.linear(x, mlp.W_gate.T))
    linear = mlp.hook_pre_linear(F.linear(x, mlp.W_in.T))
    post = mlp.hook_post(torch.addcmul(mlp.b_in, mlp.act_fn(pre), linear))
    return F.linear(post, mlp.W_out.T, mlp.b_out)


def _unembed_forward(unembed: Any, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
    logits = F.linear(unembed.hook_in(residual), unembed.W_U.T, unembed.b_U)
    return unembed.hook_out(logits)

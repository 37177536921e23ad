import copy
from contextlib import contextmanager
from importlib.metadata import version

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ablation_lens.errors import ModelError
from ablation_lens.models.fast_attention import disable_fast_attention, enable_fast_attention, is_fast
from ablation_lens.models.load import load_model
from tests import tiny_models

# transformer-lens 3.9 announces with every HookedTransformer that 4.0 will not have it.
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")

TOLERANCE = 1e-5
BASE = {
    "n_layers": 3,
    "d_model": 24,
    "n_ctx": 32,
    "n_heads": 6,
    "d_head": 8,  # not d_model / n_heads
    "d_mlp": 40,
    "d_vocab": 37,
    "act_fn": "gelu",
    "normalization_type": "LN",
    "device": "cpu",
}
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8}
GATED = {"gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS"}
WINDOW = {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global", "local"]}
FAST = {
    "standard": {},
    "folded norms": {"normalization_type": "LNPre"},
    "no norms": {"normalization_type": None},
    "window": WINDOW,
    "Mistral-like": {**ROTARY, **GATED, **WINDOW, "n_key_value_heads": 2},
    "folded RMS, one key-value head": {**ROTARY, "normalization_type": "RMSPre", "n_key_value_heads": 1},
    "NeoX-like": {**ROTARY, "rotary_dim": 4, "parallel_attn_mlp": True},
    "GPT-J-like": {**ROTARY, "rotary_dim": 4, "rotary_adjacent_pairs": True},
    "Gemma-like": {**ROTARY, **GATED, "use_normalization_before_and_after": True},
    "odd scales": {"scale_attn_by_inverse_layer_idx": True, "attn_scale": 1.7},
    "no scale": {"use_attn_scale": False},
    "bidirectional": {**WINDOW, "attention_dir": "bidirectional"},
    "attention only": {"attn_only": True, "d_mlp": None, "act_fn": None},
    "MLP input hook": {"use_hook_mlp_in": True},
    "SoLU": {"act_fn": "solu_ln"},
}
STOCK = {
    "alibi": {"positional_embedding_type": "alibi"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "soft cap": {"attn_scores_soft_cap": 2.0},
    "sinks": {"use_attention_sinks": True},
    "per-head results": {"use_attn_result": True},
    "per-head q, k, v inputs": {"use_split_qkv_input": True},
    "per-head inputs": {"use_attn_in": True},
    "ungrouped": {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "q and k norms": {**ROTARY, **GATED, "use_qk_norm": True},
    "OLMo 2": {**ROTARY, **GATED, "d_head": 4, "rotary_dim": 4, "original_architecture": "Olmo2ForCausalLM"},
    "clipped q, k, v": {"clip_qkv": 0.3},
    "log-n scaling": {**ROTARY, "use_logn_attn": True, "train_seq_length": 4},
    "dynamic NTK": {**ROTARY, "use_dynamic_ntk_rope": True, "train_seq_length": 4},
}
TOKENS = torch.arange(18).reshape(2, 9) * 5 % 37
PADDINGS = {
    "right": [[1] * 9, [1] * 4 + [0] * 5],
    "left": [[0] * 6 + [1] * 3, [1] * 9],
    "both, and a hole": [[0, 1, 1, 1, 0, 1, 1, 0, 0], [1] * 9],
    "nothing real in one row": [[0] * 9, [1] * 9],
}


@pytest.fixture(autouse=True)
def _hooked_transformer(request):
    if not version("transformer-lens").startswith("3.") and request.function is not test_other_models_are_refused:
        pytest.skip("transformer-lens 4 has no HookedTransformer")


def build(dtype=torch.float32, **changes):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(2)
    model = HookedTransformer(HookedTransformerConfig(**{**BASE, **changes, "dtype": dtype}))
    # Values around 1: without norms they would otherwise grow from layer to layer, and rounding with them.
    size = 0.5 if model.cfg.normalization_type is None or model.cfg.original_architecture else 1.0
    for name, parameter in model.named_parameters():
        std = 0.3 if parameter.ndim == 1 else size * parameter.shape[-2] ** -0.5
        nn.init.normal_(parameter, mean=float(name.endswith(".w")), std=std)
    return model.eval()


def pair(**changes):
    """The same model twice: stock and fast."""
    stock = build(**changes)
    fast = copy.deepcopy(stock)
    enable_fast_attention(fast)
    return stock, fast


def worst(expected, actual):
    """The largest difference between two caches with the same names, shapes and dtypes."""
    assert list(expected) == list(actual)
    for name in expected:
        assert expected[name].shape == actual[name].shape, name
        assert expected[name].dtype == actual[name].dtype, name
        assert actual[name].isfinite().all(), name
    return max((expected[name].double() - actual[name].double()).abs().max().item() for name in expected)


def values(model, tokens=TOKENS, names=None, **options):
    """Every hook's value, the logits among them, but for those whose being cached forces stock attention."""

    def wanted(name):
        return not name.endswith(("hook_attn_scores", "hook_pattern")) if names is None else name in names

    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=wanted, return_cache_object=False, **options)
    return {**cache, "logits": logits}


@contextmanager
def sdpa_calls():
    """Counts the calls of scaled_dot_product_attention: the tests of speed-ups must not pass on the stock path."""
    calls, function = [], nn.functional.scaled_dot_product_attention
    patch = pytest.MonkeyPatch()
    patch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: (calls.append(options), function(*args, **options))[1],
    )
    try:
        yield calls
    finally:
        patch.undo()


def test_the_comparison_sees_a_planted_error():
    expected = values(build())
    for name in ("blocks.1.attn.hook_z", "logits"):
        planted = {**expected, name: expected[name].clone()}
        planted[name][1, 3] += 2 * TOLERANCE
        assert worst(expected, planted) > TOLERANCE
    with pytest.raises(AssertionError):
        worst(expected, {name: value for name, value in expected.items() if "hook_z" not in name})


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS.reshape(9, 2), TOKENS.repeat(1, 3)], ids=["2x9", "9x2", "2x27"])
@pytest.mark.parametrize("name", FAST)
def test_every_hook_sees_what_it_sees_in_stock(name, tokens):
    stock, fast = pair(**FAST[name])
    with sdpa_calls() as calls:
        actual = values(fast, tokens)
    assert len(calls) == 3
    assert worst(values(stock, tokens), actual) <= TOLERANCE


@pytest.mark.parametrize("name", FAST)
def test_every_hook_alone_sees_what_it_sees_in_stock(name):
    # A hook alone leaves the most to be fused: nobody listens inside the norms, for one.
    stock, fast = pair(**FAST[name])
    expected = values(stock)
    hooks = [hook for hook in expected if not hook.startswith(("blocks.0", "blocks.2", "logits"))]
    assert "blocks.1.attn.hook_z" in hooks
    for hook in hooks:
        alone = {name: expected[name] for name in (hook, "logits")}
        assert worst(alone, values(fast, names=[hook])) <= TOLERANCE, hook


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ["standard", "window", "Mistral-like", "NeoX-like", "GPT-J-like", "bidirectional"])
def test_padding(name, padding):
    stock, fast = pair(**FAST[name])
    mask = torch.tensor(PADDINGS[padding])
    with sdpa_calls() as calls:
        actual = values(fast, attention_mask=mask)
    assert len(calls) == 3
    assert worst(values(stock, attention_mask=mask), actual) <= TOLERANCE


@given(
    mask=st.integers(1, 11).flatmap(
        lambda length: st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=1, max_size=3)
    ),
    name=st.sampled_from(["standard", "Mistral-like"]),
    kind=st.sampled_from([torch.int64, torch.int32, torch.bool]),
)
@settings(max_examples=30)
def test_any_padding(mask, name, kind):
    stock, fast = pair(**FAST[name])
    mask = torch.tensor(mask).to(kind)
    tokens = torch.arange(mask.numel()).reshape(mask.shape) % 37
    assert worst(values(stock, tokens, attention_mask=mask), values(fast, tokens, attention_mask=mask)) <= TOLERANCE


@pytest.mark.parametrize("name", ["standard", "Mistral-like"])
def test_in_float64_the_two_agree_to_its_precision(name):
    stock, fast = pair(**FAST[name])
    stock, fast = stock.to(torch.float64), fast.to(torch.float64)
    mask = torch.tensor(PADDINGS["both, and a hole"])
    actual = values(fast, attention_mask=mask)
    assert actual["logits"].dtype == torch.float64
    assert worst(values(stock, attention_mask=mask), actual) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["standard", "Mistral-like", "folded norms", "folded RMS, one key-value head"])
def test_in_half_precision_it_is_as_near_to_the_truth_as_stock(name, dtype):
    stock, fast = (model.to(dtype) for model in pair(**FAST[name]))
    exact = copy.deepcopy(stock).to(torch.float64)
    mask = torch.tensor(PADDINGS["left"])
    truth = values(exact, attention_mask=mask, names=[])["logits"]
    with sdpa_calls() as calls:
        actual = values(fast, attention_mask=mask, names=[])["logits"]
    assert len(calls) == 3
    assert actual.dtype == dtype
    error = (values(stock, attention_mask=mask, names=[])["logits"].double() - truth).abs().mean()
    assert (actual.double() - truth).abs().mean() <= 1.25 * error


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_mask_changed_in_place_between_two_calls_counts(mode):
    stock, fast = pair(**FAST["Mistral-like"])
    with mode():
        mask = torch.ones_like(TOKENS)
        for column in (0, 1, 8):
            mask[1, column] = 0
            expected = stock(TOKENS, attention_mask=mask)
            assert (fast(TOKENS, attention_mask=mask) - expected).abs().max() <= TOLERANCE


def test_a_mask_changed_in_place_by_a_hook_counts_from_the_next_layer_on():
    stock, fast = pair()

    def run(model):
        mask = torch.tensor(PADDINGS["left"])

        def unmask(value, hook):
            mask[0, 2] = 1

        with torch.no_grad():
            return model.run_with_hooks(TOKENS, attention_mask=mask, fwd_hooks=[("blocks.1.hook_resid_pre", unmask)])

    assert (run(fast) - run(stock)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("name", ["standard", "window", "Mistral-like", "NeoX-like", "GPT-J-like"])
def test_cached_keys_and_values(name, padding):
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    stock, fast = pair(**FAST[name])
    mask = torch.ones_like(TOKENS) if padding is None else torch.tensor(PADDINGS[padding])
    whole = values(fast, attention_mask=mask)
    caches = [TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(TOKENS)) for model in (stock, fast)]
    for start, end in ((0, 4), (4, 7), (7, 8), (8, 9)):  # several new tokens after others, then single ones
        part = {"tokens": TOKENS[:, start:end], "attention_mask": mask[:, start:end]}
        expected = values(stock, past_kv_cache=caches[0], **part)
        with sdpa_calls() as calls:
            actual = values(fast, past_kv_cache=caches[1], **part)
        assert len(calls) == 3
        assert worst(expected, actual) <= TOLERANCE
        for name in ("logits", "blocks.2.attn.hook_z"):
            assert (whole[name][:, start:end] - actual[name]).abs().max() <= TOLERANCE


def test_generation_with_cache_equals_generation_without():
    stock, fast = pair(**FAST["Mistral-like"])
    options = {"max_new_tokens": 8, "do_sample": False, "stop_at_eos": False, "verbose": False}

    def generate(model, cached):
        return model.generate(TOKENS, use_past_kv_cache=cached, **options)

    assert torch.equal(generate(fast, True), generate(stock, True))
    assert torch.equal(generate(fast, True)[:, :9], TOKENS)


def test_positions_beyond_the_rotary_table():
    from transformer_lens.components import AbstractAttention

    patch = pytest.MonkeyPatch()
    patch.setattr(AbstractAttention, "ROTARY_INITIAL_CACHE_SIZE", 4)
    with patch.context():
        stock, fast = pair(**FAST["Mistral-like"])
    patch.undo()
    assert fast.blocks[0].attn.rotary_cos.shape[0] < TOKENS.shape[1]
    assert worst(values(stock), values(fast)) <= TOLERANCE


@pytest.mark.parametrize("name", STOCK)
def test_what_the_fast_path_does_not_know_takes_the_stock_path(name):
    stock, fast = pair(**STOCK[name])
    with sdpa_calls() as calls:
        actual = values(fast)
    assert not calls
    assert is_fast(fast)
    assert worst(values(stock), actual) <= TOLERANCE


def test_settings_switched_on_later_count():
    stock, fast = pair(n_key_value_heads=2)
    for switch in ("set_use_attn_result", "set_use_split_qkv_input", "set_ungroup_grouped_query_attention"):
        for model in (stock, fast):
            getattr(model, switch)(True)
        with sdpa_calls() as calls:
            assert worst(values(stock), values(fast)) <= TOLERANCE
        assert not calls
        for model in (stock, fast):
            getattr(model, switch)(False)
    with sdpa_calls() as calls:
        assert worst(values(stock), values(fast)) <= TOLERANCE
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["hook_attn_scores", "hook_pattern"])
def test_hooks_on_scores_and_pattern_fire_and_may_change_the_result(name):
    stock, fast = pair(**FAST["Mistral-like"])
    hook = f"blocks.1.attn.{name}"
    with sdpa_calls() as calls:
        actual = values(fast, names=[hook])
    assert len(calls) == 2  # the other layers stay fast
    expected, seen = values(stock, names=[hook]), actual[hook]
    masked = expected[hook].isinf()
    assert torch.equal(seen.isinf(), masked)
    assert (seen - expected[hook])[~masked].abs().max() <= TOLERANCE

    def first_key_only(value, hook):
        value[..., 1:] = -torch.inf if name == "hook_attn_scores" else 0.0
        return value

    results = []
    for model in (stock, fast):
        with torch.no_grad():
            results.append(model.run_with_hooks(TOKENS, fwd_hooks=[(hook, first_key_only)]))
    assert (results[1] - results[0]).abs().max() <= TOLERANCE
    assert (results[1] - actual["logits"]).abs().max() > 0.01


def test_a_plain_torch_hook_on_the_pattern_fires():
    _, fast = pair()
    seen = []
    handle = fast.blocks[1].attn.hook_pattern.register_forward_hook(lambda *args: seen.append(args[2]))
    fast(TOKENS)
    handle.remove()
    fast(TOKENS)
    assert [value.shape for value in seen] == [(2, 6, 9, 9)]


def test_a_torch_hook_on_all_modules_sees_the_pattern():
    _, fast = pair()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(getattr(module, "name", "")))
    try:
        fast(TOKENS)
    finally:
        handle.remove()
    assert {"blocks.2.attn.hook_pattern", "blocks.0.ln2.hook_scale"} <= set(seen)


@pytest.mark.parametrize("name", ["hook_attn_scores", "hook_pattern", "hook_z", "hook_q"])
def test_backward_hooks_see_the_gradients_of_stock(name):
    gradients = []
    for model in pair():
        seen = []
        hook = (f"blocks.1.attn.{name}", lambda gradient, hook, seen=seen: seen.append(gradient.clone()))
        with model.hooks(bwd_hooks=[hook]):
            model(TOKENS).logsumexp(-1).sum().backward()
        assert len(seen) == 1
        gradients.append(seen[0])
    assert gradients[0].abs().max() > 0.01
    assert (gradients[1] - gradients[0]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("place", ["ln1.hook_normalized", "ln1.hook_scale"])
def test_a_hook_inside_ln1_is_called_three_times_and_may_change_one_of_them(place):
    results = []
    for model in pair():
        calls = []

        def values_only(value, hook, calls=calls):
            calls.append(value)
            return value * 2 if len(calls) == 3 else value

        with torch.no_grad():
            results.append(model.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.1.{place}", values_only)]))
        assert len(calls) == 3
    assert (results[1] - results[0]).abs().max() <= TOLERANCE
    assert (results[1] - build()(TOKENS)).abs().max() > 0.01


def test_a_hook_that_widens_a_value_widens_z():
    results = []
    for model in pair():
        model = model.to(torch.bfloat16)
        with torch.no_grad(), model.hooks(fwd_hooks=[("blocks.1.attn.hook_v", lambda value, hook: value.float())]):
            results.append(values(model, names=["blocks.1.attn.hook_z"]))
    assert results[1]["blocks.1.attn.hook_z"].dtype == torch.float32
    assert worst(*results) <= 0.05  # in bfloat16 units of logits around 3


def test_a_hook_that_drops_positions_is_refused():
    _, fast = pair()
    with pytest.raises(ModelError, match="1 queries after 0 cached positions but 9 keys"):
        fast.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.attn.hook_q", lambda value, hook: value[:, -1:])])


@pytest.mark.parametrize("name", ["standard", "Mistral-like", "NeoX-like", "Gemma-like", "folded norms"])
@pytest.mark.parametrize("padding", [None, "right"])
def test_gradients(name, padding):
    gradients = []
    for model in pair(**FAST[name]):
        options = {} if padding is None else {"attention_mask": torch.tensor(PADDINGS[padding])}
        model(TOKENS, **options).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    scale = max(gradient.abs().max().item() for gradient in gradients[0].values())
    assert len(gradients[0]) > 20
    assert worst(*gradients) <= TOLERANCE * max(1.0, scale)


def test_rows_that_see_nothing_have_z_zero_and_finite_gradients():
    _, fast = pair(**FAST["Mistral-like"])
    mask = torch.tensor(PADDINGS["left"])
    seen = []
    with sdpa_calls() as calls, fast.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: seen.append(z))]):
        fast(TOKENS, attention_mask=mask).logsumexp(-1).sum().backward()
    # What a kernel makes of a row without any key differs from kernel to kernel: none is ever asked.
    assert not any(call["attn_mask"].isneginf().all(dim=-1).any() for call in calls)
    assert seen[0][0, :6].abs().max() == 0
    assert seen[0][0, 6:].abs().min() > 0
    assert all(parameter.grad.isfinite().all() for parameter in fast.parameters() if parameter.grad is not None)


def test_zero_z_leaves_the_output_bias():
    _, fast = pair()
    zero = ("blocks.1.attn.hook_z", lambda value, hook: torch.zeros_like(value))
    with fast.hooks(fwd_hooks=[zero]):
        out = values(fast, names=["blocks.1.hook_attn_out"])["blocks.1.hook_attn_out"]
    assert torch.equal(out, fast.blocks[1].attn.b_O.expand_as(out))


def test_z_is_contiguous():
    _, fast = pair()
    shapes = []
    with fast.hooks(
        fwd_hooks=[(lambda name: name.endswith("hook_z"), lambda z, hook: shapes.append(z.view(2, 9, 48)))]
    ):
        fast(TOKENS)
    assert len(shapes) == 3


def forwards(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_enable_and_disable_leave_nothing_behind():
    model = build(**FAST["Mistral-like"])
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(TOKENS)
    for _ in range(2):
        enable_fast_attention(model)
        enable_fast_attention(model)
        assert is_fast(model)
        assert {"", "blocks.1", "blocks.1.attn", "blocks.1.ln1", "unembed"} <= set(forwards(model))
        model(TOKENS)
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        disable_fast_attention(model)
        disable_fast_attention(model)
        assert not is_fast(model)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    assert torch.equal(model(TOKENS), before)


def test_only_this_model_is_changed():
    stock, fast = pair()
    with sdpa_calls() as calls:
        stock(TOKENS)
    assert not calls
    assert not forwards(stock)
    assert "scaled_dot_product_attention" not in type(fast.blocks[0].attn).forward.__code__.co_names


def test_a_deep_copy_is_fast_and_stands_alone():
    stock, fast = pair(**FAST["Mistral-like"])
    twin = copy.deepcopy(fast)
    assert forwards(twin) == forwards(fast)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    with sdpa_calls() as calls:
        assert worst(values(stock), values(twin)) <= TOLERANCE
    assert len(calls) == 3
    disable_fast_attention(twin)
    assert not forwards(twin)
    assert forwards(fast)


def test_a_forward_that_somebody_else_replaced_stays_theirs():
    model = build()
    attn = model.blocks[1].attn
    theirs = attn.forward = type(attn).forward.__get__(attn)
    enable_fast_attention(model)
    with sdpa_calls() as calls:
        model(TOKENS)
    assert len(calls) == 2
    disable_fast_attention(model)
    assert forwards(model) == ["blocks.1.attn"]
    assert attn.forward is theirs


def test_a_subclass_of_a_component_keeps_its_own_forward():
    model = build()

    class Doubled(type(model.blocks[1].attn)):
        def forward(self, *args, **options):
            return 2 * super().forward(*args, **options)

    model.blocks[1].attn.__class__ = Doubled
    expected = values(model)
    enable_fast_attention(model)
    with sdpa_calls() as calls:
        assert worst(expected, values(model)) <= TOLERANCE
    assert len(calls) == 2


def test_a_hook_that_raises_leaves_nothing_behind():
    stock, fast = pair(**FAST["Mistral-like"])

    def fail(value, hook):
        raise KeyError("planted")

    for hook in ("attn.hook_z", "attn.hook_pattern", "ln1.hook_scale", "hook_attn_out"):
        with torch.inference_mode():
            mask = torch.tensor(PADDINGS["right"])
            with pytest.raises(KeyError, match="planted"):
                fast.run_with_hooks(TOKENS, attention_mask=mask, fwd_hooks=[(f"blocks.1.{hook}", fail)])
            assert not fast.list_hooks()
            mask.fill_(1)
            with sdpa_calls() as calls:
                assert worst(values(stock, attention_mask=mask), values(fast, attention_mask=mask)) <= TOLERANCE
            assert len(calls) == 3


def test_a_block_called_on_its_own():
    stock, fast = pair(**FAST["Mistral-like"])
    residual, mask = torch.randn(2, 9, 24), torch.tensor(PADDINGS["left"])
    with torch.inference_mode():
        for column in (6, 7):  # the mask changes in place, outside any forward of the model
            mask[0, column] = 0
            expected = stock.blocks[1](residual, attention_mask=mask)
            assert (fast.blocks[1](residual, attention_mask=mask) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["opt", "mistral", "llama", "gpt2"])
def test_models_loaded_from_disk(name, saved):
    # Their weights are views of Hugging Face's, with strides that a HookedTransformer built here does not have.
    tiny = tiny_models.BY_NAME[name]
    tokens, mask = tiny.inputs()
    stock, fast = (load_model(saved(name), device="cpu", attention=attention) for attention in ("stock", "fast"))
    assert is_fast(fast)
    assert not is_fast(stock)
    for options in ({}, {"attention_mask": mask}):
        with sdpa_calls() as calls:
            actual = values(fast, tokens, **options)
        assert len(calls) == 3
        assert worst(values(stock, tokens, **options), actual) <= TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["standard", "window", "Mistral-like"])
def test_on_a_gpu(name, dtype):
    stock, fast = pair(**FAST[name])
    exact = copy.deepcopy(stock).to(torch.float64)
    stock, fast = (model.to(dtype).to("cuda") for model in (stock, fast))
    for mask in (None, torch.tensor(PADDINGS["left"]), torch.tensor(PADDINGS["nothing real in one row"])):
        truth = values(exact, attention_mask=mask, names=[])["logits"]
        mask = None if mask is None else mask.cuda()
        with sdpa_calls() as calls:
            actual = values(fast, TOKENS.cuda(), attention_mask=mask, names=[])["logits"]
        assert len(calls) == 3
        expected = values(stock, TOKENS.cuda(), attention_mask=mask, names=[])["logits"]
        error = (expected.cpu().double() - truth).abs().mean()
        assert (actual.cpu().double() - truth).abs().mean() <= max(TOLERANCE, 1.25 * error)
    fast(TOKENS.cuda(), attention_mask=mask).logsumexp(-1).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in fast.parameters() if parameter.grad is not None)


def test_other_models_are_refused():
    for function in (enable_fast_attention, disable_fast_attention):
        with pytest.raises(ModelError, match=r"got a Linear.*HookedTransformer.*load_model"):
            function(nn.Linear(2, 2))
    assert not is_fast(nn.Linear(2, 2))

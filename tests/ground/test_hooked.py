"""What is asked of any hooked model. That scores are computed as soon as anybody listens: integration/test_hooks.py."""

from types import SimpleNamespace

from torch import nn
from transformer_lens.hook_points import HookPoint

from ablation_lens.hooked import listening, task_of, tokenizer_of


def test_listening_notices_every_kind_of_hook_and_its_removal():
    for attach in (
        lambda point: point.add_hook(lambda value, hook: value),
        lambda point: point.add_hook(lambda value, hook: value, dir="bwd"),
        lambda point: point.register_forward_hook(lambda *args: None),
        lambda point: point.register_forward_pre_hook(lambda *args: None),
        lambda point: point.register_full_backward_hook(lambda *args: None),
    ):
        point, other = HookPoint(), HookPoint()
        assert not listening(point, other)
        handle = attach(point)
        assert listening(other, point)
        handle.remove() if hasattr(handle, "remove") else point.remove_hooks("both")
        assert not listening(point, other)


def test_a_hook_on_every_module_of_the_process_is_heard_and_its_removal_too():
    point = HookPoint()
    for attach in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ):
        assert not listening(point)
        handle = attach(lambda *_: None)
        try:
            assert listening(point)
        finally:
            handle.remove()
    assert not listening(point)


def test_a_model_that_says_nothing_is_a_causal_one_without_a_tokenizer():
    assert task_of(SimpleNamespace()) == "causal-lm"
    assert tokenizer_of(SimpleNamespace()) is None
    assert tokenizer_of(SimpleNamespace(tokenizer="changed", hf_tokenizer="as it came")) == "as it came"
    assert tokenizer_of(SimpleNamespace(tokenizer="changed", hf_tokenizer=None)) == "changed"

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablation_lens import centers
from ablation_lens.errors import MismatchError
from ablation_lens.study.methods import Method, names


@given(
    bins=st.none() | st.integers(-(10**12), 10**12),
    epsilon=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_label_reads_back_as_the_same_method(bins, epsilon):
    given = {"bins": bins, "epsilon": epsilon}
    method = Method("peak", {name: value for name, value in given.items() if value is not None})
    again = Method.parse(method.label)
    assert again == method
    assert {name: type(value) for name, value in again.parameters.items()} == {
        name: type(value) for name, value in method.parameters.items()
    }


def test_the_order_of_parameters_does_not_matter():
    assert Method.parse("peak epsilon=0.25 bins=64").label == Method.parse("peak bins=64 epsilon=0.25").label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paek", "did you mean 'peak'"),
        ("resample-token", "did you mean 'resample-tokens'"),
        ("", "there is no method ''"),
        ("   ", "there is no method ''"),
        ("peak bins", "'bins' in 'peak bins' is not a parameter"),
        ("peak bins=", "is not a parameter"),
        ("peak =3", "is not a parameter"),
        ("peak bins=many", "is not a parameter"),
        ("peak bins=64 bins=32", "gives bins twice"),
        ("peak bims=3", "unexpected keyword argument 'bims'"),
        ("zero bins=3", "takes no parameters"),
        ("resample-tokens bins=3", "takes no parameters"),
    ],
)
def test_what_is_no_method_says_so(text, message):
    with pytest.raises(MismatchError, match=message):
        Method.parse(text)


def test_which_methods_suit_which_models():
    suited = {
        task: [name for name in names() if name.startswith("resample-") and Method(name).suits(task)]
        for task in ("causal-lm", "masked-lm", "image-classification")
    }
    texts = ["resample-characters", "resample-tokens", "resample-generated"]
    assert suited == {"causal-lm": texts, "masked-lm": texts, "image-classification": ["resample-pixels"]}
    assert all(Method(name).suits(task) for name in centers.names() for task in suited)


def test_only_the_trimmed_peak_reads_the_corpus_twice():
    assert [name for name in names() if Method(name).passes == 2] == ["peak-trimmed"]


def test_a_registered_center_is_a_method_at_once(registry):
    registry.register("five")(lambda statistics, *, times=1: statistics.mean * 0 + 5 * times)
    assert Method.parse("five times=2").label == "five times=2"
    assert "five" in names()


def test_parameters_are_tried_before_anything_is_measured(registry):
    registry.register("earliest")(lambda statistics, *, times=1: statistics.position_mean[:, 0] * times)
    registry.register("broken")(lambda statistics, *, times=1: statistics.mean / [] * times)
    for text, message in (
        ("peak-kde bandwidth=-1", "expected a finite number above zero"),
        ("peak epsilon=1e300", "wider than any activation"),
        ("earliest times=2", "hold no per-position mean"),
        ("broken times=2", r"this center raised TypeError: .* Mend it"),
    ):
        with pytest.raises(MismatchError, match=message):
            Method.parse(text).require_possible(256)
    registry.register("nowhere")(lambda statistics: statistics.mean * torch.nan)
    with pytest.raises(MismatchError, match="nowhere"):
        Method.parse("nowhere").require_possible(256)


def test_a_center_that_may_need_the_models_neurons_is_warned_of_and_left_to_its_cells(registry):
    registry.register("broken")(lambda statistics: statistics.mean / [])
    registry.register("shaped")(lambda statistics: torch.zeros(4, 4, 24))
    for name, told in (("broken", "TypeError"), ("shaped", "MismatchError")):
        with pytest.warns(UserWarning, match=rf"{name}: this center raised an error .* its cells fail \({told}: "):
            Method(name).require_possible(256)

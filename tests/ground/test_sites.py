from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ablation_lens.errors import MismatchError
from ablation_lens.sites import Site, neuron_name, parse_neuron, parse_place

CFG = SimpleNamespace(n_layers=3, n_heads=4, d_head=5, d_mlp=7)


def test_shapes_count_the_mlp_as_one_head():
    assert Site.Z.shape(CFG) == (3, 4, 5)
    assert Site.MLP.shape(CFG) == (3, 1, 7)
    assert len(Site.MLP.hook_names(CFG)) == 3


@pytest.mark.parametrize(("site", "shape"), [(Site.Z, (2, 6, 4, 5)), (Site.MLP, (2, 6, 7))])
def test_heads_there_and_back_is_the_identity_and_copies_nothing(site, shape):
    activation = torch.randn(shape)
    heads = site.to_heads(activation)
    assert heads.ndim == 4
    back = site.from_heads(heads)
    assert back.shape == activation.shape
    assert back.data_ptr() == activation.data_ptr()


def test_a_site_of_another_shape_is_a_clear_error():
    with pytest.raises(MismatchError, match="expected 4 axes"):
        Site.Z.to_heads(torch.zeros(2, 6, 20))


def test_neuron_names_round_trip_and_are_checked():
    assert parse_neuron(neuron_name(10, 0, 63)) == (10, 0, 63)
    assert parse_neuron(" L1.H2.D3 ", shape=(2, 3, 4)) == (1, 2, 3)
    for wrong in ("L1.H2", "1.2.3", "L-1.H2.D3", "L1.H2.D3; drop table"):
        with pytest.raises(MismatchError, match=r"L3\.H5\.D17"):
            parse_neuron(wrong)
    with pytest.raises(MismatchError, match="2 layers, 3 heads and 4 dims"):
        parse_neuron("L2.H0.D0", shape=(2, 3, 4))


def test_neurons_without_heads_have_shorter_names_and_old_ones_are_read():
    assert neuron_name(1, 0, 509, "mlp") == "L1.M509"
    for text in ("L1.M509", "L1.H0.D509"):  # the second in tables and links of earlier versions
        assert parse_neuron(text, shape=(2, 1, 512), site="mlp") == (1, 0, 509)
    with pytest.raises(MismatchError, match=r"2 layers, 512 mlp neurons in each"):
        parse_neuron("L1.M512", shape=(2, 1, 512), site="mlp")
    for wrong in ("L1.H1.D5", "L1"):
        with pytest.raises(MismatchError, match=r"L3\.M17"):
            parse_neuron(wrong, site="mlp")
    for wrong in ("L1.M509", "L1.D5"):  # of an MLP, and without its head
        with pytest.raises(MismatchError, match=r"L3\.H5\.D17 \(layer, head, dim\)"):
            parse_neuron(wrong)


@pytest.mark.parametrize("wrong", [None, 5, ["L1.H2.D3"], "L" + "9" * 5000, "L1.H2.D٣", (1, True, 0), (1, 2, 3, 4)])
def test_what_is_no_neuron_at_all_is_one_sentence(wrong):
    with pytest.raises(MismatchError, match="is not a neuron"):
        parse_neuron(wrong)


def test_sites_are_named_by_strings():
    assert [Site.of(site.value) for site in Site] == list(Site)
    assert Site.of(Site.MLP) is Site.MLP
    for wrong in ("mpl", "MLP", None, 3):
        with pytest.raises(MismatchError, match="Known: z, mlp"):
            Site.of(wrong)


def test_a_model_of_attention_alone_has_no_mlp_neurons():
    for cfg in (SimpleNamespace(**vars(CFG) | {"d_mlp": None}), SimpleNamespace(**vars(CFG), attn_only=True)):
        with pytest.raises(MismatchError, match="attention only"):
            Site.MLP.shape(cfg)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("MLP", "mlp"),
        ("Resid_Post", "resid_post"),
        ("hook_z", "z"),
        ("attn.hook_z", "z"),
        ("hook_post", "mlp"),
    ],
)
def test_a_site_in_another_spelling_is_answered_with_the_one_that_was_meant(given, meant):
    with pytest.raises(MismatchError, match=f"did you mean '{meant}'"):
        Site.of(given)


def test_a_dictionary_by_site_is_read_by_name():
    held = {Site.Z: 1, Site.MLP: 2}
    assert (held["mlp"], held.get("z"), "q" in held, held.get(Site.Q)) == (2, 1, False, None)
    assert Site.Z != Site.MLP


def test_numbers_of_numpy_are_numbers_of_a_place():
    assert parse_place((np.int64(1), 2)) == (1, 2)
    for wrong in (1, None, (True, 1), (), (1, 2, 3, 4), (1.0,), [-1]):
        with pytest.raises(MismatchError, match="is not a neuron, head or layer"):
            parse_place(wrong)
    with pytest.raises(MismatchError, match=r"is not a neuron.*for MLP neurons give site='mlp'"):
        parse_place("L1.M5")

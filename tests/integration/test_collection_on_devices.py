"""Collecting where an accelerator, or several, compute: by `meta`, on which every question to the device raises."""

import itertools

import pytest
import torch

from ablation_lens import load_model
from ablation_lens.errors import NonFiniteError
from ablation_lens.measure.collection import _Counting, _Pass, _run, collect
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.sites import Site
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch
from tests.integration.test_collection import batches_of
from tests.tiny_models import BY_NAME

SITES = (Site.Z, Site.MLP)


def a_pass(model, **options):
    """One pass over some sites, as `collect` makes it."""
    return _Pass(model, {site: _Counting(site, **options) for site in SITES}, True, Padding(model))


def collected(model, batches, around=None, **options):
    """The counting that is left after a pass."""
    counting = {site: _Counting(site, around=None if around is None else around[site], **options) for site in SITES}
    _run(_Pass(model, counting, True, Padding(model)), batches, "", False, lambda: False)
    return counting


def bits(counting, second):
    """Everything that two passes found of a site, sums of squares and the like apart."""
    positions = counting.found_positions()
    return (
        *counting.found().tensors().values(),
        counting.found_moments().count,
        counting.found_moments().pivot,
        positions.sums,
        positions.counts,
        *second.found_trimmed().inside.tensors().values(),
        second.found_trimmed().underflow,
        second.found_trimmed().overflow,
    )


@pytest.mark.parametrize("name", ["opt", "mistral", "roberta", "vit"])
def test_a_batch_is_read_and_counted_without_asking_the_device(saved, name):
    model = load_model(saved(name))
    batch = batches_of(BY_NAME[name], 1)[0]
    first = collect(model, [batch], site=SITES, progress=False)
    model.to("meta")
    model.cfg.device = torch.device("meta")
    whole = batch if batch.inputs.ndim > 2 else Batch.causal(batch.inputs)
    # Hugging Face's own forward, which a bridge runs, asks what a mask hides.
    masked = [] if hasattr(model, "original_model") else [batch]
    with torch.inference_mode():
        for given in (whole, *masked):
            running = a_pass(model, wants_positions=True)
            assert running.take(given) == given.size
        second = {site: _Counting(site, around=TrimmedHistogram.around(first[site].histogram)) for site in SITES}
        _Pass(model, second, True, Padding(model)).take(whole)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # the one question, at the batch's end
        running.settle()


@pytest.mark.parametrize("grouped", [True, False])
def test_layers_of_several_devices_are_counted_apart_and_come_together(saved, grouped):
    model, batches = load_model(saved("opt")), batches_of(BY_NAME["opt"], 3)
    options = {"wants_positions": True, "grouped": grouped}

    def both_passes(lies_on):
        first = collected(model, batches, lies_on=lies_on, **options)
        around = {site: TrimmedHistogram.around(first[site].found()) for site in SITES}
        second = collected(model, batches, around, lies_on=lies_on, grouped=grouped)
        return {site: bits(first[site], second[site]) for site in SITES}, first

    # Two sites of each of three layers, the last of which lies on another device.
    places = itertools.cycle(["one", "one", "one", "one", "other", "other"])
    apart, counting = both_passes(lambda values: next(places))
    together, expected = both_passes(lambda values: values.device)
    assert list(counting[Site.Z].shares) == ["one", "other"]
    for site in SITES:
        assert all(torch.equal(*pair) for pair in zip(apart[site], together[site], strict=True))
        for name in ("mean", "variance", "mean_absolute", "mean_root"):
            both = (getattr(each[site].found_moments(), name) for each in (counting, expected))
            torch.testing.assert_close(*both, rtol=1e-12, atol=0)


def test_groups_find_what_layers_find(saved):
    model, batches = load_model(saved("mistral")), batches_of(BY_NAME["mistral"], 3)
    plain = collect(model, batches, site=SITES, positions=True, progress=False)
    for group_bytes in (1, 2**28):
        counting = collected(model, batches, grouped=True, group_bytes=group_bytes, wants_positions=True)
        for site in SITES:
            expected, found = plain[site].histogram.tensors(), counting[site].found().tensors()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert torch.allclose(counting[site].found_moments().mean, plain[site].moments.mean, rtol=1e-12, atol=1e-14)
            assert torch.equal(counting[site].found_positions().sums, plain[site].position_sums)


@pytest.mark.parametrize("last", [True, False])
def test_numbers_that_overflow_in_a_group_name_the_neuron(saved, last):
    model, batches, calls = load_model(saved("opt")), batches_of(BY_NAME["opt"], 3), []

    def plant(z, hook):
        calls.append(hook)
        if len(calls) == (3 if last else 1):
            z = z.clone()
            z[0, 3, 4, 5] = float("inf")
        return z

    with model.hooks([(Site.Z.hook_name(2), plant)]), pytest.raises(NonFiniteError, match=r"L2\.H4\.D5 is inf"):
        collected(model, batches, grouped=True)
    assert len(calls) == (3 if last else 2)  # found while the batch after it was read


@pytest.mark.gpu
def test_a_batch_is_read_and_counted_on_cuda_without_waiting(saved):
    model, batches = load_model(saved("opt"), device="cuda", dtype="float32"), batches_of(BY_NAME["opt"], 4)
    running = a_pass(model, wants_positions=True)
    with torch.inference_mode():
        running.take(batches[0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches[1:]:
                running.take(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        running.settle()
    assert running.tokens == sum(batch.size for batch in batches)
    expected = collected(model, batches, grouped=False, wants_positions=True)
    for site in SITES:
        tensors = running.counting[site].found().tensors()
        assert all(torch.equal(tensors[name], part) for name, part in expected[site].found().tensors().items())

"""A model whose blocks lie on two devices: nothing is mixed, and every number is that of one device.

The devices are stand-ins (tests/two_devices.py): they compute on the CPU, and refuse to be mixed as GPUs do.
"""

import contextlib

import pytest
import torch

import ablation_lens as al
from ablation_lens.circuits import attribution_effects, edge_effects, knockout_effects
from ablation_lens.errors import ModelError
from ablation_lens.measure.forward import capture
from ablation_lens.measure.learners import learn
from ablation_lens.models.devices import devices_from, spread
from ablation_lens.models.load import transformer_lens_major
from tests.two_devices import FIRST, SECOND, Elsewhere, two_devices

TEXTS = [f"Text {number} says that {number} is a number." + " And so on." * (number % 5) for number in range(60)]


@contextlib.contextmanager
def beside_one_device(name):
    """The model on two devices, the same on one, and plans for both."""
    plain = al.load_model(name)
    task = al.task_for(plain, TEXTS)
    with two_devices(al.load_model(name), spread) as model:
        yield model, plain, task.batches(split="collect", tokens=40), task.batches(split="evaluate", tokens=40)


def test_everything_that_runs_a_model_gives_the_numbers_of_one_device():
    with beside_one_device("tiny-opt") as (model, plain, collected, judged):
        weights = {layer: {each.device for each in model.blocks[layer].parameters()} for layer in range(4)}
        assert weights == {0: {FIRST}, 1: {FIRST}, 2: {SECOND}, 3: {SECOND}}
        assert model.cfg.device == FIRST

        statistics, expected = (al.collect(each, collected, progress=False) for each in (model, plain))
        assert torch.allclose(statistics.center("mean"), expected.center("mean"), atol=1e-5)
        values = expected.center("mean")
        mask = al.random_neurons(values.shape, 0.5, 1)
        for ablation in (None, al.Ablation(mask, values, positions=-1)):
            ours, theirs = (al.evaluate(each, judged, ablation, metrics=["kl"]) for each in (model, plain))
            assert torch.allclose(ours.loss, theirs.loss, atol=1e-4)
            assert ours["kl"] == pytest.approx(theirs["kl"], abs=1e-5)
        baked = al.Ablation(mask, values).bake(model)
        assert al.evaluate(baked, judged).cross_entropy == pytest.approx(
            al.evaluate(plain, judged, al.Ablation(mask, values)).cross_entropy, abs=1e-5
        )
        batch = next(iter(judged))
        ours, theirs = capture(model, batch.to(FIRST)), capture(plain, batch)
        assert all(torch.allclose(ours[layer].cpu(), theirs[layer], atol=1e-4) for layer in theirs)
        for effects, options in ((knockout_effects, {"level": "layer"}), (attribution_effects, {"steps": 1})):
            ours, theirs = (
                effects(each, judged, "cross_entropy", values, progress=False, **options) for each in (model, plain)
            )
            assert torch.allclose(ours["z"], theirs["z"], atol=1e-5)


def test_what_is_learned_and_what_a_part_of_a_model_is_worth_too():
    with beside_one_device("tiny-mistral") as (model, plain, collected, judged):
        # Each of its own, as the stand-in's weights have no checksum.
        read = [(each, al.collect(each, collected, progress=False)) for each in (model, plain)]
        ours, theirs = (learn(each, collected, "sensitivity-mean", of, progress=False).values for each, of in read)
        assert torch.allclose(ours.cpu(), theirs, atol=1e-4)
        learned = learn(model, collected, "optimal", read[0][1], steps=1, share=0.5, progress=False)
        assert bool(learned.values.isfinite().all())
        options = {"among": ["L0.H1", "L3.H2"], "positions": [-1], "steps": 1, "progress": False}
        ours, theirs = (
            attribution_effects(each, judged, "cross_entropy", "zero", **options) for each in (model, plain)
        )
        assert torch.allclose(ours["z"], theirs["z"], atol=1e-5)
        if transformer_lens_major() < 4:  # 4 refuses to read weights of the stand-in's kind of device
            ours, theirs = (
                edge_effects(each, judged, "cross_entropy", read[1][1].center("mean"), progress=False).table()
                for each in (model, plain)
            )
            assert (ours["effect"] - theirs["effect"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-mistral"])
def test_hooks_see_a_layer_on_its_own_device_and_what_comes_out_is_on_the_first(name):
    with beside_one_device(name) as (model, _, _, judged):
        seen = []
        hooks = [(f"blocks.{layer}.attn.hook_z", lambda z, hook: seen.append(z.device)) for layer in range(4)]
        batch = next(iter(judged)).to(FIRST)
        args, options = batch.arguments()
        with torch.no_grad():
            logits = model.run_with_hooks(*args, fwd_hooks=hooks, **options)
        assert seen == [FIRST, FIRST, SECOND, SECOND]
        assert logits.device == FIRST


def test_the_stand_in_notices_what_is_mixed():
    with beside_one_device("tiny-opt") as (model, *_):
        here, there = torch.ones(3).to(FIRST), torch.ones(3).to(SECOND)
        with pytest.raises(RuntimeError, match="mixes meta:0 and meta:1"):
            here + there
        with pytest.raises(RuntimeError, match="mixes cpu and meta:1"):
            there * torch.ones(3)
        assert isinstance((there + 1).to(FIRST), Elsewhere)
        assert type(there.cpu()) is torch.Tensor
        model.blocks[3]._forward_hooks.clear()  # which give back what the last block made
        with pytest.raises(RuntimeError, match="mixes"), torch.no_grad():
            model(torch.tensor([[2, 5, 7]]).to(FIRST))


def test_an_asked_for_split_that_is_not_possible_is_one_sentence(monkeypatch):
    for count, told in ((0, "n_devices=0"), (True, "n_devices=True"), ("2", "n_devices='2'"), (2, "over GPUs")):
        with pytest.raises(ModelError, match=told):
            al.load_model("tiny-opt", device="cpu", n_devices=count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_from(torch.device("cuda", 1), 2) == (torch.device("cuda", 1), torch.device("cuda", 2))
    with pytest.raises(ModelError, match="GPUs 2 to 3, and torch sees 3"):
        devices_from(torch.device("cuda", 2), 2)
    with pytest.raises(ModelError, match="a roberta model, which lies on one device"):
        al.load_model("tiny-roberta", device="cuda", n_devices=2)

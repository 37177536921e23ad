"""A model in 16 bits, from loading to circuits: what the same weights give in float64, but for rounding."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ablation_lens as al
from ablation_lens import zoo
from ablation_lens.circuits import attribution_effects, knockout_effects
from ablation_lens.neurons import centers

TEXTS = [
    f"The function number {number} returns {number % 7} items of the list, and raises an error where there are none."
    for number in range(200)
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """`stored("tiny-opt", "bfloat16")`: a folder of the zoo's model whose weights are rounded to that dtype."""

    def folder(name, dtype):
        path = shutil.copytree(zoo.folder(name), tmp_path_factory.mktemp(dtype) / name)
        weights = {key: each.to(getattr(torch, dtype)) for key, each in load_file(path / "model.safetensors").items()}
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return folder


def plans(model):
    reads_text = model.image_processor is None
    task = al.task_for(model, TEXTS if reads_text else None)
    size = {"tokens": 240} if reads_text else {"images": 16}
    return task.batches(split="collect", **size), task.batches(split="evaluate", **size)


def alike(ours, theirs):
    return float(torch.corrcoef(torch.stack([ours.flatten().double(), theirs.flatten().double()]))[0, 1])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("tiny-opt", "bfloat16"), ("tiny-opt", "float16"), ("tiny-roberta", "bfloat16"), ("tiny-vit", "bfloat16")],
)
def test_every_center_is_scored_as_in_float64(stored, name, dtype):
    folder = stored(name, dtype)
    half, exact = al.load_model(folder, dtype=dtype), al.load_model(folder, dtype="float64")
    assert next(half.parameters()).dtype == half.cfg.dtype == getattr(torch, dtype)
    collected, judged = plans(half)
    statistics, reference = (al.collect(model, collected, passes=2, progress=False) for model in (half, exact))
    mean, rounding = reference.center("mean"), 0.2 * reference.variance.sqrt() + 0.01 * reference.center("mean").abs()
    assert bool(((statistics.center("mean") - mean).abs() < rounding).all())
    mask = al.random_neurons(statistics.shape, 0.5, 1)
    for center in (None, *centers.names()):
        # Of the same values, so that what is compared is the ablated model and its score.
        ablation = None if center is None else al.Ablation(mask, statistics.center(center), center=center)
        ours, theirs = (al.evaluate(model, judged, ablation) for model in (half, exact))
        assert ours.cross_entropy == pytest.approx(theirs.cross_entropy, rel=0.01, abs=0.01)
        assert ours.top1 == pytest.approx(theirs.top1, abs=2 / ours.predictions)
        assert ours.documents == theirs.documents
    # A loss that had been rounded to 16 bits would have next to no digits of its own.
    assert not torch.equal(ours.loss, ours.loss.to(getattr(torch, dtype)).double())
    baked = al.Ablation(mask, statistics.center("mean")).bake(half)
    applied = al.evaluate(half, judged, al.Ablation(mask, statistics.center("mean")))
    assert al.evaluate(baked, judged).cross_entropy == pytest.approx(applied.cross_entropy, rel=0.01, abs=0.01)


@pytest.mark.parametrize("name", ["tiny-opt", "tiny-mistral"])
def test_circuits_find_what_they_find_in_float64(stored, name):
    folder = stored(name, "bfloat16")
    half, exact = al.load_model(folder, dtype="bfloat16"), al.load_model(folder, dtype="float64")
    collected, batches = plans(half)
    values = al.collect(half, collected, progress=False).center("mean")
    for effects, least in ((knockout_effects, 0.98), (attribution_effects, 0.97)):
        options = {"level": "head", "progress": False}
        ours, theirs = (effects(model, batches, "cross_entropy", values, **options) for model in (half, exact))
        assert alike(ours["z"], theirs["z"]) > least
        assert float(ours["z"].abs().max()) == pytest.approx(float(theirs["z"].abs().max()), rel=0.1)


def test_a_study_in_16_bits_is_the_float64_one_but_for_rounding(stored, tmp_path):
    folder = str(stored("tiny-vit", "bfloat16"))
    frames = []
    for dtype in ("bfloat16", "float64"):
        study = al.Study(
            models=[folder],
            methods=["zero", "mean", "median", "resample-pixels"],
            fractions=[0.5, 1.0],
            seeds=[1],
            bins=64,
            collect_images=24,
            evaluate_images=16,
            dtype=dtype,
        )
        results = study.run(tmp_path / dtype, progress=False)
        assert not results.failed
        frames.append(results.frame.set_index(["method", "fraction"])["cross_entropy"])
    ours, theirs = frames
    assert ((ours - theirs).abs() < 0.02 + 0.05 * theirs).all()
    # The key tells them apart: going on with a folder in another dtype measures anew.
    assert not set((tmp_path / "bfloat16" / "cells").iterdir()) & set((tmp_path / "float64" / "cells").iterdir())

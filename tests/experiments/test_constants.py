"""Loss as a function of the constant: where it is lowest, what is lost there, and what centers add."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.experiments.constants import LossCurves, Unit, loss_curves
from ablation_lens.experiments.minima import describe_growth, find_lowest
from ablation_lens.files import load_tensors, save_tensors
from tests.made_curves import curves_of
from tests.synthetic_statistics import record

GRID = (-4, -2, 0, 2, 4)


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-opt")


@pytest.fixture(scope="module")
def batches(model):
    return al.task_for(model).batches(split="evaluate", tokens=300)


@pytest.fixture(scope="module")
def stats(model):
    return al.collect(model, al.task_for(model).batches(split="collect", tokens=500), progress=False)


@pytest.fixture(scope="module")
def measured(model, batches, stats):
    asked = {"neurons": ["L0.H1.D3"], "heads": ["L1.H2"], "shares": (0.5,), "seeds": (0, 1)}
    return loss_curves(model, batches, stats, sigmas=GRID, progress=False, **asked)


# ------------------------------------------------------------------ where a curve is lowest


def test_the_vertex_of_a_parabola_is_found_between_its_points():
    points = np.array([-3.0, -1.0, 0.0, 2.0, 3.0])
    minima = np.array([-1.75, -0.3, 0.0, 1.2])
    found = find_lowest(points, 0.5 * (points - minima[:, None]) ** 2 + minima[:, None])
    np.testing.assert_allclose(found.place, minima, atol=1e-12)
    np.testing.assert_allclose(found.height, minima, atol=1e-12)
    assert not found.at_edge.any()


def test_what_still_falls_at_an_end_is_said_to():
    points = np.linspace(-4, 4, 9)
    found = find_lowest(points, np.stack([points, -points, (points - 5) ** 2, points * 0]))
    assert found.at_edge.tolist() == [True, True, True, True]
    assert found.place.tolist() == [-4, 4, 4, -4]
    assert math.isnan(describe_growth(points, points).power)


def test_a_flat_curve_has_no_shape_and_does_not_fail():
    found = describe_growth(np.linspace(-4, 4, 9), np.ones(9))
    assert found.bend == pytest.approx(0)
    assert math.isnan(found.explained)


def test_growth_that_is_not_quadratic_is_told_by_its_power():
    points = np.linspace(-4, 4, 17)
    assert describe_growth(points, np.abs(points) ** 4).power == pytest.approx(4)
    assert describe_growth(points, np.abs(points)).power == pytest.approx(1)


# ------------------------------------------------------------------ fits


def test_the_floor_is_told_apart_from_what_a_center_adds():
    fit = curves_of([0.75], floor=0.1, bend=0.01).fits.iloc[0]
    assert fit["minimum"] == pytest.approx(0.75)
    assert fit["minimum_value"] == pytest.approx(0.25 + 0.75 * 2)
    assert fit["floor"] == pytest.approx(0.1)
    noise = {center: fit[f"noise_{center}"] for center in ("zero", "mean", "median", "peak")}
    assert noise == pytest.approx({"zero": 0.01 / 16, "mean": 0.01 * 0.75**2, "median": 0.01, "peak": 0.01 / 16})
    assert fit["bend"] == pytest.approx(0.01)
    assert fit["power"] == pytest.approx(2)
    assert fit["explained"] == pytest.approx(1)


def test_a_curve_below_its_own_noise_is_not_resolved():
    assert curves_of([0.5], bend=0.01, noise=0.0001).fits["resolved"].all()
    noisy = curves_of([0.5], bend=0.01, noise=0.05).fits.iloc[0]
    assert not noisy["resolved"]
    assert noisy["minimum_low"] < 0.5 < noisy["minimum_high"]


def test_intervals_are_paired_over_documents():
    """Documents that differ in loss, but agree on what a constant costs, leave no doubt."""
    curves = curves_of([0.5])
    shift = torch.linspace(0, 9, 12).double() * curves.clean.weights
    moved = replace(curves, sums=curves.sums + shift, clean=replace(curves.clean, values=curves.clean.values + shift))
    row = moved.frame.iloc[0]
    assert row["high"] - row["low"] == pytest.approx(0, abs=1e-12)
    assert row["difference"] == pytest.approx(0.1 + 0.01 * 4.5**2)


def test_random_sets_of_one_share_are_told_together():
    sets = tuple(Unit(f"0.5 at random, seed {seed}", "random", 12, 0.5, seed) for seed in (0, 1))
    curves = curves_of([0.0, 1.0], units=sets)
    (fit,) = curves.fits.to_dict("records")
    assert (fit["name"], fit["masks"]) == ("50 % at random", 2)
    assert fit["minimum"] == pytest.approx(0.5)
    assert fit["floor"] == pytest.approx(0.1 + 0.01 * 0.25)


def test_ten_masks_are_drawn_again_with_the_documents():
    def width(count):
        sets = tuple(Unit(f"0.5 at random, seed {seed}", "random", 12, 0.5, seed) for seed in range(count))
        row = curves_of([seed % 2 for seed in range(count)], units=sets).frame.iloc[0]
        return row["high"] - row["low"]

    assert width(2) == pytest.approx(0, abs=1e-12)
    assert width(10) > 0.001


# ------------------------------------------------------------------ over many neurons


def test_the_nearest_center_is_the_one_the_minima_were_planted_at():
    found = curves_of(torch.linspace(-0.2, 0.1, 12).tolist()).summary()
    assert found["neurons"].tolist() == [12] * 4
    assert found["distance"].idxmin() == "mean"
    assert found["nearest"].sum() == pytest.approx(1)
    assert found.loc["zero", "nearest"] == found.loc["peak", "nearest"] == 0
    np.testing.assert_allclose(found["nearest"], found["least"])
    assert found.loc["peak", "noise"] > found.loc["zero", "noise"] > found.loc["mean", "noise"] > 0


def test_a_center_inside_the_interval_of_the_minimum_may_be_it():
    sure, unsure = (curves_of([0.02] * 3, bend=0.1, noise=noise, places=(0.5, 0.0, -0.25, 1.0)) for noise in (0, 0.05))
    assert sure.summary()["within"].tolist() == [0, 0, 0, 0]
    assert unsure.summary()["within"].tolist() == [0, 1, 1, 0]


def test_centers_at_one_place_share_who_is_nearest():
    found = curves_of([0.5] * 3, places=(0.5, 0.0, -0.25, 0.5)).summary()
    assert found["nearest"].tolist() == [0.5, 0, 0, 0.5]


def test_the_sentence_says_who_cannot_be_told_apart():
    told = curves_of([-0.1, 0.02, -0.2] * 3, places=(3.0, 0.0, 1e-6, 2.0)).sentence()
    assert told.startswith("9 of 9 neurons")
    assert "0.11 σ from the mean on average" in told
    assert "the median (0.11 σ) cannot be told from it" in told
    assert "the peak (2.09 σ) and zero (3.09 σ) are further away" in told


def test_what_does_not_stand_out_is_counted_and_left_out():
    curves = curves_of([0.0, 0.1, 0.2], bend=1e-5, noise=0.05)
    assert curves.sentence() == (
        "0 of 3 neurons have a curve that stands out from noise: too few to say where minima lie."
    )
    assert curves.summary()["nearest"].isna().all()
    assert "0 of 3" in repr(curves)


def test_a_minimum_beyond_the_grid_is_counted():
    told = curves_of([9.0, 0.0, 0.1, 0.2, 0.3, 0.4], bend=0.1)
    assert "(1 of them still fall at an end of it)" in told.sentence()
    assert told.fits["at_edge"].tolist() == [True, *[False] * 5]


def test_of_few_neurons_nothing_is_said_of_others():
    few = curves_of([0.0, 0.1, 0.2, 0.1, 0.0], bend=0.1)
    assert few.sentence() == "5 of 5 neurons have a curve that stands out from noise: too few to say where minima lie."
    assert few.summary()["distance_low"].isna().all()
    assert few.summary()["distance"].notna().all()


# ------------------------------------------------------------------ measuring


def test_a_point_is_what_evaluating_that_constant_gives(model, batches, stats, measured):
    value = float(stats.mean[0, 1, 3] + 2 * stats.std[0, 1, 3])
    expected = al.evaluate(model, batches, al.Ablation(["L0.H1.D3"], torch.full(stats.shape, value)))
    clean = al.evaluate(model, batches)
    points = measured.frame[measured.frame["name"] == "L0.H1.D3"]
    at_two = points[(points["point"] == "grid") & (points["sigma"] == 2)].iloc[0]
    assert at_two["value"] == pytest.approx(value, rel=1e-6)
    assert at_two["difference"] == pytest.approx(expected.cross_entropy - clean.cross_entropy, abs=1e-6)
    interval = expected.interval("cross_entropy", without=clean)
    assert (at_two["low"], at_two["high"]) == pytest.approx((interval.low, interval.high), abs=1e-4)


def test_the_mean_is_the_middle_of_the_grid_and_zero_lies_where_it_is(stats, measured):
    points = measured.frame[measured.frame["name"] == "L0.H1.D3"].set_index("point")
    assert points.loc["mean", "sigma"] == 0
    assert points.loc["zero", "value"] == pytest.approx(0, abs=1e-9)
    assert points.loc["zero", "sigma"] == pytest.approx(-float(stats.mean[0, 1, 3] / stats.std[0, 1, 3]))
    assert points.loc["mean", "difference"] == points.loc["grid"].set_index("sigma").loc[0.0, "difference"]


def test_several_neurons_move_by_their_own_sigma(model, batches, stats, measured):
    expected = al.evaluate(model, batches, al.Ablation(["L1.H2"], stats.mean - 2 * stats.std))
    points = measured.frame[(measured.frame["name"] == "L1.H2") & (measured.frame["sigma"] == -2)]
    assert points["difference"].item() == pytest.approx(expected.cross_entropy - measured.unablated, abs=1e-6)
    assert points["value"].isna().all()


def test_a_center_of_several_neurons_stands_at_the_nearest_point_of_their_line(stats, measured):
    away = (-stats.mean / stats.std)[1, 2]  # zero, in σ from the mean
    fit = measured.fits.set_index("name").loc["L1.H2"]
    nearest = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    expected = nearest[((away[:, None] - nearest) ** 2).sum(0).argmin()]
    assert fit["place_zero"] == pytest.approx(float(expected), abs=1e-3)
    assert fit["distance_zero"] == pytest.approx(float(away.abs().mean()))
    assert fit["distance_zero"] > abs(fit["place_zero"])


def test_a_folder_is_gone_on_with(model, batches, stats, tmp_path, monkeypatch):
    asked = {"neurons": ["L0.H1.D3"], "heads": 0, "shares": (), "sigmas": GRID, "folder": tmp_path / "run"}
    first = loss_curves(model, batches, stats, progress=False, **asked)
    monkeypatch.setattr("ablation_lens.experiments.scores.evaluate_each", None)  # measuring would fail
    again = loss_curves(model, batches, stats, progress=False, **asked)
    assert torch.equal(again.sums, first.sums)


def test_neurons_are_chosen_in_every_layer_by_chance_and_by_what_they_write(model, batches, stats):
    asked = {"sigmas": GRID, "centers": ["mean"], "shares": (), "heads": 0, "progress": False}
    found = loss_curves(model, batches, stats, neurons=1, **asked)
    names = [unit.name for unit in found.units]
    weights = torch.stack([block.attn.W_O.detach().norm(dim=-1) for block in model.blocks])
    loudest = (weights.cpu() * stats.std).flatten(1).argmax(1).tolist()
    for layer, place in enumerate(loudest):
        assert f"L{layer}.H{place // stats.shape[2]}.D{place % stats.shape[2]}" in names
    assert 4 < len(names) <= 8
    assert {unit.kind for unit in found.units} == {"neuron"}


def test_mlp_neurons_and_layers_have_curves_too(model, batches):
    stats = al.collect(model, al.task_for(model).batches(split="collect", tokens=500), site="mlp", progress=False)
    asked = {"neurons": ["L0.M3"], "heads": 1, "shares": (), "sigmas": GRID, "centers": ["mean"], "metric": "kl"}
    found = loss_curves(model, batches, stats, progress=False, **asked)
    assert [(unit.name, unit.kind) for unit in found.units] == [
        ("L0.M3", "neuron"), *((f"L{layer}", "layer") for layer in range(4)),
    ]  # fmt: skip
    assert found.unablated == 0
    assert (found.frame["difference"] >= 0).all()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sigmas": (0, 1, 2)}, "at least 5 different numbers"),
        ({"sigmas": (0, 1, 2, 3, math.nan)}, "at least 5 different numbers"),
        ({"metric": "top1"}, "there is no loss 'top1'"),
        ({"centers": ["zero", "zero"]}, "named twice"),
        ({"centers": []}, "at least one"),
        ({"neurons": -1}, "neurons=-1 is not possible"),
        ({"neurons": ["L9.H0.D0"]}, "does not exist"),
        ({"neurons": 0, "heads": 0, "shares": ()}, "nothing was asked for"),
    ],
)
def test_what_makes_no_curve_is_refused(model, batches, stats, asked, words):
    with pytest.raises(MismatchError, match=words):
        loss_curves(model, batches, stats, progress=False, **asked)


def test_a_neuron_that_never_changes_has_no_sigma(model, batches):
    stats = al.ActivationStatistics.of_values(torch.ones(8, 4, 4, 32))
    with pytest.raises(MismatchError, match="constant over the statistics"):
        loss_curves(model, batches, stats, neurons=["L0.H0.D0"], progress=False)


def test_documents_that_the_centers_are_from_are_refused(model, stats):
    same = al.task_for(model).batches(split="collect", tokens=500)
    with pytest.raises(MismatchError, match="very documents"):
        loss_curves(model, same, stats, progress=False)


# ------------------------------------------------------------------ files


def test_a_file_holds_all_of_it(measured, tmp_path):
    measured.save(tmp_path / "curves.safetensors")
    again = LossCurves.load(tmp_path / "curves.safetensors")
    assert again.frame.equals(measured.frame)
    assert again.fits.equals(measured.fits)
    assert repr(again) == repr(measured)
    assert "50 % at random" in repr(again)


def changed(curves, path, header=None, **tensors):
    """A file whose checksum is right and whose content was thought up."""
    curves.save(path)
    plain, held = load_tensors(path, "loss curves")
    save_tensors(path, "loss curves", plain | (header or {}), held | tensors)
    return path


@pytest.mark.parametrize(
    ("header", "tensors"),
    [
        ({"sigmas": [0.0, 1.0]}, {}),
        ({"sigmas": [4.0, 3.0, 2.0, 1.0, 0.0]}, {}),
        ({"site": "elsewhere"}, {}),
        ({"centers": ["zero", "zero", "mean", "peak"]}, {}),
        ({"units": []}, {}),
        ({"units": [{"name": "<b>", "kind": "neuron", "neurons": 1}]}, {}),
        ({"units": [{"name": "L0.H0.D99", "kind": "neuron", "neurons": 1}]}, {}),
        ({"units": [{"name": "L0.H0.D0", "kind": "spirit", "neurons": 1}]}, {}),
        ({}, {"weights": torch.zeros(12).double()}),
        ({}, {"clean": torch.full((12,), math.nan).double()}),
        ({}, {"sums": torch.zeros(1, 3, 12).double()}),
        ({}, {"places": torch.zeros(1, 4)}),
        ({}, {"std": torch.zeros(1).double()}),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path, header, tensors):
    path = changed(curves_of([0.5]), tmp_path / "curves.safetensors", header, **tensors)
    with pytest.raises(FileFormatError, match="not a complete file of loss curves"):
        LossCurves.load(path)


def test_names_from_a_file_are_printed_on_one_line(tmp_path):
    curves = curves_of(
        [0.5], source=record((2, 3, 4), "a\x1b[31m\nb"), centers=("zero", "mean", "median", "mine\x1b\n")
    )
    assert "\x1b" not in repr(curves)

"""Figures of loss against the constant, from curves that were never measured."""

import json

import numpy as np
import pytest
import torch

from ablation_lens import plots
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.constants import Unit
from ablation_lens.palette import color_of
from tests.made_curves import curves_of
from tests.synthetic_statistics import record

HOSTILE = '<img src=x onerror=alert(1)><a href="javascript:alert(2)">%{stolen}$x$'
SETS = (
    Unit("L0.H0.D1", "neuron", 1),
    Unit("L1.H2", "head", 4),
    Unit("0.5 at random, seed 0", "random", 12, 0.5, 0),
    Unit("0.5 at random, seed 1", "random", 12, 0.5, 1),
)


def several():
    return curves_of([0.5, -1.0, 0.0, 1.0], units=SETS)


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def titles(figure):
    return [note.text for note in figure.layout.annotations]


def test_a_panel_per_curve_with_random_sets_as_one():
    figure = plots.loss_curve(several())
    assert titles(figure) == ["L0.H0.D1", "L1.H2", "50 &#37; at random"]
    (curve,) = named(figure, "L1.H2")
    np.testing.assert_allclose(curve.y, 0.1 + 0.01 * (np.array(curve.x) + 1) ** 2)


def test_centers_lie_on_the_curve_where_they_are():
    figure = plots.loss_curve(several(), "L0.H0.D1")
    for name, place in (("zero", 0.5), ("mean", 0.0), ("median", -0.25), ("peak", 1.0)):
        (mark,) = named(figure, name)
        assert mark.x == (place,)
        assert mark.y[0] == pytest.approx(0.1 + 0.01 * (place - 0.5) ** 2)
        assert mark.marker.color == color_of(name)


def test_the_cross_stands_at_the_minimum_on_the_floor():
    (cross,) = named(plots.loss_curve(several(), ["L0.H0.D1"]), "minimum")
    assert cross.x[-1] == pytest.approx(0.5)
    assert cross.y[0] == cross.y[-2] == pytest.approx(0.1)


def test_a_curve_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(MismatchError, match=r"did you mean 'L0\.H0\.D1'"):
        plots.loss_curve(several(), "L0.H0.D11")


def test_distances_are_from_every_center_in_sigma_with_a_row_per_model():
    one = curves_of(torch.linspace(-0.2, 0.2, 6).tolist())
    figure = plots.loss_minima([one, one])
    boxes = [trace for trace in figure.data if trace.type == "box"]
    assert len(boxes) == 8
    zero, mean = boxes[:2]
    np.testing.assert_allclose(np.array(mean.x) - np.array(zero.x), 0.5)  # zero lies at 0.5 σ, the mean at 0
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [round(value) for value in bars[0].x] == (100 * one.summary()["nearest"]).round().astype(int).tolist()


def test_minima_that_nobody_can_see_are_not_drawn():
    with pytest.raises(MismatchError, match="stands out from noise"):
        plots.loss_minima(curves_of([0.5], bend=1e-6, noise=0.1))
    with pytest.raises(MismatchError, match="stands out from noise"):
        plots.loss_minima([])


def test_names_from_outside_stay_text():
    curves = curves_of([0.5, 0.4], source=record((2, 3, 4), HOSTILE), centers=("zero", "mean", "median", HOSTILE))
    for figure in (plots.loss_curve(curves), plots.loss_minima(curves)):
        said = json.dumps(json.loads(figure.to_json()), ensure_ascii=False)
        assert "<img" not in said
        assert "<a " not in said
        assert "%{stolen}" not in said
        assert "$x$" not in said

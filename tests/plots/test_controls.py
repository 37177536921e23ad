"""The figure of better centers."""

import math

import pytest

from ablation_lens import plots
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.controls import Benefit, BetterCenters

METHODS = {"zero": 0.5, "peak": 0.4, "optimal": 0.2, "mean + bias": 0.3, "<b>own</b>": 0.6}


@pytest.fixture
def found():
    rows = [
        Benefit(share, name, "cross_entropy", 3 + cost, cost, cost - 0.05, cost + 0.05, math.nan, math.nan, math.nan, 1)
        for share in (0.1, 0.9)
        for name, cost in METHODS.items()
    ]
    return BetterCenters("a <i>model</i>", "z", 10, {"cross_entropy": 3.0}, tuple(rows), {}, ("zero", "peak"))


def test_every_method_has_a_mark_in_every_column(found):
    figure = plots.better_centers(found)
    traces = [trace for trace in figure.data if trace.mode == "markers"]
    assert [len(trace.x) for trace in traces] == [len(METHODS)] * 2
    assert list(traces[0].x) == list(METHODS.values())
    open_ones = [symbol.endswith("-open") for symbol in traces[0].marker.symbol]
    assert open_ones == [name == "mean + bias" for name in METHODS]


def test_the_best_center_that_is_not_learned_is_marked(found):
    places = [shape.x0 for shape in plots.better_centers(found).layout.shapes]
    assert places.count(0.4) == 2


def test_names_are_text_and_no_markup(found):
    told = plots.better_centers(found).to_json()
    assert "<b>own" not in told
    assert "<i>model" not in told


def test_what_was_not_measured_is_said(found):
    with pytest.raises(MismatchError, match="kl"):
        plots.better_centers(found, "kl")

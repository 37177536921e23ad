"""The figures of shared neurons and of clusters, beside chance and the untrained model."""

import json
import math

import pytest
import torch

from ablation_lens import plots
from ablation_lens.ablation.masks import random_neurons
from ablation_lens.errors import MismatchError
from ablation_lens.experiments import concentration, overlap

HOSTILE = '<img src=x onerror=alert(1)><a href="javascript:alert(2)">%{stolen}$x$'
SHAPE = (3, 1, 64)
LABELS = torch.arange(64).div(8, rounding_mode="floor").repeat(3, 1)


def masks(names, seed=0):
    first = random_neurons(SHAPE, 0.25, seed)
    return {name: first.roll(number * 3, dims=2) | (number % 2 == 0) & first for number, name in enumerate(names)}


def test_every_two_masks_have_a_cell_with_their_share_and_chance_and_none_with_itself():
    found = overlap(masks("abc"))
    (cells,) = plots.overlap_map(found).data
    assert [row[place] for place, row in enumerate(cells.z)] == [None] * 3
    for one in range(3):
        for other in range(3):
            if one != other:
                assert cells.z[one][other] == found.matrix.iloc[one, other]
                chance = found.of("chance").iloc[one, other]
                assert f"{found.matrix.iloc[one, other]:.2f}" in cells.text[one][other]
                assert f"chance {chance:.2f}" in cells.text[one][other]


def test_what_random_neurons_share_as_well_has_a_star():
    whole = random_neurons(SHAPE, 0.25, 0)
    found = overlap({"a": whole, "same": whole, "random": random_neurons(SHAPE, 0.25, 1)})
    (cells,) = plots.overlap_map(found).data
    assert "*" not in cells.text[0][1]
    assert "*" in cells.text[0][2]


def test_the_twin_stands_beside_in_the_same_colours():
    figure = plots.overlap_map(overlap(masks("ab")), twin=overlap(masks("ab", seed=5)))
    assert len(figure.data) == 2
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    titles = [note.text for note in figure.layout.annotations]
    assert titles[0].startswith("trained: on average")
    assert titles[1].startswith("before training: on average")
    with pytest.raises(MismatchError, match="the twin's masks"):
        plots.overlap_map(overlap(masks("ab")), twin=overlap(masks("ac")))


def test_a_mask_of_nothing_is_no_number():
    found = overlap({"a": random_neurons(SHAPE, 0.25, 0), "none": torch.zeros(SHAPE).bool()})
    figure = plots.overlap_map(found)
    assert figure.data[0].z[0][1] is None
    assert figure.data[0].text[0][1] == "–"
    json.loads(figure.to_json())


def test_every_layer_has_its_area_beside_that_of_random_neurons():
    found = {name: concentration(LABELS, mask) for name, mask in masks("ab").items()}
    figure = plots.concentration_by_layer(found, twin=found)
    assert len(figure.data) == 2 * 2 * 2  # tasks, models, chance and what was found
    chance, areas = figure.data[:2]
    rows = found["a"].rows
    assert areas.x == chance.x == ("L0", "L1", "L2", "all")
    assert list(areas.y) == [row.auc for row in rows]
    assert [mean + up for mean, up in zip(chance.y, chance.error_y.array, strict=True)] == pytest.approx(
        [row.high for row in rows]
    )
    assert [symbol == "circle" for symbol in areas.marker.symbol] == [
        not row.low <= row.auc <= row.high for row in rows
    ]
    assert sum(bool(trace.showlegend) for trace in figure.data) == 3


def test_a_layer_of_which_nothing_is_selected_is_left_out():
    mask = random_neurons(SHAPE, 0.25, 0)
    mask[1] = False
    figure = plots.concentration_by_layer({"a": concentration(LABELS, mask)})
    assert figure.data[1].x == ("L0", "L2", "all")
    nothing = plots.concentration_by_layer({"a": concentration(LABELS, torch.zeros(SHAPE).bool())})
    assert not any(math.isnan(end) for end in nothing.layout.yaxis.range)


def test_there_must_be_something_to_show_and_of_the_same_tasks():
    found = {"a": concentration(LABELS, random_neurons(SHAPE, 0.25, 0))}
    with pytest.raises(MismatchError, match="nothing to show"):
        plots.concentration_by_layer({})
    with pytest.raises(MismatchError, match="the twin's tasks"):
        plots.concentration_by_layer(found, twin={"b": found["a"]})


def test_names_from_outside_are_only_text():
    found = {HOSTILE: concentration(LABELS, random_neurons(SHAPE, 0.25, 0))}
    shown = plots.overlap_map(overlap(masks([HOSTILE, "b"]))).to_json()
    shown += plots.concentration_by_layer(found).to_json()
    assert "<img" not in shown
    assert "<a href" not in shown
    assert "%{stolen}" not in shown


def test_layers_stand_at_one_place_in_every_panel():
    first = torch.zeros(SHAPE, dtype=torch.bool)
    first[0, 0, :9] = True
    found = {"first": concentration(LABELS, first), "last": concentration(LABELS, first.roll(2, dims=0))}
    layout = plots.concentration_by_layer(found).layout
    for axis in (layout.xaxis, layout.xaxis2):
        assert (axis.categoryarray, axis.range) == (("L0", "L1", "L2", "all"), (-0.5, 3.5))

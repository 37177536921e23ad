"""The loss against the constant, under the histogram of a neuron where it was measured."""

import base64
import json
import re
import zlib

import pytest
import torch

from ablation_lens.errors import MismatchError
from ablation_lens.experiments.constants import Unit
from ablation_lens.explorer import explore
from ablation_lens.explorer.curves import describe_curves
from ablation_lens.neurons.statistics import ActivationStatistics
from tests.made_curves import DOCUMENTS, curves_of
from tests.pages import payload_of
from tests.synthetic_statistics import draw, record, statistics_of

SHAPE = (2, 3, 4)
HEAD = Unit("L0.H1", "head", 4)
NEURON = Unit("L1.H0.D2", "neuron", 1)


@pytest.fixture(scope="module")
def statistics():
    return statistics_of(draw(300, SHAPE))


def blob_of(page, name):
    text = re.search(rf'id="{name}">(.*?)</script>', page.html, flags=re.DOTALL)[1]
    return json.loads(zlib.decompress(base64.b64decode(text)))


def test_a_curve_lies_at_the_values_that_were_set(statistics):
    (curve,) = describe_curves(curves_of([0.5], units=(NEURON,)), statistics).values()
    assert curve["value"][:2] == [0.25 - 4 * 2, 0.25 - 3 * 2]  # μ + s·σ
    assert curve["minimum"] == pytest.approx(0.25 + 0.5 * 2)
    assert curve["floor"] == pytest.approx(0.1)
    assert [name for name, *_ in curve["centers"]] == ["zero", "mean", "median", "peak"]
    assert curve["centers"][1][1] == 0.25


def test_only_single_neurons_are_drawn(statistics):
    page = explore(statistics, curves=curves_of([0.5, 0.1], units=(NEURON, HEAD)), progress=False)
    assert list(blob_of(page, "curves")) == ["L1.H0.D2"]


def test_the_page_says_what_was_measured(statistics):
    page = explore(statistics, curves=curves_of([0.5], units=(NEURON,)), progress=False)
    payload = payload_of(page)
    assert payload["curves"]["title"] == "Δ cross-entropy"
    ((_, told),) = [pair for pair in payload["datasets"][0]["provenance"] if pair[0] == "curves"]
    assert told == "cross_entropy of 1 neuron set to 13 constants each, on 24 predictions of made up; without, 3"


def test_a_page_without_curves_holds_none(statistics):
    page = explore(statistics, progress=False)
    assert payload_of(page)["curves"] is None
    assert 'id="curves"' not in page.html


def test_one_document_leaves_the_interval_out_and_not_a_nan(statistics):
    alone = curves_of([0.5], units=(NEURON,), keep=torch.eye(DOCUMENTS)[0])
    (curve,) = describe_curves(alone, statistics).values()
    assert set(curve["low"]) == {None}
    assert None not in curve["difference"]


def test_markup_in_a_center_name_stays_text(statistics):
    name = "</script><img src=x onerror=alert(1)>"
    page = explore(statistics, curves=curves_of([0.5], units=(NEURON,), centers=("zero", "mean", "median", name)))
    assert name not in page.html
    assert blob_of(page, "curves")["L1.H0.D2"]["centers"][3][0] == name


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        (curves_of([0.5], units=(Unit("L1.M2", "neuron", 1),), site="mlp"), "of mlp, and the statistics of z"),
        (curves_of([0.5], source=record((2, 3, 5))), "another model's"),
        (torch.ones(2, 3), "curves are a Tensor"),
    ],
)
def test_curves_of_something_else_are_refused_in_a_sentence(statistics, curves, words):
    with pytest.raises(MismatchError, match=words):
        explore(statistics, curves=curves, progress=False)


def test_mlp_neurons_are_found_by_their_own_names():
    mlps = ActivationStatistics.of_values(draw(300, (2, 1, 8)), site="mlp", model=record((2, 1, 8)))
    curves = curves_of([0.5], units=(Unit("L1.M2", "neuron", 1),), site="mlp", source=record((2, 1, 8)))
    assert list(describe_curves(curves, mlps)) == ["L1.M2"]


def test_the_command_takes_a_file_of_curves(statistics, command, tmp_path):
    statistics.save(tmp_path / "stats.safetensors")
    curves_of([0.5], units=(NEURON,)).save(tmp_path / "curves.safetensors")
    files = ["explore", tmp_path / "stats.safetensors", "--html", tmp_path / "page.html"]
    code, _, _ = command(*files, "--curves", tmp_path / "curves.safetensors")
    assert code == 0
    assert 'id="curves"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, _, said = command(*files, "--curves", tmp_path / "stats.safetensors")
    assert code != 0
    assert "loss curves was expected" in said

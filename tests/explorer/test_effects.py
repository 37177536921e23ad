"""What neurons are worth to a metric, on the explorer's page."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ablation_lens.errors import MismatchError
from ablation_lens.explorer import explore
from ablation_lens.explorer.dataset import pack_dataset
from ablation_lens.explorer.effects import worth
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.sites import Site
from tests.made_effects import effects_of
from tests.pages import payload_of
from tests.synthetic_statistics import draw, record, statistics_of

SHAPE = (2, 3, 4)


@pytest.fixture(scope="module")
def statistics():
    return statistics_of(draw(300, SHAPE))


def names_of(dataset):
    return [column["name"] for column in dataset["columns"]]


def test_neurons_have_their_own_effect_and_its_share(statistics):
    given = torch.arange(24.0).view(SHAPE)
    columns = worth(effects_of({Site.Z: given}, level="neuron", clean=0, empty=48), statistics)
    assert list(columns) == ["effect", "effect_share"]
    torch.testing.assert_close(columns["effect"], given.double())
    torch.testing.assert_close(columns["effect_share"], given.double() / 48)


@pytest.mark.parametrize(("level", "given"), [("head", torch.arange(6.0).view(2, 3)), ("layer", torch.arange(2.0))])
def test_what_is_of_a_head_or_layer_is_all_its_neurons_and_called_so(statistics, level, given):
    columns = worth(effects_of({Site.Z: given}, level=level), statistics)
    assert list(columns) == [f"{level}_effect", f"{level}_effect_share"]
    spread = columns[f"{level}_effect"]
    assert spread.shape == SHAPE
    np.testing.assert_array_equal(spread[..., 0] if level == "head" else spread[:, 0, 0], given)
    assert (spread == spread[..., :1]).all()


def test_mlps_take_their_own_site_of_effects_of_both():
    mlps = ActivationStatistics.of_values(draw(300, (2, 1, 8)), site="mlp", model=record((2, 1, 8)))
    both = effects_of({Site.Z: torch.zeros(2, 3), Site.MLP: torch.tensor([[1.0], [2.0]])})
    assert worth(both, mlps)["head_effect"][1].unique().tolist() == [2]


def test_the_page_holds_them_and_says_what_they_are(statistics):
    page = payload_of(
        explore(statistics, effects=effects_of({Site.Z: torch.ones(2, 3)}, values="<b>peak"), progress=False)
    )
    (dataset,) = page["datasets"]
    assert {"head_effect", "head_effect_share"} <= set(names_of(dataset))
    ((_, told),) = [pair for pair in dataset["provenance"] if pair[0] == "effects"]
    assert told == "knockout of heads, set to <b>peak: logit_difference 3, and -1 with everything ablated"
    assert not [name for name in names_of(pack_dataset(statistics, "none")) if "effect" in name]


OTHER = replace(record(SHAPE), architecture="Other")


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        (effects_of({Site.MLP: torch.ones(2, 1)}), "of mlp, and the statistics of z"),
        (effects_of({Site.Z: torch.ones(2, 4)}), r"\(2, 4\) heads, and the model has \(2, 3\)"),
        (
            effects_of({Site.Z: torch.ones(2, 3)}, source=OTHER),
            "another model's",
        ),
        (effects_of({Site.Z: torch.ones(2, 3)}, empty=3.0), "does not change logit_difference"),
        (torch.ones(2, 3), "effects are a Tensor"),
    ],
)
def test_effects_of_something_else_are_refused_in_a_sentence(statistics, effects, words):
    with pytest.raises(MismatchError, match=words):
        explore(statistics, effects=effects, progress=False)

"""What is recommended: what is best by construction, the cheaper of equals, and the same however a model is named."""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import ablation_lens as al
from ablation_lens import zoo
from ablation_lens.errors import AblationLensError, CorpusError, MismatchError
from ablation_lens.measure import learners
from ablation_lens.study.model_run import ModelRun
from ablation_lens.study.recommendation import recommend
from ablation_lens.study.run import StudyInterrupted
from tests.circuits.models import Handmade, _weights
from tests.studies import files

# Said once of every model that `load_model` has not made.
pytestmark = pytest.mark.filterwarnings("ignore:it is not known how this model's weights were processed")


@pytest.fixture
def planted():
    """Every neuron is 1 in all texts, and each adds to the logit of token 3, which most texts are made of."""
    heads = [
        _weights(6, 3, V=[(5, dim, 1.0) for dim in range(3)], O=[(dim, 4, 0.4) for dim in range(3)]) for _ in range(2)
    ]
    drawn = torch.Generator().manual_seed(0)
    embed, places, unembed = torch.zeros(40, 6), torch.zeros(10, 6), torch.zeros(6, 40)
    embed[:, :4] = 0.1 * torch.randn(40, 4, generator=drawn)
    unembed[:4] = torch.randn(4, 40, generator=drawn)
    places[:, 5] = unembed[4, 3] = 1.0
    return Handmade([heads], embed, places, unembed)


def texts():
    drawn = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 40, (60, 10), generator=drawn)
    tokens[:, 3:] = torch.where(torch.rand(60, 7, generator=drawn) < 0.8, 3, tokens[:, 3:])
    return {"collect": tokens[:30], "evaluate": tokens[30:]}


def asked(model, *centers, **changes):
    options = {"fractions": (0.5, 1.0), "seeds": 4, "progress": False}
    return recommend(model, texts(), centers=centers, **{**options, **changes})


@pytest.fixture
def doubled(registry):
    @registry.register("doubled")
    def doubled(statistics):
        """Twice the mean."""
        return 2 * statistics.mean


def test_a_constant_that_is_best_by_construction_is_recommended(planted, doubled):
    found = asked(planted, "zero", "mean", "doubled")
    assert [found.best(0.5), found.best(1.0), found.best()] == ["doubled"] * 3
    assert "doubled does best" in found.told(0.5)
    assert found.told() == "Take doubled."
    assert found.frame.loc[found.frame["fraction"] == 0.5, "center"].tolist() == ["doubled", "mean", "zero"]
    mean = found.frame[found.frame["center"] == "mean"]
    assert mean["change"].tolist() == pytest.approx([0, 0], abs=1e-9)  # every neuron is its mean
    assert not mean["as_best"].any()
    assert found.frame["recommended"].sum() == 2


def test_what_is_learned_wins_where_it_is_better_and_says_its_cost(planted, monkeypatch):
    before = learners.learn

    def better(*given, **options):
        made = before(*given, **options)
        return dataclasses.replace(made, values=2 * made.values)

    monkeypatch.setattr("ablation_lens.study.model_run.learners.learn", better)
    found = asked(planted, "zero", "mean", "optimal steps=0")
    assert found.best() == "optimal steps=0"
    row = found.frame[found.frame["recommended"]].iloc[0]
    assert row["passes"] > 1
    assert f"{row['passes']:,.3g} passes" in found.told(1.0)
    assert asked(planted, "zero", "mean", "optimal steps=0", learned=False, seeds=1).best() == "mean"


def test_equal_centers_cannot_be_told_apart_and_the_cheaper_is_taken(planted, registry):
    @registry.register("dear", passes=2)
    def dear(statistics):
        """The mean."""
        return statistics.mean

    @registry.register("cheap")
    def cheap(statistics):
        """The mean."""
        return statistics.mean

    found = asked(planted, "dear", "cheap")
    assert [found.best(fraction) for fraction in (0.5, 1.0, None)] == ["cheap"] * 3
    assert "dear and cheap cannot be told apart" in found.told(0.5)
    assert "take cheap, the cheapest of them (1 pass;" in found.told(0.5)
    assert "take mean, the simplest of them, which cost the same (1 pass;" in asked(planted, "cheap", "mean").told(0.5)
    assert "cannot be told apart" in found.told()
    with_zero = asked(planted, "zero", "dear", "mean")
    assert with_zero.best() == "mean"
    assert "and the others are worse" in with_zero.told(0.5)


def test_what_is_best_here_and_not_there_is_said(planted, doubled):
    found = asked(planted, "zero", "mean", "doubled")
    frame = found.frame.copy()
    first = frame["fraction"] == 0.5
    for column in ("as_best", "recommended"):
        frame.loc[first, column] = frame.loc[first, "center"] == "mean"
    object.__setattr__(found, "frame", frame)
    assert found.told().startswith(
        "No center is as good as the best at every fraction: take mean at 50 %; doubled at 100 %"
    )


def test_higher_is_better_turns_the_order(planted, doubled):
    assert asked(planted, "zero", "doubled", metric="probability", fractions=0.5).best() == "doubled"
    worse = al.metrics.Metric(lambda logits, batch: logits[..., 3].mean(-1), better="lower")
    assert asked(planted, "zero", "doubled", metric={"three": worse}, fractions=0.5).best() == "zero"


def test_a_name_a_folder_and_a_model_are_recommended_the_same(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(Path(zoo.__file__).parent / "tiny-vit", tmp_path / "copied"))
    options = {"centers": ["zero", "mean"], "fractions": 0.5, "seeds": 2, "images": 24, "progress": False}
    frames = [recommend(each, **options).frame for each in ("tiny-vit", folder, al.load_model("tiny-vit"))]
    for other in frames[1:]:
        pd.testing.assert_frame_equal(frames[0], other)
    given = []
    monkeypatch.setattr(
        "ablation_lens.study.recommendation.load_model",
        lambda name, **options: given.append(name) or al.load_model("tiny-vit"),
    )
    task = al.task_for(al.load_model("tiny-vit"), "digits")
    pd.testing.assert_frame_equal(frames[0], recommend("owner/model", task, **options).frame)
    assert given == ["owner/model"]


def test_a_folder_is_gone_on_with_and_judged_by_what_was_asked_for(planted, doubled, tmp_path, monkeypatch):
    asked(planted, "zero", "mean", "doubled", folder=tmp_path / "run")
    before = files(tmp_path / "run" / "cells")
    again = asked(planted, "zero", "mean", folder=tmp_path / "run")
    assert files(tmp_path / "run" / "cells") == before
    assert again.best() == "mean"  # although the folder knows a better one

    def stop(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ablation_lens.study.model_run.evaluate_each", stop)
    with pytest.raises(StudyInterrupted, match="Run the same again"):
        asked(planted, "zero", "peak", folder=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="folder=… keeps"):
        asked(planted, "zero", "peak")


def test_a_center_that_cannot_be_had_is_left_out_and_says_why(planted, monkeypatch):
    def refuse(*given, **options):
        raise CorpusError("there is one document to learn from")

    monkeypatch.setattr("ablation_lens.study.model_run.learners.learn", refuse)
    found = asked(planted, "mean", "optimal", seeds=1)
    assert found.best() == "mean"
    assert "one document to learn from" in found.left_out["optimal"]
    assert "left out: optimal" in repr(found)


@pytest.fixture
def failing(monkeypatch):
    """Makes cells fail that a function of them picks."""

    def make(fails):
        before = ModelRun._measure

        def measure(self, cell, *given):
            if cell.method is not None and fails(cell.method.label, cell.fraction, cell.seed):
                raise CorpusError("the memory is full")
            before(self, cell, *given)

        monkeypatch.setattr(ModelRun, "_measure", measure)

    return make


def test_a_center_that_failed_at_one_fraction_is_compared_at_the_others_only(planted, doubled, failing):
    failing(lambda label, fraction, seed: (label, fraction) == ("doubled", 0.7))
    found = asked(planted, "zero", "mean", "doubled", fractions=(0.5, 0.7))
    assert found.left_out == {"doubled": "at 70 %: the memory is full"}
    assert [found.best(0.5), found.best(0.7), found.best()] == ["doubled", "mean", "mean"]
    assert "Left out" not in found.told(0.5)
    assert found.told(0.7).endswith("Left out here: doubled.")
    assert found.told() == (
        "No center that was measured at every fraction is as good as the best at every fraction: take doubled at 50 %; "
        "mean at 70 %. If it must be one, take mean."
    )
    assert "left out: doubled (at 70 %: the memory is full)" in repr(found)


def test_a_center_that_failed_with_some_masks_is_not_compared_over_the_others(planted, doubled, failing):
    failing(lambda label, fraction, seed: label == "doubled" and fraction == 0.5 and seed in (1, 3))
    found = asked(planted, "zero", "mean", "doubled", fractions=(0.5, 0.7))
    assert found.left_out == {"doubled": "at 50 % with seeds 1 and 3: the memory is full"}
    assert found.best() == found.best(0.5) == "mean"
    assert "doubled" not in set(found.frame.loc[found.frame["fraction"] == 0.5, "center"])
    assert found.told(0.5).endswith("Left out here: doubled.")


def test_where_nothing_was_measured_everywhere_no_center_is_taken_for_all(planted, failing):
    failing(lambda label, fraction, seed: fraction == 0.7)
    found = asked(planted, "zero", "mean", fractions=(0.5, 0.7))
    assert found.best(0.5) == "mean"
    assert found.told() == "No center was measured at every fraction with every seed: take mean at 50 %."
    assert found.to_dict()["recommended"] is None
    assert set(found.left_out) == {"zero", "mean"}
    with pytest.raises(MismatchError, match=r"ask for the best at one of 0\.5"):
        found.best()
    assert "take mean" in repr(found)
    failing(lambda label, fraction, seed: seed == 1)
    with pytest.raises(AblationLensError, match=r"at any fraction: .*the memory is full"):
        asked(planted, "zero", "mean", fractions=(0.5, 0.7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds=0 is not possible; give how many masks, at least 1"),
        ({"seeds": True}, "seeds=True is not possible"),
        ({"seeds": 2.5}, r"seeds=2\.5 is not possible"),
        ({"seeds": [1, "2"]}, "or a list of whole numbers"),
        ({"seeds": []}, "seeds=.. is not possible"),
        ({"centers": []}, "there is no center"),
        ({"centers": ["paek"]}, "did you mean 'peak'"),
        ({"fractions": 2}, "fractions=2 is not possible; give numbers above 0 and up to 1"),
        ({"fractions": [0]}, "fractions=.0. is not possible"),
        ({"fractions": [0.5, float("nan")]}, "is not possible"),
        ({"fractions": "0.5"}, "is not possible"),
        ({"fractions": []}, "is not possible"),
        ({"fractions": None}, "is not possible"),
        ({"fractions": torch.tensor(0.5)}, "is not possible"),
        ({"metric": {"mine": lambda logits, batch: logits[:, 0, 0]}}, "whether more of mine is better"),
        ({"metric": ["kl", "rank"]}, "by one metric, got 2"),
        ({"tokens": 5}, "say nothing"),
    ],
)
def test_what_cannot_be_asked_says_so(planted, changes, message):
    with pytest.raises(MismatchError, match=message):
        recommend(planted, texts(), **{"progress": False, **changes})


def test_a_recommendation_is_shown_and_told_as_plain_values(planted, doubled):
    found = asked(planted, "zero", "doubled", seeds=2)
    shown = repr(found)
    assert "→" in shown
    assert "given these masks" in shown
    assert found.told() in shown
    assert found._repr_html_().startswith("<pre>")
    told = found.to_dict()
    assert [each["recommended"] for each in told["fractions"]] == ["doubled", "doubled"]
    assert set(told["fractions"][0]["centers"][0]) == set(found.frame.columns) - {"fraction"}
    with pytest.raises(MismatchError, match=r"nothing was measured at fraction=0\.3"):
        found.best(0.3)

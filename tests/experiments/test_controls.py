"""Better centers and their controls: what is learned once, what a bias adds, and what the words say."""

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.experiments import controls
from ablation_lens.experiments.controls import CONTROLS, MEAN_AND_BIAS, better_centers
from ablation_lens.experiments.scores import Biased, Scores
from ablation_lens.sites import Site
from tests.measure.test_optimal import TOKENS, one_head

OTHERS = torch.randint(0, 7, (20, 5), generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def model():
    return one_head(layers=2)


@pytest.fixture(scope="module")
def stats(model):
    return al.collect(model, TOKENS, progress=False)


def compare(model, stats, **options):
    options = {"shares": [0.5], "centers": ["zero", "mean"], "learned": ["optimal"], "seeds": [1, 2], **options}
    return better_centers(model, OTHERS, stats, TOKENS, progress=False, **options)


def test_every_way_has_a_row_and_is_what_evaluate_says(model, stats):
    found = compare(model, stats, steps=3, metrics=["cross_entropy"])
    frame = found.frame.set_index("method")
    assert list(frame.index) == ["zero", "mean", "optimal", *CONTROLS]
    masks = [al.random_neurons(stats.shape, 0.5, seed) for seed in (1, 2)]
    scores = [al.evaluate(model, OTHERS, stats.ablation(mask, "mean")).cross_entropy for mask in masks]
    assert frame.loc["mean", "value"] == pytest.approx(sum(scores) / 2)
    assert frame.loc["mean", "passes"] == 1
    assert frame.loc["optimal", "passes"] > 1
    best = frame.loc[["zero", "mean"], "value"].idxmin()
    assert frame.loc[best, "to_best"] == 0


def test_a_bias_is_added_to_what_attention_gives(model):
    # Nothing but attention acts on the stream, and no norm is between: logits move by (b0 + b1)·W_U at a last layer of
    # which nothing is read again, and that of the first passes through the heads of the second.
    bias = torch.zeros(2, 1, 6, dtype=torch.float64)
    bias[1] = torch.arange(6.0)
    hooks = Biased(bias, Site.ATTN_OUT).hooks()
    moved = model.run_with_hooks(OTHERS, fwd_hooks=hooks) - model(OTHERS)
    assert torch.allclose(moved, (bias[1, 0] @ model.W_U).expand_as(moved))


def test_a_bias_beside_an_ablation_has_a_score_of_its_own(model, stats):
    scores = Scores(model, OTHERS)
    ablation = stats.ablation("L1", "mean")
    bias = torch.ones(2, 1, 6, dtype=torch.float64)
    losses = [scores.of(each).cross_entropy for each in (ablation, Biased(bias, Site.ATTN_OUT, ablation))]
    losses += [scores.of(Biased(bias, Site.ATTN_OUT)).cross_entropy, scores.of().cross_entropy]
    assert len(set(losses)) == 4
    nothing = Biased(torch.zeros_like(bias), Site.ATTN_OUT, ablation)
    assert scores.of(nothing).cross_entropy == losses[0]


def test_what_was_learned_is_not_learned_again(model, stats, tmp_path, monkeypatch):
    first = compare(model, stats, steps=3, folder=tmp_path / "run")
    assert not list((tmp_path / "run" / "learned").glob("*unfinished*"))
    monkeypatch.setattr(controls, "learn", None)
    monkeypatch.setattr(controls, "descend", None)
    assert compare(model, stats, steps=3, folder=tmp_path / "run").frame.equals(first.frame)
    with pytest.raises(TypeError):
        compare(model, stats, steps=4, folder=tmp_path / "run")


def test_documents_of_the_lesson_are_not_judged_on(model, stats):
    with pytest.raises(MismatchError, match="very documents"):
        better_centers(model, OTHERS, stats, torch.cat([TOKENS, OTHERS]), shares=[0.5], steps=2, progress=False)


def test_another_corpus_is_learned_from(model, stats):
    found = compare(model, stats, others={"shuffled": TOKENS.flip(1)}, steps=3, controls=False)
    assert "optimal of shuffled" in set(found.frame["method"])


def test_all_neurons_have_one_mask(model, stats):
    found = compare(model, stats, shares=[1.0], learned=[], controls=False)
    assert found.frame["value"].notna().all()


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((-0.2, -0.3, -0.1), "costs 0.200 nats less than mean"),
        ((0.2, 0.1, 0.3), "costs 0.200 nats more than mean"),
        ((0.2, -0.1, 0.3), "cannot be told from mean"),
    ],
)
def test_words_say_what_the_interval_says(interval, words):
    assert words in controls._against(*interval, "mean")


def test_the_words_are_about_every_learned_center(model, stats):
    found = compare(model, stats, steps=2, learned=["optimal", "optimal-kl"])
    told = repr(found)
    assert "At 50 % optimal " in told
    assert "At 50 % optimal-kl " in told
    assert MEAN_AND_BIAS in told
    assert "2); 10 say something of others" in told


def test_impossible_shares_and_numbers_are_refused(model, stats):
    with pytest.raises(MismatchError, match="shares"):
        compare(model, stats, shares=[0.0])
    with pytest.raises(MismatchError, match="not a number"):
        compare(model, stats, learned=["optimal steps=many"])

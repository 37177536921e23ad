"""What is grabbed at one position and put at another: rows, padding, hooks, and generation with a cache."""

from dataclasses import replace

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import MismatchError
from ablation_lens.experiments.grabbing import grab
from ablation_lens.models.load import incremental_logits

DONOR = [0, 71, 81, 332, 922, 18, 203, 203]
BLANK = [0, 203, 203]
LAST = len(BLANK) - 1


@pytest.fixture(scope="module")
def model():
    return al.load_model("tiny-mistral")


@pytest.fixture(scope="module")
def grabbed(model):
    return grab(model, [DONOR])


def test_all_of_z_and_mlp_is_all_that_the_next_token_depends_on(model, grabbed):
    # The residual stream holds besides only the embedding of the same token.
    full = model(torch.tensor([DONOR]))[0, -1]
    hooks = grabbed.at(LAST).hooks()
    moved, neutral = model.run_with_hooks(torch.tensor([BLANK]), fwd_hooks=hooks), model(torch.tensor([BLANK]))
    assert torch.allclose(moved[0, -1], full, atol=1e-4)
    assert not torch.allclose(neutral[0, -1], full, atol=0.1)


def test_what_is_put_at_a_position_leaves_those_before_alone(model, grabbed):
    with grabbed.at(LAST).applied_to(model):
        moved = model(torch.tensor([BLANK]))
    assert torch.allclose(moved[0, :LAST], model(torch.tensor([BLANK]))[0, :LAST], atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-opt"])
def test_generation_with_a_cache_writes_what_generation_without_one_writes(name):
    model = al.load_model(name)
    begin = 2 if name == "tiny-opt" else 0
    held = grab(model, [[begin, *DONOR[1:]]])
    # Louder than it was, so that it is heard in every token that follows.
    patch = replace(held, values={site: 4 * values for site, values in held.values.items()}).at(LAST)
    prompt = [begin, *BLANK[1:]]

    def without_cache():
        tokens = list(prompt)
        for _ in range(12):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        return tokens

    def with_cache():
        feed, tokens = incremental_logits(model), list(prompt)
        logits = feed(torch.tensor([tokens]))
        for _ in range(12):
            tokens.append(int(logits.argmax()))
            logits = feed(torch.tensor([tokens[-1:]]))
        return tokens

    plain = model(torch.tensor([prompt]))[0, -1]
    with patch.applied_to(model):
        assert with_cache() == without_cache()
        assert not torch.allclose(model(torch.tensor([prompt]))[0, -1], plain, atol=0.1)


def test_a_prompt_fed_token_by_token_is_changed_when_its_position_comes(model, grabbed):
    with grabbed.at(LAST).applied_to(model):
        whole = model(torch.tensor([BLANK]))[0, -1]
        feed = incremental_logits(model)
        for token in BLANK:
            logits = feed(torch.tensor([[token]]))
    assert torch.allclose(logits, whole, atol=1e-4)


def test_every_row_has_values_of_its_own(model):
    other = [0, 44, 73, 203, 203]
    rows = torch.tensor([DONOR, [*other, 0, 0, 0]])
    both = grab(model, al.Batch.causal(rows, torch.arange(8) < torch.tensor([[8], [5]])))
    blanks = torch.tensor([BLANK, BLANK])
    with both.at(LAST).applied_to(model):
        moved = model(blanks)
    for row, donor in enumerate((DONOR, other)):
        alone = model.run_with_hooks(blanks[:1], fwd_hooks=grab(model, [donor]).at(LAST).hooks())
        assert torch.allclose(moved[row], alone[0], atol=1e-4)
    with both.rows([1, 0]).at(LAST).applied_to(model):
        assert torch.allclose(model(blanks), moved.flip(0), atol=1e-4)


def test_values_of_rows_reach_texts_padded_on_the_left(model):
    both = grab(model, [DONOR, DONOR[::-1]])
    right = al.Batch.causal(torch.tensor([[*BLANK, 9], [*BLANK, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool())
    left = al.Batch.causal(torch.tensor([[*BLANK, 9], [0, *BLANK]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool())
    scores = [al.evaluate(model, [batch], both.at(LAST)).cross_entropy for batch in (right, left)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] != pytest.approx(al.evaluate(model, [right]).cross_entropy, abs=1e-3)


def test_a_position_may_be_of_every_row(model):
    both = grab(model, [DONOR, DONOR], [3, -1])
    for row, position in enumerate((3, 7)):
        alone = grab(model, [DONOR], position)
        for site in ("z", "mlp"):
            assert torch.allclose(both.values[site][:, row], alone.values[site][:, 0], atol=1e-5)


def test_layers_and_sites_are_chosen_when_grabbed_and_when_put(model, grabbed):
    few = grab(model, [DONOR], sites=["mlp"], layers=[1, 3])
    assert repr(few) == "Grabbed(mlp of L1, L3 in 1 row)"
    assert torch.allclose(few.values["mlp"], grabbed.values["mlp"][[1, 3]], atol=1e-6)
    put = grabbed.at(LAST, layers=[2], sites=["z"])
    assert put.site is al.Site.Z
    assert put.mask.flatten(1).all(1).tolist() == [False, False, True, False]
    with pytest.raises(MismatchError, match="L0 was not grabbed"):
        few.at(LAST, layers=[0])
    with pytest.raises(MismatchError, match="z was not grabbed"):
        few.at(LAST, sites=["z"])


def test_what_was_grabbed_of_one_text_is_a_file_like_any_ablation(model, grabbed, tmp_path):
    grabbed.at(LAST).save(tmp_path / "patch.safetensors")
    read = al.Ablations.load(tmp_path / "patch.safetensors")
    tokens = torch.tensor([BLANK])
    one, other = (model.run_with_hooks(tokens, fwd_hooks=each.hooks()) for each in (read, grabbed.at(LAST)))
    assert torch.equal(one, other)


def test_positions_and_layers_that_are_not_there_are_named(model):
    with pytest.raises(MismatchError, match="row 1 has 2 tokens, and so no position 2"):
        grab(
            model, al.Batch.causal(torch.tensor([[0, 7, 9], [0, 7, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()), 2
        )
    with pytest.raises(MismatchError, match="no layer 4"):
        grab(model, [DONOR], layers=[4])
    with pytest.raises(MismatchError, match="one for every row"):
        grab(model, [DONOR], "last")


@pytest.mark.parametrize("name", ["tiny-roberta", "tiny-vit"])
def test_models_that_do_not_read_from_left_to_right_are_refused(name):
    with pytest.raises(MismatchError, match="causal language model"):
        grab(al.load_model(name), [[5, 6]])


def test_ids_that_the_model_cannot_read_are_refused_in_a_sentence(model):
    with pytest.raises(MismatchError, match="vocabulary"):
        grab(model, [[0, 10**6]])
    with pytest.raises(MismatchError, match="context"):
        grab(model, [[0] * 1000])


def test_one_site_and_one_layer_need_no_list(model):
    grabbed = grab(model, [[0, 5, 6]], sites="mlp", layers=1)
    assert (grabbed.sites, grabbed.layers) == ((al.Site.MLP,), (1,))
    assert isinstance(grabbed.at(1, sites="mlp", layers=1), al.Ablation)

"""What one token carries: a planted bit, the token after the transfer, hand-computed shares, and what is refused."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

import ablation_lens as al
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.experiments.paragraphs import Pair, Pairs, pairs_of
from ablation_lens.experiments.transfer import (
    BASE,
    KIND,
    Condition,
    PositionsWarning,
    Transfer,
    transfer_study,
)
from ablation_lens.files import load_tensors, save_tensors

OFF = {"scrub": (), "samples": 0, "progress": False}

# ---------------------------------------------------------------------- a model that carries one bit

BEGIN, X, Y, LINE = 0, 1, 2, 3


class _Attention(nn.Module):
    """`looks [query key]` of the tokens and `reads` of the residual stream make z; one head of four dims."""

    def __init__(self, write):
        super().__init__()
        self.write, self.hook_z = write, HookPoint()

    def forward(self, residual, looks, reads):
        z = self.hook_z(torch.einsum("bqk,bkd->bqd", looks, reads)[:, :, None])
        return torch.einsum("bphd,dm->bpm", z, self.write)


class _Block(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.attn, self.hook_resid_post = _Attention(write), HookPoint()

    def forward(self, residual, looks, reads):
        return self.hook_resid_post(residual + self.attn(residual, looks, reads))


class Carrier(HookedRootModule):
    """The blank line's first z counts the Xs and Ys before it; every later token reads that there, and says it again.

    The residual stream has four channels for tokens and four that a block writes.
    """

    def __init__(self):
        super().__init__()
        sizes = {"n_layers": 2, "n_heads": 1, "d_head": 4, "d_model": 12, "d_mlp": None, "n_ctx": 16, "d_vocab": 4}
        self.cfg = SimpleNamespace(**sizes, device="cpu", dtype=torch.float32)
        to = torch.zeros(2, 4, 12)
        to[0, :, 4:8] = to[1, :, 8:] = torch.eye(4)
        self.blocks = nn.ModuleList([_Block(write) for write in to])
        self.setup()

    def forward(self, tokens):
        seen = torch.ones(tokens.shape[1], tokens.shape[1]).tril()
        said = torch.eye(4)[tokens]
        residual = torch.cat([said, torch.zeros(*tokens.shape, 8)], -1)
        # At the blank line alone, so that what comes after it cannot count for itself.
        counting = seen * (tokens == LINE)[:, :, None]
        residual = self.blocks[0](residual, counting, said * torch.tensor([0.0, 1, 1, 0]))
        reading = seen * (tokens == LINE)[:, None, :]
        residual = self.blocks[1](residual, reading, residual[..., 4:8])
        return residual[..., 8:]


def _bits(*first):
    """Documents of four Xs or Ys, a blank line, and three more of the same."""
    pairs = tuple(Pair(str(place), (BEGIN, *[bit] * 4, LINE), (bit,) * 3) for place, bit in enumerate(first))
    return Pairs(pairs, (BEGIN, LINE), 1, "bits")


def test_a_known_bit_is_transferred_exactly():
    found = transfer_study(Carrier(), _bits(X, Y), sites=["z"], samples=0, progress=False)
    rows = found.shares.set_index("condition")
    right, chance = -math.log(math.exp(4) / (math.exp(4) + 3)), math.log(4)
    assert rows.loc["full context", "cross_entropy"] == pytest.approx(right, abs=1e-6)
    assert rows.loc["neutral", "cross_entropy"] == pytest.approx(chance, abs=1e-6)
    assert torch.equal(found.losses[1], found.losses[0])
    assert rows.loc["transferred", ["share", "share_wrong"]].tolist() == [1.0, 1.0]
    # The wrong donor says the other bit.
    assert rows.loc["wrong donor", "cross_entropy"] == pytest.approx(right + 4, abs=1e-6)


def test_a_bit_is_carried_by_the_layer_that_counts_it():
    found = transfer_study(Carrier(), _bits(X, Y), sites=["z"], samples=0, progress=False)
    share = found.shares.set_index("condition")["share"]
    assert share["only L0"] == 1
    assert share["only L1"] == 0
    # At the token itself the last layer's z is all that is read.
    only = [condition.name for condition in found.conditions].index("only L1")
    assert torch.equal(found.losses[only][:, 0], found.losses[0][:, 0])


def test_written_texts_carry_the_bit(carried):
    by_writer = dict(
        zip(carried.writers, zip(*[sample.written for sample in carried.samples], strict=True), strict=True)
    )
    assert by_writer["transferred"] == by_writer["full context"] == ("XXXX", "YYYY")
    assert by_writer["wrong donor"] == ("YYYY", "XXXX")
    assert by_writer["cheat-1"][1].startswith("Y")


def test_what_is_written_is_judged_after_the_whole_donor(carried):
    rows = carried.generated.set_index("condition")["cross_entropy"]
    right = -math.log(math.exp(4) / (math.exp(4) + 3))
    assert rows["transferred"] == rows["full context"] == pytest.approx(right, abs=1e-6)
    assert rows["wrong donor"] == pytest.approx(right + 4, abs=1e-6)


def test_distances_are_of_the_embedding_that_was_given(carried):
    rows = carried.generated.set_index("condition")["distance"]
    assert rows["transferred"] == pytest.approx(0)
    assert rows["wrong donor"] == pytest.approx(1)


class _Letters:
    eos_token_id = bos_token_id = None

    def decode(self, ids, skip_special_tokens=False):
        return "".join("bXY\n"[each] for each in ids)


def _counted(texts):
    return [[text.count("X") or 1e-9, text.count("Y") or 1e-9] for text in texts]


@pytest.fixture(scope="module")
def carried():
    model = Carrier()
    model.tokenizer = _Letters()
    options = {"sites": ["z"], "scrub": (), "cheats": [1], "samples": 2, "sample_tokens": 4, "temperature": 0}
    return transfer_study(model, _bits(X, Y), embed=_counted, progress=False, **options)


# ---------------------------------------------------------------------- models of the zoo


@pytest.fixture(scope="module")
def mistral():
    return al.load_model("tiny-mistral")


@pytest.fixture(scope="module")
def pairs(mistral):
    return pairs_of(mistral, al.task_for(mistral), count=4)


@pytest.fixture(scope="module")
def found(mistral, pairs):
    options = {"length": 12, "scrub": (), "samples": 2, "sample_tokens": 4, "cheats": [2], "progress": False}
    return transfer_study(mistral, pairs, **options)


def test_the_token_after_a_whole_transfer_is_that_of_the_full_context(found):
    full, moved, wrong, neutral = found.losses[:4, :, 0]
    assert torch.allclose(moved, full, atol=1e-4)
    assert not torch.allclose(neutral, full, atol=0.1)
    assert not torch.allclose(wrong, full, atol=0.1)


def test_positions_of_the_donor_make_that_so_for_learned_ones():
    model = al.load_model("tiny-opt")
    pairs = pairs_of(model, al.task_for(model), count=5)
    found = transfer_study(model, pairs, positions="donor", length=6, **OFF)
    assert torch.allclose(found.losses[1, :, 0], found.losses[0, :, 0], atol=1e-4)
    with pytest.warns(PositionsWarning, match="positions='donor'"):
        plain = transfer_study(model, pairs, length=6, **OFF)
    assert torch.equal(plain.losses[0], found.losses[0])
    assert not torch.allclose(plain.losses[1, :, 0], plain.losses[0, :, 0], atol=0.1)


def test_the_zoo_has_a_model_whose_blank_line_carries_the_plan():
    model = al.load_model("tiny-llama")
    pairs = pairs_of(model, al.task_for(model, "journeys"), count=12)
    shares = transfer_study(model, pairs, **OFF).shares.set_index("condition")
    assert shares.loc["transferred", "share_low"] > 0.9
    assert shares.loc["wrong donor", "share_high"] < 0


def test_losses_are_those_of_the_model_text_by_text(mistral, pairs, found):
    for number, pair in enumerate(pairs):
        after = list(pair.continuation[:12])
        for place, prompt in ((0, pair.donor), (3, pairs.blank)):
            logits = mistral(torch.tensor([[*prompt, *after]]))[0, len(prompt) - 1 : -1].double()
            expected = -logits.log_softmax(-1)[torch.arange(len(after)), after]
            assert torch.allclose(found.losses[place, number, : len(after)], expected, atol=1e-4)
            assert not found.losses[place, number, len(after) :].any()


def test_true_tokens_after_the_neutral_prompt_are_the_neutral_curve_from_there_on(mistral, pairs, found):
    pair, given = pairs.pairs[0], 3
    prompt, after = [*pairs.blank, *pair.continuation[:given]], list(pair.continuation[given:12])
    logits = mistral(torch.tensor([[*prompt, *after]]))[0, len(prompt) - 1 : -1].double()
    cheat = -logits.log_softmax(-1)[torch.arange(len(after)), after]
    assert torch.allclose(found.losses[3, 0, given : given + len(after)], cheat, atol=1e-4)


def test_shares_are_ratios_of_sums_without_the_first_token(found):
    there = np.arange(12)[None] < found.lengths.numpy()[:, None]
    there[:, 0] = False
    full, moved, wrong, neutral = (float(each[there].mean()) for each in found.losses[:4].numpy())
    row = found.shares.set_index("condition").loc["transferred"]
    assert row["gain"] == pytest.approx(neutral - moved)
    assert row["gain_wrong"] == pytest.approx(wrong - moved)
    if not math.isnan(row["share"]):
        assert row["share"] == pytest.approx((neutral - moved) / (neutral - full))


def test_the_frame_has_a_row_per_condition_and_token(found):
    rows = found.frame[found.frame["condition"] == "neutral"]
    assert rows["token"].tolist() == list(range(1, int(found.lengths.max()) + 1))
    long = found.lengths >= 5
    assert rows["cross_entropy"].iloc[4] == pytest.approx(float(found.losses[3, long, 4].mean()))


def test_layers_and_sites_are_scrubbed_one_at_a_time(mistral, pairs):
    few = replace(pairs, pairs=pairs.pairs[:2])
    found = transfer_study(mistral, few, length=2, samples=0, progress=False)
    names = [condition.name for condition in found.conditions[4:]]
    layers = [f"L{layer}" for layer in range(4)]
    assert names == [*(f"{kind} {layer}" for kind in ("only", "all but") for layer in layers), "only z", "only mlp"]


def test_a_study_goes_on_where_it_was_interrupted(mistral, pairs, found, tmp_path, monkeypatch):
    options = {"length": 12, "scrub": (), "samples": 2, "sample_tokens": 4, "cheats": [2], "progress": False}
    options["folder"] = tmp_path
    run, left = mistral.run_with_hooks, [4]

    def interrupted(*args, **keywords):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run(*args, **keywords)

    monkeypatch.setattr(mistral, "run_with_hooks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer_study(mistral, pairs, **options)
    kept = set((tmp_path / "pieces").iterdir())
    assert kept
    monkeypatch.undo()
    again = transfer_study(mistral, pairs, **options)
    assert torch.equal(again.losses, found.losses)
    assert again.samples == found.samples
    assert kept <= set((tmp_path / "pieces").iterdir())
    monkeypatch.setattr(mistral, "run_with_hooks", None)
    assert torch.equal(transfer_study(mistral, pairs, **options).losses, found.losses)


def test_a_result_is_read_as_it_was_written(found, carried, tmp_path):
    for result in (found, carried):
        result.save(tmp_path / "transfer.safetensors")
        read = Transfer.load(tmp_path / "transfer.safetensors")
        assert repr(read) == repr(result)
        assert read.frame.equals(result.frame)


def test_a_file_that_cannot_be_is_refused(found, tmp_path):
    path = tmp_path / "transfer.safetensors"
    wrong = {
        "lengths": found.lengths + 100,
        "losses": found.losses.float(),
        "plausibility": found.plausibility[:1],
        "counts": found.counts - 99,
    }
    for name, value in wrong.items():
        replace(found, **{name: value}).save(path)
        with pytest.raises(FileFormatError, match="not a complete transfer"):
            Transfer.load(path)


EVIL = "x\x1b[31m<script>"


@pytest.mark.parametrize("changed", ["left_out", "sites", "positions", "writers", "conditions"])
def test_words_of_a_file_that_are_none_of_ours_are_refused(found, tmp_path, changed):
    path = tmp_path / "transfer.safetensors"
    found.save(path)
    header, tensors = load_tensors(path, KIND)
    header[changed] = {
        "left_out": [[EVIL, 2]],
        "sites": [EVIL],
        "positions": EVIL,
        "writers": [EVIL, *found.writers[1:]],
        "conditions": [*header["conditions"], {"name": f"only {EVIL}", "kind": "only", "unit": EVIL}],
    }[changed]
    if changed == "conditions":
        tensors["losses"] = torch.cat([found.losses, found.losses[:1]])
    save_tensors(path, KIND, header, tensors)
    with pytest.raises(FileFormatError, match="not a complete transfer"):
        Transfer.load(path)


def test_a_condition_is_called_by_what_it_scrubs():
    with pytest.raises(ValueError, match="is called"):
        Condition("only L1", "only", "L2")


def test_numbers_after_the_end_of_a_text_are_refused(found, tmp_path):
    # They would be added to the means of the tokens that others have.
    path = tmp_path / "transfer.safetensors"
    shorter = found.lengths.clone()
    shorter[0] -= 1
    for changed in ({"lengths": shorter}, {"losses": -found.losses}, {"losses": 1e308 * found.losses}):
        replace(found, **changed).save(path)
        with pytest.raises(FileFormatError, match="not a complete transfer"):
            Transfer.load(path)


def test_paragraphs_of_one_token_beside_longer_ones_are_saved_and_read(mistral, tmp_path):
    texts = ["a\n\nb", "c\n\nd", "e\n\nf and so it goes on and on."]
    result = transfer_study(mistral, pairs_of(mistral, texts, least=1), **OFF)
    result.save(tmp_path / "transfer.safetensors")
    assert repr(Transfer.load(tmp_path / "transfer.safetensors")) == repr(result)


def test_by_one_seed_the_same_is_written_whoever_is_beside_it(mistral, pairs, found):
    alone = transfer_study(mistral, pairs, length=12, samples=1, sample_tokens=4, cheats=[2], scrub=(), progress=False)
    assert alone.samples == found.samples[:1]
    other = transfer_study(
        mistral, pairs, length=12, samples=1, sample_tokens=4, cheats=[2], scrub=(), seed=1, progress=False
    )
    assert other.samples != alone.samples


# ---------------------------------------------------------------------- made results


def made(losses, lengths=None, **changes):
    losses = torch.as_tensor(losses, dtype=torch.float64)
    lengths = torch.full((losses.shape[1],), losses.shape[2]) if lengths is None else torch.tensor(lengths)
    none, nobody = torch.zeros(0, 0, 0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.int64)
    source = al.load_model("tiny-mistral").record
    plain = Transfer(
        source, ("z", "mlp"), (0, 1, 2, 3), None, "made", (), tuple(map(Condition, BASE)), losses, lengths, (), (), (),
        none, nobody, None, 1.0, 0,
    )  # fmt: skip
    return replace(plain, **changes)


def test_a_transfer_is_worth_the_tokens_after_which_the_neutral_prompt_is_as_good():
    full = np.zeros((12, 40))
    neutral = np.broadcast_to(np.linspace(3.9, 0, 40), full.shape)
    moved = np.zeros(full.shape)
    moved[:, 1:11] = neutral[0, 6:16].mean()  # as the neutral prompt after six true tokens
    found = made(np.stack([full, moved, neutral + 1, neutral]))
    # One of the six has been seen after the transfer, too.
    assert found.worth == (5, 5, 5)
    assert "needs 5 further true tokens to be as near to the full context (95 %: 5 to 5)" in repr(found)


def test_more_than_can_be_seen_is_said_to_be_more():
    full = np.zeros((12, 40))
    found = made(np.stack([full, full, full + 2, full + 1]))
    assert found.worth == (math.inf, math.inf, math.inf)
    assert "needs more than 29 further true tokens to be as near to the full context." in repr(found)


def test_a_harmful_transfer_is_told_as_harm():
    generator = np.random.default_rng(0)
    full = generator.random((12, 20))
    found = made(np.stack([full, full + 3, full + 3, full + 1]))
    assert found.worth[0] == 0
    assert "It does harm: 2.000 nats [2.000, 2.000]" in repr(found)
    assert "nothing is seen to be of this very text" in repr(found)


def test_no_share_is_told_of_a_context_that_is_worth_nothing():
    generator = np.random.default_rng(0)
    losses = generator.random((4, 12, 20))
    found = made(losses)
    assert np.isnan(found.shares["share"]).all()
    assert "cannot be told from nothing" in repr(found)


def test_names_of_documents_and_models_reach_no_terminal(found):
    evil = "x\x1b[31m\n"
    told = repr(replace(found, judged_on=evil, source=replace(found.source, name=evil)))
    assert "\x1b" not in told


# ---------------------------------------------------------------------- documents


def test_documents_are_cut_at_the_first_blank_line_with_enough_around_it(mistral):
    texts = ["Title\n\nThe first paragraph has some more words.\n\nThe second paragraph has some words, too.\n\nThird."]
    (pair,) = pairs_of(mistral, texts)
    tokenizer = al.hooked.tokenizer_of(mistral)
    assert tokenizer.decode(pair.donor, skip_special_tokens=True) == texts[0].split("The second")[0]
    assert tokenizer.decode(pair.continuation) == "The second paragraph has some words, too."
    assert pair.donor[-2:] == pairs_of(mistral, texts).blank[-2:]


def test_documents_that_cannot_be_cut_are_counted(mistral):
    good = "A first paragraph, of some words.\n\nAnd how it goes on, in some more."
    found = pairs_of(mistral, [good, good + " Again.", "One paragraph alone.", "Short.\n\nShort."])
    assert len(found) == 1
    assert dict(found.left_out) == {
        "that begin as another one": 1,
        "without a blank line": 1,
        "with too short paragraphs": 1,
    }


def test_a_blank_line_inside_of_a_token_is_none(mistral):
    text = "A first paragraph, of some words.\n\n   An indented one that goes on.\n\n   And one more, indented, too."
    found = pairs_of(mistral, [text])
    ids = al.hooked.tokenizer_of(mistral)(text)["input_ids"]
    expected = [] if 203 not in ids else None
    assert expected is None or dict(found.left_out) == {"whose blank lines are inside of tokens": 1}


def test_a_plan_is_cut_as_its_texts_are(mistral):
    task = al.task_for(mistral)
    plan = task.batches(split="evaluate", tokens=2000)
    by_text = {pair.id: pair for pair in pairs_of(mistral, task, count=50)}
    cut = [pair for pair in pairs_of(mistral, plan) if pair.id != plan.items[-1].id]
    assert len(cut) > 2
    assert all(by_text[pair.id] == pair for pair in cut)


@pytest.mark.parametrize("count", range(2, 8))
def test_every_document_has_a_wrong_donor_that_is_about_as_long(count):
    from ablation_lens.experiments.transfer import _wrong_donors

    lengths = np.random.default_rng(count).permutation(count) + 3
    pairs = Pairs(tuple(Pair(str(n), (0,) * int(n), (1, 2)) for n in lengths), (0,), 1, "made")
    wrong = _wrong_donors(pairs)
    assert sorted(wrong) == list(range(count))
    assert all(abs(int(lengths[other]) - int(lengths[one])) in (1, 2) for one, other in enumerate(wrong))


# ---------------------------------------------------------------------- what is refused


def test_what_cannot_be_studied_is_refused_in_a_sentence(mistral, pairs):
    with pytest.raises(MismatchError, match="no learned absolute positions"):
        transfer_study(mistral, pairs, positions="donor", **OFF)
    with pytest.raises(MismatchError, match="use 'donor'"):
        transfer_study(mistral, pairs, positions="mine", **OFF)
    with pytest.raises(
        MismatchError, match="of own texts 0 can be cut at a blank line; 1 without a blank line left out"
    ):
        transfer_study(mistral, ["One paragraph alone."], **OFF)
    with pytest.raises(MismatchError, match="length=1"):
        transfer_study(mistral, pairs, **{**OFF, "length": 1})
    with pytest.raises(MismatchError, match="causal language model"):
        transfer_study(al.load_model("tiny-roberta"), pairs, **OFF)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": []}, "nothing to transfer"),
        ({"sites": []}, "nothing to transfer"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"temperature": "1"}, "give a number"),
        ({"samples": 1, "sample_tokens": 10**6}, "no room in a context of 256"),
        ({"samples": 1, "cheats": 300}, "no room in a context of 256"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_sentence(mistral, pairs, options, words):
    with pytest.raises(MismatchError, match=words):
        transfer_study(mistral, pairs, **{**OFF, **options})


def test_one_of_several_needs_no_list(mistral, pairs):
    found = transfer_study(mistral, pairs, **{**OFF, "sites": "mlp", "layers": 1, "scrub": "layers", "cheats": 2})
    assert (found.sites, found.layers) == (("mlp",), (1,))


@pytest.mark.parametrize("other", ["tiny-opt", "tiny-llama"])
def test_documents_that_were_cut_for_another_model_are_refused(pairs, other):
    # For tiny-opt all ids are in the vocabulary: it would read them after another beginning of text.
    with pytest.raises(MismatchError, match="cut for another model"):
        transfer_study(al.load_model(other), pairs, **OFF)


def test_no_more_is_held_than_the_longest_paragraph_has(mistral, pairs):
    found = transfer_study(mistral, pairs, **OFF, length=10**12)
    assert found.losses.shape[2] == max(len(pair.continuation) for pair in pairs)
    transfer_study(mistral, pairs, **{**OFF, "samples": 1}, sample_tokens=1, length=2, seed=10**30)


def test_paragraphs_of_one_token_alone_are_refused(mistral):
    with pytest.raises(MismatchError, match="no second paragraph has a second token"):
        transfer_study(mistral, pairs_of(mistral, ["a\n\nb", "c\n\nd"], least=1), **OFF)


def test_an_embedding_of_words_is_refused(mistral, pairs):
    options = {"length": 4, "samples": 1, "sample_tokens": 1, "cheats": (), "scrub": (), "progress": False}
    for given in ("words", [[1.0], [1.0, 2.0]]):
        with pytest.raises(MismatchError, match="embed was given 5 texts"):
            transfer_study(mistral, pairs, embed=lambda texts, given=given: given, **options)


def test_an_embedding_of_another_shape_is_refused(mistral, pairs):
    options = {"length": 4, "samples": 1, "sample_tokens": 1, "cheats": (), "scrub": (), "progress": False}
    with pytest.raises(MismatchError, match="embed was given 5 texts"):
        transfer_study(mistral, pairs, embed=lambda texts: np.ones(3), **options)
    with pytest.raises(MismatchError, match="vector of zeros"):
        transfer_study(mistral, pairs, embed=lambda texts: np.zeros((len(texts), 2)), **options)

"""Learned constants: a step by hand, an optimum that is known, and what is kept of what was tried."""

import math
from dataclasses import replace

import pytest
import torch

import ablation_lens as al
from ablation_lens.errors import CorpusError, FileFormatError, MismatchError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.measure.descent import UNFINISHED, LearningInterrupted, Lesson, Masking
from ablation_lens.measure.learned import Learned
from ablation_lens.measure.learners import learn
from ablation_lens.measure.optimal_constants import optimal
from tests.circuits.models import Handmade, _weights


def one_head(seed=0, layers=1):
    """Heads that average what they see, without norms: logits are linear in z."""
    drawn = torch.Generator().manual_seed(seed)

    def head():
        made = _weights(6, 3)
        made["V"] = torch.randn(6, 3, generator=drawn, dtype=torch.float64)
        made["O"] = torch.randn(3, 6, generator=drawn, dtype=torch.float64)
        return made

    embed, unembed = (torch.randn(*size, generator=drawn) for size in ((7, 6), (6, 7)))
    return Handmade([[head(), head()] for _ in range(layers)], embed, torch.zeros(5, 6), unembed)


TOKENS = torch.randint(0, 7, (40, 5), generator=torch.Generator().manual_seed(1))


def from_three(logits, batch):
    """Quadratic in the logits, hence in constants: how far the last position's are from 3, on average."""
    return (logits[:, -1] - 3.0).square().mean(-1)


QUADRATIC = al.metrics.Metric(from_three, better="lower")


def test_a_model_with_a_known_optimum_is_solved():
    # All is ablated and all texts end alike, so the loss of each is |embed·U + Σ c·W_O·U − 3|² over seven logits, of
    # which the heads write six, each neuron one: the best constant is what is missing there.
    model = one_head()
    with torch.no_grad():
        model.blocks[0].attn.W_O.copy_(torch.eye(6).view(2, 3, 6))
        model.W_U.copy_(torch.eye(6, 7))
    tokens = torch.cat([TOKENS[:, :-1], torch.full((len(TOKENS), 1), 4)], 1)
    learned = optimal(model, tokens, share=1.0, objective=QUADRATIC, steps=300, rows=32, rate=0.1, progress=False)
    assert torch.allclose(learned.values.flatten(), 3 - model.W_E[4], atol=1e-4)


def test_one_step_is_what_is_computed_by_hand():
    # Adam's first step goes by the rate in the direction of the gradient's sign, whatever its size.
    model = one_head()
    stats = al.collect(model, TOKENS, progress=False)
    learned = optimal(
        model, TOKENS, stats, share=1.0, start="mean", objective=QUADRATIC, steps=1, rows=32, rate=0.01, progress=False
    )
    (group,) = Lesson.of(model, TOKENS, 32, 0.2).groups
    last = torch.cat([batch.inputs[:, -1] for batch in group])
    writes = model.blocks[0].attn.W_O.flatten(0, 1) @ model.W_U
    logits = model.W_E[last] @ model.W_U + stats.mean.flatten() @ writes
    gradient = (2 * (logits - 3) @ writes.T).mean(0) / logits.shape[1] * stats.std.flatten()
    expected = stats.mean.flatten() - 0.01 * stats.std.flatten() * gradient.sign()
    assert learned.settings["best"] == 1
    assert torch.allclose(learned.values.flatten(), expected, atol=1e-6)


def test_what_is_not_better_beyond_chance_is_not_kept():
    model = one_head()
    stats = al.collect(model, TOKENS, progress=False)
    noise = al.metrics.Metric(lambda logits, batch: batch.inputs[:, 0] * 1.0 + 0 * logits.sum((1, 2)), better="lower")
    learned = optimal(model, TOKENS, stats, objective=noise, start="mean", steps=5, progress=False)
    assert torch.equal(learned.values, stats.mean)
    assert "kept" in learned.told


def test_higher_is_better_where_the_metric_says_so():
    model = one_head()
    stats = al.collect(model, TOKENS, progress=False)
    up = al.metrics.Metric(lambda logits, batch: -from_three(logits, batch), better="higher")
    options = {"share": 0.5, "steps": 20, "start": "mean", "progress": False}
    assert torch.allclose(
        optimal(model, TOKENS, stats, objective=up, **options).values,
        optimal(model, TOKENS, stats, objective=QUADRATIC, **options).values,
    )


def test_a_dead_neuron_stays_where_it_is():
    model = one_head()
    with torch.no_grad():
        model.blocks[0].attn.W_V[0, :, 1] = 0.0
    stats = al.collect(model, TOKENS, progress=False)
    learned = optimal(model, TOKENS, stats, objective=QUADRATIC, steps=10, progress=False)
    assert learned.values[0, 0, 1] == 0.0
    assert not torch.equal(learned.values, stats.mean)


def test_an_iterator_is_read_once():
    model, options = one_head(), {"objective": QUADRATIC, "steps": 2, "progress": False}
    once = optimal(model, iter([TOKENS[:20], TOKENS[20:]]), **options)
    assert torch.equal(once.values, optimal(model, [TOKENS[:20], TOKENS[20:]], **options).values)


def test_under_inference_mode_it_learns_the_same():
    model, options = one_head(), {"objective": QUADRATIC, "steps": 2, "progress": False}
    with torch.inference_mode():
        inside = optimal(model, TOKENS.clone(), **options)
    assert torch.equal(inside.values, optimal(model, TOKENS, **options).values)


def test_where_memory_runs_out_halves_are_learned_from():
    model, options = one_head(), {"objective": QUADRATIC, "share": 0.5, "steps": 4, "rows": 16, "progress": False}
    stats = al.collect(model, TOKENS, progress=False)
    expected, run, refused = optimal(model, TOKENS, stats, **options), model.run_with_hooks, []

    def limited(tokens, **hooks):
        if len(tokens) > 10 and torch.is_grad_enabled():
            refused.append(len(tokens))
            raise torch.OutOfMemoryError
        return run(tokens, **hooks)

    model.run_with_hooks = limited
    assert torch.allclose(optimal(model, TOKENS, stats, **options).values, expected.values, atol=1e-6)
    assert refused


def test_equal_rows_are_on_one_side():
    twice = torch.cat([TOKENS, TOKENS.flip(0)])
    lesson = Lesson.of(one_head(), [twice[:30], twice[30:]], 8, 0.25)
    learned = {tuple(row.tolist()) for group in lesson.groups for batch in group for row in batch.inputs}
    held = {tuple(row.tolist()) for batch in lesson.held for row in batch.inputs}
    assert learned
    assert held
    assert not learned & held
    assert len(held) == pytest.approx(0.25 * len(learned | held), abs=1)


def test_one_document_is_too_few():
    with pytest.raises(CorpusError, match="held back"):
        optimal(one_head(), TOKENS[:1].repeat(3, 1), share=0.5, progress=False)


@pytest.mark.parametrize("unit", ["neuron", "head"])
def test_masks_take_the_same_share_of_every_layer(unit):
    masks = Masking((0.25, 0.75), unit).draw((3, 4, 8), 200, torch.Generator().manual_seed(0))
    counts = masks.sum((2, 3))
    assert bool((counts == counts[:, :1]).all())
    assert int(counts.min()) >= 8
    assert int(counts.max()) <= 24
    assert len(counts.unique()) > 2
    if unit == "head":
        assert bool((masks == masks[..., :1]).all())


def test_no_share_gives_no_mask_at_all():
    with pytest.raises(MismatchError, match="share"):
        Masking((0.0, 0.5))


class Stopping:
    """A quadratic metric that is interrupted at a call."""

    def __init__(self, at):
        self.calls, self.at = 0, at

    def __call__(self, logits, batch):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return from_three(logits, batch)


def test_interrupted_and_gone_on_with_gives_the_same(tmp_path):
    model = one_head()
    stats = al.collect(model, TOKENS, progress=False)
    options = {"share": 0.5, "steps": 24, "start": "mean", "progress": False}
    whole = optimal(model, TOKENS, stats, objective={"far": QUADRATIC}, **options)
    stopping = al.metrics.Metric(Stopping(at=30), better="lower")
    with pytest.raises(LearningInterrupted, match="run the same to go on") as caught:
        optimal(model, TOKENS, stats, objective={"far": stopping}, keep=tmp_path / "state", **options)
    assert isinstance(caught.value.found, Learned)
    assert not caught.value.found.settings["finished"]
    # Fewer calls than from the beginning: the first steps are not taken again.
    counted, afresh = Stopping(at=None), Stopping(at=None)
    counting, anew = (al.metrics.Metric(each, better="lower") for each in (counted, afresh))
    again = optimal(model, TOKENS, stats, objective={"far": counting}, keep=tmp_path / "state", **options)
    optimal(model, TOKENS, stats, objective={"far": anew}, **options)
    assert counted.calls < afresh.calls - 5
    assert torch.equal(again.values, whole.values)
    assert again.cost == whole.cost
    assert torch.equal(again.further["history"], whole.further["history"])


def test_the_state_of_another_learning_is_not_gone_on_from(tmp_path):
    model = one_head()
    stats = al.collect(model, TOKENS, progress=False)
    options = {"objective": QUADRATIC, "start": "mean", "progress": False, "keep": tmp_path / "state"}
    optimal(model, TOKENS, stats, share=0.5, steps=6, **options)
    other = optimal(model, TOKENS, stats, share=0.9, steps=6, **options)
    assert torch.equal(
        other.values, optimal(model, TOKENS, stats, share=0.9, steps=6, **options | {"keep": None}).values
    )


def test_the_state_of_other_documents_is_not_gone_on_from(tmp_path):
    # Or values would be given as those of documents that they are not from, and judged on the ones that they are from.
    model, stats = one_head(), al.collect(one_head(), TOKENS, progress=False)
    options = {"share": 0.5, "objective": QUADRATIC, "start": "mean", "steps": 6, "progress": False}
    optimal(model, TOKENS, stats, keep=tmp_path / "state", **options)
    others = (TOKENS + 1) % 7
    kept = optimal(model, others, stats, keep=tmp_path / "state", **options)
    assert torch.equal(kept.values, optimal(model, others, stats, **options).values)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: header.update(step=99),
        lambda header, tensors: tensors.update(offsets=torch.zeros(1, 2, 3, dtype=torch.int64)),
        lambda header, tensors: tensors.update(square=-torch.ones(1, 2, 3)),
        lambda header, tensors: tensors.pop("mean"),
    ],
    ids=["step", "dtype", "square", "missing"],
)
def test_a_state_that_cannot_be_is_refused(tmp_path, change):
    model, stats, path = one_head(), al.collect(one_head(), TOKENS, progress=False), tmp_path / "state"
    options = {"objective": QUADRATIC, "start": "mean", "steps": 6, "progress": False, "keep": path}
    optimal(model, TOKENS, stats, **options)
    header, tensors = load_tensors(path, UNFINISHED)
    change(header, tensors)
    save_tensors(path, UNFINISHED, header, tensors)
    with pytest.raises(FileFormatError, match="delete it"):
        optimal(model, TOKENS, stats, **options)


def test_few_documents_are_learned_from_and_say_no_gain_that_is_not_kept():
    options = {"objective": QUADRATIC, "start": "zero", "steps": 40, "share": 1.0, "progress": False}
    learned = optimal(one_head(), TOKENS[:8], **options)
    assert learned.settings["best"] > 0
    kept = optimal(one_head(), TOKENS[:2], **options)
    assert "kept, as no state was better: from_three +0.0000" in kept.told


def test_documents_without_a_scored_position_are_refused():
    with pytest.raises(CorpusError, match="scored"):
        optimal(one_head(), [torch.tensor([[token]]) for token in range(7)], progress=False)


def test_what_has_no_slope_is_refused():
    with pytest.raises(MismatchError, match="no slope"):
        optimal(one_head(), TOKENS, objective="top1", progress=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": (0.1,)}, "share"),
        ({"share": "half"}, "share"),
        ({"rows": 2.5}, "whole"),
        ({"steps": -1}, "whole"),
        ({"site": "attn_out", "unit": "head"}, "no heads"),
    ],
)
def test_impossible_settings_are_one_sentence(options, told):
    with pytest.raises(MismatchError, match=told):
        optimal(one_head(), TOKENS, progress=False, **options)


def test_two_shares_may_be_a_list():
    learned = optimal(one_head(), TOKENS, share=[0.2, 0.8], objective=QUADRATIC, steps=1, progress=False)
    assert learned.settings["share"] == [0.2, 0.8]


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    with pytest.raises(al.AblationLensError, match="folder"):
        optimal(one_head(), TOKENS, keep=tmp_path / "nowhere" / "state", progress=False)


def test_rows_are_known_where_the_statistics_know_none():
    stats = al.collect(one_head(), TOKENS[:20], progress=False)
    learned = optimal(one_head(), TOKENS[20:], replace(stats, rows=None), steps=0, progress=False)
    with pytest.raises(MismatchError, match="very documents"):
        al.compare_centers(one_head(), TOKENS[20:], centers={"optimal": learned}, statistics=stats, progress=False)


def test_names_out_of_a_file_do_not_reach_the_terminal():
    learned = replace(learn(one_head(), TOKENS, steps=0, progress=False), method="op\x1b[2J", told="\x1b]0;x\x07")
    assert "\x1b" not in repr(learned)


def test_a_file_gives_back_what_was_saved(tmp_path):
    model = one_head()
    learned = learn(model, TOKENS, "optimal", steps=3, progress=False)
    learned.save(tmp_path / "learned.safetensors")
    again = Learned.load(tmp_path / "learned.safetensors")
    assert torch.equal(again.values, learned.values)
    assert torch.equal(again.rows, learned.rows)
    assert (again.method, again.site, again.model, again.settings) == (
        learned.method, learned.site, learned.model, learned.settings,
    )  # fmt: skip
    assert repr(again) == repr(learned)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "learned.safetensors"
    learned = learn(one_head(), TOKENS, "optimal", steps=0, progress=False)
    replace(learned, values=torch.full((1, 2, 3), math.nan, dtype=torch.float64)).save(path)
    with pytest.raises(FileFormatError, match="learn again"):
        Learned.load(path)


def test_another_models_statistics_are_refused():
    with pytest.raises(MismatchError, match="another model"):
        optimal(one_head(seed=1), TOKENS, al.collect(one_head(), TOKENS, progress=False), progress=False)


def test_a_mistyped_option_is_told():
    with pytest.raises(MismatchError, match="own objective"):
        learn(one_head(), TOKENS, "optimal-kl", objective="cross_entropy")
    with pytest.raises(MismatchError, match="stepz"):
        learn(one_head(), TOKENS, "optimal", stepz=3)
    with pytest.raises(MismatchError, match="optimal"):
        learn(one_head(), TOKENS, "optimum")

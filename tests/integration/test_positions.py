"""Ablating at positions, with values that depend on the input, and several ablations together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import ablation_lens as al
from ablation_lens import Ablation, Ablations, Site, load_model, random_neurons
from ablation_lens.ablation.places import find
from ablation_lens.errors import FileFormatError, MismatchError, NonFiniteError
from ablation_lens.files import save_tensors
from ablation_lens.hooked import Columns
from ablation_lens.measure.forward import capture, logits_everywhere
from tests.tiny_models import run

TEXTS = (
    torch.tensor([5, 17, 40, 8, 33]),
    torch.tensor([21, 9]),
    torch.tensor([50, 12, 44]),
)
FORMS = {
    "-1": (-1, lambda length: [length - 1]),
    "slice(0, 2)": (slice(0, 2), lambda length: [0, 1]),
    "slice(-2, None)": (slice(-2, None), lambda length: [length - 2, length - 1]),
    "range(1, 3)": (range(1, 3), lambda length: [place for place in (1, 2) if place < length]),
    "[0, -1]": ([0, -1], lambda length: [0, length - 1]),
}


@pytest.fixture(scope="module", params=["opt", "mistral", "roberta"])
def text_model(request, saved):
    return load_model(saved(request.param))


@pytest.fixture(scope="module")
def opt(saved):
    return load_model(saved("opt"))


def padded(side):
    """Inputs and their mask, padded on a side."""
    width = max(map(len, TEXTS))
    inputs, mask = torch.ones(len(TEXTS), width, dtype=torch.int64), torch.zeros(len(TEXTS), width, dtype=torch.bool)
    for row, text in enumerate(TEXTS):
        places = slice(width - len(text), None) if side == "left" else slice(len(text))
        inputs[row, places], mask[row, places] = text, True
    return inputs, mask


def some(model, site=Site.Z, positions=None, seed=0):
    shape = site.shape(model.cfg)
    values = torch.randn(shape) if positions is None else torch.randn(shape[0], positions, *shape[1:])
    return Ablation(random_neurons(shape, 0.5, seed), values, site=site)


def alone(model, ablation, places_of=None):
    """Every text's logits by itself, ablated at positions given as plain columns."""
    found = []
    for text in TEXTS:
        here = ablation if places_of is None else ablation.at(places_of(len(text)))
        found.append(model.run_with_hooks(text[None], fwd_hooks=here.hooks(offset=0))[0])
    return found


def agree(logits, mask, expected):
    for row, real, wanted in zip(logits, mask, expected, strict=True):
        assert (row[real] - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_real_tokens_whatever_the_padding(text_model, side):
    inputs, mask = padded(side)
    ablation = some(text_model)
    for given, places_of in FORMS.values():
        expected = alone(text_model, ablation, places_of)
        with ablation.at(given).applied_to(text_model):
            agree(run(text_model, inputs, mask.long()), mask, expected)
        resolved = ablation.at(given).resolve(text_model, al.Batch.causal(inputs, mask))
        agree(run(text_model, inputs, mask.long(), resolved.hooks(offset=0)), mask, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_marks_of_rows_functions_and_values_by_position_count_them_too(text_model, side):
    inputs, mask = padded(side)
    batch = al.Batch.causal(inputs, mask)
    ablation = some(text_model, positions=5).at(1)
    expected = alone(text_model, ablation)
    second = mask & (mask.cumsum(1) == 2)  # in columns
    for given in (1, second, lambda batch: 1, lambda batch: second, lambda batch: second.long().argmax(1)):
        resolved = ablation.at(given).resolve(text_model, batch)
        agree(run(text_model, inputs, mask.long(), resolved.hooks()), mask, expected)
        with resolved.applied_to(text_model):
            agree(run(text_model, inputs, mask.long()), mask, expected)
    with ablation.at(second).applied_to(text_model):
        agree(run(text_model, inputs, mask.long()), mask, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_that_is_moved_takes_its_marks_and_rows_of_values_along(opt, side):
    batch = al.Batch.causal(*padded(side))
    last = torch.zeros_like(batch.valid)
    last[torch.arange(3), torch.where(batch.valid, torch.arange(5), -1).argmax(1)] = True
    one, seen = some(opt), []

    def of_its_own(model, batch, site):
        seen.append(batch.valid)
        return torch.stack([values / 2 for values in capture(model, batch, site).values()])

    halved = Ablation(one.mask, of_its_own)
    fixed = Ablation(one.mask, of_its_own(opt, batch, Site.Z))
    expected = al.evaluate(opt, batch, one.at(-1)).loss
    by_text = [al.evaluate(opt, al.Batch.causal(text[None]), halved).loss for text in TEXTS]
    for given in (last, lambda batch: last, lambda batch: last.long().argmax(1)):
        assert torch.allclose(al.evaluate(opt, batch, one.at(given)).loss, expected, atol=1e-4)
    for each in (halved, fixed, halved.resolve(opt, batch)):
        assert torch.allclose(al.evaluate(opt, batch, each).loss, torch.cat(by_text), atol=1e-3)
    assert all(torch.equal(valid, batch.valid) for valid in (*seen[:1], *seen[-2:]))
    # In the layout it was given in, too, and for what stands elsewhere in its rows.
    hooked = logits_everywhere(opt, batch, fixed.resolve(opt, batch).hooks())
    start = batch.from_start()
    moved = logits_everywhere(opt, start, fixed.resolve(opt, batch, run_as=start).hooks())
    agree(hooked, batch.valid, [row[real] for row, real in zip(moved, start.valid, strict=True)])
    with pytest.raises(MismatchError, match="other texts"):
        fixed.resolve(opt, batch, run_as=al.Batch.causal(batch.inputs))


def test_marks_of_another_shape_are_refused(opt):
    tokens = torch.stack([TEXTS[0], TEXTS[0].flip(0)])
    for width in (3, 40):
        ablation = some(opt).at(torch.ones(2, width) > 0)
        with pytest.raises(MismatchError, match=f"with {width} columns, and there are 2, with 5"):
            ablation.resolve(opt, al.Batch.causal(tokens))
        with pytest.raises(MismatchError, match="5 came in"), ablation.applied_to(opt):
            opt(tokens)


def test_what_is_for_the_rows_of_one_batch_serves_no_other(opt):
    tokens = torch.stack([TEXTS[0], TEXTS[0].flip(0)])
    marks = torch.ones(2, 5) > 0
    values = torch.zeros(3, 2, 5, 6, 6)
    sorted_by_length = replace(al.Batch.causal(tokens), documents=(1, 0))
    for fixed in (some(opt).at(marks), Ablation(some(opt).mask, values)):
        for each in (fixed, fixed | some(opt)):
            al.evaluate(opt, tokens, each)
            al.evaluate(opt, sorted_by_length, each)  # the batch itself
            for wrong, why in (([tokens, tokens], "several batches"), ([sorted_by_length], "sorted by length")):
                with pytest.raises(MismatchError, match=f"{why}; give them as a function"):
                    al.evaluate(opt, wrong, each)
    al.evaluate(opt, [tokens, tokens], some(opt).at(lambda batch: marks))


def test_a_function_gives_one_column_per_row_or_positions_for_all(opt):
    tokens = torch.stack([TEXTS[0], TEXTS[0].flip(0)])
    batch = al.Batch.causal(tokens)
    for given, expected in (
        (torch.tensor([0, 3]), [[0], [3]]),
        (np.array([0, 3]), [[0], [3]]),
        ([0, 3], [[0, 3], [0, 3]]),
        ((0, 3), [[0, 3], [0, 3]]),
    ):
        made = some(opt).at(lambda batch, given=given: given).resolve(opt, batch)
        marks = find(made.positions, Columns(0, 5), torch.device("cpu")).expand(2, -1)
        assert [row.nonzero().flatten().tolist() for row in marks] == expected
    padding = al.Batch.causal(tokens, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]))
    for wrong, why in (([1, 2, 3], "3 positions for 2 rows"), ([2, -1], "column -1 for row 1"), ([1, 1], "is padding")):
        with pytest.raises(MismatchError, match=why):
            some(opt).at(lambda batch, wrong=wrong: torch.tensor(wrong)).resolve(opt, padding)


def test_values_of_a_provider_that_are_never_used_may_be_anything(opt):
    inputs, mask = padded("left")
    batch, one = al.Batch.causal(inputs, mask), some(opt)
    unused = ~(one.mask[:, None, None] & mask[None, :, :, None, None])
    by_row = torch.zeros(unused.shape).masked_fill(unused, torch.nan)
    by_position = torch.zeros(3, 9, 6, 6).masked_fill(~one.mask[:, None], torch.nan)
    by_position[:, 5:] = torch.nan  # beyond the longest text
    expected = al.evaluate(opt, batch, Ablation(one.mask, 0.0)).loss
    for values in (by_row, by_position):
        found = al.evaluate(opt, batch, Ablation(one.mask, lambda model, batch, site, values=values: values)).loss
        assert torch.allclose(found, expected)
    with pytest.raises(NonFiniteError, match="not finite"):
        al.evaluate(opt, batch, Ablation(one.mask, lambda model, batch, site: by_position[:, 4:]))


def test_without_a_mask_they_count_columns(opt):
    tokens = torch.stack([TEXTS[0], TEXTS[0].flip(0)])
    one = some(opt)
    expected = opt.run_with_hooks(tokens, fwd_hooks=one.at(4).hooks())
    for given in (-1, slice(-1, None), slice(4, None)):
        assert torch.equal(opt.run_with_hooks(tokens, fwd_hooks=one.at(given).hooks()), expected)
        with one.at(given).applied_to(opt):
            assert torch.equal(opt(tokens), expected)


def test_what_depends_on_nothing_is_itself_for_every_batch(opt):
    inputs, mask = padded("right")
    batch = al.Batch.causal(inputs, mask)
    for ablation in (some(opt), some(opt).at(0, 2), some(opt).at(slice(1, None)), some(opt, positions=5)):
        assert ablation.resolve(opt, batch) is ablation
        assert (ablation | ablation).resolve(opt, batch).depends_on_batch is False


def test_an_end_that_moves_is_refused_under_cached_generation_only():
    model = load_model("tiny-opt")
    tokens = torch.tensor([[2, 23, 93, 40]])
    ablation = some(model).at(-1)
    options = {"max_new_tokens": 3, "verbose": False, "do_sample": False, "stop_at_eos": False}
    with ablation.applied_to(model):
        model.generate(tokens, use_past_kv_cache=False, **options)
        with pytest.raises(MismatchError, match="without a cache"):
            model.generate(tokens, use_past_kv_cache=True, **options)
    with some(model).at(slice(2, None)).applied_to(model):
        one = model.generate(tokens, use_past_kv_cache=True, **options)
        assert torch.equal(one, model.generate(tokens, use_past_kv_cache=False, **options))


class Patched:
    """Values of another input, asked for every batch: what a counterfactual is."""

    def __init__(self, inputs):
        self.inputs, self.asked = inputs, []

    def __call__(self, model, batch, site):
        self.asked.append(len(batch.inputs))
        other = al.Batch.causal(self.inputs[: len(batch.inputs)])
        return torch.stack(list(capture(model, other, site).values()))


def test_a_provider_is_asked_for_every_batch_and_every_half_of_one(opt):
    tokens = torch.stack([TEXTS[0], TEXTS[0].flip(0)])
    other = tokens + 7
    provider = Patched(other)
    everything = Ablation(random_neurons(Site.Z.shape(opt.cfg), 1.0, 0), provider, center="counterfactual")
    assert repr(everything).endswith("→ counterfactual)")
    for rows in (slice(0, 2), slice(0, 1)):
        batch = al.Batch.causal(tokens[rows])
        resolved = everything.resolve(opt, batch)
        assert resolved.values.shape == (3, len(batch.inputs), 5, 6, 6)
        seen = capture(opt, al.Batch.causal(other[rows]))
        with resolved.applied_to(opt):
            now = capture(opt, batch)
        assert all(torch.equal(now[layer], seen[layer]) for layer in seen)
    assert provider.asked == [2, 1]
    with pytest.raises(MismatchError, match="a batch of 1 row, and 2 came in"), resolved.applied_to(opt):
        opt(tokens[:1].repeat(2, 1))  # of another batch


def test_a_provider_may_give_one_value_per_neuron(opt):
    shape = Site.Z.shape(opt.cfg)
    ablation = Ablation(random_neurons(shape, 0.5, 0), lambda model, batch, site: torch.full(shape, 0.5))
    resolved = ablation.resolve(opt, al.Batch.causal(TEXTS[0][None]))
    assert not resolved.depends_on_batch
    assert torch.equal(resolved.values, torch.full(shape, 0.5))
    wrong = Ablation(ablation.mask, lambda model, batch, site: None)
    with pytest.raises(MismatchError, match="NoneType; expected a tensor"):
        wrong.resolve(opt, al.Batch.causal(TEXTS[0][None]))


@pytest.mark.parametrize("what", ["provider", "function", "marks", "resolved"])
def test_what_is_asked_for_every_batch_has_no_plain_hooks_no_file_and_is_not_baked(opt, tmp_path, what):
    one = some(opt)
    ablation = {
        "provider": lambda: Ablation(one.mask, lambda model, batch, site: one.values),
        "function": lambda: one.at(lambda batch: -1),
        "marks": lambda: one.at(torch.eye(3, 5) > 0),
        "resolved": lambda: one.at(-1).resolve(opt, al.Batch.causal(*padded("left"))),
    }[what]()
    assert ablation.depends_on_batch
    assert ablation.depends_on_position
    for each in (ablation, ablation | one):
        for refuse in (lambda each=each: each.save(tmp_path / "file"), lambda each=each: each.bake(opt)):
            with pytest.raises(MismatchError, match=r"batch|position"):
                refuse()
        if what in ("provider", "function"):
            for refuse in (each.hooks, lambda each=each: each.applied_to(opt)):
                with pytest.raises(MismatchError, match="asked for every batch"):
                    refuse()


def test_marks_of_other_rows_are_refused(opt):
    with pytest.raises(MismatchError, match="2 rows of one batch, with 5 columns, and there are 1, with 5"):
        some(opt).at(torch.ones(2, 5) > 0).resolve(opt, al.Batch.causal(TEXTS[0][None]))
    with pytest.raises(MismatchError, match="a batch of 2 rows, and 1 came in"):
        opt.run_with_hooks(TEXTS[0][None], fwd_hooks=some(opt).at(torch.ones(2, 5) > 0).hooks())


# ---------------------------------------------------------------------- several together


def test_several_ablations_of_several_sites_and_the_later_one_wins(text_model):
    inputs, mask = padded("right")
    first, second, mlp = some(text_model), some(text_model, seed=1), some(text_model, Site.MLP)
    joined = Ablation(first.mask | second.mask, torch.where(second.mask, second.values, first.values))
    expected = run(text_model, inputs, mask.long(), [*joined.hooks(), *mlp.hooks()])
    both = first | mlp | second
    assert isinstance(both, Ablations)
    assert [part.site for part in both] == [Site.Z, Site.MLP, Site.Z]
    assert torch.equal(run(text_model, inputs, mask.long(), both.hooks(model=text_model)), expected)
    with both.applied_to(text_model):
        assert torch.equal(run(text_model, inputs, mask.long()), expected)
    baked = run(both.bake(text_model), inputs, mask.long())
    agree(baked, mask, [row[real] for row, real in zip(expected, mask, strict=True)])
    assert not torch.equal(expected, run(text_model, inputs, mask.long(), (second | mlp | first).hooks()))


def test_several_ablations_at_positions_and_for_a_batch(opt):
    inputs, mask = padded("left")
    batch = al.Batch.causal(inputs, mask)
    both = some(opt) | some(opt, Site.ATTN_OUT)
    expected = [opt.run_with_hooks(text[None], fwd_hooks=both.at(len(text) - 1).hooks(offset=0))[0] for text in TEXTS]
    agree(logits_everywhere(opt, batch, both.at(-1).resolve(opt, batch).hooks()), mask, expected)
    with both.at(-1).applied_to(opt):
        agree(run(opt, inputs, mask.long()), mask, expected)


def test_what_is_at_the_end_of_the_residual_stream_bakes_with_what_is_before(opt):
    both = some(opt) | some(opt, Site.ATTN_OUT)
    tokens = TEXTS[0][None]
    expected = opt.run_with_hooks(tokens, fwd_hooks=both.hooks())
    for order in (both, both.parts[1] | both.parts[0]):
        assert torch.allclose(order.bake(opt)(tokens), expected, atol=1e-4)


def test_several_ablations_have_one_file(opt, tmp_path):
    both = some(opt).at(-1) | some(opt, Site.MLP).at(slice(1, None, 2)) | some(opt, Site.K, positions=4)
    both.save(tmp_path / "both")
    again = Ablations.load(tmp_path / "both")
    assert repr(again) == repr(both)
    assert [part.positions for part in again] == [(-1,), slice(1, None, 2), None]
    for old, new in zip(both, again, strict=True):
        assert torch.equal(old.mask, new.mask)
        assert torch.equal(old.values, new.values)
    with pytest.raises(FileFormatError, match=r"ablation was expected; al\.Ablations\.load reads it"):
        Ablation.load(tmp_path / "both")
    some(opt).save(tmp_path / "one")
    with pytest.raises(FileFormatError, match=r"ablations was expected; al\.Ablation\.load reads it"):
        Ablations.load(tmp_path / "one")
    for parts in ([], [{}], 5, [both.parts[0]._to_file()[0]] * 2):
        save_tensors(tmp_path / "forged", "ablations", {"parts": parts}, {"0.mask": both.parts[0].mask}, version=3)
        with pytest.raises(FileFormatError, match="not a complete ablation"):
            Ablations.load(tmp_path / "forged")


def test_a_file_keeps_positions_from_the_end_and_slices(opt, tmp_path):
    for positions in ((-2, 0), slice(0, -1), slice(-3, None)):
        some(opt).at(positions).save(tmp_path / "file")
        assert Ablation.load(tmp_path / "file").positions == positions


def test_several_ablations_are_of_one_model_and_are_ablations(opt, saved):
    stats = [al.collect(model, [TEXTS[0][None]], progress=False) for model in (opt, load_model(saved("gpt2")))]
    one, other = (each.ablation("L0.H1", "mean") for each in stats)
    with pytest.raises(MismatchError, match="two models"):
        one | other
    for wrong in ((), (one, 5)):
        with pytest.raises(MismatchError, match=r"ablation \| other"):
            Ablations(wrong)


def test_an_ablation_from_names_reads_well(opt):
    ablation = Ablation.from_names(["L1.H1", "L2.H0.D5"], 0.0, model=opt)
    assert repr(ablation) == "Ablation(7 of 108 neurons in 2 layers → 0)"
    assert not ablation.values.any()
    mlp = Ablation.from_names("L1.M3", torch.ones(3, 1, 40), model=opt, site="mlp", positions=-1)
    assert mlp.mask.nonzero().tolist() == [[1, 0, 3]]
    assert mlp.positions == (-1,)
    for names in (["L1.H1"], np.array(["L1.H1"])):
        with pytest.raises(MismatchError, match="from_names"):
            Ablation(names, 0.0)
    for wrong in (None, "zero", True, [0.0]):
        with pytest.raises(MismatchError, match="values are a"):
            Ablation(ablation.mask, wrong)


def test_values_and_masks_of_numpy_and_single_tensors_will_do(opt):
    mask = some(opt).mask
    half = Ablation(mask, 0.5).values
    for values in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5), half.numpy()):
        made = Ablation(mask.numpy(), values)
        assert torch.equal(made.mask, mask)
        assert torch.equal(made.values, half)
    asked = Ablation(mask, lambda model, batch, site: half.numpy())
    assert torch.equal(asked.resolve(opt, al.Batch.causal(TEXTS[0][None])).values, half)
    assert repr(Ablation.from_names("L0", np.float32(0.5), model=opt)).endswith("→ 0.5)")
    for wrong in (np.bool_(True), torch.tensor(True)):
        with pytest.raises(MismatchError):
            Ablation(mask, wrong)


def test_what_is_no_ablation_batch_or_model_is_one_sentence(opt):
    one, batch = some(opt), al.Batch.causal(TEXTS[0][None])
    provider = Ablation(one.mask, lambda model, batch, site: torch.ones(6))
    for wrong, why in (
        (lambda: one | None, "cannot be joined with a NoneType"),
        (lambda: one | [one], "cannot be joined with a list"),
        (lambda: (one | one) | 3, "cannot be joined with a int"),
        (lambda: None | one, "cannot be joined with a NoneType"),
        (lambda: one.at(-1).resolve(opt, TEXTS[0][None]), "the batch is a Tensor; expected a Batch"),
        (lambda: (one | one).at(-1).resolve(opt, {"input_ids": TEXTS[0]}), "the batch is a dict; expected a Batch"),
        (lambda: one.at(lambda batch: -1).resolve(opt, "text"), "the batch is a str; expected a Batch"),
        (lambda: provider.resolve(opt, batch), r"values of shape \(6,\) do not fit"),
        (lambda: Ablation.from_names("L1", model="tiny-opt"), "the model is a str; give a hooked model"),
        (lambda: Ablation.from_names(None, model=opt), "names are None"),
        (lambda: Ablation.from_names(1, model=opt), "names are 1"),
        (lambda: al.evaluate(opt, TEXTS[0][None], Ablation), "the class Ablation is not an ablation"),
        (lambda: al.collect(opt, TEXTS[0][None], site=None), "site is None; give one"),
        (lambda: al.collect(opt, TEXTS[0][None], site=3), "site is 3; give one"),
        (lambda: al.collect(opt, TEXTS[0][None], bins="a"), "bins='a' is not possible"),
    ):
        with pytest.raises(MismatchError, match=why):
            wrong()


def test_statistics_of_several_sites_are_found_by_name(opt):
    both = al.collect(opt, TEXTS[0][None], site=["z", "mlp"], progress=False)
    assert both["mlp"] is both[Site.MLP]

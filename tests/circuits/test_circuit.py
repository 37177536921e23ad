"""`Circuit` and `Values`: which units are kept, and what the others are set to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given as drawn_from
from hypothesis import settings
from hypothesis import strategies as st

import ablation_lens as al
from ablation_lens.circuits import Circuit, Effects, Values, counterfactual, position_mean
from ablation_lens.circuits.halving import Halves
from ablation_lens.circuits.values import named_values
from ablation_lens.errors import FileFormatError, MismatchError, NonFiniteError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.measure.forward import capture
from ablation_lens.measure.learned import Cost, Learned
from ablation_lens.measure.score import Sums
from ablation_lens.records import record_of
from ablation_lens.sites import Site
from tests.circuits.models import linear_batch, linear_model
from tests.forging import Forger

SHAPES = {Site.Z: (2, 3, 4), Site.MLP: (2, 1, 5)}


@pytest.fixture(scope="module")
def model():
    """Three layers of four heads of four neurons, and MLPs of twelve."""
    return linear_model()


@pytest.fixture(scope="module")
def statistics(model):
    return al.collect(model, [linear_batch(seed=3).inputs], site=["z", "mlp"], positions=True, progress=False)


def masks(seed, sites=tuple(SHAPES)):
    draw = torch.Generator().manual_seed(seed)
    return {site: torch.rand(SHAPES[site], generator=draw) < 0.5 for site in sites}


def drawn(seed):
    return Circuit(masks(seed))


def same(one, other):
    return one.sites == other.sites and all(torch.equal(mask, other.kept[site]) for site, mask in one.kept.items())


def effects_of(z, mlp=None, total=-10.0, level="head"):
    """Effects whose means are these, of one row."""
    one = torch.ones(1).double()
    rows = {Site.Z: torch.tensor(z).double()[None]}
    if mlp is not None:
        rows[Site.MLP] = torch.tensor(mlp).double()[None]
    return Effects("knockout", level, "m", "zero", Sums(-total * one, one), Sums(0 * one, one), rows)


# ---------------------------------------------------------------------- names


def test_units_of_every_kind_are_kept_by_name(model):
    circuit = Circuit.of_heads(["L0.H1", "L1.MLP", "L2", "L0.H2.D3", "L0.M7"], model)
    z, mlp = circuit.kept["z"], circuit.kept["mlp"]
    assert z.sum((1, 2)).tolist() == [5, 0, 16]
    assert mlp.sum((1, 2)).tolist() == [1, 12, 0]
    assert circuit.units() == ["L0.H1", "L0.H2", "L2.H0", "L2.H1", "L2.H2", "L2.H3", "L0.MLP", "L1.MLP"]
    assert circuit.units("layer") == ["L0.ATTN", "L2.ATTN", "L0.MLP", "L1.MLP"]
    assert len(circuit.units("neuron")) == circuit.size == 34
    for level in ("neuron", "head", "layer"):
        assert Circuit.of_heads(circuit.units(level), model).units(level) == circuit.units(level)


def test_a_circuit_speaks_of_the_sites_of_its_names_unless_others_are_given(model):
    assert Circuit.of_heads("L0.H1", model).sites == (Site.Z,)
    assert Circuit.of_heads("L0.H1", model, sites=["z", "mlp"]).kept["mlp"].sum() == 0
    with pytest.raises(MismatchError, match="of which sites= does not speak"):
        Circuit.of_heads(["L0.H1", "L0.MLP"], model, sites=["z"])
    with pytest.raises(MismatchError, match="no unit is named"):
        Circuit.of_heads([], model)


@pytest.mark.parametrize("name", ["L9.H0", "L0.H9", "L0.H0.D99", "L7.MLP", "L0.M99"])
def test_units_that_do_not_exist_are_refused(model, name):
    with pytest.raises(MismatchError, match=r"does not exist|there is no|has only|no layer|no head|no dim"):
        Circuit.of_heads(name, model)
    with pytest.raises(MismatchError):
        Circuit.of(model, True, ["z", "mlp"]).without(name)


@pytest.mark.parametrize("name", ["", "head 3", "L0.H1.D2.X", 3, None, "L-1.H0", "L0.H\u0661"])
def test_what_is_no_name_is_refused(model, name):
    with pytest.raises(MismatchError):
        Circuit.of_heads([name], model)


def test_a_circuit_is_given_masks_and_not_names():
    with pytest.raises(MismatchError, match=r"Circuit\.of_heads"):
        Circuit({"z": ["L0.H1"]})
    for given in ({}, torch.ones(1, 2, 3).bool(), None):
        with pytest.raises(MismatchError, match="masks by site"):
            Circuit(given)
    with pytest.raises(MismatchError, match="boolean"):
        Circuit({"z": torch.ones(1, 2, 3)})
    with pytest.raises(MismatchError, match="did you mean 'mlp'"):
        Circuit({"mpl": torch.ones(1, 2, 3).bool()})


# ---------------------------------------------------------------------- sets


@drawn_from(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=30)
def test_circuits_combine_as_sets_do(first, second, third):
    a, b, c = map(drawn, (first, second, third))
    assert same(~(a | b), ~a & ~b)
    assert same(a - b, a & ~b)
    assert same((a | b) & c, (a & c) | (b & c))
    assert same(~~a, a)
    assert (a - b).size + (a & b).size == a.size
    assert a.share + (~a).share == pytest.approx(1)


def test_circuits_of_other_units_positions_or_models_do_not_combine(model):
    circuit = drawn(0)
    with pytest.raises(MismatchError, match="different units"):
        circuit | Circuit(masks(0, [Site.Z]))
    with pytest.raises(MismatchError, match="different positions"):
        circuit & Circuit(circuit.kept, positions=-1)
    with pytest.raises(MismatchError, match="got a Tensor"):
        circuit - circuit.kept["z"]
    one, other = (Circuit(circuit.kept, source=al.record_of(linear_model(seed))) for seed in (0, 1))
    with pytest.raises(MismatchError, match="of two models"):
        one | other
    assert (circuit | one).source == one.source


def test_units_are_taken_away_and_put_back():
    circuit = Circuit({"z": torch.ones(2, 3, 4).bool()})
    without = circuit.without(["L0.H1", "L1.H2.D0"])
    assert circuit.size - without.size == 5
    assert same(without.including(["L0.H1", "L1.H2"]), circuit)
    with pytest.raises(MismatchError, match="does not speak of mlp"):
        circuit.without("L0.MLP")


# ---------------------------------------------------------------------- the units that matter most


def test_units_that_the_metric_needs_most_are_kept_first(model):
    effects = effects_of([[-4.0, 1.0, -2.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -5.0]], [[-3.0], [0.0], [2.0]])
    two = Circuit.top(effects, count=2, model=model)
    assert two.units() == ["L0.H0", "L2.H3"]
    assert Circuit.top(effects, count=3, model=model).units() == ["L0.H0", "L2.H3", "L0.MLP"]
    assert Circuit.top(effects, count=5, absolute=True, model=model).units()[-2:] == ["L0.MLP", "L2.MLP"]
    assert Circuit.top(effects, share=0.29, model=model).kept["mlp"].sum() == 12  # 4 of 15
    assert Circuit.top(effects, count=0, model=model).size == 0
    assert Circuit.top(effects, count=15, model=model).share == 1


def test_the_sign_of_the_metric_does_not_matter_for_what_is_kept(model):
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).tolist()
    minus = [[-each for each in row] for row in z]
    for count in range(13):
        one = Circuit.top(effects_of(z, total=-3.0), count=count, model=model)
        assert same(one, Circuit.top(effects_of(minus, total=3.0), count=count, model=model))


def test_circuits_of_more_units_hold_those_of_fewer_also_among_equals(model):
    effects = effects_of([[1.0, 2.0, 2.0, 2.0]] * 3, [[2.0]] * 3)
    for count in range(15):
        fewer, more = (Circuit.top(effects, count=number, model=model) for number in (count, count + 1))
        assert (fewer - more).size == 0


def test_layers_and_neurons_are_kept_too(model):
    layers = Circuit.top(effects_of([-3.0, -1.0, -2.0], level="layer"), count=2, model=model)
    assert layers.units("layer") == ["L0.ATTN", "L2.ATTN"]
    with pytest.raises(MismatchError, match="give model="):
        Circuit.top(effects_of([-3.0, -1.0, -2.0], level="layer"), count=2)


@pytest.mark.parametrize(
    "options",
    [{}, {"count": 1, "share": 0.5}, {"count": -1}, {"count": 99}, {"count": 1.0}, {"share": 1.5}, {"share": "x"}],
)
def test_sizes_that_are_not_possible_are_refused(model, options):
    with pytest.raises(MismatchError):
        Circuit.top(effects_of([[1.0] * 4] * 3), model=model, **options)


def test_effects_that_cannot_be_ranked_are_refused(model):
    with pytest.raises(MismatchError, match="does not change m"):
        Circuit.top(effects_of([[1.0] * 4] * 3, total=0.0), count=1, model=model)
    with pytest.raises(MismatchError, match="are not numbers"):
        Circuit.top(effects_of([[float("nan")] * 4] * 3), count=1, model=model)
    effects = effects_of([[1.0] * 4] * 3)
    effects.done["z"] = torch.zeros(3, 4).bool()
    with pytest.raises(MismatchError, match="interrupted"):
        Circuit.top(effects, count=1, model=model)


# ---------------------------------------------------------------------- random circuits


@drawn_from(st.integers(0, 10**6))
@settings(max_examples=20)
def test_random_circuits_have_as_many_units_of_every_site(seed):
    circuit = Circuit(masks(seed))
    other = circuit.random_like(seed)
    assert [mask.sum() for mask in other.kept.values()] == [mask.sum() for mask in circuit.kept.values()]
    assert same(other, circuit.random_like(seed))


def test_of_whole_heads_whole_heads_are_drawn(model):
    circuit = Circuit.of_heads(["L0.H1", "L2.H0", "L1.MLP"], model, positions=-1)
    random = [circuit.random_like(seed) for seed in range(20)]
    for other in random:
        assert other.positions == circuit.positions
        assert len(other.units()) == 3
        assert all(bool((mask.all(-1) == mask.any(-1)).all()) for mask in other.kept.values())
    assert len({tuple(other.units()) for other in random}) > 10


def test_a_random_circuit_is_the_same_on_every_machine():
    assert Circuit({"z": torch.eye(4).bool()[:2, :, None].expand(2, 4, 3)}).random_like(0).units() == ["L0.H0", "L0.H3"]


# ---------------------------------------------------------------------- what is ablated


def test_everything_outside_is_ablated_and_nothing_else(model, statistics):
    circuit = Circuit.of_heads(["L0.H1", "L2.MLP"], model)
    outside = circuit.outside("mean", statistics)
    assert {part.site: part.mask for part in outside.parts}["z"].equal(~circuit.kept["z"])
    inside = circuit.inside("mean", statistics)
    assert {part.site: part.mask for part in inside.parts}["mlp"].equal(circuit.kept["mlp"])


def test_positions_go_with_the_circuit(model):
    batch = linear_batch()
    circuit = Circuit.of_heads(["L2.H1"], model, positions=[0, -1])
    ablation = circuit.outside(0.5)
    by_hand = al.Ablation(~circuit.kept["z"], 0.5, positions=[0, -1])
    one, other = (al.evaluate(model, batch, each).cross_entropy for each in (ablation, by_hand))
    assert one == other != al.evaluate(model, batch, Circuit(circuit.kept).outside(0.5)).cross_entropy
    for changed in (~circuit, circuit.without("L2.H1"), circuit | circuit, circuit.random_like(0)):
        assert changed.positions == circuit.positions


# ---------------------------------------------------------------------- people and files


def test_a_circuit_reads_well(model):
    assert repr(Circuit.of(model, True)) == "Circuit(z: all 12 heads)"
    assert repr(Circuit.of(model, False, ["z", "mlp"])) == "Circuit(z: none of 12 heads; mlp: none of 3 MLPs)"
    assert repr(Circuit.of_heads(["L0.H1", "L1.MLP"], model, positions=-1)) == (
        "Circuit(z: 1 of 12 heads: L0.H1; mlp: 1 of 3 MLPs: L1.MLP at position -1)"
    )
    assert repr(Circuit.of_heads(["L0.H1.D0", "L0.H2"], model)) == "Circuit(z: 5 of 48 neurons in 2 heads)"
    assert "and 1 more" in repr(Circuit.of_heads(["L0", "L1", "L2.H0"], model))


@pytest.mark.parametrize("positions", [None, -1, [0, 3], slice(1, None), slice(None, 8, 2)])
def test_a_circuit_is_read_as_it_was_written(model, tmp_path, positions):
    circuit = Circuit(drawn(5).kept, positions, al.record_of(model))
    circuit.save(tmp_path / "circuit.safetensors")
    read = Circuit.load(tmp_path / "circuit.safetensors")
    assert same(read, circuit)
    assert (read.positions, read.source) == (circuit.positions, circuit.source)


def test_positions_of_one_batch_are_not_saved(tmp_path):
    for positions in (lambda batch: -1, torch.ones(2, 3).bool()):
        with pytest.raises(MismatchError, match="cannot be saved"):
            Circuit(drawn(0).kept, positions).save(tmp_path / "circuit.safetensors")
    assert not list(tmp_path.iterdir())


def test_forged_files_are_one_clear_error_or_a_circuit(tmp_path):
    good, forged = tmp_path / "good.safetensors", tmp_path / "forged.safetensors"
    Circuit(drawn(1).kept, [0, 2], al.record_of(linear_model())).save(good)
    forger = Forger(good, "circuit", 1)
    for number in range(150):
        what = forger.forge(forged, number)
        try:
            read = Circuit.load(forged)
        except FileFormatError as error:
            told = str(error)
        else:
            told = f"{forged} {read!r}"
        assert str(forged) in told, what
        assert "\x1b" not in told, what


def test_a_file_that_lacks_a_mask_or_is_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "circuit.safetensors"
    drawn(1).save(path)
    header, tensors = load_tensors(path, "circuit")
    save_tensors(path, "circuit", header, {"z": tensors["z"]})
    with pytest.raises(FileFormatError, match="not a complete circuit"):
        Circuit.load(path)
    save_tensors(path, "circuit", {**header, "positions": [1], "span": [0, 1, None]}, tensors)
    with pytest.raises(FileFormatError, match="positions twice"):
        Circuit.load(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(FileFormatError, match="circuit"):
        Circuit.load(path)


# ---------------------------------------------------------------------- values


def everywhere(model, values, batch):
    """What every neuron of a site is when all are set to these values: `[layer batch pos head dim]`."""
    ablation = values.everywhere(model).resolve(model, batch)
    seen = {}
    for site in values.sites:
        found = []

        def see(value, hook, site=site, found=found):
            found.append(site.to_heads(value))

        watching = [(site.hook_name(layer), see) for layer in range(model.cfg.n_layers)]
        model.run_with_hooks(batch.inputs, fwd_hooks=[*ablation.hooks(offset=0), *watching])
        seen[site] = torch.stack(found)
    return seen


def test_every_form_of_values_ends_up_in_the_model(model, statistics):
    batch = linear_batch(rows=2)
    tensor = torch.arange(48.0).view(3, 4, 4)
    by_position = torch.arange(480.0).view(3, 10, 4, 4)
    by_row = torch.arange(960.0).view(3, 2, 10, 4, 4)

    def provider(model, batch, site):
        return tensor + 1

    for given, expected in (
        (0.25, torch.full((3, 4, 4), 0.25)),
        (tensor, tensor),
        (tensor.numpy(), tensor),
        (by_position, by_position[:, None]),
        (by_row, by_row),
        (provider, tensor + 1),
    ):
        found = everywhere(model, Values.of(given), batch)[Site.Z]
        while expected.ndim < 5:
            expected = expected[:, None] if expected.ndim > 3 else expected[:, None, None]
        torch.testing.assert_close(found, expected.expand_as(found), check_dtype=False)
    both = everywhere(model, Values.of("median", statistics), batch)
    for site, found in both.items():
        expected = statistics[site].center("median")[:, None, None]
        torch.testing.assert_close(found, expected.expand_as(found), check_dtype=False)


def test_resampled_values_are_for_their_site():
    model = al.load_model("tiny-opt")
    resampled = [al.resampling.resample(model, "characters", seed=0, site=site) for site in ("z", "mlp")]
    values = Values.of(resampled)
    assert values.sites == (Site.Z, Site.MLP)
    assert values.name.startswith("resample")
    torch.testing.assert_close(values.by_site["mlp"], resampled[1].values)
    with pytest.raises(MismatchError, match="two values for z"):
        Values.of([resampled[0], resampled[0]])


def test_learned_values_keep_their_name_model_and_rows():
    model = al.load_model("tiny-opt")
    known = [torch.tensor([1, 2]), torch.tensor([2, 3])]
    learned = [
        Learned("optimal", torch.ones(site.shape(model.cfg)).double(), site, record_of(model), {}, rows, Cost(9, 9), "")
        for site, rows in zip((Site.Z, Site.MLP), known, strict=True)
    ]
    alone, both = Values.of(learned[0]), Values.of(learned)
    assert (alone.name, both.name, both.sites) == ("optimal", "optimal", (Site.Z, Site.MLP))
    assert both.source == record_of(model)
    assert (alone.rows.tolist(), both.rows.tolist()) == ([1, 2], [1, 2, 3])
    assert torch.equal(alone.by_site[Site.Z], learned[0].values)
    # Of a half that centers are collected on, too, these say what they were learned from.
    texts = al.task_for(model).batches(split="evaluate", tokens=300)
    tried = Halves.of(model, texts).values(["mean", alone], progress=False)
    assert "9 positions" in tried["optimal"].first.collected_on
    assert "half of the prompts" in tried["mean"].first.collected_on


def test_means_by_position_are_those_of_the_statistics(model, statistics):
    batch = linear_batch(rows=2)
    for given in ("position-mean", {"z": position_mean(statistics["z"]), "mlp": position_mean(statistics["mlp"])}):
        values = Values.of(given, statistics)
        for site, found in everywhere(model, values, batch).items():
            expected = statistics[site].position_mean[:, None]
            torch.testing.assert_close(found, expected.expand_as(found), check_dtype=False)
    with pytest.raises(MismatchError, match="mlp was asked for"):
        position_mean(statistics["z"])(model, batch, Site.MLP)
    plain = al.collect(model, [batch.inputs], progress=False)
    with pytest.raises(MismatchError, match="positions=True"):
        Values.of("position-mean", plain)


def test_a_text_longer_than_any_that_was_seen_has_no_mean_by_position(model):
    short = al.collect(model, [linear_batch().inputs[:, :6]], positions=True, progress=False)
    with pytest.raises((MismatchError, NonFiniteError)):
        al.evaluate(model, linear_batch(), Circuit.of(model, False).outside("position-mean", short))


def test_counterfactual_values_are_those_of_the_twin(model):
    batch = linear_batch(rows=4)
    twins = batch.inputs.flip(0)
    prompts = al.circuits.Prompts.of(batch.inputs, batch.answers, batch.wrong, twins)
    given = next(iter(prompts))
    values = Values.of(counterfactual(prompts), sites=["z", "mlp"])
    assert values.name == "counterfactual"
    for site, found in everywhere(model, values, given).items():
        expected = capture(model, al.Batch.causal(twins), site)
        torch.testing.assert_close(found, torch.stack([expected[layer] for layer in range(3)]))


def test_a_mapping_by_site_may_mix_forms(model, statistics):
    values = Values.of({"z": "peak", "mlp": 0.5}, statistics)
    assert repr(values) == "Values(peak and 0.5 at z, mlp)"
    assert values.only(["mlp"]).sites == (Site.MLP,)


def test_values_remember_what_they_were_made_from(model, statistics):
    values = Values.of("mean", statistics)
    assert "inputs of one's own" in values.collected_on
    assert values.source is not None
    # Zero is made from nothing.
    assert (Values.of("zero", statistics).collected_on, Values.of("zero").source) == (None, None)
    text = al.load_model("tiny-opt")
    plan = al.task_for(text).batches(split="collect", tokens=200)
    own = al.collect(text, plan, progress=False)
    assert torch.equal(Values.of("mean", own).rows, own.rows)
    assert Values.of("mean", replace(own, rows=None)).plans == (plan.digest,)  # as in files of before
    assert (Values.of("zero", own).plans, Values.of("zero", own).rows) == ((), None)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("peak", {}, "give statistics="),
        (True, {}, "values are a bool"),
        (None, {}, "values are a NoneType"),
        ({}, {}, "empty dict"),
        (torch.zeros(3, 4, 4), {"sites": ["z", "mlp"]}, "several sites"),
        (0.0, {"sites": []}, "there is no site"),
        (0.0, {"sites": "zz"}, "there is no site 'zz'"),
        ({"z": 0.0}, {"sites": ["mlp"]}, "mlp was asked for"),
        ("mean", {"statistics": 3}, "what al.collect gives"),
        ("counterfactual", {}, r"circuits\.counterfactual\(prompts\)"),
    ],
)
def test_what_is_no_values_is_one_sentence(given, options, message):
    with pytest.raises(MismatchError, match=message):
        Values.of(given, **options)


def test_an_ablation_is_no_values(model):
    with pytest.raises(MismatchError, match="which, too"):
        Values.of(al.Ablation.from_names("L0.H0", 0.0, model=model))


def test_a_center_that_does_not_exist_is_answered_with_the_nearest(statistics):
    with pytest.raises(MismatchError, match="'peak'"):
        Values.of("peek", statistics)


def test_sites_without_statistics_are_refused_but_zero_needs_none(statistics):
    with pytest.raises(MismatchError, match="these statistics are of z, and mlp was asked for"):
        Values.of("mean", statistics["z"], sites=["z", "mlp"])
    for sites in (["mlp"], ["z", "mlp"]):
        assert list(Values.of("zero", statistics["z"], sites=sites).sites) == sites
    assert Values.of("zero", statistics).sites == (Site.Z, Site.MLP)


def test_several_values_have_a_name_each(statistics):
    made = named_values({"mine": 0.5, "the peak": "peak"}, statistics)
    assert {name: values.name for name, values in made.items()} == {"mine": "mine", "the peak": "the peak"}
    assert list(named_values("zero")) == ["zero"]
    for given in ([0.0, 0.0], []):
        with pytest.raises(MismatchError, match="one name each"):
            named_values(given)
    for given in ({Site.Z: 0.0}, {"z": 0.0, "mlp": 0.0}, {"z": 0.0}):
        with pytest.raises(MismatchError, match="by site"):
            named_values(given)
    by_site = named_values({"mine": {"z": 0.0, "mlp": 0.0}, "z": "zero"}, sites=["z", "mlp"])
    assert [values.sites for values in by_site.values()] == [(Site.Z, Site.MLP)] * 2


def test_values_of_another_model_are_refused(model, statistics):
    other = linear_model(seed=9)
    values = Values.of("mean", statistics)
    ablation = values.everywhere(other)
    with pytest.raises(MismatchError, match="another model"):
        al.evaluate(other, linear_batch(), ablation)


def test_tensors_of_other_shapes_are_refused(model):
    with pytest.raises(MismatchError, match="do not fit a mask"):
        Circuit.of(model, False).outside(np.zeros((3, 4, 5)))


def test_a_function_that_cannot_be_asked_for_values_is_refused_before_anything_runs():
    with pytest.raises(MismatchError, match=r"function\(model, batch, site\)"):
        Values.of(lambda batch: 0)

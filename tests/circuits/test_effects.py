"""`Effects` as plain data: means, intervals, shares, adding up, files. No model is run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablation_lens.circuits import Circuit, Effects
from ablation_lens.circuits.effects import NeuronSums
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.measure.score import Sums
from ablation_lens.sites import Site

SHAPED = SimpleNamespace(cfg=SimpleNamespace(n_layers=2, n_heads=2, d_head=3, d_mlp=4))
WEIGHTS = torch.tensor([1.0, 2.0, 1.0]).double()


def rows(*values):
    return torch.tensor(values).double()


def effects(method="integrated", level="head", **changes):
    """Three rows, of weights 1, 2 and 1: two layers of two heads, and an MLP each."""
    z = torch.arange(12.0).double().view(3, 2, 2) - 6
    mlp = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.5, 4.0]]).double().view(3, 2, 1)
    clean, empty = rows(8.0, 8.0, 4.0), rows(0.0, 4.0, 1.0)
    given = {"clean": Sums(clean, WEIGHTS), "empty": Sums(empty, WEIGHTS), "rows": {Site.Z: z, Site.MLP: mlp}}
    return Effects(method, level, "logit_difference", "peak", **{**given, **changes})


def neurons(count=3):
    """The same for three neurons: 0, 1 and 2 in the first row, and so on."""
    values = torch.arange(3.0 * count).double().view(count, 1, 1, 3)
    weights = torch.ones(count).double()
    sums = Sums(torch.zeros(count).double(), weights)
    total = {Site.Z: NeuronSums.of_rows(values, weights)}
    return Effects("integrated", "neuron", "logit_difference", "peak", sums, Sums(sums.values + 9, weights), {}, total)


def test_means_are_weighted_as_a_score_is():
    found = effects()
    assert found["z"].tolist() == [[-6 / 4, -3 / 4], [0, 3 / 4]]  # sums over rows: −6, −3, 0, 3
    assert found[Site.MLP].tolist() == [[-0.125], [1.0]]
    assert found.unablated == 5
    assert found.total == (5 - 20) / 4


def test_the_sum_of_an_attribution_less_the_total_is_its_residual():
    found = effects()
    assert found.residual == pytest.approx(float(found["z"].sum() + found["mlp"].sum()) - found.total)
    assert effects("knockout").residual is None
    assert effects("graddrop").residual is None


def test_layers_are_the_sums_of_their_heads():
    found = effects().by("layer")
    assert found["z"].tolist() == [-9 / 4, 3 / 4]
    assert found["mlp"].tolist() == [-0.125, 1.0]
    assert found.residual == pytest.approx(effects().residual)


@pytest.mark.parametrize("method", ["knockout", "graddrop"])
def test_knockouts_do_not_add_up(method):
    with pytest.raises(MismatchError, match="do not add up"):
        effects(method).by("layer")
    assert effects(method).by("head")["z"].shape == (2, 2)


def test_effects_of_heads_say_nothing_of_neurons():
    with pytest.raises(MismatchError, match="say nothing of a single neuron"):
        effects().by("neuron")


def test_the_table_begins_with_what_the_metric_needs_most():
    table = effects().table()
    assert list(table.index) == ["L0.H0", "L0.H1", "L0.MLP", "L1.H0", "L1.H1", "L1.MLP"]
    assert table.loc["L0.H0", "share"] == pytest.approx((-6 / 4) / (-15 / 4))
    assert table.loc["L1.MLP", "site"] == "mlp"
    assert ((table.low <= table.effect) & (table.effect <= table.high)).all()


def test_shares_do_not_know_the_sign_of_the_metric():
    plain = effects()
    turned = effects(
        rows={site: -each for site, each in plain.rows.items()},
        clean=Sums(-plain.clean.values, WEIGHTS),
        empty=Sums(-plain.empty.values, WEIGHTS),
    )
    assert torch.equal(plain.share("z"), turned.share("z"))


def test_shares_of_sizes_are_sizes():
    """GradDrop gives absolute values; that ablating everything lowers the metric does not turn their order round."""
    sizes = {site: each.abs() for site, each in effects().rows.items()}
    found = effects("graddrop", rows=sizes)
    assert found.total < 0
    assert (found.table()["share"] > 0).all()
    assert found.table().index[0] == "L0.H0"
    kept = Circuit.top(effects("graddrop", rows={Site.Z: sizes[Site.Z]}), count=1, model=SHAPED)
    assert kept.units() == ["L0.H0"]


def test_a_circuit_of_effects_is_for_their_positions():
    found = effects(rows={Site.Z: effects().rows[Site.Z]}, positions=slice(1, None))
    assert Circuit.top(found, count=np.int64(1), model=SHAPED).positions == slice(1, None)
    assert Circuit.top(found, share=np.float32(0.5), model=SHAPED, positions=-1).positions == (-1,)
    assert "at positions 1:" in repr(found)


def test_positions_of_single_batches_are_told_in_the_file_and_not_held(tmp_path):
    found = effects(rows={Site.Z: effects().rows[Site.Z]}, positions=lambda batch: [0])
    found.save(tmp_path / "e.safetensors")
    again = Effects.load(tmp_path / "e.safetensors")
    assert repr(again) == repr(found)
    with pytest.raises(MismatchError, match="at positions by batch, which a file cannot hold"):
        Circuit.top(again, count=1, model=SHAPED)
    assert Circuit.top(again, count=1, model=SHAPED, positions=slice(None)).positions is None


def test_what_the_parts_miss_is_said():
    assert f"{effects().residual:+.2g} is missed" in repr(effects())
    assert "missed" not in repr(effects("knockout"))


def test_a_unit_of_any_site_is_asked_for_by_the_name_in_its_table():
    found = effects(level="layer", rows={site: torch.ones(3, 2).double() for site in Site})
    for unit in found.table().index:
        assert found.interval(unit).difference == 0.75


def test_where_ablating_all_changes_nothing_there_are_no_shares():
    same = Sums(rows(1.0, 2.0, 3.0), WEIGHTS)
    found = effects(clean=same, empty=same)
    with pytest.raises(MismatchError, match="does not change logit_difference"):
        found.share("z")
    assert found.table()["share"].isna().all()


def test_what_an_interruption_left_out_is_no_number():
    found = effects(done={Site.Z: torch.tensor([[True, True], [True, False]]), Site.MLP: torch.ones(2, 1).bool()})
    assert math.isnan(found["z"][1, 1])
    assert not found.is_whole
    assert "1 left out" in repr(found)


@given(st.integers(2, 30), st.integers(0, 10**6))
def test_neurons_have_the_mean_and_the_interval_of_their_rows(count, seed):
    generator = np.random.default_rng(seed)
    values = torch.from_numpy(generator.normal(size=(count, 1, 2, 3)))
    weights = torch.from_numpy(generator.integers(1, 5, size=count)).double()
    whole = NeuronSums.of_rows(values, weights)
    cut = count // 2
    parts = NeuronSums.of_rows(values[:cut], weights[:cut]) + NeuronSums.of_rows(values[cut:], weights[cut:])
    assert torch.allclose(whole.half_width(weights), parts.half_width(weights))
    mean = values.sum(0) / weights.sum()
    residuals = values - mean * weights.view(-1, 1, 1, 1)
    expected = 1.959964 * (residuals.square().sum(0) * count / (count - 1)).sqrt() / weights.sum()
    assert torch.allclose(whole.half_width(weights), expected, atol=1e-9)


def test_one_row_has_no_interval():
    alone = neurons(1)
    assert alone.table()["low"].isna().all()
    with pytest.raises(MismatchError, match=r"no neuron L0\.H0 among"):
        alone.interval("L0.H0")
    one = effects(
        clean=Sums(rows(1.0), rows(1.0)), empty=Sums(rows(0.0), rows(1.0)), rows={Site.Z: torch.ones(1, 2, 2).double()}
    )
    assert math.isnan(one.interval("L0.H1").low)


def test_an_interval_is_asked_for_by_name():
    assert effects().interval("L1.MLP").difference == 1.0
    assert effects().interval("L1.H1").difference == 0.75
    with pytest.raises(MismatchError, match=r"no head L5\.H0"):
        effects().interval("L5.H0")
    with pytest.raises(MismatchError, match="there is no site of these effects"):
        effects(rows={Site.Z: effects().rows[Site.Z]}).interval("L1.MLP")


def interrupted():
    """L1.H1 was not measured on all rows."""
    z = effects().rows[Site.Z].clone()
    z[:, 1, 1] = math.nan
    return effects("knockout", rows={Site.Z: z}, done={Site.Z: torch.tensor([[True, True], [True, False]])})


@pytest.mark.parametrize(
    "found", [effects(), effects("knockout"), effects().by("layer"), neurons(), interrupted(), effects(positions=-1)]
)
def test_a_file_gives_back_what_was_saved(found, tmp_path):
    found.save(tmp_path / "e.safetensors")
    again = Effects.load(tmp_path / "e.safetensors")
    assert repr(again) == repr(found)
    assert again.table().equals(found.table())


def test_a_file_that_was_changed_is_one_clear_error(tmp_path):
    path = tmp_path / "e.safetensors"
    effects().save(path)
    header, tensors = load_tensors(path, "effects")
    changes = [
        ({**header, "level": "word"}, tensors),
        ({**header, "sites": ["z", "y"]}, tensors),
        ({**header, "sites": []}, tensors),
        (header, {name: each for name, each in tensors.items() if name != "empty"}),
        (header, {**tensors, "rows.z": tensors["rows.z"][:2]}),
        (header, {**tensors, "rows.z": tensors["rows.z"].float()}),
        (header, {**tensors, "rows.z": tensors["rows.z"] * math.nan}),
        (header, {**tensors, "weights": -tensors["weights"]}),
        (header, {**tensors, "weights": tensors["weights"] * math.nan}),
        (header, {**tensors, "weights": torch.tensor(3.0).double()}),
        ({**header, "level": "neuron"}, tensors),
        (header, {**tensors, "done.z": torch.ones(3, 3).bool()}),
    ]
    for changed, held in changes:
        save_tensors(path, "effects", changed, held)
        with pytest.raises(FileFormatError, match="not a complete file of effects"):
            Effects.load(path)

"""What a run folder's files may say: under a right checksum and a right name, what is impossible is refused."""

import dataclasses
import math

import pytest
import torch

from ablation_lens.errors import FileFormatError
from ablation_lens.files import save_json, save_tensors
from ablation_lens.measure.score import Score
from ablation_lens.neurons.statistics import ActivationStatistics, PlanReading
from ablation_lens.runs.folder import key_of
from ablation_lens.study.cells import GROUP_KIND, INPUT_KIND, KIND, STUDY_KIND
from ablation_lens.study.records import CellRecord, InputRecord, statistics_key
from tests.made_runs import add_input, cell_record, group_record, made_run, score


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run")


def tensors_of(made):
    return {
        "documents": torch.tensor(made.documents),
        "correct": made.correct,
        "loss": made.loss,
        "predictions": made.predictions_per_document,
    }


RECORD = cell_record("g", "peak bins=64", seed=42)
SCORE = tensors_of(score([30, 20], [3.5, 2.5]))


def read_forged(run, header, tensors):
    """Read a cell that somebody wrote, under the name that its content asks for."""
    facts = {name: header.get(name) for name in ("group", "method", "fraction", "seed")}
    further = {name: header[name] for name in ("values", "generator_weights") if header.get(name)}
    key = key_of({**facts, **further})
    save_tensors(run.file("cells", key), KIND, header, tensors)
    return run.read_cell(key)


def test_a_cell_that_is_possible_is_read(run):
    record, read = read_forged(run, RECORD.to_dict(), SCORE)
    assert record == RECORD
    assert isinstance(read, Score)


@pytest.mark.parametrize(
    "changes",
    [
        {"fraction": 1.5},
        {"fraction": -0.5},
        {"fraction": 0.0},
        {"fraction": "0.5"},
        {"fraction": True},
        {"fraction": 0.5 + 1e-14},
        {"seed": 1.5},
        {"seed": True},
        {"seed": 2**63},
        {"method": ""},
        {"method": "peak bins"},
        {"method": "peak bins=64 bins=32"},
        {"method": ["peak"]},
        {"method": "none"},
        {"method": "none", "fraction": 0.0},
        {"method": "none", "fraction": 0.0, "seed": None, "values": "abc"},
        {"group": "../../etc"},
        {"group": None},
        {"seconds": -1.0},
        {"seconds": "long"},
        {"splits": -1},
        {"splits": 10**30},
        {"version": 0},
        {"one more": 1},
    ],
    ids=str,
)
def test_impossible_headers_of_cells_are_refused(run, changes):
    with pytest.raises(
        FileFormatError, match=r"cells/\w+\.safetensors does not hold what it should.*delete it and run"
    ):
        read_forged(run, {**RECORD.to_dict(), **changes}, SCORE)


def whole(*numbers):
    return torch.tensor(numbers)


def real(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    "changes",
    [
        {"correct": whole(101, 0)},
        {"correct": whole(-1, 0)},
        {"correct": real(1, 0)},
        {"correct": whole(1, 0).bool()},
        {"correct": whole(1, 0, 0)},
        {"correct": whole(1, 0).view(1, 2)},
        {"loss": real(math.nan, 1)},
        {"loss": real(math.inf, 1)},
        {"loss": real(-1, 1)},
        {"loss": real(1e300, 1)},
        {"loss": torch.ones(2)},
        {"predictions": whole(0, 0)},
        {"predictions": whole(-100, 300)},
        {"predictions": whole(2**62, 2**62)},
        {"documents": whole(0, 0)},
        {"documents": whole(-1, 0)},
        {"documents": whole(0)},
        {"documents": torch.zeros(0, dtype=torch.int64)},
        {"more": whole(0, 1)},
        dict.fromkeys(SCORE, torch.zeros(0)),
    ],
    ids=str,
)
def test_impossible_sums_of_cells_are_refused(run, changes):
    with pytest.raises(
        FileFormatError, match=r"cells/\w+\.safetensors does not hold what it should.*delete it and run"
    ):
        read_forged(run, RECORD.to_dict(), {**SCORE, **changes})


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g | {"predictions": 0},
        lambda g: g | {"predictions": 1e3},
        lambda g: g | {"padding": 1.5},
        lambda g: g | {"padding": -0.1},
        lambda g: g | {"context": 0},
        lambda g: g | {"batch_size": -1},
        lambda g: g | {"mask_seed": 2**70},
        lambda g: g | {"task": None},
        lambda g: g | {"statistics": ["a", "b"]},
        lambda g: g | {"statistics": ["../../etc/passwd", "b"]},
        lambda g: g | {"model": g["model"] | {"n_layers": 5}},
        lambda g: g | {"model": g["model"] | {"dtype": 5}},
        lambda g: g | {"versions": g["versions"] | {"torch": "0.1"}},
        lambda g: g | {"evaluate": g["evaluate"] | {"documents": -1}},
        lambda g: g | {"facts": g["facts"] | {"site": "elsewhere"}},
        lambda g: g | {"facts": g["facts"] | {"device": None}},
        lambda g: g | {"facts": without(g["facts"], "collect")},
        lambda g: g | {"facts": {}},
        lambda g: without(g, "evaluate"),
        lambda g: g | {"one more": 1},
    ],
)
def test_impossible_groups_are_refused(run, change):
    values = change(group_record().to_dict())
    if values["facts"].keys() >= {"collect"} and values["statistics"] == group_record().statistics:
        values["statistics"] = [statistics_key(values["facts"], passes) for passes in (1, 2)]
    key = key_of(values["facts"])
    save_json(run.json("groups", key), GROUP_KIND, values)
    with pytest.raises(FileFormatError, match=r"groups/\w+\.json does not hold what it should.*delete it and run"):
        run.group(key)


@pytest.mark.parametrize(
    "settings",
    [
        {"models": ["m"]},
        {"models": "m", "methods": []},
        {"models": [5], "methods": []},
        {"models": ["m"], "methods": [], "seeds": [1.5]},
        {"models": ["m"], "methods": [], "fractions": ["half"]},
        {"models": ["m"], "methods": [], "corpora": {"text": 5}},
        {"models": ["m"], "methods": [], "one more": 1},
    ],
    ids=str,
)
def test_impossible_settings_of_studies_are_refused(run, settings):
    key = key_of(settings)
    save_json(run.json("studies", key), STUDY_KIND, settings)
    with pytest.raises(FileFormatError, match=r"studies/\w+\.json does not hold what it should.*delete it and run"):
        run.study(key)


@pytest.mark.parametrize("values", [{"model": "m"}, {"model": 5}, {"model": "m", "facts": {"a": 1}}, {"cell": ["c"]}])
def test_impossible_failures_are_refused(run, values):
    whole = {"model": "m", "error": "E", "message": "no", **values} if values != {"model": "m"} else values
    save_json(run.json("failures", "k"), "failure", whole)
    with pytest.raises(FileFormatError, match=r"failures/k\.json does not hold what it should.*delete it and run"):
        run.failure("k")


@pytest.mark.parametrize(
    ("changes", "inputs"),
    [
        ({"kind": "poems"}, None),
        ({"seed": 2**70}, None),
        ({"group": "../x"}, None),
        ({"text": 5}, None),
        ({"digest": "0" * 16}, None),
        ({}, torch.tensor([[1, 7, 8]])),
        ({}, torch.tensor([1, 7, 9])),
        ({}, torch.tensor([[1.0, 7.0, 9.0]])),
        ({}, torch.full((1, 3, 2, 2), torch.nan)),
    ],
    ids=str,
)
def test_impossible_inputs_are_refused(run, changes, inputs):
    header, tensors = run.read("inputs", add_input(run, "g"), INPUT_KIND)
    header |= changes
    key = key_of({name: header[name] for name in ("group", "kind", "seed")})
    save_tensors(run.file("inputs", key), INPUT_KIND, header, tensors if inputs is None else {"inputs": inputs})
    with pytest.raises(
        FileFormatError, match=r"inputs/\w+\.safetensors does not hold what it should.*delete it and run"
    ):
        run.read_input(key)


def collected(group, **changes):
    """Statistics as a group wants them, but for `changes` of where they are from."""
    made = ActivationStatistics.of_values(torch.linspace(-1, 1, 20).view(10, 1, 1, 2), model=group.model, bins=16)
    plans = (PlanReading(group.facts["collect"], None),)
    source = {"corpora": (group.collect,), "plans": plans, "versions": group.versions, **changes}
    return dataclasses.replace(made, provenance=dataclasses.replace(made.provenance, **source))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": dataclasses.replace(group_record().model, weights="abc", name="other")}, "name: other"),
        ({"site": "mlp"}, "site: mlp against z"),
        ({"include_bos": False}, "include_bos"),
        ({"corpora": (dataclasses.replace(group_record().collect, digest="other"),)}, "digest: other"),
        ({"plans": (PlanReading("other", None),)}, "plan"),
        ({"plans": (PlanReading("c", 5, ((0, 3),)),)}, "plan"),
        ({"corpora": (), "plans": ()}, "no one corpus; plan"),
        ({"versions": dataclasses.replace(group_record().versions, torch="0.1")}, "versions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_statistics_of_another_collection_under_the_right_name_are_refused(run, changes, says):
    group = group_record()
    path = run.statistics(group.statistics[0])
    collected(group).save(path)
    assert run.read_statistics(group, 1).provenance.tokens == 10
    collected(group, **changes).save(path)
    with pytest.raises(FileFormatError, match=rf"{path.name} does not hold .*{says}.*delete it and run the same"):
        run.read_statistics(group, 1)


def test_records_have_the_keys_that_cells_and_inputs_had_before():
    """Facts of later versions are in a key only where they say something."""
    plain = {"group": "g", "method": "peak bins=64", "fraction": 0.5, "seed": 42}
    assert RECORD.key == key_of(plain)
    for further in ({"values": "a"}, {"version": 2}, {"generator_weights": "b"}):
        assert cell_record("g", "peak bins=64", seed=42, **further).key == key_of({**plain, **further})
    assert InputRecord("g", "tokens", 1, None, "", None, "d").key == key_of({"group": "g", "kind": "tokens", "seed": 1})
    assert CellRecord.from_dict(RECORD.to_dict()) == RECORD


METRIC = {"values of kl": torch.tensor([3.0, 2.0]).double(), "weights of kl": torch.tensor([100.0, 100.0]).double()}


def test_a_metric_that_is_possible_is_read(run):
    _, read = read_forged(run, RECORD.to_dict(), SCORE | METRIC)
    assert (read["kl"], read.metrics) == (5 / 200, ("top1", "cross_entropy", "kl"))


@pytest.mark.parametrize(
    "changes",
    [
        {"values of kl": torch.tensor([math.nan, 2.0]).double()},
        {"weights of kl": torch.tensor([-1.0, 2.0]).double()},
        {"weights of kl": torch.zeros(2).double()},
        {"weights of kl": torch.ones(3).double()},
        {"values of kl": torch.tensor([3.0, 2.0])},
        {"values of other": torch.tensor([3.0, 2.0]).double()},
    ],
)
def test_a_metric_that_is_not_possible_is_refused(run, changes):
    with pytest.raises(FileFormatError):
        read_forged(run, RECORD.to_dict(), SCORE | METRIC | changes)

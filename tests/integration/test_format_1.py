"""Files that ablation-lens 0.1.0 wrote before its modules moved: they open, and hold the same numbers.

`tests/files/format-1/make.py` shows how they were made, `expected.json` what that code read from them.
"""

import json
import shutil
from pathlib import Path

import pytest

import ablation_lens as al
from ablation_lens.neurons.statistics import PlanReading
from ablation_lens.records import Versions
from ablation_lens.study.table2 import make_table2
from tests.studies import files

WITNESSES = Path(__file__).parents[1] / "files" / "format-1"
EXPECTED = json.loads((WITNESSES / "expected.json").read_text(encoding="utf-8"))


def hexed(tensor):
    """Every 97th number, exactly."""
    return [float(value).hex() for value in tensor.flatten()[::97]]


@pytest.mark.parametrize("name", EXPECTED["statistics"])
def test_statistics_open_with_the_same_numbers(name, tmp_path):
    expected = EXPECTED["statistics"][name]
    for path in (WITNESSES / f"{name}.safetensors", tmp_path / "written-again.safetensors"):
        statistics = al.ActivationStatistics.load(path)
        assert repr(statistics) == expected["repr"]
        assert statistics.provenance.tokens == expected["tokens"]
        assert statistics.provenance.plans == tuple(map(PlanReading.from_dict, expected["plans"]))
        assert statistics.rows is None  # which were read, these files do not say
        assert int(statistics.count.sum()) == expected["total"]
        assert hexed(statistics.variance) == expected["variance"]
        assert hexed(statistics.histogram.quantile(0.3)) == expected["quantile"]
        for center, values in expected["centers"].items():
            if center == "peak-kde":  # an FFT, which rounds by the processor and the number of threads
                exact = [float.fromhex(value) for value in values]
                assert statistics.center(center).flatten()[::97].tolist() == pytest.approx(exact, rel=1e-9, abs=1e-12)
            else:
                assert hexed(statistics.center(center)) == values
        if "position_mean" in expected:
            assert hexed(statistics.position_mean) == expected["position_mean"]
        assert (statistics.trimmed is not None) == ("trimmed" in expected)
        if statistics.trimmed is not None:
            assert hexed(statistics.trimmed.epsilon) == expected["trimmed"]["epsilon"]
            assert int(statistics.trimmed.underflow.sum()) == expected["trimmed"]["underflow"]
            assert int(statistics.trimmed.overflow.sum()) == expected["trimmed"]["overflow"]
        statistics.save(tmp_path / "written-again.safetensors")


def test_old_statistics_merge_with_new_ones():
    model = al.load_model("tiny-vit", device="cpu")
    plan = al.task_for(model).batches(split="evaluate", images=16, batch_size=8)
    old = al.ActivationStatistics.load(WITNESSES / "z-one-pass.safetensors")
    merged = old.merge(al.collect(model, plan, bins=16, progress=False))
    expected = EXPECTED["statistics"]["merged"]
    assert {center: hexed(merged.center(center)) for center in ("median", "peak")} == {
        center: expected["centers"][center] for center in ("median", "peak")
    }


@pytest.mark.parametrize("name", EXPECTED["ablations"])
def test_ablations_open_and_do_the_same(name):
    expected = EXPECTED["ablations"][name]
    ablation = al.Ablation.load(WITNESSES / f"ablation-{name}.safetensors")
    assert repr(ablation) == expected["repr"]
    assert hexed(ablation.values) == expected["values"]
    assert (None if ablation.positions is None else list(ablation.positions)) == expected["positions"]
    assert int(ablation.mask.sum()) == expected["neurons"]
    model = al.load_model("tiny-vit", device="cpu")
    plan = al.task_for(model).batches(split="evaluate", images=16, batch_size=8)
    score = al.evaluate(model, plan, ablation)
    assert score.top1 == expected["top1"]
    assert abs(score.cross_entropy - expected["cross_entropy"]) <= 1e-6  # another processor rounds otherwise


def test_the_run_folder_reads_exports_and_prints_as_it_did(tmp_path):
    expected = EXPECTED["run"]
    results = al.Results.load(WITNESSES / "run")
    assert len(results.frame) == expected["cells"]
    assert list(results.groups.values()) == expected["groups"]
    results.export(tmp_path / "cells.csv")
    assert (tmp_path / "cells.csv").read_text() == (WITNESSES / "cells.csv").read_text()
    assert make_table2(results, [0.5, 1.0]).markdown() + "\n" == (WITNESSES / "table2.md").read_text(encoding="utf-8")
    assert [[failure.error, failure.message] for failure in results.folder.failures()] == expected["failures"]
    assert [[f.kind, f.seed, f.digest] for f in results.folder.inputs()] == expected["inputs"]
    assert sorted(list(study.methods) for study in results.folder.studies()) == sorted(expected["studies"])


def test_the_run_folder_is_gone_on_with_and_nothing_is_measured_again(tmp_path, monkeypatch):
    expected = EXPECTED["run"]
    shutil.copytree(WITNESSES / "run", tmp_path / "run")
    before = files(tmp_path / "run")
    # Cells are of the versions that measured them; whether the rest of a key is still the same is asked here.
    monkeypatch.setattr(Versions, "current", lambda: Versions.from_dict(expected["versions"]))
    study = al.Study(methods=["zero", "peak-trimmed", "resample-pixels"], device="cpu", **expected["settings"])
    results = study.run(tmp_path / "run", progress=False)
    assert len(results.frame) == expected["cells"]
    after = files(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in after.keys() - before.keys()} <= {"studies"}  # device was not given then

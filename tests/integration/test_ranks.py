"""Several processes that collect, study and analyse together; what ends one of them, and what is left then."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ablation_lens as al
from ablation_lens.cli.statistics import _saved_beside
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.ranks import Ranks
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.results import Results
from tests import rank_jobs

SUITE = ("together", "failed", "stopped", "killed-while-adding-up", "study-within_the_temporary_write")
KILLED = [name for name in rank_jobs.JOBS if name.startswith(("killed-", "first-"))]
STUDIES = [name for name in rank_jobs.JOBS if name.startswith("study-")]


def run(folder, names):
    done = subprocess.run(
        [sys.executable, "-m", "tests.rank_jobs", str(folder), *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return run(tmp_path_factory.mktemp("jobs") / "jobs", SUITE)


@pytest.fixture(scope="module")
def all_jobs(tmp_path_factory):
    return run(tmp_path_factory.mktemp("jobs") / "jobs", rank_jobs.JOBS)


def codes(folder, name="codes"):
    return json.loads((folder / name).read_text())


def said(folder, rank, stream="err"):
    return (folder / f"{rank}.{stream}").read_text()


def load(folder, name, rank=0):
    return ActivationStatistics.load(folder / f"{name}-{rank}.safetensors")


def require_same_counts(one, other):
    for mine, theirs in ((one.histogram, other.histogram), (one.trimmed.inside, other.trimmed.inside)):
        for name, tensor in mine.tensors().items():
            assert torch.equal(tensor, theirs.tensors()[name]), name
    assert torch.equal(one.trimmed.underflow, other.trimmed.underflow)
    assert torch.equal(one.trimmed.overflow, other.trimmed.overflow)
    assert torch.equal(one.rows, other.rows)
    assert one.provenance.plans == other.provenance.plans
    assert one.provenance.tokens == other.provenance.tokens


# ---------------------------------------------------------------------- all goes well


@pytest.mark.parametrize("name", ["many-z", "many-resid_post", "few-z"])
def test_two_processes_count_what_one_counts(jobs, name):
    alone, both = load(jobs / "alone", name), load(jobs / "together", name)
    require_same_counts(alone, both)
    for center in ("zero", "peak", "median", "peak-trimmed"):
        assert torch.equal(alone.center(center), both.center(center)), center
    for center in ("mean", "median", "peak-kde"):
        assert torch.allclose(alone.center(center), both.center(center), rtol=0, atol=1e-6), center
    assert torch.allclose(alone.position_mean, both.position_mean, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", ["many-z", "few-z"])
def test_every_rank_has_the_whole(jobs, name):
    one, other = load(jobs / "together", name), load(jobs / "together", name, rank=1)
    require_same_counts(one, other)
    assert torch.equal(one.mean, other.mean)


def test_each_rank_read_about_half_and_the_file_says_so(jobs):
    assert load(jobs / "together", "many-z").provenance.ranks == (4, 3)
    assert load(jobs / "together", "few-z").provenance.ranks == (1, 0)
    assert load(jobs / "alone", "many-z").provenance.ranks == ()


def test_unlike_plans_settings_and_own_batches_are_refused_on_every_rank(jobs):
    for rank in (0, 1):
        plan, bins, own = said(jobs / "together", rank, "out").splitlines()[:3]
        assert "MismatchError: ranks 0 and 1 do not collect the same (its batches: 2 and 3; the plan's digest:" in plan
        assert "(bins: 64 and 65)" in bins
        assert "MismatchError: these batches are not a plan" in own


def test_a_study_of_two_processes_is_that_of_one(jobs):
    alone, both = (Results.load(jobs / name / "study") for name in ("alone", "together"))
    assert set(both.frame.index) == set(alone.frame.index)  # the keys
    assert both.failed == []
    assert (alone.frame["cross_entropy"] - both.frame["cross_entropy"]).abs().max() < 1e-6
    folder = StudyFolder(jobs / "together" / "study")
    (key,) = folder.keys("statistics")
    assert ActivationStatistics.load(folder.statistics(key)).provenance.ranks == (2, 1)


def test_the_first_rank_speaks_for_all(jobs):
    assert codes(jobs / "together") == [0, 0]
    assert "Table 2" in said(jobs / "together", 0, "out")
    assert len(said(jobs / "together", 1, "out").splitlines()) == 3  # the refusals
    assert said(jobs / "together", 1) == ""


# ---------------------------------------------------------------------- one of them ends


def test_a_rank_that_fails_ends_the_others_with_its_error_and_their_part(jobs):
    folder = jobs / "failed"
    assert codes(folder) == [2, 1]
    assert said(folder, 1).rstrip().endswith("ValueError: this batch cannot be read")
    partial = folder / "stats.partial.safetensors"
    told = "error: rank 1 of 2 could not do its part (ValueError: this batch cannot be read). What rank 0 had collected"
    assert said(folder, 0) == f"{told} by then is in {partial}.\n"
    (plan,) = ActivationStatistics.load(partial).provenance.plans
    assert plan.read in (((0, 1),), ((0, 1), (2, 3)), ((0, 1), (2, 3), (4, 5)), ((0, 1), (2, 3), (4, 5), (6, 7)))


def test_ctrl_c_on_one_rank_saves_the_parts_of_all_and_they_merge(jobs):
    folder = jobs / "stopped"
    assert codes(folder) == [130, 130]
    assert "interrupted; ActivationStatistics(" in said(folder, 0)
    assert "interrupted; ActivationStatistics(" in said(folder, 1)
    one, other = (ActivationStatistics.load(folder / f"stats.partial{n}.safetensors") for n in ("", "-2"))
    both = one.merge(other)
    (plan,) = both.provenance.plans
    numbers = [number for start, stop in plan.read for number in range(start, stop)]
    assert len(numbers) == len(set(numbers)) >= 3
    model, whole = rank_jobs.plan_of()
    again = [al.collect(model, whole[number : number + 1], progress=False) for number in numbers]
    expected = again[0]
    for part in again[1:]:
        expected = expected.merge(part)
    for name, tensor in expected.histogram.tensors().items():
        assert torch.equal(tensor, both.histogram.tensors()[name]), name


def test_a_rank_that_is_killed_while_all_add_up_is_one_sentence(jobs):
    require_told(jobs / "killed-while-adding-up", survivor=0)


def test_what_all_ranks_have_is_kept_by_the_second_where_the_first_is_lost(tmp_path):
    whole = ActivationStatistics.of_values(torch.ones(4, 1, 1, 1))
    whole = replace(whole, provenance=replace(whole.provenance, ranks=(1, 1, 0)))

    def saved(rank, lost):
        return _saved_beside(tmp_path / "x.safetensors", whole, Ranks(rank, 3), lost) is not None

    assert [saved(rank, lost=False) for rank in range(3)] == [True, False, False]
    assert [saved(rank, lost=True) for rank in range(1, 3)] == [True, False]


def require_told(folder, survivor):
    assert sorted(codes(folder)) == [-9, 2]
    lines = [line for line in said(folder, survivor).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"another process ended, or was cut off, while rank {survivor} of 2 needed it" in lines[0]
    assert "Traceback" not in said(folder, survivor)
    assert "Connection closed" not in lines[0]
    kept = ActivationStatistics.load(folder / "stats.partial.safetensors")
    assert kept.provenance.tokens > 0
    assert not (folder / "stats.safetensors").exists()


def test_a_study_of_which_a_rank_was_killed_is_gone_on_with_by_three(jobs):
    require_gone_on_with(jobs, "study-within_the_temporary_write")


def require_gone_on_with(jobs, name):
    folder, alone = jobs / name, Results.load(jobs / "alone" / "study")
    assert -9 in codes(folder, "codes.before")
    assert set(codes(folder)) == {0}
    found = Results.load(folder / "study")
    assert found.failed == []
    assert found.unreadable == []
    assert set(found.frame.index) == set(alone.frame.index)
    assert (alone.frame["cross_entropy"] - found.frame["cross_entropy"]).abs().max() < 1e-6
    assert "Traceback" not in said(folder, 0) + said(folder, 1)


# ---------------------------------------------------------------------- at every point, and by the command


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_rank_that_is_killed_anywhere_in_a_collection(all_jobs, name):
    require_told(all_jobs / name, survivor=1 if name == "first-killed" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_rank_that_is_killed_anywhere_in_a_study(all_jobs, name):
    require_gone_on_with(all_jobs, name)


@pytest.mark.slow
def test_the_command_writes_what_one_process_writes(all_jobs):
    found = ActivationStatistics.load(all_jobs / "collect" / "stats.safetensors")
    require_same_counts(load(all_jobs / "alone", "many-z"), found)
    assert said(all_jobs / "collect", 1, "out") == ""


@pytest.mark.slow
def test_a_circuit_of_two_processes_is_that_of_one(all_jobs):
    assert codes(all_jobs / "circuit") == [0, 0]
    one, both = (said(all_jobs / "circuit", 0, "out"), (all_jobs / "alone" / "out").read_text())
    assert one.splitlines()[:-1] == both[both.index("tiny-opt, logit") :].splitlines()[:-1]
    assert said(all_jobs / "circuit", 1, "out") == ""


@pytest.mark.slow
def test_what_several_processes_cannot_do_is_refused(all_jobs):
    assert codes(all_jobs / "other") == [2, 2]
    assert "error: table is done by one process, and torchrun started 2" in said(all_jobs / "other", 0)
    assert 2 in codes(all_jobs / "recommend")
    told = said(all_jobs / "recommend", 0) + said(all_jobs / "recommend", 1)
    assert "error: 2 processes share the work by a folder; give --folder 'runs/which'." in told


# ---------------------------------------------------------------------- torchrun itself


def torchrun(folder, *arguments):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ablation_lens", *arguments]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen([sys.executable, *launch], stdout=out, stderr=err)


@pytest.mark.slow
def test_torchrun_ends_a_study_of_which_a_process_is_killed_and_the_next_goes_on(tmp_path):
    seeds = ",".join(map(str, range(200)))
    asked = ("--model", "tiny-vit", "--method", "zero", "--fractions", "0.5", "--evaluate-images", "16")
    job = torchrun(tmp_path, "study", *asked, "--seeds", seeds, "--out", str(tmp_path / "run"))
    end = time.monotonic() + 300
    cells = tmp_path / "run" / "cells"
    while not cells.exists() or len(list(cells.glob("[!.]*"))) < 5:
        assert time.monotonic() < end
        assert job.poll() is None, (tmp_path / "err").read_text()
        time.sleep(0.01)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert job.wait(timeout=120) != 0
    told = (tmp_path / "err").read_text()
    assert "SIGKILL" in told  # torchrun's own report
    there = len(list(cells.glob("[!.]*")))
    assert re.search(r"interrupted: \S+ holds \d+ finished cells; this study has 201", told)
    done = torchrun(tmp_path, "study", *asked, "--seeds", "0,1,2", "--out", str(tmp_path / "run"))
    assert done.wait(timeout=300) == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text().count("Table 2") == 1
    assert len(list(cells.glob("[!.]*"))) >= there

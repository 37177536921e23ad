"""Studies that are killed, interrupted or run out of disk, and then gone on with: the same rows, bit for bit."""

import csv
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from ablation_lens.study.results import Results
from tests.faults import study_driver
from tests.faults.disks import small_disk
from tests.studies import files, rows, sums

ROOT = Path(__file__).parents[2]
KILLS, SHARED = "kills in studies", "shared folders"


def driven(folder, *scenarios):
    command = [sys.executable, "-m", "tests.faults.study_driver", str(folder), *scenarios]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return driven(
        tmp_path_factory.mktemp("faults"), "points", "random:3:2024", "together", "abandoned", "stopped", "interrupted"
    )


@pytest.fixture(scope="module")
def undisturbed(driver):
    results = Results.load(driver / "undisturbed")
    assert len(results.frame) == study_driver.CELLS
    return results


def require_same(folder, undisturbed):
    results = Results.load(folder)
    assert rows(results) == rows(undisturbed)
    assert all(torch.equal(one, two) for one, two in zip(sums(results), sums(undisturbed), strict=True))


def require_resumed(folder, undisturbed):
    """Killed, nothing half-written read back, and then whole."""
    killed, resumed = map(int, folder.with_suffix(".ended").read_text().split())
    assert resumed == 0
    require_same(folder, undisturbed)
    assert_exported(folder, undisturbed)
    dead = folder.with_suffix(".dead")
    if (dead / "cells").exists() and list((dead / "cells").glob("[!.]*")):
        assert set(rows_of_cells(dead)) <= set(rows_of_cells(folder))
        before = {key: stamp for key, stamp in files(dead / "cells").items() if not key.startswith(".")}
        assert before.keys() <= files(folder / "cells").keys()
    if (dead / "cells.csv").exists():
        assert_exported(dead, undisturbed)
    return killed


def rows_of_cells(folder):
    return [row[:12] for row in rows(Results.load(folder))]  # the baseline may not be there yet


def assert_exported(folder, undisturbed):
    with (folder / "cells.csv").open(newline="") as file:
        exported = [(row["key"], float(row["cross_entropy"])) for row in csv.DictReader(file)]
    assert exported == list(undisturbed.frame["cross_entropy"].items())


LEFT = {  # (whole cells, half-written ones) when the process died
    "before_the_temporary_write": (2, 0),
    "within_the_temporary_write": (2, 1),
    "after_the_temporary_write": (2, 1),
    "between_cells": (2, 0),
    "during_collection": (None, 0),
    "during_export": (study_driver.CELLS, 0),
}


@pytest.mark.parametrize("point", [point.__name__ for point in study_driver.POINTS])
def test_killed_at_a_named_point_then_resumed(driver, undisturbed, point, tally):
    folder = driver / point
    with tally(KILLS).attempt(point):
        assert require_resumed(folder, undisturbed) == -signal.SIGKILL
    cells = [path.name for path in (folder.with_suffix(".dead") / "cells").iterdir()]
    whole, half = LEFT[point]
    assert whole is None or sum(not name.startswith(".") for name in cells) == whole
    assert sum(name.startswith(".") for name in cells) == half
    if point == "during_collection":
        assert not list((folder.with_suffix(".dead") / "statistics").iterdir())
    if point == "during_export":
        left = [path.name for path in folder.with_suffix(".dead").iterdir() if path.is_file()]
        half = [name for name in left if name.startswith(".")]
        assert len(half) == 1  # of the export
        assert set(left) - set(half) == {"ablation-lens.json", "locks"}


@pytest.mark.parametrize("number", range(3))
def test_killed_at_a_random_moment_then_resumed(driver, undisturbed, number, tally):
    with tally(KILLS).attempt(f"random {number}"):
        assert require_resumed(driver / f"random_{number}", undisturbed) in (0, -signal.SIGKILL)


@pytest.mark.slow
def test_killed_at_forty_random_moments_then_resumed(tmp_path, tally):
    folder, counted = driven(tmp_path, "random:40:7"), tally(KILLS)
    reference, killed = Results.load(folder / "undisturbed"), []
    for number in range(40):
        with counted.attempt(f"random {number}"):
            killed.append(require_resumed(folder / f"random_{number}", reference))
    assert killed.count(-signal.SIGKILL) >= 20


def test_the_comparison_notices_one_bit(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder.path, tmp_path / "run")
    changed = Results.load(folder)
    key = changed.frame.index[3]
    record, score = changed.folder.read_cell(key)
    score.loss[0] = torch.nextafter(score.loss[0], torch.tensor(torch.inf, dtype=torch.float64))
    changed.folder.write_cell(record, score)
    with pytest.raises(AssertionError):
        require_same(folder, undisturbed)


def test_three_processes_on_one_folder_share_the_cells(driver, undisturbed, tally):
    folder = driver / "together"
    assert (folder / "ended").read_text() == "0 0 0"
    with tally(SHARED).attempt("together"):
        require_same(folder / "run", undisturbed)
    measured = [log.read_text().split() for log in folder.glob("*.log")]
    assert len(measured) == 3, "each should have had something to do"
    assert sorted(key for log in measured for key in log) == sorted(undisturbed.frame.index)  # none twice
    assert list((folder / "run" / "holders").iterdir()) == []


def test_the_cell_of_a_killed_process_is_measured_by_the_one_that_waited(driver, undisturbed, tally):
    folder = driver / "abandoned"
    assert (folder / "waited").read_text() == "True"
    assert (folder / "ended").read_text() == f"{-signal.SIGKILL} 0"
    with tally(SHARED).attempt("abandoned"):
        require_same(folder / "run", undisturbed)
    assert len((folder / "two.log").read_text().split()) == study_driver.CELLS - 1  # the baseline was the other's


def test_a_stopped_process_is_waited_for_a_while_and_then_its_work_done(driver, undisturbed, tally):
    folder = driver / "stopped"
    assert (folder / "ended").read_text() == f"{-signal.SIGKILL} 0"
    with tally(SHARED).attempt("stopped"):
        require_same(folder / "run", undisturbed)
    assert len((folder / "two.log").read_text().split()) == study_driver.CELLS - 1


# ---------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_at_any_moment_loses_nothing_and_holds_nothing(driver, undisturbed, tally):
    folder = driver / "interrupted"
    assert (folder / "ended").read_text() == "0"
    with tally(SHARED).attempt("interrupted"):
        require_same(folder / "run", undisturbed)


def test_ctrl_c_ends_cleanly_and_says_how_to_resume(command, tmp_path):
    seeds = ",".join(map(str, range(10)))
    arguments = ["study", "--model", "tiny-vit", "--method", "zero", "--fractions", "0.3,0.6", "--seeds", seeds]
    arguments += ["--evaluate-images", "16", "--out", str(tmp_path / "run")]
    # A shell's background jobs, and all they start, ignore SIGINT unless told otherwise.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "ablation_lens", *arguments], preexec_fn=heeding, **pipes) as process:
        end = time.monotonic() + 120
        while len(list((tmp_path / "run" / "cells").glob("[!.]*"))) < 3 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    cells = list((tmp_path / "run" / "cells").iterdir())
    assert process.returncode == 130, errors
    assert output == ""
    said = rf"interrupted: \S+/run holds {len(cells)} finished cells; this study has 21\. Run the same again to go on\."
    assert re.fullmatch(said, errors.strip().splitlines()[-1])
    assert "Traceback" not in errors
    assert list((tmp_path / "run").rglob(".*")) == []
    before = files(tmp_path / "run" / "cells")
    code, _, errors = command(*arguments)
    assert code == 0, errors
    after = files(tmp_path / "run" / "cells")
    assert len(after) == 21
    assert {name: after[name] for name in before} == before
    assert command(*arguments[:-1], tmp_path / "undisturbed")[0] == 0
    require_same(tmp_path / "run", Results.load(tmp_path / "undisturbed"))


# ---------------------------------------------------------------------- a full disk


@pytest.fixture
def study_by_command(command):
    """The driver's study through the command line, in this process: (exit code, stderr)."""
    study = study_driver.small_study()
    arguments = ["study", "--model", "tiny-vit", "--batch-size", "8"]
    for method in study.methods:
        arguments += ["--method", method]
    arguments += ["--fractions", "0.3,0.6,1", "--seeds", "1,2", "--collect-images", "24", "--evaluate-images", "16"]

    def run(folder):
        code, _, errors = command(*arguments, "--out", folder)
        return code, errors

    return run


@pytest.mark.parametrize("full_at", ["statistics", "cells"])
def test_a_full_disk_loses_nothing(undisturbed, full_at, tmp_path, study_by_command):
    source = undisturbed.folder.path
    pages = sum(-(-path.stat().st_size // 4096) for path in source.rglob("*.*") if path.suffix != ".csv")
    statistics = next((source / "statistics").glob("*.safetensors")).stat().st_size
    with small_disk(tmp_path / "disk", 4096 * (pages - 4) if full_at == "cells" else statistics) as mounted:
        folder = tmp_path / "disk" / "run"
        before = require_full(folder, undisturbed, full_at, study_by_command)
        mounted(f"size={64 << 20}")
        require_gone_on_with(folder, undisturbed, before, study_by_command)


@pytest.mark.parametrize(("full_at", "writes"), [("statistics", 4), ("cells", 12)])
def test_an_injected_enospc_loses_nothing(undisturbed, full_at, writes, tmp_path, study_by_command, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, writes)
        before = require_full(tmp_path / "run", undisturbed, full_at, study_by_command)
    require_gone_on_with(tmp_path / "run", undisturbed, before, study_by_command)


def require_full(folder, undisturbed, full_at, study_by_command):
    """One line, exit code 2, whole cells only; returns their rows."""
    code, errors = study_by_command(folder)
    assert code == 2
    assert "Traceback" not in errors
    *_, said = errors.splitlines()  # after lines about progress
    assert said.startswith(f"error: cannot write to {folder} (No space left on device); make room")
    assert not list(folder.rglob(".*")), "nothing half-written is left to take the room"
    before = rows_of_cells(folder) if list((folder / "cells").iterdir()) else []
    assert (1 < len(before) < len(undisturbed.frame)) is (full_at == "cells")
    return before


def require_gone_on_with(folder, undisturbed, before, study_by_command):
    code, errors = study_by_command(folder)
    assert code == 0, errors
    assert [row[0] for row in rows(Results.load(folder))] == [row[0] for row in rows(undisturbed)]
    assert set(before) <= set(rows_of_cells(folder))


def full_disk(patch, writes):
    """After so many files there is no room for another."""
    real, left = os.fsync, iter(range(writes))

    def fsync(descriptor):
        if os.fstat(descriptor).st_mode & 0o100000 and next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    patch.setattr("ablation_lens.files.os.fsync", fsync)

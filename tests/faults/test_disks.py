"""Disks that are full or may not be written: said before the work where it can be known, and nothing made is lost."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

import ablation_lens as al
from tests.faults.disks import PAGE, small_disk


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Statistics and a run folder to show."""
    folder = tmp_path_factory.mktemp("source")
    model = al.load_model("tiny-vit", device="cpu")
    plan = al.task_for(model).batches(split="collect", images=8)
    al.collect(model, plan, progress=False).save(folder / "s.safetensors")
    study = al.Study(models=["tiny-vit"], methods=["zero"], fractions=[0.5], seeds=[1], evaluate_images=8)
    study.run(folder / "run", progress=False)
    return folder


def commands(source, out):
    """Every command that writes, with the file that it writes."""
    statistics, run = source / "s.safetensors", source / "run"
    study = ["study", "--model", "tiny-vit", "--method", "zero", "--fractions", "0.5,1", "--seeds", "1,2"]
    return {
        "collect": (
            ["collect", "tiny-vit", "--images", "8", "--out", out / "new.safetensors"],
            out / "new.safetensors",
        ),
        "explore": (["explore", statistics, "--html", out / "page.html"], out / "page.html"),
        "neurons": (["neurons", statistics, "--csv", out / "n.csv"], out / "n.csv"),
        "export": (["export", run, out / "cells.csv"], out / "cells.csv"),
        "table": (["table", run, "--fractions", "0.5", "--format", "csv", "--out", out / "t.csv"], out / "t.csv"),
        "report": (["report", run, "--out", out / "report"], out / "report" / "report.html"),
        "study": ([*study, "--evaluate-images", "8", "--out", out / "run"], None),
    }


def require_said(name, target, code, errors):
    """One sentence, no half file; what was long in the making lies where the sentence says."""
    assert code == 2, errors
    beside = r"(warning: |\d+ of \d+ cells|tiny-vit: loading)"
    lines = [line for line in errors.strip().splitlines() if not re.match(beside, line)]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: "), errors
    if target is not None:
        assert not target.exists() or target.stat().st_size == 0 or name == "report"
        left = [path.name for path in target.parent.rglob(".*") if path.is_file()] if target.parent.exists() else []
        assert not left, f"half a file is left: {left}"
    return lines[0]


def require_rescued(name, line):
    """The result of long work is at the place that is told."""
    told = [Path(part.rstrip(".,;)")) for part in line.split() if part.startswith("/")]
    ending = {"collect": ".safetensors", "explore": ".html"}[name]
    (rescued,) = [path for path in told if path.suffix == ending and path.is_file() and path.stat().st_size]
    if name == "collect":
        al.ActivationStatistics.load(rescued)
    else:
        assert rescued.read_text().rstrip().endswith("</html>")
    rescued.unlink()


def test_a_full_disk(source, tmp_path, command, tally):
    counted = tally("full disks")
    with small_disk(tmp_path / "disk", 64 * PAGE) as mounted:
        (tmp_path / "disk" / "filling").write_bytes(b"")
        for name, (arguments, target) in commands(source, tmp_path / "disk").items():
            for left in (1, 2):
                fill(tmp_path / "disk" / "filling", left)
                with counted.attempt(f"{name} with {left} pages left"):
                    code, _, errors = command(*arguments)
                    if name in ("neurons", "export", "table") and code == 0:  # it is small enough
                        assert target.stat().st_size
                        target.unlink()
                        continue
                    line = require_said(name, target, code, errors)
                    if name in ("collect", "explore"):
                        require_rescued(name, line)
        mounted("size=64m")


def fill(filling, left):
    """Leave so many pages of the disk."""
    for path in filling.parent.iterdir():
        if path != filling:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    filling.write_bytes(b"")
    room = os.statvfs(filling.parent)
    filling.write_bytes(bytes((room.f_bavail - left) * PAGE))


def test_a_read_only_disk_is_noticed_before_the_work(source, tmp_path, command, tally, monkeypatch):
    counted = tally("read-only disks")

    def worked(*_, **__):
        raise AssertionError("it was worked on before the disk was looked at")

    with small_disk(tmp_path / "disk", 64 * PAGE) as mounted:
        mounted("ro")
        monkeypatch.setattr("ablation_lens.models.load.load_model", worked)
        monkeypatch.setattr("ablation_lens.explorer.view.explore", worked)
        for name, (arguments, target) in commands(source, tmp_path / "disk").items():
            with counted.attempt(name):
                require_said(name, target, *command(*arguments)[::2])
        mounted("rw")


def test_no_room_at_a_random_write(source, tmp_path, command, size, draw, tally, monkeypatch):
    """Injected, so that it is tried also where no disk can be mounted."""
    counted = tally("no room at a random write")
    for number in range(2 * size):
        for name in ("collect", "explore", "neurons", "export", "table", "report", "study"):
            out = tmp_path / f"{name}-{number}"
            out.mkdir()
            arguments, target = commands(source, out)[name]
            with counted.attempt(f"{name} #{number}"), monkeypatch.context() as patch:
                full_after(patch, draw.randrange(3) if name in ("report", "study") else 0, str(out))
                code, _, errors = command(*arguments)
                if code == 0:  # fewer writes than that
                    continue
                line = require_said(name, target, code, errors)
                if name in ("collect", "explore"):
                    require_rescued(name, line)


def full_after(patch, writes, folder):
    """After so many files there is no room for another in a folder."""
    real, left = os.fsync, iter(range(writes))

    def fsync(descriptor):
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if path.startswith(folder) and os.fstat(descriptor).st_mode & 0o100000 and next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    patch.setattr("ablation_lens.files.os.fsync", fsync)

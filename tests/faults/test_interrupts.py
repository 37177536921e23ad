"""Ctrl-C, once or twice, and SIGKILL, at random moments: 130 and a sentence, no half file, and the rest goes on."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

import ablation_lens as al
from ablation_lens.files import load_tensors, save_tensors
from tests.faults.processes_run import done
from tests.studies import rows


def commands(out):
    """Every command that takes a while, into a folder of its own."""
    study = ["study", "--model", "tiny-vit", "--method", "zero", "--method", "peak", "--fractions", "0.5,1"]
    study += ["--seeds", "1,2", "--collect-images", "64", "--evaluate-images", "32", "--batch-size", "8"]
    return {
        "collect": [
            "collect",
            "tiny-opt",
            "--tokens",
            "8000",
            "--batch-size",
            "2",
            "--out",
            str(out / "s.safetensors"),
        ],
        "twice": ["collect", "tiny-vit", "--images", "64", "--passes", "2", "--out", str(out / "t.safetensors")],
        "study": [*study, "--out", str(out / "run")],
    }


def readers(source, out):
    """Commands that show what `source` holds."""
    return {
        "explore": ["explore", str(source / "s.safetensors"), "--html", str(out / "page.html")],
        "neurons": ["neurons", str(source / "s.safetensors"), "--csv", str(out / "neurons.csv")],
        "table": [
            "table",
            str(source / "run"),
            "--fractions",
            "0.5,1",
            "--format",
            "csv",
            "--out",
            str(out / "table.csv"),
        ],
        "report": ["report", str(source / "run"), "--out", str(out / "report")],
        "export": ["export", str(source / "run"), str(out / "cells.csv")],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """All commands once: where their files are, and how long each took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = commands(folder) | readers(folder, folder)
    ended = done(folder, [{"arguments": arguments} for arguments in runs.values()])
    assert [end["code"] for end in ended] == [0] * len(runs), [end["printed"] for end in ended]
    return folder, {name: end["seconds"] for name, end in zip(runs, ended, strict=True)}


def contents(folder):
    return {
        path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "locks"
    }


def test_ctrl_c_at_random_moments(undisturbed, tmp_path, size, draw, tally):
    source, seconds = undisturbed
    counted = tally("Ctrl-C at random moments")
    planned = []
    for number in range(2 * size):
        for name in seconds:
            out = tmp_path / f"{name}-{number}"
            out.mkdir()
            arguments = {**commands(out), **readers(source, out)}[name]
            first = draw.uniform(0, 1.05) * seconds[name]
            signals = [[first, signal.SIGINT]]
            if draw.random() < 0.4:
                signals.append([first + draw.uniform(0, 0.1), signal.SIGINT])
            planned.append((name, out, {"arguments": arguments, "signals": signals}))
    before = contents(source)
    for (name, out, work), end in zip(planned, done(tmp_path, [work for _, _, work in planned]), strict=True):
        with counted.attempt(f"{name} at {work['signals']}"):
            require_clean_end(name, out, end, source)
    assert contents(source) == before, "a command that only reads has changed something"
    shutil.rmtree(tmp_path)


def require_clean_end(name, out, end, source):
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", end["printed"]).replace("^C", "")
    assert end["code"] in (0, 130), f"{end['code']}: {printed[-800:]}"
    assert "Traceback" not in printed, printed[-1500:]
    if end["code"] == 130:
        assert "interrupted" in printed, printed[-500:]
    assert not [path.name for path in out.rglob(".*") if path.is_file()], "something half-written is left"
    for path in out.rglob("*.safetensors"):
        if path.parent in (out, out / "run" / "statistics"):
            al.ActivationStatistics.load(path)
    for told in re.findall(r"is in (\S+\.safetensors)", printed):
        al.ActivationStatistics.load(Path(told))
    for path in out.rglob("*"):
        if path.name in ("page.html", "report.html"):
            assert path.read_text().rstrip().endswith("</html>")
        if path.name in ("cells.csv", "table.csv"):
            assert path.read_bytes() == (source / path.name).read_bytes()
    if name == "study" and (out / "run" / "ablation-lens.json").exists():
        cells = list((out / "run" / "cells").glob("[!.]*"))
        if cells:
            whole = {row[0]: row[1:8] for row in rows(al.Results.load(source / "run"))}
            assert all(whole[row[0]] == row[1:8] for row in rows(al.Results.load(out / "run")))
        said = re.search(r"(\d+) of \d+ cells", printed[printed.rfind("interrupted") :])
        assert said is None or abs(int(said[1]) - len(cells)) <= 1, f"{said[0]}, but there are {len(cells)}"


def test_kills_while_writing(tmp_path, size, draw, tally):
    """The old file or the new one, whole; never a half one."""
    counted = tally("kills while writing")
    paths = [tmp_path / f"{number}.safetensors" for number in range(20 * size)]
    for path in paths:  # so that the first write is killed like any other, and not too early for a file
        save_tensors(path, "written", {"number": 0}, {"tensor": torch.zeros(5000)})
    runs = [{"writes": str(path), "signals": [[draw.uniform(0.05, 0.15), signal.SIGKILL]]} for path in paths]
    for path, end in zip(paths, done(tmp_path, runs), strict=True):
        with counted.attempt(f"killed after {end['signals']}"):
            assert end["code"] == -signal.SIGKILL
            header, tensors = load_tensors(path, "written")
            assert (tensors["tensor"] == header["number"]).all()
    assert not [path for path in tmp_path.iterdir() if path not in paths and path.suffix == ".safetensors"]

"""Runs commands in processes that are interrupted or killed; `python -m tests.faults.processes WORK.json`.

One process imports everything once, and forks a child per run: that takes a tenth of a second instead of four. It has
one thread, as a pool of threads does not survive a fork; transformers would read weights with several.

WORK.json holds runs: `{"arguments": […], "signals": [[seconds, number], …]}` is an `ablation-lens` command on a
terminal of its own, `{"writes": path, "signals": …}` writes one file again and again. What came of each is written in
`WORK.done.json`: how it ended, all it printed, and how long it took.
"""

import json
import os
import pty
import select
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # read when transformers loads
os.environ["COLUMNS"] = "400"  # no line is broken

import plotly.graph_objects
import rich.progress
import torch
import typer

import ablation_lens.explorer
import ablation_lens.report.study
from ablation_lens import cli
from ablation_lens.cli import app
from ablation_lens.explorer import files
from ablation_lens.files import save_tensors
from ablation_lens.models import load
from ablation_lens.study import run, table2
from ablation_lens.tasks.tasks import task_for

LOADED = (app, files, run, table2, ablation_lens.explorer, ablation_lens.report.study)
LOADED += (plotly.graph_objects, rich.progress, typer)
"""Imported here so that a child need not."""

MODELS = ("tiny-opt", "tiny-vit")
"""Loaded here once, for all that this imports: transformer-lens alone would take every child four seconds."""


def command(arguments):
    """What `ablation-lens` does; its exit code."""
    sys.argv = ["ablation-lens", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def write_for_ever(path):
    """One file, each time with other numbers."""
    for number in range(10**9):
        save_tensors(path, "written", {"number": number}, {"tensor": torch.full((5000,), number)})


def child(work):
    """Never returns."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if "writes" in work:
            write_for_ever(work["writes"])
        code = command(work["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_one(work):
    """Fork, read what is printed, send the signals in time."""
    sys.stdout.flush()
    started = time.monotonic()
    process, terminal = pty.fork()
    if process == 0:
        child(work)
    signals = [(started + seconds, number) for seconds, number in work.get("signals", ())]
    printed = b""
    while True:
        now = time.monotonic()
        if now - started > 120:
            signals.append((now, signal.SIGKILL))
        while signals and signals[0][0] <= now:
            os.kill(process, signals.pop(0)[1])
        wait = min(1.0, max(0.0, signals[0][0] - now)) if signals else 1.0
        if not select.select([terminal], [], [], wait)[0]:
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # what Linux answers when the child has closed its end
            break
        if not piece:
            break
        printed += piece
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.close(terminal)
    return {
        "code": code,
        "printed": printed.decode("utf-8", "replace"),
        "seconds": time.monotonic() - started,
        "signals": work.get("signals", []),
    }


def main(path):
    torch.set_num_threads(1)
    path = Path(path)
    works = json.loads(path.read_text())
    if any("arguments" in work for work in works):
        for name in MODELS:
            task_for(load.load_model(name)).batches(split="evaluate")
    done = [run_one(work) for work in works]
    path.with_suffix(".done.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1])

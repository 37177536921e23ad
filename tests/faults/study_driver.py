"""Runs a small study in processes that die; `python -m tests.faults.study_driver FOLDER SCENARIO…` (see `main`).

One process imports and loads everything once, and forks a child per run: that takes a second instead of ten. It has
one thread, as a pool of threads does not survive a fork; transformers would read weights with several.
"""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # read when transformers loads

import safetensors.torch
import torch

from ablation_lens import files
from ablation_lens.measure import collection
from ablation_lens.runs import locks
from ablation_lens.study import results
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.model_run import ModelRun
from ablation_lens.study.study import Study

CELLS = 1 + 3 * 2 * 2 + (2 + 2)
"""The baseline, three methods at two fractions with two seeds, and 100 %: two constants, one drawn twice."""


def small_study():
    """`CELLS` cells; statistics of three batches."""
    return Study(
        models=["tiny-vit"],
        methods=["zero", "peak", "resample-pixels"],
        fractions=[0.3, 0.6, 1.0],
        seeds=[1, 2],
        collect_images=24,
        evaluate_images=16,
        batch_size=8,
    )


def whole_run(folder):
    """What every child does: the study, then an export."""
    small_study().run(folder, progress=False).export(folder / "cells.csv")


# ---------------------------------------------------------------------- where to die


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(owner, name, number, instead, concerns=lambda *_, **__: True):
    """Replace the `number`-th call (that concerns us) of a function by `instead`."""
    real, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    def counting(*arguments, **options):
        if concerns(*arguments, **options) and next(calls) == number:
            return instead(*arguments, **options)
        return real(*arguments, **options)

    setattr(owner, name, counting)


def before_the_temporary_write():
    on_call(files, "_new_temporary", 3, die, lambda folder: folder.name == "cells")


def within_the_temporary_write():
    def half(tensors, path, metadata):
        content = safetensors.torch.save(tensors, metadata)
        Path(path).write_bytes(content[: len(content) // 2])
        die()

    on_call(safetensors.torch, "save_file", 3, half, lambda tensors, path, **_: path.parent.name == "cells")


def after_the_temporary_write():
    on_call(files.Path, "replace", 3, die, lambda path, target: target.parent.name == "cells")


def between_cells():
    on_call(ModelRun, "_measure", 3, die)


def during_collection():
    on_call(collection._Pass, "take", 2, die)


def during_export():
    def half(path, write):
        def write_and_die(temporary):
            write(temporary)
            os.truncate(temporary, temporary.stat().st_size // 2)
            die()

        files.write_atomically(path, write_and_die)

    on_call(results, "write_atomically", 1, half)


POINTS = (
    before_the_temporary_write,
    within_the_temporary_write,
    after_the_temporary_write,
    between_cells,
    during_collection,
    during_export,
)

# ---------------------------------------------------------------------- children


def fork(work, *arguments):
    """Start `work(*arguments)` in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(child):
    """How it ended: 0, 1, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def disturbed(folder, point):
    point()
    whole_run(folder)


def killed_then_resumed(folder, kill):
    """`kill(folder)` starts a child and gives how it ended; what it left is kept as `….dead`."""
    ended = kill(folder)
    if folder.exists():
        shutil.copytree(folder, folder.with_suffix(".dead"))
    resumed = end_of(fork(whole_run, folder))
    folder.with_suffix(".ended").write_text(f"{ended} {resumed}")


def killed_at(folder, point):
    return end_of(fork(disturbed, folder, point))


def killed_after(folder, seconds):
    child = fork(whole_run, folder)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # a child that has ended is a zombie, and that may be sent anything
    return end_of(child)


# ---------------------------------------------------------------------- several at once


def logged(folder, name, barrier, patience=None, way="both"):
    """Write down every cell this child measures; begin when all have come to the barrier."""
    os.environ[locks.SETTING] = way
    write_cell, measure = StudyFolder.write_cell, ModelRun.measure

    def log(self, record, score):
        with (folder / f"{name}.log").open("a") as file:
            file.write(f"{record.key}\n")
        time.sleep(0.02)
        write_cell(self, record, score)

    def meet(self, shown):
        (folder / f"{name}.ready").touch()
        wait_until(lambda: len(list(folder.glob("*.ready"))) >= barrier)
        return measure(self, shown)

    StudyFolder.write_cell, ModelRun.measure = log, meet
    small_study().run(folder / "run", progress=False, patience=patience)


def stuck(folder):
    """Hold the lock of the second cell for ever."""

    def hang(*_):
        (folder / "stuck").touch()
        time.sleep(600)

    on_call(ModelRun, "_measure", 2, hang)
    small_study().run(folder / "run", progress=False)


def wait_until(happened, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def together(folder):
    """Three workers, of which one has claims alone, as on a disk without locks."""
    folder.mkdir()
    ways = {"one": "both", "two": "both", "three": "claims"}
    children = [fork(logged, folder, name, len(ways), None, way) for name, way in ways.items()]
    (folder / "ended").write_text(" ".join(str(end_of(child)) for child in children))


def abandoned(folder):
    """One process is killed while the other waits for its cell."""
    folder.mkdir()
    first = fork(stuck, folder)
    wait_until((folder / "stuck").exists)
    second = fork(logged, folder, "two", 1)
    wait_until(lambda: len(list((folder / "run" / "cells").glob("[!.]*"))) == CELLS - 1)
    time.sleep(0.5)
    (folder / "waited").write_text(str(os.waitpid(second, os.WNOHANG)[0] == 0))
    os.kill(first, signal.SIGKILL)
    (folder / "ended").write_text(f"{end_of(first)} {end_of(second)}")


def stopped(folder):
    """One process is stopped at a cell, not dead; the other waits for a second, and does its work."""
    folder.mkdir()
    first = fork(stuck, folder)
    wait_until((folder / "stuck").exists)
    os.kill(first, signal.SIGSTOP)
    second = end_of(fork(logged, folder, "two", 1, 1.0))
    os.kill(first, signal.SIGKILL)
    (folder / "ended").write_text(f"{end_of(first)} {second}")


class Alarm(KeyboardInterrupt):
    """Ctrl-C at a moment that was drawn."""


def interrupt(*_):
    raise Alarm


def interrupted_again_and_again(folder, moments):
    """As in a notebook: one process runs the study, is interrupted, and runs it again, until it is done."""
    signal.signal(signal.SIGALRM, interrupt)
    held = set()
    for moment in moments:
        signal.setitimer(signal.ITIMER_REAL, moment)
        try:
            small_study().run(folder / "run", progress=False, patience=5.0)
        except KeyboardInterrupt:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        now = {path.name for path in (folder / "run" / "cells").glob("[!.]*")}
        assert held <= now, "a cell that was there is gone"
        assert locks._files == {}, "a lock is still held"
        held = now
    small_study().run(folder / "run", progress=False, patience=5.0)


def interrupted(folder, duration):
    folder.mkdir()
    draw = random.Random("interrupted")
    moments = [draw.uniform(0.02, 0.6) * duration for _ in range(6)]
    (folder / "ended").write_text(str(end_of(fork(interrupted_again_and_again, folder, moments))))


def main(base, *scenarios):
    """`points`, `random:N:SEED`, `together`, `abandoned`, `stopped`, `interrupted`; an undisturbed run comes first."""
    base = Path(base)
    torch.set_num_threads(1)
    whole_run(base / "undisturbed")
    started = time.monotonic()
    assert end_of(fork(whole_run, base / "timed")) == 0
    duration = time.monotonic() - started
    for scenario in scenarios:
        name, *numbers = scenario.split(":")
        if name == "points":
            for point in POINTS:
                killed_then_resumed(base / point.__name__, partial(killed_at, point=point))
        elif name == "random":
            count, seed = map(int, numbers)
            draw = random.Random(seed)
            for number in range(count):
                moment = draw.uniform(0.05, 1) * duration
                killed_then_resumed(base / f"random_{number}", partial(killed_after, seconds=moment))
        elif name == "interrupted":
            interrupted(base / name, duration)
        else:
            {"together": together, "abandoned": abandoned, "stopped": stopped}[name](base / name)


if __name__ == "__main__":
    main(*sys.argv[1:])

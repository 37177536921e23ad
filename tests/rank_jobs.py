"""Jobs of several ranks without torchrun; `python -m tests.rank_jobs FOLDER JOB…` (see `main`).

One process imports everything once, and forks a child per rank: a job takes a second instead of ten. What torchrun says
in the environment is said here, and as torchrun does, the others get SIGTERM when one ends badly. What a rank prints is
in `JOB/RANK.out` and `.err`, how it ended in `.code`.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # read when transformers loads
os.environ["COLUMNS"] = "400"  # no line is broken

import torch
import torch.distributed

import ablation_lens as al
from ablation_lens import cli
from ablation_lens.errors import AblationLensError
from ablation_lens.measure import collection
from ablation_lens.ranks import Ranks
from tests.faults import study_driver
from tests.faults.study_driver import die, on_call

BATCHES, BATCH = 7, 4


# ---------------------------------------------------------------------- what a rank does


def plan_of(batches=BATCHES):
    """A plan of so many batches, and its model."""
    model = al.load_model("tiny-vit", device="cpu")
    return model, al.task_for(model).batches(split="collect", images=BATCH * batches, batch_size=BATCH)


def in_python(folder):
    """Two sites in two passes, of seven batches and of one."""
    ranks = Ranks.join()
    for name, batches in (("many", BATCHES), ("few", 1)):
        model, plan = plan_of(batches)
        found = al.collect(model, plan, site=["z", "resid_post"], passes=2, positions=True, progress=False, ranks=ranks)
        for site, statistics in found.items():
            statistics.save(folder / f"{name}-{site.value}-{ranks.rank}.safetensors")


def refused(folder):
    """What does not go together is said on every rank, and they can go on."""
    ranks = Ranks.join()
    model, plan = plan_of(2 + ranks.rank)
    _, same = plan_of(2)
    for given, options in ((plan, {}), (same, {"bins": 64 + ranks.rank}), ([torch.zeros(1, 1, 8, 8)], {})):
        try:
            al.collect(model, given, progress=False, ranks=ranks, **options)
        except AblationLensError as error:
            print(f"{type(error).__name__}: {error}")
    assert ranks.texts(str(ranks.rank)) == ["0", "1"]


def command(*arguments):
    """`ablation-lens …`."""
    sys.argv = ["ablation-lens", *map(str, arguments)]
    cli.main()


def collecting(folder, *options):
    command(
        *("collect", "tiny-vit", "--images", BATCH * BATCHES, "--batch-size", BATCH, "--passes", "2"),
        *("--out", folder / "stats.safetensors", *options),
    )


STUDY = ("--model", "tiny-vit", "--method", "zero", "--method", "peak", "--method", "resample-pixels")
STUDY += ("--fractions", "0.3,0.6,1", "--seeds", "1,2", "--collect-images", "24", "--evaluate-images", "16")
STUDY += ("--batch-size", "8")
"""`study_driver.small_study()`."""


def studying(folder):
    command("study", *STUDY, "--out", folder / "study")


def analysing(folder):
    command(
        *("circuit", "tiny-opt", "--task", "induction", "--count", "8", "--center", "zero", "--center", "mean"),
        *("--site", "z", "--tokens", "2000", "--steps", "2", "--out", folder / "circuit"),
    )


def recommending(folder, *options):
    command(
        *("recommend", "tiny-vit", "--center", "zero", "--center", "mean", "--fraction", "0.5", "--images", "32"),
        *options,
    )


def only(rank, change):
    """Do something on one rank before its work."""
    if Ranks.told().rank == rank:
        change()


# ---------------------------------------------------------------------- where one of them ends


def fail(*_, **__):
    raise ValueError("this batch cannot be read")


def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)


def after_a_batch(happens):
    """Once the second batch of a rank is counted."""
    real, calls = collection._Pass.take, iter(range(1, sys.maxsize))

    def take(self, item):
        count = real(self, item)
        if next(calls) == 2:
            happens()
        return count

    collection._Pass.take = take


POINTS = {
    "within-a-batch": lambda: on_call(collection._Pass, "take", 2, die),
    "after-its-part": lambda: on_call(Ranks, "texts", 2, die),
    "while-adding-up": lambda: on_call(Ranks, "total", 3, die),
    "in-the-second-pass": lambda: on_call(collection._Pass, "take", 5, die),
}
"""Where a rank dies that collects: the first `texts` compares plans."""


# ---------------------------------------------------------------------- jobs


def job(folder, work, size=2, supervised=True):
    """Run `work(folder)` on so many ranks."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    sys.stderr.flush()
    children = {os.fork() or child(folder, work, rank, size, port): rank for rank in range(size)}
    left, codes, end = dict(children), {}, time.monotonic() + 120
    while left:
        found, status = os.waitpid(-1, os.WNOHANG)
        if found in left:
            codes[left.pop(found)] = os.waitstatus_to_exitcode(status)
            if supervised and status:
                for other in left:
                    os.kill(other, signal.SIGTERM)
        elif time.monotonic() > end:
            for other in left:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.005)
    (folder / "codes").write_text(json.dumps([codes[rank] for rank in range(size)]))


def child(folder, work, rank, size, port):
    """Never returns."""
    code = 1
    try:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in told.items()})
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work(folder)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def disturbed(folder, work, rank, change):
    only(rank, change)
    work(folder)


def together(folder):
    """All that ends well, one after another in the same processes."""
    in_python(folder)
    refused(folder)
    studying(folder)


def with_one(rank, change, work=collecting):
    """Something happens to one of them."""
    return partial(disturbed, work=work, rank=rank, change=change)


def killed_study(folder, point):
    """A rank dies at a point of a study, and a job of another size goes on."""
    # Three batches are collected over, and the first rank reads two of them.
    rank = 0 if point is study_driver.during_collection else 1
    job(folder, with_one(rank, point, studying))
    (folder / "codes").rename(folder / "codes.before")
    job(folder, studying, size=1 if point is study_driver.between_cells else 3)


FAILING = with_one(1, partial(on_call, collection._Pass, "take", 2, fail))
STOPPED = with_one(1, partial(after_a_batch, stop))

JOBS = {
    "together": partial(job, work=together),
    "collect": partial(job, work=collecting),
    "circuit": partial(job, work=analysing),
    "recommend": partial(job, work=recommending),
    "other": partial(job, work=lambda folder: command("table", folder)),
    "failed": partial(job, work=FAILING, supervised=False),
    "stopped": partial(job, work=STOPPED, supervised=False),
    "first-killed": partial(job, work=with_one(0, POINTS["within-a-batch"]), supervised=False),
    **{f"killed-{name}": partial(job, work=with_one(1, point), supervised=False) for name, point in POINTS.items()},
    **{f"study-{point.__name__}": partial(killed_study, point=point) for point in study_driver.POINTS[:-1]},
}


def main(base, *names):
    """The named jobs, each in a folder of its name; what one process makes of the same is in `alone`."""
    base = Path(base)
    torch.set_num_threads(1)
    # Here first, so that a child need import nothing.
    alone = base / "alone"
    alone.mkdir(parents=True)
    for work in (in_python, studying, *([analysing] if "circuit" in names else [])):
        by_itself(work, alone)
    for name in names:
        JOBS[name](base / name)


def by_itself(work, folder):
    """What the command does at its end suits a program that ends."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (folder / "out").open("a") as out, redirect_stdout(out):
            work(folder)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main(*sys.argv[1:])

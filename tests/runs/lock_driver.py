"""Workers that share keys and die; `python -m tests.runs.lock_driver FOLDER` runs every scenario.

What came of each is in its `told.json`. Nothing heavy is imported, and there is one thread, so that a worker is a fork
of a hundredth of a second.
"""

import fcntl
import json
import os
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

from ablation_lens.runs.locks import WAYS, KeyLocks

PIECES = tuple(f"piece {number}" for number in range(30))
STEPS = tuple((os, name) for name in ("mkdir", "chmod", "open", "write", "close", "rename", "unlink", "rmdir"))
STEPS += ((fcntl, "lockf"),)
"""Everything by which a key is taken and given back."""


def locks_of(folder, way, silence):
    return KeyLocks(folder / "locks", way=way, every=silence / 10, silence=silence)


def work(folder, name, locks, pieces=PIECES):
    """As a study does its cells: those that others are at come last, and are waited for."""
    done = folder / "done"
    done.mkdir(exist_ok=True)
    for patience in (0.0, 60.0):
        for piece in pieces:
            if not (done / piece).exists():
                with locks.holding(piece, patience=patience) as mine:
                    if mine and not (done / piece).exists():
                        time.sleep(0.005)
                        with (folder / f"{name}.log").open("a") as log:
                            log.write(f"{piece}\n")
                        (done / piece).touch()


def fork(task, *arguments):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        task(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_until(happened):
    end = time.monotonic() + 60
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)


def logged(folder):
    return sorted(line for log in folder.glob("*.log") for line in log.read_text().splitlines())


def taken(locks, key, until, told):
    """Hold a key until a file is there; says that it does by another."""
    with locks.holding(key, patience=60) as mine:
        assert mine
        told.touch()
        wait_until(until.exists)


# ---------------------------------------------------------------------- scenarios, each with what it tells


def shared(folder, way):
    """Three workers; each a way of its own where it is "mixed"."""
    ways = ("both", "claims", "both") if way == "mixed" else [way] * 3
    children = [fork(work, folder, str(number), locks_of(folder, each, 60)) for number, each in enumerate(ways)]
    return {"ended": [end_of(child) for child in children], "done": logged(folder), "left": left_in(folder)}


def left_in(folder):
    """Claims, and by a dot drafts of claims, that nobody has given back."""
    return sorted(path.name for path in (folder / "holders").glob("*"))


def killed(folder, way):
    """A worker is killed with SIGKILL while it holds a key; three find that out, and one of them does its work."""
    locks = locks_of(folder, way, 1.0)
    first = fork(taken, locks, "piece 0", folder / "never", folder / "taken")
    wait_until((folder / "taken").exists)
    others = [fork(work, folder, str(number), locks, PIECES[:1]) for number in range(3)]
    time.sleep(0.3)
    before = logged(folder)
    os.kill(first, signal.SIGKILL)
    return {
        "before": before,
        "ended": [end_of(child) for child in (first, *others)],
        "done": logged(folder),
        "left": left_in(folder),
    }


def stopped(folder):
    """A worker is stopped for longer than it may be silent, and goes on while the next one has its key."""
    locks = locks_of(folder, "claims", 0.5)
    first = fork(taken, locks, "a", folder / "first may end", folder / "first")
    wait_until((folder / "first").exists)
    os.kill(first, signal.SIGSTOP)
    second = fork(taken, locks, "a", folder / "second may end", folder / "second")
    wait_until((folder / "second").exists)
    os.kill(first, signal.SIGCONT)
    time.sleep(0.2)  # of four heartbeats
    (folder / "first may end").touch()
    ended = [end_of(first)]
    with locks.holding("a", patience=0.3) as mine:
        told = {"free meanwhile": mine}
    (folder / "second may end").touch()
    ended.append(end_of(second))
    with locks.holding("a") as mine:
        return {**told, "free at the end": mine, "ended": ended}


def forked(folder, way):
    """A child that leaves the block of its parent gives back nothing."""
    locks = locks_of(folder, way, 60)
    with locks.holding("a") as mine:
        child = os.fork()
        if child:
            end_of(child)
            (folder / "asked").touch()
            other = fork(taken, locks, "a", folder / "asked", folder / "other")
            time.sleep(0.5)
            return {"mine": mine, "other": (folder / "other").exists(), "killed": os.kill(other, signal.SIGKILL)}
    os._exit(0)


def killed_at_every_step(folder, way, taking_over):
    """Killed before the first, second, … step of taking a key and giving it back; another does the work then."""
    children = []
    for number in range(1, 25):
        place = folder / f"{number:02d}"
        (place / "done").mkdir(parents=True)
        locks = locks_of(place, way, 0.3)
        if taking_over:
            abandon(locks, "piece 0", place)
        children.append((fork(die_at, locks, number), place, locks))
    # All at a time, as a claim must be silent for a while.
    ended = [end_of(child) for child, *_ in children]
    others = [fork(work, place, "other", locks, PIECES[:1]) for _, place, locks in children]
    return {
        "killed": ended.count(-signal.SIGKILL),
        "survived": ended.count(0),
        "ended": [end_of(child) for child in others],
        "done": [(place / "done" / "piece 0").exists() for _, place, _ in children],
        "left": [left for _, place, _ in children for left in left_in(place) if not left.startswith(".")],
    }


def abandon(locks, key, folder):
    """Leave the claim of a process that was killed."""
    dead = fork(taken, locks, key, folder / "never", folder / "taken")
    wait_until((folder / "taken").exists)
    os.kill(dead, signal.SIGKILL)
    end_of(dead)


def die_at(locks, number):
    calls = iter(range(1, sys.maxsize))

    def dying(real, *arguments, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    for owner, name in STEPS:
        setattr(owner, name, partial(dying, getattr(owner, name)))
    with locks.holding("piece 0", patience=60):
        pass


def told_by(scenario, folder):
    folder.mkdir()
    (folder / "told.json").write_text(json.dumps(scenario(folder)))


def main(base):
    base = Path(base)
    scenarios = {f"shared, {way}": partial(shared, way=way) for way in (*WAYS, "mixed")}
    for way in WAYS:
        scenarios[f"killed, {way}"] = partial(killed, way=way)
        scenarios[f"forked, {way}"] = partial(forked, way=way)
        for taking_over in (False, True):
            name = f"steps of {'taking over' if taking_over else 'taking'}, {way}"
            scenarios[name] = partial(killed_at_every_step, way=way, taking_over=taking_over)
    scenarios["stopped"] = stopped
    # Most of the time they wait.
    children = [fork(told_by, scenario, base / name) for name, scenario in scenarios.items()]
    assert [end_of(child) for child in children] == [0] * len(children)


if __name__ == "__main__":
    main(sys.argv[1])

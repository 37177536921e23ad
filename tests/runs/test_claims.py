"""Claims exclude where the system's locks do not, and those of the dead are taken over by one."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.files import CannotWrite
from ablation_lens.runs import claims as module
from ablation_lens.runs.claims import Claim, Claims, Holder
from ablation_lens.runs.folder import ABANDONED, RunFolder
from ablation_lens.runs.locks import HOLDERS, SETTING, WAYS, KeyLocks
from tests.runs import lock_driver

ROOT = Path(__file__).parents[2]


def quick(folder, way="claims", silence=0.25):
    return KeyLocks(folder / "locks", way=way, every=silence / 10, silence=silence)


def is_free(locks, patience=0.0, key="a"):
    with locks.holding(key, patience=patience) as mine:
        return mine


def place_of(folder, key="a"):
    """Where the claims of a key lie."""
    before = set((folder / HOLDERS).glob("*"))
    with quick(folder, silence=60).holding(key):
        (place,) = set((folder / HOLDERS).glob("*")) - before
    return place


def leave(folder, content=b"", key="a"):
    """A claim that nobody beats any more."""
    place = place_of(folder, key)
    place.mkdir()
    claim = place / ("0" * 16)
    claim.write_bytes(content)
    return claim


# ---------------------------------------------------------------------- workers in processes


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    command = [sys.executable, "-m", "tests.runs.lock_driver", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return lambda name: json.loads((folder / name / "told.json").read_text())


@pytest.mark.parametrize("way", [*WAYS, "mixed"])
def test_three_workers_on_one_folder_do_every_piece_once(told, way):
    assert told(f"shared, {way}") == {"ended": [0] * 3, "done": sorted(lock_driver.PIECES), "left": []}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_killed_worker_was_at_is_done_by_one_of_those_who_wait(told, way):
    found = told(f"killed, {way}")
    assert found == {"before": [], "ended": [-9, 0, 0, 0], "done": ["piece 0"], "left": []}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["taking", "taking over"])
def test_killed_at_any_step_a_worker_leaves_a_folder_in_which_others_finish(told, what, way):
    found = told(f"steps of {what}, {way}")
    assert found["killed"] >= 8
    assert found["survived"] > 0, "not every step was reached"
    assert all(found["done"])
    assert found["ended"] == [0] * len(found["done"])
    assert found["left"] == []


def test_a_worker_that_was_stopped_for_long_takes_nothing_from_the_next(told):
    assert told("stopped") == {"free meanwhile": False, "free at the end": True, "ended": [0, 0]}


@pytest.mark.parametrize("way", WAYS)
def test_a_fork_gives_nothing_of_its_parent_back(told, way):
    assert told(f"forked, {way}") == {"mine": True, "other": False, "killed": None}


# ---------------------------------------------------------------------- who is alive


def test_a_claim_with_a_heartbeat_is_never_taken_over(tmp_path):
    with quick(tmp_path).holding("a") as mine:
        assert mine
        assert not is_free(quick(tmp_path), patience=0.7)
    assert is_free(quick(tmp_path))


@pytest.mark.parametrize("years", [-30, 30])
def test_clocks_that_differ_change_nothing(tmp_path, years):
    """A claim that looks old is not taken over at once, and one out of the future not kept for ever."""
    when = time.time() + years * 365 * 86400
    claim = leave(tmp_path)
    os.utime(claim, (when, when))
    locks = quick(tmp_path, silence=0.3)
    assert not is_free(locks)
    assert not is_free(locks, patience=0.1)
    assert is_free(locks, patience=60)


def test_a_claim_of_another_machine_is_kept_though_the_lock_is_free(tmp_path):
    """As on a network disk where every machine has locks of its own."""
    claims, claim = Claims(tmp_path / HOLDERS, every=0.03, silence=0.3), Claim(place_of(tmp_path).name)
    assert claims.take(claim, Holder.of_this_process("a", "", "another machine's lock"))
    assert not is_free(quick(tmp_path, "both"), patience=0.7)
    claim.ended.set()  # it dies
    assert not is_free(quick(tmp_path, "both"))
    assert is_free(quick(tmp_path, "both"), patience=60)


def test_after_a_standstill_a_claim_is_watched_before_it_is_taken_over(tmp_path):
    """Where the server, or who looks, stood still for long, the holder had no time to show itself."""
    locks = KeyLocks(tmp_path / "locks", way="claims", every=10.0, silence=0.2)
    leave(tmp_path)
    assert not is_free(locks)
    time.sleep(0.3)
    assert not is_free(locks)


def test_who_took_a_key_over_keeps_it_when_the_one_before_comes_back(tmp_path):
    claims, name = Claims(tmp_path, every=60), "0" * 14
    first, second, third = Claim(name), Claim(name), Claim(name)
    assert claims.take(first, Holder.of_this_process("a", "", None))
    assert claims.take(second, Holder.of_this_process("a", "", None), lambda other: True)
    claims.give_back(first)
    assert not claims.take(third, None)
    claims.give_back(second)
    assert claims.take(third, None)
    claims.give_back(third)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_copied_while_somebody_worked_there_is_worked_in(tmp_path):
    """The claims come along, and their owners do not."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with quick(tmp_path / "one").holding("a"), quick(tmp_path / "two").holding("a"):
        for number in ("one", "two"):
            shutil.copytree(tmp_path / number, tmp_path / "both", dirs_exist_ok=True)
    assert len(list((tmp_path / "both" / HOLDERS).glob("*/*"))) == 2
    assert is_free(quick(tmp_path / "both", silence=0.1), patience=60)


# ---------------------------------------------------------------------- takeovers, step by step


class Turns:
    """Actors in threads, of which one at a time goes one step, as `choices` say; a step is a call of the system."""

    CALLS = ("mkdir", "open", "write", "rename", "unlink", "rmdir", "scandir", "chmod")

    def __init__(self, choices):
        self.choices, self.actors, self.errors = iter(choices), {}, []
        self.turn_ended = threading.Semaphore(0)

    def step(self):
        """In an actor: wait for its next turn."""
        mine = self.actors.get(threading.get_ident())
        if mine is not None:
            self.turn_ended.release()
            mine.acquire()

    def run(self, tasks):
        with pytest.MonkeyPatch.context() as patch:
            for name in self.CALLS:
                patch.setattr(module.os, name, self._stepping(getattr(os, name)))
            waiting, began = [], threading.Barrier(len(tasks) + 1)
            for task in tasks:
                waiting.append(threading.Semaphore(0))
                threading.Thread(target=self._act, args=(task, waiting[-1], began), daemon=True).start()
            began.wait()
            self.alive = {id(each): each for each in waiting}
            while self.alive:
                order = list(self.alive)
                self.now = order[next(self.choices, 0) % len(order)]
                self.alive[self.now].release()
                assert self.turn_ended.acquire(timeout=60)
        assert self.errors == []

    def _act(self, task, mine, began):
        self.actors[threading.get_ident()] = mine
        began.wait()
        mine.acquire()
        try:
            task()
        except BaseException as error:
            self.errors.append(error)
        del self.actors[threading.get_ident()]
        del self.alive[id(mine)]
        self.turn_ended.release()

    def _stepping(self, real):
        def stepping(*arguments, **options):
            self.step()
            return real(*arguments, **options)

        return stepping


def require_one_at_a_time(folder, choices):
    """Three find the claim of one who is taken for dead, and who comes back late; never do two of them hold it."""
    name, holding, most = "0" * 14, set(), []
    claims, late = Claims(folder, every=600, silence=600), Claim(name)
    assert claims.take(late, Holder("a", "", 1, "host", Holder.of_this_process("a", "", None).since, "dead"))

    def work(number):
        for _ in range(2):
            claim = Claim(name)
            try:
                if claims.take(claim, Holder.of_this_process("a", "", None), lambda other: other.lock == "dead"):
                    holding.add(number)
                    most.append(len(holding))
                    turns.step()
                    most.append(len(holding))
                    holding.remove(number)
            finally:
                claims.give_back(claim)

    turns = Turns(choices)
    turns.run([*(lambda number=number: work(number) for number in range(3)), lambda: claims.give_back(late)])
    assert most, "somebody must get it"
    assert max(most) == 1, "two at a time"
    assert list(folder.iterdir()) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 23), max_size=150))
def test_a_dead_claim_is_taken_over_by_one_in_whatever_order_things_happen(tmp_path_factory, choices):
    require_one_at_a_time(tmp_path_factory.mktemp("turns"), choices)


def test_the_comparison_notices_who_deletes_the_claim_of_another(tmp_path, monkeypatch):
    """As everybody would if claims lay under one name."""
    unlink = os.unlink

    def careless(path, **options):
        place = Path(path).parent
        for name in os.listdir(place) if place.is_dir() else ():
            unlink(place / name)

    monkeypatch.setattr(module.os, "unlink", careless)
    draw = random.Random(2024)
    with pytest.raises(AssertionError, match="two at a time"):  # noqa: PT012
        for number in range(300):
            (tmp_path / str(number)).mkdir()
            require_one_at_a_time(tmp_path / str(number), draw.choices(range(24), k=150))


# ---------------------------------------------------------------------- what a disk answers, and what lies there


@contextmanager
def full(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", refuse)
        yield


def test_a_full_disk_leaves_the_lock_or_is_said_and_nothing_half_made_stays(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run")
    with full(monkeypatch):
        assert is_free(quick(tmp_path, "both"))
        with pytest.raises(OSError, match="No space left"):
            is_free(quick(tmp_path))
        monkeypatch.setenv(SETTING, "claims")
        said = r"cannot write to .*run \(No space left on device\); make room"
        with pytest.raises(CannotWrite, match=said), RunFolder(run.path).locked("a"):
            pass
    assert list((tmp_path / HOLDERS).iterdir()) == []
    assert is_free(quick(tmp_path))


def test_on_a_disk_that_became_full_a_heart_beats_on(tmp_path, monkeypatch):
    with quick(tmp_path).holding("a"), full(monkeypatch):
        assert not is_free(quick(tmp_path), patience=0.7)


def test_a_claim_is_ours_where_only_the_servers_answer_was_lost(tmp_path, monkeypatch):
    real = os.rename

    def renames_and_fails(*arguments, **options):
        real(*arguments, **options)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "rename", renames_and_fails)
        assert is_free(quick(tmp_path))
    assert list((tmp_path / HOLDERS).iterdir()) == []


def test_a_server_that_does_not_rename_to_an_empty_folder_is_done_without(tmp_path, monkeypatch):
    real = os.rename

    def rename(source, target, **options):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "File exists")
        real(source, target, **options)

    monkeypatch.setattr(module.os, "rename", rename)
    place_of(tmp_path).mkdir()
    assert is_free(quick(tmp_path))


STRANGE = {
    "garbage": lambda path: path.write_bytes(b"\xff\x1b[31m" * 100),
    "nothing": lambda path: path.touch(),
    "deep": lambda path: path.write_text("[" * 5000),
    "a link": lambda path: path.symlink_to(path.parents[2] / "kept"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
    "huge": lambda path: os.truncate(path, 2**40) if path.touch() is None else None,
    "a folder": Path.mkdir,
    "many": lambda path: [path.with_name(f"{number:016x}").touch() for number in range(120)],
}


def test_whatever_lies_in_the_place_of_a_claim_is_silent_and_goes(tmp_path):
    (tmp_path / "kept").write_text("kept")
    locks = quick(tmp_path, silence=0.1)
    for kind, put in STRANGE.items():
        claim = leave(tmp_path, key=kind)
        claim.unlink()
        put(claim)
    assert not any(is_free(locks, key=kind) for kind in STRANGE)
    left, end = set(STRANGE), time.monotonic() + 60
    while left and time.monotonic() < end:
        time.sleep(0.02)
        left -= {kind for kind in left if is_free(locks, key=kind)}
    assert left == set()
    assert (tmp_path / "kept").read_text() == "kept"
    assert list((tmp_path / HOLDERS).iterdir()) == []


@pytest.mark.parametrize("what", ["the folder", "a key"])
@pytest.mark.parametrize("kind", ["garbage", "a link", "a pipe"])
def test_what_is_no_folder_where_claims_lie_is_named_or_done_without(tmp_path, kind, what):
    (tmp_path / "kept").mkdir()
    path = place_of(tmp_path)
    if what == "the folder":
        path = path.parent
        path.rmdir()
    if kind == "a link":
        path.symlink_to(tmp_path / "kept")
    else:
        STRANGE[kind](path)
    with pytest.raises(FileFormatError, match=rf"{path.name} is not a folder.*delete it and run the same"):
        is_free(quick(tmp_path))
    assert is_free(quick(tmp_path, "both"))  # the lock excludes, on this machine
    assert list((tmp_path / "kept").iterdir()) == []


# ---------------------------------------------------------------------- settings, sweeping, who is at work


def test_the_environment_chooses_claims_and_nothing_else_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv(SETTING, "claims")
    assert is_free(KeyLocks(tmp_path / "locks"))
    assert not (tmp_path / "locks").exists()
    monkeypatch.setenv(SETTING, "")
    assert is_free(KeyLocks(tmp_path / "locks"))
    assert (tmp_path / "locks").exists()
    monkeypatch.setenv(SETTING, "posix")
    with pytest.raises(AblationLensError, match="ABLATION_LENS_LOCKS is 'posix', and may be both or claims"):
        KeyLocks(tmp_path / "locks")


def test_a_folder_that_is_opened_is_rid_of_what_the_dead_left_and_of_nothing_else(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    holders, long_ago = run.path / HOLDERS, time.time() - ABANDONED - 60
    with run.locked("alive"):
        (alive,) = holders.glob("*/*")
        leave(run.path)
        (holders / ("." + "a" * 16)).mkdir()
        (holders / ("." + "a" * 16) / ("a" * 16)).touch()
        (holders / ("." + "b" * 16)).mkdir()
        (holders / f"{'c' * 14}.txt").write_text("process 1 on a machine")  # of before there were claims
        (holders / "thesis.txt").write_text("years of work")
        (holders / ("d" * 14)).mkdir()
        (holders / ("d" * 14) / "thesis.txt").write_text("years of work")
        young = sorted(holders.rglob("*"))
        RunFolder.create(run.path)
        assert sorted(holders.rglob("*")) == young
        for path in set(young) - {alive}:
            os.utime(path, (long_ago, long_ago))
        RunFolder.create(run.path)
        left = {alive.parent, alive, holders / "thesis.txt", holders / ("d" * 14), holders / ("d" * 14) / "thesis.txt"}
        assert set(holders.rglob("*")) == left
        assert not is_free_in(run, "alive")


def is_free_in(run, key):
    with RunFolder(run.path).locked(key, patience=0) as mine:
        return mine


def listing(path):
    """What is there, and when it was changed; a claim's heart may beat meanwhile."""
    claims = set((path / HOLDERS).glob("*/*"))
    return {entry: None if entry in claims else entry.lstat().st_mtime_ns for entry in [path, *path.rglob("*")]}


@pytest.mark.parametrize("way", WAYS)
def test_who_is_at_work_is_told_and_nothing_is_touched(tmp_path, monkeypatch, way):
    monkeypatch.setenv(SETTING, way)
    run = RunFolder.create(tmp_path / "run")
    assert run.holders() == []
    with run.locked("a", what="tiny-opt: peak, 50 %\x1b[31m"), run.locked("b"):
        before = listing(run.path)
        found = RunFolder(run.path).holders()
        assert listing(run.path) == before
        assert not is_free_in(run, "a"), "asking has freed a lock"
    assert [(each.key, each.what, each.process) for each in found] == [
        ("a", "tiny-opt: peak, 50 %\\x1b[31m", os.getpid()),
        ("b", "", os.getpid()),
    ]
    assert run.holders() == []


def test_the_dead_are_not_shown_as_at_work(tmp_path):
    """Of this machine by their lock, of others by their last heartbeat."""
    locks, stack = quick(tmp_path, "both", silence=60), ExitStack()
    name = place_of(tmp_path).name
    with stack:
        stack.enter_context(locks.holding("a"))
        (claim,) = (tmp_path / HOLDERS).glob("*/*")
        of_this_machine = claim.read_bytes()
    other = Holder.of_this_process("a", "a cell", "a lock elsewhere").to_json().encode()
    for content, age, shown in (
        (of_this_machine, 0, False),
        (other, 0, True),
        (other, 30, True),
        (other, 90, False),
        (other.replace(b'"a"', b'"b"'), 0, False),  # a key that belongs in another place
        (b"garbage", 0, False),
    ):
        claim = leave(tmp_path, content)
        os.utime(claim, (time.time() - age,) * 2)
        assert [each.what for each in locks.holders()] == ["a cell"] * shown
        shutil.rmtree(claim.parent)
    assert name == claim.parent.name

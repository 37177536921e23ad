"""Locks are between processes, so most of these tests have a second one."""

import errno
import gc
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from ablation_lens.runs import locks
from ablation_lens.runs.locks import KeyLocks

HOLDER = """
import sys
from pathlib import Path
from ablation_lens.runs.locks import KeyLocks
with KeyLocks(Path(sys.argv[1])).holding(sys.argv[2], wait=False) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another_process(path, key):
    """Another process that holds a key until the block ends."""
    command = [sys.executable, "-c", HOLDER, str(path), key]
    # Its input is closed at the end of the block, and then it ends.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "True"
        yield process


def try_from_another_process(path, key):
    result = subprocess.run(
        [sys.executable, "-c", HOLDER, str(path), key], input="\n", capture_output=True, text=True, check=True
    )
    return result.stdout.strip() == "True"


def held(path, key):
    with KeyLocks(path).holding(key, wait=False) as mine:
        return not mine


def test_a_key_is_held_by_one_process_and_other_keys_are_free(tmp_path):
    path = tmp_path / "locks"
    with another_process(path, "a"):
        assert held(path, "a")
        assert not held(path, "b")
    assert not held(path, "a")


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "locks"
    with another_process(path, "a") as process:
        process.kill()
        process.wait()
        assert not held(path, "a")


def test_waiting_ends_when_the_other_process_is_done(tmp_path, monkeypatch):
    path = tmp_path / "locks"
    with another_process(path, "a") as process:

        def let_go(seconds):
            process.stdin.close()
            process.wait(60)

        monkeypatch.setattr(locks, "time", SimpleNamespace(sleep=let_go))
        with KeyLocks(path).holding("a", wait=True) as mine:
            assert mine
            assert process.returncode == 0


def test_two_lock_objects_of_one_process_exclude_each_other(tmp_path):
    path = tmp_path / "locks"
    with KeyLocks(path).holding("a", wait=False) as mine:
        assert mine
        assert held(path, "a")
    assert not held(path, "a")


def test_a_second_lock_object_that_is_thrown_away_frees_nothing(tmp_path):
    """To the system, closing any descriptor of the file would free all of this process' locks on it."""
    path = tmp_path / "locks"
    with KeyLocks(path).holding("a", wait=False):
        other = KeyLocks(path)
        with other.holding("b", wait=False):
            pass
        del other
        gc.collect()
        assert not try_from_another_process(path, "a")
    assert try_from_another_process(path, "a")


def test_threads_wait_for_each_other(tmp_path):
    path, order = tmp_path / "locks", []

    def wait():
        with KeyLocks(path).holding("a", wait=True) as mine:
            order.append(("thread", mine))

    with KeyLocks(path).holding("a", wait=False):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.5)
        order.append("first")
    thread.join(60)
    assert order == ["first", ("thread", True)]


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), KeyLocks(tmp_path / "locks").holding("a", wait=False):
        raise ZeroDivisionError
    assert not held(tmp_path / "locks", "a")


def test_a_file_system_without_locks_is_said_and_used_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    used = KeyLocks(tmp_path / "locks")
    with pytest.warns(UserWarning, match=r"has no locks \(No locks available\)"), used.holding("a", wait=True) as mine:
        assert mine
    with used.holding("a", wait=True) as mine:  # said once
        assert mine


def test_a_lock_file_that_cannot_be_opened_is_an_error_and_no_endless_wait(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks.os, "open", refuse)
    with pytest.raises(PermissionError), KeyLocks(tmp_path / "locks").holding("a", wait=True):
        pass


def test_nothing_is_left_open_so_that_a_disk_can_be_unmounted(tmp_path):
    path = tmp_path / "locks"
    with KeyLocks(path).holding("a", wait=False), KeyLocks(path).holding("b", wait=False):
        assert len(locks._files) == 1
        assert held(path, "a")
        assert len(locks._files) == 1
    assert locks._files == {}

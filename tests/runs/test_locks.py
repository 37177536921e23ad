"""Locks are between processes, so most of these tests have a second one."""

import errno
import gc
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from ablation_lens.runs import locks
from ablation_lens.runs.locks import HOLDERS, WAYS, KeyLocks

HOLDER = """
import sys
from pathlib import Path
from ablation_lens.runs.locks import KeyLocks
with KeyLocks(Path(sys.argv[1])).holding(sys.argv[2]) as mine:
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
    with KeyLocks(path).holding(key) as mine:
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


def test_waiting_ends_when_the_other_process_is_done_and_says_whom_it_waits_for(tmp_path):
    path, waited_for = tmp_path / "locks", set()
    with another_process(path, "a") as process:

        def waiting(holder):
            waited_for.add(holder)
            if not process.stdin.closed:
                process.stdin.close()

        with KeyLocks(path).holding("a", patience=60, waiting=waiting) as mine:
            assert mine
            process.wait(60)
    assert {f"process {process.pid} on {socket.gethostname()}"} == {holder.partition(",")[0] for holder in waited_for}
    assert list((tmp_path / HOLDERS).iterdir()) == []  # who is done signs off


def test_a_process_that_is_stopped_is_waited_for_no_longer_than_said(tmp_path):
    path = tmp_path / "locks"
    with another_process(path, "a") as process:
        process.send_signal(signal.SIGSTOP)
        try:
            with KeyLocks(path).holding("a", patience=0.5) as mine:
                assert not mine
        finally:
            process.send_signal(signal.SIGCONT)


SAYING = '{"key": "a", "what": "", "process": 1, "host": "%s", "since": "2025-01-01T00:00:00+00:00", "lock": null}'


@pytest.mark.parametrize(
    "text",
    [
        b"\x1b[31mred\n" * 5,
        b"\xff",
        b"",
        b"x" * 50_000,
        b"[" * 5000,
        (SAYING % "\\u001b[31m").encode(),
        (SAYING % "host").replace("2025-01-01", "9999-12-31").encode(),
    ],
    ids=["red", "bytes", "nothing", "long", "deep", "a host in red", "the end of time"],
)
def test_what_a_holder_says_is_shown_as_one_line_or_not_at_all(tmp_path, text):
    locks, said = KeyLocks(tmp_path / "locks"), []
    with locks.holding("a"):
        (claim,) = (tmp_path / HOLDERS).glob("*/*")
        claim.write_bytes(text)
        with locks.holding("a", patience=0.1, waiting=said.append):
            pass
    assert set(said) == {"another process"}


def test_a_claim_is_made_and_deleted_only_where_it_belongs(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / HOLDERS).symlink_to(elsewhere)
    with KeyLocks(tmp_path / "run" / "locks").holding("a") as mine:
        assert mine
        assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["_take", "_lock"])
def test_an_interrupt_while_a_key_is_taken_frees_it(tmp_path, monkeypatch, where, way):
    real = getattr(KeyLocks, where)

    def interrupted(self, *arguments):
        real(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeyLocks, where, interrupted)
        with pytest.raises(KeyboardInterrupt), KeyLocks(tmp_path / "locks", way=way).holding("a"):
            pass
    assert list((tmp_path / HOLDERS).glob("*")) == []
    assert not held(tmp_path / "locks", "a")
    assert locks._files == {}


def test_two_lock_objects_of_one_process_exclude_each_other(tmp_path):
    path = tmp_path / "locks"
    with KeyLocks(path).holding("a") as mine:
        assert mine
        assert held(path, "a")
    assert not held(path, "a")


def test_a_second_lock_object_that_is_thrown_away_frees_nothing(tmp_path):
    """To the system, closing any descriptor of the file would free all of this process' locks on it."""
    path = tmp_path / "locks"
    with KeyLocks(path).holding("a"):
        other = KeyLocks(path)
        with other.holding("b"):
            pass
        del other
        gc.collect()
        assert not try_from_another_process(path, "a")
    assert try_from_another_process(path, "a")


def test_threads_wait_for_each_other(tmp_path):
    path, order = tmp_path / "locks", []

    def wait():
        with KeyLocks(path).holding("a", patience=60) as mine:
            order.append(("thread", mine))

    with KeyLocks(path).holding("a"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.5)
        order.append("first")
    thread.join(60)
    assert order == ["first", ("thread", True)]


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), KeyLocks(tmp_path / "locks").holding("a"):
        raise ZeroDivisionError
    assert not held(tmp_path / "locks", "a")


def test_where_the_disk_has_no_locks_claims_exclude(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    path = tmp_path / "locks"
    with KeyLocks(path).holding("a") as mine:
        assert mine
        assert held(path, "a")
        assert not held(path, "b")
    assert not held(path, "a")
    assert locks._files == {}


def test_a_lock_file_that_cannot_be_opened_is_an_error_and_no_endless_wait(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks.os, "open", refuse)
    with pytest.raises(PermissionError), KeyLocks(tmp_path / "locks").holding("a", patience=60):
        pass


def test_nothing_is_left_open_so_that_a_disk_can_be_unmounted(tmp_path):
    path = tmp_path / "locks"
    with KeyLocks(path).holding("a"), KeyLocks(path).holding("b"):
        assert len(locks._files) == 1
        assert held(path, "a")
        assert len(locks._files) == 1
    assert locks._files == {}

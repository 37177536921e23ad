"""Ctrl-C is put off, and never lost."""

import signal
import threading

import pytest

from ablation_lens.interrupts import put_off


def press():
    signal.raise_signal(signal.SIGINT)


def test_it_is_noted_so_many_times_and_then_raises(heeding):
    with put_off(2) as came:
        assert not came()
        press()
        assert came()
        press()
        with pytest.raises(KeyboardInterrupt):
            press()
    with pytest.raises(KeyboardInterrupt):  # as before
        press()


def test_within_another_the_inner_one_notes_it(heeding):
    with put_off(1) as outer:
        with put_off(1) as inner:
            press()
        press()
    assert inner()
    assert outer()


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with put_off(0) as came:
            press()
        assert not came()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals():
    asked = []

    def work():
        with put_off(1) as came:
            asked.append(came())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]

"""Pipes, devices, sockets, folders, loops, endless files: in place of any file, refused by kind, before reading."""

import os
import socket
from contextlib import chdir

import pytest

from tests.faults.tally import reads_or_says

SPARSE = 2**33


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def terminal(path):
    path.symlink_to("/dev/tty")


def folder(path):
    path.mkdir()


def listener(path):
    ear = socket.socket(socket.AF_UNIX)
    with chdir(path.parent):  # the name of a socket must be short
        ear.bind(path.name)
    ear.close()


def loop(path):
    path.symlink_to(path)


def dangling(path):
    path.symlink_to(path.parent / "nowhere")


def nothing(path):
    path.write_bytes(b"")


def sparse(path):
    with path.open("wb") as file:
        file.truncate(SPARSE)


def sparse_with_a_beginning(path):
    with path.open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(SPARSE)


WAYS = (pipe, device, terminal, folder, listener, loop, dangling, nothing, sparse, sparse_with_a_beginning)


@pytest.mark.parametrize("kind", ["tensors", "run", "models", "settings"])
def test_special_files(kind, request, tally):
    counted = tally(f"special files: {kind}")
    for victim in request.getfixturevalue(kind):
        require_refused(victim, counted)


def test_special_files_as_corpora(corpora, tally):
    counted = tally("special files: corpora")
    for victim in corpora:
        # A text may be empty, and of any size: a sparse file is a text of zero bytes, cut while it is read.
        require_refused(victim, counted, tuple(way for way in WAYS if way not in (sparse, sparse_with_a_beginning)))


def require_refused(victim, tally, ways=WAYS):
    for way in ways:
        victim.path.unlink()
        way(victim.path)
        with tally.attempt(f"{victim.kind}: {way.__name__}", seconds=20):
            reads_or_says(victim.read, *victim.names)
        victim.restore()

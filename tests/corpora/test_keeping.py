"""What took long to read is kept: the same documents with and without, whatever has happened to the file."""

import json
import os
import subprocess
import sys

import pytest

from ablation_lens.corpora import embedded
from ablation_lens.corpora.keeping import PLACE, cache_folder, kept
from ablation_lens.files import HEADER_BYTES, save_json

STATE = "0123456789abcdef" * 4
DOCUMENTS = ("One.", "Zwei: ß", "Three,\n\nin paragraphs.")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(PLACE, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Made:
    """Makes documents, and knows how often."""

    def __init__(self, documents=DOCUMENTS):
        self.documents, self.times = documents, 0

    def __call__(self):
        self.times += 1
        return self.documents


def asked(make, state=STATE, name="texts"):
    return kept(name, lambda: state, make)


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_what_was_made_once_is_not_made_again(folder):
    make = Made()
    assert asked(make) == asked(make) == DOCUMENTS
    assert make.times == 1


def test_another_state_or_name_has_documents_of_its_own(folder):
    """Another Python, another library, other rules."""
    asked(Made())
    assert asked(Made(("Other.",)), state="f" + STATE[1:]) == ("Other.",)
    assert asked(Made(("Code.",)), name="texts-code") == ("Code.",)
    never = Made()
    assert asked(never) == DOCUMENTS  # and both stay: two Pythons may take turns
    assert never.times == 0


def test_states_of_long_ago_do_not_pile_up(folder):
    for number in range(12):
        asked(Made((str(number),)), state=f"{number:064x}"[::-1])
    asked(Made(), name="texts-code")
    names = sorted(path.name for path in folder.iterdir())
    assert len([name for name in names if name.startswith("texts-code-")]) == 1
    assert len(names) <= 6
    latest = Made()
    assert asked(latest, state=f"{11:064x}"[::-1]) == ("11",)
    assert latest.times == 0


def test_a_library_that_changes_while_it_is_read_is_not_kept(folder):
    states = iter([STATE, "f" * 64])
    assert kept("texts", lambda: next(states), lambda: DOCUMENTS) == DOCUMENTS
    assert not folder.exists()


def forged(path, **changes):
    save_json(path, "kept documents", {"state": STATE, "documents": ["Forged."], **changes})


def without_checksum(path):
    path.write_text(json.dumps({"state": STATE, "documents": ["Forged."]}))


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "another text": lambda path: path.write_bytes(path.read_bytes().replace(b"One.", b"Two.")),
    "no checksum": without_checksum,
    "of another kind": lambda path: save_json(path, "cell", {"state": STATE, "documents": ["Forged."]}),
    "of a later version": lambda path: save_json(
        path, "kept documents", {"state": STATE, "documents": ["Forged."]}, version=3
    ),
    "of another state under this name": lambda path: forged(path, state="0" * 64),
    "no list": lambda path: forged(path, documents="Forged."),
    "no texts": lambda path: forged(path, documents=[1, None]),
    "deep": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again_without_a_word(folder, damage):
    asked(Made())
    path = only_file(folder)
    DAMAGE[damage](path)
    make = Made()
    assert asked(make) == DOCUMENTS
    assert asked(make) == DOCUMENTS
    assert make.times == 1
    assert only_file(folder) == path


def test_something_else_in_its_place_is_neither_read_nor_followed(folder, tmp_path):
    asked(Made())
    path = only_file(folder)
    elsewhere = tmp_path / "elsewhere.json"
    forged(elsewhere)
    before = elsewhere.read_bytes()
    for put in (
        lambda: path.symlink_to(elsewhere),
        lambda: path.symlink_to("/dev/zero"),
        lambda: os.mkfifo(path),
        lambda: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), HEADER_BYTES + 1),
    ):
        path.unlink()
        put()
        make = Made()
        assert asked(make) == asked(make) == DOCUMENTS
        assert make.times == 1  # it was replaced by a file
    assert elsewhere.read_bytes() == before
    path.unlink()
    path.mkdir()
    assert asked(Made()) == DOCUMENTS


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else_is_not_believed(folder):
    asked(Made())
    os.chown(only_file(folder), 12345, 12345)
    make = Made()
    assert asked(make) == DOCUMENTS
    assert make.times == 1


def test_a_place_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    for place in (blocked, blocked / "below", "/proc/nowhere", "~nobody-of-this-name/x"):
        monkeypatch.setenv(PLACE, str(place))
        assert asked(Made()) == DOCUMENTS
    assert blocked.read_text() == "not a folder"
    monkeypatch.setenv(PLACE, str(tmp_path / "cache"))
    monkeypatch.setattr(
        "ablation_lens.corpora.keeping.save_json", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    assert asked(Made()) == DOCUMENTS


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="about XDG")
def test_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv(PLACE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "ablation-lens"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ablation-lens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    assert cache_folder() is None
    assert asked(Made()) == DOCUMENTS
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(PLACE, "off")
    assert cache_folder() is None


_MANY_READERS = """
from ablation_lens.corpora.keeping import kept
for round in range(150):
    state = format(round % 7, "064x")[::-1]
    documents = tuple(f"{round % 7} {number}" for number in range(300))
    assert kept("texts", lambda: state, lambda: documents) == documents
"""


def test_several_processes_read_and_write_at_once(folder):
    """Seven states where four stay: everybody deletes what the others write or are about to read."""
    workers = [subprocess.Popen([sys.executable, "-c", _MANY_READERS], stderr=subprocess.PIPE) for _ in range(3)]
    for worker in workers:
        assert worker.communicate()[1] == b""
        assert worker.returncode == 0
    assert all(path.name.startswith("texts-") for path in folder.iterdir())


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library, whose corpora have not been asked for in this process."""
    module = tmp_path / "library" / "module.py"
    module.parent.mkdir()
    module.write_text(f'"""{"A module. " * 30}"""\nx = 1\n')
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda _: str(module.parent))
    yield module
    forget_in_this_process()


def forget_in_this_process():
    embedded._prose.cache_clear()
    embedded._code.cache_clear()


def read_anew():
    forget_in_this_process()
    return embedded.stdlib_documents()


def test_a_corpus_is_the_same_with_and_without(folder, library, monkeypatch):
    made, again = read_anew(), read_anew()
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(embedded, "docstrings", None)  # a second one that is read would fail
    assert read_anew() == again == made
    monkeypatch.undo()
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda _: str(library.parent))
    monkeypatch.setenv(PLACE, "off")
    assert embedded.digest(read_anew()) == embedded.digest(made)


def test_another_library_or_python_is_another_corpus(folder, library, tmp_path, monkeypatch):
    before = read_anew()
    status = library.stat()
    library.write_text(library.read_text().replace("A module", "A modulo"))  # as long as before, and as old
    os.utime(library, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_anew() != before
    states = {embedded._state()}
    (library.parent / "new.py").write_text("")
    states.add(embedded._state())
    (library.parent / "new.py").rename(library.parent / "old.py")
    states.add(embedded._state())
    monkeypatch.setattr(embedded.sys, "version", "3.99")
    states.add(embedded._state())
    rules = tmp_path / "embedded.py"
    rules.write_text("other rules")
    monkeypatch.setattr(embedded, "__file__", str(rules))
    states.add(embedded._state())
    assert len(states) == 5
    rules.unlink()  # as in a zip: who does not know its rules keeps nothing
    kept_before = set(folder.iterdir())
    assert read_anew()
    assert set(folder.iterdir()) == kept_before

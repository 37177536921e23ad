import errno
import json
import os
import shutil
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.files import CannotWrite
from ablation_lens.measure.score import Score
from ablation_lens.runs import folder
from ablation_lens.runs.folder import MARKER, key_of
from ablation_lens.study.cells import StudyFolder

SCORE = Score(
    documents=(0, 2, 5),
    correct=torch.tensor([1, 0, 3]),
    loss=torch.tensor([0.1, 2.5, 1 / 3], dtype=torch.float64),
    predictions_per_document=torch.tensor([2, 1, 4]),
    splits=1,
)
HEADER = {"group": "g", "method": "peak", "fraction": 0.5, "seed": 42, "seconds": 0.25}
GROUP = {"model": {"name": "m"}, "evaluate": {"name": "c"}, "task": "causal-lm"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def run(tmp_path):
    return StudyFolder.create(tmp_path / "run")


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_a_key_follows_the_values_and_not_their_order(facts):
    assert key_of(facts) == key_of(dict(reversed(facts.items())))
    assert key_of(facts) != key_of({**facts, "\0one more": 1})
    assert key_of(facts) == key_of(json.loads(json.dumps(facts)))


def test_a_cell_reads_back_bit_for_bit(run):
    run.write_cell("k", HEADER, SCORE)
    header, score = StudyFolder(run.path).read_cell("k")
    assert header == {**HEADER, "splits": 1}
    assert (score.documents, score.splits) == (SCORE.documents, 1)
    for name in ("correct", "loss", "predictions_per_document"):
        assert torch.equal(getattr(score, name), getattr(SCORE, name))
        assert getattr(score, name).dtype == getattr(SCORE, name).dtype
    assert run.keys("cells") == ["k"]
    assert run.has("cells", "k")
    assert not run.has("cells", "l")


def test_a_half_written_file_is_no_cell(run):
    (run.path / "cells" / ".k.safetensors.abc.tmp").write_bytes(b"half")
    assert run.keys("cells") == []
    assert not run.has("cells", "k")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_cell_that_was_copied_in_part_is_named_with_the_way_out(run, length):
    run.write_cell("k", HEADER, SCORE)
    whole = run.file("cells", "k").read_bytes()
    run.file("cells", "k").write_bytes(whole[:length])
    with pytest.raises(FileFormatError, match=r"k\.safetensors is not a whole .* delete it and run the same"):
        run.read_cell("k")


def test_a_cell_with_one_bit_flipped_is_refused(run):
    run.write_cell("k", HEADER, SCORE)
    content = bytearray(run.file("cells", "k").read_bytes())
    content[-3] ^= 1
    run.file("cells", "k").write_bytes(content)
    with pytest.raises(FileFormatError, match="checksum differs"):
        run.read_cell("k")


def test_a_file_of_another_kind_is_refused(run):
    run.write_input("k", {"kind": "tokens"}, torch.ones(1, 3, dtype=torch.int64))
    shutil.copy(run.file("inputs", "k"), run.file("cells", "k"))
    with pytest.raises(FileFormatError, match="holds resampling input, but study cell was expected"):
        run.read_cell("k")


def test_a_failure_is_kept_until_the_cell_is_there(run):
    try:
        raise ValueError("no such luck")
    except ValueError as error:
        run.record_failure("k", {"model": "m", "cell": "c"}, error)
    (failure,) = run.failures()
    assert {name: failure[name] for name in ("model", "cell", "error", "message")} == {
        "model": "m",
        "cell": "c",
        "error": "ValueError",
        "message": "no such luck",
    }
    assert "test_folder.py" in "".join(failure["traceback"])
    run.write_cell("k", HEADER, SCORE)
    assert run.failures() == []


def test_what_is_written_once_stays(run):
    run.write_once("groups", "g", GROUP)
    run.write_once("groups", "g", {**GROUP, "task": "another"})
    assert run.group("g") == GROUP
    run.write_once("studies", key_of({"models": ["m"], "methods": []}), {"models": ["m"], "methods": []})
    run.write_once("studies", key_of({"models": ["m"], "methods": []}), {"models": ["m"], "methods": []})
    run.write_once("studies", key_of({"models": ["n"], "methods": []}), {"models": ["n"], "methods": []})
    assert sorted(study["models"] for study in run.studies()) == [["m"], ["n"]]


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "\udcff", "{}", '{"model": 5, "evaluate": {"name": "c"}, "task": "t"}']
)
def test_damaged_json_is_named_with_the_way_out(run, content):
    run.write_once("groups", "g", GROUP)
    (run.path / "groups" / "g.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(FileFormatError, match=r"g\.json is missing or damaged.* delete it and run the same"):
        run.group("g")
    (run.path / "failures" / "f.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(FileFormatError, match=r"f\.json"):
        run.failures()
    (run.path / "studies" / "s.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(FileFormatError, match=r"s\.json"):
        run.studies()


@pytest.mark.parametrize("name", ['x"><img src=x onerror=alert(1)>', "../../secrets", "", ["g"], None])
def test_names_that_a_study_would_not_give_are_refused(run, name):
    for ask in (run.group, run.statistics):
        with pytest.raises(FileFormatError, match="is not a name that a run gives"):
            ask(name)


def listing(path):
    return {str(entry.relative_to(path)): entry.stat().st_mtime_ns for entry in path.rglob("*")}


def test_a_folder_of_another_format_version_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / MARKER).write_text('{"format": 2}')
    before = listing(tmp_path)
    for open_it in (StudyFolder, StudyFolder.create):
        with pytest.raises(FileFormatError, match="format version 2, this ablation-lens reads 1"):
            open_it(tmp_path)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"format"'])
def test_a_damaged_marker_is_one_sentence_and_mended_by_deleting_it(run, content):
    run.write_cell("k", HEADER, SCORE)
    (run.path / MARKER).write_text(content)
    for open_it in (StudyFolder, StudyFolder.create):
        with pytest.raises(FileFormatError, match="delete it and run the same command again; the rest is kept"):
            open_it(run.path)
    (run.path / MARKER).unlink()
    assert StudyFolder.create(run.path).keys("cells") == ["k"]


def test_other_peoples_folders_are_refused_and_left_as_they_are(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    before = listing(tmp_path)
    with pytest.raises(AblationLensError, match=r"holds other files \(thesis\.tex\)"):
        StudyFolder.create(tmp_path)
    with pytest.raises(AblationLensError, match=r"thesis\.tex is a file"):
        StudyFolder.create(tmp_path / "thesis.tex")
    with pytest.raises(FileFormatError, match="is not a run folder"):
        StudyFolder(tmp_path)
    assert listing(tmp_path) == before


def test_creating_was_interrupted_before_the_marker(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / f".{MARKER}.abc.tmp").write_text("{")
    assert StudyFolder.create(tmp_path).keys("cells") == []


def test_old_left_overs_of_killed_processes_are_swept_and_young_ones_left(run):
    elsewhere = run.path.parent / "elsewhere"
    elsewhere.mkdir()
    (run.path / "inputs").rmdir()
    (run.path / "inputs").symlink_to(elsewhere)
    old, young, foreign, theirs = (
        place / f".ablation-lens-{number:012x}.tmp"
        for number, place in enumerate([run.path / "statistics", run.path / "statistics", run.path / "mine", elsewhere])
    )
    (run.path / "mine").mkdir()
    long_ago = time.time() - 2 * folder.ABANDONED
    for path in (old, young, foreign, theirs):
        path.write_bytes(b"x" * 10)
        if path is not young:
            os.utime(path, (long_ago, long_ago))
    StudyFolder.create(run.path)
    assert [path.exists() for path in (old, young, foreign, theirs)] == [False, True, True, True]


def test_folders_merge_by_copying(tmp_path, run):
    other = StudyFolder.create(tmp_path / "other")
    run.write_cell("a", HEADER, SCORE)
    other.write_cell("b", HEADER, SCORE)
    shutil.copytree(other.path, run.path, dirs_exist_ok=True)
    assert StudyFolder(run.path).keys("cells") == ["a", "b"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(run, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ablation_lens.files.os.fsync", full)
    with pytest.raises(CannotWrite, match=r"cannot write to .*run \(No space left on device\); make room"):
        run.write_cell("k", HEADER, SCORE)
    with pytest.raises(CannotWrite):
        run.record_failure("k", {}, ValueError())
    assert [path for path in run.path.rglob("*") if path.is_file() and path.name != MARKER] == []


def test_a_lock_that_cannot_be_taken_for_want_of_permission_is_one_sentence(run, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ablation_lens.runs.locks.os.open", refuse)
    with pytest.raises(CannotWrite, match="Permission denied"), run.locked("k"):
        pass


def test_an_error_of_the_work_under_a_lock_is_not_taken_for_the_disks(run):
    with pytest.raises(FileNotFoundError), run.locked("k"):
        raise FileNotFoundError("of the work")

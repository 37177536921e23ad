import dataclasses
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
from ablation_lens.study.records import CellRecord
from tests.made_runs import add_input, group_record

SCORE = Score(
    documents=(0, 2, 5),
    correct=torch.tensor([1, 0, 3]),
    loss=torch.tensor([0.1, 2.5, 1 / 3], dtype=torch.float64),
    predictions_per_document=torch.tensor([2, 1, 4]),
    splits=1,
)
RECORD = CellRecord(group="g", method="peak", fraction=0.5, seed=42, seconds=0.25, splits=1, threads=2)
KEY = RECORD.key
GROUP = group_record()

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
    run.write_cell(RECORD, SCORE)
    record, score = StudyFolder(run.path).read_cell(KEY)
    assert record == RECORD
    assert (score.documents, score.splits) == (SCORE.documents, 1)
    for name in ("correct", "loss", "predictions_per_document"):
        assert torch.equal(getattr(score, name), getattr(SCORE, name))
        assert getattr(score, name).dtype == getattr(SCORE, name).dtype
    assert run.keys("cells") == [KEY]
    assert run.has("cells", KEY)
    assert not run.has("cells", "l")


def test_a_half_written_file_is_no_cell(run):
    (run.path / "cells" / ".k.safetensors.abc.tmp").write_bytes(b"half")
    assert run.keys("cells") == []
    assert not run.has("cells", "k")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_cell_that_was_copied_in_part_is_named_with_the_way_out(run, length):
    run.write_cell(RECORD, SCORE)
    whole = run.file("cells", KEY).read_bytes()
    run.file("cells", KEY).write_bytes(whole[:length])
    with pytest.raises(FileFormatError, match=rf"{KEY}\.safetensors is not a whole .* delete it and run the same"):
        run.read_cell(KEY)


def test_a_cell_with_one_bit_flipped_is_refused(run):
    run.write_cell(RECORD, SCORE)
    content = bytearray(run.file("cells", KEY).read_bytes())
    content[-3] ^= 1
    run.file("cells", KEY).write_bytes(content)
    with pytest.raises(FileFormatError, match="checksum differs"):
        run.read_cell(KEY)


def test_a_file_of_another_kind_is_refused(run):
    key = add_input(run, "g")
    shutil.copy(run.file("inputs", key), run.file("cells", "k"))
    with pytest.raises(FileFormatError, match="holds resampling input, but study cell was expected"):
        run.read_cell("k")


def test_a_file_under_another_name_is_refused(run):
    """What is in it is whole, and the name would say that it is something else."""
    run.write_cell(RECORD, SCORE)
    run.write_group(GROUP)
    run.write_study({"models": ["m"], "methods": []})
    run.record_failure(key_of({"model": "m"}), {"model": "m", "facts": {"model": "m"}}, ValueError())
    key = add_input(run, "g")
    read = {
        run.file("cells", KEY): run.read_cell,
        run.file("inputs", key): run.read_input,
        run.json("groups", GROUP.key): run.group,
        run.json("studies", run.names("studies")[0]): run.study,
        run.json("failures", run.failed()[0]): run.failure,
    }
    for path, reads in read.items():
        reads(path.stem)
        other = path.with_stem("0" * 24)
        path.rename(other)
        with pytest.raises(FileFormatError, match=rf"{other.name} .* its name must be {path.stem}.* delete it and run"):
            reads(other.stem)


def failed(run, key="k", message="no such luck"):
    try:
        raise ValueError(message)
    except ValueError as error:
        run.record_failure(key, {"model": "m", "cell": "c"}, error)


def test_a_failure_is_kept_until_the_cell_is_there(run):
    failed(run, KEY)
    (failure,) = run.failures()
    assert (failure.model, failure.cell, failure.error, failure.message) == ("m", "c", "ValueError", "no such luck")
    assert "test_folder.py" in "".join(failure.traceback)
    run.write_cell(RECORD, SCORE)
    assert run.failures() == []
    failed(run, KEY)  # as a process leaves it that is killed after writing the cell
    assert run.failures() == []


def test_a_failure_of_any_text_can_be_read_again(run):
    failed(run, message="\udcff \x1b[31m " + "long " * 10**6)
    (failure,) = run.failures()
    assert len(failure.message) < 20_000


def test_what_is_written_once_stays(run):
    run.write_group(GROUP)
    run.write_group(dataclasses.replace(GROUP, task="another"))
    assert run.group(GROUP.key) == GROUP
    for name in ("m", "m", "n"):
        run.write_study({"models": [name], "methods": []})
    assert sorted(study.models for study in run.studies()) == [("m",), ("n",)]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "\udcff", "{}", '{"model": 5, "evaluate": {"name": "c"}, "task": "t"}', "[" * 10**5, "NaN"],
    ids=lambda content: content[:20].encode("ascii", "replace").decode(),
)
def test_damaged_json_is_named_with_the_way_out(run, content):
    for part, read in (("groups", run.group), ("failures", run.failure), ("studies", run.study)):
        path = run.json(part, "x")
        path.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(FileFormatError, match=rf"{part}/x\.json .*delete it and run the same"):
            read("x")


def test_json_with_a_changed_character_is_refused(run):
    run.write_group(GROUP)
    path = run.json("groups", GROUP.key)
    path.write_text(path.read_text().replace('"predictions": 200', '"predictions": 201'))
    with pytest.raises(FileFormatError, match="changed after it was written"):
        run.group(GROUP.key)


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


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"format"', "[" * 900, "\xff"])
def test_a_damaged_marker_is_one_sentence_and_mended_by_deleting_it(run, content):
    run.write_cell(RECORD, SCORE)
    (run.path / MARKER).write_text(content)
    for open_it in (StudyFolder, StudyFolder.create):
        with pytest.raises(FileFormatError, match="delete it and run the same command again; the rest is kept"):
            open_it(run.path)
    (run.path / MARKER).unlink()
    assert StudyFolder.create(run.path).keys("cells") == [KEY]


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
    run.write_cell(RECORD, SCORE)
    another = dataclasses.replace(RECORD, seed=43)
    other.write_cell(another, SCORE)
    shutil.copytree(other.path, run.path, dirs_exist_ok=True)
    assert StudyFolder(run.path).keys("cells") == sorted([KEY, another.key])


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(run, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ablation_lens.files.os.fsync", full)
    with pytest.raises(CannotWrite, match=r"cannot write to .*run \(No space left on device\); make room"):
        run.write_cell(RECORD, SCORE)
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


# ---------------------------------------------------------------------- what is no plain file


def pipe(path):
    os.mkfifo(path)


def zeros(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**33)


def empty_folder(path):
    path.mkdir()


SPECIAL = (pipe, zeros, sparse, empty_folder)


@pytest.mark.parametrize("put", SPECIAL)
def test_nothing_hangs_or_bursts_whatever_lies_in_place_of_a_file(run, put):
    """Each is a sentence that names it, and nothing of it was read."""
    run.write_cell(RECORD, SCORE)
    names = {"cells": run.read_cell, "inputs": run.read_input}
    paths = {run.file(part, "x"): read for part, read in names.items()}
    names = {"groups": run.group, "studies": run.study, "failures": run.failure}
    paths |= {run.json(part, "x"): read for part, read in names.items()}
    for path, read in paths.items():
        put(path)
        with pytest.raises(FileFormatError, match=rf"x\{path.suffix} (is|has) "):
            read("x")
    (run.path / MARKER).unlink()
    put(run.path / MARKER)
    for open_it in (StudyFolder, StudyFolder.create):
        with pytest.raises(FileFormatError, match=rf"{MARKER} (is|has) "):
            open_it(run.path)


@pytest.mark.parametrize("part", ["cells", "failures", "studies"])
@pytest.mark.parametrize("put", [pipe, zeros, sparse])
def test_a_part_that_is_no_folder_is_named(run, part, put):
    (run.path / part).rmdir()
    put(run.path / part)
    with pytest.raises(FileFormatError, match=rf"{part} cannot be read \(Not a directory\)"):
        run._names(part, ".json")


@pytest.mark.parametrize("put", [pipe, zeros, empty_folder, lambda path: path.symlink_to("elsewhere")])
def test_locks_that_are_no_plain_file_are_refused_and_nothing_is_made_elsewhere(run, put):
    put(run.path / "locks")
    with pytest.raises(FileFormatError, match=r"locks is not a plain file.*delete it"), run.locked("k"):
        pass
    assert not (run.path / "elsewhere").exists()


class Notes(folder.RunFolder):
    kind = "notes"
    parts = ("pages",)


def test_a_folder_of_another_kind_has_its_parts_and_is_not_taken_for_a_study(tmp_path, run):
    notes = Notes.create(tmp_path / "notes")
    assert sorted(path.name for path in notes.path.iterdir() if path.is_dir()) == ["pages"]
    assert Notes.create(notes.path).path == notes.path
    assert (Notes.is_at(notes.path), Notes.is_at(run.path), Notes.is_at(tmp_path)) == (True, False, False)
    assert StudyFolder.is_at(run.path)
    assert json.loads((run.path / MARKER).read_text()) == {"format": 1}  # as every study before
    for opened, place, words in (
        (StudyFolder, notes.path, "folder of 'notes', and one of 'study'"),
        (StudyFolder.create, notes.path, "folder of 'notes'"),
        (Notes, run.path, "folder of 'study', and one of 'notes'"),
    ):
        with pytest.raises(FileFormatError, match=words):
            opened(place)

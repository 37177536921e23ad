"""Study(batch_size="auto"): chosen once for each model of a folder, by whoever comes first."""

import json

import pytest

from ablation_lens import Study
from ablation_lens.errors import AblationLensError, FileFormatError
from ablation_lens.study.cells import StudyFolder

MIB = 2**20


@pytest.fixture
def machine(monkeypatch):
    """`machine(megabytes)`: from now on this is a machine with so much free memory."""

    def with_free(megabytes):
        monkeypatch.setattr("ablation_lens.tasks.batch_sizes.free_memory", lambda device: megabytes * MIB)

    return with_free


def study(**changes):
    sizes = {"collect_images": 40, "evaluate_images": 32}
    return Study(
        **{"models": "tiny-vit", "methods": "zero", "fractions": 0.5, "seeds": [1], "batch_size": "auto"}
        | sizes
        | changes
    )


def cells(folder):
    return StudyFolder(folder).keys("cells")


def group(folder):
    kept = StudyFolder(folder)
    return kept.group(kept.names("groups")[0])


def chosen(folder):
    files = (folder / "batch_sizes").iterdir()
    return sorted(json.loads(path.read_text())["content"]["batch_size"] for path in files)


def test_who_comes_first_chooses_for_all_who_go_on(tmp_path, machine):
    machine(6)
    study().run(tmp_path, progress=False)
    first, size = cells(tmp_path), group(tmp_path).batch_size
    assert 1 < size < 32
    machine(4000)
    results = study().run(tmp_path, progress=False)
    assert cells(tmp_path) == first
    study(fractions=[0.5, 1.0]).run(tmp_path, progress=False)
    assert {StudyFolder(tmp_path).group(name).batch_size for name in StudyFolder(tmp_path).names("groups")} == {size}
    assert len(results.frame) == 2
    # The plain number means the same cells, also for one who never heard of "auto".
    study(batch_size=size).run(tmp_path, progress=False)
    assert len(cells(tmp_path)) == 3


def test_another_folder_and_other_documents_are_chosen_for_anew(tmp_path, machine):
    machine(6)
    study().run(tmp_path / "a", progress=False)
    machine(4000)
    study().run(tmp_path / "b", progress=False)
    study(evaluate_images=16).run(tmp_path / "a", progress=False)
    small, large = chosen(tmp_path / "a"), chosen(tmp_path / "b")
    assert len(small) == 2
    assert small[0] < small[1] == large[0]


def test_of_two_who_choose_at_the_same_moment_one_is_followed(tmp_path):
    folder, facts = StudyFolder.create(tmp_path / "run"), {"model": "x"}

    def chosen_while_another_does():
        assert folder.batch_size(facts, lambda: 8) == 8
        return 16

    assert folder.batch_size(facts, chosen_while_another_does) == 8
    assert folder.batch_size(facts, lambda: 32) == 8
    assert not list(tmp_path.rglob(".*"))


def test_a_number_that_somebody_wrote_into_the_file_is_not_believed(tmp_path):
    folder, facts = StudyFolder.create(tmp_path), {"model": "x"}
    folder.batch_size(facts, lambda: 8)
    (path,) = tmp_path.glob("batch_sizes/*")
    for change in ({"batch_size": 0}, {"batch_size": "8"}, {"facts": {"model": "y"}}):
        path.write_text(json.dumps({"facts": facts, "batch_size": 8, **change}))
        with pytest.raises(FileFormatError, match="does not hold what it should"):
            folder.batch_size(facts, lambda: 8)


def test_a_word_that_is_not_auto_is_refused_when_it_is_given(tmp_path):
    for wrong in ("automatic", "8", 0, -1, 1.5):
        with pytest.raises(AblationLensError, match="batch_size"):
            study(batch_size=wrong)
    (tmp_path / "study.toml").write_text('models = ["tiny-vit"]\nbatch_size = "auto"\n')
    assert Study.from_toml(tmp_path / "study.toml").batch_size == "auto"


def test_what_is_counted_changes_no_size(tmp_path, machine):
    def of_words(count):
        sizes = {"collect_tokens": 300, "evaluate_tokens": 300, "collect_images": None, "evaluate_images": None}
        return study(models="tiny-opt", count=count, **sizes)

    machine(6)
    of_words("skip-common").run(tmp_path, progress=False)
    first = cells(tmp_path)
    machine(4000)
    of_words(["all", "skip-common"]).run(tmp_path, progress=False)
    assert set(first) < set(cells(tmp_path))
    assert len(chosen(tmp_path)) == 1

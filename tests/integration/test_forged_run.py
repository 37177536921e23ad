"""A run folder in which somebody changed values on purpose, under right checksums and right names.

What is made of it is a result that is possible, or a sentence that names the file; never another exception.
"""

import random
import shutil
import warnings
from functools import partial

import numpy as np
import pytest

from ablation_lens.errors import AblationLensError
from ablation_lens.files import load_json, load_tensors, save_json, save_tensors
from ablation_lens.neurons import statistics
from ablation_lens.report.study import make_report
from ablation_lens.runs.folder import FAILURE, key_of
from ablation_lens.study import cells
from ablation_lens.study.records import CellRecord, InputRecord
from ablation_lens.study.results import Results, UnreadableFile
from ablation_lens.study.study import Study
from ablation_lens.study.table2 import make_table2
from tests.forging import MUTATIONS

PER_PART = {"cells": 90, "groups": 60, "failures": 25, "inputs": 25, "statistics": 25, "studies": 25}

KINDS = {
    "cells": cells.KIND,
    "groups": cells.GROUP_KIND,
    "failures": FAILURE,
    "inputs": cells.INPUT_KIND,
    "statistics": statistics.KIND,
    "studies": cells.STUDY_KIND,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Five cells and two failures."""
    from ablation_lens import centers

    @centers.register("fails")
    def fails(statistics):
        if statistics.shape[0] > 1:
            raise ValueError("this one always fails")
        return statistics.mean

    sizes = {"collect_images": 16, "evaluate_images": 16, "batch_size": 16, "bins": 16}
    methods = ["zero", "resample-pixels", "fails"]
    study = Study(models=["tiny-vit"], methods=methods, fractions=[0.5], seeds=[1, 2], **sizes)
    folder = tmp_path_factory.mktemp("forged") / "run"
    study.run(folder, progress=False)
    centers.unregister("fails")
    return folder


def right_name(part, values):
    """What a forger who knows the rules would call the file; None where nothing would do."""
    try:
        if part in ("cells", "inputs"):
            return (CellRecord if part == "cells" else InputRecord).from_dict(values).key
        return key_of({"groups": values["facts"], "failures": values["facts"], "studies": values}[part])
    except (AblationLensError, KeyError, TypeError, ValueError):
        return None


def forge(path, draw):
    """Change a file and write it with a right checksum, mostly under the name that its content now asks for."""
    part = path.parent.name
    kind, tensors, version = KINDS[part], {}, 1
    if path.suffix == ".json":
        values = load_json(path, kind)
    else:
        version = statistics.VERSION if part == "statistics" else 1
        values, tensors = load_tensors(path, kind, newest=version)
    # What changes tensors changes nothing in JSON; an empty header has no place to change.
    for mutate in draw.choices(MUTATIONS if tensors else MUTATIONS[:7], k=draw.choice((1, 1, 2))):
        if values:
            mutate(values, tensors, draw)
    if path.suffix == ".json":
        save_json(path, kind, values)
    else:
        save_tensors(path, kind, values, tensors, version=version)
    name = right_name(part, values)
    if part != "statistics" and name is not None and draw.random() < 0.8:
        path.rename(path.with_stem(name))


def use(folder, report):
    """Everything that is made of a run folder."""
    results = Results.load(folder)
    frame = results.frame
    assert frame["top1"].between(0, 1).all()
    assert np.isfinite(frame["cross_entropy"]).all()
    assert (frame["cross_entropy"] >= 0).all()
    assert frame["fraction"].between(0, 1).all()
    assert not frame.duplicated(["group", "method", "fraction", "seed"]).any()
    made = make_table2(results, [*{*frame["fraction"]} - {0.0}])
    assert made.markdown().replace("\n", "").isprintable()
    assert made.latex().replace("\n", "").isprintable()
    assert made.csv().replace("\n", "").isprintable()
    made.rich()
    if report:
        assert make_report(results).markdown().replace("\n", "").isprintable()


def sentence_of(work):
    """What is said where the work cannot be done; any other exception, and any warning but one, is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UnreadableFile)
        try:
            work()
        except AblationLensError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("part", PER_PART)
def test_forged_files_are_possible_results_or_one_sentence(original, tmp_path, part):
    draw = random.Random(part)
    folder = shutil.copytree(original, tmp_path / "run")
    path = min((folder / part).glob("[!.]*.*"))
    content, others = path.read_bytes(), {*(folder / part).iterdir()} - {path}
    # What the report alone reads is read by the report.
    every = 30 if part in ("cells", "groups", "studies") else 4
    for number in range(PER_PART[part]):
        forge(path, draw)
        assert sentence_of(partial(use, folder, report=number % every == 0)).isprintable()
        for forged in {*(folder / part).iterdir()} - others:
            forged.unlink()
        path.write_bytes(content)


def test_the_whole_folder_is_used_without_a_word(original):
    use(original, report=True)

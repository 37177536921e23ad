"""A run folder in which somebody changed values on purpose, under right checksums and right names.

What is made of it is a result that is possible, or a sentence that names the file; never another exception.
"""

import copy
import json
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ablation_lens.errors import AblationLensError
from ablation_lens.files import save_json, save_tensors
from ablation_lens.report.study import make_report
from ablation_lens.runs.folder import key_of
from ablation_lens.study.records import CellRecord, InputRecord
from ablation_lens.study.results import Results, UnreadableFile
from ablation_lens.study.study import Study
from ablation_lens.study.table2 import make_table2

PER_PART = {"cells": 90, "groups": 60, "failures": 25, "inputs": 25, "statistics": 25, "studies": 25}
HOSTILE = (
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    -(10**30),
    1e308,
    "",
    "two\nlines \x1b[31m",
    "=cmd()|<script>",
    "../../etc/passwd",
    "peak bins=0",
    "none",
    [],
    {},
    [[[1]]],
    {"a": {"b": []}},
)
NUMBERS = (0, 1, -1, 2**20, -(2**40), 2**62, float("nan"), float("inf"), 1e30, -1e38)


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


def opened(path):
    with safe_open(path, framework="pt") as file:
        outer = json.loads(file.metadata()["ablation_lens"])
        return outer, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def holders(values):
    """Every dict and list in plain values."""
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    found = [values] if isinstance(values, dict | list) and len(values) else []
    return found + [holder for value in inner for holder in holders(value)]


def change(values, draw):
    """Plain values with one of them replaced, removed, renamed or moved."""
    values = copy.deepcopy(values)
    holder = draw.choice(holders(values))
    place = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    match draw.choice(("replace", "replace", "replace", "remove", "rename", "move")):
        case "remove":
            del holder[place]
        case "rename" if isinstance(holder, dict):
            holder[f"{place}x"] = holder.pop(place)
        case "move":
            other = draw.choice(holders(values))
            holder[place] = copy.deepcopy(draw.choice(list(other.values()) if isinstance(other, dict) else other))
        case _:
            holder[place] = copy.deepcopy(draw.choice(HOSTILE))
    return values


def change_tensors(tensors, draw):
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = draw.choice(sorted(tensors))
    tensor = tensors.pop(name)
    match draw.choice(("value", "value", "value", "all", "shape", "longer", "dtype", "remove", "rename", "empty")):
        case "value" | "all" as how if tensor.numel():
            flat, number = tensor.view(-1), draw.choice(NUMBERS)
            if not tensor.is_floating_point():
                number = 0 if number != number else int(max(-(2.0**62), min(2.0**62, number)))
            flat[slice(None) if how == "all" else draw.randrange(len(flat))] = number
        case "shape":
            tensor = tensor.reshape(1, -1)
        case "longer":
            tensor = torch.cat([tensor, tensor])
        case "dtype":
            tensor = tensor.to(draw.choice((torch.float16, torch.int32, torch.bool, torch.float32)))
        case "empty":
            tensor = tensor.new_zeros(0)
        case "remove":
            return tensors
        case "rename":
            name = f"{name}x"
    return {**tensors, name: tensor}


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
    if path.suffix == ".json":
        outer = json.loads(path.read_text())
        values = change(outer["content"], draw)
        save_json(path, outer["ablation_lens"]["kind"], values)
    else:
        outer, tensors = opened(path)
        values = outer["header"]
        if draw.random() < 0.5:
            values = change(values, draw)
        else:
            tensors = change_tensors(tensors, draw)
        save_tensors(path, outer["kind"], values, tensors, version=outer["version"])
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
    content = path.read_bytes()
    for number in range(PER_PART[part]):
        forge(path, draw)
        (forged,) = {*(folder / part).iterdir()} - {*original_files(original, folder, part) - {path}}
        # What the report alone reads is read by the report.
        every = 30 if part in ("cells", "groups", "studies") else 4
        said = sentence_of(lambda: use(folder, report=number % every == 0))  # noqa: B023
        assert said.isprintable()
        forged.unlink()
        path.write_bytes(content)


def original_files(original, folder, part):
    return {folder / part / path.name for path in (original / part).iterdir()}


def test_the_whole_folder_is_used_without_a_word(original):
    use(original, report=True)

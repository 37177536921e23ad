"""docs/reference/file-formats.md says what the code writes."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

import ablation_lens as al
from ablation_lens.files import save_json, save_tensors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/file-formats.md").read_text(encoding="utf-8")


def rows(heading):
    """The cells of a table's rows, without the backticks, below a heading of it."""
    table = PAGE[PAGE.index(heading) :].split("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


WRITES = {"save_tensors": save_tensors, "write": save_tensors} | dict.fromkeys(("write_once", "settle"), save_json)
WRITES |= {"save_json": save_json}


def written():
    """Every kind of file that some line of the package writes, and the version it gives it."""
    found = {}
    for path in sorted((ROOT / "ablation_lens").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(rf"\b({'|'.join(WRITES)})\(", text):
            continue
        for call in (node for node in ast.walk(ast.parse(text)) if type(node) is ast.Call):
            name = getattr(call.func, "id", getattr(call.func, "attr", None))
            place = 1 if name in ("save_tensors", "save_json") else 2
            kind = call.args[place] if name in WRITES and len(call.args) > place else None
            if not isinstance(kind, ast.Name) or not kind.id.isupper():
                continue
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            newest = inspect.signature(WRITES[name]).parameters["version"].default
            if any(option.arg == "version" for option in call.keywords):
                newest = module.VERSION
            found[getattr(module, kind.id)] = newest
    return found


def test_the_newest_version_of_every_kind_is_that_of_the_code():
    told = {kind: int(newest) for kind, newest, *_ in rows("| Kind | Newest") + rows("| JSON kind | Newest")}
    assert len(told) > 20
    assert told == written()


SIZES = {"layer": 4, "head": 4, "dim": 32, "bin": 16, "bin + 2": 18}


def test_a_statistics_file_holds_the_tensors_that_are_told(tmp_path):
    model = al.load_model("tiny-opt")
    plan = al.task_for(model).batches(split="collect", tokens=300)
    al.collect(model, plan, passes=2, positions=True, bins=16, progress=False).save(tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    told = {name: (dtype, shape) for name, dtype, shape, _ in rows("| Tensor | dtype")}
    told |= {f"trimmed.{name.removeprefix('histogram.')}": each for name, each in told.items() if "histogram" in name}
    told["trimmed.counts"] = ("int64", "layer head dim bin + 2")
    told |= {"position.sums": ("float64", "layer pos head dim"), "position.counts": ("int64", "pos")}
    assert saved.keys() == told.keys()
    for name, (dtype, shape) in told.items():
        axes = re.findall(r"bin \+ 2|\w+", shape)
        sizes = [SIZES.get(axis, size) for axis, size in zip(axes, saved[name].shape, strict=True)]
        assert (getattr(torch, dtype), sizes) == (saved[name].dtype, list(saved[name].shape)), name

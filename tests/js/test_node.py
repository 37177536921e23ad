"""The page's scripts under Node, on vectors that the Python packer writes."""

import json
import math
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ablation_lens.explorer.curves import describe_curves
from ablation_lens.explorer.dataset import pack_dataset
from ablation_lens.explorer.packing import display_histogram, pack_counts, unpack_counts
from ablation_lens.sites import Site
from tests.made_curves import curves_of
from tests.made_effects import effects_of
from tests.synthetic_statistics import draw, record, statistics_of

HERE = Path(__file__).parent


def vector(name, statistics, compared=None, effects=None, curves=None):
    dataset = pack_dataset(statistics, name, compared=compared, effects=effects)
    blobs = {"summary-0": dataset.pop("summary")}
    for layer, packed in enumerate(dataset["layers"]):
        blobs[f"layer-0-{layer}"] = packed.pop("data")
    histogram = display_histogram(statistics.histogram)
    flat = histogram.counts().flatten(0, 2)
    rounded = unpack_counts(*pack_counts(flat, histogram.offset.flatten(), dataset["widths"]))
    table = statistics.table()
    columns = {
        name: torch.tensor(table[name].to_numpy()).float().tolist() for name in ("mean", "std", "skew", "share_zero")
    }
    columns["max"] = table["max"].tolist()
    columns["center:median"] = statistics.center("median").flatten().float().tolist()
    return {
        "name": name,
        "curves": None if curves is None else describe_curves(curves, statistics),
        "dataset": dataset,
        "blobs": blobs,
        "counts": rounded.tolist(),
        "totals": flat.sum(-1).tolist(),
        "widths": [
            {
                "width": width,
                "peak": statistics.center("peak", bins=width).flatten().tolist(),
                "epsilon": statistics.histogram.coarsen(width).epsilon.flatten().tolist(),
            }
            for width in dataset["widths"]
        ],
        "columns": {key: [None if math.isnan(value) else value for value in values] for key, values in columns.items()},
    }


def awkward():
    """Constants, one far value, whole numbers, tiny and huge scales."""
    values = draw(3000, (2, 2, 8), seed=4)
    values[:, 0, 0, 0] = 0.0
    values[:, 0, 0, 1] = -7.25
    values[0, 0, 0, 2] = 3e4
    values[:, 0, 0, 3] = values[:, 0, 0, 3].mul(3).round()
    values[:, 0, 0, 4] *= 1e-30
    values[:, 0, 0, 5] = values[:, 0, 0, 5] * 1e-3 + 1e4
    return values


def mlp_provenance():
    return replace(statistics_of(draw(5, (3, 1, 8))).provenance, site="mlp")


def silent():
    """ReLU neurons that are above 0 never, seldom, often and always, and the same upside down."""
    values = draw(3000, (2, 1, 8), seed=6)
    on = torch.rand(values.shape) < torch.tensor([0.0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0])
    return torch.where(on, values.abs() + 0.01, 0.0) * torch.tensor([[[1.0]], [[-1.0]]])


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "vectors.json"
    made = [
        vector(
            "synthetic",
            statistics_of(draw(20_000, (3, 2, 16))),
            curves=curves_of([0.5, 9.0], source=record((3, 2, 16))),
        ),
        vector("awkward", statistics_of(awkward())),
        vector("float64", statistics_of(awkward().double() + 1e6)),
        vector("bfloat16", statistics_of(draw(3000, (1, 2, 8)).bfloat16())),
        vector("silent", statistics_of(silent())),
        vector("mlp", replace(statistics_of(draw(500, (3, 1, 8))), provenance=mlp_provenance())),
        vector("compared", statistics_of(draw(3000, (1, 2, 8))), compared=statistics_of(draw(3000, (1, 2, 8)) + 1)),
        vector(
            "worth",
            statistics_of(draw(500, (2, 2, 4))),
            effects=effects_of({Site.Z: torch.tensor([[-1.0, 0.5], [-2.0, 0.0]])}),
        ),
        vector("100 bins", statistics_of(draw(500, (1, 2, 8)), bins=100)),
        vector("4 bins", statistics_of(draw(500, (1, 2, 8)), bins=4)),
    ]
    path.write_text(json.dumps(made, allow_nan=False))
    return path


def test_the_scripts_decode_what_python_packed(vectors):
    if shutil.which("node") is None:
        pytest.skip("NODE IS MISSING: the explorer's scripts are not tested (apt-get install nodejs)")
    tests = sorted(str(path) for path in HERE.glob("*.test.mjs"))
    assert len(tests) == 4
    environment = {**os.environ, "ABLATION_LENS_VECTORS": str(vectors)}
    result = subprocess.run(["node", "--test", *tests], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert "# fail 0" in result.stdout or "ℹ fail 0" in result.stdout, result.stdout[-500:]

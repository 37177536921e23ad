"""How these files were made, by ablation-lens 0.1.0 before its modules moved; it is kept to be read, not to be run.

Every file was written by the public functions of that day. `expected.json` holds what that code then read from them.
"""

import json
import os
import signal
from pathlib import Path

import torch

import ablation_lens as al
from ablation_lens import centers, collection
from ablation_lens.table2 import table2

HERE = Path(__file__).parent
CENTERS = ("zero", "mean", "median", "peak", "peak-smooth", "peak-kde", "half-sample")


def statistics():
    model = al.load_model("tiny-vit")
    task = al.task_for(model)
    plan = task.batches(split="collect", images=24, batch_size=8)
    other = task.batches(split="evaluate", images=16, batch_size=8)
    options = {"bins": 16, "progress": False}
    made = {
        "z-one-pass": al.collect(model, plan, **options),
        "z-two-passes": al.collect(model, plan, passes=2, positions=True, **options),
        "mlp-one-pass": al.collect(model, plan, site=al.Site.MLP, **{**options, "bins": 4}),
        "mlp-two-passes": al.collect(model, plan, site=al.Site.MLP, passes=2, **{**options, "bins": 4}),
        "merged": al.collect(model, plan, **options).merge(al.collect(model, other, **options)),
    }
    run = model.run_with_hooks
    calls = []

    def pressing(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return run(*args, **kwargs)

    model.run_with_hooks = pressing
    try:
        al.collect(model, plan, **options)
    except collection.CollectionInterrupted as interruption:
        made["interrupted"] = interruption.statistics
    model.run_with_hooks = run
    expected = {}
    for name, held in made.items():
        held.save(HERE / f"{name}.safetensors")
        again = al.ActivationStatistics.load(HERE / f"{name}.safetensors")
        chosen = (
            *(c for c in CENTERS if again.histogram.bins >= 16 or c != "peak-smooth"),
            *(["peak-trimmed"] if again.trimmed is not None else []),
        )
        expected[name] = {
            "repr": repr(again),
            "plans": list(again.provenance.plans),
            "tokens": again.provenance.tokens,
            "variance": hexed(again.variance),
            "quantile": hexed(again.histogram.quantile(0.3)),
            "total": int(again.count.sum()),
            "centers": {center: hexed(again.center(center)) for center in chosen},
        }
        if again.position_sums is not None:
            expected[name]["position_mean"] = hexed(again.position_mean)
        if again.trimmed is not None:
            expected[name]["trimmed"] = {
                "underflow": int(again.trimmed.underflow.sum()),
                "overflow": int(again.trimmed.overflow.sum()),
                "epsilon": hexed(again.trimmed.epsilon),
            }
    return model, made["z-one-pass"], expected


def hexed(tensor):
    """Every 97th number, exactly."""
    return [float(value).hex() for value in tensor.flatten()[::97]]


def ablations(model, stats):
    mask = al.random_neurons(stats.shape, 0.5, seed=1)
    generator = torch.Generator().manual_seed(0)
    by_position = torch.randn(stats.shape[0], model.cfg.n_ctx, *stats.shape[1:], generator=generator).half()
    made = {
        "per-neuron": stats.ablation(mask, "peak"),
        "per-position": al.Ablation(mask & al.whole_heads(stats.shape, ["L1.H2", "L3.H0"]), by_position, model.record),
        "with-positions": stats.ablation(mask, "mean").at(0, 3, 5),
    }
    expected = {}
    plan = al.task_for(model).batches(split="evaluate", images=16, batch_size=8)
    for name, ablation in made.items():
        ablation.save(HERE / f"ablation-{name}.safetensors")
        again = al.Ablation.load(HERE / f"ablation-{name}.safetensors")
        score = al.evaluate(model, plan, again)
        expected[name] = {
            "repr": repr(again),
            "values": hexed(again.values),
            "positions": None if again.positions is None else list(again.positions),
            "neurons": int(again.mask.sum()),
            "top1": score.top1,
            "cross_entropy": score.cross_entropy,
        }
    return expected


def run_folder():
    settings = {
        "models": ["tiny-vit"],
        "fractions": [0.5, 1.0],
        "seeds": [1, 2],
        "collect_images": 24,
        "evaluate_images": 16,
        "batch_size": 8,
        "bins": 16,
    }
    folder = HERE / "run"
    results = al.Study(methods=["zero", "peak-trimmed", "resample-pixels"], **settings).run(folder, progress=False)

    @centers.register("broken")
    def broken(statistics):
        raise ValueError("no such luck")

    failed = al.Study(methods=["zero", "broken"], **{**settings, "fractions": [0.5], "seeds": [1]})
    assert failed.run(folder, progress=False).failed
    results = al.Results.load(folder)
    results.export(HERE / "cells.csv")
    (HERE / "table2.md").write_text(table2(results, [0.5, 1.0]).markdown() + "\n")
    return {
        "cells": len(results.frame),
        "groups": list(results.groups.values()),
        "failures": [[failure["error"], failure["message"]] for failure in results.folder.failures()],
        "inputs": [[found["kind"], found["seed"], found["digest"]] for found in results.folder.inputs()],
        "studies": [study["methods"] for study in results.folder.studies()],
        "versions": results.facts(results.frame["group"].iloc[0])["versions"],
        "settings": settings,
    }


if __name__ == "__main__":
    torch.set_num_threads(2)
    model, stats, expected = statistics()
    expected = {"statistics": expected, "ablations": ablations(model, stats), "run": run_folder()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")

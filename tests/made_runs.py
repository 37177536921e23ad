"""Run folders written by hand: cells with known sums, without any model."""

import torch

from ablation_lens.measure.score import Score
from ablation_lens.runs.folder import key_of
from ablation_lens.study.cells import StudyFolder

PREDICTIONS = 100
"""Per document."""


def made_run(path, *, models=("some-model",), methods=("zero", "mean", "peak")):
    """An empty run folder in which a study of these models and methods was begun."""
    run = StudyFolder.create(path)
    run.write_once(
        "studies",
        key_of({"models": list(models), "methods": list(methods)}),
        {"models": list(models), "methods": list(methods)},
    )
    return run


def add_group(run, group, model, *, task="causal-lm", corpus="stdlib"):
    run.write_once("groups", group, {"model": {"name": model}, "evaluate": {"name": corpus}, "task": task})
    return group


def add_cell(run, group, method, fraction, seed, correct, loss, *, key=None, seconds=1.0):
    """A cell whose documents have `correct` right answers, and `loss` nats per prediction, each."""
    score = Score(
        documents=tuple(range(len(correct))),
        correct=torch.tensor(correct),
        loss=torch.tensor([nats * PREDICTIONS for nats in loss], dtype=torch.float64),
        predictions_per_document=torch.full((len(correct),), PREDICTIONS),
    )
    facts = {"group": group, "method": method, "fraction": fraction, "seed": seed}
    key = key or key_of(facts)
    run.write_cell(key, {**facts, "seconds": seconds}, score)
    return key


def add_baseline(run, group, correct, loss):
    return add_cell(run, group, "none", 0.0, None, correct, loss)

"""Run folders written by hand: cells with known sums, without any model."""

import dataclasses

import torch

from ablation_lens.measure.score import Score
from ablation_lens.records import CorpusRecord, ModelRecord, Versions
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.records import CellRecord, GroupRecord, InputRecord, statistics_key

PREDICTIONS = 100
"""Per document."""

VERSIONS = Versions(ablation_lens="0.1.0", python="3.11.7", torch="2.0", transformers="5.0", transformer_lens="3.9.0")


def made_run(path, *, models=("some-model",), methods=("zero", "mean", "peak")):
    """An empty run folder in which a study of these models and methods was begun."""
    run = StudyFolder.create(path)
    run.write_study({"models": list(models), "methods": list(methods)})
    return run


def group_record(model="some-model", *, documents=2, task="causal-lm", corpus="stdlib", **facts):
    """A group that is possible; `facts` tell it from others of the model."""
    record = ModelRecord(model, None, "Some", "float32", "none", None, 1, 1, 2, 2, 8, 100)
    read = CorpusRecord(
        corpus, f"embedded: {corpus}", "evaluate", "text", "d", "3.11.7", None, 100, "tokens", documents
    )
    facts = {
        "model": record.identity,
        "evaluate": "e",
        "collect": "c",
        "bins": 16,
        "include_bos": True,
        "site": "z",
        "shared_input": None,
        "generator": None,
        "device": "cpu",
        "versions": {**VERSIONS.to_dict(), "python": None},
        **({"corpus": corpus} if corpus != "stdlib" else {}),
        **facts,
    }
    return GroupRecord(
        facts=facts,
        model=record,
        task=task,
        evaluate=read,
        collect=read,
        context=100,
        batch_size=2,
        mask_seed=None,
        count="all",
        predictions=documents * PREDICTIONS,
        padding=0.0,
        statistics=(statistics_key(facts, 1), statistics_key(facts, 2)),
        versions=VERSIONS,
    )


def add_group(run, model="some-model", **options):
    """The key of a group that is kept in the folder; its cells have `documents` documents."""
    record = group_record(model, **options)
    run.write_group(record)
    return record.key


def cell_record(group, method, fraction=0.5, seed=None, *, seconds=1.0, **further):
    return CellRecord(group, method, fraction, seed, seconds, 0, **further)


def score(correct, loss):
    """Documents with `correct` right answers, and `loss` nats per prediction, each."""
    return Score(
        documents=tuple(range(len(correct))),
        correct=torch.tensor(correct),
        loss=torch.tensor([nats * PREDICTIONS for nats in loss], dtype=torch.float64),
        predictions_per_document=torch.full((len(correct),), PREDICTIONS),
    )


def add_cell(run, group, method, fraction, seed, correct, loss, **further):
    """The key of a cell that is kept in the folder."""
    record = cell_record(group, method, fraction, seed, **further)
    run.write_cell(record, score(correct, loss))
    return record.key


def add_baseline(run, group, correct, loss):
    return add_cell(run, group, "none", 0.0, None, correct, loss)


def add_input(run, group, seed=1):
    """A random input of three tokens."""
    from ablation_lens.measure.resampling import digest_of

    inputs = torch.tensor([[seed, 7, 9]])
    record = InputRecord(group, "tokens", seed, "some text", "some text", None, digest_of(inputs))
    run.write_input(record, inputs)
    return record.key


def replace(record, **changes):
    """A record with some fields changed, whatever it refuses."""
    made = object.__new__(type(record))
    for field in dataclasses.fields(record):
        object.__setattr__(made, field.name, changes.get(field.name, getattr(record, field.name)))
    return made

"""The files that are hurt: one of every kind, each with what reading all that depends on it gives."""

import csv
import gzip
import io
import itertools
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import zstandard
from PIL import Image

import ablation_lens as al
from ablation_lens.corpora import open_corpus
from ablation_lens.measure.resampling import Resampled, resample
from ablation_lens.study.cells import StudyFolder
from ablation_lens.study.study import Study
from ablation_lens.study.table2 import make_table2
from tests.studies import rows
from tests.tiny_models import BY_NAME
from tests.tiny_tokenizers import word_tokenizer


@dataclass
class Victim:
    """A file that is changed, and `read`, which reads it and all that is made from it.

    Attributes:
        exact: whether any change of its bytes is noticed; a text is just another text.
        names: one of these is in the message that refuses it.
    """

    kind: str
    path: Path
    read: Callable[[], Any]
    exact: bool
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.content = self.path.read_bytes()
        self.whole = self.read()

    def restore(self) -> None:
        """Make it as it was."""
        if self.path.is_symlink() or not self.path.is_file():
            shutil.rmtree(self.path) if self.path.is_dir() and not self.path.is_symlink() else self.path.unlink()
        self.path.write_bytes(self.content)


def hexed(tensor):
    return [value.hex() for value in tensor.flatten().double().tolist()]


# ---------------------------------------------------------------------- tensors of ours


def read_statistics(path):
    """Every number people see of them, all finite where a finite number was promised."""
    statistics = al.ActivationStatistics.load(path)
    table = statistics.table()
    assert np.isfinite(table[["mean", "std", "min", "max", "median", "peak"]].to_numpy()).all()
    repr(statistics)
    return [hexed(statistics.center(name)) for name in ("mean", "median", "peak")], table.to_csv()


def read_ablation(path):
    ablation = al.Ablation.load(path)
    assert torch.isfinite(ablation.values).all()
    repr(ablation)
    return hexed(ablation.values), hexed(ablation.mask), ablation.positions, ablation.center


def read_input(path):
    drawn = Resampled.load(path)
    drawn.extract()
    return hexed(drawn.values), hexed(drawn.inputs), drawn.text


def tensors(folder):
    """Statistics of one pass and of two, an ablation, a random input."""
    model = al.load_model("tiny-vit", device="cpu")
    plan = al.task_for(model).batches(split="collect", images=16, batch_size=8)
    once = al.collect(model, plan, bins=16, progress=False)
    once.save(folder / "once.safetensors")
    twice = al.collect(model, plan, site=al.Site.MLP, bins=16, passes=2, positions=True, progress=False)
    twice.save(folder / "twice.safetensors")
    mask = al.random_neurons(al.Site.Z.shape(model.cfg), 0.3, seed=0)
    once.ablation(mask, "peak").at(0, 3).save(folder / "ablation.safetensors")
    resample(model, "pixels", seed=1, positions=al.task_for(model).context).save(folder / "input.safetensors")
    readers = {"once": read_statistics, "twice": read_statistics, "ablation": read_ablation, "input": read_input}
    for name, read in readers.items():
        path = folder / f"{name}.safetensors"
        kind = "statistics" if read is read_statistics else name
        yield Victim(
            f"{kind} ({name})" if kind != name else name, path, lambda r=read, p=path: r(p), True, (path.name,)
        )


# ---------------------------------------------------------------------- a run folder


def make_run(folder):
    """Nine cells and a failure."""

    @al.centers.register("fails")
    def fails(statistics):
        if statistics.shape[0] > 1:
            raise ValueError("this one always fails")
        return statistics.mean

    try:
        study = Study(
            models=["tiny-vit"],
            methods=["zero", "peak", "resample-pixels", "fails"],
            fractions=[0.5, 1.0],
            seeds=[1, 2],
            collect_images=16,
            evaluate_images=16,
            batch_size=16,
            bins=16,
        )
        study.run(folder, progress=False)
    finally:
        al.centers.unregister("fails")
    return folder


def read_run(folder, deeply=True):
    """Its rows, and every line that says what could not be read; deeply, with what tables say, which takes longer."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        results = al.Results.load(folder)
        if deeply:
            assert results.summary()["top1"].between(0, 1).all()
            make_table2(results).markdown()
        kept = StudyFolder(folder)
        notes = [(failure.error, failure.message) for failure in kept.failures()]
        kept.studies()
        kept.inputs()
    frame = results.frame
    assert frame["top1"].between(0, 1).all()
    assert np.isfinite(frame["cross_entropy"]).all()
    assert frame["fraction"].between(0, 1).all()
    return {"rows": rows(results), "failures": notes, "said": [str(warning.message) for warning in said]}


RUN_PARTS = ("cells", "failures", "groups", "inputs", "statistics", "studies")


def run_files(folder):
    """One file of each part, and the marker."""
    reads = itertools.count()
    paths = [min((folder / part).glob("[!.]*.*")) for part in RUN_PARTS]
    for path in [*paths, folder / "ablation-lens.json"]:
        kind = f"run: {path.parent.name if path.parent != folder else 'marker'}"
        yield Victim(kind, path, lambda: read_run(folder, next(reads) % 10 == 0), True, (path.name, path.stem))


# ---------------------------------------------------------------------- texts, tables, images

STORY = "Once upon a time.\n\nThere was a cat, that sat on a mat.\n\nΩ and ünïcode.\n" * 40


def texts_of(path, **options):
    return [document.text for document in open_corpus(path, **options)]


def corpora(folder):
    """One of every kind that is read."""
    (folder / "story.txt").write_text(STORY, encoding="utf-8")
    (folder / "story.txt.gz").write_bytes(gzip.compress(STORY.encode(), mtime=0))
    (folder / "story.txt.zst").write_bytes(zstandard.compress(STORY.encode()))
    table = [{"text": f"{part} {number}", "n": number} for number, part in enumerate(STORY.split("\n\n"))]
    data = datasets.Dataset.from_list(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.to_json(folder / "rows.jsonl")
        data.to_parquet(folder / "rows.parquet")
    for name in ("story.txt", "story.txt.gz", "story.txt.zst", "rows.jsonl", "rows.parquet"):
        path = folder / name
        yield Victim(f"corpus {name}", path, lambda path=path: texts_of(path), False, (name,))
    yield from images(folder / "images")


def images(folder):
    folder.mkdir()
    draw = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for number in range(3):
            content = io.BytesIO()
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(content, "PNG" if number else "JPEG")
            (folder / f"{number}.png").write_bytes(content.getvalue())
            table.writerow([f"{number}.png", number])

    def read():
        corpus = open_corpus(
            folder, kind="image", labels=folder / "labels.csv", id2label={n: f"c{n}" for n in range(7)}
        )
        return [(document.label, document.image.tobytes()) for document in corpus]

    for name in ("0.png", "2.png", "labels.csv"):
        yield Victim(f"corpus {name}", folder / name, read, False, (name, folder.name))


# ---------------------------------------------------------------------- a model, settings


def read_model(folder, inputs):
    model = al.load_model(folder, device="cpu")
    record = al.record_of(model)
    repr(record)
    with torch.inference_mode():
        logits = model(inputs)
    assert torch.isfinite(logits).all()
    return hexed(logits)


def models(folder):
    """A text model and an image model, and every file beside their weights."""
    tokens = torch.tensor([[0, 7, 9, 5]])
    for name, inputs in (("opt", tokens), ("roberta", tokens), ("vit", torch.zeros(1, 3, 12, 12))):
        place = folder / name
        BY_NAME[name].model().save_pretrained(place)
        extra = ["preprocessor_config.json"] if name == "vit" else ["tokenizer.json", "tokenizer_config.json"]
        if name == "vit":
            from transformers import ViTImageProcessorPil

            ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(place)
        else:
            word_tokenizer().save_pretrained(place)
        for file in ("config.json", "model.safetensors", *extra):
            if file != "model.safetensors" or name == "opt":
                yield Victim(
                    f"model {name}/{file}",
                    place / file,
                    lambda place=place, inputs=inputs: read_model(place, inputs),
                    False,
                    (file, str(place), name),
                )


def settings(folder):
    path = folder / "study.toml"
    path.write_text('models = ["tiny-opt"]\nmethods = ["peak bins=64", "zero"]\nfractions = [0.5]\nseeds = [1]\n')
    yield Victim("study.toml", path, lambda: Study.from_toml(path).to_dict(), False, (path.name, ""))

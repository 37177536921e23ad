"""Train a zoo model from scratch: `python -m ablation_lens.zoo.train NAME`.

The same seed, Python, versions and machine give the same weights. The folder appears whole, at the end,
or not at all.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor
from torch.nn import functional
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ablation_lens import zoo
from ablation_lens.errors import AblationLensError, ModelError
from ablation_lens.records import Versions
from ablation_lens.zoo.train import data as corpora
from ablation_lens.zoo.train.batches import IGNORED, augment, causal_batch, masked_batch, paragraph_batch
from ablation_lens.zoo.train.data import Images, Texts, labels_of, pixels_of
from ablation_lens.zoo.train.held_out import measure
from ablation_lens.zoo.train.optimizer import optimizers
from ablation_lens.zoo.train.recipes import CONTEXT, IMAGE_SIZE, RECIPES, Recipe, build_model
from ablation_lens.zoo.train.vocabulary import BLANK_LINE, END, START, frame, learn_vocabulary
from ablation_lens.zoo.train.warm_start import start_from_copies, start_from_neighbours

WARM_UP = 0.03
RECORD = "training.json"

Batch = tuple[dict[str, Tensor], Tensor]
"""What a model is called with, and the labels."""


def train(
    name: str,
    out: str | Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    data: Texts | Images | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train the zoo model `name` and write its folder; returns what `training.json` records.

    Args:
        name: one of `zoo.NAMES`.
        out: the folder to write; an earlier zoo folder there is replaced, anything else is refused.
        steps: other than the recipe's number of steps.
        data: other than the whole embedded corpus.
        console: where progress is shown; None shows nothing.
    """
    zoo.folder(name)  # an unknown name ends here
    recipe = RECIPES[name] if steps is None else replace(RECIPES[name], steps=steps)
    if recipe.steps < 1:
        raise ModelError(f"{recipe.steps} training steps were asked for; give at least 1.")
    out = Path(out).resolve()
    _refuse_foreign(out)
    data = data or (corpora.images() if recipe.kind == "images" else corpora.texts(recipe.corpus))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a folder can only be renamed within its file system.
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes private folders
        started, cpu_started = time.perf_counter(), time.process_time()
        with torch.random.fork_rng():  # the caller's random state is not ours
            torch.manual_seed(seed)
            model = build_model(recipe)
            batches = _prepare(model, recipe, data, temporary, Generator().manual_seed(seed))
            final_loss = _optimise(model.to(device), recipe, batches, device, console)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        # Half precision: five models in one wheel. Scores are measured on what was written.
        model.to("cpu").half().save_pretrained(temporary)
        record = {
            "name": name,
            "recipe": asdict(recipe),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seed": seed,
            "corpus": recipe.corpus,
            "corpus_digest": data.digest,
            "train_size": len(data.train),
            "evaluate_size": len(data.evaluate),
            "device": device,
            "threads": torch.get_num_threads(),
            "wall_seconds": round(wall, 1),
            "cpu_seconds": round(cpu, 1),
            "final_training_loss": final_loss,
            "versions": Versions.current().to_dict(),
            "held_out": measure(temporary, data, device),
        }
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors writes private files, and these are installed for everyone
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _move_into_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists and is not a zoo model's folder; give --out a new folder.")


def _move_into_place(temporary: Path, out: Path) -> None:
    if out.exists():
        earlier = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            # A folder cannot be renamed onto one that holds files, so the earlier one moves away first.
            out.replace(earlier / "earlier")
            temporary.replace(out)
        except BaseException:  # Ctrl-C between the two renames must not cost the earlier model
            if not out.exists():
                (earlier / "earlier").replace(out)
            raise
        finally:
            shutil.rmtree(earlier, ignore_errors=True)
    else:
        temporary.replace(out)


def _prepare(
    model: Any, recipe: Recipe, data: Texts | Images, folder: Path, generator: Generator
) -> Callable[[float], Batch]:
    """Write the tokenizer or processor; return what makes a batch when a share of the steps is done."""
    if isinstance(data, Images):
        processor = ViTImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            do_convert_rgb=True,
        )
        processor.save_pretrained(folder)
        pixels, labels = pixels_of(data.train, processor), labels_of(data.train)

        def images(done: float) -> Batch:
            chosen = torch.randint(len(labels), (recipe.batch,), generator=generator)
            return {"pixel_values": augment(pixels[chosen], generator)}, labels[chosen]

        return images
    tokenizer = learn_vocabulary(data.train, recipe.vocabulary, whole_blank_lines=recipe.kind == "paragraphs")
    frame(tokenizer, recipe.family, CONTEXT).save_pretrained(folder)
    documents = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(list(data.train))]
    if recipe.kind == "paragraphs":
        start_from_copies(model)
        (blank_line,) = tokenizer.encode(BLANK_LINE).ids

        def paragraphs(done: float) -> Batch:
            shares = recipe.hidden, recipe.alone
            ids, mask, labels = paragraph_batch(documents, blank_line, recipe.batch, *shares, generator)
            return {"input_ids": ids, "attention_mask": mask}, labels

        return paragraphs
    if recipe.kind == "masked":
        start_from_neighbours(model, documents)

    def texts(done: float) -> Batch:
        if recipe.kind == "masked":
            ids, labels = masked_batch(documents, recipe.batch, CONTEXT, generator, recipe.mask_share(done))
        else:
            start = END if recipe.family == "opt" else START
            ids, labels = causal_batch(documents, start, recipe.batch, CONTEXT, recipe.repeats, generator)
        return {"input_ids": ids}, labels

    return texts


def _loss(model: Any, recipe: Recipe, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    if recipe.kind == "images":
        return functional.cross_entropy(model(**inputs).logits, labels, label_smoothing=0.05)
    causal = recipe.kind != "masked"
    hidden = model.base_model(**inputs, **({"use_cache": False} if causal else {})).last_hidden_state
    if causal:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    scored = labels != IGNORED
    # The head sees only the positions that count: for masked models a seventh of them.
    return functional.cross_entropy(model.lm_head(hidden[scored]), labels[scored])


@contextlib.contextmanager
def _block_dropout(model: Any, recipe: Recipe) -> Iterator[None]:
    """Mistral's config knows no dropout on what a block adds; the others' do."""
    handles = []
    if recipe.family == "mistral" and recipe.dropout:
        blocks = model.base_model.layers
        outputs = [
            model.get_input_embeddings(),
            *(b.self_attn.o_proj for b in blocks),
            *(b.mlp.down_proj for b in blocks),
        ]
        # functional.dropout drops in eval mode, too: only removing the hooks ends it.
        for module in outputs:
            handles.append(
                module.register_forward_hook(lambda _, __, output: functional.dropout(output, recipe.dropout))
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _optimise(
    model: Any,
    recipe: Recipe,
    batches: Callable[[float], Batch],
    device: str,
    console: Console | None,
) -> float:
    """Train in place; returns the smoothed loss at the end."""
    steppers = optimizers(model, recipe.matrix_rate, recipe.other_rate, recipe.weight_decay)
    # The peak rates, kept apart: group["lr"] is overwritten at every step.
    groups = [(group, group["lr"]) for stepper in steppers for group in stepper.param_groups]
    smoothed = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=console is None, refresh_per_second=2)
    model.train()
    with progress, _block_dropout(model, recipe):
        task = progress.add_task("starting", total=recipe.steps)
        for step in range(recipe.steps):
            done = step / recipe.steps
            # Warm-up, and a straight line down to 0; step + 1, as a first step at rate 0 would be lost.
            factor = min(1.0, (step + 1) / (WARM_UP * recipe.steps)) * (1 - done)
            for group, rate in groups:
                group["lr"] = rate * factor
            inputs, labels = batches(done)
            inputs = {name: given.to(device) for name, given in inputs.items()}
            loss = _loss(model, recipe, inputs, labels.to(device))
            model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
            smoothed = loss.item() if step == 0 else 0.98 * smoothed + 0.02 * loss.item()
            progress.update(task, advance=1, description=f"loss {smoothed:.3f}")
            # A log file has no moving bar.
            if console and not console.is_terminal and (step + 1) % max(1, recipe.steps // 20) == 0:
                console.print(f"step {step + 1} of {recipe.steps}: loss {smoothed:.3f}")
    model.eval()
    return smoothed


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ablation_lens.zoo.train", description="Train a zoo model from scratch."
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(zoo.NAMES))
    parser.add_argument("--out", metavar="FOLDER", help="where to write the model (default: ./NAME)")
    parser.add_argument("--steps", type=int, help="other than the recipe's number of steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        record = train(
            options.name, options.out or options.name, steps=options.steps, seed=options.seed, console=console
        )
    except AblationLensError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted: nothing was written.")
        return 130
    console.print_json(json.dumps(record["held_out"]))
    return 0

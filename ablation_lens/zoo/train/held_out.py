"""What a zoo model achieves on its `evaluate` split, read back from its folder, beside what counting achieves."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from ablation_lens.zoo.train.baselines import CountModel, CountScore
from ablation_lens.zoo.train.batches import IGNORED, additive, corrupt, visible
from ablation_lens.zoo.train.data import Images, Texts, labels_of, pixels_of
from ablation_lens.zoo.train.vocabulary import BLANK_LINE, PAD, SPECIAL_TOKENS

MASK_SEED = 20240
INDUCTION_SEED = 20241
INDUCTION_LENGTH = 100
INDUCTION_ROWS = 64


def measure(folder: Path, data: Texts | Images, device: str = "cpu") -> dict[str, Any]:
    """The held-out scores of the model in a folder, and the baselines', as plain JSON values."""
    if isinstance(data, Images):
        return _images(folder, data, device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    context = int(tokenizer.model_max_length)
    # Not truncated, as counting has no longest context; verbose=False keeps the tokenizer from warning of that.
    train = [np.array(ids) for ids in tokenizer(list(data.train), verbose=False).input_ids]
    rows = [torch.tensor(ids) for ids in tokenizer(list(data.evaluate), truncation=True).input_ids]
    causal = tokenizer.mask_token_id is None
    model = _loaded(AutoModelForCausalLM if causal else AutoModelForMaskedLM, folder, device)
    counts = CountModel(train, int(model.config.vocab_size), int(train[0][0]))
    if causal:
        blank_line = tokenizer(BLANK_LINE, add_special_tokens=False).input_ids
        two_paragraphs = len(blank_line) == 1 and all((row == blank_line[0]).sum() == 1 for row in rows)
        return {
            "model": asdict(_score(model, [(row, row) for row in rows], causal=True, device=device)),
            **{name: asdict(score) for name, score in counts.causal([row.numpy() for row in rows]).items()},
            "induction": _induction(model, int(rows[0][0]), context, device),
            **({"second paragraph": second_paragraph(model, rows, blank_line[0], device)} if two_paragraphs else {}),
        }
    pairs = masked_pairs(rows)
    return {
        "model": asdict(_score(model, pairs, causal=False, device=device)),
        **{name: asdict(score) for name, score in counts.masked([(i.numpy(), t.numpy()) for i, t in pairs]).items()},
    }


def _loaded(kind: Any, folder: Path, device: str) -> Any:
    """The model in single precision, whatever it is stored in."""
    return kind.from_pretrained(folder, dtype=torch.float32).to(device).eval()


def masked_pairs(rows: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Corrupted ids and labels of every row, the same on each call."""
    generator = Generator().manual_seed(MASK_SEED)
    return [corrupt(row, generator) for row in rows]


@torch.inference_mode()
def _score(model: Any, pairs: Sequence[tuple[Tensor, Tensor]], *, causal: bool, device: str) -> CountScore:
    hits = tokens = 0
    loss = 0.0
    ordered = sorted(pairs, key=lambda pair: len(pair[0]))  # by length, so that little is padding
    for begin in range(0, len(ordered), 32):
        part = ordered[begin : begin + 32]
        ids = pad_sequence([ids for ids, _ in part], batch_first=True, padding_value=PAD).to(device)
        labels = pad_sequence([labels for _, labels in part], batch_first=True, padding_value=IGNORED).to(device)
        logits = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        if causal:
            logits, labels = logits[:, :-1], labels[:, 1:]
        scored = labels != IGNORED
        chosen, target = logits[scored], labels[scored]
        hits += int((chosen.argmax(-1) == target).sum())
        # Summed in float64: float32 would lose digits over many predictions.
        loss += float(functional.cross_entropy(chosen.double(), target, reduction="sum"))
        tokens += len(target)
    return CountScore(hits / max(1, tokens), loss / max(1, tokens), tokens)


@torch.inference_mode()
def second_paragraph(model: Any, rows: Sequence[Tensor], blank_line: int, device: str = "cpu") -> dict[str, float]:
    """Mean cross-entropy of second paragraphs, without their first tokens, by what may be seen of the first.

    All of it; nothing but what the blank line has gathered; nothing, as the text begins with the blank line.
    """
    totals = {"after the first paragraph": 0.0, "seeing the blank line only": 0.0, "alone": 0.0}
    tokens = 0
    for row in rows:
        border = int((row == blank_line).nonzero()[0])
        whole, short = row[None].to(device), torch.cat([row[:1], row[border:]])[None].to(device)
        target = row[border + 2 :].to(device)
        mask = additive(visible(row, blank_line)[None]).to(device)
        logits = (
            model(input_ids=whole).logits,
            model(input_ids=whole, attention_mask=mask).logits,
            model(input_ids=short).logits,
        )
        for name, found in zip(totals, logits, strict=True):
            last = found[0, -len(target) - 1 : -1].double()
            totals[name] += float(functional.cross_entropy(last, target, reduction="sum"))
        tokens += len(target)
    return {name: total / max(1, tokens) for name, total in totals.items()}


@torch.inference_mode()
def _induction(model: Any, start: int, context: int, device: str) -> dict[str, Any]:
    """Accuracy over the second half of repeated random tokens: what only an induction head predicts."""
    generator = Generator().manual_seed(INDUCTION_SEED)
    length = min(INDUCTION_LENGTH, (context - 1) // 2)
    segment = torch.randint(
        len(SPECIAL_TOKENS), int(model.config.vocab_size), (INDUCTION_ROWS, length), generator=generator
    )
    ids = torch.cat([torch.full((INDUCTION_ROWS, 1), start), segment, segment], dim=1).to(device)
    predicted = torch.cat([model(input_ids=part).logits.argmax(-1) for part in torch.split(ids, 16)])
    right = predicted[:, :-1] == ids[:, 1:]
    # The repetition shows only after its first token, so that one cannot be known.
    return {
        "first_half": float(right[:, :length].double().mean()),
        "second_half": float(right[:, length + 1 :].double().mean()),
        "segment": length,
        "sequences": INDUCTION_ROWS,
    }


@torch.inference_mode()
def _images(folder: Path, data: Images, device: str) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]

    model = _loaded(AutoModelForImageClassification, folder, device)
    processor: Any = AutoImageProcessor
    pixels = pixels_of(data.evaluate, processor.from_pretrained(folder))
    labels = labels_of(data.evaluate)
    logits = torch.cat([model(pixel_values=part.to(device)).logits.cpu() for part in torch.split(pixels, 64)]).double()

    flat = np.stack([image.ravel() for image, _ in data.train]) / 255
    held_out = np.stack([image.ravel() for image, _ in data.evaluate]) / 255
    digits, truth = labels_of(data.train).numpy(), labels.numpy()
    regression = LogisticRegression(max_iter=2000).fit(flat, digits)
    neighbour = KNeighborsClassifier(1).fit(flat, digits)
    return {
        "model": asdict(
            CountScore(
                float((logits.argmax(-1) == labels).double().mean()),
                float(functional.cross_entropy(logits, labels)),
                len(labels),
            )
        ),
        "commonest digit": {"top1": float((truth == np.bincount(digits).argmax()).mean())},
        "logistic regression": {"top1": float(regression.score(held_out, truth))},
        "nearest neighbour": {"top1": float(neighbour.score(held_out, truth))},
    }

"""What stands beside a neuron: examples, whole texts, output tokens, and what ablating costs its model."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ablation_lens.errors import MismatchError
from ablation_lens.measure.contexts import Example
from ablation_lens.measure.output_tokens import OutputTokens
from ablation_lens.measure.whole_texts import WholeText
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.sites import neuron_name, parse_neuron
from ablation_lens.study.results import CELL_COLUMNS
from ablation_lens.tasks.plans import ImageItem, plan_of

if TYPE_CHECKING:
    import pandas

THUMBNAIL = 96
"""Pixels along the longer side of an example image."""


def describe_examples(
    found: Mapping[str, Sequence[Example]], statistics: ActivationStatistics, tokenizer: Any, batches: Any
) -> dict[str, Any]:
    """Plain JSON values per neuron; `images` holds every picture once, by its document."""
    images: dict[str, str] = {}
    neurons = {}
    plan = plan_of(batches)
    for name, contexts in found.items():
        # Also for its error: a neuron that does not exist would silently never be shown.
        neurons[_canonical(name, statistics)] = [_context(example, statistics, tokenizer) for example in contexts]
        for example in contexts:
            if not example.tokens and plan is not None and str(example.document) not in images:
                item = plan.items[example.document]
                if isinstance(item, ImageItem):
                    images[str(example.document)] = thumbnail(item.pixels)
    return {"neurons": neurons, "images": images}


def _context(example: Example, statistics: ActivationStatistics, tokenizer: Any) -> dict[str, Any]:
    common = {
        "where": example.where,
        "value": example.value,
        "id": example.id,
        "document": str(example.document),
        "position": example.position,
    }
    if not example.tokens:
        # A vision model's context is CLS and a square of patches.
        side = round((statistics.provenance.model.n_ctx - 1) ** 0.5)
        return common | {"side": side}
    if tokenizer is not None:
        return common | {"text": list(example.text(tokenizer))}
    ids = [f"#{token}" for token in example.tokens]
    at = example.offset
    return common | {"text": [" ".join([*ids[:at], ""]), ids[at], " ".join(["", *ids[at + 1 :]])]}


def describe_texts(texts: Sequence[WholeText], statistics: ActivationStatistics, tokenizer: Any) -> dict[str, Any]:
    """Plain JSON values: every token's text once, every document's tokens once, and neuron → document → values."""
    values: dict[str, dict[str, list[float | None]]] = {}
    for text in texts:
        for name, numbers in text.values.items():
            here = values.setdefault(_canonical(name, statistics), {})
            here[str(text.document)] = [_short(number) for number in numbers]
    return {
        "vocabulary": _vocabulary({token for text in texts for token in text.tokens}, tokenizer),
        "documents": {str(text.document): list(text.tokens) for text in texts},
        "values": values,
    }


def describe_outputs(
    found: Mapping[tuple[int, int, int], OutputTokens], statistics: ActivationStatistics, tokenizer: Any
) -> dict[str, Any]:
    """Plain JSON values: the tokens' texts, and per neuron what it promotes and suppresses, as (token, effect)."""
    neurons = {
        neuron_name(*neuron, statistics.site): [
            [[token, _short(effect)] for token, effect in side] for side in (tokens.promoted, tokens.suppressed)
        ]
        for neuron, tokens in found.items()
    }
    used = {token for tokens in found.values() for token, _ in (*tokens.promoted, *tokens.suppressed)}
    return {"vocabulary": _vocabulary(used, tokenizer), "neurons": neurons}


def _vocabulary(tokens: set[int], tokenizer: Any) -> dict[str, str]:
    return {str(token): _text_of(token, tokenizer) for token in sorted(tokens)}


def _text_of(token: int, tokenizer: Any) -> str:
    if tokenizer is None:
        return f"#{token}"
    text = str(tokenizer.decode([token]))
    # Sentencepiece drops the space before the first word that it decodes.
    name = getattr(tokenizer, "convert_ids_to_tokens", lambda _: "")(token)
    return f" {text}" if str(name).startswith("▁") and not text.startswith(" ") else text


def _short(number: float) -> float | None:
    """Four digits, which is more than a colour shows."""
    return _finite(float(f"{number:.4g}"))


def _canonical(name: str, statistics: ActivationStatistics) -> str:
    return neuron_name(*parse_neuron(name, statistics.shape, statistics.site), statistics.site)


def thumbnail(pixels: torch.Tensor) -> str:
    """A small PNG as a data URL of `[channel height width]` pixels, stretched to the full range of brightness.

    >>> thumbnail(torch.rand(3, 8, 8))[:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    values = pixels.double()
    # Pixels are as the model gets them, normalised, so their range is not known beforehand.
    low, high = values.min(), values.max()
    scaled = ((values - low) / (high - low).clamp(min=1e-12) * 255).round().byte()
    array = scaled.movedim(0, -1).numpy()
    # Pillow refuses a last axis of one channel.
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    written = io.BytesIO()
    image.save(written, format="PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii")


def describe_damage(results: "pandas.DataFrame", model: str) -> list[dict[str, Any]]:
    """The change from the baseline per method and fraction, averaged over seeds, of one model of a study.

    Each entry is one line of the figure: `points` are (fraction, Δ top-1, Δ cross-entropy, seeds).
    """
    missing = [column for column in CELL_COLUMNS if column not in results.columns]
    if missing:
        raise MismatchError(f"results lack the columns {missing}; pass the DataFrame of a study's cells.")
    mine = results[results["model"] == model]
    if not len(mine):
        known = ", ".join(sorted(map(str, results["model"].unique())))
        raise MismatchError(f"the results hold no cell of {model!r}; they are of {known or 'no model'}.")
    mine = mine.assign(
        lost_top1=mine["top1"] - mine["baseline_top1"],
        gained=mine["cross_entropy"] - mine["baseline_cross_entropy"],
        group=mine["group"].fillna("").astype(str),  # groupby drops rows whose key is missing
    )
    lines = []
    for (corpus, group, method), cells in mine.groupby(["corpus", "group", "method"], sort=False):
        means = cells.groupby("fraction")[["lost_top1", "gained"]].agg("mean")
        runs = cells.groupby("fraction").size()
        points = [
            [float(fraction), _finite(top1), _finite(gained), int(runs.loc[fraction])]
            for fraction, (top1, gained) in zip(means.index, means.to_numpy().tolist(), strict=True)
        ]
        lines.append({"corpus": str(corpus), "group": str(group), "method": str(method), "points": points})
    return lines


def _finite(value: float) -> float | None:
    # JSON has neither NaN nor infinity, and `embedded_json` refuses them.
    return value if abs(value) < float("inf") else None  # NaN compares false, too

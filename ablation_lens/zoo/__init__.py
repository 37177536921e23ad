"""Five tiny models that ship with the package, really trained, in plain Hugging Face format.

`train/` made them; `README.md` says what they are, and docs/reference/zoo.md tells all of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ablation_lens.errors import ModelError
from ablation_lens.names import nearest

DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "tiny-opt": "OPT: causal, pre-LayerNorm, learned positions, biases; trained on stdlib",
        "tiny-mistral": "Mistral: causal, RMSNorm, rotary positions, grouped queries, gated MLP; trained on stdlib",
        "tiny-roberta": "RoBERTa: masked, post-LayerNorm; trained on stdlib",
        "tiny-vit": "ViT: image classification; trained on handwritten digits",
        "tiny-llama": "Llama: causal, RMSNorm, rotary positions, gated MLP; trained on journeys, in two paragraphs",
    }
)
NAMES = tuple(DESCRIPTIONS)


def folder(name: str) -> Path:
    """The folder of a zoo model, readable by Hugging Face's `from_pretrained`.

    >>> folder("tiny-opt").name
    'tiny-opt'
    """
    if name not in DESCRIPTIONS:
        raise ModelError(
            f"there is no zoo model {name!r}; the zoo holds {', '.join(NAMES)}. Did you mean {nearest(name, NAMES)!r}?"
        )
    return Path(__file__).parent / name


def training_record(name: str) -> dict[str, Any]:
    """How a zoo model was trained and what it scored then: its `training.json`.

    >>> training_record("tiny-vit")["corpus"]
    'digits'
    """
    record: dict[str, Any] = json.loads((folder(name) / "training.json").read_text(encoding="utf-8"))
    return record

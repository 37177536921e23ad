"""What neurons do at every token of the documents that their examples are from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ablation_lens.measure.contexts import Example
from ablation_lens.measure.forward import capture
from ablation_lens.sites import Site, parse_neuron
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch


@dataclass(frozen=True)
class WholeText:
    """A document as the model read it, and what some neurons were at each of its tokens.

    Attributes:
        document: its number, as in `Example`.
        tokens: all of its token ids.
        values: neuron → one value per token.
    """

    document: int
    tokens: tuple[int, ...]
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)


def read_texts(
    model: Any, batches: Iterable[Batch | Tensor], examples: Mapping[str, Sequence[Example]], site: Site = Site.Z
) -> list[WholeText]:
    """The documents of some examples, whole; runs the model over these alone.

    `batches` are those the examples were gathered over. Images are passed over.

    >>> import ablation_lens as al
    >>> from ablation_lens.measure.contexts import gather_contexts
    >>> model = al.load_model("tiny-opt")
    >>> batch = al.Batch.causal(torch.tensor([[2, 7, 9, 11], [2, 8, 4, 4]]))
    >>> statistics = al.collect(model, [batch], progress=False)
    >>> found = gather_contexts(model, [batch], statistics, ["L1.H2.D3"], k=1)
    >>> [len(text.values["L1.H2.D3"]) for text in read_texts(model, [batch], found)]
    [4, 4]
    """
    wanted: dict[int, list[str]] = {}
    for name, contexts in examples.items():
        for document in {example.document for example in contexts if example.tokens}:
            wanted.setdefault(document, []).append(name)
    texts, rows_before, padding = [], 0, Padding(model, stacklevel=3)
    with torch.inference_mode():
        for item in batches:
            batch = padding.mark(item).to("cpu")
            numbers = batch.documents or range(rows_before, rows_before + len(batch.inputs))
            rows_before += len(batch.inputs)
            rows = [row for row, number in enumerate(numbers) if number in wanted]
            if rows:
                texts += _read(model, batch, {row: (numbers[row], wanted[numbers[row]]) for row in rows}, site)
    return sorted(texts, key=lambda text: text.document)


def _read(model: Any, batch: Batch, wanted: Mapping[int, tuple[int, list[str]]], site: Site) -> list[WholeText]:
    rows = torch.tensor(list(wanted))
    some = Batch(batch.inputs[rows], batch.valid[rows], batch.labels[rows], batch.scored[rows])
    places = {name: parse_neuron(name, site=site) for _, names in wanted.values() for name in names}
    values = capture(model, some.to(model.cfg.device), site, {layer for layer, _, _ in places.values()})
    texts = []
    for row, (document, names) in enumerate(wanted.values()):
        length = int(some.valid[row].sum())  # every text is at the start of its row
        text = WholeText(document, tuple(some.inputs[row, :length].tolist()))
        for name in names:
            layer, head, dim = places[name]
            text.values[name] = tuple(values[layer][row, :length, head, dim].double().tolist())
        texts.append(text)
    return texts

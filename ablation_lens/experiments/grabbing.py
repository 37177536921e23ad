"""`grab`: what a model holds at one position of a text, to be put at a position of another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation, Ablations
from ablation_lens.errors import MismatchError
from ablation_lens.hooked import task_of
from ablation_lens.measure.forward import watch
from ablation_lens.records import ModelRecord, record_of
from ablation_lens.sites import Site
from ablation_lens.tasks.inputs import require_readable
from ablation_lens.tasks.plans import Batch
from ablation_lens.tasks.prompts import tokens_of_texts

SITES = ("z", "mlp")
"""What attention and MLP write from: with the embedding of its own token, all that a position holds."""


@dataclass(frozen=True, eq=False, repr=False)
class Grabbed:
    """What some sites and layers held at one position of every row.

    Attributes:
        values: by site; layers are in the order of `layers`.
        layers: which layers.
        source: the model.
    """

    values: Mapping[Site, Float[Tensor, "layer batch head dim"]]
    layers: tuple[int, ...]
    source: ModelRecord

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the values are from."""
        return tuple(self.values)

    def __len__(self) -> int:
        """Of how many rows."""
        return next(iter(self.values.values())).shape[1]

    def rows(self, numbers: Sequence[int]) -> "Grabbed":
        """The values of these rows, in this order."""
        chosen = torch.tensor(list(numbers), dtype=torch.int64)
        return replace(self, values=MappingProxyType({site: held[:, chosen] for site, held in self.values.items()}))

    def at(
        self,
        position: int,
        *,
        layers: Iterable[int] | int | None = None,
        sites: Iterable[Site | str] | Site | str | None = None,
    ) -> Ablation | Ablations:
        """These values at a position of whatever is read next, row by row; of one row, for any batch.

        With `applied_to(model)` also under cached generation: the values are put there when the position is computed.

        Args:
            position: counted among a row's real tokens; from 0, where a cache is used.
            layers: only these; None for all that were grabbed.
            sites: only these; None for all that were grabbed.
        """
        chosen = self.layers if layers is None else tuple(dict.fromkeys(_several(layers)))
        where = self.sites if sites is None else chosen_sites(sites)
        if missing := [f"L{layer}" for layer in chosen if layer not in self.layers]:
            raise MismatchError(f"{', '.join(missing)} was not grabbed; there are {_listed(self.layers)}.")
        if unknown := [site.value for site in where if site not in self.values]:
            raise MismatchError(f"{', '.join(unknown)} was not grabbed; there are {_names(self.sites)}.")
        if not chosen or not where:
            raise MismatchError("there is nothing to put anywhere; name at least one layer and one site.")
        parts = tuple(self._ablation(site, chosen, position) for site in where)
        return parts[0] if len(parts) == 1 else Ablations(parts)

    def _ablation(self, site: Site, layers: Sequence[int], position: int) -> Ablation:
        held = self.values[site]
        values = held.new_zeros(self.source.n_layers, *held.shape[1:])
        mask = torch.zeros(self.source.n_layers, *held.shape[2:], dtype=torch.bool)
        for layer in layers:
            values[layer], mask[layer] = held[self.layers.index(layer)], True
        # Of one row, values that serve any batch; of several, one column that serves every position of its row.
        by_row = values[:, 0] if len(self) == 1 else values[:, :, None]
        return Ablation(mask, by_row, self.source, site=site, center="grabbed").at(position)

    def __repr__(self) -> str:
        return f"Grabbed({_names(self.sites)} of {_listed(self.layers)} in {len(self)} row{'s'[: len(self) != 1]})"


@torch.no_grad()
def grab(
    model: Any,
    tokens: Any,
    position: int | Sequence[int] = -1,
    *,
    sites: Iterable[Site | str] | Site | str = SITES,
    layers: Iterable[int] | int | None = None,
) -> Grabbed:
    """What a causal model holds at one position of every row.

    Args:
        model: the model.
        tokens: a text or several, token ids `[batch pos]`, or a `Batch`.
        position: counted among a row's real tokens, -1 is the last; or one for every row.
        sites: where; the default is all that is added to the residual stream.
        layers: which; None for all.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-mistral")
    >>> grabbed = grab(model, [[0, 71, 203]])
    >>> grabbed
    Grabbed(z, mlp of L0-L3 in 1 row)
    >>> with grabbed.at(1, sites=["z"]).applied_to(model):
    ...     logits = model(torch.tensor([[0, 203, 90]]))
    """
    require_causal(model)
    where, wanted = chosen_sites(sites), chosen_layers(model, layers)
    if not where or not wanted:
        raise MismatchError("there is nothing to grab; name at least one layer and one site.")
    batch = _batch(model, tokens).from_start().to(model.cfg.device)
    require_readable(model, batch.inputs, batch.valid, batch.labels, batch.scored)
    columns = _columns(batch, position)
    rows = torch.arange(len(columns))
    held: dict[Site, dict[int, Tensor]] = {site: {} for site in where}

    def see(site: Site, layer: int, values: Tensor) -> None:
        held[site][layer] = values[rows.to(values.device), columns.to(values.device)].cpu()

    watch(model, batch, where, see, wanted)
    values = {site: torch.stack([held[site][layer] for layer in wanted]) for site in where}
    return Grabbed(MappingProxyType(values), wanted, record_of(model))


def chosen_sites(sites: Iterable[Site | str] | Site | str) -> tuple[Site, ...]:
    """Sites, or one, each once."""
    chosen = tuple(dict.fromkeys(Site.of(site) for site in ([sites] if isinstance(sites, Site | str) else sites)))
    for site in chosen:
        site.require_every_block()
    return chosen


def chosen_layers(model: Any, layers: Iterable[int] | int | None) -> tuple[int, ...]:
    """Layers, or one, each once; None for all."""
    every = range(model.cfg.n_layers)
    wanted = tuple(every) if layers is None else tuple(dict.fromkeys(_several(layers)))
    if unknown := [layer for layer in wanted if layer not in every]:
        raise MismatchError(f"there is no layer {unknown[0]!r} in a model of {len(every)} layers.")
    return wanted


def _several(layers: Iterable[int] | int) -> Iterable[int]:
    return layers if isinstance(layers, Iterable) else [layers]


def require_causal(model: Any) -> None:
    """Raise `MismatchError` for a model that does not read from left to right."""
    if task_of(model) != "causal-lm":
        raise MismatchError(
            f"this model's task is {task_of(model)}, and a token carries what comes next only where a model reads from "
            "left to right; give a causal language model, such as tiny-mistral."
        )


def _batch(model: Any, tokens: Any) -> Batch:
    if isinstance(tokens, Batch):
        return tokens
    texts = [tokens] if isinstance(tokens, str) else tokens
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
        return Batch.causal(*tokens_of_texts(model, texts))
    return Batch.causal(tokens)


def _columns(batch: Batch, position: int | Sequence[int]) -> Int[Tensor, " batch"]:
    """The column of the position in every row, texts being at the start of their rows."""
    lengths = batch.valid.sum(1).cpu()
    try:
        given = torch.as_tensor(position)
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty(0)
    if given.dtype not in (torch.int64, torch.int32) or given.shape not in ((), lengths.shape):
        raise MismatchError(f"position={position!r:.60} is not possible; give a whole number, or one for every row.")
    places = given.long().expand(len(lengths))
    columns = torch.where(places < 0, lengths + places, places)
    for row in range(len(lengths)):
        if not 0 <= columns[row] < lengths[row]:
            raise MismatchError(f"row {row} has {int(lengths[row])} tokens, and so no position {int(places[row])}.")
    return columns


def _listed(layers: Sequence[int]) -> str:
    whole = len(layers) > 1 and tuple(layers) == tuple(range(layers[0], layers[-1] + 1))
    return f"L{layers[0]}-L{layers[-1]}" if whole else ", ".join(f"L{layer}" for layer in layers)


def _names(sites: Iterable[Site]) -> str:
    return ", ".join(site.value for site in sites)

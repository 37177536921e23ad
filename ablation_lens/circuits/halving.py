"""Two halves of the prompts, one to find circuits on and one to judge them on; and the values of what is ablated."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ablation_lens.circuits.prompt_tasks import require_no_task
from ablation_lens.circuits.prompting import Prompts
from ablation_lens.circuits.values import Statistics, Values, counterfactual, named_values
from ablation_lens.errors import MismatchError
from ablation_lens.hooked import task_of
from ablation_lens.measure.collection import collect
from ablation_lens.neurons.centers import about
from ablation_lens.sites import Site
from ablation_lens.tasks.given import batches_of
from ablation_lens.tasks.inputs import whole
from ablation_lens.tasks.known_rows import row_digests
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import Batch

FROM_PROMPTS = "prompts"
"""What is given for `statistics` to have them collected on the half that circuits are found on."""

COLLECT_ON_FIRST = (
    f"give statistics={FROM_PROMPTS!r}, which collects them on the half that circuits are found on, or collect them on "
    "prompts.split(seed)[0]"
)
"""What to do where statistics hold rows of the other half."""

_POSITION_MEAN, _COUNTERFACTUAL = "position-mean", "counterfactual"


@dataclass(frozen=True)
class Both:
    """Values for the half that circuits are found on, and for the one that they are judged on."""

    first: Values
    second: Values


@dataclass(frozen=True, eq=False)
class Halves:
    """Inputs that share no row: equal ones, and those of one document, are in the same half.

    Attributes:
        model: what reads them.
        first: to find circuits on.
        second: to judge them on.
    """

    model: Any
    first: Any
    second: Any

    @classmethod
    def of(cls, model: Any, prompts: Any, seed: int = 0) -> "Halves":
        """The halves of prompts, or of whatever else is taken for batches. The draw depends on rows and seed alone.

        >>> from ablation_lens import load_model
        >>> halves = Halves.of(load_model("tiny-opt"), torch.tensor([[5, 6, 7], [8, 9, 4], [5, 6, 7], [8, 9, 5]]))
        >>> [sum(len(batch.inputs) for batch in half) for half in (halves.first, halves.second)]
        [2, 2]
        """
        number = whole(seed, "seed")
        require_no_task(prompts)
        if isinstance(prompts, Prompts):
            return cls(model, *prompts.split(number))
        padding = Padding(model, stacklevel=4)
        batches = [padding.marked(batch) for batch in batches_of(model, prompts, keep=True, scored=True)]
        return cls(model, *_in_two(batches, number, task_of(model)))

    def values(
        self, given: Any, statistics: Any = None, *, sites: Any = None, progress: bool = True
    ) -> dict[str, Both]:
        """Values of what is ablated, by name, for each half.

        Args:
            given: a list of them, or a dict by name; "counterfactual" asks each half for its corrupted twins.
            statistics: what centers are computed from; None or "prompts" collects them on the first half.
            sites: where units are.
            progress: show how far that is.

        >>> from ablation_lens import load_model
        >>> halves = Halves.of(load_model("tiny-opt"), torch.arange(5, 65).view(6, 10))
        >>> halves.values(["zero", "peak"], progress=False)["peak"].second
        Values(peak at z)
        """
        listed = list(given.values()) if isinstance(given, Mapping) else list(given)
        own = statistics is None or (isinstance(statistics, str) and statistics == FROM_PROMPTS)
        if isinstance(statistics, str) and not own:
            raise MismatchError(f"statistics={statistics!r:.60} is not possible; give {FROM_PROMPTS!r}, or some.")
        if own:
            statistics = self._collected(listed, sites, progress)
        first, second = (self._on(half, given, statistics, sites) for half in (self.first, self.second))
        if own:
            # Only centers are computed from that half; values that were made before say themselves what they are from.
            computed = {name for name, each in zip(first, listed, strict=True) if any(_centers_in(each))}
            first, second = (
                {name: _told_where(each) if name in computed else each for name, each in half.items()}
                for half in (first, second)
            )
        return {name: Both(each, second[name]) for name, each in first.items()}

    def _collected(self, given: Sequence[Any], sites: Any, progress: bool) -> Statistics:
        centers = {name for each in given for name in _centers_in(each)}
        if centers <= {"zero"}:
            return None
        if sites is None:
            named = [Site.of(site) for each in given if isinstance(each, Mapping) for site in each]
            wanted = list(dict.fromkeys(named)) or [Site.Z]
        else:
            wanted = [Site.of(site) for site in ([sites] if isinstance(sites, Site | str) else sites)]
        passes = max(about(name).passes for name in {"zero", *centers} - {_POSITION_MEAN})
        with_positions = _POSITION_MEAN in centers
        return collect(
            self.model,
            self.first,
            site=wanted,
            passes=max(1, passes),
            positions=with_positions,
            progress=progress,
        )

    def _on(self, half: Any, given: Any, statistics: Statistics, sites: Any) -> dict[str, Values]:
        if not isinstance(half, Prompts):
            return named_values(given, statistics, sites=sites)
        made = named_values(_asking(given, half), statistics, sites=sites)
        return {name: each.on(half) for name, each in made.items()}


def _told_where(values: Values) -> Values:
    if values.collected_on is None:
        return values
    positions = values.collected_on.rpartition("(")[2]
    return replace(values, collected_on=f"the half of the prompts that circuits are found on ({positions}")


def _asking(given: Any, half: Any) -> Any:
    """Values that are called counterfactual, as those of a half."""
    if isinstance(given, Mapping):
        return {name: _asking(each, half) for name, each in given.items()}
    if isinstance(given, list | tuple):
        return [_asking(each, half) for each in given]
    return counterfactual(half) if isinstance(given, str) and given == _COUNTERFACTUAL else given


def _centers_in(given: Any) -> Iterator[str]:
    """The names of centers in what somebody gave for values."""
    if isinstance(given, Mapping):
        for each in given.values():
            yield from _centers_in(each)
    elif isinstance(given, str) and given != _COUNTERFACTUAL:
        yield given


# ---------------------------------------------------------------------- rows that are not prompts


def _in_two(batches: list[Batch], seed: int, task: str) -> tuple[list[Batch], list[Batch]]:
    rows = [(place, row) for place, batch in enumerate(batches) for row in range(len(batch.inputs))]
    alike = _alike(batches, rows, seed, task)
    if len(alike) < 2:
        raise MismatchError(
            "these inputs are all the same, and two halves must not share one; give at least two different ones."
        )
    chosen: tuple[set[tuple[int, int]], set[tuple[int, int]]] = (set(), set())
    for _, group in sorted(alike.items(), key=lambda each: (-len(each[1]), each[0])):
        min(chosen, key=len).update(group)
    halves = []
    for half in chosen:
        numbers = [
            [row for row in range(len(batch.inputs)) if (place, row) in half] for place, batch in enumerate(batches)
        ]
        halves.append([batch.take(some) for batch, some in zip(batches, numbers, strict=True) if some])
    return halves[0], halves[1]


def _alike(batches: list[Batch], rows: list[tuple[int, int]], seed: int, task: str) -> dict[str, list[tuple[int, int]]]:
    """Rows that must stay together: of the same content or document, under a digest that depends on content alone."""
    leader: dict[Any, Any] = {}

    def find(key: Any) -> Any:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    contents = []
    # What `require_other_inputs` would call the same row is in the same half, too.
    known = [row_digests(batch, task).tolist() for batch in batches]
    for place, row in rows:
        batch = batches[place]
        content = _content(batch, row, seed)
        contents.append(content)
        same: list[Any] = [("row", digest) for digest in known[place][row]]
        same += [(batch.plan, batch.documents[row])] if batch.documents else []
        for each in same:
            one, other = find(content), find(each)
            # The lesser digest leads, whichever row comes first.
            first, second = sorted((one, other), key=lambda key: (not isinstance(key, str), str(key)))
            leader[second] = first
    groups: dict[str, list[tuple[int, int]]] = {}
    for content, where in zip(contents, rows, strict=True):
        groups.setdefault(find(content), []).append(where)
    return groups


def _content(batch: Batch, row: int, seed: int) -> str:
    """A row's place in the draw, which depends on what the model reads, so that it keeps it wherever it stands."""
    inputs = batch.inputs[row]
    # Without padding, which may differ between batches.
    seen = inputs[batch.valid[row]] if inputs.shape == batch.valid[row].shape else inputs
    plain = seen.detach().cpu().contiguous()
    told = f"halves {seed} {plain.dtype} {tuple(plain.shape)} ".encode()
    return hashlib.sha256(told + plain.view(torch.uint8).numpy().tobytes()).hexdigest()

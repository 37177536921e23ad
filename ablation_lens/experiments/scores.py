"""`Scores`: many ablations of one model on the same documents, each scored once and kept in a folder.

    scores/<key>.safetensors       the sums of every document under one ablation
    pieces/<key>.safetensors       other tensors that took long to make, such as which neurons were selected
    failures/, locks, holders/     as in every run folder

A key follows from what is computed: the model's weights, the documents, the metrics, which neurons are ablated and to
which values. So experiments need no keys of their own: asked again, a score is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ablation_lens.ablation.ablation import Ablation, Ablations
from ablation_lens.errors import MismatchError
from ablation_lens.measure.evaluation import evaluate_each
from ablation_lens.measure.metrics import Given, metrics_of
from ablation_lens.measure.prefix import Prefix
from ablation_lens.measure.resampling import digest_of
from ablation_lens.measure.score import Score
from ablation_lens.measure.score_file import score_of, tensors_of
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.records import Versions, record_of
from ablation_lens.runs.folder import RunFolder, checking, keeping, key_of
from ablation_lens.sites import Hook, Site
from ablation_lens.tasks.freezing import freeze
from ablation_lens.tasks.known_rows import require_unknown
from ablation_lens.tasks.plans import BatchPlan

KIND = "experiment score"
PIECES = "pieces"


class ExperimentFolder(RunFolder):
    """A run folder of experiments: scores, what values were learned, and other pieces of the work."""

    kind: ClassVar[str] = "experiment"
    parts: ClassVar[tuple[str, ...]] = ("scores", "learned", "failures")
    gained: ClassVar[tuple[str, ...]] = (PIECES,)


class Scores:
    """What one model scores on fixed documents, under any ablation.

    Attributes:
        model: the model.
        batches: the documents, as a batch plan.
        plans: that plan, and others that read the same documents and score other predictions of theirs.
        metrics: what is measured besides top-1 and cross-entropy.
        folder: where scores are kept; None keeps them in memory only.
        about: what all scores share: weights, documents, metrics, versions.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> task = al.task_for(model)
    >>> stats = al.collect(model, task.batches(split="collect", tokens=2000), progress=False)
    >>> scores = Scores(model, task.batches(split="evaluate", tokens=500), statistics=stats)
    >>> scores.of(stats.ablation("L0", "mean")).cross_entropy > scores.of().cross_entropy
    True
    """

    def __init__(
        self,
        model: Any,
        batches: Any,
        *,
        statistics: ActivationStatistics | None = None,
        metrics: Given = None,
        folder: str | Path | None = None,
    ) -> None:
        self.model, self.metrics = model, metrics_of(metrics)
        several = isinstance(batches, list | tuple) and batches and all(isinstance(each, BatchPlan) for each in batches)
        given = list(batches) if several else [batches]
        self.plans = [each if isinstance(each, BatchPlan) else freeze(model, each) for each in given]
        self.batches = self.plans[0]
        for plan in self.plans[1:]:
            if not plan.reads_as(self.batches):
                raise MismatchError("these plans read other documents, so no single run scores both; score each alone.")
        if statistics is not None:
            plans = [reading.plan for reading in statistics.provenance.plans]
            require_unknown(model, self.batches, statistics.rows, plans)
        self.folder = None if folder is None else ExperimentFolder.create(folder)
        if self.folder is not None and not all(metric.is_ours for metric in self.metrics.values()):
            raise MismatchError("a folder keeps scores of metrics out of al.metrics only; leave folder= or yours out.")
        self._held: dict[str, Score] = {}
        # Layers and heads are ablated one by one, from the first to the last.
        self._prefix = Prefix(model)
        self.about = {
            "model": record_of(model).identity,
            "documents": self.batches.digest,
            "metrics": sorted(self.metrics),
            "device": torch.device(model.cfg.device).type,
            "versions": {**Versions.current().to_dict(), "python": None},
        }

    def of(self, ablation: "Ablation | Ablations | Biased | None" = None) -> Score:
        """The score under an ablation with constant values; None for the model as it is."""
        return self.each(ablation)[0]

    def each(self, ablation: "Ablation | Ablations | Biased | None" = None) -> list[Score]:
        """One score per plan; the model runs once for all of them."""
        facts = ablation.facts if isinstance(ablation, Biased) else facts_of(ablation)
        keys = [key_of({**self.about, "documents": plan.digest, "ablation": facts}) for plan in self.plans]
        for key in keys:
            if key not in self._held and (there := self._read(key)) is not None:
                self._held[key] = there
        missing = [(key, plan) for key, plan in zip(keys, self.plans, strict=True) if key not in self._held]
        if missing:
            self._measure(dict(missing), ablation)
        return [self._held[key] for key in keys]

    def _read(self, key: str) -> Score | None:
        if self.folder is None or not self.folder.has("scores", key):
            return None
        _, tensors = self.folder.read("scores", key, KIND)
        with checking(self.folder.file("scores", key)):
            return score_of(tensors)

    def _measure(self, missing: Mapping[str, BatchPlan], ablation: "Ablation | Ablations | Biased | None") -> None:
        measured = evaluate_each(
            self.model, list(missing.values()), ablation, metrics=self.metrics, prefix=self._prefix
        )
        about = {"center": ablation.center, "site": ablation.site.value} if isinstance(ablation, Ablation) else {}
        for key, score in zip(missing, measured, strict=True):
            if self.folder is not None:
                self.folder.write("scores", key, KIND, about, tensors_of(score))
            self._held[key] = score


class Pieces:
    """Tensors that took long to make, each made once and kept in a folder; without one, made when asked.

    >>> pieces = Pieces(None)
    >>> pieces.of("squares", {"up to": 3}, lambda: {"squares": torch.arange(3) ** 2})["squares"].tolist()
    [0, 1, 4]
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else ExperimentFolder.create(folder)

    def of(self, kind: str, facts: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What was made of these facts: plain JSON values that say everything it depends on, versions too."""
        if self.folder is None:
            return make()
        key = key_of({"kind": kind, **facts})
        if self.folder.has(PIECES, key):
            return self.folder.read(PIECES, key, kind)[1]
        made = make()
        with keeping(self.folder.path):
            (self.folder.path / PIECES).mkdir(exist_ok=True)
        self.folder.write(PIECES, key, kind, {}, made)
        return made


@dataclass(frozen=True, eq=False)
class Biased:
    """A vector added at a site in every layer, beside an ablation or in the model as it is.

    Attributes:
        bias: `[layer head dim]` at the site.
        site: where it is added, such as attn_out.
        ablation: what is ablated besides.
    """

    bias: Float[Tensor, "layer head dim"]
    site: Site
    ablation: Ablation | None = None

    def hooks(self) -> list[Hook]:
        """Those of the ablation, and one per layer that adds."""
        ablated = [] if self.ablation is None else self.ablation.hooks()
        return [*ablated, *added(self.site, self.bias)]

    @property
    def facts(self) -> dict[str, Any]:
        """What tells it from others."""
        bias = {"site": self.site.value, "bias": digest_of(self.bias.cpu().double())}
        return {"biased": bias, "ablation": facts_of(self.ablation)}


def added(site: Site, bias: Float[Tensor, "layer head dim"]) -> list[Hook]:
    """Hooks that add a vector in every layer."""

    def hook_for(vector: Tensor) -> Any:
        return lambda value, hook: value + site.from_heads(vector.to(value))

    return [(site.hook_name(layer), hook_for(vector)) for layer, vector in enumerate(bias)]


def facts_of(ablation: Ablation | Ablations | None) -> dict[str, Any] | None:
    """What tells an ablation with constant values from others, as plain JSON values."""
    if ablation is None:
        return None
    if isinstance(ablation, Ablations):
        return {"parts": [facts_of(part) for part in ablation]}
    if ablation.depends_on_position:
        raise MismatchError("scores are kept of values that are the same at every position; use al.evaluate.")
    assert isinstance(ablation.values, torch.Tensor)
    # What neurons that stay would be set to changes nothing.
    used = torch.where(ablation.mask, ablation.values.cpu().double(), 0.0)
    return {
        "site": ablation.site.value,
        "mask": digest_of(ablation.mask.cpu().byte()),
        "values": digest_of(used),
    }

"""A whole analysis, kept in a folder: effects, curves and circuits of some prompts, under one value or several.

    prompts/<digest>.json            what was asked
    statistics/<key>.safetensors     what centers are computed from, of one site
    effects/<key>.safetensors        knock-outs of heads, attributions of neurons
    curves/<key>.json                the metric against circuit size, for every pair of values
    circuits/<key>.safetensors       a circuit; <key>.json: how it was found, and how it was judged
    refusals/<key>.json              a part that there is not, and why
    analyses/<key>.json              what was asked for, and the keys of its parts

A key follows from everything that its part depends on: run again, nothing is measured twice, and of other settings
only what they change.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ablation_lens.circuits.attribution import attribution_effects
from ablation_lens.circuits.circuit import Circuit
from ablation_lens.circuits.curves import Curves, faithfulness_curve
from ablation_lens.circuits.discovery import Discovery, discover, require_search
from ablation_lens.circuits.effects import Effects
from ablation_lens.circuits.halving import FROM_PROMPTS, Halves
from ablation_lens.circuits.judging import Faithfulness, require_other_inputs
from ablation_lens.circuits.knockout import knockout_effects
from ablation_lens.circuits.prompting import Prompts
from ablation_lens.circuits.setting import Setting
from ablation_lens.circuits.units import units_of
from ablation_lens.circuits.values import Values
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.files import save_json
from ablation_lens.measure.collection import collect
from ablation_lens.measure.metrics import metrics_of
from ablation_lens.names import require_known
from ablation_lens.neurons import centers
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.ranks import Ranks
from ablation_lens.records import ModelRecord, Record, Versions, record_of
from ablation_lens.runs.folder import RunFolder, checking, keeping, key_of, mending, plain_name
from ablation_lens.sites import Site
from ablation_lens.tasks.plans import BatchPlan

ANALYSIS, REFUSAL, FOUND = "analysis of circuits", "refusal", "circuit that was found"
"""What these files call themselves."""

POSITION_MEAN = "position-mean"
OF_INPUTS = (POSITION_MEAN, "counterfactual")
"""Values that depend on the input, by the names that are taken beside those of centers."""

_LEARN_FROM_OTHERS = "learn from others, such as a corpus, or the half of the prompts that circuits are found on"


# ---------------------------------------------------------------------- what its files say


@dataclass(frozen=True)
class AnalysisSettings(Record):
    """What was asked for.

    Attributes:
        model: as it was named.
        task: a name that `prompts_for` knows; None for prompts of a file.
        file: that file's path; None for a task.
        count: how many prompts.
        seed: draws prompts, halves and random circuits.
        metric: its name.
        centers: what units are set to.
        sites: where they are.
        level: what is kept or taken away as one.
        method: of discovery.
        target: the f that circuits are to have.
        steps: of attributions.
        statistics: paths of files that centers are computed from, or "prompts"; none: of a corpus.
        corpus: which one; None for the model's own.
        tokens: how much of it; None for as much as usual.
        dtype: what the model computes in; None for what it is loaded in.
        values: paths of files of learned values, which are tried beside the centers.
    """

    model: str
    task: str | None
    file: str | None
    count: int
    seed: int
    metric: str
    centers: tuple[str, ...]
    sites: tuple[str, ...]
    level: str
    method: str
    target: float
    steps: int
    statistics: tuple[str, ...] = ()
    corpus: str | None = None
    tokens: int | None = None
    dtype: str | None = None
    values: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; without learned values as before there were any, so that keys stay as they are."""
        told = super().to_dict()
        if not self.values:
            del told["values"]
        return told

    def differences(self, other: "AnalysisSettings") -> list[str]:
        """In which settings another analysis differs, in words."""
        mine, theirs = vars(self), vars(other)
        return [f"{name}: {_told(theirs[name])} before" for name in mine if mine[name] != theirs[name]]


def _told(value: Any) -> str:
    return " and ".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)


@dataclass(frozen=True)
class AnalysisRecord(Record):
    """An analysis: what was asked for, and under which keys its parts are.

    Attributes:
        settings: what was asked for.
        model: what was analysed.
        versions: by which it was.
        prompts: their digest.
        about_prompts: what they are, in words.
        statistics: site → key, of those that were collected for this.
        knockouts: center (or name of learned values) → key of exact effects of heads (or layers).
        attributions: the same → key of attributions of neurons.
        curves: their key.
        circuits: the same → key of the circuit found with it.
    """

    settings: AnalysisSettings
    model: ModelRecord
    versions: Versions
    prompts: str
    about_prompts: str
    statistics: dict[str, str]
    knockouts: dict[str, str]
    attributions: dict[str, str]
    curves: str
    circuits: dict[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        learned = self.knockouts.keys() - set(self.settings.centers)
        # Files sort what they hold by name.
        names = (*self.settings.centers, *sorted(learned))
        for field in ("knockouts", "attributions", "circuits"):
            part = getattr(self, field)
            if set(part) != set(names) or bool(learned) != bool(self.settings.values):
                raise ValueError("its parts are not of its centers")
            object.__setattr__(self, field, {name: plain_name(part[name]) for name in names})
        for key in self.statistics.values():
            plain_name(key)
        plain_name(self.prompts)
        plain_name(self.curves)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().to_dict(), "settings": self.settings.to_dict()}

    @property
    def names(self) -> tuple[str, ...]:
        """What units are set to: the centers as they were asked for, and then learned values."""
        return tuple(self.knockouts)

    @property
    def key(self) -> str:
        """The name of its file."""
        return key_of(self.to_dict())


@dataclass(frozen=True)
class JudgedRecord(Record):
    """What a circuit keeps of the metric on one half of the prompts.

    Attributes:
        rows: how many prompts.
        m_model: m(M).
        m_circuit: m(C).
        m_empty: m(∅).
        f: the share that is kept; None where that is refused.
        low: where its 95 % interval begins.
        high: where it ends.
        refused: why there is no f.
        random: f of circuits of as many units, drawn at random.
    """

    rows: int
    m_model: float
    m_circuit: float
    m_empty: float
    f: float | None
    low: float | None
    high: float | None
    refused: str | None
    random: tuple[float | None, ...] = ()

    @classmethod
    def of(cls, found: Faithfulness) -> "JudgedRecord":
        """Of what `faithfulness` gives."""
        kept = found.share
        f, low, high = map(_or_none, (kept.value, kept.low, kept.high))
        ms = (found.m_model, found.m_circuit, found.m_empty)
        return cls(len(found.clean.values), *ms, f, low, high, kept.refused, tuple(map(_or_none, found.random_f)))


@dataclass(frozen=True)
class FoundRecord(Record):
    """How a circuit was found, and how good it is.

    Attributes:
        center: what everything else is set to.
        collected_on: what that was computed from, in words.
        units: how many it keeps, of the level that was asked for.
        of: how many there are.
        reached: whether fewer than all units have the f that was asked for.
        searched: how, in words.
        found: on the prompts that it was found on.
        judged: on the others.
    """

    center: str
    collected_on: str | None
    units: int
    of: int
    reached: bool
    searched: str
    found: JudgedRecord
    judged: JudgedRecord

    @classmethod
    def of_discovery(cls, discovery: Discovery) -> "FoundRecord":
        """Of what `discover` gives."""
        circuit = discovery.circuit
        return cls(
            discovery.judged.values,
            discovery.judged.collected_on,
            len(circuit.units(discovery.level)),
            sum(math.prod(units_of(tuple(mask.shape), discovery.level)) for mask in circuit.kept.values()),
            discovery.reached,
            discovery.searched,
            JudgedRecord.of(discovery.found),
            JudgedRecord.of(discovery.judged),
        )


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# ---------------------------------------------------------------------- where they lie


class CircuitFolder(RunFolder):
    """A folder of analyses."""

    kind: ClassVar[str] = "circuits"
    parts: ClassVar[tuple[str, ...]] = (
        "analyses",
        "circuits",
        "curves",
        "effects",
        "prompts",
        "refusals",
        "statistics",
    )

    def analyses(self) -> list[AnalysisRecord]:
        """Those that were asked for here, the latest last."""
        return [self.analysis(name) for name in self.names("analyses")]

    def analysis(self, key: str) -> AnalysisRecord:
        """What was asked for under a key."""
        values = self.read_once("analyses", key, ANALYSIS)
        with checking(self.json("analyses", key)):
            record = AnalysisRecord.from_dict(values)
            if record.key != key:
                raise FileFormatError(f"its name must be {record.key}, which follows from its content.")
            return record

    def latest(self) -> AnalysisRecord | None:
        """The analysis that was asked for last."""
        names = self.names("analyses")
        return self.analysis(names[-1]) if names else None

    def write_analysis(self, record: AnalysisRecord) -> None:
        """Keep what is asked for now; it is the latest, also if it was asked for before."""
        with keeping(self.path):
            save_json(self.json("analyses", record.key), ANALYSIS, record.to_dict())

    def prompts(self, digest: str) -> Prompts:
        """The prompts of an analysis."""
        with mending():
            return Prompts.load(self.json("prompts", plain_name(digest)))

    def statistics(self, key: str) -> ActivationStatistics:
        """Statistics of one site."""
        with mending():
            return ActivationStatistics.load(self.file("statistics", key))

    def effects(self, key: str) -> Effects:
        """Knock-outs or attributions."""
        with mending():
            return Effects.load(self.file("effects", key))

    def curves(self, key: str) -> Curves:
        """Curves of every pair."""
        with mending():
            return Curves.load(self.json("curves", plain_name(key)))

    def circuit(self, key: str) -> tuple[FoundRecord, Circuit]:
        """A circuit, and how good it is."""
        values = self.read_once("circuits", key, FOUND)
        with checking(self.json("circuits", key)):
            found = FoundRecord.from_dict(values)
        with mending():
            return found, Circuit.load(self.file("circuits", key))

    def refusal(self, key: str) -> str | None:
        """Why there is no such part; None where nobody refused it."""
        if not self.json("refusals", plain_name(key)).exists():
            return None
        told = self.read_once("refusals", key, REFUSAL).get("told")
        return told if isinstance(told, str) else "refused"

    def is_there(self, part: str, key: str) -> bool:
        """Whether a part is finished, or known to be impossible."""
        of_json = part in ("curves", "circuits")
        path = self.json(part, plain_name(key)) if of_json else self.file(part, key)
        return path.exists() or self.json("refusals", plain_name(key)).exists()

    def progress(self, record: AnalysisRecord) -> dict[str, tuple[int, int]]:
        """How many parts of an analysis are done and left: of every center (or learned values), and the curves."""
        parts = {
            name: [("effects", record.knockouts[name]), ("effects", record.attributions[name])] for name in record.names
        }
        for name, key in record.circuits.items():
            parts[name].append(("circuits", key))
        parts["curves"] = [("curves", record.curves)]
        done = {name: sum(self.is_there(*part) for part in found) for name, found in parts.items()}
        return {name: (done[name], len(found) - done[name]) for name, found in parts.items()}


# ---------------------------------------------------------------------- how they are made


def require_possible(settings: AnalysisSettings) -> None:
    """Raise where something is asked for that there is not, before a model is loaded for it."""
    from ablation_lens.circuits.prompt_tasks import prompt_names

    if settings.task is not None:
        require_known(settings.task, prompt_names(), "task")
    for name in settings.centers:
        require_known(name, (*centers.names(), *OF_INPUTS), "center")
    for site in settings.sites:
        Site.of(site)
    if len(metrics_of(settings.metric)) != 1:
        raise MismatchError("one metric says what a circuit is for.")
    require_search(settings.method, settings.level, settings.target)


def needs_statistics(settings: AnalysisSettings) -> bool:
    """Whether any of the centers is computed from how neurons are distributed."""
    return bool(set(settings.centers) - {"zero", "counterfactual"})


def analyse(
    model: Any,
    prompts: Prompts,
    settings: AnalysisSettings,
    out: str | Path,
    *,
    statistics: Any = None,
    learned: Sequence[Values] = (),
    said: Callable[[str], None] = lambda text: None,
    progress: bool = True,
    ranks: Ranks | None = None,
) -> tuple[CircuitFolder, AnalysisRecord]:
    """Measure what is not in the folder yet: effects, curves, and a circuit for every center.

    Effects are measured on the half of the prompts that circuits are found on. What cannot be said, such as f where
    ablating everything changes nothing, is kept as a sentence in its place.

    Args:
        model: any hooked model.
        prompts: what is asked of it.
        settings: everything else.
        out: the folder; one that is there is gone on with.
        statistics: what centers are computed from: some, or a plan that they are collected over. None collects them
            on the half that circuits are found on.
        learned: what the files that `settings.values` names hold. What circuits are judged on must not be what these
            were learned from.
        said: is told what is being done.
        progress: show progress bars.
        ranks: `Ranks.join()` in a program that torchrun started several times: statistics are collected together, and
            each rank makes the parts that nobody else is at.
    """
    ranks = ranks or Ranks()
    ranks.require_alike({"settings": settings.to_dict(), "prompts": prompts.digest}, "analyse the same")
    halves = Halves.of(model, prompts, settings.seed)
    for each in learned:
        if each.name in settings.centers:
            raise MismatchError(f"learned values are called {each.name!r}, as a center is; leave one of them out.")
        require_other_inputs(Setting.of(model, halves.second, settings.metric, each), _LEARN_FROM_OTHERS)
    folder = CircuitFolder.create(out)
    work = _Work(folder, model, said, progress)
    sites = [Site.of(site) for site in settings.sites]
    keys: dict[str, str] = {}
    if isinstance(statistics, BatchPlan):
        needs = {"passes": _passes(settings.centers), "positions": POSITION_MEAN in settings.centers}
        keys = work.statistics_keys(statistics, sites, needs)
        statistics = work.collected(statistics, keys, needs, ranks)
    given = FROM_PROMPTS if statistics is None else statistics
    said("computing what units are set to")
    tried: dict[str, Any] = {**{name: name for name in settings.centers}, **{each.name: each for each in learned}}
    values = halves.values(list(tried.values()), given, sites=sites, progress=progress)
    record = work.record(settings, prompts, keys, {name: both.first for name, both in values.items()})
    if not folder.json("prompts", prompts.digest).exists():
        with keeping(folder.path):
            prompts.save(folder.json("prompts", prompts.digest))
    folder.write_analysis(record)
    # Their literal types are checked by `require_possible`.
    options: dict[str, Any] = {"level": settings.level, "steps": settings.steps, "seed": settings.seed, "sites": sites}
    options |= {"statistics": given, "progress": progress}
    found_by: dict[str, Any] = {"method": settings.method, "target": settings.target}

    def find(name: str, key: str) -> None:
        work.save_circuit(key, discover(model, prompts, settings.metric, tried[name], **found_by, **options))

    def judge() -> None:
        curves = faithfulness_curve(model, prompts, settings.metric, list(tried.values()), **options)
        if len(curves.areas) < len(values) ** 2:
            raise KeyboardInterrupt
        with keeping(folder.path):
            curves.save(folder.json("curves", record.curves))

    pieces: list[_Piece] = []
    for name, both in values.items():
        pieces += work.effects(halves.first, settings, both.first, record.knockouts[name], record.attributions[name])
    for name, key in record.circuits.items():
        what = f"looking for a circuit, the rest set to {name}"
        pieces.append(_Piece("circuits", key, what, partial(find, name, key)))
    what = "judging circuits of every size with every center"
    pieces.append(_Piece("curves", record.curves, what, judge))
    work.finish(pieces)
    return folder, record


@dataclass(frozen=True)
class _Piece:
    """A part of an analysis, and how it is made; where it is optional, a refusal is kept as a sentence in its place."""

    part: str
    key: str
    what: str
    make: Callable[[], None]
    optional: bool = True


class _Work:
    """Makes parts that are not there."""

    def __init__(self, folder: CircuitFolder, model: Any, said: Callable[[str], None], progress: bool) -> None:
        self.folder, self.model, self.said, self.progress = folder, model, said, progress
        record = record_of(model).to_dict()
        # By its weights, whatever it is called.
        self._facts = {
            "model": {name: value for name, value in record.items() if name not in ("name", "revision", "unread")},
            "versions": {name: each for name, each in Versions.current().to_dict().items() if name != "python"},
            "device": str(model.cfg.device),
        }

    def key(self, what: str, **facts: Any) -> str:
        """Of a part that depends on these facts, and on the model."""
        return key_of({**self._facts, "what": what, **facts})

    def record(
        self, settings: AnalysisSettings, prompts: Prompts, statistics: dict[str, str], values: Mapping[str, Values]
    ) -> AnalysisRecord:
        """The keys of all parts."""
        told = {name: _facts_of(each) for name, each in values.items()}
        common: dict[str, Any] = {"prompts": prompts.digest, "seed": settings.seed, "metric": settings.metric}
        common["sites"] = list(settings.sites)
        asked = {"level": settings.level, "steps": settings.steps}
        found_by = {"method": settings.method, "target": settings.target}
        return AnalysisRecord(
            settings,
            record_of(self.model),
            Versions.current(),
            prompts.digest,
            repr(prompts).removeprefix("Prompts(").removesuffix(")"),
            statistics,
            {name: self.key("knockouts", **common, level=_exact(settings), values=told[name]) for name in told},
            {name: self.key("attributions", **common, steps=settings.steps, values=told[name]) for name in told},
            self.key("curves", **common, **asked, values=told),
            {name: self.key("circuits", **common, **asked, **found_by, values=told[name]) for name in told},
        )

    def effects(
        self, half: Prompts, settings: AnalysisSettings, values: Values, knockouts: str, attributions: str
    ) -> "list[_Piece]":
        """Knock-outs of heads or layers, and attributions of neurons."""
        level: Any = _exact(settings)

        def knock_out() -> None:
            made = knockout_effects(self.model, half, settings.metric, values, level=level, progress=self.progress)
            self._save_effects(knockouts, made, len(half))

        def attribute() -> None:
            asked: dict[str, Any] = {"steps": settings.steps, "progress": self.progress}
            made = attribution_effects(self.model, half, settings.metric, values, **asked)
            self._save_effects(attributions, made, len(half))

        # What knock-outs refuse, nothing of what follows could do.
        what = f"knocking out every {level}, set to {values.name}"
        return [
            _Piece("effects", knockouts, what, knock_out, optional=False),
            _Piece("effects", attributions, f"attributing to every neuron, set to {values.name}", attribute),
        ]

    def finish(self, pieces: "Sequence[_Piece]") -> None:
        """Make what is not there; what another process is at is waited for when nothing else is left."""
        while pieces:
            taken = [piece for piece in pieces if not self._is_made(piece)]
            if len(taken) == len(pieces):
                self._is_made(taken.pop(0), patience=math.inf)
            pieces = taken

    def _is_made(self, piece: "_Piece", patience: float = 0.0) -> bool:
        """Whether a piece is there now, or refused; False while another process is at it."""
        waiting = partial(self._wait, piece.what)
        with self.folder.locked(piece.key, what=piece.what, patience=patience, waiting=waiting) as mine:
            if not mine:
                return False
            if self.folder.is_there(piece.part, piece.key):
                return True
            self.said(piece.what)
            try:
                with warnings.catch_warnings():
                    # It is said once, where everything ends.
                    warnings.filterwarnings("ignore", "interrupted: ")
                    piece.make()
            except MismatchError as refusal:
                if not piece.optional:
                    raise
                self.folder.write_once("refusals", piece.key, REFUSAL, {"told": str(refusal)})
        return True

    def _wait(self, what: str, holder: str) -> None:
        self.said(f"{what}: waiting for {holder}")

    def statistics_keys(self, plan: BatchPlan, sites: list[Site], needs: Mapping[str, Any]) -> dict[str, str]:
        """By site; a key says in how many passes they were collected, and whether positions were kept."""
        return {site.value: self.key("statistics", site=site.value, plan=plan.digest, **needs) for site in sites}

    def collected(
        self, plan: BatchPlan, keys: Mapping[str, str], needs: Mapping[str, Any], ranks: Ranks
    ) -> dict[Site, ActivationStatistics]:
        """Statistics of every site, collected in one pass where they are not there; rank 0 looks, and writes."""
        absent = [site for site, key in keys.items() if not self.folder.has("statistics", key)]
        missing = ranks.first_text(" ".join(absent)).split()
        if missing:
            self.said(f"collecting over {plan.corpus.name}")
            made = collect(self.model, plan, site=missing, progress=self.progress, ranks=ranks, **needs)
            for site, statistics in made.items():
                path = self.folder.file("statistics", keys[site.value])
                if ranks.is_first:
                    with keeping(self.folder.path):
                        statistics.save(path)
                ranks.require_written(path)
        return {Site(site): self.folder.statistics(key) for site, key in keys.items()}

    def _save_effects(self, key: str, effects: Effects, rows: int) -> None:
        """Keep effects that are whole; Ctrl-C leaves some that are not."""
        if not effects.is_whole or len(effects.clean.values) < rows:
            raise KeyboardInterrupt
        with keeping(self.folder.path):
            effects.save(self.folder.file("effects", key))

    def save_circuit(self, key: str, discovery: Discovery) -> None:
        """Keep a circuit; its JSON comes last, and says that both are there."""
        with keeping(self.folder.path):
            discovery.circuit.save(self.folder.file("circuits", key))
        self.folder.write_once("circuits", key, FOUND, FoundRecord.of_discovery(discovery).to_dict())


def _exact(settings: AnalysisSettings) -> str:
    """The level of exact effects: those of every neuron by itself would take as many runs as there are neurons."""
    return "layer" if settings.level == "layer" else "head"


def _passes(wanted: tuple[str, ...]) -> int:
    return max([1, *(centers.about(name).passes for name in wanted if name not in OF_INPUTS)])


def _facts_of(values: Values) -> dict[str, Any]:
    """What results depend on: the numbers themselves, wherever they are from."""
    return {"name": values.name, "numbers": {site.value: _digest(given) for site, given in values.by_site.items()}}


def _digest(given: Any) -> Any:
    if isinstance(given, float):
        return given
    held = given
    for name in ("statistics", "prompts"):  # of a provider
        held = getattr(held, name, held)
    if isinstance(held, ActivationStatistics):
        held = held.position_mean
    if isinstance(held, Prompts):
        return held.digest
    if not isinstance(held, Tensor):
        raise MismatchError(
            f"values of {type(given).__name__} cannot be kept in a folder, as nothing tells them apart."
        )
    array = np.ascontiguousarray(held.detach().cpu().numpy())
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()[:24]

"""What the files of a study's run folder say, and which of it is possible: a record per kind of file.

A checksum says that a file is as it was written, not that anybody measured what it says.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.measure import learners, resampling
from ablation_lens.measure.score_file import MOST
from ablation_lens.records import CorpusRecord, ModelRecord, Record, Versions
from ablation_lens.runs.folder import key_of, plain_name
from ablation_lens.sites import Site
from ablation_lens.study.methods import BASELINE, Method, split_label


def _require(possible: bool, what: str) -> None:
    if not possible:
        raise ValueError(what)


def _is_seed(seed: int | None) -> bool:
    return seed is None or abs(seed) < 2**63


@dataclass(frozen=True)
class CellRecord(Record):
    """What a cell's file says beside its sums.

    Attributes:
        group: the key of the cells that it may be compared with.
        method: how the neurons were ablated.
        fraction: how many.
        seed: what drew them, and what resampling draws; None where nothing is drawn.
        seconds: how long it took.
        splits: how many times a batch was split because memory ran out.
        threads: how many torch had.
        input: the digest of the input that was resampled from.
        values: the digest of the values that a center of the user's own gave.
        version: of the numbers that a center of this package gives.
        learned: the digest of the values, where they were learned.
        generator_weights: of the model that wrote the input.
    """

    group: str
    method: str
    fraction: float
    seed: int | None
    seconds: float
    splits: int
    threads: int | None = None
    input: str | None = None
    values: str | None = None
    version: int = 1
    generator_weights: str | None = None
    learned: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_name(self.group)
        # As `plain_share` gives it: a cell of another last bit would not be found beside the others.
        _require(
            0 <= self.fraction <= 1 and round(self.fraction, 12) == self.fraction, f"a fraction of {self.fraction}"
        )
        if self.method == BASELINE:
            plain = self.fraction == 0 and self.seed is None and not self.variant()
            _require(plain, "a baseline has no fraction, no seed and no values")
        else:
            _require_label(self.method)
            _require(self.fraction > 0, "nothing is ablated")
        _require(_is_seed(self.seed), f"the seed is {self.seed}")
        _require(0 <= self.seconds < math.inf, f"it took {self.seconds} seconds")
        _require(0 <= self.splits < MOST, f"there were {self.splits} splits")
        _require(self.version >= 1, f"the version is {self.version}")

    @property
    def facts(self) -> dict[str, Any]:
        """What the cell's key was made from."""
        named = {"values": self.values, "generator_weights": self.generator_weights}
        facts = {"group": self.group, "method": self.method, "fraction": self.fraction, "seed": self.seed}
        # Only what is there, and only from the second version on: cells of before are still found.
        facts |= {name: value for name, value in named.items() if value is not None}
        return facts | ({"version": self.version} if self.version > 1 else {})

    @property
    def key(self) -> str:
        """The name of its file."""
        return key_of(self.facts)

    def variant(self, length: int | None = None) -> str:
        """What tells its values from others that went by the same name; `length` cuts digests, for people."""
        named = {"values": self.values, "generator": self.generator_weights}
        told = [f"{name} {value[:length]}" for name, value in named.items() if value is not None]
        return ", ".join([*told, *([f"version {self.version}"] if self.version > 1 else [])])


def _require_label(method: str) -> None:
    # Whether there is such a method does not matter: centers of one's own are registered where they are used.
    try:
        name, _ = split_label(method)
    except MismatchError as error:
        raise ValueError(f"the method is {method!r}") from error
    _require(bool(name), "the method has no name")


@dataclass(frozen=True)
class GroupRecord(Record):
    """What the cells of a group share. `facts` made the group's key; the rest says it for people.

    `outputs` is between how many tokens or classes the model chooses; files of before do not say so.
    """

    facts: dict[str, Any]
    model: ModelRecord
    task: str
    evaluate: CorpusRecord
    collect: CorpusRecord
    context: int
    batch_size: int
    mask_seed: int | None
    count: str
    predictions: int
    padding: float
    statistics: tuple[str, str]
    versions: Versions
    outputs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.predictions < MOST, f"there are {self.predictions} predictions")
        _require(self.outputs is None or 0 < self.outputs < MOST, f"there are {self.outputs} outputs")
        _require(min(self.context, self.batch_size) > 0, "a document or a batch is empty")
        _require(0 <= self.padding < 1, f"the share of padding is {self.padding}")
        _require(_is_seed(self.mask_seed), f"the seed of the masks is {self.mask_seed}")
        for corpus in (self.evaluate, self.collect):
            counts = (corpus.documents, corpus.size_obtained, corpus.size_requested or 0)
            _require(all(0 <= count < MOST for count in counts), f"{corpus.name} has an impossible size")
        facts = self.facts
        _require(facts.get("site") in [site.value for site in Site], f"there is no site {facts.get('site')!r}")
        _require(isinstance(facts.get("device"), str), "it says no device")
        _require(
            all(
                name.isprintable() and isinstance(told, Mapping) and told.get("better") in ("higher", "lower", None)
                for name, told in self.metrics.items()
            ),
            "its metrics are not possible",
        )
        told = {"model": self.model.to_dict(), "versions": self.versions.to_dict()}
        for name, values in told.items():
            _require(_agree(facts.get(name), values), f"its facts are of another {name.removesuffix('s')}")
        _require(
            self.statistics == (statistics_key(facts, 1), statistics_key(facts, 2)),
            "its statistics are those of other facts",
        )

    @property
    def key(self) -> str:
        """The name of its file."""
        return key_of(self.facts)

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured besides top-1 and cross-entropy: whether "higher" or "lower" is better, by name."""
        found = self.facts.get("metrics", {})
        return dict(found) if isinstance(found, Mapping) else {}


def _agree(facts: Any, values: Mapping[str, Any]) -> bool:
    """Whether facts, as far as they say something, are these values."""
    return isinstance(facts, Mapping) and all(
        fact is None or (name in values and fact == values[name]) for name, fact in facts.items()
    )


def statistics_key(facts: Mapping[str, Any], passes: int) -> str:
    """The key of the statistics that a group's values are from.

    Not the whole group: what is scored, and the shared input, change no statistics, so such groups share a file.
    """
    parts = ("model", "collect", "bins", "include_bos", "site", "device", "versions")
    # Absent in groups of before; None would be another key.
    further = [name for name in ("checksum", "config", "reader", "special", "zeros") if name in facts]
    try:
        return key_of({"passes": passes, **{part: facts[part] for part in (*parts, *further)}})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its facts are not complete ({error})") from error


def learned_facts(facts: Mapping[str, Any], method: Method, fraction: float) -> dict[str, Any]:
    """What the values that a method learns for a group follow from.

    Of documents and model as statistics are; what is scored changes none of them.
    """
    found: dict[str, Any] = {"statistics": statistics_key(facts, method.passes), "method": method.label}
    share, version = method.share_at(fraction), learners.about(method.name).version
    found |= {} if share is None else {"share": share}
    return found | ({"version": version} if version > 1 else {})


@dataclass(frozen=True)
class StudyRecord(Record):
    """The settings of a study that ran; only models and methods were always there."""

    models: tuple[str, ...]
    methods: tuple[str, ...]
    fractions: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    corpora: dict[str, str] = field(default_factory=dict)
    collect_tokens: int | None = None
    evaluate_tokens: int | None = None
    collect_images: int | None = None
    evaluate_images: int | None = None
    metrics: tuple[str, ...] = ()
    count: str | tuple[str, ...] = "all"
    context: int | None = None
    batch_size: int | str | None = None
    bins: int = 256
    include_bos: bool = True
    site: str = Site.Z.value
    mask_seed: int = 42
    shared_input: bool = False
    generator: str = ""
    labels: str | None = None
    dtype: str | dict[str, str] | None = None
    device: str | None = None
    n_devices: int | None = None
    given: dict[str, str] = field(default_factory=dict)
    """What was given in Python and has no name, described; empty for a study that a file can say."""

    @property
    def counts(self) -> tuple[str, ...]:
        """What is counted, one or several."""
        return (self.count,) if isinstance(self.count, str) else self.count

    def require_named(self) -> None:
        """Refuse to write down, as TOML or a command, a study of what has no name."""
        if self.given:
            raise MismatchError(
                f"this study was given in Python what no settings file can name ({', '.join(self.given)}); run it from "
                "Python again."
            )


@dataclass(frozen=True)
class BatchSizeRecord(Record):
    """How many documents a batch of a model has here; `facts` are what the key of its file was made from."""

    facts: dict[str, Any]
    batch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.batch_size < 2**31, f"a batch has {self.batch_size} documents")


@dataclass(frozen=True)
class FailureRecord(Record):
    """What went wrong: with a cell, or with a model as a whole. `facts` are what the key of its file was made from."""

    model: str
    error: str
    message: str
    cell: str | None = None
    traceback: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)  # empty in files of before

    @property
    def key(self) -> str | None:
        """The name of its file, where it says that."""
        return key_of(self.facts) if self.facts else None


@dataclass(frozen=True)
class InputRecord(Record):
    """A random input that neurons were resampled from."""

    group: str
    kind: str
    seed: int
    text: str | None
    extract: str
    generator: str | None
    digest: str
    generator_weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_name(self.group)
        _require(self.kind in resampling.KINDS, f"there is no kind {self.kind!r}")
        _require(_is_seed(self.seed), f"the seed is {self.seed}")

    @property
    def key(self) -> str:
        """The name of its file."""
        facts = {"group": self.group, "kind": self.kind, "seed": self.seed}
        if self.generator_weights is not None:
            facts["generator_weights"] = self.generator_weights
        return key_of(facts)

    def require_inputs(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The exact input, if it is the one that is described."""
        inputs = tensors.get("inputs")
        if set(tensors) != {"inputs"} or inputs is None:
            raise FileFormatError("it needs one input, of token ids or of pixels.")
        resampling.require_input(inputs)
        if resampling.digest_of(inputs) != self.digest:
            raise FileFormatError("the input is not the one whose digest it gives.")
        return inputs

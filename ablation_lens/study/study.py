"""`Study`: the paper's experiment, from Python, a preset or a TOML file. `run.py` measures it."""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ablation_lens.errors import AblationLensError, MismatchError
from ablation_lens.escaping import as_unicode, on_one_line, shorten
from ablation_lens.files import read_text
from ablation_lens.measure.metrics import Given, Metric, metrics_of
from ablation_lens.names import require_known
from ablation_lens.sites import Site
from ablation_lens.study import own, paper
from ablation_lens.study.cells import Cell, plain_share
from ablation_lens.study.methods import Method
from ablation_lens.tasks.batch_sizes import AUTO
from ablation_lens.tasks.inputs import told
from ablation_lens.tasks.tasks import COUNTS

if TYPE_CHECKING:
    from ablation_lens.ranks import Ranks
    from ablation_lens.study.results import Results


@dataclass(frozen=True, kw_only=True, repr=False)
class Study:
    """Every method at every fraction with every seed, for every model.

    A single model, method, fraction or seed is a list of one.

    Attributes:
        models: zoo names, hub ids or folders; or hooked models, which stay as they are.
        methods: centers and resamplings, such as "peak", "peak bins=64", "resample-tokens".
        fractions: shares of every layer's neurons that are ablated.
        seeds: draw the neurons, and the random inputs of resampling.
        corpora: what "text" and "image" models read: a name or a path; or a list of texts, or a `Dataset`.
        batches: what models read instead of a corpus: `{"collect": …, "evaluate": …}`, each whatever `al.collect`
            takes; or such a pair for each model, by its name or by itself.
        collect_tokens: size of the corpus that statistics are of; None for the paper's 100,000 tokens, or all there is.
        evaluate_tokens: size of the corpus that scores are of; likewise.
        collect_images: as collect_tokens, for image models; None for 1,000, or all there is.
        evaluate_images: likewise.
        metrics: what to measure besides top-1 and cross-entropy, as `evaluate` takes it: names such as "kl", or
            functions by name. A function's cells are found again as long as it gives the same values.
        count: "all" predictions, or "skip-common"; several are measured by the same runs of a model.
        context: positions a document is truncated to; None for the paper's.
        batch_size: documents per batch; None chooses about 8192 positions. "auto" chooses by the memory that is free
            beside each model, once per folder: who goes on with it, here or elsewhere, takes the same.
        bins: most bins per neuron.
        include_bos: whether BOS, CLS and EOS positions count in the statistics.
        site: "z", or "mlp".
        mask_seed: draws the masked tokens of masked models, the same for all cells.
        shared_input: resample from one input for all seeds, as the paper did, instead of one per seed.
        generator: the causal model that writes the text a masked model is resampled from.
        labels: a CSV file,label for a folder of images.
        dtype: for all models, or by model; None for float32 on a CPU and the checkpoint's own elsewhere.
        device: None takes the GPU when there is one.
        n_devices: GPUs that the blocks of causal models are spread over, from `device` on.

    >>> study = Study(models=["tiny-vit"], methods=["zero", "peak"], fractions=[0.5, 1.0], seeds=[1, 2])
    >>> [str(cell) for cell in study.cells("image-classification")]
    ['baseline', 'zero, 50 %, seed 1', 'peak, 50 %, seed 1', 'zero, 50 %, seed 2', 'peak, 50 %, seed 2', \
'zero, 100 %', 'peak, 100 %']

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     small = Study(models=["tiny-vit"], methods=["zero", "peak"], fractions=[0.5], seeds=[42], collect_images=64)
    ...     results = small.run(folder, progress=False)
    >>> results.frame[["method", "fraction", "predictions"]].values.tolist()
    [['none', 0.0, 233], ['zero', 0.5, 233], ['peak', 0.5, 233]]
    """

    models: Any
    methods: Sequence[str] = ("zero", "mean", "peak")
    fractions: Sequence[float] = paper.FRACTIONS
    seeds: Sequence[int] = paper.SEEDS
    corpora: Mapping[str, Any] = field(default_factory=lambda: {"text": "stdlib", "image": "digits"})
    collect_tokens: int | None = None
    evaluate_tokens: int | None = None
    collect_images: int | None = None
    evaluate_images: int | None = None
    metrics: Given = ()
    count: str | Sequence[str] = "all"
    context: int | None = None
    batch_size: int | str | None = None
    bins: int = 256
    include_bos: bool = True
    site: str = Site.Z.value
    mask_seed: int = 42
    shared_input: bool = False
    generator: str = "tiny-opt"
    labels: str | None = None
    dtype: str | Mapping[str, str] | None = None
    device: str | None = None
    batches: Mapping[Any, Any] | None = None
    n_devices: int = 1

    def __post_init__(self) -> None:
        for name, (possible, wanted) in _LISTS.items():
            given = _listed(getattr(self, name))
            if not isinstance(given, Sequence):
                raise MismatchError(f"{name} is {told(given)}; give a list of {wanted}.")
            if not given:
                raise MismatchError(f"a study needs at least one of {name}.")
            for value in given:
                if not possible(value):
                    shown = shorten(on_one_line(repr(value)), 100)
                    raise MismatchError(f"{name.removesuffix('s')} {shown} is not possible; give {wanted}.")
            # Without what is there twice; a model need not have a hash.
            plain = list(map(_PLAIN.get(name, str), given))
            kept = [value for place, value in enumerate(plain) if value not in plain[:place]]
            object.__setattr__(self, name, tuple(kept))
        for name, (possible, wanted) in _VALUES.items():
            if not possible(value := getattr(self, name)):
                raise MismatchError(f"{name}={value!r} is not possible; give {wanted}.")
            if isinstance(value, Integral) and not isinstance(value, bool):
                object.__setattr__(self, name, int(value))  # NumPy's are not JSON
        object.__setattr__(self, "metrics", _checked_metrics(self.metrics))
        unknown = set(self.corpora) - {"text", "image"}
        if unknown:
            raise MismatchError(f"corpora are for 'text' and 'image', not for {', '.join(sorted(unknown))}.")
        for count in self.counts:
            require_known(count, COUNTS, "count")
        # A single one as it always was, also in the settings that a folder keeps.
        object.__setattr__(self, "count", self.counts[0] if len(self.counts) == 1 else self.counts)
        if isinstance(self.site, str):
            Site.of(self.site).require_every_block()
        require_known(self.site, [site.value for site in Site], "site")
        if isinstance(self.dtype, Mapping):
            for model in self.dtype:
                require_known(model, [name for name in self.models if isinstance(name, str)] or [""], "model in dtype")
        methods = [Method.parse(method) for method in self.methods]
        for method in methods:
            method.require_possible(self.bins)
        if self.batches is not None:
            self._require_nothing_idle(own.kept_batches(self.batches, self.models))
        # By label: "peak  bins=64" and "peak bins=64" are one method with one set of cells.
        object.__setattr__(self, "methods", tuple(dict.fromkeys(method.label for method in methods)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Study):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return own.alike([getattr(self, name) for name in names], [getattr(other, name) for name in names])

    def __repr__(self) -> str:
        # A model that was given would be shown with all its modules, and a corpus with all its texts.
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "batches"}
        shown["models"] = tuple(own.names_of(self.models))
        shown["corpora"] = {kind: own.corpus_name(corpus) for kind, corpus in self.corpora.items()}
        return f"Study({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _require_nothing_idle(self, kept: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
        """Keep the batches, and refuse settings that would say nothing beside them."""
        if kept[0][0] is None:
            idle = [name for name in (*_SIZES, "labels") if getattr(self, name) is not None]
            idle += ["count"] if self.count != "all" else []
            if idle:
                raise MismatchError(
                    f"{idle[0]}={getattr(self, idle[0])!r} is about reading a corpus, and batches are read as they are "
                    "given; leave it out."
                )
        object.__setattr__(self, "batches", dict(kept) if kept[0][0] is not None else kept[0][1])

    @property
    def counts(self) -> tuple[str, ...]:
        """What is counted, one or several."""
        return (self.count,) if isinstance(self.count, str) else tuple(dict.fromkeys(self.count))

    @property
    def named_models(self) -> dict[str, Any]:
        """The models by what they are called: names, and hooked models that were given."""
        return dict(zip(own.names_of(self.models), self.models, strict=True))

    def batches_of(self, model: Any) -> Mapping[str, Any] | None:
        """What a model collects and evaluates instead of a corpus; None where it reads one."""
        if self.batches is None or set(self.batches) == set(own.SIDES):
            return self.batches
        return next((both for known, both in self.batches.items() if known is model or known == model), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; of what was given in Python, a description."""
        pairs = [] if self.batches is None else own.kept_batches(self.batches, self.models)
        given = own.description(self.models, pairs, self.corpora)
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "batches"
        }
        values["models"] = own.names_of(self.models)
        values["corpora"] = {kind: own.corpus_name(corpus) for kind, corpus in self.corpora.items()}
        # Names alone: a function is no JSON. Absent, as in the settings of studies before, if there are none.
        values["metrics"] = tuple(metrics_of(self.metrics))
        if not values["metrics"]:
            del values["metrics"]
        if values["n_devices"] == 1:  # as before there could be several
            del values["n_devices"]
        if given:
            values["given"] = given
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}

    def cells(self, task: str) -> list[Cell]:
        """The cells of a model of this task: the baseline first, and as soon as possible a bit of everything."""
        methods = [method for method in map(Method.parse, self.methods) if method.suits(task)]
        cells = [Cell(None, 0.0, None)]
        # A fraction of 0 is the baseline, which is there already.
        partial = [fraction for fraction in self.fractions if 0 < fraction < 1]
        whole = [fraction for fraction in self.fractions if fraction == 1]
        # Seeds outermost: the first one soon shows every fraction, and ModelRun keeps values of one seed only.
        for seed in self.seeds:
            cells += [Cell(method, fraction, seed) for fraction in partial for method in methods]
            cells += [Cell(method, fraction, seed) for fraction in whole for method in methods if self._differs(method)]
        # With every neuron gone, only what is drawn differs between seeds.
        alike = [method for method in methods if not self._differs(method)]
        return cells + [Cell(method, fraction, None) for fraction in whole for method in alike]

    def _differs(self, method: Method) -> bool:
        """Whether the method's values differ between seeds."""
        return method.draws and not self.shared_input

    def dtype_of(self, model: str) -> str | None:
        """The dtype a model is loaded in."""
        return self.dtype.get(model) if isinstance(self.dtype, Mapping) else self.dtype

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A study by name — "paper", "tiny" or "quick" — with some settings changed.

        >>> Study.preset("quick", seeds=[7]).seeds
        (7,)
        """
        require_known(name, paper.PRESETS, "preset")
        settings = {**paper.PRESETS[name], **changes}
        # Dtypes of the preset's models that were replaced would be refused as unknown.
        if "dtype" not in changes:
            models, dtypes = _listed(settings["models"]), paper.PRESETS[name].get("dtype", {})
            kept = models if isinstance(models, Sequence) else ()
            settings["dtype"] = {model: dtypes[model] for model in dtypes if model in kept} or None
        if changes.get("batches") is not None:  # of which the preset's sizes would say nothing
            settings = {name: value for name, value in settings.items() if name in changes or name not in _SIZES}
        study = cls(**settings)
        # Merged only after cls() has refused what is not a table; a change of one kind keeps the preset's other.
        return study.with_corpora({**paper.PRESETS[name].get("corpora", {}), **study.corpora})

    @classmethod
    def from_toml(cls, path: str | Path, **changes: Any) -> Self:
        """A study from a TOML file with these attributes as keys; `preset = "tiny"` starts from a preset."""
        text = read_text(Path(path), _SETTINGS_BYTES, AblationLensError)
        try:
            settings = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also whole numbers of thousands of digits
            raise AblationLensError(f"{path} is not TOML ({error}).") from error
        try:
            return cls._of_settings(settings, path, changes)
        except RecursionError as error:  # from showing what is wrong
            raise AblationLensError(f"{path} holds tables in tables in tables; give plain settings.") from error

    @classmethod
    def _of_settings(cls, settings: dict[str, Any], path: str | Path, changes: dict[str, Any]) -> Self:
        preset = settings.pop("preset", None)
        names = [field.name for field in dataclasses.fields(cls)]
        for key in settings:
            require_known(key, names, f"setting in {path}")
        settings |= changes
        if preset is not None:
            return cls.preset(preset, **settings)
        if "models" not in settings:
            raise MismatchError(f'{path} names no models; add for example models = ["tiny-opt"].')
        return cls(**settings)

    def with_corpora(self, corpora: Mapping[str, Any]) -> Self:
        """The same study on other documents, such as `{"text": "wikitext"}`."""
        return dataclasses.replace(self, corpora={**self.corpora, **corpora})

    def run(
        self,
        folder: str | Path,
        *,
        progress: bool = True,
        patience: float | None = None,
        ranks: "Ranks | None" = None,
    ) -> "Results":
        """Measure what is not in the folder yet, cell by cell, and give the results.

        Ctrl-C (`StudyInterrupted`) or a crash loses the cell at hand only; running again goes on. Several processes
        and machines may run the same study in one folder: they share the work, and wait for each other at most
        `patience` seconds (None: as long as ten cells took, and a minute at least), as one of them may be stopped.

        In a program that torchrun started several times, `ranks=Ranks.join()` makes them collect statistics together,
        too, and the first one shows `progress` (docs/guide/scale.md).

        A center of your own that gives other values than before is measured anew. The folder keeps the cells of both;
        here the name means the new ones, and `Results.load` tells them apart by what they were set to.
        """
        if not isinstance(folder, str | PathLike):
            raise MismatchError(f"folder={told(folder)} is not possible; give where the results are kept: 'runs/mine'.")
        # Here, because measuring needs models and everything that runs them, and settings do not.
        from ablation_lens.study.run import run_study

        return run_study(self, folder, progress=progress, patience=patience, ranks=ranks)


# ---------------------------------------------------------------------- what settings may be


def _checked_metrics(given: Given) -> dict[str, Metric]:
    metrics = metrics_of(given)
    taken = {
        "key",
        "model",
        "corpus",
        "group",
        "task",
        "method",
        "fraction",
        "seed",
        "predictions",
        "splits",
        "seconds",
    }
    for name in metrics:
        if not _is_text(name) or not name.isprintable() or not name.strip() or len(name) > 60:
            raise MismatchError(f"{name!r:.80} cannot name a metric; give a short printable name.")
        if name in taken or name.startswith(("baseline_", "_")):
            raise MismatchError(f"a metric cannot be called {name}, as results have another column of that name.")
    # Both are measured always.
    return {name: metric for name, metric in metrics.items() if name not in ("top1", "cross_entropy")}


def _listed(value: Any) -> Any:
    """A single value as a list of one. A string is a sequence, too, but of letters."""
    single = isinstance(value, str | Real) or own.is_model(value)
    return (value,) if single else value


def _is_text(value: Any) -> bool:
    # A file's name need not be UTF-8, but the settings are kept as JSON, which is.
    return isinstance(value, str) and as_unicode(value) == value


def _is_whole(value: Any) -> bool:
    # For Python True is an Integral. Results keep seeds in 64 bits.
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < 2**63


def _is_share(value: Any) -> bool:
    # NaN is neither above 0 nor below 1, so it is refused.
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


def _is_size(value: Any) -> bool:
    return value is None or (_is_whole(value) and value > 0)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_model(value: Any) -> bool:
    return _is_text(value) or own.is_model(value)


def _are_corpora(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_text(kind) and (_is_text(corpus) or own.is_corpus(corpus)) for kind, corpus in value.items()
    )


def _same(value: Any) -> Any:
    return value


def _is_text_by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_text(part) for pair in value.items() for part in pair)


_SETTINGS_BYTES = 2**20

_Check = tuple[Callable[[Any], bool], str]

_LISTS: dict[str, _Check] = {
    "models": (_is_model, "names in UTF-8, or models with TransformerLens hooks"),
    "methods": (_is_text, "names in UTF-8"),
    "fractions": (_is_share, "numbers from 0 to 1"),
    "seeds": (_is_whole, "whole numbers"),
}
_PLAIN: dict[str, Callable[[Any], Any]] = {"models": _same, "fractions": plain_share, "seeds": int}
_SIZES = ("collect_tokens", "evaluate_tokens", "collect_images", "evaluate_images", "context", "batch_size")
_VALUES: dict[str, _Check] = {
    **dict.fromkeys(_SIZES[:-1], (_is_size, "a positive whole number")),
    "batch_size": (lambda value: _is_size(value) or value == AUTO, "a positive whole number, or 'auto'"),
    **dict.fromkeys(("include_bos", "shared_input"), (_is_flag, "true or false")),
    **dict.fromkeys(("labels", "device"), (lambda value: value is None or _is_text(value), "text in UTF-8")),
    "corpora": (_are_corpora, 'a table such as {text = "stdlib"}, in UTF-8, or lists of texts and Datasets'),
    "count": (
        lambda value: (
            _is_text(value) or (isinstance(value, list | tuple) and bool(value) and all(map(_is_text, value)))
        ),
        "'all', 'skip-common', or both in a list",
    ),
    "bins": (lambda value: _is_whole(value) and 2 <= value <= 2**16, "a whole number from 2 to 65536"),
    "n_devices": (lambda value: _is_size(value) and value is not None, "a positive whole number"),
    "mask_seed": (_is_whole, "a whole number"),
    "generator": (_is_text, "a model's name in UTF-8"),
    "dtype": (lambda value: value is None or _is_text(value) or _is_text_by_name(value), "a name, or a table by model"),
}

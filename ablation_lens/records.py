"""The small frozen records that travel with data.

A record says where numbers came from. Where both sides of an operation carry one, they must agree.
"""

import contextlib
import dataclasses
import platform
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import as_unicode, shorten


class Record:
    """Shared by the frozen records: to and from plain JSON values.

    What a field is annotated with is what a file may hold there; `__post_init__` says which of those values are
    possible, by a `ValueError`.
    """

    def __post_init__(self) -> None:
        # A folder's name need not be UTF-8, and what cannot be encoded could not be written or shown.
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if isinstance(text := getattr(self, field.name), str):
                object.__setattr__(self, field.name, as_unicode(text))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, field by field."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; unknown or missing fields, and values of another type, are a format error."""
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        required = {
            field.name
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]
            # A field with a default may be missing, so a later version can add one and still read older files.
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        if not isinstance(values, Mapping) or not required <= set(values) <= names:
            got = shorten(str(sorted(values)), 200) if isinstance(values, Mapping) else type(values).__name__
            raise FileFormatError(f"a {cls.__name__} needs the fields {sorted(names)}, got {got}.")
        expected = typing.get_type_hints(cls)
        try:
            return cls(**{name: _read(value, expected[name], name) for name, value in values.items()})
        except ValueError as error:
            raise FileFormatError(f"a {cls.__name__} is not possible: {error}.") from error


def _read(value: Any, expected: Any, field: str) -> Any:
    """A plain JSON value as what a field is annotated with."""
    kind, parts = typing.get_origin(expected) or expected, typing.get_args(expected)
    if kind is Any:
        return value
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_dict(value)
    if kind in (types.UnionType, typing.Union):
        if value is not None and len(parts) == 2 and types.NoneType in parts:  # whose error says more than ours
            return _read(value, next(part for part in parts if part is not types.NoneType), field)
        for part in parts:
            with contextlib.suppress(FileFormatError):
                return _read(value, part, field)
    elif kind is tuple and isinstance(value, list | tuple):
        # JSON knows lists only; a record that was read must equal the one that was written.
        kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
        if len(kinds) == len(value):
            return tuple(_read(item, part, field) for item, part in zip(value, kinds, strict=True))
    elif kind is dict and isinstance(value, dict):
        return {_read(key, parts[0], field): _read(item, parts[1], field) for key, item in value.items()}
    elif kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    elif type(value) is kind:  # not isinstance, to which True is an int
        return value
    # What is nested may be nested too deeply to be shown.
    shown = f"a {type(value).__name__}" if isinstance(value, list | dict) else shorten(repr(value), 60)
    raise FileFormatError(f"{field} is {shown}; expected {_name(expected)}.")


def _name(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected)


@dataclass(frozen=True)
class ModelRecord(Record):
    """Which model, in which precision, processed how.

    `name` is a hub id, a zoo name, or a folder's path; `weights` is a digest over samples of every
    weight tensor that was loaded, so that the same model is recognised under another path and a retrained
    one is not taken for its predecessor. `checksum` is over all bits of the weights in memory; older files
    have none. `unread` names what the checkpoint holds and the model has no use for.
    """

    name: str
    revision: str | None
    architecture: str
    dtype: str
    processing: str
    weights: str | None
    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    n_ctx: int
    checksum: str | None = None
    unread: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        # Models of attention alone have no MLP, and values that somebody brought along no known context.
        least = {"n_layers": 1, "n_heads": 1, "d_head": 1, "d_model": 1, "d_mlp": 0, "n_ctx": 0}
        for field, smallest in least.items():
            if (size := getattr(self, field)) < smallest:
                raise ValueError(f"{field} is {size}")

    @classmethod
    def of_cfg(
        cls,
        cfg: Any,
        *,
        name: str,
        revision: str | None,
        architecture: str,
        weights: str | None,
        processing: str = "none",
        checksum: str | None = None,
        unread: tuple[str, ...] = (),
    ) -> "ModelRecord":
        """The record of a model whose TransformerLens `cfg` gives shape and dtype."""
        return cls(
            name=name,
            revision=revision,
            architecture=architecture,
            dtype=_dtype_of(cfg),
            processing=processing,
            weights=weights,
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            d_head=cfg.d_head,
            d_model=cfg.d_model,
            d_mlp=cfg.d_mlp or 0,  # attention-only models have none
            n_ctx=cfg.n_ctx,
            checksum=checksum,
            unread=unread,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this model, as plain JSON values: a part of the keys of what was measured with it."""
        values = self.to_dict()
        del values["unread"]
        if self.weights:  # the same weights in another place are the same model
            values |= {"name": None, "revision": None}
        # The digest is enough, and keys of before there were checksums stay as they are.
        if self.weights or self.checksum is None:
            del values["checksum"]
        return values

    def differences(self, other: "ModelRecord") -> list[str]:
        """What makes the two records different models; empty when they agree.

        Checksums of one layout are compared, and digests of what was loaded; of two layouts the digests alone.
        Names and revisions say something only where neither can be compared.
        """
        fields = ["architecture", "dtype", "processing", "n_layers", "n_heads", "d_head", "d_model", "d_mlp"]
        digests = bool(self.weights and other.weights)
        if digests:
            fields.append("weights")
        if self.checksum and other.checksum:
            from ablation_lens.weights import layout_of

            # Without digests, another layout is another model: nothing says that the weights are the same.
            if not digests or layout_of(self.checksum) == layout_of(other.checksum):
                fields.append("checksum")
        elif not digests:
            fields += ["name", "revision"]
        return [
            f"{field}: {getattr(self, field)} against {getattr(other, field)}"
            for field in fields
            if getattr(self, field) != getattr(other, field)
        ]

    def require_same(self, other: "ModelRecord", what: str) -> None:
        """Raise `MismatchError` unless both records describe one model."""
        differences = self.differences(other)
        if differences:
            raise MismatchError(
                f"{what}: {self.name} and {other.name} are not the same model ({'; '.join(differences)})."
            )


def stated_record(model: Any) -> ModelRecord:
    """The record `load_model` attached, or one made from `model.cfg` whose processing is "unknown".

    Enough for a name; the weights are not looked at, which may have changed since. See `record_of`.
    """
    record = getattr(model, "record", None)
    if isinstance(record, ModelRecord):
        return record
    cfg = model.cfg
    return ModelRecord.of_cfg(
        cfg,
        name=getattr(cfg, "model_name", None) or type(model).__name__,
        revision=None,
        architecture=getattr(cfg, "original_architecture", None) or type(model).__name__,
        weights=None,
        processing="unknown",
    )


def record_of(model: Any) -> ModelRecord:
    """The model as it is now, known by a checksum over all bits of its weights.

    A loaded model that was trained, edited or quantised since is another model: its record says so, and no longer
    has the digest of what was loaded.

    >>> from ablation_lens import load_model
    >>> model = load_model("tiny-vit")
    >>> record_of(model) == model.record
    True
    >>> model.blocks[0].attn.out.bias.data[0] += 1
    >>> record_of(model).name, record_of(model).weights
    ('tiny-vit (changed after loading)', None)
    """
    record = stated_record(model)
    # Here, as records of corpora come here too, and a corpus of texts needs no torch.
    from torch import nn

    from ablation_lens.weights import checksum

    if not isinstance(model, nn.Module):  # a user's own wrapper: where its weights are cannot be told
        return record
    now = checksum(model)
    if record.checksum in (None, now):
        return replace(record, checksum=now)
    dtype = _dtype_of(model.cfg)
    return replace(record, name=f"{record.name} (changed after loading)", weights=None, checksum=now, dtype=dtype)


def _dtype_of(cfg: Any) -> str:
    return str(cfg.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class CorpusRecord(Record):
    """Which documents were used: where they came from, how many, and a digest over their content.

    `name` is what the user asked for, `source` what it resolved to (a hub id with its commit, a path,
    an embedded corpus), `python` the version whose standard library an embedded corpus comes from.
    `size_requested` is None when everything was asked for; sizes are in `unit`s (tokens, images or
    documents). `settings` holds the options that changed what was read, as (name, value) pairs.
    """

    name: str
    source: str
    split: str
    kind: str
    digest: str
    python: str | None
    size_requested: int | None
    size_obtained: int
    unit: str
    documents: int
    skipped_empty: int = 0
    skipped_corrupt: int = 0
    settings: tuple[tuple[str, str], ...] = ()

    def differences(self, other: "CorpusRecord") -> list[str]:
        """Why the two records do not describe the same documents; empty when they do.

        Equal digests are equal documents, wherever they were read from. Otherwise every field that may
        explain the difference is named; two Python versions carry slightly different embedded corpora.
        """
        if self.digest == other.digest:
            return []
        fields = [
            "digest",
            "name",
            "source",
            "split",
            "settings",
            "python",
            "size_requested",
            "size_obtained",
            "documents",
        ]
        return [
            f"{field}: {_short(getattr(self, field))} against {_short(getattr(other, field))}"
            for field in fields
            if getattr(self, field) != getattr(other, field)
        ]


def _short(value: Any) -> Any:
    """A digest is recognised by its beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value


@dataclass(frozen=True)
class Versions(Record):
    """The versions that results depend on."""

    ablation_lens: str
    python: str
    torch: str
    transformers: str
    transformer_lens: str

    @classmethod
    def current(cls) -> "Versions":
        """The versions of this process; those of others are read from package metadata (imports nothing heavy)."""
        # Ours from the source: the metadata of an editable install is as old as the install.
        from ablation_lens import __version__

        def installed(package: str) -> str:
            try:
                return version(package)
            except PackageNotFoundError:
                return "not installed"

        return cls(
            ablation_lens=__version__,
            python=platform.python_version(),
            torch=installed("torch"),
            transformers=installed("transformers"),
            transformer_lens=installed("transformer-lens"),
        )

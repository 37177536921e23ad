"""`clusters`: MLP neurons in groups of exactly equal size, by what they read or by when they are active together."""

import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ablation_lens.errors import FileFormatError, MismatchError, NonFiniteError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.balanced import partition
from ablation_lens.experiments.scores import Pieces
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.hooked import projection, require_site
from ablation_lens.measure.forward import require_positions, watch
from ablation_lens.names import require_known
from ablation_lens.progress import progress_over
from ablation_lens.records import ModelRecord, Record, Versions, record_of
from ablation_lens.sites import Site
from ablation_lens.tasks.freezing import freeze
from ablation_lens.tasks.padding import Padding
from ablation_lens.tasks.plans import BatchPlan

if TYPE_CHECKING:
    import pandas

METHODS = ("weights", "co-activation")
KIND = "neuron clusters"
_PIECE = "neuron clusters of a layer"
PRACTICAL = 16384
"""So many neurons in a layer are clustered in minutes, and in some gigabytes."""


@dataclass(frozen=True)
class ClustersHeader(Record):
    """What a file of clusters says beside its tensors."""

    method: str
    size: int
    seed: int
    restarts: int
    layers: tuple[int, ...]
    source: ModelRecord
    read: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"its method is {self.method!r:.60}")
        if self.size < 1 or self.source.d_mlp % self.size:
            raise ValueError(f"{self.source.d_mlp} neurons in clusters of {self.size}")
        if not self.layers or sorted(set(self.layers) & set(range(self.source.n_layers))) != list(self.layers):
            raise ValueError(f"its layers are {list(self.layers)!s:.80}")


@dataclass(frozen=True, eq=False, repr=False)
class Clusters:
    """Which cluster every MLP neuron is in; made by `clusters`.

    Attributes:
        labels: a row per layer of `layers`; a cluster's number says nothing but which neurons are together.
        within: per layer, the mean affinity of two neurons of one cluster: the cosine of what they read, or how much
            they are active together at a position.
        overall: the same of any two neurons, which is what clusters at random hold.
        layers: which layers were clustered.
        size: neurons in each cluster.
        method: "weights" or "co-activation".
        seed: of the restarts.
        restarts: of which the best was kept, layer by layer.
        source: the model.
        read: the digest of the plan that was read; "" where weights were.
    """

    labels: Int64[Tensor, "layer dim"]
    within: Float64[Tensor, " layer"]
    overall: Float64[Tensor, " layer"]
    layers: tuple[int, ...]
    size: int
    method: str
    seed: int
    restarts: int
    source: ModelRecord
    read: str

    @property
    def count(self) -> int:
        """How many clusters a layer has."""
        return self.labels.shape[1] // self.size

    def mask(self, layer: int, cluster: int) -> Bool[Tensor, "layer head dim"]:
        """A whole cluster, as a mask of the model's MLP neurons."""
        if layer not in self.layers or not 0 <= cluster < self.count:
            raise MismatchError(
                f"there is no cluster {cluster} of layer {layer}; layers {list(self.layers)} have clusters 0 to "
                f"{self.count - 1}."
            )
        mask = torch.zeros(Site.MLP.shape(self.source), dtype=torch.bool)
        mask[layer, 0] = self.labels[self.layers.index(layer)] == cluster
        return mask

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row per layer: how alike the neurons of a cluster are, beside any two."""
        import pandas

        return pandas.DataFrame(
            {
                "layer": self.layers,
                "clusters": self.count,
                "size": self.size,
                "within": self.within.tolist(),
                "overall": self.overall.tolist(),
            }
        )

    def __repr__(self) -> str:
        what = "cosine of what two neurons read" if self.method == "weights" else "two neurons active together"
        told = [
            f"  L{layer:<4}{within:>8.3f} within a cluster, {overall:.3f} anywhere"
            for layer, within, overall in zip(self.layers, self.within.tolist(), self.overall.tolist(), strict=True)
        ]
        name = on_one_line(self.source.name)
        head = f"Clusters of {name} by {self.method}: {self.count} of {self.size} neurons in each layer; mean {what}"
        return "\n".join([head, *told])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header = ClustersHeader(self.method, self.size, self.seed, self.restarts, self.layers, self.source, self.read)
        tensors = {"labels": self.labels, "within": self.within, "overall": self.overall}
        save_tensors(path, KIND, header.to_dict(), tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Clusters":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = ClustersHeader.from_dict(plain)
            labels, within, overall = (tensors[name] for name in ("labels", "within", "overall"))
            _require_tensors(header, labels, within, overall)
        except (FileFormatError, KeyError, ValueError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise FileFormatError(f"{path} is not a complete file of clusters ({told}); make it again.") from error
        return cls(
            labels,
            within,
            overall,
            header.layers,
            header.size,
            header.method,
            header.seed,
            header.restarts,
            header.source,
            header.read,
        )


def clusters(
    model: Any,
    size: int = 32,
    method: str = "weights",
    *,
    batches: Any = None,
    seed: int = 0,
    restarts: int = 4,
    layers: Iterable[int] | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Clusters:
    """MLP neurons of every layer in clusters of exactly equal size.

    By "weights", neurons are together that read alike: their columns of W_in (of a gated MLP, of its up projection)
    are scaled to length 1, and k-means makes the clusters. A neuron that reads nothing is like no other, and fills
    up any cluster. By "co-activation", they are together that are active together: the affinity of two neurons is the
    mean over positions of min(1, a·b), where a and b are their values after the activation function, and 0 for what is
    negative. Both take the best of several restarts (`balanced.partition`).

    The assignment to clusters of equal size is exact, and cheaper than the cube of the neurons (`balanced.assign`). A
    restart took 1.6 seconds of one core for 2,048 neurons, 7 for 4,096 and 43 for 8,192, in clusters of 32. Memory is
    that of five arrays of 8·d_mlp² bytes, one layer at a time.

    Args:
        model: any hooked model with MLPs.
        size: neurons in a cluster; divides d_mlp.
        method: see above.
        batches: what is read for "co-activation", once for every layer.
        seed: of the restarts.
        restarts: how many.
        layers: which; None for all.
        folder: where each layer's clusters are kept, so that interrupted work goes on.
        progress: show a progress bar.

    >>> from ablation_lens import load_model
    >>> found = clusters(load_model("tiny-vit"), size=48, layers=[3], restarts=1, progress=False)
    >>> found.count, found.labels.unique(return_counts=True)[1].tolist()
    (8, [48, 48, 48, 48, 48, 48, 48, 48])
    """
    require_known(method, METHODS, "method")
    require_site(model, Site.MLP)
    _, _, width = Site.MLP.shape(model.cfg)
    size, seed, restarts = _whole("size", size, 1), _whole("seed", seed, None), _whole("restarts", restarts, 1)
    _require_divides(size, width)
    wanted = _layers(layers, model.cfg.n_layers)
    plan = _plan(model, method, batches)
    if width > PRACTICAL:
        warnings.warn(
            f"a layer has {width:,} neurons: clustering it takes about {5 * 8 * width**2 / 1e9:.0f} GB of memory, and "
            f"time that grows faster than their square; up to {PRACTICAL:,} it is minutes.",
            stacklevel=2,
        )
    source, read = record_of(model), "" if plan is None else plan.digest
    about = {
        "model": source.identity,
        "method": method,
        "size": size,
        "seed": seed,
        "restarts": restarts,
        "read": read,
        "versions": {**Versions.current().to_dict(), "python": None},
    }
    pieces, rows = Pieces(folder), []
    with progress_over("clusters", len(wanted), progress, unit="layers") as advance:
        for layer in wanted:
            advance.describe(f"clusters: L{layer}")

            def make(layer: int = layer) -> dict[str, Tensor]:
                affinity = _alike(model, layer) if plan is None else _together(model, plan, layer)
                return _clustered(affinity, size, restarts, f"{seed} {layer}")

            rows.append(pieces.of(_PIECE, {**about, "layer": layer}, make))
            advance(1)
    labels, within, overall = (torch.stack([row[name] for row in rows]) for name in ("labels", "within", "overall"))
    return Clusters(labels, within, overall, wanted, size, method, seed, restarts, source, read)


def _clustered(affinity: Float64[Tensor, "dim dim"], size: int, restarts: int, seed: str) -> dict[str, Tensor]:
    labels, within = partition(affinity.numpy(), size, restarts=restarts, seed=seed)
    width = len(affinity)
    pairs = width * (width - 1)
    overall = float(affinity.sum() - affinity.diagonal().sum()) / pairs if pairs else float("nan")
    numbers = {"within": within, "overall": overall}
    return {"labels": torch.from_numpy(labels)} | {
        name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()
    }


# ---------------------------------------------------------------------- what two neurons have to do with each other


def _alike(model: Any, layer: int) -> Float64[Tensor, "dim dim"]:
    """The cosine of what two neurons read; 0 where one of them reads nothing."""
    assert Site.MLP.incoming is not None
    weight = projection(model.blocks[layer], Site.MLP.incoming).weight().detach().cpu()
    expected = (model.cfg.d_model, model.cfg.d_mlp)
    if tuple(weight.shape) != expected:
        raise MismatchError(
            f"W_in of layer {layer} has shape {tuple(weight.shape)}; expected {expected}. Quantised weights cannot "
            "be clustered; load the model in 16 or 32 bits."
        )
    rows = weight.double().T
    if not bool(rows.isfinite().all()):
        raise NonFiniteError(f"W_in of layer {layer} holds NaN or infinity; neurons cannot be clustered by it.")
    rows = torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(torch.float64).tiny)
    return rows @ rows.T


@torch.inference_mode()
def _together(model: Any, plan: BatchPlan, layer: int) -> Float64[Tensor, "dim dim"]:
    """How much two neurons are active together, mean over positions."""
    total = torch.zeros(model.cfg.d_mlp, model.cfg.d_mlp, dtype=torch.float64)
    positions, padding = 0, Padding(model, stacklevel=5)

    for item in plan:
        batch = padding.mark(item)
        counted = batch.valid

        def see(layer: int, values: Tensor, counted: Tensor = counted) -> None:
            require_positions(Site.MLP, layer, values, counted)
            active = values[counted.to(values.device)].flatten(1).relu().double().cpu()
            if not bool(active.isfinite().all()):
                raise NonFiniteError(f"MLP neurons of layer {layer} are NaN or infinite on these batches.")
            _add_together(total, active)

        watch(model, batch.to(model.cfg.device), Site.MLP, see, [layer])
        positions += int(counted.sum())
    return total / max(positions, 1)


def _add_together(total: Float64[Tensor, "dim dim"], active: Float64[Tensor, "pos dim"]) -> None:
    """Add the sum over positions of min(1, a·b).

    Most neurons have no partner with which the product is above 1: what they give is a matrix product. The others are
    looked at among themselves, position by position.
    """
    large = active * active.amax(1, keepdim=True) > 1
    some, others = active * large, active * ~large
    total += others.T @ active + some.T @ others
    for row, which in zip(active, large, strict=True):
        place = which.nonzero()[:, 0]
        if len(place):
            total[place[:, None], place] += torch.outer(row[place], row[place]).clamp_(max=1)


# ---------------------------------------------------------------------- what is possible


def _plan(model: Any, method: str, batches: Any) -> BatchPlan | None:
    if method == "weights":
        if batches is not None:
            raise MismatchError("clusters by weights read no batches; leave batches= out, or take 'co-activation'.")
        return None
    if batches is None:
        raise MismatchError("clusters by co-activation need batches=, such as al.task_for(model).batches(tokens=5000).")
    return freeze(model, batches)


def _whole(name: str, given: Any, least: int | None) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(given, bool) or (least is not None and number < least):
        wanted = "a whole number" if least is None else f"a whole number from {least}"
        raise MismatchError(f"{name}={given!r:.60} is not possible; give {wanted}.")
    return number


def _require_divides(size: int, width: int) -> None:
    if width % size:
        divisors = [each for each in range(1, width + 1) if not width % each]
        near = sorted(divisors, key=lambda each: abs(each - size))[:3]
        raise MismatchError(
            f"size={size} does not divide the {width:,} neurons of a layer, so clusters cannot all be equal; take "
            f"{', '.join(map(str, sorted(near)))}."
        )


def _layers(given: Iterable[int] | None, count: int) -> tuple[int, ...]:
    if given is None:
        return tuple(range(count))
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise MismatchError(f"layers={given!r:.60} is not possible; give their numbers, such as [0, 1].")
    wanted = sorted({_whole("a layer", layer, 0) for layer in given})
    if not wanted or wanted[-1] >= count:
        raise MismatchError(f"layers are {wanted}; this model has {count}, counted from 0.")
    return tuple(wanted)


def _require_tensors(
    header: ClustersHeader,
    labels: Int64[Tensor, "layer dim"],
    within: Float[Tensor, " layer"],
    overall: Float[Tensor, " layer"],
) -> None:
    layers, width = len(header.layers), header.source.d_mlp
    if labels.dtype != torch.int64 or tuple(labels.shape) != (layers, width):
        raise FileFormatError(f"its labels are not {layers} × {width} whole numbers")
    expected = torch.arange(width // header.size).repeat_interleave(header.size)
    if not bool((labels.sort(1).values == expected).all()):
        raise FileFormatError("its clusters are not of equal size")
    # One neuron in a cluster has no other, and so no affinity.
    wanted = torch.isnan if header.size == 1 else torch.isfinite
    if any(each.dtype != torch.float64 or tuple(each.shape) != (layers,) for each in (within, overall)):
        raise FileFormatError("its affinities are not a number per layer")
    if not bool(wanted(within).all()):
        raise FileFormatError("its affinities are not possible")

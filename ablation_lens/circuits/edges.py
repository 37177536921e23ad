"""Edges: what one unit's output is worth to one reader of it, and no other: from gradients, and exactly."""

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ablation_lens.ablation.places import describe_positions, read_positions
from ablation_lens.circuits.attribution import require_gradients
from ablation_lens.circuits.effects import NeuronSums
from ablation_lens.circuits.setting import Prepared, Setting, join_rows
from ablation_lens.circuits.units import unit_name
from ablation_lens.circuits.values import Statistics
from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.hooked import projection, require_site
from ablation_lens.measure.forward import ordinary
from ablation_lens.measure.metrics import Given
from ablation_lens.measure.score import Sums
from ablation_lens.progress import progress_over
from ablation_lens.records import ModelRecord, Record, record_of
from ablation_lens.sites import Hook, Site, residual_after

if TYPE_CHECKING:
    import pandas

KIND = "edges"
"""What these files call themselves."""

_INPUTS = {"q": Site.Q, "k": Site.K, "v": Site.V}
LOGITS = "logits"
_PARTS = ("total", "squares", "products")


@dataclass(frozen=True, order=True)
class Edge:
    """From a unit to what reads it: the queries, keys or values of a head, an MLP, or the logits.

    >>> Edge("L0.H1", "L1.H2.K"), Edge("L0.H1", "L1.H2.K").kind
    (L0.H1→L1.H2.K, 'k')
    """

    writer: str
    reader: str

    @property
    def kind(self) -> str:
        """How the reader reads: "q", "k", "v", "mlp" or "logits"."""
        return self.reader.rpartition(".")[2].lower()

    @property
    def unit(self) -> str:
        """The unit that reads: a head for its queries, keys or values."""
        return self.reader.rpartition(".")[0] if self.kind in _INPUTS else self.reader

    def __repr__(self) -> str:
        return f"{self.writer}→{self.reader}"


@dataclass(frozen=True)
class EdgesHeader(Record):
    """What a file says of edges beside its tensors."""

    metric: str
    values: str
    positions: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    source: ModelRecord | None


@dataclass(frozen=True, eq=False, repr=False)
class EdgeEffects:
    """What the metric would change if one reader alone saw a unit's replaced output, were everything linear.

    The edges of a unit add up to its gradient attribution: what all its readers make of it together.

    Attributes:
        metric: what was measured.
        values: what units were set to, in a word.
        writers: units, by name.
        readers: what reads them, by name; under grouped heads, keys and values of a group are one reader.
        sums: over rows, of every edge.
        clean: the metric of the model as it is: value times weight of every row, and the weights.
        empty: the same with every unit ablated.
        positions: where units were ablated, in words.
        source: the model.
    """

    metric: str
    values: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    sums: NeuronSums
    clean: Sums
    empty: Sums
    positions: str = ""
    source: ModelRecord | None = None

    @property
    def effects(self) -> Float64[Tensor, "writer reader"]:
        """The mean effect of every edge; NaN where a reader comes before the writer."""
        return (self.sums.total / self.clean.weights.sum()).masked_fill(~self._possible, math.nan)

    @property
    def _possible(self) -> Tensor:
        return torch.tensor([[_before(writer, reader) for reader in self.readers] for writer in self.writers])

    @property
    def total(self) -> float:
        """m(∅) − m(M): what ablating every unit changes."""
        return float((self.empty.values - self.clean.values).sum() / self.clean.weights.sum())

    def __getitem__(self, edge: Edge | tuple[str, str]) -> float:
        """The mean effect of an edge, `effects["L0.H1", "L1.H2.K"]`."""
        writer, reader = (edge.writer, edge.reader) if isinstance(edge, Edge) else edge
        if writer not in self.writers or reader not in self.readers or not _before(writer, reader):
            raise MismatchError(f"there is no edge from {writer!s:.40} to {reader!s:.40} among these.")
        return float(self.effects[self.writers.index(writer), self.readers.index(reader)])

    def edges(self) -> list[Edge]:
        """All edges, the largest effect first, whatever its sign."""
        places = self._possible.nonzero()
        order = self.effects[places[:, 0], places[:, 1]].abs().argsort(descending=True, stable=True)
        return [Edge(self.writers[writer], self.readers[reader]) for writer, reader in places[order].tolist()]

    def table(self) -> "pandas.DataFrame":
        """A row per edge, the largest first: from, to, how it is read, effect with a 95 % interval, and share."""
        import pandas

        means, half = self.effects, self.sums.half_width(self.clean.weights)
        edges = self.edges()
        places = [(self.writers.index(edge.writer), self.readers.index(edge.reader)) for edge in edges]
        effect = [float(means[place]) for place in places]
        width = [float(half[place]) for place in places]
        return pandas.DataFrame(
            {
                "from": [edge.writer for edge in edges],
                "to": [edge.unit for edge in edges],
                "kind": [edge.kind for edge in edges],
                "effect": effect,
                "low": [value - more for value, more in zip(effect, width, strict=True)],
                "high": [value + more for value, more in zip(effect, width, strict=True)],
                "share": [value / self.total if self.total else math.nan for value in effect],
            },
            index=pandas.Index(map(repr, edges), name="edge"),
        )

    def top(self, count: int) -> list[Edge]:
        """The largest edges by which something reaches the logits: at most so many, without dead ends.

        An edge into a unit none of whose own edges is chosen leads nowhere, and is not counted.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise MismatchError(f"count={count!r} is not possible; give a whole number from 0.")
        edges = self.edges()
        # More edges never make another one a dead end, so the number of live ones only grows.
        many = bisect.bisect_right(range(len(edges)), count, key=lambda number: len(_live(edges[: number + 1])))
        return _live(edges[:many])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header = EdgesHeader(self.metric, self.values, self.positions, self.writers, self.readers, self.source)
        tensors = {"weights": self.clean.weights, "clean": self.clean.values, "empty": self.empty.values}
        save_tensors(path, KIND, header.to_dict(), tensors | {part: getattr(self.sums, part) for part in _PARTS})

    @classmethod
    def load(cls, path: str | Path) -> "EdgeEffects":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = EdgesHeader.from_dict(plain)
            shape, rows = (len(header.writers), len(header.readers)), tensors["weights"].shape
            parts = [tensors[part] for part in _PARTS]
            if any(part.shape != shape or part.dtype != torch.float64 for part in parts):
                raise FileFormatError("its sums do not fit its edges")
            per_row = [tensors[name] for name in ("weights", "clean", "empty")]
            if len(rows) != 1 or any(each.shape != rows or each.dtype != torch.float64 for each in per_row):
                raise FileFormatError("its rows do not fit")
            if not bool((per_row[0] >= 0).all()) or not float(per_row[0].sum()) > 0:
                raise FileFormatError("its weights are not possible")
            for name in (*header.writers, *header.readers):
                _place_of(name)
        except (FileFormatError, MismatchError, KeyError, ValueError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise FileFormatError(f"{path} is not a complete file of edges ({told}); measure them again.") from error
        weights, clean, empty = per_row
        return cls(
            header.metric,
            header.values,
            header.writers,
            header.readers,
            NeuronSums(*parts),
            Sums(clean, weights),
            Sums(empty, weights),
            header.positions,
            header.source,
        )

    def __repr__(self) -> str:
        first = [f"  {edge}  {self[edge]:+.4g}" for edge in self.edges()[:5]]
        return "\n".join(
            [
                f"EdgeEffects({on_one_line(self.metric)}, {int(self._possible.sum()):,} edges → "
                f"{on_one_line(self.values)}{self.positions}; m(∅) − m(M) = {self.total:+.4g})",
                *first,
            ]
        )


def edge_effects(
    model: Any,
    batches: Any,
    metric: Given,
    values: Any,
    *,
    positions: Any = None,
    statistics: Statistics = None,
    sites: Site | str | Iterable[Site | str] | None = None,
    progress: bool = True,
) -> EdgeEffects:
    """What each unit is worth to each of its readers, from one forward and one backward pass.

    Writers are heads and MLPs as a whole; readers are the queries, keys and values of later heads, later MLPs, and the
    logits. Gradients are taken at the model as it is, and projected onto what a head can write, so that no head has a
    residual stream of its own in memory. For models with norms before attention and MLP; whether edges add up to the
    units' own gradients is checked, and models in which they do not are refused.

    Args:
        model: any hooked model with the norm before each part.
        batches: what `al.evaluate` takes.
        metric: one metric with a gradient.
        values: what units are set to: whatever `circuits.Values.of` takes.
        positions: where units are ablated.
        statistics: what centers are computed from.
        sites: whose edges: "z", "mlp" or both.
        progress: show a bar.

    >>> from ablation_lens import Batch, load_model
    >>> batch = Batch.prompts(torch.tensor([[2, 7, 9], [2, 5, 8]]), answers=[4, 6])
    >>> edges = edge_effects(load_model("tiny-opt"), batch, "cross_entropy", 0.0, sites=["z", "mlp"])
    >>> len(edges.writers), len(edges.readers), len(edges.top(10)) <= 10
    (20, 53, True)
    """
    with torch.inference_mode(False), torch.enable_grad():
        setting = Setting.of(model, batches, metric, values, statistics=statistics, sites=sites, positions=positions)
        setting = _with_edges(setting)
        require_gradients(setting, "gradient")
        setting = replace(setting, batches=tuple(map(ordinary, setting.batches)))
        writers = tuple(name for site in setting.values.sites for name in _units(setting, site))
        readers: tuple[str, ...] = ()
        sums, clean, empty = None, [], []
        with progress_over("edges", len(setting.batches), progress, "batches") as advance:
            for run in setting.each(_Run):
                rows, readers = run.edges()
                run.require_adding_up(rows)
                more = NeuronSums.of_rows(rows.cpu(), run.clean.weights.cpu())
                sums = more if sums is None else sums + more
                clean.append(run.clean)
                empty.append(run.empty)
                advance(1)
    assert sums is not None
    return EdgeEffects(
        setting.name,
        setting.values.name,
        writers,
        readers,
        sums,
        join_rows(clean),
        join_rows(empty),
        describe_positions(read_positions(positions)),
        record_of(model),
    )


def path_patching(
    model: Any,
    batches: Any,
    metric: Given,
    values: Any,
    edges: Sequence[Edge],
    *,
    positions: Any = None,
    statistics: Statistics = None,
    sites: Site | str | Iterable[Site | str] | None = None,
    progress: bool = True,
) -> "pandas.Series":
    """What the metric changes, exactly, when one reader alone sees a unit's replaced output: a run for every edge.

    Everything before the reader is as in the model; what the reader makes of it goes on through the rest. How well
    gradients rank edges: `exact.rank().corr(effects.table().effect[exact.index].rank())`.

    Args:
        model: any hooked model with the norm before each part.
        batches: what `al.evaluate` takes.
        metric: one metric; it needs no gradient.
        values: what units are set to.
        edges: which, such as `edge_effects(...).top(20)`.
        positions: where units are ablated.
        statistics: what centers are computed from.
        sites: where writers are.
        progress: show a bar.

    >>> from ablation_lens import Batch, load_model
    >>> model = load_model("tiny-opt")
    >>> batch = Batch.prompts(torch.tensor([[2, 7, 9], [2, 5, 8]]), answers=[4, 6])
    >>> exact = path_patching(model, batch, "cross_entropy", 0.0, [Edge("L0.H1", "L2.H0.K"), Edge("L3.H0", "logits")])
    >>> list(exact.index)
    ['L0.H1→L2.H0.K', 'L3.H0→logits']
    """
    import pandas

    listed = list(edges)
    with torch.inference_mode(False), torch.no_grad():
        setting = _with_edges(
            Setting.of(model, batches, metric, values, statistics=statistics, sites=sites, positions=positions)
        )
        _require_known(setting, listed)
        made, weights = torch.zeros(len(listed), dtype=torch.float64), 0.0
        with progress_over("path patching", len(setting.batches) * len(listed), progress, "edges") as advance:

            def patched(prepared: Prepared) -> tuple[Tensor, float]:
                run = _Run(prepared, gradients=False)
                changes = []
                for edge in listed:
                    changes.append(float((run.patched(edge).values - run.clean.values).sum()))
                    advance(1)
                return torch.tensor(changes, dtype=torch.float64), float(run.clean.weights.sum())

            for changes, weight in setting.each(patched):
                made, weights = made + changes, weights + weight
    return pandas.Series((made / weights).numpy(), index=pandas.Index(map(repr, listed), name="edge"), name="exact")


# ---------------------------------------------------------------------- which edges there are


def _place_of(name: str) -> tuple[float, int]:
    """A unit's or reader's layer, and whether it is attention (0) or an MLP (1) there; the logits come after all."""
    if name == LOGITS:
        return math.inf, 0
    layer, _, rest = name.partition(".")
    if not layer[:1] == "L" or not layer[1:].isdigit() or not (rest == "MLP" or rest[:1] == "H"):
        raise MismatchError(f"{name!r:.60} is not a unit or a reader; write L0.H1, L2.MLP, L1.H2.K or logits.")
    return int(layer[1:]), int(rest == "MLP")


def _before(writer: str, reader: str) -> bool:
    return _place_of(writer) < _place_of(reader)


def _live(edges: Sequence[Edge]) -> list[Edge]:
    """Those by which something reaches the logits."""
    reached, size = {LOGITS}, 0
    while size < len(reached):
        size = len(reached)
        reached |= {edge.writer for edge in edges if edge.unit in reached}
    return [edge for edge in edges if edge.unit in reached]


def _units(setting: Setting, site: Site) -> list[str]:
    layers, heads, _ = setting.shape(site)
    return [unit_name(site, (layer, head)) for layer in range(layers) for head in range(heads)]


def _with_edges(setting: Setting) -> Setting:
    """Refuse models in which what a unit writes does not reach its readers plainly."""
    model = setting.model
    other = [site.value for site in setting.values.sites if site not in (Site.Z, Site.MLP)]
    if other:
        raise MismatchError(f"edges start at heads and MLPs (z, mlp), and values for {', '.join(other)} were given.")
    post = getattr(model.cfg, "post_norm", False) or hasattr(model.blocks[0], "hook_normalized_resid_post")
    if post:
        raise MismatchError(
            "this model normalizes the stream after each part is added (post-LayerNorm), so that what a unit writes "
            "does not reach later readers as it is; edges are for models with the norm before each part."
        )
    if not all(hasattr(model.blocks[0], name) for name in ("ln1", "attn")):
        raise MismatchError(
            "edges need blocks with attn and its norm ln1 (and mlp and ln2), as TransformerLens has; these have not."
        )
    for site in (*_INPUTS.values(), Site.RESID_PRE):
        require_site(model, site)
    return setting


def _require_known(setting: Setting, edges: Iterable[Edge]) -> None:
    writers = {name for site in setting.values.sites for name in _units(setting, site)}
    readers = {LOGITS}
    for kind, site in _INPUTS.items():
        readers |= {f"{name}.{kind.upper()}" for name in _units(setting, site)}
    if _has_mlp(setting.model.cfg):
        readers |= {f"L{layer}.MLP" for layer in range(setting.model.cfg.n_layers)}
    for edge in edges:
        if not isinstance(edge, Edge):
            raise MismatchError(f"an edge is Edge(writer, reader), such as Edge('L0.H1', 'L1.H2.K'); got {edge!r:.60}.")
        if edge.writer not in writers or edge.reader not in readers or not _before(edge.writer, edge.reader):
            raise MismatchError(f"there is no edge {edge!r:.60} in this model, at the sites that values are for.")


def _has_mlp(cfg: Any) -> bool:
    return not getattr(cfg, "attn_only", False) and bool(cfg.d_mlp)


# ---------------------------------------------------------------------- one batch


class _Run:
    """The clean run of a batch, with what every unit would write instead, and what every reader makes of a change."""

    def __init__(self, prepared: Prepared, gradients: bool = True) -> None:
        self.prepared, self.model = prepared, prepared.readout.model
        self.cfg = self.model.cfg
        self.parallel = bool(getattr(self.cfg, "parallel_attn_mlp", False))
        # In a `TransformerBridge`, what reaches the MLP alone, while the stream goes past it.
        point = getattr(self.model, "hook_dict", {}).get(Site.RESID_MID.hook_name(0))
        self.mid_is_mlp = not self.parallel and str(getattr(point, "name", "")).endswith("hook_in")
        self.seen: dict[str, Tensor] = {}
        self.slopes: dict[str, Tensor] = {}
        with torch.no_grad():
            self.empty = prepared.readout.under(prepared.hooks())
        start = Site.RESID_PRE.hook_name(0)
        names = [start, *(name for name in self._names() if name != start)]
        sums = prepared.readout.under([(name, self._see(name, first=gradients and name == start)) for name in names])
        self.clean = Sums(sums.values.detach(), sums.weights)
        if gradients:
            if not sums.values.requires_grad:
                raise MismatchError("this metric has no gradient, on which effects of edges rest; give another.")
            found = torch.autograd.grad(sums.values.sum(), [self.seen[name] for name in names], allow_unused=True)
            self.slopes = {
                name: torch.zeros_like(self.seen[name]) if slope is None else slope
                for name, slope in zip(names, found, strict=True)
            }
        self.seen = {name: value.detach() for name, value in self.seen.items()}
        self.ways = {place: self._way(*place) for place in prepared.replacements}

    def _names(self) -> Iterable[str]:
        layers = range(self.cfg.n_layers)
        sites = [*_INPUTS.values(), Site.RESID_PRE, *dict.fromkeys(site for site, _ in self.prepared.replacements)]
        if _has_mlp(self.cfg):
            sites.append(Site.MLP_OUT)
            if not self.parallel:
                sites.append(Site.RESID_MID)
        yield from (site.hook_name(layer) for site in sites for layer in layers)
        yield residual_after(self.cfg.n_layers - 1)

    def _see(self, name: str, first: bool) -> Callable[[Tensor, Any], Tensor]:
        def see(value: Tensor, hook: Any) -> Tensor:
            # A tensor of its own, so that its gradient is of what passes here, and not of other ways of the same.
            self.seen[name] = value.detach().requires_grad_() if first else value.view_as(value)
            return self.seen[name]

        return see

    def _way(self, site: Site, layer: int) -> Float[Tensor, "row pos head dim"]:
        """What the unit's neurons would change by."""
        value = self.seen[site.hook_name(layer)]
        with torch.no_grad():
            return site.to_heads(self.prepared.replacements[site, layer](value, None) - value)

    def _matrix(self, site: Site, layer: int) -> Float[Tensor, "head dim d_model"]:
        """By which a site's units write."""
        assert site.weights is not None
        heads = site.shape(self.cfg)[1]
        matrix: Tensor = projection(self.model.blocks[layer], site.weights).weight().detach().unflatten(0, (heads, -1))
        return matrix

    def _read_by(self, kind: str, layer: int) -> Float[Tensor, "head d_model dim"]:
        """By which heads read; under grouped heads, one for each group."""
        attn, name = self.model.blocks[layer].attn, f"W_{kind.upper()}"
        matrix = getattr(attn, f"_{name}", None)
        matrix = getattr(attn, name) if matrix is None else matrix
        heads = self.seen[_INPUTS[kind].hook_name(layer)].shape[2]
        if not isinstance(matrix, Tensor) or matrix.ndim != 3 or len(matrix) != heads:
            raise MismatchError(f"{name} of this model is not [head d_model dim] for its {heads} heads; no edges.")
        read: Tensor = matrix.detach()
        return read

    def _mlp_input(self, layer: int) -> Tensor:
        return self.seen[(Site.RESID_PRE if self.parallel else Site.RESID_MID).hook_name(layer)]

    # ------------------------------------------------------------------ gradients

    def edges(self) -> tuple[Float64[Tensor, "row writer reader"], tuple[str, ...]]:
        """Every edge's effect times weight in every row; 0 where the reader comes before the writer."""
        columns, names = [], []
        for layer in range(self.cfg.n_layers):
            block = self.model.blocks[layer]
            stream = self.seen[Site.RESID_PRE.hook_name(layer)].clone().requires_grad_()
            normed = block.ln1(stream)
            for kind, site in _INPUTS.items():
                slope, matrix = self.slopes[site.hook_name(layer)], self._read_by(kind, layer)
                for head in range(len(matrix)):
                    # One reader at a time: what each makes of the stream is as large as the stream.
                    by_reader = slope[:, :, head] @ matrix[head].T.to(slope.dtype)
                    (back,) = torch.autograd.grad(normed, stream, by_reader.to(normed.dtype), retain_graph=True)
                    columns.append(self._onto_writers(back, layer, attention=False))
                    names.append(f"L{layer}.H{head}.{kind.upper()}")
            if _has_mlp(self.cfg):
                if self.mid_is_mlp:
                    back = self.slopes[Site.RESID_MID.hook_name(layer)]
                else:
                    stream = self._mlp_input(layer).clone().requires_grad_()
                    out = block.mlp(block.ln2(stream))
                    (back,) = torch.autograd.grad(out, stream, self.slopes[Site.MLP_OUT.hook_name(layer)])
                columns.append(self._onto_writers(back, layer, attention=not self.parallel))
                names.append(f"L{layer}.MLP")
        columns.append(self._onto_writers(self.slopes[residual_after(self.cfg.n_layers - 1)], self.cfg.n_layers))
        return torch.stack(columns, -1), (*names, LOGITS)

    def _onto_writers(
        self, back: Float[Tensor, "row pos d_model"], layer: int, attention: bool = False
    ) -> Float64[Tensor, "row writer"]:
        """A reader's gradient along each unit's change; heads of this layer count where it reads `attention`."""
        made = []
        for (site, of), way in sorted(self.ways.items(), key=lambda item: self._order(*item[0])):
            if of < layer or (of == layer and attention and site is Site.Z):
                here = back.to(way.device)  # layers may lie on several devices
                onto = torch.einsum("rpm,hdm->rphd", here, self._matrix(site, of).to(here.dtype))
                made.append((way * onto).double().sum((1, 3)))
            else:
                made.append(way.new_zeros(len(way), way.shape[2], dtype=torch.float64))
        return self._together(made)

    def _together(self, parts: list[Float64[Tensor, "row *writer"]]) -> Float64[Tensor, "row writer"]:
        return torch.cat([part.to(self.model.cfg.device) for part in parts], 1)

    def _order(self, site: Site, layer: int) -> tuple[int, int]:
        sites = list(dict.fromkeys(each for each, _ in self.prepared.replacements))
        return sites.index(site), layer

    def require_adding_up(self, rows: Float64[Tensor, "row writer reader"]) -> None:
        """The readers of a unit together are all that its gradient sees."""
        parts = [
            (way * site.to_heads(self.slopes[site.hook_name(layer)])).double().sum((1, 3))
            for (site, layer), way in sorted(self.ways.items(), key=lambda item: self._order(*item[0]))
        ]
        whole = self._together(parts)
        wide = self.seen[residual_after(self.cfg.n_layers - 1)].dtype in (torch.float32, torch.float64)
        if not bool(((rows.sum(-1) - whole).abs() <= (1e-3 if wide else 1e-1) * whole.abs().max() + 1e-9).all()):
            raise MismatchError(
                "in this model, what the readers of a unit see does not add up to the unit's own gradient: it has "
                "norms after its parts, or other ways between them; edges are for blocks with the norm before each "
                "part."
            )

    # ------------------------------------------------------------------ exactly

    def patched(self, edge: Edge) -> Sums:
        """The metric when this reader alone sees the writer's replaced output."""
        return self.prepared.readout.under([self._patch(edge)])

    def _patch(self, edge: Edge) -> Hook:
        change = self._written(edge.writer)
        if edge.reader == LOGITS:
            return residual_after(self.cfg.n_layers - 1), lambda value, hook: value + change
        layer = int(_place_of(edge.reader)[0])
        block = self.model.blocks[layer]
        if edge.kind == "mlp" and self.mid_is_mlp:
            return Site.RESID_MID.hook_name(layer), lambda value, hook: value + change
        if edge.kind == "mlp":
            stream = self._mlp_input(layer)
            more = block.mlp(block.ln2(stream + change)) - block.mlp(block.ln2(stream))
            return Site.MLP_OUT.hook_name(layer), lambda value, hook: value + more
        stream, head = self.seen[Site.RESID_PRE.hook_name(layer)], int(edge.unit.rpartition(".H")[2])
        matrix = self._read_by(edge.kind, layer)[head]
        more = (block.ln1(stream + change) - block.ln1(stream)) @ matrix.to(stream.dtype)

        def patch(value: Tensor, hook: Any) -> Tensor:
            patched = value.clone()
            patched[:, :, head] += more
            return patched

        return _INPUTS[edge.kind].hook_name(layer), patch

    def _written(self, writer: str) -> Float[Tensor, "row pos d_model"]:
        layer, is_mlp = _place_of(writer)
        site = Site.MLP if is_mlp else Site.Z
        head = 0 if is_mlp else int(writer.rpartition(".H")[2])
        return self.ways[site, int(layer)][:, :, head] @ self._matrix(site, int(layer))[head].to(
            self.ways[site, int(layer)].dtype
        )

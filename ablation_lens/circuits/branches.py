"""Copies of a batch, each with another unit ablated, which share what comes before that block with the clean run.

The clean run says what every block is called with; then blocks are called by themselves. In the block of the ablation
neither attention nor MLP is computed again where its input is the clean one: what an ablated unit changes is a product
with the rows of its weights. What comes out is compared with plain runs; where it differs, or cannot be had, every unit
is a plain run with a hook.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ablation_lens.circuits.setting import Prepared
from ablation_lens.hooked import listening, projection
from ablation_lens.measure.forward import final_residual, forward_of, giving
from ablation_lens.measure.score import Sums
from ablation_lens.sites import Hook, Site

AT_ONCE = 2**23
"""How many numbers the residual streams of all copies hold at most, unless one copy alone holds more."""

_MODULES = ("attn", "mlp")

Made = TypeVar("Made")


@dataclass(frozen=True)
class Units:
    """Some of the units of a site in one layer, which follow each other; `of` them are all neurons there.

    >>> Units(Site.Z, 1, 3, of=3).neurons(6).int().tolist()
    [[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    """

    site: Site
    first: int
    last: int
    of: int

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> "Iterator[Units]":
        """One by one."""
        return (Units(self.site, unit, unit + 1, self.of) for unit in range(self.first, self.last))

    def neurons(self, count: int) -> Bool[Tensor, "unit neuron"]:
        """Which of so many neurons are in each."""
        of_unit = torch.arange(count) // (count // self.of)
        return of_unit == torch.arange(self.first, self.last)[:, None]

    def part(self, values: Float[Tensor, "*some neuron"]) -> Float[Tensor, "*some unit dim"]:
        """Their own neurons (a view)."""
        by_unit: Tensor = values.unflatten(-1, (self.of, -1))
        return by_unit[..., self.first : self.last, :]


class Trunk:
    """The clean run of one batch, block by block, from which copies with an ablated unit branch off.

    Attributes:
        clean: the metric of the model as it is, row by row.
        copies: how many units are ablated at once, each in a copy of the batch; 0 where every unit is a plain run.
    """

    def __init__(self, prepared: Prepared, *, thorough: bool, at_once: int = AT_ONCE) -> None:
        """Run the model as it is.

        Args:
            prepared: the batch.
            thorough: compare a unit of every layer and site with a run of the block in which everything is computed.
            at_once: see `AT_ONCE`.
        """
        self.prepared, self.thorough = prepared, thorough
        self.model = prepared.readout.model
        self.rows = len(prepared.batch.inputs)
        self.copies = 0
        self._blocks: list[nn.Module] = list(getattr(self.model, "blocks", ()))
        self._calls: list[_Call] = []
        self._residual: Tensor | None = None
        self._final: Tensor | None = None  # until a copy was compared with it
        self._last: Any = None
        with _calls_of(self._blocks) as seen:
            final = final_residual(self.model, prepared.batch)
        if prepared.readout.reads_residuals:
            self.clean: Sums = prepared.readout.of_residual(final)
        else:
            with _outputs_of(self._blocks[-1:]) as outputs:
                self.clean = prepared.readout.under([])
            self._last = outputs.get(0)
        # In another order, or more than once: a model that is not a stack of blocks.
        if [block for block, _ in seen] != self._blocks or not self._blocks:
            return
        self._calls = [call for _, call in seen]
        self._residual = self._calls[0].residual
        self._final = final
        self.copies = max(1, at_once // max(1, final.numel()))
        if not prepared.readout.reads_residuals and not self._ends_alike(final):
            self.copies = 0

    def effects(self, layer: int, counts: dict[Site, int]) -> Iterator[tuple[Units, Float[Tensor, "unit row"]]]:
        """The effects times weights of a layer's units, some at a time. Layers are asked for one after another.

        Args:
            layer: of the ablation.
            counts: into how many units of equal size a layer's neurons fall, by site.
        """
        block = self._trying(lambda: self._block(layer, counts)) if self.copies else None
        for site, count in counts.items():
            first = 0
            while first < count:
                if block is None or not self.copies:
                    units = Units(site, first, first + 1, count)
                    ablated = self.prepared.readout.under([self._hook(layer, units)]).values
                else:
                    units = Units(site, first, min(count, first + self.copies), count)
                    made = self._trying(functools.partial(self._branched, block, units))
                    if made is None:
                        continue
                    ablated = made
                yield units, ablated.double().view(-1, self.rows) - self.clean.values.double()
                first = units.last
        if block is None:  # nobody knows what comes into the next one
            self.copies = 0
        else:
            self._residual = block.after

    def _trying(self, make: Callable[[], Made]) -> Made | None:
        """What it gives; None where the same is to be asked again, with fewer copies."""
        try:
            return make()
        except torch.OutOfMemoryError:
            self.copies //= 2
        except Exception:
            # Whatever a model, or a hook on it, says to copies of a batch: if it is an error, a plain run has it too.
            self.copies = 0
        return None

    def _block(self, layer: int, sites: Iterable[Site]) -> "_Block":
        """The block on the clean stream, and what its sites hold."""
        block, call, residual = self._blocks[layer], self._calls[layer], self._residual
        assert residual is not None
        held: dict[Site, Tensor] = {}

        def see(site: Site) -> Callable[[Tensor, Any], None]:
            return lambda value, hook: held.__setitem__(site, value.clone())

        modules = {name: getattr(block, name, None) for name in _MODULES}
        # Hooks in a module may act on what follows the site there.
        quiet = {name: each for name, each in modules.items() if each is not None and not listening(*each.modules())}
        hooks = [(site.hook_name(layer), see(site)) for site in sites]
        # Of copies, here and below: hooks may write into what they see, and would do so again.
        with _outputs_of(quiet.values()) as outputs, self.model.hooks(fwd_hooks=hooks):
            after = call.on(block, residual.clone(), self.rows)
        values = {}
        for site, value in held.items():
            replaced = self.prepared.replacements[site, layer](value, None)
            values[site] = (site.to_heads(value).flatten(2), site.to_heads(replaced).flatten(2))
        by_name = {name: outputs[number] for number, name in enumerate(quiet) if number in outputs}
        matrices = {site: _matrix_of(block, site, values[site][0].shape[-1]) for site in values}
        return _Block(self.model, layer, call, residual, after, values, by_name, matrices)

    def _branched(self, block: "_Block", units: Units) -> Float[Tensor, " unit*row"]:
        """The metric with some units ablated; raises where what comes out is not what a plain run gives."""
        residual = block.ablated(units)
        each = list(units)
        final = self._final
        if self.thorough and units.first == 0:
            copies = residual.unflatten(0, (-1, self.rows))
            # Hooks that change single rows of a batch change those of the first copy, or of the last.
            for number in {0, len(units) - 1}:
                _require_alike(copies[number], block.computed(each[number]), block.after)
        if final is not None:  # a copy in which nothing is ablated, to be compared with the clean run
            residual = torch.cat([residual, block.after])
        for call, later in list(zip(self._calls, self._blocks, strict=True))[block.layer + 1 :]:
            residual = call.on(later, residual, self.rows)
        if final is not None:
            copies = residual.unflatten(0, (-1, self.rows))
            _require_alike(copies[-1], final)
            if self.thorough:
                plain = final_residual(self.model, self.prepared.batch, [self._hook(block.layer, each[0])])
                _require_alike(copies[0], plain, final)
            self._final, residual = None, residual[: -self.rows]
        return self._ended(residual)

    def _ended(self, residual: Float[Tensor, "unit*row pos d_model"]) -> Float[Tensor, " unit*row"]:
        """The metric of final residuals."""
        readout = self.prepared.readout
        if readout.reads_residuals:
            return readout.of_residual(residual).values
        # The model goes on in a way of its own, and does so from the end of its last block.
        made = []
        for copy in residual.split(self.rows):
            output = _with_stream(self._last, copy)
            with giving((block, output) for block in self._blocks):
                made.append(readout.under([]).values)
        return torch.cat(made)

    def _ends_alike(self, final: Float[Tensor, "row pos d_model"]) -> bool:
        ended = self._trying(lambda: self._ended(final))
        return ended is not None and torch.allclose(ended.double(), self.clean.values.double(), rtol=1e-5, atol=1e-5)

    def _hook(self, layer: int, units: Units) -> Hook:
        """A plain hook that ablates one unit."""
        replace = self.prepared.replacements[units.site, layer]

        def ablate(value: Tensor, hook: Any) -> Tensor:
            heads, replaced = units.site.to_heads(value), units.site.to_heads(replace(value, hook))
            chosen = units.neurons(heads.shape[2:].numel()).to(value.device).view(heads.shape[2:])
            return units.site.from_heads(torch.where(chosen, replaced, heads))

        return units.site.hook_name(layer), ablate


@dataclass(frozen=True)
class _Call:
    """What a block is called with after the residual stream; of the first one, the stream, too."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    residual: Tensor | None

    def on(self, block: nn.Module, residual: Float[Tensor, "copy*row pos d_model"], rows: int) -> Tensor:
        """The residual stream after the block, of copies of the batch."""
        copies = len(residual) // rows
        args = (_repeated(each, rows, copies) for each in self.args)
        made = block(residual, *args, **{name: _repeated(each, rows, copies) for name, each in self.kwargs.items()})
        after: Tensor = made[0] if isinstance(made, tuple) else made
        return after


def _repeated(given: Any, rows: int, copies: int) -> Any:
    """Masks, angles and the like for copies of the rows; what is the same for all rows stays."""
    if isinstance(given, tuple):
        return tuple(_repeated(each, rows, copies) for each in given)
    if copies > 1 and isinstance(given, Tensor) and given.ndim > 1 and len(given) == rows:
        return given.repeat(copies, *[1] * (given.ndim - 1))
    return given


@contextmanager
def _calls_of(blocks: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, _Call]]]:
    """Blocks in the order of their calls."""
    seen: list[tuple[nn.Module, _Call]] = []

    def see(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args and isinstance(args[0], Tensor):
            others = tuple(_not_cache(each) for each in args[1:])
            named = {name: False if name == "use_cache" else _not_cache(each) for name, each in kwargs.items()}
            seen.append((block, _Call(others, named, None if seen else args[0].clone())))

    with ExitStack() as leaving:
        for block in blocks:
            # Before others' pre-hooks, which act again when the block is called with what it was called with.
            handle = block.register_forward_pre_hook(see, prepend=True, with_kwargs=True)
            leaving.callback(handle.remove)
        yield seen


def _not_cache(given: Any) -> Any:
    """None for keys and values of earlier calls, which would grow with every call."""
    return None if hasattr(given, "get_seq_length") or hasattr(given, "past_keys") else given


@dataclass(frozen=True)
class _Block:
    """One block of the clean run.

    Attributes:
        residual: the stream before it, and `after` it.
        values: what every site holds, clean and with every unit ablated.
        outputs: what attention and MLP gave, where nobody listens to them.
        matrices: what reads a site; None where that is not known.
    """

    model: Any
    layer: int
    call: _Call
    residual: Float[Tensor, "row pos d_model"]
    after: Float[Tensor, "row pos d_model"]
    values: dict[Site, tuple[Float[Tensor, "row pos neuron"], Float[Tensor, "row pos neuron"]]]
    outputs: dict[str, Any]
    matrices: dict[Site, Float[Tensor, "neuron d_model"] | None]

    def ablated(self, units: Units) -> Float[Tensor, "unit*row pos d_model"]:
        """The stream after the block, of copies in each of which another unit is ablated."""
        weights = units.site.weights
        if weights is None or weights.made:
            return self.computed(units)
        # An MLP that reads what attention wrote has another input, where heads are ablated.
        parallel = bool(getattr(self.model.cfg, "parallel_attn_mlp", False))
        unchanged = {name: output for name, output in self.outputs.items() if name == "attn" or parallel}
        streams = {name: _stream_of(output).repeat(len(units), 1, 1) for name, output in unchanged.items()}
        own, matrix = self.outputs.get(weights.module), self.matrices[units.site]
        if own is not None and matrix is not None:
            streams[weights.module] = _stream_of(own).repeat(len(units), 1, 1) + self._change(units, matrix)
        else:
            streams.pop(weights.module, None)
        block = self.model.blocks[self.layer]
        given = [(getattr(block, name), _with_stream(self.outputs[name], each)) for name, each in streams.items()]
        with giving(given):
            return self._called(units) if weights.module in streams else self.computed(units)

    def computed(self, units: Units) -> Float[Tensor, "unit*row pos d_model"]:
        """The same with everything in the block computed."""
        site, replaced = units.site, self.values[units.site][1]
        chosen = units.neurons(replaced.shape[-1]).to(replaced.device)

        def ablate(value: Tensor, hook: Any) -> Tensor:
            heads = site.to_heads(value)
            copies = heads.flatten(2).unflatten(0, (len(units), -1))
            made = torch.where(chosen[:, None, None], replaced, copies)
            return site.from_heads(made.flatten(0, 1).unflatten(2, heads.shape[2:]))

        with self.model.hooks(fwd_hooks=[(site.hook_name(self.layer), ablate)]):
            return self._called(units)

    def _called(self, units: Units) -> Float[Tensor, "unit*row pos d_model"]:
        residual = self.residual.repeat(len(units), 1, 1)
        return self.call.on(self.model.blocks[self.layer], residual, len(self.residual))

    def _change(self, units: Units, matrix: Float[Tensor, "neuron d_model"]) -> Float[Tensor, "unit*row pos d_model"]:
        """What ablating a unit adds to the output of its module."""
        clean, replaced = self.values[units.site]
        own = units.part(matrix.T)
        change = torch.einsum("rpud,mud->urpm", units.part(replaced - clean).to(own.dtype), own)
        return change.flatten(0, 1)


def _matrix_of(block: Any, site: Site, neurons: int) -> Float[Tensor, "neuron d_model"] | None:
    """The weights that read a site; None in a model that keeps them elsewhere."""
    if site.weights is None or site.weights.made:
        return None
    try:
        matrix = projection(block, site.weights).weight()
    except AttributeError:
        return None
    return matrix if matrix.ndim == 2 and len(matrix) == neurons else None


def _stream_of(output: Any) -> Float[Tensor, "row pos d_model"]:
    """What a module adds to the stream: all that it gave, or the first of it."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def _with_stream(output: Any, stream: Tensor) -> Any:
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


@contextmanager
def _outputs_of(modules: Iterable[nn.Module]) -> Iterator[dict[int, Any]]:
    """What modules give, by their number here, of those that are called once.

    Not by torch hooks: fast attention takes another way where somebody listens.
    """
    seen: dict[int, list[Any]] = {}
    outputs: dict[int, Any] = {}
    with ExitStack() as leaving:
        for number, module in enumerate(modules):
            leaving.enter_context(forward_of(module, _seen(module.forward, seen.setdefault(number, []))))
        yield outputs
    outputs |= {number: given[0] for number, given in seen.items() if len(given) == 1}


def _seen(forward: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    def see(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        seen.append(_with_stream(output, _stream_of(output).clone()))
        return output

    return see


class _NotAlike(Exception):  # noqa: N818  (a jump, not an error: never leaves this module)
    """Copies are not what plain runs are."""


def _require_alike(ours: Tensor, plain: Tensor, clean: Tensor | None = None) -> None:
    """Raise unless two streams are the same but for rounding, and differ alike from the clean one."""
    exact = plain.dtype in (torch.float32, torch.float64)
    wide = torch.promote_types(plain.dtype, torch.float32)  # not always float64, which some devices lack
    ours, plain = ours.to(wide), plain.to(wide)
    allowed = (1e-5 if exact else 2e-2) * plain.norm()
    if clean is not None:
        allowed = allowed + (1e-3 if exact else 5e-2) * (plain - clean.to(wide)).norm()
    if ours.shape != plain.shape or not bool((ours - plain).norm() <= allowed):
        raise _NotAlike

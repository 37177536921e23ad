"""Copies of a batch that differ from one block on: a unit is ablated in each, and what comes before is shared.

The clean run says what every block is called with; then blocks are called by themselves. In the block of the ablation
neither attention nor MLP is computed again where its input is the clean one: what an ablated unit changes is a product
with the rows of its weights. What comes out is compared with plain runs; where it differs, or cannot be had, every unit
is a plain run with a hook.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ablation_lens.circuits.setting import Prepared
from ablation_lens.hooked import listening, projection
from ablation_lens.measure.forward import final_residual
from ablation_lens.sites import Site

AT_ONCE = 2**23
"""How many numbers the residual streams of all copies hold at most, unless one copy alone holds more."""

_MODULES = ("attn", "mlp")


class Trunk:
    """The clean run of one batch, block by block, from which copies with an ablated unit branch off.

    Attributes:
        clean: the metric of the model as it is, row by row.
        copies: how many units are ablated at once, each in a copy of the batch; 0 where every unit is a run of its own.
    """

    def __init__(self, prepared: Prepared, *, thorough: bool, at_once: int = AT_ONCE) -> None:
        """Run the model as it is.

        Args:
            prepared: the batch.
            thorough: compare single units with plain runs, once per layer and site.
            at_once: see `AT_ONCE`.
        """
        self.prepared, self.thorough = prepared, thorough
        readout = prepared.readout
        self.model, self.rows = readout.model, len(readout.batch.inputs)
        self.copies = 0
        self._calls: list[_Call] = []
        self._residual: Tensor | None = None
        self._final: Tensor | None = None
        if not readout.reads_residuals:
            self.clean = readout.under([])
            return
        with _calls_of(self.model) as seen:
            final = final_residual(self.model, readout.batch)
        self.clean = readout.of_residual(final)
        if [block for block, _, _ in seen] == list(getattr(self.model, "blocks", ())) and seen:
            self._calls = [call for _, _, call in seen]
            self._residual, self._final = seen[0][1], final
            self.copies = max(1, at_once // max(1, final.numel()))

    def effects(self, layer: int, counts: dict[Site, int]) -> Iterator[tuple[Site, int, Float[Tensor, "unit row"]]]:
        """The effects times weights of a layer's units: a site, the number of the first unit, and some from there on.

        Layers are asked for one after another.

        Args:
            layer: of the ablation.
            counts: into how many units of equal size a layer's neurons fall, by site.
        """
        block = self._trying(lambda: self._block(layer, counts)) if self.copies else None
        for site, count in counts.items():
            first = 0
            while first < count:
                if block is None or not self.copies:
                    ablated = self.prepared.readout.under([self._hook(layer, site, first, count)]).values
                else:
                    last = min(count, first + self.copies)
                    made = self._trying(lambda: self._branched(block, site, slice(first, last), count))  # noqa: B023
                    if made is None:
                        continue
                    ablated = made
                effects = ablated.double().view(-1, self.rows) - self.clean.values.double()
                yield site, first, effects
                first += len(effects)
        self._residual = None if block is None else block.after

    def _trying(self, make: Callable[[], Any]) -> Any:
        """What it gives; None where the same has to be asked again in another way, which is then set."""
        try:
            return make()
        except torch.OutOfMemoryError:
            self.copies //= 2
        except Exception:
            # Whatever a model or a hook on it says to copies of a batch: a plain run says it again, if it is an error.
            self.copies = 0
        return None

    def _block(self, layer: int, sites: Iterable[Site]) -> "_Block":
        """The block on the clean stream, and what its sites hold."""
        block, call, residual = self.model.blocks[layer], self._calls[layer], self._residual
        assert residual is not None
        held: dict[Site, Tensor] = {}

        def see(site: Site) -> Callable[[Tensor, Any], None]:
            return lambda value, hook: held.__setitem__(site, value)

        with ExitStack() as leaving:
            made = {
                name: leaving.enter_context(_outputs_of(module))
                for name in _MODULES
                if (module := getattr(block, name, None)) is not None and not listening(*module.modules())
            }
            leaving.enter_context(self.model.hooks(fwd_hooks=[(site.hook_name(layer), see(site)) for site in sites]))
            after = call.on(block, residual, self.rows)
        outputs = {
            name: given[0] for name, given in made.items() if len(given) == 1 and _stream_of(given[0]) is not None
        }
        values = {}
        for site, value in held.items():
            replaced = self.prepared.replacements[site, layer](value, None)
            values[site] = (site.to_heads(value).flatten(2), site.to_heads(replaced).flatten(2))
        return _Block(self.model, layer, call, residual, after, values, outputs, self.rows)

    def _branched(self, block: "_Block", site: Site, units: slice, count: int) -> Float[Tensor, " unit*row"] | None:
        """The metric with some units ablated; None where what comes out is not what a plain run gives."""
        final = self._final
        chosen = _ranges(units, count, block.values[site][0].shape[-1], block.residual.device)
        if final is not None:  # a copy in which nothing is ablated, to be compared with the clean run
            chosen = torch.cat([chosen, torch.zeros_like(chosen[:1])])
        residual = block.ablated(site, chosen)
        middle = (units.stop - units.start) // 2
        if self.thorough and units.start == 0:
            plain = block.hooked(site, chosen[middle : middle + 1])
            if not _alike(residual.unflatten(0, (-1, self.rows))[middle], plain, block.after):
                self.copies = 0
                return None
        for layer in range(block.layer + 1, len(self._calls)):
            residual = self._calls[layer].on(self.model.blocks[layer], residual, self.rows)
        if final is not None:
            copies = residual.unflatten(0, (-1, self.rows))
            agrees = _alike(copies[-1], final)
            if self.thorough and agrees:
                hooks = [self._hook(block.layer, site, units.start + middle, count)]
                agrees = _alike(copies[middle], final_residual(self.model, self.prepared.batch, hooks), final)
            if not agrees:
                self.copies = 0
                return None
            self._final, residual = None, residual[: -self.rows]
        return self.prepared.readout.of_residual(residual).values

    def _hook(self, layer: int, site: Site, unit: int, count: int) -> tuple[str, Callable[[Tensor, Any], Tensor]]:
        """A plain hook that ablates one unit."""
        replace = self.prepared.replacements[site, layer]

        def ablate(value: Tensor, hook: Any) -> Tensor:
            heads, replaced = site.to_heads(value), site.to_heads(replace(value, hook))
            shape = heads.shape[2:]
            chosen = _ranges(slice(unit, unit + 1), count, shape.numel(), value.device).view(shape)
            return site.from_heads(torch.where(chosen, replaced, heads))

        return site.hook_name(layer), ablate


@dataclass(frozen=True)
class _Call:
    """What a block is called with after the residual stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, block: nn.Module, residual: Float[Tensor, "copies*row pos d_model"], rows: int) -> Tensor:
        """The residual stream after the block, of copies of the batch."""
        copies = len(residual) // rows
        args = (_repeated(each, rows, copies) for each in self.args)
        made = block(residual, *args, **{name: _repeated(each, rows, copies) for name, each in self.kwargs.items()})
        after: Tensor = made[0] if isinstance(made, tuple) else made
        return after


def _repeated(given: Any, rows: int, copies: int) -> Any:
    """Masks, angles and the like for copies of the rows; what is for all rows alike stays."""
    if isinstance(given, tuple):
        return tuple(_repeated(each, rows, copies) for each in given)
    if copies > 1 and isinstance(given, Tensor) and given.ndim > 1 and len(given) == rows:
        return given.repeat(copies, *[1] * (given.ndim - 1))
    return given


@contextmanager
def _calls_of(model: Any) -> Iterator[list[tuple[nn.Module, Tensor, _Call]]]:
    """Blocks in the order of their calls, each with the residual stream that it was given and the rest."""
    seen: list[tuple[nn.Module, Tensor, _Call]] = []

    def see(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args and isinstance(args[0], Tensor):
            plain = {name: False if name == "use_cache" else _not_cache(each) for name, each in kwargs.items()}
            seen.append((block, args[0], _Call(tuple(_not_cache(each) for each in args[1:]), plain)))

    with ExitStack() as leaving:
        for block in getattr(model, "blocks", ()):
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
        values: what every site holds, clean and with every unit ablated, as `[row pos neuron]`.
        outputs: what attention and MLP gave, where nobody listens to them.
    """

    model: Any
    layer: int
    call: _Call
    residual: Float[Tensor, "row pos d_model"]
    after: Float[Tensor, "row pos d_model"]
    values: dict[Site, tuple[Tensor, Tensor]]
    outputs: dict[str, Any]
    rows: int

    def ablated(self, site: Site, chosen: Bool[Tensor, "copy neuron"]) -> Float[Tensor, "copy*row pos d_model"]:
        """The stream after the block, of copies in each of which other neurons are ablated."""
        block = self.model.blocks[self.layer]
        standing_in = self._standing_in(site, chosen)
        weights = site.weights
        own = None if weights is None or weights.made else weights.module
        with ExitStack() as leaving:
            for name, output in standing_in.items():
                leaving.enter_context(_gives(getattr(block, name), output))
            if own not in standing_in:
                leaving.enter_context(self.model.hooks(fwd_hooks=[self._hook(site, chosen)]))
            return self.call.on(block, self.residual.repeat(len(chosen), 1, 1), self.rows)

    def hooked(self, site: Site, chosen: Bool[Tensor, "copy neuron"]) -> Float[Tensor, "copy*row pos d_model"]:
        """The same with everything in the block computed."""
        with self.model.hooks(fwd_hooks=[self._hook(site, chosen)]):
            return self.call.on(self.model.blocks[self.layer], self.residual.repeat(len(chosen), 1, 1), self.rows)

    def _hook(self, site: Site, chosen: Bool[Tensor, "copy neuron"]) -> tuple[str, Callable[[Tensor, Any], Tensor]]:
        replaced = self.values[site][1]

        def ablate(value: Tensor, hook: Any) -> Tensor:
            heads = site.to_heads(value)
            copies = heads.flatten(2).unflatten(0, (len(chosen), self.rows))
            made = torch.where(chosen[:, None, None], replaced, copies)
            return site.from_heads(made.flatten(0, 1).unflatten(2, heads.shape[2:]))

        return site.hook_name(self.layer), ablate

    def _standing_in(self, site: Site, chosen: Bool[Tensor, "copy neuron"]) -> dict[str, Any]:
        """Outputs of modules that need not be computed, as their inputs are the clean ones."""
        weights = site.weights
        if weights is None or weights.made:
            return {}
        parallel = bool(getattr(self.model.cfg, "parallel_attn_mlp", False))
        # An MLP that reads what attention wrote has another input, where heads are ablated.
        unchanged = [name for name in self.outputs if name == weights.module or name == "attn" or parallel]
        made = {name: _with_stream(self.outputs[name], _copies(self.outputs[name], len(chosen))) for name in unchanged}
        if weights.module in made:
            clean, replaced = self.values[site]
            matrix = projection(self.model.blocks[self.layer], weights).weight()
            stream = _copies(self.outputs[weights.module], len(chosen)).unflatten(0, (len(chosen), self.rows)).clone()
            for copy, neurons in enumerate(chosen):
                if bool(neurons.any()):
                    change = (replaced - clean)[..., neurons].to(matrix.dtype)
                    stream[copy] += (change @ matrix[neurons]).to(stream.dtype)
            made[weights.module] = _with_stream(self.outputs[weights.module], stream.flatten(0, 1))
        return made


def _ranges(units: slice, count: int, neurons: int, device: torch.device) -> Bool[Tensor, "unit neuron"]:
    """Which neurons of a layer are in each of some units; units are runs of neurons of equal length.

    >>> _ranges(slice(1, 3), 3, 6, torch.device("cpu")).int().tolist()
    [[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    """
    of_unit = torch.arange(neurons, device=device) // (neurons // count)
    return of_unit == torch.arange(units.start, units.stop, device=device)[:, None]


def _stream_of(output: Any) -> Tensor | None:
    """What a module adds to the stream: all that it gave, or the first of it."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.ndim == 3 else None


def _copies(output: Any, copies: int) -> Float[Tensor, "copy*row pos d_model"]:
    stream = _stream_of(output)
    assert stream is not None
    return stream.repeat(copies, 1, 1)


def _with_stream(output: Any, stream: Tensor) -> Any:
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a while. Its own may be in the module's `__dict__` (fast attention, accelerate)."""
    own = vars(module)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """What a module gives when it is called; not by a torch hook, whose presence would slow it down."""
    seen: list[Any] = []
    forward = module.forward

    def see(*args: Any, **kwargs: Any) -> Any:
        seen.append(forward(*args, **kwargs))
        return seen[-1]

    with _forward(module, see):
        yield seen


@contextmanager
def _gives(module: nn.Module, output: Any) -> Iterator[None]:
    """A module that gives this, whatever it is called with."""
    with _forward(module, lambda *args, **kwargs: output):
        yield


def _alike(ours: Tensor, plain: Tensor, clean: Tensor | None = None) -> bool:
    """Whether two streams are the same but for rounding, and differ alike from the clean one."""
    if ours.shape != plain.shape:
        return False
    exact = plain.dtype in (torch.float32, torch.float64)
    ours, plain = ours.float(), plain.float()
    allowed = (1e-5 if exact else 2e-2) * plain.norm()
    if clean is not None:
        allowed = allowed + (1e-3 if exact else 5e-2) * (plain - clean.float()).norm()
    return bool((ours - plain).norm() <= allowed)

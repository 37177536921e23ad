"""A plain Hugging Face model, which nobody hooked: the modules that read its neurons, and what it is called with.

By duck typing, as in `hooked`: transformers is never imported. Blocks are told by what is in them, and what reads
neurons by its name and its sizes. The names are those of transformers' causal models, BERTs and vision transformers.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from ablation_lens.errors import MismatchError
from ablation_lens.hooked import Columns, hides
from ablation_lens.sites import Site

_ATTENTION = r"\w*att(?:n|ention)"
_READERS = {
    Site.Z: re.compile(
        rf"{_ATTENTION}\.(?:{_ATTENTION}\.)?"  # GPT-Neo's are two deep
        r"(?:o_proj|out_proj|c_proj|dense|output\.dense|out_lin)"
    ),
    Site.MLP: re.compile(r"fc2|(?:mlp|ffn)\.(?:c_proj|fc_out|fc2|down_proj|dense_4h_to_h|lin2)|output\.dense"),
}
"""Where in a block the module is whose input are a site's neurons: whole paths, as a part of an MLP is not the MLP."""


@dataclass(frozen=True)
class Readers:
    """The module of every layer that reads a site's neurons, all heads side by side.

    Attributes:
        modules: one per layer.
        shape: of the site, `(layer, head, dim)`.
        around: what runs the blocks, from the model inwards: a head may call any of them.
    """

    modules: tuple[nn.Module, ...]
    shape: tuple[int, int, int]
    around: tuple[nn.Module, ...]


def find_readers(model: Any, site: Site) -> Readers:
    """What reads the neurons of a site in every block of a plain model; one sentence where that is not sure.

    >>> import transformers
    >>> config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=12, n_layer=2, n_head=3)
    >>> found = find_readers(transformers.GPT2Model(config), Site.Z)
    >>> [type(module).__name__ for module in found.modules], found.shape
    (['Conv1D', 'Conv1D'], (2, 3, 4))
    """
    if site not in _READERS:
        raise MismatchError(
            f"a plain Hugging Face model can be ablated at {' and '.join(each.value for each in _READERS)}, and not at "
            f"{site.value!r}; ablation_lens.models.load.hook_model(hf_model) hooks it everywhere."
        )
    if hasattr(model, "_orig_mod"):
        raise MismatchError(
            "this model was made by torch.compile, and what is compiled may pass hooks over; give the model that was "
            "compiled, which is model._orig_mod, and call that."
        )
    config, name = model.config, type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise MismatchError(f"{name} has an encoder and a decoder; only models with one stack of blocks are ablated.")
    where, blocks = _blocks(model, name)
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not isinstance(width, int) or not isinstance(heads, int):
        raise MismatchError(f"the config of {name} does not say its hidden_size and num_attention_heads as numbers.")
    modules = tuple(_reader(block, site, width, f"{where}.{layer}") for layer, block in enumerate(blocks))
    sizes = {_sizes(module)[0] for module in modules}
    heads = heads if site is Site.Z else 1
    if len(sizes) > 1 or min(sizes) % heads:
        raise MismatchError(
            f"the {site.value} neurons of {name} are {', '.join(map(str, sorted(sizes)))} in a layer; expected the "
            f"same number in every layer, in {heads} equal heads."
        )
    steps = where.split(".")[:-1]  # the last one is the list itself, which is not called
    around = tuple(model.get_submodule(".".join(steps[:depth])) for depth in range(len(steps) + 1))
    return Readers(modules, (len(modules), heads, min(sizes) // heads), around)


def _blocks(model: nn.Module, name: str) -> tuple[str, Sequence[nn.Module]]:
    """The stack of blocks: the outermost list whose modules have an attention with an output projection."""
    lists = {
        path: list(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(_matching(block, Site.Z) for block in module)
    }
    outermost = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        raise MismatchError(
            f"{name} has {len(outermost)} stacks of blocks with attention whose output projection is known"
            f"{': ' if outermost else ''}{', '.join(outermost)}; expected one. Give the part of the model that is "
            "meant, or hook it: ablation_lens.models.load.hook_model(hf_model)."
        )
    blocks, expected = lists[outermost[0]], getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if expected is not None and expected != len(blocks):
        raise MismatchError(
            f"{name} has {len(blocks)} blocks at {outermost[0]}, and its config says {expected} layers: which block is "
            "which layer cannot be told."
        )
    return outermost[0], blocks


def _matching(block: nn.Module, site: Site) -> dict[str, nn.Module]:
    return {path: module for path, module in block.named_modules() if _READERS[site].fullmatch(path)}


def _reader(block: nn.Module, site: Site, width: int, where: str) -> nn.Module:
    fitting = {path: module for path, module in _matching(block, site).items() if _sizes(module)[1] == width}
    if len(fitting) != 1:
        what = "attention output projection" if site is Site.Z else "down projection of an MLP"
        found = f"{len(fitting)} ({', '.join(fitting)})" if fitting else "none"
        raise MismatchError(
            f"block {where} has to have one {what} to {width} dims, under a name that transformers gives it; found "
            f"{found}."
        )
    return next(iter(fitting.values()))


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs, of a `Linear` or what stands in for one, or of a GPT-2 `Conv1D`; 0 where there are none."""
    for names in (("in_features", "out_features"), ("nx", "nf")):
        sizes = [getattr(module, name, None) for name in names]
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return sizes[0], sizes[1]
    return 0, 0


# ---------------------------------------------------------------------- what it is called with


class Call:
    """What a plain model was called with, by hooks around whatever runs its blocks; says so while it runs.

    `count` is how many columns a row has, where the model is called with tokens or embeddings. With `positions`, a call
    that does not say which columns hold which position is refused. With `drops_layers`, training may leave layers out.
    """

    def __init__(self, readers: Mapping[int, nn.Module], *, positions: bool, drops_layers: bool = False) -> None:
        self.readers, self.positions, self.drops_layers = readers, positions, drops_layers
        self.running: list[nn.Module] = []
        self._forget()

    def _forget(self) -> None:
        self.running.clear()
        self.count: int | None = None
        self.cached = 0
        self.real: Bool[Tensor, "batch column"] | None = None
        self.reached: set[int] = set()

    def columns(self, count: int) -> Columns:
        """What so many columns of an activation are."""
        if not self.running:
            raise MismatchError(
                "this ablation depends on the position, and a block was called by itself, without what the model is "
                "told of padding and cache; call the model, without gradient checkpointing, which calls blocks again."
            )
        if self.count not in (None, count):
            raise MismatchError(
                f"the model was called with {self.count} columns, and {count} came to a projection at once: which they "
                "are cannot be told (chunk_size_feed_forward=0 keeps them together)."
            )
        return Columns(self.cached, count, self.real)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook with kwargs."""
        if module in self.running:  # an interrupt leaves no hook the time to say that a call has ended
            self._forget()
        self.running.append(module)
        if len(self.running) == 1:  # the outermost call is told most
            names = _positional(module)
            self._read({**dict(zip(names, args, strict=False)), **kwargs})
            if self.positions and len(args) > len(names):
                raise MismatchError(
                    f"this ablation depends on the position, and what {type(module).__name__} was called with has no "
                    "names; give attention_mask and the rest by name."
                )

    def _read(self, given: Mapping[str, Any]) -> None:
        tokens = next((given[key] for key in ("input_ids", "inputs_embeds") if given.get(key) is not None), None)
        self.count = None if tokens is None else int(tokens.shape[1])
        if not self.positions:
            return
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        if cache is not None:
            if not hasattr(cache, "get_seq_length"):
                raise MismatchError(
                    "this ablation depends on the position, and the key-value cache does not say how much it holds: a "
                    f"{type(cache).__name__}; use a DynamicCache."
                )
            self.cached = int(cache.get_seq_length())
        if mask is None:
            return
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise MismatchError(
                "this ablation depends on the position, and the attention mask does not say what is padding; give a "
                f"mask [batch pos], and not {_told(mask)}."
            )
        if hides(mask):
            self.real = mask.bool()
            if self.count is not None and mask.shape[1] != self.cached + self.count:
                raise MismatchError(
                    f"the attention mask has {mask.shape[1]} columns, where there are {self.cached} cached positions "
                    f"and {self.count} new ones: which of them are padding cannot be told."
                )

    def reach(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook on what reads neurons."""
        self.reached.add(id(module))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook, which comes also after an exception; the output is None then."""
        if not self.running or self.running[-1] is not module:  # somebody's hook raised before ours was called
            return
        if len(self.running) > 1:
            self.running.pop()
            return
        missed = [layer for layer, reader in self.readers.items() if id(reader) not in self.reached]
        self._forget()
        if missed and output is not None and not (self.drops_layers and module.training):
            raise MismatchError(
                f"the model ran without calling the {type(self.readers[missed[0]]).__name__} that reads the neurons of "
                f"layer {missed[0]}, as fused kernels and compiled blocks do, so nothing was ablated there; run it "
                "uncompiled, or hook it with ablation_lens.models.load.hook_model(hf_model)."
            )


def _positional(module: nn.Module) -> list[str]:
    """The names of what a module takes by position."""
    parameters = inspect.signature(module.forward).parameters.values()
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


def _told(mask: Any) -> str:
    return f"one of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"


def _drops_layers(model: Any) -> bool:
    """Whether a model in training leaves layers out on purpose (LayerDrop)."""
    rates = [getattr(model.config, name, None) for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


@contextmanager
def watch_call(readers: Readers, layers: Iterable[int], *, positions: bool) -> Iterator[Call]:
    """What a plain model is called with, and whether the readers of these layers are called."""
    call = Call(
        {layer: readers.modules[layer] for layer in layers},
        positions=positions,
        drops_layers=_drops_layers(readers.around[0]),
    )
    with ExitStack() as leaving:
        for module in readers.around:
            leaving.callback(module.register_forward_pre_hook(call.before, with_kwargs=True).remove)
            leaving.callback(module.register_forward_hook(call.after, always_call=True).remove)
        for reader in call.readers.values():
            leaving.callback(reader.register_forward_pre_hook(call.reach).remove)
        yield call

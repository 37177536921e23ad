"""`prompts_for`: prompts of a task by its name, and tasks of one's own."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ablation_lens.circuits import closed_tasks, templates
from ablation_lens.circuits.examples import Draw, Example
from ablation_lens.circuits.prompt_file import Row
from ablation_lens.circuits.prompting import Prompts, at_least_1, of_rows
from ablation_lens.errors import MismatchError
from ablation_lens.hooked import task_of
from ablation_lens.names import require_known
from ablation_lens.tasks.inputs import told, whole
from ablation_lens.tasks.tasks import require_model

Maker = Callable[..., Prompts]
_Function = TypeVar("_Function", bound=Callable[..., Any])

_BUILT_IN: dict[str, Callable[..., Iterator[Example | None]]] = {
    "induction": closed_tasks.induction,
    "toy-ioi": closed_tasks.toy_ioi,
    "toy-greater-than": closed_tasks.toy_greater_than,
    "modular-addition": closed_tasks.modular_addition,
    "ioi": templates.ioi,
    "greater-than": templates.greater_than,
    "gendered-pronoun": templates.gendered_pronoun,
    "docstring": templates.docstring,
}
_OWN: dict[str, Maker] = {}

_PATIENCE = 1000
"""Draws in a row that give no new prompt, after which there are no more."""

_MOST = 2**20
"""Prompts that can be asked for."""


def prompts_for(name: str, model: Any, *, count: int = 64, seed: int = 0, **options: Any) -> Prompts:
    """Prompts of a task, drawn the same way on every machine; those of a smaller `count` come first.

    Args:
        name: one of `prompt_names()`: `induction` for any causal model; `toy-ioi`, `toy-greater-than` and
            `modular-addition`, on token ids of their own, for small models trained on them; `ioi`, `greater-than`,
            `gendered-pronoun` and `docstring` for models with a tokenizer.
        model: who will read them.
        count: how many, all different.
        seed: draws them.
        options: of the task: `induction` takes `length`, `ids` and `bos`; `toy-ioi` takes `names`; `toy-greater-than`
            `numbers` and `nouns`; `modular-addition` `modulus`; `ioi` `names`.

    >>> import ablation_lens as al
    >>> prompts_for("induction", al.load_model("tiny-opt"), count=8, length=12)
    Prompts(induction: 8 of 24 tokens, with wrong answers and corrupted twins)
    """
    require_known(name, prompt_names(), "task of prompts")
    require_model(model)
    count, seed = at_least_1(count, "count"), whole(seed, "seed")
    if count > _MOST:
        raise MismatchError(f"count={count:,} is not possible; ask for {_MOST:,} prompts or fewer.")
    if name in _BUILT_IN:
        return _drawn(name, model, count, seed, options)
    _require_options(name, _OWN[name], 3, options)
    made = _OWN[name](model, count, seed, **options)
    if not isinstance(made, Prompts):
        raise MismatchError(f"the task {name!r} gave {told(made)}; its function must return Prompts.")
    return made


def prompt_names() -> list[str]:
    """The tasks that `prompts_for` knows."""
    return [*_BUILT_IN, *_OWN]


def require_no_task(given: Any) -> None:
    """Raise where the name of a task was given as the prompts themselves."""
    if isinstance(given, str) and given in prompt_names():
        raise MismatchError(
            f"{given!r} is the name of a task, and prompts were expected; circuits.prompts_for({given!r}, model) makes "
            "its prompts."
        )


def register_prompts(name: str) -> Callable[[_Function], _Function]:
    """Make a function a task: `prompts_for` knows it by this name from then on.

    The function takes a model, how many prompts and a seed, then options by name, and returns `Prompts`.

    >>> @register_prompts("successor")
    ... def successor(model, count, seed, start=0):
    ...     return Prompts.of([[start + n] for n in range(count)], [start + n + 1 for n in range(count)])
    >>> import ablation_lens as al
    >>> prompts_for("successor", al.load_model("tiny-opt"), count=3, start=5).answers.tolist()
    [[6], [7], [8]]
    >>> unregister_prompts("successor")
    """
    if not isinstance(name, str) or not name.strip():
        raise MismatchError(f"the name of a task is {told(name)}; give a text: @register_prompts('name').")

    def add(function: _Function) -> _Function:
        if not callable(function):
            raise MismatchError(f"the task {name!r} is {told(function)}; it must be a function.")
        known = _BUILT_IN.get(name) or _OWN.get(name)
        # The same definition again is a notebook cell or a module run twice.
        if known and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise MismatchError(
                f"the task {name!r} exists already, as {known.__module__}.{known.__qualname__}; choose another name."
            )
        _OWN[name] = function
        return function

    return add


def unregister_prompts(name: str) -> None:
    """Forget a task of one's own again."""
    _OWN.pop(name, None)


def _require_options(name: str, make: Callable[..., Any], first: int, options: Mapping[str, Any]) -> None:
    """Refuse options that are none of the parameters after the first ones."""
    parameters = list(inspect.signature(make).parameters.values())
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    known = [each.name for each in parameters[first:]]
    for option in options:
        if not known:
            raise MismatchError(f"{name} takes no options, got {option!r}.")
        require_known(option, known, f"option of {name}")


def _drawn(name: str, model: Any, count: int, seed: int, options: Mapping[str, Any]) -> Prompts:
    """The first different examples of a task."""
    if task_of(model) != "causal-lm":
        raise MismatchError(
            f"{name} asks what comes next, and this model is for {task_of(model)}; take a causal language model "
            "(a masked one can be asked by prompts of your own: Prompts.of(…, model=model))."
        )
    _require_options(name, _BUILT_IN[name], 2, options)
    found: dict[tuple[int, ...], Example] = {}
    in_vain = 0
    for example in _BUILT_IN[name](model, Draw(name, seed), **options):
        if example is None or tuple(example.clean) in found:
            in_vain += 1
        else:
            found[tuple(example.clean)] = example
            in_vain = 0
        if len(found) == count or in_vain > _PATIENCE:
            break
    if len(found) < count:
        raise MismatchError(
            f"{len(found):,} different prompts of {name} were found for this model, and count={count:,} were asked "
            "for; ask for fewer."
        )
    examples = list(found.values())
    rows = [Row(each.clean, each.corrupted, each.answers, each.wrong, None) for each in examples]
    return of_rows(rows, model, name=name)

"""Centers that are learned from a model, by name: what `centers` are for statistics, and `learn`, which learns one."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ablation_lens.errors import MismatchError
from ablation_lens.measure.learned import Learned
from ablation_lens.measure.optimal_constants import optimal, require_possible
from ablation_lens.measure.sensitivity import require_share, sensitivity_mean
from ablation_lens.measure.sequential import sequential_mean
from ablation_lens.names import require_known
from ablation_lens.neurons.statistics import ActivationStatistics


@dataclass(frozen=True)
class Learner:
    """What people are told of a learned center, and what learns it.

    Attributes:
        name: how it is asked for.
        function: of `(model, batches, statistics, *, …)`.
        estimates: what it is, in a line.
        cost: what it takes, in words.
        by_share: whether it is learned for the share of neurons that is ablated.
        fixed: arguments that make it what it is.
        version: of its numbers: with the next one, a study measures them anew.
        check: refuses values of its parameters that are not possible, before there is a model.
    """

    name: str
    function: Callable[..., Learned]
    estimates: str
    cost: str
    by_share: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    check: Callable[..., None] = lambda **parameters: None

    @property
    def keeps(self) -> bool:
        """Whether it keeps its state in a file, from which it is gone on with."""
        return "keep" in inspect.signature(self.function).parameters

    @property
    def parameters(self) -> tuple[str, ...]:
        """What its label may set: numbers that have a default."""
        taken = inspect.signature(self.function).parameters.values()
        return tuple(each.name for each in taken if each.kind is each.KEYWORD_ONLY and each.name not in _NOT_TOLD)


_NOT_TOLD = ("statistics", "site", "keep", "progress", "objective", "start", "unit")
"""Arguments that are no part of a method's label."""

_LEARNERS = {
    each.name: each
    for each in (
        Learner(
            "optimal",
            optimal,
            "The constants that cost least cross-entropy when neurons are ablated at random, found by gradient descent",
            "some hundred forward and backward passes over a few documents",
            by_share=True,
            check=require_possible,
        ),
        Learner(
            "optimal-kl",
            optimal,
            "The constants under which a model says what it says unablated, as far as they can: by KL divergence",
            "as optimal, and another forward pass each",
            by_share=True,
            fixed={"objective": "kl"},
            check=require_possible,
        ),
        Learner(
            "sensitivity-mean",
            sensitivity_mean,
            "The mean of a neuron, its values weighted by how much they matter to what the model says",
            "one forward and one backward pass, and statistics",
            check=require_share,
        ),
        Learner(
            "sequential-mean",
            sequential_mean,
            "The mean layer by layer, where all layers below are set to theirs already",
            "a forward pass per layer, up to that layer, and statistics",
        ),
    )
}


def names() -> tuple[str, ...]:
    """All learned centers.

    >>> "optimal" in names()
    True
    """
    return tuple(_LEARNERS)


def about(name: str) -> Learner:
    """A learned center: what it is, and what it costs.

    >>> about("optimal").by_share
    True
    """
    require_known(name, _LEARNERS, "learned center")
    return _LEARNERS[name]


def require_parameters(name: str, parameters: Mapping[str, Any]) -> Learner:
    """The learned center of that name; `MismatchError` when there is none, or when it does not take these parameters.

    >>> require_parameters("optimal", {"step": 3})
    Traceback (most recent call last):
    ablation_lens.errors.MismatchError: there is no parameter of optimal 'step'; did you mean 'steps'? Known: share, \
steps, rows, rate, seed.
    """
    learner = about(name)
    for parameter in parameters:
        require_known(parameter, learner.parameters, f"parameter of {name}")
    return learner


def learn(
    model: Any,
    batches: Any,
    method: str = "optimal",
    statistics: ActivationStatistics | None = None,
    **options: Any,
) -> Learned:
    """Learn what to set ablated neurons to, from documents on which nothing is judged afterwards.

    Args:
        model: any hooked model.
        batches: what is learned from, as `collect` takes it: of the collect split.
        method: a name out of `learners.names()`.
        statistics: of the same site; None collects them from the batches.
        options: of the method, such as `share=0.9` or `steps=100`.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-opt")
    >>> batches = al.task_for(model).batches(split="collect", tokens=1000)
    >>> learned = learn(model, batches, "optimal", share=0.9, steps=2, progress=False)
    >>> learned.ablation("L0")
    Ablation(128 of 512 neurons in 1 layer → optimal)
    """
    learner = about(method)
    if both := sorted(set(options) & set(learner.fixed)):
        raise MismatchError(f"{method} has its own {both[0]}; leave {both[0]}= out, or choose another method.")
    function, options = learner.function, {**options, **learner.fixed}
    try:
        inspect.signature(function).bind(model, batches, statistics, **options)
    except TypeError as error:
        taken = [each for each in inspect.signature(function).parameters if each not in ("model", "batches")]
        raise MismatchError(f"{method} was given {', '.join(options)}: {error}. It takes {', '.join(taken)}.") from None
    return function(model, batches, statistics, **options)

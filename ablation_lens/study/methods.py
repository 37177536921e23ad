"""The ways of ablating that a study compares: every center, learned ones, and resampling from a random input.

A new center is a method as soon as it is registered; a method that is none of these needs its own branch in
`model_run.py`, where values are made.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.measure import learners, resampling
from ablation_lens.names import require_known
from ablation_lens.neurons import centers
from ablation_lens.neurons.statistics import ActivationStatistics

BASELINE = "none"
"""The method of the cell in which nothing is ablated."""


def split_label(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of a method that is written `peak bins=64`, whether or not there is such a one.

    >>> split_label("peak bins=64")
    ('peak', {'bins': 64})
    """
    name, *rest = text.split() or [""]
    parameters: dict[str, Any] = {}
    for part in rest:
        key, sign, value = part.partition("=")
        if key in parameters:
            raise MismatchError(f"{text!r} gives {key} twice; give it once.")
        try:
            # 64 must stay an int, as 64.0 has another label, and so other keys.
            parameters[key] = int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            sign = ""
        if not sign or not key:
            raise MismatchError(f"{part!r} in {text!r} is not a parameter; write for example 'peak bins=64'.")
    return name, parameters


@dataclass(frozen=True)
class Method:
    """A method and its parameters; written `peak`, or `peak bins=64`.

    >>> Method.parse("peak bins=64")
    Method(name='peak', parameters={'bins': 64})
    >>> Method.parse("resample-tokens").draws
    True
    """

    name: str
    # A dict has no hash. Without it, equal methods still hash alike, by their names.
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.name == BASELINE:
            raise MismatchError(f"{BASELINE!r} is what the baseline is called, and no method; rename the center.")
        if self.draws:
            if self.parameters:
                raise MismatchError(f"{self.name} takes no parameters, got {', '.join(self.parameters)}.")
            return
        if self.learns:
            learners.require_parameters(self.name, self.parameters)
            return
        if self.name not in centers.names():
            # This always raises: it names the nearest of all methods, those of resampling included.
            try:
                require_known(self.name, names(), "method")
            except MismatchError as error:
                raise MismatchError(
                    f"{str(error).removesuffix('.')}; a center of your own must be registered first: on the command "
                    'line, python -c "import mine, ablation_lens.__main__" study … imports your mine.py.'
                ) from None
        centers.require_parameters(self.name, self.parameters)

    def require_possible(self, bins: int) -> None:
        """Refuse parameters that no statistics of so many bins have an answer for, by trying them on a neuron.

        >>> Method.parse("peak bins=1").require_possible(256)
        Traceback (most recent call last):
        ablation_lens.errors.MismatchError: peak bins=1: bins=1; expected a whole number from 2 to 256, the bins that \
were collected. Collect with more to see finer.
        """
        if self.draws:
            return
        if self.learns:
            try:
                learners.about(self.name).check(**self.parameters)
            except MismatchError as error:
                raise MismatchError(f"{self.label}: {error}") from error
            return
        values = torch.linspace(-1e4, 1e4, 99).view(-1, 1, 1, 1)
        # Two passes, or the trimmed peak would have no histogram to be tried on.
        neuron = ActivationStatistics.of_values(values, bins=bins, passes=2)
        try:
            centers.center(self.name, neuron, **self.parameters)
        except NonFiniteError as error:
            raise MismatchError(f"{self.label}: {error}") from error
        except Exception as error:
            # Without parameters nothing that was typed is wrong, and a center of the user's own may need real neurons.
            if not self.parameters and not centers.is_ours(self.name):
                warnings.warn(
                    f"{self.label}: this center raised an error on one made-up neuron; if it does so on the "
                    f"model's, too, its cells fail ({type(error).__name__}: {error})",
                    stacklevel=2,
                )
                return
            if isinstance(error, MismatchError):
                raise MismatchError(f"{self.label}: {error}") from error
            raise MismatchError(
                f"{self.label}: on a neuron of 99 values this center raised {type(error).__name__}: {error}. Mend it, "
                "or leave its parameters out."
            ) from error

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Read what `label` writes."""
        return cls(*split_label(text))

    @property
    def label(self) -> str:
        """How people and tables write it."""
        # Part of every key: sorted, so that the order of parameters does not matter; repr reads back exactly.
        return " ".join([self.name, *(f"{key}={value!r}" for key, value in sorted(self.parameters.items()))])

    @property
    def draws(self) -> bool:
        """Whether its values are drawn: they then differ between seeds, also when everything is ablated."""
        return self.name in resampling.METHODS

    @property
    def learns(self) -> bool:
        """Whether its values are learned from the model."""
        return self.name in learners.names()

    def share_at(self, fraction: float) -> float | None:
        """The share of neurons that values are learned for where so many are ablated; None for all shares alike.

        >>> Method.parse("optimal").share_at(0.9), Method.parse("optimal share=0.5").share_at(0.9)
        (0.9, 0.5)
        """
        if not (self.learns and learners.about(self.name).by_share):
            return None
        return float(self.parameters.get("share", fraction))

    @property
    def passes(self) -> int:
        """Passes over the corpus that its statistics need."""
        return 1 if self.draws or self.learns else max(1, centers.about(self.name).passes)

    def suits(self, task: str) -> bool:
        """Whether it can be applied to a model of this task (`causal-lm`, …)."""
        return not self.draws or (self.name == "resample-pixels") == (task == "image-classification")


def names() -> tuple[str, ...]:
    """All methods.

    >>> names()[:2], names()[-1]
    (('zero', 'mean'), 'resample-pixels')
    """
    return (*centers.names(), *learners.names(), *resampling.METHODS)

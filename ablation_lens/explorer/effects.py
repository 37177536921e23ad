"""What neurons are worth: effects of circuits, as numbers per neuron of these statistics."""

import torch
from jaxtyping import Float64
from torch import Tensor

from ablation_lens.circuits.effects import Effects
from ablation_lens.circuits.units import axes_of
from ablation_lens.errors import MismatchError
from ablation_lens.neurons.statistics import ActivationStatistics


def worth(effects: Effects, statistics: ActivationStatistics) -> dict[str, Float64[Tensor, "layer head dim"]]:
    """A name of a column → its numbers: the effect on the metric, and its share of what ablating everything changes.

    What was measured of heads or layers is every neuron's of them, and the name says so.
    """
    require_fits(effects, statistics)
    of = "" if effects.level == "neuron" else f"{effects.level}_"
    site = statistics.site
    return {
        f"{of}effect": _spread(effects[site], statistics.shape, effects.level),
        f"{of}effect_share": _spread(effects.share(site), statistics.shape, effects.level),
    }


def require_fits(effects: Effects, statistics: ActivationStatistics) -> None:
    """Raise unless these are effects of these neurons."""
    if not isinstance(effects, Effects):
        raise MismatchError(f"effects are a {type(effects).__name__}; give what knock-outs or attributions gave.")
    site, model = statistics.site, statistics.provenance.model
    if site not in effects.sites:
        listed = ", ".join(each.value for each in effects.sites)
        raise MismatchError(
            f"these effects are of {listed}, and the statistics of {site.value}; give both of one site."
        )
    if effects.source is not None:
        effects.source.require_same(model, "these effects are another model's")
    expected = statistics.shape[: axes_of(effects.level)]
    if tuple(effects[site].shape) != expected:
        raise MismatchError(
            f"these effects are of {tuple(effects[site].shape)} {effects.level}s, and the model has {expected}; give "
            "effects of the model that the statistics are of."
        )


def describe_effects(effects: Effects) -> str:
    """In a line: how they were found, of what, and what ablating everything changes."""
    steps = f", {effects.steps} steps" if effects.steps else ""
    where = effects.where
    return (
        f"{effects.method}{steps} of {effects.level}s{where}, set to {effects.values}: {effects.metric} "
        f"{effects.unablated:.4g}, and {effects.unablated + effects.total:.4g} with everything ablated"
    )


def _spread(
    values: Float64[Tensor, "*unit"], shape: tuple[int, int, int], level: str
) -> Float64[Tensor, "layer head dim"]:
    """Every unit's value for all neurons in it."""
    missing = (None,) * (3 - axes_of(level))
    return torch.as_tensor(values).double()[(..., *missing)].expand(shape)

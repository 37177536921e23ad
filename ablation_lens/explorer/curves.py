"""The curve under a neuron's histogram: what the model loses with the neuron set to a constant, where measured."""

import math
from typing import Any

from ablation_lens.errors import MismatchError
from ablation_lens.experiments.constants import LossCurves
from ablation_lens.neurons.statistics import ActivationStatistics
from ablation_lens.sites import neuron_name, parse_neuron


def require_same_neurons(curves: LossCurves, statistics: ActivationStatistics) -> None:
    """Raise unless these are curves of these neurons."""
    if not isinstance(curves, LossCurves):
        raise MismatchError(f"curves are a {type(curves).__name__}; give what loss_curves gave.")
    if curves.site is not statistics.site:
        raise MismatchError(
            f"these curves are of {curves.site.value}, and the statistics of {statistics.site.value}; give both of one "
            "site."
        )
    curves.source.require_same(statistics.provenance.model, "these curves are another model's")


def describe_curves(curves: LossCurves, statistics: ActivationStatistics) -> dict[str, dict[str, Any]]:
    """Plain JSON values, by the neuron's name: the curve over values, its minimum, and the centers on it."""
    require_same_neurons(curves, statistics)
    found = {}
    for fit in curves.neurons.to_dict("records"):
        name = neuron_name(*parse_neuron(fit["name"], statistics.shape, statistics.site), statistics.site)
        points = curves.frame[curves.frame["name"] == fit["name"]]
        grid, marks = points[points["point"] == "grid"], points[points["point"] != "grid"]
        column = {name: [_plain(number) for number in grid[name]] for name in ("value", "difference", "low", "high")}
        found[name] = {
            **column,
            "minimum": _plain(fit["minimum_value"]),
            "minimum_sigma": _plain(fit["minimum"]),
            "floor": _plain(fit["floor"]),
            "edge": bool(fit["at_edge"]),
            "resolved": bool(fit["resolved"]),
            "centers": [
                [str(mark["point"]), _plain(mark["value"]), _plain(mark["difference"])]
                for mark in marks.to_dict("records")
            ],
        }
    return found


def tell_curves(curves: LossCurves) -> str:
    """In a line: what was measured, of what and on what."""
    count = len(curves.neurons)
    return (
        f"{curves.metric} of {count} neuron{'' if count == 1 else 's'} set to {len(curves.sigmas)} constants each, on "
        f"{curves.judged_on}; without, {curves.unablated:.4g}"
    )


def _plain(number: float) -> float | None:
    """Six digits; None where there is no number, which JSON does not know."""
    return float(f"{number:.6g}") if math.isfinite(number) else None

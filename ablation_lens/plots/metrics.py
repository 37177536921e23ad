"""What a study measured, and how each metric is written in figures and reports."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas

from ablation_lens.escaping import for_plotly
from ablation_lens.names import choose
from ablation_lens.study.results import METRICS, Results


@dataclass(frozen=True)
class ShownMetric:
    """A column of results: its name for people, and the unit that it is shown in. All but `column` is safe text."""

    column: str
    name: str
    unit: str = ""
    scale: float = 1.0

    @property
    def title(self) -> str:
        """The title of an axis."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def suffix(self) -> str:
        """What stands after a number."""
        return f" {self.unit}" if self.unit else ""

    def chance(self, outputs: int | None) -> float | None:
        """What a model gets that finds every output equally likely, in the unit shown; None where nobody knows.

        >>> [shown_metric(column).chance(1) for column in ("cross_entropy", "top1", "top10", "mine")]
        [0.0, 100.0, 100.0, None]
        """
        if outputs is None:
            return None
        known = {"top1": 100 / outputs, "top10": min(100.0, 1000 / outputs), "cross_entropy": math.log(outputs)}
        return known.get(self.column)


_KNOWN = {
    "top1": ShownMetric("top1", "top-1", "%", 100.0),
    "top10": ShownMetric("top10", "top-10", "%", 100.0),
    "cross_entropy": ShownMetric("cross_entropy", "cross-entropy", "nats"),
    "kl": ShownMetric("kl", "KL divergence", "nats"),
    "logit_difference": ShownMetric("logit_difference", "logit difference"),
    "probability_difference": ShownMetric("probability_difference", "probability difference"),
}


def shown_metric(column: str) -> ShownMetric:
    """How a metric is written; one of the user's own goes by the name it was given.

    >>> shown_metric("top1").title, shown_metric("my <metric>").title
    ('top-1 (%)', 'my &lt;metric&gt;')
    """
    return _KNOWN.get(column) or ShownMetric(column, for_plotly(column, 32))


def shown_metrics(results: Results | pandas.DataFrame, wanted: Sequence[str] | None = None) -> tuple[ShownMetric, ...]:
    """The metrics that results hold, or the wanted ones of them; in a frame, what has its baseline beside it.

    >>> import pandas
    >>> [metric.column for metric in shown_metrics(pandas.DataFrame(columns=["top1", "mine", "baseline_mine", "seed"]))]
    ['top1', 'cross_entropy', 'mine']
    """
    if isinstance(results, Results):
        names = results.metrics
    else:
        own = [str(column) for column in results.columns if f"baseline_{column}" in results.columns]
        names = (*METRICS, *(column for column in own if column not in METRICS))
    if wanted is not None:
        names = tuple(choose(name, {known: known for known in names}, "metric") for name in wanted)
    return tuple(map(shown_metric, names))

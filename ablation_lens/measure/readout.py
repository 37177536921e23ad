"""A metric, row by row, of what a model puts out: also with gradients, and from a final residual that was made apart.

`evaluate` is for whole corpora and keeps no gradient; circuits ask for one batch again and again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.measure.forward import (
    as_given,
    ends_plainly,
    final_residual,
    is_encoder,
    logits_everywhere,
    logits_from,
)
from ablation_lens.measure.metrics import Asked, Metric, rows_of
from ablation_lens.measure.score import Sums
from ablation_lens.sites import Hook
from ablation_lens.tasks.plans import Batch

_LOGITS = 2**25
"""How many logits are made at once of a residual of many copies."""


class Readout:
    """One metric of one batch.

    Attributes:
        given: the batch as it was given, which functions of one's own see.
        batch: the same as the model sees it, with every text at the start of its row.

    >>> from ablation_lens import load_model, metrics
    >>> batch = Batch.prompts(torch.tensor([[2, 7, 9], [2, 5, 8]]), answers=[4, 6])
    >>> readout = Readout(load_model("tiny-opt"), batch, metrics.cross_entropy)
    >>> readout.under([]).weights.tolist()
    [1.0, 1.0]
    """

    def __init__(self, model: Any, given: Batch, metric: Metric) -> None:
        self.model, self.metric = model, metric
        self.given, self.batch = given, given.from_start()
        self.asked = Asked.of(self.batch)
        self.plainly = ends_plainly(model, self.batch)
        self.clean: Tensor | None = None
        self._weights: Tensor | None = None
        if metric.clean:
            with torch.no_grad():
                self.clean = self._clean()

    @property
    def reads_residuals(self) -> bool:
        """Whether the final residual says all: a model that goes on in some other way is run whole."""
        return self.plainly or is_encoder(self.model)

    def under(self, hooks: Sequence[Hook]) -> Sums:
        """The metric with hooks in place: every row's values times weights, and the weights."""
        if self.reads_residuals:
            return self.of_residual(final_residual(self.model, self.batch, hooks))
        return self._of_logits(logits_everywhere(self.model, self.batch, hooks))

    def of_residual(self, residual: Float[Tensor, "rows pos d_model"]) -> Sums:
        """The same of a final residual, which may hold the batch's rows several times, one copy after another."""
        rows = len(self.batch.inputs)
        copies = residual.unflatten(0, (-1, rows))
        if not self.plainly or self.metric.whole:
            # A function of one's own may know this batch's rows, so that it sees one copy at a time.
            return _together([self._of_logits(self._logits(copy)) for copy in copies])
        scored = max(1, int(self.batch.scored.sum()))
        at_once = max(1, _LOGITS // (scored * int(self.model.cfg.d_vocab_out)))
        made = []
        for some in copies.split(at_once):
            hidden = some[:, self.batch.scored]
            values = self._per_prediction(logits_from(self.model, hidden.flatten(0, 1)), len(some))
            made += [self._added_up(each) for each in values.unflatten(0, (len(some), -1))]
        return _together(made)

    def _clean(self) -> Tensor:
        """By the very way that the ablated ones are made: other roundings would not be a divergence of 0."""
        if not self.reads_residuals:
            logits = logits_everywhere(self.model, self.batch)
            return as_given(logits, self.given) if self.metric.whole else logits[self.batch.scored]
        residual = final_residual(self.model, self.batch)
        if self.metric.whole:
            return as_given(self._logits(residual), self.given)
        if not self.plainly:
            return self._logits(residual)[self.batch.scored]
        return logits_from(self.model, residual[self.batch.scored])

    def _logits(self, residual: Float[Tensor, "batch pos d_model"]) -> Tensor:
        if not self.plainly:
            logits: Tensor = self.model.head(residual)
        else:
            logits = logits_from(self.model, residual.flatten(0, 1)).unflatten(0, residual.shape[:2])
        return logits

    def _of_logits(self, logits: Float[Tensor, "batch *pos out"]) -> Sums:
        if not self.metric.whole:
            return self._added_up(self._per_prediction(logits[self.batch.scored], 1))
        values, weights = rows_of(self.metric, as_given(logits, self.given), self.given, self.clean)
        self._require_finite(values)
        weights = weights.to(values.device).double()
        self._require_same_weights(weights.detach())
        return Sums(values.double() * weights, weights)

    def _require_same_weights(self, weights: Float[Tensor, " row"]) -> None:
        if self._weights is None:
            self._weights = weights
        if not torch.equal(self._weights, weights):
            raise MismatchError(
                f"the weights of {self.metric.name} depend on what the model says, and runs are compared row by row; "
                "give weights that depend on the batch alone, or put them into the value."
            )

    def _per_prediction(self, logits: Float[Tensor, "predictions out"], copies: int) -> Float[Tensor, " predictions"]:
        clean = None if self.clean is None else self.clean.repeat(copies, 1)
        values = self.metric.per_prediction(self.asked.repeated(copies).answered(logits, clean)).double()
        self._require_finite(values)
        return values

    def _added_up(self, values: Float[Tensor, " prediction"]) -> Sums:
        rows = len(self.batch.inputs)
        return Sums(self.asked.per_row(values, rows), self.asked.weights(rows).double())

    def _require_finite(self, values: Tensor) -> None:
        if not bool(torch.isfinite(values.detach()).all()):
            raise NonFiniteError(
                f"the metric {self.metric.name} of some prediction is not finite; the values or the model's dtype "
                "overflow. Try bfloat16 or float32."
            )


def _together(parts: list[Sums]) -> Sums:
    return Sums(torch.cat([part.values for part in parts]), torch.cat([part.weights for part in parts]))

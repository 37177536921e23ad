"""Sums at every position, from which the mean there follows: mergeable, in float64."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.neurons.rows import Rows, own_memory


class Positions:
    """The mean of every neuron at every position that was seen, on the CPU unless asked otherwise.

    >>> positions = Positions((1, 1, 1))
    >>> values, valid = torch.tensor([[1.0, 5.0], [3.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    >>> positions.add(0, Rows(values[..., None, None], valid))
    >>> positions.mean.flatten().tolist(), positions.counts.tolist()
    ([2.0, 5.0], [2, 1])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        sums: Float[Tensor, "layer pos head dim"] | None = None,
        counts: Int64[Tensor, " pos"] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        layers, heads, dims = shape
        with own_memory():
            self.sums = torch.zeros(layers, 0, heads, dims, dtype=torch.float64) if sums is None else sums.clone()
            self.counts = torch.zeros(0, dtype=torch.int64) if counts is None else counts.clone()
            self.sums, self.counts = self.sums.to(device), self.counts.to(device)
        if self.sums.shape != (layers, len(self.counts), heads, dims):
            raise MismatchError(
                f"sums of shape {tuple(self.sums.shape)} and {len(self.counts)} counts do not fit {shape} "
                "(layer, head, dim)."
            )

    def add(self, layer: int, rows: Rows) -> None:
        """Add one layer's values; every layer must be shown the same positions."""
        self.add_values(layer, rows.values, rows.valid)

    def add_values(
        self, layer: int, values: Float[Tensor, "batch pos head dim"], valid: Bool[Tensor, "batch pos"] | None
    ) -> None:
        """Add one layer's values as the model leaves them; no device is waited for, unless the sums are elsewhere."""
        if values.ndim != 4:
            raise MismatchError(f"values have shape {tuple(values.shape)}; expected [batch pos head dim].")
        values = values.detach().double()
        with own_memory():
            if valid is None:
                sums, counts = values.sum(0), torch.full(values.shape[1:2], len(values), device=values.device)
            else:
                # Filled, not multiplied by 0: what lies at padding may be NaN.
                sums = values.masked_fill(~valid[:, :, None, None], 0.0).sum(0)
                counts = valid.sum(0)
            self._make_room(len(counts))
            self.sums[layer, : len(counts)] += sums.to(self.sums.device)
            if layer == 0:  # the same for all layers
                self.counts[: len(counts)] += counts.to(self.counts.device)

    def _make_room(self, length: int) -> None:
        missing = length - len(self.counts)
        if missing > 0:
            # F.pad counts axes from the last one: dim, head, then positions, which grow at their end.
            self.sums, self.counts = F.pad(self.sums, (0, 0, 0, 0, 0, missing)), F.pad(self.counts, (0, missing))

    def merge(self, other: "Positions") -> "Positions":
        """New sums that have seen both; the arguments stay as they are, and the longer one's positions are kept."""
        merged = self.to(self.sums.device)
        with own_memory():
            merged._make_room(len(other.counts))
            merged.sums[:, : len(other.counts)] += other.sums.to(merged.sums.device)
            merged.counts[: len(other.counts)] += other.counts.to(merged.counts.device)
        return merged

    def to(self, device: torch.device | str) -> "Positions":
        """An independent copy on `device`.

        >>> Positions((1, 2, 3)).to("cpu").counts.tolist()
        []
        """
        layers, _, heads, dims = self.sums.shape
        return Positions((layers, heads, dims), self.sums, self.counts, device=device)

    @property
    def mean(self) -> Float[Tensor, "layer pos head dim"]:
        """Mean value at every position; NaN where nothing was seen."""
        return self.sums / self.counts.double()[None, :, None, None]

"""`transfer_study`: how much of what a text will say next one token carries (Pochinkov, Benoit, Agarwal et al., 2024).

The donor is a text up to a blank line, the recipient a blank line alone. What attention and MLPs hold at the donor's
last token is put at the recipient's, and the true next paragraph is read after it. Beside it: the whole text; the blank
line alone (neutral); and another text's token (wrong donor), without which anything that says "a paragraph follows"
would count as a plan.

Cross-entropy is teacher-forced: at token j the model has seen the j − 1 true tokens before it, under every condition.
So a prompt of a blank line and k true tokens ("cheat-k") is the neutral one from token k + 1 on, and is not measured
again: what a transfer is worth is read off the neutral curve. Of what models write by themselves cheat-k is a condition
of its own: how plausible such a text is, is the cross-entropy of the model as it is after the whole donor.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy import ndarray
from torch import Tensor

from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.escaping import on_one_line
from ablation_lens.experiments.grabbing import SITES, Grabbed, chosen_layers, chosen_sites, grab, require_causal
from ablation_lens.experiments.paragraphs import LEFT_OUT, Pairs, pairs_of, told_left_out
from ablation_lens.experiments.scores import Pieces
from ablation_lens.files import load_tensors, save_tensors
from ablation_lens.hooked import tokenizer_of
from ablation_lens.measure.forward import ReachedTheEnd, scored_logits, within_memory
from ablation_lens.measure.intervals import bootstrap_means
from ablation_lens.names import require_known
from ablation_lens.progress import progress_over
from ablation_lens.records import ModelRecord, Record, Versions, record_of
from ablation_lens.sites import POSITION_EMBEDDING, Hook, Site
from ablation_lens.tasks.batch_sizes import USUAL_POSITIONS
from ablation_lens.tasks.inputs import told, whole
from ablation_lens.tasks.plans import Batch, cut_batches

if TYPE_CHECKING:
    import pandas

KIND = "transfer"
"""What these files call themselves."""

FULL, TRANSFERRED, WRONG, NEUTRAL = "full context", "transferred", "wrong donor", "neutral"
BASE = (FULL, TRANSFERRED, WRONG, NEUTRAL)
SCRUBS = ("layers", "sites")
WINDOW = 10
"""Tokens over which it is compared what a transfer and true tokens are worth."""
NEGATIVE, HIGHEST = 1e-3, 1e39
"""What rounding makes of a certain token, and more than logits of single precision can say."""
SHOWN_AT_ONCE = 500
"""Resamples of a curve's band, token by token."""


class PositionsWarning(UserWarning):
    """A model adds learned positions to what is transferred."""


@dataclass(frozen=True)
class Condition(Record):
    """What the true paragraph is read after.

    Attributes:
        name: such as "neutral", or "only L3".
        kind: "base"; "only", where one unit is transferred; or "all but", where one is not.
        unit: that layer or site.
    """

    name: str
    kind: str = "base"
    unit: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "base" and self.name not in BASE:
            raise ValueError(f"there is no condition {self.name!r:.60}")
        if self.kind not in ("base", "only", "all but") or (self.kind == "base") != (self.unit is None):
            raise ValueError(f"its kind is {self.kind!r:.60} and its unit {self.unit!r:.60}")
        if self.unit is not None and self.name != f"{self.kind} {self.unit}":
            raise ValueError(f"{self.kind} {self.unit!r:.60} is called {self.name!r:.60}")


@dataclass(frozen=True)
class Sample(Record):
    """What was written after one text.

    Attributes:
        id: the document's.
        before: the first paragraph.
        true: how it really goes on.
        written: how it was gone on with, in the order of `Transfer.writers`.
    """

    id: str
    before: str
    true: str
    written: tuple[str, ...]


@dataclass(frozen=True)
class TransferHeader(Record):
    """What a file says of a transfer beside its tensors."""

    source: ModelRecord
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    positions: str | None
    judged_on: str
    left_out: tuple[tuple[str, int], ...]
    conditions: tuple[Condition, ...]
    cheats: tuple[int, ...]
    writers: tuple[str, ...]
    samples: tuple[Sample, ...]
    temperature: float
    seed: int
    embedded: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [condition.name for condition in self.conditions]
        if tuple(names[: len(BASE)]) != BASE or len(set(names)) < len(names):
            raise ValueError("its conditions are not those of a transfer")
        if any(cheat < 1 for cheat in self.cheats):
            raise ValueError(f"it gives {min(self.cheats)} true tokens")
        # All of these are shown as they are.
        units = {f"L{layer}" for layer in self.layers} | set(self.sites)
        if not set(self.sites) <= {site.value for site in Site} or len(set(self.sites)) < len(self.sites):
            raise ValueError("its sites are not those of a model")
        if any(condition.unit not in units for condition in self.conditions[len(BASE) :]):
            raise ValueError("it scrubs what was not transferred")
        if self.positions not in (None, "donor"):
            raise ValueError(f"its positions are {self.positions!r:.60}")
        if self.writers not in ((), (*BASE, *(f"cheat-{cheat}" for cheat in self.cheats))):
            raise ValueError("what was written was not written under its conditions")
        if any(why not in LEFT_OUT or count < 1 for why, count in self.left_out):
            raise ValueError("its documents were left out for another reason than there is")
        if any(len(sample.written) != len(self.writers) for sample in self.samples):
            raise ValueError("a sample lacks what was written under a condition")


@dataclass(frozen=True, eq=False, repr=False)
class Transfer:
    """Cross-entropy of true next paragraphs, and texts that were written; made by `transfer_study`.

    Attributes:
        source: the model.
        sites: where values were taken from and put.
        layers: in which layers.
        positions: "donor" where recipients were read at the donor's positions.
        judged_on: the documents, in words.
        left_out: how many of them were left out, by why.
        conditions: after what the paragraphs were read; the first four are always there.
        losses: cross-entropy of every token; 0 after a paragraph's end.
        lengths: tokens of every paragraph.
        cheats: how many true tokens were given to what was then written.
        writers: the conditions under which was written.
        samples: what was written.
        plausibility: cross-entropy of every written token, by the model as it is after the whole donor.
        counts: how many tokens each wrote.
        distances: cosine distance of what was written to the true paragraph, in the embedding that was given.
        temperature: of the samples; 0 takes the likeliest token.
        seed: of the samples.
    """

    source: ModelRecord
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    positions: str | None
    judged_on: str
    left_out: tuple[tuple[str, int], ...]
    conditions: tuple[Condition, ...]
    losses: Float64[Tensor, "condition pair token"]
    lengths: Int[Tensor, " pair"]
    cheats: tuple[int, ...]
    writers: tuple[str, ...]
    samples: tuple[Sample, ...]
    plausibility: Float64[Tensor, "writer sample token"]
    counts: Int[Tensor, "writer sample"]
    distances: Float64[Tensor, "writer sample"] | None
    temperature: float
    seed: int

    # ------------------------------------------------------------------ cross-entropy

    @cached_property
    def _there(self) -> Float[ndarray, "pair token"]:
        """1 for every token that a paragraph has."""
        return (torch.arange(self.losses.shape[2]) < self.lengths[:, None]).double().numpy()

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """A row per condition and token: its cross-entropy, and `gain`, how much lower than the neutral one it is.

        Tokens count from 1. Intervals are 95 %, over documents; NaN where a single one is that long.
        """
        import pandas

        losses, rows = self.losses.numpy(), []
        for token in range(losses.shape[2]):
            there = self._there[:, token]
            if not there.any():
                break
            means = losses[:, :, token].sum(1) / there.sum()
            weights = np.broadcast_to(there, losses.shape[:2])
            drawn = bootstrap_means(losses[:, :, token], weights, resamples=SHOWN_AT_ONCE)
            neutral = BASE.index(NEUTRAL)
            (low, high), (gain_low, gain_high) = _ends(drawn), _ends(drawn[neutral] - drawn)
            for place, condition in enumerate(self.conditions):
                rows.append(
                    {
                        "condition": condition.name,
                        "kind": condition.kind,
                        "unit": condition.unit,
                        "token": token + 1,
                        "cross_entropy": means[place],
                        "low": low[place],
                        "high": high[place],
                        "gain": means[neutral] - means[place],
                        "gain_low": gain_low[place],
                        "gain_high": gain_high[place],
                        "documents": int(there.sum()),
                    }
                )
        return pandas.DataFrame(rows).sort_values("condition", key=self._order, kind="stable", ignore_index=True)

    def _order(self, names: Any) -> Any:
        order = {condition.name: place for place, condition in enumerate(self.conditions)}
        return names.map(order)

    @cached_property
    def shares(self) -> "pandas.DataFrame":
        """A row per condition, over tokens 2 and later: the first is predicted at the very token that was changed.

        `gain` is how much lower its cross-entropy is than the neutral one, `gain_wrong` than the wrong donor's. `share`
        and `share_wrong` are these of what the full context gains; NaN where that cannot be told from nothing.
        Intervals are 95 %, over documents, of which every condition read the same.
        """
        import pandas

        there = self._there.copy()
        there[:, 0] = 0
        sums, weights = (self.losses.numpy() * there).sum(2), there.sum(1)
        means = sums.sum(1) / weights.sum()
        drawn = bootstrap_means(sums, np.broadcast_to(weights, sums.shape))
        rows = []
        for place, condition in enumerate(self.conditions):
            row: dict[str, Any] = {"condition": condition.name, "kind": condition.kind, "unit": condition.unit}
            row |= {"cross_entropy": means[place], **_interval("", drawn[place])}
            for end, base in (("", NEUTRAL), ("_wrong", WRONG)):
                at = BASE.index(base)
                gain, gains = means[at] - means[place], drawn[at] - drawn[place]
                whole_gain, whole_gains = means[at] - means[0], drawn[at] - drawn[0]
                clear = whole_gains.size > 0 and float(np.quantile(whole_gains, 0.025)) > 0
                share, shares = (
                    (gain / whole_gain, gains / whole_gains) if clear else (math.nan, np.full(gains.shape, math.nan))
                )
                row |= {f"gain{end}": gain, **_interval(f"gain{end}_", gains)}
                row |= {f"share{end}": share, **_interval(f"share{end}_", shares)}
            rows.append(row)
        return pandas.DataFrame(rows)

    @cached_property
    def gaps(self) -> "pandas.DataFrame":
        """How much the full context is ahead, over the ten tokens that follow so many true ones.

        A row per number of true tokens after the neutral prompt, `after`; and one of the transfer after the first. The
        same tokens are compared with the full context, as later ones may be easier by themselves. A row is there where
        at least half of the documents are as long.
        """
        import pandas

        sums, weights, after = self._gaps
        means, drawn = sums.sum(1) / weights.sum(1), bootstrap_means(sums, weights)
        rows = []
        for place, mean in enumerate(means):
            condition = TRANSFERRED if place == 0 else NEUTRAL
            rows.append({"condition": condition, "after": after[place], "gap": mean, **_interval("", drawn[place])})
        return pandas.DataFrame(rows)

    @property
    def _gaps(self) -> tuple[Float[ndarray, "row pair"], Float[ndarray, "row pair"], list[int]]:
        """Sums and counts of the transfer's gap and of neutral gaps."""
        full, moved, neutral = (self.losses[BASE.index(name)].numpy() for name in (FULL, TRANSFERRED, NEUTRAL))
        enough = int((self._there.sum(0) >= max(1, len(self.lengths) / 2)).sum())
        starts = range(1, max(2, enough - WINDOW + 1))
        windows = [slice(start, start + WINDOW) for start in (1, *starts)]
        gaps = [moved - full, *[neutral - full] * len(starts)]
        sums = np.stack([gap[:, part].sum(1) for gap, part in zip(gaps, windows, strict=True)])
        return sums, np.stack([self._there[:, part].sum(1) for part in windows]), [1, *starts]

    @cached_property
    def worth(self) -> tuple[float, float, float]:
        """How many true tokens a transfer is worth, and the 95 % interval; infinite where more than can be seen.

        So many more of them have to be given after the neutral prompt until the full context is no further ahead of it
        than of the transfer. 0 where the transfer is no better than the neutral prompt.
        """
        sums, weights, after = self._gaps
        if not weights.any():
            return math.nan, math.nan, math.nan
        drawn = bootstrap_means(sums, weights)
        found = _first_as_low(np.stack([sums.sum(1) / weights.sum(1)], axis=1), after)[0]
        low, high = (math.nan, math.nan) if not drawn.size else _quantiles(_first_as_low(drawn, after))
        return float(found), low, high

    # ------------------------------------------------------------------ what was written

    @cached_property
    def generated(self) -> "pandas.DataFrame":
        """A row per condition under which was written: how plausible it is after the whole donor, in nats per token.

        True tokens that were given do not count. `distance` is there where an embedding was given: the cosine distance
        to the true paragraph, true tokens that were given among what was written, as the authors have it. Intervals
        are 95 %, over documents.
        """
        import pandas

        rows: list[dict[str, Any]] = []
        if not self.samples:
            return pandas.DataFrame(columns=["condition", "cross_entropy", "low", "high"])
        sums, counts = self.plausibility.sum(2).numpy(), self.counts.double().numpy()
        with np.errstate(invalid="ignore"):
            means = sums.sum(1) / counts.sum(1)
        drawn = bootstrap_means(sums, counts)
        away = None if self.distances is None else self.distances.numpy()
        again = None if away is None else bootstrap_means(away, np.ones(away.shape))
        for place, name in enumerate(self.writers):
            row = {"condition": name, "cross_entropy": float(means[place]), **_interval("", drawn[place])}
            if away is not None and again is not None:
                row |= {"distance": float(away[place].mean()), **_interval("distance_", again[place])}
            rows.append(row)
        return pandas.DataFrame(rows)

    # ------------------------------------------------------------------ words and files

    def sentences(self) -> Iterator[str]:
        """What was found, in words."""
        rows = self.shares.set_index("condition").to_dict("index")
        moved, full = rows[TRANSFERRED], rows[FULL]
        documents = f"{len(self.lengths):,} documents"
        gain = f"{full['gain']:.3f} nats per token {_told(full, 'gain')}"
        if math.isnan(full["share"]):
            yield (
                f"Over tokens 2 and later of {documents} the whole first paragraph is worth {gain}, which cannot be "
                "told from nothing, and so no share of it can be told."
            )
        else:
            between = f"[{told_share(moved['share_low'])}, {told_share(moved['share_high'])}]"
            given = "none" if moved["gain_high"] < 0 else f"{told_share(moved['share'])} of it {between}"
            yield (
                f"Over tokens 2 and later of {documents} the whole first paragraph is worth {gain}; the transfer gives "
                f"{given}."
            )
        against = f"{moved['gain_wrong']:+.3f} nats {_told(moved, 'gain_wrong')}"
        if moved["gain_wrong_low"] > 0:
            yield f"Against a wrong donor it gains {against}: what is carried is of this very text."
        else:
            yield f"Against a wrong donor it gains {against}: nothing is seen to be of this very text."
        if moved["gain_high"] < 0:
            lost = f"[{-moved['gain_high']:.3f}, {-moved['gain_low']:.3f}]"
            yield f"It does harm: {-moved['gain']:.3f} nats {lost} against the blank line alone."
        elif rows[WRONG]["gain_high"] < 0:
            yield f"A wrong donor does harm: {-rows[WRONG]['gain']:.3f} nats against the blank line alone."
        value, low, high = self.worth
        if moved["gain_low"] > 0:
            most = int(self.gaps["after"].max()) - 1
            needed, *ends = (f"more than {most}" if math.isinf(each) else f"{each:.0f}" for each in (value, low, high))
            sure = "" if math.isinf(low) else f" (95 %: {ends[0]} to {ends[1]})"
            yield f"The blank line alone needs {needed} further true tokens to be as near to the full context{sure}."

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        header = TransferHeader(
            self.source,
            self.sites,
            self.layers,
            self.positions,
            self.judged_on,
            self.left_out,
            self.conditions,
            self.cheats,
            self.writers,
            self.samples,
            self.temperature,
            self.seed,
            self.distances is not None,
        )
        tensors = {"losses": self.losses, "lengths": self.lengths}
        tensors |= {"plausibility": self.plausibility, "counts": self.counts}
        if self.distances is not None:
            tensors["distances"] = self.distances
        save_tensors(path, KIND, header.to_dict(), tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Transfer":
        """Read what `save` wrote; a truncated, foreign, changed or newer file is one clear error."""
        plain, tensors = load_tensors(path, KIND)
        try:
            header = TransferHeader.from_dict(plain)
            _require_tensors(header, tensors)
        except (FileFormatError, KeyError, ValueError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise FileFormatError(f"{path} is not a complete transfer ({told}); measure again.") from error
        return cls(
            header.source,
            header.sites,
            header.layers,
            header.positions,
            header.judged_on,
            header.left_out,
            header.conditions,
            tensors["losses"],
            tensors["lengths"],
            header.cheats,
            header.writers,
            header.samples,
            tensors["plausibility"],
            tensors["counts"],
            tensors.get("distances"),
            header.temperature,
            header.seed,
        )

    def __repr__(self) -> str:
        where = ", at the donor's positions" if self.positions else ""
        lines = [
            f"Transfer({on_one_line(self.source.name)}, {', '.join(self.sites)} of {len(self.layers)} layers{where}, "
            f"{on_one_line(self.judged_on)}{told_left_out(self.left_out)})",
            f"  {'nats per token, from the second':<32}{'':>10}{'95 %':>18}{'share':>9}{'against wrong':>15}",
        ]
        for row in self.shares.to_dict("records"):
            share, wrong = (told_share(row[name]) for name in ("share", "share_wrong"))
            ends = f"{row['low']:.3f} to {row['high']:.3f}"
            lines.append(f"  {row['condition']:<32}{row['cross_entropy']:>10.3f}{ends:>18}{share:>9}{wrong:>15}")
        if self.samples:
            away = f"{'distance':>12}" if self.distances is not None else ""
            lines.append(f"  {'what was written, after the whole':<32}{'':>10}{'95 %':>18}{away}")
        for row in self.generated.to_dict("records"):
            away = f"{row['distance']:>12.3f}" if "distance" in row else ""
            ends = f"{row['low']:.3f} to {row['high']:.3f}"
            lines.append(f"  {row['condition']:<32}{row['cross_entropy']:>10.3f}{ends:>18}{away}")
        return "\n".join([*lines, *self.sentences()])


def _ends(drawn: Float[ndarray, "quantity resample"]) -> tuple[ndarray, ndarray]:
    if not drawn.shape[-1]:
        nothing = np.full(len(drawn), math.nan)
        return nothing, nothing
    low, high = np.quantile(drawn, [0.025, 0.975], axis=-1)
    return low, high


def _interval(prefix: str, drawn: Float[ndarray, " resample"]) -> dict[str, float]:
    low, high = _ends(drawn[None])
    return {f"{prefix}low": float(low[0]), f"{prefix}high": float(high[0])}


def _quantiles(values: Float[ndarray, " resample"]) -> tuple[float, float]:
    """As they are among the values: between a number and infinity there is none."""
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")
    return float(low), float(high)


def _first_as_low(gaps: Float[ndarray, "row resample"], after: Sequence[int]) -> Float[ndarray, " resample"]:
    """How many more true tokens than the transfer's one, until a neutral gap (all rows but the first) is as low."""
    low = gaps[1:] <= gaps[:1]
    return np.where(low.any(0), np.array(after[1:], dtype=float)[low.argmax(0)] - after[0], math.inf)


def _told(row: Mapping[Any, Any], name: str) -> str:
    return f"[{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def told_share(value: float) -> str:
    """A share for people.

    >>> told_share(0.25), told_share(-12.3), told_share(math.nan)
    ('25.0%', '-12 times', '–')
    """
    if math.isnan(value):
        return "–"
    return f"{value:.1%}" if abs(value) < 10 else f"{value:.0f} times"


def _require_tensors(header: TransferHeader, tensors: Mapping[str, Tensor]) -> None:
    losses, lengths = tensors["losses"], tensors["lengths"]
    samples, writers = len(header.samples), len(header.writers)
    plausibility, counts = tensors["plausibility"], tensors["counts"]
    shapes = {
        "losses": losses.ndim == 3 and losses.shape[0] == len(header.conditions) and losses.shape[1] == len(lengths),
        "lengths": lengths.ndim == 1 and len(lengths) > 0 and lengths.dtype == torch.int64,
        "plausibility": plausibility.ndim == 3 and plausibility.shape[:2] == (writers, samples),
        "counts": counts.shape == (writers, samples) and counts.dtype == torch.int64,
    }
    floats = {"losses": losses, "plausibility": plausibility}
    if header.embedded:
        shapes["distances"] = tensors["distances"].shape == (writers, samples)
        floats["distances"] = tensors["distances"]
    for name, fits in shapes.items():
        if not fits:
            raise ValueError(f"its {name} are of another shape or kind")
    for name, values in floats.items():
        if values.dtype != torch.float64 or not bool(torch.isfinite(values).all()):
            raise ValueError(f"its {name} are not all numbers of 64 bits")
    if bool((lengths < 1).any() | (lengths > losses.shape[2]).any()) or not bool((lengths > 1).any()):
        raise ValueError("a paragraph has another length than it was measured with")
    if bool((counts < 1).any() | (counts > plausibility.shape[2]).any()):
        raise ValueError("more or less was written than was measured")
    for name, values, ends in (("losses", losses, lengths), ("plausibility", plausibility, counts)):
        after = torch.arange(values.shape[2]) >= ends[..., None]
        if bool((values * after).any()) or bool((values < -NEGATIVE).any() | (values > HIGHEST).any()):
            raise ValueError(f"its {name} are no cross-entropies of these texts")


# ---------------------------------------------------------------------- the study


def transfer_study(
    model: Any,
    pairs: Any = None,
    *,
    sites: Iterable[Site | str] | Site | str = SITES,
    layers: Iterable[int] | int | None = None,
    scrub: Iterable[str] | str = SCRUBS,
    cheats: Iterable[int] | int = (1, 2, 5, 10),
    length: int = 100,
    positions: str | None = None,
    samples: int = 16,
    sample_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    embed: Callable[[list[str]], Any] | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Transfer:
    """Measure how much of the next paragraph the token before it carries.

    Args:
        model: a causal model.
        pairs: what `pairs_of` gives, or takes.
        sites: what is transferred.
        layers: in which layers; None for all.
        scrub: "layers" and "sites" are also transferred one alone, and all but one.
        cheats: how many true tokens some samples are given.
        length: how many tokens of a paragraph are read.
        positions: "donor" reads recipients at the donor's positions, for models that learned absolute ones.
        samples: after how many documents is written.
        sample_tokens: how many tokens are written.
        temperature: of what is written; 0 takes the likeliest token.
        seed: of what is written; every condition has the same luck.
        embed: texts → vectors `[text dim]`; distances to the true paragraph are then measured, too.
        folder: where finished parts are kept, so that an interrupted study goes on.
        progress: show a progress bar.

    >>> import ablation_lens as al
    >>> model = al.load_model("tiny-mistral")
    >>> pairs = al.experiments.pairs_of(model, al.task_for(model), count=4)
    >>> found = transfer_study(model, pairs, length=8, scrub=(), samples=0, progress=False)
    >>> found.shares["condition"].tolist()
    ['full context', 'transferred', 'wrong donor', 'neutral']
    """
    require_causal(model)
    given = pairs_of(model, pairs)
    if len(given) < 2:
        raise MismatchError(
            f"a wrong donor is another document's, and of {on_one_line(given.judged_on)} {len(given)} can be cut at a "
            "blank line"
            f"{told_left_out(given.left_out)}; give more documents of two paragraphs."
        )
    where, chosen = chosen_sites(sites), tuple(sorted(chosen_layers(model, layers)))
    if not where or not chosen:
        raise MismatchError("there is nothing to transfer; name at least one layer and one site.")
    scrub = tuple(dict.fromkeys([scrub] if isinstance(scrub, str) else scrub))
    given_cheats = cheats if isinstance(cheats, Iterable) else [cheats]
    cheats = tuple(sorted({whole(cheat, "cheats") for cheat in given_cheats}))
    for each in scrub:
        require_known(each, SCRUBS, "part to scrub")
    length, samples, sample_tokens = whole(length, "length"), whole(samples, "samples"), whole(sample_tokens, "tokens")
    seed = whole(seed, "seed")
    if not isinstance(temperature, int | float):
        raise MismatchError(f"temperature={temperature!r:.60} is not possible; give a number.")
    if length < 2 or samples < 0 or sample_tokens < 1 or not temperature >= 0 or any(cheat < 1 for cheat in cheats):
        raise MismatchError(
            f"length={length}, samples={samples}, sample_tokens={sample_tokens}, temperature={temperature} and "
            f"cheats={list(cheats)} are not possible; give 2, 0, 1, 0 and 1 or more."
        )
    room = int(model.cfg.n_ctx) - len(given.blank)
    if samples and sample_tokens + max(cheats, default=0) > room:
        raise MismatchError(
            f"sample_tokens={sample_tokens} after {max(cheats, default=0)} true tokens have no room in a context of "
            f"{model.cfg.n_ctx:,}; give fewer, or samples=0."
        )
    # No longer than any is: what is made for every token has to be held.
    length = min(length, max(len(pair.continuation) for pair in given))
    if length < 2:
        raise MismatchError(
            "no second paragraph has a second token, and the first is predicted at the very token that is changed; "
            "give longer ones."
        )
    _require_positions(model, positions)
    study = _Study(model, given, where, chosen, length, positions, Pieces(folder))
    conditions = tuple(_conditions(where, chosen, scrub))
    written = study.writable(samples, sample_tokens, max(cheats, default=0))
    writers = (*BASE, *(f"cheat-{cheat}" for cheat in cheats)) if written else ()
    with progress_over("transfer", len(conditions) + len(writers), progress, unit="conditions") as advance:
        losses = []
        for condition in conditions:
            advance.describe(f"transfer: {condition.name}")
            losses.append(study.losses(condition))
            advance(1)
        texts, plausible = [], []
        for writer in writers:
            advance.describe(f"transfer: writing, {writer}")
            ids, surprise = study.writing(writer, written, sample_tokens, temperature, seed)
            texts.append(ids)
            plausible.append(surprise)
            advance(1)
    shown = study.samples(written, writers, texts)
    none = torch.zeros(0, 0, 0, dtype=torch.float64)
    return Transfer(
        study.source,
        tuple(site.value for site in where),
        chosen,
        positions,
        given.judged_on,
        given.left_out,
        conditions,
        torch.stack(losses),
        torch.tensor([min(length, len(pair.continuation)) for pair in given]),
        cheats,
        writers,
        shown,
        torch.stack(plausible) if writers else none,
        torch.stack([(ids >= 0).sum(1) for ids in texts]) if writers else torch.zeros(0, 0, dtype=torch.int64),
        None if embed is None or not shown else _distances(embed, shown),
        float(temperature),
        int(seed),
    )


def learns_positions(model: Any) -> bool:
    """Whether a model adds learned absolute positions to its embeddings, as OPT and GPT-2 do.

    >>> from ablation_lens import load_model
    >>> learns_positions(load_model("tiny-opt")), learns_positions(load_model("tiny-mistral"))
    (True, False)
    """
    kind = getattr(model.cfg, "positional_embedding_type", None)
    return kind == "standard" and POSITION_EMBEDDING in getattr(model, "hook_dict", {})


def _require_positions(model: Any, positions: str | None) -> None:
    if positions not in (None, "donor"):
        raise MismatchError(f"positions={positions!r:.60} is not known; use 'donor', or leave it out.")
    learned = learns_positions(model)
    if positions and not learned:
        raise MismatchError(
            "this model has no learned absolute positions that could be the donor's; leave positions out."
        )
    if learned and not positions:
        warnings.warn(
            "this model adds learned positions to its embeddings, so what a token holds at one position is out of "
            "place at another, and a transfer may do harm by that alone; positions='donor' reads recipients at the "
            "donor's.",
            PositionsWarning,
            stacklevel=3,
        )


def _conditions(sites: Sequence[Site], layers: Sequence[int], scrub: Sequence[str]) -> Iterator[Condition]:
    yield from map(Condition, BASE)
    units = {"layers": [f"L{layer}" for layer in layers], "sites": [site.value for site in sites]}
    for each in scrub:
        if len(units[each]) < 2:  # one alone is all of them
            continue
        # All but one of two is the other one alone.
        for kind in ("only", "all but") if len(units[each]) > 2 else ("only",):
            yield from (Condition(f"{kind} {unit}", kind, unit) for unit in units[each])


HooksFor = Callable[[Batch], list[Hook]]
"""Hooks for some rows of what is read, which are numbered in `documents`."""


class _Study:
    """One model and its documents: what is read under which condition."""

    def __init__(
        self,
        model: Any,
        pairs: Pairs,
        sites: tuple[Site, ...],
        layers: tuple[int, ...],
        length: int,
        positions: str | None,
        pieces: Pieces,
    ) -> None:
        self.model, self.pairs, self.sites, self.layers = model, pairs, sites, layers
        self.length, self.positions, self.pieces = length, positions, pieces
        self.source = record_of(model)
        self.facts = {
            "model": self.source.identity,
            "pairs": pairs.digest,
            "device": torch.device(model.cfg.device).type,
            "versions": {**Versions.current().to_dict(), "python": None},
        } | ({"positions": positions} if positions else {})
        self.wrong = _wrong_donors(pairs)
        self.place = len(pairs.blank) - 1

    @cached_property
    def grabbed(self) -> Grabbed:
        """What every donor's last token holds."""
        donors = [pair.donor for pair in self.pairs]
        parts: dict[int, tuple[Grabbed, int]] = {}
        for numbers in _together(list(map(len, donors))):
            rows = _batch([(donors[number], ()) for number in numbers], numbers)
            held = grab(self.model, rows, sites=self.sites, layers=self.layers)
            parts |= {number: (held, row) for row, number in enumerate(numbers)}
        values = {
            site: torch.stack([parts[number][0].values[site][:, parts[number][1]] for number in range(len(donors))], 1)
            for site in self.sites
        }
        return Grabbed(values, self.layers, self.source)

    @cached_property
    def table(self) -> Float[Tensor, "position d_model"]:
        """What the model adds to its embeddings, position by position: asked of it, as families keep it apart."""
        caught: list[Tensor] = []

        def stop(value: Tensor, hook: Any) -> None:
            caught.append(value[0].detach().clone())
            raise ReachedTheEnd

        tokens = torch.full((1, int(self.model.cfg.n_ctx)), self.pairs.blank[-1], device=self.model.cfg.device)
        try:
            self.model.run_with_hooks(tokens, fwd_hooks=[(POSITION_EMBEDDING, stop)])
        except ReachedTheEnd:
            return caught[0]
        raise RuntimeError(f"{POSITION_EMBEDDING} of {type(self.model).__name__} never fired")

    # ------------------------------------------------------------------ what is read

    def prompt(self, condition: str, number: int) -> tuple[int, ...]:
        """What is read before the paragraph."""
        return self.pairs.pairs[number].donor if condition == FULL else self.pairs.blank

    def hooks_for(self, condition: Condition) -> HooksFor:
        """What is changed in the model under a condition, for some rows."""
        sites, layers = self._transferred(condition)
        donors = self.wrong if condition.name == WRONG else range(len(self.pairs))

        def hooks(batch: Batch) -> list[Hook]:
            made: list[Hook] = []
            if condition.name == FULL:
                return made
            if self.positions:
                made.append(self._positions(batch))
            if sites and layers:
                held = self.grabbed.rows([donors[number] for number in batch.documents])
                # Batches have their texts at the start of their rows, so a column is a position.
                made += held.at(self.place, sites=sites, layers=layers).hooks(offset=0)
            return made

        return hooks

    def _transferred(self, condition: Condition) -> tuple[tuple[Site, ...], tuple[int, ...]]:
        if condition.name in (FULL, NEUTRAL):
            return (), ()
        only = condition.kind == "only"
        if condition.unit is None:
            return self.sites, self.layers
        if condition.unit.startswith("L"):
            return self.sites, tuple(each for each in self.layers if (f"L{each}" == condition.unit) == only)
        return tuple(site for site in self.sites if (site.value == condition.unit) == only), self.layers

    def _positions(self, batch: Batch) -> Hook:
        """Reads a recipient at the donor's positions: its blank line, and what follows."""
        first = self.place + 1 - self.pairs.newlines  # before it is the beginning of text, at position 0 in both
        columns = torch.arange(batch.inputs.shape[1])
        shift = torch.tensor([len(self.pairs.pairs[number].donor) for number in batch.documents]) - self.place - 1
        places = torch.where(columns >= first, columns + shift[:, None], columns)
        table = self.table
        # Only padding is beyond the last position.
        rows = table[places.clamp(max=len(table) - 1).to(table.device)]
        return POSITION_EMBEDDING, lambda value, hook: rows.to(value)

    # ------------------------------------------------------------------ cross-entropy of true paragraphs

    def losses(self, condition: Condition) -> Float64[Tensor, "pair token"]:
        """Cross-entropy of the true paragraphs."""
        sites, layers = self._transferred(condition)
        what = {"read after": condition.name} if condition.kind == "base" else {"read after": TRANSFERRED}
        moved = {"sites": [site.value for site in sites], "layers": list(layers)} if sites else {}

        def make() -> dict[str, Tensor]:
            texts = [
                (self.prompt(condition.name, number), pair.continuation[: self.length])
                for number, pair in enumerate(self.pairs)
            ]
            return {"losses": _cross_entropies(self.model, texts, self.hooks_for(condition), self.length)}

        facts = {**self.facts, **what, **moved, "length": self.length}
        return self.pieces.of("transfer losses", facts, make)["losses"]

    # ------------------------------------------------------------------ what is written

    def writable(self, samples: int, tokens: int, cheat: int) -> tuple[int, ...]:
        """The first documents that are long enough, and after which there is room to write."""
        room = int(self.model.cfg.n_ctx) - cheat - tokens
        fitting = (
            number
            for number, pair in enumerate(self.pairs)
            if len(pair.donor) <= room and len(pair.continuation) > cheat
        )
        return tuple(number for number, _ in zip(fitting, range(samples), strict=False))

    def writing(
        self, writer: str, numbers: Sequence[int], tokens: int, temperature: float, seed: int
    ) -> tuple[Int[Tensor, "sample token"], Float64[Tensor, "sample token"]]:
        """What is written (-1 after its end), and what the model as it is makes of it after the whole donor."""
        cheat = int(writer.removeprefix("cheat-")) if writer.startswith("cheat-") else 0
        condition = Condition(NEUTRAL if cheat else writer)
        sites, layers = self._transferred(condition)
        given = [self.pairs.pairs[number].continuation[:cheat] for number in numbers]

        def make() -> dict[str, Tensor]:
            prompts = [
                (*self.prompt(condition.name, number), *true) for number, true in zip(numbers, given, strict=True)
            ]
            ids = _write(self.model, prompts, numbers, self.hooks_for(condition), tokens, temperature, seed)
            texts = [
                ((*self.pairs.pairs[number].donor, *true), tuple(row[row >= 0].tolist()))
                for number, true, row in zip(numbers, given, ids, strict=True)
            ]
            return {"ids": ids, "losses": _cross_entropies(self.model, texts, lambda batch: [], tokens)}

        facts = {**self.facts, "written after": writer, "numbers": list(numbers), "tokens": tokens}
        facts |= {"sites": [site.value for site in sites], "layers": list(layers)} if sites else {}
        facts |= {"temperature": float(temperature), "seed": int(seed)}
        held = self.pieces.of("transfer texts", facts, make)
        return held["ids"], held["losses"]

    def samples(
        self, numbers: Sequence[int], writers: Sequence[str], texts: Sequence[Int[Tensor, "sample token"]]
    ) -> tuple[Sample, ...]:
        """Token ids as texts; true tokens that were given come first."""
        tokenizer = tokenizer_of(self.model)

        def text(ids: Iterable[int]) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True))

        def written(writer: str, row: Int[Tensor, " token"], true: Sequence[int]) -> str:
            cheat = int(writer.removeprefix("cheat-")) if writer.startswith("cheat-") else 0
            return text([*true[:cheat], *row[row >= 0].tolist()])

        made = []
        for place, number in enumerate(numbers):
            pair = self.pairs.pairs[number]
            each = tuple(
                written(writer, ids[place], pair.continuation) for writer, ids in zip(writers, texts, strict=True)
            )
            made.append(Sample(pair.id, text(pair.donor), text(pair.continuation[: self.length]), each))
        return tuple(made)


def _wrong_donors(pairs: Pairs) -> list[int]:
    """For every document another one, whose donor is about as long: it should be wrong in nothing but what it says."""
    order = sorted(range(len(pairs)), key=lambda number: (len(pairs.pairs[number].donor), number))
    found = [0] * len(order)
    for start in range(0, len(order), 2):
        # Two and two; an odd one makes three of the last.
        group = order[start : start + 2] if len(order) - start != 3 else order[start:]
        for one, other in zip(group, [*group[1:], group[0]], strict=True):
            found[one] = other
        if len(group) == 3:
            break
    return found


def _together(lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Texts that are run at once."""
    return cut_batches(lengths, max(1, USUAL_POSITIONS // max(lengths)))


def _batch(texts: Sequence[tuple[Sequence[int], Sequence[int]]], numbers: Sequence[int]) -> Batch:
    """Prompts and what follows, of which every token is scored."""
    longest = max(len(prompt) + len(after) for prompt, after in texts)
    inputs = torch.zeros(len(texts), longest, dtype=torch.int64)
    valid, scored, labels = torch.zeros_like(inputs).bool(), torch.zeros_like(inputs).bool(), torch.zeros_like(inputs)
    for row, (prompt, after) in enumerate(texts):
        end = len(prompt) + len(after)
        inputs[row, :end] = torch.tensor([*prompt, *after])
        valid[row, :end] = True
        scored[row, len(prompt) - 1 : end - 1] = True
        labels[row, len(prompt) - 1 : end - 1] = torch.tensor(list(after), dtype=torch.int64)
    return Batch(inputs, valid, labels, scored, documents=tuple(numbers))


@torch.inference_mode()
def _cross_entropies(
    model: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]], hooks_for: HooksFor, length: int
) -> Float64[Tensor, "text token"]:
    """Cross-entropy of every token after its prompt; 0 after the end. `documents` of a batch number the texts."""
    found = torch.zeros(len(texts), length, dtype=torch.float64)

    def run(batch: Batch) -> None:
        logits = scored_logits(model, batch, hooks_for(batch))
        labels = batch.labels[batch.scored].to(logits.device)
        surprise = -logits.float().log_softmax(-1).gather(1, labels[:, None])[:, 0]
        counts = batch.scored.sum(1).tolist()
        for number, part in zip(batch.documents, surprise.double().cpu().split(counts), strict=True):
            found[number, : len(part)] = part

    for numbers in _together([len(prompt) + len(after) for prompt, after in texts]):
        batch = _batch([texts[number] for number in numbers], numbers)
        within_memory(batch.to(model.cfg.device), run)
    return found


@torch.inference_mode()
def _write(
    model: Any,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    hooks_for: HooksFor,
    tokens: int,
    temperature: float,
    seed: int,
) -> Int[Tensor, "sample token"]:
    """Go on with prompts, token by token; -1 after the end of a text."""
    ended = getattr(tokenizer_of(model), "eos_token_id", None)
    # A generator per document: what it says depends neither on who is written beside it nor on the condition.
    luck = [torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63) for number in numbers]
    written: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    for _ in range(tokens):
        rows = sorted(going)
        if not rows:
            break
        for part in _together([len(prompts[row]) + len(written[row]) for row in rows]):
            at = [rows[each] for each in part]
            # One made-up token after each, at which nothing looks: the prediction of it is the one that is wanted.
            texts = [((*prompts[row], *written[row]), (0,)) for row in at]
            batch = _batch(texts, [numbers[row] for row in at])
            logits = scored_logits(model, batch.to(model.cfg.device), hooks_for(batch)).float().cpu()
            for row, scores in zip(at, logits, strict=True):
                token = _draw(scores, temperature, luck[row])
                written[row].append(token)
                if token == ended:
                    going.discard(row)
    found = torch.full((len(prompts), tokens), -1, dtype=torch.int64)
    for row, ids in enumerate(written):
        found[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return found


def _draw(logits: Float[Tensor, " token"], temperature: float, luck: torch.Generator) -> int:
    """The likeliest token, or one by chance: by the same luck the same, wherever it is as likely."""
    if temperature == 0:
        return int(logits.argmax())
    uniform = torch.rand(len(logits), generator=luck, dtype=torch.float64).clamp(min=1e-300)
    return int((logits.double() / temperature - (-uniform.log()).log()).argmax())


def _distances(embed: Callable[[list[str]], Any], samples: Sequence[Sample]) -> Float64[Tensor, "writer sample"]:
    """Cosine distance of what was written to the true paragraph."""
    texts = [sample.true for sample in samples]
    for sample in samples:
        texts += sample.written
    given = embed(texts)
    try:
        values = given.detach().cpu().double() if isinstance(given, Tensor) else np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MismatchError(
            f"embed was given {len(texts)} texts and gave {told(given)}; expected numbers [text dim], a vector for "
            "every text."
        ) from error
    vectors = torch.as_tensor(values)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not bool(torch.isfinite(vectors).all()):
        raise MismatchError(
            f"embed was given {len(texts)} texts and gave {tuple(vectors.shape)}; expected finite numbers [text dim], "
            "a vector for every text."
        )
    lengths = vectors.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise MismatchError("embed gave a vector of zeros, which has no direction to compare; leave such texts out.")
    vectors = vectors / lengths
    true, written = vectors[: len(samples)], vectors[len(samples) :].view(len(samples), -1, vectors.shape[1])
    return 1 - torch.einsum("sd,swd->ws", true, written)

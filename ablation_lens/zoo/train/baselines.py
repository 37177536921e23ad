"""What counting alone achieves: n-gram models to set the zoo's scores against.

All are smoothed by interpolated Kneser–Ney with one discount per order, estimated from the counts
(n₁ / (n₁ + 2 n₂)), and end in a uniform distribution. They see what the model sees: the frames' special
tokens as context, and for masked tokens the corrupted neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ablation_lens.zoo.train.vocabulary import MASK, SPECIAL_TOKENS

UNSEEN = -1
"""In place of a neighbour that cannot be seen."""

Tokens = Int[np.ndarray, "position"]
Table = Float[np.ndarray, "context token"]


@dataclass(frozen=True)
class CountScore:
    """Top-1 accuracy and mean cross-entropy (nats) over the predicted tokens."""

    top1: float
    cross_entropy: float
    tokens: int


def _discount(counts: Int[np.ndarray, "entry"]) -> float:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5


def _interpolated(counts: Table, lower: Float[np.ndarray, "token"]) -> Table:
    """Each row of counts, discounted; the mass set free goes to `lower`."""
    discount = _discount(counts[counts > 0])
    totals = counts.sum(1, keepdims=True)
    kinds = (counts > 0).sum(1, keepdims=True)
    seen = np.maximum(totals, 1)  # a context never seen: its row is `lower`, without 0/0
    free = np.where(totals > 0, discount * kinds / seen, 1.0)
    table: Table = np.maximum(counts - discount, 0) / seen + free * lower
    return table


class CountModel:
    """Unigram, bigram and trigram tables of a training text, for prediction from either side.

    Args:
        rows: the framed training documents, one array of ids each.
        vocabulary: number of token ids.
        beginning: the id that begins every document; it is context, never predicted.

    >>> model = CountModel([np.array([0, 5, 6, 5, 6])], 8, 0)
    >>> int(model.following(np.array([UNSEEN]), np.array([5])).argmax())
    6
    """

    def __init__(self, rows: Sequence[Tokens], vocabulary: int, beginning: int) -> None:
        self._size = vocabulary
        first = np.concatenate([row[:-1] for row in rows])
        second = np.concatenate([row[1:] for row in rows])
        triples = [np.stack([row[:-2], row[1:-1], row[2:]]) for row in rows if len(row) > 2]
        left, middle, right = np.concatenate(triples, axis=1) if triples else np.zeros((3, 0), dtype=np.int64)

        pairs = np.zeros((vocabulary, vocabulary))
        # add.at, as `pairs[first, second] += 1` counts a pair that comes again only once.
        np.add.at(pairs, (first, second), 1)
        counts = pairs.sum(0)
        counts[beginning] = 0
        self.unigram = (counts + 0.5) / (counts + 0.5).sum()

        # Below the highest order Kneser–Ney counts the contexts a token was seen in, not its occurrences.
        continuations = _kinds(left, middle, right, vocabulary)
        lowest = self._base((pairs > 0).sum(0))
        self._lower_bigram = _interpolated(continuations, lowest)
        self.bigram = _interpolated(pairs, lowest)
        self.reverse_bigram = _interpolated(pairs.T.copy(), self._base((pairs > 0).sum(1)))
        self._trigram = _ContextCounts(left * vocabulary + middle, right, vocabulary)
        self._between = _ContextCounts(left * vocabulary + right, middle, vocabulary)

    def _base(self, kinds: Int[np.ndarray, "token"]) -> Float[np.ndarray, "token"]:
        # One percent is left for the uniform end: a probability of 0 would cost infinitely many nats.
        share = 0.99 * kinds / max(1, kinds.sum())
        base: Table = share + (1 - share.sum()) / self._size
        return base

    def following(self, before: Tokens, last: Tokens) -> Float[np.ndarray, "position token"]:
        """P(token | the two tokens before it); either may be `UNSEEN`, which backs off."""
        # UNSEEN is -1 and picks the last row here; `where` then puts the right one in its place.
        lower = np.where((before == UNSEEN)[:, None], self.bigram[last], self._lower_bigram[last])
        lower = np.where((last == UNSEEN)[:, None], self.unigram, lower)
        key = np.where((before == UNSEEN) | (last == UNSEEN), UNSEEN, before * self._size + last)
        return self._trigram.interpolated(key, lower)  # UNSEEN is not a context that was counted, so it stays `lower`

    def between(self, left: Tokens, right: Tokens) -> Float[np.ndarray, "position token"]:
        """P(token | both neighbours): their joint counts, backing off to P(token | left) · P(right | token)."""
        chain = np.where((left == UNSEEN)[:, None], self.unigram, self.bigram[left])
        backward = np.where((right == UNSEEN)[:, None], 1.0, self.bigram.T[right])
        chain = chain * backward
        chain /= chain.sum(1, keepdims=True)
        key = np.where((left == UNSEEN) | (right == UNSEEN), UNSEEN, left * self._size + right)
        return self._between.interpolated(key, chain)

    def causal(self, rows: Sequence[Tokens]) -> dict[str, CountScore]:
        """Unigram and trigram scores over every token after the first of each row."""
        last = np.concatenate([row[:-1] for row in rows])
        before = np.concatenate([np.concatenate([[UNSEEN], row[:-2]]) for row in rows])
        target = np.concatenate([row[1:] for row in rows])
        return {
            "unigram": _score(
                (np.broadcast_to(self.unigram, (len(part), self._size)), target[part]) for part in _parts(target)
            ),
            "3-gram": _score((self.following(before[part], last[part]), target[part]) for part in _parts(target)),
        }

    def masked(self, rows: Sequence[tuple[Tokens, Tokens]]) -> dict[str, CountScore]:
        """Scores at the chosen positions of (corrupted ids, labels), labels negative elsewhere.

        A position that shows a token instead of `<mask>` holds either its own or a random one; every
        baseline weighs the shown token accordingly.
        """
        columns = []
        for ids, labels in rows:
            # With two places in front, position i is seen[i + 2]; its neighbours are at i, i + 1 and i + 3.
            seen = np.concatenate([[UNSEEN, UNSEEN], np.where(ids == MASK, UNSEEN, ids), [UNSEEN]])
            chosen = np.flatnonzero(labels >= 0)
            columns.append(np.stack([seen[chosen], seen[chosen + 1], seen[chosen + 3], ids[chosen], labels[chosen]]))
        before, left, right, shown, target = np.concatenate(columns, axis=1)

        def weighed(kind: str) -> Iterator[tuple[Table, Tokens]]:
            for part in _parts(target):
                if kind == "unigram":
                    # A copy, not a broadcast: `_knowing_shown` writes into it.
                    table = np.tile(self.unigram, (len(part), 1))
                elif kind == "3-gram":
                    table = self.following(before[part], left[part])
                else:
                    table = self.between(left[part], right[part])
                yield self._knowing_shown(table, shown[part]), target[part]

        return {kind: _score(weighed(kind)) for kind in ("unigram", "3-gram", "two-sided 3-gram")}

    def _knowing_shown(self, table: Table, shown: Tokens) -> Table:
        # Bayes: kept and replaced are equally likely beforehand, and a replacement is uniform.
        rows = np.flatnonzero(shown != MASK)
        prior = table[rows, shown[rows]]
        kept = (prior / (prior + 1 / (self._size - len(SPECIAL_TOKENS))))[:, None]
        table[rows] *= 1 - kept
        table[rows, shown[rows]] += kept[:, 0]
        return table


class _ContextCounts:
    """Counts of tokens by context, stored sparsely and sorted by context."""

    def __init__(self, context: Tokens, token: Tokens, vocabulary: int) -> None:
        # A cell is a number below vocabulary³, 8.6 · 10⁹ in the zoo: 64-bit ids are needed.
        cells, self._counts = np.unique(context * vocabulary + token, return_counts=True)
        self._contexts, self._tokens = cells // vocabulary, cells % vocabulary
        self._discount = _discount(self._counts)

    def interpolated(self, context: Tokens, lower: Table) -> Table:
        """Discounted counts of each context over `lower`; a context never seen is `lower` itself."""
        begin = np.searchsorted(self._contexts, context, "left")
        end = np.searchsorted(self._contexts, context, "right")
        table = np.array(lower)
        for row in np.flatnonzero(end > begin):
            cells = slice(begin[row], end[row])
            counts = self._counts[cells]
            table[row] *= self._discount * len(counts) / counts.sum()
            table[row, self._tokens[cells]] += (counts - self._discount) / counts.sum()
        return table


def _kinds(left: Tokens, middle: Tokens, right: Tokens, vocabulary: int) -> Table:
    """For each pair (middle, right), the number of different tokens seen to their left."""
    distinct = np.unique((left * vocabulary + middle) * vocabulary + right)
    table = np.zeros((vocabulary, vocabulary))
    np.add.at(table, (distinct // vocabulary % vocabulary, distinct % vocabulary), 1)
    return table


def _parts(target: Tokens) -> list[Int[np.ndarray, "part"]]:
    """Position numbers in pieces small enough for a dense table each."""
    return np.array_split(np.arange(len(target)), max(1, len(target) // 2048))


def _score(predictions: Iterator[tuple[Table, Tokens]]) -> CountScore:
    hits = tokens = 0
    loss = 0.0
    for table, target in predictions:
        hits += int((table.argmax(1) == target).sum())
        loss -= float(np.log(table[np.arange(len(target)), target]).sum())
        tokens += len(target)
    return CountScore(hits / max(1, tokens), loss / max(1, tokens), tokens)

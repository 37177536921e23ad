"""Which split a document belongs to: a property of its bytes, and of nothing else.

Deciding by a hash of the content keeps the splits disjoint whatever the order, the number of workers
or the machine, and sends two copies of one text to the same side.
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

from ablation_lens.errors import CorpusError

SPLITS = ("train", "collect", "evaluate")

# The zoo's models need most of a small corpus to learn from; the two others only have to be large enough
# (about 1e5 tokens of `stdlib` each) for statistics and for scores.
EMBEDDED_SHARES: Mapping[str, float] = MappingProxyType({"train": 0.7, "collect": 0.15, "evaluate": 0.15})
# Nothing here is trained on an outside corpus, so nothing of it is held back.
OUTSIDE_SHARES: Mapping[str, float] = MappingProxyType({"collect": 0.5, "evaluate": 0.5})


def split_of(content: bytes, shares: Mapping[str, float]) -> str:
    """The split that these bytes belong to.

    The first 8 bytes of their SHA-256, as a fraction of 2**64, are laid against the cumulated shares in
    the order train, collect, evaluate.

    Args:
        content: a document's UTF-8 bytes, or an image's pixels.
        shares: split name to its share; the shares sum to 1.

    >>> split_of(b"a document", EMBEDDED_SHARES)
    'train'
    >>> {split_of(bytes([n]), OUTSIDE_SHARES) for n in range(20)} == {"collect", "evaluate"}
    True
    """
    return split_at(hashlib.sha256(content).digest(), shares)


def split_at(sha256: bytes, shares: Mapping[str, float]) -> str:
    """The split of the bytes that hash to this."""
    unknown = [name for name in shares if name not in SPLITS]
    if unknown or min(shares.values(), default=-1.0) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise CorpusError(
            f"the split shares are {dict(shares)}; they must be named {', '.join(SPLITS)}, be at least 0 and sum to 1."
        )
    position = int.from_bytes(sha256[:8], "big") / 2**64
    present = [name for name in SPLITS if shares.get(name, 0) > 0]
    bound = 0.0
    for name in present[:-1]:
        bound += shares[name]
        if position < bound:
            return name
    # Not compared: the division can round up to 1.0, and the shares may sum to a little less.
    return present[-1]

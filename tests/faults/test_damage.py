"""Bytes that a disk, a network or an editor changed: read as before, or refused in one sentence that names the file."""

import pytest

from tests.faults.damage import damaged
from tests.faults.tally import reads_or_says, require_clear


def hurt(victim, attempts, draw, tally):
    for number in range(attempts):
        way, content = damaged(victim.content, draw)
        victim.path.write_bytes(content)
        with tally.attempt(f"{victim.kind} #{number} {way}"):
            found = reads_or_says(victim.read, *victim.names)
            if found is not None and victim.exact and content != victim.content:
                require_nothing_else(found, victim)
    victim.restore()


def require_nothing_else(found, victim):
    """What was read is what was written; what is missing of a run folder is said."""
    if not isinstance(found, dict):
        assert found == victim.whole, "other numbers were read without a word"
        return
    assert set(found["rows"]) <= set(victim.whole["rows"])
    assert set(found["failures"]) <= set(victim.whole["failures"])
    if found != victim.whole:
        assert found["said"], "something is missing, and nothing says so"
        for line in found["said"]:
            require_clear(line, *victim.names)


PER_FILE = {"tensors": 20, "run": 12, "corpora": 12, "models": 4, "settings": 12}


@pytest.mark.parametrize("kind", PER_FILE)
def test_damaged_files(kind, request, size, draw, tally):
    counted = tally(f"damaged files: {kind}")
    for victim in request.getfixturevalue(kind):
        hurt(victim, PER_FILE[kind] * size, draw, counted)


def test_the_comparison_notices_other_numbers(tensors):
    victim = tensors[0]
    with pytest.raises(AssertionError, match="other numbers"):
        require_nothing_else((victim.whole[0][1:], victim.whole[1]), victim)

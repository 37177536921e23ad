"""Bytes as disks, networks and editors leave them: flipped, cut, doubled, moved, zeroed."""


def flip(content, draw):
    """One bit."""
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_early(content, draw):
    """One bit of the first kilobyte, where headers are."""
    changed = bytearray(content)
    changed[draw.randrange(min(len(changed), 1024))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content, draw):
    """The beginning alone."""
    return content[: draw.randrange(len(content))]


def behead(content, draw):
    """The end alone."""
    return content[draw.randrange(1, len(content) + 1) :]


def zero(content, draw):
    """A stretch of zeros, as after a crash."""
    start = draw.randrange(len(content))
    length = min(draw.randrange(1, 4096), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def double(content, draw):
    """A stretch that is there twice."""
    start = draw.randrange(len(content))
    return content[:start] + content[start : start + draw.randrange(1, 512)] + content[start:]


def drop(content, draw):
    """A stretch that is gone."""
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randrange(1, 512) :]


def noise(content, draw):
    """A stretch of anything."""
    start = draw.randrange(len(content))
    length = min(draw.randrange(1, 64), len(content) - start)
    return content[:start] + draw.randbytes(length) + content[start + length :]


def append(content, draw):
    """Something after the end."""
    return content + draw.randbytes(draw.randrange(1, 64))


WAYS = (flip, flip_early, cut, behead, zero, double, drop, noise, append)


def damaged(content, draw):
    """Changed in one of the ways: (the way's name, the bytes)."""
    way = draw.choice(WAYS)
    return way.__name__, way(content, draw)

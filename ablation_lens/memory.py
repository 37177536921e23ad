"""How much memory is free: on a device, and on a machine within what a container or a job is allowed."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had there; None where nobody says.

    >>> free_memory(torch.device("meta")) is None
    True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator holds and nobody uses is free for us.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free_on_machine() if device.type == "cpu" else None


def free_on_machine(root: Path = Path("/")) -> int | None:
    """Bytes that are free here, within what a container or a job is allowed; None on systems that do not say.

    >>> free_on_machine(Path("/nowhere")) is None
    True
    """
    allowed = list(_allowed(root))
    meminfo = _text(root / "proc/meminfo").splitlines()
    allowed += [1024 * int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable:")]
    return max(0, min(allowed)) if allowed else None


def _allowed(root: Path) -> Iterator[int]:
    """What is left of the limit of every control group that this process is in: of both versions."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / kinds
        names = ("memory.max", "memory.current") if not kinds else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        inside = PurePosixPath(path.lstrip("/"))
        # A limit holds for all groups below. In a container the path may be of outside, and only the root is there.
        for group in {base, *(base / part for part in (inside, *inside.parents))}:
            limit, used = (_text(group / name).strip() for name in names)
            if limit.isdecimal() and used.isdecimal():  # "max" where there is none
                yield int(limit) - int(used) + _given_back(_text(group / "memory.stat"))


def _given_back(stat: str) -> int:
    """Pages of files, which count as used and make room when it is needed."""
    return sum(int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file "))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""

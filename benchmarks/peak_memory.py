"""The peak resident memory of this very process."""

import resource
import sys
from pathlib import Path


def peak_mib() -> float:
    """In MiB. `ru_maxrss` would also count what the process that started this one held at the time (Linux keeps it)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

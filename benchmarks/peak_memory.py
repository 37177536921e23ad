"""The peak resident memory of this very process, or of one of its own."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_mib() -> float:
    """In MiB. `ru_maxrss` would also count what the process that started this one held at the time (Linux keeps it)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def apart(script: str, child: Callable[..., float], *arguments: Any, toy: bool = False) -> float:
    """What `child` says in a process of its own, which never gives its peak back; the script prints it for `--child`.

    At toy size it runs here: all that is asked is whether it does.
    """
    if toy:
        return child(*arguments)
    command = [sys.executable, script, "--child", *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

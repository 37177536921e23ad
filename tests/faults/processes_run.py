"""Starts `processes`, and gives what came of its runs."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def done(folder, runs):
    """What came of each run: `code`, `printed`, `seconds`."""
    work = folder / "work.json"
    work.write_text(json.dumps(runs))
    begun = subprocess.run(
        [sys.executable, "-m", "tests.faults.processes", str(work)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert begun.returncode == 0, begun.stderr
    return json.loads(work.with_suffix(".done.json").read_text())

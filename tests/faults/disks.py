"""Small disks."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

PAGE = 4096


@contextmanager
def small_disk(folder, room):
    """A disk in memory of so many bytes; a call of the value mounts it anew with other options."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here: a full disk was tested by an injected ENOSPC only")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # results may still be mapped from it

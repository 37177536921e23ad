"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

from ablation_lens import adapters

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(adapters.families())
    try:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    finally:
        for name in set(adapters.families()) - before:
            adapters.unregister(name)


def test_the_first_example_fits_the_first_screen():
    first = BLOCKS[0].strip().splitlines()
    assert len([line for line in first if line.strip()]) <= 15
    assert README.read_text(encoding="utf-8").index(BLOCKS[0]) < 900

"""The README's Python runs as it stands."""

import re
from pathlib import Path

from ablation_lens import adapters

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(adapters.families())
    names = {"__name__": "readme"}
    try:
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
    finally:
        for name in set(adapters.families()) - before:
            adapters.unregister(name)
    ablated, whole = names["al"].evaluate(names["model"], names["held_out"], names["ablation"]), names["held_out"]
    assert ablated.cross_entropy > names["al"].evaluate(names["model"], whole).cross_entropy


def test_the_pictures_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(pictures) == 2
    assert all((README.parent / picture).is_file() for picture in pictures)


def test_the_first_example_fits_the_first_screen():
    first = BLOCKS[0].strip().splitlines()
    assert len([line for line in first if line.strip()]) <= 15
    assert README.read_text(encoding="utf-8").index(BLOCKS[0]) < 900

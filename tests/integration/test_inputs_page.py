"""The Python of docs/INPUTS.md runs as it stands."""

import re
from pathlib import Path

import pytest

from ablation_lens.models.load import transformer_lens_major

PAGE = Path(__file__).parents[2] / "docs" / "INPUTS.md"


@pytest.mark.filterwarnings(
    "ignore:it is not known how this model's weights were processed", "ignore:HookedTransformer is deprecated"
)
def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "inputs"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        if "HookedTransformer" in block:
            script = [line for line in block.splitlines() if line and not line.startswith(("import", "from"))]
            assert len(script) <= 10
            if transformer_lens_major() >= 4:  # which has none
                continue
        exec(compile(block, "INPUTS.md", "exec"), names)
    assert list(names["results"].frame["method"]) == ["none", "zero", "mean", "peak"]

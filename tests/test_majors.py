"""What is not run on the second major is what cannot depend on it."""

import ast
import re
from pathlib import Path

import pytest

from tests import majors

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "program",
    [
        "from transformer_lens import HookedTransformer",
        "def test():\n    import transformer_lens.utilities",
        "import ablation_lens as al\nal.load_model('tiny-opt')",
        "from ablation_lens import load_model",
        "from ablation_lens.adapters.vit import HookedViT",
        "from tests.circuits.models import anything",
        "def test(command):\n    command('info', 'tiny-opt')",  # a fixture of tests/conftest.py
        "run([sys.executable, '-m', 'ablation_lens', 'info'])",
        "run([sys.executable, '-m', 'tests.faults.study_driver'])",
        "PROGRAM = '''\nimport ablation_lens as al\nal.load_model(name)\n'''",
        "PROGRAM = 'import ablation_lens as al; al.load_model({name}'",  # cannot be read
        "import importlib\nimportlib.import_module(name)",
    ],
)
def test_a_way_to_transformer_lens_is_found(program):
    modules = majors.modules_of_a_test(ast.parse(program))
    assert majors.LENS in modules or any(map(majors.way_to_the_lens, modules))


def test_what_comes_to_no_model_is_told_apart():
    for file in ("neurons/test_histogram.py", "corpora/test_corpora.py", "ablation/test_masks.py"):
        assert not majors.can_tell(ROOT / "tests" / file), file
    for file in ("integration/test_notebooks.py", "circuits/test_knockout.py", "study/test_study.py"):
        assert majors.can_tell(ROOT / "tests" / file), file


def test_the_locks_differ_in_nothing_but_transformer_lens():
    """Otherwise what comes to no transformer-lens could still differ."""
    one, two = (
        dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / name).read_text(encoding="utf-8")))
        for name in ("requirements.lock", "requirements-tl4.lock")
    )
    assert {name for name in one.keys() & two.keys() if one[name] != two[name]} == {"transformer-lens"}

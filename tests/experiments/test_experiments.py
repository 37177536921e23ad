"""The package as people meet it."""

import subprocess
import sys

import pytest

import ablation_lens as al
from ablation_lens import experiments


@pytest.mark.parametrize("name", experiments.__all__)
def test_what_the_package_shows_is_there(name):
    assert callable(getattr(experiments, name)) or isinstance(getattr(experiments, name), type)


def test_it_is_shown_by_the_root():
    assert al.experiments is experiments
    with pytest.raises(AttributeError, match="no attribute 'loss_curve'"):
        experiments.loss_curve  # noqa: B018


def test_looking_at_the_package_loads_nothing_heavy():
    code = "import sys; from ablation_lens import experiments; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

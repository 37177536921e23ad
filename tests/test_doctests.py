"""Every example in a docstring runs.

pytest's own doctest collection would import `adapters/` under a second name, apart from `ablation_lens.adapters`.
"""

import doctest
import importlib
import pkgutil

import pytest

import ablation_lens
import ablation_lens.adapters


def modules():
    packages = [(ablation_lens, "ablation_lens."), (ablation_lens.adapters, "ablation_lens.adapters.")]
    names = {info.name for package, prefix in packages for info in pkgutil.walk_packages(package.__path__, prefix)}
    return sorted(name for name in names if not name.endswith("__main__"))


@pytest.mark.usefixtures("heeding")
@pytest.mark.parametrize("name", modules())
def test_examples(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_the_examples_are_found_at_all():
    assert {"ablation_lens.models.load", "ablation_lens.adapters.vit"} <= set(modules())
    assert doctest.testmod(importlib.import_module("ablation_lens.models.load")).attempted >= 4

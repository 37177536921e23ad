import random

import pytest
import torch

from tests.faults import victims
from tests.faults.tally import Tally


@pytest.fixture(params=[pytest.param(1, id="suite"), pytest.param(10, id="full", marks=pytest.mark.slow)])
def size(request):
    """How many times the suite's number of attempts."""
    return request.param


@pytest.fixture
def draw(request):
    """Seeded by the test's name: the same faults every time."""
    return random.Random(request.node.name)


@pytest.fixture
def tally(request, record_property):
    """`tally("damaged files")`: the attempts of one class. The summary of pytest counts them, and none may fail."""
    opened = []

    def begin(name, **options):
        opened.append(Tally(name, **options))
        return opened[-1]

    yield begin
    for one in opened:
        record_property("faults", (one.name, one.attempts, len(one.failures)))
    for one in opened:
        one.require_none_failed()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the victims are small
    yield
    torch.set_num_threads(before)


def hurt(kind):
    """A fixture of the victims of a kind, in a folder of their own."""

    @pytest.fixture(scope="module")
    def made(tmp_path_factory):
        return list(getattr(victims, kind)(tmp_path_factory.mktemp(kind)))

    return made


tensors, corpora, models, settings = (hurt(kind) for kind in ("tensors", "corpora", "models", "settings"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder, and its files as victims."""
    folder = victims.make_run(tmp_path_factory.mktemp("run") / "run")
    return list(victims.run_files(folder))

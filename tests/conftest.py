import functools
import gc
import os
import shutil
import signal
import sys
import tempfile
import warnings

# No test may reach a hub; set before transformers is imported anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Of this run alone, for its workers and what they start: nothing of the user's is read or left behind.
    os.environ["ABLATION_LENS_CACHE"] = tempfile.mkdtemp(prefix="ablation-lens-tests-")
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker per core: more threads would wait for each other. torch reads it when imported, as in what tests start.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# How long an example takes says more about the machine than about us.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

LONGEST = (
    "browser/test_explorer_page.py",
    "integration/test_notebooks.py",
    "integration/test_readme.py",
    "faults/test_studies.py",
    "faults/test_interrupts.py",
    "faults/test_hostile_names.py",
    "browser/test_explorer_notebook.py",
    "tests/test_doctests.py",
)
"""Files that come first, so that no worker is left with one of them at the end."""


def pytest_addoption(parser):
    parser.addoption(
        "--where-majors-differ",
        action="store_true",
        help="only what another major of transformer-lens could change: for the second of two suites",
    )


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["ABLATION_LENS_CACHE"], ignore_errors=True)


@pytest.hookimpl(trylast=True)  # after tests/browser has marked its own
def pytest_collection_modifyitems(config, items):
    if config.getoption("--where-majors-differ"):
        from tests.majors import can_tell

        differing = {path for path in {item.path for item in items} if can_tell(path)}
        # A page is made in Python, where both suites look at it; Chromium draws it the same.
        left_out = [item for item in items if item.path not in differing or item.get_closest_marker("browser")]
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
    places = {path: place for place, path in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(places)))


@pytest.fixture(autouse=True)
def _fixed_seed():
    import torch  # not above: the process that only hands tests to workers needs none

    torch.manual_seed(0)


@pytest.fixture
def two_threads():
    """For what says something about two: under several workers each has one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def heeding():
    """Ctrl-C is heard: a shell's background jobs, and all they start, ignore it unless told otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `ablation-lens` in this process: (exit code, stdout, stderr)."""
    from ablation_lens import cli

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command has a way of its own

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ablation-lens", *map(str, arguments)])
        capsys.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        finally:
            # The command leaves these, and all objects, as suits a program that ends.
            gc.unfreeze()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved("opt")`: the folder of a tiny model, written once. Who changes a file copies the folder first."""
    import torch

    from tests.tiny_models import BY_NAME

    @functools.cache
    def folder(name):
        path = tmp_path_factory.mktemp("saved") / name
        with torch.random.fork_rng():  # a test draws the same numbers, whether it is the first to ask or not
            BY_NAME[name].model().save_pretrained(path)
        return path

    return folder


@pytest.fixture
def registry():
    """The centers; what a test registers is forgotten afterwards."""
    from ablation_lens import centers

    before = centers.names()
    yield centers
    for name in set(centers.names()) - set(before):
        centers.unregister(name)


@pytest.fixture(scope="session")
def chromium():
    """A browser; its context is fresh per test."""
    where = shutil.which("chromium")
    if where is None:
        pytest.skip("CHROMIUM IS MISSING: the explorer is not tested in a browser (apt-get install chromium)")
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="PLAYWRIGHT IS MISSING: the explorer is not tested in a browser (pip install playwright)",
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield browser
        browser.close()


def pytest_runtest_setup(item):
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("slow") and "slow" not in (item.config.getoption("-m") or ""):
        pytest.skip("slow: run with -m slow")


def pytest_terminal_summary(terminalreporter):
    """What the campaign of `tests/faults` counted."""
    counted = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "faults" and getattr(report, "when", None) == "teardown"
    ]
    classes = {}
    for name, attempts, failed in counted:
        before = classes.get(name, (0, 0))
        classes[name] = (before[0] + attempts, before[1] + failed)
    if classes:
        terminalreporter.section("faults: attempts, survived, failed")
        for name, (attempts, failed) in sorted(classes.items()):
            terminalreporter.write_line(f"{name:<32} {attempts:>6} {attempts - failed:>6} {failed:>4}")

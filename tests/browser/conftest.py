"""A real Chromium on the real page. Everything here is skipped, loudly, where there is none."""

import time
from contextlib import contextmanager

import pytest

import ablation_lens as al
from ablation_lens.explorer import explore
from ablation_lens.measure.contexts import Example, gather_contexts, striking_neurons
from tests.synthetic_statistics import study_results

XSS = '<img src=x onerror="document.title=1">'


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser" in item.path.as_posix():
            item.add_marker(pytest.mark.browser)


@contextmanager
def opened(chromium, address, *, offline=True, viewport=None, color_scheme="light"):
    """A page on which any console error and, offline, any request but that for the file itself fails the test."""
    page = _tab(chromium) if offline else chromium.new_page(accept_downloads=True)
    page.set_viewport_size(viewport or {"width": 1280, "height": 800})
    page.emulate_media(color_scheme=color_scheme)
    problems = []
    listening = {
        "console": lambda message: problems.append(message.text) if message.type in ("error", "warning") else None,
        "pageerror": lambda error: problems.append(str(error)),
    }
    # Blob and data addresses are the page's own memory; Chromium reports them like requests.
    own = (address.split("#")[0], "blob:", "data:")

    def intercept(route):
        if not route.request.url.startswith(own):
            problems.append(f"asked for {route.request.url}")
            route.abort()
        else:
            route.continue_()

    for event, heard in listening.items():
        page.on(event, heard)
    if offline:
        page.route("**/*", intercept)
    left_clean = False
    try:
        page.goto(address)
        yield page
        if offline:
            _leave(page, listening)
            left_clean = True
    finally:
        if not left_clean:
            page.context.close()
    if offline:
        assert not problems, problems


def _tab(chromium):
    """One for all files: plotly.js is compiled once per process of Chromium, and takes it two seconds."""
    context = chromium.contexts[0] if chromium.contexts else chromium.new_context(accept_downloads=True)
    return context.pages[0] if context.pages else context.new_page()


def _leave(page, listening):
    """Nothing of this page is there for the next: no note, no mouse over a button."""
    page.evaluate("localStorage.clear()")
    page.mouse.move(0, 0)
    page.goto("about:blank")
    page.unroute_all()
    for event, heard in listening.items():
        page.remove_listener(event, heard)


def until(page, expression, seconds=15):
    """Wait for a JavaScript expression to hold. Playwright's own way needs `eval`, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never became true: {expression}"
        page.wait_for_timeout(20)


@pytest.fixture
def visit(chromium):
    """`with visit(path, "#hash") as page`: the page, drawn."""

    @contextmanager
    def enter(path, fragment="", **options):
        with opened(chromium, path.as_uri() + fragment, **options) as page:
            page.wait_for_selector("html[data-ready=yes]", timeout=30_000)
            yield page

    return enter


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """tiny-opt with everything beside it: a comparison, examples (one hostile), a study's results."""
    folder = tmp_path_factory.mktemp("explorer")
    model = al.load_model("tiny-opt")
    task = al.task_for(model)
    plan = task.batches(split="collect", tokens=20_000)
    statistics = al.collect(model, plan, progress=False)
    second = al.collect(model, task.batches(split="evaluate", tokens=20_000), progress=False)
    found = dict(gather_contexts(model, plan, statistics, striking_neurons(statistics, 20)))
    first = next(iter(found))
    hostile = Example(first, "high", statistics.maximum.max().item() + 1, 0, XSS, 1, (1, 2, 3), 1)
    found[first] = [*found[first], hostile]

    class Tokenizer:
        def decode(self, ids):
            return XSS if ids in ([1], [2], [3]) else model.hf_tokenizer.decode(ids)

    path = folder / "zoo.html"
    explore(
        statistics,
        plan,
        html=path,
        model=model,
        compare=second,
        labels=("collect", XSS),
        results=study_results().assign(model="tiny-opt", corpus=XSS),
        examples=found,
        tokenizer=Tokenizer(),
        progress=False,
    )
    return path, statistics, found

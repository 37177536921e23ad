"""`al.explore(...)` in a real JupyterLab page: the cell is run there, and the frame is the page of the file."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.browser.conftest import opened
from tests.synthetic_statistics import draw, statistics_of

CELL = """\
import ablation_lens as al
statistics = al.ActivationStatistics.load("statistics.safetensors")
al.explore(statistics, progress=False)
"""


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """The address of a server on this machine with one notebook, not yet run."""
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("JUPYTERLAB IS MISSING: the notebook view is not tested (pip install ablation-lens[notebook])")
    folder = tmp_path_factory.mktemp("jupyter")
    statistics_of(draw(400, (2, 2, 8))).save(folder / "statistics.safetensors")
    cell = {"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": [], "source": CELL}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "view.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    home = {name: str(folder / "home") for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    environment = {**os.environ, **home, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.25)
        else:
            pytest.fail((folder / "log").read_text())
        yield address
    finally:
        server.terminate()
        server.wait(30)


def test_the_same_page_in_a_notebook_cell(chromium, jupyter):
    with opened(chromium, f"{jupyter}/lab/tree/view.ipynb", offline=False) as page:
        asked = []
        page.on("request", lambda request: asked.append(request) if request.frame != page.main_frame else None)
        editor = page.locator(".jp-Notebook .jp-CodeCell .cm-content").first
        editor.wait_for(timeout=120_000)
        page.get_by_text("| Idle").wait_for(timeout=120_000)  # what is run before the kernel is there is dropped
        editor.click()
        page.keyboard.press("Shift+Enter")
        frame = page.frame_locator('iframe[title="ablation-lens explorer"]')
        frame.locator("html[data-ready=yes]").wait_for(timeout=120_000)
        name = frame.locator("#name")
        first = name.inner_text()
        assert frame.locator("#found").inner_text() == "32 neurons"
        frame.locator("#list .row").nth(2).click()
        second = frame.locator("#list .row").nth(2).get_attribute("data-neuron")
        frame.locator("#name", has_text=second).wait_for()
        assert second != first
        frame.locator("#pin").click()
        frame.locator('#pin[aria-pressed="true"]').wait_for()
        frame.locator("#name").click()
        page.keyboard.press("ArrowUp")
        frame.locator("#legend", has_text=second).wait_for()
        frame.locator("#log").click()
        frame.locator('#log[aria-pressed="true"]').wait_for()
        frame.locator("#export summary").click()
        with page.expect_download() as event:
            frame.locator("#csv").click()
        assert event.value.path().read_text().startswith("neuron,bin_low,bin_high,approximate_count\n")
        frame.locator("#export summary").click()
        with page.expect_download() as event:
            frame.locator("#png").click()
        assert event.value.path().read_bytes().startswith(b"\x89PNG")
        assert frame.locator("#problem").is_hidden()
        # What lives in memory alone (blob, data) is not a request to anybody.
        assert [request.url for request in asked if not request.url.startswith(("about:", "blob:", "data:"))] == []
        if "SCREENSHOT" in os.environ:
            page.screenshot(path=os.environ["SCREENSHOT"])

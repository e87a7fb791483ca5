"""A real browser: Debian's chromium under Playwright, with JupyterLab where a test wants it.

Without either, the tests here are skipped; `make test-browser` installs what is missing.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
LISTEN = "window.explored = []; addEventListener('explored', (e) => explored.push(e.detail));"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")  # no longer: while it runs, nbval's own event loop could not
def chromium():
    """A running chromium; skips where there is none."""
    if sync_playwright is None:
        pytest.skip("playwright is not installed: make test-browser")
    if not shutil.which("chromium"):
        pytest.skip("there is no chromium on the PATH: make test-browser, as root on Debian")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Opens pages that remember what is explored; an error in one fails the test."""
    contexts, errors = [], []

    def open_page(address, **options):
        size = {"width": 1000, "height": 800}
        contexts.append(chromium.new_context(**{"viewport": size} | options))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: errors.append(error))
        page.add_init_script(LISTEN)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:  # ipywidgets catches its views' errors, and says this instead
            errors += page.get_by_text("Click to show javascript error").all()
        context.close()
    assert not errors


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab in an empty folder: (its address, the folder)."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    news = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification"
    news.parent.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    news.with_suffix(".jupyterlab-settings").write_text(json.dumps(quiet))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=abc"]
    command += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}"]
    command += [f"--LabApp.user_settings_dir={home / 'settings'}"]
    command += [f"--LabApp.workspaces_dir={home / 'workspaces'}"]
    kept = {"JUPYTER_CONFIG_DIR": home / "config", "IPYTHONDIR": home / "ipython"}
    environment = os.environ | {name: str(path) for name, path in kept.items()}
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        address = f"http://127.0.0.1:{port}/lab"
        until = time.monotonic() + 120
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/api/status?token=abc", timeout=5).close()
                break
            except (URLError, OSError):
                if time.monotonic() > until or server.poll() is not None:
                    pytest.fail(f"JupyterLab did not start:\n{(home / 'log').read_text()[-2000:]}")
                time.sleep(0.5)
        yield address, folder
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def in_lab(opened, lab):
    """Opens a notebook of the lab's folder, its kernel connected: in_lab(path)."""
    address, folder = lab

    def open_path(path):
        page = opened(f"{address}/tree/{path.relative_to(folder).as_posix()}?token=abc&reset")
        page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
            "?.connectionStatus === 'connected'"
        )
        return page

    return open_path


@pytest.fixture
def notebook(in_lab, lab):
    """Opens a notebook of these cells in JupyterLab, its kernel connected: notebook(cells)."""
    _, folder = lab

    def open_notebook(cells):
        empty = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
        kernel = {"name": "python3", "display_name": "Python 3"}  # or JupyterLab would ask
        made = {"nbformat": 4, "nbformat_minor": 4, "metadata": {"kernelspec": kernel}}
        made["cells"] = [empty | {"source": cell} for cell in cells]
        path = folder / f"test{len(list(folder.iterdir()))}.ipynb"
        path.write_text(json.dumps(made))
        return in_lab(path)

    return open_notebook

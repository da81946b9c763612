"""What the browser test needs: a browser, a JupyterLab of its own on a free port, and a page that is watched.

Run by `make browser-test`, never by `make test`: no file here is called test_*.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

OUTPUT = Path(__file__).parent / "output"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


@dataclass
class Lab:
    """A running JupyterLab."""

    folder: Path
    """Its root, where notebooks lie."""
    settings: Path
    address: str
    token: str

    def set(self, plugin: str, values: dict) -> None:
        """Store user settings of a JupyterLab plugin; a page reads them when it loads."""
        path = self.settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def start_kernel(self, notebook: str) -> None:
        """Begin a notebook's session, as opening it would; a session that is there stays."""
        session = {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": "python3"}}
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.address}/api/sessions", json.dumps(session).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=240):
            pass

    def url(self, notebook: str) -> str:
        return f"{self.address}/lab/tree/{notebook}?token={self.token}&reset"


@dataclass
class Watch:
    """What a page did that it should not do."""

    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def browser() -> str:
    """The browser's path; the test is skipped, and says why, where there is none or playwright is missing."""
    pytest.importorskip(
        "playwright.sync_api",
        reason="playwright is not installed: pip install -c constraints.txt -e '.[browser]'",
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(
            f"no browser on the PATH, one of {', '.join(BROWSERS)} was expected (apt install chromium)"
        )
    return found


@pytest.fixture(scope="session")
def lab(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("lab")
    folder, settings, port, token = home / "notebooks", home / "settings", free_port(), secrets.token_hex(8)
    folder.mkdir()
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        **places,
        **quiet,
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    environment.pop("CSRLHF_STATIC", None)
    started = Lab(folder, settings, f"http://127.0.0.1:{port}", token)
    for plugin, values in SETTINGS.items():
        started.set(plugin, values)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
    ]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate"]
    with open(home / "log.txt", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(server, f"{started.address}/api/status?token={token}", home / "log.txt")
        yield started
    finally:
        _end(server)


def _wait(server: subprocess.Popen, address: str, log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def _end(server: subprocess.Popen) -> None:
    """Stop the server and, with it, its kernels."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def page(browser: str) -> Iterator:
    """A page of Debian's chromium that reaches this machine only; what it asks elsewhere is noted.

    The browser itself refuses the rest: were playwright to decide on each request, none would be answered while a
    test waits for something else.
    """
    from playwright import sync_api

    closed = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_api.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=browser, args=["--no-sandbox", closed])
        opened = chromium.new_page(viewport={"width": 1440, "height": 1500})
        opened.set_default_timeout(240_000)
        opened.watch = watch = Watch()

        def note(request) -> None:
            if urlsplit(request.url).hostname not in ("127.0.0.1", None):
                watch.strangers.append(request.url)

        opened.context.on("request", note)
        opened.on("websocket", note)
        opened.on("console", lambda m: watch.errors.append(m.text) if m.type == "error" else None)
        opened.on(
            "response", lambda r: watch.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None
        )
        opened.on("pageerror", lambda error: watch.errors.append(str(error)))
        yield opened
        chromium.close()


@pytest.fixture
def shoot(page):
    """Store a screenshot, of the page or of one element."""
    OUTPUT.mkdir(exist_ok=True)

    def take(name: str, element=None) -> None:
        (element or page).screenshot(path=OUTPUT / f"{name}.png")

    return take

"""A real browser before the real service. Whatever a test does: no page may break its own security policy, ask another
machine for anything, or fail unnoticed."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from serve_app.storage import schema
from tests.api.conftest import KEY
from tests.browser.service import Models, Running, serving
from tests.storage.conftest import execute, with_database
from tests.storage.postgres_server import postgres_server  # noqa: F401  fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, FilePayload, Page

SCREENSHOTS = Path(__file__).parent / "screenshots"
DATABASE = "kinlens_browser"
PLAIN_HOST = "kinlens.test"
"""A name of this machine by which a browser does not trust it as it trusts 127.0.0.1: as in a network at home, without TLS."""
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {PLAIN_HOST} 127.0.0.1",
)
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
    window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
});
"""


@pytest.fixture(scope="session")
def database_url(postgres_server: str) -> str:
    # Of a run before, where the server is a given one.
    asyncio.run(execute(postgres_server, f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"))
    asyncio.run(execute(postgres_server, f"CREATE DATABASE {DATABASE}"))
    url = with_database(postgres_server, DATABASE)
    schema.upgrade(url)
    return url


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's own, or skip."""
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None or find_spec("playwright") is None:
        pytest.skip("no Chromium or no Playwright here")
    return found


@pytest.fixture(scope="session")
def models(chromium: str, model_cache: Path) -> Models:
    return Models(model_cache)


@pytest.fixture(scope="package")
def service(models: Models, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(models, lambda: database_url, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="package")
def client(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as made:
        yield made


@pytest.fixture(scope="package")
def browser(chromium: str, service: Running) -> Iterator[Browser]:
    """After the service: while this is there, the main thread has an event loop of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield launched
        launched.close()


@dataclass
class Tab:
    """A page of the browser, and what went wrong in it. `expected`: parts of messages that are no failure."""

    page: Page
    url: str
    failures: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def sign_in(self, path: str = "/photos") -> Page:
        self.page.goto(self.url + path)
        self.page.get_by_label("API key").fill(KEY)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(self.url + path)
        return self.page

    def until(self, expression: str) -> None:
        """Waits until it holds. (Playwright's own way would need `eval`, which the pages refuse.)"""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.page.evaluate(f"() => Boolean({expression})"):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {expression}")

    def shot(self, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def check(self) -> None:
        violations: list[str] = self.page.evaluate("window.violations")
        assert violations == []
        assert [failure for failure in self.failures if not any(part in failure for part in self.expected)] == []

    def check_accessible(self) -> None:
        """No finding of axe-core that is serious or worse, against WCAG 2.2 AA and its good practice."""
        self.page.evaluate(axe_source())
        found: dict[str, Any] = self.page.evaluate(
            "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
        )
        assert found["passes"]
        serious = [
            f"{one['id']}: {one['help']}: {[node['html'][:150] for node in one['nodes'][:3]]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []


OpenTab = Callable[..., Tab]


def file(name: str, data: bytes, media_type: str = "image/jpeg") -> FilePayload:
    return {"name": name, "mimeType": media_type, "buffer": data}


@pytest.fixture
def open_tab(browser: Browser, service: Running) -> Iterator[OpenTab]:
    """Opens tabs, each a browser of its own: no storage in common."""
    opened: list[Tab] = []

    def make(running: Running = service, width: int = 1280, height: int = 800, host: str = "127.0.0.1", **options: Any) -> Tab:
        url = running.url.replace("127.0.0.1", host)
        context = browser.new_context(
            viewport={"width": width, "height": height}, locale="en-GB", timezone_id="UTC", **options
        )
        context.set_default_timeout(60_000)
        page = context.new_page()
        tab = Tab(page, url)
        page.add_init_script(WATCH)
        page.on("pageerror", lambda error: tab.failures.append(f"error {error}"))

        def said(line: ConsoleMessage) -> None:
            if line.type == "error":
                tab.failures.append(f"console {line.text}")

        def asked(asked_url: str) -> None:
            if not asked_url.startswith((url, "blob:")):
                tab.failures.append(f"asked elsewhere: {asked_url}")

        page.on("console", said)
        page.on("request", lambda request: asked(request.url))
        opened.append(tab)
        return tab

    yield make
    for tab in opened:
        tab.check()
        tab.page.context.close()


@pytest.fixture
def tab(open_tab: OpenTab) -> Tab:
    return open_tab()


@cache
def axe_source() -> str:
    """axe-core, out of a package that carries it."""
    found = find_spec("axe_playwright_python")
    assert found is not None and found.submodule_search_locations
    (path,) = Path(found.submodule_search_locations[0]).rglob("axe.min.js")
    return path.read_text(encoding="utf-8")

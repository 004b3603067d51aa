"""Order and shared fixtures. Fast tests first: what fails should fail early."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from deployments.models.packs import Pack, PackLocation, resolve

# The same examples each time, and no limit by the clock: chance and a busy machine must not decide whether a test passes.
settings.load_profile("ci")

_ORDER = ("unit", "api", "storage", "fuzz", "browser", "docs", "serve", "accuracy")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return _ORDER.index(folder) if folder in _ORDER else len(_ORDER)

    items.sort(key=rank)
    for item in items:
        if item.path.parent.name in ("serve", "accuracy"):
            item.add_marker(getattr(pytest.mark, item.path.parent.name))
        if item.get_closest_marker("cluster") and "cluster" not in str(config.getoption("markexpr")):
            item.add_marker(pytest.mark.skip(reason="several machines take minutes: run them with -m cluster"))


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def opencv_pack(model_cache: Path) -> Pack:
    """The default pack, prepared from its wheel."""
    return resolve(PackLocation("opencv", Path("/nonexistent"), model_cache))

"""The import rule of docs/architecture.md, and documents that must agree with the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from config.settings import Settings
from serve_app.environment import RAY_ENVIRONMENT
from serve_app.errors import error_classes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("serve_app", "deployments", "config") for path in (ROOT / folder).rglob("*.py"))

RAY = {"serve_app/app.py", "serve_app/ingress.py", "serve_app/remote.py", "serve_app/cluster.py", "serve_app/cli.py", "serve_app/service.py",
       "serve_app/processes.py", "serve_app/replica.py",
       "deployments/detection.py", "deployments/embedding.py", "deployments/analysis.py",
       "deployments/bulk.py", "deployments/indexing.py", "deployments/routing.py", "deployments/scaling.py", "deployments/semantic.py"}  # fmt: skip
FASTAPI = {"serve_app/ingress.py"}
ARRAYS = {
    "serve_app/services/vector_import.py",
    "serve_app/storage/bulk.py",
    "serve_app/storage/vectors.py",
    "serve_app/imaging/chips.py",
    "serve_app/grouping/clustering.py",
    "serve_app/grouping/group_plans.py",
    "serve_app/grouping/merging.py",
    "serve_app/grouping/neighbours.py",
    "serve_app/grouping/person_sums.py",
    "serve_app/grouping/unclaimed.py",
    "serve_app/imaging/exif.py",
    "serve_app/faces.py",
    "serve_app/imaging/images.py",
    "serve_app/imaging/quality.py",
    "serve_app/imaging/thumbnails.py",
    "deployments/process.py",
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def importers(*packages: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name == package or name.startswith(f"{package}.") for name in imports(path) for package in packages)
    }


def test_ray_is_imported_only_where_it_belongs() -> None:
    assert importers("ray") <= RAY


def test_fastapi_is_imported_only_in_the_api_and_the_ingress() -> None:
    assert {path for path in importers("fastapi", "starlette") if not path.startswith("serve_app/api/")} <= FASTAPI


def test_arrays_are_worked_on_only_in_the_domain_and_the_models() -> None:
    assert {path for path in importers("numpy", "cv2", "PIL") if not path.startswith("deployments/models/")} <= ARRAYS


def test_drivers_are_imported_only_in_storage() -> None:
    drivers = importers("asyncpg", "pgvector", "sqlalchemy", "alembic", "minio", "urllib3", "pgqueuer")
    assert [path for path in drivers if not path.startswith("serve_app/storage/")] == []


def test_what_extras_bring_is_imported_only_where_a_model_of_theirs_is_loaded() -> None:
    extras = ("deepface", "tensorflow", "tf_keras", "keras")
    assert importers(*extras) == {"deployments/models/deepface_models.py"}
    # And never with the module, which every process imports.
    tree = ast.parse((ROOT / "deployments/models/deepface_models.py").read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {child for function in functions for child in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in inside:
            names = [alias.name for alias in node.names] + [(node.module or "") if isinstance(node, ast.ImportFrom) else ""]
            assert not {name.partition(".")[0] for name in names} & set(extras)


def test_what_sends_something_away_is_imported_only_where_it_is_set() -> None:
    assert importers("opentelemetry") == {"serve_app/observing/tracing.py"}
    assert importers("sentry_sdk") == {"serve_app/observing/failures.py"}
    # And those two only inside a function, when there is somewhere to send to.
    senders = {"serve_app.observing.tracing", "serve_app.observing.failures"}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not {node.module for node in tree.body if isinstance(node, ast.ImportFrom)} & senders, path


def test_services_know_neither_the_api_nor_the_deployments() -> None:
    for path in (ROOT / "serve_app" / "services").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith(("serve_app.api", "deployments", "serve_app.remote"))], (
            path
        )
    for path in (ROOT / "serve_app" / "api").glob("*.py"):
        assert not [
            name for name in imports(path) if name.startswith(("deployments", "serve_app.remote", "serve_app.ingress"))
        ], path


@pytest.mark.parametrize("document", [".env.example", "docs/configuration.md"])
def test_every_setting_is_documented(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = [name.upper() for name in Settings.model_fields if not re.search(rf"\b{name.upper()}\b", text)]
    assert missing == []


def test_every_error_code_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    leaves = [cls.code for cls in error_classes() if not cls.__subclasses__()]
    assert [code for code in leaves if code not in text] == []


def test_the_image_sets_what_kinlens_up_sets() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert [name for name, value in RAY_ENVIRONMENT.items() if f"{name}={value}" not in text] == []


def test_links_between_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"

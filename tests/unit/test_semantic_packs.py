"""Which image-text model is there, what it is made of, and how its files are fetched."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deployments.models import semantic_pulling
from deployments.models.semantic_packs import (
    FileSpec,
    SemanticLocation,
    SemanticPack,
    SemanticSpec,
    resolve_semantic,
    semantic_specs,
)
from deployments.models.semantic_pulling import fetch_files, pull_semantic, semantic_states
from serve_app.errors import ConfigurationError
from serve_app.semantic import NOT_SET, NoSemanticModel
from tests.clip import CONTEXT, MEAN, SIDE_PX, STD, write_open_clip, write_transformers


def resolved(folder: Path, name: str = "") -> SemanticPack:
    found = resolve_semantic(SemanticLocation(name or str(folder), folder.parent))
    assert isinstance(found, SemanticPack)
    return found


def test_the_catalogue_is_complete() -> None:
    for name, spec in semantic_specs().items():
        assert spec.title and spec.licence and spec.commercial_use and spec.dim, name
        assert spec.download is not None and spec.download.startswith("https://"), name
        assert len(spec.files) == 3, name


def test_none_is_set_none_is_there(tmp_path: Path) -> None:
    assert resolve_semantic(SemanticLocation("", tmp_path)) == NOT_SET
    assert "SEMANTIC_MODEL" in NOT_SET.remedy and "models pull" in NOT_SET.remedy


def test_a_model_whose_files_are_missing_says_how_to_get_them(tmp_path: Path) -> None:
    found = resolve_semantic(SemanticLocation("clip_vit_b32", tmp_path))
    assert isinstance(found, NoSemanticModel)
    assert "onnx/vision_model.onnx" in found.reason and str(tmp_path) not in found.reason
    assert "kinlens models pull clip_vit_b32" in found.remedy and str(tmp_path / "clip_vit_b32") in found.remedy
    assert {state.name for state in semantic_states(SemanticLocation("", tmp_path)) if state.problem} == set(semantic_specs())


def test_a_file_with_another_hash_is_not_taken(tmp_path: Path) -> None:
    folder = write_transformers(tmp_path / "clip_vit_b32")
    (folder / "onnx" / "text_model.onnx").rename(folder / "onnx" / "text_model_quantized.onnx")
    found = resolve_semantic(SemanticLocation("clip_vit_b32", tmp_path))
    assert isinstance(found, NoSemanticModel)
    assert "another onnx/vision_model.onnx" in found.reason and "sha256" in found.remedy


def test_a_folder_of_open_clip_describes_itself(tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path / "models" / "tiny")
    found = resolved(folder)
    for name, root in (("tiny", tmp_path), ("tiny", folder.parent)):
        assert resolve_semantic(SemanticLocation(name, root)) == replace(found, name=name)
    spec = found.spec
    assert (spec.image.size_px, spec.image.resize, spec.image.interpolation) == (SIDE_PX, "shortest", "bicubic")
    assert (list(spec.image.mean), list(spec.image.std)) == (MEAN, STD)
    assert (spec.context_length, spec.pad, spec.commercial_use) == (CONTEXT, "<|endoftext|>", None)
    assert found.sha256["visual/model.onnx"] == hashlib.sha256((folder / "visual/model.onnx").read_bytes()).hexdigest()
    assert found.described().name == "tiny", "no path of the server"


def test_a_folder_of_transformers_describes_itself(tmp_path: Path) -> None:
    folder = write_transformers(tmp_path / "tiny")
    spec = resolved(folder).spec
    assert spec.files.keys() == {"onnx/vision_model.onnx", "onnx/text_model.onnx", "tokenizer.json"}
    assert (spec.image.size_px, spec.image.resize, spec.image.interpolation) == (SIDE_PX, "shortest", "bicubic")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    del config["crop_size"]
    config.update({"do_center_crop": False, "size": {"height": 64, "width": 64}, "resample": 2})
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    image = resolved(folder).spec.image
    assert (image.size_px, image.resize, image.interpolation) == (64, "squash", "bilinear")


def test_embeddings_are_kept_under_what_made_them(tmp_path: Path) -> None:
    first, same = write_open_clip(tmp_path / "a"), write_open_clip(tmp_path / "b")
    name = resolved(first).embedding_model
    assert resolved(same).embedding_model == name, "the same bytes, whatever the folder is called"
    assert resolved(write_open_clip(tmp_path / "c", seed=2)).embedding_model != name
    (same / "visual" / "model.onnx.data").write_bytes(b"weights")
    assert resolved(same).embedding_model != name, "weights beside the graph"
    (same / "visual" / "model.onnx.data").unlink()
    config = same / "visual" / "preprocess_cfg.json"
    config.write_text(config.read_text().replace("bicubic", "bilinear"))
    assert resolved(same).embedding_model != name, "the same files, fed differently"


@pytest.mark.parametrize("name", ["nothing", "../tiny", ".tiny", "/nowhere/at/all", "a/b", "x\x00y"])
def test_other_names_stop_the_start(tmp_path: Path, name: str) -> None:
    write_open_clip(tmp_path / "tiny")
    with pytest.raises(ConfigurationError, match="SEMANTIC_MODEL"):
        resolve_semantic(SemanticLocation(name, tmp_path / "root"))


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("visual/preprocess_cfg.json", None, "how pictures are prepared"),
        ("visual/preprocess_cfg.json", "{}", "how its model is to be fed"),
        ("visual/preprocess_cfg.json", "[]", "not a configuration"),
        ("visual/preprocess_cfg.json", "{", "cannot be read"),
        ("visual/preprocess_cfg.json", '{"size": [224, 336], "mean": [0, 0, 0], "std": [1, 1, 1]}', "no square"),
        ("visual/preprocess_cfg.json", '{"size": 224, "mean": 1, "std": 1}', "how its model is to be fed"),
        ("visual/preprocess_cfg.json", '{"size": 99999, "mean": [0, 0, 0], "std": [1, 1, 1]}', "size_px"),
        ("textual/tokenizer.json", None, "holds no image-text model"),
    ],
)
def test_a_folder_that_does_not_describe_itself_stops_the_start(
    tmp_path: Path, path: str, content: str | None, message: str
) -> None:
    folder = write_open_clip(tmp_path / "tiny")
    if content is None:
        (folder / path).unlink()
    else:
        (folder / path).write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        resolve_semantic(SemanticLocation("tiny", tmp_path))


class _Files(BaseHTTPRequestHandler):
    """`/whole/...` a folder's files; `/cut/...` half of each; `/moved/...` sends to whole; `/plain/...` to another scheme."""

    folder: Path

    def do_GET(self) -> None:
        _, kind, name = self.path.split("/", 2)
        if kind in ("moved", "plain"):
            self.send_response(302)
            self.send_header("Location", f"/whole/{name}" if kind == "moved" else f"ftp://127.0.0.1/{name}")
            self.end_headers()
            return
        path = self.folder / name
        if kind == "nothing":
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", "many" if kind == "odd" else str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if kind == "cut" else content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the folder it publishes."""
    folder = write_open_clip(tmp_path / "published")
    handler = type("Files", (_Files,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def spec_of(folder: Path, download: str, *, pinned: bool) -> SemanticSpec:
    spec = resolved(folder).spec
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() if pinned else None for name in spec.files}
    files = {
        part: FileSpec(file=file.file, sha256=hashes[file.file])
        for part, file in (("visual", spec.visual), ("textual", spec.textual), ("tokenizer", spec.tokenizer))
    }
    return spec.model_copy(update={"download": download, **files})


@pytest.mark.parametrize("kind", ["whole", "moved"])
def test_files_are_fetched_verified_and_kept(
    published: tuple[str, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address, source = published
    location = SemanticLocation("tiny", tmp_path / "root")
    spec = spec_of(source, f"{address}/{kind}", pinned=True)
    monkeypatch.setattr(semantic_pulling, "semantic_specs", lambda: {"tiny": spec})
    # So that `resolve_semantic` finds it: it is not in the catalogue.
    for name in ("visual/preprocess_cfg.json", "config.json"):
        target = tmp_path / "root" / "tiny" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((source / name).read_bytes())
    with caplog.at_level(logging.WARNING):
        found = pull_semantic(location)
    assert found.folder == tmp_path / "root" / "tiny" and not caplog.records
    for name in found.spec.files:
        assert (found.folder / name).read_bytes() == (source / name).read_bytes()
        assert (found.folder / name).stat().st_mode & 0o777 == 0o644
    # What is there and right is not fetched again; what is wrong is replaced.
    (found.folder / "visual/model.onnx").write_bytes(b"damaged")
    (source / "textual/model.onnx").unlink()
    assert pull_semantic(location).sha256 == found.sha256


def test_a_file_without_a_known_hash_is_said_to_be_unverified(
    published: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address, source = published
    spec = spec_of(source, f"{address}/whole", pinned=False)
    monkeypatch.setattr(semantic_pulling, "semantic_specs", lambda: {"published": spec})
    with caplog.at_level(logging.WARNING):
        found = pull_semantic(SemanticLocation("published", source.parent))
    assert [
        record.getMessage().count(found.sha256[name]) for record, name in zip(caplog.records, spec.files, strict=True)
    ] == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "IncompleteRead|bytes came"), ("plain", "without TLS|ftp"), ("nothing", "Not Found"), ("other", "sha256 is"),
        ("odd", "of many bytes"),
    ],
)  # fmt: skip
def test_what_is_not_the_file_is_not_kept(published: tuple[str, Path], tmp_path: Path, kind: str, message: str) -> None:
    address, source = published
    spec = spec_of(source, f"{address}/{'whole' if kind == 'other' else kind}", pinned=True)
    if kind == "other":
        (source / "visual/model.onnx").write_bytes(b"another")
    root = tmp_path / "root"
    with pytest.raises(ConfigurationError, match=message) as raised:
        fetch_files(SemanticLocation("tiny", root), spec)
    assert "kinlens models pull tiny" in str(raised.value)
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_without_a_server_it_says_what_to_do(published: tuple[str, Path], tmp_path: Path) -> None:
    _, source = published
    spec = spec_of(source, "http://127.0.0.1:1/nobody", pinned=True)
    with pytest.raises(ConfigurationError, match=r"refused.* or put visual/model.onnx and"):
        fetch_files(SemanticLocation("tiny", tmp_path / "root"), spec)
    with pytest.raises(ConfigurationError, match="no image-text model"):
        pull_semantic(SemanticLocation("unknown", tmp_path))

"""face-api's expression network: its files to ONNX, and how they get here."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from deployments.models import attribute_packs, npm, pulling
from deployments.models.attribute_packs import AnalysisLocation, AttributeModelSpec, Missing, attribute_model_specs, find_model
from deployments.models.deepface_models import DeepFaceEngine, weights_folder
from deployments.models.face_api import CLASSES, convert, layout, read_weights
from deployments.models.loading import load_attribute_models
from deployments.models.npm import NpmSource, environment, extract
from deployments.models.packs import PackLocation
from deployments.models.pulling import model_states, pull_model
from deployments.models.session import Device, create_session
from serve_app import cli
from serve_app.attributes import Attribute
from serve_app.errors import ConfigurationError
from serve_app.faces import FloatArray

NAME = "faceapi_emotion"
SHARD, MANIFEST = "face_expression_model.bin", "face_expression_model-weights_manifest.json"
SOURCE = NpmSource("@vladmandic/face-api@1.7.15", "face-api", "model")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Shard and manifest of a network with made-up weights: filters quantised, the rest not."""
    rng = np.random.default_rng(5)
    entries: list[dict[str, object]] = []
    shard = b""
    for name, shape in layout().items():
        entry: dict[str, object] = {"name": name, "shape": shape, "dtype": "float32"}
        if name.endswith("bias"):
            shard += rng.normal(0, 0.1, shape).astype("<f4").tobytes()
        else:
            # No layer dies, and no class is certain.
            low = -float(np.sqrt(3 / (9 if "depthwise" in name else np.prod(shape[:-1]))))
            entry["quantization"] = {"dtype": "uint8", "scale": -low / 127.5, "min": low}
            shard += rng.integers(0, 256, shape, dtype=np.uint8).tobytes()
        entries.append(entry)
    manifest = json.dumps([{"weights": entries, "paths": [SHARD]}]).encode()
    return {SHARD: shard, MANIFEST: manifest}


def convolution(x: FloatArray, filters: FloatArray, stride: int) -> FloatArray:
    """As TensorFlow pads "SAME". x: (H, W, C); filters: HWIO, or HWC1 for a depthwise one."""
    size, side = filters.shape[0], x.shape[0]
    out = -(-side // stride)
    padding = max((out - 1) * stride + size - side, 0)
    before = padding // 2
    padded = np.pad(x, ((before, padding - before), (before, padding - before), (0, 0)))
    total: FloatArray = np.zeros((), dtype=np.float32)
    for row, column in np.ndindex(size, size):
        window = padded[row : row + out * stride : stride, column : column + out * stride : stride][:out, :out]
        tap = filters[row, column]
        total = total + (window * tap[:, 0] if filters.shape[3] == 1 else window @ tap)
    return total


def forward(weights: Mapping[str, FloatArray], image: FloatArray) -> FloatArray:
    """The network written out once more, from its source. image: (112, 112, 3) RGB."""
    x = (image - np.asarray([122.782, 117.001, 104.298], dtype=np.float32)) / np.float32(255)

    def layer(x: FloatArray, prefix: str, stride: int = 1) -> FloatArray:
        if f"{prefix}/filters" in weights:
            return convolution(x, weights[f"{prefix}/filters"], stride) + weights[f"{prefix}/bias"]
        x = convolution(x, weights[f"{prefix}/depthwise_filter"], stride)
        return convolution(x, weights[f"{prefix}/pointwise_filter"], 1) + weights[f"{prefix}/bias"]

    for block in range(4):
        out1 = np.maximum(layer(x, f"dense{block}/conv0", stride=2), 0)
        out2 = layer(out1, f"dense{block}/conv1")
        out3 = layer(np.maximum(out1 + out2, 0), f"dense{block}/conv2")
        out4 = layer(np.maximum(out1 + out2 + out3, 0), f"dense{block}/conv3")
        x = np.maximum(out1 + out2 + out3 + out4, 0)
    logits = x.mean(axis=(0, 1)) @ weights["fc/weights"] + weights["fc/bias"]
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), dtype=np.float32)


def test_the_graph_computes_what_the_network_does(files: dict[str, bytes]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 112, 112, 3)).astype(np.float32)
    images[1, :, :40] /= 4
    session = create_session(convert(files[MANIFEST], files[SHARD]), Device.CPU, 1)
    answers = session.run(None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})[0]
    weights = read_weights(files[MANIFEST], files[SHARD])
    assert answers.shape == (2, len(CLASSES))
    assert np.abs(answers - np.stack([forward(weights, image) for image in images])).max() < 1e-5
    assert answers.max() < 0.9
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_conversion_is_deterministic(files: dict[str, bytes]) -> None:
    assert convert(files[MANIFEST], files[SHARD]) == convert(files[MANIFEST], files[SHARD])


def without_last(manifest: bytes) -> bytes:
    (group,) = json.loads(manifest)
    return json.dumps([group | {"weights": group["weights"][:-1]}]).encode()


def test_damaged_files_are_configuration_errors(files: dict[str, bytes]) -> None:
    manifest, shard = files[MANIFEST], files[SHARD]
    for damaged_manifest, damaged_shard, said in (
        (manifest, shard[:-1], "the shard has"),
        (manifest, shard + b"x", "the shard has"),
        (manifest, b"", "the shard has"),
        (manifest[:-1], shard, "no manifest"),
        (b"[]", shard, "no manifest"),
        (b"\xff", shard, "no manifest"),
        (manifest.replace(b"uint8", b"int4"), shard, "no manifest"),
        (without_last(manifest), shard[: -4 * len(CLASSES)], "fc/bias"),
        (manifest.replace(b"fc/bias", b"fc/other"), shard, "fc/"),
        (manifest.replace(b"[256, 7]", b"[7, 256]"), shard, "fc/weights"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            convert(damaged_manifest, damaged_shard)


def test_a_source_names_package_and_folder() -> None:
    assert NpmSource.parse(attribute_model_specs()[NAME].source) == SOURCE
    assert NpmSource.parse("npm:plain@1.0.0/a/b") == NpmSource("plain@1.0.0", "plain", "a/b")
    for wrong in ("npm:plain/model", "npm:@a/b@1", "npm:../b@1/model", "npm:-x y@1/model"):
        with pytest.raises(ConfigurationError):
            NpmSource.parse(wrong)


def write_archive(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_nothing_but_the_named_files_is_read_from_an_archive(tmp_path: Path) -> None:
    members: dict[str, bytes | tarfile.TarInfo] = {
        f"../{SHARD}": b"evil",
        f"/package/model/{SHARD}": b"evil",
        f"package/model/../model/{SHARD}": b"evil",
        f"package/other/{SHARD}": b"evil",
        f"package/model/{SHARD}": b"good",
        f"package/model/x/{SHARD}": b"evil",
    }
    archive = write_archive(tmp_path / "a.tgz", members)
    assert extract(archive, SOURCE, [SHARD]) == {SHARD: b"good"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tgz"]


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    wanted = f"package/model/{SHARD}"
    archive = write_archive(tmp_path / "a.tgz", {"package/x": b"other", wanted: link(wanted, "../x")})
    with pytest.raises(ConfigurationError, match=f"has no {SHARD}"):
        extract(archive, SOURCE, [SHARD])


def test_a_damaged_archive_is_a_configuration_error(tmp_path: Path) -> None:
    whole = write_archive(tmp_path / "a.tgz", {f"package/model/{SHARD}": bytes(range(256)) * 400}).read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:40] + b"\0" * 40 + whole[80:]):
        (tmp_path / "a.tgz").write_bytes(content)
        with pytest.raises(ConfigurationError):
            extract(tmp_path / "a.tgz", SOURCE, [SHARD])


def test_an_archive_that_unpacks_to_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the mass is: in a file nobody asked for, in the file itself, in a header, in the number of files."""
    wanted = f"package/model/{SHARD}"
    mass, small = bytes(1 << 20), b"good"
    monkeypatch.setattr(npm, "_MAX_UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr(npm, "_MAX_MEMBERS", 10)
    cases: list[tuple[dict[str, bytes | tarfile.TarInfo], str]] = [
        ({"package/other": mass, wanted: small}, "1 MiB"),
        ({wanted: mass}, "1 MiB"),
        ({"package/" + "x" * len(mass): small, wanted: small}, "1 MiB"),
        ({**{f"package/{index}": b"" for index in range(10)}, wanted: small}, "10 files"),
    ]
    for members, said in cases:
        archive = write_archive(tmp_path / "a.tgz", members)
        assert archive.stat().st_size < 50_000
        with pytest.raises(ConfigurationError, match=f"more than {said}"):
            extract(archive, SOURCE, [SHARD])
    assert extract(write_archive(tmp_path / "a.tgz", {"package/other": mass[:-20_000], wanted: small}), SOURCE, [SHARD])


def test_a_sparse_file_is_not_blown_up(tmp_path: Path) -> None:
    """64 GiB of nothing, in one block."""
    wanted = tarfile.TarInfo(f"package/model/{SHARD}")
    header = bytearray(wanted.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"\x80" + (64 << 30).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    archive = tmp_path / "a.tgz"
    archive.write_bytes(gzip.compress(bytes(header) + bytes(1024)))
    with tarfile.open(archive) as members:
        (member,) = members
        assert member.issparse() and member.isreg() and member.size == 64 << 30
    with pytest.raises(ConfigurationError, match=f"has no {SHARD}"):
        extract(archive, SOURCE, [SHARD])


SECRETS = ("API_KEY", "DATABASE_URL", "MINIO_SECRET_KEY", "POSTGRES_PASSWORD", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY")


def test_npm_is_given_its_own_variables_only() -> None:
    needed = ("PATH", "HOME", "npm_config_registry", "NPM_CONFIG_CAFILE", "NPM_TOKEN", "https_proxy", "HTTP_PROXY", "NO_PROXY",
              "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "LANG", "LC_ALL", "TMPDIR")  # fmt: skip
    others = (*SECRETS, "PATH_TO_KEY", "MY_PATH", "HOMEPAGE", "PROXY")
    assert tuple(environment(dict.fromkeys((*needed, *others), "x"))) == needed


@pytest.fixture
def location(tmp_path: Path, model_cache: Path) -> AnalysisLocation:
    return AnalysisLocation(PackLocation("opencv", tmp_path / "root", model_cache), tmp_path / "deepface")


@pytest.fixture
def made_up(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> AttributeModelSpec:
    """config/attributes.toml with the hashes of the made-up files."""
    specs = attribute_model_specs()
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = specs[NAME].manifest
    assert manifest is not None and (specs[NAME].file, manifest.file) == (SHARD, MANIFEST)
    update = {"sha256": sha256[SHARD], "manifest": manifest.model_copy(update={"sha256": sha256[MANIFEST]})}
    specs[NAME] = specs[NAME].model_copy(update=update)
    for module in (attribute_packs, pulling):
        monkeypatch.setattr(module, "attribute_model_specs", lambda: specs)
    return specs[NAME]


def put(files: dict[str, bytes], location: AnalysisLocation) -> Path:
    folder = location.pack.model_root / "face-api"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only program on the PATH. It notes that it was called."""
    folder.mkdir(exist_ok=True)
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\necho \"$@\" >> '{folder}/calls'\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def pack_of(files: Mapping[str, bytes], path: Path) -> str:
    """A script that leaves the package as `npm pack` does."""
    write_archive(path, {f"package/model/{name}": content for name, content in files.items()})
    return f"/bin/cp '{path}' ./vladmandic-face-api-1.7.15.tgz; echo vladmandic-face-api-1.7.15.tgz"


def test_it_is_pulled_verified_and_answers(
    files: dict[str, bytes],
    made_up: AttributeModelSpec,
    location: AnalysisLocation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_npm(tmp_path / "bin", pack_of(files, tmp_path / "package.tgz"), monkeypatch)
    assert pull_model(NAME, location) == made_up
    folder = location.pack.model_root / "face-api"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    pull_model(NAME, location)
    (call,) = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert call.startswith("pack @vladmandic/face-api@1.7.15 --ignore-scripts")
    (loaded,) = load_attribute_models(location, {NAME: (Attribute.EMOTION,)}, 1)
    chips = np.zeros((3, 112, 112, 3), dtype=np.uint8)
    probabilities = loaded.predictor.predict(chips)[Attribute.EMOTION]
    assert probabilities.shape == (3, len(made_up.classes))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.usefixtures("made_up")
def test_no_secret_reaches_npm(
    files: dict[str, bytes], location: AnalysisLocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "very secret")
    script = f"/usr/bin/env > '{tmp_path}/environment'; " + pack_of(files, tmp_path / "package.tgz")
    fake_npm(tmp_path / "bin", script, monkeypatch)
    pull_model(NAME, location)
    seen = (tmp_path / "environment").read_text()
    assert "very secret" not in seen and f"PATH={os.environ['PATH']}" in seen


@pytest.mark.usefixtures("made_up")
def test_a_damaged_file_is_refused_and_pulled_again(
    files: dict[str, bytes], location: AnalysisLocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(files, location)
    fake_npm(tmp_path / "bin", pack_of(files, tmp_path / "package.tgz"), monkeypatch)
    for name in files:
        (folder / name).write_bytes(b"damaged")
        found = find_model(NAME, location)
        assert isinstance(found, Missing) and name in found.reason
        assert "needs another" in str({state.name: state.problem for state in model_states(location)}[NAME])
        pull_model(NAME, location)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.usefixtures("made_up")
def test_what_keeps_it_from_being_pulled_is_said(
    files: dict[str, bytes], location: AnalysisLocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = files | {MANIFEST: files[MANIFEST] + b" "}
    for script, said in (
        (pack_of(other, tmp_path / "other.tgz"), "expected"),
        (pack_of({SHARD: files[SHARD]}, tmp_path / "half.tgz"), f"has no {MANIFEST}"),
        ("echo no such host >&2; exit 1", "no such host"),
        ("exit 3", "exit code 3"),
        ("exit 0", "left 0 archives"),
        ("echo torn > a.tgz", "damaged"),
    ):
        fake_npm(tmp_path / "bin", script, monkeypatch)
        with pytest.raises(ConfigurationError, match=said) as caught:
            pull_model(NAME, location)
        assert str(location.pack.model_root / "face-api") in str(caught.value)
        assert not (location.pack.model_root / "face-api").exists()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ConfigurationError, match=rf"npm is not on the PATH.*{SHARD} and {MANIFEST} from the folder model"):
        pull_model(NAME, location)


def test_what_is_missing_is_said_to_clients_without_paths(files: dict[str, bytes], location: AnalysisLocation) -> None:
    missing = find_model(NAME, location)
    assert isinstance(missing, Missing)
    assert SHARD in missing.reason and MANIFEST in missing.reason and str(location.pack.model_root) not in missing.reason
    for part in (f"kinlens models pull {NAME}", SOURCE.package, str(location.pack.model_root / "face-api")):
        assert part in missing.remedy
    put({SHARD: files[SHARD]}, location)
    half = find_model(NAME, location)
    assert isinstance(half, Missing)
    assert SHARD not in half.reason and MANIFEST in half.reason


def test_other_models_are_verified_or_fetched_by_their_package(
    location: AnalysisLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pull_model("dlib_age", location).licence == "CC0-1.0"
    with pytest.raises(ConfigurationError, match="buffalo_l"):
        pull_model("genderage", location)
    with pytest.raises(ConfigurationError, match="is no attribute model"):
        pull_model("nobody", location)
    monkeypatch.setattr(DeepFaceEngine, "installed", property(lambda _: False))
    with pytest.raises(ConfigurationError, match="extra"):
        pull_model("deepface_age", location)
    monkeypatch.setattr(DeepFaceEngine, "installed", property(lambda _: True))

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise ConfigurationError("no such host")

    monkeypatch.setattr(pulling, "build_client", refuse)
    with pytest.raises(ConfigurationError, match="no such host"):
        pull_model("deepface_age", location)


def test_files_without_a_known_hash_are_said_to_be_unverified(
    location: AnalysisLocation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(DeepFaceEngine, "installed", property(lambda _: True))
    folder = weights_folder(location.deepface_home)
    content = b"weights of whoever put them there"

    def fetch(*_args: object, **_kwargs: object) -> None:
        folder.mkdir(parents=True)
        (folder / "race_model_single_batch.onnx").write_bytes(content)

    monkeypatch.setattr(pulling, "build_client", fetch)
    pull_model("deepface_race", location)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "deepface_race: not verified: no hash is known" in record.getMessage()
    assert hashlib.sha256(content).hexdigest() in record.getMessage()
    caplog.clear()
    pull_model("dlib_age", location)
    assert not caplog.records


def test_states_name_every_model_and_what_it_lacks(location: AnalysisLocation) -> None:
    states = {state.name: state.problem for state in model_states(location)}
    assert list(states) == list(attribute_model_specs())
    assert states["dlib_age"] is None
    assert f"kinlens models pull {NAME}" in (states[NAME] or "")


def test_the_command_lists_and_pulls_both_kinds(
    location: AnalysisLocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_ROOT", str(location.pack.model_root))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path))
    cli.models_list()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("opencv: ")]
    assert [line for line in lines if line.startswith("dlib_age: age: ") and "commercial use allowed" in line]
    after = lines[next(index for index, line in enumerate(lines) if line.startswith(f"{NAME}: emotion: ")) + 1]
    assert "unavailable" in after and f"kinlens models pull {NAME}" in after
    cli.models_pull("dlib_age")
    cli.models_pull("opencv")
    assert "CC0-1.0" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="npm is not on the PATH"):
        cli.models_pull(NAME)
    with pytest.raises(ConfigurationError, match="faceapi_emotoin"):
        cli.models_pull("faceapi_emotoin")

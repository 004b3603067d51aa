"""Packs: the default one for real, and everything that can be wrong with files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deployments.models import packs
from deployments.models.engine import DetectionEngine, DetectionRequest, EmbeddingEngine
from deployments.models.loading import load_detector, load_recognizer
from deployments.models.packs import Pack, PackLocation, pack_names, pack_specs, resolve
from deployments.models.session import Device, providers
from serve_app.errors import ConfigurationError
from serve_app.faces import DetectionOptions, Detections
from serve_app.imaging.exif import read_info
from serve_app.imaging.images import ImageLimits
from tests import data


@pytest.fixture
def empty_root(tmp_path: Path) -> PackLocation:
    return PackLocation("buffalo_l", tmp_path / "root", tmp_path / "cache")


def test_the_catalogue_names_licence_hash_and_dimension() -> None:
    assert {"opencv", "buffalo_l", "buffalo_m", "buffalo_s", "buffalo_sc", "antelopev2"} <= set(pack_names())
    for spec in pack_specs().values():
        assert spec.licence and spec.commercial_use is not None
        assert spec.detector.sha256 and spec.recognizer.sha256 and spec.recognizer.dim in (128, 512)


def test_the_default_pack_is_prepared_once_and_repaired_when_damaged(tmp_path: Path) -> None:
    location = PackLocation("opencv", Path("/nonexistent"), tmp_path)
    first = resolve(location)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert resolve(location) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    good = first.detector_path.read_bytes()
    first.detector_path.write_bytes(good[:-1] + b"x")
    assert resolve(location).detector_path.read_bytes() == good


def test_missing_files_say_which_where_and_how(empty_root: PackLocation) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(empty_root)
    message = str(caught.value)
    for part in (
        "det_10g.onnx",
        "w600k_r50.onnx",
        str(empty_root.model_root),
        "kinlens models pull buffalo_l",
        "non-commercial",
    ):
        assert part in message


def test_one_missing_file_is_named(empty_root: PackLocation) -> None:
    folder = empty_root.model_root / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    (folder / "1k3d68.onnx").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"needs det_10g\.onnx"):
        resolve(empty_root)


def test_altered_files_are_refused_with_both_hashes(empty_root: PackLocation) -> None:
    folder = empty_root.model_root / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    for name in ("det_10g.onnx", "w600k_r50.onnx"):
        (folder / name).write_bytes(b"altered")
    with pytest.raises(ConfigurationError) as caught:
        resolve(empty_root)
    assert "5838f7fe053675b1" in str(caught.value) and packs.sha256_of(folder / "det_10g.onnx") in str(caught.value)


@pytest.mark.parametrize("name", ["nothing_here", "../etc", "", ".hidden", "/nonexistent/folder"])
def test_unknown_packs_are_refused(empty_root: PackLocation, name: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a pack"):
        resolve(replace(empty_root, name=name))


def test_a_folder_without_a_recognizer_says_so(empty_root: PackLocation) -> None:
    folder = empty_root.model_root / "mine"
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 10, 10])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [value], [helper.make_empty_tensor_value_info("y")]
    )
    onnx.save(helper.make_model(graph), folder / "other.onnx")
    with pytest.raises(ConfigurationError, match="holds no"):
        resolve(replace(empty_root, name="mine"))


def test_a_folder_of_insightface_format_is_recognised(model_cache: Path) -> None:
    data.require(data.INSIGHTFACE_ROOT)
    pack = resolve(PackLocation("buffalo_sc_like", data.INSIGHTFACE_ROOT, model_cache))
    # The same bytes as buffalo_sc's recognizer: its name, licence and operating point.
    assert pack.spec.recognizer.embedding_model == "w600k_mbf" and pack.spec.commercial_use is False
    assert pack.point is not None and pack.point.embedding_model == "w600k_mbf"
    other = resolve(PackLocation("scrfd25_fr", data.INSIGHTFACE_ROOT, model_cache))
    assert other.point is None and other.spec.commercial_use is None and other.spec.recognizer.dim == 512


def test_operating_points_belong_to_models_of_the_catalogue() -> None:
    models = {spec.recognizer.embedding_model for spec in pack_specs().values()}
    points = packs.measured_points()
    assert set(points) <= models
    for point in points.values():
        assert point.suggest_threshold < point.threshold


def test_a_missing_device_is_an_error_not_the_cpu() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(ConfigurationError, match="CUDAExecutionProvider"):
        providers(Device.CUDA)


@pytest.fixture(scope="module")
def detection(opencv_pack: Pack) -> DetectionEngine:
    return DetectionEngine(load_detector(opencv_pack, Device.CPU, 1), ImageLimits(1 << 24, 1 << 24), 0.6)


@pytest.fixture(scope="module")
def embedding(opencv_pack: Pack) -> EmbeddingEngine:
    return EmbeddingEngine(load_recognizer(opencv_pack, Device.CPU, 1))


class TestDefaultPack:
    """The real models on the pictures that come with insightface."""

    def detect(self, engine: DetectionEngine, image: bytes, options: DetectionOptions) -> Detections:
        (found,) = engine.run([DetectionRequest(image, options)])
        assert isinstance(found, Detections)
        return found

    def test_six_faces_largest_first_inside_the_picture(self, detection: DetectionEngine) -> None:
        found = self.detect(detection, data.package_image("t1.jpg"), DetectionOptions())
        assert len(found) == 6 and found.crops.shape == (6, 112, 112, 3)
        sizes = np.prod(found.bboxes[:, 2:] - found.bboxes[:, :2], axis=1)
        assert (np.diff(sizes) <= 0).all()
        assert (found.bboxes >= 0).all() and found.bboxes[:, 2].max() <= found.width_px
        left_eye, right_eye = found.landmarks[:, 0], found.landmarks[:, 1]
        assert (left_eye[:, 0] < right_eye[:, 0]).all()

    def test_options(self, detection: DetectionEngine) -> None:
        image = data.package_image("t1.jpg")
        assert len(self.detect(detection, image, DetectionOptions(max_faces=2))) == 2
        found = self.detect(detection, image, DetectionOptions(crops=1))
        assert len(found) == 6 and len(found.crops) == 1
        assert len(self.detect(detection, image, DetectionOptions(crops=0)).crops) == 0
        assert self.detect(detection, image, DetectionOptions()).info is None
        info = self.detect(detection, image, DetectionOptions(info=True)).info
        assert info is not None and info == read_info(image, ImageLimits(1 << 24, 1 << 24)) and info.width_px == 1280

    def test_a_batch_gives_what_single_pictures_give(self, detection: DetectionEngine) -> None:
        images = [
            data.package_image("t1.jpg"),
            b"text",
            data.package_image("Tom_Hanks_54745.png"),
            data.package_image("t1.jpg"),
        ]
        requests = [DetectionRequest(image, DetectionOptions()) for image in images]
        together = detection.run(requests)
        alone = [detection.run([request])[0] for request in requests]
        for a, b in zip(together, alone, strict=True):
            if isinstance(a, Detections) and isinstance(b, Detections):
                np.testing.assert_allclose(a.bboxes, b.bboxes, atol=1e-2)
                np.testing.assert_allclose(a.detection_scores, b.detection_scores, atol=1e-4)
            else:
                assert type(a) is type(b)

    @pytest.mark.parametrize("degrees", [90, 180, 270])
    def test_turned_pictures_are_found_by_turning_and_boxes_turned_back(
        self, detection: DetectionEngine, embedding: EmbeddingEngine, degrees: int
    ) -> None:
        from serve_app.imaging.images import decode, encode_png, rotate

        upright = decode(data.package_image("Tom_Hanks_54745.png"), ImageLimits(1 << 24, 1 << 24)).pixels
        reference = self.detect(detection, encode_png(upright), DetectionOptions())
        turned = self.detect(detection, encode_png(rotate(upright, degrees)), DetectionOptions())
        assert len(turned) == 1
        same = embedding.run([reference.crops])[0] @ embedding.run([turned.crops])[0].T
        if turned.rotation_deg:
            assert turned.rotation_deg == 360 - degrees
            assert same > 0.95, "the crop is the upright one, wherever the picture was turned"

    def test_embeddings_are_unit_vectors_whatever_the_batch(
        self, detection: DetectionEngine, embedding: EmbeddingEngine
    ) -> None:
        crops = self.detect(detection, data.package_image("t1.jpg"), DetectionOptions()).crops
        together = embedding.run([crops[:2], crops[2:2], crops[2:]])
        assert [len(part) for part in together] == [2, 0, 4]
        alone = np.concatenate([embedding.run([crops[i : i + 1]])[0] for i in range(6)])
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
        assert (np.sum(np.concatenate(together) * alone, axis=1) > 0.99999).all()


@pytest.mark.parametrize("shape", [(3, 2000, 3), (2000, 3, 3), (1, 1, 3), (1, 5000, 3)])
def test_strips_and_dots_find_nobody(opencv_pack: Pack, shape: tuple[int, int, int]) -> None:
    detector = load_detector(opencv_pack, Device.CPU, 1)
    (found,) = detector.detect([np.zeros(shape, np.uint8)], [0.6])
    assert len(found) == 0 and found.landmarks.shape == (0, 5, 2)

"""The figures of docs/accuracy.md, so that a change that costs accuracy fails here."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.models.engine import DetectionEngine, DetectionRequest
from deployments.models.evaluation import read_pairs, verify_pairs
from deployments.models.loading import load_detector
from deployments.models.packs import Pack, PackLocation, resolve
from deployments.models.session import Device
from serve_app.faces import DetectionOptions, Detections
from serve_app.imaging.images import ImageLimits
from tests import data


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["opencv", "buffalo_sc_like"])
def test_verification_on_pairs(name: str, model_cache: Path) -> None:
    pairs = read_pairs(data.require(data.PHOTOS / "pairs.csv"))
    if name != "opencv":
        data.require(data.INSIGHTFACE_ROOT / "models" / name)
    pack = resolve(PackLocation(name, data.INSIGHTFACE_ROOT, model_cache))
    assert pack.point is not None
    report = verify_pairs(pack, pairs, lambda done, total: None)
    threshold = pack.point.threshold
    print(
        f"{name}: accuracy {report.accuracy(threshold):.4f}, FAR {report.far(threshold):.4f}, FRR {report.frr(threshold):.4f}"
    )
    assert report.unreadable == 0
    assert report.accuracy(threshold) >= 0.985 and report.far(threshold) <= 0.005 and report.frr(threshold) <= 0.03


@pytest.mark.timeout(600)
def test_detection_counts(opencv_pack: Pack) -> None:
    photos = [photo for photo in data.manifest() if photo.face_count is not None and photo.kind != "corrupt"]
    if not photos:
        pytest.skip("test photos are not here (KINLENS_TEST_DATA)")
    engine = DetectionEngine(load_detector(opencv_pack, Device.CPU, 2), ImageLimits(1 << 26, 50_000_000), 0.6)
    missed = extra = exact = 0
    for photo in photos:
        (found,) = engine.run([DetectionRequest(photo.path.read_bytes(), DetectionOptions(crops=0))])
        assert isinstance(found, Detections), photo.path
        assert photo.face_count is not None
        exact += len(found) == photo.face_count
        missed += max(0, photo.face_count - len(found))
        extra += max(0, len(found) - photo.face_count)
    print(f"{len(photos)} photos: {exact} exact, {missed} missed, {extra} too many")
    assert exact >= 0.985 * len(photos) and missed <= 3 and extra <= 6


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_photos_lying_on_their_side(opencv_pack: Pack, degrees: int) -> None:
    engine = DetectionEngine(load_detector(opencv_pack, Device.CPU, 2), ImageLimits(1 << 26, 50_000_000), 0.6)
    (found,) = engine.run([DetectionRequest(data.read(f"rotated/rot_{degrees}.jpg"), DetectionOptions())])
    assert isinstance(found, Detections) and len(found) == 1

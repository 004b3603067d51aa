"""The same weights give the same faces: against insightface's FaceAnalysis and OpenCV's FaceDetectorYN, on every photo."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from deployments.models.detector import RawFaces
from deployments.models.loading import load_detector, load_recognizer
from deployments.models.packs import PackLocation, resolve
from deployments.models.session import Device, create_session, session_options
from deployments.models.yunet import YuNet
from serve_app.errors import ImageError
from serve_app.faces import RGBImage
from serve_app.imaging.images import ImageLimits, align, decode
from tests import data

LIMITS = ImageLimits(20 << 20, 50_000_000)
MAX_BOX_DIFFERENCE_PX = 1.0
MIN_COSINE = 0.999


def readable_photos() -> list[tuple[Path, RGBImage]]:
    photos = data.manifest()
    if not photos:
        pytest.skip("test photos are not here (KINLENS_TEST_DATA)")
    found = []
    for photo in photos:
        try:
            found.append((photo.path, decode(photo.path.read_bytes(), LIMITS).pixels))
        except ImageError:
            assert photo.kind == "corrupt" or photo.path.suffix in (".heic", ".hif"), photo.path
    return found


def pairs_by_overlap(ours: RawFaces, boxes: np.ndarray) -> list[tuple[int, int]]:
    """For each reference box the index of our nearest by corner distance."""
    return [
        (int(np.abs(ours.bboxes - box).max(axis=1).argmin()), index) for index, box in enumerate(boxes) if len(ours.bboxes)
    ]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["buffalo_sc_like", "scrfd25_fr"])
def test_insightface_packs_equal_face_analysis(name: str, model_cache: Path) -> None:
    folder = data.require(data.INSIGHTFACE_ROOT / "models" / name)
    from insightface.app import FaceAnalysis

    reference = FaceAnalysis(
        name=str(folder), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"],
        sess_options=session_options(2),
    )  # fmt: skip
    reference.prepare(ctx_id=-1)
    pack = resolve(PackLocation(name, data.INSIGHTFACE_ROOT, model_cache))
    detector, recognizer = load_detector(pack, Device.CPU, 2), load_recognizer(pack, Device.CPU, 2)
    photos = readable_photos()
    compared, worst_px, worst_cosine = 0, 0.0, 1.0
    for path, pixels in photos if name == "buffalo_sc_like" else photos[::6]:
        expected = reference.get(np.ascontiguousarray(pixels[..., ::-1]))
        (ours,) = detector.detect([pixels], [0.5])
        assert len(ours) == len(expected), path
        if not expected:
            continue
        embeddings = recognizer.embed(align(pixels, ours.landmarks))
        for mine, theirs in pairs_by_overlap(ours, np.stack([face.bbox for face in expected])):
            face = expected[theirs]
            difference = float(np.abs(ours.bboxes[mine] - face.bbox).max())
            cosine = float(embeddings[mine] @ face.normed_embedding)
            worst_px, worst_cosine = max(worst_px, difference), min(worst_cosine, cosine)
            compared += 1
            assert difference <= MAX_BOX_DIFFERENCE_PX, path
            assert abs(float(ours.scores[mine]) - float(face.det_score)) < 1e-3, path
            assert float(np.abs(ours.landmarks[mine] - face.kps).max()) <= MAX_BOX_DIFFERENCE_PX, path
            assert cosine >= MIN_COSINE, path
    print(f"{name}: {compared} faces, worst box difference {worst_px:.4f} px, worst cosine {worst_cosine:.6f}")
    assert compared > 50


@pytest.mark.timeout(600)
def test_yunet_equals_opencvs_face_detector() -> None:
    """OpenCV zoo's own fp32 weights in both; the picture is letterboxed by us, so that both see the same canvas."""
    model = data.require(data.REFERENCE / "face_detection_yunet_2023mar.onnx")
    ours = YuNet(create_session(_dynamic(model), Device.CPU, 2), [640], border=0.1)
    reference = cv2.FaceDetectorYN.create(str(model), "", (640, 640), 0.6, 0.3, 5000)
    compared, worst_px = 0, 0.0
    for path, pixels in readable_photos():
        box = ours.letterbox(pixels, 640)
        height, width = box.canvas.shape[:2]
        reference.setInputSize((width, height))
        _, found = reference.detect(np.ascontiguousarray(box.canvas[..., ::-1]))
        candidates = ours.forward(box.canvas[None], [0.6])[0]
        order = np.argsort(-candidates.scores, kind="stable")
        faces = RawFaces(candidates.bboxes[order], candidates.landmarks[order], candidates.scores[order])
        keep = ours.suppress(faces)
        assert len(keep) == (0 if found is None else len(found)), path
        for index, row in zip(keep, [] if found is None else found, strict=True):
            expected = np.concatenate([row[:2], row[:2] + row[2:4]])
            difference = float(np.abs(faces.bboxes[index] - expected).max())
            worst_px = max(worst_px, difference)
            compared += 1
            assert difference <= MAX_BOX_DIFFERENCE_PX, path
            assert abs(float(faces.scores[index]) - float(row[14])) < 1e-3, path
            assert float(np.abs(faces.landmarks[index].ravel() - row[4:14]).max()) <= MAX_BOX_DIFFERENCE_PX, path
    print(f"yunet: {compared} faces, worst box difference {worst_px:.4f} px")
    assert compared > 500


def _dynamic(path: Path) -> bytes:
    """The reference file with open dimensions, by the very rewrite the default pack goes through."""
    from deployments.models import graphs

    model = graphs.load(path)
    graphs.fold(model)
    return graphs.serialize(model)

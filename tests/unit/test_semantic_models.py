"""Pictures and texts to vectors, by real graphs."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from deployments.models.semantic_models import (
    ImageRequest,
    SemanticEngine,
    SemanticRequest,
    TextRequest,
    load_semantic,
    prepare,
)
from deployments.models.semantic_packs import ImageInput, SemanticLocation, SemanticPack, resolve_semantic
from deployments.models.session import Device
from serve_app.errors import ConfigurationError, ImageError
from serve_app.faces import FloatArray, RGBImage
from serve_app.imaging.images import ImageLimits
from tests.clip import CONTEXT, DIM, MEAN, SIDE_PX, STD, textual_graph, visual_graph, write_open_clip, write_transformers

LIMITS = ImageLimits(60 << 20, 178_000_000)
CLIP_INPUT = ImageInput(size_px=224, mean=(MEAN[0], MEAN[1], MEAN[2]), std=(STD[0], STD[1], STD[2]))


def noise(width: int, height: int, seed: int = 0) -> RGBImage:
    """Smooth, as photos are."""
    small = np.random.default_rng(seed).integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), dtype=np.uint8)


def encoded(pixels: RGBImage, image_format: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def plain(red: int, green: int, blue: int) -> bytes:
    return encoded(np.full((40, 60, 3), (red, green, blue), dtype=np.uint8))


def reference(pixels: RGBImage, side: int) -> FloatArray:
    """Resize(side, BICUBIC), CenterCrop(side), ToTensor, Normalize of torchvision, written down with Pillow and NumPy."""
    image = Image.fromarray(pixels)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(side * long / short)
    new = (side, new_long) if width <= height else (new_long, side)
    image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - side) / 2.0), round((new[1] - side) / 2.0)
    image = image.crop((left, top, left + side, top + side))
    values = (np.asarray(image, dtype=np.float64) / 255 - MEAN) / STD
    return np.asarray(values.transpose(2, 0, 1), dtype=np.float32)


def engine(folder: Path) -> SemanticEngine:
    found = resolve_semantic(SemanticLocation(str(folder), folder))
    assert isinstance(found, SemanticPack)
    return load_semantic(found, Device.CPU, 1, LIMITS)


def vectors(answers: list[FloatArray | ImageError]) -> FloatArray:
    assert not [answer for answer in answers if isinstance(answer, ImageError)]
    return np.stack([answer for answer in answers if not isinstance(answer, ImageError)])


@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (224, 224), (1000, 333), (333, 1000), (225, 224), (100, 60), (7, 5), (1, 1), (641, 427)]
)
def test_pictures_are_prepared_as_the_model_was_trained(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    difference = np.abs(prepare(pixels, CLIP_INPUT) - reference(pixels, 224)) * np.array(STD)[:, None, None] * 255
    # Steps of 8 bits where a rounding of one of the two passes falls to the other side.
    assert difference.max() <= 2.01 and (difference > 0.5).mean() < 0.001


def test_a_picture_may_be_squashed_instead() -> None:
    pixels = noise(640, 480)
    squashed = prepare(pixels, CLIP_INPUT.model_copy(update={"resize": "squash", "interpolation": "bilinear"}))
    image = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)
    expected = ((np.asarray(image, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)
    assert np.allclose(squashed, expected, atol=1e-5)


def test_a_strip_costs_no_more_than_its_middle() -> None:
    begun = time.thread_time()
    square = prepare(np.zeros((2, 32_766, 3), dtype=np.uint8), CLIP_INPUT)
    assert square.shape == (3, 224, 224) and time.thread_time() - begun < 1


@pytest.mark.parametrize("write", [write_open_clip, write_transformers])
def test_words_find_colours(tmp_path: Path, write: object) -> None:
    assert callable(write)
    found = engine(write(tmp_path / "tiny"))
    pictures = [plain(200, 40, 40), plain(40, 200, 40), plain(40, 40, 200)]
    requests: list[SemanticRequest] = [ImageRequest(one) for one in pictures]
    requests += [TextRequest(f"a {word} car") for word in ("red", "green", "blue")]
    answers = vectors(found.run(requests))
    assert answers.shape == (6, DIM) and answers.dtype == np.float32
    assert np.allclose(np.linalg.norm(answers, axis=1), 1, atol=1e-6)
    assert np.argmax(answers[3:] @ answers[:3].T, axis=1).tolist() == [0, 1, 2]


def test_a_batch_is_answered_in_order_whatever_fails_in_it(tmp_path: Path) -> None:
    found = engine(write_transformers(tmp_path / "tiny"))
    red = plain(250, 10, 10)
    mixed: list[SemanticRequest] = [
        TextRequest("red"),
        ImageRequest(b"no picture"),
        ImageRequest(red),
        ImageRequest(red[:60]),
        TextRequest("blue"),
    ]
    answers = found.run(mixed)
    assert [isinstance(answer, ImageError) for answer in answers] == [False, True, False, True, False]
    alone = [found.run([request])[0] for request in mixed]
    for answer, same in zip(answers, alone, strict=True):
        if isinstance(answer, ImageError):
            assert isinstance(same, ImageError) and same.code == answer.code
        else:
            assert not isinstance(same, ImageError) and np.allclose(answer, same, atol=1e-6)
    assert found.run([]) == []


def test_what_fills_up_a_text_does_not_count(tmp_path: Path) -> None:
    found = engine(write_transformers(tmp_path / "tiny"))
    short, long = vectors(found.run([TextRequest("red"), TextRequest("red " * 60)]))
    # Without the mask, 70 marks of the end would outweigh one word.
    assert float(short @ long) > 0.999


def test_a_turned_and_a_large_picture_are_seen_upright(tmp_path: Path) -> None:
    found = engine(write_transformers(tmp_path / "tiny"))
    left_red = np.zeros((300, 900, 3), dtype=np.uint8)
    left_red[:, :450, 0] = 255
    left_red[:, 450:, 2] = 255
    large = np.repeat(np.repeat(left_red, 4, axis=0), 4, axis=1)
    same = vectors(found.run([ImageRequest(encoded(left_red)), ImageRequest(encoded(large, "JPEG", quality=95))]))
    assert float(same[0] @ same[1]) > 0.999, "a JPEG may be decoded at a fraction of its size"
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(left_red))).save(buffer, "JPEG", quality=95, exif=exif)
    turned = vectors(found.run([ImageRequest(buffer.getvalue())]))[0]
    assert float(turned @ same[0]) > 0.999


def test_files_that_do_not_fit_together_stop_the_start(tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path / "tiny")
    onnx.save(textual_graph("text", "embedding", 6, 1, TensorProto.INT32), folder / "textual" / "model.onnx")
    with pytest.raises(ConfigurationError, match="two different models"):
        engine(folder)
    onnx.save(textual_graph("text", "embedding", DIM, 1, TensorProto.INT32, context=50), folder / "textual" / "model.onnx")
    with pytest.raises(ConfigurationError, match=f"50 tokens; {CONTEXT}"):
        engine(folder)
    onnx.save(visual_graph("image", "embedding", DIM, 1, side_px=48), folder / "visual" / "model.onnx")
    with pytest.raises(ConfigurationError, match=f"48.*{SIDE_PX}"):
        engine(folder)
    # The halves swapped.
    onnx.save(textual_graph("text", "embedding", DIM, 1, TensorProto.INT32), folder / "visual" / "model.onnx")
    with pytest.raises(ConfigurationError, match="image model takes text"):
        engine(folder)


def test_a_vector_without_a_direction_is_no_answer(tmp_path: Path) -> None:
    found = engine(write_open_clip(tmp_path / "tiny"))
    config = json.loads((tmp_path / "tiny" / "visual" / "preprocess_cfg.json").read_text())
    config["std"] = [1e-30, 1e30, 1e30]
    (tmp_path / "tiny" / "visual" / "preprocess_cfg.json").write_text(json.dumps(config))
    with np.errstate(all="ignore"), pytest.raises(ArithmeticError):
        engine(tmp_path / "tiny").run([ImageRequest(plain(255, 0, 0))])
    assert len(vectors(found.run([ImageRequest(plain(255, 0, 0))]))) == 1

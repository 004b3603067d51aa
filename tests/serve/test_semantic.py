"""The Semantic deployment and the handle to it, in one process."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.models.semantic_packs import SemanticLocation, SemanticPack, resolve_semantic
from deployments.semantic import Semantic
from serve_app.errors import ConfigurationError, ImageError
from serve_app.remote import RemoteSemantic
from tests.clip import write_open_clip


def png(red: int, green: int, blue: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 48), (red, green, blue)).save(buffer, "PNG")
    return buffer.getvalue()


def located(folder: Path) -> tuple[SemanticLocation, str]:
    location = SemanticLocation(str(folder), folder)
    found = resolve_semantic(location)
    assert isinstance(found, SemanticPack)
    return location, found.embedding_model


def run(location: SemanticLocation, embedding_model: str) -> DeploymentHandle:
    deployment: object = Semantic
    # The decorator makes the class a Deployment behind the type checker's back.
    assert isinstance(deployment, serve.Deployment)
    return serve.run(deployment.bind(location, embedding_model, 1), name="semantic", _local_testing_mode=True)


async def test_pictures_and_texts_are_encoded_together(tmp_path: Path) -> None:
    encoder = RemoteSemantic(run(*located(write_open_clip(tmp_path / "tiny"))))
    pictures = [png(210, 30, 30), png(30, 210, 30), png(30, 30, 210)]
    images = await asyncio.gather(*(encoder.encode_image(one) for one in pictures))
    texts = await asyncio.gather(*(encoder.encode_text(one) for one in ("red", "green", "blue")))
    assert np.argmax(np.stack(texts) @ np.stack(images).T, axis=1).tolist() == [0, 1, 2]
    for broken in (b"", b"no picture", pictures[0][:70]):
        with pytest.raises(ImageError):
            await encoder.encode_image(broken)
    again = await encoder.encode_image(pictures[0])
    assert np.allclose(again, images[0])


def test_a_node_with_other_files_does_not_start(tmp_path: Path) -> None:
    location, _ = located(write_open_clip(tmp_path / "tiny"))
    with pytest.raises(ConfigurationError, match="other files"):
        run(location, "clip-0000000000000000")
    with pytest.raises(ConfigurationError, match="lacks clip_vit_b32"):
        run(replace(location, name="clip_vit_b32"), "clip-0000000000000000")

"""The ingress deployment: the FastAPI application on a Ray Serve replica."""

from __future__ import annotations

import logging
import time

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from config.settings import Settings
from serve_app.api.app import create_api
from serve_app.api.deps import Services
from serve_app.images import ImageLimits
from serve_app.keys import load_or_create_api_key
from serve_app.remote import RemoteDetector, RemoteEmbedder
from serve_app.services.fetching import ImageFetcher
from serve_app.services.models import ModelInfo
from serve_app.services.pipeline import FacePipeline
from serve_app.services.verification import Verification


@serve.deployment
@serve.ingress()
class Ingress:
    """Never decodes a picture and never computes on an array of pixels: its loop answers while models are busy.

    `settings` come without secrets, which must not pass through Serve's configuration; the key is read here.
    """

    def __init__(
        self, settings: Settings, model: ModelInfo, detection: DeploymentHandle, embedding: DeploymentHandle
    ) -> None:
        logging.getLogger("ray.serve").setLevel(logging.DEBUG if settings.debug else logging.INFO)
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        pipeline = FacePipeline(RemoteDetector(detection), RemoteEmbedder(embedding), limits)
        own = Settings(data_dir=settings.data_dir)
        self._services = Services(
            settings=settings,
            api_key=load_or_create_api_key(own).value,
            pipeline=pipeline,
            verification=Verification(pipeline, model.embedding_model, model.dim, model.point),
            fetcher=ImageFetcher(
                allowed=settings.allow_image_urls, limits=limits, timeout_s=settings.image_url_timeout
            ),
            model=model,
            started_at=time.monotonic(),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._services)

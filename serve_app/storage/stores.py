"""Which object store the settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from config.settings import Settings
from serve_app.errors import ConfigurationError
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.minio_objects import MinioConfig, MinioObjectStore
from serve_app.storage.objects import ObjectStore


def open_object_store(settings: Settings, signing_key: bytes | Callable[[], bytes]) -> ObjectStore:
    """MinIO where MINIO_ENDPOINT is set, else the folder DATA_DIR/objects. Call `prepare` before anything else.

    signing_key: secret of the local store's presigned URLs, at least 16 bytes; ValueError for a shorter one. Raises
    ConfigurationError when MINIO_ENDPOINT comes without its keys, or a setting cannot be what it should be.
    """
    if settings.minio_endpoint is None:
        return LocalObjectStore(settings.data_dir / "objects", signing_key)
    if settings.minio_access_key is None or settings.minio_secret_key is None:
        raise ConfigurationError("MINIO_ENDPOINT needs MINIO_ACCESS_KEY and MINIO_SECRET_KEY.")
    return MinioObjectStore(
        MinioConfig(
            endpoint=settings.minio_endpoint,
            access_key=settings.minio_access_key.get_secret_value(),
            secret_key=settings.minio_secret_key.get_secret_value(),
            bucket=settings.minio_bucket,
            region=settings.minio_region,
            secure=settings.minio_secure,
            public_endpoint=settings.minio_public_endpoint,
        )
    )

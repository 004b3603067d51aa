"""What a worker of `kinlens index` is made of, and the source it reads."""

from __future__ import annotations

import os
from collections.abc import Sequence

from config.settings import Settings
from serve_app.bulk.files import BucketPlace, FolderPlace, Place, Source
from serve_app.bulk.folder import FolderSource
from serve_app.bulk.indexing import BulkIndexer
from serve_app.errors import ConfigurationError
from serve_app.gallery import contract_of
from serve_app.jobs import JobKind
from serve_app.services.collections import Collections
from serve_app.services.erasure import Eraser
from serve_app.services.indexing import PhotoIndexer, indexed_with
from serve_app.services.models import ModelInfo
from serve_app.services.photos import Photos
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import FacePipeline
from serve_app.services.review import ReviewLimits
from serve_app.storage.database import Database
from serve_app.storage.objects import ObjectStore
from serve_app.storage.source_bucket import BucketAccess, BucketSource


def open_indexer(
    settings: Settings,
    pipeline: FacePipeline,
    pictures: PictureReader,
    model: ModelInfo,
    database: Database,
    objects: ObjectStore,
    collection_id: str,
    automatic: Sequence[JobKind],
) -> BulkIndexer:
    """As `open_workshop` puts together what works off scans. Connects to nothing yet. `automatic`: see BulkIndexer."""
    contract = contract_of(model)
    eraser = Eraser(database, objects)
    library = Collections(database, eraser, contract)
    limits = ReviewLimits().for_detector(model.detector.family)
    indexer = PhotoIndexer(pipeline, database, objects, contract, indexed_with(model), limits)
    photos = Photos(library, database, objects, eraser, pictures, collection_id, automatic)
    return BulkIndexer(library, photos, indexer, database, objects, contract, automatic, settings.max_image_bytes)


def open_source(place: Place, settings: Settings) -> Source:
    """Raises ConfigurationError where the credentials of a bucket are not set."""
    if isinstance(place, FolderPlace):
        return FolderSource(place.root)
    return BucketSource(_access(place, settings), place.bucket, place.prefix)


def _access(place: BucketPlace, settings: Settings) -> BucketAccess:
    if place.endpoint is not None:
        access_key, secret_key = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not access_key or not secret_key:
            raise ConfigurationError("--endpoint takes its keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
        return BucketAccess(place.endpoint, access_key, secret_key, place.region, place.secure)
    if settings.minio_endpoint is None or settings.minio_access_key is None or settings.minio_secret_key is None:
        raise ConfigurationError("s3:// needs MINIO_ENDPOINT with MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or --endpoint.")
    return BucketAccess(
        settings.minio_endpoint,
        settings.minio_access_key.get_secret_value(),
        settings.minio_secret_key.get_secret_value(),
        settings.minio_region,
        settings.minio_secure,
    )

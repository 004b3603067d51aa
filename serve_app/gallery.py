"""The gallery: everything that stands on Postgres and the object store, put together."""

from __future__ import annotations

from dataclasses import dataclass

from config.settings import Settings
from serve_app.local import dsn
from serve_app.people import EmbeddingContract
from serve_app.services.collections import Collections
from serve_app.services.enrolment import Enrolment
from serve_app.services.erasure import Eraser
from serve_app.services.housekeeping import Housekeeping
from serve_app.services.models import ModelInfo
from serve_app.services.people import People
from serve_app.services.photos import Photos
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import FacePipeline
from serve_app.services.review import ReviewLimits
from serve_app.services.search import PersonSearch
from serve_app.services.thumbnails import Thumbnails
from serve_app.storage.database import Database, Dsn
from serve_app.storage.objects import ObjectStore

_SETTLE_S = 5
"""What is under way for clients that left is waited for, twice at most; `kinlens gc` finds what it leaves then."""


@dataclass(frozen=True, slots=True)
class Gallery:
    database: Database
    objects: ObjectStore
    collections: Collections
    people: People
    enrolment: Enrolment
    search: PersonSearch
    photos: Photos
    thumbnails: Thumbnails
    housekeeping: Housekeeping

    async def close(self) -> None:
        await self.housekeeping.stop()
        await self.thumbnails.close()
        await self.photos.settle(_SETTLE_S)
        await self.enrolment.settle(_SETTLE_S)
        await self.database.close()
        await self.objects.close()


def open_gallery(
    settings: Settings,
    pipeline: FacePipeline,
    pictures: PictureReader,
    model: ModelInfo,
    database_dsn: Dsn,
    objects: ObjectStore,
) -> Gallery:
    """Connects to nothing yet: the first request does."""
    database = Database(database_dsn, settings.database_pool_size)
    eraser = Eraser(database, objects)
    contract = contract_of(model)
    collections = Collections(database, eraser, contract)
    return Gallery(
        database=database,
        objects=objects,
        collections=collections,
        people=People(database, eraser),
        enrolment=Enrolment(
            pipeline,
            database,
            objects,
            contract,
            model.point,
            ReviewLimits().for_detector(model.detector.family),
            settings.max_workers,
        ),
        search=PersonSearch(pipeline, database, contract, model.point),
        photos=Photos(collections, database, objects, eraser, pictures, settings.library_collection),
        thumbnails=Thumbnails(database, objects, pictures, settings.library_collection, settings.worker_timeout),
        housekeeping=Housekeeping(database, eraser, objects),
    )


def contract_of(model: ModelInfo) -> EmbeddingContract:
    return EmbeddingContract(model.embedding_model, model.dim, model.recognizer.preprocessing)


def database_dsn(settings: Settings) -> Dsn:
    """DATABASE_URL, else the address of the embedded server, read anew for each connection."""
    url = settings.database_url
    if url is not None:
        return url.get_secret_value
    return lambda: dsn(settings.data_dir / "postgres")

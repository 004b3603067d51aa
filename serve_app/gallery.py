"""The gallery: everything that stands on Postgres and the object store, put together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from config.settings import Settings
from serve_app.identity.people import EmbeddingContract
from serve_app.jobs import JobKind
from serve_app.postgres.local import dsn
from serve_app.services.collections import Collections
from serve_app.services.deciding import Deciding
from serve_app.services.enrolment import Enrolment
from serve_app.services.erasure import Eraser
from serve_app.services.health import HealthChecks
from serve_app.services.housekeeping import Housekeeping
from serve_app.services.indexing import indexed_with
from serve_app.services.job_watch import JobWatch
from serve_app.services.jobs import Backlog, Jobs, NotIndexed
from serve_app.services.journal import Journal
from serve_app.services.library_faces import LibraryFaces
from serve_app.services.library_people import LibraryPeople
from serve_app.services.models import ModelInfo
from serve_app.services.people import People
from serve_app.services.photo_search import PhotoSearch
from serve_app.services.photos import Photos
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import FacePipeline
from serve_app.services.review import ReviewLimits
from serve_app.services.review_queue import ReviewQueue
from serve_app.services.scanning import Scanning
from serve_app.services.search import PersonSearch
from serve_app.services.selfies import Selfies
from serve_app.services.semantic import SemanticEncoder, SemanticIndex
from serve_app.services.stored_files import StoredFiles
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
    photo_search: PhotoSearch
    library_people: LibraryPeople
    review_queue: ReviewQueue
    deciding: Deciding
    journal: Journal
    semantic: SemanticIndex
    scanning: Scanning
    stored_files: StoredFiles
    health: HealthChecks
    thumbnails: Thumbnails
    library_faces: LibraryFaces
    jobs: Jobs
    job_watch: JobWatch
    housekeeping: Housekeeping

    async def close(self) -> None:
        await self.housekeeping.stop()
        await self.job_watch.close()
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
    encoder: SemanticEncoder | None = None,
) -> Gallery:
    """Connects to nothing yet: the first request does. `encoder`: of `model.semantic`; None where there is none."""
    database = Database(database_dsn, settings.database_pool_size)
    eraser = Eraser(database, objects)
    contract = contract_of(model)
    collections = Collections(database, eraser, contract)
    search = PersonSearch(pipeline, database, contract, model.point)
    semantic = SemanticIndex(database, objects, model.semantic, encoder)
    backlogs: dict[JobKind, Backlog] = {JobKind.FACES: NotIndexed(indexed_with(model)), JobKind.EMBEDDINGS: semantic}
    jobs = Jobs(database, collections, settings.library_collection, backlogs)
    automatic = (JobKind.FACES, JobKind.EMBEDDINGS) if semantic.available else (JobKind.FACES,)
    photos = Photos(
        collections,
        database,
        objects,
        eraser,
        pictures,
        settings.library_collection,
        automatic if settings.index_uploads else (),
    )
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
            index_again=settings.index_uploads,
        ),
        search=search,
        library_people=LibraryPeople(database, model.point, settings.library_collection),
        review_queue=ReviewQueue(database, model.point, settings.library_collection),
        deciding=Deciding(collections, database, settings.library_collection),
        journal=Journal(database, settings.library_collection),
        photos=photos,
        scanning=Scanning(collections, database, settings.library_collection, settings.scan_roots),
        stored_files=StoredFiles(database, settings.library_collection),
        health=HealthChecks(database, objects, pictures, pipeline),
        photo_search=PhotoSearch(database, Selfies(database, search), semantic, settings.library_collection),
        semantic=semantic,
        thumbnails=Thumbnails(database, objects, pictures, settings.library_collection, settings.worker_timeout),
        library_faces=LibraryFaces(database, settings.library_collection),
        jobs=jobs,
        job_watch=JobWatch(jobs),
        housekeeping=Housekeeping(
            database, eraser, objects, timedelta(days=settings.journal_days), settings.jobs_retention_days
        ),
    )


def contract_of(model: ModelInfo) -> EmbeddingContract:
    return EmbeddingContract(model.embedding_model, model.dim, model.recognizer.preprocessing)


def database_dsn(settings: Settings) -> Dsn:
    """DATABASE_URL, else the address of the embedded server, read anew for each connection."""
    url = settings.database_url
    if url is not None:
        return url.get_secret_value
    return lambda: dsn(settings.data_dir / "postgres")

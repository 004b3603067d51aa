"""`kinlens index` of a bucket: a real one, and one that refuses an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread
from urllib.parse import urlsplit

from minio import Minio

from serve_app.bulk.files import SourceFile, Status
from serve_app.bulk.run import RunOptions
from serve_app.storage.source_bucket import BucketAccess, BucketSource
from tests.storage.bulk_program import COLLECTION, opened, run
from tests.storage.bulk_world import photo, whole
from tests.storage.conftest import StoredWorld
from tests.storage.object_servers import ObjectServer


@contextmanager
def refusing_server(files: dict[str, bytes], refused: str) -> Iterator[str]:
    """A bucket with an object of which it says what S3 says of one that is encrypted with a key of its owner. ETags of others
    are such as no header can have. Its host:port."""
    listing = "".join(
        f"<Contents><Key>{name}</Key><Size>{len(data)}</Size><ETag>\u2603&#10;</ETag></Contents>"
        for name, data in files.items()
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = urlsplit(self.path).path.removeprefix("/source").removeprefix("/")
            if not name:
                self.answer(
                    200,
                    f"<ListBucketResult><Name>source</Name><IsTruncated>false</IsTruncated>{listing}</ListBucketResult>".encode(),
                )
            elif name == refused:
                self.answer(400, b"<Error><Code>InvalidRequest</Code></Error>")
            else:
                self.answer(200, files[name])

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class TestBucket:
    async def test_a_bucket_and_again(self, stored: StoredWorld, seaweedfs_server: ObjectServer) -> None:
        config = seaweedfs_server.config
        client = Minio(config.endpoint, config.access_key, config.secret_key, secure=False, region=config.region)
        bucket = f"source-{stored.first_key}"
        client.make_bucket(bucket)
        names = [f"in/{number % 2}/Bild {number} é%41.jpg" for number in range(20)]
        files = {name: photo(number) for number, name in enumerate(names)}
        others = {"index.jpg": photo(70), "in/.hidden/x.jpg": photo(71), "in/notes.txt": b"hello", "in/film.mov": bytes(9)}
        for name, data in (files | others).items():
            client.put_object(bucket, name, BytesIO(data), len(data))
        access = BucketAccess(config.endpoint, config.access_key, config.secret_key, config.region, secure=False)
        source = BucketSource(access, bucket, "/in/")
        async with opened(stored.dsn, stored.gallery.objects, source) as (pool, database):
            summary, outcomes = await run(pool, database)
            assert summary.statuses == {Status.INDEXED: 20, Status.SKIPPED: 2}
            await whole(stored, 20, 40)
            rows = await stored.rows("SELECT DISTINCT folder FROM photos ORDER BY 1")
            assert [row["folder"] for row in rows] == ["0", "1"]
            name = names[0].removeprefix("in/")

            def replace_one(worker: int, files: Sequence[SourceFile]) -> None:
                if any(one.name == name for one in files):
                    client.put_object(bucket, names[0], BytesIO(photo(80)), len(photo(80)))

            client.put_object(bucket, names[0], BytesIO(photo(79)), len(photo(79)))
            pool.hook = replace_one
            summary, outcomes = await run(pool, database)
            # Replaced while it was read: it is not kept under what was listed.
            assert outcomes[name].code == "file_unreadable" and summary.statuses[Status.KNOWN] == 19
            pool.hook = lambda worker, files: None
            summary, outcomes = await run(pool, database)
            assert outcomes[name].status is Status.INDEXED
            await whole(stored, 21, 42)
        source.close()

    async def test_one_object_that_is_refused_holds_nobody_up(self, stored: StoredWorld) -> None:
        with refusing_server({f"{number}.jpg": photo(number) for number in range(3)}, refused="1.jpg") as endpoint:
            source = BucketSource(BucketAccess(endpoint, "key", "secret-key", "us-east-1", secure=False), "source", "")
            async with opened(stored.dsn, stored.gallery.objects, source) as (pool, database):
                summary, outcomes = await run(pool, database, RunOptions(COLLECTION, give_up_after_s=1))
            source.close()
        assert summary.gave_up is None and summary.statuses == {Status.INDEXED: 2, Status.FAILED: 1}
        assert outcomes["1.jpg"].code == "file_unreadable" and "InvalidRequest" in (outcomes["1.jpg"].detail or "")

    async def test_a_bucket_that_is_not_there(self, stored: StoredWorld, seaweedfs_server: ObjectServer) -> None:
        config = seaweedfs_server.config
        access = BucketAccess(config.endpoint, config.access_key, config.secret_key, config.region, secure=False)
        async with opened(stored.dsn, stored.gallery.objects, BucketSource(access, "no-such", "")) as (pool, database):
            summary, _ = await run(pool, database)
        assert summary.gave_up is not None and "NoSuchBucket" in summary.gave_up

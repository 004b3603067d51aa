"""Postgres' own dump and restore, as streams: what a backup keeps of the database.

The programs are the embedded server's. `pg_dump` reads any server that is not newer than itself; the extensions, which only
a superuser could make again, are left out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import asyncpg

from serve_app.errors import ConfigurationError, Overloaded
from serve_app.postgres.local import binaries
from serve_app.storage.database import Connection
from serve_app.storage.objects_outbox import BACKUP_LOCK

CHUNK_BYTES = 4 << 20
"""What a step of a dump holds, at most."""

OUR_TABLES = ("alembic_version", "api_keys", "api_keys_revision", "audit", "collections", "embedding_models",
              "face_rejections", "faces", "idempotency_keys", "images", "indexed_files",
              "job_items", "job_progress", "jobs", "journal", "kinlens_pgqueuer", "kinlens_pgqueuer_log",
              "kinlens_pgqueuer_schedules", "kinlens_pgqueuer_statistics", "object_deletions", "person_distinctions",
              "persons", "photo_tags", "photo_texts", "photo_vocabulary", "photos", "rate_limits", "semantic_collections",
              "semantic_models", "server_secrets")  # fmt: skip
"""Of the newest schema, beside the vector tables. A restore removes these and nothing else; a test keeps them complete."""

_LOCK_TIMEOUT_S = 60
_TOLD_BYTES = 2000
_HEADER_BYTES = 64 << 10
_SESSION_SETTING = b"SET transaction_timeout = 0;\n"
"""pg_restore writes it for every server; those before Postgres 17 do not know it, and 0 is the default of the others."""

_REMOVE_TABLES = f"""
DO $remove$
DECLARE found record;
BEGIN
    FOR found IN
        SELECT format('%I.%I', n.nspname, c.relname) AS name
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND (c.relname IN ({", ".join(f"'{name}'" for name in OUR_TABLES)})
             OR c.relname ~ '^((photo_)?embeddings|templates)_m[0-9]+(_c[0-9]+)?$')
    LOOP
        EXECUTE 'DROP TABLE IF EXISTS ' || found.name || ' CASCADE';
    END LOOP;
    -- Of the queue. A dump of an older schema does not know them.
    DROP FUNCTION IF EXISTS public.kinlens_fn_pgqueuer_changed() CASCADE;
    DROP TYPE IF EXISTS public.kinlens_pgqueuer_status CASCADE;
END
$remove$;
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of the whole database. `objects`: pictures and crops that they name."""

    collections: int
    persons: int
    faces: int
    images: int
    objects: int
    photos: int


async def counts(connection: Connection) -> Counts:
    # A database is backed up before it is upgraded, too.
    there = await connection.fetchval("SELECT to_regclass('public.photos') IS NOT NULL")
    photos = await connection.fetchval("SELECT count(*) FROM photos") if there else 0
    row = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM collections) AS collections, (SELECT count(*) FROM persons) AS persons,"
        " (SELECT count(*) FROM faces) AS faces, (SELECT count(*) FROM images) AS images,"
        " (SELECT count(*) FROM faces WHERE crop_key IS NOT NULL) AS crops"
    )
    assert row is not None
    return Counts(row["collections"], row["persons"], row["faces"], row["images"], row["images"] + row["crops"], photos)


async def schema_version(connection: Connection) -> str:
    version: str = await connection.fetchval("SELECT version_num FROM alembic_version")
    return version


async def analyze(connection: Connection) -> None:
    """Statistics for the planner, which a dump does not bring."""
    await connection.execute("ANALYZE")


@asynccontextmanager
async def no_deletions(connection: Connection) -> AsyncIterator[None]:
    """While inside, no object is deleted: what rows name stays there. The connection must be a dedicated one.

    Raises Overloaded when another backup or restore holds the lock for longer than a minute.
    """
    await connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'")
    try:
        # Waits in the queue: a sweeper that comes later is turned away.
        await connection.execute("SELECT pg_advisory_lock($1)", BACKUP_LOCK)
    except asyncpg.LockNotAvailableError as error:
        raise Overloaded("Another backup or restore is running.") from error
    await connection.execute("SET lock_timeout = 0")
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", BACKUP_LOCK)


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[str]:
    """One moment of the database: inside, the connection sees it, and `dump` does by the name."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        name: str = await connection.fetchval("SELECT pg_export_snapshot()")
        yield name


async def dump(dsn: str, snapshot_name: str) -> AsyncIterator[bytes]:
    """A dump of that moment in pg_dump's custom format, in pieces of 4 MiB. Raises ConfigurationError when it fails."""
    address, environment = _client(dsn)
    arguments = ["--format=custom", "--compress=gzip:1", "--no-owner", "--no-privileges", "--exclude-extension=*",
                 f"--snapshot={snapshot_name}", f"--dbname={address}"]  # fmt: skip
    async with _program("pg_dump", arguments, environment, writes=True) as process:
        assert process.stdout is not None
        piece = bytearray()
        while read := await process.stdout.read(CHUNK_BYTES):
            piece += read
            if len(piece) >= CHUNK_BYTES:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)


async def restore(dsn: str, pieces: AsyncIterator[bytes]) -> None:
    """Puts a dump in the place of every table of ours, in one transaction: all of it or nothing.

    It runs what the dump says, as any restore does. Raises ConfigurationError when it fails, and what `pieces` raises;
    the database is then as it was.
    """
    address, environment = _client(dsn)
    sql = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-", f"--dbname={address}"]
    script = ["--file=-", "--clean", "--if-exists", "--no-owner", "--no-privileges"]
    committed = False
    async with _program("psql", sql, environment, reads=True) as target:
        assert target.stdin is not None
        try:
            await _feed(target.stdin, b"SET client_min_messages = warning;\nBEGIN;\n" + _REMOVE_TABLES.encode())
            async with _program("pg_restore", script, environment, reads=True, writes=True) as source:
                assert source.stdin is not None and source.stdout is not None
                await _all_of(_feed_pieces(source.stdin, pieces), _copy_script(source.stdout, target.stdin))
            # Only now: without it, psql ends at the end of its input, and the server rolls back.
            await _feed(target.stdin, b"\nCOMMIT;\n")
            target.stdin.close()
            committed = True
        except (BrokenPipeError, ConnectionResetError):
            # psql ended: its exit status and its last words say why.
            pass
    if not committed:
        raise ConfigurationError("psql ended before the whole dump was restored; the database is as it was.")


async def _copy_script(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    head = bytearray()
    while len(head) < _HEADER_BYTES and (read := await source.read(_HEADER_BYTES)):
        head += read
    await _feed(target, bytes(head).replace(_SESSION_SETTING, b"", 1))
    while read := await source.read(CHUNK_BYTES):
        await _feed(target, read)


async def _feed_pieces(stream: asyncio.StreamWriter, pieces: AsyncIterator[bytes]) -> None:
    try:
        async for piece in pieces:
            await _feed(stream, piece)
    except (BrokenPipeError, ConnectionResetError):
        # It ended; its exit status says whether it had all it needs.
        return
    stream.close()


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    stream.write(data)
    await stream.drain()


async def _all_of(*works: Coroutine[object, object, None]) -> None:
    """Raises what the first that fails raises, and ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def _program(
    name: str, arguments: list[str], environment: dict[str, str], *, reads: bool = False, writes: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running program; on leaving it must end well, else ConfigurationError with its last words. Killed when the block
    raises."""
    process = await asyncio.create_subprocess_exec(
        str(binaries() / name),
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.PIPE if reads else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if writes else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        limit=CHUNK_BYTES,
    )
    assert process.stderr is not None
    listening = asyncio.create_task(_last_words(process.stderr))
    done = False
    try:
        yield process
        done = True
    finally:
        if not done and process.returncode is None:
            process.kill()
        words, status = await listening, await process.wait()
    if status != 0:
        raise ConfigurationError(f"{name} failed ({status}): {words}")


async def _last_words(stream: asyncio.StreamReader) -> str:
    words = b""
    while read := await stream.read(_TOLD_BYTES):
        words = (words + read)[-_TOLD_BYTES:]
    return words.decode("utf-8", "replace").strip()


def _client(dsn: str) -> tuple[str, dict[str, str]]:
    """The address without its password, and the environment with it: arguments are for everybody to read."""
    url = urlsplit(dsn)
    user, at, host = url.netloc.rpartition("@")
    name, _, password = user.partition(":")
    query = parse_qsl(url.query, keep_blank_values=True)
    others = urlencode([(key, value) for key, value in query if key != "password"], quote_via=quote)
    address = f"{url.scheme}://{name}{at}{host}{url.path}{'?' if others else ''}{others}"
    # What libpq reads, as the service's own connections do; none of our other secrets.
    kept = {
        key: value for key, value in os.environ.items() if key.startswith("PG") or key in ("PATH", "LD_LIBRARY_PATH", "HOME")
    } | {"PGAPPNAME": "kinlens backup", "LC_ALL": "C"}
    for secret in (unquote(password), *(value for key, value in query if key == "password")):
        if secret:
            kept["PGPASSWORD"] = secret
    return address, kept

"""Collections, persons, faces, their pictures and vectors; idempotency keys and the outbox of object deletions."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    """
    CREATE TABLE embedding_models (
        key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL UNIQUE,
        dim smallint NOT NULL CHECK (dim BETWEEN 1 AND 4000)
    )
    """,
    # `preprocessing` is the other half of the embedding contract: how a picture becomes the crop that is embedded.
    # `search_mode`, `ef_search`: see storage/search.py.
    """
    CREATE TABLE collections (
        key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id text NOT NULL UNIQUE,
        name text NOT NULL,
        metadata jsonb NOT NULL,
        model_key integer NOT NULL REFERENCES embedding_models (key),
        preprocessing text NOT NULL,
        search_mode text NOT NULL DEFAULT 'exact' CHECK (search_mode IN ('exact', 'templates')),
        ef_search smallint NOT NULL DEFAULT 100,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE persons (
        id uuid PRIMARY KEY,
        collection_key integer NOT NULL REFERENCES collections (key),
        external_id text,
        name text NOT NULL,
        metadata jsonb NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (collection_key, external_id)
    )
    """,
    "CREATE INDEX persons_by_collection ON persons (collection_key, id)",
    "CREATE INDEX persons_by_metadata ON persons USING gin (metadata jsonb_path_ops)",
    # One row a stored picture; faces of a group photo share it. `object_key` is never used again once it was deleted.
    """
    CREATE TABLE images (
        id uuid PRIMARY KEY,
        collection_key integer NOT NULL REFERENCES collections (key),
        sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
        object_key text NOT NULL UNIQUE,
        size_bytes integer NOT NULL,
        format text NOT NULL,
        width_px integer NOT NULL,
        height_px integer NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (collection_key, sha256)
    )
    """,
    # A face from an external vector has no picture, box or crop.
    """
    CREATE TABLE faces (
        id uuid PRIMARY KEY,
        collection_key integer NOT NULL,
        person_id uuid REFERENCES persons (id),
        image_id uuid REFERENCES images (id),
        bbox real[],
        landmarks real[],
        detection_score real,
        quality jsonb,
        crop_key text,
        taken_at timestamptz NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX faces_by_person ON faces (person_id, id)",
    "CREATE INDEX faces_by_collection ON faces (collection_key, id)",
    "CREATE INDEX faces_by_date ON faces (collection_key, taken_at)",
    "CREATE INDEX faces_by_image ON faces (image_id) WHERE image_id IS NOT NULL",
    "CREATE UNIQUE INDEX faces_by_crop ON faces (crop_key) WHERE crop_key IS NOT NULL",
    # `response` is written in the transaction of the effect it tells of: both are there or neither. `subjects` are the ids
    # it names: when one of them is erased, so is the response.
    """
    CREATE TABLE idempotency_keys (
        key bytea PRIMARY KEY,
        fingerprint bytea NOT NULL,
        collection_id text,
        subjects uuid[] NOT NULL DEFAULT '{}',
        status smallint,
        response bytea,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at)",
    "CREATE INDEX idempotency_keys_by_subject ON idempotency_keys USING gin (subjects)",
    "CREATE INDEX idempotency_keys_by_collection ON idempotency_keys (collection_id)",
    # Objects whose rows are gone: deleted after the commit, again and again until the object store confirms.
    """
    CREATE TABLE object_deletions (
        object_key text PRIMARY KEY,
        not_before timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX object_deletions_by_time ON object_deletions (not_before)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("Restore the backup made before the upgrade.")

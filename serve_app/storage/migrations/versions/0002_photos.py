"""The photo library: what is known of a photo beside its picture, and its tags."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

_STATEMENTS = (
    # A photo is a picture of a collection with a name, a date and a place; the bytes and their hash are in `images`.
    # `taken_at` sorts: the camera's clock with its zone, the same in UTC where it says no zone, else the time of upload.
    # `taken_local` is what the clock showed. `tag_count` repeats what `photo_tags` says, for the index of those without any.
    """
    CREATE TABLE photos (
        id uuid PRIMARY KEY,
        collection_key integer NOT NULL REFERENCES collections (key),
        image_id uuid NOT NULL UNIQUE REFERENCES images (id),
        file_name text NOT NULL,
        folder text NOT NULL,
        taken_at timestamptz NOT NULL,
        taken_local timestamp,
        taken_offset_min smallint,
        camera text,
        lens text,
        latitude double precision CHECK (latitude BETWEEN -90 AND 90),
        longitude double precision CHECK (longitude BETWEEN -180 AND 180),
        altitude_m real,
        orientation smallint NOT NULL CHECK (orientation BETWEEN 1 AND 8),
        tag_count smallint NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX photos_by_date ON photos (collection_key, taken_at, id)",
    "CREATE INDEX photos_by_upload ON photos (collection_key, created_at, id)",
    "CREATE INDEX photos_by_folder ON photos (collection_key, folder, taken_at, id)",
    "CREATE INDEX photos_untagged ON photos (collection_key, taken_at, id) WHERE tag_count = 0",
    # `collection_key` again, so that a tag is found without its photos.
    """
    CREATE TABLE photo_tags (
        photo_id uuid NOT NULL REFERENCES photos (id) ON DELETE CASCADE,
        collection_key integer NOT NULL,
        tag text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (photo_id, tag)
    )
    """,
    "CREATE INDEX photo_tags_by_tag ON photo_tags (collection_key, tag, photo_id)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("Restore the backup made before the upgrade.")

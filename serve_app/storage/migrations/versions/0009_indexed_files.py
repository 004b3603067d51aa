"""Which files `kinlens index` has made photos of, so that the next run need not read them."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

_STATEMENTS: tuple[str, ...] = (
    # `file`: a hash of where it lies; `version`: of its size and time, or ETag. Hashes, because nobody asks for the names, and
    # they would be what is left of an erased photo. They are as wide as a uuid.
    """
    CREATE TABLE indexed_files (
        collection_key integer NOT NULL REFERENCES collections (key) ON DELETE CASCADE,
        file uuid NOT NULL,
        version uuid NOT NULL,
        photo_id uuid NOT NULL REFERENCES photos (id) ON DELETE CASCADE,
        PRIMARY KEY (collection_key, file)
    )
    """,
    "CREATE INDEX indexed_files_by_photo ON indexed_files (photo_id)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("Restore the backup made before the upgrade.")

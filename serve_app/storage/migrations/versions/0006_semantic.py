"""Embeddings of photos by image-text models."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

_STATEMENTS: tuple[str, ...] = (
    # `name` says what the model's files are, so that equal names make comparable embeddings.
    """
    CREATE TABLE semantic_models (
        key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL UNIQUE,
        dim smallint NOT NULL CHECK (dim BETWEEN 1 AND 4000)
    )
    """,
    # Each row stands for a table photo_embeddings_m<model_key>_c<collection_key>: see storage/photo_embeddings.py.
    """
    CREATE TABLE semantic_collections (
        collection_key integer NOT NULL REFERENCES collections (key),
        model_key integer NOT NULL REFERENCES semantic_models (key),
        PRIMARY KEY (collection_key, model_key)
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("Restore the backup made before the upgrade.")

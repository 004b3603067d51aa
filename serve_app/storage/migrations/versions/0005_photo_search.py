"""Text search over photos: what is written of them, the words of that, and the names of persons as words."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from serve_app.errors import ConfigurationError

revision = "0005"
down_revision = "0004"

_STATEMENTS = (
    # Similar words are found by their groups of three letters. A trusted extension: whoever may create in the database may
    # create it.
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    # `texts`: title, caption, keywords and place as the file has them. `words_version`: by which rules the photo was made
    # words of; 0 for not at all yet, and housekeeping does it then.
    "ALTER TABLE photos ADD COLUMN texts jsonb, ADD COLUMN words_version smallint NOT NULL DEFAULT 0",
    "CREATE INDEX photos_by_words ON photos (words_version)",
    # `image_id` and `taken_at` again, so that the newest of many, and those with some person, are found without their photos.
    # There is no index by date: the planner would walk it back for words that it takes to be evenly spread, and the year of a
    # photo is one of its words.
    """
    CREATE TABLE photo_texts (
        photo_id uuid PRIMARY KEY REFERENCES photos (id) ON DELETE CASCADE,
        collection_key integer NOT NULL,
        image_id uuid NOT NULL,
        taken_at timestamptz NOT NULL,
        words tsvector NOT NULL
    )
    """,
    # Entries are put where they belong at once: a list of pending ones would be read by every search.
    "CREATE INDEX photo_texts_by_word ON photo_texts USING gin (words) WITH (fastupdate = off)",
    # Which words of letters there are, for those that are misspelt. No photo, no word.
    """
    CREATE TABLE photo_vocabulary (
        collection_key integer NOT NULL REFERENCES collections (key) ON DELETE CASCADE,
        word text COLLATE "C" NOT NULL,
        PRIMARY KEY (collection_key, word)
    )
    """,
    "CREATE INDEX photo_vocabulary_by_letters ON photo_vocabulary USING gin (word gin_trgm_ops)",
    # The words of `words_of`, a space before and after each. Made when they are first asked for: where that is no longer the
    # name, anew. So whoever changes a name need not know of it.
    "ALTER TABLE persons ADD COLUMN name_words text, ADD COLUMN words_of text",
    "CREATE INDEX persons_unread ON persons (collection_key, id) WHERE name <> '' AND words_of IS DISTINCT FROM name",
    "CREATE INDEX persons_by_letters ON persons USING gin (name_words gin_trgm_ops) WHERE name_words IS NOT NULL",
)


def upgrade() -> None:
    there = op.get_bind().scalar(text("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'"))
    if not there:
        raise ConfigurationError(
            "The Postgres server has not the extension pg_trgm, which text search needs. It comes with Postgres: install its"
            " contrib package (postgresql-contrib) on the server."
        )
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("Restore the backup made before the upgrade.")

"""API keys with their scopes, rate limits, the server's own secret, and the audit log."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

_STATEMENTS: tuple[str, ...] = (
    # `collections`: NULL for all of them. An erased collection is taken out, so that one made later under its name is not
    # opened by an old key. `previous_*`: of a rotation whose overlap is not over.
    """
    CREATE TABLE api_keys (
        id text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{12}$'),
        name text NOT NULL,
        scopes text[] NOT NULL,
        collections text[],
        rate_limit integer CHECK (rate_limit > 0),
        sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
        previous_sha256 bytea CHECK (octet_length(previous_sha256) = 32),
        previous_until timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        created_by text NOT NULL,
        rotated_at timestamptz,
        expires_at timestamptz,
        revoked_at timestamptz,
        last_used_at timestamptz
    )
    """,
    # One row: what replicas ask for to learn whether a key has changed. Its lock puts changes in a row.
    "CREATE TABLE api_keys_revision (revision bigint NOT NULL)",
    "INSERT INTO api_keys_revision VALUES (1)",
    "CREATE TABLE server_secrets (name text PRIMARY KEY, value bytea NOT NULL)",
    # Written once a request: no write-ahead log, and room for updates beside the row. Lost in a crash of the server, which
    # only fills the buckets.
    """
    CREATE UNLOGGED TABLE rate_limits (
        key_id text PRIMARY KEY,
        full_at timestamptz NOT NULL,
        granted integer NOT NULL
    ) WITH (fillfactor = 20)
    """,
    # No reference to keys or collections: it outlives both.
    """
    CREATE TABLE audit (
        id uuid PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT now(),
        key_id text NOT NULL,
        key_name text NOT NULL,
        action text NOT NULL,
        collection_id text,
        status smallint NOT NULL,
        results integer
    )
    """,
    "CREATE INDEX audit_by_time ON audit (at)",
    "CREATE INDEX audit_by_collection ON audit (collection_id, id)",
    # Their faces stay, so that whoever looks like them is told of nobody.
    "ALTER TABLE persons ADD COLUMN do_not_recognise boolean NOT NULL DEFAULT false",
    "CREATE INDEX persons_not_recognised ON persons (collection_key, id) WHERE do_not_recognise",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("Restore the backup made before the upgrade.")

"""The audit log is found by key and by action as well, and counts refusals beyond the first ones in one line; since when
somebody must not be recognised."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

_STATEMENTS: tuple[str, ...] = (
    # How many requests a line stands for.
    "ALTER TABLE audit ADD COLUMN requests integer NOT NULL DEFAULT 1 CHECK (requests > 0)",
    # Pages are ordered by id, which begins with the time.
    "CREATE INDEX audit_by_key ON audit (key_id, id)",
    "CREATE INDEX audit_by_action ON audit (action, id)",
    # A decision from before it is not undone.
    "ALTER TABLE persons ADD COLUMN not_recognised_since timestamptz",
    "UPDATE persons SET not_recognised_since = clock_timestamp() WHERE do_not_recognise",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("Restore the backup made before the upgrade.")

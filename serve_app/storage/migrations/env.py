"""What Alembic runs: the connection comes from `storage.schema.upgrade`, inside its transaction and its lock."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()

"""Versioned migrations, run by Alembic under an advisory lock (`storage.schema.upgrade`)."""

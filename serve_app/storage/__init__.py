"""Rows in Postgres and bytes in the object store. SQL stands only here."""

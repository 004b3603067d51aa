"""The REST API: routers, schemas, and the one place where errors become responses."""

"""The embedded Postgres: its programs, its cluster, who uses it."""

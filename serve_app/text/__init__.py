"""Words of photos and of queries. Pure."""

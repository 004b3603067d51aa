"""Persons and faces as values, and what users decide of them. Pure."""

"""Which faces are one person's. Pure."""

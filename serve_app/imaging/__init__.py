"""Pictures and what is done to them. Pure."""

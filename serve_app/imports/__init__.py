"""Commands that bring photos and people from elsewhere, as clients of a running instance."""

"""What Kinlens does, without HTTP, Ray or SQL."""

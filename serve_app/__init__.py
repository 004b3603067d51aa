"""Kinlens: face matching, person search and a photo library on Ray Serve."""

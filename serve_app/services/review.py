"""PLACEHOLDER, to be replaced."""
from dataclasses import dataclass


@dataclass(frozen=True)
class ReviewLimits:
    max_similarity_to_own: float = 0.985
def review_quality(quality, detection_score, limits):
    return []

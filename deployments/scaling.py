"""How many replicas of Indexing there are: an autoscaling policy of serve_config.yaml."""

from __future__ import annotations

from ray.serve.config import AutoscalingContext

DEPTH = "chunks"
CHUNKS_A_REPLICA = 8
"""One replica more for each so many that wait: of up to 8 photos each, some ten seconds' work."""


def by_depth(context: AutoscalingContext) -> tuple[float, dict[str, object]]:
    """As many as the queue is deep; Serve keeps it within min_replicas and max_replicas and applies its delays.

    Every replica says how deep the whole queue is, so that none has to be asked for its share.
    """
    said = (context.aggregated_metrics or {}).get(DEPTH, {})
    return max(said.values(), default=0.0) / CHUNKS_A_REPLICA, {}

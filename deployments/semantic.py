"""The Semantic deployment: encoded pictures and texts in, vectors that can be compared out. Deployed where a model is set."""

from __future__ import annotations

from collections.abc import Sequence

from ray import serve

from deployments.batching import BatchConfig, Batcher
from deployments.models.semantic_models import ImageRequest, SemanticRequest, TextRequest, load_semantic
from deployments.models.semantic_packs import SemanticLocation, SemanticPack, resolve_semantic
from deployments.process import tune_process
from deployments.routing import BY_WAIT
from serve_app.errors import ConfigurationError, ImageError
from serve_app.faces import FloatArray
from serve_app.observing.outlets import Outlets
from serve_app.observing.stages import Timed
from serve_app.replica import observed
from serve_app.services.pictures import STORED_LIMITS

# The numbers stand here, and not in serve_config.yaml, because Serve refuses to configure what is not deployed.
_SCALE = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 5,
    "look_back_period_s": 12,
}


@serve.deployment(
    request_router_config=BY_WAIT,
    max_ongoing_requests=20,
    max_queued_requests=32,
    max_surge_percent=100,
    graceful_shutdown_timeout_s=70,
    backpressure_config={"status_code": 503, "retry_after_s": 1},
    autoscaling_config=_SCALE,
    user_config={"batch_wait_timeout_s": 0.0, "threads": 1},
    ray_actor_options={"num_cpus": 0.15},
)
class Semantic:
    """`embedding_model`: what must come of the files on this node, so that no two replicas make embeddings that look alike
    and cannot be compared."""

    outlets: Outlets

    @observed
    def __init__(self, location: SemanticLocation, embedding_model: str, intra_op_threads: int) -> None:
        tune_process()
        found = resolve_semantic(location)
        if not isinstance(found, SemanticPack):
            raise ConfigurationError(f"This node lacks {location.name}. {found.reason} {found.remedy}")
        if found.embedding_model != embedding_model:
            raise ConfigurationError(f"{found.folder} on this node holds other files than those of the node that deployed.")
        engine = load_semantic(found, location.device, intra_op_threads, STORED_LIMITS)
        self._pictures: Batcher[SemanticRequest, FloatArray | ImageError] = Batcher(
            engine.run, BatchConfig(), default_batch_size=location.device.batch_size
        )
        # Of its own: somebody waits for a text, while thousands of pictures are being indexed.
        self._texts: Batcher[SemanticRequest, FloatArray | ImageError] = Batcher(
            engine.run, BatchConfig(), default_batch_size=location.device.batch_size
        )

    def reconfigure(self, user_config: dict[str, object]) -> None:
        self._pictures.configure(BatchConfig.model_validate(user_config))

    # `traces`: W3C traceparents of those who wait for it, where they trace.

    async def encode_image(self, image: bytes, traces: Sequence[str] = ()) -> Timed[FloatArray | ImageError]:
        """Encoded bytes to (D,) float32 of unit L2 norm. An unreadable picture is returned, not raised: it is an answer."""
        with self.outlets.serving("Semantic.encode_image", traces) as spans:
            return await self._pictures.submit_timed(ImageRequest(image), spans)

    async def encode_text(self, text: str, traces: Sequence[str] = ()) -> Timed[FloatArray | ImageError]:
        """To (D,) float32 of unit L2 norm."""
        with self.outlets.serving("Semantic.encode_text", traces) as spans:
            return await self._texts.submit_timed(TextRequest(text), spans)

    async def batching(self) -> BatchConfig:
        """The batching of pictures in force on this replica."""
        return self._pictures.config
